"""What a venue hears and says, by protocol: requests from text, answers to them, messages of trades. Pure."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol

import pyarrow as pa

from ingestor.config.feeds import BinanceSettings, JsonSettings
from ingestor.feeds import Feed
from ingestor.feeds.binance import Binance
from ingestor.feeds.json_map import JsonMap
from ingestor.simulator.market import Trade
from ingestor.simulator.wire import Message, bar_messages, finnhub_messages, flat_messages, number_text

VenueProtocol = Literal["finnhub", "flat", "bars", "binance", "json"]

BINANCE_STREAMS = 1024
PLAIN_JSON = JsonSettings(type="json", url="wss://json", subscribe='{"type":"subscribe","symbol":"{symbol}"}')
_SYMBOL = r"(?P<symbol>[^\"]*)"


class Request(NamedTuple):
    """What a client asks for."""

    wanted: bool
    """False where it gives these symbols up."""
    symbols: tuple[str, ...]
    id: Any = None
    """What the answer is to repeat."""


class Refusal(NamedTuple):
    """A symbol that the venue doesn't give, and whether it says which it means."""

    why: Literal["invalid", "too many"]
    symbol: str
    named: bool = True


class Language(Protocol):
    """One protocol."""

    def read(self, text: str) -> Request | None:
        """What a client's message asks for; None where it can't be understood."""
        ...

    def answer(self, request: Request, refusals: Sequence[Refusal]) -> list[dict[str, Any]]:
        """What the venue says to it."""
        ...

    def say(self, trades: Sequence[Trade], *, combined: bool) -> list[Message]:
        """Messages with these trades; `combined`: in the envelope of Binance's combined streams."""
        ...


class _Plain:
    """Requests as Finnhub's, and a word only where one is refused."""

    def __init__(self, messages: Callable[[Sequence[Trade]], list[Message]]) -> None:
        self._messages = messages

    def read(self, text: str) -> Request | None:
        try:
            message = json.loads(text)
            wanted = {"subscribe": True, "unsubscribe": False}[message["type"]]
            return Request(wanted, (str(message["symbol"]),))
        except (ValueError, TypeError, KeyError):
            return None

    def answer(self, request: Request, refusals: Sequence[Refusal]) -> list[dict[str, Any]]:  # noqa: ARG002  as every Language
        return [{"msg": _complaint(refusal), "type": "error"} for refusal in refusals]

    def say(self, trades: Sequence[Trade], *, combined: bool) -> list[Message]:  # noqa: ARG002  as every Language
        return self._messages(trades)


class _Binance:
    """Requests for streams by the list, each with one answer, and a frame a trade; an even trade is a sale."""

    def __init__(self) -> None:
        url = BinanceSettings(type="binance").url
        self._bare, self._combined = Binance(url, "trade"), Binance(url.replace("/ws", "/stream"), "trade")

    def read(self, text: str) -> Request | None:
        """`{"method":"SUBSCRIBE","params":["btcusdt@trade"],"id":1}`"""
        try:
            message = json.loads(text)
            wanted = {"SUBSCRIBE": True, "UNSUBSCRIBE": False}[message["method"]]
            names = [str(stream).partition("@")[0] for stream in message["params"]]
            return Request(wanted, tuple(name.upper() for name in names), message["id"])
        except (ValueError, TypeError, KeyError):
            return None

    def answer(self, request: Request, refusals: Sequence[Refusal]) -> list[dict[str, Any]]:
        if refusals:
            return [{"error": {"code": 2, "msg": f"Invalid request: {refusals[0].why}"}, "id": request.id}]
        return [{"result": None, "id": request.id}]

    def say(self, trades: Sequence[Trade], *, combined: bool) -> list[Message]:
        return _encoded(self._combined if combined else self._bare, trades)


class _Json:
    """What the settings of a `json` feed describe; nothing is ever refused."""

    def __init__(self, settings: JsonSettings) -> None:
        self._feed = JsonMap(settings)
        templates = ((True, settings.subscribe), (False, settings.unsubscribe))
        self._patterns = [(wanted, _pattern(template)) for wanted, template in templates if template]

    def read(self, text: str) -> Request | None:
        for wanted, pattern in self._patterns:
            if match := pattern.fullmatch(text):
                return Request(wanted, (match["symbol"],))
        return None

    def answer(self, request: Request, refusals: Sequence[Refusal]) -> list[dict[str, Any]]:  # noqa: ARG002  as every Language
        return []

    def say(self, trades: Sequence[Trade], *, combined: bool) -> list[Message]:  # noqa: ARG002  as every Language
        return _encoded(self._feed, trades)


def make_language(protocol: VenueProtocol, settings: JsonSettings) -> Language:
    """The language of this protocol; the settings are those of `json`."""
    if protocol == "binance":
        return _Binance()
    return _Json(settings) if protocol == "json" else _Plain(_MESSAGES[protocol])


_MESSAGES: Mapping[str, Callable[[Sequence[Trade]], list[Message]]] = MappingProxyType(
    {"finnhub": finnhub_messages, "flat": flat_messages, "bars": bar_messages}
)


def _complaint(refusal: Refusal) -> str:
    if refusal.why == "too many":
        return "Subscribing to too many symbols"
    return f"Invalid symbol {refusal.symbol}" if refusal.named else "Invalid symbol"


def _pattern(template: str) -> re.Pattern[str]:
    """What finds the symbol in a message that was made of this template."""
    first, *others = map(re.escape, template.split("{symbol}"))
    holes = [_SYMBOL, *["(?P=symbol)"] * len(others)]
    return re.compile(first + "".join(hole + text for hole, text in zip(holes, others, strict=False)))


def _encoded(feed: Feed, trades: Sequence[Trade]) -> list[Message]:
    """A message a trade, by the recorder's own language."""
    columns: Mapping[str, list[Any]] = {
        "timestamp": [trade.time_ms for trade in trades],
        "symbol": [trade.symbol for trade in trades],
        "price": [trade.price for trade in trades],
        "volume": [trade.volume for trade in trades],
        "conditions": [None] * len(trades),
        "trade_id": [trade.number for trade in trades],
        "side": ["buy" if trade.number % 2 else "sell" for trade in trades],
    }
    arrays = [pa.array(columns[field.name], field.type) for field in feed.schema]
    payloads = feed.encode(pa.record_batch(arrays, schema=feed.schema))
    return [Message(payload, (_truth(trade),)) for payload, trade in zip(payloads, trades, strict=True)]


def _truth(trade: Trade) -> str:
    price, volume = number_text(trade.price), number_text(trade.volume)
    return f'{{"p":{price},"s":{json.dumps(trade.symbol)},"t":{trade.time_ms},"v":{volume}}}'
