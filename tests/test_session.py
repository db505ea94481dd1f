"""The session against the simulated venue: what it asks, when it gives up, what it writes of its blindness."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest
from recorders import CRYPTO, Rig, eventually, make_rig, stop_reader
from sessions import VENUE, listening, recording
from simulated_venues import running_venue
from structlog.testing import capture_logs

from ingestor.capture import connector
from ingestor.capture.gaps import OpenGap
from ingestor.layout import write_whole
from ingestor.simulator.faults import Mute, Schedule
from ingestor.simulator.market import MarketSettings

# basic


def test_it_asks_for_every_symbol_and_each_proves_itself(tmp_path: Path) -> None:
    with recording(tmp_path) as (_, rig):
        for symbol in CRYPTO:
            rig.wait_fact("symbol.proven", symbol=symbol, connection=1)
        assert rig.session.connected
    opened, requested = rig.facts("connection.opened", "symbols.requested")
    assert opened["connection"] == requested["connection"] == 1
    assert requested["symbols"] == list(CRYPTO)
    assert rig.facts("connection.closed")[0]["frames"] == rig.buffer.frames_put == rig.recorder.counts.frames
    assert not rig.session.connected


def test_the_next_run_ends_the_gap_that_the_last_one_left(tmp_path: Path) -> None:
    left = OpenGap("r000001-9", "shutdown", 1_000_000)
    with recording(tmp_path, inherited=[left], run=2) as (_, rig):
        closed = rig.wait_fact("gap.closed", gap="r000001-9")
        proven = rig.wait_fact("symbol.proven")
    assert closed["until"] <= proven["since"]


def test_a_symbol_that_is_no_longer_asked_for_is_dropped(tmp_path: Path) -> None:
    left = OpenGap("r000001-3", "refused", 1_000_000, "OLD")
    with recording(tmp_path, inherited=[left], run=2) as (_, rig):
        rig.wait_fact("symbol.dropped", symbol="OLD")
        rig.wait_fact("gap.closed", gap="r000001-3")


# recovery


def test_a_lost_connection_is_a_gap_and_everything_is_asked_for_again(tmp_path: Path) -> None:
    with recording(tmp_path) as (venue, rig):
        rig.wait_trades(50)
        venue.drop()
        closed = rig.wait_fact("gap.closed")
        rig.wait_fact("symbol.proven", connection=2, symbol=CRYPTO[2])
    (lost,) = rig.facts("connection.lost")
    (opened,) = [gap for gap in rig.facts("gap.opened") if gap["cause"] == "connection"]
    again = rig.facts("symbols.requested")[1]
    assert (lost["connection"], lost["code"]) == (1, 1006)
    assert lost["frames"] > 0
    assert lost["bytes"] > 0
    assert opened["since"] < lost["at"]
    assert (again["connection"], again["symbols"]) == (2, None), "the same as before"
    assert again["at"] <= closed["until"]


# Stopping, in every state


def start_reading(rig: Rig) -> threading.Thread:
    reader = threading.Thread(target=rig.read)
    reader.start()
    return reader


def test_it_stops_while_the_venue_does_not_answer_the_handshake(tmp_path: Path) -> None:
    with listening() as (url, server):
        rig = make_rig(tmp_path, url, connect_timeout=60.0)
        reader = start_reading(rig)
        connection, _ = server.accept()
        with connection:
            assert connection.recv(1)
            assert stop_reader(rig, reader)
    assert rig.errors == []
    assert rig.facts() == []


def test_it_stops_while_the_venue_trickles_its_answer(tmp_path: Path) -> None:
    with listening() as (url, server):
        rig = make_rig(tmp_path, url, connect_timeout=60.0)
        reader = start_reading(rig)
        connection, _ = server.accept()
        with connection:
            connection.sendall(b"HTTP/1.1 101 Switching")
            assert stop_reader(rig, reader)


def test_it_stops_while_it_waits_to_try_again(tmp_path: Path) -> None:
    with listening() as (url, server):
        server.close()
        with capture_logs() as logs:
            rig = make_rig(tmp_path, url, backoff_max=60.0)
            reader = start_reading(rig)
            eventually(lambda: [one for one in logs if one["event"] == "connection.retried"], "a wait")
            assert stop_reader(rig, reader)
    assert rig.errors == []


def test_it_stops_while_nothing_comes(tmp_path: Path) -> None:
    with running_venue(replace(VENUE, faults=Schedule([Mute()]))) as venue:
        rig = make_rig(tmp_path, venue.url)
        reader = start_reading(rig)
        rig.wait_fact("symbols.requested")
        assert stop_reader(rig, reader)
    assert rig.facts("gap.opened")[0]["cause"] == "shutdown"
    assert len(rig.facts("connection.closed")) == 1


def test_it_ends_once_the_disk_knows_that_the_key_was_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However late the disk answers."""
    with running_venue(replace(VENUE, faults=Schedule([Mute()]))) as venue:
        rig = make_rig(tmp_path, venue.url)

        def write_late(path: Path, text: str, staging: Path) -> None:
            rig.wait_fact("connection.closed")
            write_whole(path, text, staging)

        monkeypatch.setattr(connector, "write_whole", write_late)
        reader = start_reading(rig)
        rig.wait_fact("symbols.requested")
        assert not rig.layout.accepted_keys.exists()
        assert stop_reader(rig, reader)
        assert rig.layout.accepted_keys.exists()


def test_it_stops_while_the_buffer_is_full(tmp_path: Path) -> None:
    with running_venue(replace(VENUE, market=MarketSettings(rate=20_000, seed=7))) as venue:
        rig = make_rig(tmp_path, venue.url, buffer=64 << 10)
        reader = start_reading(rig)
        eventually(lambda: rig.buffer.pauses, "a full buffer")
        rig.stop.set()
        rig.buffer.close()  # as the daemon does, once the reader had its time
        reader.join(2.0)
        assert not reader.is_alive()
    assert rig.buffer.frames_put == rig.buffer.frames_waiting
    assert rig.facts("gap.opened")[0]["cause"] == "shutdown"
