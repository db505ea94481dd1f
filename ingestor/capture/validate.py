"""Checks a block's values column by column, and tells apart what two overlapping connections bring twice."""

import math
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from itertools import repeat
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
"""One of two connections hears a trade at most seconds after the other: the monitor ends one that is further behind."""

_BESIDE_US = 5_000_000
"""Of two connections that are read at once, each brings something as often as this."""
_TEXTS_MAX = 1 << 14
"""Frames whose text is kept, of each connection, but for the last block."""


@dataclass(frozen=True, slots=True)
class Validated:
    """The verdict on a batch of trades."""

    kept: pa.BooleanArray | None
    """One per trade, without nulls; None where all are kept."""
    rejected: list[tuple[int, str]]
    """Row and reason of each trade that is not sane, by row."""
    repeated: pa.BooleanArray | None = None
    """Those that are sane, and recorded already, as another connection brought them; None where there is none."""

    def reject(self, refused: pa.BooleanArray, reason: str) -> "Validated":
        """The verdict, with these rows rejected too; where one was already, its first reason stays."""
        kept = pc.invert(refused) if self.kept is None else pc.and_(self.kept, pc.invert(refused))
        reason_of = dict.fromkeys(pc.indices_nonzero(refused).to_pylist(), reason) | dict(self.rejected)
        return Validated(kept, sorted(reason_of.items()), self.repeated)

    def without(self, known: pa.BooleanArray) -> "Validated":
        """The verdict, with these rows repeated; where one was rejected, it stays so."""
        repeated = known if self.kept is None else pc.and_(known, self.kept)
        kept = pc.invert(known) if self.kept is None else pc.and_(self.kept, pc.invert(known))
        return Validated(kept, self.rejected, repeated)


def validate(trades: pa.RecordBatch, now_us: int, *, signed_prices: bool = False) -> Validated:
    """Judge trades by the clock `now_us` (µs since 1970): ours, or the venue's where ours is known to be behind.

    The reason is the first that applies: `bad_time` (before 1990, or over a day ahead), `bad_symbol` (empty,
    over 128 characters, or with one that doesn't show: a control character, or what makes an
    look-alike of another symbol), `bad_price` (not finite, or not above 0 unless prices are
    signed), `bad_volume` (not finite, or below 0). A null is bad, except in volume, where it means unknown.
    """
    latest_ms, least_price = (now_us + AHEAD_US) // 1000, -_MOST if signed_prices else _LEAST_PRICE
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


def are_few_good(rows: Sequence[tuple[Any, ...]], now_us: int, *, signed_prices: bool = False) -> bool:
    """Whether `validate` rejects none of these: rows of a feed, whose values begin with time, symbol, price and volume,
    none of them null but for volumes.
    """
    latest_ms, least_price = (now_us + AHEAD_US) // 1000, -_MOST if signed_prices else _LEAST_PRICE
    return all(
        _EARLIEST_MS <= time <= latest_ms
        and least_price <= price <= _MOST
        and (volume is None or 0.0 <= volume <= _MOST)
        and _is_symbol(symbol)
        for time, symbol, price, volume, *_ in rows
    )


def _are_within(values: Any, least: float, most: float) -> Any:
    """NaN and null are within nothing."""
    mask: Any = pc.and_(pc.greater_equal(values, pa.scalar(least)), pc.less_equal(values, pa.scalar(most)))
    return mask.fill_null(False) if mask.null_count else mask


class _Recorded:
    """Trades of one block. What is compared is computed once, and only where there is something to compare."""

    def __init__(self, connection: int, received_us: int, rows: pa.RecordBatch) -> None:
        self.connection = connection
        self.received_us = received_us
        self._symbols, self._ids, self._times = rows["symbol"], rows["trade_id"], rows["timestamp"]

    @cached_property
    def span_ms(self) -> tuple[int, int]:
        """The oldest and the newest of the venue's times."""
        return _span(self._times)

    @cached_property
    def keys(self) -> pa.Array:
        """One per trade."""
        return _keys(self._symbols, self._ids)


class Deduplicator:
    """Remembers what was recorded a moment ago, and finds it again in what another connection brings.

    A trade has one time at the venue, whichever connection brings it. So it is looked for only among the blocks whose
    trades are as old: of two connections that are read at once, that is as much as both bring in a block.
    """

    def __init__(self, schema: pa.Schema, *, own_times: bool = True) -> None:
        """Of a feed; without a column `trade_id` nothing is a duplicate. `own_times`: the times are the venue's, not
        those of receipt.
        """
        self._known = "trade_id" in schema.names
        self._own_times = own_times
        self._recent: deque[_Recorded] = deque()

    def find(self, connection: int, trades: pa.RecordBatch) -> pa.Array | None:
        """True for each trade that another connection has brought already; None where there is none."""
        others = [one for one in self._recent if one.connection != connection]
        if not others or not trades.num_rows:
            return None
        if self._own_times:
            oldest_ms, newest_ms = _span(trades["timestamp"])
            others = [one for one in others if one.span_ms[0] <= newest_ms and one.span_ms[1] >= oldest_ms]
            if not others:
                return None
        seen = pa.concat_arrays([one.keys for one in others])
        found = pc.is_in(_keys(trades["symbol"], trades["trade_id"]), seen, skip_nulls=True)  # without an id: not known
        return found if pc.any(found).as_py() else None

    def knows_others(self, connection: int) -> bool:
        """Whether something is remembered of another connection than this."""
        return any(one.connection != connection for one in self._recent)

    def remember(self, connection: int, recorded: pa.RecordBatch, received_us: int) -> None:
        """These were recorded, received at that time."""
        if self._known and recorded.num_rows:
            self._recent.append(_Recorded(connection, received_us, recorded))
        while self._recent and abs(received_us - self._recent[0].received_us) > _MEMORY_US:  # a clock may be set back
            self._recent.popleft()


class KnownTexts:
    """Frames of a moment ago, each of one recorded trade with an id: where another connection brings the same text, it
    need not be decoded. That is nine tenths of what a second connection costs at a venue that says the same to all;
    where none does, `Deduplicator` finds the same. Nothing is kept while only one connection is read.
    """

    def __init__(self) -> None:
        self._heard_us: dict[int, int] = {}
        """By connection: its last receipt."""
        self._held: dict[int, _Held] = {}

    def find(
        self, connection: int, payloads: list[bytes], received_us: int
    ) -> tuple[list[bool], pa.RecordBatch] | None:
        """For each of these whether it is known, and symbol and time of those that are; None where none is."""
        best: tuple[list[int | None], _Held] | None = None
        for other, held in self._held.items():
            if other != connection:
                held.forget(received_us)
                rows = list(map(held.rows.get, payloads))
                if best is None or rows.count(None) < best[0].count(None):
                    best = rows, held
        if best is None or best[0].count(None) == len(payloads):
            return None
        rows, held = best
        return [row is not None for row in rows], held.take([row for row in rows if row is not None])

    def hear(self, connection: int, received_us: int) -> bool:
        """A connection has brought a block. Whether others did so just now, and it is worth while to keep it."""
        self._heard_us[connection] = received_us
        if len(self._heard_us) == 1:
            return False
        near = {one: at_us for one, at_us in self._heard_us.items() if abs(received_us - at_us) <= _BESIDE_US}
        if len(near) < len(self._heard_us):
            self._heard_us = near
            self._held = {one: held for one, held in self._held.items() if one in near and len(near) > 1}
        return len(near) > 1

    def remember(self, connection: int, payloads: list[bytes], rows: pa.RecordBatch, received_us: int) -> None:
        """These frames are recorded, a row each."""
        if rows["trade_id"].null_count == 0:
            self._held.setdefault(connection, _Held()).add(payloads, rows, received_us)


class _Held:
    """The last frames of one connection, in blocks."""

    def __init__(self) -> None:
        self.rows: dict[bytes, int] = {}
        """The number of the row that each has become."""
        self._blocks: deque[tuple[list[bytes], pa.RecordBatch, int]] = deque()
        self._first = self._next = 0
        """The numbers of the first row that is held, and of the next one."""

    def add(self, payloads: list[bytes], rows: pa.RecordBatch, received_us: int) -> None:
        self.rows.update(zip(payloads, range(self._next, self._next + len(payloads)), strict=True))
        self._next += len(payloads)
        self._blocks.append((payloads, rows.select(["symbol", "timestamp"]), received_us))
        while self._next - self._first > _TEXTS_MAX and len(self._blocks) > 1:
            self._drop()

    def forget(self, received_us: int) -> None:
        """What came long before is no more to be found."""
        while self._blocks and abs(received_us - self._blocks[0][2]) > _MEMORY_US:
            self._drop()

    def _drop(self) -> None:
        old, _, _ = self._blocks.popleft()
        deque(map(self.rows.pop, old, repeat(None)), maxlen=0)
        self._first += len(old)

    def take(self, rows: list[int]) -> pa.RecordBatch:
        """Symbol and time of each of these."""
        held = pa.Table.from_batches([batch for _, batch, _ in self._blocks])
        taken = held.take(pc.subtract(pa.array(rows, pa.int64()), pa.scalar(self._first)))
        return taken.combine_chunks().to_batches()[0]


def _span(times: Any) -> tuple[int, int]:
    oldest_ms, newest_ms = pc.min_max(times.view(pa.int64())).as_py().values()
    return (0, -1) if oldest_ms is None else (oldest_ms, newest_ms)


def _keys(symbol: pa.Array, trade_id: pa.Array) -> pa.Array:
    """An id is its symbol's; null without one. No recorded symbol holds a NUL, so that no two keys are one."""
    return pc.binary_join_element_wise(symbol, trade_id.cast(pa.string()), "\0")
