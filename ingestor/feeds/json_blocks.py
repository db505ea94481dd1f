"""A block of JSON frames read as one: pyarrow's reader turns it into columns, no Python object a trade.

That reader is looser than JSON in ways that matter to a record, so it is fenced (`_fenced`), and what a feed makes of
its columns is taken only where strict reading would say the same. Else the block is cut into parts, and the smallest
of them are read frame by frame. The tests of each feed hold both ways to one independent reference.
"""

from collections.abc import Iterator
from typing import Any, Literal, Protocol

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow.json import ParseOptions, ReadOptions, read_json

from ingestor.feeds import Decoded, Frames

_BLOCK_FRAMES = 16_384
"""pyarrow's reader takes at most 100,000 rows a block; past 8,000 a larger block is no faster."""
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
    return Decoded(
        trades=pa.record_batch([pa.concat_arrays(column) for column in columns], schema=schema),
        frame_of=pa.concat_arrays([part.frame_of for part in parts]),
        rejects=[reject for part in parts for reject in part.rejects],
        notices=[notice for part in parts for notice in part.notices],
    )


def read_table(payloads: list[bytes], fields: pa.Schema) -> pa.Table | None:
    """A row a frame with these fields, null where a frame has none; None where pyarrow can't be relied on to read
    them as strict JSON. Doubles among them may be NaN or infinite.
    """
    if not _fenced(payloads):
        return None
    lines = b"\n".join(payloads)
    table = _read_lines(lines, fields, "error")
    if table is None and _may_ignore(payloads, lines):
        table = _read_lines(lines, fields, "ignore")
    return table if table is not None and table.num_rows == len(payloads) else None


def _read_lines(lines: bytes, fields: pa.Schema, unexpected: Literal["error", "ignore"]) -> pa.Table | None:
    """A row a document, or None where pyarrow refuses one."""
    source = pa.BufferReader(lines)
    read = ReadOptions(use_threads=False, block_size=len(lines) + 1)
    parse = ParseOptions(explicit_schema=fields, unexpected_field_behavior=unexpected)
    try:
        return read_json(source, read, parse)
    except pa.ArrowException:
        return None


def _fenced(payloads: list[bytes]) -> bool:
    """Whether pyarrow, if it reads these frames and as this many rows, reads each by itself and as JSON.

    The frames will be joined by newlines, and the reader is told that values hold none. Inside a JSON document
    no newline stands between `}` and `{`, so where there are as many rows as frames, no row is made of two broken
    frames. And the first document is no `null`, on which the reader ends the process (apache/arrow#47409). The
    reader lets invalid UTF-8 pass; NaN and Inf, too, which a feed has to look for in its doubles.
    """
    text = b"".join(payloads)
    return (
        len(text) < _BLOCK_BYTES
        and b"\n" not in text
        and b"\r" not in text
        and {payload[:1] for payload in payloads} == {b"{"}
        and {payload[-1:] for payload in payloads} == {b"}"}
        and _is_utf8(text)
    )


def _may_ignore(payloads: list[bytes], lines: bytes) -> bool:
    """Whether the reader may skip fields that it doesn't know: in those it lets NaN, Inf and nesting of any depth pass.

    To look for these takes longer than to find that there is no such field, and most trades have none.
    """
    return (
        b"Inf" not in lines
        and b"NaN" not in lines
        and not any(map(_is_deep, [payload for payload in payloads if len(payload) >= _LONG_BYTES]))
    )


def _is_utf8(text: bytes) -> bool:
    if text.isascii():
        return True
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _is_deep(payload: bytes) -> bool:
    return payload.count(b"[") + payload.count(b"{") >= _DEEP_BRACKETS


def no_false(mask: Any) -> bool:
    """Whether no value is false; nulls don't count."""
    return bool(pc.all(mask, min_count=0).as_py())
