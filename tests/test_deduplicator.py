"""Which trades two connections have both brought."""

import pyarrow as pa

from ingestor.capture.validate import Deduplicator, Validated
from ingestor.feeds.binance import BINANCE_TRADES
from ingestor.schema import VENUE_TRADES

SECOND_US = 1_000_000
AT_MS = 1_795_000_000_000


def trades(*keys: tuple[str, int]) -> pa.RecordBatch:
    values = {"symbol": [symbol for symbol, _ in keys], "trade_id": [number for _, number in keys]}
    values |= {"timestamp": [AT_MS] * len(keys)}
    columns = [pa.array(values.get(field.name, [None] * len(keys)), field.type) for field in BINANCE_TRADES]
    return pa.record_batch(columns, schema=BINANCE_TRADES)


def found(known: Deduplicator, connection: int, *keys: tuple[str, int]) -> list[bool] | None:
    mask = known.find(connection, trades(*keys))
    return None if mask is None else list(mask.to_pylist())


def test_what_another_connection_brought_is_found_again() -> None:
    known = Deduplicator(BINANCE_TRADES)
    known.remember(1, trades(("A", 1), ("A", 3), ("B", 1)), SECOND_US)
    known.remember(2, trades(("A", 4)), SECOND_US)
    assert found(known, 2, ("A", 1), ("A", 2), ("B", 1), ("B", 3), ("A", 4)) == [True, False, True, False, False]
    assert found(known, 1, ("A", 4), ("A", 5)) == [True, False]


def test_an_id_is_its_symbols() -> None:
    known = Deduplicator(BINANCE_TRADES)
    known.remember(1, trades(("A", 11), ("A 1", 1), ("", 5)), SECOND_US)
    assert found(known, 2, ("A 1", 1), ("A", 1), ("A1", 1), ("A", 11), ("", 5)) == [
        True,
        False,
        False,
        True,
        True,
    ]
    assert found(known, 2, ("A 1", 11), ("A 1 1", 1)) is None


def test_one_connection_repeats_what_it_will() -> None:
    known = Deduplicator(BINANCE_TRADES)
    known.remember(1, trades(("A", 1)), SECOND_US)
    assert found(known, 1, ("A", 1), ("A", 1)) is None


def test_it_forgets_after_some_seconds() -> None:
    known = Deduplicator(BINANCE_TRADES)
    known.remember(1, trades(("A", 1)), SECOND_US)
    known.remember(2, trades(("A", 2)), 10 * SECOND_US)
    assert found(known, 3, ("A", 1), ("A", 2)) == [True, True]
    known.remember(2, trades(("A", 3)), 20 * SECOND_US)
    assert found(known, 3, ("A", 1), ("A", 2)) == [False, True]


def test_without_ids_there_are_no_twins() -> None:
    known = Deduplicator(VENUE_TRADES)
    empty = VENUE_TRADES.empty_table().to_batches() or [pa.RecordBatch.from_pylist([], schema=VENUE_TRADES)]
    known.remember(1, empty[0], SECOND_US)
    assert known.find(2, empty[0]) is None


# What the recorder makes of it


def test_a_twin_is_told_apart_and_what_was_rejected_before_stays_so() -> None:
    known = pa.array([True, True, False, False])
    assert Validated(None, []).without(known) == Validated(pa.array([False, False, True, True]), [], known)
    before = Validated(pa.array([True, False, False, True]), [(1, "bad_time"), (2, "bad_price")])
    assert before.without(known) == Validated(
        pa.array([False, False, False, True]), before.rejected, pa.array([True, False, False, False])
    )


def test_what_has_no_id_is_no_repeat() -> None:
    known = Deduplicator(BINANCE_TRADES)
    without = trades(("A", 1)).set_column(5, BINANCE_TRADES.field("trade_id"), pa.nulls(1, pa.int64()))
    known.remember(1, without, SECOND_US)
    known.remember(1, trades(("A", 7)), SECOND_US)
    assert known.find(2, without) is None
    assert found(known, 2, ("A", 7)) == [True]


def test_an_id_of_text_may_hold_anything() -> None:
    schema = pa.schema([*VENUE_TRADES, pa.field("trade_id", pa.string())])

    def one(symbol: str, trade_id: str) -> pa.RecordBatch:
        values = {"symbol": symbol, "trade_id": trade_id, "timestamp": AT_MS}
        return pa.record_batch([pa.array([values.get(field.name)], field.type) for field in schema], schema=schema)

    known = Deduplicator(schema)
    known.remember(1, one("A", "1 2"), SECOND_US)
    assert known.find(2, one("A 1", "2")) is None
    assert known.find(2, one("A", "1 2")) is not None
