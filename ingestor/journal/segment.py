"""A segment: a write-ahead log of checked records. This module reads and writes the bytes, and knows nothing else.

A record is a fixed header and a body padded to 8 bytes. The header carries the length and a CRC32 over itself and the
body, so that zeros, junk and half records never pass; and the counts of what it journals, so that they are recomputed
after a crash, not remembered. The first record says whose segment this is (JSON), the second is the Arrow schema,
then come blocks: an Arrow record batch message each, or nothing where frames came that held no trade. A record of
reasons (JSON) stands before a block that has rejects, and counts only together with it.
"""

import json
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

import pyarrow as pa

from ingestor.errors import FormatTooNew
from ingestor.metrics import Counts
from ingestor.schema import FORMAT_VERSION

MAGIC = b"FIJ\x1a"
_HEADER = struct.Struct("<4sHHIIQIIIIIIqqqq")
_CRC_AT = 8
_ALIGN = 8


class Kind(IntEnum):
    """What a record's body is."""

    START = 1
    SCHEMA = 2
    BLOCK = 3
    REASONS = 4
    END = 5


@dataclass(frozen=True, slots=True)
class Header:
    """A record's header. Times are µs since 1970 and 0 where no frame is in the record."""

    kind: Kind
    counts: Counts = field(default_factory=Counts)
    first_frame: int = 0
    """How many frames this run had journaled before."""
    first_sequence: int = 0
    first_received_us: int = 0
    last_received_us: int = 0


@dataclass(frozen=True, slots=True)
class Record:
    """A whole record: read from a file, its CRC right."""

    header: Header
    body: bytes
    offset: int
    end: int


def encode_record(header: Header, body: bytes | pa.Buffer) -> list[bytes | pa.Buffer]:
    """The record as pieces to write one after the other."""
    length = len(body)
    counts = header.counts
    fields = (
        length, counts.frames, counts.decoded, counts.rejected_frames, counts.notices, counts.trades,
        counts.rejected_trades, header.first_frame, header.first_sequence, header.first_received_us,
        header.last_received_us,
    )  # fmt: skip
    blank = _HEADER.pack(MAGIC, FORMAT_VERSION, header.kind, 0, 0, *fields)
    crc = zlib.crc32(body, zlib.crc32(blank))
    head = _HEADER.pack(MAGIC, FORMAT_VERSION, header.kind, crc, 0, *fields)
    return [head, body, bytes(-length % _ALIGN)]


def encode_start(identity: dict[str, Any]) -> list[bytes | pa.Buffer]:
    """The record that opens a segment: `identity` says whose it is, and what it continues."""
    return encode_record(Header(Kind.START), json.dumps(identity).encode())


def encode_reasons(reasons: dict[str, int]) -> list[bytes | pa.Buffer]:
    """How many frames and trades were rejected, by reason, in the block that comes next."""
    return encode_record(Header(Kind.REASONS), json.dumps(reasons).encode())


def encode_schema(schema: pa.Schema) -> list[bytes | pa.Buffer]:
    return encode_record(Header(Kind.SCHEMA), schema.serialize())


def read_record(fd: int, offset: int, limit: int | None = None) -> Record | None:
    """The record at this offset, or None where there is no whole one (yet) that ends at or before `limit`.

    Raises FormatTooNew for a record of a later version, OSError where the file can't be read.
    """
    head = os.pread(fd, _HEADER.size, offset)
    if len(head) < _HEADER.size:
        return None
    magic, version, kind, crc, _, length, *numbers = _HEADER.unpack(head)
    body_at = offset + _HEADER.size
    size = os.fstat(fd).st_size if limit is None else limit
    if magic != MAGIC or body_at + length > size:  # junk must not make us ask for gigabytes
        return None
    body = os.pread(fd, length, body_at)
    blank = head[:_CRC_AT] + bytes(4) + head[_CRC_AT + 4 :]
    if len(body) < length or zlib.crc32(body, zlib.crc32(blank)) != crc:
        return None
    if version > FORMAT_VERSION:
        raise FormatTooNew(f"the journal holds a record of format {version}; this version reads up to {FORMAT_VERSION}")
    end = body_at + length + -length % _ALIGN
    return Record(Header(Kind(kind), Counts(*numbers[:6]), *numbers[6:]), body, offset, end)


def find_record(fd: int, offset: int, size: int) -> int | None:
    """Where the next whole record begins at or after `offset` and ends by `size`: how salvage steps over damage."""
    window = 1 << 20
    while offset < size:
        chunk = os.pread(fd, window + len(MAGIC) - 1, offset)
        at = chunk.find(MAGIC)
        while at >= 0:
            if read_record(fd, offset + at, size) is not None:
                return offset + at
            at = chunk.find(MAGIC, at + 1)
        offset += window
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
    for record in _scan(path):
        last = record.header.last_received_us or last
    return last


def end_of_records(path: Path) -> int:
    """Behind the last whole record of this segment, which may still grow."""
    end = 0
    for record in _scan(path):
        end = record.end
    return end


def read_headers(path: Path, offset: int, limit: int | None) -> Iterator[Header]:
    """The headers of the records from `offset` on, one after the other, up to `limit` or to what is no record.

    Bodies are not read, so nothing is checked: to measure by, not to copy from. Raises OSError.
    """
    fd = os.open(path, os.O_RDONLY)
    try:
        end = os.fstat(fd).st_size if limit is None else limit
        while offset < end and len(head := os.pread(fd, _HEADER.size, offset)) == _HEADER.size:
            magic, _, kind, _, _, length, *numbers = _HEADER.unpack(head)
            if magic != MAGIC:
                return
            yield Header(Kind(kind), Counts(*numbers[:6]), *numbers[6:])
            offset += _HEADER.size + length + -length % _ALIGN
    finally:
        os.close(fd)


def _scan(path: Path) -> Iterator[Record]:
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


def decode_reasons(record: Record) -> dict[str, int]:
    reasons: dict[str, int] = json.loads(record.body)
    return reasons


def decode_schema(record: Record) -> pa.Schema:
    return pa.ipc.read_schema(pa.py_buffer(record.body))


def decode_rows(record: Record, schema: pa.Schema) -> pa.RecordBatch:
    """The rows of a block; an empty batch where its frames held no trade."""
    if not record.body:
        return pa.RecordBatch.from_pylist([], schema=schema)
    return pa.ipc.read_record_batch(pa.py_buffer(record.body), schema)
