"""Snapshots: which files are current, and a consistent reading of journal and dataset.

A *part* is one segment's rows of a date, `<segment id>.parquet`. A *compacted* file holds the rows of many segments
and names them in its metadata; a compaction may be split into several files, which count only together. Where a
compaction is whole, what it names is superseded: a part that is still there (the file system could not exchange
folders, or a crash came between) is not read beside it.

The rows of a segment are read from the journal until it is sealed, and from the dataset after that. So: list both, read
the journal, list both again; if nothing changed in between, what was read belongs together. Files of the dataset
never change; where one is gone by the time it is read (compacted, deleted), the caller takes a new snapshot.
"""

import contextlib
import os
import re
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import pyarrow as pa

from ingestor.dataset.arguments import EVER, Span
from ingestor.errors import DamagedFile, FormatTooNew, Lagged, NotARecording
from ingestor.history import read_state
from ingestor.journal.follower import Follower, Rows
from ingestor.journal.records import Cursor
from ingestor.layout import Layout, SegmentId, list_segments, segment_of
from ingestor.ledger import list_ledgers, read_first_fact
from ingestor.parquet import FORMAT_KEY, ORIGIN_KEY, named_errors, open_parquet
from ingestor.schema import FORMAT_VERSION
from ingestor.store import StorePath, list_folder, locate_root

_FEW_DAYS = 32
"""Up to here it is cheaper to look for each day than to list what may be years."""
_DATE = re.compile(r"date=(\d{4}-\d\d-\d\d)")
_COMPACTED = re.compile(r"compacted-(\d{12})-(\d{4})of(\d{4})\.parquet")

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True, order=True)
class Compacted:
    """The name of one file of a compaction."""

    newest: int
    """The number of the newest segment in it."""
    index: int
    """From 1."""
    count: int

    def __str__(self) -> str:
        return f"compacted-{self.newest:012d}-{self.index:04d}of{self.count:04d}.parquet"

    @classmethod
    def parse(cls, name: str) -> "Compacted | None":
        """The compaction that a file's name says; None for any other name."""
        found = _COMPACTED.fullmatch(name)
        return None if found is None else cls(*map(int, found.groups()))


def list_days(layout: Layout, span: Span = EVER) -> list[date]:
    """The UTC dates of the dataset that may hold a moment of the span, oldest first. Raises DamagedFile."""
    there = layout.trades.exists() and not isinstance(layout.root, StorePath)
    if there and not (layout.trades.is_dir() and os.access(layout.trades, os.R_OK | os.X_OK)):
        raise DamagedFile(f"{layout.trades}: not a folder that can be read")
    first, last = span.days
    if (last - first).days < _FEW_DAYS:
        days = (first + timedelta(days) for days in range((last - first).days + 1))
        return [day for day in days if date_folder(layout, day).is_dir()]
    try:
        names = list_folder(layout.trades)
    except FileNotFoundError:
        return []
    return sorted(day for day in parse_days(names) if first <= day <= last)


def date_folder(layout: Layout, day: date) -> Path:
    """The folder of a UTC date's Parquet files."""
    return layout.trades / f"date={day.isoformat()}"


def list_names(folder: Path) -> tuple[str, ...]:
    """Our own files in a date's folder; none where it is gone. Raises DamagedFile where it can't be listed."""
    try:
        names = [path.name for path in folder.iterdir() if path.name.endswith(".parquet")]
        return tuple(sorted(one for one in names if segment_of(one.removesuffix(".parquet")) or Compacted.parse(one)))
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise DamagedFile(f"{folder}: can't be read: {error.strerror}") from None


def current_files(folder: Path, names: Iterable[str]) -> list[Path]:
    """The files to read of these, in order of sequence: every row of them once. Raises FormatTooNew, DamagedFile."""
    compacted, parts = split_names(names)
    whole = whole_compactions(compacted)
    if len(whole) + len(parts) <= 1:
        return [folder / str(name) for names in whole for name in names] + [folder / name for name in parts]
    origins = [read_origin(folder / str(names[0])) for names in whole]
    newest = [
        names for names, origin in zip(whole, origins, strict=True) if not any(origin < other for other in origins)
    ]
    superseded = frozenset().union(*origins)
    return [folder / str(name) for names in newest for name in names] + [
        folder / name for name in parts if name.removesuffix(".parquet") not in superseded
    ]


def split_names(names: Iterable[str]) -> tuple[list[Compacted], list[str]]:
    """Compacted files and parts, each in order."""
    parts, compacted = [], []
    for name in names:
        found = Compacted.parse(name)
        if found is None:
            parts.append(name)
        else:
            compacted.append(found)
    return sorted(compacted), sorted(parts)


def whole_compactions(compacted: Iterable[Compacted]) -> list[list[Compacted]]:
    """Those compactions of which every file is there, oldest first."""
    sets: dict[tuple[int, int], list[Compacted]] = {}
    for name in compacted:
        sets.setdefault((name.newest, name.count), []).append(name)
    return [names for (_, count), names in sorted(sets.items()) if len(names) == count]


def without_unsealed(names: Iterable[str], unsealed: Collection[str]) -> tuple[str, ...]:
    """The names without the parts of segments for which the journal still speaks."""
    return tuple(name for name in names if name.removesuffix(".parquet") not in unsealed)


def read_origin(path: Path) -> frozenset[str]:
    """The ids of the segments whose rows this file holds. Raises FormatTooNew, FileNotFoundError, DamagedFile."""
    with open_parquet(path) as file, named_errors(path):
        metadata = file.metadata.metadata or {}
        check_format(path, metadata)
        return frozenset(metadata.get(ORIGIN_KEY, b"").decode().split(","))


def check_format(path: Path, metadata: dict[bytes, bytes] | None) -> None:
    """Raises FormatTooNew where a later version wrote this file, ValueError where its format is no number."""
    found = int((metadata or {}).get(FORMAT_KEY, b"0"))
    if found > FORMAT_VERSION:
        raise FormatTooNew(f"{path} is of format {found}; this version reads up to {FORMAT_VERSION}")


def newest_number(origin: Iterable[str]) -> int:
    """The highest segment number among these segment ids."""
    return max(SegmentId.parse(segment).number for segment in origin)


def parse_days(names: Iterable[str]) -> Iterator[date]:
    """The dates of those that are the name of a date's folder."""
    for name in names:
        if found := _DATE.fullmatch(name):
            with contextlib.suppress(ValueError):  # the 31st of February is somebody else's
                yield date.fromisoformat(found[1])


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The files and journaled rows to read, which belong together."""

    files: dict[date, list[Path]]
    """By UTC date, oldest first; the files of a date in order of sequence."""
    journaled: list[pa.RecordBatch]
    """Rows that are not in the dataset yet, in order of sequence."""
    journaled_us: int
    """The receive time of the newest frame of these; 0 where there is none."""


def open_recording(root: str | Path) -> Layout:
    """The layout of a root that holds trades to read; warns where the newest ones are not among them.

    Raises NotARecording, FormatTooNew.
    """
    layout = Layout(locate_root(root))
    if isinstance(layout.root, StorePath) and not layout.trades.is_dir():
        layout.root.store.settle()
    if not layout.journal.is_dir() and not layout.trades.is_dir():
        if layout.root.is_file():
            raise NotARecording(f"{layout.root} is a file; a recording is a directory")
        hint = f"; the root is {layout.root.parent}" if Layout(layout.root.parent).journal.is_dir() else ""
        place = layout.root if isinstance(layout.root, StorePath) else layout.root.absolute()
        raise NotARecording(f"{layout.root} holds no recording: there is no `trades` and no `journal` in {place}{hint}")
    started = None  # `run.started` or `day.started` of the newest run that has one
    with contextlib.suppress(FileNotFoundError):  # its day was closed: a later file is there now
        firsts = map(read_first_fact, reversed(list_ledgers(layout)))
        started = next((first for first in firsts if first.get("fact") in {"run.started", "day.started"}), None)
    started = started or read_state(layout)  # empty in a root without a ledger
    if started.get("format", 0) > FORMAT_VERSION:
        raise FormatTooNew(f"{layout.root} is of format {started['format']}; this version reads up to {FORMAT_VERSION}")
    if "parquet" not in started.get("formats", ["parquet"]):
        if not layout.trades.is_dir():
            raise NotARecording(
                f"{layout.root} records CSV only: read {layout.csv}, or add parquet to storage.formats and start again"
            )
        since = datetime.fromtimestamp(started["at"] // 1_000_000, UTC)
        warnings.warn(
            f"{layout.root} records CSV only since {since:%Y-%m-%d %H:%M:%S} UTC: "
            f"trades after that are in {layout.csv}",
            stacklevel=3,  # the caller of read_trades, read_bars, …
        )
    return layout


def take_snapshot(layout: Layout, span: Span) -> Snapshot:
    """Everything recorded up to now that may lie in `span`, which only bounds what must be looked at.

    Raises FormatTooNew, DamagedFile, OSError.
    """
    before = _look(layout, span)
    while True:
        missing: FileNotFoundError | None = None
        try:
            events = _read_journal(layout, before.unsealed)
            unsealed = {str(segment) for segment in before.unsealed}
            files = {
                day: current_files(date_folder(layout, day), without_unsealed(names, unsealed))
                for day, names in before.names.items()
            }
        except FileNotFoundError as error:  # sealed, freed or compacted while it was being read, or never there
            missing = error
        after = _look(layout, span)
        if after != before:
            before = after
        elif missing is not None:
            raise _never_there(layout, missing)
        else:
            return Snapshot(
                {day: paths for day, paths in files.items() if paths},
                [event.batch for event in events if event.batch.num_rows],
                next(
                    (
                        one.last_received_us
                        for one in reversed(events)
                        if one.last_received_us and not one.counts.filled
                    ),
                    0,
                ),
            )


def read_consistently(layout: Layout, span: Span, read: Callable[[Snapshot], _Result]) -> _Result:
    """The result of `read` on a snapshot; it is called again where a file was compacted or deleted before it was read.

    Raises DamagedFile where a file is listed, and isn't there.
    """
    looked: dict[date, list[Path]] | None = None
    while True:
        snapshot = take_snapshot(layout, span)
        try:
            return read(snapshot)
        except FileNotFoundError as error:
            if snapshot.files == looked:
                raise _never_there(layout, error) from None
            looked = snapshot.files


def _never_there(layout: Layout, missing: FileNotFoundError) -> DamagedFile:
    """A name in a listing that stays as it is leads to no file: a link to what was removed, or is not mounted."""
    return DamagedFile(f"{missing.filename or layout.root}: is listed, and leads to no file")


@dataclass(frozen=True, slots=True)
class _Look:
    unsealed: tuple[SegmentId, ...]
    names: dict[date, tuple[str, ...]]


def _look(layout: Layout, span: Span) -> _Look:
    """The journal first: what is sealed after that is seen by the second look."""
    if isinstance(layout.root, StorePath):
        layout.root.store.forget()
    unsealed = tuple(file.id for file in list_segments(layout) if not file.sealed)
    return _Look(unsealed, {day: list_names(date_folder(layout, day)) for day in list_days(layout, span)})


def _read_journal(layout: Layout, unsealed: tuple[SegmentId, ...]) -> list[Rows]:
    if not unsealed:
        return []
    events: list[Rows] = []
    follower = Follower(layout, Cursor(unsealed[0].number, 0), synced_only=False)
    while True:
        try:
            with contextlib.closing(follower):
                events += (event for event in follower.read() if isinstance(event, Rows) and event.segment in unsealed)
        except Lagged:  # sealed and freed meanwhile, which the next look shows; or a segment was lost: the rest is not
            later = [segment for segment in unsealed if segment.number > follower.cursor.segment]
            if not later:
                return events
            follower = Follower(layout, Cursor(later[0].number, 0), synced_only=False)
        else:
            return events
