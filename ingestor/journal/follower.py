"""The journal's reading end: follows the segments with a cursor, in this process or any other, and never waits.

A follower stands still at what is not a whole record. A segment is over at its END record, or where its records stop
*and* a later segment has begun; the later one may say that it continues this one from an earlier offset (the disk had
failed), and then what stands behind that offset is void.
"""

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pyarrow as pa

from ingestor import system
from ingestor.errors import DamagedFile, Lagged
from ingestor.journal import records, scan
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
    at: records.Cursor
    raw: bytes | None = None
    """The body of the record of its frames as they came, for `segment.split_raw`; None where they are not kept."""


@dataclass(frozen=True, slots=True)
class Damage:
    """Bytes of a dead segment that are no record; or all of it, where the file can't be read."""

    segment: SegmentId
    offset: int
    content: bytes
    at: records.Cursor
    """The place behind them."""
    unreadable: str | None = None
    """Why not one byte could be read: a folder, a link that leads nowhere, no permission. `content` is empty then."""


@dataclass(frozen=True, slots=True)
class SegmentEnd:
    """A segment is complete: no row of it will follow."""

    segment: SegmentId
    at: records.Cursor
    """The place from which to go on."""


Event = Rows | Damage | SegmentEnd


def find_journal_end(layout: Layout) -> records.Cursor:
    """Behind the last record of the journal that is whole now, synced or not: where a view begins. Raises DamagedFile
    where this user may not read the last segment, OSError.
    """
    while True:
        segments = list_segments(layout)
        if not segments:
            return records.Cursor(0, 0)
        last = segments[-1]
        try:
            return records.Cursor(last.id.number, scan.end_of_records(last.path))
        except FileNotFoundError:  # sealed, and so renamed, since it was listed
            continue
        except OSError as error:
            if error.errno == errno.EACCES:
                raise _forbidden(last, error) from None
            if scan.blames_file(error):
                return records.Cursor(last.id.number, 0)  # no file: nothing will ever be read of it
            raise


def _forbidden(file: SegmentFile, error: OSError) -> DamagedFile:
    hint = "become a user who may, such as one of the recording's group"
    return DamagedFile(f"{file.path}: can't be read: {error.strerror}: {hint}")


class Follower:
    """Reads the journal on from `start` (None: from its oldest segment); with `synced_only`, no further than is
    synced.
    """

    def __init__(self, layout: Layout, start: records.Cursor | None, *, synced_only: bool) -> None:
        self._layout = layout
        self._folder = scan.JournalFolder(layout)
        self._synced_only = synced_only
        self._segment: _ReadSegment | _LostSegment | None = None
        self._last_sequence = -1
        self.cursor = start or records.Cursor(0, 0)

    def read(self) -> Iterator[Event]:
        """All that there is now. Raises Lagged where the cursor's segment is gone, FormatTooNew, OSError; DamagedFile
        where this user may not read the newest segment, and others may be able to.
        """
        while True:
            if self._segment is None:
                self._segment = self._enter()
                if self._segment is None:
                    return
            limit = None  # the segment's end
            if self._synced_only:
                synced = records.read_synced(self._layout)
                limit = synced.offset if synced.segment == self._segment.file.id.number else 0
            for event in self._segment.read(limit):
                self.cursor = event.at
                yield self._unseen(event) if isinstance(event, Rows) else event
            if not self._segment.over:
                return
            ended = self._segment.file.id
            self.close()
            self.cursor = records.Cursor(ended.number + 1, 0)
            yield SegmentEnd(ended, self.cursor)

    def close(self) -> None:
        segment, self._segment = self._segment, None  # whatever comes between, it is closed once
        if segment is not None:
            segment.close()

    def _enter(self) -> "_ReadSegment | _LostSegment | None":
        """The segment at the cursor, or the next one there is; None where there is none yet."""
        while True:
            file = next((file for file in self._folder.segments() if file.id.number >= self.cursor.segment), None)
            at_cursor = file is not None and file.id.number == self.cursor.segment
            if not at_cursor and (self.cursor.offset or (file is not None and self._missed(file))):
                raise Lagged(f"the journal no longer holds segment {self.cursor.segment}, where this reader stands")
            if file is None:
                return None
            try:
                return self._open(file, self.cursor.offset if at_cursor else 0)
            except FileNotFoundError:  # freed: it is listed no more
                self._folder.list_anew()

    def _open(self, file: SegmentFile, offset: int) -> "_ReadSegment | _LostSegment | None":
        """None where the newest segment can't be read: what comes will be in a later one, and then this one is lost.
        Raises DamagedFile, OSError.
        """
        try:
            return _ReadSegment(self._folder, file, scan.open_segment(self._layout, file), offset)
        except OSError as error:
            if not scan.blames_file(error) or isinstance(error, FileNotFoundError):
                raise
            if self._folder.cap(file.id.number) is not None:
                return _LostSegment(file, offset, error.strerror or str(error))
            # The recorder's sinks wait for its next segment. Of a view it is the reader's own want of a permission.
            if error.errno == errno.EACCES and not self._synced_only:
                raise _forbidden(file, error) from None
            return None

    def _missed(self, file: SegmentFile) -> bool:
        """Whether there were segments between the cursor and this one. Some numbers are left out: the disk refused.

        Where it doesn't say, its first record is damaged: the next number is the only one that surely follows.
        """
        identity = self._folder.identity(file)
        if identity is None:
            return self._folder.cap(file.id.number) is not None and 0 < self.cursor.segment < file.id.number
        return bool(identity["previous"] >= self.cursor.segment > 0)

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


class _LostSegment:
    """A segment that nobody writes any more, and whose file can't be read."""

    def __init__(self, file: SegmentFile, offset: int, reason: str) -> None:
        self.file = file
        self.over = False
        self._damage = Damage(file.id, offset, b"", records.Cursor(file.id.number, offset + 1), reason)

    def close(self) -> None:
        """Nothing: it was never opened."""

    def read(self, limit: int | None) -> Iterator[Rows | Damage]:  # noqa: ARG002  there is nothing to limit
        """That it can't be read."""
        yield self._damage
        self.over = True


class _ReadSegment:
    """One segment, being read from an offset on."""

    def __init__(self, folder: scan.JournalFolder, file: SegmentFile, fd: int, offset: int) -> None:
        """`fd` is its file, and closed with it."""
        self.file = file
        self.over = False
        self._folder = folder
        self._offset = offset
        self._schema: pa.Schema | None = None
        """Once the segment has told it."""
        self._reasons: dict[str, int] = {}
        self._raw: bytes | None = None
        self._fd = fd
        if offset:
            self._schema = scan.read_schema(fd)

    def close(self) -> None:
        os.close(self._fd)

    def read(self, limit: int | None) -> Iterator[Rows | Damage]:
        """What stands between here and `limit` (None: the end of the file), or all that is left where it is dead.

        Sets `over` when nothing can follow.
        """
        # Before anything else: what an abandoned segment holds behind its end may look whole. Where nobody writes the
        # segment any more, all that is left is read, and what is no record is stepped over.
        end = self._folder.final_end(self.file.id.number, self._fd)
        if end is not None:
            while self._offset < end and not self.over:
                record = records.read_record(self._fd, self._offset, end)
                if record is not None:
                    yield from self._take(record)
                    continue
                start, self._offset = self._offset, scan.find_record(self._fd, self._offset + 1, end) or end
                self._reasons, self._raw = {}, None
                yield from self._damage(start)
            self.over = True
        while not self.over and (record := records.read_record(self._fd, self._offset, limit)) is not None:
            yield from self._take(record)

    def _take(self, record: records.Record) -> Iterator[Rows | Damage]:
        self._offset = record.end
        match record.header.kind:
            case records.Kind.SCHEMA:
                self._schema = records.decode_schema(record)
            case records.Kind.REASONS:
                self._reasons = records.decode_reasons(record)
            case records.Kind.FRAMES:
                self._raw = record.body
            case records.Kind.RAW:
                self._raw = records.upgrade_raw(record.body)
            case records.Kind.END:
                self.over = True
            case records.Kind.BLOCK:
                reasons, self._reasons = self._reasons, {}
                raw, self._raw = self._raw, None
                header = record.header
                at = records.Cursor(self.file.id.number, record.end)
                batch = self._decode(record)
                if batch is None:
                    yield from self._damage(record.offset)
                    return
                yield Rows(
                    self.file.id, batch, header.counts, reasons,
                    header.first_received_us, header.last_received_us, at, raw,
                )  # fmt: skip

    def _damage(self, start: int) -> Iterator[Damage]:
        content = system.pread(self._fd, self._offset - start, start)
        if content.strip(b"\0"):
            yield Damage(self.file.id, start, content, records.Cursor(self.file.id.number, self._offset))

    def _decode(self, record: records.Record) -> pa.RecordBatch | None:
        """The rows of a block; None where the schema's record was damaged, and no other segment's fits."""
        if self._schema is None:
            self._schema = self._find_schema()
        try:
            batch = records.decode_rows(record, self._schema)
            batch.validate()
        except pa.ArrowException:
            return None
        return batch

    def _find_schema(self) -> pa.Schema:
        """That of the nearest segment of this run that tells it: a run has one feed, and so one schema."""
        number = self.file.id.number
        others = [file for file in self._folder.segments() if file.id.run == self.file.id.run]
        for file in sorted(others, key=lambda other: abs(other.id.number - number)):
            try:
                fd = scan.open_file(file.path)
            except OSError:  # sealed, freed or no file: there may be another one
                continue
            try:
                schema = scan.read_schema(fd)
            finally:
                os.close(fd)
            if schema is not None:
                return schema
        return TRADES
