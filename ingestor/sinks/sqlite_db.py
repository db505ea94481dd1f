"""Rows in a SQLite database. Exactly once: they and the cursor are one transaction, and `sequence` is the key. A row
that collides with another one is an error, and neither is lost.
"""

import contextlib
import sqlite3
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from ingestor.errors import SinkUnavailable
from ingestor.journal.follower import Damage, Rows, SegmentEnd
from ingestor.journal.records import Cursor
from ingestor.layout import Layout
from ingestor.sinks import advise
from ingestor.sinks.coverage_days import CoverageDays

_PATIENCE_S = 5.0
_ROWS_A_TRANSACTION = 50_000
_COVERAGE = """
CREATE TABLE IF NOT EXISTS coverage
    (symbol TEXT, state TEXT, cause TEXT, start TEXT, "end" TEXT, proof TEXT, source TEXT)
"""


class SqliteDatabase:
    """An open database with the tables `trades` and `coverage`, readable by others at any time (WAL). Times are ISO
    text in UTC.

    What is written is committed at the next tick. After an error the link is of no use any more.
    """

    name = "sqlite"

    def __init__(self, path: Path, root: str, layout: Layout) -> None:
        """Make what is missing. `layout`: whose coverage it is to have. Raises SinkUnavailable, also where the database
        holds another root's recording.
        """
        with _translated(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path, timeout=_PATIENCE_S, isolation_level=None)
        self._path = path
        self._root = root
        self._columns: list[str] = []
        self._waiting = 0
        try:
            with _translated(path):
                self._database.execute("PRAGMA journal_mode = WAL")
                self._database.execute("PRAGMA synchronous = FULL")  # the journal is freed by what this commits
                self._database.execute(
                    "CREATE TABLE IF NOT EXISTS cursor (root TEXT PRIMARY KEY, segment INT, offset INT)"
                )
                places = {key: Cursor(*place) for key, *place in self._database.execute("SELECT * FROM cursor")}
                self._database.execute(_COVERAGE)
                self._database.execute("CREATE INDEX IF NOT EXISTS coverage_by_time ON coverage (symbol, start)")
                [told] = self._database.execute('SELECT max(start), max("end") FROM coverage')
            if places.keys() - {root}:
                raise SinkUnavailable(f"{path} holds another root's recording: one database per root")
        except SinkUnavailable:
            self.close()
            raise
        self._at = self._committed = places.get(root, Cursor(0, 0))
        self._received_us = 0
        self._coverage = CoverageDays(layout, *(datetime.fromisoformat(one) if one else None for one in told))

    def write(self, rows: Rows) -> None:
        self._at = rows.at
        self._received_us = rows.last_received_us
        if not rows.batch.num_rows:
            return
        with _translated(self._path):
            self._begin()
            self._fit_table(rows.batch.schema)
            names = ", ".join(map(_quote, rows.batch.schema.names))
            marks = ", ".join("?" * rows.batch.num_columns)
            insert = f"INSERT INTO trades ({names}) VALUES ({marks}) ON CONFLICT (sequence) DO NOTHING"  # noqa: S608  names are quoted
            values = list(zip(*(_as_sql(column).to_pylist() for column in rows.batch.columns), strict=True))
            if self._database.executemany(insert, values).rowcount < len(values):
                # Some of these rows were there already: given before by a root whose cursor was lost, and so the same.
                # Where another row has the number of one, none is put over another, none left out.
                at = rows.batch.schema.names.index("sequence")
                span = (values[0][at], values[-1][at])
                select = f"SELECT {names} FROM trades WHERE sequence BETWEEN ? AND ?"  # noqa: S608  names are quoted
                there = {row[at]: row for row in self._database.execute(select, span)}
                other = next((row[at] for row in values if there.get(row[at]) != row), None)
                if other is not None:
                    self._database.execute("ROLLBACK")
                    raise SinkUnavailable(
                        f"{self._path} holds another row under the sequence number {other}: nothing is put over it;"
                        " give sinks.sqlite.path a new database, and compare the two"
                    )
        self._waiting += rows.batch.num_rows
        if self._waiting >= _ROWS_A_TRANSACTION:
            self._commit()

    def set_aside(self, damage: Damage) -> None:
        """Nothing: what is no record holds no row."""

    def end_segment(self, end: SegmentEnd) -> None:
        self._at = end.at
        self._coverage.segment_ended()

    def tick(self, now_s: float) -> None:
        if self._at != self._committed:
            self._commit()
        for day, rows in self._coverage.due(self._received_us, now_s):
            values = list(zip(*(_as_sql(column.combine_chunks()).to_pylist() for column in rows.columns), strict=True))
            with _translated(self._path):
                self._database.execute("BEGIN IMMEDIATE")
                span = (day.isoformat(), (day + timedelta(1)).isoformat())
                self._database.execute("DELETE FROM coverage WHERE start >= ? AND start < ?", span)
                self._database.executemany("INSERT INTO coverage VALUES (?, ?, ?, ?, ?, ?, ?)", values)
                self._database.execute("COMMIT")

    def committed(self) -> Cursor:
        return self._committed

    def close(self) -> None:
        """Leave what no tick has committed to the next start."""
        with _translated(self._path):
            self._database.close()

    def _begin(self) -> None:
        if not self._database.in_transaction:
            self._database.execute("BEGIN IMMEDIATE")

    def _commit(self) -> None:
        with _translated(self._path):
            self._begin()
            place = (self._root, self._at.segment, self._at.offset)
            self._database.execute("INSERT OR REPLACE INTO cursor VALUES (?, ?, ?)", place)
            self._database.execute("COMMIT")
        self._committed = self._at
        self._waiting = 0

    def _fit_table(self, schema: pa.Schema) -> None:
        """Make the table, or the columns of a feed's own that it hasn't yet."""
        if set(schema.names) <= set(self._columns):
            return
        columns = ", ".join(f"{_quote(field.name)} {_sql_type(field)}" for field in schema)
        self._database.execute(f"CREATE TABLE IF NOT EXISTS trades ({columns})")
        self._columns = [name for _, name, *_ in self._database.execute("PRAGMA table_info (trades)")]
        for field in schema:
            if field.name not in self._columns:
                self._database.execute(f"ALTER TABLE trades ADD COLUMN {_quote(field.name)} {_sql_type(field)}")
                self._columns.append(field.name)
        self._database.execute("CREATE INDEX IF NOT EXISTS trades_by_time ON trades (symbol, timestamp)")


ADVICE = {  # by its words: see `advise`
    "locked": "another program writes to it: rows are sent once it has ended",
    "readonly": "let the recorder's user write the file and its folder",
    "unable to open": "let the recorder's user write the file and its folder",
    "permission denied": "let the recorder's user write the file and its folder",
    "read-only file system": "give sinks.sqlite.path a disk that can be written",
    "disk is full": "make room on its disk",
    "no space": "make room on its disk",
    "disk I/O error": "see the system's log for its disk",
    "not a database": "move it away: what it held is in the dataset, too",
    "malformed": "move it away: what it held is in the dataset, too",
}


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    """What the database or its disk refuses is SinkUnavailable."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise SinkUnavailable(advise(f"{path}: {error}", ADVICE)) from error


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _as_sql(column: pa.Array) -> pa.Array:
    """A time as `2026-11-20T14:30:00.123Z`; any other column as it is."""
    if not pa.types.is_timestamp(column.type):
        return column
    return pc.binary_replace_slice(column.cast(pa.string()), 10, 11, "T")


def _sql_type(field: pa.Field) -> str:
    if field.name == "sequence":
        return "INTEGER PRIMARY KEY"
    if pa.types.is_floating(field.type):
        return "REAL"
    return "INTEGER" if pa.types.is_integer(field.type) or pa.types.is_boolean(field.type) else "TEXT"
