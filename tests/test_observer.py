"""What the session and the ledger are told of what was recorded."""

import threading
from pathlib import Path

import pytest
from blocks import AT_US, PING, frame, record_all
from recorders import Rig, make_rig
from structlog.testing import capture_logs

from ingestor.capture.gaps import OpenGap
from ingestor.capture.rejects import make_sample
from ingestor.capture.stream_state import Unread
from ingestor.config.feeds import JsonSettings
from ingestor.feeds.json_map import JsonMap


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


def test_what_was_received_before_a_gap_does_not_end_it(rig: Rig) -> None:
    """The last frame before it may be recorded after it was opened."""
    rig.gaps.open("connection", AT_US)
    rig.buffer.put(1, [frame({"s": "MSFT"})], AT_US)
    rig.buffer.close()
    rig.recorder.run()
    assert rig.gaps.whole is not None


def test_a_block_without_trades_is_no_sign_of_life(rig: Rig) -> None:
    (group,) = rig.division.groups
    record_all(rig, (1, [frame({"s": "MSFT"})], AT_US), (1, [PING], AT_US + 5))
    assert group.last_received_us == AT_US
    group.step(-7)
    assert group.last_received_us == AT_US - 7


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
    assert [(one.symbol, one.received_us) for one in rig.division.groups[0].refusals.take()] == [("X", AT_US)]
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


SECRET = "hunter2-hunter2"


@pytest.mark.parametrize(
    ("payload", "sample"),
    [
        (b'{"ping":1}', '{"ping":1}'),
        (b"\x1b]0;pwned\x07\xff", r"\x1b]0;pwned\x07" + "\ufffd"),
        ("\u202e\u200b".encode(), r"\u202e\u200b"),
        (f'{{"you_said":"{SECRET}"}}'.encode(), '{"you_said":"***"}'),
        (rf'{{"you_said":"\u0068{SECRET[1:]}"}}'.encode(), '{"you_said":"***"}'),
        (b"x" * 190 + SECRET.encode(), "x" * 190 + "***"),
        (b"x" * 10_000_000, "x" * 200 + "… (10,000,000 bytes)"),
        (b"\x00" * 1000, r"\x00" * 50 + "… (1,000 bytes)"),
    ],
)
def test_a_sample_is_short_escaped_and_without_secrets(
    payload: bytes, sample: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEED_API_KEY", SECRET)
    assert make_sample(payload) == sample


def test_what_fits_nothing_is_told_once_for_each_reason_and_counted(rig: Rig) -> None:
    frames = [b"gone", b"gone", frame({"p": -1.0}), b'{"type":"dance"}', b"gone"]
    with capture_logs() as logs:
        for one in frames:
            rig.buffer.put(1, [one], AT_US)
            block = rig.buffer.take(0.0, 0.0)
            assert block is not None
            rig.recorder._record(block)
        rig.buffer.close()
        rig.recorder.run()
    told = [(one["event"], one.get("reason") or one.get("type"), one["sample"][:8]) for one in logs]
    assert told == [
        ("message.refused", "not_json", "gone"),
        ("message.refused", "bad_price", '{"data":'),
        ("notice.unknown", "dance", '{"type":'),
    ]
    assert rig.observed.unread == Unread(5, "bad_price", make_sample(frames[2]), rejected=True)


MINUTE_MS = 60_000


@pytest.mark.parametrize(
    ("ages_ms", "told"),
    [
        pytest.param([0, 0, 0], False, id="live"),
        pytest.param([15 * MINUTE_MS] * 3, False, id="delayed feed"),
        pytest.param([90 * MINUTE_MS, 5 * MINUTE_MS, 0], True, id="snapshot"),
        pytest.param([15 * MINUTE_MS, 15 * MINUTE_MS + 9000, 15 * MINUTE_MS], False, id="a late trade"),
    ],
)
def test_old_trades_after_subscribing_are_told_once(tmp_path: Path, ages_ms: list[int], told: bool) -> None:
    feed = JsonMap(JsonSettings(type="json", url="ws://127.0.0.1:9"))
    rig = make_rig(tmp_path, "ws://127.0.0.1:9", ["AAPL"], feed=feed)
    at_ms = AT_US // 1000
    frames = [b'{"symbol":"AAPL","price":1,"timestamp":%d}' % (at_ms - age) for age in ages_ms]
    with capture_logs() as logs:
        record_all(rig, *((number, [one], AT_US) for number in (1, 2) for one in frames))
    assert [one["event"] for one in logs] == ["trades.replayed"] * told
