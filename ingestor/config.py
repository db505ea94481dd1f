"""Settings: one YAML file and the environment, read once, frozen; every mistake named with its place.

Every default is here and nowhere else; `config/ingestor.yaml` is the manual; a test holds it to them.
"""

import difflib
import json
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from ipaddress import ip_address
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, get_args
from urllib.parse import SplitResult, urlsplit

from dotenv import dotenv_values
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainSerializer,
    SecretStr,
    Tag,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from ingestor.errors import ConfigError
from ingestor.shard import symbols_of_shard
from ingestor.yaml_file import KeyPath, Mistake, YamlFile, read_yaml

DEFAULT_PATH = Path("config/ingestor.yaml")
FREE_PLAN_SYMBOLS = 50
"""What Finnhub's free plan accepts on its one connection."""
BINANCE_STREAMS = 1024
"""What Binance serves on one connection."""

_SECONDS = {
    "ms": Decimal("0.001"),
    "s": Decimal(1),
    "m": Decimal(60),
    "h": Decimal(3600),
    "d": Decimal(86400),
}
_BYTES = {"B": 1, "KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30, "TB": 1 << 40}
_DURATION = re.compile(r"(\d{1,12}(?:\.\d{1,6})?) ?(ms|s|m|h|d)", re.ASCII)
_SIZE = re.compile(r"(\d{1,12}(?:\.\d{1,6})?) ?(B|KB|MB|GB|TB)", re.ASCII)
_TICKER_MAX = 64
_KEY_WORDS = frozenset({"api_key", "apikey", "finnhub_api_key", "key", "secret", "token"})
_KEY_BELONGS = "the key belongs into FINNHUB_API_KEY or into .env beside this file, never in here"

_Number = TypeVar("_Number", int, float)


# Units


def parse_duration(value: object) -> float:
    """Seconds from `250ms`, `20s`, `15m`, `2h` or `365d`. Raises ValueError with a sentence."""
    text = str(value).strip()
    if match := _DURATION.fullmatch(text):
        return float(Decimal(match[1]) * _SECONDS[match[2]])
    if re.fullmatch(r"\d+(\.\d+)?", text, re.ASCII):
        raise ValueError(f"`{text}` has no unit: write {text}s or {text}ms")
    raise ValueError(f"`{text}` is no duration: write it like 250ms, 20s, 15m, 2h or 365d")


def parse_size(value: object) -> int:
    """Bytes from `512KB`, `64MB` or `2GB` (powers of 1024 as operators expect of buffers: 1 MB = 1,048,576).
    Raises ValueError with a sentence.
    """
    text = str(value).strip()
    if match := _SIZE.fullmatch(text):
        return int(Decimal(match[1]) * _BYTES[match[2]])
    if re.fullmatch(r"\d+(\.\d+)?", text, re.ASCII):
        raise ValueError(f"`{text}` has no unit: write {text}MB or {text}B")
    raise ValueError(f"`{text}` is no size: write it like 512KB, 64MB or 2GB")


def format_duration(seconds: float) -> str:
    """As `parse_duration` reads it, in the largest unit that needs no fraction: 900.0 is `15m`."""
    exact = Decimal(repr(round(seconds, 6)))
    unit = next((unit for unit in ("d", "h", "m", "s") if exact and exact % _SECONDS[unit] == 0), "ms")
    return f"{(exact / _SECONDS[unit]).normalize():f}{unit}" if exact else "0s"


def format_size(size: int) -> str:
    """As `parse_size` reads it, in the largest unit that needs no fraction: 67,108,864 is `64MB`."""
    unit = next((unit for unit in ("TB", "GB", "MB", "KB") if size and size % _BYTES[unit] == 0), "B")
    return f"{size // _BYTES[unit]}{unit}"


def _seconds(value: object) -> object:
    """YAML gives text and is parsed; a Python caller's number is seconds already."""
    return parse_duration(value) if isinstance(value, str) else value


def _bytes(value: object) -> object:
    return parse_size(value) if isinstance(value, str) else value


Duration = Annotated[
    float,
    BeforeValidator(_seconds),
    PlainSerializer(format_duration, return_type=str),
    WithJsonSchema({"type": "string", "pattern": f"^{_DURATION.pattern}$", "examples": ["250ms", "20s", "15m"]}),
]
Size = Annotated[
    int,
    BeforeValidator(_bytes),
    PlainSerializer(format_size, return_type=str),
    WithJsonSchema({"type": "string", "pattern": f"^{_SIZE.pattern}$", "examples": ["512KB", "64MB", "2GB"]}),
]


def _lasting(low: str, high: str) -> AfterValidator:
    """A duration from `low` to `high`, both included."""
    return AfterValidator(_between(low, high, parse_duration))


def _holding(low: str, high: str) -> AfterValidator:
    """A size from `low` to `high`, both included."""
    return AfterValidator(_between(low, high, parse_size))


def _between(low: str, high: str, parse: Callable[[object], float]) -> Callable[[_Number], _Number]:
    def check(value: _Number) -> _Number:
        if not parse(low) <= value <= parse(high):
            raise ValueError(f"must be from {low} to {high}")
        return value

    return check


# Text


def _parse_switch(value: object) -> object:
    """YAML 1.1's `yes`, `on` and `off` are refused: the same words are tickers."""
    if isinstance(value, str):
        if value not in {"true", "false"}:
            raise ValueError(f"must be true or false, not `{value}`")
        return value == "true"
    return value


def _parse_path(value: object) -> object:
    if isinstance(value, str):
        if value in {"", "~", "null"} or not value.isprintable():
            raise ValueError("must be a path")
        try:
            return Path(value).expanduser()
        except RuntimeError:
            raise ValueError(f"`{value}` names a home that doesn't exist") from None
    return value


def _null_as_none(value: object) -> object:
    return None if value in ("", "~", "null") else value


def _null_section(value: object) -> object:
    """An empty section is one whose every line is a comment: it is all defaults, and not null."""
    return None if value in ("~", "null") else value


def _parse_ticker(value: object) -> object:
    """The symbol as it is written. Raises ValueError with a sentence."""
    if fault := _ticker_fault(value):
        raise ValueError(fault)
    return value


def _ticker_fault(value: object) -> str | None:
    """What keeps this item from being a symbol. A blank inside doesn't: `IC MARKETS:1` is one."""
    if isinstance(value, Mapping) and len(value) == 1:
        return "a stray blank after the colon: write {}:{}".format(*next(iter(value.items())))
    if not isinstance(value, str) or not value:
        return "must be a symbol: text, one an item"
    if isinstance(value, _Repeated):
        return f"{value} is listed twice"
    if len(value) > _TICKER_MAX:
        return f"a symbol has at most {_TICKER_MAX} characters, this one {len(value)}"
    if "," in value or value != value.strip():
        return f"`{value}` holds a comma or ends in a blank: one symbol an item"
    return None if value.isprintable() else f"{value!r} holds a control or an invisible character"


class _Repeated(str):
    """A ticker that stands earlier in its list too."""

    __slots__ = ()


def _mark_repeats(value: object) -> object:
    """Marks what is listed twice, to be refused in its own place. Raises ValueError unless it is a list."""
    if not isinstance(value, list | tuple) or not value:
        raise ValueError("must be a list of at least one symbol: [AAPL], or a line `- AAPL` for each")
    seen: set[str] = set()
    marked: list[object] = []
    for item in value:
        marked.append(_Repeated(item) if isinstance(item, str) and item in seen else item)
        seen.update([item] if isinstance(item, str) else [])
    return marked


def _refuse_doubles(formats: tuple[str, ...]) -> tuple[str, ...]:
    if not formats or len(set(formats)) < len(formats):
        raise ValueError("must name parquet, csv, or each once")
    return formats


def _check_url(url: str) -> str:
    """A WebSocket address without a secret. The text never repeats the address: a key may be in it."""
    try:
        parts = urlsplit(url)
        usable = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        raise ValueError("is no address: write wss://host or wss://host:port") from None
    if parts.scheme not in {"wss", "ws"} or not usable or not url.isprintable() or " " in url:
        raise ValueError("must be an address that begins with wss:// (or ws:// on this machine)")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError(f"must end before any `?`, `#` or `@`: {_KEY_BELONGS}")
    return url


def _check_redis_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        usable = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable or parts.scheme not in {"redis", "rediss"} or parts.query or parts.fragment or not url.isprintable():
        raise ValueError("must be an address: redis://host:port/database, or rediss:// for TLS")
    if parts.password is not None:
        raise ValueError("the password belongs into REDIS_PASSWORD or into .env beside this file, never in here")
    return url


def _check_store(uri: str) -> str:
    parts = urlsplit(uri)
    if not uri or ("://" in uri and parts.scheme not in {"s3", "gs", "file"}) or not uri.isprintable():
        raise ValueError("must be s3://bucket/path, gs://bucket/path, or a directory")
    if parts.password is not None or "secret_key" in parts.query:
        raise ValueError("credentials belong into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, never in here")
    return uri


def _on_loopback(parts: SplitResult) -> bool:
    return is_loopback(parts.hostname or "")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach this address."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def split_address(text: str) -> tuple[str, int]:
    """`127.0.0.1:9464` or `[::1]:9464` → host and port. Raises ValueError with a sentence."""
    host, colon, port = text.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or not bare or (":" in bare) != bracketed or not re.fullmatch(r"\d{1,5}", port, re.ASCII):
        raise ValueError(f"`{text}` is no address: write 127.0.0.1:9464, [::1]:9464, or null")
    if int(port) > 65535:
        raise ValueError(f"{port} is no port: at most 65535")
    return bare, int(port)


def _check_address(text: str | None) -> str | None:
    if text is not None:
        split_address(text)
    return text


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


Switch = Annotated[bool, BeforeValidator(_parse_switch)]
JsonPath = Annotated[str, AfterValidator(_check_path)]
JsonTemplate = Annotated[str, AfterValidator(_check_template)]
PathText = Annotated[Path, BeforeValidator(_parse_path)]
Ticker = Annotated[
    str,
    BeforeValidator(_parse_ticker),
    # An editor reads `000001`, `ON` and `NULL` as something else than text; the recorder doesn't.
    WithJsonSchema({"type": ["string", "number", "boolean", "null"], "maxLength": _TICKER_MAX}),
]


# The settings


def _defaults_as_written(schema: dict[str, Any], model: type[BaseModel]) -> None:
    """A JSON Schema for editors shows a default as the file would write it: `15m`, not 900.0."""
    for key, default in model.model_construct().model_dump(mode="json").items():
        schema["properties"][key]["default"] = default


class _Section(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, json_schema_extra=_defaults_as_written
    )

    @model_validator(mode="before")
    @classmethod
    def _all_commented_out(cls, value: object) -> object:
        """A section of which every line is a comment has no value: it is all defaults."""
        return {} if value == "" else value


class _Feed(_Section):
    """What every venue's settings have; `needs_key` says whether it wants the API key."""

    needs_key: ClassVar[bool] = False
    allow_plaintext: Switch = Field(default=False, description="permit ws:// to another machine")
    url: Annotated[str, AfterValidator(_check_url)] = Field(description="where to connect, without a key")

    @field_validator("url")
    @classmethod
    def _in_clear(cls, url: str, info: ValidationInfo) -> str:
        parts = urlsplit(url)
        if parts.scheme == "ws" and not info.data.get("allow_plaintext", True) and not _on_loopback(parts):
            what = "sends the key" if cls.needs_key else "is"
            raise ValueError(f"ws:// to another machine {what} in clear: use wss://, or set allow_plaintext: true")
        return url


class FinnhubSettings(_Feed):
    """Finnhub: https://finnhub.io/docs/api/websocket-trades."""

    needs_key: ClassVar[bool] = True
    type: Literal["finnhub"] = Field(default="finnhub", description="the venue's language")
    url: Annotated[str, AfterValidator(_check_url)] = Field(
        default="wss://ws.finnhub.io", description="where to connect, without the key"
    )


class BinanceSettings(_Feed):
    """Binance's spot market: trades with their ids and sides, without a key."""

    type: Literal["binance"] = Field(description="the venue's language")
    url: Annotated[str, AfterValidator(_check_url)] = Field(
        default="wss://stream.binance.com:9443/ws", description="…/ws, or …/stream for combined streams"
    )
    stream: Literal["trade", "aggTrade"] = Field(
        default="trade", description="each trade, or the fills of one order at one price as one"
    )


def _check_binance_tickers(symbols: Sequence[str]) -> None:
    """Raises ValueError for what Binance would take without a word, and send nothing of."""
    for symbol in symbols:
        name = symbol.rpartition(":")[2].upper()
        if symbol != name:
            raise ValueError(f"`{symbol}` is no symbol of Binance: write {name}")
    if len(symbols) > BINANCE_STREAMS:
        raise ValueError(f"{len(symbols)} tickers: Binance serves {BINANCE_STREAMS} a connection, `shard` divides them")


class JsonFields(_Section):
    """Where a trade's values stand: keys, joined by dots where objects hold objects."""

    symbol: JsonPath = Field(default="symbol", description="the key of the symbol")
    price: JsonPath = Field(default="price", description="of the price, a number or the text of one")
    volume: Annotated[JsonPath | None, BeforeValidator(_null_as_none)] = Field(
        default="volume", description="of the volume; null where the venue sends none"
    )
    timestamp: Annotated[JsonPath | None, BeforeValidator(_null_as_none)] = Field(
        default="timestamp", description="of the trade's time; null: when it came"
    )


class JsonSettings(_Feed):
    """Any venue that sends trades as JSON."""

    type: Literal["json"] = Field(description="the venue's language")
    fields: JsonFields = JsonFields()
    items: Annotated[JsonPath | None, BeforeValidator(_null_as_none)] = Field(
        default=None, description="the key of the list of trades, where a message has one"
    )
    time_unit: Literal["s", "ms", "us", "ns", "iso"] = Field(
        default="ms", description="of the timestamp: since 1970, or iso for text such as 2026-11-20T14:30:00.123Z"
    )
    match: dict[str, str] = Field(
        default={}, description="what a message with trades says, by key; all others are notices"
    )
    subscribe: Annotated[JsonTemplate | None, BeforeValidator(_null_as_none)] = Field(
        default=None, description="message that asks for {symbol}; null where the venue sends all unasked"
    )
    never_closes: Switch = Field(default=False, description="its markets trade around the clock; else as US stocks do")
    unsubscribe: Annotated[JsonTemplate | None, BeforeValidator(_null_as_none)] = Field(
        default=None, description="message that gives {symbol} up"
    )


_FEEDS: Mapping[str, type[_Feed]] = MappingProxyType(
    {"finnhub": FinnhubSettings, "binance": BinanceSettings, "json": JsonSettings}
)


def _feed_type(value: object) -> str | None:
    """Which of them a section is for: Finnhub where it doesn't say. None for another word."""
    kind = value.get("type", "finnhub") if isinstance(value, Mapping) else getattr(value, "type", "finnhub")
    return kind if isinstance(kind, str) and kind in _FEEDS else None


FeedSettings = Annotated[
    Annotated[FinnhubSettings, Tag("finnhub")]
    | Annotated[BinanceSettings, Tag("binance")]
    | Annotated[JsonSettings, Tag("json")],
    Discriminator(
        _feed_type, custom_error_type="feed_type", custom_error_message=f"`type` must be one of {', '.join(_FEEDS)}"
    ),
]


class ShardSettings(_Section):
    """One of several recorders that divide the tickers between them."""

    index: Annotated[int, Field(ge=1, le=1000)] = Field(description="which of them this is, from 1")
    count: Annotated[int, Field(ge=1, le=1000)] = Field(description="how many there are")

    @field_validator("count")
    @classmethod
    def _not_below_index(cls, count: int, info: ValidationInfo) -> int:
        if count < info.data.get("index", 1):
            raise ValueError("must be at least `index`, which counts from 1")
        return count


class RotateSettings(_Section):
    """When a segment is closed and its files appear; UTC midnight always closes one."""

    age: Annotated[Duration, _lasting("1s", "1d")] = Field(default=900.0, description="after this time")
    size: Annotated[Size, _holding("4KB", "4GB")] = Field(default=64 << 20, description="or this many bytes of journal")


class StorageSettings(_Section):
    """Where recordings go and how they look."""

    root: PathText = Field(default=Path("data"), description="the recording; relative to the working directory")
    formats: Annotated[tuple[Literal["parquet", "csv"], ...], AfterValidator(_refuse_doubles)] = Field(
        default=("parquet",), description="parquet, csv, or both"
    )
    rotate: RotateSettings = RotateSettings()
    csv_gzip: Switch = Field(default=False, description="compress a CSV file once it is complete")
    min_free: Annotated[Size, _holding("0B", "1024TB")] = Field(
        default=1 << 30, description="free space to leave on the disk"
    )
    retention: Annotated[Annotated[Duration, _lasting("1d", "36500d")] | None, BeforeValidator(_null_as_none)] = Field(
        default=None, description="delete days of trades and CSV that are older; null keeps everything"
    )
    rejects_per_day: Annotated[Size, _holding("0B", "1024TB")] = Field(
        default=1 << 30,
        description="raw text of refused frames to keep a day; beyond it they are only counted",
    )


class JournalSettings(_Section):
    """The loss bounds, and how long a backlog is kept."""

    linger: Annotated[Duration, _lasting("0s", "10s")] = Field(
        default=0.1, description="how long frames may wait to be journaled together: what `kill -9` can lose"
    )
    sync_interval: Annotated[Duration, _lasting("1ms", "5m")] = Field(
        default=1.0,
        description="how often the journal is forced to the disk: what a power cut can lose",
        validate_default=True,
    )
    max_bytes: Annotated[Size, _holding("64MB", "1024TB")] = Field(
        default=2 << 30,
        description="what may be kept for sinks that are behind; beyond it the last one loses its place",
    )

    @field_validator("sync_interval")
    @classmethod
    def _no_shorter_than_linger(cls, sync_interval: float, info: ValidationInfo) -> float:
        linger = info.data.get("linger", 0.0)
        if sync_interval < linger:
            raise ValueError(
                f"sync_interval ({format_duration(sync_interval)}) must not be shorter than linger"
                f" ({format_duration(linger)}): there would be nothing new to sync"
            )
        return sync_interval


class ConnectionSettings(_Section):
    """One socket's patience."""

    silence: Annotated[Duration, _lasting("1s", "1h")] = Field(
        default=150.0,
        description="without any message for this long the connection is dead (Finnhub pings every minute)",
    )
    connect_timeout: Annotated[Duration, _lasting("100ms", "5m")] = Field(
        default=15.0, description="for TCP, TLS and handshake"
    )
    ping_interval: Annotated[Duration, _lasting("100ms", "1h")] = Field(
        default=20.0, description="between pings of our own", validate_default=True
    )
    backoff_max: Annotated[Duration, _lasting("100ms", "1h")] = Field(
        default=60.0, description="the longest wait between two attempts to connect"
    )
    buffer: Annotated[Size, _holding("64KB", "16GB")] = Field(
        default=64 << 20,
        description="frames in memory while the disk is slow; when it is full the reader pauses",
    )
    ca_file: Annotated[PathText | None, BeforeValidator(_null_as_none)] = Field(
        default=None, description="PEM file of a private certificate authority; null trusts the system's"
    )
    fast_frames: Switch = Field(
        default=True,
        description="scan complete text frames in bulk; false reads each through websocket-client",
    )

    @field_validator("ping_interval")
    @classmethod
    def _within_silence(cls, ping_interval: float, info: ValidationInfo) -> float:
        silence = info.data.get("silence", ping_interval)
        if ping_interval > silence:
            raise ValueError(f"ping_interval must not be longer than silence ({format_duration(silence)})")
        return ping_interval


class HealthSettings(_Section):
    """What the recorder tells programs that watch it."""

    listen: Annotated[str | None, BeforeValidator(_null_as_none), AfterValidator(_check_address)] = Field(
        default="127.0.0.1:9464",
        description="address of /metrics, /healthz, /readyz and /status; port 0 takes a free one, null turns it off",
    )


class SqliteSettings(_Section):
    """Rows in a SQLite database."""

    path: PathText = Field(default=Path("data/trades.sqlite"), description="relative to the working directory")


class RedisSettings(_Section):
    """A stream, the last price and publications a symbol. The password is REDIS_PASSWORD."""

    url: Annotated[str, AfterValidator(_check_redis_url)] = Field(
        default="redis://127.0.0.1:6379",
        description="rediss:// for TLS; user@ and /database are allowed, a password not",
    )
    ca_file: Annotated[PathText | None, BeforeValidator(_null_as_none)] = Field(
        default=None, description="PEM file of a private certificate authority; null trusts the system's"
    )
    stream_max: Annotated[int, Field(ge=1, le=1 << 40)] = Field(
        default=100_000, description="about how many trades a stream keeps"
    )


class KafkaSettings(_Section):
    """Messages in a topic. The password of SASL is KAFKA_PASSWORD."""

    brokers: str = Field(default="127.0.0.1:9092", description="host:port, several with commas between")
    topic: Annotated[str | None, BeforeValidator(_null_as_none)] = Field(
        default=None, description="null is trades.<feed>, such as trades.finnhub"
    )
    values: Literal["json", "arrow"] = Field(
        default="json", description="a trade as JSON, or the trades of a symbol as an Arrow IPC stream"
    )
    options: dict[str, str] = Field(default_factory=dict, description="any option of librdkafka")

    @field_validator("options")
    @classmethod
    def _no_password(cls, options: dict[str, str]) -> dict[str, str]:
        if secret := next((name for name in options if name.endswith((".password", ".pem", "client.secret"))), None):
            raise ValueError(f"{secret} is a secret: the password of SASL belongs into KAFKA_PASSWORD")
        return options


class ObjectStoreSettings(_Section):
    """A mirror of the dataset. Credentials are found as usual: AWS_ACCESS_KEY_ID and so on, or the machine's role."""

    uri: Annotated[str, AfterValidator(_check_store)] = Field(
        default="mirror", description="s3://bucket/path, gs://bucket/path, or a directory"
    )


class SinkSettings(_Section):
    """Where trades go besides files; null is nowhere."""

    sqlite: Annotated[SqliteSettings | None, BeforeValidator(_null_section)] = Field(
        default=None, description="a SQLite database; null is nowhere"
    )
    redis: Annotated[RedisSettings | None, BeforeValidator(_null_section)] = Field(
        default=None, description="Redis: a stream, the last price and publications a symbol; null is nowhere"
    )
    kafka: Annotated[KafkaSettings | None, BeforeValidator(_null_section)] = Field(
        default=None, description="a Kafka topic; null is nowhere"
    )
    object_store: Annotated[ObjectStoreSettings | None, BeforeValidator(_null_section)] = Field(
        default=None, description="a mirror of the dataset in an object store or a directory; null is nowhere"
    )


class LoggingSettings(_Section):
    """What the recorder says of itself, on stderr."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="the least that is worth a line"
    )
    format: Literal["auto", "console", "json"] = Field(
        default="auto", description="auto is console on a terminal, else json"
    )


class Settings(_Section):
    """All of one recorder's settings. Durations are seconds, sizes bytes."""

    feed: FeedSettings = Field(default=FinnhubSettings(), description="the venue and its language")
    tickers: Annotated[tuple[Ticker, ...], BeforeValidator(_mark_repeats)] = Field(
        description="the symbols to record, as the venue names them", json_schema_extra={"minItems": 1}
    )
    tickers_watch: Switch = Field(
        default=False, description="apply a change of tickers as soon as the file is saved; else on `ingestor reload`"
    )
    shard: Annotated[ShardSettings | None, BeforeValidator(_null_as_none)] = Field(
        default=None, description="record only this recorder's part of the tickers; null records all"
    )
    storage: StorageSettings = StorageSettings()
    journal: JournalSettings = JournalSettings()
    connection: ConnectionSettings = ConnectionSettings()
    health: HealthSettings = HealthSettings()
    sinks: SinkSettings = SinkSettings()
    logging: LoggingSettings = LoggingSettings()
    stop_timeout: Annotated[Duration, _lasting("0s", "1h")] = Field(
        default=60.0, description="how long an orderly stop may wait for files to be complete"
    )

    @property
    def symbols(self) -> tuple[str, ...]:
        """What this recorder asks for: the tickers, or its shard of them."""
        if self.shard is None:
            return self.tickers
        return symbols_of_shard(self.tickers, self.shard.index, self.shard.count)

    @model_validator(mode="after")
    def _recordable(self) -> Self:
        """What the sections say of one another."""
        if self.shard and isinstance(self.feed, JsonSettings) and self.feed.subscribe is None:
            raise ValueError("`shard` needs `feed.subscribe`: without it every shard is sent every symbol")
        if not self.symbols:
            raise ValueError("this shard gets none of the tickers: there are too few of them for so many shards")
        if isinstance(self.feed, BinanceSettings):
            _check_binance_tickers(self.symbols)
        return self


@dataclass(frozen=True, slots=True)
class Flags:
    """What the command line says; each stands above the file. None leaves the file's word."""

    symbols: Sequence[str] | None = None
    root: Path | None = None
    url: str | None = None
    formats: Sequence[str] | None = None
    log_level: str | None = None
    log_format: str | None = None

    PLACES: ClassVar[dict[str, KeyPath]] = {
        "symbols": ("tickers",),
        "root": ("storage", "root"),
        "url": ("feed", "url"),
        "formats": ("storage", "formats"),
        "log_level": ("logging", "level"),
        "log_format": ("logging", "format"),
    }

    def given(self) -> Iterator[tuple[str, KeyPath, object]]:
        """(`--flag`, the setting it stands for, its value) of each that was given."""
        for name, path in self.PLACES.items():
            value = getattr(self, name)
            if value is not None:
                yield f"--{name.replace('_', '-')}", path, value


def load_settings(path: Path, flags: Flags = Flags()) -> Settings:
    """The settings in this file, under these flags. Raises ConfigError: one line a mistake, all of them."""
    return _validate(read_yaml(path), flags)


def settings_for_symbols(symbols: Sequence[str], root: Path | None = None, url: str | None = None) -> Settings:
    """Settings without a file: the defaults and these. Raises ConfigError."""
    return settings_from_flags(Flags(symbols=symbols, root=root, url=url))


def settings_from_flags(flags: Flags) -> Settings:
    """Settings without a file: the defaults under these flags. Raises ConfigError."""
    return _validate(YamlFile(Path("command line"), {}, {}, []), flags)


@dataclass(frozen=True, slots=True)
class Source:
    """Where settings come from, so that they can be read again."""

    path: Path | None
    """None: from the flags alone."""
    flags: Flags = Flags()

    def read(self) -> Settings:
        """Raises ConfigError: one line a mistake, all of them."""
        return settings_from_flags(self.flags) if self.path is None else load_settings(self.path, self.flags)


def _validate(file: YamlFile, flags: Flags) -> Settings:
    mistakes = list(file.mistakes)
    complaints: list[str] = []
    flag_of = {path: flag for flag, path, _ in flags.given()}
    try:
        settings = Settings.model_validate(_under(file.data, flags))
    except ValidationError as error:
        for detail in error.errors(include_url=False, include_input=False):
            at = _path_in_file(detail["loc"])
            flag = next((flag for path, flag in flag_of.items() if at[: len(path)] == path), None)
            if flag:
                complaints.append(f"{flag}: {_sentence(detail)}")
            else:
                mistakes.append(Mistake(file.place(at), _sentence(detail)))
    complaints += [file.complaint(mistake) for mistake in sorted(mistakes)]
    if complaints:
        raise ConfigError("\n".join(complaints))
    return settings


def _path_in_file(path: KeyPath) -> KeyPath:
    """The error names the venue after `feed`; the file doesn't."""
    return path[:1] + path[2:] if path[:1] == ("feed",) and path[1:2] and path[1] in _FEEDS else path


def _under(data: Mapping[str, object], flags: Flags) -> dict[str, object]:
    """`data` with the flags' values in their places. A section that is no mapping is refused later."""
    merged = dict(data)
    for _, path, value in flags.given():
        *above, last = (str(key) for key in path)
        at = merged
        for key in above:
            section = at.get(key) or {}
            if not isinstance(section, Mapping):
                break
            at[key] = at = dict(section)
        else:
            at[last] = value
    return merged


_ONE_VALUE = "`{key}` must be one value, not a list or a mapping"
_SENTENCES = {
    "missing": "`{key}` is missing",
    "literal_error": "must be {expected}",
    "model_type": "`{key}` must be a mapping: lines of `key: value` below it",
    "tuple_type": "`{key}` must be a list",
    "string_type": _ONE_VALUE,
    "float_type": _ONE_VALUE,
    "int_type": _ONE_VALUE,
    "bool_type": _ONE_VALUE,
    "path_type": _ONE_VALUE,
}


def _sentence(detail: ErrorDetails) -> str:
    """What pydantic found, as a person would say it, with a hint."""
    path, context = detail["loc"], detail.get("ctx", {})
    key = str(_path_in_file(path)[-1]) if path else ""
    if detail["type"] == "value_error":
        return str(context["error"])
    if detail["type"] == "extra_forbidden":
        return f"unknown key `{key}`{_hint(key, _keys_beside(path))}"
    if template := _SENTENCES.get(detail["type"]):
        return template.format(key=key, **context)
    return detail["msg"]


def _keys_beside(path: KeyPath) -> list[str]:
    """The keys that are known where `path` stands; after `feed` it names the venue, as pydantic does."""
    section: type[BaseModel] = Settings
    for key in path[:-1]:
        if key in _FEEDS:
            section = _FEEDS[str(key)]
            continue
        kinds = (section.model_fields[str(key)].annotation, *get_args(section.model_fields[str(key)].annotation))
        section = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), section)
    return list(section.model_fields)


def _hint(key: str, known: Sequence[str]) -> str:
    if key.lower() in _KEY_WORDS:
        return f": {_KEY_BELONGS}"
    if near := difflib.get_close_matches(key.lower(), known, n=1):
        return f": did you mean `{near[0]}`?"
    return f": known here are {', '.join(known)}"


# The key


class Key(BaseModel):
    """The API key and where it was found (`FINNHUB_API_KEY`, a `.env` file, `$CREDENTIALS_DIRECTORY`)."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)
    value: SecretStr
    source: str
    """In words for the log; never the key."""
    warning: str | None = None
    """What should be put right about the source."""


def load_key(config_dir: Path, environ: Mapping[str, str] = os.environ) -> Key | None:
    """The first of `FINNHUB_API_KEY` in the environment, in `$CREDENTIALS_DIRECTORY`, in `config_dir/.env`.

    What was given to this process stands above what lies on the disk for all of them. An empty value is none.
    Raises ConfigError, without the key, for a source that can't be read or a key that no venue issues.
    """
    for source, text, warning in _key_candidates(config_dir, environ):
        key = text.strip()
        if key and not (key.isascii() and key.isprintable() and " " not in key):
            raise ConfigError(f"the key from {source} holds a blank, a control character or a letter outside ASCII")
        if key:
            return Key(value=SecretStr(key), source=source, warning=warning)
    return None


def load_secret(name: str, config_dir: Path, environ: Mapping[str, str] = os.environ) -> str | None:
    """A password: `name` in the environment, in `$CREDENTIALS_DIRECTORY`, or in `config_dir/.env`; None where it is
    nowhere. Raises ConfigError for a source that can't be read.
    """
    directory = environ.get("CREDENTIALS_DIRECTORY")
    found = environ.get(name) or (_read_secret(Path(directory) / name).strip() if directory else "")
    return found or _read_dotenv(config_dir / ".env").get(name) or None


def _key_candidates(config_dir: Path, environ: Mapping[str, str]) -> Iterator[tuple[str, str, str | None]]:
    """(source, text, warning), the most specific first; nothing is read before it is needed."""
    yield "FINNHUB_API_KEY in the environment", environ.get("FINNHUB_API_KEY", ""), None
    if directory := environ.get("CREDENTIALS_DIRECTORY"):
        for name in ("FINNHUB_API_KEY", "finnhub_api_key"):
            path = Path(directory) / name
            yield f"{name} in $CREDENTIALS_DIRECTORY", _read_secret(path), None
    dotenv = config_dir / ".env"
    values = _read_dotenv(dotenv)
    for name in ("FINNHUB_API_KEY", "API_KEY"):
        yield f"{name} in {dotenv}", values.get(name) or "", _open_to_others(dotenv)


def _read_secret(path: Path) -> str:
    """The file's text, empty where there is no such file."""
    try:
        return path.read_bytes().decode("utf-8", "replace")  # a replacement character is refused as not ASCII
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}") from None


def _read_dotenv(path: Path) -> dict[str, str | None]:
    """The file's variables, nothing interpolated; empty where there is no such file."""
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            return dotenv_values(stream=file, interpolate=False)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}") from None


def _open_to_others(path: Path) -> str | None:
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        return None
    return f"{path} is open to other users ({mode:04o}): chmod 600 {path}" if mode & 0o077 else None
