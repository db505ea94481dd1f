"""Ids by which a venue counts each symbol's trades without a hole: which were seen, and so which are missing.

Pure: columns in, ranges out. A feed says in its terms (`id_column`) whether it has such ids.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from operator import itemgetter
from typing import Any, NamedTuple

import pyarrow as pa

_ID_BITS = 44
"""Ids from 0 to 17 trillion are counted; what is beyond counts nothing."""
_MOST = (1 << _ID_BITS) - 1

Range = tuple[int, int]
"""The first and the last of ids that follow on one another."""


class Seen(NamedTuple):
    """Ids of one symbol that follow on one another, in the rows of a block."""

    symbol: str
    first: int
    last: int
    first_row: int
    last_row: int
    """A row that has the first of them, and one that has the last."""


def find_seen(symbols: Any, ids: Any) -> list[Seen]:
    """The ids in these two columns (arrays of the same length), in order of symbol and id. Nulls say nothing."""
    import pyarrow.compute as pc  # who only counts ranges does without it

    rows, one = None, pa.scalar(1)
    bounds = pc.min_max(ids).as_py()
    if ids.null_count or not 0 <= (bounds["min"] or 0) <= (bounds["max"] or 0) <= _MOST:
        rows = pc.indices_nonzero(pc.fill_null(pc.and_(pc.greater_equal(ids, 0), pc.less_equal(ids, _MOST)), False))
        symbols, ids = symbols.take(rows), ids.take(rows)
    if len(ids) == 1:  # most blocks of a quiet market
        number, row = ids[0].as_py(), 0 if rows is None else rows[0].as_py()
        return [Seen(symbols[0].as_py(), number, number, row, row)]
    if not len(ids):
        return []
    encoded = symbols.dictionary_encode()
    # Symbol and id as one integer: sorted, ids that follow on one another are neighbours, and nothing else is.
    keys = pc.bit_wise_or(pc.shift_left(encoded.indices.cast(pa.int64()), _ID_BITS), ids)
    order = pc.array_sort_indices(encoded.indices)  # stable, and a tenth of a sort by key: that is enough as a rule
    in_order = keys.take(order)
    steps = pc.subtract(in_order.slice(1), in_order.slice(0, len(keys) - 1))
    if pc.min(steps).as_py() < 0:
        order = pc.array_sort_indices(keys)
        in_order = keys.take(order)
        steps = pc.subtract(in_order.slice(1), in_order.slice(0, len(keys) - 1))
    breaks = pc.indices_nonzero(pc.greater(steps, one)).to_pylist()
    ends = pa.array([*breaks, len(keys) - 1], pa.int64())
    starts = pa.array([0, *(at + 1 for at in breaks)], pa.int64())
    names = encoded.dictionary.to_pylist()
    columns = [in_order.take(starts), in_order.take(ends), order.take(starts), order.take(ends)]
    if rows is not None:
        columns[2:] = [rows.take(one) for one in columns[2:]]
    return [
        Seen(names[first >> _ID_BITS], first & _MOST, last & _MOST, first_row, last_row)
        for first, last, first_row, last_row in zip(*(column.to_pylist() for column in columns), strict=True)
    ]


class IdRanges:
    """The ids that were seen of each symbol, however often and in whatever order. As large as it has holes."""

    def __init__(self) -> None:
        self._ranges: dict[str, list[Range]] = {}
        """Sorted, with a hole between two."""

    def __bool__(self) -> bool:
        return bool(self._ranges)

    def __iter__(self) -> Iterator[tuple[str, int, int]]:
        """Symbol, first and last, in order."""
        for symbol in sorted(self._ranges):
            for first, last in self._ranges[symbol]:
                yield symbol, first, last

    def __len__(self) -> int:
        return sum(map(len, self._ranges.values()))

    def add_columns(self, symbols: Any, ids: Any) -> None:
        """The ids of these rows were seen."""
        for seen in find_seen(symbols, ids):
            self.add(seen.symbol, seen.first, seen.last)

    def add_all(self, ranges: Iterable[tuple[str, int, int]]) -> None:
        """Whatever another has seen."""
        for symbol, first, last in ranges:
            self.add(symbol, first, last)

    def add(self, symbol: str, first: int, last: int) -> None:
        """These ids, from the first to the last, were seen."""
        ranges = self._ranges.setdefault(symbol, [])
        if not ranges or first > ranges[-1][1] + 1:
            ranges.append((first, last))
            return
        at = bisect_left(ranges, first - 1, key=itemgetter(1))  # the first that touches this one, or lies behind it
        end = at
        while end < len(ranges) and ranges[end][0] <= last + 1:
            first, last = min(first, ranges[end][0]), max(last, ranges[end][1])
            end += 1
        ranges[at:end] = [(first, last)]

    def only(self, symbols: Iterable[str]) -> "IdRanges":
        """The same of these symbols."""
        some = IdRanges()
        some._ranges = {symbol: self._ranges[symbol] for symbol in symbols if symbol in self._ranges}
        return some

    def counts(self) -> Mapping[str, tuple[int, int]]:
        """By symbol: how many ids were seen, and how many between the first and the last of them were not."""
        counts = {}
        for symbol, ranges in sorted(self._ranges.items()):
            seen = sum(last - first + 1 for first, last in ranges)
            counts[symbol] = seen, ranges[-1][1] - ranges[0][0] + 1 - seen
        return counts

    def holes(self) -> Iterator[tuple[str, int, int]]:
        """Symbol, first and last of the ids that are missing, in order."""
        for symbol in sorted(self._ranges):
            ranges = self._ranges[symbol]
            for (_, before), (after, _) in pairwise(ranges):
                yield symbol, before + 1, after - 1


def format_missing(seen: int, missing: int) -> str:
    """`0 of 12,345,678 ids missing`."""
    return f"{missing:,} of {seen + missing:,} ids missing"
