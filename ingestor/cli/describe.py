"""`ingestor describe`: what a recording holds, symbol by symbol."""

from pathlib import Path

import click

from ingestor.cli.options import (
    config_option,
    format_json,
    format_table,
    json_option,
    root_from,
    root_option,
    symbols_option,
)


@click.command()
@config_option
@root_option
@symbols_option
@json_option
def describe(config: Path | None, root: Path | None, symbols: tuple[str, ...] | None, as_json: bool) -> None:
    """Print of each symbol: first and last trade, how many, how well covered, how late they came.

    Shares (recorded, blind, unproven, late) are from 0 to 1; delays are in ms from the trade to its receipt.
    """
    from ingestor.dataset.describe import describe as describe_root

    table = describe_root(root_from(config, root), symbols, engine="arrow")
    rows = table.to_pylist()
    if as_json:
        click.echo(format_json(rows))
        return
    for row in rows:
        for name in ("first", "last"):
            row[name] = row[name].isoformat(timespec="milliseconds") if row[name] else None
        for name in ("recorded", "blind", "unproven", "late"):
            row[name] = None if row[name] is None else int(row[name] * 1e4) / 1e4  # cut: 1 means all of it
    click.echo(format_table(table.column_names, ([*row.values()] for row in rows)))
