"""One open WebSocket, until it closes. `run_forever` is not used: it swallows exceptions."""

import contextlib
import time
from collections.abc import Collection, Iterator

from websocket import ABNF, WebSocketException

from ingestor.capture.endings import describe_close, explain, read_close
from ingestor.capture.fast_frames import FrameStream, NothingYet
from ingestor.errors import ConnectionLost

_TICK_S = 0.5
_LEAVE_S = 1.0
_NO_CLOSE_FRAME = 1006


class Connection:
    """An open connection, for one thread: nothing that it does takes longer than half a second, but `leave`."""

    def __init__(self, stream: FrameStream, secrets: Collection[str]) -> None:
        """`stream` is an open WebSocket; `secrets` are what a venue might quote, and nobody may read."""
        self.pongs = 0
        self.close_code: int | None = None
        """Why it ended, once it has: the venue's code, 1005 for a close frame without one, 1006 for no close frame."""
        self._leaving = False
        self._secrets = secrets
        self._stream = stream
        stream.settimeout(_TICK_S)

    @property
    def date(self) -> str | None:
        """The header `Date` of the venue's answer to the handshake."""
        answer = self._stream.handshake_response
        return None if answer is None else answer.headers.get("date")

    @property
    def bytes_received(self) -> int:
        """Bytes read from the socket, the handshake's not counted."""
        return self._stream.bytes_received

    def receive(self) -> list[bytes]:
        """The frames that one read brought; empty where that made none whole, or where nothing came in half a second.

        Raises ConnectionLost, after which only `close` is of use, and `close_code` says how it ended.
        """
        try:
            opcode, payloads = self._stream.receive()
        except NothingYet:
            return []
        except (WebSocketException, OSError) as error:
            raise self._lost(explain(error)) from None
        if opcode == ABNF.OPCODE_CLOSE:
            raise self._closed(payloads[0])
        if opcode == ABNF.OPCODE_PONG:
            self.pongs += 1
        return payloads if opcode in (ABNF.OPCODE_TEXT, ABNF.OPCODE_BINARY) else []

    def send(self, message: str) -> None:
        """Send one text message. Raises ConnectionLost."""
        try:
            self._stream.send(message)
        except (WebSocketException, OSError) as error:
            raise self._lost(f"can't send: {explain(error)}") from None

    def ping(self) -> None:
        """Send a protocol-level ping. Raises ConnectionLost."""
        try:
            self._stream.ping()
        except (WebSocketException, OSError) as error:
            raise self._lost(f"can't send: {explain(error)}") from None

    def leave(self) -> Iterator[list[bytes]]:
        """Say goodbye, and give the frames that were on their way: until the venue's goodbye, a second at most."""
        deadline_s = time.monotonic() + _LEAVE_S
        self._say_goodbye()
        with contextlib.suppress(ConnectionLost):  # its goodbye, or it is gone
            while time.monotonic() < deadline_s:
                yield self.receive()

    def close(self) -> None:
        """Say goodbye, unless that is done or it has ended, without waiting for an answer; close the socket."""
        self._say_goodbye()
        self._stream.hang_up()

    def _say_goodbye(self) -> None:
        if self.close_code is None and not self._leaving:
            self._leaving = True
            with contextlib.suppress(WebSocketException, OSError):  # nothing hangs on a goodbye
                self._stream.send_close()

    def _lost(self, what: str) -> ConnectionLost:
        self.close_code = _NO_CLOSE_FRAME
        return ConnectionLost(what)

    def _closed(self, body: bytes) -> ConnectionLost:
        self.close_code, reason = read_close(body, self._secrets)
        return ConnectionLost(f"the venue closed it: {describe_close(self.close_code, reason)}")
