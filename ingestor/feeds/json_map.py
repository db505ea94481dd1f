"""Any venue that sends trades as JSON: the settings say where in a message their values stand.

A message is one trade, a list of trades, or an object that holds either (`items`). A trade is an object, or a map such
as `{"AAPL": 145.67, "GOOGL": 2725.67}`, which is several.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Any, Literal

import pyarrow as pa

from ingestor.config.feeds import JsonSettings
from ingestor.feeds import Decoded, Frames, Notice, Terms
from ingestor.feeds.reading import Reading
from ingestor.feeds.strict_json import (
    JsonObject,
    RefusedError,
    notice_text,
    read_json,
    take_decimal,
    take_number,
    take_text,
)
from ingestor.schema import VENUE_TRADES

Path = tuple[str, ...]
"""The keys to a value, from the outside to the inside."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)
_PER_MS = {"s": Decimal("0.001"), "ms": Decimal(1), "us": Decimal(1000), "ns": Decimal(1_000_000)}
TimeUnit = Literal["s", "ms", "us", "ns", "iso"]
_WORDS = frozenset(
    """
    amount channel code count data error event high id last low message msg offset open op p price q qty quantity s seq
    sequence sequence_number server_time size status symbol t time timestamp ts type v version volume
    """.split()  # noqa: SIM905  as a list the formatter makes it a page
)
"""No key of a map is one of these: `{"seq": 17}` says nothing of a symbol."""


class JsonMap:
    """The feed of a venue that these settings describe.

    Why it rejects a frame: `not_utf8`, `not_json`, `too_deep`, `not_an_object` (nor a list), `repeated_key`, `no_data`
    (nothing at `items`). Why it rejects a trade, the first that applies: `not_an_object`, `repeated_key`, `bad_time`,
    `bad_symbol`, `bad_price`, `bad_volume`. A missing time is the time of receipt, a missing volume is unknown.
    """

    name = "json"
    schema = VENUE_TRADES

    def __init__(self, settings: JsonSettings) -> None:
        self.terms = Terms(never_closes=settings.never_closes)
        self._settings = settings
        self._layout = _Layout.of(settings)

    def __repr__(self) -> str:
        return f"JsonMap({self._settings.url!r})"

    def url(self) -> str:
        """Where to connect; there is no key."""
        return self._settings.url

    def subscribe(self, symbols: Sequence[str]) -> list[str]:
        """One message a symbol, or one in all where the template names none; none without a template."""
        return _filled(self._settings.subscribe, symbols)

    def unsubscribe(self, symbols: Sequence[str]) -> list[str]:
        """One message a symbol; none without a template that names it."""
        template = self._settings.unsubscribe
        return _filled(template, symbols) if template and "{symbol}" in template else []

    def decode(self, frames: Frames) -> Decoded:
        """What the frames say. Never raises on bad input: what can't be read is a Reject.

        Frame by frame: shapes are anybody's here, and 100,000 frames a second are enough for them.
        """
        reader, reading = _Reader(self._layout, self._settings.time_unit), Reading()
        for frame, (payload, received_us) in enumerate(zip(frames.payloads, frames.received_us, strict=True)):
            reader.read(frame, payload, received_us // 1000, reading)
        return reading.decoded(VENUE_TRADES)

    def encode(self, trades: pa.RecordBatch) -> list[bytes]:
        """One frame a trade; what this venue has no field for is not said."""
        columns = (trades["timestamp"].cast(pa.int64()), *trades.columns[1:4])
        rows = zip(*(column.to_pylist() for column in columns), strict=True)
        return [self._written(*row).encode() for row in rows]

    def _written(self, time_ms: int, symbol: str, price: float, volume: float | None) -> str:
        layout, trade = self._layout, JsonObject([])
        _put(trade, layout.symbol, symbol)
        _put(trade, layout.price, price)
        if layout.volume and volume is not None:
            _put(trade, layout.volume, volume)
        if layout.timestamp:
            _put(trade, layout.timestamp, _written_time(time_ms, self._settings.time_unit))
        message = trade
        if layout.items:
            message = JsonObject([])
            _put(message, layout.items, [trade])
        for path, text in layout.match.items():
            _put(message, path, text)
        return json.dumps(message, separators=(",", ":"), ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where things stand; an empty path is where this venue has nothing."""

    symbol: Path
    price: Path
    volume: Path
    timestamp: Path
    items: Path
    match: Mapping[Path, str]
    reserved: frozenset[str]
    """No key of a map."""

    @classmethod
    def of(cls, settings: JsonSettings) -> "_Layout":
        fields = settings.fields
        symbol, price, volume, timestamp, items = map(
            _path, (fields.symbol, fields.price, fields.volume, fields.timestamp, settings.items)
        )
        match = {_path(key): text for key, text in settings.match.items()}
        reserved = _WORDS.union(symbol, price, volume, timestamp, items, *match)
        return cls(symbol, price, volume, timestamp, items, match, reserved)


def _path(text: str | None) -> Path:
    return tuple(text.split(".")) if text else ()


def _filled(template: str | None, symbols: Sequence[str]) -> list[str]:
    """The template's text with each symbol, escaped as in a JSON string; the same text only once."""
    if template is None:
        return []
    return list(dict.fromkeys(template.replace("{symbol}", json.dumps(symbol)[1:-1]) for symbol in symbols))


def _put(message: JsonObject, path: Path, value: object) -> None:
    """Set the value at the end of the path."""
    *above, last = path
    for key in above:
        message = message.setdefault(key, JsonObject([]))
    message[last] = value


def _written_time(time_ms: int, unit: TimeUnit) -> int | str | float:
    if unit == "iso":
        return (_EPOCH + time_ms * _MS).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return time_ms / 1000 if unit == "s" else int(time_ms * _PER_MS[unit])


# A frame at a time

Row = tuple[int, str, float, float | None, None]
"""Of VENUE_TRADES; the time in milliseconds."""


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads messages of this layout."""

    layout: _Layout
    time_unit: TimeUnit

    def read(self, frame: int, payload: bytes, received_ms: int, reading: Reading) -> None:
        """Add what this frame says."""
        try:
            document = read_json(payload)
            if not isinstance(document, list | JsonObject):
                raise RefusedError("not_an_object")
            if self._is_notice(document):
                reading.notices.append(_notice(frame, document, self.layout.match))
            else:
                reading.add_trades(frame, self._items(document), partial(self._row, received_ms=received_ms))
        except RefusedError as refused:
            reading.reject(frame, refused)

    def _is_notice(self, document: Any) -> bool:
        """Whether it says something else than a message with trades."""
        return any(_as_text(_find(document, path)) != text for path, text in self.layout.match.items())

    def _items(self, document: Any) -> list[Any]:
        """The trades in a message, each still as it came; those of a map as if they had come one by one."""
        found = _find(document, self.layout.items)
        if not isinstance(found, list | JsonObject):
            raise RefusedError("no_data")
        items = found if isinstance(found, list) else [found]
        return [trade for item in items for trade in (self._unfolded(item) if self._is_map(item) else [item])]

    def _is_map(self, item: Any) -> bool:
        return (
            isinstance(item, JsonObject)
            and bool(item)
            and not item.repeated
            and item.keys().isdisjoint(self.layout.reserved)
            and all(type(value) in (int, float) for value in item.values())
        )

    def _unfolded(self, prices: JsonObject) -> Iterator[JsonObject]:
        for symbol, price in prices.items():
            trade = JsonObject([])
            _put(trade, self.layout.symbol, symbol)
            _put(trade, self.layout.price, price)
            yield trade

    def _row(self, item: Any, received_ms: int) -> Row:
        if not isinstance(item, JsonObject):
            raise RefusedError("not_an_object")
        layout = self.layout
        paths = (layout.timestamp, layout.symbol, layout.price, layout.volume)
        time, symbol, price, volume = (_find(item, path) if path else None for path in paths)
        return (
            received_ms if time is None else _milliseconds(time, self.time_unit),
            take_text(symbol, "bad_symbol"),
            _amount(price, "bad_price"),
            None if volume is None else _amount(volume, "bad_volume"),
            None,
        )


def _find(value: Any, path: Path) -> Any:
    """What stands at the end of the path, None where nothing does. Raises RefusedError: `repeated_key`."""
    for key in path:
        if not isinstance(value, JsonObject):
            return None
        if key in value.repeated:
            raise RefusedError("repeated_key")
        value = value.get(key)
    return value


def _as_text(value: Any) -> str | None:
    """A value as the settings would write it."""
    if isinstance(value, str):
        return value
    return json.dumps(value) if isinstance(value, bool | int) else None


def _notice(frame: int, document: Any, match: Mapping[Path, str]) -> Notice:
    """A message that is not about trades, named by the first of the values by which those are told."""
    word = notice_text(_as_text(_find(document, next(iter(match)))))
    if word == "ping":
        return Notice(frame, word, "")
    if word == "error":
        said = (_as_text(_find(document, (key,))) for key in ("msg", "message", "reason", "error"))
        return Notice(frame, word, notice_text(next(filter(None, said), None)))
    return Notice(frame, "unknown", word)


def _amount(value: Any, reason: str) -> float:
    """A number, or the text of one."""
    return take_decimal(value, reason) if isinstance(value, str) else take_number(value, reason)


def _milliseconds(value: Any, unit: TimeUnit) -> int:
    """Since 1970; what is finer is cut off."""
    if unit == "iso":
        return _read_iso(take_text(value, "bad_time"))
    number = value if type(value) is int else _amount(value, "bad_time")
    exact = Decimal(value) if isinstance(value, str) else Decimal(repr(number))
    whole = int(exact / _PER_MS[unit])
    if not -(2**63) <= whole < 2**63:
        raise RefusedError("bad_time")
    return whole


def _read_iso(text: str) -> int:
    """ISO 8601; UTC where it names no zone."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise RefusedError("bad_time") from None
    return ((time if time.tzinfo else time.replace(tzinfo=UTC)) - _EPOCH) // _MS
