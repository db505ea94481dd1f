"""What a fan-out needs of a WebSocket beyond ASGI: frames that are finished, and a last word that is heard."""

from typing import Any

from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

_FAREWELL_S = 5.0
_DISCARD_MAX = 16 << 20
_ABNORMAL = 1006


class FrameProtocol(WebSocketsSansIOProtocol):
    """Knows `{"type": "websocket.send", "frames": …}` as well: bytes that are frames already, the same for all clients.
    That takes a copy a client, where encoding takes 20 µs a message.

    A close doesn't wait until the client reads: its frame stands behind what is in the socket's buffer, and who hasn't
    read that 5 s later is cut off.
    """

    _discarded: int | None = None
    """Bytes that came after the client had broken the protocol; None: it hasn't."""

    def data_received(self, data: bytes) -> None:
        if self._discarded is None:
            super().data_received(data)
            return
        self._discarded += len(data)
        if self._discarded > _DISCARD_MAX:
            self.transport.abort()

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
