"""Indicators by TA-Lib, over closes that may be unknown and may be parted by blindness. Pure.

What TA-Lib would not do by itself, and every indicator here does:

- **A bar without a price** (odd lots alone: NaN) is passed over; it has no value, and its neighbours adjoin.
- **Blindness between two bars** ends a stretch: no value is computed across prices that nobody saw. Behind it an
  indicator begins anew, and has no value (NaN) until it has as many bars as at its very beginning.
- **Too few bars** have no value: `period - 1` at the beginning of an SMA, an EMA and the bands, `period` of an RSI,
  `slow + signal - 2` of a MACD.
- **A flat stretch**: SMA, EMA and the bands lie on the price, MACD is 0. RSI is 0 / 0 there, which TA-Lib shows as 0,
  the strongest fall; here it has no value.

Within a stretch the values are exactly those of TA-Lib over its known closes.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import talib
from numpy.typing import NDArray

RSI_BARS = 15
MACD_BARS = 34
"""From how many bars with a price in a row on an RSI (14) and a MACD (12, 26, 9) have a value."""

Floats = NDArray[np.float64]
"""A value a bar; NaN where there is none."""


class Closes(NamedTuple):
    """The last price of each bar, in order."""

    prices: Floats
    blind_before: NDArray[np.bool_]
    """Whether some of the time between a bar and the one before it was blind."""


class Bands(NamedTuple):
    """Bollinger bands."""

    upper: Floats
    middle: Floats
    lower: Floats


class Macd(NamedTuple):
    """The difference of two EMAs, its own EMA, and the distance of the two."""

    line: Floats
    signal: Floats
    histogram: Floats


def sma(closes: Closes, period: int = 20) -> Floats:
    """Simple moving average."""
    return _by_stretch(closes, lambda prices: (talib.SMA(prices, period),))[0]


def ema(closes: Closes, period: int = 20) -> Floats:
    """Exponential moving average; its first value is the SMA there."""
    return _by_stretch(closes, lambda prices: (talib.EMA(prices, period),))[0]


def bollinger(closes: Closes, period: int = 20, deviations: float = 2.0) -> Bands:
    """The SMA, and so many standard deviations (of the population) above and below it."""
    return Bands(*_by_stretch(closes, lambda prices: talib.BBANDS(prices, period, deviations, deviations), 3))


def rsi(closes: Closes, period: int = 14) -> Floats:
    """Wilder's relative strength index, 0 to 100."""

    def compute(prices: Floats) -> tuple[Floats]:
        values = talib.RSI(prices, period)
        rises = np.diff(prices, prepend=prices[0]) > 0
        moved = np.maximum.accumulate(prices) > np.minimum.accumulate(prices)
        # After a rise the average gain is above 0: an RSI of 0 can then only be TA-Lib's word for 0 / 0.
        undefined = (values == 0) & (np.logical_or.accumulate(rises) | ~moved)
        return (np.where(undefined, np.nan, values),)

    return _by_stretch(closes, compute)[0]


def macd(closes: Closes, fast: int = 12, slow: int = 26, signal: int = 9) -> Macd:
    """Moving average convergence and divergence."""
    return Macd(*_by_stretch(closes, lambda prices: talib.MACD(prices, fast, slow, signal), 3))


def describe_lack(closes: Closes, needed: int) -> str:
    """Why an indicator that needs so many bars in a row has no value: `needs 34 bars, has 6`, or nothing."""
    known = ~np.isnan(closes.prices)
    stretches = np.bincount(np.cumsum(closes.blind_before)[known]) if known.any() else np.zeros(1, dtype=int)
    longest = int(stretches.max())
    parted = " without a gap" if len(stretches) > 1 else ""
    return f"needs {needed} bars{parted}, has {longest}" if longest < needed else ""


def _by_stretch(closes: Closes, compute: Callable[[Floats], tuple[Floats, ...]], outputs: int = 1) -> list[Floats]:
    """Values of `compute` over the known closes of each stretch, at their bars."""
    found = [np.full(len(closes.prices), np.nan) for _ in range(outputs)]
    known = np.flatnonzero(~np.isnan(closes.prices))
    stretch_of = np.cumsum(closes.blind_before)[known]
    for bars in np.split(known, np.flatnonzero(np.diff(stretch_of)) + 1):
        if len(bars):
            for output, values in zip(found, compute(closes.prices[bars]), strict=True):
                output[bars] = values
    return found
