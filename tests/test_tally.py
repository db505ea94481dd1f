"""The checksum finds what a compaction could do wrong, and does not mind the order."""

from collections.abc import Callable

import pyarrow as pa
import pytest
from journals import trades

from ingestor.dataset.compact import Tally

ROWS = pa.Table.from_batches([trades(1, 1000)])


def tally(*tables: pa.Table) -> tuple[int, dict[str, int]]:
    found = Tally()
    for table in tables:
        found.add(table)
    return found.total()


def with_value(name: str, row: int, value: object) -> pa.Table:
    values = ROWS[name].to_pylist()
    values[row] = value
    return ROWS.set_column(ROWS.column_names.index(name), ROWS.schema.field(name), pa.array(values, ROWS[name].type))


def swapped(name: str, one: int, other: int) -> pa.Table:
    values = ROWS[name].to_pylist()
    values[one], values[other] = values[other], values[one]
    return ROWS.set_column(ROWS.column_names.index(name), ROWS.schema.field(name), pa.array(values, ROWS[name].type))


@pytest.mark.parametrize(
    "same",
    [
        lambda rows: rows.sort_by([("sequence", "descending")]),
        lambda rows: rows.sort_by("symbol"),
        lambda rows: pa.concat_tables([rows.slice(700), rows.slice(0, 700)]),
        lambda rows: rows.set_column(1, "symbol", rows["symbol"].dictionary_encode()),
    ],
)
def test_order_and_encoding_do_not_matter(same: Callable[[pa.Table], pa.Table]) -> None:
    assert tally(same(ROWS)) == tally(ROWS) == tally(ROWS.slice(0, 10), ROWS.slice(10), ROWS.slice(0, 0))


@pytest.mark.parametrize(
    "other",
    [
        ROWS.slice(1),
        pa.concat_tables([ROWS, ROWS.slice(5, 1)]),
        pa.concat_tables([ROWS.slice(1), ROWS.slice(1, 1)]),
        with_value("price", 3, 100.0000001),
        with_value("price", 3, None),
        with_value("volume", 0, None),
        with_value("volume", 6, -0.0),
        with_value("volume", 6, None),  # it was 0
        with_value("symbol", 3, "AAPLE"),
        with_value("conditions", 2, ""),
        with_value("conditions", 0, None),
        with_value("repeated", 3, True),
        with_value("sequence", 3, 9999),
        swapped("price", 3, 4),
        swapped("symbol", 3, 4),
        swapped("received_at", 3, 4),
        swapped("conditions", 0, 1),
    ],
)
def test_any_difference_is_found(other: pa.Table) -> None:
    assert tally(other) != tally(ROWS)


def test_a_column_that_is_lacking_is_as_one_of_nulls() -> None:
    """So have the rows of files from before a feed told it been told in those that they are merged into."""
    assert tally(ROWS.append_column("trade_id", pa.nulls(1000, pa.int64()))) == tally(ROWS)
    assert tally(ROWS.append_column("trade_id", pa.repeat(0, 1000))) != tally(ROWS)


def test_nothing() -> None:
    assert tally() == tally(ROWS.slice(0, 0))
    assert tally() == (0, {})
