"""How a connection is opened, and how each way in which it isn't is told."""

import contextlib
import socket
import threading
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from certificates import Certificate, make_certificate
from one_venue import KEY, answer, connect, say, text, venue
from recorders import eventually

from ingestor.capture.connection import _connect_any
from ingestor.config.addresses import Proxy
from ingestor.errors import ConnectionLost, HandshakeRefused
from ingestor.texts import is_visible


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
            connect(url, timeout_s=0.2)
        done.set()


def test_a_tls_handshake_that_trickles_leaves_no_thread_behind() -> None:
    def behave(peer: socket.socket) -> None:
        with contextlib.suppress(OSError):  # hung up on
            peer.sendall(b"\x16\x03\x03\x40\x00")
            while not done.wait(0.02):
                peer.sendall(b"\x02")

    done = threading.Event()
    with venue(behave) as url:
        with pytest.raises(ConnectionLost, match="no handshake within"):
            connect(url.replace("ws://", "wss://"), timeout_s=0.3)
        eventually(lambda: all(thread.name != "handshake" for thread in threading.enumerate()), "no handshake's thread")
        done.set()


def test_an_address_that_swallows_leaves_time_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as full, venue(answer(b"HTTP/1.1 429 No\r\nContent-Length: 0\r\n\r\n")) as url:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        first = [socket.create_connection(full.getsockname())]  # the next one is not answered
        port = urlsplit(url).port
        found = [
            (socket.AF_INET, socket.SOCK_STREAM, 0, "", address)
            for address in (full.getsockname(), ("127.0.0.1", port))
        ]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        with pytest.raises(HandshakeRefused):
            connect(url, timeout_s=4.0)
        first[0].close()


FIRST, SECOND = "127.0.0.1", "127.0.0.2"


@pytest.mark.parametrize(("avoid", "taken"), [((), FIRST), ((FIRST,), SECOND), ((SECOND,), FIRST)])
def test_an_address_to_avoid_is_tried_last(avoid: tuple[str, ...], taken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server((FIRST, 0)) as first, socket.create_server((SECOND, 0)) as second:
        found = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", one.getsockname()) for one in (first, second)]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        with _connect_any("venue.example", 443, 4.0, avoid) as opened:
            assert opened.getpeername()[0] == taken


def test_a_server_that_says_nothing_ends_in_time_and_is_hung_up_on() -> None:
    ended = threading.Event()

    def behave(peer: socket.socket) -> None:
        while peer.recv(1 << 16):
            pass
        ended.set()

    with venue(behave) as url:
        with pytest.raises(ConnectionLost, match=r"no handshake within|timed out"):
            connect(url, timeout_s=0.2)
        assert ended.wait(10)


def test_told_to_stop_it_does_not_wait() -> None:
    stop = threading.Event()
    stop.set()
    with venue(answer(b"")) as url, pytest.raises(ConnectionLost, match="stop"):
        connect(url, timeout_s=60.0, stop=stop)


def test_nobody_there_is_a_connection_lost() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(ConnectionLost, match=r"can't connect to [\d.]+: Connection refused"):
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


# By a proxy


@dataclass
class ConnectProxy:
    """An HTTP proxy that connects who gives the right password, if it wants one."""

    server: socket.socket
    password: str | None = None
    asked: list[str] = field(default_factory=list)
    """Heads of requests."""

    @property
    def told(self) -> Proxy:
        """As the recorder is told of it."""
        credentials = None if self.password is None else f"me:{self.password}"
        return Proxy("127.0.0.1", self.server.getsockname()[1], credentials)

    def serve(self) -> None:
        while True:
            try:
                client, _ = self.server.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        with client:
            head = b""
            while b"\r\n\r\n" not in head:
                head += client.recv(1)
            self.asked.append(head.decode())
            wanted = f"Basic {b64encode(f'me:{self.password}'.encode()).decode()}"
            if self.password is not None and f"Proxy-Authorization: {wanted}\r\n" not in head.decode():
                client.sendall(b"HTTP/1.1 407 Who are you?\r\nContent-Length: 0\r\n\r\n")
                return
            host, _, port = head.split(b" ")[1].decode().rpartition(":")
            with socket.create_connection((host, int(port))) as venue:
                client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                back = threading.Thread(target=pump, args=(venue, client), daemon=True)
                back.start()
                pump(client, venue)
                back.join()


def pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while piece := source.recv(1 << 16):
            target.sendall(piece)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def hang_up(peer: socket.socket) -> None:
    peer.recv(1 << 16)  # a socket that is closed with bytes unread would be reset


@pytest.fixture
def proxy() -> Iterator[ConnectProxy]:
    server = socket.create_server(("127.0.0.1", 0))
    made = ConnectProxy(server)
    thread = threading.Thread(target=made.serve, daemon=True)
    thread.start()
    yield made
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join()


@pytest.mark.needs("openssl")
def test_tls_by_a_proxy_that_wants_a_password_and_sees_neither_key_nor_frames(
    tmp_path: Path, proxy: ConnectProxy
) -> None:
    certificate = make_certificate(tmp_path)
    proxy.password = "pa55:word"
    with venue(say(text(b"by the proxy")), certificate) as url:
        connection = connect(url, ca_file=certificate.certificate, proxy=proxy.told)
        assert eventually(connection.receive, "a frame") == [b"by the proxy"]
        connection.close()
        parts = urlsplit(url)
        (head,) = proxy.asked
        assert head.splitlines()[0] == f"CONNECT {parts.hostname}:{parts.port} HTTP/1.1"
        assert KEY not in head


def test_a_proxy_that_refuses_is_told_without_its_password(proxy: ConnectProxy) -> None:
    proxy.password = "right"
    wrong = replace(proxy.told, credentials="me:pa55")
    with (
        venue(say()) as url,
        pytest.raises(ConnectionLost, match="answered 407: it wants a user and a password") as lost,
    ):
        connect(url, proxy=wrong)
    assert "pa55" not in str(lost.value)
    assert KEY not in str(lost.value)


@pytest.mark.parametrize(
    "raw", [b"", b"HTTP/1.1 403 No\r\n\r\n", b"\xff\x1b[31m\r\n\r\n", b"HTTP/1.1 200 " + b"x" * 20_000]
)
def test_what_a_proxy_answers_is_hostile_data(raw: bytes) -> None:
    with venue(answer(raw) if raw else hang_up) as url:
        parts = urlsplit(url)
        with pytest.raises(
            ConnectionLost, match=r"can't connect to [\w.]+: the proxy 127\.0\.0\.1:\d+ (answered|gave no)"
        ) as lost:
            connect(f"ws://venue.example/?token={KEY}", proxy=Proxy("127.0.0.1", parts.port or 0))
    assert is_visible(str(lost.value))


def test_a_proxy_that_says_nothing_ends_in_time() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(ConnectionLost, match=r"no handshake|timed out"),
    ):
        connect("ws://venue.example/", proxy=Proxy("127.0.0.1", silent.getsockname()[1]), timeout_s=0.2)


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.mark.needs("openssl")
def test_a_private_authority_is_trusted_where_it_is_given(certificate: Certificate) -> None:
    with venue(say(text(b"secret") + text(bytes(100_000))), certificate) as url:
        connection = connect(url, ca_file=certificate.certificate)
        frames: list[bytes] = []
        while len(frames) < 2:
            frames += connection.receive()
        connection.close()
    assert frames == [b"secret", bytes(100_000)]


@pytest.mark.needs("openssl")
@pytest.mark.parametrize("given", ["none", "another"])
def test_a_certificate_of_another_authority_is_not_trusted(
    certificate: Certificate, tmp_path: Path, given: str
) -> None:
    ca_file = None if given == "none" else make_certificate(tmp_path, "another").certificate
    with venue(say(text(b"never")), certificate) as url, pytest.raises(ConnectionLost, match="not trusted") as raised:
        connect(url, ca_file=ca_file)
    assert KEY not in str(raised.value)


@pytest.mark.needs("openssl")
def test_an_authority_that_is_no_file_is_told(certificate: Certificate, tmp_path: Path) -> None:
    with venue(say(), certificate) as url, pytest.raises(ConnectionLost, match="No such file"):
        connect(url, ca_file=tmp_path / "missing.pem")
