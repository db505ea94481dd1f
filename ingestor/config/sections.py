"""Sections of the settings: the tickers and their shards, files, journal, connection, health, log, destinations."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from datetime import time
from pathlib import Path
from typing import Annotated, Literal

import pydantic
from pydantic import BeforeValidator, Field

from ingestor.config import types
from ingestor.config.addresses import check_http_url
from ingestor.errors import ConfigError
from ingestor.texts import format_duration, is_visible, parse_duration

_TICKER_MAX = 128
_FILE_MAX = 1 << 20
_DAY_S = 86_400


class _Repeated(str):
    """A ticker that stands earlier in its list too."""

    __slots__ = ()


def _parse_ticker(value: object) -> object:
    """The symbol as it is written: a blank inside is part of it (`IC MARKETS:1`). Raises ValueError with a sentence."""
    if isinstance(value, Mapping) and len(value) == 1:
        exchange, name = next(iter(value.items()))
        raise ValueError(f"a stray blank after the colon: write {exchange}:{name}")
    if not isinstance(value, str) or not value:
        raise ValueError("must be a symbol: text, one an item")
    if isinstance(value, _Repeated):
        raise ValueError(f"{value} is listed twice")  # noqa: TRY004  pydantic catches ValueError alone
    if len(value) > _TICKER_MAX:
        raise ValueError(f"a symbol has at most {_TICKER_MAX} characters, this one {len(value)}")
    if "," in value or value != value.strip():
        raise ValueError(f"`{value}` holds a comma or ends in a blank: one symbol an item")
    if not is_visible(value):
        raise ValueError(f"{value!r} holds a control or an invisible character")
    return value


def _mark_repeats(value: object) -> object:
    """Marks what is listed twice, to be refused in its own place. Raises ValueError unless it is a list."""
    if not isinstance(value, list | tuple) or not value:
        raise ValueError("must be a list of at least one symbol: [AAPL], or a line `- AAPL` for each; or name files")
    seen: set[str] = set()
    marked: list[object] = []
    for item in value:
        marked.append(_Repeated(item) if isinstance(item, str) and item in seen else item)
        seen.update([item] if isinstance(item, str) else [])
    return marked


class TickerFiles(types.Section):
    """Tickers that files hold, one per line: those of `files` and `add`, less those of `drop`."""

    files: Annotated[list[types.PathText], Field(min_length=1)] = Field(description="relative to the settings")
    add: list[str] = Field(default=[], description="more symbols")
    drop: list[str] = Field(default=[], description="symbols to leave out")

    def paths(self, folder: Path) -> list[Path]:
        """The files, as seen from the folder of the settings."""
        return [folder / path for path in self.files]

    def read(self, folder: Path) -> list[str]:
        """The symbols, each once, in the order of the files. Raises ConfigError."""
        found: list[str] = []
        for path in self.paths(folder):
            try:
                with path.open("rb") as file:
                    raw = file.read(_FILE_MAX + 1)
            except OSError as error:
                raise ConfigError(f"{path}: can't be read: {error.strerror}") from None
            if len(raw) > _FILE_MAX:
                raise ConfigError(f"{path}: larger than 1 MB: this is no list of tickers")
            try:
                lines = raw.decode("utf-8-sig").splitlines()
            except UnicodeDecodeError:
                raise ConfigError(f"{path}: not UTF-8: save the file as UTF-8") from None
            for number, line in enumerate(lines, 1):
                symbol = line.partition("#")[0].strip()  # what stands behind it is a comment
                if not symbol:
                    continue
                try:
                    found.append(str(_parse_ticker(symbol)))
                except ValueError as error:
                    raise ConfigError(f"{path}:{number}: {error}") from None
        dropped = set(self.drop)
        return [symbol for symbol in dict.fromkeys([*found, *self.add]) if symbol not in dropped]


Ticker = Annotated[
    str,
    BeforeValidator(_parse_ticker),
    # An editor reads `000001`, `ON` and `NULL` as something else than text; the recorder doesn't.
    pydantic.WithJsonSchema({"type": ["string", "number", "boolean", "null"], "maxLength": _TICKER_MAX}),
]
Tickers = Annotated[tuple[Ticker, ...], BeforeValidator(_mark_repeats)]


class ShardSettings(types.Section):
    """One of several recorders that divide the tickers between them."""

    index: Annotated[int, Field(ge=1, le=1000)] = Field(description="which of them this is, from 1")
    count: Annotated[int, Field(ge=1, le=1000)] = Field(description="how many there are")

    @pydantic.field_validator("count")
    @classmethod
    def _not_below_index(cls, count: int, info: pydantic.ValidationInfo) -> int:
        if count < info.data.get("index", 1):
            raise ValueError("must be at least `index`, which counts from 1")
        return count


def symbols_of_shard(symbols: Sequence[str], index: int, count: int) -> tuple[str, ...]:
    """Those of `symbols` that the shard `index` of `count` records, in their order. Shards count from 1.

    Pure, and the same on every machine and in every version. Each symbol has one shard. Another symbol changes nothing
    for the others, and one more shard takes from each of the others about 1/(count + 1) of what it has: rendezvous
    hashing.
    """
    return tuple(symbol for symbol in symbols if shard_of(symbol, count) == index)


def shard_of(symbol: str, count: int) -> int:
    """The shard of a symbol, 1 to `count`: the one that has drawn the highest number for it."""
    return max(
        range(1, count + 1), key=lambda shard: hashlib.blake2b(f"{shard}/{symbol}".encode(), digest_size=8).digest()
    )


class RotateSettings(types.Section):
    """When a segment is closed and its files appear; UTC midnight always closes one."""

    age: Annotated[types.Duration, types.lasting("1s", "1d")] = Field(default=900.0, description="after this time")
    size: Annotated[types.Size, types.holding("4KB", "4GB")] = Field(
        default=16 << 20, description="or this many bytes of journal"
    )


class RawSettings(types.Section):
    """Every frame as it came."""

    keep: Annotated[
        Annotated[types.Duration, types.lasting("1d", "36500d")] | None, BeforeValidator(types.null_as_none)
    ] = Field(default=30 * 86_400.0, description="delete days of frames that are older; null keeps everything")


def null_section(value: object) -> object:
    """An empty section is one whose every line is a comment: it is all defaults, and not null."""
    return None if value in ("~", "null") else value


class StorageSettings(types.Section):
    """Where recordings go and how they look."""

    root: types.PathText = Field(default=Path("data"), description="the recording; relative to the working directory")
    formats: tuple[Literal["parquet", "csv"], ...] = Field(default=("parquet",), description="parquet, csv, or both")
    rotate: RotateSettings = RotateSettings()
    min_free: Annotated[types.Size, types.holding("0B", "1024TB")] = Field(
        default=1 << 30, description="free space to leave on the disk"
    )
    retention: Annotated[
        Annotated[types.Duration, types.lasting("1d", "36500d")] | None, BeforeValidator(types.null_as_none)
    ] = Field(default=None, description="delete days of trades and CSV that are older; null keeps everything")
    rejects_per_day: Annotated[types.Size, types.holding("0B", "1024TB")] = Field(
        default=1 << 30,
        description="raw text of refused frames to keep a day; beyond it they are only counted",
    )
    raw: Annotated[RawSettings | None, BeforeValidator(null_section)] = Field(
        default=None, description="keep every frame as it came, too; null doesn't"
    )

    @pydantic.field_validator("formats")
    @classmethod
    def _each_once(cls, formats: tuple[str, ...]) -> tuple[str, ...]:
        if not formats or len(set(formats)) < len(formats):
            raise ValueError("must name parquet, csv, or each once")
        return formats


class JournalSettings(types.Section):
    """The loss bounds, and how long a backlog is kept."""

    linger: Annotated[types.Duration, types.lasting("0s", "10s")] = Field(
        default=0.1, description="how long frames may wait to be journaled together: what `kill -9` can lose"
    )
    sync_interval: Annotated[types.Duration, types.lasting("1ms", "5m")] = Field(
        default=1.0,
        description="how often the journal is forced to the disk: what a power cut can lose",
        validate_default=True,
    )
    max_bytes: Annotated[types.Size, types.holding("64MB", "1024TB")] = Field(
        default=2 << 30,
        description="what may be kept for sinks that are behind; beyond it the last one loses its place",
    )

    @pydantic.field_validator("sync_interval")
    @classmethod
    def _no_shorter_than_linger(cls, sync_interval: float, info: pydantic.ValidationInfo) -> float:
        linger = info.data.get("linger", 0.0)
        if sync_interval < linger:
            raise ValueError(
                f"sync_interval ({format_duration(sync_interval)}) must not be shorter than linger"
                f" ({format_duration(linger)}): there would be nothing new to sync"
            )
        return sync_interval


class ConnectionSettings(types.Section):
    """One socket's patience."""

    redundant: Annotated[int, Field(ge=1, le=2)] = Field(
        default=1,
        description="so many connections at once, each for the same symbols, where the venue allows several: what both "
        "bring is recorded once, and one may be lost without a gap",
    )
    silence: Annotated[types.Duration, types.lasting("1s", "1h")] = Field(
        default=150.0,
        description="without any message for this long the connection is dead (Finnhub pings every minute)",
    )
    connect_timeout: Annotated[types.Duration, types.lasting("100ms", "5m")] = Field(
        default=15.0, description="for TCP, TLS and handshake"
    )
    ping_interval: Annotated[types.Duration, types.lasting("100ms", "1h")] = Field(
        default=20.0, description="between pings of our own", validate_default=True
    )
    backoff_max: Annotated[types.Duration, types.lasting("100ms", "1h")] = Field(
        default=60.0, description="the longest wait between two attempts to connect"
    )
    buffer: Annotated[types.Size, types.holding("64KB", "16GB")] = Field(
        default=64 << 20,
        description="frames in memory while the disk is slow; when it is full the reader pauses",
    )
    ca_file: Annotated[types.PathText | None, BeforeValidator(types.null_as_none)] = Field(
        default=None, description="PEM file of a private certificate authority; null trusts the system's"
    )

    proxy: types.ProxySetting = Field(
        default="none",
        description="none: connect directly; auto: by HTTPS_PROXY unless NO_PROXY spares the venue; or http://host:port",
    )

    overnight: Annotated[str | None, BeforeValidator(types.null_as_none)] = Field(
        default=None,
        description="hours in which US stocks trade at night, too, such as 20:00-04:00 (New York); null: they don't",
    )

    @property
    def night(self) -> int | None:
        """When the night session begins, in minutes since midnight."""
        return None if self.overnight is None else int(self.overnight[:2]) * 60 + int(self.overnight[3:5])

    @pydantic.field_validator("overnight")
    @classmethod
    def _is_overnight(cls, text: str | None) -> str | None:
        if text is not None and not re.fullmatch(r"(1[6-9]|2[0-3]):[0-5][0-9]-04:00", text):
            raise ValueError("must be hours of New York, from 16:00 or later to 04:00, such as 20:00-04:00")
        return text

    @pydantic.field_validator("ping_interval")
    @classmethod
    def _within_silence(cls, ping_interval: float, info: pydantic.ValidationInfo) -> float:
        silence = info.data.get("silence", ping_interval)
        if ping_interval > silence:
            raise ValueError(f"ping_interval must not be longer than silence ({format_duration(silence)})")
        return ping_interval


class HealthSettings(types.Section):
    """What the recorder tells programs that watch it."""

    listen: types.ListenAddress = Field(
        default="127.0.0.1:9464",
        description="address of /metrics, /healthz, /readyz and /status; port 0 takes a free one, null turns it off",
    )
    allow_hosts: tuple[types.HostName, ...] = Field(
        default=(), description="further names under which it may be called, such as recorder.example"
    )


class LoggingSettings(types.Section):
    """What the recorder says of itself, on stderr."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="the least that is worth a line"
    )
    format: Literal["auto", "console", "json"] = Field(
        default="auto", description="auto is sentences on a terminal, else json"
    )


def _parse_quiet(value: object) -> object:
    """`22:00-07:00` → two times of day. Raises ValueError with a sentence."""
    if value is None or isinstance(value, tuple):
        return value
    try:
        begin, end = (time.fromisoformat(part.strip()) for part in str(value).split("-"))
    except ValueError:
        raise ValueError("must be two times of day: 22:00-07:00") from None
    if begin == end:
        raise ValueError("must begin and end at different times")
    return begin, end


QuietHours = Annotated[
    tuple[time, time],
    BeforeValidator(_parse_quiet),
    pydantic.PlainSerializer(lambda hours: f"{hours[0]:%H:%M}-{hours[1]:%H:%M}", return_type=str),
    pydantic.WithJsonSchema({"type": "string", "examples": ["22:00-07:00"]}),
]


class AlertSettings(types.Section):
    """When a person is told. The receivers are Apprise URLs in ALERT_URLS."""

    blind: Annotated[types.Duration, types.lasting("100ms", "1d")] = Field(
        default=120.0, description="blind for all symbols, or no answer from the recorder, for so long"
    )
    symbol: Annotated[types.Duration, types.lasting("100ms", "7d")] = Field(
        default=1800.0, description="blind for one symbol for so long"
    )
    disk_days: Annotated[float, Field(ge=0, le=3650)] = Field(
        default=7.0, description="the disk lasts for fewer days than this at the present growth"
    )
    settle: Annotated[types.Duration, types.lasting("100ms", "1h")] = Field(
        default=60.0, description="how long all must be well before that is said"
    )
    quiet: Annotated[QuietHours | None, BeforeValidator(types.null_as_none)] = Field(
        default=None, description="hours in which messages are held back, such as 22:00-07:00"
    )
    time_zone: types.TimeZone = Field(default="UTC", description="of these hours, such as Europe/Berlin")


HistorySource = Literal["binance", "binance-aggregates", "coinbase", "kraken", "finnhub", "alpaca"]


class BackfillSettings(types.Section):
    """Gaps that are over are filled from a history while the recorder runs."""

    source: Annotated[HistorySource | None, BeforeValidator(types.null_as_none)] = Field(
        default=None, description="whose history; null: the venue's own"
    )
    url: Annotated[
        Annotated[str, pydantic.AfterValidator(check_http_url)] | None, BeforeValidator(types.null_as_none)
    ] = Field(
        default=None, description="another address that serves the same, such as a mirror; null: the source's own"
    )
    settle: Annotated[types.Duration, types.lasting("0s", "7d")] = Field(
        default=900.0, description="how long after its end a gap is asked for, so that the history has settled"
    )
    every: Annotated[types.Duration, types.lasting("1s", "7d")] = Field(
        default=900.0, description="how often is looked for gaps; one that can't be filled is asked for ever less often"
    )
    min_agreement: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.99, description="fill nothing from a source that agrees less with what was recorded around a gap"
    )


class SqliteSettings(types.Section):
    """Rows in a SQLite database."""

    path: types.PathText = Field(default=Path("data/trades.sqlite"), description="relative to the working directory")


class PostgresSettings(types.Section):
    """Rows in PostgreSQL, in the table `trades`. The password is POSTGRES_PASSWORD."""

    url: types.PostgresUrl = Field(
        default="postgresql://postgres@127.0.0.1:5432/postgres",
        description="libpq's options behind a `?` are allowed, such as sslmode=verify-full; a password not",
    )
    schema_name: types.SchemaName = Field(default="public", description="the tables' schema; one per recording")
    partition: Literal["none", "day"] = Field(
        default="none", description="`day`: a partition per UTC date, so that old dates can be dropped"
    )


class RedisSettings(types.Section):
    """A stream, the last price and publications a symbol. The password is REDIS_PASSWORD."""

    url: types.RedisUrl = Field(
        default="redis://127.0.0.1:6379",
        description="rediss:// for TLS; user@ and /database are allowed, a password not",
    )
    ca_file: Annotated[types.PathText | None, BeforeValidator(types.null_as_none)] = Field(
        default=None, description="PEM file of a private certificate authority; null trusts the system's"
    )
    stream_max: Annotated[int, Field(ge=1, le=1 << 40)] = Field(
        default=100_000, description="about how many trades a stream keeps"
    )


class KafkaSettings(types.Section):
    """Messages in a topic. The password of SASL is KAFKA_PASSWORD."""

    brokers: str = Field(default="127.0.0.1:9092", description="host:port, several with commas between")
    topic: Annotated[str | None, BeforeValidator(types.null_as_none)] = Field(
        default=None, description="null is trades.<feed>, such as trades.finnhub"
    )
    coverage_topic: Annotated[str | None, BeforeValidator(types.null_as_none)] = Field(
        default=None, description="when each symbol was recorded; null is coverage.<feed>, none sends no coverage"
    )
    values: Literal["json", "arrow"] = Field(
        default="json", description="a trade as JSON, or the trades of a symbol as an Arrow IPC stream"
    )
    options: dict[str, str] = Field(default_factory=dict, description="any option of librdkafka")

    @pydantic.field_validator("options")
    @classmethod
    def _no_password(cls, options: dict[str, str]) -> dict[str, str]:
        if secret := next((name for name in options if name.endswith((".password", ".pem", "client.secret"))), None):
            raise ValueError(f"{secret} is a secret: the password of SASL belongs into KAFKA_PASSWORD")
        return options

    def topics(self, feed: str) -> tuple[str, str | None]:
        """The topic of the trades of this type of feed, and that of their coverage: None where it is not sent."""
        coverage = None if self.coverage_topic == "none" else self.coverage_topic or f"coverage.{feed}"
        return self.topic or f"trades.{feed}", coverage


def _parse_mirror_retention(value: object) -> object:
    """A duration of a day or more, or one of two words."""
    if value in ("disk", "forever"):
        return value
    try:
        seconds = parse_duration(value) if isinstance(value, str) else value
    except ValueError:
        seconds = None
    if not isinstance(seconds, int | float) or not _DAY_S <= seconds <= 36500 * _DAY_S:
        raise ValueError("must be disk, forever, or a duration from 1d to 36500d")
    return float(seconds)


class ObjectStoreSettings(types.Section):
    """A mirror of the dataset. Credentials are found as usual: AWS_ACCESS_KEY_ID and so on, or the machine's role."""

    uri: types.StoreUri = Field(default="mirror", description="s3://bucket/path, or a directory")
    shared: types.Switch = Field(
        default=False, description="several recorders mirror there as one dataset, each in a folder root=<its name>"
    )
    retention: Annotated[
        float | Literal["disk", "forever"],
        BeforeValidator(_parse_mirror_retention),
        pydantic.PlainSerializer(
            lambda value: value if isinstance(value, str) else format_duration(value), return_type=str
        ),
        pydantic.WithJsonSchema({"type": "string", "examples": ["disk", "forever", "3650d"]}),
    ] = Field(
        default="disk",
        description="how long trades and raw frames stay there: 3650d; disk: as long as on the disk; forever",
    )
    table: Literal["none", "delta"] = Field(
        default="none", description="delta: the place is a Delta table, too, in which a reader sees each row once"
    )


class SinkSettings(types.Section):
    """Where trades go besides files; null is nowhere."""

    sqlite: Annotated[SqliteSettings | None, BeforeValidator(null_section)] = Field(
        default=None, description="a SQLite database; null is nowhere"
    )
    postgres: Annotated[PostgresSettings | None, BeforeValidator(null_section)] = Field(
        default=None, description="a PostgreSQL database; null is nowhere"
    )
    redis: Annotated[RedisSettings | None, BeforeValidator(null_section)] = Field(
        default=None, description="Redis: a stream, the last price and publications a symbol; null is nowhere"
    )
    kafka: Annotated[KafkaSettings | None, BeforeValidator(null_section)] = Field(
        default=None, description="a Kafka topic; null is nowhere"
    )
    object_store: Annotated[ObjectStoreSettings | None, BeforeValidator(null_section)] = Field(
        default=None, description="a mirror of the dataset in an object store or a directory; null is nowhere"
    )
