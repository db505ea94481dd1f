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
from pathlib import Path

import pyarrow as pa
import structlog

from ingestor.errors import RowsUnsaved
from ingestor.journal.ballast import fill_ballast, release_ballast
from ingestor.journal.cursor import Cursor, encode_synced
from ingestor.journal.open_segment import OpenSegment, Segments
from ingestor.journal.rotation import Rotation
from ingestor.journal.scan import blames_file, open_file
from ingestor.journal.segment import Header, Pieces, encode_reasons, encode_record
from ingestor.journal.unsynced import Unsynced
from ingestor.layout import Layout, SegmentId, list_segments, open_own

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Block:
    """What the recorder hands over: rows with their sequence numbers, the counts, and why others were rejected."""

    header: Header
    rows: pa.RecordBatch
    reasons: dict[str, int] = field(default_factory=dict)


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
            if not left.sealed:
                _sync_left(left.path)
        fill_ballast(layout)
        self._synced_fd = open_own(layout.synced, os.O_WRONLY)
        os.ftruncate(self._synced_fd, min(os.fstat(self._synced_fd).st_size, len(encode_synced(Cursor(0, 0)))))
        self._open = segments.open(None, None)
        self.synced = Cursor(0, 0)
        self._settle(self._open)

    @property
    def segment(self) -> SegmentId:
        """The segment that is being written."""
        return self._open.id

    def append(self, block: Block) -> None:
        """Append one record. Where the disk refuses, the rows are kept and `failed` is set; never raises OSError."""
        rows = block.rows.num_rows
        pieces = encode_reasons(block.reasons) if block.reasons else []
        pieces += encode_record(block.header, block.rows.serialize() if rows else b"")
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
            self._end_segment()
            following = self._segments.open(self._open.id, None)
            ended, self._open = self._open, following
            ended.close()
            self._rotated += 1
            self._settle(following)
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

    def _write(self, segment: OpenSegment, rows: int, pieces: Pieces) -> None:
        """Append a record that holds so many rows. Raises OSError."""
        if rows and segment.first_row_at is None:
            segment.first_row_at = self._clock()
        segment.write(pieces)

    def _end_segment(self) -> None:
        """Write the record that ends the open segment, and sync it. Raises OSError."""
        self._open.write_end()
        self._open.sync()
        self._settle(self._open)

    def _settle(self, segment: OpenSegment) -> None:
        """All that is written is synced: tell the readers, then forget the rows. Raises OSError."""
        os.pwrite(self._synced_fd, encode_synced(segment.end), 0)
        self.synced = segment.end
        self.unsynced.clear()

    def _fail(self, error: OSError) -> None:
        self.failed = error
        log.error("journal.failed", segment=str(self._open.id), error=error.strerror, rows=self.unsynced.rows)


def _sync_left(path: Path) -> None:
    """Sync what an earlier run left, so that what a reader has seen of it stays. Raises OSError of the disk alone."""
    try:
        fd = open_file(path)
    except OSError as error:
        if not blames_file(error):
            raise
        log.error("segment.unreadable", file=path.name, error=error.strerror, hint="the recording goes on without it")
        return
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
