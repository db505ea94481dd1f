"""Any venue that sends trades as JSON: the settings say where in a message their values stand.

A message is one trade, a list of trades, or an object that holds either (`items`). A trade is an object, or an array.
Where the settings say so it may also be a map such as `{"AAPL": 145.67, "GOOGL": 2725.67}`, which is several.
"""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from decimal import ROUND_DOWN, Context, Decimal
from typing import Any, Literal, NamedTuple
from urllib.parse import quote
from zoneinfo import ZoneInfo

import pyarrow as pa

from ingestor.config.feeds import JsonLogin, JsonSettings, JsonSymbolList, find_list
from ingestor.config.types import KEY_PLACE
from ingestor.feeds import Decoded, Frames, Heartbeat, Login, Notice, Terms
from ingestor.feeds.json_frames import (
    ANY_DECIMAL,
    JsonObject,
    Reading,
    RefusedError,
    notice_text,
    read_json,
    take_decimal,
    take_integer,
    take_number,
    take_text,
)
from ingestor.schema import VENUE_TRADES

Path = tuple[str, ...]
"""The keys to a value, from the outside to the inside; in an array a key is a number."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)
_PER_MS = {"s": Decimal("0.001"), "ms": Decimal(1), "us": Decimal(1000), "ns": Decimal(1_000_000)}
_CUTTING = Context(prec=40, rounding=ROUND_DOWN)
"""What is finer than a millisecond is cut off, however finely it is written."""
_DIGITS = re.compile(r"-?[0-9]{1,19}", re.ASCII)
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
    `no_time_zone`, `bad_symbol`, `bad_price`, `bad_volume`, and `bad_` with the name of a column of its own. A missing
    time is the time of receipt; a missing volume, or value of a column, is unknown.
    """

    name = "json"

    def __init__(self, settings: JsonSettings, key: str = "", secret: str = "") -> None:
        self._settings = settings
        self._key = key
        self._filling = {"{key}": key, "{secret}": secret}
        self._layout = layout = _Layout.of(settings)
        self.schema = layout.schema
        self._answers = answers = _Answers(settings, tuple(filter(None, (key, secret))))
        limits, login, heartbeat = settings.limits, settings.login, settings.heartbeat
        self.terms = Terms(
            # What is due is sent twice per second, so that in no second more than this comes together.
            message_pause_s=1.5 / limits.messages_per_second if limits.messages_per_second else 0.0,
            max_age_s=limits.max_age or math.inf,
            # Without ids nobody can tell apart what two connections both bring.
            overlap_s=5.0 if "trade_id" in self.schema.names else 0.0,
            never_closes=settings.never_closes,
            may_replay=True,
            signed_prices=settings.signed_prices,
            id_column=next((name for name, column in settings.columns.items() if column.consecutive), None),
            login=Login(
                self._filled(login.send, [""])[0], login.after is not None, login.timeout, answers.judge_login(login)
            )
            if login
            else None,
            heartbeat=Heartbeat(heartbeat.send, heartbeat.every) if heartbeat else None,
        )

    def __repr__(self) -> str:
        return f"JsonMap({self._settings.url!r})"

    def url(self) -> str:
        """Where to connect, with the key where the settings have a place for it."""
        return self._settings.url.replace(KEY_PLACE, quote(self._key, safe=""))

    def subscribe(self, symbols: Sequence[str], *, first: bool = False) -> list[str]:
        """A message per symbol, or per `symbols_per_message`, or one in all where the template names none; none without
        a template. The first messages of a connection begin with `on_open`.
        """
        settings, messages = self._settings, []
        if first:
            messages = [self._filled(text, [""])[0] for text in settings.on_open]
        if settings.subscribe is None or not symbols:
            return messages
        size = settings.symbols_per_message
        if first and settings.subscribe_first:
            messages += self._filled(settings.subscribe_first, symbols[:size])
            symbols = symbols[size:]
        return messages + self._filled(settings.subscribe, symbols)

    def unsubscribe(self, symbols: Sequence[str]) -> list[str]:
        """Messages as those of `subscribe`; none without a template that names the symbol."""
        template = self._settings.unsubscribe
        return self._filled(template, symbols) if template and "{symbol" in template else []

    def _filled(self, template: str, symbols: Sequence[str]) -> list[str]:
        """The template's text with each symbol and the secrets, escaped as in a JSON string; the same text only once.

        Where a message asks for several symbols it is written anew, its list with an item for each.
        """
        for place, secret in self._filling.items():
            template = template.replace(place, _escaped(secret))
        size = self._settings.symbols_per_message
        if size == 1 or (items := find_list(message := json.loads(template))) is None:
            return list(dict.fromkeys(_named(template, symbol) for symbol in symbols))
        item, messages = json.dumps(items[0], separators=(",", ":")), []
        for start in range(0, len(symbols), size):
            items[:] = [json.loads(_named(item, symbol)) for symbol in symbols[start : start + size]]
            messages.append(json.dumps(message, separators=(",", ":")))
        return messages

    def decode(self, frames: Frames) -> Decoded:
        """What the frames say. Never raises on bad input: what can't be read is a Reject.

        Frame by frame: shapes are anybody's here, and 100,000 frames per second are enough for them.
        """
        reader, reading = _Reader(self._layout, self._answers), Reading()
        for frame, (payload, received_us) in enumerate(zip(frames.payloads, frames.received_us, strict=True)):
            reader.read(frame, payload, received_us // 1000, reading)
        return reading.decoded(self.schema)

    def encode(self, trades: pa.RecordBatch) -> list[bytes]:
        """One frame per trade; what this venue has no field for is not said."""
        columns = (trades["timestamp"].cast(pa.int64()), *trades.columns[1:])
        rows = zip(*(column.to_pylist() for column in columns), strict=True)
        return [self._written(*row).encode() for row in rows]

    def _written(self, time_ms: int, symbol: str, price: float, volume: float | None, *own: Any) -> str:
        layout = self._layout
        values: list[tuple[_Place, object]] = [(layout.symbol, symbol), (layout.price, price)]
        if layout.volume and volume is not None:
            values.append((layout.volume, volume))
        if layout.timestamp:
            written: int | str | float = time_ms / 1000
            if layout.time_unit == "iso":
                written = (_EPOCH + time_ms * _MS).isoformat(timespec="milliseconds").replace("+00:00", "Z")
            elif layout.time_unit != "s":
                written = int(time_ms * _PER_MS[layout.time_unit])
            values.append((layout.timestamp, written))
        said = dict(zip(self.schema.names[len(VENUE_TRADES) - 1 :], own, strict=True))
        values += [(column.place, column.write(said[column.name])) for column in layout.columns]
        trade: Any = None
        for place, value in values:
            if not place.in_message:
                trade = _put(trade, place.path, value)
        message = _put(None, layout.items, [trade] if layout.items else trade, layout.listed)
        for path, text in layout.match:
            message = _put(message, path, text, layout.listed)
        for place, value in values:
            if place.in_message:
                message = _put(message, place.path, value)
        return json.dumps(message, separators=(",", ":"), ensure_ascii=False)


class _Place(NamedTuple):
    """Where a value stands: in the trade, or in the message beside it. Nowhere, with an empty path."""

    path: Path
    in_message: bool

    def __bool__(self) -> bool:
        return bool(self.path)


_TYPES = {"text": pa.string(), "integer": pa.int64(), "number": pa.float64(), "codes": pa.string()}


@dataclass(frozen=True, slots=True)
class _Column:
    """A column of the venue's own."""

    name: str
    place: _Place
    type: Literal["text", "integer", "number", "codes"]
    values: Mapping[str, str]

    def read(self, value: Any) -> Any:
        """What is recorded of it. Raises RefusedError."""
        reason = f"bad_{self.name}"
        if value is None:
            return None
        if self.type == "number":
            return _amount(value, reason)
        if self.type == "integer":
            return _whole(value, reason)
        if self.type == "codes":
            return _codes(value, reason)
        text = take_text(_as_text(value), reason)
        return self.values.get(text, text)

    def write(self, value: Any) -> Any:
        """The same backwards."""
        if self.type == "codes" and value is not None:
            return value.split(",") if value else []
        if self.type == "text":
            return {recorded: said for said, recorded in self.values.items()}.get(value, value)
        return value


def _whole(value: Any, reason: str) -> int:
    """A whole number that int64 holds, or the digits of one."""
    if isinstance(value, str):
        if not _DIGITS.fullmatch(value) or not -(2**63) <= int(value) < 2**63:
            raise RefusedError(reason)
        return int(value)
    return take_integer(value, reason)


def _codes(value: Any, reason: str) -> str:
    """The codes of a list, joined by commas."""
    codes = [take_text(_as_text(code), reason) for code in (value if isinstance(value, list) else [value])]
    if any(not code or "," in code for code in codes):
        raise RefusedError(reason)
    return ",".join(codes)


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where things stand."""

    symbol: _Place
    price: _Place
    volume: _Place
    timestamp: _Place
    items: Path
    listed: frozenset[Path]
    """The paths that the settings call lists, by `[]`; it matters to who writes a message alone."""
    match: tuple[tuple[Path, str], ...]
    arrays: bool
    """A trade is an array."""
    by_symbol: bool
    reserved: frozenset[str]
    """No key of a map."""
    time_unit: TimeUnit
    zone: tzinfo | None
    """Of times that name none."""
    columns: tuple["_Column", ...]
    """In the order of the schema."""
    schema: pa.Schema

    @classmethod
    def of(cls, settings: JsonSettings) -> "_Layout":
        fields = settings.fields
        symbol, price, volume, timestamp = places = [
            _place(one) for one in (fields.symbol, fields.price, fields.volume, fields.timestamp)
        ]
        paths = [settings.items or "", *settings.match]
        items, *matched = map(_path, paths)
        columns = [_Column(name, _place(one.source), one.type, one.values) for name, one in settings.columns.items()]
        columns.sort(key=lambda column: column.name != "conditions")  # that one every recording has
        return cls(
            symbol=symbol,
            price=price,
            volume=volume,
            timestamp=timestamp,
            items=items,
            listed=frozenset(
                _path(".".join(keys[: at + 1]))
                for keys in (text.split(".") for text in paths)
                for at, key in enumerate(keys)
                if key.endswith("[]")
            ),
            match=tuple(zip(matched, settings.match.values(), strict=True)),
            arrays=any(place.path[0].isdecimal() for place in places if place and not place.in_message),
            columns=tuple(columns),
            schema=pa.schema(
                [
                    *VENUE_TRADES,
                    *(pa.field(one.name, _TYPES[one.type]) for one in columns if one.name != "conditions"),
                ]
            ),
            by_symbol=settings.prices_by_symbol,
            reserved=_WORDS.union(items, *matched, *(one.path for one in places), *(one.place.path for one in columns)),
            time_unit=settings.time_unit,
            zone=ZoneInfo(settings.time_zone) if settings.time_zone else None,
        )


def _place(text: str | None) -> _Place:
    return _Place(_path(text.removeprefix("$.")), text.startswith("$.")) if text else _Place((), in_message=False)


def _path(text: str) -> Path:
    return tuple(key.removesuffix("[]") for key in text.split(".")) if text else ()


def _escaped(text: str) -> str:
    return json.dumps(text)[1:-1]


def _named(template: str, symbol: str) -> str:
    return template.replace("{symbol_lower}", _escaped(symbol.lower())).replace("{symbol}", _escaped(symbol))


def _put(at: Any, path: Path, value: Any, listed: frozenset[Path] = frozenset(), above: Path = ()) -> Any:
    """`at` with the value at the end of the path; what is missing on the way is made, in each item of a list."""
    if not path:
        return value
    if path[0].isdecimal():
        index = int(path[0])
        at = [] if at is None else at
        at += [None] * (index + 1 - len(at))
        at[index] = _put(at[index], path[1:], value, listed, (*above, path[0]))
    elif isinstance(at, list):
        at[0] = _put(at[0], path, value, listed, above)
    else:
        at = JsonObject([]) if at is None else at
        here = (*above, path[0])
        below = at.get(path[0])
        if below is None and here in listed and path[1:]:
            below = [None]
        at[path[0]] = _put(below, path[1:], value, listed, here)
    return at


# A frame at a time

Row = tuple[Any, ...]
"""Of the layout's schema; the time in milliseconds."""


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads messages of this layout."""

    layout: _Layout
    answers: "_Answers"

    def read(self, frame: int, payload: bytes, received_ms: int, reading: Reading) -> None:
        """Add what this frame says. Only where it holds no trades it may be an answer; without `match` any message
        might be a trade, so that answers are looked for first.
        """
        try:
            if self.answers.texts and payload in self.answers.texts:
                reading.notices.append(Notice(frame, "news", ""))
                return
            document = read_json(payload)
            if not isinstance(document, list | JsonObject):
                raise RefusedError("not_an_object")
            if not self.layout.match and (answer := self.answers.find(frame, document)):
                reading.notices.append(answer)
                return
            found = _Found()
            self._look(document, self.layout.items, self.layout.match, found)
            if not found.items and (answer := self.answers.find(frame, document)):
                reading.notices.append(answer)
            elif found.other is not None and not found.items:
                reading.notices.append(self.answers.describe(frame, *found.other))
            elif found.astray and not found.items:
                raise RefusedError("no_data")
            else:
                reading.add_trades(frame, found.items, lambda item: self._row(item, document, received_ms))
        except RefusedError as refused:
            reading.reject(frame, refused)

    def _look(self, value: Any, path: Path, match: Sequence[tuple[Path, str]], found: "_Found") -> None:
        """Find the trades at the end of the path that say what they should; what is asked of what lies on the way is
        asked there, and of each item of a list.
        """
        if isinstance(value, list) and not (path and path[0].isdecimal()):
            self._look_into(value, path, match, found)
            return
        below = [(keys, text) for keys, text in match if path and keys[0] == path[0] and keys[1:]]
        for keys, text in match:
            if (keys, text) not in below and (said := _as_text(_find(value, keys))) != text:
                found.other = found.other or (value, said)
                return
        if path:
            self._look(_find(value, path[:1]), path[1:], [(keys[1:], text) for keys, text in below], found)
        elif isinstance(value, JsonObject):
            is_map = (
                self.layout.by_symbol
                and bool(value)
                and not value.repeated
                and value.keys().isdisjoint(self.layout.reserved)
                and all(type(price) in (int, float) for price in value.values())
            )
            symbol, price = self.layout.symbol.path, self.layout.price.path
            # A map as if its trades had come one by one.
            one_by_one = (_put(_put(None, symbol, key), price, number) for key, number in value.items())
            found.items += one_by_one if is_map else [value]
        else:
            found.astray = True

    def _look_into(self, items: list[Any], path: Path, match: Sequence[tuple[Path, str]], found: "_Found") -> None:
        """The same in a list."""
        of_list = [(keys, text) for keys, text in match if keys[0].isdecimal() and not self._are_arrays(items)]
        for keys, text in of_list:
            if (said := _as_text(_find(items, keys))) != text:
                found.other = found.other or (items, said)
                return
        of_items = [one for one in match if one not in of_list]
        if path:
            for item in items:
                if isinstance(item, list):  # no key leads into it
                    found.astray = True
                else:
                    self._look(item, path, of_items, found)
        elif self.layout.arrays and not self._are_arrays(items):
            found.items.append(items)
        else:
            for item in items:
                self._take(item, of_items, found)

    def _are_arrays(self, items: list[Any]) -> bool:
        return all(isinstance(item, list) for item in items)

    def _take(self, item: Any, match: Sequence[tuple[Path, str]], found: "_Found") -> None:
        """An item of the list of trades."""
        if isinstance(item, JsonObject):
            self._look(item, (), match, found)
            return
        for keys, text in match:
            if (said := _as_text(_find(item, keys))) != text:
                found.other = found.other or (item, said)
                return
        found.items.append(item)

    def _row(self, item: Any, document: Any, received_ms: int) -> Row:
        layout = self.layout
        if not isinstance(item, list if layout.arrays else JsonObject):
            raise RefusedError("not_an_object")
        places = (layout.timestamp, layout.symbol, layout.price, layout.volume)
        time, symbol, price, volume = (
            _find(document if place.in_message else item, place.path) if place else None for place in places
        )
        row: Row = (
            received_ms if time is None else _milliseconds(time, layout),
            take_text(symbol, "bad_symbol"),
            _amount(price, "bad_price"),
            None if volume is None else _amount(volume, "bad_volume"),
            None,
        )
        if not layout.columns:
            return row
        own = [
            column.read(_find(document if column.place.in_message else item, column.place.path))
            for column in layout.columns
        ]
        return (*row[:-1], *own) if layout.columns[0].name == "conditions" else (*row, *own)


class _Answers:
    """What a venue says besides trades."""

    def __init__(self, settings: JsonSettings, secrets: tuple[str, ...]) -> None:
        """`secrets`: what a venue might quote, and nobody may read."""
        self._secrets = secrets
        heartbeat = settings.heartbeat
        ignored = [*settings.ignore, *([heartbeat.answer] if heartbeat and heartbeat.answer else ())]
        self.texts = frozenset(one.encode() for one in ignored if isinstance(one, str))
        self._ignored = [_pattern(one) for one in ignored if not isinstance(one, str)]
        login = settings.login
        expected = [*login.accepted, *([login.after] if login.after else ())] if login else []
        self._acknowledged = [_pattern(one) for one in (*settings.acknowledged, *expected)]
        self._not_let_in = [_pattern(one) for one in login.refused] if login else []
        self._refused = [
            (
                _pattern(one.match),
                _place(one.text),
                _place(one.symbol),
                re.compile(one.symbol_in) if one.symbol_in else None,
            )
            for one in settings.refused
        ]

    def judge_login(
        self, login: JsonLogin
    ) -> Callable[[bytes], tuple[Literal["asked", "accepted", "refused"], str] | None]:
        """What a frame says of this login."""
        patterns: list[tuple[Literal["asked", "accepted", "refused"], Pattern]] = [
            *(("refused", _pattern(one)) for one in login.refused),
            *(("accepted", _pattern(one)) for one in login.accepted),
            *([("asked", _pattern(login.after))] if login.after else ()),
        ]

        def judge(payload: bytes) -> tuple[Literal["asked", "accepted", "refused"], str] | None:
            try:
                document = read_json(payload)
                for verdict, pattern in patterns:
                    if (item := _fitting(document, pattern)) is not None:
                        return verdict, self._words(item)
            except RefusedError:  # it is a reject, which the recorder tells
                return None
            return None

        return judge

    def find(self, frame: int, document: Any) -> Notice | None:
        """The answer that this message is, or None. Raises RefusedError: `repeated_key`."""
        for pattern, text, symbol, symbol_in in self._refused:
            if (item := _fitting(document, pattern)) is not None:
                words = _as_text(_find(item, text.path)) if text else self._words(item)
                named = _as_text(_find(item, symbol.path)) if symbol else None
                if symbol_in:
                    match = symbol_in.search(((named if symbol else words) or "")[:_SEARCHED])
                    named = match[1] if match else None
                return Notice(frame, "error", self._blotted(words), self._blotted(named) or None, refuses=True)
        for pattern in self._not_let_in:
            if (item := _fitting(document, pattern)) is not None:
                return Notice(frame, "error", self._words(item))
        if any(_fitting(document, pattern) is not None for pattern in self._acknowledged):
            return Notice(frame, "ack", "")
        if any(_fitting(document, pattern) is not None for pattern in self._ignored):
            return Notice(frame, "news", "")
        return None

    def describe(self, frame: int, value: Any, said: str | None) -> Notice:
        """A message that is not about trades, named by the first value by which it differs from one that is."""
        word = self._blotted(said)
        if word == "ping":
            return Notice(frame, word, "")
        if word == "error":
            return Notice(frame, word, self._words(value))
        return Notice(frame, "unknown", word)

    def _words(self, value: Any) -> str:
        """What a message says for people."""
        texts = (_as_text(_find(value, (key,))) for key in ("msg", "message", "reason", "error"))
        return self._blotted(next(filter(None, texts), None))

    def _blotted(self, text: str | None) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***") if text else text
        return notice_text(text)


def read_symbols(answer: bytes, form: JsonSymbolList) -> list[str]:
    """The symbols in a venue's list, each once, as they come. Raises RefusedError where it is none."""
    found = _find(read_json(answer), _path(form.items or ""))
    pairs: list[tuple[str | None, Any]] | None
    if form.symbol == "*":
        pairs = list(found.items()) if isinstance(found, JsonObject) else None
    else:
        path = _path(form.symbol)
        pairs = [(_as_text(_find(item, path)), item) for item in found] if isinstance(found, list) else None
    if pairs is None:
        raise RefusedError("no_data")
    pattern = _pattern(form.match)
    fitting = [name for name, item in pairs if all(_says(item, path, text) for path, text in pattern)]
    return list(dict.fromkeys(name for name in fitting if name))


Pattern = tuple[tuple[Path, str], ...]
"""What is said, by path."""
_SEARCHED = 1000


def _pattern(match: Mapping[str, str]) -> Pattern:
    return tuple((_path(path), text) for path, text in match.items())


def _fitting(document: Any, pattern: Pattern) -> Any:
    """The message that says all of this, or the first item of it that does where it is a list; None where none does."""
    candidates = document if isinstance(document, list) else [document]
    return next((one for one in candidates if all(_says(one, path, text) for path, text in pattern)), None)


def _says(value: Any, path: Path, text: str) -> bool:
    """Whether this stands there, in a list on the way in one of its items."""
    if isinstance(value, list) and not (path and path[0].isdecimal()):
        return any(_says(item, path, text) for item in value)
    if path:
        return _says(_find(value, path[:1]), path[1:], text)
    return value is not None if text == "*" else _as_text(value) == text


@dataclass(slots=True)
class _Found:
    """What a message holds."""

    items: list[Any] = field(default_factory=list)
    """The trades, each still as it came."""
    other: tuple[Any, str | None] | None = None
    """The first thing in it that is none, and what it says instead."""
    astray: bool = False
    """Somewhere there was nothing at the end of the path."""


def _find(value: Any, path: Path) -> Any:
    """What stands at the end of the path, None where nothing does. Raises RefusedError: `repeated_key`."""
    for key in path:
        if isinstance(value, list):
            value = value[int(key)] if key.isdecimal() and len(key) < 10 and int(key) < len(value) else None
        elif not isinstance(value, JsonObject):
            return None
        elif key in value.repeated:
            raise RefusedError("repeated_key")
        else:
            value = value.get(key)
    return value


def _as_text(value: Any) -> str | None:
    """A value as the settings would write it."""
    if isinstance(value, str):
        return value
    return json.dumps(value) if isinstance(value, bool | int) else None


def _amount(value: Any, reason: str) -> float:
    """A number, or the text of one."""
    return take_decimal(value, reason, ANY_DECIMAL) if isinstance(value, str) else take_number(value, reason)


def _milliseconds(value: Any, layout: _Layout) -> int:
    """Since 1970; what is finer is cut off."""
    if layout.time_unit == "iso":
        try:
            time = datetime.fromisoformat(take_text(value, "bad_time"))
            if time.tzinfo is None and layout.zone is None:  # nobody can tell when it was
                raise RefusedError("no_time_zone")
            return ((time if time.tzinfo else time.replace(tzinfo=layout.zone)) - _EPOCH) // _MS
        except (ValueError, OverflowError):
            raise RefusedError("bad_time") from None
    number = value if type(value) is int else _amount(value, "bad_time")
    exact = Decimal(value) if isinstance(value, str) else Decimal(repr(number))
    whole = int(_CUTTING.divide(exact, _PER_MS[layout.time_unit]))
    if not -(2**63) <= whole < 2**63:
        raise RefusedError("bad_time")
    return whole
