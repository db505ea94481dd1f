"""Server of live prices: uvicorn in the main thread, the follower of the source in another. It overrides uvicorn's two
protocols: request time-outs, pre-encoded frames, close frames that arrive.
"""

import asyncio
import contextlib
import gc
import logging
import signal
import socket
import threading
from asyncio import BaseTransport
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import h11
import structlog
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame

from ingestor import system
from ingestor.config.addresses import Hosts, describe_refusal, is_loopback
from ingestor.errors import ConfigError
from ingestor.layout import Layout
from ingestor.live.access import Verifier
from ingestor.live.api import make_app
from ingestor.live.hub import Hub, PriceSource
from ingestor.live.subscriptions import Limits

log = structlog.get_logger()


_REQUEST_S = 5.0
"""For a whole request, as long as an idle connection is kept."""
_CHECK_S = 1.0
_CHECKS = 5
_UNREAD_BYTES = 128 << 10
"""Least part of a waiting answer that must be read within these checks: after a standstill the first comes late."""
_UNREAD_MAX = 128 << 20
"""Of all answers together."""
_SPARE = 64
"""Connections above the limit that hear so; those beyond are cut off."""
_FAREWELL_S = 5.0
_DISCARD_MAX = 16 << 20
_DISCARD_PAUSE_S = 0.02
_ABNORMAL = 1006
_INVALID_DATA, _POLICY_VIOLATION = 1007, 1008
_FRAMES_BURST = 32
_FRAMES_S = 100
"""Frames of any kind that one client may send at once, and per second after that."""
_FLOOD_FRAMES_S = 500
"""Frames per second that are read of all clients together that send more than that."""
_FLOOD_MAX_S = 15.0
"""How long a client may send faster than it is read."""
_FRAME_BYTES = 1 << 10
"""So many bytes count as a frame more."""
_PIECE_BYTES = 256
"""Read of one client before the others have their turn: 42 of the smallest frames."""
_FRAGMENTS_MAX = 1000
"""Of one message."""


class RequestProtocol(H11Protocol):
    """Cuts off a client that doesn't finish its request, whether it sends nothing more or a byte now and then; one that
    doesn't read its answer, which waits in our memory; and one that comes when far too many are connected: each holds a
    file, and the follower of the journal needs some, too.
    """

    _deadline: asyncio.TimerHandle | None = None
    """While a request is awaited that has not come in whole."""
    _reading_check: asyncio.TimerHandle | None = None
    """While an answer waits to be read."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as the base has it
        super().connection_made(transport)
        if self.limit_concurrency is not None and len(self.connections) > self.limit_concurrency + _SPARE:
            transport.abort()
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._forget_deadline()
        self._forget_check()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._check_again(self.unread, 1)
        others = [one for one in self.connections if isinstance(one, RequestProtocol)]
        if sum(one.unread for one in others) > _UNREAD_MAX:
            max(others, key=lambda one: one.unread).transport.abort()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._forget_check()

    @property
    def unread(self) -> int:
        """Bytes of an answer that wait to be read."""
        return self.transport.get_write_buffer_size()

    def _check_reading(self, before: int, checks: int) -> None:
        if before - self.unread >= _UNREAD_BYTES:
            self._check_again(self.unread, 1)
        elif checks < _CHECKS:
            self._check_again(before, checks + 1)
        else:
            self.transport.abort()

    def _check_again(self, before: int, checks: int) -> None:
        self._reading_check = self.loop.call_later(_CHECK_S, self._check_reading, before, checks)

    def _watch(self) -> None:
        """The time runs from the request's first byte, or from the connection's first moment."""
        if self.transport.get_protocol() is not self or self.conn.their_state not in {h11.IDLE, h11.SEND_BODY}:
            self._forget_deadline()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(_REQUEST_S, self._end_request)

    def _end_request(self) -> None:
        if self.conn.our_state is h11.IDLE:
            self.transport.write(b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            self.transport.close()
        else:  # its answer is on the way already, and perhaps it doesn't read that either
            self.transport.abort()

    def _forget_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _forget_check(self) -> None:
        if self._reading_check is not None:
            self._reading_check.cancel()
            self._reading_check = None


class _Flood:
    """The clients that have sent faster than they may. They are read in turn, and all together at one pace, so that
    many of them cost the others no more than a few.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: deque[FrameProtocol] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._next_s = 0.0

    def add(self, client: "FrameProtocol") -> None:
        self._waiting.append(client)
        if self._timer is None:
            self._timer = self._loop.call_at(max(self._next_s, self._loop.time()), self._read_next)

    def remove(self, client: "FrameProtocol") -> None:
        with contextlib.suppress(ValueError):
            self._waiting.remove(client)

    def _read_next(self) -> None:
        self._timer = None
        if self._waiting:
            frames = self._waiting.popleft().read_piece()
            self._next_s = self._loop.time() + max(frames, 1) / _FLOOD_FRAMES_S
        if self._waiting:
            self._timer = self._loop.call_at(self._next_s, self._read_next)


_FLOODS: "WeakKeyDictionary[asyncio.AbstractEventLoop, _Flood]" = WeakKeyDictionary()


class FrameProtocol(WebSocketsSansIOProtocol):
    """Sends `{"type": "websocket.send", "frames": …}` as well: bytes that are frames already, the same for all clients.
    That takes one copy per client, where encoding takes 20 µs per message.

    Whatever a client sends costs the others no more than a client's share: see `_read_soon`.

    A close doesn't wait until the client reads: its frame stands behind what is in the socket's buffer, and a client
    that hasn't read that 5 s later is cut off.
    """

    _discarded: int | None = None
    """Bytes that came after the client had broken the protocol; None: it hasn't."""
    _frames_left = float(_FRAMES_BURST)
    _counted_s = 0.0
    """Up to when `_frames_left` has grown."""
    _turn: asyncio.Handle | None = None
    """The next reading of `_input`, or its place among the others that flood, where that is only a matter of time."""
    _in_flood = False
    _flooding_since_s: float | None = None
    """Since when it has sent faster than it is read."""

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(transport)
        self._input = bytearray()
        self._counted_s = self.loop.time()
        self._flood = _FLOODS.setdefault(self.loop, _Flood(self.loop))

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._input.clear()
        self._flood.remove(self)
        if self._turn is not None:
            self._turn.cancel()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._read_soon()

    # What a client sends, whatever it is, is read piece by piece, so that the others have their turn; no faster than
    # its frames are allowed to come; and only while what it asked for before, such as a pong, has gone out. What is
    # not read yet waits in its own socket.

    def data_received(self, data: bytes) -> None:
        if self._discarded is None:
            self._input += data
            self._read_soon()
            return
        self._discarded += len(data)
        if self._discarded > _DISCARD_MAX:
            self.transport.abort()
        elif not self.transport.is_closing():
            self.transport.pause_reading()
            self.loop.call_later(_DISCARD_PAUSE_S, self.transport.resume_reading)

    async def receive(self) -> Any:
        message = await super().receive()
        self._read_soon()
        return message

    def _read_soon(self) -> None:
        """See to it that what has come is read, and that nothing else comes before."""
        if not self._input:
            return
        self.transport.pause_reading()
        if self._turn is not None or self._in_flood or self.read_paused or not self.writable.is_set():
            return
        now_s = self.loop.time()
        self._frames_left = min(self._frames_left + (now_s - self._counted_s) * _FRAMES_S, _FRAMES_BURST)
        self._counted_s = now_s
        if self._frames_left < 1 and self._flooding_since_s is None:
            self._flooding_since_s = now_s
        if self._flooding_since_s is None:
            self._turn = self.loop.call_soon(self.read_piece)
        elif now_s - self._flooding_since_s > _FLOOD_MAX_S:
            self._refuse(_POLICY_VIOLATION, f"for {_FLOOD_MAX_S:.0f} s more frames than are read")
            self._input.clear()
            self.transport.resume_reading()
        else:
            self._turn = self.loop.call_later(max(1 - self._frames_left, 0) / _FRAMES_S, self._join_flood)

    def _join_flood(self) -> None:
        self._turn = None
        if self._input:
            self._in_flood = True
            self._flood.add(self)

    def read_piece(self) -> float:
        """Read the next piece of what has come; how many frames that was."""
        self._turn, self._in_flood = None, False
        left = self._frames_left
        piece = bytes(self._input[:_PIECE_BYTES])
        del self._input[:_PIECE_BYTES]
        self._frames_left -= len(piece) / _FRAME_BYTES
        super().data_received(piece)
        if self._discarded is not None:
            self._input.clear()
        if self._input:
            self._read_soon()
        else:
            if self._frames_left >= 1:
                self._flooding_since_s = None
            if not self.read_paused:
                self.transport.resume_reading()
        return left - self._frames_left

    def handle_events(self) -> None:
        self._frames_left -= len(self.conn.events)
        super().handle_events()

    def handle_cont(self, event: Frame) -> None:
        if len(self.frames) >= _FRAGMENTS_MAX:
            self._refuse(_POLICY_VIOLATION, f"more than {_FRAGMENTS_MAX} fragments of one message")
        else:
            super().handle_cont(event)

    def send_receive_event_to_app(self) -> None:
        try:
            if self.curr_msg_data_type == "text":
                b"".join(self.frames).decode()
        except UnicodeDecodeError:
            self._refuse(_INVALID_DATA, "text that is not UTF-8")
        else:
            super().send_receive_event_to_app()

    def _refuse(self, code: int, reason: str) -> None:
        self.frames = []
        if self._discarded is None and not self.close_sent:
            log.warning("client.refused", reason=reason)
            self.conn.fail(code, reason)
            self.handle_parser_exception()

    async def send(self, message: Any) -> None:
        if message["type"] == "websocket.close" and self.handshake_complete:
            self._write(message.get("frames", b""))
            self.writable.set()
            self.loop.call_later(_FAREWELL_S, self.transport.abort)
        elif "frames" in message:
            await self.writable.wait()
            if self.disconnected or self.close_sent:
                raise ClientDisconnected
            self._write(message["frames"])
            return
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body", False):
            self.handshake_complete = True  # by a refusal: else uvicorn takes it for a fault of ours
        self._read_soon()

    def keepalive_timeout(self) -> None:
        super().keepalive_timeout()
        self.loop.call_later(_FAREWELL_S, self.transport.abort)

    def handle_parser_exception(self) -> None:
        """Say why (such as a frame above the limit), and go on reading for a while: to hang up on unread bytes resets
        the connection, and the client would never see the reason.
        """
        self._discarded = 0
        self.queue.put_nowait({"type": "websocket.disconnect", "code": _ABNORMAL})
        self._write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self.close_timer = self.loop.call_later(_FAREWELL_S, self.transport.abort)

    def _write(self, frames: bytes) -> None:
        if frames and not self.close_sent and not self.transport.is_closing():
            self.transport.write(frames)


_OTHER_CONNECTIONS = 256
"""For HTTP, beside the WebSockets."""
_OTHER_FILES = 512
_PING_S = 20.0
_STOP_S = 2.0
_BACKLOG = 1024
"""Connections that are taken at once, before the first of them is answered."""


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
        raise ConfigError(describe_refusal(host, port, error)) from None
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
