"""`ingestor head`: the first trades of a recording, or of a span of it."""

from datetime import tzinfo
from pathlib import Path

import click

from ingestor.cli.options import (
    config_option,
    example,
    json_option,
    read_span,
    root_from,
    root_option,
    span_options,
    symbols_option,
    tell_of_nothing,
)
from ingestor.cli.printing import format_json, format_table, format_trade

_SHOWN = ("timestamp", "symbol", "price", "volume", "conditions")


@click.command(epilog=example("ingestor head --symbols AAPL --start 2026-11-20T09:30 --tz America/New_York"))
@config_option
@root_option
@symbols_option
@span_options
@json_option
@click.option(
    "--count", type=click.IntRange(min=1), default=10, show_default=True, metavar="N", help="How many trades."
)
def head(
    config: Path | None,
    root: Path | None,
    symbols: tuple[str, ...] | None,
    start: str | None,
    end: str | None,
    tz: tzinfo,
    as_json: bool,
    count: int,
) -> None:
    """Print the first trades of a span, a row each, in order of time; --json has all their columns."""
    from ingestor.dataset.reader import first_trades
    from ingestor.dataset.times import to_span

    found = first_trades(root_from(config, root), to_span(read_span(start, end, tz)), symbols, count)
    if not found.num_rows:
        tell_of_nothing(root_from(config, root), symbols, tz)
    rows = [format_trade(row, tz) for row in found.to_pylist()]
    if as_json:
        click.echo(format_json(rows))
    else:
        click.echo(format_table(_SHOWN, ([row[name] for name in _SHOWN] for row in rows)))
