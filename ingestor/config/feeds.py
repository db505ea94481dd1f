"""Sections of the settings for each venue's language, and which of them a file means."""

import json
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

import pydantic
from pydantic import AfterValidator, BeforeValidator, Field

from ingestor.config import types
from ingestor.config.addresses import is_loopback

FREE_PLAN_SYMBOLS = 50
"""What Finnhub's free plan accepts on its one connection."""
BINANCE_STREAMS = 1024
"""What Binance serves on one connection."""


class _Feed(types.Section):
    """What every venue's settings have."""

    allow_plaintext: types.Switch = Field(default=False, description="permit ws:// to another machine")
    url: types.VenueUrl = Field(description="where to connect, without a key")

    @property
    def needs_key(self) -> bool:
        """Whether the venue wants the API key."""
        return False

    @property
    def needs_secret(self) -> bool:
        """Whether the venue wants a second secret beside the key."""
        return False

    @property
    def key_variable(self) -> str:
        """Where the environment or a `.env` has it: no key may get to another venue than its own."""
        return "FINNHUB_API_KEY"

    @property
    def only_one_connection(self) -> str | None:
        """Why there can't be several at once, which bring the same trades; None: there can."""
        return "Finnhub ends both where a key has a second one"

    @property
    def symbols_per_connection(self) -> int | None:
        """So many can be asked for on one connection; None: any number, or there is no second connection for more."""
        return None

    def check_symbols(self, symbols: Sequence[str], connections: int) -> None:
        """Raises ValueError where these symbols can't be asked for, on so many connections as they take."""

    @property
    def venue(self) -> str:
        """Which venue this is; a language of one venue is that venue, wherever it is served."""
        return ""

    @pydantic.field_validator("url")
    @classmethod
    def _in_clear(cls, url: str, info: pydantic.ValidationInfo) -> str:
        parts = urlsplit(url)
        in_clear = parts.scheme == "ws" and not is_loopback(parts.hostname or "")
        if in_clear and not info.data.get("allow_plaintext", True):
            what = "sends the key" if cls is FinnhubSettings or types.KEY_PLACE in url else "is"
            raise ValueError(f"ws:// to another machine {what} in clear: use wss://, or set allow_plaintext: true")
        return url


class FinnhubSettings(_Feed):
    """Finnhub: https://finnhub.io/docs/api/websocket-trades."""

    type: Literal["finnhub"] = Field(default="finnhub", description="the venue's language")
    url: types.VenueUrl = Field(default="wss://ws.finnhub.io", description="where to connect, without the key")

    @property
    def needs_key(self) -> bool:
        """Finnhub sends nothing without one."""
        return True


class BinanceSettings(_Feed):
    """Binance's spot market: trades with their ids and sides, without a key."""

    type: Literal["binance"] = Field(description="the venue's language")
    url: types.VenueUrl = Field(
        default="wss://stream.binance.com:9443/ws", description="…/ws, or …/stream for combined streams"
    )
    stream: Literal["trade", "aggTrade"] = Field(
        default="trade", description="each trade, or the fills of one order at one price as one"
    )

    @property
    def only_one_connection(self) -> str | None:
        """There can."""
        return None

    @property
    def symbols_per_connection(self) -> int:
        """By Binance's documentation."""
        return BINANCE_STREAMS

    def check_symbols(self, symbols: Sequence[str], connections: int) -> None:  # noqa: ARG002  as many as there are
        """Raises ValueError for what Binance would take without a word, and send nothing of."""
        for symbol in symbols:
            # Binance joins its pairs without a sign; some names are Chinese, and futures have `_` and a date.
            name = "".join(char for char in symbol.rpartition(":")[2].upper() if char.isalnum() or char == "_")
            if symbol != name:
                raise ValueError(f"`{symbol}` is no symbol of Binance: write {name or 'BTCUSDT'}")


def _check_path(text: str) -> str:
    keys = [key.removesuffix("[]") for key in text.split(".")]
    if not all(keys) or not text.isprintable() or "$" in keys:
        raise ValueError("must be a key, or keys joined by dots: data.price")
    return text


def _check_field(text: str) -> str:
    _check_path(text.removeprefix("$."))
    if "[]" in text:
        raise ValueError("must be one value: `[]` belongs into `items` and `match`")
    return text


_PLACES = re.compile(r"\{(symbol|symbol_lower|key|secret)\}")
"""What a message may have filled in."""


def _check_template(text: str) -> str:
    """A message in which `{symbol}` and `{key}` may stand in a string."""
    try:
        json.loads(_PLACES.sub("X", text))
    except ValueError:
        raise ValueError("""must be JSON, such as '{"op":"subscribe","symbol":"{symbol}"}'""") from None
    return text


def _check_groups(text: str) -> str:
    try:
        groups = re.compile(text).groups
    except re.error as error:
        raise ValueError(f"must be a regular expression: {error}") from None
    if groups != 1:
        raise ValueError("must have one group in parentheses, which is the symbol: '\"(.+)\" is unknown'")
    return text


def _as_patterns(value: object) -> object:
    """One pattern may stand for a list of one."""
    return [value] if isinstance(value, str | Mapping) and value else value


JsonPath = Annotated[str, AfterValidator(_check_path)]
JsonField = Annotated[str, AfterValidator(_check_field)]
JsonTemplate = Annotated[str, AfterValidator(_check_template)]
JsonPattern = Annotated[dict[JsonPath, str], Field(min_length=1)]
"""What a message says, by key; `*` is anything but null. In a list one item has to say it."""
JsonAnswer = str | JsonPattern
"""A whole message as text, or a pattern."""


class JsonFields(types.Section):
    """Where a trade's values stand: keys, joined by dots where objects hold objects.

    In an array a key is a number, from 0. What begins with `$.` stands in the message, beside the trades.
    """

    symbol: JsonField = Field(default="symbol", description="the key of the symbol")
    price: JsonField = Field(default="price", description="of the price, a number or the text of one")
    volume: Annotated[JsonField | None, BeforeValidator(types.null_as_none)] = Field(
        default="volume", description="of the volume; null where the venue sends none"
    )
    timestamp: Annotated[JsonField | None, BeforeValidator(types.null_as_none)] = Field(
        default="timestamp", description="of the trade's time; null: when it came"
    )


class JsonColumn(types.Section):
    """A column of the venue's own."""

    source: JsonField = Field(alias="from", description="where its value stands, as in `fields`")
    type: Literal["text", "integer", "number", "codes"] = Field(
        default="text", description="integer and number: also as text; codes: a list, joined by commas"
    )
    values: dict[str, str] = Field(default={}, description="of text: what to write for what the venue says")
    consecutive: types.Switch = Field(
        default=False, description="of integers: it rises by one with each trade of a symbol, so that a jump is a loss"
    )

    @pydantic.model_validator(mode="after")
    def _fits_its_type(self) -> Self:
        if self.values and self.type != "text":
            raise ValueError("`values` are for `type: text`")
        if self.consecutive and self.type != "integer":
            raise ValueError("`consecutive` is for `type: integer`")
        return self


RECORDED_COLUMNS = frozenset("timestamp symbol price volume conditions received_at sequence repeated".split())  # noqa: SIM905
"""Of every recording: `schema.TRADES`, which this room does without, since it loads Arrow."""


def _check_column(name: str) -> str:
    if not re.fullmatch("[a-z][a-z0-9_]{0,31}", name):
        raise ValueError("the name of a column is lower case: trade_id")
    if name in RECORDED_COLUMNS and name != "conditions":
        raise ValueError(f"every recording has a column `{name}`: see `fields`")
    return name


class JsonLogin(types.Section):
    """A message that must be answered before anything is asked for."""

    send: JsonTemplate = Field(description="the message, with {key} for the API key and {secret} for a second secret")
    after: Annotated[JsonPattern | None, BeforeValidator(types.null_as_none)] = Field(
        default=None, description="what the venue says before it wants to hear this; null: at once"
    )
    accepted: Annotated[list[JsonPattern], BeforeValidator(_as_patterns), Field(min_length=1)] = Field(
        description="the answer that lets us in"
    )
    refused: Annotated[list[JsonPattern], BeforeValidator(_as_patterns)] = Field(
        default=[], description="the answer that doesn't"
    )
    timeout: Annotated[types.Duration, types.lasting("1s", "5m")] = Field(
        default=10.0, description="how long to wait for either"
    )


class JsonHeartbeat(types.Section):
    """What the venue wants to hear from time to time."""

    every: Annotated[types.Duration, types.lasting("1s", "1h")] = Field(description="so often")
    send: str = Field(min_length=1, description="the message: text, or JSON")
    answer: JsonAnswer | None = Field(default=None, description="what the venue says to it, if anything: pong")


class JsonRefusal(types.Section):
    """How the venue says no to a subscription."""

    match: JsonPattern = Field(description="what such a message says")
    text: JsonField | None = Field(default=None, description="the key of its words")
    symbol: JsonField | None = Field(default=None, description="the key of the symbol")
    symbol_in: Annotated[str, AfterValidator(_check_groups)] | None = Field(
        default=None, description="a regular expression whose group is the symbol, in `symbol` or else in `text`"
    )


def _check_list_url(url: str) -> str:
    parts = urlsplit(url)
    if not parts.hostname or (parts.scheme != "https" and not is_loopback(parts.hostname)) or not url.isprintable():
        raise ValueError("must be an address that begins with https://")
    return url


class JsonSymbolList(types.Section):
    """Where the venue lists its symbols: what `ingestor symbols` asks."""

    url: Annotated[str, AfterValidator(_check_list_url)] = Field(description="an HTTP address, without a key")
    items: Annotated[JsonPath | None, BeforeValidator(types.null_as_none)] = Field(
        default=None, description="the key of the list, or of an object by symbol; null: the answer itself"
    )
    symbol: JsonField | Literal["*"] = Field(description="the key of the symbol in an item; *: the item's own key")
    match: dict[JsonPath, str] = Field(default={}, description="what an item says that can be recorded")


BINANCE_SYMBOLS = JsonSymbolList(
    url="https://api.binance.com/api/v3/exchangeInfo", items="symbols", symbol="symbol", match={"status": "TRADING"}
)


class JsonLimits(types.Section):
    """What the venue allows on one connection."""

    symbols: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(
        default=None, description="so many at most; more are divided among several connections, if `connections` allows"
    )
    messages_per_second: Annotated[float, Field(gt=0, le=1000)] | None = Field(
        default=None, description="from us to the venue"
    )
    max_age: Annotated[types.Duration, types.lasting("1m", "365d")] | None = Field(
        default=None, description="then the next connection takes over; a little less than the venue allows"
    )
    connections: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=1, description="so many at once, of one client: for more symbols, and for connection.redundant"
    )


Compression = Literal["gzip", "deflate"]


class JsonSettings(_Feed):
    """Any venue that sends trades as JSON."""

    type: Literal["json"] = Field(description="the venue's language")
    url: types.VenueUrlWithKey = Field(description="where to connect; {key} in the query stands for the API key")
    name: Annotated[str | None, BeforeValidator(types.null_as_none)] = Field(
        default=None, description="what tells this venue from others; null: the host of its address"
    )
    compression: Annotated[Compression | None, BeforeValidator(types.null_as_none)] = Field(
        default=None,
        description="of each message, where the venue compresses it and says nothing of it in the handshake",
    )
    fields: JsonFields = JsonFields()
    columns: dict[Annotated[str, AfterValidator(_check_column)], JsonColumn] = Field(
        default={}, description="columns of the venue's own, by name, such as trade_id, side and conditions"
    )
    items: Annotated[JsonPath | None, BeforeValidator(types.null_as_none)] = Field(
        default=None, description="the key of the list of trades, where a message has one: data, events[].trades[]"
    )
    prices_by_symbol: types.Switch = Field(
        default=False, description="a trade may be a map of prices by symbol: {AAPL: 145.67, GOOGL: 2725.67}"
    )
    signed_prices: types.Switch = Field(
        default=False, description="prices may be zero or less, as of futures and spreads"
    )
    time_unit: Literal["s", "ms", "us", "ns", "iso"] = Field(
        default="ms", description="of the timestamp: since 1970, or iso for text such as 2026-11-20T14:30:00.123Z"
    )
    time_zone: Annotated[types.TimeZone | None, BeforeValidator(types.null_as_none)] = Field(
        default=None, description="of iso times that name none, such as Asia/Seoul; without it those are refused"
    )
    match: dict[JsonPath, str] = Field(
        default={}, description="what a message with trades, or each of its trades, says, by key; the rest are notices"
    )
    login: Annotated[JsonLogin | None, BeforeValidator(types.null_as_none)] = Field(
        default=None, description="what to send before all else, and the answer to wait for"
    )
    on_open: list[JsonTemplate] = Field(
        default=[], description="messages that each connection begins with, after the login"
    )
    subscribe: Annotated[JsonTemplate | None, BeforeValidator(types.null_as_none)] = Field(
        default=None,
        description="message that asks for {symbol} (or {symbol_lower}), with the API key for {key}; null where all is "
        "sent unasked",
    )
    subscribe_first: Annotated[JsonTemplate | None, BeforeValidator(types.null_as_none)] = Field(
        default=None, description="the first one on a connection, where that differs"
    )
    symbols_per_message: Annotated[int, Field(ge=1, le=10_000)] = Field(
        default=1, description="so many are asked for at once: the item of a list that names {symbol} is repeated"
    )
    heartbeat: Annotated[JsonHeartbeat | None, BeforeValidator(types.null_as_none)] = Field(
        default=None, description="what to send from time to time"
    )
    acknowledged: Annotated[list[JsonPattern], BeforeValidator(_as_patterns)] = Field(
        default=[], description="how the venue says that it took a request"
    )
    refused: list[JsonRefusal] = Field(default=[], description="how the venue refuses a symbol")
    ignore: Annotated[list[JsonAnswer], BeforeValidator(_as_patterns)] = Field(
        default=[], description="messages that say nothing of trades, by their text or by what they say"
    )
    limits: JsonLimits = JsonLimits()
    symbol_list: Annotated[JsonSymbolList | None, BeforeValidator(types.null_as_none)] = Field(
        default=None, description="where the venue lists its symbols, for `ingestor symbols`"
    )
    never_closes: types.Switch = Field(
        default=False, description="its markets trade around the clock; else as US stocks do"
    )
    unsubscribe: Annotated[JsonTemplate | None, BeforeValidator(types.null_as_none)] = Field(
        default=None, description="message that gives {symbol} up"
    )

    @property
    def needs_key(self) -> bool:
        """Where the settings have a place for it."""
        return any(types.KEY_PLACE in text for text in (self.url, *self._messages()))

    @property
    def needs_secret(self) -> bool:
        """Where the settings have a place for it."""
        return any(types.SECRET_PLACE in text for text in self._messages())

    def _messages(self) -> list[str]:
        login = self.login.send if self.login else None
        texts = (login, *self.on_open, self.subscribe, self.subscribe_first, self.unsubscribe)
        return [text for text in texts if text]

    @property
    def key_variable(self) -> str:
        """Its own."""
        return "FEED_API_KEY"

    @property
    def only_one_connection(self) -> str | None:
        """Where the settings allow no more, or there is nothing to tell apart what two bring."""
        if self.limits.connections == 1:
            return "`feed.limits.connections` allows one"
        if "trade_id" not in self.columns:
            return "`feed.columns` has no `trade_id`, by which to tell apart what both bring"
        return None

    @property
    def symbols_per_connection(self) -> int | None:
        """By its `limits`."""
        return self.limits.symbols

    def check_symbols(self, symbols: Sequence[str], connections: int) -> None:
        """Raises ValueError where its `limits` allow less."""
        most, allowed = self.limits.symbols, self.limits.connections
        if most is None or len(symbols) <= most:
            return
        if self.subscribe is None:
            raise ValueError(f"{len(symbols)} tickers: `feed.limits` allows {most} on a connection, which brings all")
        if connections > allowed:
            raise ValueError(
                f"{len(symbols)} tickers need {connections} connections, of {most} symbols each, and"
                f" `feed.limits.connections` allows {allowed}: `shard` divides them among recorders"
            )

    @property
    def venue(self) -> str:
        """Its name, or the host of its address, with the port where that is not the scheme's own."""
        parts = urlsplit(self.url)
        usual = 443 if parts.scheme == "wss" else 80
        return self.name or f"{parts.hostname}{'' if parts.port in (None, usual) else f':{parts.port}'}"

    @pydantic.model_validator(mode="after")
    def _mappable(self) -> Self:
        """What the settings say of one another."""
        keys = (self.fields.symbol, self.fields.price)
        if self.prices_by_symbol and any(key.startswith("$.") or key.split(".")[0].isdecimal() for key in keys):
            raise ValueError("`prices_by_symbol` has no place beside fields of arrays, or of the message (`$.`)")
        if self.time_zone and self.time_unit != "iso":
            raise ValueError("`time_zone` is for times as text: `time_unit: iso`")
        for text in (self.subscribe, self.subscribe_first) if self.symbols_per_message > 1 else ():
            if text and find_list(json.loads(text)) is None:
                raise ValueError('`symbols_per_message` needs a list that names {symbol} in one item: ["{symbol}"]')
        if self.columns.get("conditions", _TEXTS).type not in ("text", "codes"):
            raise ValueError("`conditions` is a column of text: `type: text`, or `type: codes`")
        return self


_TEXTS = JsonColumn.model_validate({"from": "x"})


def find_list(message: Any) -> list[Any] | None:
    """The list in a message's template whose one item names all the symbols; None where there is none."""
    found = _innermost_list(message)
    return found if found and json.dumps(found).count("{symbol") == json.dumps(message).count("{symbol") else None


def _innermost_list(message: Any) -> list[Any] | None:
    for below in message.values() if isinstance(message, dict) else message if isinstance(message, list) else ():
        if (found := _innermost_list(below)) is not None:
            return found
    named = isinstance(message, list) and len(message) == 1 and "{symbol" in json.dumps(message)
    return message if named else None


FEEDS: Mapping[str, type[_Feed]] = MappingProxyType(
    {"finnhub": FinnhubSettings, "binance": BinanceSettings, "json": JsonSettings}
)


def _feed_type(value: object) -> str | None:
    """Which of them a section is for: Finnhub where it doesn't say. None for another word."""
    kind = value.get("type", "finnhub") if isinstance(value, Mapping) else getattr(value, "type", "finnhub")
    return kind if isinstance(kind, str) and kind in FEEDS else None


FeedSettings = Annotated[
    Annotated[FinnhubSettings, pydantic.Tag("finnhub")]
    | Annotated[BinanceSettings, pydantic.Tag("binance")]
    | Annotated[JsonSettings, pydantic.Tag("json")],
    pydantic.Discriminator(
        _feed_type, custom_error_type="feed_type", custom_error_message=f"`type` must be one of {', '.join(FEEDS)}"
    ),
]


def find_history(feed: str, venue: str, stream: str = "") -> str | None:
    """Whose history fills the gaps of a recording of this venue, as far as one is known."""
    if feed == "json":
        return next((one for one in ("coinbase", "kraken") if one in venue), None)
    return "binance-aggregates" if stream == "aggTrade" else feed
