"""Addresses: which hosts a server answers to, which only this machine can reach, which a proxy takes."""

import errno
import os
import re
from base64 import b64encode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from urllib.parse import quote, unquote, urlsplit

from ingestor.errors import ConfigError

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
    origins: frozenset[str] = frozenset()
    """Of other web pages that may call it: `http://host:port`; `null` is a page from a file."""

    def hold(self, authority: str) -> bool:
        """Whether what a request calls this server, with or without a port, is one of them."""
        host = find_host(authority)
        if host is None:
            return False
        if host in self.names or (self.any_address and _is_address(host)):
            return True
        return self.private_names and not _is_address(host) and ("." not in host or host.endswith(_PRIVATE_DOMAINS))


def allowed_hosts(
    listen: str, more: Iterable[str] = (), *, private_names: bool = False, origins: Iterable[str] = ()
) -> Hosts:
    """For a server that listens at `listen`: this machine's own names, that address, and `more`. Where it listens
    everywhere also any IP address, and with `private_names` those that nobody can register. `origins` are those of web
    pages elsewhere that may call it.
    """
    everywhere = listen in _EVERYWHERE
    names = _LOCAL_NAMES | {listen.lower(), *(name.lower() for name in more)}
    private = private_names and not is_loopback(listen)
    return Hosts(names, everywhere, private, frozenset(origin.lower().rstrip("/") for origin in origins))


def find_host(authority: str) -> str | None:
    """The host of `name:port`, in small letters and without brackets; None where it is anything else than that."""
    match = _AUTHORITY.fullmatch(authority)
    return match["host"].strip("[]").lower() if match else None


# Proxies


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy that is asked to CONNECT. Its text has no credentials."""

    host: str
    port: int
    credentials: str | None = field(default=None, repr=False)
    """`user:password`, percent-decoded."""

    def __str__(self) -> str:
        return f"{bracketed(self.host)}:{self.port}"

    @property
    def headers(self) -> dict[str, str]:
        """What it wants to know of who asks."""
        if self.credentials is None:
            return {}
        return {"Proxy-Authorization": f"Basic {b64encode(self.credentials.encode()).decode()}"}

    @property
    def url(self) -> str:
        """For urllib: with its credentials."""
        name, _, secret = (self.credentials or "").partition(":")
        told = f"{quote(name, safe='')}:{quote(secret, safe='')}@" if self.credentials else ""
        return f"http://{told}{self}"


def parse_proxy(url: str) -> Proxy:
    """`http://proxy.example:3128`, with or without `user:password@`. Raises ValueError, without what was given."""
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        host, port = parts.hostname, parts.port or 80
    except ValueError:
        raise ValueError("is no address of a proxy: write http://host:port") from None
    if parts.scheme != "http" or not host or parts.query or parts.fragment or parts.path not in ("", "/"):
        raise ValueError("is no address of an HTTP proxy: write http://host:port")
    name, secret = (unquote(part) if part is not None else None for part in (parts.username, parts.password))
    credentials = None if name is None else f"{name}:{secret or ''}"
    return Proxy(host, port, credentials)


def choose_proxy(url: str, setting: str, environ: Mapping[str, str] = os.environ) -> Proxy | None:
    """The proxy by which this address is reached under `connection.proxy`; None: directly. Raises ConfigError."""
    if setting == "none":
        return None
    variable = None
    if setting == "auto":
        variable = find_proxy_variable(url, environ)
        if variable is None:
            return None
    try:
        return parse_proxy(setting if variable is None else environ[variable])
    except ValueError as error:
        raise ConfigError(f"{variable or 'connection.proxy'} {error}") from None


def find_proxy_variable(url: str, environ: Mapping[str, str] = os.environ) -> str | None:
    """The variable that names a proxy for this address (`HTTPS_PROXY`, …), unless `NO_PROXY` spares it; None where
    there is none. Its value is nobody's to read: it may hold a password.
    """
    parts = urlsplit(url)
    host = (parts.hostname or "").lower()
    spared = [name.strip().lower() for name in (environ.get("no_proxy") or environ.get("NO_PROXY") or "").split(",")]
    if is_loopback(host) or "*" in spared:
        return None
    if any(name and (host == name.lstrip(".") or host.endswith(f".{name.lstrip('.')}")) for name in spared):
        return None
    secure = parts.scheme in ("wss", "https")
    schemes = ("wss", "https", "all") if secure else ("ws", "http", "all")
    names = [name for scheme in schemes for name in (f"{scheme}_proxy", f"{scheme.upper()}_PROXY")]
    return next((name for name in names if environ.get(name)), None)


def bracketed(host: str) -> str:
    """A host as it stands before a port: `[::1]`."""
    return f"[{host}]" if ":" in host else host


def describe_refusal(host: str, port: int, error: OSError) -> str:
    """Why nobody can listen there, and what helps where another program does."""
    number = error.errno or 0
    reason = os.strerror(number) if number > 0 else error.strerror or error  # asyncio's own text is a story
    hint = ": --port 0 takes a free one" if error.errno == errno.EADDRINUSE else ""
    return f"can't listen on {host}:{port}: {reason}{hint}"


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


def check_http_url(url: str) -> str:
    """The URL without a slash at its end; in clear text to this machine alone. Raises ValueError with a sentence."""
    parts = urlsplit(url)
    in_clear = parts.scheme == "http" and is_loopback(parts.hostname or "")
    if not parts.hostname or (parts.scheme != "https" and not in_clear):
        raise ValueError(f"{url}: write the address of a source as https://host")
    return url.rstrip("/")
