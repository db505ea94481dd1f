"""Appends records, syncs, rotates, and steps over a disk that fails: the journal's writing end.

Rows stay in memory until an fsync has covered them. After a failed write or fsync the segment is abandoned at its
synced offset, and that fsync is never retried (the kernel may have dropped the pages and call the next one good); the
next segment names the abandoned one and that offset, and begins with the rows after it, under their old sequence
numbers.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pyarrow as pa
import structlog

from ingestor import system
from ingestor.errors import RowsUnsaved
from ingestor.journal import records
from ingestor.journal.scan import blames_file, open_file
from ingestor.layout import FILE_MODE, Layout, SegmentId, list_segments, open_own, sync_directory
from ingestor.schema import FORMAT_VERSION

log = structlog.get_logger()

_FIRST_AGES_S = (10.0, 60.0, 300.0)

_SIZE = 16 << 20
_MAX = 16 << 20


@dataclass(frozen=True, slots=True)
class Rotation:
    """By age, by size, at midnight. Pure: the clock is an argument."""

    age_s: float
    size: int

    def due(self, now: datetime, first_row_at: datetime, size: int, index: int) -> bool:
        """Whether the run's segment number `index` (from 0), whose first row came at `first_row_at`, is to close.

        A run's first segments close early, so that a new user sees files at once; midnight parts the days.
        """
        age_s = min(self.age_s, _FIRST_AGES_S[index]) if index < len(_FIRST_AGES_S) else self.age_s
        # A wall clock that stepped back must not keep a segment open: its age counts either way.
        aged = abs((now - first_row_at).total_seconds()) >= age_s
        return aged or size >= self.size or now.date() != first_row_at.date()


def fill_ballast(layout: Layout) -> None:
    """Set it aside. Without it the recording still starts, and says so."""
    try:
        fd = open_own(layout.ballast, os.O_WRONLY)
    except OSError as error:
        log.warning("ballast.refused", file=str(layout.ballast), error=error.strerror)
        return
    try:
        os.ftruncate(fd, min(os.fstat(fd).st_size, _SIZE))
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(fd, 0, _SIZE)
        else:
            os.pwrite(fd, bytes(_SIZE), 0)
    except OSError as error:
        log.warning("ballast.refused", file=str(layout.ballast), error=error.strerror)
        with contextlib.suppress(OSError):
            os.ftruncate(fd, 0)  # it may have taken what room there was
    finally:
        os.close(fd)


def release_ballast(layout: Layout) -> None:
    """Give its room back, where there is any."""
    with contextlib.suppress(OSError):
        layout.ballast.unlink(missing_ok=True)


class Unsynced:
    """The records, in order, each with the number of its rows."""

    def __init__(self) -> None:
        self._records: list[tuple[int, records.Pieces]] = []
        self._bytes = 0
        self._since_s = 0.0

    def __iter__(self) -> Iterator[tuple[int, records.Pieces]]:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)

    @property
    def rows(self) -> int:
        return sum(rows for rows, _ in self._records)

    @property
    def age_s(self) -> float:
        """How long the oldest of them has been waiting."""
        return time.monotonic() - self._since_s if self._records else 0.0

    @property
    def full(self) -> bool:
        """Whether this is more than should be held in memory: sync now, whatever the interval."""
        return self._bytes >= _MAX

    def add(self, rows: int, pieces: records.Pieces) -> None:
        if not self._records:
            self._since_s = time.monotonic()
        self._records.append((rows, pieces))
        self._bytes += sum(len(piece) for piece in pieces)

    def clear(self) -> None:
        self._records.clear()
        self._bytes = 0


class OpenSegment:
    """The segment that is being written."""

    def __init__(self, layout: Layout, segment: SegmentId) -> None:
        self.id = segment
        self.size = 0
        self.first_row_at: datetime | None = None
        self._path = layout.open_segment(segment)
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)

    @property
    def end(self) -> records.Cursor:
        """The place behind what is written."""
        return records.Cursor(self.id.number, self.size)

    def write(self, pieces: records.Pieces) -> None:
        """Append a record. Raises OSError; the file may then end in a part of it."""
        left = [memoryview(piece) for piece in pieces if len(piece)]
        while left:
            written = os.writev(self._fd, left)
            self.size += written
            while left and written >= len(left[0]):
                written -= len(left.pop(0))
            if written:
                left[0] = left[0][written:]

    def write_end(self) -> None:
        """Append the record that says that nothing follows. Raises OSError."""
        self.write(records.encode_record(records.Header(records.Kind.END), b""))

    def sync(self) -> None:
        """Make what is written survive a power cut. Raises OSError."""
        system.sync_data(self._fd)

    def sync_whole(self) -> None:
        """Make the file itself survive one, too. Raises OSError."""
        system.sync_whole(self._fd)

    def close(self) -> None:
        os.close(self._fd)

    def discard(self) -> None:
        """Give up a segment that holds no synced row. Where its file stays, it is empty or the next one voids it."""
        with contextlib.suppress(OSError):
            self.close()
        with contextlib.suppress(OSError):
            self._path.unlink()


class Segments:
    """Opens a run's segments, one after the other."""

    def __init__(
        self,
        layout: Layout,
        run: int,
        first: int,
        feed: str,
        schema: pa.Schema,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`first`: the number of the first; the others follow."""
        self._layout = layout
        self._run = run
        self._number = first
        self._feed = feed
        self.schema = schema
        """Of the next segment."""
        self._clock = clock

    def open(self, previous: SegmentId | None, continues: records.Cursor | None) -> OpenSegment:
        """A new segment: created, synced and its directory synced before the first row. Raises OSError.

        `previous` is this run's segment before it. Its number is not taken twice, even where it is given up: a reader
        may have seen it.
        """
        segment = SegmentId(self._number, self._clock().replace(microsecond=0), self._run)
        self._number += 1
        opened = OpenSegment(self._layout, segment)
        identity = {
            "format": FORMAT_VERSION,
            "segment": str(segment),
            "feed": self._feed,
            "previous": segment.number - 1 if previous is None else previous.number,
            "continues": None if continues is None else [continues.segment, continues.offset],
        }
        try:
            opened.write(records.encode_start(identity))
            opened.write(records.encode_schema(self.schema))
            opened.sync_whole()
            sync_directory(self._layout.journal)
        except OSError:
            opened.discard()
            raise
        return opened


@dataclass(frozen=True, slots=True)
class Block:
    """What the recorder hands over: rows with their sequence numbers, the counts, and why others were rejected."""

    header: records.Header
    rows: pa.RecordBatch
    reasons: dict[str, int] = field(default_factory=dict)
    raw: records.Pieces = field(default_factory=list)
    """The record of its frames as they came, where they are kept."""


class Journal:
    """The one writer of a root's journal. Owned by the recorder's thread.

    `failed` is the error by which the disk refused: nothing more may be appended until `recover` succeeds.
    """

    def __init__(
        self,
        layout: Layout,
        segments: Segments,
        rotation: Rotation,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Sync what earlier runs left, then open the first segment. Raises OSError where the disk won't have it."""
        self._layout = layout
        self._segments = segments
        self._rotation = rotation
        self._clock = clock
        self._rotated = 0
        self.unsynced = Unsynced()
        self.failed: OSError | None = None
        self.syncs = 0
        self.sync_s = 0.0
        """How long those took together."""
        for left in list_segments(layout):
            if left.sealed:
                continue
            # So that what a reader has seen of it stays. Only what the disk itself refuses ends us.
            try:
                fd = open_file(left.path)
            except OSError as error:
                if not blames_file(error):
                    raise
                hint = "the recording goes on without it"
                log.error("segment.unreadable", file=left.path.name, error=error.strerror, hint=hint)
                continue
            try:
                system.sync_whole(fd)
            finally:
                os.close(fd)
        fill_ballast(layout)
        self._synced_fd = open_own(layout.synced, os.O_WRONLY)
        os.ftruncate(
            self._synced_fd, min(os.fstat(self._synced_fd).st_size, len(records.encode_synced(records.Cursor(0, 0))))
        )
        self._open = segments.open(None, None)
        self.synced = records.Cursor(0, 0)
        self._settle(self._open)

    @property
    def segment(self) -> SegmentId:
        """The segment that is being written."""
        return self._open.id

    def append(self, block: Block) -> None:
        """Append one block. Where the disk refuses, the rows are kept and `failed` is set; never raises OSError."""
        rows = block.rows.num_rows
        # The reasons next to the block: where the disk has changed the frames, they still count.
        pieces = block.raw + (records.encode_reasons(block.reasons) if block.reasons else [])
        pieces += records.encode_record(block.header, block.rows.serialize() if rows else b"")
        self.unsynced.add(rows, pieces)
        try:
            self._write(self._open, rows, pieces)
        except OSError as error:
            self._fail(error)

    def sync(self) -> None:
        """Make everything appended survive a power cut, then tell the readers; never raises OSError."""
        if not self.unsynced or self.failed:
            return
        began_s = time.monotonic()
        try:
            self._open.sync()
            self._settle(self._open)
        except OSError as error:
            self._fail(error)
        self.syncs += 1
        self.sync_s += time.monotonic() - began_s

    def rotate_if_due(self) -> None:
        """Close the open segment if it is time, and open the next; never raises OSError."""
        first_row_at = self._open.first_row_at
        if self.failed or first_row_at is None:
            return
        if not self._rotation.due(self._clock(), first_row_at, self._open.size, self._rotated):
            return
        try:
            self._go_on(self.schema)
            self._rotated += 1
        except OSError as error:
            self._fail(error)

    @property
    def schema(self) -> pa.Schema:
        """The columns of the segment that is being written; of one that could not be opened, those it will have."""
        return self._segments.schema

    def turn_to(self, schema: pa.Schema) -> None:
        """Close the open segment, and go on in one with these columns; never raises OSError."""
        if self.failed:
            return
        try:
            self._go_on(schema)
        except OSError as error:
            self._fail(error)

    def recover(self, *, last_chance: bool = False) -> bool:
        """Try to go on in a new segment with the rows that are not synced; whether the journal works again.

        At the `last_chance` with the ballast's room.
        """
        following: OpenSegment | None = None
        try:
            if last_chance:
                release_ballast(self._layout)
            following = self._segments.open(self._open.id, self.synced)
            for rows, pieces in self.unsynced:
                self._write(following, rows, pieces)
            following.sync()
            self._settle(following)
        except OSError as error:
            self.failed = error
            if following is not None:
                following.discard()
            return False
        abandoned, self._open = self._open, following
        with contextlib.suppress(OSError):  # its bytes are given up: nothing hangs on this close
            abandoned.close()
        self.failed = None
        log.info("journal.recovered", segment=str(following.id), continues=str(abandoned.id))
        return True

    def close(self) -> None:
        """Sync and end the last segment, with the ballast's room where the disk is full.

        Raises RowsUnsaved with the count where the rows can't be saved even so.
        """
        self.sync()
        if self.failed and not self.recover(last_chance=True):
            raise RowsUnsaved(f"{self.unsynced.rows} trades could not be saved: {self.failed.strerror}")
        try:
            self._end_segment()
        except OSError as error:  # every row is synced, and the next start finds the segment's end without the record
            log.warning("segment.unended", segment=str(self._open.id), error=error.strerror)
        self._open.close()
        os.close(self._synced_fd)

    def _write(self, segment: OpenSegment, rows: int, pieces: records.Pieces) -> None:
        """Append a record that holds so many rows. Raises OSError."""
        if rows and segment.first_row_at is None:
            segment.first_row_at = self._clock()
        segment.write(pieces)

    def _go_on(self, schema: pa.Schema) -> None:
        """End the open segment, and open the next. Raises OSError."""
        self._end_segment()  # from here on no row is unsynced, whose columns these would have to be
        self._segments.schema = schema
        following = self._segments.open(self._open.id, None)
        ended, self._open = self._open, following
        ended.close()
        self._settle(following)

    def _end_segment(self) -> None:
        """Write the record that ends the open segment, and sync it. Raises OSError."""
        self._open.write_end()
        self._open.sync()
        self._settle(self._open)

    def _settle(self, segment: OpenSegment) -> None:
        """All that is written is synced: tell the readers, then forget the rows. Raises OSError."""
        os.pwrite(self._synced_fd, records.encode_synced(segment.end), 0)
        self.synced = segment.end
        self.unsynced.clear()

    def _fail(self, error: OSError) -> None:
        self.failed = error
        log.error("journal.failed", segment=str(self._open.id), error=error.strerror, rows=self.unsynced.rows)
