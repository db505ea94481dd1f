"""What the ledger says of a connection, and of which cause the gap is that it leaves."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest
from journals import no_file_beyond
from recorders import KEY, eventually, make_rig, stop_reader
from sessions import VENUE, recording
from simulated_venues import running_venue
from structlog.testing import capture_logs
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from ingestor.ledger import now_us
from ingestor.simulator.faults import Close
from ingestor.simulator.market import MarketSettings


def test_a_stop_leaves_a_gap_since_the_last_frame(tmp_path: Path) -> None:
    with recording(tmp_path) as (_, rig):
        rig.wait_trades()
    (gap,) = rig.facts("gap.opened")
    assert (gap["cause"], gap["since"], gap["symbol"]) == ("shutdown", rig.session.last_frame_us, None)


@pytest.mark.parametrize("code", [1000, 1001, 4001])
def test_a_close_frame_is_told_with_its_code(tmp_path: Path, code: int) -> None:
    with recording(tmp_path, Close(connection=1, after_s=0.2, code=code, reason="so long")) as (_, rig):
        lost = rig.wait_fact("connection.lost")
        rig.wait_fact("gap.closed", cause="connection")
    assert lost["code"] == code
    assert "so long" in lost["reason"]


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


def test_what_the_venue_drops_while_the_reader_is_paused_is_backpressure(tmp_path: Path) -> None:
    with running_venue(replace(VENUE, market=MarketSettings(rate=20_000, seed=7))) as venue:
        rig = make_rig(tmp_path, venue.url, buffer=64 << 10)
        reader = threading.Thread(target=rig.read)
        reader.start()
        eventually(lambda: rig.buffer.pauses, "a full buffer")  # nobody takes anything out of it
        paused_us = rig.session.last_frame_us
        venue.drop()
        eventually(lambda: venue.connections == 0, "the end of the connection")
        resumed_us = now_us()
        recorder = threading.Thread(target=rig.recorder.run)
        recorder.start()
        rig.wait_fact("gap.closed", cause="backpressure")
        assert stop_reader(rig, reader)
        rig.buffer.close()
        recorder.join()
    gap = rig.facts("gap.opened")[0]
    assert gap["cause"] == "backpressure"
    assert paused_us is None or gap["since"] >= paused_us
    assert gap["since"] <= resumed_us < rig.facts("connection.lost")[0]["at"]  # what was read since came who knows when


@pytest.mark.long
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


def test_the_key_is_in_no_fact(tmp_path: Path) -> None:
    with recording(tmp_path, Close(connection=1, after_s=0.2, code=4001, reason=f"bad token {KEY}")) as (_, rig):
        rig.wait_fact("connection.lost")
        rig.wait_fact("gap.closed")
    assert KEY not in str(rig.facts())
    assert "bad token ***" in str(rig.facts("connection.lost"))
