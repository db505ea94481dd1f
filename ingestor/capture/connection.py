"""One WebSocket connection: its handshake, its messages, and what its end means.

The socket is made by us: `WebSocket.connect` would honour proxy variables unasked. The handshake runs in a thread of
its own: a name server may take its time, and the library reads an answer byte by byte with a timeout for each, so that
a server that trickles would hold its caller for ever. Frames are taken in bulk: see `FrameStream`.
"""

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import websocket
from websocket import ABNF, WebSocketException

from ingestor.config.addresses import Proxy, bracketed
from ingestor.errors import ConnectionLost, HandshakeRefused
from ingestor.texts import escape

_NO_STATUS = 1005
_CLOSE_NAMES = {
    1000: "normal",
    1001: "going away",
    1005: "no code",
    1008: "policy",
    1011: "internal error",
    1012: "restart",
    1013: "try again later",
}
"""RFC 6455, 7.4."""

_TICK_S = 0.5
_LEAVE_S = 1.0
_NO_CLOSE_FRAME = 1006
_LOOK_S = 0.02
_MAX_MESSAGE = 64 << 20
_PROXY_ANSWER_MAX = 16_384

_FIN_TEXT = 0x81
_LENGTH_16 = 126
_LENGTH_64 = 127
_READ = 1 << 18


def read_close(body: bytes, secrets: Collection[str]) -> tuple[int, str]:
    """The code and the reason of a close frame; the library lets only whole ones pass: no body, or both.

    A venue may quote the key that it dislikes: `secrets` are blotted out.
    """
    code = int.from_bytes(body[:2]) if body else _NO_STATUS
    reason = body[2:].decode("utf-8", "replace")
    for secret in secrets:
        reason = reason.replace(secret, "***")
    return code, reason


def describe_close(code: int, reason: str) -> str:
    """Both, or what the code means where there is no reason."""
    return f"{code} {reason or _CLOSE_NAMES.get(code, '')}".rstrip()


def explain(error: Exception) -> str:
    """What happened, without the URL that an exception may carry."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the venue's certificate is not trusted ({error.verify_message})"
    if isinstance(error, OSError):
        return error.strerror or str(error) or type(error).__name__
    text = str(error) or type(error).__name__
    return type(error).__name__ if "://" in text or "token=" in text else text


class NothingYet(websocket.WebSocketTimeoutException):
    """Nothing came within the socket's timeout, or what came does not make a message whole: call again."""


def scan_text_frames(data: bytes, at: int = 0) -> tuple[list[bytes], int]:
    """The payloads of the whole text frames that stand in `data` from `at` on, and where the next frame begins."""
    payloads: list[bytes] = []
    append = payloads.append
    size = len(data)
    while at + 2 <= size and data[at] == _FIN_TEXT:
        length = data[at + 1]
        body = at + 2
        if length >= _LENGTH_16:
            if length > _LENGTH_64:  # masked: for the library
                break
            body += 2 if length == _LENGTH_16 else 8
            if body > size:
                break
            length = int.from_bytes(data[at + 2 : body])
        end = body + length
        if end > size:
            break
        append(data[body:end])
        at = end
    return payloads, at


class FrameStream(websocket.WebSocket):
    """A `WebSocket` that is read a chunk at a time: it takes complete text frames straight out of the received bytes,
    and leaves the rest to the library.

    websocket-client parses a frame in 3.5 to 4.5 µs of Python; a venue sends almost nothing but short, unfragmented
    text frames. The invariant: for any stream of bytes, cut anywhere, `receive` gives the same messages in the same
    order as `WebSocket.recv_data_frame` does, and raises where it raises. It holds because only a whole frame that
    begins with FIN + text and carries no mask (RFC 6455, 5.2) is taken here, and only where the library itself stands
    between two messages; everything else is handed to the library's own parser with the bytes in front of it untouched.

    One `receive` reads the socket once, whoever parses: left alone, the library goes on reading until its frame is
    whole, and a venue that trickles would hold the reader for ever.
    """

    def __init__(self, sock: socket.socket, *, max_message: int) -> None:
        super().__init__(enable_multithread=False, skip_utf8_validation=True)
        self.bytes_received = 0
        self.drained = False
        """Whether the last read found nothing in the socket."""
        self._tcp = sock
        self._room = memoryview(bytearray(_READ))
        """Where a read puts what comes: `recv` would ask for so much memory anew each time."""
        self._max_message = max_message
        self._ahead = b""
        self._at = 0
        """How much of `_ahead` is taken."""
        self._since_message = 0
        self._may_read = False
        self._inside_message = False
        """Whether the library has begun to read a message: then only the library can end it."""

    def receive(self) -> tuple[int, list[bytes]]:
        """The next messages as (opcode, payloads): any number of text messages, or one of another kind.

        Raises NothingYet, any other WebSocketException or OSError where the connection is of no more use.
        """
        self._may_read = True
        if self._inside_message:
            return self._receive_slowly()
        if self._at == len(self._ahead):
            self._read()
        payloads, self._at = scan_text_frames(self._ahead, self._at)
        if payloads:
            self._since_message = len(self._ahead) - self._at
            return ABNF.OPCODE_TEXT, payloads
        # Where a text frame of less than 64 KB is cut, the rest of it is read. A longer one is for the library, which
        # gathers its pieces in a list: adding each to the bytes before it takes time by the square of their number.
        ahead, at = self._ahead, self._at
        if ahead[at] == _FIN_TEXT and (len(ahead) == at + 1 or ahead[at + 1] < _LENGTH_64):
            self._read()
            return ABNF.OPCODE_TEXT, []
        return self._receive_slowly()

    def hang_up(self) -> None:
        """Close the socket, without a word."""
        self._tcp.close()

    def _receive_slowly(self) -> tuple[int, list[bytes]]:
        try:
            opcode, frame = self.recv_data_frame(control_frame=True)
        finally:
            parser = self.frame_buffer
            self._inside_message = bool(self.cont_frame.recving_frames or parser.header or parser.recv_buffer)
        if not self._inside_message:  # a ping between two fragments ends no message
            self._since_message = len(self._ahead) - self._at
        return opcode, [frame.data]

    def _recv(self, bufsize: int) -> bytes:
        """Where the library's parser gets its bytes."""
        if self._at == len(self._ahead):
            self._read()
        start = self._at
        self._at = min(start + bufsize, len(self._ahead))
        return self._ahead[start : self._at]

    def _read(self) -> None:
        """Add what the socket has to what lies ahead; once a `receive`."""
        if not self._may_read:
            raise NothingYet("not whole yet")
        self._may_read = False
        try:
            size = self._tcp.recv_into(self._room)
        except (TimeoutError, ssl.SSLWantReadError) as error:
            self.drained = True
            raise NothingYet("nothing came") from error
        self.drained = False
        if not size:
            raise websocket.WebSocketConnectionClosedException("the connection was closed without a close frame")
        self.bytes_received += size
        self._since_message += size
        if self._since_message > self._max_message:
            raise websocket.WebSocketConnectionClosedException(f"a message longer than {self._max_message} bytes")
        self._ahead = b"".join((self._ahead[self._at :], self._room[:size]))
        self._at = 0


class Connection:
    """An open connection, for one thread: nothing that it does takes longer than half a second, but `leave`."""

    def __init__(self, stream: FrameStream, secrets: Collection[str], address: str = "") -> None:
        """`stream` is an open WebSocket; `secrets` are what a venue might quote, and nobody may read. `address`: of the
        other end.
        """
        self.pongs = 0
        self.address = address
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

    @property
    def drained(self) -> bool:
        """Whether all that has come is read: the last read found nothing in the socket."""
        return self._stream.drained

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
            self.close_code, reason = read_close(payloads[0], self._secrets)
            raise ConnectionLost(f"the venue closed it: {describe_close(self.close_code, reason)}")
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


def connect(
    url: str,
    *,
    timeout_s: float,
    ca_file: Path | None,
    stop: threading.Event,
    proxy: Proxy | None = None,
    avoid: Collection[str] = (),
) -> Connection:
    """A new connection: TCP, by a proxy if there is one, TLS and the handshake, all within `timeout_s`; `stop` cuts it
    short. The addresses `avoid` are tried last, where the host has others.

    Raises HandshakeRefused with the HTTP status where the venue says no, ConnectionLost on any other failure;
    neither holds the key that is in the URL.
    """
    handshake = _Handshake(url, timeout_s, ca_file, proxy, avoid)
    handshake.start()
    deadline_s = time.monotonic() + timeout_s
    while not handshake.ended.wait(_LOOK_S):
        if stop.is_set() or time.monotonic() > deadline_s:
            handshake.give_up()
            raise ConnectionLost("told to stop" if stop.is_set() else f"no handshake within {timeout_s:g} s")
    secrets = [value for _, value in parse_qsl(urlsplit(url).query)]
    return Connection(handshake.result(), secrets, handshake.address)


class _Handshake(threading.Thread):
    """From an address to an open WebSocket, in a thread of its own, which nobody need wait for."""

    def __init__(
        self, url: str, timeout_s: float, ca_file: Path | None, proxy: Proxy | None, avoid: Collection[str]
    ) -> None:
        super().__init__(name="handshake", daemon=True)
        self.ended = threading.Event()
        self.address = ""
        self._avoid = avoid
        self._url = url
        self._timeout_s = timeout_s
        self._ca_file = ca_file
        self._proxy = proxy
        self._lock = threading.Lock()
        self._given_up = False
        self._opened: FrameStream | None = None
        self._error: ConnectionLost | None = None
        self._socket: socket.socket | None = None

    def run(self) -> None:
        try:
            opened = self._open()
        except ConnectionLost as error:
            self._error = error
        except Exception as error:  # noqa: BLE001  nothing that a venue answers may end the recorder
            self._error = ConnectionLost(f"the handshake failed: {explain(error)}")
        else:
            with self._lock:
                if self._given_up:
                    opened.hang_up()
                else:
                    self._opened = opened
        self.ended.set()

    def result(self) -> FrameStream:
        """Once `ended`. Raises HandshakeRefused, ConnectionLost."""
        if self._opened is None:
            raise self._error or ConnectionLost("no handshake")
        return self._opened

    def give_up(self) -> None:
        """Nobody will ask for the result: whatever comes of it is closed, by the thread that owns it."""
        with self._lock:
            self._given_up = True
            if self._opened is not None:
                self._opened.hang_up()
            elif self._socket is not None:
                _wake(self._socket)

    def _open(self) -> FrameStream:
        """Raises HandshakeRefused, ConnectionLost, WebSocketException, OSError, ValueError."""
        try:
            tcp = self._open_socket()
        except (OSError, ValueError) as error:
            raise ConnectionLost(f"can't connect to {urlsplit(self._url).hostname}: {explain(error)}") from None
        try:
            stream = FrameStream(tcp, max_message=_MAX_MESSAGE)
            try:
                stream.connect(  # type: ignore[no-untyped-call]  # the library gives this one no types
                    self._url, socket=tcp, redirect_limit=0, suppress_origin=True
                )
            except websocket.WebSocketBadStatusException as error:
                raise HandshakeRefused(error.status_code, f"the venue answered {error.status_code}") from None
            except WebSocketException:
                answer = stream.handshake_response
                if answer is None or answer.status == 101:
                    raise
                elsewhere = f"the venue sent us elsewhere ({answer.status}): not followed"
                raise HandshakeRefused(answer.status, elsewhere) from None
        except BaseException:
            tcp.close()
            raise
        return stream

    def _open_socket(self) -> socket.socket:
        """A connected socket, with verified TLS for wss. Raises OSError, ValueError."""
        parts = urlsplit(self._url)
        host = parts.hostname or ""
        port = parts.port or (443 if parts.scheme == "wss" else 80)
        next_host, next_port = (host, port) if self._proxy is None else (self._proxy.host, self._proxy.port)
        tcp = _connect_any(next_host, next_port, self._timeout_s, self._avoid)
        try:
            self._hold(tcp)
            self.address = tcp.getpeername()[0]
            if self._proxy is not None:
                _ask_proxy(tcp, self._proxy, f"{bracketed(host)}:{port}")
            tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if parts.scheme == "wss":
                context = ssl.create_default_context(cafile=self._ca_file)
                tcp = context.wrap_socket(tcp, server_hostname=host, do_handshake_on_connect=False)
            self._hold(tcp)
            if isinstance(tcp, ssl.SSLSocket):
                tcp.do_handshake()  # a server that trickles is ended by `give_up`
        except BaseException:
            tcp.close()
            raise
        return tcp

    def _hold(self, tcp: socket.socket) -> None:
        """From now on `give_up` ends what blocks on this socket."""
        with self._lock:
            self._socket = tcp
            if self._given_up:
                _wake(tcp)


def _connect_any(host: str, port: int, timeout_s: float, avoid: Collection[str]) -> socket.socket:
    """Connected to the first address of this host that answers, those to `avoid` last; each has its share of the time,
    so that one that swallows what it is sent leaves some for the next. Raises OSError.
    """
    deadline_s = time.monotonic() + timeout_s
    addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses.sort(key=lambda one: one[4][0] in avoid)  # in the resolver's order otherwise
    failure = OSError("the host has no address")
    for index, (family, kind, protocol, _, address) in enumerate(addresses):
        tcp = socket.socket(family, kind, protocol)
        try:
            tcp.settimeout(max((deadline_s - time.monotonic()) / (len(addresses) - index), _LOOK_S))
            tcp.connect(address)
            tcp.settimeout(timeout_s)
        except OSError as error:
            tcp.close()
            failure = error
        else:
            return tcp
    raise failure


def _ask_proxy(tcp: socket.socket, proxy: Proxy, target: str) -> None:
    """Have the proxy connect this socket to the venue (RFC 9110, 9.3.6). Raises OSError."""
    headers = {"Host": target, "User-Agent": "finnhub-ingestor", **proxy.headers}
    lines = [f"CONNECT {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    tcp.sendall("\r\n".join([*lines, "", ""]).encode())
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        one = tcp.recv(1)  # what comes behind it is the venue's
        if not one or len(answer) > _PROXY_ANSWER_MAX:
            raise OSError(f"the proxy {proxy} gave no answer that can be read")
        answer += one
    status = answer.split(b" ", 2)[1:2]
    if status != [b"200"]:
        code = escape(status[0][:3].decode("ascii", "replace")) if status else "nothing"
        hint = ": it wants a user and a password" if code == "407" else ""
        raise OSError(f"the proxy {proxy} answered {code}{hint}")


def _wake(tcp: socket.socket) -> None:
    """End what blocks on this socket. On the TCP socket: the library's own `abort` lets TLS go on with ciphertext."""
    with contextlib.suppress(OSError):  # it ended before us
        socket.socket.shutdown(tcp, socket.SHUT_RDWR)
