"""One consistent look at a recording: every row of it once, whatever is sealed, compacted or deleted meanwhile.

The rows of a segment are read from the journal until it is sealed, from the dataset ever after. So: look at both,
read the journal, look again; where nothing changed in between, what was read belongs together. Files of the dataset
never change; where one is gone by the time it is read (compacted, deleted), the caller takes a new snapshot.
"""

import contextlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TypeVar

import pyarrow as pa

from ingestor.dataset.files import current_files, date_folder, list_days, list_names, without_unsealed
from ingestor.dataset.times import Span
from ingestor.errors import DamagedFile, FormatTooNew, Lagged, NotARecording
from ingestor.facts import Fact
from ingestor.history import read_state
from ingestor.journal.cursor import Cursor
from ingestor.journal.follower import Follower, Rows
from ingestor.layout import Layout, SegmentId, list_segments
from ingestor.ledger import list_ledgers, read_facts
from ingestor.schema import FORMAT_VERSION

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What there is to read."""

    files: dict[date, list[Path]]
    """By UTC date, oldest first; the files of a date in order of sequence."""
    journaled: list[pa.RecordBatch]
    """Rows that are not in the dataset yet, in order of sequence."""
    journaled_us: int
    """When the newest frame of these was received; 0 where there is none."""


def open_recording(root: str | Path) -> Layout:
    """The layout of a root that holds trades to read; warns where the newest ones are not among them.

    Raises NotARecording, FormatTooNew.
    """
    layout = Layout(Path(root))
    if not layout.journal.is_dir() and not layout.trades.is_dir():
        hint = f"; the root is {layout.root.parent}" if Layout(layout.root.parent).journal.is_dir() else ""
        raise NotARecording(f"{layout.root} holds no recording: there is no `trades` and no `journal` in it{hint}")
    started = _last_start(layout)
    if started.get("format", 0) > FORMAT_VERSION:
        raise FormatTooNew(f"{layout.root} is of format {started['format']}; this version reads up to {FORMAT_VERSION}")
    if "parquet" not in started.get("formats", ["parquet"]):
        _tell_of_csv(layout, started)
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
                max((event.last_received_us for event in events), default=0),
            )


def read_consistently(layout: Layout, span: Span, read: Callable[[Snapshot], _Result]) -> _Result:
    """What `read` makes of a snapshot; made anew where a file was compacted or deleted before it was read.

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


def _last_start(layout: Layout) -> Fact:
    """What the newest run that got so far said when it started; nothing in a root without a ledger."""
    with contextlib.suppress(FileNotFoundError):  # its day was closed: a later file is there now
        for path in reversed(list_ledgers(layout)):
            first = next(read_facts(path), {})
            if first.get("fact") in {"run.started", "day.started"}:
                return first
    return read_state(layout)


def _tell_of_csv(layout: Layout, started: Fact) -> None:
    """The recorder writes no Parquet any more. Raises NotARecording where it never did."""
    if not layout.trades.is_dir():
        raise NotARecording(
            f"{layout.root} records CSV only: read {layout.csv}, or add parquet to storage.formats and start again"
        )
    since = datetime.fromtimestamp(started["at"] // 1_000_000, UTC)
    warnings.warn(
        f"{layout.root} records CSV only since {since:%Y-%m-%d %H:%M:%S} UTC: trades after that are in {layout.csv}",
        stacklevel=4,  # who called read_trades, read_bars, …
    )
