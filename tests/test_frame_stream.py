"""The scanner against websocket-client itself: the same messages from any bytes, cut anywhere, plain and over TLS."""

import contextlib
import itertools
import random
import select
import socket
import ssl
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager

import pytest
from certificates import Certificate, make_certificate
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from requirements import of_tier
from websocket import ABNF, WebSocket, WebSocketException

from ingestor.capture.connection import FrameStream, NothingYet, scan_text_frames

Ends = tuple[socket.socket, socket.socket]
"""The venue's end and ours."""
Messages = list[tuple[int, bytes] | str]
"""What a stream said, and at its end the name of what it raised."""
TEXT, BINARY, CONT, CLOSE, PING, PONG = 1, 2, 0, 8, 9, 10
MAX = 1 << 20


def frame(opcode: int, payload: bytes, *, fin: bool = True, rsv: int = 0, mask: bytes = b"", form: int = 0) -> bytes:
    """One frame. `form` is the least length of the length field: 126 and 127 write a short length the long way."""
    head = (fin << 7) | (rsv << 4) | opcode
    size, masked = len(payload), bool(mask) << 7
    if size >= 1 << 16 or form == 127:
        header = struct.pack("!BBQ", head, masked | 127, size)
    elif size >= 126 or form == 126:
        header = struct.pack("!BBH", head, masked | 126, size)
    else:
        header = struct.pack("!BB", head, masked | size)
    return header + mask + (bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload)) if mask else payload)


# What websocket-client, and we, make of it


def read_with_library(data: bytes) -> Messages:
    """The reference: the library alone, on a blocking socket that has all of `data` and then ends."""
    client = WebSocket(skip_utf8_validation=True, enable_multithread=False)
    said: Messages = []
    with sending(data) as sock:
        client.sock = sock
        try:
            while True:
                opcode, received = client.recv_data_frame(control_frame=True)
                said.append((opcode, bytes(received.data)))
        except (WebSocketException, OSError) as error:
            said.append(type(error).__name__)
    return said


def read_pieces(ends: Ends, pieces: list[bytes]) -> Messages:
    """What a FrameStream makes of a stream that comes in exactly these pieces: each is read before the next is sent."""
    venue, client = ends
    client.settimeout(5)
    stream = FrameStream(client, max_message=MAX)
    stream.sock = client  # what `connect` does
    said: Messages = []
    sent = 0
    try:
        for piece in pieces:
            venue.sendall(piece)
            sent += len(piece)
            while stream.bytes_received < sent:
                said += take(stream)
        socket.socket.shutdown(venue, socket.SHUT_WR)
        while True:
            said += take(stream)
    except (WebSocketException, OSError) as error:
        return [*said, type(error).__name__]


def take(stream: FrameStream) -> Messages:
    try:
        opcode, payloads = stream.receive()
    except NothingYet:
        return []
    return [(opcode, payload) for payload in payloads]


@contextmanager
def socket_pair() -> Iterator[Ends]:
    venue, client = socket.socketpair()
    with venue, client:
        yield venue, client


@contextmanager
def tls_pair(certificate: Certificate) -> Iterator[Ends]:
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(*certificate)
    trusting = ssl.create_default_context(cafile=certificate.certificate)
    with socket_pair() as (venue, client), ThreadPoolExecutor(1) as executor:
        accepting = executor.submit(server.wrap_socket, venue, server_side=True)
        with trusting.wrap_socket(client, server_hostname="localhost") as ours, accepting.result() as theirs:
            yield theirs, ours


@contextmanager
def sending(data: bytes) -> Iterator[socket.socket]:
    """A socket on which `data` comes, and then the end; what is written to it is taken."""

    def drain() -> None:
        with contextlib.suppress(OSError):  # the client hung up in the middle
            while venue.recv(1 << 16):
                pass

    def send() -> None:
        with contextlib.suppress(OSError):
            venue.sendall(data)
            venue.shutdown(socket.SHUT_WR)

    with socket_pair() as (venue, client), ThreadPoolExecutor(2) as executor:
        executor.submit(drain)
        executor.submit(send)
        client.settimeout(5)
        yield client
        client.close()


def cut(data: bytes, places: list[float]) -> list[bytes]:
    """`data` cut at these shares of its length, and so that a socket holds each piece."""
    at = sorted({round(place * len(data)) for place in places} | {*range(0, len(data), 30_000), len(data)})
    return [data[start:end] for start, end in itertools.pairwise(at)]


def assert_same(data: bytes, places: list[float], pair: Callable[[], AbstractContextManager[Ends]]) -> None:
    expected = read_with_library(data)
    with pair() as ends:
        assert read_pieces(ends, cut(data, places)) == expected


# basic


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65_535, 65_536, 70_000])
def test_a_frame_of_every_form_of_length_is_taken_whole(size: int) -> None:
    payload = bytes(size)
    data = frame(TEXT, payload) + frame(TEXT, b"next")
    assert scan_text_frames(data) == ([payload, b"next"], len(data))
    assert scan_text_frames(data[:-1]) == ([payload], len(frame(TEXT, payload)))


@pytest.mark.parametrize(
    "other",
    [
        frame(BINARY, b"x"),
        frame(PING, b""),
        frame(CLOSE, b""),
        frame(TEXT, b"x", fin=False),
        frame(TEXT, b"x", rsv=4),
        frame(TEXT, b"x", mask=b"mask"),
        frame(TEXT, b"", mask=bytes(4)) + bytes(8),
        b"\x81",
        b"",
    ],
)
def test_everything_else_is_left_to_the_library(other: bytes) -> None:
    whole = frame(TEXT, b"one")
    assert scan_text_frames(whole + other) == ([b"one"], len(whole))


def test_it_reads_from_the_middle() -> None:
    data = frame(TEXT, b"one") + frame(TEXT, b"two")
    assert scan_text_frames(data, 5) == ([b"two"], 10)


# invariants: the same as the library

payloads = st.one_of(
    st.binary(max_size=300), st.builds(bytes, st.sampled_from([125, 126, 65_535, 65_536, 70_000])), st.just(b"{}")
)
control = st.one_of(
    st.builds(lambda p: frame(PING, p), st.binary(max_size=125)),
    st.builds(lambda p: frame(PONG, p), st.binary(max_size=125)),
)
fragments = st.builds(
    lambda first, middle, rest, between: b"".join(
        [
            frame(first, middle[:1], fin=False),
            *between,
            *(frame(CONT, part, fin=False) for part in (middle[1:],)),
            frame(CONT, rest),
        ]
    ),
    st.sampled_from([TEXT, BINARY]),
    payloads,
    payloads,
    st.lists(control, max_size=2),
)
good = st.one_of(
    *[st.builds(lambda p, f: frame(TEXT, p, form=f), payloads, st.sampled_from([0, 0, 126, 127]))] * 4,
    st.builds(lambda p: frame(BINARY, p), payloads),
    control,
    fragments,
    st.builds(lambda p, m: frame(TEXT, p, mask=m), st.binary(max_size=50), st.sampled_from([b"mask", bytes(4)])),
)
ends = st.one_of(
    st.just(b""),
    st.just(frame(CLOSE, b"")),
    st.builds(lambda code, why: frame(CLOSE, code.to_bytes(2) + why), st.sampled_from([1000, 4001]), st.just(b"bye")),
    st.sampled_from(
        [
            frame(TEXT, b"x", rsv=4),
            frame(3, b"x"),
            frame(CONT, b"x"),
            frame(PING, b"x", fin=False),
            frame(PING, bytes(126)),
            frame(CLOSE, b"\x03"),
            frame(CLOSE, b"\x03\xeb"),
            frame(TEXT, b"a", fin=False) + frame(TEXT, b"b"),
            frame(TEXT, b"half")[:3],
            frame(BINARY, bytes(70_000))[:69_000],
        ]
    ),
)
streams = st.tuples(st.lists(good, max_size=12), ends, st.lists(st.floats(0, 1), max_size=8))


@given(streams)
@settings(max_examples=of_tier(300, 30), deadline=None)
@example(([frame(TEXT, bytes(50), mask=bytes(4))], b"", []))
@example(([frame(BINARY, b"\0", mask=bytes(4)), frame(TEXT, b"after")], b"", [1 / 14]))
@example(([frame(TEXT, b"a", fin=False), frame(PING, b""), frame(CONT, b"b")], b"", [0.2, 0.4, 0.6, 0.8]))
def test_any_stream_says_the_same_as_to_the_library(stream: tuple[list[bytes], bytes, list[float]]) -> None:
    frames, end, places = stream
    assert_same(b"".join(frames) + end, places, socket_pair)


@given(st.binary(max_size=200), st.lists(st.floats(0, 1), max_size=8))
@settings(max_examples=of_tier(200, 30), deadline=None)
def test_any_bytes_say_the_same_as_to_the_library(data: bytes, places: list[float]) -> None:
    assert_same(data, places, socket_pair)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.mark.needs("openssl")
@given(streams)
@settings(max_examples=of_tier(40, 10), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_over_tls_too(certificate: Certificate, stream: tuple[list[bytes], bytes, list[float]]) -> None:
    frames, end, places = stream
    assert_same(b"".join(frames) + end, places, lambda: tls_pair(certificate))


def test_a_byte_at_a_time() -> None:
    data = b"".join(
        [
            frame(TEXT, b"one"),
            frame(TEXT, b"a", fin=False) + frame(PING, b"p") + frame(CONT, b"b"),
            frame(BINARY, b"three"),
            frame(TEXT, bytes(200)),
        ]
    )
    assert_same(data, [at / len(data) for at in range(len(data))], socket_pair)


# known errors


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_a_frame_that_trickles_never_holds_the_reader(opcode: int) -> None:
    """Each call reads once, whatever comes of it: between two calls its caller can judge, and stop."""
    with socket_pair() as (venue, client):
        client.settimeout(5)
        stream = FrameStream(client, max_message=MAX)
        venue.sendall(frame(opcode, bytes(100_000))[:10])
        for received in range(10, 30):
            assert take(stream) == []
            assert stream.bytes_received == received
            venue.sendall(b"\0")


def test_nothing_within_the_timeout_is_no_end() -> None:
    with socket_pair() as (venue, client):
        client.settimeout(0.01)
        stream = FrameStream(client, max_message=MAX)
        with pytest.raises(NothingYet):
            stream.receive()
        venue.sendall(frame(TEXT, b"late"))
        assert stream.receive() == (ABNF.OPCODE_TEXT, [b"late"])


def test_a_control_frame_among_others_is_no_sign_of_an_empty_socket() -> None:
    with socket_pair() as (venue, client):
        client.settimeout(0.01)
        stream = FrameStream(client, max_message=MAX)
        venue.sendall(frame(TEXT, b"a") + frame(PONG, b"") + frame(TEXT, b"b"))
        said = []
        while not stream.drained:
            said += take(stream)
        assert said == [(TEXT, b"a"), (PONG, b""), (TEXT, b"b")]
        venue.sendall(frame(TEXT, b"c"))
        assert take(stream) == [(TEXT, b"c")]
        assert not stream.drained


@pytest.mark.parametrize(
    "flood",
    [
        frame(TEXT, bytes(2 * MAX)),
        frame(TEXT, bytes(1000), fin=False) + (frame(CONT, bytes(1000), fin=False) + frame(PONG, b"")) * (MAX // 900),
    ],
    ids=["one frame", "fragments with control frames between"],
)
def test_a_message_without_end_is_refused(flood: bytes) -> None:
    with socket_pair() as (venue, client):
        stream = FrameStream(client, max_message=MAX)
        waiting = select.poll()  # not `select`, which takes no descriptor above 1023
        waiting.register(client, select.POLLIN)

        def read_all() -> None:
            for piece in cut(flood, []):
                venue.sendall(piece)
                while waiting.poll(0):
                    assert {said[0] for said in take(stream)} <= {PONG}

        with pytest.raises(WebSocketException, match="longer than"):
            read_all()


def test_many_messages_are_no_long_one() -> None:
    data = (frame(TEXT, bytes(60_000)) + frame(PING, b"") + frame(BINARY, bytes(60_000))) * 30
    with socket_pair() as ends:
        assert len(read_pieces(ends, cut(data, []))) == 91


def test_a_pong_that_nobody_takes_is_the_end() -> None:
    """A venue that floods with pings and reads nothing: half a pong may be out, and nothing can follow it."""
    with socket_pair() as (venue, client):
        client.settimeout(0.05)
        stream = FrameStream(client, max_message=MAX)
        stream.sock = client
        pings = frame(PING, bytes(125)) * 200

        def answer_for_ever() -> None:
            while True:
                venue.sendall(pings)
                for _ in range(200):
                    take(stream)  # which passes over NothingYet

        with pytest.raises(WebSocketException):
            answer_for_ever()


def test_a_long_stream_in_many_pieces() -> None:
    """A megabyte of everything in random pieces: the buffers wrap around many times."""
    dice = random.Random(7)
    kinds = [
        lambda: frame(TEXT, dice.randbytes(dice.choice([40, 200, 3000, 70_000]))),
        lambda: frame(BINARY, dice.randbytes(300)),
        lambda: frame(PING, b"p"),
        lambda: frame(TEXT, b"x" * 50, fin=False) + frame(PONG, b"") + frame(CONT, b"y" * 200),
    ]
    data = b"".join(dice.choices(kinds, weights=[20, 2, 2, 2])[0]() for _ in range(120))
    assert len(read_with_library(data)) > 100
    assert_same(data, [dice.random() for _ in range(200)], socket_pair)
