"""How a connection is opened, and how each way in which it isn't is told."""

import contextlib
import socket
import threading
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from certificates import Certificate, make_certificate
from one_venue import KEY, answer, connect, say, text, venue
from recorders import eventually

from ingestor.errors import ConnectionLost, HandshakeRefused


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
