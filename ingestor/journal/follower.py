"""The journal's reading end: follows the segments with a cursor, in this process or any other, and never waits.

A follower stands still at what is not a whole record. A segment is over at its END record, or where its records stop
*and* a later segment has begun; the later one may say that it continues this one from an earlier offset (the disk had
failed), and then what stands behind that offset is void.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pyarrow as pa

from ingestor.errors import Lagged
from ingestor.journal.cursor import Cursor, read_synced
from ingestor.journal.scan import end_of_records, find_final_end, find_record, read_identity
from ingestor.journal.segment import (
    Kind,
    Record,
    decode_reasons,
    decode_rows,
    decode_schema,
    read_record,
)
from ingestor.layout import Layout, SegmentFile, SegmentId, list_segments
from ingestor.metrics import Counts
from ingestor.schema import TRADES


@dataclass(frozen=True, slots=True)
class Rows:
    """A record of the journal: its rows (perhaps none), what its frames became, and the place behind it."""

    segment: SegmentId
    batch: pa.RecordBatch
    counts: Counts
    reasons: dict[str, int]
    first_received_us: int
    last_received_us: int
    at: Cursor


@dataclass(frozen=True, slots=True)
class Damage:
    """Bytes of a dead segment that are no record."""

    segment: SegmentId
    offset: int
    content: bytes
    at: Cursor
    """The place behind them."""


@dataclass(frozen=True, slots=True)
class SegmentEnd:
    """A segment is complete: no row of it will follow."""

    segment: SegmentId
    at: Cursor
    """The place from which to go on."""


Event = Rows | Damage | SegmentEnd


def find_journal_end(layout: Layout) -> Cursor:
    """Behind the last record of the journal that is whole now, synced or not: where a view begins. Raises OSError."""
    while True:
        segments = list_segments(layout)
        if not segments:
            return Cursor(0, 0)
        with contextlib.suppress(FileNotFoundError):  # sealed, and so renamed, since it was listed
            return Cursor(segments[-1].id.number, end_of_records(segments[-1].path))


class Follower:
    """Reads the journal on from `start` (None: from its oldest segment); with `synced_only`, no further than is
    synced.
    """

    def __init__(self, layout: Layout, start: Cursor | None, *, synced_only: bool) -> None:
        self._layout = layout
        self._synced_only = synced_only
        self._segment: _ReadSegment | None = None
        self._last_sequence = -1
        self.cursor = start or Cursor(0, 0)

    def read(self) -> Iterator[Event]:
        """All that there is now. Raises Lagged where the cursor's segment is gone, FormatTooNew, OSError."""
        while True:
            if self._segment is None:
                self._segment = self._enter()
                if self._segment is None:
                    return
            for event in self._segment.read(self._limit(self._segment)):
                self.cursor = event.at
                yield self._unseen(event) if isinstance(event, Rows) else event
            if not self._segment.over:
                return
            ended = self._segment.file.id
            self._segment.close()
            self._segment = None
            self.cursor = Cursor(ended.number + 1, 0)
            yield SegmentEnd(ended, self.cursor)

    def close(self) -> None:
        if self._segment is not None:
            self._segment.close()
            self._segment = None

    def _enter(self) -> "_ReadSegment | None":
        """The segment at the cursor, or the next one there is; None where there is none yet."""
        while True:
            try:
                return self._find()
            except FileNotFoundError:  # sealed, and so renamed, or freed since it was listed
                continue

    def _find(self) -> "_ReadSegment | None":
        file = next((file for file in list_segments(self._layout) if file.id.number >= self.cursor.segment), None)
        if file is not None and file.id.number == self.cursor.segment:
            return _ReadSegment(self._layout, file, self.cursor.offset)
        if self.cursor.offset or (file is not None and self._missed(file)):
            raise Lagged(f"the journal no longer holds segment {self.cursor.segment}, where this reader stands")
        return None if file is None else _ReadSegment(self._layout, file, 0)

    def _missed(self, file: SegmentFile) -> bool:
        """Whether there were segments between the cursor and this one. Some numbers are left out: the disk refused."""
        identity = read_identity(file.path)
        return identity is not None and identity["previous"] >= self.cursor.segment > 0

    def _limit(self, segment: "_ReadSegment") -> int | None:
        """Where this follower must stop in a segment that may still grow; None: at its end."""
        if not self._synced_only:
            return None
        synced = read_synced(self._layout)
        return synced.offset if synced.segment == segment.file.id.number else 0

    def _unseen(self, rows: Rows) -> Rows:
        """These rows without those already given: a reader to the end may have read what an abandoned segment lost."""
        if not rows.batch.num_rows:
            return rows
        sequences = rows.batch.column("sequence")
        first, last = sequences[0].as_py(), sequences[-1].as_py()
        seen = min(max(self._last_sequence + 1 - first, 0), rows.batch.num_rows)
        self._last_sequence = max(self._last_sequence, last)
        if not seen:
            return rows
        return replace(rows, batch=rows.batch.slice(seen))


class _ReadSegment:
    """One segment, being read from an offset on."""

    def __init__(self, layout: Layout, file: SegmentFile, offset: int) -> None:
        self.file = file
        self.over = False
        self._layout = layout
        self._offset = offset
        self._schema = TRADES  # until the segment says otherwise, or where its word was damaged
        self._reasons: dict[str, int] = {}
        self._fd = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
        if offset:
            self._read_schema()

    def close(self) -> None:
        os.close(self._fd)

    def read(self, limit: int | None) -> Iterator[Rows | Damage]:
        """What stands between here and `limit` (None: the end of the file), or all that is left where it is dead.

        Sets `over` when nothing can follow.
        """
        yield from self._read_rest()  # first: what an abandoned segment holds behind its end may look whole
        while not self.over and (record := read_record(self._fd, self._offset, limit)) is not None:
            yield from self._take(record)

    def _read_rest(self) -> Iterator[Rows | Damage]:
        """All that is left, where nobody writes this segment any more: steps over what is no record; else nothing."""
        end = find_final_end(self._layout, self.file.id.number, self._fd)
        if end is None:
            return
        while self._offset < end and not self.over:
            record = read_record(self._fd, self._offset, end)
            if record is not None:
                yield from self._take(record)
                continue
            start, self._offset = self._offset, find_record(self._fd, self._offset + 1, end) or end
            self._reasons = {}
            yield from self._damage(start)
        self.over = True

    def _take(self, record: Record) -> Iterator[Rows | Damage]:
        self._offset = record.end
        match record.header.kind:
            case Kind.SCHEMA:
                self._schema = decode_schema(record)
            case Kind.REASONS:
                self._reasons = decode_reasons(record)
            case Kind.END:
                self.over = True
            case Kind.BLOCK:
                reasons, self._reasons = self._reasons, {}
                header = record.header
                at = Cursor(self.file.id.number, record.end)
                batch = decode_rows(record, self._schema)
                yield Rows(
                    self.file.id, batch, header.counts, reasons,
                    header.first_received_us, header.last_received_us, at,
                )  # fmt: skip

    def _damage(self, start: int) -> Iterator[Damage]:
        content = os.pread(self._fd, self._offset - start, start)
        if content.strip(b"\0"):
            yield Damage(self.file.id, start, content, Cursor(self.file.id.number, self._offset))

    def _read_schema(self) -> None:
        start = read_record(self._fd, 0)
        schema = read_record(self._fd, start.end) if start else None
        if schema and schema.header.kind is Kind.SCHEMA:
            self._schema = decode_schema(schema)
