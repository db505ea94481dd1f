"""Bars that go on are the bars that are read afterwards: nothing is lost or counted twice at the seam."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from numpy.testing import assert_array_equal
from recordings import Print, Recording
from requirements import of_tier

from ingestor.charts.series import LiveBars, Series, load_series

NOW = datetime(2026, 11, 20, 15, 0, tzinfo=UTC)
NOW_MS = int(NOW.timestamp() * 1000)


def make_print(after_s: float, price: float, symbol: str = "AAPL", *, volume: float = 100.0) -> Print:
    return Print(NOW + timedelta(seconds=after_s), symbol, price, volume, "1")


@pytest.fixture
def recording(tmp_path: Path) -> Recording:
    """Three minutes of trades up to now, of which the first are in the dataset."""
    recording = Recording(tmp_path, started="2026-11-20")
    recording.write(*(make_print(at, 10 + at % 7) for at in range(-180, -90)))
    recording.seal()
    recording.write(*(make_print(at, 10 + at % 7) for at in range(-90, 0)))
    return recording


def read(recording: Recording, interval: str) -> Series:
    return load_series(recording.layout.root, "AAPL", interval, (None, None), "UTC")


def assert_same(bars: LiveBars, recording: Recording) -> None:
    """They are the bars that anybody reads now."""
    found, expected = bars.series([]), read(recording, bars.interval)
    for name in ("starts_ms", "open", "high", "low", "close", "volume"):
        assert_array_equal(getattr(found, name), getattr(expected, name), name)


@pytest.mark.parametrize("interval", of_tier(["1s", "5s", "1m", "1h"], ["5s", "1h"]))
def test_what_is_recorded(recording: Recording, interval: str) -> None:
    assert_same(LiveBars(recording.layout.root, "AAPL", interval, 500, NOW_MS), recording)


@pytest.mark.parametrize("interval", of_tier(["1s", "5s", "1m", "1h"], ["5s", "1h"]))
def test_what_comes(recording: Recording, interval: str) -> None:
    bars = LiveBars(recording.layout.root, "AAPL", interval, 500, NOW_MS)
    for second in range(200):
        rows = recording.write(make_print(second, 20 + second % 5), make_print(second, 1, "MSFT"))
        bars.add_trades(rows, NOW_MS + second * 1000)
    assert_same(bars, recording)


def test_what_was_read_already_is_not_counted_twice(recording: Recording) -> None:
    """Whoever follows from before the reading meets its rows again."""
    overlap = recording.write(make_print(0.1, 20), make_print(0.2, 21))
    bars = LiveBars(recording.layout.root, "AAPL", "1s", 500, NOW_MS + 1000)
    bars.add_trades(overlap, NOW_MS + 1000)
    bars.add_trades(recording.write(make_print(0.3, 22)), NOW_MS + 1000)
    assert_same(bars, recording)
    assert bars.series([]).volume[-1] == 300


def test_a_late_trade_finds_its_bar(recording: Recording) -> None:
    bars = LiveBars(recording.layout.root, "AAPL", "1s", 500, NOW_MS)
    bars.add_trades(recording.write(make_print(-30, 99)), NOW_MS)
    assert_same(bars, recording)
    assert bars.series([]).high.max() == 99


def test_a_trade_told_too_late_waits_for_the_next_reading(recording: Recording) -> None:
    bars = LiveBars(recording.layout.root, "AAPL", "1s", 500, NOW_MS)
    bars.add_trades(recording.write(make_print(-90, 99)), NOW_MS)
    assert bars.series([]).high.max() < 99
    assert_same(LiveBars(recording.layout.root, "AAPL", "1s", 500, NOW_MS), recording)


def test_the_oldest_are_let_go(recording: Recording) -> None:
    bars = LiveBars(recording.layout.root, "AAPL", "1s", 10, NOW_MS)
    assert bars.length_ms == 10_000
    assert len(bars.series([]).starts_ms) == 70, "ten, and those of the minute that may still change"
    for start in range(0, 4000, 100):
        rows = recording.write(*(make_print(start + at, 20) for at in range(100)))
        bars.add_trades(rows, NOW_MS + (start + 100) * 1000)
    assert len(bars.series([]).starts_ms) < 3800


def test_no_trade_yet(tmp_path: Path) -> None:
    recording = Recording(tmp_path, started="2026-11-20")
    bars = LiveBars(tmp_path, "AAPL", "1s", 500, NOW_MS)
    assert len(bars.series([]).starts_ms) == 0
    bars.add_trades(recording.write(make_print(0, 20)), NOW_MS)
    assert_same(bars, recording)
