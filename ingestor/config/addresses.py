"""Where something is: on the network or in a store; never with a secret in it."""

import re
from ipaddress import ip_address
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator

from ingestor.config.key import KEY_BELONGS
from ingestor.config.section import null_as_none


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
        raise ValueError(f"must end before any `?`, `#` or `@`: {KEY_BELONGS}")
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


def _check_address(text: str | None) -> str | None:
    if text is not None:
        split_address(text)
    return text


VenueUrl = Annotated[str, AfterValidator(_check_url)]
RedisUrl = Annotated[str, AfterValidator(_check_redis_url)]
StoreUri = Annotated[str, AfterValidator(_check_store)]
ListenAddress = Annotated[str | None, BeforeValidator(null_as_none), AfterValidator(_check_address)]
