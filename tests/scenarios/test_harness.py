"""What judges the scenarios is itself put to the test: each way to lose or invent a trade must show."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pyarrow as pa
from harness import Gap, compare, count_differences, count_repeats, last_sequences, missing_sequences

from ingestor.schema import RUN_SHIFT, TRADES, VENUE_TRADES

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
NOON_US = int(NOON.timestamp()) * 1_000_000
FIRST = 1 << RUN_SHIFT
CONNECTIONS = (1, 1, 1, 2, 2)
"""Of the five trades sent in most tests here: one a frame, one a second."""


def sent(numbers: Sequence[int] = range(5)) -> pa.Table:
    rows = [
        {
            **_trade(number),
            "sent_us": NOON_US + number * 1_000_000,
            "connection": CONNECTIONS[number],
            "frame": number + 1,
        }
        for number in numbers
    ]
    extra = [pa.field(name, pa.int64()) for name in ("sent_us", "connection", "frame")]
    return pa.Table.from_pylist(rows, schema=pa.schema([*VENUE_TRADES, *extra]))


def recorded(*numbers: int) -> pa.Table:
    """These trades, each received 10 ms after it was sent."""
    rows = [
        {
            **_trade(number),
            "received_at": NOON + timedelta(seconds=number, milliseconds=10),
            "sequence": FIRST + place,
            "repeated": False,
        }
        for place, number in enumerate(numbers)
    ]
    return pa.Table.from_pylist(rows, schema=TRADES)


def _trade(number: int) -> dict[str, object]:
    time = NOON + timedelta(seconds=number)
    return {"timestamp": time, "symbol": "AAPL", "price": 100.0 + number, "volume": 1.0, "conditions": None}


def gap(since_s: float, until_s: float) -> Gap:
    return Gap("connection", NOON_US + since_s * 1e6, NOON_US + until_s * 1e6)


def test_all_there_is_nothing_to_explain() -> None:
    assert compare(sent(), recorded(0, 1, 2, 3, 4)).unexplained([]) == 0


def test_the_end_of_a_connection_is_explained_by_a_gap_alone() -> None:
    comparison = compare(sent(), recorded(0, 1, 3, 4))
    assert [one.sent_us - NOON_US for one in comparison.missing] == [2_000_000]
    assert comparison.unexplained([]) == 1
    assert comparison.unexplained([gap(1.01, 3.01)]) == 0
    assert comparison.unexplained([gap(1.01, 1.9)]) == 1


def test_a_trade_under_way_when_the_gap_began_was_sent_before_it() -> None:
    """The gap begins where the last frame was received: what was sent meanwhile is behind that frame."""
    comparison = compare(sent(), recorded(0, 1, 3, 4))
    assert comparison.missing[0].seen_us == NOON_US + 1_010_000
    late = [Gap("connection", NOON_US + 2_000_001, NOON_US + 3e6)]
    assert comparison.unexplained(late) == 1


def test_a_hole_in_a_connection_is_never_explained() -> None:
    assert compare(sent(), recorded(0, 2, 3, 4)).unexplained([gap(0, 10)]) > 0


def test_a_trade_twice_or_never_sent_is_invented() -> None:
    assert compare(sent(), recorded(0, 1, 2, 3, 4, 4)).invented == 1
    assert compare(sent([0, 1, 2, 3]), recorded(0, 1, 2, 3, 4)).invented == 1


def test_equal_trades_are_counted() -> None:
    """Fills that are equal in every field are as many in the recording as in the truth."""
    twice = pa.concat_tables([sent(), sent([4])])
    assert [one.frame for one in compare(twice, recorded(0, 1, 2, 3, 4)).missing] == [5]
    assert compare(twice, recorded(0, 1, 2, 3, 4, 4)).unexplained([]) == 0


def test_sequences_tell_what_is_lost_and_what_is_twice() -> None:
    rows = recorded(0, 1, 2, 3, 4)
    assert last_sequences(rows) == {1: FIRST + 4}
    assert missing_sequences(rows, {1: FIRST + 4}) == 0
    assert missing_sequences(rows, {1: FIRST + 6, 2: 2 << RUN_SHIFT}) == 3
    assert missing_sequences(rows.slice(1), {1: FIRST + 4}) == 1
    assert count_repeats(pa.concat_tables([rows, rows.slice(4)])) == 1


def test_files_of_two_kinds_hold_the_same() -> None:
    """Null and empty conditions read alike in a CSV file; nothing else may differ."""
    rows = recorded(0, 1, 2)
    csv = rows.set_column(4, "conditions", pa.array([""] * 3))
    assert count_differences(rows, csv) == 0
    assert count_differences(rows, csv.slice(1)) == 1
    assert count_differences(rows, csv.set_column(2, "price", pa.array([100.0, 101.0, 102.5]))) == 2
