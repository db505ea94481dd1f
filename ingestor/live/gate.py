"""The door: any web page can make a browser call a loopback port, so who calls must name us as we name ourselves."""

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_SECURITY = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self';"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True, slots=True)
class Hosts:
    """The names under which this server may be called."""

    names: frozenset[str]
    any_address: bool = False
    """IP addresses as well: a web page that had its own name rebound to us comes with a name."""

    def hold(self, host: str) -> bool:
        return host.lower() in self.names or (self.any_address and _is_address(host))


def allowed_hosts(listen: str, more: Iterable[str]) -> Hosts:
    """For a server that listens at `listen`: this machine's own names, that address, and `more`."""
    everywhere = listen in {"0.0.0.0", "::", ""}
    return Hosts(_LOCAL_NAMES | {listen.lower(), *(name.lower() for name in more)}, any_address=everywhere)


def find_refusal(headers: Headers, hosts: Hosts) -> str | None:
    """Why these headers are refused: a host that isn't ours, or an origin that isn't that host; None where they
    aren't.
    """
    named = headers.getlist("host")
    if len(named) != 1 or not hosts.hold(_split(f"//{named[0]}").hostname or ""):
        return "unknown host: call this server by a name it was told of (--allow-host)"
    for origin in headers.getlist("origin"):
        if _split(origin).netloc.lower() != named[0].lower():
            return "foreign origin: only pages of this server may call it from a browser"
    return None


class Gate:
    """Refuses strangers with 403 before anything is looked at, and adds the headers that keep a browser strict."""

    def __init__(self, app: ASGIApp, hosts: Hosts) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return

        async def send_strictly(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_SECURITY)
            await send(message)

        if reason := find_refusal(Headers(scope=scope), self._hosts):
            await JSONResponse({"error": reason}, 403)(scope, receive, send_strictly)
        else:
            await self._app(scope, receive, send_strictly)


def _split(address: str) -> SplitResult:
    """The parts of an address; none where it is no address."""
    try:
        return urlsplit(address)
    except ValueError:
        return urlsplit("")


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
