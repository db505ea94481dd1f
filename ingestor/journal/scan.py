"""Finds what a segment's file holds without following it: whose it is, where it ends, how much lies behind a place."""

import errno
import json
import os
import stat
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from ingestor import system
from ingestor.journal import records
from ingestor.layout import Layout, SegmentFile, SegmentId, list_segments

_WINDOW = 1 << 20
_SETTLE_S = 2.5
"""Longer than two changes of a folder can share one time of change: FAT counts in steps of two seconds."""
_ATTEMPTS = 100
_UNREADABLE = frozenset(
    {errno.EACCES, errno.EPERM, errno.EISDIR, errno.ELOOP, errno.ENODEV, errno.ENOENT, errno.ENOTDIR, errno.ENXIO}
)


def find_record(fd: int, offset: int, size: int) -> int | None:
    """Where the next whole record begins at or after `offset` and ends by `size`: how salvage steps over damage."""
    while offset < size:
        # Holes of a file that was made longer are passed at once. ENXIO: there is nothing but a hole to the end.
        try:
            offset = os.lseek(fd, offset, os.SEEK_DATA) if hasattr(os, "SEEK_DATA") else offset
        except OSError as error:
            if error.errno == errno.ENXIO:
                return None
        chunk = system.pread(fd, _WINDOW + len(records.MAGIC) - 1, offset)
        at = chunk.find(records.MAGIC)
        while at >= 0:
            if records.read_record(fd, offset + at, size) is not None:
                return offset + at
            at = chunk.find(records.MAGIC, at + 1)
        offset += _WINDOW
    return None


def open_file(path: Path) -> int:
    """A descriptor of this regular file. Raises OSError, naming it; FileNotFoundError only where the name is gone: a
    link that leads nowhere keeps its name.
    """
    try:
        fd = os.open(path, system.READ)  # opening a fifo would wait for its writer
    except FileNotFoundError:
        if path.is_symlink():
            raise OSError(errno.ELOOP, "the link leads nowhere", str(path)) from None
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.ENXIO, "this is no file", str(path))
    return fd


def open_segment(layout: Layout, file: SegmentFile) -> int:
    """A descriptor of this segment, also where it was sealed, and so renamed, since it was listed.

    Raises FileNotFoundError where it was freed, OSError.
    """
    for _ in range(_ATTEMPTS):  # a name that is listed and can't be found again and again is damage of the file system
        for path in (file.path, layout.sealed_segment(file.id)):
            try:
                return open_file(path)
            except FileNotFoundError:
                continue
        if file.id not in (listed.id for listed in list_segments(layout)):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(file.path))
    raise OSError(errno.ENXIO, "it is listed, and can't be found", str(file.path))


def blames_file(error: OSError) -> bool:
    """Whether a file can't be read for what it is (a folder, a link to nowhere, not ours), rather than for want of
    memory or descriptors, or for a disk that fails just now.
    """
    return error.errno in _UNREADABLE


def read_identity(path: Path) -> dict[str, Any] | None:
    """What the segment says of itself, or None where its first record never became whole. Raises OSError."""
    fd = open_file(path)
    try:
        return _read_identity(fd)
    finally:
        os.close(fd)


def _read_identity(fd: int) -> dict[str, Any] | None:
    record = records.read_record(fd, 0)
    if record is None or record.header.kind is not records.Kind.START:
        return None
    identity: dict[str, Any] = json.loads(record.body)
    return identity


def read_schema(fd: int) -> pa.Schema | None:
    """The schema that this segment tells, even where the record before is damaged; None where its own is."""
    for record in islice(_whole_records(fd), 2):
        if record.header.kind is records.Kind.SCHEMA:
            return records.decode_schema(record)
    return None


def last_received_us(path: Path) -> int:
    """When the last frame that this segment journaled was received, in µs since 1970; 0 where it journaled none.

    The last in order, not the latest: the clock may have been set back. Rows that were filled don't count.
    """
    last = 0
    for record in _read_records(path):
        if not record.header.counts.filled:
            last = record.header.last_received_us or last
    return last


def end_of_records(path: Path) -> int:
    """Behind the last whole record of this segment, which may still grow."""
    end = 0
    for record in _read_records(path):
        end = record.end
    return end


class JournalFolder:
    """A root's segments and what they say of themselves, for whoever looks many times a second: names are listed and
    first records read when the folder has changed, so that a look costs the same however many segments there are.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._folder = str(layout.journal)
        self._segments: list[SegmentFile] = []
        self._changed_ns: int | None = None
        self._settled_s = 0.0
        self._settled = False
        self._identities: dict[SegmentId, dict[str, Any]] = {}
        self._caps: dict[int, int | None] = {}
        """By a segment's number: what `cap` says, as long as the folder does not change."""

    def segments(self) -> list[SegmentFile]:
        """As `list_segments`. Raises OSError."""
        try:
            changed_ns = os.stat(self._folder).st_mtime_ns  # noqa: PTH116  asked many times a second
        except FileNotFoundError:
            return []
        now_s = time.monotonic()
        if changed_ns != self._changed_ns:
            self._changed_ns, self._settled_s, self._settled = changed_ns, now_s + _SETTLE_S, False
        if not self._settled:  # a second change may bear the same time
            self._settled = now_s >= self._settled_s
            self._segments = list_segments(self._layout)
            self._caps.clear()
            listed = {file.id for file in self._segments}
            self._identities = {segment: said for segment, said in self._identities.items() if segment in listed}
        return self._segments

    def list_anew(self) -> None:
        """At the next look, whatever the folder's time of change says."""
        self._changed_ns = None

    def identity(self, file: SegmentFile) -> dict[str, Any] | None:
        """What this segment says of itself; None where it can't be read, or not yet. Raises OSError."""
        if file.id not in self._identities:
            try:
                fd = open_segment(self._layout, file)
            except OSError as error:
                if blames_file(error):
                    return None
                raise
            try:
                identity = _read_identity(fd)
            finally:
                os.close(fd)
            if identity is None:
                return None
            self._identities[file.id] = identity
        return self._identities[file.id]

    def final_end(self, number: int, fd: int) -> int | None:
        """Where this segment, whose file is open as `fd`, ends for good, or None while it may still grow.

        A later segment whose first record is whole proves that nobody writes this one any more; one that continues
        it, or an earlier one, from an offset voids what stands behind. Raises OSError.
        """
        cap = self.cap(number)
        return None if cap is None else min(os.fstat(fd).st_size, cap)  # looked at before, it may have grown since

    def cap(self, number: int) -> int | None:
        """Where this segment ends at the latest, or None while it may still grow. Raises OSError."""
        segments = self.segments()
        if number in self._caps:
            return self._caps[number]
        later = [file for file in segments if file.id.number > number]
        said = [self.identity(file) for file in later]
        whole = [identity for identity in said if identity is not None]
        cap = sys.maxsize if whole else None
        for identity in whole:
            if identity["continues"] is not None:
                segment, offset = identity["continues"]
                if segment <= number:
                    cap = min(cap or 0, offset if segment == number else 0)
        if self._settled and len(whole) == len(said):
            self._caps[number] = cap
        return cap


def read_headers(path: Path, offset: int, limit: int | None) -> Iterator[records.Header]:
    """The headers of the records from `offset` on, one after the other, up to `limit`; damage is stepped over.

    Bodies are not read, so nothing is checked: to measure by, not to copy from. Raises OSError.
    """
    fd = open_file(path)
    try:
        size = os.fstat(fd).st_size
        end = size if limit is None else min(limit, size)
        while offset < end:
            found = records.read_header(fd, offset)
            if found is None or found[1] > end:
                offset = find_record(fd, offset + 1, end) or end
            else:
                header, offset = found
                yield header
    finally:
        os.close(fd)


def _read_records(path: Path) -> Iterator[records.Record]:
    """The whole records that a segment holds now, stepping over what is none."""
    fd = open_file(path)
    try:
        yield from _whole_records(fd)
    finally:
        os.close(fd)


def _whole_records(fd: int) -> Iterator[records.Record]:
    offset: int | None = 0
    size = os.fstat(fd).st_size
    while offset is not None:
        record = records.read_record(fd, offset, size)
        if record is None:
            offset = find_record(fd, offset + 1, size)
        else:
            yield record
            offset = record.end


@dataclass(frozen=True, slots=True)
class Backlog:
    """What stands between two places of the journal."""

    rows: int = 0
    oldest_received_us: int = 0
    """When the oldest of these rows was received, in µs since 1970; 0 where there is none."""

    def __add__(self, later: "Backlog") -> "Backlog":
        return Backlog(self.rows + later.rows, self.oldest_received_us or later.oldest_received_us)


class Backlogs:
    """Measures one root's journal again and again. What whole segments hold is remembered: they don't change."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._whole: dict[int, Backlog] = {}

    def measure(self, start: records.Cursor, end: records.Cursor | None = None) -> Backlog:
        """The rows from `start` to `end` (None: as far as the journal is synced). Raises OSError."""
        end = end or records.read_synced(self._layout)
        files = list_segments(self._layout)
        backlog = Backlog()
        for file in files:
            number = file.id.number
            if not start.segment <= number <= end.segment:
                continue
            first = start.offset if number == start.segment else 0
            last = end.offset if number == end.segment else None
            if first or last is not None:
                backlog += self._read(file, first, last)
                continue
            if number not in self._whole:
                self._whole[number] = self._read(file, first, last)
            backlog += self._whole[number]
        oldest = files[0].id.number if files else 0
        self._whole = {number: known for number, known in self._whole.items() if number >= oldest}
        return backlog

    def _read(self, file: SegmentFile, first: int, last: int | None) -> Backlog:
        backlog = Backlog()
        for path in (file.path, self._layout.sealed_segment(file.id)):
            try:
                for header in read_headers(path, first, last):
                    if header.counts.trades:
                        backlog += Backlog(header.counts.trades, header.first_received_us)
            except FileNotFoundError:  # sealed, and so renamed, or freed since it was listed
                continue
            except OSError as error:
                if not blames_file(error):
                    raise
                return backlog  # whoever carries the journal tells of it
            return backlog
        return backlog
