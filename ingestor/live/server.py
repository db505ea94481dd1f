"""Server of live prices: uvicorn in the main thread, and the follower of the source in another."""

import asyncio
import contextlib
import gc
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import structlog
import uvicorn

from ingestor import system
from ingestor.config.addresses import Hosts, is_loopback
from ingestor.errors import ConfigError
from ingestor.layout import Layout
from ingestor.live.access import Verifier
from ingestor.live.api import make_app
from ingestor.live.hub import Hub, PriceSource
from ingestor.live.protocols import FrameProtocol, RequestProtocol
from ingestor.live.subscriptions import Limits

_OTHER_CONNECTIONS = 256
"""For HTTP, beside the WebSockets."""
_OTHER_FILES = 512
_PING_S = 20.0
_STOP_S = 2.0
_BACKLOG = 1024
"""Connections that are taken at once, before the first of them is answered."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class PriceService:
    """A source of prices, and the clients it is for."""

    source: PriceSource
    layout: Layout | None
    """The recording to answer questions from, where there is one."""
    hosts: Hosts
    verifier: Verifier | None = None
    limits: Limits = field(default_factory=Limits)


def listen(host: str, port: int, *, authenticated: bool) -> socket.socket:
    """A socket that listens there; port 0 takes a free one.

    Raises ConfigError where that can't be had, and where other machines could reach it and nobody is asked who they
    are.
    """
    if not authenticated and not is_loopback(host):
        raise ConfigError(
            f"{host} can be reached from other machines, and nobody would be asked who they are: add --jwt HS256 or"
            " --jwt RS256, or listen on 127.0.0.1"
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(_BACKLOG)
    except OSError as error:
        listening.close()
        raise ConfigError(f"can't listen on {host}:{port}: {error.strerror or error}") from None
    return listening


def run_service(service: PriceService, listening: socket.socket, started: Callable[[], None]) -> None:
    """Serve until SIGTERM or SIGINT; `started` is called when clients can connect.

    Raises what the source does.
    """
    system.allow_open_files(service.limits.clients + _OTHER_CONNECTIONS + _BACKLOG + _OTHER_FILES)
    hub = Hub(service.source, service.limits)
    gc.freeze()  # what is there by now stays: looking it through for garbage would hold up every client
    asyncio.run(_serve(service, hub, listening, started))


async def _serve(service: PriceService, hub: Hub, listening: socket.socket, started: Callable[[], None]) -> None:
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    config = uvicorn.Config(
        make_app(hub, service.layout, service.verifier, service.hosts),
        http=RequestProtocol,
        ws=FrameProtocol,
        ws_max_size=service.limits.message_bytes,
        ws_per_message_deflate=False,
        ws_ping_interval=_PING_S,
        ws_ping_timeout=_PING_S,
        limit_concurrency=service.limits.clients + _OTHER_CONNECTIONS,
        backlog=_BACKLOG,
        timeout_graceful_shutdown=int(_STOP_S),
        lifespan="off",
        log_config=None,
        access_log=False,  # it logs no request: people leave their key in a query string
        server_header=False,
        proxy_headers=False,
    )
    server = _UvicornServer(config)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.stop)
    stop = threading.Event()
    follower = loop.create_task(_in_thread(hub.follow, loop, stop))
    works = [loop.create_task(server.serve([listening])), follower, loop.create_task(hub.watch_coverage())]
    started()
    # Whichever ends first ends the others. Server and follower end by themselves, and are waited for; the watch of the
    # coverage never does, so it is cancelled, last: until then the board is true.
    await asyncio.wait(works, return_when=asyncio.FIRST_COMPLETED)
    server.stop()
    stop.set()
    await asyncio.gather(*works[:2], return_exceptions=True)
    works[2].cancel()
    for work in works:
        if work.done():
            work.result()


class _UvicornServer(uvicorn.Server):
    """Stops when it is told to; signals are its owner's."""

    def stop(self) -> None:
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _in_thread(
    follow: Callable[[asyncio.AbstractEventLoop, threading.Event], None],
    loop: asyncio.AbstractEventLoop,
    stop: threading.Event,
) -> None:
    """Run it in a named thread of its own."""
    ended: asyncio.Future[None] = loop.create_future()

    def work() -> None:
        try:
            follow(loop, stop)
        except BaseException as error:  # noqa: BLE001  whatever it is ends the process
            loop.call_soon_threadsafe(ended.set_exception, error)
        else:
            loop.call_soon_threadsafe(ended.set_result, None)

    threading.Thread(target=work, name="follower", daemon=True).start()
    await ended
