"""What frames of Finnhub, and of a venue that settings describe, say and which trades are sane, found slowly and
obviously, one value at a time.

The code under test is held to this; the two share nothing. Numbers stay text until a column wants
them.
"""

import json
import math
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa

from ingestor.config.feeds import JsonColumn, JsonSettings
from ingestor.feeds import Decoded, Notice, Reject
from ingestor.schema import VENUE_TRADES

Trade = tuple[int, int, str, str, str | None, str | None]
"""Index of the frame, time in ms, symbol, price, volume, conditions; doubles by `repr`: -0.0 is not 0.0."""


@dataclass
class Said:
    """What a block of frames says."""

    trades: list[Trade] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)
    own: list[tuple[str, ...]] = field(default_factory=list)
    """What a `json` feed's own columns hold, by `repr`."""


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

    def read_alone(payload: bytes) -> Said:
        result = Said()
        try:
            read_frame(result, 0, document_of(payload))
        except Refused as refused:
            result.rejects.append(Reject(0, None, str(refused)))
        return result

    return read_each(payloads, read_alone)


def read_each(payloads: list[bytes], read_alone: Callable[[bytes], Said]) -> Said:
    """One after the other; equal frames say the same."""
    known = {payload: read_alone(payload) for payload in set(payloads)}
    result = Said()
    for frame, payload in enumerate(payloads):
        one = known[payload]
        result.trades += [(frame, *trade[1:]) for trade in one.trades]
        result.rejects += [replace(reject, frame=frame) for reject in one.rejects]
        result.notices += [replace(notice, frame=frame) for notice in one.notices]
        result.own += one.own
    return result


def document_of(payload: bytes) -> Pairs:
    document = json_of(payload)
    if not isinstance(document, Pairs):
        raise Refused("not_an_object")
    return document


def json_of(payload: bytes) -> Any:
    try:
        text = str(payload, "utf-8", "strict")
    except UnicodeError:
        raise Refused("not_utf8") from None
    try:
        return json.loads(
            text, object_pairs_hook=Pairs, parse_int=Number, parse_float=Number, parse_constant=no_constant
        )
    except json.JSONDecodeError:
        raise Refused("not_json") from None
    except RecursionError:
        raise Refused("too_deep") from None


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


# The json feed


def read_mapped(settings: JsonSettings, payloads: list[bytes], received_us: int) -> Said:
    """What these frames say to a feed with these settings."""
    venue = Mapped(settings)

    def read_alone(payload: bytes) -> Said:
        result = Said()
        try:
            venue.read_frame(result, payload, received_us)
        except Refused as refused:
            result.rejects.append(Reject(0, None, str(refused)))
        return result

    return read_each(payloads, read_alone)


def own_of(decoded: Decoded) -> list[tuple[str, ...]]:
    """The same of what a feed decoded."""
    columns = [column.to_pylist() for column in decoded.trades.columns[len(VENUE_TRADES) :]]
    return [tuple(repr(column[row]) for column in columns) for row in range(decoded.trades.num_rows)]


class Mapped:
    """A message is walked along `items`; on the way objects and items of lists are asked what `match` asks."""

    def __init__(self, settings: JsonSettings) -> None:
        fields = settings.fields
        self.settings = settings
        self.items = keys_of(settings.items)
        self.match = [(keys_of(path), text) for path, text in settings.match.items()]
        self.places = [fields.timestamp, fields.symbol, fields.price, fields.volume]
        inside = [keys_of(place) for place in self.places if place and not place.startswith("$.")]
        self.arrays = any(keys[0].isdecimal() for keys in inside)
        words = "amount channel code count data error event high id last low message msg offset open op p price q qty"
        words += " quantity s seq sequence sequence_number server_time size status symbol t time timestamp ts type v"
        said = [*self.items, *(key for keys, _ in self.match for key in keys)]
        said += [key for place in self.places if place for key in keys_of(place.removeprefix("$."))]
        said += [key for one in settings.columns.values() for key in keys_of(one.source.removeprefix("$."))]
        ignored = [*settings.ignore, settings.heartbeat.answer if settings.heartbeat else None]
        self.nothing = [one for one in ignored if isinstance(one, str)]
        self.ignored = [one for one in ignored if isinstance(one, dict)]
        self.no_symbols = {*words.split(), "version", "volume", *said}

    def read_frame(self, result: Said, payload: bytes, received_us: int) -> None:
        if payload.decode(errors="replace") in self.nothing:
            result.notices.append(Notice(0, "news", ""))
            return
        message = json_of(payload)
        if not isinstance(message, list):  # Pairs are one
            raise Refused("not_an_object")
        answer = None if self.match else self.answer(0, message)
        told = [] if answer else list(self.walk(message, self.items, self.match))
        trades = [one for kind, *one in told if kind == "trade"]
        others = [one for kind, *one in told if kind == "other"]
        answer = answer or (None if trades else self.answer(0, message))
        if answer is not None:
            result.notices.append(answer)
        elif others and not trades:
            result.notices.append(self.notice(0, *others[0]))
        elif ["astray"] in map(list, told) and not trades:
            raise Refused("no_data")
        for index, (item,) in enumerate(() if answer else trades):
            try:
                trade = self.trade(item, message, received_us // 1000)
                own = self.own_columns(item, message)
                result.trades.append((0, *trade, own.pop("conditions", None)))
                result.own.append(tuple(map(str, own.values())))
            except Refused as refused:
                result.rejects.append(Reject(0, index, str(refused)))

    def walk(self, value: Any, path: list[str], match: list[tuple[list[str], str]]) -> Iterator[tuple[Any, ...]]:
        if is_array(value) and not (path and path[0].isdecimal()):
            yield from self.walk_list(value, path, match)
            return
        later = [one for one in match if path and len(one[0]) > 1 and one[0][0] == path[0]]
        for keys, text in match:
            if (keys, text) not in later and word_of(at(value, keys)) != text:
                yield "other", value, word_of(at(value, keys))
                return
        if path:
            yield from self.walk(at(value, path[:1]), path[1:], [(keys[1:], text) for keys, text in later])
        elif not isinstance(value, Pairs):
            yield ("astray",)
        elif self.settings.prices_by_symbol and self.is_map(value):
            for symbol, price in value:
                names = [keys_of(self.places[1]), keys_of(self.places[2])]
                yield "trade", Pairs([(names[0][0], symbol), (names[1][0], price)])
        else:
            yield "trade", value

    def walk_list(self, value: Any, path: list[str], match: list[tuple[list[str], str]]) -> Iterator[tuple[Any, ...]]:
        of_arrays = all(is_array(item) for item in value)
        for keys, text in match:
            if keys[0].isdecimal() and not of_arrays and word_of(at(value, keys)) != text:
                yield "other", value, word_of(at(value, keys))
                return
        match = [one for one in match if of_arrays or not one[0][0].isdecimal()]
        if not path and self.arrays and not of_arrays:
            yield "trade", value
            return
        for item in value:
            if path and is_array(item):
                yield ("astray",)
            elif path or isinstance(item, Pairs):
                yield from self.walk(item, path, match)
            else:
                wrong = next((word_of(at(item, keys)) for keys, text in match if word_of(at(item, keys)) != text), "")
                differs = any(word_of(at(item, keys)) != text for keys, text in match)
                yield ("other", item, wrong) if differs else ("trade", item)

    def is_map(self, item: Pairs) -> bool:
        names = [name for name, _ in item]
        return bool(names) and not (
            item.repeats(*names)
            or self.no_symbols & set(names)
            or any(not isinstance(price, Number) for _, price in item)
        )

    def trade(self, item: Any, message: Any, received_ms: int) -> tuple[int, str, str, str | None]:
        if not (is_array(item) if self.arrays else isinstance(item, Pairs)):
            raise Refused("not_an_object")
        time, symbol, price, volume = [
            at(message if place.startswith("$.") else item, keys_of(place.removeprefix("$."))) if place else None
            for place in self.places
        ]
        time_ms = received_ms if time is None else self.time(time)
        if not is_string(symbol):
            raise Refused("bad_symbol")
        amount = None if volume is None else repr(decimal_of(volume, "bad_volume")) if price_ok(price) else None
        return time_ms, str(symbol), repr(decimal_of(price, "bad_price")), amount

    def own_columns(self, item: Any, message: Any) -> dict[str, str | None]:
        own: dict[str, str | None] = {"conditions": None} if "conditions" in self.settings.columns else {}
        columns = sorted(self.settings.columns.items(), key=lambda one: one[0] != "conditions")
        for name, column in columns:
            source = column.source
            value = at(message if source.startswith("$.") else item, keys_of(source.removeprefix("$.")))
            read = None if value is None else self.own(value, column, f"bad_{name}")
            own[name] = read if name == "conditions" else repr(read)
        return own

    def own(self, value: Any, column: JsonColumn, reason: str) -> Any:
        if column.type == "number":
            return decimal_of(value, reason)
        if column.type == "integer":
            number = whole_of(value)
            if number is None or not -(2**63) <= number < 2**63:
                raise Refused(reason)
            return number
        values = value if is_array(value) and column.type == "codes" else [value]
        texts = [word_of(one) for one in values]
        if not all(is_string(text) for text in texts):
            raise Refused(reason)
        if column.type == "codes" and any(text == "" or "," in str(text) for text in texts):
            raise Refused(reason)
        text = ",".join(map(str, texts))
        return column.values.get(text, text) if column.type == "text" else text

    def answer(self, frame: int, message: Any) -> Notice | None:
        for form in self.settings.refused:
            item = who_says(message, form.match)
            if item is None:
                continue
            words = [word_of(at(item, [key])) for key in ("msg", "message", "reason", "error")]
            text = word_of(at(item, keys_of(form.text))) if form.text else next((one for one in words if one), None)
            symbol = word_of(at(item, keys_of(form.symbol))) if form.symbol else None
            if form.symbol_in:
                found = re.search(form.symbol_in, (symbol if form.symbol else text) or "")
                symbol = found[1] if found else None
            return Notice(frame, "error", whole(text), whole(symbol) or None, refuses=True)
        login = self.settings.login
        for pattern in login.refused if login else []:
            item = who_says(message, pattern)
            if item is not None:
                words = [word_of(at(item, [key])) for key in ("msg", "message", "reason", "error")]
                return Notice(frame, "error", whole(next((one for one in words if one), None)))
        expected = [*login.accepted, login.after or {"": ""}] if login else []
        if any(who_says(message, one) is not None for one in [*self.settings.acknowledged, *expected]):
            return Notice(frame, "ack", "")
        if any(who_says(message, one) is not None for one in self.ignored):
            return Notice(frame, "news", "")
        return None

    def time(self, value: Any) -> int:
        unit = self.settings.time_unit
        if unit == "iso":
            return self.iso(value)
        decimal_of(value, "bad_time")
        exact = Fraction(value) if type(value) is str or len(value) <= 20 else Fraction(repr(float(value)))
        if isinstance(value, Number) and not re.fullmatch("-?[0-9]+", value):
            exact = Fraction(repr(float(value)))
        time = int(
            exact
            * {"s": Fraction(1000), "ms": Fraction(1), "us": Fraction(1, 1000), "ns": Fraction(1, 1_000_000)}[unit]
        )
        if not -(2**63) <= time < 2**63:
            raise Refused("bad_time")
        return time

    def iso(self, value: Any) -> int:
        if not is_string(value):
            raise Refused("bad_time")
        try:
            time = datetime.fromisoformat(value)
            if time.tzinfo is None:
                if self.settings.time_zone is None:
                    raise Refused("no_time_zone")
                time = time.replace(tzinfo=ZoneInfo(self.settings.time_zone))
            return (time - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
        except (ValueError, OverflowError):
            raise Refused("bad_time") from None

    def notice(self, frame: int, value: Any, word: str | None) -> Notice:
        kind = whole(word)
        if kind == "ping":
            return Notice(frame, "ping", "")
        if kind == "error":
            texts = [word_of(at(value, [key])) for key in ("msg", "message", "reason", "error")]
            return Notice(frame, "error", whole(next((text for text in texts if text), "")))
        return Notice(frame, "unknown", kind)


def whole_of(value: Any) -> int | None:
    """A whole number, or text of nothing but its digits."""
    if isinstance(value, Number):
        return int(value) if re.fullmatch("-?[0-9]{1,20}", value) and value != "-0" else whole_double(value)
    return int(value) if type(value) is str and re.fullmatch("-?[0-9]{1,19}", value) else None


def whole_double(text: str) -> int | None:
    double = float(text)
    return int(double) if math.isfinite(double) and double == math.floor(double) else None


def who_says(message: Any, pattern: dict[str, str]) -> Any:
    """The message, or the first item of a message that is a list, that says all of this."""
    for item in message if is_array(message) else [message]:
        if all(any_says(item, keys_of(path), text) for path, text in pattern.items()):
            return item
    return None


def any_says(value: Any, keys: list[str], text: str) -> bool:
    if is_array(value) and not (keys and keys[0].isdecimal()):
        return any(any_says(item, keys, text) for item in value)
    if keys:
        return any_says(at(value, keys[:1]), keys[1:], text)
    return value is not None and text in ("*", word_of(value))


def keys_of(path: str | None) -> list[str]:
    return [key.removesuffix("[]") for key in path.split(".")] if path else []


def is_array(value: Any) -> bool:
    return isinstance(value, list) and not isinstance(value, Pairs)


def at(value: Any, keys: list[str]) -> Any:
    """What stands there; None where nothing does."""
    for key in keys:
        if isinstance(value, Pairs):
            if value.repeats(key):
                raise Refused("repeated_key")
            value = value.get(key)
        elif is_array(value) and key.isdecimal() and int(key) < len(value):
            value = value[int(key)]
        else:
            return None
    return value


def word_of(value: Any) -> str | None:
    """A value as settings write it: text, a whole number, a switch."""
    if isinstance(value, Number):
        return str(value) if re.fullmatch("-?[0-9]+", value) and len(value) <= 20 and value != "-0" else None
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else None


def whole(text: str | None) -> str:
    return re.sub("[\ud800-\udfff]", "?", text or "")[:200]


def decimal_of(value: Any, reason: str) -> float:
    """A number, or text that is one: a sign, digits with a point anywhere, an exponent."""
    digits = r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,4})?"
    if not isinstance(value, Number) and not (type(value) is str and re.fullmatch(digits, value)):
        raise Refused(reason)
    double = float(value)
    if math.isinf(double):
        raise Refused(reason)
    return double


def price_ok(price: Any) -> bool:
    """A bad price is told first."""
    decimal_of(price, "bad_price")
    return True


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
    if symbol is None or symbol == "" or len(symbol) > 128:
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
