"""The door: any web page can make a browser call a loopback port, so who calls must name us as we name ourselves."""

import re

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ingestor.config.addresses import Hosts

log = structlog.get_logger()

_ORIGIN = re.compile(r"https?://(?P<authority>.+)", re.ASCII | re.IGNORECASE)
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


def find_refusal(headers: Headers, hosts: Hosts) -> str | None:
    """Why these headers are refused: a host that isn't ours, or an origin that isn't that host; None where they
    aren't.
    """
    named = headers.getlist("host")
    if len(named) != 1 or not hosts.hold(named[0]):
        return "unknown host: call this server by a name it was told of (--allow-host)"
    for origin in headers.getlist("origin"):
        match = _ORIGIN.fullmatch(origin)
        if match is None or match["authority"].lower() != named[0].lower():
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

        headers = Headers(scope=scope)
        if reason := find_refusal(headers, self._hosts):
            log.warning("request.refused", reason=reason, host=headers.get("host"), origin=headers.get("origin"))
            await JSONResponse({"error": reason}, 403)(scope, receive, send_strictly)
        else:
            await self._app(scope, receive, send_strictly)
