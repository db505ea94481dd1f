"""Reads JSON strictly, one frame and one value at a time: what a venue may say, and nothing that looks like it.

No constants (`NaN`), no half characters, no key of ours twice. Whatever is refused is refused for a reason that labels
a metric.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pyarrow as pa

from ingestor.feeds import Decoded, Notice, Reject

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

    __slots__ = ("repeated",)

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.repeated: frozenset[str] = frozenset()
        if len(self) < len(pairs):
            counts = Counter(key for key, _ in pairs)
            self.repeated = frozenset(key for key, count in counts.items() if count > 1)


def _integer(text: str) -> float:
    """An int where int64 might hold it (and -0 is none), else the nearest double, as pyarrow reads it."""
    return int(text) if len(text) <= 20 and text != "-0" else float(text)


def _no_constant(text: str) -> float:
    raise ValueError(text)


_JSON = json.JSONDecoder(object_pairs_hook=JsonObject, parse_int=_integer, parse_constant=_no_constant)


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


@dataclass(slots=True)
class Reading:
    """What the frames read so far say."""

    rows: list[tuple[Any, ...]] = field(default_factory=list)
    """Values in the order of the feed's columns; times in the unit of theirs."""
    frame_of: list[int] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)

    def add_trades(self, frame: int, items: Iterable[T], read: Callable[[T], tuple[Any, ...]]) -> None:
        """`read` makes a row of each item; one that it refuses (RefusedError) is rejected, and the others are not."""
        for index, item in enumerate(items):
            try:
                self.rows.append(read(item))
                self.frame_of.append(frame)
            except RefusedError as refused:
                self.rejects.append(Reject(frame, index, str(refused)))

    def reject(self, frame: int, refused: RefusedError) -> None:
        """The whole frame."""
        self.rejects.append(Reject(frame, None, str(refused)))

    def decoded(self, schema: pa.Schema) -> Decoded:
        """All of it, the rows as columns of this schema."""
        columns = zip(*self.rows, strict=True) if self.rows else [()] * len(schema)
        arrays = [pa.array(column, type_) for column, type_ in zip(columns, schema.types, strict=True)]
        return Decoded(
            trades=pa.record_batch(arrays, schema=schema),
            frame_of=pa.array(self.frame_of, pa.int64()),
            rejects=self.rejects,
            notices=self.notices,
        )
