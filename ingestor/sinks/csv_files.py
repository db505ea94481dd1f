"""CSV files that grow as trades come, in the order of arrival: one a segment, under the date of the segment's start.

Exactly once: a file is synced before its length is written to the cursor, and cut back to that length on the next
start.
"""

import errno
import json
import os
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import structlog
from pydantic import BaseModel

from ingestor import system
from ingestor.errors import ConfigError, DamagedFile, SinkUnavailable
from ingestor.journal.follower import Damage, Rows, SegmentEnd
from ingestor.journal.records import Cursor
from ingestor.layout import (
    FILE_MODE,
    Layout,
    list_segments,
    make_folder,
    read_small,
    set_aside,
    sync_directory,
    write_whole,
)
from ingestor.sinks.retention_slots import Whole

_COMMIT_S = 1.0
_UNSYNCED_MAX = 16 << 20

log = structlog.get_logger()


class _StoredPlace(BaseModel):
    """`cursors/csv.json`."""

    segment: Whole
    offset: Whole
    bytes: Whole


class CsvFiles:
    """Appends each batch to its segment's file; commits once a second, and where a segment ends."""

    name = "csv"

    def __init__(self, layout: Layout) -> None:
        """Take up where the cursor says. Raises OSError."""
        self._layout = layout
        self._file: _GrowingFile | None = None
        self._committed, self._known = _read_cursor(layout)
        self._at = self._committed
        self._commit_due_s = 0.0
        self.rows: Counter[int] = Counter()
        """Written by this process, by the run that recorded them."""

    def write(self, rows: Rows) -> None:
        try:
            if rows.batch.num_rows:
                if self._file is None:
                    # Cut back to what the cursor vouches for.
                    heading = ",".join(rows.batch.schema.names) + "\n"
                    self._file = _GrowingFile(self._layout.csv_file(rows.segment), self._known, heading)
                self._file.append(encode_csv(rows.batch))
                self.rows[rows.segment.run] += rows.batch.num_rows
        except OSError as error:
            raise SinkUnavailable(f"can't write {rows.segment}.csv: {error.strerror or error}") from None
        self._at = rows.at

    def set_aside(self, damage: Damage) -> None:
        """Nothing: what is no record holds no row."""

    def end_segment(self, end: SegmentEnd) -> None:
        path = self._layout.csv_file(end.segment)
        try:
            if self._file is not None:
                self._file.sync()
                ended, self._file = self._file, None
                ended.close()
            self._known = 0
            # Earlier versions could compress a file that was complete; a crash of theirs may have left that one too.
            path.with_name(path.name + ".gz").unlink(missing_ok=True)
            self._commit(end.at)
        except OSError as error:
            raise SinkUnavailable(f"can't end {path.name}: {error.strerror or error}") from None

    def tick(self, now_s: float) -> None:
        if now_s < self._commit_due_s or self._at == self._committed:
            return
        self._commit_due_s = now_s + _COMMIT_S
        try:
            if self._file is not None:
                self._file.sync()
            self._commit(self._at)
        except OSError as error:
            raise SinkUnavailable(f"can't commit: {error.strerror or error}") from None

    def committed(self) -> Cursor:
        return self._committed

    def close(self) -> None:
        self.tick(float("inf"))
        if self._file is not None:
            self._file.close()

    def _commit(self, at: Cursor) -> None:
        self._at = at
        length = self._file.length if self._file is not None else self._known
        text = json.dumps({"segment": at.segment, "offset": at.offset, "bytes": length})
        write_whole(self._layout.cursor_file(self.name), text, self._layout.staging)
        self._committed = at


class _GrowingFile:
    """A file that is only ever appended to, by whole batches.

    What no fsync has covered is kept: after one that failed the kernel may have dropped its pages, and would call the
    next one good. So they are written again first.
    """

    def __init__(self, path: Path, known: int, heading: str) -> None:
        """Open it, cut back to its first `known` bytes. Raises OSError."""
        make_folder(path.parent)
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, FILE_MODE)
        self._synced = self.length = known
        self._unsynced: list[bytes | pa.Buffer] = []
        self._sync_failed = False
        try:
            if os.fstat(self._fd).st_size < known:  # to cut it there would fill it with zeros
                raise OSError(errno.ENODATA, "shorter than what was committed: it is written anew at the next start")
            os.ftruncate(self._fd, known)
            sync_directory(path.parent)
            if not known:
                self.append(heading.encode())
        except OSError:
            self.close()
            raise

    def append(self, content: bytes | pa.Buffer) -> None:
        """Write all of it, or leave the file as it was. Raises OSError."""
        if self.length - self._synced >= _UNSYNCED_MAX:
            self.sync()
        try:
            self._write(content, self.length)
        except OSError:
            os.ftruncate(self._fd, self.length)
            raise
        self.length += len(content)
        self._unsynced.append(content)

    def sync(self) -> None:
        """Make it survive a power cut. Raises OSError; may be tried again."""
        if self._sync_failed:
            self._write(b"".join(self._unsynced), self._synced)
        self._sync_failed = True
        system.sync_data(self._fd)
        self._sync_failed = False
        self._synced = self.length
        self._unsynced.clear()

    def _write(self, content: bytes | pa.Buffer, at: int) -> None:
        left = memoryview(content)
        while left:
            written = os.pwrite(self._fd, left, at)
            left, at = left[written:], at + written

    def close(self) -> None:
        os.close(self._fd)


def encode_csv(batch: pa.RecordBatch) -> pa.Buffer:
    """The rows as lines: ISO times in UTC; null and empty conditions read alike."""
    columns = [_as_text(column) for column in batch.columns]
    sink = pa.BufferOutputStream()
    options = pacsv.WriteOptions(include_header=False)
    pacsv.write_csv(pa.RecordBatch.from_arrays(columns, names=batch.schema.names), sink, options)
    return sink.getvalue()


def _as_text(column: pa.Array) -> pa.Array:
    """A time as `2026-11-20T14:30:00.123Z`; any other column as it is.

    Each distinct time is written once: Arrow takes 2 µs for one, and at high rates many trades share theirs.
    """
    if not pa.types.is_timestamp(column.type):
        return column
    times = column.dictionary_encode()
    return pc.binary_replace_slice(times.dictionary.cast(pa.string()), 10, 11, "T").take(times.indices)


def _read_cursor(layout: Layout) -> tuple[Cursor, int]:
    """Where this sink stands, and how many bytes of its growing file are vouched for.

    Where the file is shorter than that, its segment is written anew; where the cursor can't be read, all segments are.
    """
    try:
        stored = read_small(layout.cursor_file(CsvFiles.name), _StoredPlace.model_validate_json)
        cursor, known = Cursor(stored.segment, stored.offset), stored.bytes
    except FileNotFoundError:
        return Cursor(0, 0), 0
    except DamagedFile as error:
        log.warning("cursor.unreadable", sink=CsvFiles.name, error=str(error))
        return Cursor(0, 0), 0
    path = next((layout.csv_file(file.id) for file in list_segments(layout) if file.id.number == cursor.segment), None)
    if path is None:  # all of it was passed, or it was freed while this sink was not asked for
        return Cursor(cursor.segment, 0), 0
    try:
        if os.path.lexists(path) and not (path.is_file() and os.access(path, os.R_OK | os.W_OK)):
            set_aside(path, "not a file that can be written")
        whole = path.exists() and path.stat().st_size >= known
    except OSError as error:
        raise ConfigError(
            f"{error.filename}: {error.strerror}: mend that, or take csv out of storage.formats"
        ) from None
    if known and not whole:
        log.warning("csv.rebuilt", segment=cursor.segment)
        return Cursor(cursor.segment, 0), 0
    return cursor, known
