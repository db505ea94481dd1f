"""Overrides of uvicorn's two protocols: request time-outs, pre-encoded frames, close frames that arrive."""

import asyncio
from asyncio import BaseTransport
from typing import Any

import h11
import structlog
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame

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
_ABNORMAL = 1006
_INVALID_DATA, _POLICY_VIOLATION = 1007, 1008
_FRAMES_BURST = 256
_FRAMES_S = 100
"""Frames of any kind that one client may send at once, and per second after that."""
_FRAME_BYTES = 1 << 10
"""So many bytes count as a frame more."""
_PIECE_BYTES = 512
"""Read of one client before the others have their turn: 85 of the smallest frames."""
_FRAGMENTS_MAX = 1000
"""Of one message."""

log = structlog.get_logger()


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
    """The next reading of `_input`, where it is only a matter of time."""

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(transport)
        self._input = bytearray()
        self._counted_s = self.loop.time()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._input.clear()
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

    async def receive(self) -> Any:
        message = await super().receive()
        self._read_soon()
        return message

    def _read_soon(self) -> None:
        """See to it that what has come is read, and that nothing else comes before."""
        if not self._input:
            return
        self.transport.pause_reading()
        if self._turn is None and not self.read_paused and self.writable.is_set():
            now_s = self.loop.time()
            self._frames_left = min(self._frames_left + (now_s - self._counted_s) * _FRAMES_S, _FRAMES_BURST)
            self._counted_s = now_s
            wait_s = max(1 - self._frames_left, 0) / _FRAMES_S
            self._turn = (
                self.loop.call_later(wait_s, self._read_piece) if wait_s else self.loop.call_soon(self._read_piece)
            )

    def _read_piece(self) -> None:
        self._turn = None
        piece = bytes(self._input[:_PIECE_BYTES])
        del self._input[:_PIECE_BYTES]
        self._frames_left -= len(piece) / _FRAME_BYTES
        super().data_received(piece)
        if self._discarded is not None:
            self._input.clear()
        if self._input:
            self._read_soon()
        elif not self.read_paused:
            self.transport.resume_reading()

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
