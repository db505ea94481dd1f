"""The dashboard's server: Bokeh's own, on this machine only."""

import logging
import secrets
import signal
from collections.abc import Callable
from socket import socket
from types import FrameType
from typing import Any

from bokeh.application import Application
from bokeh.application.handlers import FunctionHandler
from bokeh.document import Document
from bokeh.server.server import BaseServer
from bokeh.server.tornado import BokehTornado
from bokeh.server.views.doc_handler import DocHandler
from tornado.httpserver import HTTPServer
from tornado.ioloop import IOLoop
from tornado.netutil import bind_sockets

from ingestor.charts.bokeh_app import Dashboard, View
from ingestor.config.addresses import is_loopback
from ingestor.errors import ConfigError


class _Page(DocHandler):  # type: ignore[misc]  # Bokeh's handlers carry no types
    """Bokeh's page, in which no script runs but its own: what a venue calls a symbol is never one.

    The page itself says nothing of a venue; that comes through the WebSocket. Bokeh makes functions of text and styles
    as it goes, so those are allowed.
    """

    def write(self, chunk: str | bytes | dict[str, Any]) -> None:
        """Name the page's scripts, which are not known before."""
        nonce = secrets.token_urlsafe(16)
        self.set_header(
            "Content-Security-Policy",
            f"default-src 'self'; script-src 'self' 'nonce-{nonce}' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
            f"img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' ws://{self.request.host}; "
            "object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        )
        super().write(chunk.replace("<script", f'<script nonce="{nonce}"') if isinstance(chunk, str) else chunk)


def run_dashboard(view: View, host: str, port: int, started: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; `started` is given the URL when a browser can come. Port 0 takes a free one.

    Any web page can make a browser call a loopback port: only pages that came from here may open the WebSocket. Raises
    ConfigError where the address can't be had, or other machines could reach it: nobody would be asked who they are.
    """
    if not is_loopback(host):
        raise ConfigError(
            f"{host} can be reached from other machines, and the dashboard asks nobody who they are: listen on"
            " 127.0.0.1, and come from elsewhere through `ssh -L`"
        )
    try:
        sockets = bind_sockets(port, host)
    except OSError as error:
        raise ConfigError(f"can't listen on {host}:{port}: {error.strerror or error}") from None
    place = f"{f'[{host}]' if ':' in host else host}:{sockets[0].getsockname()[1]}"
    loop = IOLoop.current()
    server = _make_server(view, loop, sockets, [place, f"localhost:{sockets[0].getsockname()[1]}"])
    server.start()

    def stop(_number: int, _frame: FrameType | None) -> None:
        loop.add_callback_from_signal(loop.stop)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    started(f"http://{place}")
    loop.start()
    server.unlisten()
    server.stop()


def _make_server(view: View, loop: IOLoop, sockets: list[socket], origins: list[str]) -> BaseServer:
    logging.getLogger("bokeh").setLevel(logging.WARNING)  # it would log each request, with its query string
    logging.getLogger("tornado").setLevel(logging.WARNING)

    def open_tab(document: Document) -> None:
        Dashboard(document, view)

    pages = BokehTornado({"/": Application(FunctionHandler(open_tab))}, extra_websocket_origins=origins)
    for rule in pages.wildcard_router.rules:
        if rule.target is DocHandler:
            rule.target = _Page
    http = HTTPServer(pages)
    http.add_sockets(sockets)
    return BaseServer(loop, pages, http)
