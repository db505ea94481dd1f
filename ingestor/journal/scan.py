"""What a segment's file holds, found without following it: whose it is, where it ends, what stands behind damage."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ingestor.journal.segment import MAGIC, Header, Kind, Record, read_header, read_record
from ingestor.layout import Layout, list_segments

_WINDOW = 1 << 20


def find_record(fd: int, offset: int, size: int) -> int | None:
    """Where the next whole record begins at or after `offset` and ends by `size`: how salvage steps over damage."""
    while offset < size:
        chunk = os.pread(fd, _WINDOW + len(MAGIC) - 1, offset)
        at = chunk.find(MAGIC)
        while at >= 0:
            if read_record(fd, offset + at, size) is not None:
                return offset + at
            at = chunk.find(MAGIC, at + 1)
        offset += _WINDOW
    return None


def read_identity(path: Path) -> dict[str, Any] | None:
    """What the segment says of itself, or None where its first record never became whole."""
    fd = os.open(path, os.O_RDONLY)
    try:
        record = read_record(fd, 0)
    finally:
        os.close(fd)
    if record is None or record.header.kind is not Kind.START:
        return None
    identity: dict[str, Any] = json.loads(record.body)
    return identity


def last_received_us(path: Path) -> int:
    """When the last frame that this segment journaled was received, in µs since 1970; 0 where it journaled none.

    The last in order, not the latest: the clock may have been set back.
    """
    last = 0
    for record in _read_records(path):
        last = record.header.last_received_us or last
    return last


def end_of_records(path: Path) -> int:
    """Behind the last whole record of this segment, which may still grow."""
    end = 0
    for record in _read_records(path):
        end = record.end
    return end


def find_final_end(layout: Layout, number: int, fd: int) -> int | None:
    """Where this segment, whose file is open as `fd`, ends for good, or None while it may still grow.

    A later segment whose first record is whole proves that nobody writes this one any more; one that continues it, or
    an earlier one, from an offset voids what stands behind.
    """
    later = _read_later_identities(layout, number)
    if not later:
        return None
    end = os.fstat(fd).st_size  # now that nobody writes it: looked at before, it may have grown since
    for identity in later:
        if identity["continues"] is None:
            continue
        segment, offset = identity["continues"]
        if segment == number:
            end = min(end, offset)
        elif segment < number:
            end = 0
    return end


def _read_later_identities(layout: Layout, number: int) -> list[dict[str, Any]]:
    """What the later segments whose first record is whole say of themselves."""
    while True:
        files = [file for file in list_segments(layout) if file.id.number > number]
        try:
            identities = [read_identity(file.path) for file in files]
        except FileNotFoundError:  # sealed, and so renamed, or freed since it was listed
            continue
        return [identity for identity in identities if identity is not None]


def read_headers(path: Path, offset: int, limit: int | None) -> Iterator[Header]:
    """The headers of the records from `offset` on, one after the other, up to `limit` or to what is no record.

    Bodies are not read, so nothing is checked: to measure by, not to copy from. Raises OSError.
    """
    fd = os.open(path, os.O_RDONLY)
    try:
        end = os.fstat(fd).st_size if limit is None else limit
        while offset < end and (found := read_header(fd, offset)) is not None:
            header, offset = found
            yield header
    finally:
        os.close(fd)


def _read_records(path: Path) -> Iterator[Record]:
    """The whole records that a segment holds now, stepping over what is none."""
    fd = os.open(path, os.O_RDONLY)
    try:
        offset: int | None = 0
        size = os.fstat(fd).st_size
        while offset is not None:
            record = read_record(fd, offset, size)
            if record is None:
                offset = find_record(fd, offset + 1, size)
            else:
                yield record
                offset = record.end
    finally:
        os.close(fd)
