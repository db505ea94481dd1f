"""What frames of Finnhub say and which trades are sane, found slowly and obviously, one value at a time.

The code under test is held to this; the two share nothing. Numbers stay text until a column wants
them.
"""

import json
import math
import re
import unicodedata
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from ingestor.feeds import Decoded, Notice, Reject

Trade = tuple[int, int, str, str, str | None, str | None]
"""Index of the frame, time in ms, symbol, price, volume, conditions; doubles by `repr`: -0.0 is not 0.0."""


@dataclass
class Said:
    """What a block of frames says."""

    trades: list[Trade] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)


def said(decoded: Decoded) -> Said:
    """The same from what a feed decoded, to compare."""
    trades = decoded.trades
    rows = zip(
        decoded.frame_of.to_pylist(),
        trades["timestamp"].cast(pa.int64()).to_pylist(),
        trades["symbol"].to_pylist(),
        [repr(price) for price in trades["price"].to_pylist()],
        [None if volume is None else repr(volume) for volume in trades["volume"].to_pylist()],
        trades["conditions"].to_pylist(),
        strict=True,
    )
    return Said(list(rows), decoded.rejects, decoded.notices)


class Refused(Exception):
    """Its argument is the reason."""


class Number(str):
    """A JSON number as written."""

    __slots__ = ()


class Pairs(list[tuple[str, Any]]):
    """A JSON object as written: a key may stand twice."""

    def get(self, key: str) -> Any:
        """The value of this key; None where there is none."""
        return next((value for name, value in self if name == key), None)

    def repeats(self, *keys: str) -> bool:
        """Whether one of these keys stands twice."""
        return any([name for name, _ in self].count(key) > 1 for key in keys)


def read(payloads: list[bytes]) -> Said:
    """What these frames say."""
    result = Said()
    for frame, payload in enumerate(payloads):
        try:
            read_frame(result, frame, document_of(payload))
        except Refused as refused:
            result.rejects.append(Reject(frame, None, str(refused)))
    return result


def document_of(payload: bytes) -> Pairs:
    try:
        text = str(payload, "utf-8", "strict")
    except UnicodeError:
        raise Refused("not_utf8") from None
    try:
        document = json.loads(
            text, object_pairs_hook=Pairs, parse_int=Number, parse_float=Number, parse_constant=no_constant
        )
    except json.JSONDecodeError:
        raise Refused("not_json") from None
    except RecursionError:
        raise Refused("too_deep") from None
    if not isinstance(document, Pairs):
        raise Refused("not_an_object")
    return document


def no_constant(name: str) -> None:
    raise json.JSONDecodeError(name, name, 0)


def read_frame(result: Said, frame: int, document: Pairs) -> None:
    if document.repeats("type", "data"):
        raise Refused("repeated_key")
    kind = document.get("type")
    if not is_string(kind):
        raise Refused("no_type")
    if kind != "trade":
        if kind == "error" and document.repeats("msg"):
            raise Refused("repeated_key")
        result.notices.append(notice_of(frame, kind, document.get("msg")))
        return
    items = document.get("data")
    if not isinstance(items, list) or isinstance(items, Pairs):
        raise Refused("no_data")
    for index, item in enumerate(items):
        try:
            result.trades.append((frame, *trade_of(item)))
        except Refused as refused:
            result.rejects.append(Reject(frame, index, str(refused)))


def notice_of(frame: int, kind: str, message: Any) -> Notice:
    if kind == "ping" or kind == "news":  # noqa: PLR1714 - one line of the protocol a case
        return Notice(frame, kind, "")
    if kind != "error":
        return Notice(frame, "unknown", kind[:200])
    text = "" if type(message) is not str else re.sub("[\ud800-\udfff]", "?", message)[:200]
    if text.startswith("Subscribing to too many symbols"):
        return Notice(frame, "error", text, None, refuses=True)
    named = re.fullmatch(r"Invalid symbol(| .*)", text, re.DOTALL)
    if named:
        return Notice(frame, "error", text, named[1].strip() or None, refuses=True)
    return Notice(frame, "error", text)


def trade_of(item: Any) -> tuple[int, str, str, str | None, str | None]:
    if not isinstance(item, Pairs):
        raise Refused("not_an_object")
    if item.repeats("c", "p", "s", "t", "v"):
        raise Refused("repeated_key")
    time = time_of(item.get("t"))
    symbol = item.get("s")
    if not is_string(symbol):
        raise Refused("bad_symbol")
    price = double_of(item.get("p"))
    if price is None:
        raise Refused("bad_price")
    volume = double_of(item.get("v"))
    if volume is None and item.get("v") is not None:
        raise Refused("bad_volume")
    return time, symbol, repr(price), None if volume is None else repr(volume), conditions_of(item.get("c"))


def time_of(value: Any) -> int:
    if not isinstance(value, Number):
        raise Refused("bad_time")
    if re.fullmatch("-?[0-9]{1,19}", value):
        time = int(value)
    else:
        double = float(value)
        if math.isinf(double) or double != math.floor(double):
            raise Refused("bad_time")
        time = int(double)
    if not -(2**63) <= time <= 2**63 - 1:
        raise Refused("bad_time")
    return time


def double_of(value: Any) -> float | None:
    if not isinstance(value, Number):
        return None
    double = float(value)
    return None if math.isinf(double) else double


def conditions_of(codes: Any) -> str | None:
    if codes is None:
        return None
    if not isinstance(codes, list) or isinstance(codes, Pairs):
        raise Refused("bad_conditions")
    for code in codes:
        if not is_string(code) or not code or "," in code:
            raise Refused("bad_conditions")
    return ",".join(codes)


def is_string(value: Any) -> bool:
    """Whether it is a JSON string without half a character."""
    return type(value) is str and not re.search("[\ud800-\udfff]", value)


def insane(trades: pa.RecordBatch, now_us: int) -> list[tuple[int, str]]:
    """Row and reason of each trade that `validate` is to reject."""
    rows = zip(
        trades["timestamp"].cast(pa.int64()).to_pylist(),
        trades["symbol"].to_pylist(),
        trades["price"].to_pylist(),
        trades["volume"].to_pylist(),
        strict=True,
    )
    reasons = [(row, reason_against(*values, now_us)) for row, values in enumerate(rows)]
    return [(row, reason) for row, reason in reasons if reason is not None]


FILLERS = {
    *map(chr, [0x34F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0, 0x1D159]),
    *map(chr, range(0x180B, 0x1810)),
    *map(chr, range(0xFE00, 0xFE10)),
    *map(chr, range(0xE0100, 0xE01F0)),
}
"""Invisible, and of other categories."""


def reason_against(
    time_ms: int | None, symbol: str | None, price: float | None, volume: float | None, now_us: int
) -> str | None:
    if time_ms is None or time_ms < 631152000000 or time_ms * 1000 > now_us + 24 * 60 * 60 * 1_000_000:
        return "bad_time"
    if symbol is None or symbol == "" or len(symbol) > 64:
        return "bad_symbol"
    for character in symbol:
        hidden = unicodedata.category(character)[0] in "CZ" and character != " "
        if hidden or character in FILLERS:
            return "bad_symbol"
    if price is None or math.isnan(price) or math.isinf(price) or price <= 0:
        return "bad_price"
    if volume is not None and (math.isnan(volume) or math.isinf(volume) or volume < 0):
        return "bad_volume"
    return None
