"""Ids in columns: which were seen, and which are missing."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ingestor.trade_ids import IdRanges, Seen, find_seen, format_missing

ROWS = st.lists(st.tuples(st.sampled_from("ABC"), st.one_of(st.integers(0, 30), st.none())), max_size=40)


def columns(rows: Sequence[tuple[str, int | None]]) -> tuple[pa.Array, pa.Array]:
    return pa.array([symbol for symbol, _ in rows], pa.string()), pa.array([number for _, number in rows], pa.int64())


def by_symbol(rows: Iterable[tuple[str, int | None]]) -> dict[str, set[int]]:
    ids: dict[str, set[int]] = defaultdict(set)
    for symbol, number in rows:
        if number is not None:
            ids[symbol].add(number)
    return dict(ids)


@given(ROWS)
def test_what_is_seen_is_what_is_there(rows: list[tuple[str, int | None]]) -> None:
    found = find_seen(*columns(rows))
    assert by_symbol((one.symbol, number) for one in found for number in range(one.first, one.last + 1)) == by_symbol(
        rows
    )
    for one in found:
        assert rows[one.first_row] == (one.symbol, one.first)
        assert rows[one.last_row] == (one.symbol, one.last)
        assert not {one.first - 1, one.last + 1} & by_symbol(rows)[one.symbol]  # as long as they can be


@given(st.lists(ROWS, max_size=5))
@example([[("A", 2)], [("A", 1)]])
def test_ranges_hold_each_id_once_in_whatever_order_it_came(blocks: list[list[tuple[str, int | None]]]) -> None:
    ranges = IdRanges()
    for rows in blocks:
        ranges.add_columns(*columns(rows))
    ids = by_symbol(row for rows in blocks for row in rows)
    missing = {symbol: set(range(min(own), max(own))) - own for symbol, own in ids.items()}
    assert ranges.counts() == {symbol: (len(own), len(missing[symbol])) for symbol, own in ids.items()}
    assert by_symbol((symbol, number) for symbol, low, high in ranges.holes() for number in range(low, high + 1)) == {
        symbol: numbers for symbol, numbers in missing.items() if numbers
    }
    assert all(low <= high for _, low, high in ranges.holes()), "between two ranges there is a hole"
    again = IdRanges()
    again.add_all(reversed(list(ranges)))
    assert list(again) == list(ranges)


@pytest.mark.parametrize("strange", [-1, -(2**63), 2**44, 2**63 - 1])
def test_an_id_that_counts_nothing_says_nothing(strange: int) -> None:
    rows = [("A", 7), ("A", strange), ("A", 8)]
    assert find_seen(*columns(rows)) == [Seen("A", 7, 8, 0, 2)]
    assert find_seen(*columns([("A", strange)])) == []


def test_the_figure() -> None:
    assert format_missing(12_345_678, 0) == "0 of 12,345,678 ids missing"
    assert format_missing(7, 3) == "3 of 10 ids missing"
