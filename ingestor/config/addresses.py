"""Where something is: on the network or in a store; never with a secret in it."""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Annotated
from urllib.parse import SplitResult, parse_qsl, urlsplit

from pydantic import AfterValidator, BeforeValidator

from ingestor.config.key import KEY_BELONGS
from ingestor.config.section import null_as_none

KEY_PLACE = "{key}"
"""Where the API key stands in an address or a message."""
_SECRET = re.compile(r"token|secret|passw|auth|sign|api_?key|(^|_)key$", re.IGNORECASE)
_AUTHORITY = re.compile(
    r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?)\.?(?::\d{1,5})?", re.ASCII
)
"""What may stand in `Host`, or behind `http://` in `Origin` (RFC 9110, 7.2): a name or an address, and a port. No user,
path or fragment.
"""
_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_EVERYWHERE = frozenset({"0.0.0.0", "::", ""})
_PRIVATE_DOMAINS = (".localhost", ".local", ".internal", ".lan", ".home.arpa", ".svc", ".cluster.local")
"""Nobody can register a name under these, nor one without a dot: a web page that is rebound never bears one."""


@dataclass(frozen=True, slots=True)
class Hosts:
    """The names under which a server may be called. A web page that had its own name rebound to this machine makes the
    browser call with that name, so a server that answers only to its own names can't be read by it.
    """

    names: frozenset[str]
    any_address: bool = False
    """IP addresses as well: such a web page comes with a name."""
    private_names: bool = False
    """Names that nobody can register as well, such as a container's."""

    def hold(self, authority: str) -> bool:
        """Whether what a request calls this server, with or without a port, is one of them."""
        host = find_host(authority)
        if host is None:
            return False
        if host in self.names or (self.any_address and _is_address(host)):
            return True
        return self.private_names and not _is_address(host) and ("." not in host or host.endswith(_PRIVATE_DOMAINS))


def allowed_hosts(listen: str, more: Iterable[str] = (), *, private_names: bool = False) -> Hosts:
    """For a server that listens at `listen`: this machine's own names, that address, and `more`. Where it listens
    everywhere also any IP address, and with `private_names` those that nobody can register.
    """
    everywhere = listen in _EVERYWHERE
    names = _LOCAL_NAMES | {listen.lower(), *(name.lower() for name in more)}
    return Hosts(names, any_address=everywhere, private_names=private_names and not is_loopback(listen))


def find_host(authority: str) -> str | None:
    """The host of `name:port`, in small letters and without brackets; None where it is anything else than that."""
    match = _AUTHORITY.fullmatch(authority)
    return match["host"].strip("[]").lower() if match else None


def find_unused_proxy(url: str, environ: Mapping[str, str] = os.environ) -> str | None:
    """The variable that names a proxy for this address, which the recorder doesn't use; None where there is none.

    Its value is nobody's to read: it may hold a password.
    """
    parts = urlsplit(url)
    host = (parts.hostname or "").lower()
    spared = [name.strip().lower() for name in (environ.get("no_proxy") or environ.get("NO_PROXY") or "").split(",")]
    if is_loopback(host) or "*" in spared:
        return None
    if any(name and (host == name.lstrip(".") or host.endswith(f".{name.lstrip('.')}")) for name in spared):
        return None
    secure = parts.scheme == "wss"
    schemes = ("wss", "https", "all") if secure else ("ws", "http", "all")
    names = [name for scheme in schemes for name in (f"{scheme}_proxy", f"{scheme.upper()}_PROXY")]
    return next((name for name in names if environ.get(name)), None)


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


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


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


def _check_host_name(name: str) -> str:
    if find_host(name) != name.lower().removesuffix("."):
        raise ValueError(f"`{name[:64]}` is no name of a host: write it like recorder.example, without a port")
    return name


VenueUrl = Annotated[str, AfterValidator(_check_url)]
VenueUrlWithKey = Annotated[str, AfterValidator(_check_url_with_key)]
RedisUrl = Annotated[str, AfterValidator(_check_redis_url)]
StoreUri = Annotated[str, AfterValidator(_check_store)]
ListenAddress = Annotated[str | None, BeforeValidator(null_as_none), AfterValidator(_check_address)]
HostName = Annotated[str, AfterValidator(_check_host_name)]
