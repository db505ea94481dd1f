"""Any venue that sends trades as JSON: the settings say where in a message their values stand.

A message is one trade, a list of trades, or an object that holds either (`items`). A trade is an object, or an array.
Where the settings say so it may also be a map such as `{"AAPL": 145.67, "GOOGL": 2725.67}`, which is several.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc

from ingestor.config.feeds import Compression, JsonLogin, JsonSettings, JsonSymbolList, find_list
from ingestor.config.types import KEY_PLACE
from ingestor.feeds import Decoded, DecodedColumns, Frames, Heartbeat, Login, Notice, Terms, json_columns, json_frames
from ingestor.schema import VENUE_TRADES


class JsonMap:
    """The feed of a venue that these settings describe.

    Why it rejects a frame: `bad_compression`, `too_large`, `not_utf8`, `not_json`, `too_deep`, `not_an_object` (nor a
    list), `repeated_key`, `no_data` (nothing at `items`). Why it rejects a trade, the first that applies:
    `not_an_object`, `repeated_key`, `bad_time`, `no_time_zone`, `bad_symbol`, `bad_price`, `bad_volume`, and `bad_`
    with the name of a column of its own. A missing time is the time of receipt; a missing volume, or value of a
    column, is unknown.
    """

    name = "json"

    def __init__(self, settings: JsonSettings, key: str = "", secret: str = "") -> None:
        self._settings = settings
        self._key = key
        self._filling = {"{key}": key, "{secret}": secret}
        self._layout = layout = json_columns.Layout.of(settings)
        self.schema = layout.schema
        answers = _Answers(settings, tuple(filter(None, (key, secret))))
        self._reader = _Reader(layout, answers, settings.compression)
        self._columns = json_columns.ColumnReader(layout, answers.paths)
        limits, login, heartbeat = settings.limits, settings.login, settings.heartbeat
        self.terms = Terms(
            # What is due is sent twice per second, so that in no second more than this comes together.
            message_pause_s=1.5 / limits.messages_per_second if limits.messages_per_second else 0.0,
            max_age_s=limits.max_age or math.inf,
            symbols_per_connection=settings.symbols_per_connection,
            # Without ids nobody can tell apart what two connections both bring.
            overlap_s=5.0 if "trade_id" in self.schema.names else 0.0,
            own_times=settings.fields.timestamp is not None,
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
        """What the frames say. Never raises on bad input: what can't be read is a Reject."""
        return json_frames.decode_blocks(self, frames)

    def read_strictly(self, frames: Frames, first: int) -> Decoded:
        """Frame by frame; the first of them is number `first`."""
        reading = json_frames.Reading(self.schema)
        for frame, (payload, received_us) in enumerate(zip(frames.payloads, frames.received_us, strict=True), first):
            self._reader.read(frame, payload, received_us // 1000, reading)
        return reading

    def read_block(self, frames: Frames, first: int) -> Decoded | None:
        """As one, or None where that might say something else. What is no object, or no list, is read strictly beside
        it: such are words like `pong`.
        """
        if not self._columns.is_of_use:
            return self.read_strictly(frames, first)
        payloads = self._reader.inflate_all(frames.payloads)
        if payloads is None:
            return None
        begin = Counter(payload[:1] for payload in payloads).most_common(1)[0][0]
        alike = [frame for frame, payload in enumerate(payloads) if payload[:1] == begin]
        block = self._columns.read(
            [payloads[frame] for frame in alike],
            [frames.received_us[frame] for frame in alike],
            self._reader.holds_trades,
        )
        if block is None:
            return None
        frame_of = pa.array(alike, pa.int64()).take(block.frame_of)
        others = json_frames.Reading(self.schema)
        for frame in sorted({*range(len(frames))}.difference(frame_of.to_pylist())):
            self._reader.read(first + frame, frames.payloads[frame], frames.received_us[frame] // 1000, others)
        if others.few.values:
            return None
        return DecodedColumns(block.trades, pc.add(frame_of, pa.scalar(first)), others.rejects, others.notices)

    def encode(self, trades: pa.RecordBatch) -> list[bytes]:
        """One frame per trade, compressed where this venue does that; what it has no field for is not said."""
        columns = (trades["timestamp"].cast(pa.int64()), *trades.columns[1:])
        rows = zip(*(column.to_pylist() for column in columns), strict=True)
        texts = [self._written(*row).encode() for row in rows]
        compression = self._settings.compression
        return [json_frames.deflate(text, compression) for text in texts] if compression else texts

    def _written(self, time_ms: int, symbol: str, price: float, volume: float | None, *own: Any) -> str:
        layout = self._layout
        values: list[tuple[json_columns.Place, object]] = [(layout.symbol, symbol), (layout.price, price)]
        if layout.volume and volume is not None:
            values.append((layout.volume, volume))
        if layout.timestamp:
            written: int | str | float = time_ms / 1000
            if layout.time_unit == "iso":
                written = (
                    (json_columns.EPOCH + time_ms * json_columns.MS)
                    .isoformat(timespec="milliseconds")
                    .replace("+00:00", "Z")
                )
            elif layout.time_unit != "s":
                written = int(time_ms * json_columns.PER_MS[layout.time_unit])
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


def _escaped(text: str) -> str:
    return json.dumps(text)[1:-1]


def _named(template: str, symbol: str) -> str:
    return template.replace("{symbol_lower}", _escaped(symbol.lower())).replace("{symbol}", _escaped(symbol))


def _put(
    at: Any,
    path: json_columns.Path,
    value: Any,
    listed: frozenset[json_columns.Path] = frozenset(),
    above: json_columns.Path = (),
) -> Any:
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
        at = json_frames.JsonObject([]) if at is None else at
        here = (*above, path[0])
        below = at.get(path[0])
        if below is None and here in listed and path[1:]:
            below = [None]
        at[path[0]] = _put(below, path[1:], value, listed, here)
    return at


# A frame at a time

_TEXTS_MAX = 64 << 20
Row = tuple[Any, ...]
"""Of the layout's schema; the time in milliseconds."""


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads messages of this layout."""

    layout: json_columns.Layout
    answers: "_Answers"
    compression: Compression | None

    def inflate_all(self, payloads: list[bytes]) -> list[bytes] | None:
        """Their texts; None where one has none, or where they are too long to hold them all."""
        if self.compression is None:
            return payloads
        texts, size = [], 0
        for payload in payloads:
            try:
                texts.append(json_frames.inflate(payload, self.compression))
            except json_frames.RefusedError:
                return None
            size += len(texts[-1])
            if size > _TEXTS_MAX:
                return None
        return texts

    def holds_trades(self, document: Any) -> bool:
        """Whether this message is about trades. Raises RefusedError."""
        found = _Found()
        self._look(document, self.layout.items, self.layout.match, found)
        return bool(found.items)

    def read(self, frame: int, payload: bytes, received_ms: int, reading: json_frames.Reading) -> None:
        """Add what this frame says. Only where it holds no trades it may be an answer; without `match` any message
        might be a trade, so that answers are looked for first.
        """
        try:
            if self.compression:
                payload = json_frames.inflate(payload, self.compression)
            if self.answers.texts and payload in self.answers.texts:
                reading.notices.append(Notice(frame, "news", ""))
                return
            document = json_frames.read_json(payload)
            if not isinstance(document, list | json_frames.JsonObject):
                raise json_frames.RefusedError("not_an_object")
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
                raise json_frames.RefusedError("no_data")
            else:
                reading.add_trades(frame, found.items, lambda item: self._row(item, document, received_ms))
        except json_frames.RefusedError as refused:
            reading.reject(frame, refused)

    def _look(
        self, value: Any, path: json_columns.Path, match: Sequence[tuple[json_columns.Path, str]], found: "_Found"
    ) -> None:
        """Find the trades at the end of the path that say what they should; what is asked of what lies on the way is
        asked there, and of each item of a list.
        """
        if isinstance(value, list) and not (path and path[0].isdecimal()):
            self._look_into(value, path, match, found)
            return
        below = [(keys, text) for keys, text in match if path and keys[0] == path[0] and keys[1:]]
        for keys, text in match:
            if (keys, text) not in below and (said := json_columns.as_text(json_columns.find(value, keys))) != text:
                found.other = found.other or (value, said)
                return
        if path:
            self._look(json_columns.find(value, path[:1]), path[1:], [(keys[1:], text) for keys, text in below], found)
        elif isinstance(value, json_frames.JsonObject):
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

    def _look_into(
        self, items: list[Any], path: json_columns.Path, match: Sequence[tuple[json_columns.Path, str]], found: "_Found"
    ) -> None:
        """The same in a list."""
        of_list = [(keys, text) for keys, text in match if keys[0].isdecimal() and not self._are_arrays(items)]
        for keys, text in of_list:
            if (said := json_columns.as_text(json_columns.find(items, keys))) != text:
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

    def _take(self, item: Any, match: Sequence[tuple[json_columns.Path, str]], found: "_Found") -> None:
        """An item of the list of trades."""
        if isinstance(item, json_frames.JsonObject):
            self._look(item, (), match, found)
            return
        for keys, text in match:
            if (said := json_columns.as_text(json_columns.find(item, keys))) != text:
                found.other = found.other or (item, said)
                return
        found.items.append(item)

    def _row(self, item: Any, document: Any, received_ms: int) -> Row:
        layout = self.layout
        if not isinstance(item, list if layout.arrays else json_frames.JsonObject):
            raise json_frames.RefusedError("not_an_object")
        places = (layout.timestamp, layout.symbol, layout.price, layout.volume)
        time, symbol, price, volume = (
            json_columns.find(document if place.in_message else item, place.path) if place else None for place in places
        )
        row: Row = (
            received_ms if time is None else json_columns.milliseconds(time, layout),
            json_frames.take_text(symbol, "bad_symbol"),
            json_columns.take_amount(price, "bad_price"),
            None if volume is None else json_columns.take_amount(volume, "bad_volume"),
            None,
        )
        if not layout.columns:
            return row
        own = [
            column.read(json_columns.find(document if column.place.in_message else item, column.place.path))
            for column in layout.columns
        ]
        return (*row[:-1], *own) if layout.columns[0].name == "conditions" else (*row, *own)


class _Answers:
    """What a venue says besides trades."""

    def __init__(self, settings: JsonSettings, secrets: tuple[str, ...]) -> None:
        """`secrets`: what a venue might quote, and nobody may read."""
        self._secrets = secrets
        self._compression = settings.compression
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
                json_columns.to_place(one.text),
                json_columns.to_place(one.symbol),
                re.compile(one.symbol_in) if one.symbol_in else None,
            )
            for one in settings.refused
        ]

    @property
    def paths(self) -> list[list[json_columns.Path]]:
        """Where each pattern looks."""
        refused = [pattern for pattern, *_ in self._refused]
        return [[path for path, _ in one] for one in (*refused, *self._not_let_in, *self._acknowledged, *self._ignored)]

    def judge_login(
        self, login: JsonLogin
    ) -> Callable[[bytes], tuple[Literal["asked", "accepted", "refused"], str] | None]:
        """What a frame says of this login."""
        compression = self._compression
        patterns: list[tuple[Literal["asked", "accepted", "refused"], Pattern]] = [
            *(("refused", _pattern(one)) for one in login.refused),
            *(("accepted", _pattern(one)) for one in login.accepted),
            *([("asked", _pattern(login.after))] if login.after else ()),
        ]

        def judge(payload: bytes) -> tuple[Literal["asked", "accepted", "refused"], str] | None:
            try:
                document = json_frames.read_json(json_frames.inflate(payload, compression) if compression else payload)
                for verdict, pattern in patterns:
                    if (item := _fitting(document, pattern)) is not None:
                        return verdict, self._words(item)
            except json_frames.RefusedError:  # it is a reject, which the recorder tells
                return None
            return None

        return judge

    def find(self, frame: int, document: Any) -> Notice | None:
        """The answer that this message is, or None. Raises RefusedError: `repeated_key`."""
        for pattern, text, symbol, symbol_in in self._refused:
            if (item := _fitting(document, pattern)) is not None:
                words = json_columns.as_text(json_columns.find(item, text.path)) if text else self._words(item)
                named = json_columns.as_text(json_columns.find(item, symbol.path)) if symbol else None
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
        texts = (
            json_columns.as_text(json_columns.find(value, (key,))) for key in ("msg", "message", "reason", "error")
        )
        return self._blotted(next(filter(None, texts), None))

    def _blotted(self, text: str | None) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***") if text else text
        return json_frames.notice_text(text)


def read_symbols(answer: bytes, form: JsonSymbolList) -> list[str]:
    """The symbols in a venue's list, each once, as they come. Raises RefusedError where it is none."""
    found = json_columns.find(json_frames.read_json(answer), json_columns.to_path(form.items or ""))
    pairs: list[tuple[str | None, Any]] | None
    if form.symbol == "*":
        pairs = list(found.items()) if isinstance(found, json_frames.JsonObject) else None
    else:
        path = json_columns.to_path(form.symbol)
        pairs = (
            [(json_columns.as_text(json_columns.find(item, path)), item) for item in found]
            if isinstance(found, list)
            else None
        )
    if pairs is None:
        raise json_frames.RefusedError("no_data")
    pattern = _pattern(form.match)
    fitting = [name for name, item in pairs if all(_says(item, path, text) for path, text in pattern)]
    return list(dict.fromkeys(name for name in fitting if name))


Pattern = tuple[tuple[json_columns.Path, str], ...]
"""What is said, by path."""
_SEARCHED = 1000


def _pattern(match: Mapping[str, str]) -> Pattern:
    return tuple((json_columns.to_path(path), text) for path, text in match.items())


def _fitting(document: Any, pattern: Pattern) -> Any:
    """The message that says all of this, or the first item of it that does where it is a list; None where none does."""
    candidates = document if isinstance(document, list) else [document]
    return next((one for one in candidates if all(_says(one, path, text) for path, text in pattern)), None)


def _says(value: Any, path: json_columns.Path, text: str) -> bool:
    """Whether this stands there, in a list on the way in one of its items."""
    if isinstance(value, list) and not (path and path[0].isdecimal()):
        return any(_says(item, path, text) for item in value)
    if path:
        return _says(json_columns.find(value, path[:1]), path[1:], text)
    return value is not None if text == "*" else json_columns.as_text(value) == text


@dataclass(slots=True)
class _Found:
    """What a message holds."""

    items: list[Any] = field(default_factory=list)
    """The trades, each still as it came."""
    other: tuple[Any, str | None] | None = None
    """The first thing in it that is none, and what it says instead."""
    astray: bool = False
    """Somewhere there was nothing at the end of the path."""
