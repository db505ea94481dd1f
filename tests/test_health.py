"""The HTTP server: what it answers, and that nothing about it can end a recording."""

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from prepared import prepared_recording
from requirements import of_tier

from ingestor.config.addresses import split_address
from ingestor.config.sections import HealthSettings
from ingestor.operations.collector import Watch
from ingestor.operations.health import HealthServer, open_health
from ingestor.operations.recorder_status import decode_status, find_problems
from ingestor.recording import Recording

PATIENCE_S = 10.0


@pytest.fixture
def recording(tmp_path: Path) -> Iterator[Recording]:
    with prepared_recording(tmp_path) as recording:
        yield recording


@pytest.fixture
def server(recording: Recording) -> Iterator[HealthServer]:
    server = HealthServer("127.0.0.1:0", Watch(recording))
    yield server
    server.close()


def get(server: HealthServer, path: str, **headers: str) -> tuple[int, str, str]:
    """Status, content type and body."""
    connection = http.client.HTTPConnection(*split_address(server.address), timeout=PATIENCE_S)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.getheader("Content-Type", ""), answer.read().decode()
    finally:
        connection.close()


def test_it_is_alive(server: HealthServer) -> None:
    assert get(server, "/healthz") == (200, "text/plain; charset=utf-8", "alive\n")


def test_it_is_not_ready_while_blind_and_says_why(server: HealthServer) -> None:
    status, _, text = get(server, "/readyz?verbose")
    assert (status, text) == (503, "not connected to the venue\n")


def test_metrics_hold_the_recording_and_the_process(server: HealthServer) -> None:
    status, kind, text = get(server, "/metrics")
    assert status == 200
    assert kind.startswith("text/plain; version=")
    assert "ingestor_trades_journaled_total 0.0" in text
    assert "process_resident_memory_bytes" in text


def test_status_is_json(server: HealthServer, recording: Recording) -> None:
    status, kind, text = get(server, "/status")
    told = decode_status(text.encode())
    assert (status, kind) == (200, "application/json")
    assert told.root == str(recording.layout.root)
    assert find_problems(told) == ["not connected to the venue"]
    assert json.loads(text)["disk"]["sinks"][0] == {
        "name": "parquet",
        "rows": 0,
        "seconds": 0.0,
        "skipped_rows": 0,
        "fault": "",
    }


def test_other_paths_name_what_there_is(server: HealthServer) -> None:
    status, _, text = get(server, "/")
    assert status == 404
    assert "/metrics, /healthz, /readyz and /status" in text


def test_a_disk_that_cannot_be_asked_costs_one_answer(server: HealthServer, recording: Recording) -> None:
    recording.layout.root.rename(recording.layout.root.with_name("gone"))
    with pytest.raises(http.client.HTTPException):
        get(server, "/status")
    recording.layout.root.with_name("gone").rename(recording.layout.root)
    assert get(server, "/status")[0] == 200


def test_a_client_that_says_nothing_does_not_keep_the_others_out(server: HealthServer) -> None:
    with socket.create_connection(split_address(server.address)) as mute:
        assert get(server, "/healthz")[0] == 200
        assert mute.recv(1) == b""  # it was let go


@contextmanager
def clients(server: HealthServer, count: int, misdeed: Callable[[socket.socket], None]) -> Iterator[None]:
    """So many that are connected, each in a thread of its own that does this over and over until it is hung up on."""
    stop = threading.Event()
    connected = threading.Barrier(count + 1)

    def misbehave() -> None:
        with suppress(OSError), socket.create_connection(split_address(server.address)) as client:
            connected.wait(PATIENCE_S)
            while not stop.is_set():
                misdeed(client)

    threads = [threading.Thread(target=misbehave) for _ in range(count)]
    for thread in threads:
        thread.start()
    connected.wait(PATIENCE_S)
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def keep_silent(client: socket.socket) -> None:
    """Until the server hangs up."""
    if not client.recv(1):
        raise ConnectionResetError


def trickle(client: socket.socket) -> None:
    """A byte of a request now and then."""
    client.sendall(b"G")
    client.settimeout(0.2)
    with suppress(TimeoutError):
        keep_silent(client)


def leave_the_answer_unread(client: socket.socket) -> None:
    client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
    client.settimeout(0.2)
    with suppress(TimeoutError):
        client.recv(1)


def send_without_end(client: socket.socket) -> None:
    client.sendall(b"X: " + b"x" * 60_000 + b"\r\n")


MISDEEDS = [keep_silent, trickle, leave_the_answer_unread, send_without_end]


@pytest.mark.parametrize(
    ("count", "misdeed"), of_tier([(150, keep_silent), *((20, misdeed) for misdeed in MISDEEDS)], [(20, trickle)])
)
def test_who_means_no_good_keeps_nobody_out_and_is_hung_up_on(
    server: HealthServer, count: int, misdeed: Callable[[socket.socket], None]
) -> None:
    with clients(server, count, misdeed):
        assert get(server, "/healthz")[0] == 200
        assert get(server, "/readyz")[0] == 503
    hung_up = socket.create_connection(split_address(server.address), PATIENCE_S)
    with hung_up, suppress(ConnectionError):
        while True:
            misdeed(hung_up)


@pytest.mark.parametrize("misdeed", MISDEEDS)
def test_no_client_holds_up_its_end(recording: Recording, misdeed: Callable[[socket.socket], None]) -> None:
    server = HealthServer("127.0.0.1:0", Watch(recording))
    with clients(server, 20, misdeed):
        closing = threading.Thread(target=server.close, daemon=True)
        closing.start()
        closing.join(PATIENCE_S / 2)
        assert not closing.is_alive()


def test_who_asks_in_a_loop_gets_a_bounded_share(server: HealthServer) -> None:
    began_s, looks, asked = time.monotonic(), set(), 0
    while time.monotonic() < began_s + 1.5:
        looks.add(json.loads(get(server, "/status")[2])["at"])
        asked += 1
    took_s = time.monotonic() - began_s
    assert len(looks) <= took_s / 0.25 + 1
    assert asked <= 50 + 100 * took_s


@pytest.mark.parametrize(
    ("host", "passes"),
    [
        ("127.0.0.1:9464", True),
        ("localhost", True),
        ("LocalHost.:9464", True),
        ("[::1]:9464", True),
        ("named.example", True),
        ("evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("container", False),  # of loopback: nobody calls it so
        ("127.0.0.1#evil", False),
        ("127.0.0.1/evil", False),
        ("evil@127.0.0.1", False),
        ("127.0.0.1:9464:80", False),
        ("", False),
    ],
)
def test_it_answers_to_its_own_names_only(recording: Recording, host: str, passes: bool) -> None:
    server = HealthServer("127.0.0.1:0", Watch(recording), ("named.example",))
    try:
        for path in ("/status", "/metrics", "/readyz", "/healthz"):
            status, _, text = get(server, path, Host=host)
            assert (status != 403) is passes, path
            assert passes or "unknown host" in text
    finally:
        server.close()


@pytest.mark.parametrize(
    ("host", "passes"),
    [
        ("10.0.0.5:9464", True),
        ("[2001:db8::1]:9464", True),
        ("recorder:9464", True),
        ("ingestor.monitoring.svc:9464", True),
        ("ingestor.monitoring.svc.cluster.local", True),
        ("evil.example:9464", False),
        ("localhost.evil.example", False),
    ],
)
def test_where_others_reach_it_names_that_nobody_can_register_are_its_own_too(
    recording: Recording, host: str, passes: bool
) -> None:
    """So Prometheus finds a container by the name of its service."""
    server = HealthServer("0.0.0.0:0", Watch(recording))
    try:
        assert (get(server, "/healthz", Host=host)[0] == 200) is passes
    finally:
        server.close()


def test_a_request_without_a_host_is_an_old_client(server: HealthServer) -> None:
    for request, answer in ((b"GET /healthz HTTP/1.0\r\n\r\n", b"200"), (b"GET /healthz HTTP/1.1\r\n\r\n", b"400")):
        with socket.create_connection(split_address(server.address), PATIENCE_S) as client:
            client.sendall(request)
            assert client.recv(100).split()[1] == answer


def test_a_busy_port_ends_nothing_and_another_is_found(server: HealthServer, recording: Recording) -> None:
    other = open_health(HealthSettings(listen=server.address), Watch(recording))
    assert other is not None
    try:
        assert other.address != server.address
        assert get(other, "/healthz")[0] == get(server, "/healthz")[0] == 200
    finally:
        other.close()


def test_null_turns_it_off(recording: Recording) -> None:
    before = threading.active_count()
    assert open_health(HealthSettings(listen=None), Watch(recording)) is None
    assert threading.active_count() == before


def test_ipv6(recording: Recording) -> None:
    server = HealthServer("[::1]:0", Watch(recording))
    try:
        assert server.address.startswith("[::1]:")
        assert get(server, "/healthz")[0] == 200
    finally:
        server.close()
