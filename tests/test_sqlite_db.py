"""SQLite: what the contract of all sinks doesn't say."""

import math
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from journals import Writer, make_root, read_events, writing_descriptors
from recordings import Print, Recording, to_us
from sink_contract import EXTRA, ROOT, Sqlite, fill_journal

from ingestor.errors import SinkUnavailable
from ingestor.journal.follower import Rows
from ingestor.journal.records import Cursor
from ingestor.sinks.sqlite_db import SqliteDatabase


def query(path: Path, sql: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as database:
        return database.execute(sql).fetchall()


class TestBasic:
    def test_the_table_the_index_and_the_values(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path / "root")
        fill_journal(layout, 1, 1, 3)
        destination = Sqlite(tmp_path)
        destination.carry(layout)
        path = tmp_path / "trades.sqlite"
        assert query(
            path, "SELECT timestamp, symbol, price, volume, conditions, received_at, repeated FROM trades"
        ) == [
            ("2026-11-20T12:00:00.000Z", "BINANCE:BTCUSDT", 107.76, 2.0, "", "2026-11-20T12:00:00.000000Z", 0),
            ("2026-11-20T12:00:00.001Z", "BRK.B", 107.77, 3.0, "1,12", "2026-11-20T12:00:00.000001Z", 0),
            ("2026-11-20T12:00:00.002Z", "AAPL", 107.78, 4.0, None, "2026-11-20T12:00:00.000002Z", 0),
        ]
        plan = query(path, "EXPLAIN QUERY PLAN SELECT * FROM trades WHERE symbol = 'A' AND timestamp > '2026'")
        assert "trades_by_time" in str(plan)
        assert query(path, "PRAGMA journal_mode") == [("wal",)]

    def test_a_reader_in_the_midst_of_a_transaction_sees_whole_batches(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path / "root")
        fill_journal(layout, 1, 2, 10)
        sink = SqliteDatabase(tmp_path / "t.sqlite", ROOT, layout)
        first, second = (event for event in read_events(layout) if isinstance(event, Rows))
        sink.write(first)
        sink.tick(0.0)
        sink.write(second)
        assert query(tmp_path / "t.sqlite", "SELECT count(*) FROM trades") == [(10,)]
        sink.tick(0.0)
        assert query(tmp_path / "t.sqlite", "SELECT count(*) FROM trades") == [(20,)]
        assert query(tmp_path / "t.sqlite", "SELECT * FROM cursor") == [(ROOT, second.at.segment, second.at.offset)]
        sink.close()

    def test_columns_that_come_later(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path / "root")
        destination = Sqlite(tmp_path)
        fill_journal(layout, 1, 1, 2)
        destination.carry(layout)
        fill_journal(layout, 1, 1, 2, run=2, schema=EXTRA)
        destination.carry(layout)
        rows = query(tmp_path / "trades.sqlite", "SELECT trade_id = sequence, side FROM trades")
        assert rows == [(None, None), (None, None), (1, "buy"), (1, None)]


def test_the_coverage_beside_the_trades_follows_the_ledger(tmp_path: Path) -> None:
    """A gap that began yesterday and is told today is blind on both dates, in this life of the sink and the next."""
    recording = Recording(tmp_path / "data", ["A"], started="2026-01-05T00:00")
    recording.prove(["A"], "2026-01-05T00:00")
    recording.write(Print("2026-01-06T10:00", "A", 1, 1))
    path = tmp_path / "t.sqlite"

    def told(sink: SqliteDatabase) -> list[tuple[object, ...]]:
        for _ in range(1000):  # a date per tick, up to today
            sink.tick(0.0)
        return query(path, 'SELECT state, cause, start, "end" FROM coverage ORDER BY start')

    whole = [
        ("recorded", None, "2026-01-05T00:00:00.000000Z", "2026-01-06T00:00:00.000000Z"),
        ("recorded", None, "2026-01-06T00:00:00.000000Z", "2026-01-06T10:00:00.100000Z"),
    ]
    [rows] = (event for event in read_events(recording.layout) if isinstance(event, Rows))
    with closing(SqliteDatabase(path, ROOT, recording.layout)) as sink:
        sink.write(rows)
        assert told(sink) == told(sink) == whole
    since, until = to_us("2026-01-05T23:00"), to_us("2026-01-06T01:00")
    recording.fact("gap.opened", "2026-01-06T00:30", gap="1", cause="stall", since=since, symbol=None)
    recording.fact("gap.closed", "2026-01-06T01:00", gap="1", cause="stall", until=until, symbol=None)
    with closing(SqliteDatabase(path, ROOT, recording.layout)) as sink:
        assert [(state, cause) for state, cause, *_ in told(sink)] == [
            ("recorded", None), ("blind", "stall"), ("blind", "stall"), ("recorded", None),
        ]  # fmt: skip


def test_the_last_tick_before_a_stop_tells_the_newest_date_too(tmp_path: Path) -> None:
    """One per tick is told otherwise; a recorder that starts again a week later would leave it untold as long."""
    today = datetime.now(UTC).date()
    recording = Recording(tmp_path / "data", ["A"], started=f"{today - timedelta(1)}T00:00")
    recording.prove(["A"], f"{today - timedelta(1)}T00:00")
    recording.write(Print(f"{today}T00:00", "A", 1, 1))
    [rows] = (event for event in read_events(recording.layout) if isinstance(event, Rows))
    with closing(SqliteDatabase(tmp_path / "t.sqlite", ROOT, recording.layout)) as sink:
        sink.write(rows)
        sink.tick(math.inf)
    told = query(tmp_path / "t.sqlite", 'SELECT state, substr("end", 1, 19) FROM coverage ORDER BY start')
    assert told == [("recorded", f"{today}T00:00:00")] * 2


class TestKnownErrors:
    def test_a_database_of_another_root_is_refused(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path / "root")
        fill_journal(layout, 1, 1, 2)
        Sqlite(tmp_path).carry(layout)
        with pytest.raises(SinkUnavailable, match="another root"):
            SqliteDatabase(tmp_path / "trades.sqlite", "another", layout)
        assert not [path for _, path in writing_descriptors() if path.name.startswith("trades.sqlite")]

    def test_a_file_that_is_no_database(self, tmp_path: Path) -> None:
        (tmp_path / "t.sqlite").write_text("not a database at all, but long enough to be looked at as one" * 20)
        with pytest.raises(SinkUnavailable, match=r"t\.sqlite"):
            SqliteDatabase(tmp_path / "t.sqlite", ROOT, make_root(tmp_path / "root"))

    def test_a_folder_that_cannot_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(SinkUnavailable):
            SqliteDatabase(tmp_path / "file" / "t.sqlite", ROOT, make_root(tmp_path / "root"))

    def test_a_database_that_was_lost_is_filled_with_what_the_journal_holds(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path / "root")
        truth = fill_journal(layout, 2, 2, 5)
        destination = Sqlite(tmp_path)
        destination.carry(layout)
        for path in tmp_path.glob("trades.sqlite*"):
            path.unlink()
        destination.carry(layout)
        assert destination.rows().num_rows == truth.num_rows


class TestCollisions:
    """A row under a number that is taken: the same row was given before, another one is an error that is told."""

    def fill(self, folder: Path) -> Path:
        layout = make_root(folder / "root")
        fill_journal(layout, 2, 2, 5)
        Sqlite(folder).carry(layout)
        [path] = folder.glob("trades.sqlite")
        return path

    def carry_again(self, folder: Path, path: Path) -> None:
        """Give the whole journal once more to a database that has forgotten how far it had come."""
        with closing(sqlite3.connect(path)) as database, database:
            database.execute("DELETE FROM cursor")
        with closing(SqliteDatabase(path, ROOT, make_root(folder / "root"))) as sink:
            for event in read_events(make_root(folder / "root")):
                if isinstance(event, Rows):
                    sink.write(event)
            sink.tick(0.0)

    def test_the_same_rows_once_more(self, tmp_path: Path) -> None:
        path = self.fill(tmp_path)
        before = query(path, "SELECT * FROM trades")
        self.carry_again(tmp_path, path)
        assert query(path, "SELECT * FROM trades") == before

    def test_another_row_is_never_passed_over_nor_put_over_it(self, tmp_path: Path) -> None:
        path = self.fill(tmp_path)
        with closing(sqlite3.connect(path)) as database, database:
            database.execute("UPDATE trades SET price = 1 WHERE sequence = (SELECT max(sequence) FROM trades)")
        before = query(path, "SELECT * FROM trades")
        with pytest.raises(SinkUnavailable, match="holds another row under the sequence number"):
            self.carry_again(tmp_path, path)
        assert query(path, "SELECT * FROM trades") == before
        assert query(path, "SELECT * FROM cursor") == []


def test_a_segment_that_was_freed_without_it(tmp_path: Path) -> None:
    layout = make_root(tmp_path / "root")
    destination = Sqlite(tmp_path)
    writer = Writer(layout)
    writer.append(5)
    writer.journal.sync()
    destination.carry(layout)
    writer.append(4)
    writer.rotate()
    later = writer.append(3)
    writer.journal.sync()
    for segment in sorted(layout.journal.glob("*.journal"))[:1]:
        segment.unlink()
    destination.carry(layout)
    assert destination.rows()["sequence"].to_pylist()[5:] == later
    sink = SqliteDatabase(tmp_path / "trades.sqlite", ROOT, layout)
    assert sink.committed() > Cursor(2, 0)
    sink.close()
