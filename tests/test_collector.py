"""The eyes on a recording: what is looked up in its parts."""

import time
from pathlib import Path

import pytest
from prepared import FRAME, prepared_recording, record_frames

from ingestor.journal.records import read_synced
from ingestor.ledger import now_us
from ingestor.operations.collector import Watch
from ingestor.operations.recorder_status import SinkLag
from ingestor.sinks.retention_slots import write_place


def test_what_was_recorded_is_seen(tmp_path: Path) -> None:
    sent_ms = now_us() // 1000
    frames = [FRAME % (b"AAPL", sent_ms - 2000), FRAME % (b"MSFT", sent_ms - 20), b"{", b'{"type":"ping"}']
    with prepared_recording(tmp_path) as recording:
        watch = Watch(recording)
        record_frames(recording, frames, sent_ms * 1000)
        status = watch.look()
    assert status.flow.frames_received == status.flow.counts.frames == 4
    assert (status.flow.counts.trades, status.flow.counts.notices, sum(status.flow.reasons.values())) == (2, 1, 1)
    assert (status.link.ticking, status.link.symbols) == (2, 2)
    assert status.link.last_trade_at == dict.fromkeys(("AAPL", "MSFT"), sent_ms / 1000)
    within = dict(zip(status.flow.delays.bounds, status.flow.delays.within, strict=True))
    assert (within[0.01], within[0.025], within[1.0], within[2.5], status.flow.delays.total) == (0, 1, 1, 2, 2)
    assert status.flow.delays.sum_s == pytest.approx(2.02)


def test_a_sink_lags_by_what_it_lacks_and_since_when(tmp_path: Path) -> None:
    with prepared_recording(tmp_path) as recording:
        watch = Watch(recording)
        now_s = time.monotonic()
        assert watch.look().disk.sinks == (SinkLag("parquet", 0, 0.0), SinkLag("csv", 0, 0.0))
        record_frames(recording, [FRAME % (b"AAPL", now_us() // 1000)] * 3, now_us())
        watch.tick(now_s - 100.0)  # too soon after the first sample: not taken
        watch.tick(now_s + 2.0)
        recording.files[1].rows[recording.run] = 3
        watch.tick(now_s + 4.0)
        parquet, csv = watch.look().disk.sinks
    assert (parquet.rows, csv.rows, csv.seconds) == (3, 0, 0.0)
    assert -2.1 < parquet.seconds <= 0.0  # since the sample that was taken "in 2 s"


def test_a_sink_of_the_other_process_lags_by_its_cursor(tmp_path: Path) -> None:
    with prepared_recording(tmp_path, sinks={"sqlite": {"path": tmp_path / "trades.sqlite"}}) as recording:
        received_us = now_us() - 50_000_000
        record_frames(recording, [FRAME % (b"AAPL", received_us // 1000)] * 5, received_us)
        recording.slots.skipped["sqlite"] += 7
        lag = next(sink for sink in Watch(recording).look().disk.sinks if sink.name == "sqlite")
        assert (lag.rows, lag.skipped_rows) == (5, 7)
        assert 50 <= lag.seconds < 110
        write_place(recording.layout, "sqlite", read_synced(recording.layout))
        lag = next(sink for sink in Watch(recording).look().disk.sinks if sink.name == "sqlite")
        assert (lag.rows, lag.seconds) == (0, 0.0)


def test_rejects_flood_when_a_tenth_of_the_last_minute_was_refused(tmp_path: Path) -> None:
    good = [FRAME % (b"AAPL", now_us() // 1000)] * 500
    with prepared_recording(tmp_path) as recording:
        watch = Watch(recording)
        record_frames(recording, [*good, *[b"{"] * 99], now_us())
        watch.tick(time.monotonic() + 1.0)
        assert not watch.look().flow.rejects_flood  # fewer than a hundred are no flood
        recording.recorder.counts += recording.recorder.counts
        watch.tick(time.monotonic() + 2.5)
        assert watch.look().flow.rejects_flood


def test_the_rate_is_that_of_the_last_seconds(tmp_path: Path) -> None:
    with prepared_recording(tmp_path) as recording:
        watch = Watch(recording)
        record_frames(recording, [FRAME % (b"AAPL", now_us() // 1000)] * 500, now_us())
        assert watch.look().flow.trades_per_s > 50
        assert watch.look().flow.counts.trades == 500
