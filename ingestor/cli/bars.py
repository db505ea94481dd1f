"""`ingestor bars`: open, high, low, close, volume of each interval."""

from datetime import tzinfo
from pathlib import Path
from typing import Literal

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


@click.command()
@click.argument("interval", metavar="INTERVAL")
@config_option
@root_option
@symbols_option
@span_options
@json_option
@click.option(
    "--session",
    type=click.Choice(["all", "regular", "extended"]),
    default="all",
    show_default=True,
    help="Hours of US stocks: regular is 09:30 to 16:00 New York, extended 04:00 to 20:00.",
)
@click.option(
    "--conditions",
    type=click.Choice(["sip", "all"]),
    default="sip",
    show_default=True,
    help="sip: the US rules on which prints move what; all: every print moves everything.",
)
@click.option("--fill", is_flag=True, help="Add the bars that were recorded and had no trade.")
def bars(
    interval: str,
    config: Path | None,
    root: Path | None,
    symbols: tuple[str, ...] | None,
    start: str | None,
    end: str | None,
    tz: tzinfo,
    as_json: bool,
    session: Literal["all", "regular", "extended"],
    conditions: Literal["sip", "all"],
    fill: bool,
) -> None:
    """Print bars of INTERVAL (1s, 1m, 5m, 1h, 1d), each with the share of it that was recorded.

    ingestor bars 5m --symbols AAPL --start 2026-11-20 --tz America/New_York --session regular
    """
    from ingestor.dataset.bars import read_bars

    span = read_span(start, end, tz)
    try:
        table = read_bars(
            root_from(config, root), interval, symbols, span.start, span.end, str(tz),
            session=session, conditions=conditions, fill=fill, engine="arrow",
        )  # fmt: skip
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="INTERVAL") from None
    rows = table.to_pylist()
    if as_json:
        click.echo(format_json(rows))
        return
    for row in rows:
        row["start"] = row["start"].isoformat()
    click.echo(format_table(table.column_names, ([_rounded(value) for value in row.values()] for row in rows)))


def _rounded(value: object) -> object:
    """Floats to six decimals: enough for any price, and short to read."""
    return round(value, 6) if isinstance(value, float) else value
