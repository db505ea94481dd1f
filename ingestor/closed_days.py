"""Closed days: the ledger's facts of a UTC date become data, and their lines are deleted.

Coverage goes to `coverage/date=…/coverage.parquet`, the segments' accounts to `accounts/`, all else (runs, settings,
deleted days, rows that sinks skipped) to `ledger/closed-<month>.jsonl`. Only then is the day's file of the ledger
removed. Each of these steps can be repeated and then changes nothing, so the next call completes what a crash
interrupted. A reader who finds both the lines and the data reads the same twice; where they disagree, the one that
promises least holds.

A copy of a recording has a manifest per closed day, by which it can be checked without its recorder.

A gap that began on a day that is closed already is written into that day's file when the day of its fact is closed.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import date, timedelta
from itertools import accumulate, chain, groupby, islice, pairwise
from pathlib import Path
from typing import BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import structlog

from ingestor import __version__, parquet
from ingestor.accounts import close_accounts
from ingestor.coverage import Closed, Coverage, Gap, Interval, Proof, State, find_coverage, join_intervals
from ingestor.errors import DamagedFile, FormatTooNew
from ingestor.facts import Fact, RunState, encode_line
from ingestor.layout import Layout, is_own, publish, read_small, sync_directory, write_whole
from ingestor.ledger import DAY_US, LedgerFile, check_format, day_of, list_ledger_files, read_facts
from ingestor.schema import FORMAT_VERSION, RECEIVED_AT
from ingestor.store import StorePath, is_there, list_folder, mirrored_name

COVERAGE_FILE = pa.schema(
    [
        ("symbol", pa.string()),
        ("state", pa.string()),  # recorded, filled, imported, blind or unproven
        ("cause", pa.string()),  # of blindness; else null
        ("all_symbols", pa.bool_()),  # blind for all symbols; null where it is not blind
        ("start", RECEIVED_AT),
        ("end", RECEIVED_AT),  # exclusive; a day's last at midnight UTC at the latest
        ("proof", pa.string()),  # of recorded: `ids` where the venue's ids show that nothing is missing; else null
        ("source", pa.string()),  # of filled: whose history the trades are from; of imported: the file; else null
    ],
    metadata={parquet.FORMAT_KEY: str(FORMAT_VERSION)},
)
_SINCE_ADDED = ("proof", "source")
"""Columns that files of earlier versions lack."""
_FEW_DAYS = 32
"""Up to here it is cheaper to look for each day than to list what may be years."""
_FIRST = 8
"""Facts of a file, among which is whatever step of the clock began it."""
_ROW_GROUP = 1 << 14
_MANIFEST_BYTES = 1 << 24
_REPAIRS = ("gap.filled", "gap.unfilled")
"""Facts that say more than the data: the agreement of a source, and why it was not enough."""
_DATA = ("symbol.", "symbols.", "gap.", "segment.", "day.started", "line.", "ids.proven")
"""Facts that a closed day keeps as data, if at all."""

log = structlog.get_logger()


# Reading


class Row(NamedTuple):
    """A row of a file of coverage."""

    symbol: str
    state: State
    cause: str | None
    all_symbols: bool | None
    start_us: int
    end_us: int
    proof: Proof | None = None
    source: str | None = None


def read_closed_coverage(layout: Layout, symbols: Collection[str] | None, first: date, last: date) -> Closed:
    """The coverage of these symbols (None: all) on the closed days from `first` to `last`.

    Raises DamagedFile naming a file that can't be read, OSError.
    """
    intervals: dict[str, list[Interval]] = {}
    gaps: set[Gap] = set()
    for day in list_closed_days(layout, first, last):
        for row in read_day(layout.coverage_file(day), symbols):
            intervals.setdefault(row.symbol, []).append(_to_interval(row))
            if row.state == "blind":
                gaps.add(Gap(None if row.all_symbols else row.symbol, row.cause or "", row.start_us, row.end_us))
    return Closed(intervals, list(gaps))


def list_closed_symbols(layout: Layout, days: Iterable[date]) -> set[str]:
    """The symbols of which the closed ones of these dates say anything. Raises DamagedFile, OSError."""
    found: set[str] = set()
    for day in days:
        path = layout.coverage_file(day)
        try:
            found.update(parquet.read_whole(path, columns=["symbol"]).column(0).unique().to_pylist())
        except FileNotFoundError:
            continue
    return found


def list_closed_days(layout: Layout, first: date = date.min, last: date = date.max) -> list[date]:
    """The dates within these that have a file of coverage, oldest first. Raises DamagedFile."""
    if first > date.min and last < date.max and (last - first).days < _FEW_DAYS:
        days = [first + timedelta(number) for number in range((last - first).days + 1)]
    else:
        days = [day for day in _named_days(layout) if first <= day <= last]
    return list(_closed(layout, days))


def oldest_and_newest_closed_days(layout: Layout, count: int) -> tuple[list[date], list[date]]:
    """So many of each, oldest first: without a look at each day of ten years. Raises DamagedFile."""
    days = _named_days(layout)
    newest = list(islice(_closed(layout, days[::-1]), count))
    return list(islice(_closed(layout, days), count)), newest[::-1]


def _named_days(layout: Layout) -> list[date]:
    """The dates of the folders of coverage, oldest first."""
    days = []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for name in list_folder(layout.coverage):
            with contextlib.suppress(ValueError):
                days.append(date.fromisoformat(name.removeprefix("date=")))
    return sorted(days)


def _closed(layout: Layout, days: Iterable[date]) -> Iterator[date]:
    """Those of these dates that have a file of coverage."""
    folder, file = layout.coverage, layout.coverage_file(date.min).name
    try:
        if isinstance(folder, StorePath):
            yield from (day for day in days if layout.coverage_file(day).exists())
        else:
            # Of ten years: as text, since to make a Path of each takes ten times as long as to look.
            base = str(folder)
            yield from (day for day in days if os.path.lexists(f"{base}/date={day}/{file}"))
    except OSError as error:
        raise DamagedFile(f"{layout.coverage}: can't be read: {error.strerror}") from None


def read_day(path: Path, symbols: Collection[str] | None = None) -> list[Row]:
    """The rows of a file of coverage, in its order. Raises DamagedFile naming it, FormatTooNew, OSError."""
    wanted = None if symbols is None else frozenset(symbols)
    try:
        parquet.check_pages(path)
        with parquet.named_errors(path):
            # `read_table` and its filters would load pyarrow's dataset and compute modules: longer than this takes.
            with pq.ParquetFile(parquet.to_read(path), page_checksum_verification=True) as file:
                check_format(path, {"format": int((file.schema_arrow.metadata or {}).get(parquet.FORMAT_KEY, b"0"))})
                own = set(file.schema_arrow.names)
                known = [name for name in COVERAGE_FILE.names if name not in _SINCE_ADDED or name in own]
                told = file.read_row_groups(_list_groups(file.metadata, wanted), known)
            told = told.select(known)
            if wanted is not None:  # the rows of a symbol lie together: from the first of these symbols' to the last
                places = [at for at, symbol in enumerate(told.column("symbol").to_pylist()) if symbol in wanted]
                told = told.slice(places[0], places[-1] + 1 - places[0]) if places else told.slice(0, 0)
            for name in COVERAGE_FILE.names[len(known) :]:
                told = told.append_column(name, pa.nulls(told.num_rows, pa.string()))
            if told.schema.types != COVERAGE_FILE.types:
                told = told.cast(COVERAGE_FILE)
            columns = [  # Python's values, times in µs since 1970
                [at for chunk in column.chunks for at in chunk.view(pa.int64()).to_pylist()]
                if column.type == RECEIVED_AT
                else column.to_pylist()
                for column in told.columns
            ]
    except FileNotFoundError as error:
        if not is_there(path):
            raise
        raise DamagedFile(f"{path}: can't be read: {parquet.first_line(error)}") from None
    return [Row(*values) for values in zip(*columns, strict=True) if wanted is None or values[0] in wanted]


def _list_groups(metadata: pq.FileMetaData, wanted: Collection[str] | None) -> list[int]:
    """The row groups that may hold one of these symbols."""
    groups = range(metadata.num_row_groups)
    if wanted is None:
        return [*groups]
    at = metadata.schema.names.index("symbol")
    bounds = [metadata.row_group(group).column(at).statistics for group in groups]
    return [
        group
        for group, found in zip(groups, bounds, strict=True)
        if found is None or not found.has_min_max or any(found.min <= symbol <= found.max for symbol in wanted)
    ]


def _to_interval(row: Row) -> Interval:
    return Interval(row.symbol, row.state, row.cause, row.start_us, row.end_us, row.proof, row.source)


# Closing


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Facts that can be understood without those before them."""

    file: LedgerFile
    facts: list[Fact]
    run: int
    is_last: bool
    """Of its file."""


def has_days_to_close(layout: Layout, before: date) -> bool:
    """Whether `close_days` would have something to do. Raises OSError."""
    return next(iter(_list_closable(list_ledger_files(layout), before)), None) is not None


def close_days(layout: Layout, before: date) -> Iterator[date]:
    """Turn the facts of each UTC date before this one into data, and every file of format 1 but one that a run may
    still need. Yields the dates as they are done. The caller holds `locked_maintenance`; a recorder may be running.

    Raises FormatTooNew, DamagedFile where what was written can't be read back (nothing is removed then), OSError.
    """
    files = list_ledger_files(layout)
    closable = list(_list_closable(files, before))
    chunks = _read_chunks(closable)
    done: list[Path] = []
    stays: _Chunk | None = None
    for file in files[len(closable) :][:1]:
        stays = _Chunk(file, list(islice(read_facts(file.path), _FIRST)), file.run, is_last=False)
    begins = {file: fact["at"] for file in files for fact in islice(read_facts(file.path), 1)}
    for chunk, after in pairwise(chain(chunks, [stays])):
        if chunk is None:
            break
        if not chunk.facts:  # of a file that a crash left empty
            chunk.file.path.unlink()
            continue
        set_back_us = min((at_us for file, at_us in begins.items() if file > chunk.file), default=None)
        horizon_us = _find_end(chunk, after)
        # Data first, then the facts that are no data; only when both are on the disk may the day's file go.
        horizon: Fact = {"at": horizon_us, "fact": "ledger.copied"}
        close_coverage(layout, find_coverage([*chunk.facts, horizon], set_back_us=set_back_us))
        close_accounts(layout, chunk.facts)
        _keep_facts(layout, chunk.facts)
        if chunk.is_last:
            done.append(chunk.file.path)
            # A file of format 1 is understood with those before it: they go together, once the last of them is data.
            # The oldest goes first: without those behind it, its last gap would seem to go on.
            if chunk.file.checked or after is None or after.file.checked:
                for path in done:
                    path.unlink()
                    sync_directory(path.parent)
                    log.info("ledger.closed", file=path.name)
                done.clear()
        yield day_of(chunk.facts[-1]["at"])


def _find_end(chunk: _Chunk, after: _Chunk | None) -> int:
    """Up to when these facts tell (µs)."""
    if after is None or not after.facts or after.run != chunk.run:
        return int(chunk.facts[-1]["at"]) + 1  # its last word, which the next run's gap begins behind
    # What the clock skipped at the beginning of the next file is told by that one.
    steps = (fact for fact in after.facts[:_FIRST] if fact["fact"] == "clock.stepped" and fact["by_us"] > 0)
    return int(min([after.facts[0]["at"], *(fact["since"] + 1 for fact in steps if "since" in fact)]))


def _list_closable(files: list[LedgerFile], before: date) -> Iterator[LedgerFile]:
    """The oldest files, up to the first that is still needed: the newest of all says where the next run begins. One of
    format 1 can't say that alone.

    A file is over with the day that it is named after, or with that of a later file: it may have been named by a clock
    that was years ahead.
    """
    if not files or not files[-1].checked:
        return
    over = list(accumulate((file.day for file in reversed(files)), min))[::-1]
    for file, day in zip(files[:-1], over, strict=False):
        if file.checked and day >= before.isoformat():
            return
        yield file


def _read_chunks(files: Iterable[LedgerFile]) -> Iterator[_Chunk]:
    """A chunk per file, and of a file of format 1 one per day; each begins with where its run stands."""
    state = RunState()
    for file in files:
        held: list[Fact] = []
        for fact in read_facts(file.path, tell_damage=True):
            told = fact
            if fact["fact"] == "run.started" and not file.checked:  # format 1 left it to the facts before
                told = {**fact, "asked": sorted(state.asked), "ended": state.ended_us}
            if not held and state.run == file.run and fact["fact"] not in {"run.started", "day.started"}:
                held = [state.restate(fact["at"] or state.last_us)]
            if held and not file.checked and day_of(fact["at"]) > day_of(held[-1]["at"]):
                yield _Chunk(file, held, file.run, is_last=False)
                held = [state.restate(fact["at"])]
            held.append(told)
            state.tell(told)
        yield _Chunk(file, held, file.run, is_last=True)


def close_coverage(layout: Layout, coverage: Coverage) -> None:
    """Write what these facts say of each date, beside what others have said of it. Raises DamagedFile, OSError."""
    by_day: dict[date, list[Row]] = {}
    for symbol in coverage.symbols:
        for one in coverage.intervals(symbol):
            for_all = coverage.is_for_all(one) if one.state == "blind" else None
            start_us = one.start_us
            while start_us < one.end_us:  # a row ends at midnight
                end_us = min(one.end_us, (start_us // DAY_US + 1) * DAY_US)
                row = Row(symbol, one.state, one.cause, for_all, start_us, end_us, one.proof, one.source)
                by_day.setdefault(day_of(start_us), []).append(row)
                start_us = end_us
    for day, rows in sorted(by_day.items()):
        path = layout.coverage_file(day)
        try:
            known = read_day(path)
        except FileNotFoundError:
            known = []
        except DamagedFile as error:
            aside = path.with_name(f"_damaged-{path.name}")  # no reader of a dataset looks at such a name
            path.rename(aside)
            log.error("coverage.damaged", error=str(error), aside=str(aside))
            known = []
        joined = join_rows([*known, *rows]) if known else rows
        if joined == known:
            continue
        staged = layout.staging / f"{path.parent.name}.coverage.parquet"
        columns = [list(column) for column in zip(*joined, strict=True)]
        table = pa.table(dict(zip(COVERAGE_FILE.names, columns, strict=True)), schema=COVERAGE_FILE)
        pq.write_table(
            table, staged, compression="zstd", compression_level=3, row_group_size=_ROW_GROUP, write_page_checksum=True,
            use_dictionary=["symbol", "state", "cause", "proof", "source"],
            column_encoding=dict.fromkeys(("start", "end"), "DELTA_BINARY_PACKED"),
            sorting_columns=pq.SortingColumn.from_ordering(
                COVERAGE_FILE, [("symbol", "ascending"), ("start", "ascending")]
            ),
        )  # fmt: skip
        parquet.add_checksums(staged)
        if read_day(staged) != joined:
            raise DamagedFile(f"{staged}: what was written is not what can be read")
        publish(staged, path)


def join_rows(rows: Iterable[Row]) -> list[Row]:
    """One day out of several versions of it, sorted by symbol and start; the one that promises least holds."""
    by_symbol: dict[str, list[Interval]] = {}
    for_all: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for row in rows:
        by_symbol.setdefault(row.symbol, []).append(_to_interval(row))
        if row.all_symbols:
            for_all.setdefault((row.symbol, row.cause or ""), []).append((row.start_us, row.end_us))
    return [
        Row(symbol, one.state, one.cause, _lies_in(for_all, one) if one.state == "blind" else None, *one[3:])
        for symbol, pieces in sorted(by_symbol.items())
        for one in join_intervals(symbol, pieces)
    ]


def _lies_in(for_all: dict[tuple[str, str], list[tuple[int, int]]], one: Interval) -> bool:
    """Whether an interval of blindness overlaps a telling of it as one of all symbols."""
    tellings = for_all.get((one.symbol, one.cause or ""), [])
    return any(start_us < one.end_us and one.start_us < end_us for start_us, end_us in tellings)


def _keep_facts(layout: Layout, facts: Sequence[Fact]) -> None:
    """Append the facts that are not kept as data to the month's file, each once. Raises OSError."""
    kept = [fact for fact in facts if fact["fact"] in _REPAIRS or not fact["fact"].startswith(_DATA)]
    for month, of_month in groupby(kept, key=lambda fact: day_of(fact["at"]).replace(day=1)):
        path = layout.closed_facts_file(month)
        known = path.read_text(encoding="utf-8") if path.exists() else ""
        lines = set(known.splitlines(keepends=True))
        fresh = [line for fact in of_month if (line := encode_line(fact)) not in lines]
        if fresh:
            write_whole(path, known + "".join(fresh), layout.staging)


# Manifests


class ManifestFile(NamedTuple):
    """A file of a closed day, as a manifest has it."""

    path: str
    """Where it stands in the copy."""
    bytes: int
    sha256: str
    rows: int | None
    """None: it has no rows."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a copy holds of a closed day: enough to check it without a recorder."""

    date: str
    root: str
    """The name of the recording."""
    files: tuple[ManifestFile, ...]
    rows: int
    """Of trades."""
    checksum: str
    """Of the rows, whatever their order and files: it outlives a compaction."""
    trades_deleted: bool = False
    """Retention has deleted the trades of this day."""
    format: int = FORMAT_VERSION
    version: str = __version__
    """Of the program that wrote it."""

    def encode(self) -> bytes:
        """The manifest as a file, in which the last field is the SHA-256 of all the others."""
        told = {**asdict(self), "files": [one._asdict() for one in self.files]}
        return json.dumps({**told, "sha256": _hash_fields(told)}, indent=1).encode() + b"\n"

    @classmethod
    def decode(cls, content: bytes) -> "Manifest":
        """Raises ValueError, KeyError or TypeError where this is no manifest, or not the one that was written."""
        told = json.loads(content)
        sha256 = told.pop("sha256", None)
        unchanged = told.keys() == _MANIFEST_FIELDS if sha256 is None else sha256 == _hash_fields(told)
        if not unchanged:
            raise ValueError("changed since it was written")
        files = tuple(
            ManifestFile(str(one["path"]), int(one["bytes"]), str(one["sha256"]), one["rows"]) for one in told["files"]
        )
        known = {name: told[name] for name in ("date", "root", "checksum", "trades_deleted", "version")}
        return cls(files=files, rows=int(told["rows"]), format=int(told["format"]), **known)


_MANIFEST_FIELDS = {one.name for one in fields(Manifest)}
"""Of a manifest without its own SHA-256: it was written before there was one."""


def _hash_fields(told: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(told, indent=1).encode()).hexdigest()


def make_manifest(day: date, root: str, files: Mapping[str, Path], *, mirror: bool) -> Manifest:
    """The manifest of a day's files, by their names in the root. `mirror`: the copy is a mirror, not a root.

    Raises FileNotFoundError where one is gone, DamagedFile, OSError.
    """
    found: list[ManifestFile] = []
    total: parquet.Digest = {"rows": 0}
    for name, path in sorted(files.items()):
        rows: int | None = None
        if path.suffix == ".parquet":
            rows = parquet.count_rows(path)
        if name.startswith("trades/"):
            with parquet.open_parquet(path, page_checksum_verification=True) as file, parquet.named_errors(path):
                for index in range(file.metadata.num_row_groups):
                    total = total | parquet.add_digests(
                        parquet.digest_rows(file.read_row_group(index), [parquet.WHOLE])[0], total
                    )
        with path.open("rb") as content:
            sha256 = hash_file(content)
            size = content.seek(0, os.SEEK_END)
        found.append(ManifestFile(mirrored_name(name) if mirror else name, size, sha256, rows))
    checksum = hashlib.sha256(json.dumps(total, sort_keys=True).encode()).hexdigest()[:32]
    return Manifest(day.isoformat(), root, tuple(found), total["rows"], checksum)


def hash_file(file: BinaryIO) -> str:
    """The SHA-256 of what is left of an open file. Raises OSError."""
    digest = hashlib.sha256()
    while piece := file.read(1 << 20):
        digest.update(piece)
    return digest.hexdigest()


def list_day_files(layout: Layout, day: date) -> dict[str, Path]:
    """All files of a closed day but trades, by their names in the root."""
    found = {}
    for kind in (layout.coverage, layout.accounts, layout.raw):
        for path in sorted((kind / f"date={day.isoformat()}").glob("*.parquet")):
            name = path.relative_to(layout.root).as_posix()
            if is_own(name):
                found[name] = path
    rejects = layout.rejects_file(day)
    return found | ({str(rejects.relative_to(layout.root)): rejects} if rejects.exists() else {})


def list_manifests(layout: Layout) -> list[date]:
    """The days that have a manifest, oldest first."""
    days = []
    for path in layout.manifests.glob("date=*.json"):
        with contextlib.suppress(ValueError):
            days.append(date.fromisoformat(path.stem.removeprefix("date=")))
    return sorted(days)


def read_manifest(path: Path) -> Manifest:
    """Raises FileNotFoundError, DamagedFile naming it, FormatTooNew."""
    manifest = read_small(path, Manifest.decode, _MANIFEST_BYTES)
    check_format(path, {"format": manifest.format})
    return manifest


def mirrored_manifest(layout: Layout, day: date) -> Path:
    """Beside the cursor of the mirror: the manifest of a day whose copy was read back and found right."""
    return layout.cursors / "mirrored" / f"date={day.isoformat()}.json"


def is_mirrored(layout: Layout, day: date) -> bool:
    """Whether the mirror's copy of a day's trades was read back, and they are still the same files. Raises OSError."""
    try:
        told = read_manifest(mirrored_manifest(layout, day))
    except (FileNotFoundError, DamagedFile, FormatTooNew):
        return False
    folder = layout.trades / f"date={day.isoformat()}"
    names = {path.relative_to(layout.root).as_posix(): path for path in folder.glob("*.parquet")}
    here = {mirrored_name(name): path.stat().st_size for name, path in names.items() if is_own(name)}
    return here == {one.path: one.bytes for one in told.files if one.path.startswith("date=")}
