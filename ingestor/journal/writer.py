"""The journal's writing end: appends records, syncs, rotates, and steps over a disk that fails.

Rows stay in memory until an fsync has covered them. After a failed write or fsync the segment is abandoned at its
synced offset, and that fsync is never retried (the kernel may have dropped the pages and call the next one good); the
next segment names the abandoned one and that offset, and begins with the rows after it, under their old sequence
numbers.
"""

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pyarrow as pa
import structlog

from ingestor.errors import RowsUnsaved
from ingestor.journal.cursor import Cursor, encode_synced
from ingestor.journal.segment import (
    Header,
    Kind,
    encode_reasons,
    encode_record,
    encode_schema,
    encode_start,
)
from ingestor.layout import FILE_MODE, Layout, SegmentId, list_segments, sync_directory, sync_file
from ingestor.schema import FORMAT_VERSION

_UNSYNCED_MAX = 16 << 20
_BALLAST = 16 << 20
_FIRST_AGES_S = (10.0, 60.0, 300.0)

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Rotation:
    """When a segment closes. Pure: the clock is an argument."""

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


@dataclass(frozen=True, slots=True)
class Block:
    """What the recorder hands over: rows with their sequence numbers, the counts, and why others were rejected."""

    header: Header
    rows: pa.RecordBatch
    reasons: dict[str, int] = field(default_factory=dict)


class _OpenSegment:
    """The segment that is being written."""

    def __init__(self, layout: Layout, segment: SegmentId) -> None:
        self.id = segment
        self.path = layout.open_segment(segment)
        self.size = 0
        self.first_row_at: datetime | None = None
        self.fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)

    def write(self, pieces: list[bytes | pa.Buffer]) -> None:
        """Append a record. Raises OSError; the file may then end in a part of it."""
        left = [memoryview(piece) for piece in pieces if len(piece)]
        while left:
            written = os.writev(self.fd, left)
            self.size += written
            while left and written >= len(left[0]):
                written -= len(left.pop(0))
            if written:
                left[0] = left[0][written:]

    def sync(self) -> None:
        """Make what is written survive a power cut. Raises OSError."""
        os.fdatasync(self.fd)

    def close(self) -> None:
        os.close(self.fd)

    def discard(self) -> None:
        """Give up a segment that holds no synced row. Where its file stays, it is empty or the next one voids it."""
        with contextlib.suppress(OSError):
            self.close()
        with contextlib.suppress(OSError):
            self.path.unlink()


class Journal:
    """The one writer of a root's journal. Owned by the recorder's thread.

    `failed` is the error by which the disk refused: nothing more may be appended until `recover` succeeds.
    """

    def __init__(
        self,
        layout: Layout,
        run: int,
        first_segment: int,
        feed: str,
        schema: pa.Schema,
        rotation: Rotation,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Sync what earlier runs left, then open the first segment. Raises OSError where the disk won't have it."""
        self._layout = layout
        self._run = run
        self._number = first_segment
        self._feed = feed
        self._schema = schema
        self._rotation = rotation
        self._clock = clock
        self._unsynced: list[tuple[int, list[bytes | pa.Buffer]]] = []
        self._unsynced_bytes = 0
        self._rotated = 0
        self._unsynced_since_s = 0.0
        self.failed: OSError | None = None
        self.syncs = 0
        self.sync_s = 0.0
        """How long those took together."""
        for left in list_segments(layout):
            if not left.sealed:
                sync_file(left.path)
        self._fill_ballast()
        self._synced_fd = os.open(layout.synced, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
        self._open = self._open_segment(first_segment - 1, None)
        self.synced = Cursor(0, 0)
        self._settle()

    @property
    def segment(self) -> SegmentId:
        """The segment that is being written."""
        return self._open.id

    @property
    def unsynced_rows(self) -> int:
        """Rows that a power cut would lose now."""
        return sum(rows for rows, _ in self._unsynced)

    @property
    def sync_age_s(self) -> float:
        """How long the oldest row that a power cut would lose now has been waiting."""
        return time.monotonic() - self._unsynced_since_s if self._unsynced else 0.0

    @property
    def full(self) -> bool:
        """Whether more is unsynced than should be held in memory: sync now, whatever the interval."""
        return self._unsynced_bytes >= _UNSYNCED_MAX

    def append(self, block: Block) -> None:
        """Append one record. Where the disk refuses, the rows are kept and `failed` is set; never raises OSError."""
        pieces: list[bytes | pa.Buffer] = []
        if block.reasons:
            pieces += encode_reasons(block.reasons)
        pieces += encode_record(block.header, block.rows.serialize() if block.rows.num_rows else b"")
        if not self._unsynced:
            self._unsynced_since_s = time.monotonic()
        self._unsynced.append((block.rows.num_rows, pieces))
        self._unsynced_bytes += sum(len(piece) for piece in pieces)
        try:
            self._write(block.rows.num_rows, pieces)
        except OSError as error:
            self._fail(error)

    def sync(self) -> None:
        """Make everything appended survive a power cut, then tell the readers; never raises OSError."""
        if not self._unsynced or self.failed:
            return
        began_s = time.monotonic()
        try:
            self._open.sync()
            self._settle()
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
            self._end_segment()
            following = self._open_segment(self._open.id.number, None)
            ended, self._open = self._open, following
            ended.close()
            self._rotated += 1
            self._settle()
        except OSError as error:
            self._fail(error)

    def recover(self) -> bool:
        """Try to go on in a new segment with the rows that are not synced; whether the journal works again."""
        try:
            following = self._open_segment(self._open.id.number, self.synced)
        except OSError as error:
            self.failed = error
            return False
        abandoned, self._open = self._open, following
        try:
            for rows, pieces in self._unsynced:
                self._write(rows, pieces)
            following.sync()
            self._settle()
        except OSError as error:
            self.failed = error
            self._open = abandoned
            following.discard()
            return False
        with contextlib.suppress(OSError):  # its bytes are given up: nothing hangs on this close
            abandoned.close()
        self.failed = None
        log.info("journal.recovered", segment=str(following.id), continues=str(abandoned.id))
        return True

    def release_ballast(self) -> None:
        """Give back the disk space that was set aside for this moment: a stop on a full disk."""
        self._layout.ballast.unlink(missing_ok=True)

    def close(self) -> None:
        """Sync and end the last segment, with the ballast's room where the disk is full.

        Raises RowsUnsaved with the count where the rows can't be saved even so.
        """
        self.sync()
        if self.failed:
            self.release_ballast()
            if not self.recover():
                raise RowsUnsaved(f"{self.unsynced_rows} trades could not be saved: {self.failed.strerror}")
        try:
            self._end_segment()
        except OSError as error:  # every row is synced, and the next start finds the segment's end without the record
            log.warning("segment.unended", segment=str(self._open.id), error=error.strerror)
        self._open.close()
        os.close(self._synced_fd)

    def _write(self, rows: int, pieces: list[bytes | pa.Buffer]) -> None:
        if rows and self._open.first_row_at is None:
            self._open.first_row_at = self._clock()
        self._open.write(pieces)

    def _open_segment(self, previous: int, continues: Cursor | None) -> _OpenSegment:
        """A new segment: created, synced and its directory synced before the first row. Raises OSError.

        Its number is not taken twice, even where it is given up: a reader may have seen it.
        """
        segment = SegmentId(self._number, self._clock().replace(microsecond=0), self._run)
        self._number += 1
        opened = _OpenSegment(self._layout, segment)
        identity = {
            "format": FORMAT_VERSION,
            "segment": str(segment),
            "feed": self._feed,
            "previous": previous,
            "continues": None if continues is None else [continues.segment, continues.offset],
        }
        try:
            opened.write(encode_start(identity))
            opened.write(encode_schema(self._schema))
            os.fsync(opened.fd)
            sync_directory(self._layout.journal)
        except OSError:
            opened.discard()
            raise
        return opened

    def _end_segment(self) -> None:
        """Write the record that ends the open segment, and sync it. Raises OSError."""
        self._open.write(encode_record(Header(Kind.END), b""))
        self._open.sync()
        self._settle()

    def _settle(self) -> None:
        """All that is written is synced: tell the readers, then forget the rows. Raises OSError."""
        synced = Cursor(self._open.id.number, self._open.size)
        os.pwrite(self._synced_fd, encode_synced(synced), 0)
        self.synced = synced
        self._unsynced.clear()
        self._unsynced_bytes = 0

    def _fail(self, error: OSError) -> None:
        self.failed = error
        log.error("journal.failed", segment=str(self._open.id), error=error.strerror, rows=self.unsynced_rows)

    def _fill_ballast(self) -> None:
        """Set disk space aside for a stop on a full disk. Without room for it the recording still starts."""
        fd = os.open(self._layout.ballast, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
        try:
            os.posix_fallocate(fd, 0, _BALLAST)
        except OSError as error:
            os.ftruncate(fd, 0)  # it may have taken what room there was
            log.warning("ballast.refused", error=error.strerror)
        finally:
            os.close(fd)
