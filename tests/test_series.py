"""What a chart is made of: bars and blind time, from a real recording."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from recordings import Print, Recording, make_sample, to_us

from ingestor.charts.series import Blind, BlindTimes, choose_interval, find_blind_before, load_series
from ingestor.layout import Layout

DAY = datetime(2026, 11, 20, tzinfo=UTC)
MINUTE_MS = 60_000


def ms(at: str) -> int:
    return to_us(at) // 1000


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sample(tmp_path_factory.mktemp("series") / "data").layout.root


def test_bars_and_blind_time(root: Path) -> None:
    series = load_series(root, "AAPL", "1h", (DAY, None), "America/New_York")
    assert_array_equal(series.starts_ms, [ms(f"2026-11-20T{hour}:00") for hour in (14, 15, 16, 23)])
    assert (series.low <= series.open).all()
    assert (series.close <= series.high).all()
    assert series.blind == [Blind(ms("2026-11-20T15:00"), ms("2026-11-20T15:02"), "connection")]
    assert series.interval_ms == 60 * MINUTE_MS


def test_bounds_cut_bars_and_blind_time(root: Path) -> None:
    series = load_series(root, "AAPL", "1m", (DAY.replace(hour=15, minute=1), DAY.replace(hour=15, minute=5)), "UTC")
    assert_array_equal(series.starts_ms, [ms(f"2026-11-20T15:0{minute}") for minute in range(1, 5)])
    assert series.blind == [Blind(ms("2026-11-20T15:01"), ms("2026-11-20T15:02"), "connection")]


def test_a_bar_of_odd_lots_alone_has_no_price(tmp_path: Path) -> None:
    recording = Recording(tmp_path)
    recording.write(Print("2026-01-01T15:00", "AAPL", 10, 100, "1"), Print("2026-01-01T15:01", "AAPL", 11, 5, "1,12"))
    series = load_series(tmp_path, "AAPL", "1m", (None, None), "UTC")
    assert_array_equal(series.close, [10, np.nan])
    assert_array_equal(series.volume, [100, 5])


def test_an_unknown_symbol_has_nothing(root: Path) -> None:
    series = load_series(root, "NONE", "1m", (None, None), "UTC")
    assert (len(series.starts_ms), list(series.blind)) == (0, [])
    assert series.closes.prices.dtype == np.float64


def test_no_ledger(tmp_path: Path) -> None:
    """A dataset that was copied without it."""
    recording = Recording(tmp_path)
    recording.write(Print("2026-01-01T15:00", "AAPL", 10, 100))
    for path in Layout(tmp_path).coverage.iterdir():
        path.unlink()
    assert choose_interval(tmp_path, "AAPL", (None, None)) == "1m"
    assert list(load_series(tmp_path, "AAPL", "1m", (None, None), "UTC").blind) == []


@pytest.mark.parametrize(
    ("end", "interval"),
    [("2026-11-20T00:06:40", "1s"), ("2026-11-20T00:06:41", "5s"), ("2026-11-20T12:00", "5m")],
)
def test_the_interval_that_is_chosen(root: Path, end: str, interval: str) -> None:
    bounds = (DAY, datetime.fromisoformat(end).replace(tzinfo=UTC))
    assert choose_interval(root, "AAPL", bounds) == interval


def test_what_is_blind_still_is_so_up_to_now(tmp_path: Path) -> None:
    recording = Recording(tmp_path, ["AAPL"])
    recording.prove(["AAPL"], "2026-01-01T15:00")
    times, now_ms, gap = BlindTimes(tmp_path), ms("2026-01-01T15:12"), {"gap": "r000001-1", "cause": "stall"}
    assert times.find("AAPL", 0, now_ms) == []
    since, until = to_us("2026-01-01T15:10"), to_us("2026-01-01T15:13")
    recording.fact("gap.opened", "2026-01-01T15:10", since=since, symbol=None, **gap)
    for later_ms in (now_ms, now_ms + MINUTE_MS // 2):
        assert times.find("AAPL", 0, later_ms) == [Blind(since // 1000, later_ms, "stall")]
    assert times.find("AAPL", now_ms - 1000, now_ms) == [Blind(now_ms - 1000, now_ms, "stall")]
    assert times.find("MSFT", 0, now_ms) == []
    recording.fact("gap.closed", "2026-01-01T15:13", until=until, symbol=None, **gap)
    assert times.find("AAPL", 0, now_ms + 5 * MINUTE_MS) == [Blind(since // 1000, until // 1000, "stall")]


# Which bars come after blindness

STARTS_MS = np.array([0, 1, 2, 5, 6], dtype=np.int64) * MINUTE_MS


@pytest.mark.parametrize(
    ("start_ms", "end_ms", "after"),
    [
        (2.2, 2.8, []),  # inside a bar that has trades
        (1.9, 2.1, []),  # across an edge between two such bars
        (2.5, 5.5, [3]),
        (3.2, 3.4, [3]),
        (3.0, 5.0, [3]),
        (2.0, 3.0, []),  # up to where a bar without trades begins
        (5.0, 6.0, []),
        (-9.0, 0.0, []),  # nothing is before the first bar
        (7.0, 9.0, []),
        (-9.0, 9.0, [3]),
    ],
)
def test_blindness_between_bars(start_ms: float, end_ms: float, after: list[int]) -> None:
    blind = [Blind(round(start_ms * MINUTE_MS), round(end_ms * MINUTE_MS), "stall")]
    assert np.flatnonzero(find_blind_before(STARTS_MS, MINUTE_MS, blind)).tolist() == after


def test_no_blindness_and_no_bars() -> None:
    assert not find_blind_before(STARTS_MS, MINUTE_MS, []).any()
    assert len(find_blind_before(STARTS_MS[:0], MINUTE_MS, [Blind(0, 1, "stall")])) == 0
