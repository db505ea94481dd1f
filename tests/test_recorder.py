"""From the Buffer into a real journal: rows, counts, rejects, marks, and a disk that fails."""

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from journals import no_file_beyond
from recorders import Rig, eventually, make_rig
from structlog.testing import capture_logs

from ingestor.capture.gaps import OpenGap
from ingestor.errors import RowsUnsaved
from ingestor.journal.follower import Follower, Rows
from ingestor.metrics import Counts

AT_US = 1_795_000_000_000_000
AT_MS = AT_US // 1000
PING = b'{"type":"ping"}'


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return make_rig(tmp_path, "ws://127.0.0.1:9", inherited=[OpenGap("r000000-1", "refused", 1, "AAPL")])


def frame(*trades: dict[str, Any]) -> bytes:
    items = [{"c": ["1"], "p": 10.0, "s": "AAPL", "t": AT_MS, "v": 1} | trade for trade in trades]
    return json.dumps({"data": items, "type": "trade"}).encode()


def record(rig: Rig, *puts: tuple[int, list[bytes], int]) -> pa.Table:
    """Each put as a block of its own, then what the journal holds."""
    for put in puts:
        rig.buffer.put(*put)
        block = rig.buffer.take(0.0, 0.0)
        assert block is not None
        rig.recorder._record(block)
    rig.buffer.close()
    rig.recorder.run()
    return journaled(rig)


def journaled(rig: Rig) -> pa.Table:
    follower = Follower(rig.layout, None, synced_only=True)
    try:
        return pa.concat_tables([pa.table(event.batch) for event in follower.read() if isinstance(event, Rows)])
    finally:
        follower.close()


# basic


def test_rows_have_their_key_their_time_and_their_place(rig: Rig) -> None:
    rows = record(
        rig,
        (1, [frame({"p": 1.0}, {"p": 2.0, "s": "MSFT"}), PING], AT_US),
        (1, [frame({"p": 3.0})], AT_US + 500),
    )
    assert rows["price"].to_pylist() == [1.0, 2.0, 3.0]
    assert rows["symbol"].to_pylist() == ["AAPL", "MSFT", "AAPL"]
    assert rows["sequence"].to_pylist() == [(1 << 40) + n for n in range(3)]
    assert rows["received_at"].cast(pa.int64()).to_pylist() == [AT_US, AT_US, AT_US + 500]
    assert rig.recorder.counts == Counts(frames=3, decoded=2, notices=1, trades=3)


def test_what_is_refused_is_kept_under_the_runs_frame_and_the_trades_place(rig: Rig) -> None:
    puts = [
        (1, [frame({}), b"junk"], AT_US),
        (1, [frame({"p": -1}, {}, {"p": "x"}, {"t": 5})], AT_US),
    ]
    rows = record(rig, *puts)
    assert rows.num_rows == 2
    (path,) = rig.layout.rejects.glob("*.jsonl")
    told = [json.loads(line) for line in path.read_text().splitlines()]
    places = {(one["frame"], one["trade"], one["reason"]) for one in told}
    assert places == {(1, None, "not_json"), (2, 0, "bad_price"), (2, 2, "bad_price"), (2, 3, "bad_time")}
    assert rig.recorder.counts == Counts(frames=3, decoded=2, rejected_frames=1, trades=2, rejected_trades=3)
    assert rig.recorder.counts.balanced


def test_a_frame_equal_to_the_one_before_it_on_its_connection_is_marked(rig: Rig) -> None:
    same, other = frame({"p": 1.0}), frame({"p": 2.0})
    rows = record(
        rig,
        (1, [same, same, other, same], AT_US),
        (1, [same, PING, same], AT_US),
        (2, [same], AT_US),
    )
    assert rows["repeated"].to_pylist() == [False, True, False, False, True, False, False]


def test_the_first_trade_on_a_connection_proves_a_symbol(rig: Rig) -> None:
    record(
        rig,
        (1, [PING, frame({"s": "MSFT"})], AT_US),
        (1, [frame({"s": "MSFT"}, {"s": "AAPL"})], AT_US + 5),
        (2, [frame({"s": "MSFT"})], AT_US + 9),
    )
    proven = [(fact["symbol"], fact["connection"], fact["since"]) for fact in rig.facts("symbol.proven")]
    assert proven == [("MSFT", 1, AT_US), ("AAPL", 1, AT_US + 5), ("MSFT", 2, AT_US + 9)]


def test_a_symbols_gap_ends_with_its_next_trade_whenever_it_was_opened(rig: Rig) -> None:
    """Also in the middle of a connection, where nothing is left to prove."""
    rig.buffer.put(1, [frame({})], AT_US)
    reading = threading.Thread(target=rig.recorder.run)
    reading.start()
    first = rig.wait_fact("gap.closed", symbol="AAPL")
    rig.gaps.open("symbol_mute", AT_US, "AAPL")
    rig.buffer.put(1, [frame({"s": "MSFT"})], AT_US + 3)
    rig.buffer.put(1, [frame({})], AT_US + 7)
    second = rig.wait_fact("gap.closed", cause="symbol_mute")
    rig.buffer.close()
    reading.join()
    assert (first["gap"], first["until"]) == ("r000000-1", AT_US)
    assert second["until"] == AT_US + 7


def test_the_venues_words_are_heard(rig: Rig) -> None:
    frames = [
        b'{"msg":"Invalid symbol X","type":"error"}',
        b'{"msg":"Server is tired","type":"error"}',
        b'{"type":"dance"}',
        b'{"type":"dance"}',
    ]
    with capture_logs() as logs:
        rig.buffer.put(1, frames, AT_US)
        rig.buffer.close()
        rig.recorder.run()
    assert [(one.symbol, one.received_us) for one in rig.observed.take_refusals()] == [("X", AT_US)]
    said = [(one["event"], one.get("text") or one.get("type")) for one in logs]
    assert said == [("venue.complained", "Server is tired"), ("notice.unknown", "dance")]


def test_symbols_that_a_venue_invents_fill_neither_memory_nor_ledger(rig: Rig) -> None:
    for thousand in range(12):
        names = [{"s": f"S{thousand}-{one}"} for one in range(1000)]
        rig.buffer.put(1, [frame(*names)], AT_US)
        block = rig.buffer.take(0.0, 0.0)
        assert block is not None
        rig.recorder._record(block)
    rig.buffer.close()
    rig.recorder.run()
    assert rig.recorder.counts.trades == 12_000
    assert len(rig.facts("symbol.proven")) == 10_000


# A disk that fails


def test_rows_wait_in_memory_while_the_disk_is_full_and_lose_nothing(rig: Rig) -> None:
    rows = [frame({"p": float(n + 1)}) for n in range(500)]
    recording = threading.Thread(target=rig.recorder.run)
    with no_file_beyond(3000):
        recording.start()
        for one in rows:
            rig.buffer.put(1, [one], AT_US)
        eventually(lambda: rig.observed.disk_failing, "a disk that refuses")
    eventually(lambda: not rig.observed.disk_failing and rig.journal.failed is None, "a disk that works again")
    rig.buffer.close()
    recording.join()
    assert journaled(rig)["price"].to_pylist() == [float(n + 1) for n in range(500)]
    assert rig.observed.disk_failed_s > 0


def test_a_stop_with_a_disk_that_takes_nothing_says_what_is_lost(rig: Rig) -> None:
    errors: list[BaseException] = []

    def run() -> None:
        try:
            rig.recorder.run()
        except RowsUnsaved as error:
            errors.append(error)

    recording = threading.Thread(target=run)
    with no_file_beyond(0):
        recording.start()
        rig.buffer.put(1, [frame({}, {})], AT_US)
        eventually(lambda: rig.observed.disk_failing, "a disk that refuses")
        rig.buffer.put(1, [frame({})] * 3, AT_US)
        rig.buffer.close()
        recording.join()
    assert len(errors) == 1
    assert "2 trades and 3 frames" in str(errors[0])


def test_rejects_that_no_disk_takes_never_hold_back_a_stop(rig: Rig) -> None:
    """Their folder is gone: while it runs they wait for the disk, at a stop the rows come first."""
    shutil.rmtree(rig.layout.rejects)
    recording = threading.Thread(target=rig.recorder.run)
    recording.start()
    rig.buffer.put(1, [b"junk", frame({})], AT_US)
    eventually(lambda: rig.observed.disk_failing, "rejects that wait")
    rig.buffer.close()
    recording.join()
    assert journaled(rig).num_rows == 1
    assert rig.recorder.counts == Counts(frames=2, decoded=1, rejected_frames=1, trades=1)
