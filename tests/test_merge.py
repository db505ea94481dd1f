"""Merging sorted sources in little memory: the same rows, in order, whatever the sizes."""

import random
from collections.abc import Iterator

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from requirements import of_tier

from ingestor.dataset.rows import merge_rows, plain_texts
from ingestor.schema import TRADES

Row = tuple[str, int]
"""Symbol and time; the sequence is given by the order of the sources."""


def make_source(rows: list[Row], first_sequence: int, batch_rows: int) -> Iterator[pa.Table]:
    """The rows, numbered as they come, sorted as a file is, a few at a time."""
    numbered = sorted((symbol, time, first_sequence + place) for place, (symbol, time) in enumerate(rows))
    for at in range(0, len(numbered), batch_rows):
        batch = numbered[at : at + batch_rows]
        table = pa.table(
            {
                "timestamp": pa.array([time for _, time, _ in batch], TRADES.field("timestamp").type),
                "symbol": pa.array([symbol for symbol, _, _ in batch]).dictionary_encode(),
                "sequence": pa.array([sequence for _, _, sequence in batch], pa.int64()),
            }
        )
        yield table


def keys(tables: Iterator[pa.Table]) -> list[tuple[str, int, int]]:
    found: list[tuple[str, int, int]] = []
    for table in tables:
        plain = plain_texts(table)
        times = plain["timestamp"].cast(pa.int64()).to_pylist()
        found += zip(plain["symbol"].to_pylist(), times, plain["sequence"].to_pylist(), strict=True)
    return found


rows = st.lists(st.tuples(st.sampled_from(["A", "AA", "B", "É", "字"]), st.integers(0, 5)), max_size=40)


@settings(max_examples=of_tier(100, 25), deadline=None)
@given(sources=st.lists(rows, max_size=6), batch_rows=st.integers(1, 7), held_rows=st.integers(1, 30))
def test_all_rows_in_order(sources: list[list[Row]], batch_rows: int, held_rows: int) -> None:
    made = [make_source(one, number * 1000, batch_rows) for number, one in enumerate(sources)]
    expected = sorted(
        (symbol, time, number * 1000 + place)
        for number, one in enumerate(sources)
        for place, (symbol, time) in enumerate(one)
    )
    assert keys(merge_rows(made, held_rows)) == expected


@pytest.mark.parametrize("held_rows", [100, 3000])
def test_memory_is_bounded_by_what_may_be_held(held_rows: int) -> None:
    """Of 20 sources with 10,000 rows no more are read ahead than that, and a batch each."""
    chance = random.Random(7)
    batch_rows = 50
    read = given_away = most = 0

    def look(table: pa.Table) -> None:
        nonlocal read, most
        read += table.num_rows
        most = max(most, read - given_away)

    sources = [
        make_source([(chance.choice("ABC"), chance.randrange(10**6)) for _ in range(500)], number << 20, batch_rows)
        for number in range(20)
    ]
    for table in merge_rows(sources, held_rows, look):
        given_away += table.num_rows
    assert read == given_away == 10_000
    assert most <= held_rows + 20 * batch_rows
