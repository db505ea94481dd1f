"""Which decoded trades are sane enough to record. Late and out-of-order trades are genuine and stay."""

from dataclasses import dataclass
from functools import reduce
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

_EARLIEST_MS = 631_152_000_000
"""1990: a time in seconds, or a zero, is before it."""
_AHEAD_US = 86_400_000_000
_SYMBOL_CHARACTERS = 64
_ZERO = pa.scalar(0.0)


@dataclass(frozen=True, slots=True)
class Validated:
    """The verdict on a batch of trades."""

    kept: pa.BooleanArray | None
    """One a trade, without nulls; None where all are kept."""
    rejected: list[tuple[int, str]]
    """Row and reason of each trade that is not, by row."""

    def without(self, refused: pa.BooleanArray, reason: str) -> "Validated":
        """The verdict, with these rows rejected too; where one was already, its first reason stays."""
        kept = pc.invert(refused) if self.kept is None else pc.and_(self.kept, pc.invert(refused))
        reason_of = dict.fromkeys(pc.indices_nonzero(refused).to_pylist(), reason) | dict(self.rejected)
        return Validated(kept, sorted(reason_of.items()))


def validate(trades: pa.RecordBatch, now_us: int) -> Validated:
    """Judge trades by the clock `now_us` (µs since 1970).

    The reason is the first that applies: `bad_time` (before 1990, or over a day ahead), `bad_symbol` (empty,
    over 64 characters, or with a control character), `bad_price` (not finite, or not above 0), `bad_volume`
    (not finite, or below 0). A null is bad, except in volume, where it means unknown.
    """
    good = {
        "bad_time": _good_times(trades["timestamp"], now_us),
        "bad_symbol": _good_symbols(trades["symbol"]),
        "bad_price": _good_prices(trades["price"]),
        "bad_volume": _good_volumes(trades["volume"]),
    }
    if all(pc.all(mask, min_count=0).as_py() for mask in good.values()):
        return Validated(None, [])
    reason_of: dict[int, str] = {}
    for reason, mask in good.items():
        for row in pc.indices_nonzero(pc.invert(mask)).to_pylist():
            reason_of.setdefault(row, reason)
    return Validated(reduce(pc.and_, good.values()), sorted(reason_of.items()))


# One mask a column, without nulls: true where the value is good.


def _good_times(times: Any, now_us: int) -> Any:
    times_ms = times.cast(pa.int64())
    latest_ms = pa.scalar((now_us + _AHEAD_US) // 1000)
    return _all_of(pc.greater_equal(times_ms, pa.scalar(_EARLIEST_MS)), pc.less_equal(times_ms, latest_ms))


def _good_symbols(symbols: Any) -> Any:
    """Symbols repeat: each distinct one is judged once."""
    encoded = symbols.dictionary_encode()
    lengths: Any = pc.utf8_length(encoded.dictionary)
    controls: Any = pc.match_substring_regex(encoded.dictionary, r"\p{Cc}")
    good = _all_of(
        pc.greater(lengths, pa.scalar(0)),
        pc.less_equal(lengths, pa.scalar(_SYMBOL_CHARACTERS)),
        pc.invert(controls),
    )
    return good.take(encoded.indices).fill_null(False)


def _good_prices(prices: Any) -> Any:
    return _all_of(pc.is_finite(prices), pc.greater(prices, _ZERO))


def _good_volumes(volumes: Any) -> Any:
    sane = _all_of(pc.is_finite(volumes), pc.greater_equal(volumes, _ZERO))
    return pc.or_(volumes.is_null(), sane)


def _all_of(*masks: Any) -> Any:
    return reduce(pc.and_, masks).fill_null(False)
