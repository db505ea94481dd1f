"""The truth file: what is written is what is read, a venue's quirks included."""

import stat
from pathlib import Path

from simulated_venues import read_truth

from ingestor.schema import VENUE_TRADES
from ingestor.simulator.connection import BLOCK_LINES, TruthFile

TEXTS = (
    '{"c":["1","12"],"p":164.0601,"s":"AAPL","t":1680286537580,"v":5}',
    '{"c":null,"p":26626,"s":"BINANCE:ETHUSDT","t":1680286537582,"v":1e-07}',
    '{"c":[],"p":1.5,"s":"a \\"b\\" \\u00e9","t":1680286537581,"v":0}',
    '{"p":284.45,"s":"NULL","t":1680286537583,"v":300}',
)


def write(path: Path, *frames: tuple[str, ...]) -> None:
    truth = TruthFile(path)
    for number, frame in enumerate(frames, 1):
        truth.add(1_700_000_000_000_000 + number, 3, number, frame)
    truth.close()


def test_lines_are_the_trades_as_sent(tmp_path: Path) -> None:
    write(tmp_path / "t.jsonl", TEXTS[:2])
    assert (tmp_path / "t.jsonl").read_text().splitlines() == [
        '{"sent_us":1700000000000001,"connection":3,"frame":1,' + text[1:] for text in TEXTS[:2]
    ]


def test_columns_tell_absent_from_empty_and_keep_the_order(tmp_path: Path) -> None:
    write(tmp_path / "t.jsonl", TEXTS[:3], TEXTS[3:])
    table = read_truth(tmp_path / "t.jsonl")
    assert table.schema.names == [*VENUE_TRADES.names, "sent_us", "connection", "frame"]
    assert [table.schema.field(name).type for name in VENUE_TRADES.names] == VENUE_TRADES.types
    assert table["conditions"].to_pylist() == ["1,12", None, "", None]
    assert table["symbol"].to_pylist() == ["AAPL", "BINANCE:ETHUSDT", 'a "b" é', "NULL"]
    assert table["price"].to_pylist() == [164.0601, 26626.0, 1.5, 284.45]
    assert table["volume"].to_pylist() == [5.0, 1e-07, 0.0, 300.0]
    assert [time.timestamp() for time in table["timestamp"].to_pylist()][:2] == [1680286537.58, 1680286537.582]
    assert table["frame"].to_pylist() == [1, 1, 1, 2]


def test_without_times_they_are_null(tmp_path: Path) -> None:
    write(tmp_path / "t.jsonl", ('{"p":1,"s":"A","v":2}',))
    assert read_truth(tmp_path / "t.jsonl")["timestamp"].to_pylist() == [None]


def test_nothing_sent_is_an_empty_table(tmp_path: Path) -> None:
    write(tmp_path / "t.jsonl")
    table = read_truth(tmp_path / "t.jsonl")
    assert (table.num_rows, table.num_columns) == (0, 8)


def test_an_unfinished_last_line_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    write(path, TEXTS)
    whole = path.read_bytes()
    for cut in range(len(whole) - 60, len(whole)):
        path.write_bytes(whole[:cut])
        assert read_truth(path).num_rows == 3


def test_blocks_reach_the_file_before_it_is_closed(tmp_path: Path) -> None:
    truth = TruthFile(tmp_path / "t.jsonl")
    truth.add(1, 1, 1, TEXTS)
    truth.flush()
    assert read_truth(tmp_path / "t.jsonl").num_rows == 4
    truth.add(1, 1, 2, TEXTS[:1] * BLOCK_LINES)
    assert read_truth(tmp_path / "t.jsonl").num_rows == 4 + BLOCK_LINES
    truth.close()


def test_an_earlier_truth_is_replaced_and_only_ours_to_read(tmp_path: Path) -> None:
    write(tmp_path / "t.jsonl", TEXTS)
    write(tmp_path / "t.jsonl", TEXTS[:1])
    assert read_truth(tmp_path / "t.jsonl").num_rows == 1
    assert stat.S_IMODE((tmp_path / "t.jsonl").stat().st_mode) & 0o027 == 0
