"""Commands that make a root like any other: `ingestor merge`, of several that recorded the same venue, and `publish`, a
data set to hand on with its coverage, accounts and manifests.
"""

import contextlib
import json
import shutil
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import date, tzinfo
from pathlib import Path
from typing import Any

import click
import pyarrow as pa
import pyarrow.compute as pc

from ingestor import __version__
from ingestor.cli import options
from ingestor.cli.printing import format_bytes, format_json, format_time, wrap_text
from ingestor.closed_days import COVERAGE_FILE, close_coverage, list_day_files, make_manifest
from ingestor.coverage import Closed, clip, find_coverage
from ingestor.dataset import merged, snapshot
from ingestor.dataset.arguments import EVER, Span, to_span
from ingestor.dataset.coverage import load_coverage
from ingestor.dataset.rows import Selection, known_schema, with_columns
from ingestor.errors import ConfigError, DamagedFile, IngestorError
from ingestor.history import read_history
from ingestor.journal.records import Header, Kind
from ingestor.journal.writer import Block, Journal, Rotation, Segments
from ingestor.layout import Layout
from ingestor.ledger import Ledger, day_of, now_us
from ingestor.logs import configure_logs
from ingestor.metrics import Counts
from ingestor.schema import FORMAT_VERSION, RUN_SHIFT
from ingestor.sinks.parquet_files import ParquetFiles
from ingestor.sinks.runner import Runner
from ingestor.sinks.segment_accounts import SegmentAccounts
from ingestor.store import list_folder, locate_root, require_folder

_SHOWN = 20
_BLOCK_ROWS = 1 << 13
ROTATION = Rotation(age_s=1e9, size=32 << 20)


@click.command(epilog=options.example("ingestor merge data-a data-b --into data", "ingestor verify --root data"))
@click.argument("roots", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--into", required=True, type=click.Path(path_type=Path), help="A directory that is not there yet.")
@options.json_option
@options.wide_option
def merge(roots: tuple[Path, ...], into: Path, as_json: bool, wide: bool) -> None:
    """Make one root of several that recorded the same venue: each trade that any of them has, each once.

    Trades are told apart by the venue's ids; where it has none, there are as many of those that are alike as the
    recorder has that has most. A symbol is recorded where any of them recorded it. Prints how many trades each root
    has, and the minutes that two recorded as a whole and of which one lacks trades. Recorders and readers may go on.
    """
    configure_logs("warning", "auto", [])
    report = MergeReport([0] * len(roots))
    for day, so_far in merge_roots([Layout(locate_root(root)) for root in roots], Layout(into)):
        report = so_far
        if sys.stderr.isatty():
            click.echo(f"\r\x1b[2K{day}  {report.trades:,} trades", err=True, nl=False)
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
        click.echo(format_json({"roots": found, "trades": report.trades, "differences": rows}))
        return
    counted = [(str(root), trades) for root, trades in zip(roots, report.rows, strict=True)]
    options.print_table(("root", "trades"), [*counted, (str(into), report.trades)], (), wide=wide)
    if rows:
        click.echo("\nBoth recorded, and one lacks trades:")
        options.print_table(
            ("root", "symbol", "minute", "lacks"), [[*row.values()] for row in rows[:_SHOWN]], (), wide=wide
        )
        if len(rows) > _SHOWN:
            click.echo(f"… and {len(rows) - _SHOWN:,} more such minutes: --json names all")


@dataclass(slots=True)
class MergeReport:
    """What became of it."""

    rows: list[int]
    """Trades of each root that the result has, in their order."""
    trades: int = 0
    """Trades of the result."""
    differences: list[merged.Lack] = field(default_factory=list)
    """Minutes that a recorder recorded as a whole, as did another, and of which it lacks trades nevertheless."""


def merge_roots(
    roots: Sequence[Layout],
    into: Layout,
    span: Span = EVER,
    symbols: tuple[str, ...] | None = None,
    told: Sequence[str] | None = None,
) -> Iterator[tuple[date, MergeReport]]:
    """Write the trades of all roots, and their coverage, into a root that is not there yet. Yields the report so far
    with each date. `span` and `symbols` are those wanted; `told`: what the ledger tells of where they come from.

    Raises ConfigError for roots that can't be merged, NotARecording, FormatTooNew, DamagedFile, OSError.
    """
    for layout in roots:
        snapshot.open_recording(layout.root)
    merged.check_one_venue(roots)
    histories = [read_history(layout) for layout in roots]
    schemas = [snapshot.read_consistently(layout, EVER, known_schema) for layout in roots]
    schema = max(schemas, key=len)
    if any(not set(one.names) <= set(schema.names) for one in schemas):
        raise ConfigError("these roots have columns of several feeds: only recorders of one can be merged")
    id_column = merged.find_id_column(roots)
    feed = next(filter(None, (history.feed for history in histories)), "")
    venue = next(filter(None, (history.venue for history in histories)), "")
    merged_from = [str(layout.root) for layout in roots] if told is None else list(told)
    ledger = begin_root(into, feed, venue, schema, id_column, merged=merged_from)
    with contextlib.closing(ledger):
        report = MergeReport([0] * len(roots))
        coverages = [load_coverage(layout, symbols, span=span) for layout in roots]
        if span != EVER:
            pieces = [{name: clip(one.intervals(name), *span.bounds_us) for name in one.symbols} for one in coverages]
            gaps = [clip(one.gaps, *span.bounds_us) for one in coverages]
            coverages = [find_coverage([], closed=Closed(*both)) for both in zip(pieces, gaps, strict=True)]
        journal = Journal(into, Segments(into, 1, 1, feed, schema), ROTATION)
        sequence = 1 << RUN_SHIFT
        with sealing(into, ledger, id_column):
            for piece in merged.read_merged(roots, Selection(span, tuple(schema.names), symbols), id_column):
                sequence = _append(journal, with_columns(piece.rows, schema), sequence)
                report.trades += piece.rows.num_rows
                report.rows = [
                    before + piece.rows.num_rows - sum(lack.trades for lack in piece.lacks if lack.root == number)
                    for number, before in enumerate(report.rows)
                ]
                report.differences += merged.disagreements(piece.lacks, coverages)
                yield piece.day, report
            journal.close()
        close_coverage(into, merged.merge_coverage(coverages))
        ledger.record("run.stopped", error=None)


def begin_root(into: Layout, feed: str, venue: str, schema: pa.Schema, id_column: str | None, **made_of: Any) -> Ledger:
    """Make a root of one run that no recorder makes; its ledger. Raises ConfigError where it is there, or is an
    address; OSError.
    """
    require_folder(into.root)
    if into.root.exists() and any(into.root.iterdir()):
        raise ConfigError(f"{into.root} is not empty: name a directory that is not there yet")
    into.create()
    ledger = Ledger(into, 1, day_of(now_us()))
    ledger.record(
        "run.started",
        format=FORMAT_VERSION,
        version=__version__,
        run=1,
        feed=feed,
        venue=venue,
        columns=schema.names,
        id_column=id_column,
        tickers=[],
        formats=["parquet"],
        first_segment=1,
        closed=0,
        open_gaps=[],
        asked=[],
        ended=0,
        **made_of,
    )
    return ledger


@contextlib.contextmanager
def sealing(into: Layout, ledger: Ledger, id_column: str | None) -> Iterator[None]:
    """While such a root is written, seal what its journal holds, in a thread beside. At the end of the block, which has
    closed the journal, the rest. Raises DamagedFile, OSError.
    """
    written = threading.Event()
    accounts = SegmentAccounts(into, ledger, 0, id_column)
    runner = Runner(into, [accounts, ParquetFiles(into, ledger)], written)
    with ThreadPoolExecutor(1, "sealing") as pool:
        sealed = pool.submit(runner.run)
        try:
            yield
        except BaseException:
            runner.hurried.set()  # such a root is of no use
            raise
        finally:
            written.set()
        sealed.result()
    if accounts.violations:
        raise DamagedFile(f"{into.root}: what was written is not what was read")


def _append(journal: Journal, rows: pa.Table, sequence: int) -> int:
    """Write these rows under the next sequence numbers; the one behind them."""
    for batch in rows.combine_chunks().to_batches(max_chunksize=_BLOCK_ROWS):
        size = batch.num_rows
        numbers = pa.arange(sequence, sequence + size)
        at = batch.schema.names.index("sequence")
        numbered = batch.set_column(at, "sequence", numbers).cast(rows.schema)
        bounds = pc.min_max(numbered.column("received_at").cast(pa.int64())).as_py().values()
        counts = Counts(frames=size, decoded=size, trades=size)
        journal.append(Block(Header(Kind.BLOCK, counts, sequence - (1 << RUN_SHIFT), sequence, *bounds), numbered, {}))
        sequence += size
        if journal.unsynced.full:
            journal.sync()
            journal.rotate_if_due()
        if journal.failed:
            raise journal.failed
    return sequence


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


@click.command(epilog=options.example("ingestor publish --to nvda-2026 --symbols NVDA --license CC-BY-4.0"))
@options.query_options
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
    source, target = snapshot.open_recording(options.root_from(config, root)), Layout(into)
    span = to_span(options.read_span(start, end, tz))
    for _ in merge_roots([source], target, span, symbols, told=[]):
        pass
    for folder in (target.journal, target.cursors, target.staging, target.rejects):
        shutil.rmtree(folder)
    venue = read_history(source).venue or read_history(source).feed or "a venue"
    rows, size = _write_card(target, venue, terms)
    if not rows:
        shutil.rmtree(into)
        options.warn_of_nothing(source.root, symbols, tz)
        raise IngestorError("there is nothing to publish: no trades of these symbols in that time")
    if as_json:
        click.echo(format_json({"folder": str(into), "trades": rows, "bytes": size}))
        return
    click.echo(f"{into}: {rows:,} trades, {format_bytes(size)}")
    click.echo("\n" + wrap_text("", " ".join(_TERMS.format(venue=venue).split())))


def _write_card(target: Layout, venue: str, terms: str | None) -> tuple[int, int]:
    """Write manifests, data card and README; the rows and the bytes of the data set."""
    kinds = [kind for kind in (target.trades, target.coverage, target.accounts) if kind.is_dir()]
    days = sorted({day for kind in kinds for day in snapshot.parse_days(list_folder(kind))})
    target.manifests.mkdir()
    paths: dict[str, list[str]] = {"trades": [], "coverage": []}
    rows = size = 0
    traded: list[date] = []
    for day in days:
        folder = snapshot.date_folder(target, day)
        trades = {f"trades/{folder.name}/{name}": folder / name for name in snapshot.list_names(folder)}
        manifest = make_manifest(day, _name_of(target), trades | list_day_files(target, day), mirror=False)
        target.manifest_file(day).write_bytes(manifest.encode())
        rows += manifest.rows
        traded += [day] if trades else []
        for one in manifest.files:
            size += one.bytes
            if (kind := one.path.partition("/")[0]) in paths:
                paths[kind].append(one.path)
    schemas = {"trades": known_schema(snapshot.take_snapshot(target, EVER)), "coverage": COVERAGE_FILE}
    types = {"timestamp": "datetime", "double": "number", "int64": "integer", "bool": "boolean"}
    fields = {
        kind: [{"name": one.name, "type": types.get(str(one.type).partition("[")[0], "string")} for one in schema]
        for kind, schema in schemas.items()
    }
    package: dict[str, Any] = {
        "name": _name_of(target).lower(),
        "title": f"Trades of {venue}",
        "licenses": [{"name": terms}] if terms else [],
        "sources": [{"title": venue}],
        "resources": [
            {"name": kind, "path": files, "format": "parquet", "schema": {"fields": fields[kind]}}
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
