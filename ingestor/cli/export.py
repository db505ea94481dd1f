"""`ingestor export`: trades into one file of another kind."""

import sys
import time
from datetime import tzinfo
from pathlib import Path
from typing import Literal

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
    tell_of_unknown,
)
from ingestor.cli.printing import format_bytes, format_json

_Kind = Literal["csv", "parquet", "jsonl", "sqlite"]
_ENDINGS: dict[str, _Kind] = {
    ".csv": "csv",
    ".parquet": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".sqlite": "sqlite",
    ".db": "sqlite",
}
_SHOWN_S = 0.2


@click.command(epilog=example("ingestor export aapl.csv --symbols AAPL --start 2026-11-20 --end 2026-11-21"))
@click.argument("file", type=click.Path(path_type=Path))
@config_option
@root_option
@symbols_option
@span_options
@json_option
@click.option(
    "--format",
    "kind",
    type=click.Choice(["csv", "parquet", "jsonl", "sqlite"]),
    help="What to write.  [default: what FILE ends in]",
)
def export(
    file: Path,
    config: Path | None,
    root: Path | None,
    symbols: tuple[str, ...] | None,
    start: str | None,
    end: str | None,
    tz: tzinfo,
    as_json: bool,
    kind: _Kind | None,
) -> None:
    """Write trades to FILE: CSV, Parquet, JSON Lines, or a SQLite database with a table `trades`.

    Any size in bounded memory. UTC date by date, within a date by symbol and time; times are in UTC. FILE must not
    exist, and has its name only once it is whole. Prints how many trades went into it.
    """
    from ingestor.dataset.export import export_trades
    from ingestor.dataset.times import to_span

    chosen = kind or _ENDINGS.get(file.suffix.lower())
    if chosen is None:
        raise click.BadParameter("say what to write: --format csv, parquet, jsonl or sqlite", param_hint="FILE")
    span = to_span(read_span(start, end, tz))
    rows, shown_s = 0, 0.0
    for progress in export_trades(root_from(config, root), file, chosen, span, symbols):
        rows = progress.rows
        if sys.stderr.isatty() and time.monotonic() - shown_s >= _SHOWN_S:
            shown_s = time.monotonic()
            click.echo(f"\r\x1b[2K{progress.day}  {rows:,} trades", err=True, nl=False)
    if shown_s:
        click.echo("\r\x1b[2K", err=True, nl=False)
    if not rows:
        tell_of_unknown(root_from(config, root), symbols)
        tell_of_nothing(root_from(config, root), symbols, tz)
    size = file.stat().st_size
    if as_json:
        click.echo(format_json({"file": str(file), "format": chosen, "trades": rows, "bytes": size}))
    else:
        click.echo(f"{file}: {rows:,} trades, {format_bytes(size)}")
