"""What the session and the ledger are told of what was recorded."""

import threading
from pathlib import Path

import pytest
from blocks import AT_US, PING, frame, record_all
from recorders import Rig, make_rig
from structlog.testing import capture_logs

from ingestor.capture.gaps import OpenGap


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return make_rig(
        tmp_path, "ws://127.0.0.1:9", ["AAPL", "MSFT"], inherited=[OpenGap("r000000-1", "refused", 1, "AAPL")]
    )


def test_the_first_trade_on_a_connection_proves_a_symbol(rig: Rig) -> None:
    record_all(
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
    assert rig.facts("symbol.proven") == []
