"""Recordings sent again: every form that the recorder or a truth file has, in order, at a pace."""

import gzip
import json
import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ingestor.errors import ConfigError
from ingestor.schema import TRADES
from ingestor.simulator.market import Batch, Replay, Trade

START = datetime(2026, 11, 20, 14, 30, tzinfo=UTC)
START_MS = int(START.timestamp() * 1000)


def batches(path: Path, speed: float = 1.0) -> list[Batch]:
    replay = Replay(path, speed)
    found = []
    while (batch := replay.batch((), 0)) is not None:
        found.append(batch)
    return found


def rows(path: Path) -> list[Trade]:
    return [trade for batch in batches(path) for trade in batch.trades]


def recording(*received_ms: int) -> pa.Table:
    """One trade of AAPL for each receive time, the k-th at price k, its own time 90 ms before."""
    count = len(received_ms)
    columns = {
        "timestamp": [START + timedelta(milliseconds=ms - 90) for ms in received_ms],
        "symbol": ["AAPL"] * count,
        "price": [float(number) for number in range(1, count + 1)],
        "volume": [10.0] * count,
        "conditions": ["1,12"] * count,
        "received_at": [START + timedelta(milliseconds=ms) for ms in received_ms],
        "sequence": list(range(count)),
        "repeated": [False] * count,
    }
    return pa.table(columns, schema=TRADES)


def test_parquet_is_sent_in_the_order_of_arrival_not_of_the_file(tmp_path: Path) -> None:
    table = recording(0, 5, 10, 15)
    pq.write_table(table.take([3, 0, 2, 1]), tmp_path / "a.parquet")
    assert [trade.price for trade in rows(tmp_path / "a.parquet")] == [1, 2, 3, 4]


def test_a_dataset_is_sent_across_its_files(tmp_path: Path) -> None:
    table = recording(0, 5, 10, 15)
    for date, part in (("2026-11-21", table.slice(2)), ("2026-11-20", table.slice(0, 2))):
        (tmp_path / f"date={date}").mkdir()
        pq.write_table(part, tmp_path / f"date={date}" / "000000000001.parquet")
    assert rows(tmp_path) == [
        Trade("AAPL", float(number), 10.0, START_MS + 5 * number - 95, '["1","12"]') for number in range(1, 5)
    ]


def test_conditions_come_back_as_a_venue_sends_them(tmp_path: Path) -> None:
    table = recording(0, 1, 2).to_pydict()
    table |= {"symbol": ["AAPL", "AAPL", "BINANCE:BTCUSDT"], "conditions": [None, "", None], "volume": [1.0, None, 2.0]}
    pq.write_table(pa.table(table, schema=TRADES), tmp_path / "a.parquet")
    assert [trade.conditions for trade in rows(tmp_path / "a.parquet")] == [None, "[]", "null"]
    assert [trade.volume for trade in rows(tmp_path / "a.parquet")] == [1, 0, 2]


CSV = """timestamp,symbol,price,volume,conditions,received_at
2026-11-20T14:30:00.250Z,AAPL,164.06,5,"1,12",2026-11-20T14:30:00.340123Z
2026-11-20 14:30:00.240+00:00,NULL,1e-3,0,,2026-11-20T14:30:01Z
"""
CSV_TRADES = [
    Trade("AAPL", 164.06, 5.0, START_MS + 250, '["1","12"]'),
    Trade("NULL", 0.001, 0.0, START_MS + 240, None),
]


def write_csv(path: Path) -> None:
    path.write_text(CSV)


def write_gzip(path: Path) -> None:
    path.write_bytes(gzip.compress(CSV.encode()))


@pytest.mark.parametrize(("name", "write"), [("a.csv", write_csv), ("a.csv.gz", write_gzip)])
def test_csv_is_sent_as_it_stands(tmp_path: Path, name: str, write: Callable[[Path], None]) -> None:
    write(tmp_path / name)
    assert rows(tmp_path / name) == CSV_TRADES
    assert rows(tmp_path) == CSV_TRADES, "and so is a directory of it"
    assert batches(tmp_path)[0].lasts_s == pytest.approx(0.659877)


def test_a_truth_file_is_sent_with_its_own_forms_of_conditions(tmp_path: Path) -> None:
    trades: list[dict[str, Any]] = [
        {"c": ["1", "12"], "p": 1.5, "s": "A", "t": 1, "v": 2},
        {"c": None, "p": 1.5, "s": "A", "t": 1, "v": 2},
        {"c": [], "p": 1.5, "s": "A", "t": 1, "v": 2},
        {"p": 1.5, "s": "A", "t": 1, "v": 2},
    ]
    lines = [json.dumps({"sent_us": 1000, "connection": 1, "frame": 1, **trade}) for trade in trades]
    (tmp_path / "t.jsonl").write_text("\n".join(lines) + "\n")
    assert rows(tmp_path / "t.jsonl") == [
        Trade("A", 1.5, 2.0, 1, conditions) for conditions in ('["1","12"]', "null", "[]", None)
    ]


# pace


def test_trades_that_came_together_go_together(tmp_path: Path) -> None:
    pq.write_table(recording(0, 0, 1, 500, *[600] * 12), tmp_path / "a.parquet")
    sent = batches(tmp_path / "a.parquet")
    assert [len(batch.trades) for batch in sent] == [3, 1, 10, 2]
    assert [batch.lasts_s for batch in sent] == pytest.approx([0.499, 0.1, 0, 0])


@pytest.mark.parametrize(("speed", "pause_s"), [(1, 2.0), (4, 0.5), (math.inf, 0)])
def test_speed_divides_the_pauses(tmp_path: Path, speed: float, pause_s: float) -> None:
    pq.write_table(recording(0, 2000), tmp_path / "a.parquet")
    assert batches(tmp_path / "a.parquet", speed)[0].lasts_s == pause_s


def test_a_receive_time_that_steps_back_is_no_pause(tmp_path: Path) -> None:
    pq.write_table(recording(5000, 1000, 6000), tmp_path / "a.parquet")
    assert [batch.lasts_s for batch in batches(tmp_path / "a.parquet")] == [1.0, 0]


# known errors


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", "timestamp,symbol,price,volume\n2026-11-20T14:30:00Z,A,x,1\n", "a.csv:2: not a trade"),
        ("a.csv", "timestamp,symbol,price,volume\n2026-11-20T14:30:00Z,A,nan,1\n", "a.csv:2: not a trade"),
        ("a.csv", "time,price\n1,2\n", "a.csv:2: not a trade"),
        ("a.jsonl", '{"s":"A","p":1,"t":1,"v":1}\n{"s":"A"}\n', "a.jsonl:2: not a trade"),
        ("a.jsonl", "junk\n", "a.jsonl:1: not a trade"),
        ("a.parquet", "junk", "a.parquet: no Parquet recording"),
        ("a.txt", "junk", "can replay"),
    ],
)
def test_what_cannot_be_replayed_is_named(tmp_path: Path, name: str, content: str, says: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=says):
        batches(tmp_path / name)


def test_other_parquet_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [1]}), tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match="timestamp"):
        batches(tmp_path / "a.parquet")


def test_a_trade_without_a_price_is_refused(tmp_path: Path) -> None:
    pq.write_table(recording(0, 1).set_column(2, TRADES.field("price"), [[None, 1.0]]), tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match="price"):
        batches(tmp_path / "a.parquet")


@pytest.mark.parametrize("name", ["missing.csv", "."])
def test_nothing_to_replay_is_said(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="to replay"):
        batches(tmp_path / name)
