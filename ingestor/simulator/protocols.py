"""Protocols of the venue, pure: requests and answers, trades as JSON, WebSocket frames, and some that break rules."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol

import pyarrow as pa
from websockets.frames import Frame, Opcode

from ingestor.config.feeds import BinanceSettings, JsonSettings, find_list
from ingestor.feeds import Feed
from ingestor.feeds.binance import Binance
from ingestor.feeds.json_map import JsonMap
from ingestor.simulator.market import Trade, bars

VenueProtocol = Literal["finnhub", "flat", "bars", "binance", "json"]

BINANCE_STREAMS = 1024
PLAIN_JSON = JsonSettings(type="json", url="wss://json", subscribe='{"type":"subscribe","symbol":"{symbol}"}')


# Messages of trades


class Message(NamedTuple):
    """One WebSocket message, and the trades in it, each as the JSON text that the message holds."""

    payload: bytes
    trades: tuple[str, ...]
    binary: bool = False
    """It is compressed."""


def number_text(value: float) -> str:
    """JSON of a finite number as Go and JavaScript write it: a whole number has no fraction (`26626`)."""
    text = repr(value)
    return text.removesuffix(".0")


def trade_text(trade: Trade) -> str:
    """One element of Finnhub's `data`. The keys are sorted, as Finnhub's are."""
    conditions = "" if trade.conditions is None else f'"c":{trade.conditions},'
    return (
        f'{{{conditions}"p":{number_text(trade.price)},"s":{json.dumps(trade.symbol)},'
        f'"t":{trade.time_ms},"v":{number_text(trade.volume)}}}'
    )


def finnhub_messages(trades: Sequence[Trade]) -> list[Message]:
    """All trades in one message."""
    texts = tuple(map(trade_text, trades))
    return [Message(f'{{"data":[{",".join(texts)}],"type":"trade"}}'.encode(), texts)]


def flat_messages(trades: Sequence[Trade]) -> list[Message]:
    """`{"symbol","price","volume"}`, one message per trade; the truth has `s`, `p`, `v`, all that is sent."""
    messages = []
    for trade in trades:
        symbol, price, volume = json.dumps(trade.symbol), number_text(trade.price), number_text(trade.volume)
        payload = f'{{"symbol":{symbol},"price":{price},"volume":{volume}}}'.encode()
        messages.append(Message(payload, (f'{{"p":{price},"s":{symbol},"v":{volume}}}',)))
    return messages


def bar_messages(trades: Sequence[Trade]) -> list[Message]:
    """One bar a message and symbol; `timestamp` is the newest trade's, ms since 1970. Bars are no trades."""
    timestamp = max(trade.time_ms for trade in trades)
    facts = ({"symbol": bar.symbol, "timestamp": timestamp, **asdict(bar)} for bar in bars(trades))
    return [Message(json.dumps(bar, separators=(",", ":")).encode(), ()) for bar in facts]


# Requests and answers


class SymbolRequest(NamedTuple):
    """A client's request to subscribe or unsubscribe."""

    wanted: bool
    """False where it gives these symbols up."""
    symbols: tuple[str, ...]
    id: Any = None
    """Repeated in the answer."""


class LoginRequest(NamedTuple):
    """A client says who it is."""

    key: str


class Heartbeat(NamedTuple):
    """A client says that it is there."""


class SymbolRefusal(NamedTuple):
    """A symbol that the venue refuses, and whether its answer names the symbol."""

    why: Literal["invalid", "too many"]
    symbol: str
    named: bool = True


class VenueLanguage(Protocol):
    """The messages of one protocol, in both directions."""

    def read(self, text: str) -> SymbolRequest | LoginRequest | Heartbeat | None:
        """The request in a client's message; None if it can't be understood."""
        ...

    def answer(self, request: SymbolRequest, refusals: Sequence[SymbolRefusal]) -> list[dict[str, Any]]:
        """The venue's answers to it."""
        ...

    def say(self, trades: Sequence[Trade], *, combined: bool) -> list[Message]:
        """Messages with these trades; `combined`: in the envelope of Binance's combined streams."""
        ...


class _Plain:
    """Requests as Finnhub's, and a word only where one is refused."""

    def __init__(self, messages: Callable[[Sequence[Trade]], list[Message]]) -> None:
        self._messages = messages

    def read(self, text: str) -> SymbolRequest | None:
        try:
            message = json.loads(text)
            wanted = {"subscribe": True, "unsubscribe": False}[message["type"]]
            return SymbolRequest(wanted, (str(message["symbol"]),))
        except (ValueError, TypeError, KeyError):
            return None

    def answer(self, request: SymbolRequest, refusals: Sequence[SymbolRefusal]) -> list[dict[str, Any]]:  # noqa: ARG002  as every VenueLanguage
        texts = {"too many": "Subscribing to too many symbols", "invalid": "Invalid symbol"}
        return [
            {"msg": f"{texts[why]} {symbol}" if why == "invalid" and named else texts[why], "type": "error"}
            for why, symbol, named in refusals
        ]

    def say(self, trades: Sequence[Trade], *, combined: bool) -> list[Message]:  # noqa: ARG002  as every VenueLanguage
        return self._messages(trades)


class _Binance:
    """Requests for streams by the list, each with one answer, and a frame per trade; an even trade is a sale."""

    def __init__(self) -> None:
        url = BinanceSettings(type="binance").url
        self._bare, self._combined = Binance(url, "trade"), Binance(url.replace("/ws", "/stream"), "trade")

    def read(self, text: str) -> SymbolRequest | None:
        """`{"method":"SUBSCRIBE","params":["btcusdt@trade"],"id":1}`"""
        try:
            message = json.loads(text)
            wanted = {"SUBSCRIBE": True, "UNSUBSCRIBE": False}[message["method"]]
            names = [str(stream).partition("@")[0] for stream in message["params"]]
            return SymbolRequest(wanted, tuple(name.upper() for name in names), message["id"])
        except (ValueError, TypeError, KeyError):
            return None

    def answer(self, request: SymbolRequest, refusals: Sequence[SymbolRefusal]) -> list[dict[str, Any]]:
        if refusals:
            return [{"error": {"code": 2, "msg": f"Invalid request: {refusals[0].why}"}, "id": request.id}]
        return [{"result": None, "id": request.id}]

    def say(self, trades: Sequence[Trade], *, combined: bool) -> list[Message]:
        return _encoded(self._combined if combined else self._bare, trades)


class JsonVenue:
    """The language that the settings of a `json` feed describe, with the answers that they expect."""

    def __init__(self, settings: JsonSettings) -> None:
        self.settings = settings
        self._feed = JsonMap(settings)
        templates = ((True, settings.subscribe), (True, settings.subscribe_first), (False, settings.unsubscribe))
        self._templates = [(wanted, json.loads(text)) for wanted, text in templates if text]
        self._others = [json.loads(text) for text in settings.on_open]

    def greeting(self) -> bytes | None:
        """What the venue says before it wants to hear a login."""
        login = self.settings.login
        return _said(login.after) if login and login.after else None

    def read(self, text: str) -> SymbolRequest | LoginRequest | Heartbeat | None:
        login, heartbeat = self.settings.login, self.settings.heartbeat
        if heartbeat and text == heartbeat.send:
            return Heartbeat()
        try:
            message = json.loads(text)
        except ValueError:
            return None
        if login and (found := _filled_in(json.loads(login.send), message)) is not None:
            return LoginRequest(dict(found).get("key", ""))
        for wanted, template in self._templates:
            if (found := _filled_in(template, message)) is not None:
                symbols = [value.upper() if place == "symbol_lower" else value for place, value in found]
                if len(set(symbols)) < 2 or find_list(template):
                    return SymbolRequest(wanted, tuple(dict.fromkeys(symbols)))
        return SymbolRequest(wanted=True, symbols=()) if message in self._others else None

    def answer_login(self, *, accepted: bool) -> bytes | None:
        """The venue's word on a login; None where it says nothing to one that it doesn't like."""
        login = self.settings.login
        answers = (login.accepted if accepted else login.refused) if login else []
        return _said(answers[0]) if answers else None

    def answer_heartbeat(self) -> bytes | None:
        """The venue's word on a heartbeat, if any."""
        answer = self.settings.heartbeat.answer if self.settings.heartbeat else None
        return answer.encode() if isinstance(answer, str) else _said(answer) if answer else None

    def answer(self, request: SymbolRequest, refusals: Sequence[SymbolRefusal]) -> list[dict[str, Any]]:
        refused = {refusal.symbol for refusal in refusals}
        answers = []
        for refusal in refusals if self.settings.refused else ():
            form = self.settings.refused[0]
            named = refusal.symbol if refusal.named else "?"
            if form.symbol_in:  # the expression backwards: its group is the symbol
                named = re.sub(
                    r"\\(.)|\[(.)\]", r"\1\2", named.join(re.split(r"\((?!\?).*?\)", form.symbol_in, maxsplit=1))
                )
            told = dict(form.match)
            told |= {path: named for path in (form.symbol, None if form.symbol else form.text) if path}
            answers.append(json.loads(_said(told)))
        if request.symbols and self.settings.acknowledged and set(request.symbols) - refused:
            answers.append(json.loads(_said(self.settings.acknowledged[0])))
        return answers

    def say(self, trades: Sequence[Trade], *, combined: bool) -> list[Message]:  # noqa: ARG002  as every VenueLanguage
        messages = _encoded(self._feed, trades)
        return [message._replace(binary=self.settings.compression is not None) for message in messages]


def _said(pattern: Mapping[str, str]) -> bytes:
    """A message that says this."""
    message: dict[str, Any] = {}
    for path, text in pattern.items():
        *above, last = (key.removesuffix("[]") for key in path.split("."))
        at = message
        for key in above:
            at = at.setdefault(key, {})
        at[last] = {"true": True, "false": False, "*": 1}.get(text, text)
    return json.dumps(message, separators=(",", ":")).encode()


def _filled_in(template: Any, value: Any) -> list[tuple[str, str]] | None:
    """(place, text) of what a message has where its template has `{symbol}` and the like; None where it isn't of this
    template. An item of a list may come several times.
    """
    if isinstance(template, str) and isinstance(value, str):
        *texts, last = _PLACE.split(template)
        pattern = "".join(f"{re.escape(text)}(.*)" for text in texts[::2]) + re.escape(last)
        match = re.fullmatch(pattern, value, re.DOTALL)
        return None if match is None else list(zip(texts[1::2], match.groups(), strict=True))
    pairs = []
    if isinstance(template, dict) and isinstance(value, dict) and template.keys() == value.keys():
        pairs = [(template[key], value[key]) for key in template]
    elif isinstance(template, list) and isinstance(value, list) and len(template) == 1 <= len(value):
        pairs = [(template[0], item) for item in value]
    elif isinstance(template, list) and isinstance(value, list) and len(template) == len(value):
        pairs = list(zip(template, value, strict=True))
    elif template != value:
        return None
    found = [_filled_in(*pair) for pair in pairs]
    return None if None in found else [one for each in found if each for one in each]


_PLACE = re.compile(r"\{(symbol|symbol_lower|key|secret)\}")


def make_language(protocol: VenueProtocol, settings: JsonSettings) -> VenueLanguage:
    """The language of this protocol; the settings are those of `json`."""
    if protocol == "binance":
        return _Binance()
    return JsonVenue(settings) if protocol == "json" else _Plain(_MESSAGES[protocol])


_MESSAGES: Mapping[str, Callable[[Sequence[Trade]], list[Message]]] = MappingProxyType(
    {"finnhub": finnhub_messages, "flat": flat_messages, "bars": bar_messages}
)


def _encoded(feed: Feed, trades: Sequence[Trade]) -> list[Message]:
    """A message per trade, by the recorder's own language."""
    columns: Mapping[str, list[Any]] = {
        "timestamp": [trade.time_ms for trade in trades],
        "symbol": [trade.symbol for trade in trades],
        "price": [trade.price for trade in trades],
        "volume": [trade.volume for trade in trades],
        "conditions": [None] * len(trades),
        "trade_id": [trade.number for trade in trades],
        "side": ["buy" if trade.number % 2 else "sell" for trade in trades],
    }
    numbers = pa.array(columns["trade_id"])
    arrays: list[Any] = [
        pa.array(columns[field.name], field.type) if field.name in columns and field.name != "trade_id"
        else numbers.cast(field.type)  # whatever else a venue's own columns may hold
        for field in feed.schema
    ]  # fmt: skip
    payloads = feed.encode(pa.record_batch(arrays, schema=feed.schema))
    return [Message(payload, (_truth(trade),)) for payload, trade in zip(payloads, trades, strict=True)]


def _truth(trade: Trade) -> str:
    price, volume = number_text(trade.price), number_text(trade.volume)
    return f'{{"p":{price},"s":{json.dumps(trade.symbol)},"t":{trade.time_ms},"v":{volume}}}'


# WebSocket frames


def text_frame(payload: bytes) -> bytes:
    """One unmasked, final text frame (RFC 6455, 5.2)."""
    return Frame(Opcode.TEXT, payload).serialize(mask=False)


def whole(message: Message) -> bytes:
    """The message in one frame."""
    return Frame(Opcode.BINARY if message.binary else Opcode.TEXT, message.payload).serialize(mask=False)


def fragmented(message: Message) -> bytes:
    """The message in three fragments with a ping and a pong between them, as RFC 6455 (5.4) allows."""
    payload = message.payload
    third = max(1, len(payload) // 3)
    parts = (
        Frame(Opcode.BINARY if message.binary else Opcode.TEXT, payload[:third], fin=False),
        Frame(Opcode.PING, b"between fragments"),
        Frame(Opcode.CONT, payload[third : 2 * third], fin=False),
        Frame(Opcode.PONG, b"unasked"),
        Frame(Opcode.CONT, payload[2 * third :], fin=True),
    )
    return b"".join(part.serialize(mask=False) for part in parts)


def padded(message: Message, size: int) -> Message:
    """The same message, `size` bytes long: blanks before its last brace, which JSON allows."""
    blanks = b" " * (size - len(message.payload))
    return Message(message.payload[:-1] + blanks + message.payload[-1:], message.trades)


PING = Frame(Opcode.PING, b"").serialize(mask=False)

HALF_FRAME = text_frame(b'{"data":[{"c":null,"p":1.5,"s":"BINANCE:HALF","t":1700000000000,"v":1}],"type":"trade"}')[:40]
"""The first bytes of a frame whose rest never comes."""

ENDLESS_FRAME = Frame(Opcode.TEXT, b" " * (1 << 20)).serialize(mask=False)[:10]
"""The header of a frame of 1 MB."""

JUNK: Mapping[str, bytes] = MappingProxyType(
    {
        "garbage": b"".join(
            text_frame(payload)
            for payload in (
                b"",
                b"null",
                b"not JSON",
                b"[1,2",
                b'{"data":[{"c":null,"p":1.5,"s":"BINANCE:HALF"',
                b'{"data":[{"c":null,"p":NaN,"s":"BINANCE:NAN","t":1700000000000,"v":1}],"type":"trade"}',
                b'{"data":[{"c":null,"p":"1","s":7,"t":null,"v":[]}],"type":"trade"}',
                b'{"data":{},"type":"trade"}',
                b"<html>502 Bad Gateway</html>",
            )
        ),
        "binary": Frame(Opcode.BINARY, bytes(range(256))).serialize(mask=False),
        "invalid_utf8": text_frame(
            b'{"data":[{"c":null,"p":1.5,"s":"\xff\xfe\xc3","t":1700000000000,"v":1}],"type":"trade"}'
        ),
        "unknown_types": b"".join(
            text_frame(payload)
            for payload in (
                b'{"type":"heartbeat","sequence":7}',
                b'{"type":17}',
                b'{"hello":"world"}',
                (
                    b'{"data":[{"category":"company","datetime":1679920200,"headline":"A headline",'
                    b'"id":119440189,"image":"","related":"AAPL","source":"A source","summary":"",'
                    b'"url":"https://example.com/"}],"type":"news"}'
                ),
            )
        ),
    }
)
"""Frames that hold no trade, by kind, ready to be written."""
