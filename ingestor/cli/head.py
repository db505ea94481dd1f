"""`ingestor head`: the first trades of a recording, or of a span of it."""

from datetime import tzinfo
from pathlib import Path

import click

from ingestor.cli.options import (
    config_option,
    format_json,
    format_table,
    json_option,
    read_span,
    root_from,
    root_option,
    span_options,
    symbols_option,
)

_SHOWN = ("timestamp", "symbol", "price", "volume", "conditions")


@click.command()
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
    """Print the first trades of a span, in order of time.

    ingestor head --symbols AAPL --start 2026-11-20T09:30 --tz America/New_York
    """
    from ingestor.dataset.reader import first_trades
    from ingestor.dataset.times import to_span

    rows = first_trades(root_from(config, root), to_span(read_span(start, end, tz)), symbols, count).to_pylist()
    for row in rows:
        row["timestamp"] = row["timestamp"].astimezone(tz).isoformat(timespec="milliseconds")
        row["received_at"] = row["received_at"].astimezone(tz).isoformat(timespec="microseconds")
    if as_json:
        click.echo(format_json(rows))
    else:
        click.echo(format_table(_SHOWN, ([row[name] for name in _SHOWN] for row in rows)))
