"""Kafka: what the contract of all sinks doesn't say. librdkafka's mock cluster speaks the protocol."""

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event
from typing import Any

import pyarrow as pa
import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, Message, TopicPartition
from confluent_kafka.admin import AdminClient
from journals import make_root, read_events, trades
from recordings import Print, Recording, make_recent, to_us
from servers import KafkaCluster
from sink_contract import EXTRA, ROOT, TOPIC, TopicReader, fill_journal
from structlog.testing import capture_logs

from ingestor.config.sections import KafkaSettings, SinkSettings
from ingestor.errors import SinkUnavailable
from ingestor.journal.follower import Rows, SegmentEnd
from ingestor.journal.records import Cursor
from ingestor.layout import Layout, list_segments
from ingestor.sinks.destinations import make_external_workers
from ingestor.sinks.kafka_topic import CoverageTopic, KafkaTopic, encode_arrow, encode_json, patience_s

QUICK = {"message.timeout.ms": "2000", "socket.timeout.ms": "1000", "reconnect.backoff.max.ms": "100"}
COVERAGE = "coverage.test"
FIRST = 1 << 40
START = Cursor(0, 0)


@pytest.fixture
def cluster() -> Iterator[KafkaCluster]:
    made = KafkaCluster()
    yield made
    made.close()


def open_topic(cluster: KafkaCluster, start: Cursor = START, **more: object) -> KafkaTopic:
    settings = KafkaSettings.model_validate({"brokers": cluster.brokers, "options": QUICK, **more})
    return KafkaTopic(settings, TOPIC, None, ROOT, start)


def rows_of(layout: Layout) -> list[Rows]:
    return [event for event in read_events(layout) if isinstance(event, Rows)]


def read_messages(cluster: KafkaCluster) -> list[Message]:
    """Of the trades, in their order."""
    return sorted(read_topic(cluster, TOPIC), key=lambda message: int(headers_of(message)["sequence"]))


def read_topic(cluster: KafkaCluster, topic: str) -> list[Message]:
    """In the order of each partition."""
    consumer = Consumer(
        {
            "bootstrap.servers": cluster.brokers,
            "group.id": "test",
            "enable.partition.eof": True,
            "fetch.wait.max.ms": 10,
        }
    )
    found = []
    for number in consumer.list_topics(topic, 30).topics[topic].partitions:
        consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING)])
        while (message := consumer.poll(30)) is not None and not message.error():
            found.append(message)
    consumer.close()
    return found


def headers_of(message: Message) -> dict[str, str]:
    headers: Any = message.headers()  # as pairs, though its types leave a mapping open
    return {name: value.decode() for name, value in headers}


class TestEncoding:
    def test_a_trade_as_json(self) -> None:
        ((key, value, headers),) = encode_json(trades(FIRST, 1))
        assert key == b"BINANCE:BTCUSDT"
        assert json.loads(value) == {
            "timestamp": 1795176000000, "symbol": "BINANCE:BTCUSDT", "price": 107.76, "volume": 2.0, "conditions": "",
            "received_at": 1795176000000000, "sequence": FIRST, "repeated": False,
        }  # fmt: skip
        assert headers == [("sequence", str(FIRST).encode())]

    def test_a_price_is_the_same_float(self) -> None:
        prices = [0.1, 1e-9, 123456789.123456789, 5e-324]
        batch = trades(FIRST, 4).set_column(2, "price", pa.array(prices))
        assert [json.loads(value)["price"] for _, value, _ in encode_json(batch)] == prices

    def test_the_trades_of_a_symbol_as_arrow(self) -> None:
        batch = trades(FIRST, 9)
        messages = list(encode_arrow(batch))
        tables = [pa.ipc.open_stream(value).read_all() for _, value, _ in messages]
        assert pa.concat_tables(tables).sort_by("sequence").equals(pa.Table.from_batches([batch]))
        for (key, _, headers), table in zip(messages, tables, strict=True):
            assert set(table["symbol"].to_pylist()) == {key.decode()}
            assert dict(headers) == {"sequence": str(table["sequence"][0]).encode(), "rows": b"3"}


class TestBasic:
    def test_every_message_names_its_root_and_its_number(self, tmp_path: Path, cluster: KafkaCluster) -> None:
        layout = make_root(tmp_path)
        fill_journal(layout, 1, 1, 4, schema=EXTRA)
        sink = open_topic(cluster)
        sink.write(rows_of(layout)[0])
        sink.tick(0.0)
        sink.close()
        messages = read_messages(cluster)
        assert [headers_of(one) for one in messages] == [
            {"sequence": str(FIRST + index), "root": ROOT} for index in range(4)
        ]
        assert {(one.key(), one.partition()) for one in messages} == {
            (messages[index].key(), messages[index].partition()) for index in range(3)
        }, "a symbol has one partition"
        assert json.loads(messages[0].value() or b"")["side"] == "buy"

    def test_arrow(self, tmp_path: Path, cluster: KafkaCluster) -> None:
        layout = make_root(tmp_path)
        truth = fill_journal(layout, 1, 2, 30)
        sink = open_topic(cluster, values="arrow")
        for rows in rows_of(layout):
            sink.write(rows)
        sink.tick(0.0)
        sink.close()
        tables = [pa.ipc.open_stream(one.value() or b"").read_all() for one in read_messages(cluster)]
        assert pa.concat_tables(tables).sort_by("sequence").equals(truth)

    def test_the_cursor_moves_after_the_acknowledgement(self, tmp_path: Path, cluster: KafkaCluster) -> None:
        layout = make_root(tmp_path)
        fill_journal(layout, 1, 2, 10)
        first, second = rows_of(layout)
        sink = open_topic(cluster, Cursor(1, 8))
        assert sink.committed() == Cursor(1, 8)
        sink.write(first)
        assert sink.committed() == Cursor(1, 8)
        sink.tick(0.0)
        assert sink.committed() == first.at
        cluster.kill()
        sink.write(second)
        with pytest.raises(SinkUnavailable, match="kafka"):
            sink.tick(0.0)
        assert sink.committed() == first.at
        sink.close()
        cluster.start()


class TestOrder:
    @pytest.mark.long
    def test_what_waited_too_long_is_not_overtaken(self, tmp_path: Path, cluster: KafkaCluster) -> None:
        """The brokers come back when the first rows have waited longer than the sink waits, and the second not yet."""
        layout = make_root(tmp_path)
        fill_journal(layout, 1, 2, 10)
        first, second = rows_of(layout)
        with read_in_order(cluster) as reader:
            sink = open_topic(cluster, options={**QUICK, "message.timeout.ms": "4000"})
            cluster.kill()
            sink.write(first)
            time.sleep(2.5)  # the fault's own moment: nothing is waited for
            sink.write(second)
            time.sleep(2.5)
            cluster.start()
            finish(cluster, sink, first, second)
            check_order(reader)

    def test_what_is_refused_for_good_is_not_overtaken(self, tmp_path: Path, cluster: KafkaCluster) -> None:
        """As where a right to write is taken away for a moment."""
        layout = make_root(tmp_path)
        fill_journal(layout, 1, 2, 10)
        first, second = rows_of(layout)
        with read_in_order(cluster) as reader:
            sink = open_topic(cluster)
            cluster.refuse(KafkaError.TOPIC_AUTHORIZATION_FAILED)
            sink.write(first)
            time.sleep(0.5)  # the fault's own moment: nothing is waited for
            with suppress(SinkUnavailable):
                sink.write(second)
            finish(cluster, sink, first, second)
            check_order(reader)


@contextmanager
def read_in_order(cluster: KafkaCluster) -> Iterator[TopicReader]:
    cluster.create(TOPIC)
    with closing(TopicReader(cluster.brokers, TOPIC)) as reader:
        yield reader


def finish(cluster: KafkaCluster, sink: KafkaTopic, *events: Rows) -> None:
    """To the end of a life, and what that left to the next."""
    with suppress(SinkUnavailable):
        sink.tick(0.0)
    place = sink.committed()
    sink.close()
    again = open_topic(cluster, place)
    for rows in events:
        if rows.at > place:
            again.write(rows)
    again.tick(0.0)
    again.close()


def check_order(reader: TopicReader) -> None:
    """All 20 rows are there, and each symbol's came for the first time in their order."""
    messages = reader.read_to_end()
    for symbol in {message.key() for message in messages}:
        sequences = [int(headers_of(message)["sequence"]) for message in messages if message.key() == symbol]
        assert (firsts := list(dict.fromkeys(sequences))) == sorted(firsts)
    assert len({headers_of(message)["sequence"] for message in messages}) == 20


class TestPatience:
    def test_a_full_queue_is_not_waited_for_for_ever(self, tmp_path: Path, cluster: KafkaCluster) -> None:
        layout = make_root(tmp_path)
        fill_journal(layout, 1, 1, 10)
        sink = open_topic(cluster, options={**QUICK, "queue.buffering.max.messages": "5"})
        cluster.kill()
        with pytest.raises(SinkUnavailable, match="5 messages are not acknowledged"):
            sink.write(rows_of(layout)[0])
        sink.close()
        cluster.start()

    @pytest.mark.parametrize(
        ("options", "expected_s"),
        [
            ({}, 30.0),
            ({"message.timeout.ms": "500"}, 0.5),
            ({"delivery.timeout.ms": "500"}, 0.5),
            ({"message.timeout.ms": "0"}, 30.0),
        ],
    )
    def test_how_long(self, options: dict[str, str], expected_s: float) -> None:
        assert patience_s(options) == expected_s


class TestCoverage:
    """In a topic of its own, by date and symbol."""

    @pytest.fixture
    def recording(self, tmp_path: Path) -> Recording:
        return make_recent(tmp_path / "data")

    def open(self, cluster: KafkaCluster, recording: Recording, coverage: CoverageTopic | None = None) -> KafkaTopic:
        settings = KafkaSettings.model_validate({"brokers": cluster.brokers, "options": {**QUICK, "linger.ms": "1"}})
        coverage = coverage or CoverageTopic(settings, COVERAGE, None, ROOT, recording.layout)
        return KafkaTopic(settings, TOPIC, None, ROOT, START, coverage)

    def told(self, cluster: KafkaCluster) -> dict[str, Any]:
        """The last value of each key, as a compacted topic keeps it."""
        return {(one.key() or b"").decode(): json.loads(one.value() or b"") for one in read_topic(cluster, COVERAGE)}

    def test_it_stands_beside_the_trades_and_follows_the_ledger(
        self, recording: Recording, cluster: KafkaCluster
    ) -> None:
        cluster.create(COVERAGE)
        first, second = (str(datetime.now(UTC).date() - timedelta(days)) for days in (2, 1))
        with closing(self.open(cluster, recording)) as sink:
            for rows in rows_of(recording.layout):
                sink.write(rows)
            tick_until(sink, lambda: len(self.told(cluster)) == 2)
            assert self.told(cluster)[f"{ROOT}|{first}|A"] == {
                "root": ROOT, "symbol": "A", "date": first,
                "intervals": [{"state": "recorded", "start": to_us(f"{first}T00:00"), "end": to_us(f"{second}T00:00")}],
            }  # fmt: skip
            since, until = to_us(f"{first}T23:00"), to_us(f"{second}T01:00")
            recording.fact("gap.opened", f"{second}T00:30", gap="1", cause="stall", since=since, symbol=None)
            recording.fact("gap.closed", f"{second}T01:00", gap="1", cause="stall", until=until, symbol=None)
        with closing(self.open(cluster, recording)) as sink:  # the next start
            for rows in rows_of(recording.layout):
                sink.write(rows)
            tick_until(sink, lambda: "stall" in json.dumps(self.told(cluster)[f"{ROOT}|{second}|A"]))
        pieces = self.told(cluster)[f"{ROOT}|{first}|A"]["intervals"]
        assert [(one["state"], one.get("cause")) for one in pieces] == [("recorded", None), ("blind", "stall")]

    def test_the_last_tick_before_a_stop_sends_the_newest_date_too(
        self, recording: Recording, cluster: KafkaCluster
    ) -> None:
        cluster.create(COVERAGE)
        with closing(self.open(cluster, recording)) as sink:
            for rows in rows_of(recording.layout):
                sink.write(rows)
            tick_until(sink, lambda: len(self.told(cluster)) == 2)
            recording.write(Print(f"{datetime.now(UTC).date()}T00:00", "A", 1, 1))
            *_, rows = rows_of(recording.layout)
            sink.write(rows)
            sink.end_segment(SegmentEnd(list_segments(recording.layout)[-1].id, rows.at))
            sink.tick(math.inf)
        assert len(self.told(cluster)) == 3

    def test_what_brokers_refuse_of_it_hinders_no_trade_and_is_sent_again(
        self, recording: Recording, cluster: KafkaCluster
    ) -> None:
        cluster.create(COVERAGE)
        with closing(self.open(cluster, recording)) as sink, capture_logs() as logs:
            (rows,) = rows_of(recording.layout)
            sink.write(rows)
            sink.tick(0.0)
            cluster.refuse(KafkaError.TOPIC_AUTHORIZATION_FAILED)
            tick_until(sink, lambda: bool(logs))
            assert [(one["event"], one["topic"]) for one in logs] == [("kafka.coverage_refused", COVERAGE)]
            assert "let its user write to the topic" in logs[0]["error"]
            assert sink.committed() == rows.at
            assert not self.told(cluster)
            tick_until(sink, lambda: len(self.told(cluster)) == 2, now_s=61.0)
        assert len(logs) == 1

    def test_a_lost_connection_is_no_reason_to_send_it_all_again(
        self, recording: Recording, cluster: KafkaCluster
    ) -> None:
        cluster.create(COVERAGE)
        recording.write(Print(f"{datetime.now(UTC).date()}T00:00", "A", 1, 1))
        first, second = rows_of(recording.layout)
        settings = KafkaSettings.model_validate({"brokers": cluster.brokers, "options": {**QUICK, "linger.ms": "1"}})
        coverage = CoverageTopic(settings, COVERAGE, None, ROOT, recording.layout)
        with closing(self.open(cluster, recording, coverage)) as sink:
            sink.write(first)
            tick_until(sink, lambda: len(read_topic(cluster, COVERAGE)) == 2)
        with closing(self.open(cluster, recording, coverage)) as sink:
            for _ in range(40):  # a date per tick
                sink.tick(0.0)
            cluster.kill()
            coverage.segment_ended()  # news of the date that the trades have reached, of which no broker hears
            sink.tick(0.0)
            sink.write(second)
            with pytest.raises(SinkUnavailable):
                sink.tick(0.0)
        cluster.start()
        assert len(read_topic(cluster, COVERAGE)) == 2
        with closing(self.open(cluster, recording, coverage)) as sink:
            tick_until(sink, lambda: len(read_topic(cluster, COVERAGE)) == 3)

    @pytest.mark.parametrize(
        ("named", "topics"),
        [
            ("null", {"trades.finnhub", "coverage.finnhub"}),
            ("mine", {"trades.finnhub", "mine"}),
            ("none", {"trades.finnhub"}),
        ],
    )
    def test_the_topic_that_the_settings_name(
        self, recording: Recording, cluster: KafkaCluster, named: str, topics: set[str]
    ) -> None:
        kafka = {"brokers": cluster.brokers, "options": QUICK, "coverage_topic": named}
        stop = Event()
        stop.set()
        settings = SinkSettings.model_validate({"kafka": kafka})
        (worker,) = make_external_workers(settings, recording.layout, "finnhub", {}, stop)
        worker.run()
        assert set(AdminClient({"bootstrap.servers": cluster.brokers}).list_topics(timeout=30).topics) == topics
        assert {name: bool(read_topic(cluster, name)) for name in topics} == dict.fromkeys(topics, True)


def tick_until(sink: KafkaTopic, done: Callable[[], bool], now_s: float = 0.0) -> None:
    """As a worker would that has nothing else to do."""
    deadline_s = time.monotonic() + 30
    while not done():
        assert time.monotonic() < deadline_s
        sink.tick(now_s)


class TestOptions:
    def test_any_option_of_librdkafka(self, cluster: KafkaCluster) -> None:
        open_topic(cluster, options={"compression.type": "lz4", "linger.ms": "5", "acks": "all"}).close()

    @pytest.mark.parametrize(
        ("name", "value"), [("nope", "1"), ("batch.size", "large"), ("acks", "0"), ("message.timeout.ms", "soon")]
    )
    def test_one_that_it_refuses(self, cluster: KafkaCluster, name: str, value: str) -> None:
        with pytest.raises(SinkUnavailable, match=name):
            open_topic(cluster, options={name: value})

    def test_the_password_is_handed_over_and_never_told(self) -> None:
        options = {"security.protocol": "sasl_ssl", "sasl.mechanism": "PLAIN", "sasl.username": "me"}
        settings = KafkaSettings(options=options)
        KafkaTopic(settings, TOPIC, "a password", ROOT, Cursor(0, 0)).close()
        with pytest.raises(SinkUnavailable) as caught:
            KafkaTopic(KafkaSettings(options={**options, "nope": "1"}), TOPIC, "a password", ROOT, Cursor(0, 0))
        assert "a password" not in str(caught.value)
