"""Export: every kind of file holds what read_trades gives."""

import csv
import json
import sqlite3
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from recordings import Print, Recording, add_trade_ids

import ingestor
from ingestor.cli.main import cli
from ingestor.dataset.arguments import Span, to_span
from ingestor.dataset.compact import compact_days
from ingestor.dataset.export import Kind, Progress, SqliteFile, export_trades
from ingestor.dataset.trades import first_trades
from ingestor.errors import ConfigError, DamagedFile, IngestorError, NotARecording
from ingestor.schema import TRADES

ALL = Span(None, None)


@pytest.fixture
def recording(tmp_path: Path) -> Recording:
    recording = Recording(tmp_path / "data", started="2026-11-18")
    for number in range(6):
        recording.write(
            Print(f"2026-11-{18 + number % 2}T12:00:00.{number}", "TRUE", number, 0.1, "1,12"),
            Print(f"2026-11-{18 + number % 2}T12:00", "NA", number, None),
            Print(f"2026-11-{18 + number % 2}T12:00", "BINANCE:X", 1e-7, 1e12, ""),
        )
        recording.seal() if number < 4 else recording.end_segment()
    list(compact_days(recording.layout, date(2026, 11, 19)))
    return recording


def rows(recording: Recording, **options: Any) -> list[dict[str, Any]]:
    """The truth in the order of an export: by date first."""
    table = ingestor.read_trades(recording.layout.root, engine="arrow", **options)
    found: list[dict[str, Any]] = table.to_pylist()
    return sorted(found, key=lambda row: (row["timestamp"].date(), row["symbol"], row["timestamp"], row["sequence"]))


def export(
    recording: Recording, path: Path, kind: Kind, span: Span = ALL, symbols: tuple[str, ...] | None = None
) -> Path:
    for _ in export_trades(recording.layout.root, path, kind, span, symbols):
        assert not path.exists()
    return path


def iso(row: dict[str, Any]) -> dict[str, Any]:
    """The row as text formats have it."""
    times = {
        name: row[name].isoformat(timespec=unit)
        for name, unit in (("timestamp", "milliseconds"), ("received_at", "microseconds"))
    }
    return row | {name: text.replace("+00:00", "Z") for name, text in times.items()}


def test_parquet(recording: Recording, tmp_path: Path) -> None:
    found = pq.read_table(export(recording, tmp_path / "x.parquet", "parquet"))
    assert found.to_pylist() == rows(recording)
    assert found.schema.equals(ingestor.read_trades(recording.layout.root, engine="arrow").schema)


def test_json_lines(recording: Recording, tmp_path: Path) -> None:
    lines = export(recording, tmp_path / "x.jsonl", "jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [iso(row) for row in rows(recording)]


def test_csv(recording: Recording, tmp_path: Path) -> None:
    with export(recording, tmp_path / "x.csv", "csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    expected = [iso(row) for row in rows(recording)]
    assert [(row["symbol"], row["timestamp"], row["received_at"], row["sequence"]) for row in found] == [
        (row["symbol"], row["timestamp"], row["received_at"], str(row["sequence"])) for row in expected
    ]
    assert [float(row["price"]) for row in found] == [row["price"] for row in expected]
    assert {row["volume"] for row in found if row["symbol"] == "NA"} == {""}


def test_sqlite(recording: Recording, tmp_path: Path) -> None:
    path = export(recording, tmp_path / "x.sqlite", "sqlite")
    database = sqlite3.connect(path)
    names = [column[1] for column in database.execute("PRAGMA table_info(trades)")]
    found = [dict(zip(names, row, strict=True)) for row in database.execute("SELECT * FROM trades ORDER BY sequence")]
    database.close()
    assert found == sorted((iso(row) for row in rows(recording)), key=lambda row: row["sequence"])


def test_span_and_symbols(recording: Recording, tmp_path: Path) -> None:
    start = datetime(2026, 11, 19, 12, 0, 0, 200_000, tzinfo=UTC)
    path = export(recording, tmp_path / "x.jsonl", "jsonl", to_span((start, None)), ("TRUE",))
    expected = [iso(row) for row in rows(recording, symbols=["TRUE"], start=start)]
    assert [json.loads(line) for line in path.read_text().splitlines()] == expected
    assert len(expected) == 2


def test_progress_is_told_date_by_date(recording: Recording, tmp_path: Path) -> None:
    told = list(export_trades(recording.layout.root, tmp_path / "x.csv", "csv", ALL))
    assert told == [Progress(9, date(2026, 11, 18)), Progress(18, date(2026, 11, 19))]


def test_nothing_to_export_is_a_file_without_rows(recording: Recording, tmp_path: Path) -> None:
    path = export(recording, tmp_path / "x.csv", "csv", symbols=("NOPE",))
    assert path.read_text().splitlines() == ["timestamp,symbol,price,volume,conditions,received_at,sequence,repeated"]
    assert pq.read_table(export(recording, tmp_path / "x.parquet", "parquet", symbols=("NOPE",))).num_rows == 0


def test_an_export_that_is_broken_off_leaves_nothing(recording: Recording, tmp_path: Path) -> None:
    running = export_trades(recording.layout.root, tmp_path / "x.csv", "csv", ALL)
    next(running)
    running.close()
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_what_cannot_be_written(recording: Recording, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("mine")
    with pytest.raises(ConfigError, match="exists already"):
        export(recording, tmp_path / "x.csv", "csv")
    for kind in ("csv", "jsonl", "parquet", "sqlite"):
        with pytest.raises(IngestorError, match="can't export"):
            export(recording, tmp_path / "nowhere" / "x", kind)
    with pytest.raises(NotARecording):
        list(export_trades(tmp_path, tmp_path / "y.csv", "csv", ALL))


def test_a_database_that_cannot_be_begun_is_not_left_open(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(sqlite3.DatabaseError):
        SqliteFile(path, TRADES)
    assert not [fd for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink() and fd.readlink() == path]


def test_a_day_of_many_small_files_comes_in_order(tmp_path: Path) -> None:
    recording = Recording(tmp_path / "data")
    for number in range(40):
        recording.write(*(Print(f"2026-11-19T12:{number:02d}:00.{n:03d}", f"S{n % 7}", n, 1) for n in range(50)))
        recording.end_segment()
    recording.seal()
    found = pq.read_table(export(recording, tmp_path / "x.parquet", "parquet"))
    assert found == ingestor.read_trades(tmp_path / "data", engine="arrow")
    assert found.num_rows == 2000


# The command


def call(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli, arguments)
    return result.exit_code, result.stdout


ORDER = [("date", "ascending"), ("symbol", "ascending"), ("timestamp", "ascending"), ("sequence", "ascending")]


def test_a_scan_gives_the_same_rows_piece_by_piece(recording: Recording) -> None:
    recording.prove(["NA", "TRUE", "BINANCE:X"], "2026-11-18T00:00")
    root = recording.layout.root
    expected = ingestor.read_trades(root, tz="Asia/Tokyo", engine="arrow")
    days = expected["timestamp"].cast(pa.timestamp("ms", "UTC")).cast(pa.date32())
    expected = expected.append_column("date", days).sort_by(ORDER).drop_columns("date")
    reader = ingestor.scan_trades(root, tz="Asia/Tokyo")
    assert reader.schema.equals(expected.schema)
    assert reader.read_all().equals(expected)
    some = ["price", "symbol", "origin"]
    found = ingestor.scan_trades(root, ["NA", "TRUE"], "2026-11-19", columns=some).read_all()
    assert found.column_names == some
    assert found.select(["price", "symbol"]).to_pylist() == [
        {"price": price, "symbol": symbol} for symbol in ("NA", "TRUE") for price in (1, 3, 5)
    ]
    assert found["origin"].null_count == 6


def test_a_scan_reads_a_date_when_it_gets_there(recording: Recording) -> None:
    for path in recording.layout.trades.glob("date=2026-11-19/*"):
        path.write_bytes(b"damaged")
    reader = ingestor.scan_trades(recording.layout.root)
    assert reader.read_next_batch()["timestamp"][0].as_py().day == 18
    with pytest.raises(DamagedFile, match="date=2026-11-19"):
        reader.read_all()


def test_a_scan_of_several_recorders_has_each_trade_once(recording: Recording, tmp_path: Path) -> None:
    recording.prove(["NA"], "2026-11-18T00:00")
    other = Recording(tmp_path / "other", started="2026-11-18")
    other.write(Print("2026-11-18T12:00", "NA", 0, None), Print("2026-11-20T12:00", "NA", 9, None))
    reader = ingestor.scan_trades([recording.layout.root, other.layout.root], "NA", columns="price")
    assert reader.read_all()["price"].to_pylist() == [0, 2, 4, 1, 3, 5, 9]


def test_the_command_takes_the_format_from_the_name(recording: Recording, tmp_path: Path) -> None:
    root = str(recording.layout.root)
    for name, kind in (("a.csv", "csv"), ("a.ndjson", "jsonl"), ("a.DB", "sqlite"), ("a.parquet", "parquet")):
        code, out = call("export", str(tmp_path / name), "--root", root, "--json", "--symbols", "NA")
        assert code == 0
        assert json.loads(out) == {
            "file": str(tmp_path / name), "format": kind, "trades": 6, "bytes": (tmp_path / name).stat().st_size,
        }  # fmt: skip
    code, out = call("export", str(tmp_path / "b"), "--root", root, "--format", "csv", "--start", "2026-11-19")
    assert (code, out.split(",")[0]) == (0, f"{tmp_path / 'b'}: 9 trades")
    assert call("export", str(tmp_path / "c"), "--root", root)[0] == 2


def test_a_column_that_the_first_dates_lack(tmp_path: Path) -> None:
    recording = Recording(tmp_path / "data", started="2026-11-18")
    for day in (18, 19):
        recording.write(Print(f"2026-11-{day}T12:00", "AAPL", day, 1))
        recording.seal()
    (newer,) = recording.layout.trades.glob("date=2026-11-19/*")
    add_trade_ids(newer)
    path = export(recording, tmp_path / "all.parquet", "parquet")
    assert pq.read_table(path)["trade_id"].to_pylist() == [None, 0]
    assert first_trades(recording.layout.root, ALL, None, 2)["trade_id"].to_pylist() == [None, 0]
