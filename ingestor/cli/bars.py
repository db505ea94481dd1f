"""`ingestor bars`: open, high, low, close, volume of each interval."""

from datetime import tzinfo
from pathlib import Path
from typing import Any, Literal

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
from ingestor.cli.printing import format_json, format_table, format_time, percent


@click.command(
    epilog=example(
        "ingestor bars 5m --symbols AAPL --start 2026-11-20 --tz America/New_York --session regular",
    )
)
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
    help="sip: the US rules on which prints move what. all: every print moves everything.",
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

    A bar is named by its start. Without a trade there is no bar: --fill adds those that were recorded whole.
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
    if not table.num_rows:
        tell_of_nothing(root_from(config, root), symbols, tz)
    rows = [row | {"start": format_time(row["start"], timespec="seconds")} for row in table.to_pylist()]
    if as_json:
        click.echo(format_json(rows))
        return
    heading = ["coverage %" if name == "coverage" else name for name in table.column_names]
    click.echo(format_table(heading, ([*_shown(row).values()] for row in rows)))


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    """A bar for the table: ten digits tell any price, and are short to read."""
    shown = {name: float(f"{value:.10g}") if isinstance(value, float) else value for name, value in row.items()}
    return shown | {"coverage": percent(row["coverage"])}
