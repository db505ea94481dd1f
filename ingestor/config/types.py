"""Types of settings: sections, switches, paths, durations and sizes (`15m`, `64MB`), addresses without a secret."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import SplitResult, parse_qsl, urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import pydantic
from pydantic import AfterValidator, BaseModel, BeforeValidator

from ingestor.config.addresses import find_host, parse_proxy, split_address
from ingestor.config.key import KEY_BELONGS
from ingestor.texts import DURATION, SIZE, format_duration, format_size, parse_duration, parse_size

KEY_PLACE = "{key}"
"""Where the API key stands in an address or a message."""
SECRET_PLACE = "{secret}"  # noqa: S105  where a second secret stands, in a message alone
_SECRET = re.compile(r"token|secret|passw|auth|sign|api_?key|(^|_)key$", re.IGNORECASE)


# Sections


def _defaults_as_written(schema: dict[str, Any], model: type[BaseModel]) -> None:
    """A JSON Schema for editors shows a default as the file would write it: `15m`, not 900.0."""
    for key, default in model.model_construct().model_dump(mode="json").items():
        schema["properties"][key]["default"] = default


class Section(BaseModel):
    model_config = pydantic.ConfigDict(
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        json_schema_extra=_defaults_as_written,
        serialize_by_alias=True,
    )

    @pydantic.model_validator(mode="before")
    @classmethod
    def _all_commented_out(cls, value: object) -> object:
        """A section of which every line is a comment has no value: it is all defaults."""
        return {} if value == "" else value


def _check_time_zone(name: str) -> str:
    try:
        return name if name == "UTC" else ZoneInfo(name).key
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"no time zone {name!r} here: write it like Europe/Berlin") from None


TimeZone = Annotated[str, AfterValidator(_check_time_zone)]


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


def null_as_none(value: object) -> object:
    return None if value in ("", "~", "null") else value


Switch = Annotated[bool, BeforeValidator(_parse_switch)]
PathText = Annotated[Path, BeforeValidator(_parse_path)]


# Durations and sizes

_Number = TypeVar("_Number", int, float)


# YAML gives text, which is parsed; a number from a Python caller is seconds or bytes already.
Duration = Annotated[
    float,
    BeforeValidator(lambda value: parse_duration(value) if isinstance(value, str) else value),
    pydantic.PlainSerializer(format_duration, return_type=str),
    pydantic.WithJsonSchema(
        {"type": "string", "pattern": f"^{DURATION.pattern}$", "examples": ["250ms", "20s", "15m"]}
    ),
]
Size = Annotated[
    int,
    BeforeValidator(lambda value: parse_size(value) if isinstance(value, str) else value),
    pydantic.PlainSerializer(format_size, return_type=str),
    pydantic.WithJsonSchema({"type": "string", "pattern": f"^{SIZE.pattern}$", "examples": ["512KB", "64MB", "2GB"]}),
]


def lasting(low: str, high: str) -> AfterValidator:
    """A duration from `low` to `high`, both included."""
    return AfterValidator(_between(low, high, parse_duration))


def holding(low: str, high: str) -> AfterValidator:
    """A size from `low` to `high`, both included."""
    return AfterValidator(_between(low, high, parse_size))


def _between(low: str, high: str, parse: Callable[[object], float]) -> Callable[[_Number], _Number]:
    def check(value: _Number) -> _Number:
        if not parse(low) <= value <= parse(high):
            raise ValueError(f"must be from {low} to {high}")
        return value

    return check


# Addresses


def _check_url(url: str) -> str:
    """A WebSocket address without a query."""
    parts = _split_url(url)
    if parts.query:
        raise ValueError(f"must end before any `?`, `#` or `@`: {KEY_BELONGS}")
    return url


def _check_url_with_key(url: str) -> str:
    """One that may have a query, in which `{key}` stands for the key."""
    parts = _split_url(url)
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if _SECRET.search(name) and KEY_PLACE not in value:
            raise ValueError(
                f"holds a secret: write {name}={KEY_PLACE}, and the key itself into FEED_API_KEY or into .env beside "
                "this file"
            )
    if KEY_PLACE in url.replace(parts.query, ""):
        raise ValueError(f"{KEY_PLACE} has its place behind the `?`: wss://host/path?token={KEY_PLACE}")
    return url


def _split_url(url: str) -> SplitResult:
    """The parts of a WebSocket address. The text never repeats the address: a key may be in it."""
    try:
        parts = urlsplit(url)
        usable = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        raise ValueError("is no address: write wss://host or wss://host:port") from None
    if parts.scheme not in {"wss", "ws"} or not usable or not url.isprintable() or " " in url:
        raise ValueError("must be an address that begins with wss:// (or ws:// on this machine)")
    if parts.username is not None or parts.fragment:
        raise ValueError(f"must end before any `?`, `#` or `@`: {KEY_BELONGS}")
    return parts


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


def _check_postgres_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        usable = parts.port is None or parts.port > 0
    except ValueError:
        usable = False
    if not usable or parts.scheme not in {"postgresql", "postgres"} or parts.fragment or not url.isprintable():
        raise ValueError("must be an address: postgresql://user@host:port/database")
    if parts.password is not None or "password" in {name for name, _ in parse_qsl(parts.query)}:
        raise ValueError("the password belongs into POSTGRES_PASSWORD or into .env beside this file, never in here")
    return url


def _check_schema_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,63}", name):
        raise ValueError("must be a name of up to 63 letters, digits, `_` and `-`")
    return name


def _check_store(uri: str) -> str:
    parts = urlsplit(uri)
    if parts.scheme == "gs":
        raise ValueError("gs:// is no longer supported: mirror to s3:// or to a directory")
    if not uri or ("://" in uri and parts.scheme not in {"s3", "file"}) or not uri.isprintable():
        raise ValueError("must be s3://bucket/path, or a directory")
    if parts.password is not None or "secret_key" in parts.query:
        raise ValueError("credentials belong into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, never in here")
    return uri


def _check_address(text: str | None) -> str | None:
    if text is not None:
        split_address(text)
    return text


def _check_proxy(text: object) -> object:
    """`auto`, `none` or an address without credentials."""
    if not isinstance(text, str):
        raise ValueError("must be auto, none or http://host:port")  # noqa: TRY004  pydantic catches ValueError alone
    if text in ("auto", "none"):
        return text
    if parse_proxy(text).credentials is not None:
        raise ValueError("holds credentials: write `auto`, and the address with them into HTTPS_PROXY")
    return text


def _check_host_name(name: str) -> str:
    if find_host(name) != name.lower().removesuffix("."):
        raise ValueError(f"`{name[:64]}` is no name of a host: write it like recorder.example, without a port")
    return name


VenueUrl = Annotated[str, AfterValidator(_check_url)]
VenueUrlWithKey = Annotated[str, AfterValidator(_check_url_with_key)]
RedisUrl = Annotated[str, AfterValidator(_check_redis_url)]
PostgresUrl = Annotated[str, AfterValidator(_check_postgres_url)]
SchemaName = Annotated[str, AfterValidator(_check_schema_name)]
StoreUri = Annotated[str, AfterValidator(_check_store)]
ListenAddress = Annotated[str | None, BeforeValidator(null_as_none), AfterValidator(_check_address)]
ProxySetting = Annotated[str, BeforeValidator(_check_proxy)]
HostName = Annotated[str, AfterValidator(_check_host_name)]
