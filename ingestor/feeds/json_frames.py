"""Reads frames of JSON: strictly, one frame and one value at a time, or a block of frames as one.

Strictly means: no constants (`NaN`), no half characters, no key of ours twice. A refusal has a reason, which labels a
metric.

A block is read by pyarrow, into columns, without a Python object per trade. That reader is looser than JSON in ways
that matter to a record, so it is fenced (`_fenced`), and what a feed makes of its columns is taken only where strict
reading would say the same. Otherwise the block is cut into parts, and the smallest of them are read frame by frame.
The tests of each feed hold both ways to one independent reference.
"""

import json
import math
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Set as AbstractSet
from functools import cached_property
from typing import Any, Literal, Protocol, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import json as pajson

from ingestor.config.feeds import Compression
from ingestor.feeds import Decoded, DecodedColumns, FewRows, Frames, Notice, Reject

DECIMAL = re.compile(r"[0-9]+(\.[0-9]+)?", re.ASCII)
"""A number in a string, as venues write prices: no sign, no exponent."""
ANY_DECIMAL = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,4})?", re.ASCII)
"""A number in a string, in any form that people give one: `1.5E-7`, `+0.44`, `.48`."""
_NOTICE_CHARACTERS = 200

T = TypeVar("T")


class RefusedError(Exception):
    """The frame, or the trade, is to be rejected; the argument is the reason."""


class JsonObject(dict[str, Any]):
    """A JSON object that knows which keys it was given more than once; the last of their values counts."""

    repeated: frozenset[str] = frozenset()


def _make_object(pairs: list[tuple[str, Any]]) -> JsonObject:
    made = JsonObject(pairs)
    if len(made) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        made.repeated = frozenset(key for key, count in counts.items() if count > 1)
    return made


def _no_constant(text: str) -> float:
    raise ValueError(text)


_JSON = json.JSONDecoder(
    object_pairs_hook=_make_object,
    # An int where int64 might hold it (and -0 is none), otherwise the nearest double, as pyarrow reads it.
    parse_int=lambda text: int(text) if len(text) <= 20 and text != "-0" else float(text),
    parse_constant=_no_constant,
)


def read_json(payload: bytes) -> Any:
    """The document in a frame. Raises RefusedError: `not_utf8`, `not_json`, `too_deep`."""
    try:
        return _JSON.decode(payload.decode())
    except UnicodeDecodeError:
        raise RefusedError("not_utf8") from None
    except ValueError:
        raise RefusedError("not_json") from None
    except RecursionError:
        raise RefusedError("too_deep") from None


def deflate(text: bytes, compression: Compression) -> bytes:
    """As a venue compresses it: with gzip, or without any header."""
    deflater = zlib.compressobj(wbits=zlib.MAX_WBITS | 16 if compression == "gzip" else -zlib.MAX_WBITS)
    return deflater.compress(text) + deflater.flush()


INFLATED_MAX = 16 << 20
"""No message is larger, uncompressed: a frame of some KB may otherwise become gigabytes."""
_GZIP_MAGIC = b"\x1f\x8b"


def inflate(payload: bytes, compression: Compression) -> bytes:
    """The text of a frame that a venue has compressed; a frame that isn't compressed, as it came. Raises RefusedError:
    `bad_compression`, `too_large`.
    """
    if compression == "gzip":
        return _inflated(payload, zlib.MAX_WBITS | 16) if payload.startswith(_GZIP_MAGIC) else payload
    try:  # some venues leave zlib's header out, and nothing else tells such a frame from others
        has_header = payload[:1] == b"\x78" and int.from_bytes(payload[:2]) % 31 == 0
        return _inflated(payload, zlib.MAX_WBITS if has_header else -zlib.MAX_WBITS)
    except RefusedError as refused:
        if str(refused) == "bad_compression" and _is_text(payload):
            return payload
        raise


def _is_text(payload: bytes) -> bool:
    try:
        payload.decode()
    except UnicodeDecodeError:
        return False
    return True


def _inflated(payload: bytes, window: int) -> bytes:
    inflater = zlib.decompressobj(window)
    try:
        text = inflater.decompress(payload, INFLATED_MAX)
    except zlib.error:
        raise RefusedError("bad_compression") from None
    if inflater.unconsumed_tail or (not inflater.eof and len(text) == INFLATED_MAX):
        raise RefusedError("too_large")
    if not inflater.eof or inflater.unused_data:
        raise RefusedError("bad_compression")
    return text


def take_object(value: Any, keys: AbstractSet[str]) -> JsonObject:
    """An object in which none of these keys stands twice. Raises RefusedError: `not_an_object`, `repeated_key`."""
    if not isinstance(value, JsonObject):
        raise RefusedError("not_an_object")
    if value.repeated & keys:
        raise RefusedError("repeated_key")
    return value


def take_number(value: Any, reason: str) -> float:
    """The double nearest to a JSON number; infinity, by too large a number, is none. Raises RefusedError."""
    if type(value) in (int, float) and math.isfinite(number := float(value)):
        return number
    raise RefusedError(reason)


def take_integer(value: Any, reason: str) -> int:
    """A whole number that int64 holds; it may be written `1.0` or `1e12`. Raises RefusedError."""
    number = take_number(value, reason)
    if number.is_integer() and -(2**63) <= (whole := int(value)) < 2**63:
        return whole
    raise RefusedError(reason)


def take_decimal(value: Any, reason: str, form: re.Pattern[str] = DECIMAL) -> float:
    """The double nearest to a decimal number in a string: `"0.00100000"`. Raises RefusedError."""
    if isinstance(value, str) and form.fullmatch(value) and math.isfinite(number := float(value)):
        return number
    raise RefusedError(reason)


def take_text(value: Any, reason: str) -> str:
    r"""A string that UTF-8 can hold: an escape such as `\ud800` may stand for half a character. Raises RefusedError."""
    if not isinstance(value, str) or not _is_whole(value):
        raise RefusedError(reason)
    return value


def _is_whole(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def notice_text(value: Any) -> str:
    """What a Notice repeats of a venue's words; empty where they are none."""
    return value.encode(errors="replace").decode()[:_NOTICE_CHARACTERS] if isinstance(value, str) else ""


class Reading:
    """What the frames read so far say: a Decoded whose columns are made when they are asked for."""

    def __init__(self, schema: pa.Schema) -> None:
        """`schema` is the feed's."""
        self._schema = schema
        self.few = FewRows([], [])
        self.rejects: list[Reject] = []
        self.notices: list[Notice] = []

    def add_trades(self, frame: int, items: Iterable[T], read: Callable[[T], tuple[Any, ...]]) -> None:
        """`read` makes a row of each item; one that it refuses (RefusedError) is rejected, and the others are not."""
        for index, item in enumerate(items):
            try:
                self.few.values.append(read(item))
                self.few.frame_of.append(frame)
            except RefusedError as refused:
                self.rejects.append(Reject(frame, index, str(refused)))

    def reject(self, frame: int, refused: RefusedError) -> None:
        """The whole frame."""
        self.rejects.append(Reject(frame, None, str(refused)))

    @cached_property
    def trades(self) -> pa.RecordBatch:
        schema, rows = self._schema, self.few.values
        columns = zip(*rows, strict=True) if rows else [()] * len(schema)
        arrays = [pa.array(column, type_) for column, type_ in zip(columns, schema.types, strict=True)]
        return pa.record_batch(arrays, schema=schema)

    @cached_property
    def frame_of(self) -> pa.Array:
        return pa.array(self.few.frame_of, pa.int64())


# A block of frames as one

_BLOCK_FRAMES = 16_384
"""pyarrow's reader takes at most 100,000 rows per block; past 8,000 a larger block is no faster."""
_BLOCK_BYTES = 1 << 28
_STRICT_FRAMES = 64
"""Below this many frames the fixed cost of pyarrow's reader, some 100 µs, exceeds that of strict reading."""
_PARTS = 8
_PART_FRAMES = 32
"""A block that can't be read as one is cut into so many parts of at least so many frames. Cut in halves, a bad
frame would have its neighbours read twice as often."""
_LONG_BYTES = 1000
_DEEP_BRACKETS = 500
"""`json` gives up where nesting meets the interpreter's recursion limit (1000, less what is on the stack): in no
frame shorter than this, since every bracket is closed again, and in none with fewer opening brackets."""


class Language(Protocol):
    """The two ways in which a feed reads frames. `first` is the number of the first of them in the whole block."""

    schema: pa.Schema

    def read_strictly(self, frames: Frames, first: int) -> Decoded:
        """Frame by frame. Never raises."""
        ...

    def read_block(self, frames: Frames, first: int) -> Decoded | None:
        """As one; None where that might say something else than `read_strictly`."""
        ...


def decode_blocks(language: Language, frames: Frames) -> Decoded:
    """What the frames say. Never raises."""
    if len(frames) < _STRICT_FRAMES:
        return language.read_strictly(frames, 0)
    starts = range(0, max(1, len(frames)), _BLOCK_FRAMES)
    blocks = (_part(frames, start, _BLOCK_FRAMES) for start in starts)
    parts = [part for start, block in zip(starts, blocks, strict=True) for part in _decode(language, block, start)]
    return parts[0] if len(parts) == 1 else _joined(parts, language.schema)


def _decode(language: Language, frames: Frames, first: int) -> Iterator[Decoded]:
    """What these frames say, in parts."""
    count = len(frames)
    if count < _STRICT_FRAMES:
        yield language.read_strictly(frames, first)
    elif decoded := language.read_block(frames, first):
        yield decoded
    else:
        step = -(-count // min(_PARTS, count // _PART_FRAMES))
        for start in range(0, count, step):
            yield from _decode(language, _part(frames, start, step), first + start)


def _part(frames: Frames, start: int, count: int) -> Frames:
    if start == 0 and len(frames) <= count:
        return frames
    return Frames(frames.payloads[start : start + count], frames.received_us[start : start + count])


def _joined(parts: list[Decoded], schema: pa.Schema) -> Decoded:
    columns = zip(*(part.trades.columns for part in parts), strict=True)
    return DecodedColumns(
        trades=pa.record_batch([pa.concat_arrays(column) for column in columns], schema=schema),
        frame_of=pa.concat_arrays([part.frame_of for part in parts]),
        rejects=[reject for part in parts for reject in part.rejects],
        notices=[notice for part in parts for notice in part.notices],
    )


def read_table(payloads: list[bytes], fields: pa.Schema) -> pa.Table | None:
    """A row per frame with these fields, null where a frame has none; None where pyarrow can't be relied on to read
    them as strict JSON. Doubles among them may be NaN or infinite.
    """
    if not _fenced(payloads, b"{", b"}"):
        return None
    lines = b"\n".join(payloads)
    table = _read_lines(lines, fields, "error")
    # Where there are fields that the reader doesn't know it may skip them, but in those it lets NaN, Inf and nesting of
    # any depth pass. To look for these first would take longer than to find that most trades have no such field.
    if (
        table is None
        and b"Inf" not in lines
        and b"NaN" not in lines
        and not any(
            payload.count(b"[") + payload.count(b"{") >= _DEEP_BRACKETS
            for payload in payloads
            if len(payload) >= _LONG_BYTES
        )
    ):
        table = _read_lines(lines, fields, "ignore")
    return table if table is not None and table.num_rows == len(payloads) else None


def read_lists(payloads: list[bytes], fields: pa.Schema, key: str) -> pa.Table | None:
    """The same of frames that are lists, each under this one key.

    A frame might end its list and go on with keys of its own: so nothing may be in it that `fields` doesn't name.
    """
    if not _fenced(payloads, b"[", b"]"):
        return None
    before = f'{{"{key}":'.encode()
    lines = before + (b"}\n" + before).join(payloads) + b"}"
    if b"Inf" in lines or b"NaN" in lines:
        return None
    table = _read_lines(lines, fields, "error")
    return table if table is not None and table.num_rows == len(payloads) else None


def _read_lines(lines: bytes, fields: pa.Schema, unexpected: Literal["error", "ignore"]) -> pa.Table | None:
    """A row per document, or None where pyarrow refuses one."""
    source = pa.BufferReader(lines)
    read = pajson.ReadOptions(use_threads=False, block_size=len(lines) + 1)
    parse = pajson.ParseOptions(explicit_schema=fields, unexpected_field_behavior=unexpected)
    try:
        return pajson.read_json(source, read, parse)
    except pa.ArrowException:
        return None


def _fenced(payloads: list[bytes], first: bytes, last: bytes) -> bool:
    """Whether pyarrow, if it reads these frames and as this many rows, reads each by itself and as JSON.

    The frames will be joined by newlines, and the reader is told that values hold none. Inside a JSON document
    no newline stands between `}` and `{`, so where there are as many rows as frames, no row is made of two broken
    frames. And the first document is no `null`, on which the reader ends the process (apache/arrow#47409). The
    reader lets invalid UTF-8 pass; NaN and Inf, too, which a feed has to look for in its doubles.
    """
    text = b"".join(payloads)
    if len(text) >= _BLOCK_BYTES or b"\n" in text or b"\r" in text:
        return False
    if {payload[:1] for payload in payloads} != {first} or {payload[-1:] for payload in payloads} != {last}:
        return False
    return text.isascii() or _is_text(text)


def no_false(mask: Any) -> bool:
    """Whether no value is false; nulls don't count."""
    return bool(pc.all(mask, min_count=0).as_py())
