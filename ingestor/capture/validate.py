"""Checks a block's values column by column, and tells apart what two overlapping connections bring twice."""

import math
import sys
from collections import deque
from dataclasses import dataclass
from functools import reduce
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ingestor.texts import is_visible

_EARLIEST_MS = 631_152_000_000
"""1990: a time in seconds, or a zero, is before it."""
AHEAD_US = 86_400_000_000
_SYMBOL_CHARACTERS = 128
_LEAST_PRICE = math.nextafter(0.0, 1.0)
_MOST = sys.float_info.max

FEW = 64
"""Up to so many rows Python's own comparisons are faster than Arrow's calls, each of which takes some 10 µs."""
_MEMORY_US = 15_000_000
"""Two connections overlap for some seconds, and one hears a trade at most seconds after the other."""


@dataclass(frozen=True, slots=True)
class Validated:
    """The verdict on a batch of trades."""

    kept: pa.BooleanArray | None
    """One per trade, without nulls; None where all are kept."""
    rejected: list[tuple[int, str]]
    """Row and reason of each trade that is not, by row."""

    def without(self, refused: pa.BooleanArray, reason: str) -> "Validated":
        """The verdict, with these rows rejected too; where one was already, its first reason stays."""
        kept = pc.invert(refused) if self.kept is None else pc.and_(self.kept, pc.invert(refused))
        reason_of = dict.fromkeys(pc.indices_nonzero(refused).to_pylist(), reason) | dict(self.rejected)
        return Validated(kept, sorted(reason_of.items()))


def validate(trades: pa.RecordBatch, now_us: int, *, signed_prices: bool = False) -> Validated:
    """Judge trades by the clock `now_us` (µs since 1970): ours, or the venue's where ours is known to be behind.

    The reason is the first that applies: `bad_time` (before 1990, or over a day ahead), `bad_symbol` (empty,
    over 128 characters, or with one that doesn't show: a control character, or what makes an
    look-alike of another symbol), `bad_price` (not finite, or not above 0 unless prices are
    signed), `bad_volume` (not finite, or below 0). A null is bad, except in volume, where it means unknown.
    """
    latest_ms, least_price = (now_us + AHEAD_US) // 1000, -_MOST if signed_prices else _LEAST_PRICE
    if trades.num_rows <= FEW and _are_good(trades, latest_ms, least_price):
        return Validated(None, [])
    volume = trades["volume"]
    symbols: Any = trades["symbol"].dictionary_encode()  # each distinct one is judged once
    verdicts = pa.array(map(_is_symbol, symbols.dictionary.to_pylist()), pa.bool_(), size=len(symbols.dictionary))
    are_symbols: Any = verdicts.take(symbols.indices)
    # A mask per column: true where the value is good, never null.
    good = {
        "bad_time": _are_within(trades["timestamp"].view(pa.int64()), _EARLIEST_MS, latest_ms),
        "bad_symbol": are_symbols.fill_null(False) if are_symbols.null_count else are_symbols,
        "bad_price": _are_within(trades["price"], least_price, _MOST),
        "bad_volume": _are_within(volume.fill_null(0.0) if volume.null_count else volume, 0.0, _MOST),
    }
    if all(mask.true_count == trades.num_rows for mask in good.values()):
        return Validated(None, [])
    reason_of: dict[int, str] = {}
    for reason, mask in good.items():
        for row in pc.indices_nonzero(pc.invert(mask)).to_pylist():
            reason_of.setdefault(row, reason)
    return Validated(reduce(pc.and_, good.values()), sorted(reason_of.items()))


def _is_symbol(text: str) -> bool:
    return 0 < len(text) <= _SYMBOL_CHARACTERS and is_visible(text)


def _are_good(trades: pa.RecordBatch, latest_ms: int, least_price: float) -> bool:
    """Whether all of a few trades are, by the same bounds."""
    times: Any = trades["timestamp"].view(pa.int64())
    symbols, prices = trades["symbol"], trades["price"]
    return (
        not (times.null_count or symbols.null_count or prices.null_count)
        and all(_EARLIEST_MS <= time <= latest_ms for time in times.to_pylist())
        and all(map(_is_symbol, symbols.to_pylist()))
        and all(least_price <= price <= _MOST for price in prices.to_pylist())
        and all(volume is None or 0.0 <= volume <= _MOST for volume in trades["volume"].to_pylist())
    )


def _are_within(values: Any, least: float, most: float) -> Any:
    """NaN and null are within nothing."""
    mask: Any = pc.and_(pc.greater_equal(values, pa.scalar(least)), pc.less_equal(values, pa.scalar(most)))
    return mask.fill_null(False) if mask.null_count else mask


@dataclass(frozen=True, slots=True)
class _Recorded:
    """Trades of one block."""

    connection: int
    received_us: int
    symbol: pa.Array
    trade_id: pa.Array


class Deduplicator:
    """Remembers what was recorded a moment ago, and finds it again in what another connection brings."""

    def __init__(self, schema: pa.Schema) -> None:
        """Of a feed; without a column `trade_id` nothing is a duplicate."""
        self._known = "trade_id" in schema.names
        self._recent: deque[_Recorded] = deque()

    def find(self, connection: int, trades: pa.RecordBatch) -> pa.Array | None:
        """True for each trade that another connection has brought already; None where there is none."""
        others = [one for one in self._recent if one.connection != connection]
        if not others or not trades.num_rows:
            return None
        seen = pa.concat_arrays([_keys(one.symbol, one.trade_id) for one in others])
        found = pc.is_in(_keys(trades["symbol"], trades["trade_id"]), seen, skip_nulls=True)  # without an id: not known
        return found if pc.any(found).as_py() else None

    def remember(self, connection: int, recorded: pa.RecordBatch, received_us: int) -> None:
        """These were recorded, received at that time."""
        if not self._known:
            return
        self._recent.append(_Recorded(connection, received_us, recorded["symbol"], recorded["trade_id"]))
        while abs(received_us - self._recent[0].received_us) > _MEMORY_US:  # a clock may be set back
            self._recent.popleft()


def _keys(symbol: pa.Array, trade_id: pa.Array) -> pa.Array:
    """An id is its symbol's; null without one. No recorded symbol holds a NUL, so that no two keys are one."""
    return pc.binary_join_element_wise(symbol, trade_id.cast(pa.string()), "\0")
