"""Segments that are being written: how one comes to be, takes records, and is given up."""

import contextlib
import os
from collections.abc import Callable
from datetime import UTC, datetime

import pyarrow as pa

from ingestor.journal.cursor import Cursor
from ingestor.journal.segment import Header, Kind, Pieces, encode_record, encode_schema, encode_start
from ingestor.layout import FILE_MODE, Layout, SegmentId, sync_directory
from ingestor.schema import FORMAT_VERSION


class OpenSegment:
    """The segment that is being written."""

    def __init__(self, layout: Layout, segment: SegmentId) -> None:
        self.id = segment
        self.size = 0
        self.first_row_at: datetime | None = None
        self._path = layout.open_segment(segment)
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)

    @property
    def end(self) -> Cursor:
        """The place behind what is written."""
        return Cursor(self.id.number, self.size)

    def write(self, pieces: Pieces) -> None:
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
        self.write(encode_record(Header(Kind.END), b""))

    def sync(self) -> None:
        """Make what is written survive a power cut. Raises OSError."""
        os.fdatasync(self._fd)

    def sync_whole(self) -> None:
        """Make the file itself survive one, too. Raises OSError."""
        os.fsync(self._fd)

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
        self._schema = schema
        self._clock = clock

    def open(self, previous: SegmentId | None, continues: Cursor | None) -> OpenSegment:
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
            opened.write(encode_start(identity))
            opened.write(encode_schema(self._schema))
            opened.sync_whole()
            sync_directory(self._layout.journal)
        except OSError:
            opened.discard()
            raise
        return opened
