"""One socket against real servers: how it is opened, read, and how each way to end it is told."""

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from certificates import Certificate, make_certificate
from recorders import eventually
from websockets.frames import Frame, Opcode
from websockets.server import ServerProtocol

from ingestor.capture.connection import Connection
from ingestor.errors import ConnectionLost, HandshakeRefused

KEY = "key-in-the-url"


def text(payload: bytes) -> bytes:
    return Frame(Opcode.TEXT, payload).serialize(mask=False)


def accept_handshake(peer: socket.socket) -> ServerProtocol:
    """The venue's side of a handshake that succeeds."""
    protocol = ServerProtocol()
    while not (events := protocol.events_received()):
        protocol.receive_data(peer.recv(1 << 16))
    protocol.send_response(protocol.accept(events[0]))  # type: ignore[arg-type]  # the first event is the request
    peer.sendall(b"".join(protocol.data_to_send()))
    return protocol


def say(*pieces: bytes) -> Callable[[socket.socket], None]:
    """A venue that shakes hands, sends these bytes, and waits for the client to end."""

    def behave(peer: socket.socket) -> None:
        accept_handshake(peer)
        for piece in pieces:
            peer.sendall(piece)
        while peer.recv(1 << 16):
            pass

    return behave


def answer(raw: bytes) -> Callable[[socket.socket], None]:
    """A server that answers every request with these bytes, and ends when the client does."""

    def behave(peer: socket.socket) -> None:
        peer.recv(1 << 16)
        peer.sendall(raw)
        while peer.recv(1 << 16):
            pass

    return behave


@contextmanager
def venue(behave: Callable[[socket.socket], None], certificate: Certificate | None = None) -> Iterator[str]:
    """The URL of a venue that treats its one client so."""

    def serve() -> None:
        try:
            peer, _ = server.accept()
            with peer if context is None else context.wrap_socket(peer, server_side=True) as one:
                behave(one)
        except OSError:
            return  # the client went first

    context = None if certificate is None else ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    if context is not None and certificate is not None:
        context.load_cert_chain(*certificate)
    with ThreadPoolExecutor(1) as executor, socket.create_server(("127.0.0.1", 0)) as server:
        executor.submit(serve)
        scheme = "ws" if certificate is None else "wss"
        try:
            yield f"{scheme}://127.0.0.1:{server.getsockname()[1]}/?token={KEY}"
        finally:
            server.shutdown(socket.SHUT_RDWR)


def connect(url: str, **changes: Any) -> Connection:
    options: dict[str, Any] = {"connect_timeout_s": 10.0, "ca_file": None, "fast_frames": True}
    return Connection(url, stop=threading.Event(), **(options | changes))


def receive_all(connection: Connection) -> tuple[list[bytes], ConnectionLost]:
    """The frames up to the end, and how that was told."""
    frames: list[bytes] = []
    while True:
        try:
            frames += connection.receive()
        except ConnectionLost as lost:
            return frames, lost


def end_of(*pieces: bytes) -> tuple[list[bytes], Connection, str]:
    with venue(say(*pieces)) as url:
        connection = connect(url)
        frames, lost = receive_all(connection)
        connection.close()
    return frames, connection, str(lost)


# basic


@pytest.mark.parametrize("fast_frames", [True, False])
def test_it_gives_frames_as_they_come(fast_frames: bool) -> None:
    with venue(say(text(b"one") + text(b"two"), text(b"three"))) as url:
        connection = connect(url, fast_frames=fast_frames)
        frames: list[bytes] = []
        while len(frames) < 3:
            frames += connection.receive()
        connection.close()
    assert frames == [b"one", b"two", b"three"]
    assert connection.bytes_received == len(text(b"one") + text(b"two") + text(b"three"))


def test_pings_are_answered_and_pongs_counted() -> None:
    heard: list[bytes] = []

    def behave(peer: socket.socket) -> None:
        protocol = accept_handshake(peer)
        peer.sendall(Frame(Opcode.PING, b"are you there").serialize(mask=False))
        while data := peer.recv(1 << 16):
            protocol.receive_data(data)
            heard.extend(bytes(event.data) for event in protocol.events_received() if isinstance(event, Frame))
            peer.sendall(b"".join(protocol.data_to_send()))

    with venue(behave) as url:
        connection = connect(url)
        connection.ping()
        connection.send("hello")
        eventually(lambda: connection.receive() or connection.pongs, "a pong")
        eventually(lambda: connection.receive() or {b"are you there", b"hello"} <= set(heard), "what we sent")
        connection.close()


# How it ends


def test_a_close_frame_without_a_code_is_1005() -> None:
    frames, connection, told = end_of(text(b"last"), Frame(Opcode.CLOSE, b"").serialize(mask=False))
    assert frames == [b"last"]
    assert connection.close_code == 1005
    assert told == "the venue closed it: 1005 no code"


def test_a_close_frame_tells_its_code_and_its_reason_without_the_key() -> None:
    body = (1008).to_bytes(2) + f"too much for {KEY}".encode()
    _, connection, told = end_of(Frame(Opcode.CLOSE, body).serialize(mask=False))
    assert (connection.close_code, connection.close_reason) == (1008, "too much for ***")
    assert told == "the venue closed it: 1008 too much for ***"


def test_an_end_without_a_close_frame_is_1006() -> None:
    def behave(peer: socket.socket) -> None:
        accept_handshake(peer)
        peer.sendall(text(b"last") + text(b"cut off")[:4])

    with venue(behave) as url:
        connection = connect(url)
        frames, lost = receive_all(connection)
        connection.close()
    assert frames == [b"last"]
    assert connection.close_code == 1006
    assert "without a close frame" in str(lost)


def test_a_frame_that_breaks_the_protocol_ends_it() -> None:
    frames, connection, told = end_of(text(b"last"), b"\xf1\x01x")
    assert frames == [b"last"]
    assert connection.close_code == 1006
    assert "rsv" in told


def test_a_reset_ends_it() -> None:
    def behave(peer: socket.socket) -> None:
        accept_handshake(peer)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    with venue(behave) as url:
        connection = connect(url)
        _, lost = receive_all(connection)
        connection.close()
    assert "reset" in str(lost).lower()


@pytest.mark.parametrize("secure", [False, True])
def test_who_leaves_takes_what_was_on_its_way(secure: bool, tmp_path: Path) -> None:
    def behave(peer: socket.socket) -> None:
        protocol = accept_handshake(peer)
        while (event := next(iter(protocol.events_received()), None)) is None:
            protocol.receive_data(peer.recv(1 << 16))
        assert isinstance(event, Frame)
        heard.append(event.opcode)
        peer.sendall(text(b"on its way") + text(b"too") + b"".join(protocol.data_to_send()) + text(b"after the end"))
        while data := peer.recv(1 << 16):
            protocol.receive_data(data)

    heard: list[Opcode] = []
    certificate = make_certificate(tmp_path) if secure else None
    with venue(behave, certificate) as url:
        connection = connect(url, ca_file=certificate and certificate.certificate)
        frames = [frame for payloads in connection.leave() for frame in payloads]
        connection.close()
    assert heard == [Opcode.CLOSE]
    assert frames == [b"on its way", b"too"]
    assert connection.close_code == 1000


def test_a_venue_that_goes_on_for_ever_is_left_all_the_same() -> None:
    def behave(peer: socket.socket) -> None:
        accept_handshake(peer)
        while True:
            peer.sendall(text(b"more"))

    with venue(behave) as url:
        connection = connect(url)
        frames = [frame for payloads in connection.leave() for frame in payloads]
        connection.close()
    assert set(frames) == {b"more"}
    assert connection.close_code is None


def test_a_venue_that_says_nothing_is_left_all_the_same() -> None:
    with venue(say()) as url:
        connection = connect(url)
        assert [frame for payloads in connection.leave() for frame in payloads] == []
        connection.close()


def test_a_venue_that_takes_nothing_is_lost() -> None:
    def behave(peer: socket.socket) -> None:
        accept_handshake(peer)
        done.wait()

    done = threading.Event()
    with venue(behave) as url:
        connection = connect(url)

        def send_for_ever() -> None:
            while True:
                connection.send("x" * 100_000)

        with pytest.raises(ConnectionLost, match="can't send"):
            send_for_ever()
        assert connection.close_code == 1006
        connection.close()
        done.set()


def test_after_the_end_there_is_nothing_to_take() -> None:
    with venue(say()) as url:
        connection = connect(url)
        connection.close()
        assert list(connection.leave()) == []


# The handshake


@pytest.mark.parametrize("status", [200, 401, 403, 429, 500, 524])
def test_a_refusal_has_its_status(status: int) -> None:
    raw = f"HTTP/1.1 {status} No\r\nContent-Length: {len(KEY)}\r\n\r\n{KEY}".encode()
    with venue(answer(raw)) as url, pytest.raises(HandshakeRefused) as raised:
        connect(url)
    assert raised.value.status == status
    assert KEY not in str(raised.value)


def test_a_redirect_is_refused_with_its_status() -> None:
    raw = f"HTTP/1.1 307 Go\r\nLocation: ws://127.0.0.1:9/?token={KEY}\r\n\r\n".encode()
    with venue(answer(raw)) as url, pytest.raises(HandshakeRefused, match="307") as raised:
        connect(url)
    assert KEY not in str(raised.value)


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 101 Fine\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: wrong\r\n\r\n",
        f"GET /?token={KEY} is no status\r\n\r\n".encode(),
        f"\xff token={KEY}\r\n\r\n".encode("latin-1"),
        b"HTTP/1.1\r\n\r\n",
        b"",
    ],
)
def test_an_answer_that_is_none_is_a_connection_lost(raw: bytes) -> None:
    def behave(peer: socket.socket) -> None:
        peer.recv(1 << 16)
        peer.sendall(raw)

    with venue(behave) as url, pytest.raises(ConnectionLost) as raised:
        connect(url)
    assert not isinstance(raised.value, HandshakeRefused)
    assert KEY not in str(raised.value)


def test_a_handshake_that_trickles_ends_in_time() -> None:
    """Each byte comes within the library's own timeout, which begins anew with each."""

    def behave(peer: socket.socket) -> None:
        while not done.wait(0.02):
            peer.sendall(b"H")

    done = threading.Event()
    with venue(behave) as url:
        with pytest.raises(ConnectionLost, match="no handshake within"):
            connect(url, connect_timeout_s=0.2)
        done.set()


def test_a_server_that_says_nothing_ends_in_time_and_is_hung_up_on() -> None:
    ended = threading.Event()

    def behave(peer: socket.socket) -> None:
        while peer.recv(1 << 16):
            pass
        ended.set()

    with venue(behave) as url:
        with pytest.raises(ConnectionLost, match=r"no handshake within|timed out"):
            connect(url, connect_timeout_s=0.2)
        assert ended.wait(10)


def test_told_to_stop_it_does_not_wait() -> None:
    stop = threading.Event()
    stop.set()
    with venue(answer(b"")) as url, pytest.raises(ConnectionLost, match="stop"):
        Connection(url, connect_timeout_s=60.0, ca_file=None, fast_frames=True, stop=stop)


def test_nobody_there_is_a_connection_lost() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(ConnectionLost, match="can't connect: Connection refused"):
        connect(f"ws://127.0.0.1:{port}/?token={KEY}")


def test_a_proxy_in_the_environment_sees_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as proxy, venue(say(text(b"direct"))) as url:
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        connection = connect(url)
        assert eventually(connection.receive, "a frame") == [b"direct"]
        connection.close()
        proxy.settimeout(0)
        with pytest.raises(BlockingIOError):
            proxy.accept()


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"))


def test_a_private_authority_is_trusted_where_it_is_given(certificate: Certificate) -> None:
    with venue(say(text(b"secret") + text(bytes(100_000))), certificate) as url:
        connection = connect(url, ca_file=certificate.certificate)
        frames: list[bytes] = []
        while len(frames) < 2:
            frames += connection.receive()
        connection.close()
    assert frames == [b"secret", bytes(100_000)]


@pytest.mark.parametrize("given", ["none", "another"])
def test_a_certificate_of_another_authority_is_not_trusted(
    certificate: Certificate, tmp_path: Path, given: str
) -> None:
    ca_file = None if given == "none" else make_certificate(tmp_path, "another").certificate
    with venue(say(text(b"never")), certificate) as url, pytest.raises(ConnectionLost, match="not trusted") as raised:
        connect(url, ca_file=ca_file)
    assert KEY not in str(raised.value)


def test_an_authority_that_is_no_file_is_told(certificate: Certificate, tmp_path: Path) -> None:
    with venue(say(), certificate) as url, pytest.raises(ConnectionLost, match="No such file"):
        connect(url, ca_file=tmp_path / "missing.pem")


def test_a_tls_record_in_pieces_is_no_end(certificate: Certificate, tmp_path: Path) -> None:
    """A relay that holds back half of a record for longer than one read waits."""
    release = threading.Event()

    def relay(client: socket.socket) -> None:
        with socket.create_connection(upstream) as server, ThreadPoolExecutor(1) as executor:
            executor.submit(pass_on, client, server)
            while data := server.recv(1 << 16):
                if len(data) > 50_000 // 4 and not release.is_set():
                    client.sendall(data[: len(data) // 2])
                    release.wait()
                    client.sendall(data[len(data) // 2 :])
                else:
                    client.sendall(data)

    with venue(say(text(bytes(50_000))), certificate) as secure:
        upstream = ("127.0.0.1", int(secure.rsplit(":", 1)[1].split("/")[0]))
        with venue(relay) as plain:
            connection = connect(plain.replace("ws:", "wss:"), ca_file=certificate.certificate)
            assert connection.receive() == []
            assert connection.receive() == []
            release.set()
            assert eventually(connection.receive, "the frame") == [bytes(50_000)]
            connection.close()


def pass_on(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(1 << 16):
            sink.sendall(data)
    except OSError:
        return
    finally:
        sink.shutdown(socket.SHUT_RDWR)
