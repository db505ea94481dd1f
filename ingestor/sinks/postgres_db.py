"""Rows in PostgreSQL, by ADBC: one COPY and the cursor in one transaction, so each row is there exactly once.

The table has no key on `sequence`, which would cost a COPY its speed: it is the cursor's row, locked and compared by
each transaction, that lets nothing in twice.
"""

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from datetime import date, timedelta
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

import adbc_driver_manager
import pyarrow as pa
import pyarrow.compute as pc
import structlog
from adbc_driver_postgresql import dbapi

from ingestor.config.sections import PostgresSettings
from ingestor.errors import SinkUnavailable
from ingestor.journal.follower import Damage, Rows, SegmentEnd
from ingestor.journal.records import Cursor
from ingestor.layout import Layout
from ingestor.sinks import advise
from ingestor.sinks.coverage_days import CoverageDays

log = structlog.get_logger()

_PATIENCE_S = 30.0
"""Longer than any transaction takes: a server that hasn't answered then stands still."""
_ROWS_A_TRANSACTION = 50_000
_LINK = {
    "application_name": "finnhub-ingestor",
    "connect_timeout": "5",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "15000",
}
"""libpq's options where the address doesn't give them: a host that is gone is noticed in seconds."""
_LIMITS = ("SET lock_timeout = '10s'", "SET statement_timeout = '25s'", "SET TIME ZONE 'UTC'")
_PLACES = 'CREATE TABLE IF NOT EXISTS cursor (root text PRIMARY KEY, segment bigint, "offset" bigint)'
_COVERAGE = """
CREATE TABLE IF NOT EXISTS coverage
    (symbol text, state text, cause text, start timestamptz, "end" timestamptz, proof text, source text)
"""
_REPLACEMENT = "\ufffd"
"""PostgreSQL's text takes no U+0000."""


class PostgresDatabase:
    """An open link, and the tables `trades`, `coverage` and `cursor` of one schema.

    What is written is committed at the next tick. After an error the link is of no use any more.
    """

    name = "postgres"

    def __init__(self, settings: PostgresSettings, password: str | None, root: str, layout: Layout) -> None:
        """Make what is missing. `layout`: whose coverage it is to have. Raises SinkUnavailable, also where the schema
        holds another root's recording.
        """
        self._settings = settings
        self._password = password
        self._root = root
        self._columns: list[str] = []
        self._days: set[date] = set()
        self._waiting: list[pa.RecordBatch] = []
        self._rows = 0
        self._told: set[str] = set()
        self._watch = _Watch()
        with self._translated():
            before = {inode for inode, _ in _open_sockets()}
            self._link = dbapi.connect(_address(settings.url, password))
            self._watch.inodes = {inode for inode, _ in _open_sockets()} - before
        try:
            with self._translated(), self._link.cursor() as cursor:
                schema = _quote(settings.schema_name)
                for command in (
                    *_LIMITS,
                    f"CREATE SCHEMA IF NOT EXISTS {schema}",
                    f"SET search_path = {schema}",
                    _PLACES,
                    _COVERAGE,
                    "CREATE INDEX IF NOT EXISTS coverage_by_time ON coverage (symbol, start)",
                ):
                    cursor.execute(command)
                cursor.execute("INSERT INTO cursor VALUES ($1, 0, 0) ON CONFLICT DO NOTHING", (root,))  # one to lock
                self._link.commit()
                cursor.execute('SELECT root, segment, "offset" FROM cursor')
                places = {key: Cursor(*place) for key, *place in cursor.fetchall()}
                cursor.execute('SELECT max(start), max("end") FROM coverage')
                [told] = cursor.fetchall()
                self._link.commit()
            if places.keys() - {root}:
                raise SinkUnavailable(
                    f"{settings.url} holds another root's recording in the schema {settings.schema_name}: give this one"
                    " a sinks.postgres.schema_name of its own"
                )
        except SinkUnavailable:
            self.close()
            raise
        self._at = self._committed = places[root]
        self._received_us = 0
        self._coverage = CoverageDays(layout, *told)

    def write(self, rows: Rows) -> None:
        if rows.batch.num_rows:
            if self._waiting and rows.batch.schema != self._waiting[0].schema:  # another run's feed: a COPY of its own
                self._commit()
            self._waiting.append(rows.batch)
            self._rows += rows.batch.num_rows
        self._at = rows.at
        self._received_us = rows.last_received_us
        if self._rows >= _ROWS_A_TRANSACTION:
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
            with self._translated(), self._link.cursor() as cursor:
                cursor.execute(f"DELETE FROM coverage WHERE start >= '{day}' AND start < '{day + timedelta(1)}'")  # noqa: S608
                cursor.adbc_ingest("coverage", rows, mode="append", db_schema_name=self._settings.schema_name)
                self._link.commit()

    def committed(self) -> Cursor:
        return self._committed

    def close(self) -> None:
        """Leave what no tick has committed to the next start."""
        with self._translated():
            self._link.close()

    def _commit(self) -> None:
        with self._translated(), self._link.cursor() as cursor:
            if self._waiting:
                self._fit_table(cursor, self._waiting[0].schema)
            # Nobody else has carried this root's rows on since: a process that hung, say, and came back.
            cursor.execute('SELECT segment, "offset" FROM cursor WHERE root = $1 FOR UPDATE', (self._root,))
            if [Cursor(*place) for place in cursor.fetchall()] != [self._committed]:
                raise SinkUnavailable(f"{self._settings.url} is being written by another process of this root")
            if self._waiting:
                # In one piece: each block of its own costs the driver as much as some dozens of rows.
                rows = self._without_nul(pa.Table.from_batches(self._waiting).combine_chunks())
                cursor.adbc_ingest("trades", rows, mode="append", db_schema_name=self._settings.schema_name)
            cursor.execute(
                'UPDATE cursor SET segment = $2, "offset" = $3 WHERE root = $1',
                (self._root, self._at.segment, self._at.offset),
            )
            self._link.commit()
        self._committed = self._at
        self._waiting, self._rows = [], 0

    def _fit_table(self, cursor: Any, schema: pa.Schema) -> None:
        """Make the table, the partitions, and the columns of a feed's own that it hasn't yet."""
        by_day = self._settings.partition == "day"
        if not set(schema.names) <= set(self._columns):
            columns = ", ".join(f"{_quote(field.name)} {_sql_type(field.type)}" for field in schema)
            partitioned = " PARTITION BY RANGE (timestamp)" if by_day else ""
            cursor.execute(f"CREATE TABLE IF NOT EXISTS trades ({columns}){partitioned}")
            for field in schema:
                cursor.execute(
                    f"ALTER TABLE trades ADD COLUMN IF NOT EXISTS {_quote(field.name)} {_sql_type(field.type)}"
                )
            cursor.execute("CREATE INDEX IF NOT EXISTS trades_by_time ON trades (symbol, timestamp)")
            self._columns = schema.names
        if by_day:
            dates = (pc.unique(batch.column("timestamp").cast(pa.date32())) for batch in self._waiting)
            days = {day for found in dates for day in found.to_pylist()} - self._days
            for day in sorted(days):
                cursor.execute(
                    f'CREATE TABLE IF NOT EXISTS "trades_{day:%Y%m%d}" PARTITION OF trades'
                    f" FOR VALUES FROM ('{day}') TO ('{day + timedelta(1)}')"
                )
            self._days |= days

    def _without_nul(self, rows: pa.Table) -> pa.Table:
        for at, field in enumerate(rows.schema):
            if not pa.types.is_string(field.type) or not pc.any(pc.match_substring(rows.column(at), "\0")).as_py():
                continue
            if field.name not in self._told:
                self._told.add(field.name)
                log.warning("text.replaced", sink=self.name, column=field.name, text="U+0000", by="U+FFFD")
            rows = rows.set_column(at, field, pc.replace_substring(rows.column(at), "\0", _REPLACEMENT))
        return rows

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """What the server or the way to it refuses is SinkUnavailable, without the password."""
        try:
            with self._watch.patience():
                yield
        except (adbc_driver_manager.Error, OSError) as error:
            text = str(error).strip().splitlines()[0]
            if self._password:
                text = text.replace(self._password, "…").replace(quote(self._password, safe=""), "…")
            told = f"no answer for {_PATIENCE_S:.0f} s" if self._watch.stood_still else text
            raise SinkUnavailable(advise(f"{self._settings.url}: {told}", ADVICE)) from None


ADVICE = {  # by its words: see `advise`
    "authentication failed": "check POSTGRES_PASSWORD, and the user in sinks.postgres.url",
    "no password supplied": "check POSTGRES_PASSWORD",
    "no pg_hba.conf entry": "let its pg_hba.conf admit this machine",
    "read-only transaction": "give sinks.postgres.url the address of the primary",
    "recovery is in progress": "give sinks.postgres.url the address of the primary",
    "permission denied": "grant its user CREATE and USAGE on the schema",
    "does not exist": "create it, or correct sinks.postgres.url",
    "too many": "raise its max_connections, or its user's limit",
    "starting up": "nothing is to be done: rows are sent once it has started",
    "shutting down": "nothing is to be done: rows are sent once it is back",
    "no space left": "make room on its disk",
    "could not extend": "make room on its disk",
}


class _Watch:
    """Hangs up on a server that stands still: libpq itself would wait for its answer for ever."""

    def __init__(self) -> None:
        self.inodes: set[str] = set()
        """Of the sockets that the link has opened."""
        self.stood_still = False

    @contextlib.contextmanager
    def patience(self) -> Iterator[None]:
        """For the calls of one transaction."""
        timer = threading.Timer(_PATIENCE_S, self._hang_up)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _hang_up(self) -> None:
        self.stood_still = True
        for inode, fd in _open_sockets():
            if inode in self.inodes:
                with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as one:
                    one.shutdown(socket.SHUT_RDWR)


def _open_sockets() -> Iterator[tuple[str, int]]:
    """The inode and the number of each socket of this process; none where the system doesn't tell."""
    try:
        names = os.listdir("/proc/self/fd")  # noqa: PTH208
    except OSError:
        return
    for name in names:
        with contextlib.suppress(OSError):  # closed since
            target = os.readlink(f"/proc/self/fd/{name}")  # noqa: PTH115
            if target.startswith("socket:"):
                yield target, int(name)


def _address(url: str, password: str | None) -> str:
    """What libpq is given: with the password, and with our options where the address has no others."""
    parts = urlsplit(url)
    netloc = parts.netloc
    if password is not None:
        user, _, host = netloc.rpartition("@")
        netloc = f"{user}:{quote(password, safe='')}@{host}"
    return urlunsplit(parts._replace(netloc=netloc, query=urlencode({**_LINK, **dict(parse_qsl(parts.query))})))


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _sql_type(type_: pa.DataType) -> str:
    if pa.types.is_timestamp(type_):
        return "timestamptz"
    if pa.types.is_floating(type_):
        return "double precision"
    if pa.types.is_boolean(type_):
        return "boolean"
    return "bigint" if pa.types.is_integer(type_) else "text"
