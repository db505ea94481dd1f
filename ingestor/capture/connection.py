"""One socket, open to close. The only user of websocket-client, whose surprises end here.

The socket is made by us: `WebSocket.connect` would honour proxy variables, and its handshake reads byte by byte with
a timeout of its own for each, so that a server that trickles holds it for ever. `run_forever` is not used: it
swallows exceptions.
"""

import contextlib
import socket
import ssl
import threading
from pathlib import Path
from urllib.parse import urlsplit

from websocket import (
    ABNF,
    WebSocketBadStatusException,
    WebSocketException,
    WebSocketTimeoutException,
)

from ingestor.capture.fast_frames import FrameStream
from ingestor.errors import ConnectionLost, HandshakeRefused

_TICK_S = 0.5
_MAX_MESSAGE = 64 << 20
_CLOSE_NAMES = {1000: "normal", 1001: "going away", 1006: "no close frame", 1008: "policy", 1012: "restart"}


class Connection:
    """An open connection. `receive`, `send` and `ping` belong to one thread; `interrupt` may come from any."""

    def __init__(self, url: str, *, connect_timeout_s: float, ca_file: Path | None, fast_frames: bool) -> None:
        """Connect and shake hands, both within `connect_timeout_s`.

        Raises HandshakeRefused with the HTTP status where the venue says no, ConnectionLost on any other failure;
        neither holds the URL, which holds the key.
        """
        self.pongs = 0
        self.close_code: int | None = None
        self.close_reason = ""
        self._interrupted = False
        try:
            tcp = _open_socket(url, connect_timeout_s, ca_file)
        except (OSError, ValueError) as error:
            raise ConnectionLost(f"can't connect: {_explain(error)}") from None
        self._socket = tcp
        self._stream = FrameStream(tcp, fast=fast_frames, max_frame=_MAX_MESSAGE)
        deadline = threading.Timer(connect_timeout_s, self.interrupt)
        deadline.daemon = True
        deadline.start()
        try:
            self._stream.connect(  # type: ignore[no-untyped-call]  # the library gives this one no types
                url, socket=tcp, redirect_limit=0, suppress_origin=True
            )
        except WebSocketBadStatusException as error:
            tcp.close()
            raise HandshakeRefused(error.status_code, f"the venue answered {error.status_code}") from None
        except (WebSocketException, OSError, ValueError) as error:
            tcp.close()
            if self._interrupted:
                raise ConnectionLost(f"no handshake within {connect_timeout_s:g} s") from None
            raise ConnectionLost(f"the handshake failed: {_explain(error)}") from None
        finally:
            deadline.cancel()
        tcp.settimeout(_TICK_S)

    @property
    def bytes_received(self) -> int:
        """Bytes read from the socket, the handshake's not counted."""
        return self._stream.bytes_received

    def receive(self) -> list[bytes]:
        """The frames that one read brought; empty where none was whole within half a second.

        Raises ConnectionLost, after which only `close` is of use. `close_code` then says how the venue ended it (1006
        where it sent no close frame).
        """
        try:
            opcode, payloads = self._stream.receive()
        except WebSocketTimeoutException:
            return []
        except (WebSocketException, OSError) as error:
            self.close_code = 1006
            raise ConnectionLost(_explain(error)) from None
        if opcode == ABNF.OPCODE_CLOSE:
            self._read_close(payloads[0])
            name = _CLOSE_NAMES.get(self.close_code or 0, "")
            raise ConnectionLost(f"the venue closed it: {self.close_code} {self.close_reason or name}".rstrip())
        if opcode == ABNF.OPCODE_PONG:
            self.pongs += 1
        return payloads if opcode in (ABNF.OPCODE_TEXT, ABNF.OPCODE_BINARY) else []

    def send(self, message: str) -> None:
        """Send one text message. Raises ConnectionLost."""
        try:
            self._stream.send(message)
        except (WebSocketException, OSError) as error:
            raise ConnectionLost(f"can't send: {_explain(error)}") from None

    def ping(self) -> None:
        """Send a protocol-level ping. Raises ConnectionLost."""
        try:
            self._stream.ping()
        except (WebSocketException, OSError) as error:
            raise ConnectionLost(f"can't send: {_explain(error)}") from None

    def interrupt(self) -> None:
        """Wake a `receive` that waits in another thread; it raises ConnectionLost.

        On the TCP socket: the library's own `abort` lets a TLS parser go on with ciphertext.
        """
        self._interrupted = True
        with contextlib.suppress(OSError):  # it ended before us
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def close(self) -> None:
        """Say goodbye without waiting for an answer, and close the socket."""
        with contextlib.suppress(WebSocketException, OSError):  # nothing hangs on a goodbye
            self._socket.settimeout(_TICK_S)
            self._stream.send_close()
        self._socket.close()

    def _read_close(self, body: bytes) -> None:
        self.close_code = int.from_bytes(body[:2]) if len(body) >= 2 else 1005
        self.close_reason = body[2:].decode("utf-8", "replace")[:123]


def _open_socket(url: str, timeout_s: float, ca_file: Path | None) -> socket.socket:
    """A connected socket, with verified TLS for wss. Raises OSError."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    tcp = socket.create_connection((host, parts.port or (443 if parts.scheme == "wss" else 80)), timeout_s)
    tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    tcp.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if parts.scheme != "wss":
        return tcp
    try:
        return ssl.create_default_context(cafile=ca_file).wrap_socket(tcp, server_hostname=host)
    except BaseException:
        tcp.close()
        raise


def _explain(error: Exception) -> str:
    """What happened, without the URL that an exception may carry."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the venue's certificate is not trusted ({error.verify_message})"
    if isinstance(error, OSError):
        return error.strerror or str(error) or type(error).__name__
    return str(error).split("://")[0] or type(error).__name__
