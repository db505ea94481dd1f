"""Sections of the settings for each venue's language, and which of them a file means."""

import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from ingestor.config.addresses import is_loopback
from ingestor.config.types import KEY_PLACE, Section, Switch, VenueUrl, VenueUrlWithKey, null_as_none

FREE_PLAN_SYMBOLS = 50
"""What Finnhub's free plan accepts on its one connection."""
BINANCE_STREAMS = 1024
"""What Binance serves on one connection."""


class _Feed(Section):
    """What every venue's settings have."""

    allow_plaintext: Switch = Field(default=False, description="permit ws:// to another machine")
    url: VenueUrl = Field(description="where to connect, without a key")

    @property
    def needs_key(self) -> bool:
        """Whether the venue wants the API key."""
        return False

    @property
    def key_variable(self) -> str:
        """Where the environment or a `.env` has it: no key may get to another venue than its own."""
        return "FINNHUB_API_KEY"

    @property
    def venue(self) -> str:
        """Which venue this is; a language of one venue is that venue, wherever it is served."""
        return ""

    @field_validator("url")
    @classmethod
    def _in_clear(cls, url: str, info: ValidationInfo) -> str:
        parts = urlsplit(url)
        in_clear = parts.scheme == "ws" and not is_loopback(parts.hostname or "")
        if in_clear and not info.data.get("allow_plaintext", True):
            what = "sends the key" if cls is FinnhubSettings or KEY_PLACE in url else "is"
            raise ValueError(f"ws:// to another machine {what} in clear: use wss://, or set allow_plaintext: true")
        return url


class FinnhubSettings(_Feed):
    """Finnhub: https://finnhub.io/docs/api/websocket-trades."""

    type: Literal["finnhub"] = Field(default="finnhub", description="the venue's language")
    url: VenueUrl = Field(default="wss://ws.finnhub.io", description="where to connect, without the key")

    @property
    def needs_key(self) -> bool:
        """Finnhub sends nothing without one."""
        return True


class BinanceSettings(_Feed):
    """Binance's spot market: trades with their ids and sides, without a key."""

    type: Literal["binance"] = Field(description="the venue's language")
    url: VenueUrl = Field(
        default="wss://stream.binance.com:9443/ws", description="…/ws, or …/stream for combined streams"
    )
    stream: Literal["trade", "aggTrade"] = Field(
        default="trade", description="each trade, or the fills of one order at one price as one"
    )


def check_binance_tickers(symbols: Sequence[str]) -> None:
    """Raises ValueError for what Binance would take without a word, and send nothing of."""
    for symbol in symbols:
        # Binance joins its pairs without a sign; some names are Chinese, and futures have `_` and a date.
        name = "".join(char for char in symbol.rpartition(":")[2].upper() if char.isalnum() or char == "_")
        if symbol != name:
            raise ValueError(f"`{symbol}` is no symbol of Binance: write {name or 'BTCUSDT'}")
    if len(symbols) > BINANCE_STREAMS:
        raise ValueError(f"{len(symbols)} tickers: Binance serves {BINANCE_STREAMS} a connection, `shard` divides them")


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


def _check_template(text: str) -> str:
    """A message in which `{symbol}` and `{key}` may stand in a string."""
    try:
        json.loads(text.replace("{symbol}", "X").replace(KEY_PLACE, "X"))
    except ValueError:
        raise ValueError("""must be JSON, such as '{"op":"subscribe","symbol":"{symbol}"}'""") from None
    return text


JsonPath = Annotated[str, AfterValidator(_check_path)]
JsonField = Annotated[str, AfterValidator(_check_field)]
JsonTemplate = Annotated[str, AfterValidator(_check_template)]


class JsonFields(Section):
    """Where a trade's values stand: keys, joined by dots where objects hold objects.

    In an array a key is a number, from 0. What begins with `$.` stands in the message, beside the trades.
    """

    symbol: JsonField = Field(default="symbol", description="the key of the symbol")
    price: JsonField = Field(default="price", description="of the price, a number or the text of one")
    volume: Annotated[JsonField | None, BeforeValidator(null_as_none)] = Field(
        default="volume", description="of the volume; null where the venue sends none"
    )
    timestamp: Annotated[JsonField | None, BeforeValidator(null_as_none)] = Field(
        default="timestamp", description="of the trade's time; null: when it came"
    )


class JsonSettings(_Feed):
    """Any venue that sends trades as JSON."""

    type: Literal["json"] = Field(description="the venue's language")
    url: VenueUrlWithKey = Field(description="where to connect; {key} in the query stands for the API key")
    name: Annotated[str | None, BeforeValidator(null_as_none)] = Field(
        default=None, description="what tells this venue from others; null: the host of its address"
    )
    fields: JsonFields = JsonFields()
    items: Annotated[JsonPath | None, BeforeValidator(null_as_none)] = Field(
        default=None, description="the key of the list of trades, where a message has one: data, events[].trades[]"
    )
    prices_by_symbol: Switch = Field(
        default=False, description="a trade may be a map of prices by symbol: {AAPL: 145.67, GOOGL: 2725.67}"
    )
    signed_prices: Switch = Field(default=False, description="prices may be zero or less, as of futures and spreads")
    time_unit: Literal["s", "ms", "us", "ns", "iso"] = Field(
        default="ms", description="of the timestamp: since 1970, or iso for text such as 2026-11-20T14:30:00.123Z"
    )
    time_zone: Annotated[str | None, BeforeValidator(null_as_none)] = Field(
        default=None, description="of iso times that name none, such as Asia/Seoul; without it those are refused"
    )
    match: dict[JsonPath, str] = Field(
        default={}, description="what a message with trades, or each of its trades, says, by key; the rest are notices"
    )
    subscribe: Annotated[JsonTemplate | None, BeforeValidator(null_as_none)] = Field(
        default=None,
        description="message that asks for {symbol}, with the API key for {key}; null where all is sent unasked",
    )
    never_closes: Switch = Field(default=False, description="its markets trade around the clock; else as US stocks do")
    unsubscribe: Annotated[JsonTemplate | None, BeforeValidator(null_as_none)] = Field(
        default=None, description="message that gives {symbol} up"
    )

    @property
    def needs_key(self) -> bool:
        """Where the settings have a place for it."""
        return any(KEY_PLACE in text for text in (self.url, self.subscribe, self.unsubscribe) if text)

    @property
    def key_variable(self) -> str:
        """Its own."""
        return "FEED_API_KEY"

    @property
    def venue(self) -> str:
        """Its name, or the host of its address, with the port where that is not the scheme's own."""
        parts = urlsplit(self.url)
        usual = 443 if parts.scheme == "wss" else 80
        return self.name or f"{parts.hostname}{'' if parts.port in (None, usual) else f':{parts.port}'}"

    @field_validator("time_zone")
    @classmethod
    def _known_zone(cls, name: str | None) -> str | None:
        try:
            return name and ZoneInfo(name).key
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(f"no time zone {name!r} here: write it like Asia/Seoul") from None

    @model_validator(mode="after")
    def _mappable(self) -> Self:
        """What the settings say of one another."""
        keys = (self.fields.symbol, self.fields.price)
        if self.prices_by_symbol and any(key.startswith("$.") or key.split(".")[0].isdecimal() for key in keys):
            raise ValueError("`prices_by_symbol` has no place beside fields of arrays, or of the message (`$.`)")
        if self.time_zone and self.time_unit != "iso":
            raise ValueError("`time_zone` is for times as text: `time_unit: iso`")
        return self


FEEDS: Mapping[str, type[_Feed]] = MappingProxyType(
    {"finnhub": FinnhubSettings, "binance": BinanceSettings, "json": JsonSettings}
)


def _feed_type(value: object) -> str | None:
    """Which of them a section is for: Finnhub where it doesn't say. None for another word."""
    kind = value.get("type", "finnhub") if isinstance(value, Mapping) else getattr(value, "type", "finnhub")
    return kind if isinstance(kind, str) and kind in FEEDS else None


FeedSettings = Annotated[
    Annotated[FinnhubSettings, Tag("finnhub")]
    | Annotated[BinanceSettings, Tag("binance")]
    | Annotated[JsonSettings, Tag("json")],
    Discriminator(
        _feed_type, custom_error_type="feed_type", custom_error_message=f"`type` must be one of {', '.join(FEEDS)}"
    ),
]
