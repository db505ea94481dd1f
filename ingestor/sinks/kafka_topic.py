"""Trades in a Kafka topic. At least once, repeats identifiable: the cursor moves after the brokers' acknowledgement,
and every message names its root and its sequence number.
"""

import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import UTC, date, datetime

import pyarrow as pa
import pyarrow.compute as pc
import structlog
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from ingestor.config.sections import KafkaSettings
from ingestor.errors import ConfigError, SinkUnavailable
from ingestor.journal.follower import Damage, Rows, SegmentEnd
from ingestor.journal.records import Cursor
from ingestor.layout import Layout
from ingestor.sinks import advise
from ingestor.sinks.coverage_days import NEWEST, CoverageDays

log = structlog.get_logger()

_ROOM_S = 0.1
_PATIENCE_MS = 30_000
_NEVER = {"message.timeout.ms": "0", "delivery.timeout.ms": "0"}
"""When a message expires, by both names that librdkafka has for it."""
_ROWS_A_BARRIER = 100_000

_DEFAULTS = {
    "client.id": "finnhub-ingestor",
    "enable.idempotence": "true",
    "enable.gapless.guarantee": "true",
    "acks": "all",
    "compression.type": "zstd",
    "linger.ms": "50",
    "queue.buffering.max.kbytes": "65536",  # what waits is in the journal
    "log_level": "2",  # what hinders it is told as the sink's failure
}

_COVERAGE_PAUSE_S = 60.0
_FAREWELL_S = 1.0

Headers = list[tuple[str, str | bytes | None]]


ADVICE = {  # by its words: see `advise`
    "topic authorization": "let its user write to the topic",
    "cluster authorization": "let its user write idempotently",
    "authentication": "check KAFKA_PASSWORD, and sasl.username in sinks.kafka.options",
    "sasl": "check KAFKA_PASSWORD, and the sasl.… of sinks.kafka.options",
    "ssl handshake": "check security.protocol and ssl.ca.location in sinks.kafka.options",
    "unknown topic": "make the topic, or let its brokers make topics",
    "not enough in-sync": "its brokers are too few: see the brokers",
    "message size too large": "raise the topic's max.message.bytes, or send values: json",
    "resolve": "correct sinks.kafka.brokers",
}


def check_kafka_options(settings: KafkaSettings, password: str | None) -> None:
    """Raises ConfigError where librdkafka refuses them; no broker is asked."""
    try:
        Producer({**_producer_options(settings, password), "bootstrap.servers": ""})
    except KafkaException as error:
        raise ConfigError(f"sinks.kafka.options: {error.args[0].str()}") from None
    except TypeError as error:  # some names stand for functions in Python
        raise ConfigError(f"sinks.kafka.options: {error}") from None


def _producer_options(settings: KafkaSettings, password: str | None) -> dict[str, str]:
    options = {**_DEFAULTS, **settings.options, "bootstrap.servers": settings.brokers}
    return options if password is None else {**options, "sasl.password": password}


def patience_s(options: Mapping[str, str]) -> float:
    """How long the brokers may take to acknowledge; for ever, which is 0, would tell nobody that they are away.
    Raises SinkUnavailable where it is no number.
    """
    try:
        asked_ms = max(int(options.get(name, "0")) for name in _NEVER)
    except ValueError:
        raise SinkUnavailable(f"kafka: {' or '.join(_NEVER)} is no number of milliseconds") from None
    return (asked_ms or _PATIENCE_MS) / 1000


class KafkaTopic:
    """An idempotent producer for one topic. Within its life nothing is repeated; after an error it is of no use any
    more, and what it had not seen acknowledged is sent again by the next.

    No message expires by itself, as librdkafka would have it: a later one would overtake it, and a symbol's trades come
    in another order. When the brokers take too long, all that waits is given up together; where they refuse one, so is
    all that comes after it (`enable.gapless.guarantee`).
    """

    name = "kafka"

    def __init__(
        self,
        settings: KafkaSettings,
        topic: str,
        password: str | None,
        root: str,
        start: Cursor,
        coverage: "CoverageTopic | None" = None,
    ) -> None:
        """Raises SinkUnavailable where librdkafka refuses the options."""
        options = _producer_options(settings, password)
        self._patience_s = patience_s(options)
        try:
            self._producer = Producer(
                {**options, **_NEVER, "delivery.report.only.error": True, "error_cb": self._note_error},
                logger=logging.getLogger("librdkafka"),
            )
        except KafkaException as error:
            raise SinkUnavailable(f"kafka: {error.args[0].str()}") from None
        self._encode = encode_json if settings.values == "json" else encode_arrow
        self._topic = topic
        self._root = root.encode()
        self._coverage = coverage
        self._received_us = 0
        self._unconfirmed = 0
        self._waiting = 0
        """Messages of which the brokers have said nothing yet: librdkafka's own count holds its events, too."""
        self._fault = ""
        self._refused: KafkaError | None = None
        self._at = self._committed = start

    def write(self, rows: Rows) -> None:
        for key, value, headers in self._encode(rows.batch):
            with_root: Headers = [*headers, ("root", self._root)]
            for _ in range(1 + round(self._patience_s / _ROOM_S)):
                try:
                    self._producer.produce(self._topic, value, key, headers=with_root, on_delivery=self._note_delivery)
                except BufferError:  # librdkafka holds as much as it may: wait for the brokers
                    self._hear(self._producer.poll, _ROOM_S)
                except KafkaException as error:
                    raise SinkUnavailable(f"kafka: {error.args[0].str()}") from None
                else:
                    self._waiting += 1
                    break
            else:
                raise self._unavailable()
        self._unconfirmed += rows.batch.num_rows
        self._received_us = max(self._received_us, rows.batch.column("received_at")[-1].cast(pa.int64()).as_py())
        self._at = rows.at
        if self._unconfirmed >= _ROWS_A_BARRIER:
            self._confirm()

    def set_aside(self, damage: Damage) -> None:
        """Nothing: what is no record holds no row."""

    def end_segment(self, end: SegmentEnd) -> None:
        self._at = end.at
        if self._coverage is not None:
            self._coverage.segment_ended()

    def tick(self, now_s: float) -> None:
        if self._at != self._committed:
            self._confirm()
        if self._coverage is not None:
            self._coverage.tick(now_s, self._received_us)

    def committed(self) -> Cursor:
        return self._committed

    def close(self) -> None:
        """Give up what the brokers have not acknowledged: the next producer sends it again."""
        if self._coverage is not None:
            self._coverage.close()
        self._producer.purge()
        with suppress(SinkUnavailable):
            self._hear(self._producer.flush, 0.0)

    def _confirm(self) -> None:
        """Wait until the brokers have acknowledged everything. Raises SinkUnavailable."""
        if self._hear(self._producer.flush, self._patience_s):
            raise self._unavailable()
        self._committed = self._at
        self._unconfirmed = 0

    def _unavailable(self) -> SinkUnavailable:
        waiting = f"{self._waiting} messages are not acknowledged"
        return SinkUnavailable(advise(f"kafka: {waiting}; {self._fault or 'no broker answers'}", ADVICE))

    def _hear(self, listen: Callable[[float], int], timeout_s: float) -> int:
        """What the brokers say of the messages; how many are left. Raises SinkUnavailable where they refuse one."""
        try:
            left = listen(timeout_s)
        except (KafkaException, SystemError) as error:  # SystemError: more was to tell after it
            raise SinkUnavailable(f"kafka: {error.__cause__ or error}") from None
        if self._refused is not None:
            raise SinkUnavailable(advise(f"kafka: {self._refused.str()}; {self._fault or 'see the brokers'}", ADVICE))
        return left

    def _note_delivery(self, error: KafkaError | None, message: Message) -> None:  # noqa: ARG002  librdkafka's signature
        self._waiting -= 1
        self._refused = self._refused or error

    def _note_error(self, error: KafkaError) -> None:
        self._fault = error.str()


class CoverageTopic:
    """The coverage beside the trades: a message per symbol and UTC date, which replaces the one before it where the
    topic is compacted. It has a producer of its own, and nobody waits for it: what brokers refuse of it, or keep
    waiting, hinders no trade, and is sent again a minute later.

    It outlives the `KafkaTopic` that it stands beside: after a lost connection the next one is told only what is new,
    and what was not acknowledged.
    """

    def __init__(self, settings: KafkaSettings, topic: str, password: str | None, root: str, layout: Layout) -> None:
        """`layout`: whose coverage it is."""
        options = _producer_options(settings, password)
        # Without the guarantee of the trades, a message that is refused is no end of all others.
        self._options: dict[str, object] = {**options, "enable.gapless.guarantee": "false"}
        self._topic = topic
        self._root = root
        self._days = CoverageDays(layout, datetime.now(UTC) - NEWEST, None)
        self._received_us = 0
        self._producer: Producer | None = None
        self._pending: list[tuple[date, pa.Table]] = []
        """The dates that are on their way, until all of their messages are acknowledged."""
        self._waiting = 0
        self._fault: KafkaError | None = None
        self._told = ""
        self._next_s = 0.0

    def segment_ended(self) -> None:
        """There is news, as of every segment."""
        self._days.segment_ended()

    def tick(self, now_s: float, received_us: int) -> None:
        """Send what is due. `received_us`: the receipt of the newest trade that was acknowledged."""
        self._received_us = max(self._received_us, received_us)
        if self._producer is not None:
            self._producer.flush(_FAREWELL_S) if math.isinf(now_s) else self._producer.poll(0)
        if self._waiting or now_s < self._next_s:
            return
        if self._fault is not None:
            self._give_up(self._fault, now_s)
            return
        if self._producer is None:
            self._producer = Producer(self._options, logger=logging.getLogger("librdkafka"))
        elif self._pending:
            self._pending = []  # all of it was acknowledged
            self._told = ""
        self._pending = self._pending or list(self._days.due(self._received_us, now_s))
        try:
            for key, value in (message for one in self._pending for message in encode_coverage(self._root, *one)):
                self._producer.produce(self._topic, value, key, on_delivery=self._note_delivery)
                self._waiting += 1
        except BufferError:
            self._fault = KafkaError(KafkaError._QUEUE_FULL)  # noqa: SLF001  the code's public name
        except KafkaException as error:
            self._fault = error.args[0]

    def close(self) -> None:
        """Wait for what is on its way, for a second; what is not acknowledged then is sent again by the next tick."""
        if self._producer is None:
            return
        with suppress(KafkaException):
            self._producer.flush(_FAREWELL_S)
        if not self._waiting and self._fault is None:
            self._pending = []
        self._producer.purge()
        with suppress(KafkaException):
            self._producer.flush(0)  # what was purged is told
        self._producer, self._fault, self._waiting = None, None, 0

    def _give_up(self, fault: KafkaError, now_s: float) -> None:
        """After a refusal: once for each that is new, say so; a new producer sends the same date in a minute."""
        if self._producer is not None:
            self._producer.purge()
        if fault.str() != self._told:
            self._told = fault.str()
            log.warning("kafka.coverage_refused", error=advise(f"kafka: {self._told}", ADVICE), topic=self._topic)
        self._producer, self._fault, self._next_s = None, None, now_s + _COVERAGE_PAUSE_S

    def _note_delivery(self, error: KafkaError | None, message: Message) -> None:  # noqa: ARG002  librdkafka's signature
        self._waiting -= 1
        self._fault = self._fault or error


def encode_coverage(root: str, day: date, rows: pa.Table) -> Iterable[tuple[bytes, bytes]]:
    """A message per symbol: (key, value). Times are numbers: µs since 1970."""
    told: dict[str, list[dict[str, object]]] = {}
    times = {name: rows.column(name).cast(pa.int64()) for name in ("start", "end")}
    for name, column in times.items():
        rows = rows.set_column(rows.column_names.index(name), name, column)
    for row in rows.to_pylist():
        told.setdefault(row.pop("symbol"), []).append({k: v for k, v in row.items() if v is not None})
    for symbol, intervals in told.items():
        value = {"root": root, "symbol": symbol, "date": day.isoformat(), "intervals": intervals}
        key = f"{root}|{day.isoformat()}|{symbol}"
        yield key.encode(), json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def encode_json(batch: pa.RecordBatch) -> Iterable[tuple[bytes, bytes, Headers]]:
    """A message a trade: (key, value, headers). Times are numbers: ms and µs since 1970."""
    names = batch.schema.names
    columns = [_as_json(column).to_pylist() for column in batch.columns]
    symbol, sequence = names.index("symbol"), names.index("sequence")
    encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
    for row in zip(*columns, strict=True):
        value = encode(dict(zip(names, row, strict=True)))
        yield row[symbol].encode(), value.encode(), [("sequence", str(row[sequence]).encode())]


def encode_arrow(batch: pa.RecordBatch) -> Iterable[tuple[bytes, bytes, Headers]]:
    """A message a symbol, with its trades as an Arrow IPC stream: (key, value, headers)."""
    symbols = batch.column("symbol")
    for symbol in symbols.unique():
        rows = batch.filter(pc.equal(symbols, symbol))
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, rows.schema) as stream:
            stream.write_batch(rows)
        headers: Headers = [
            ("sequence", str(rows.column("sequence")[0].as_py()).encode()),
            ("rows", str(rows.num_rows).encode()),
        ]
        yield symbol.as_py().encode(), sink.getvalue().to_pybytes(), headers


def _as_json(column: pa.Array) -> pa.Array:
    return column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column
