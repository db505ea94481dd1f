"""Indicators equal TA-Lib's batch results, and say nothing where there is nothing to say."""

from collections.abc import Callable

import numpy as np
import pytest
import talib
from numpy.testing import assert_allclose, assert_array_equal

from ingestor.charts.indicators import Closes, Floats, bollinger, ema, macd, rsi, sma

SIZE = 400
WALK: Floats = 100 * np.exp(np.cumsum(np.random.default_rng(7).normal(0, 0.002, SIZE)))
FLAT: Floats = np.full(SIZE, 97_000.1)

OURS: dict[str, Callable[[Closes], tuple[Floats, ...]]] = {
    "sma": lambda closes: (sma(closes),),
    "ema": lambda closes: (ema(closes),),
    "bollinger": lambda closes: tuple(bollinger(closes)),
    "rsi": lambda closes: (rsi(closes),),
    "macd": lambda closes: tuple(macd(closes)),
}
THEIRS: dict[str, Callable[[Floats], tuple[Floats, ...]]] = {
    "sma": lambda prices: (talib.SMA(prices, 20),),
    "ema": lambda prices: (talib.EMA(prices, 20),),
    "bollinger": lambda prices: talib.BBANDS(prices, 20, 2.0, 2.0),
    "rsi": lambda prices: (talib.RSI(prices, 14),),
    "macd": lambda prices: talib.MACD(prices, 12, 26, 9),
}
WARM_UP = {"sma": 19, "ema": 19, "bollinger": 19, "rsi": 14, "macd": 33}

every_indicator = pytest.mark.parametrize("name", OURS)


def closes_of(prices: Floats, *blind_before: int) -> Closes:
    parted = np.zeros(len(prices), dtype=bool)
    parted[list(blind_before)] = True
    return Closes(prices, parted)


@every_indicator
def test_an_unbroken_series_has_talibs_values(name: str) -> None:
    for ours, theirs in zip(OURS[name](closes_of(WALK)), THEIRS[name](WALK), strict=True):
        assert_array_equal(ours, theirs)
        assert np.isnan(ours).sum() == WARM_UP[name]


@every_indicator
def test_blindness_begins_anew(name: str) -> None:
    found = OURS[name](closes_of(WALK, 150, 160))
    for at, ours in enumerate(found):
        assert_array_equal(ours[:150], THEIRS[name](WALK[:150])[at])
        assert np.isnan(ours[150:160]).all()
        assert_array_equal(ours[160:], THEIRS[name](WALK[160:])[at])


@every_indicator
def test_a_bar_without_a_price_is_passed_over(name: str) -> None:
    prices = WALK.copy()
    prices[[0, 100, 101, SIZE - 1]] = np.nan
    known = ~np.isnan(prices)
    for ours, theirs in zip(OURS[name](closes_of(prices)), THEIRS[name](prices[known]), strict=True):
        assert_array_equal(ours[known], theirs)
        assert np.isnan(ours[~known]).all()


@every_indicator
def test_blindness_beside_a_bar_without_a_price_counts(name: str) -> None:
    """The mark is on a bar that is passed over: the stretch ends all the same."""
    prices = WALK.copy()
    prices[150] = np.nan
    for at, ours in enumerate(OURS[name](closes_of(prices, 150))):
        assert_array_equal(ours[151:], THEIRS[name](WALK[151:])[at])


@every_indicator
@pytest.mark.parametrize("size", [0, 1, 13])
def test_too_few_bars_have_no_value(name: str, size: int) -> None:
    for found in OURS[name](closes_of(WALK[:size])):
        assert len(found) == size
        assert np.isnan(found).all()


@every_indicator
def test_only_unknown_prices_have_no_value(name: str) -> None:
    for found in OURS[name](closes_of(np.full(50, np.nan))):
        assert np.isnan(found).all()


def test_the_first_value_comes_with_the_last_bar_it_needs() -> None:
    for name, before in WARM_UP.items():
        for found in OURS[name](closes_of(WALK[: before + 1])):
            assert_array_equal(np.isnan(found), [True] * before + [False])


def test_a_flat_series() -> None:
    closes = closes_of(FLAT)
    for found in (sma(closes), ema(closes), *bollinger(closes)):
        assert_allclose(found[19:], FLAT[19:], rtol=1e-9)
    for found in macd(closes):
        assert_allclose(found[33:], 0, atol=1e-6)
    assert_array_equal(THEIRS["rsi"](FLAT)[0][14:], 0)
    assert np.isnan(rsi(closes)).all()


def test_an_rsi_begins_with_the_first_movement() -> None:
    prices = np.concatenate([FLAT[:40], FLAT[:40] - np.arange(1, 41)])
    found = rsi(closes_of(prices))
    assert np.isnan(found[:40]).all()
    assert_array_equal(found[40:], 0)


def test_an_rsi_of_rises_alone_is_100() -> None:
    assert_array_equal(rsi(closes_of(np.arange(1.0, 60.0)))[14:], 100)


def test_other_periods() -> None:
    closes = closes_of(WALK)
    assert_array_equal(sma(closes, 50), talib.SMA(WALK, 50))
    assert_array_equal(bollinger(closes, 10, 1.5).upper, talib.BBANDS(WALK, 10, 1.5, 1.5)[0])
    assert_array_equal(macd(closes, 5, 10, 3).signal, talib.MACD(WALK, 5, 10, 3)[1])
