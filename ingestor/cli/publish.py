"""`ingestor publish`: a data set to hand on, which is a root like any other: trades, coverage, accounts, manifests."""

import json
import shutil
import sys
from datetime import date, tzinfo
from pathlib import Path
from typing import Any

import click
import pyarrow as pa

from ingestor.cli.merge import merge_roots
from ingestor.cli.options import example, query_options, read_span, root_from, warn_of_nothing
from ingestor.cli.printing import format_bytes, format_json
from ingestor.closed_days import COVERAGE_FILE, list_day_files, make_manifest
from ingestor.dataset.rows import known_schema
from ingestor.dataset.snapshot import date_folder, list_names, open_recording, parse_days, take_snapshot
from ingestor.dataset.times import EVER, to_span
from ingestor.errors import IngestorError
from ingestor.history import read_history
from ingestor.layout import Layout
from ingestor.store import list_folder

_TERMS = """The trades come from {venue}. Most venues license their data for one's own use, and forbid handing it on:
look at the terms of the venue, and of the exchanges behind it, before you publish this. That it was recorded
by you gives you no right to it.
"""
_CARD = """# Trades of {venue}

{rows:,} trades of {symbols} symbols, {first} to {last} (UTC), recorded by finnhub-ingestor.

- `trades/`: Parquet, a folder per UTC date. `sequence` counts the trades of this data set.
- `coverage/`: when each symbol was recorded, when not and why. Where it says nothing, nothing was asked for.
- `accounts/`, `ledger/`: the counts by which `ingestor verify --root .` checks all this.
- `manifests/`: of each date its files, their sizes, SHA-256 and rows.

License: {license}

{terms}"""


@click.command(epilog=example("ingestor publish --to nvda-2026 --symbols NVDA --start 2026-01-01 --license CC-BY-4.0"))
@query_options
@click.option("--to", "into", required=True, type=click.Path(path_type=Path), metavar="FOLDER", help="A new directory.")
@click.option("--license", "terms", metavar="TEXT", help="Under which others may use it; goes into the data card.")
def publish(
    config: Path | None,
    root: Path | None,
    symbols: tuple[str, ...] | None,
    start: str | None,
    end: str | None,
    tz: tzinfo,
    as_json: bool,
    into: Path,
    terms: str | None,
) -> None:
    """Make a data set to hand on: trades, coverage, manifests and a data card (Frictionless).

    FOLDER is a recording like any other: every command reads it, and verify checks it. It names no path of yours.
    Prints how many trades are in it, and what to look at before you hand it on: the venue's terms.
    """
    source, target = open_recording(root_from(config, root)), Layout(into)
    span = to_span(read_span(start, end, tz))
    for _ in merge_roots([source], target, span, symbols, told=[]):
        pass
    for folder in (target.journal, target.cursors, target.staging, target.rejects):
        shutil.rmtree(folder)
    venue = read_history(source).venue or read_history(source).feed or "a venue"
    rows, size = _describe(target, venue, terms)
    if not rows:
        shutil.rmtree(into)
        warn_of_nothing(source.root, symbols, tz)
        raise IngestorError("there is nothing to publish: no trades of these symbols in that time")
    if as_json:
        click.echo(format_json({"folder": str(into), "trades": rows, "bytes": size}))
        return
    click.echo(f"{into}: {rows:,} trades, {format_bytes(size)}")
    click.echo(f"\n{_TERMS.format(venue=venue)}", nl=False)


def _describe(target: Layout, venue: str, terms: str | None) -> tuple[int, int]:
    """Write manifests, data card and README; the rows and the bytes of the data set."""
    kinds = [kind for kind in (target.trades, target.coverage, target.accounts) if kind.is_dir()]
    days = sorted({day for kind in kinds for day in parse_days(list_folder(kind))})
    target.manifests.mkdir()
    paths: dict[str, list[str]] = {"trades": [], "coverage": []}
    rows = size = 0
    traded: list[date] = []
    for day in days:
        folder = date_folder(target, day)
        trades = {f"trades/{folder.name}/{name}": folder / name for name in list_names(folder)}
        manifest = make_manifest(day, _name_of(target), trades | list_day_files(target, day), mirror=False)
        target.manifest_file(day).write_bytes(manifest.encode())
        rows += manifest.rows
        traded += [day] if trades else []
        for one in manifest.files:
            size += one.bytes
            if (kind := one.path.partition("/")[0]) in paths:
                paths[kind].append(one.path)
    schemas = {"trades": known_schema(take_snapshot(target, EVER)), "coverage": COVERAGE_FILE}
    package: dict[str, Any] = {
        "name": _name_of(target).lower(),
        "title": f"Trades of {venue}",
        "licenses": [{"name": terms}] if terms else [],
        "sources": [{"title": venue}],
        "resources": [
            {"name": kind, "path": files, "format": "parquet", "schema": {"fields": _fields(schemas[kind])}}
            for kind, files in paths.items()
            if files
        ],
    }
    (target.root / "datapackage.json").write_text(json.dumps(package, indent=1) + "\n", encoding="utf-8")
    from ingestor.dataset.coverage import known_symbols

    card = _CARD.format(
        venue=venue, rows=rows, symbols=len(known_symbols(target, days=sys.maxsize)), license=terms or "none was named",
        first=min(traded, default="-"), last=max(traded, default="-"), terms=_TERMS.format(venue=venue),
    )  # fmt: skip
    (target.root / "README.md").write_text(card, encoding="utf-8")
    return rows, size


def _name_of(target: Layout) -> str:
    """The name of the data set: that of its folder."""
    return target.root.absolute().name


def _fields(schema: pa.Schema) -> list[dict[str, str]]:
    kinds = {"timestamp": "datetime", "double": "number", "int64": "integer", "bool": "boolean"}
    return [{"name": one.name, "type": kinds.get(str(one.type).partition("[")[0], "string")} for one in schema]
