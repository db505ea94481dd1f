"""Trades in Redis: a capped stream a symbol, which is a record, and its coverage beside it; last price and
publications, which are a live view.

Exactly once, while Redis keeps what it acknowledged: rows and cursor are one transaction (MULTI). Where a Redis comes
back with an older state, its cursor does too, and the rows between are given again as long as the journal holds them.
"""

import json
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import redis
import structlog
from redis.exceptions import RedisError, ResponseError

from ingestor.config.sections import RedisSettings
from ingestor.errors import SinkUnavailable
from ingestor.journal.follower import Damage, Rows, SegmentEnd
from ingestor.journal.records import Cursor
from ingestor.layout import Layout
from ingestor.sinks import advise
from ingestor.sinks.coverage_days import NEWEST, CoverageDays

_PATIENCE_S = 10.0
_ROWS_A_TRANSACTION = 5_000
_LAST_OF_ID = (1 << 64) - 1
_LOOKED_AT = 1 << 16
"""Entries of a stream, behind our place: more than one transaction has."""

_COVERED = timedelta(31)
_OURS = "ingestor:*, trades:* and coverage:*"

ADVICE = {  # by its words: see `advise`
    # The server's codes, and the words that the client has for them.
    "no permissions": f"let its user read and write {_OURS}, and publish to stock:*",
    "NOPERM": f"let its user read and write {_OURS}, and publish to stock:*",
    "AUTH": "check REDIS_PASSWORD, and the user in sinks.redis.url",
    "WRONGPASS": "check REDIS_PASSWORD, and the user in sinks.redis.url",
    "invalid username-password": "check REDIS_PASSWORD, and the user in sinks.redis.url",
    "invalid password": "check REDIS_PASSWORD, and the user in sinks.redis.url",
    "read only replica": "give sinks.redis.url the address of the primary",
    "loading the dataset": "nothing is to be done: rows are sent once it has started",
    "MASTERDOWN": "give sinks.redis.url the address of the primary",
    "maxmemory": "raise its maxmemory, or lower sinks.redis.stream_max",
    "MISCONF": "its disk refuses to save: see its log",
    "WRONGTYPE": "delete the key, or give sinks.redis.url another database",
    "equal or smaller": "delete the stream, or give sinks.redis.url another database",
    "MOVED": "give sinks.redis.url a server that is not part of a cluster",
    "CROSSSLOT": "give sinks.redis.url a server that is not part of a cluster",
    "CLUSTERDOWN": "give sinks.redis.url a server that is not part of a cluster",
    "max number of clients": "raise its maxclients",
}

log = structlog.get_logger()


class RedisStreams:
    """An open link that adds each row to `trades:<SYMBOL>`, under an id that is its sequence number, and keeps what is
    covered in `coverage:<SYMBOL>`: a field per UTC date, of the newest 31.

    After an error the link is of no use any more.
    """

    name = "redis"

    def __init__(self, settings: RedisSettings, password: str | None, root: str, layout: Layout) -> None:
        """`layout`: whose coverage it is to have. Raises SinkUnavailable."""
        self._client = connect(settings, password)
        self._coverage: CoverageDays | None = CoverageDays(layout, datetime.now(UTC) - NEWEST, None)
        """None: it is refused."""
        self._received_us = 0
        self._stream_max = settings.stream_max
        self._cursor_key = f"ingestor:cursor:{root}"
        try:
            stored = self._client.get(self._cursor_key)
        except RedisError as error:
            raise _unavailable(error) from error
        segment, offset, self._last = map(int, str(stored or "0:0:0").split(":"))
        self._at = self._committed = Cursor(segment, offset)
        self._waiting: list[pa.RecordBatch] = []
        self._symbols: set[str] = set()
        """Those whose streams this link has looked at."""
        self._there: dict[str, dict[int, dict[str, str]]] = {}
        """Entries behind our place, by stream and sequence number: of a transaction of which the rest was refused."""

    def write(self, rows: Rows) -> None:
        if rows.batch.num_rows:
            self._waiting.append(rows.batch)
        self._at = rows.at
        if sum(batch.num_rows for batch in self._waiting) >= _ROWS_A_TRANSACTION:
            self._commit()

    def set_aside(self, damage: Damage) -> None:
        """Nothing: what is no record holds no row."""

    def end_segment(self, end: SegmentEnd) -> None:
        self._at = end.at
        if self._coverage is not None:
            self._coverage.segment_ended()

    def tick(self, now_s: float) -> None:
        if self._at != self._committed:
            self._commit()
        for day, rows in self._coverage.due(self._received_us, now_s) if self._coverage is not None else ():
            # Replace what is said of this date.
            told: dict[str, list[dict[str, str]]] = {}
            for row in rows.to_pylist():
                spans = {name: row.pop(name).isoformat() for name in ("start", "end")}
                told.setdefault(row.pop("symbol"), []).append(spans | {k: v for k, v in row.items() if v is not None})
            pipeline = self._client.pipeline(transaction=True)
            for symbol, pieces in told.items():
                pipeline.hset(f"coverage:{symbol}", day.isoformat(), json.dumps(pieces, separators=(",", ":")))
                pipeline.hdel(f"coverage:{symbol}", (day - _COVERED).isoformat())
            try:
                pipeline.execute()
            except ResponseError as error:  # trades come first: it is done without
                log.warning("redis.coverage_refused", error=str(error), hint=f"let its user read and write {_OURS}")
                self._coverage = None
                return
            except RedisError as error:
                raise _unavailable(error) from error

    def committed(self) -> Cursor:
        return self._committed

    def close(self) -> None:
        """Leave what no tick has committed to the next start."""
        self._client.close()

    def _commit(self) -> None:
        """Add what waits, and the cursor, in one transaction. Raises SinkUnavailable.

        Redis does the rest of a transaction of which it refuses a command: the cursor is then put back, and the next
        link finds what is there already.
        """
        last = self._last
        pipeline: Any = self._client.pipeline(transaction=True)  # its types leave `execute_command` out
        for batch in self._waiting:
            self._look_at_streams(batch)
            last = batch.column("sequence")[-1].as_py()
            received_us = batch.column("received_at")[-1].cast(pa.int64()).as_py()
            self._received_us = max(self._received_us, received_us)
            for entry in _entries(batch):
                if not self._is_there(*entry):
                    stream, *told = entry
                    pipeline.execute_command("XADD", stream, "MAXLEN", "~", self._stream_max, *told)
        pipeline.set(self._cursor_key, _as_cursor(self._at, last))
        try:
            refusals = [one for one in pipeline.execute(raise_on_error=False) if isinstance(one, Exception)]
            if refusals:  # another writer came between
                log.error("redis.refused", rows=len(refusals), error=str(refusals[0]), hint="the rows are sent again")
                self._client.set(self._cursor_key, _as_cursor(self._committed, self._last))
                raise SinkUnavailable(advise(f"redis refused {len(refusals)} rows: {refusals[0]}", ADVICE))
        except RedisError as error:
            raise _unavailable(error) from error
        self._last, self._committed = last, self._at
        self._waiting.clear()

    def _look_at_streams(self, batch: pa.RecordBatch) -> None:
        """Find what streams hold behind our place. Raises SinkUnavailable."""
        symbols = [symbol for symbol in batch.column("symbol").unique().to_pylist() if symbol not in self._symbols]
        pipeline = self._client.pipeline(transaction=False)
        for symbol in symbols:
            pipeline.xrange(f"trades:{symbol}", min=f"({self._last}-{_LAST_OF_ID}", count=_LOOKED_AT)
        try:
            found = pipeline.execute()
        except RedisError as error:
            raise _unavailable(error) from error
        for symbol, entries in zip(symbols, found, strict=True):
            if entries:
                told = {int(id_.partition("-")[0]): values for id_, values in entries}
                self._there[f"trades:{symbol}"] = told
        self._symbols.update(symbols)

    def _is_there(self, stream: str, id_: str, *told: Any) -> bool:
        """Whether the stream has this row already. Raises SinkUnavailable where it has something else in its place: an
        id that is refused would be a row that is lost.
        """
        there = self._there.get(stream)
        if there is None or (sequence := int(id_.partition("-")[0])) > next(reversed(there)):  # rising, as Redis has it
            return False
        values = [str(value) for value in told]
        if there.get(sequence) != dict(zip(values[::2], values[1::2], strict=True)):
            raise SinkUnavailable(
                f"the stream {stream} holds entries that are not from this recording: delete it, or give"
                " sinks.redis.url another database"
            )
        return True


class RedisLive:
    """An open link that sets `stock:<SYMBOL>` to the last trade and publishes each trade there. No record: what comes
    while Redis is away is not told later.
    """

    name = "redis_live"

    def __init__(self, settings: RedisSettings, password: str | None) -> None:
        """Raises SinkUnavailable."""
        self._client = connect(settings, password)
        try:
            self._client.ping()
        except RedisError as error:
            raise _unavailable(error) from error
        self._at = Cursor(0, 0)

    def write(self, rows: Rows) -> None:
        pipeline = self._client.pipeline(transaction=False)
        last = {}
        for symbol, text in _prices(rows.batch):
            pipeline.publish(f"stock:{symbol}", text)
            last[f"stock:{symbol}"] = text
        if last:
            pipeline.mset(last)
            try:
                pipeline.execute()
            except RedisError as error:
                raise _unavailable(error) from error
        self._at = rows.at

    def set_aside(self, damage: Damage) -> None:
        """Nothing: what is no record holds no row."""

    def end_segment(self, end: SegmentEnd) -> None:
        self._at = end.at

    def tick(self, now_s: float) -> None:
        """Nothing: a trade is told at once."""

    def committed(self) -> Cursor:
        return self._at

    def close(self) -> None:
        self._client.close()


def connect(settings: RedisSettings, password: str | None) -> "redis.Redis":
    """A client of one connection, without retries of its own; nothing is sent yet."""
    secured = settings.url.startswith("rediss:")
    options: dict[str, Any] = {"ssl_ca_certs": str(settings.ca_file)} if secured and settings.ca_file else {}
    return redis.Redis.from_url(
        settings.url,
        password=password,
        decode_responses=True,
        socket_timeout=_PATIENCE_S,
        socket_connect_timeout=_PATIENCE_S,
        single_connection_client=False,
        retry=None,
        **options,
    )


def _as_cursor(at: Cursor, last: int) -> str:
    return f"{at.segment}:{at.offset}:{last}"


def _unavailable(error: RedisError) -> SinkUnavailable:
    return SinkUnavailable(advise(f"redis: {error}", ADVICE))


def _entries(batch: pa.RecordBatch) -> Iterable[list[Any]]:
    """[stream, id, name, value, name, value …] of each row; a null is left out. Times are ms and µs since 1970."""
    names = [name for name in batch.schema.names if name not in ("symbol", "sequence")]
    columns = [_as_redis(batch.column(name)).to_pylist() for name in names]
    symbols, sequences = batch.column("symbol").to_pylist(), batch.column("sequence").to_pylist()
    for symbol, sequence, *values in zip(symbols, sequences, *columns, strict=True):
        entry = [f"trades:{symbol}", f"{sequence}-0"]
        for name, value in zip(names, values, strict=True):
            if value is not None:
                entry += (name, value)
        yield entry


def _as_redis(column: pa.Array) -> pa.Array:
    if pa.types.is_timestamp(column.type):
        return column.cast(pa.int64())
    return column.cast(pa.int8()) if pa.types.is_boolean(column.type) else column


def _prices(batch: pa.RecordBatch) -> Iterable[tuple[str, str]]:
    """(symbol, `{"symbol", "price", "volume", "timestamp"}`) of each row; `timestamp` is ms since 1970."""
    names = ("symbol", "price", "volume", "timestamp")
    columns = [_as_redis(batch.column(name)).to_pylist() for name in names]
    for row in zip(*columns, strict=True):
        yield row[0], json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False, separators=(",", ":"))
