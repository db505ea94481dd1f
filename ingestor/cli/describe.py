"""`ingestor describe`: what a recording holds, symbol by symbol."""

from datetime import tzinfo
from pathlib import Path
from typing import Any

import click

from ingestor.cli.options import config_option, example, json_option, root_from, root_option, symbols_option, tz_option
from ingestor.cli.printing import format_json, format_table, format_time, percent

_SHARES = ("recorded", "blind", "unproven", "late")


@click.command(epilog=example("ingestor describe --symbols AAPL"))
@config_option
@root_option
@symbols_option
@tz_option
@json_option
def describe(
    config: Path | None, root: Path | None, symbols: tuple[str, ...] | None, tz: tzinfo, as_json: bool
) -> None:
    """Print a row a symbol: first and last trade, how many, how well covered, how late they came.

    Late is what came more than a minute after its time; delays are from the trade to its receipt.
    """
    from ingestor.dataset.describe import describe as describe_root

    table = describe_root(root_from(config, root), symbols, str(tz), engine="arrow")
    rows = [_with_times(row) for row in table.to_pylist()]
    if as_json:
        click.echo(format_json(rows))
        return
    heading = [f"{name} %" if name in _SHARES else name for name in table.column_names]
    shown = (row | {name: percent(row[name]) for name in _SHARES} for row in rows)
    click.echo(format_table(heading, ([*row.values()] for row in shown)))


def _with_times(row: dict[str, Any]) -> dict[str, Any]:
    return row | {name: row[name] and format_time(row[name]) for name in ("first", "last")}
