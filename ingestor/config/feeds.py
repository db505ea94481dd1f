"""A section for each venue's language, and which of them a file means."""

import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, ValidationInfo, field_validator

from ingestor.config.addresses import VenueUrl, is_loopback
from ingestor.config.section import Section, Switch, null_as_none

FREE_PLAN_SYMBOLS = 50
"""What Finnhub's free plan accepts on its one connection."""
BINANCE_STREAMS = 1024
"""What Binance serves on one connection."""


class _Feed(Section):
    """What every venue's settings have; `needs_key` says whether it wants the API key."""

    needs_key: ClassVar[bool] = False
    allow_plaintext: Switch = Field(default=False, description="permit ws:// to another machine")
    url: VenueUrl = Field(description="where to connect, without a key")

    @field_validator("url")
    @classmethod
    def _in_clear(cls, url: str, info: ValidationInfo) -> str:
        parts = urlsplit(url)
        in_clear = parts.scheme == "ws" and not is_loopback(parts.hostname or "")
        if in_clear and not info.data.get("allow_plaintext", True):
            what = "sends the key" if cls.needs_key else "is"
            raise ValueError(f"ws:// to another machine {what} in clear: use wss://, or set allow_plaintext: true")
        return url


class FinnhubSettings(_Feed):
    """Finnhub: https://finnhub.io/docs/api/websocket-trades."""

    needs_key: ClassVar[bool] = True
    type: Literal["finnhub"] = Field(default="finnhub", description="the venue's language")
    url: VenueUrl = Field(default="wss://ws.finnhub.io", description="where to connect, without the key")


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
        name = symbol.rpartition(":")[2].upper()
        if symbol != name:
            raise ValueError(f"`{symbol}` is no symbol of Binance: write {name}")
    if len(symbols) > BINANCE_STREAMS:
        raise ValueError(f"{len(symbols)} tickers: Binance serves {BINANCE_STREAMS} a connection, `shard` divides them")


def _check_path(text: str) -> str:
    if not all(text.split(".")) or not text.isprintable():
        raise ValueError("must be a key, or keys joined by dots: data.price")
    return text


def _check_template(text: str) -> str:
    """A message in which `{symbol}` may stand in a string."""
    try:
        json.loads(text.replace("{symbol}", "X"))
    except ValueError:
        raise ValueError("""must be JSON, such as '{"op":"subscribe","symbol":"{symbol}"}'""") from None
    return text


JsonPath = Annotated[str, AfterValidator(_check_path)]
JsonTemplate = Annotated[str, AfterValidator(_check_template)]


class JsonFields(Section):
    """Where a trade's values stand: keys, joined by dots where objects hold objects."""

    symbol: JsonPath = Field(default="symbol", description="the key of the symbol")
    price: JsonPath = Field(default="price", description="of the price, a number or the text of one")
    volume: Annotated[JsonPath | None, BeforeValidator(null_as_none)] = Field(
        default="volume", description="of the volume; null where the venue sends none"
    )
    timestamp: Annotated[JsonPath | None, BeforeValidator(null_as_none)] = Field(
        default="timestamp", description="of the trade's time; null: when it came"
    )


class JsonSettings(_Feed):
    """Any venue that sends trades as JSON."""

    type: Literal["json"] = Field(description="the venue's language")
    fields: JsonFields = JsonFields()
    items: Annotated[JsonPath | None, BeforeValidator(null_as_none)] = Field(
        default=None, description="the key of the list of trades, where a message has one"
    )
    time_unit: Literal["s", "ms", "us", "ns", "iso"] = Field(
        default="ms", description="of the timestamp: since 1970, or iso for text such as 2026-11-20T14:30:00.123Z"
    )
    match: dict[str, str] = Field(
        default={}, description="what a message with trades says, by key; all others are notices"
    )
    subscribe: Annotated[JsonTemplate | None, BeforeValidator(null_as_none)] = Field(
        default=None, description="message that asks for {symbol}; null where the venue sends all unasked"
    )
    never_closes: Switch = Field(default=False, description="its markets trade around the clock; else as US stocks do")
    unsubscribe: Annotated[JsonTemplate | None, BeforeValidator(null_as_none)] = Field(
        default=None, description="message that gives {symbol} up"
    )


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
