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
import sys
import zlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NamedTuple

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

_RAW = struct.Struct("<QQQQQQqq")
_RAW_CODEC = pa.Codec("zstd", 1)
"""Frames are compressed once, here: their files take them as they are."""
_EARLIER_RAW = struct.Struct("<QQQQQQ")
_EARLIER_COLUMNS = pa.schema([FRAMES.field("received_at"), FRAMES.field("payload")])


class RawHead(NamedTuple):
    """What stands before the compressed frames of a record."""

    frames: int
    connection: int
    first_frame: int
    first_sequence: int
    trades: int
    size: int
    """Of the packed frames, uncompressed."""
    first_received_us: int
    last_received_us: int


class Kind(IntEnum):
    """What a record's body is."""

    START = 1
    SCHEMA = 2
    BLOCK = 3
    REASONS = 4
    END = 5
    RAW = 6
    """Of earlier recorders: frames as Arrow has them, in lz4. See `upgrade_raw`."""
    FRAMES = 7


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
    packed = pack_frames(received_us, payloads)
    head = RawHead(
        len(payloads),
        connection,
        block.first_frame,
        block.first_sequence,
        block.counts.trades,
        len(packed),
        min(received_us),
        max(received_us),
    )
    return encode_record(
        Header(Kind.FRAMES), _RAW.pack(*head) + min(_RAW_CODEC.compress(packed, asbytes=True), packed, key=len)
    )


def upgrade_raw(body: bytes) -> bytes:
    """The body of a record of the kind FRAMES that says what this one of the kind RAW says."""
    frames, connection, first_frame, first_sequence, trades, size = _EARLIER_RAW.unpack_from(body)
    message = pa.Codec("lz4_raw").decompress(pa.py_buffer(body)[_EARLIER_RAW.size :], size)
    received_at, payload = pa.ipc.read_record_batch(message, _EARLIER_COLUMNS).columns
    received_us = received_at.cast(pa.int64()).to_pylist()
    packed = pack_frames(received_us, payload.to_pylist())
    head = RawHead(
        frames, connection, first_frame, first_sequence, trades, len(packed), min(received_us), max(received_us)
    )
    return _RAW.pack(*head) + packed


def pack_frames(received_us: Sequence[int], payloads: Sequence[bytes]) -> bytes:
    """Their times, their lengths, their bytes."""
    times, lengths = array("q", received_us), array("i", list(map(len, payloads)))
    if sys.byteorder != "little":
        times.byteswap()
        lengths.byteswap()
    return b"".join((times.tobytes(), lengths.tobytes(), *payloads))


def split_raw(body: bytes) -> tuple[RawHead, bytes]:
    """The body of a record of raw frames: what it says of them, and what `pack_frames` made, compressed where that is
    shorter.
    """
    return RawHead(*_RAW.unpack_from(body)), body[_RAW.size :]


def decompress(data: bytes, head: RawHead) -> bytes:
    """What `pack_frames` made. Raises OSError where it isn't that."""
    return _RAW_CODEC.decompress(data, head.size, asbytes=True) if len(data) < head.size else data


def unpack_frames(data: bytes, head: RawHead) -> tuple[pa.Array, pa.Array]:
    """When each of these frames was received, and its bytes. Raises ArrowException, OSError where they aren't in it."""
    import pyarrow.compute as pc  # a reader of coverage does without it

    packed, count = pa.py_buffer(decompress(data, head)), head.frames
    lengths_at, bytes_at = 8 * count, 12 * count
    if not 0 <= bytes_at <= packed.size:
        raise pa.ArrowInvalid("not so many frames")
    received_at = pa.Array.from_buffers(FRAMES.field("received_at").type, count, [None, packed])
    lengths = pa.Array.from_buffers(pa.int32(), count, [None, packed[lengths_at:]])
    ends = pa.concat_arrays([pa.array([0], pa.int32()), pc.cumulative_sum_checked(lengths)])
    payload = pa.Array.from_buffers(pa.binary(), count, [None, ends.buffers()[1], packed[bytes_at:]])
    payload.validate(full=True)
    return received_at, payload


def expand_frames(run: int, block: int, head: RawHead, data: bytes) -> pa.RecordBatch:
    """The frames of this run with the columns FRAMES; `block` is the number of the first one of their block."""
    received_at, payload = unpack_frames(data, head)
    numbers = (run, head.connection, block, head.first_sequence, head.trades)
    columns = [*(pa.repeat(pa.scalar(one, pa.int64()), head.frames) for one in numbers), received_at, payload]
    columns.insert(FRAMES.get_field_index("frame"), pa.arange(head.first_frame, head.first_frame + head.frames))
    return pa.RecordBatch.from_arrays(columns, schema=FRAMES)


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
