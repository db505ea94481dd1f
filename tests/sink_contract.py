"""Each kind of sink with its real destination, for the tests that hold for all of them: how it is carried to, how its
process crashes, how its destination goes away and comes back, and what a reader finds there.
"""

import gc
import json
import sqlite3
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition
from journals import (
    NOON,
    Crash,
    Crashed,
    Holder,
    block,
    drain,
    first_sequence,
    make_journal,
    make_ledger,
    make_root,
    trades,
)
from pyarrow import fs as pafs
from servers import PATIENCE_S, KafkaCluster, LossyKafka, PostgresServer, RedisServer, S3Server, wait_until

from ingestor.config.sections import KafkaSettings, PostgresSettings, RedisSettings
from ingestor.journal.follower import Follower
from ingestor.journal.records import Cursor
from ingestor.layout import Layout
from ingestor.schema import TRADES
from ingestor.sinks import Sink
from ingestor.sinks.csv_files import CsvFiles
from ingestor.sinks.destinations import ExternalWorker, deliver
from ingestor.sinks.kafka_topic import KafkaTopic
from ingestor.sinks.object_store import ObjectStore
from ingestor.sinks.parquet_files import ParquetFiles
from ingestor.sinks.postgres_db import PostgresDatabase
from ingestor.sinks.redis_db import RedisStreams
from ingestor.sinks.retention_slots import read_place
from ingestor.sinks.runner import Runner
from ingestor.sinks.sqlite_db import SqliteDatabase

EXTRA = pa.schema([*TRADES, pa.field("trade_id", pa.int64()), pa.field("side", pa.string())])
"""As a feed that appends columns of its own."""
ROOT = "the root of a test"
TOPIC = "trades.finnhub"
_MARK = b"the end until now"
_AWAY = (KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN)
"""What a reader hears while brokers are killed."""


def fill_journal(
    layout: Layout, segments: int, records: int, rows: int, *, run: int = 1, schema: pa.Schema = TRADES
) -> pa.Table:
    """A journal of so many segments that have ended, of so many records of so many rows: the truth."""
    journal = make_journal(layout, run, (run - 1) * 1000 + 1, schema=schema, clock=lambda: NOON)
    journal.close()
    batches, sequence = [], first_sequence(run)
    for segment in range(segments):
        number = (run - 1) * 1000 + 2 + segment
        journal = make_journal(layout, run, number, schema=schema, clock=lambda: NOON)
        for _ in range(records):
            batch = _with_extras(trades(sequence, rows), schema)
            journal.append(block(batch))
            batches.append(batch)
            sequence += rows
        journal.close()
    return pa.Table.from_batches(batches)


def _with_extras(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    extras = {"trade_id": batch["sequence"], "side": pa.array(["buy", None] * batch.num_rows)[: batch.num_rows]}
    columns = [*batch.columns, *(extras[name] for name in schema.names[len(batch.schema) :])]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


class Destination(ABC):
    """One kind of sink with its destination."""

    name: str
    exactly_once = True
    in_segments = False
    """It has the rows of a segment only when that is complete."""

    @abstractmethod
    def open(self, layout: Layout, start: Cursor) -> Sink:
        """The sink, as a process opens it when it starts."""

    @abstractmethod
    def rows(self) -> pa.Table:
        """What a reader finds: `sequence`, `symbol`, `price`, and a feed's own columns, in the order in which each
        symbol's came.
        """

    @abstractmethod
    def kill(self) -> None:
        """From now on the destination refuses everything."""

    @abstractmethod
    def start(self) -> None:
        """It is as before again."""

    def close(self) -> None:
        """Let go what runs."""
        return

    def carry(self, layout: Layout) -> None:
        """All that is synced, in a life that ends in order."""
        stop = threading.Event()
        stop.set()
        self.worker(layout, stop).run()

    def worker(self, layout: Layout, stop: threading.Event) -> ExternalWorker | Runner:
        """What carries to it until `stop`."""
        return ExternalWorker(layout, self.name, lambda start: self.open(layout, start), stop)

    def crash(self, layout: Layout, events: int, *, ticked: bool) -> None:
        """A life that ends after so many events without another word: before the destination was told to keep them, or
        (`ticked`) right after that, before the place was noted.
        """
        place = read_place(layout, self.name)
        sink = self.open(layout, place)
        follower = Follower(layout, sink.committed(), synced_only=True)
        for event in islice(follower.read(), events):
            deliver(sink, event)
        if ticked:
            sink.tick(0.0)
        follower.close()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            del sink
            gc.collect()  # as the kernel would: what the process had open is closed


class FileDestination(Destination):
    """A sink of the recorder's own process, carried to by its Runner."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._runs = 0

    def carry(self, layout: Layout) -> None:
        drain(layout, [self.open(layout, Cursor(0, 0))])

    def worker(self, layout: Layout, stop: threading.Event) -> ExternalWorker | Runner:
        return Runner(layout, [self.open(layout, Cursor(0, 0))], stop)

    def crash(self, layout: Layout, events: int, *, ticked: bool) -> None:
        crash = Crash(events, 0)
        sink = self.open(layout, Cursor(0, 0))
        with suppress(Crashed):
            drain(layout, [crash, sink])
        if ticked:
            sink.tick(0.0)

    def folder(self) -> Path:
        return self._layout.root / self.name

    def kill(self) -> None:
        folder = self.folder()
        if folder.exists():
            folder.rename(folder.with_suffix(".away"))
        folder.symlink_to(folder.with_suffix(".not-mounted"))

    def start(self) -> None:
        folder = self.folder()
        folder.unlink()
        if (away := folder.with_suffix(".away")).exists():
            away.rename(folder)


class Parquet(FileDestination):
    name = "parquet"
    in_segments = True

    def folder(self) -> Path:
        return self._layout.trades

    def open(self, layout: Layout, start: Cursor) -> Sink:
        self._runs += 1
        return ParquetFiles(layout, make_ledger(layout, self._runs))

    def rows(self) -> pa.Table:
        files = sorted(self._layout.trades.rglob("*.parquet"))
        return _pick(pa.concat_tables([pq.ParquetFile(path).read() for path in files]).sort_by("sequence"))


class Csv(FileDestination):
    name = "csv"

    def open(self, layout: Layout, start: Cursor) -> Sink:
        return CsvFiles(layout)

    def rows(self) -> pa.Table:
        files = sorted(self._layout.csv.rglob("*.csv"), key=lambda path: path.name)
        return _pick(pa.concat_tables([pacsv.read_csv(path) for path in files]))


class Sqlite(Destination):
    name = "sqlite"

    def __init__(self, folder: Path) -> None:
        self.path = folder / "trades.sqlite"

    def open(self, layout: Layout, start: Cursor) -> Sink:
        return SqliteDatabase(self.path, ROOT, layout)

    def rows(self) -> pa.Table:
        with closing(sqlite3.connect(self.path)) as database:
            cursor = database.execute("SELECT * FROM trades ORDER BY rowid")
            names = [column[0] for column in cursor.description]
            found = [dict(zip(names, row, strict=True)) for row in cursor]
        return _pick(pa.Table.from_pylist(found))

    def kill(self) -> None:
        """Somebody else writes, and doesn't come to an end."""
        self._writer = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        self._writer.execute("PRAGMA journal_mode = WAL")
        self._writer.execute("BEGIN IMMEDIATE")

    def start(self) -> None:
        self._writer.close()


class Postgres(Destination):
    name = "postgres"

    def __init__(self) -> None:
        self.server = PostgresServer()
        self.use_schema("public")

    def use_schema(self, name: str, partition: Literal["none", "day"] = "none") -> None:
        self.settings = PostgresSettings(url=self.server.url, schema_name=name, partition=partition)

    def open(self, layout: Layout, start: Cursor) -> Sink:
        return PostgresDatabase(self.settings, self.server.password, ROOT, layout)

    def rows(self) -> pa.Table:
        return _pick(self.server.select("SELECT * FROM trades ORDER BY sequence", self.settings.schema_name))

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        return [tuple(row.values()) for row in self.server.select(sql, self.settings.schema_name).to_pylist()]

    def kill(self) -> None:
        self.server.kill()

    def start(self) -> None:
        self.server.start()

    def close(self) -> None:
        self.server.close()


class Redis(Destination):
    name = "redis"

    def __init__(self, folder: Path) -> None:
        self.server = RedisServer(folder)
        self.settings = RedisSettings(url=self.server.url, stream_max=1 << 30)

    def open(self, layout: Layout, start: Cursor) -> Sink:
        return RedisStreams(self.settings, None, ROOT, layout)

    def rows(self) -> pa.Table:
        found = []
        client: Any = self.server.client  # its types leave open whether answers are decoded
        for stream in sorted(client.scan_iter("trades:*", 1000)):
            for identity, fields in client.xrange(stream):
                symbol, sequence = stream.removeprefix("trades:"), int(identity.partition("-")[0])
                found.append({**fields, "symbol": symbol, "sequence": sequence})
        return _pick(pa.Table.from_pylist(found))

    def kill(self) -> None:
        self.server.kill()

    def start(self) -> None:
        self.server.start()

    def close(self) -> None:
        self.server.close()


class Kafka(Destination):
    name = "kafka"
    exactly_once = False

    def __init__(
        self,
        values: Literal["json", "arrow"] = "json",
        cluster: KafkaCluster | LossyKafka | None = None,
        **options: str,
    ) -> None:
        with ExitStack() as started:
            self.cluster = started.enter_context(closing(cluster or KafkaCluster()))
            self.cluster.create(TOPIC)
            self._reader = started.enter_context(closing(TopicReader(self.cluster.brokers, TOPIC)))
            self._running = started.pop_all()
        self.settings = KafkaSettings(
            brokers=self.cluster.brokers,
            values=values,
            options={
                "message.timeout.ms": "2000",
                "socket.timeout.ms": "1000",
                "reconnect.backoff.max.ms": "200",
                **options,
            },
        )

    def open(self, layout: Layout, start: Cursor) -> Sink:
        return KafkaTopic(self.settings, TOPIC, None, ROOT, start)

    def rows(self) -> pa.Table:
        rows: list[dict[str, Any]] = []
        for message in self._reader.read_to_end():
            key, value, headers = message.key().decode(), message.value(), dict(message.headers())
            read = [json.loads(value)] if self.settings.values == "json" else _read_stream(value)
            assert (read[0]["sequence"], {row["symbol"] for row in read}) == (int(headers["sequence"]), {key})
            rows += read
        return _pick(pa.Table.from_pylist(rows))

    def kill(self) -> None:
        self.cluster.kill()

    def start(self) -> None:
        self.cluster.start()

    def close(self) -> None:
        self._running.close()


class Mirror(Destination):
    """A mirror of what Parquet publishes."""

    name = "object_store"
    in_segments = True

    def __init__(self, layout: Layout, folder: Path) -> None:
        self.uri = str(folder / "mirror")
        self._parquet = Parquet(layout)
        self._folder = folder

    def open(self, layout: Layout, start: Cursor) -> Sink:
        return ObjectStore(self.uri, layout, ROOT)

    def carry(self, layout: Layout) -> None:
        seal(layout, self._parquet)
        super().carry(layout)

    def worker(self, layout: Layout, stop: threading.Event) -> ExternalWorker | Runner:
        seal(layout, self._parquet)
        return super().worker(layout, stop)

    def rows(self) -> pa.Table:
        return _pick(read_store(self.uri).sort_by("sequence"))

    def kill(self) -> None:
        place = Path(self.uri)
        if place.exists():
            place.rename(place.with_suffix(".away"))
        place.write_text("in the way")

    def start(self) -> None:
        place = Path(self.uri)
        place.unlink()
        if (away := place.with_suffix(".away")).exists():
            away.rename(place)


class S3(Mirror):
    """The same on a real S3 server."""

    def __init__(self, layout: Layout, folder: Path) -> None:
        super().__init__(layout, folder)
        self.server = S3Server(folder)
        self.uri = self.server.uri

    def kill(self) -> None:
        self.server.kill()

    def start(self) -> None:
        self.server.start()

    def close(self) -> None:
        self.server.close()


def seal(layout: Layout, parquet: Parquet) -> None:
    """Publish the segments that have ended; the journal keeps them."""
    drain(layout, [Holder(), parquet.open(layout, Cursor(0, 0))])


def read_store(uri: str) -> pa.Table:
    """All files of a mirror, read as any engine would: the hive folders, what begins with a dot left out."""
    if "://" in uri:
        files, base = pafs.FileSystem.from_uri(uri)
    else:
        files, base = pafs.LocalFileSystem(), uri
    selector = pafs.FileSelector(base, recursive=True, allow_not_found=True)
    paths = [found.path for found in files.get_file_info(selector) if found.path.endswith(".parquet")]
    return pa.concat_tables([pq.read_table(path, filesystem=files, partitioning=None) for path in sorted(paths)])


def _read_stream(value: bytes) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pa.ipc.open_stream(value).read_all().to_pylist()
    return rows


class TopicReader:
    """Reads a topic while it grows, in a thread of its own: a mock broker keeps no more than the last 5 MB of a
    partition, so whoever comes when all is written may find the beginning gone.
    """

    def __init__(self, brokers: str, topic: str) -> None:
        self._brokers, self._topic = brokers, topic
        self._consumer = Consumer(
            {
                "bootstrap.servers": brokers,
                "group.id": "test",
                "enable.auto.commit": "false",  # the broker that keeps the group's places may be the one that is lost
                "auto.offset.reset": "error",  # and not in silence what is left
                "fetch.wait.max.ms": 10,
                "reconnect.backoff.max.ms": 200,
            }
        )
        try:
            self._partitions = set(self._consumer.list_topics(topic, PATIENCE_S).topics[topic].partitions)
            assert self._partitions, f"no topic {topic}"
        except BaseException:
            self._consumer.close()
            raise
        self._consumer.assign([TopicPartition(topic, number, 0) for number in self._partitions])
        self._messages: list[Any] = []  # their types leave open that each has a key, a value and headers
        self._marks: set[tuple[int | None, bytes | None]] = set()
        self._readings = 0
        self._faults: list[str] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._read, name="topic reader")
        self._thread.start()

    def read_to_end(self) -> list[Any]:
        """All messages that the topic has had until now, in each partition's order."""
        self._leave_off()
        self._readings += 1
        marks = self._mark_ends(str(self._readings).encode())
        wait_until(lambda: self._has_read(marks), "the end of the topic")
        return self._messages

    def close(self) -> None:
        self._leave_off()
        self._consumer.close()

    def _leave_off(self) -> None:
        self._ended.set()
        self._thread.join()

    def _read(self) -> None:
        while not self._ended.is_set():
            self._take()

    def _mark_ends(self, name: bytes) -> set[tuple[int, bytes]]:
        """A message of this name at the end of each partition. The offset that a broker calls its end is no such mark:
        tansu's is where its last batch begins.
        """
        producer = Producer({"bootstrap.servers": self._brokers})
        for number in self._partitions:
            producer.produce(self._topic, name, _MARK, partition=number)
        assert not producer.flush(PATIENCE_S), f"no mark at the end of {self._topic}"
        return {(number, name) for number in self._partitions}

    def _has_read(self, marks: set[tuple[int, bytes]]) -> bool:
        self._take()
        assert not self._faults, self._faults
        return marks <= self._marks

    def _take(self) -> None:
        for message in self._consumer.consume(1000, 0.05):
            error = message.error()
            if error is None and message.key() == _MARK:
                self._marks.add((message.partition(), message.value()))
            elif error is None:
                self._messages.append(message)
            elif error.code() not in _AWAY:
                self._faults.append(error.str())


def _pick(table: pa.Table) -> pa.Table:
    names = ["sequence", "symbol", "price", *[name for name in ("trade_id", "side") if name in table.column_names]]
    types = {"sequence": pa.int64(), "symbol": pa.string(), "price": pa.float64(), "trade_id": pa.int64()}
    columns = [table[name].cast(types.get(name, pa.string())) for name in names]
    picked = pa.table(columns, names=names)
    if "side" in names:  # in CSV null and empty read alike
        picked = picked.set_column(4, "side", pc.fill_null(picked["side"], ""))
    return picked


def check(destination: Destination, truth: pa.Table) -> int:
    """What is there is the truth, under the sink's guarantee; how many rows are repeats."""
    found = destination.rows()
    expected = _pick(truth)
    for symbol in pc.unique(expected["symbol"]).to_pylist():
        arrived = found.filter(pc.equal(found["symbol"], symbol))["sequence"].to_pylist()
        sent = expected.filter(pc.equal(expected["symbol"], symbol))["sequence"].to_pylist()
        firsts = list(dict.fromkeys(arrived))
        assert firsts == sent, f"{symbol}: {len(firsts)} of {len(sent)} rows, or in another order"
    names = expected.column_names
    once = found.group_by(names).aggregate([]).select(names).sort_by("sequence")
    assert once.equals(expected), "the rows themselves differ"
    repeats: int = found.num_rows - expected.num_rows
    assert not (destination.exactly_once and repeats), f"{repeats} rows are there twice"
    return repeats


@contextmanager
def destination_of(kind: str, folder: Path) -> Iterator[tuple[Destination, Layout]]:
    """A destination of this kind, and a root."""
    layout = make_root(folder / "root")
    place = folder / "place"
    place.mkdir()
    made: Destination
    match kind:
        case "parquet":
            made = Parquet(layout)
        case "csv":
            made = Csv(layout)
        case "sqlite":
            made = Sqlite(place)
        case "postgres":
            made = Postgres()
        case "redis":
            made = Redis(place)
        case "kafka":
            made = Kafka()
        case "kafka, arrow":
            made = Kafka("arrow")
        case "tansu":
            made = Kafka(cluster=LossyKafka())
        case "directory":
            made = Mirror(layout, place)
        case _:
            made = S3(layout, place)
    try:
        yield made, layout
    finally:
        made.close()


KINDS = ("parquet", "csv", "sqlite", "postgres", "redis", "kafka", "directory", "s3")
