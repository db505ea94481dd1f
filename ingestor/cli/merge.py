"""`ingestor merge`: several recorders, one truth."""

import sys
from pathlib import Path

import click

from ingestor.cli.options import example, json_option
from ingestor.cli.printing import format_json, format_table, format_time
from ingestor.layout import Layout

_SHOWN = 20


@click.command(epilog=example("ingestor merge data-a data-b --into data", "ingestor verify --root data"))
@click.argument("roots", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--into", required=True, type=click.Path(path_type=Path), help="A directory that is not there yet.")
@json_option
def merge(roots: tuple[Path, ...], into: Path, as_json: bool) -> None:
    """Make one root of several that recorded the same venue: each trade that any of them has, each once.

    Trades are told apart by the venue's ids; where it has none, there are as many of those that are alike as the
    recorder has that has most. A symbol is recorded where any of them recorded it. Prints how many trades each root
    has, and the minutes that two recorded as a whole and of which one lacks trades. Recorders and readers may go on.
    """
    from ingestor.merge import MergeReport, merge_roots

    report = MergeReport([0] * len(roots))
    for day, so_far in merge_roots([Layout(root) for root in roots], Layout(into)):
        report = so_far
        if sys.stderr.isatty():
            click.echo(f"\r\x1b[2K{day}  {report.merged:,} trades", err=True, nl=False)
    if sys.stderr.isatty():
        click.echo("\r\x1b[2K", err=True, nl=False)
    rows = [
        {
            "root": str(roots[one.root]),
            "symbol": one.symbol,
            "minute": format_time(one.minute, timespec="minutes"),
            "lacks": one.trades,
        }
        for one in report.differences
    ]
    if as_json:
        found = [{"root": str(root), "trades": trades} for root, trades in zip(roots, report.rows, strict=True)]
        click.echo(format_json({"roots": found, "trades": report.merged, "differences": rows}))
        return
    counted = [(str(root), trades) for root, trades in zip(roots, report.rows, strict=True)]
    click.echo(format_table(("root", "trades"), [*counted, (str(into), report.merged)]))
    if rows:
        click.echo("\nBoth recorded, and one lacks trades:")
        click.echo(format_table(("root", "symbol", "minute", "lacks"), [[*row.values()] for row in rows[:_SHOWN]]))
        if len(rows) > _SHOWN:
            click.echo(f"… and {len(rows) - _SHOWN:,} more such minutes: --json names all")
