"""The HTTP server: what it answers, and that nothing about it can end a recording."""

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from prepared import prepared_recording

from ingestor.config.addresses import split_address
from ingestor.operations.health import HealthServer, open_health
from ingestor.operations.vitals import decode_vitals, find_ailments
from ingestor.operations.watch import Watch
from ingestor.recording import Recording


@pytest.fixture
def recording(tmp_path: Path) -> Iterator[Recording]:
    with prepared_recording(tmp_path) as recording:
        yield recording


@pytest.fixture
def server(recording: Recording) -> Iterator[HealthServer]:
    server = HealthServer("127.0.0.1:0", Watch(recording))
    yield server
    server.close()


def get(server: HealthServer, path: str) -> tuple[int, str, str]:
    """Status, content type and body."""
    connection = http.client.HTTPConnection(*split_address(server.address), timeout=10)
    try:
        connection.request("GET", path)
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


def test_status_is_the_vitals_as_json(server: HealthServer, recording: Recording) -> None:
    status, kind, text = get(server, "/status")
    told = decode_vitals(text.encode())
    assert (status, kind) == (200, "application/json")
    assert told.root == str(recording.layout.root)
    assert find_ailments(told) == ["not connected to the venue"]
    assert json.loads(text)["disk"]["sinks"][0] == {
        "name": "parquet",
        "rows": 0,
        "seconds": 0.0,
        "skipped_rows": 0,
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


def test_a_busy_port_ends_nothing_and_another_is_found(server: HealthServer, recording: Recording) -> None:
    other = open_health(server.address, Watch(recording))
    assert other is not None
    try:
        assert other.address != server.address
        assert get(other, "/healthz")[0] == get(server, "/healthz")[0] == 200
    finally:
        other.close()


def test_null_turns_it_off(recording: Recording) -> None:
    before = threading.active_count()
    assert open_health(None, Watch(recording)) is None
    assert threading.active_count() == before


def test_ipv6(recording: Recording) -> None:
    server = HealthServer("[::1]:0", Watch(recording))
    try:
        assert server.address.startswith("[::1]:")
        assert get(server, "/healthz")[0] == 200
    finally:
        server.close()
