"""What the browser is sent is the chart, and no more of it than has changed."""

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from ingestor.charts.bokeh_chart import (
    Cut,
    Delta,
    Frame,
    choose_cut,
    find_delta,
    first_difference,
    make_blind_frame,
    make_frame,
    merge_bars,
)
from ingestor.charts.indicators import sma
from ingestor.charts.series import LIGHT, Blind, Series

SECOND_MS = 1000
ALL = Cut(0, 1e15, 1)


def make_series(bars: int, *, last: float = 0.0) -> Series:
    """Bars of a second from 1970 on; `last` is added to the last close."""
    close = 100 + np.sin(np.arange(bars, dtype=np.float64))
    close[-1:] += last
    starts_ms = np.arange(bars, dtype=np.int64) * SECOND_MS
    opened = np.full(bars, 100.0)
    blind = [Blind(5000, 6500, "stall"), Blind(9000, 9500, "connection")]
    return Series("A", "1s", starts_ms, opened, close + 1, opened - 2, close, np.ones(bars), blind)


def apply(frame: Frame, delta: Delta) -> Frame:
    """What a browser makes of it."""
    result = {}
    for name, column in frame.items():
        patched: Any = column.copy()
        for rows, values in delta.patches.get(name, ()):
            patched[rows] = values
        result[name] = np.concatenate([patched, delta.appended[name]]) if delta.appended else patched
    return result


@pytest.mark.parametrize(("bars", "last"), [(60, 0.0), (60, 0.5), (61, 0.0), (64, -0.5)])
def test_a_delta_makes_the_next_frame(bars: int, last: float) -> None:
    old = make_frame(make_series(60), ALL, LIGHT)
    new = make_frame(make_series(bars, last=last), ALL, LIGHT)
    delta = find_delta(old, new)
    assert delta is not None
    found = apply(old, delta)
    for name, column in new.items():
        assert_array_equal(found[name], column)
    assert all(rows.start >= 59 for patches in delta.patches.values() for rows, _ in patches), "only the last bar"
    assert len(delta.appended.get("time", ())) == bars - 60


def test_nothing_new_is_nothing_to_send() -> None:
    frame = make_frame(make_series(60), ALL, LIGHT)
    assert find_delta(frame, make_frame(make_series(60), ALL, LIGHT)) == Delta({}, {})


def test_bars_that_are_gone_need_the_whole() -> None:
    assert find_delta(make_frame(make_series(60), ALL, LIGHT), make_frame(make_series(59), ALL, LIGHT)) is None


def test_the_first_difference() -> None:
    assert first_difference(np.array([1.0, np.nan, 2.0]), np.array([1.0, np.nan, 3.0])) == 2
    assert first_difference(np.array([np.nan]), np.array([0.0])) == 0
    assert first_difference(np.array(["a", "b"]), np.array(["a", "b"])) == 2


def test_a_cut_has_its_bars_with_the_indicators_of_all() -> None:
    series = make_series(100)
    frame = make_frame(series, Cut(50_000, 60_000, 1), LIGHT)
    assert_array_equal(frame["time"], np.arange(50, 60) * SECOND_MS + 500)
    assert_array_equal(frame["close"], series.close[50:60])
    assert_array_equal(frame["sma"], sma(series.closes)[50:60])


def test_merged_bars() -> None:
    series = make_series(7)
    frame = make_frame(series, Cut(0, 1e6, 3), LIGHT)
    assert_array_equal(frame["time"], [1500, 4500, 7500])
    assert_array_equal(frame["open"], series.open[[0, 3, 6]])
    assert_array_equal(frame["high"], [series.high[0:3].max(), series.high[3:6].max(), series.high[6]])
    assert_array_equal(frame["low"], [98, 98, 98])
    assert_array_equal(frame["close"], series.close[[2, 5, 6]])
    assert_array_equal(frame["volume"], [3, 3, 1])


def test_nothing_to_merge() -> None:
    frame = make_frame(make_series(0), ALL, LIGHT)
    assert {len(column) for column in frame.values()} == {0}
    empty = {name: np.empty(0) for name in ("start", "open", "high", "low", "volume")}
    assert len(merge_bars(empty, 1000)["start"]) == 0


def test_a_cut_stays_while_it_is_enough() -> None:
    cut = choose_cut(None, (100_000, 200_000), SECOND_MS)
    assert cut == Cut(0, 300_000, 1)
    assert choose_cut(cut, (150_000, 250_000), SECOND_MS) is cut
    assert choose_cut(cut, (250_000, 350_000), SECOND_MS) == Cut(150_000, 450_000, 1)


@pytest.mark.parametrize(("seen_s", "group"), [(400, 1), (401, 2), (28_800, 120), (10_000_000, 3600)])
def test_more_time_is_no_more_bars(seen_s: int, group: int) -> None:
    cut = choose_cut(None, (0, seen_s * 1000), SECOND_MS)
    assert cut.group == group


def test_blind_time() -> None:
    frame = make_blind_frame(make_series(20), LIGHT)
    assert_array_equal(frame["start"], [5000, 9000])
    assert frame["cause"].tolist() == ["stall", "connection"]
    assert frame["seconds"].tolist() == [1.5, 0.5]
    assert frame["colour"][0] != frame["colour"][1]
