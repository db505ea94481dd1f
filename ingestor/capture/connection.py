"""One socket, open to close. The only user of websocket-client, whose surprises end here.

The socket is made by us: `WebSocket.connect` would honour proxy variables. `run_forever` is not used: it swallows
exceptions. The handshake runs in a thread of its own: a name server may take its time, and the library reads an answer
byte by byte with a timeout for each, so that a server that trickles would hold its caller for ever.
"""

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from websocket import ABNF, WebSocketBadStatusException, WebSocketException

from ingestor.capture.fast_frames import FrameStream, NothingYet
from ingestor.errors import ConnectionLost, HandshakeRefused

_TICK_S = 0.5
_LOOK_S = 0.02
_LEAVE_S = 1.0
_MAX_MESSAGE = 64 << 20
_NO_STATUS, _NO_CLOSE_FRAME = 1005, 1006
_CLOSE_NAMES = {
    1000: "normal",
    1001: "going away",
    1005: "no code",
    1008: "policy",
    1011: "internal error",
    1012: "restart",
    1013: "try again later",
}


class Connection:
    """An open connection, for one thread: nothing that it does takes longer than half a second, but `leave`."""

    def __init__(
        self,
        url: str,
        *,
        connect_timeout_s: float,
        ca_file: Path | None,
        fast_frames: bool,
        stop: threading.Event,
    ) -> None:
        """Connect and shake hands, all within `connect_timeout_s`; `stop` cuts it short.

        Raises HandshakeRefused with the HTTP status where the venue says no, ConnectionLost on any other failure;
        neither holds the key that is in the URL.
        """
        self.pongs = 0
        self.close_code: int | None = None
        """Why it ended, once it has: the venue's code, 1005 for a close frame without one, 1006 for no close frame."""
        self.close_reason = ""
        self._leaving = False
        self._secrets = _secrets(url)
        handshake = _Handshake(url, connect_timeout_s, ca_file, fast_frames=fast_frames)
        handshake.start()
        deadline_s = time.monotonic() + connect_timeout_s
        while not handshake.ended.wait(_LOOK_S):
            if stop.is_set() or time.monotonic() > deadline_s:
                handshake.give_up()
                why = "told to stop" if stop.is_set() else f"no handshake within {connect_timeout_s:g} s"
                raise ConnectionLost(why)
        self._socket, self._stream = handshake.result()
        self._socket.settimeout(_TICK_S)

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
            raise self._lost(_explain(error)) from None
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
            raise self._lost(f"can't send: {_explain(error)}") from None

    def ping(self) -> None:
        """Send a protocol-level ping. Raises ConnectionLost."""
        try:
            self._stream.ping()
        except (WebSocketException, OSError) as error:
            raise self._lost(f"can't send: {_explain(error)}") from None

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
        self._socket.close()

    def _say_goodbye(self) -> None:
        if self.close_code is None and not self._leaving:
            self._leaving = True
            with contextlib.suppress(WebSocketException, OSError):  # nothing hangs on a goodbye
                self._stream.send_close()

    def _lost(self, what: str) -> ConnectionLost:
        self.close_code = _NO_CLOSE_FRAME
        return ConnectionLost(what)

    def _closed(self, body: bytes) -> ConnectionLost:
        """By a close frame; the library lets only whole ones pass: no body, or a code and a reason."""
        self.close_code = int.from_bytes(body[:2]) if body else _NO_STATUS
        self.close_reason = body[2:].decode("utf-8", "replace")
        for secret in self._secrets:  # it goes into the ledger, and a venue may quote the key that it dislikes
            self.close_reason = self.close_reason.replace(secret, "***")
        reason = self.close_reason or _CLOSE_NAMES.get(self.close_code, "")
        return ConnectionLost(f"the venue closed it: {self.close_code} {reason}".rstrip())


class _Handshake(threading.Thread):
    """From an address to an open WebSocket, in a thread of its own, which nobody need wait for."""

    def __init__(self, url: str, timeout_s: float, ca_file: Path | None, *, fast_frames: bool) -> None:
        super().__init__(name="handshake", daemon=True)
        self.ended = threading.Event()
        self._url = url
        self._timeout_s = timeout_s
        self._ca_file = ca_file
        self._fast_frames = fast_frames
        self._lock = threading.Lock()
        self._given_up = False
        self._opened: tuple[socket.socket, FrameStream] | None = None
        self._error: ConnectionLost | None = None
        self._socket: socket.socket | None = None

    def run(self) -> None:
        try:
            opened = self._open()
        except ConnectionLost as error:
            self._error = error
        except Exception as error:  # noqa: BLE001  nothing that a venue answers may end the recorder
            self._error = ConnectionLost(f"the handshake failed: {_explain(error)}")
        else:
            self._hand_over(opened)
        self.ended.set()

    def result(self) -> tuple[socket.socket, FrameStream]:
        """Once `ended`. Raises HandshakeRefused, ConnectionLost."""
        if self._opened is None:
            raise self._error or ConnectionLost("no handshake")
        return self._opened

    def give_up(self) -> None:
        """Nobody will ask for the result: whatever comes of it is closed, by the thread that owns it."""
        with self._lock:
            self._given_up = True
            if self._opened is not None:
                self._opened[0].close()
            elif self._socket is not None:
                _wake(self._socket)

    def _hand_over(self, opened: tuple[socket.socket, FrameStream]) -> None:
        with self._lock:
            if self._given_up:
                opened[0].close()
            else:
                self._opened = opened

    def _open(self) -> tuple[socket.socket, FrameStream]:
        try:
            tcp = _open_socket(self._url, self._timeout_s, self._ca_file)
        except (OSError, ValueError) as error:
            raise ConnectionLost(f"can't connect: {_explain(error)}") from None
        with self._lock:
            self._socket = tcp
            if self._given_up:
                _wake(tcp)
        try:
            return tcp, _shake_hands(tcp, self._url, fast_frames=self._fast_frames)
        except BaseException:
            tcp.close()
            raise


def _shake_hands(tcp: socket.socket, url: str, *, fast_frames: bool) -> FrameStream:
    """An open WebSocket on this socket. Raises HandshakeRefused, WebSocketException, OSError, ValueError."""
    stream = FrameStream(tcp, fast=fast_frames, max_message=_MAX_MESSAGE)
    try:
        stream.connect(  # type: ignore[no-untyped-call]  # the library gives this one no types
            url, socket=tcp, redirect_limit=0, suppress_origin=True
        )
    except WebSocketBadStatusException as error:
        raise HandshakeRefused(error.status_code, f"the venue answered {error.status_code}") from None
    except WebSocketException:
        answer = stream.handshake_response
        if answer is None or answer.status == 101:
            raise
        raise HandshakeRefused(answer.status, f"the venue sent us elsewhere ({answer.status}): not followed") from None
    return stream


def _open_socket(url: str, timeout_s: float, ca_file: Path | None) -> socket.socket:
    """A connected socket, with verified TLS for wss. Raises OSError, ValueError."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    tcp = socket.create_connection((host, parts.port or (443 if parts.scheme == "wss" else 80)), timeout_s)
    try:
        tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if parts.scheme != "wss":
            return tcp
        return ssl.create_default_context(cafile=ca_file).wrap_socket(tcp, server_hostname=host)
    except BaseException:
        tcp.close()
        raise


def _wake(tcp: socket.socket) -> None:
    """End what blocks on this socket. On the TCP socket: the library's own `abort` lets TLS go on with ciphertext."""
    with contextlib.suppress(OSError):  # it ended before us
        socket.socket.shutdown(tcp, socket.SHUT_RDWR)


def _secrets(url: str) -> list[str]:
    return [value for _, value in parse_qsl(urlsplit(url).query)]


def _explain(error: Exception) -> str:
    """What happened, without the URL that an exception may carry."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the venue's certificate is not trusted ({error.verify_message})"
    if isinstance(error, OSError):
        return error.strerror or str(error) or type(error).__name__
    text = str(error) or type(error).__name__
    return type(error).__name__ if "://" in text or "token=" in text else text
