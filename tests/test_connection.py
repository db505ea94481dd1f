"""An open connection to a real server: how it is read, and how each way to end it is told."""

import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from certificates import make_certificate
from one_venue import KEY, accept_handshake, connect, say, text, venue
from recorders import eventually
from websockets.frames import Frame, Opcode

from ingestor.capture.connection import Connection
from ingestor.errors import ConnectionLost


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


def test_it_gives_frames_as_they_come() -> None:
    with venue(say(text(b"one") + text(b"two"), text(b"three"))) as url:
        connection = connect(url)
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
    assert connection.close_code == 1008
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


@pytest.mark.parametrize("secure", [False, pytest.param(True, marks=pytest.mark.needs("openssl"))])
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


@pytest.mark.needs("openssl")
def test_a_tls_record_in_pieces_is_no_end(tmp_path: Path) -> None:
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

    certificate = make_certificate(tmp_path)
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
