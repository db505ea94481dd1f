"""The session against the simulated venue: what it asks, when it gives up, what it writes of its blindness."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from journals import no_file_beyond
from recorders import CRYPTO, KEY, WAITS, Rig, eventually, make_rig, running, stop_reader
from structlog.testing import capture_logs
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from ingestor.capture.gaps import OpenGap
from ingestor.capture.session import Waits
from ingestor.errors import FeedRefused
from ingestor.simulator.faults import Abort, Answer, Close, Lasting, Mute, RefuseSymbols, Schedule, Sudden, Trickle
from ingestor.simulator.market import MarketSettings
from ingestor.simulator.venue import RunningVenue, VenueSettings, running_venue

VENUE = VenueSettings(keys=frozenset({KEY}), market=MarketSettings(rate=300, seed=7), ping_interval_s=3600.0)
SOON = Waits(again_s=0.05, refused_s=0.2, throttled_s=0.2, symbol_s=0.5)


@contextmanager
def recording(
    root: Path, *faults: Sudden | Lasting, venue: dict[str, Any] | None = None, **options: Any
) -> Iterator[tuple[RunningVenue, Rig]]:
    """A venue with these faults, and a session and a recorder that listen to it."""
    settings = replace(VENUE, faults=Schedule(faults), **(venue or {}))
    with (
        running_venue(settings) as venue_there,
        running(make_rig(root, venue_there.url, **{"waits": SOON, **options})) as rig,
    ):
        yield venue_there, rig


@contextmanager
def listening() -> Iterator[tuple[str, socket.socket]]:
    """A server that accepts TCP connections, in the kernel, and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"ws://127.0.0.1:{server.getsockname()[1]}", server


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


def test_a_stop_leaves_a_gap_since_the_last_frame(tmp_path: Path) -> None:
    with recording(tmp_path) as (_, rig):
        rig.wait_trades()
    (gap,) = rig.facts("gap.opened")
    assert (gap["cause"], gap["since"], gap["symbol"]) == ("shutdown", rig.session.last_frame_us, None)


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
    assert (again["connection"], again["symbols"]) == (2, list(CRYPTO))
    assert again["at"] <= closed["until"]


@pytest.mark.parametrize("code", [1000, 1001, 4001])
def test_a_close_frame_is_told_with_its_code(tmp_path: Path, code: int) -> None:
    with recording(tmp_path, Close(connection=1, after_s=0.2, code=code, reason="so long")) as (_, rig):
        lost = rig.wait_fact("connection.lost")
        rig.wait_fact("gap.closed", cause="connection")
    assert lost["code"] == code
    assert "so long" in lost["reason"]


def test_silence_is_a_stall(tmp_path: Path) -> None:
    fault = Mute(connection=1, after_s=0.3, pings=False)
    with recording(tmp_path, fault, silence=1.0, ping_interval=1.0) as (_, rig):
        lost = rig.wait_fact("connection.lost")
        rig.wait_fact("gap.closed", cause="stall")
    assert "nothing came" in lost["reason"]


@pytest.mark.parametrize("fast_frames", [True, False])
def test_bytes_that_never_make_a_frame_are_a_stall(tmp_path: Path, fast_frames: bool) -> None:
    fault = Trickle(connection=1, after_s=0.3, pause_s=0.05)
    with recording(tmp_path, fault, silence=1.0, ping_interval=1.0, fast_frames=fast_frames) as (_, rig):
        lost = rig.wait_fact("connection.lost")
        rig.wait_fact("gap.closed", cause="stall")
    assert "never a whole frame" in lost["reason"]


def test_a_ping_that_this_venue_no_longer_answers_is_a_stall(tmp_path: Path) -> None:
    fault = Mute(connection=1, after_s=1.5, pings=False)
    with recording(tmp_path, fault, silence=60.0, ping_interval=0.5) as (_, rig):
        lost = rig.wait_fact("connection.lost")
        rig.wait_fact("gap.closed", cause="stall")
    assert "no answer to a ping" in lost["reason"]


def test_a_first_connection_that_says_nothing_is_a_gap_from_its_request(tmp_path: Path) -> None:
    fault = Mute(connection=1, pings=False)
    with recording(tmp_path, fault, silence=1.0, ping_interval=1.0) as (_, rig):
        rig.wait_fact("gap.closed", cause="stall")
    assert rig.facts("gap.opened")[0]["since"] <= rig.facts("symbols.requested")[0]["at"]


def test_a_venue_that_was_never_reached_was_asked_for_nothing(tmp_path: Path) -> None:
    with listening() as (url, server):
        server.close()
        with capture_logs() as logs, running(make_rig(tmp_path, url)) as rig:
            eventually(lambda: [one for one in logs if one["event"] == "connection.retried"], "a second attempt")
    assert rig.facts() == []


def test_after_a_connection_of_use_the_next_one_is_opened_at_once(tmp_path: Path) -> None:
    with capture_logs() as logs, recording(tmp_path, Abort(after_s=1.3)) as (_, rig):
        rig.wait_fact("symbol.proven", connection=3)
    assert [one for one in logs if one["event"] == "connection.retried"] == []


def test_a_connection_that_brought_nothing_makes_the_next_one_wait(tmp_path: Path) -> None:
    with capture_logs() as logs, recording(tmp_path, Mute(), Abort(after_s=0.0)) as (_, rig):
        rig.wait_fact("connection.lost", 3)
    attempts = [one["attempt"] for one in logs if one["event"] == "connection.retried"]
    assert attempts[:2] == [1, 2]


# The venue says no


def test_a_key_that_was_never_accepted_ends_it(tmp_path: Path) -> None:
    with running_venue(replace(VENUE, keys=frozenset({"another"}))) as venue:
        rig = make_rig(tmp_path, venue.url, waits=SOON)
        with pytest.raises(FeedRefused) as raised:
            rig.session.run()
    assert KEY not in str(raised.value)
    assert rig.facts() == []


def test_a_401_for_a_key_that_was_accepted_before_is_retried(tmp_path: Path) -> None:
    with recording(tmp_path / "data") as (_, rig):
        rig.wait_trades()
    with capture_logs() as logs, recording(tmp_path / "data", Answer(connection=1, status=401), run=2) as (_, rig):
        rig.wait_trades()
    (retried,) = [one for one in logs if one["event"] == "connection.retried"]
    assert (retried["log_level"], retried["wait_s"]) == ("error", 0.2)
    assert rig.errors == []


@pytest.mark.parametrize(("status", "level"), [(403, "error"), (429, "warning"), (200, "warning"), (524, "warning")])
def test_any_other_refusal_is_retried_even_the_first_time(tmp_path: Path, status: int, level: str) -> None:
    with capture_logs() as logs, recording(tmp_path, Answer(connection=1, status=status)) as (_, rig):
        rig.wait_trades()
    (retried,) = [one for one in logs if one["event"] == "connection.retried"]
    assert retried["log_level"] == level
    assert str(status) in retried["reason"]


@pytest.mark.parametrize(("status", "wait_s"), [(401, 300.0), (403, 300.0), (429, 30.0)])
def test_a_venue_that_said_no_is_left_alone_for_a_while(tmp_path: Path, status: int, wait_s: float) -> None:
    with recording(tmp_path / "data") as (_, rig):
        rig.wait_trades()
    fault = Answer(status=status)
    with capture_logs() as logs, recording(tmp_path / "data", fault, run=2, waits=WAITS, backoff_max=1.0):
        (retried,) = eventually(lambda: [one for one in logs if one["event"] == "connection.retried"], "a refusal")
        assert retried["wait_s"] == wait_s


def test_a_redirect_is_not_followed_and_the_key_goes_nowhere_else(tmp_path: Path) -> None:
    with listening() as (elsewhere, server):
        fault = Answer(connection=1, status=302, location=f"{elsewhere}/x")
        with capture_logs() as logs, recording(tmp_path, fault) as (_, rig):
            rig.wait_trades()
        server.settimeout(0)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert "302" in next(one["reason"] for one in logs if one["event"] == "connection.retried")


def test_a_key_that_somebody_else_uses_is_named(tmp_path: Path) -> None:
    def intrude(url: str, stop: threading.Event) -> None:
        while not stop.is_set():
            try:
                with connect(f"{url}/?token={KEY}", compression=None) as other:
                    other.recv(0.05)
            except (ConnectionClosed, OSError, TimeoutError):
                continue

    gone = threading.Event()
    with capture_logs() as logs, recording(tmp_path, backoff_max=0.1) as (venue, rig):
        intruder = threading.Thread(target=intrude, args=(venue.url, gone))
        intruder.start()
        eventually(lambda: [one for one in logs if one["event"] == "key.shared"], "the shared key")
        gone.set()
        intruder.join()
        rig.wait_trades()
    assert KEY not in str(logs)


# Symbols


def test_a_refused_symbol_is_asked_for_again_without_disturbing_the_rest(tmp_path: Path) -> None:
    refusal = RefuseSymbols(at_s=0.0, for_s=1.0, symbols=(CRYPTO[0],))
    with recording(tmp_path, refusal) as (_, rig):
        refused = rig.wait_fact("symbol.refused", symbol=CRYPTO[0])
        rig.wait_fact("symbols.retried", symbols=[CRYPTO[0]], why="refused")
        closed = rig.wait_fact("gap.closed", cause="refused", symbol=CRYPTO[0])
        proven = rig.wait_fact("symbol.proven", symbol=CRYPTO[0])
    assert "Invalid symbol" in refused["text"]
    assert closed["until"] == proven["since"]
    assert len(rig.facts("connection.opened")) == 1
    assert {gap["symbol"] for gap in rig.facts("gap.opened")} == {CRYPTO[0], None}


def test_a_refusal_without_a_name_is_no_gap_but_whoever_is_silent_is_asked_for_again(tmp_path: Path) -> None:
    with recording(tmp_path, venue={"limit": 2}) as (_, rig):
        rig.wait_fact("symbol.refused", symbol=None, text="Subscribing to too many symbols")
        retried = rig.wait_fact("symbols.retried", 2, why="refused")
    assert retried["symbols"] == [CRYPTO[2]]
    assert [gap["cause"] for gap in rig.facts("gap.opened")] == ["shutdown"]


# Backpressure


def test_what_the_venue_drops_while_the_reader_is_paused_is_backpressure(tmp_path: Path) -> None:
    with running_venue(replace(VENUE, market=MarketSettings(rate=20_000, seed=7))) as venue:
        rig = make_rig(tmp_path, venue.url, buffer=64 << 10)
        reader = threading.Thread(target=rig.read)
        reader.start()
        eventually(lambda: rig.buffer.pauses, "a full buffer")  # nobody takes anything out of it
        paused_us = rig.session.last_frame_us
        venue.drop()
        eventually(lambda: venue.connections == 0, "the end of the connection")
        recorder = threading.Thread(target=rig.recorder.run)
        recorder.start()
        rig.wait_fact("gap.closed", cause="backpressure")
        assert stop_reader(rig, reader)
        rig.buffer.close()
        recorder.join()
    gap = rig.facts("gap.opened")[0]
    assert gap["cause"] == "backpressure"
    assert paused_us is None or gap["since"] >= paused_us


def test_what_the_venue_drops_while_the_disk_is_full_is_the_disks(tmp_path: Path) -> None:
    market = MarketSettings(rate=20_000, seed=7)
    with recording(tmp_path, venue={"market": market}, buffer=64 << 10) as (venue, rig):
        rig.wait_trades()
        with no_file_beyond(0):
            eventually(lambda: rig.buffer.pauses and rig.observed.disk_failing, "a disk that refuses")
            venue.drop()
            eventually(lambda: venue.connections == 0, "the end of the connection")
        rig.wait_fact("gap.closed", cause="disk")
    assert [gap["cause"] for gap in rig.facts("gap.opened")] == ["disk", "shutdown"]


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


def test_the_key_is_in_no_fact(tmp_path: Path) -> None:
    with recording(tmp_path, Close(connection=1, after_s=0.2, code=4001, reason=f"bad token {KEY}")) as (_, rig):
        rig.wait_fact("connection.lost")
        rig.wait_fact("gap.closed")
    assert KEY not in str(rig.facts())
    assert "bad token ***" in str(rig.facts("connection.lost"))
