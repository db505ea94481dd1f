"""A segment: a write-ahead log of checked records. This module reads and writes the bytes, and knows nothing else.

A record is a fixed header and a body padded to 8 bytes. The header carries the length and a CRC32 over itself and the
body, so that zeros, junk and half records never pass; and the counts of what it journals, so that they are recomputed
after a crash, not remembered. The first record says whose segment this is (JSON), the second is the Arrow schema,
then come blocks: an Arrow record batch message each, or nothing where frames came that held no trade. A record of
reasons (JSON) stands before a block that has rejects, and counts only together with it; so does a record of raw
frames (`storage.raw`): what the block's frames were, as they came.
"""

import json
import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import accumulate
from typing import Any

import pyarrow as pa

from ingestor import system
from ingestor.errors import FormatTooNew
from ingestor.layout import Layout
from ingestor.metrics import Counts
from ingestor.schema import FORMAT_VERSION, FRAMES

MAGIC = b"FIJ\x1a"
Pieces = list[bytes | pa.Buffer]
"""A record, to write one piece after the other."""

_HEADER = struct.Struct("<4sHHIIQIIIIIIqqqq")
_CRC_AT = 8
_ALIGN = 8

_RAW = struct.Struct("<QQQQQQ")
"""Before the compressed frames of a record: their number, their connection, the number of the first one in its run,
the first sequence number and the number of their trades, and the length of what was compressed.
"""
_RAW_CODEC = pa.Codec("lz4_raw")
"""Half the work of zstd: its files are where frames stay."""
_RAW_COLUMNS = pa.schema([FRAMES.field("received_at"), FRAMES.field("payload")])


class Kind(IntEnum):
    """What a record's body is."""

    START = 1
    SCHEMA = 2
    BLOCK = 3
    REASONS = 4
    END = 5
    RAW = 6


_KINDS = frozenset(map(int, Kind))


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


def encode_record(header: Header, body: bytes | pa.Buffer) -> Pieces:
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


def encode_start(identity: dict[str, Any]) -> Pieces:
    """The record that opens a segment: `identity` says whose it is, and what it continues."""
    return encode_record(Header(Kind.START), json.dumps(identity).encode())


def encode_reasons(reasons: dict[str, int]) -> Pieces:
    """How many frames and trades were rejected, by reason, in the block that comes next."""
    return encode_record(Header(Kind.REASONS), json.dumps(reasons).encode())


def encode_raw(block: Header, connection: int, received_us: Sequence[int], payloads: Sequence[bytes]) -> Pieces:
    """The frames of the block that comes next and has this header, as they came."""
    # Joined and cut by their lengths, the bytes are copied in a third of the time in which Arrow takes them one by one.
    ends = pa.array(accumulate(map(len, payloads), initial=0), pa.int32(), size=len(payloads) + 1)
    joined = [None, ends.buffers()[1], pa.py_buffer(b"".join(payloads))]
    payload = pa.BinaryArray.from_buffers(pa.binary(), len(payloads), joined)
    received_at = pa.array(received_us, pa.int64()).view(_RAW_COLUMNS.types[0])
    message = pa.RecordBatch.from_arrays([received_at, payload], schema=_RAW_COLUMNS).serialize()
    head = _RAW.pack(
        len(payloads), connection, block.first_frame, block.first_sequence, block.counts.trades, message.size
    )
    return encode_record(Header(Kind.RAW), head + _RAW_CODEC.compress(message, asbytes=True))


def encode_schema(schema: pa.Schema) -> Pieces:
    return encode_record(Header(Kind.SCHEMA), schema.serialize())


def read_header(fd: int, offset: int) -> tuple[Header, int] | None:
    """The header at this offset, unchecked, and where its record ends; None where there is none. Raises OSError."""
    head = system.pread(fd, _HEADER.size, offset)
    if len(head) < _HEADER.size or not head.startswith(MAGIC):
        return None
    _, _, kind, _, _, length, *numbers = _HEADER.unpack(head)
    if kind not in _KINDS:  # a flipped bit
        return None
    end = offset + _HEADER.size + length + -length % _ALIGN
    return Header(Kind(kind), Counts(*numbers[:6]), *numbers[6:]), end


def read_record(fd: int, offset: int, limit: int | None = None) -> Record | None:
    """The record at this offset, or None where there is no whole one (yet) that ends at or before `limit`.

    Raises FormatTooNew for a record of a later version, OSError where the file can't be read.
    """
    head = system.pread(fd, _HEADER.size, offset)
    if len(head) < _HEADER.size:
        return None
    magic, version, kind, crc, _, length, *numbers = _HEADER.unpack(head)
    body_at = offset + _HEADER.size
    size = os.fstat(fd).st_size if limit is None else limit
    if magic != MAGIC or body_at + length > size:  # junk must not make us ask for gigabytes
        return None
    body = system.pread(fd, length, body_at)
    blank = head[:_CRC_AT] + bytes(4) + head[_CRC_AT + 4 :]
    if len(body) < length or zlib.crc32(body, zlib.crc32(blank)) != crc:
        return None
    if version > FORMAT_VERSION or kind not in _KINDS:
        raise FormatTooNew(
            f"the journal holds a record of format {version}, kind {kind}; this version reads up to {FORMAT_VERSION}, "
            f"kind {max(_KINDS)}"
        )
    end = body_at + length + -length % _ALIGN
    return Record(Header(Kind(kind), Counts(*numbers[:6]), *numbers[6:]), body, offset, end)


def decode_reasons(record: Record) -> dict[str, int]:
    reasons: dict[str, int] = json.loads(record.body)
    return reasons


def count_raw(body: bytes) -> int:
    """The number of frames in the body of a record of raw frames."""
    return int(_RAW.unpack_from(body)[0])


def decode_raw(body: bytes, run: int) -> pa.RecordBatch:
    """The frames in the body of a record of raw frames of this run, with the columns FRAMES."""
    frames, connection, first, sequence, trades, length = _RAW.unpack_from(body)
    message = _RAW_CODEC.decompress(pa.py_buffer(body)[_RAW.size :], length)
    received_at, payload = pa.ipc.read_record_batch(message, _RAW_COLUMNS).columns
    constants = (pa.repeat(pa.scalar(one, pa.int64()), frames) for one in (run, connection, first, sequence, trades))
    columns = [*constants, received_at, payload]
    columns.insert(FRAMES.get_field_index("frame"), pa.arange(first, first + frames))
    return pa.RecordBatch.from_arrays(columns, schema=FRAMES)


def decode_schema(record: Record) -> pa.Schema:
    return pa.ipc.read_schema(pa.py_buffer(record.body))


def decode_rows(record: Record, schema: pa.Schema) -> pa.RecordBatch:
    """The rows of a block; an empty batch where its frames held no trade."""
    if not record.body:
        return pa.RecordBatch.from_pylist([], schema=schema)
    return pa.ipc.read_record_batch(pa.py_buffer(record.body), schema)


# A place in the journal, and the one that the recorder publishes: how far it is synced.

_PLACE = struct.Struct("<QQ")
_CRC = struct.Struct("<I4x")


@dataclass(frozen=True, slots=True, order=True)
class Cursor:
    """Everything before this place is done with. `segment` is the segment's number."""

    segment: int
    offset: int


def encode_synced(cursor: Cursor) -> bytes:
    """The content of `journal/synced`. Written in one small write: a reader that meets a torn one reads again."""
    place = _PLACE.pack(cursor.segment, cursor.offset)
    return place + _CRC.pack(zlib.crc32(place))


def read_synced(layout: Layout) -> Cursor:
    """How far the journal is synced; Cursor(0, 0) where that is unknown, as from a power cut to the next start."""
    for _ in range(3):
        try:
            content = layout.synced.read_bytes()
        except FileNotFoundError:
            break
        if len(content) == _PLACE.size + _CRC.size:
            cursor = Cursor(*_PLACE.unpack_from(content))
            if content == encode_synced(cursor):
                return cursor
    return Cursor(0, 0)
