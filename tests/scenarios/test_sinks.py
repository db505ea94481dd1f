"""Every sink at once, with its real server, at full speed, all of them killed twice: each ends with the truth under
its guarantee, and the recorder notices nothing. And Kafka's with a broker whose answers are lost: no row is there
twice.
"""

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from harness import (
    Recorder,
    Site,
    Tally,
    compare,
    read_facts,
    read_gaps,
    read_parquet,
    rounds,
    running_venue,
    wait_for,
)
from journals import make_root
from recordings import Recording, to_us
from servers import KafkaCluster, LossyKafka, PostgresServer, RedisServer, S3Server
from sink_contract import (
    ROOT,
    Destination,
    Kafka,
    Postgres,
    Redis,
    Sqlite,
    TopicReader,
    check,
    fill_journal,
    read_store,
)

from ingestor.config.sections import KafkaSettings
from ingestor.journal.records import Cursor
from ingestor.layout import Layout, list_segments
from ingestor.operations.recorder_status import read_status
from ingestor.sinks.kafka_topic import CoverageTopic
from ingestor.sinks.retention_slots import Lags, read_place

pytestmark = pytest.mark.alone

TRADES_SENT = 100_000
RATE = 20_000
KILLS = 2
SEALED = 20
"""Segments, while a destination is down."""
CARRIED = ("sqlite", "postgres", "redis", "kafka")


class Elsewhere:
    """Where the trades of one recorder go, and what a reader finds there."""

    def __init__(self, folder: Path) -> None:
        for name in ("redis", "s3"):
            (folder / name).mkdir()
        with ExitStack() as started:
            self.s3 = started.enter_context(closing(S3Server(folder / "s3")))
            postgres = started.enter_context(closing(Postgres()))
            self.redis = redis = started.enter_context(closing(Redis(folder / "redis")))
            self.kafka = kafka = started.enter_context(closing(Kafka()))
            self._running = started.pop_all()
        self.destinations: dict[str, Destination] = {
            "sqlite": Sqlite(folder), "postgres": postgres, "redis": redis, "kafka": kafka,
        }  # fmt: skip
        self.servers: list[RedisServer | PostgresServer | KafkaCluster | LossyKafka | S3Server] = [
            redis.server, postgres.server, kafka.cluster, self.s3,
        ]  # fmt: skip
        self.settings = {
            "sqlite": {"path": str(folder / "trades.sqlite")},
            "postgres": {"url": postgres.server.url},
            "redis": {"url": redis.server.url, "stream_max": 1 << 30},
            "kafka": {"brokers": kafka.settings.brokers, "options": dict(kafka.settings.options)},
            "object_store": {"uri": self.s3.uri},
        }

    def close(self) -> None:
        self._running.close()


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Elsewhere]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("POSTGRES_PASSWORD", PostgresServer.password)
    with closing(Elsewhere(tmp_path)) as made:
        yield made


@pytest.mark.long
@pytest.mark.needs("redis-server", "weed", "postgres")
def test_every_server_killed_twice(tmp_path: Path, elsewhere: Elsewhere, tally: Tally) -> None:
    with running_venue(tmp_path, "--rate", str(RATE)) as venue:
        settings = {"sinks": elsewhere.settings, "storage": {"formats": ["parquet"]}}
        site = Site(tmp_path, tmp_path / "data", venue.url, settings=settings)
        with site.running() as recorder:
            recorder.wait_for_rows()
            for _ in range(KILLS):
                _wait_for_progress(recorder, site.layout)
                _strike(recorder, elsewhere)
                tally.rounds += 1
            recorder.wait_for(lambda: _recorded(site.layout) >= TRADES_SENT, "enough trades")
            truth = venue.stop()
            recorder.wait_for_end_of_stream()
            recorder.wait_for(lambda: _carried(site.layout), "every sink at the journal's end")
            assert recorder.end() == 0
    rows = read_parquet(site.layout)
    comparison = compare(truth, rows)
    tally.rows = rows.num_rows
    tally.lost = len([one for one in comparison.missing if not one.within(read_gaps(site.layout))])
    tally.unexplained = comparison.unexplained(read_gaps(site.layout))
    repeats = {name: check(destination, rows) for name, destination in elsewhere.destinations.items()}
    mirrored = read_store(elsewhere.s3.uri).sort_by("sequence").cast(rows.schema)
    assert mirrored.equals(rows)
    tally.note = f"Kafka repeated {repeats['kafka']}, all others none"
    tally.assert_clean()
    assert tally.rows >= TRADES_SENT
    assert _skipped(site.layout) == []


@pytest.mark.needs("redis-server", "weed", "postgres")
def test_a_recorder_that_is_killed_leaves_no_process_behind(tmp_path: Path, elsewhere: Elsewhere, tally: Tally) -> None:
    with running_venue(tmp_path, "--rate", "2000") as venue:
        settings = {"sinks": elsewhere.settings, "storage": {"formats": ["parquet"]}}
        site = Site(tmp_path, tmp_path / "data", venue.url, settings=settings)
        for _ in range(KILLS):
            with site.running() as recorder:
                _wait_for_progress(recorder, site.layout)
                child = _child(recorder)
                recorder.kill()
            wait_for(partial(_is_gone, child), "the end of its sinks")
            tally.rounds += 1
        with site.running() as recorder:
            _wait_for_progress(recorder, site.layout)
            venue.stop()
            recorder.wait_for_end_of_stream()
            recorder.wait_for(lambda: _carried(site.layout), "every sink at the journal's end")
            assert recorder.end() == 0
    rows = read_parquet(site.layout)
    tally.rows = rows.num_rows
    for destination in elsewhere.destinations.values():
        check(destination, rows)
    with closing(TopicReader(elsewhere.kafka.settings.brokers, "coverage.finnhub")) as reader:
        covered = {json.loads(message.value())["symbol"] for message in reader.read_to_end()}
    assert covered == set(rows["symbol"].to_pylist())
    tally.assert_clean()


@pytest.mark.long
@pytest.mark.needs("redis-server", "weed", "postgres")
def test_a_second_recorder_waits_for_the_sinks_of_the_first(tmp_path: Path, elsewhere: Elsewhere) -> None:
    settings = {"sinks": {"redis": elsewhere.settings["redis"]}, "stop_timeout": "1s"}
    with running_venue(tmp_path, "--rate", "500") as venue:
        site = Site(tmp_path, tmp_path / "data", venue.url, settings=settings)
        with site.running() as first:
            first.wait_for_event("sinks.started")
            first.wait_for(lambda: read_place(site.layout, "redis") > Cursor(0, 0), "something carried")
            stopped = _child(first)
            os.kill(stopped, signal.SIGSTOP)
            first.kill()
        with site.running() as second:
            second.wait_for_event("sinks.waiting")
            os.kill(stopped, signal.SIGCONT)
            wait_for(partial(_is_gone, stopped), "the end of the first one's sinks")
            second.wait_for(lambda: read_place(site.layout, "redis") > _newest(site.layout), "rows of the second run")
            venue.stop()
            second.wait_for_end_of_stream()
            assert second.end() == 0
    check(elsewhere.redis, read_parquet(site.layout))


@pytest.mark.long
@pytest.mark.needs("redis-server", "weed", "postgres")
def test_one_that_is_down_while_many_segments_are_sealed(tmp_path: Path, elsewhere: Elsewhere, tally: Tally) -> None:
    """As an hour is, with segments of 64 KB: nobody waits for it, and it gets everything when it is back."""
    sinks = {name: elsewhere.settings[name] for name in CARRIED}
    settings = {"sinks": sinks, "storage": {"formats": ["parquet"], "rotate": {"age": "1h", "size": "64KB"}}}
    elsewhere.kafka.kill()
    elsewhere.redis.kill()
    with running_venue(tmp_path, "--rate", "4000") as venue:
        site = Site(tmp_path, tmp_path / "data", venue.url, settings=settings)
        with site.running() as recorder:
            recorder.wait_for(lambda: len(list(site.layout.trades.glob("*/*.parquet"))) >= SEALED, "sealed segments")
            recorder.wait_for(lambda: read_place(site.layout, "sqlite").segment > SEALED, "SQLite beside them")
            assert {name: read_place(site.layout, name) for name in ("redis", "kafka")} == {
                name: Cursor(0, 0) for name in ("redis", "kafka")
            }
            elsewhere.kafka.start()
            elsewhere.redis.start()
            recorder.wait_for(lambda: read_place(site.layout, "kafka").segment > SEALED, "Kafka where it was")
            truth = venue.stop()
            recorder.wait_for_end_of_stream()
            recorder.wait_for(lambda: _carried(site.layout), "every sink at the journal's end")
            assert recorder.end() == 0
    rows = read_parquet(site.layout)
    tally.rounds, tally.rows = 1, rows.num_rows
    tally.unexplained = compare(truth, rows).unexplained(read_gaps(site.layout))
    for destination in elsewhere.destinations.values():
        check(destination, rows)
    tally.assert_clean()
    assert _skipped(site.layout) == []


# A database whose carrier is killed, and whose server


@pytest.mark.long
@pytest.mark.needs("postgres")
def test_kills_of_the_process_that_fills_postgres_and_of_its_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tally: Tally
) -> None:
    """At random moments of its work under load. The recorder, too, is killed after five of them: the pause before it
    starts the process again has grown by then.
    """
    monkeypatch.setenv("POSTGRES_PASSWORD", PostgresServer.password)
    moment, servers = random.Random(16), 0
    with closing(Postgres()) as postgres, running_venue(tmp_path, "--rate", "10000") as venue:
        settings = {"sinks": {"postgres": {"url": postgres.server.url}}, "storage": {"formats": ["parquet"]}}
        site = Site(tmp_path, tmp_path / "data", venue.url, settings=settings)
        for _ in range(max(1, rounds() // 20)):
            with site.running() as recorder:
                for number in range(5):
                    old = set(postgres.server.backends)
                    recorder.wait_for(partial(_new_links, postgres.server, old), "a link of its own")
                    time.sleep(moment.uniform(0, 0.5))  # the fault's own moment: nothing is waited for
                    if number == 2:
                        postgres.kill()
                        postgres.start()
                        recorder.wait_for(lambda: postgres.server.backends, "a link to the new server")
                        servers += 1
                    os.kill(recorder.wait_for(lambda: _child(recorder) or None, "its process"), signal.SIGKILL)
                    tally.rounds += 1
                recorder.kill()
        with site.running() as recorder:
            recorder.wait_for_rows()
            venue.stop()
            recorder.wait_for_end_of_stream()
            recorder.wait_for(lambda: Lags(site.layout, ["postgres"]).look()["postgres"].rows == 0, "all of it carried")
            assert recorder.end() == 0
        rows = read_parquet(site.layout)
        tally.rows, tally.duplicated = rows.num_rows, check(postgres, rows)
    tally.note = f"{servers} of them with the server killed, too"
    tally.assert_clean()
    assert _skipped(site.layout) == []


# A Kafka broker that keeps what it is sent, and whose word of that is lost

WITHOUT_IDEMPOTENCE = {"enable.idempotence": "false", "enable.gapless.guarantee": "false"}
AT_ONCE = {
    "linger.ms": "1", "retry.backoff.ms": "10", "retry.backoff.max.ms": "20",
    "reconnect.backoff.ms": "10", "reconnect.backoff.max.ms": "20",
}  # fmt: skip
"""What the client waits for after a lost answer would be most of the time."""
LOSS = 0.1


def _open_over(cluster: LossyKafka, **options: str) -> Kafka:
    """With few messages to a request, so that there are many answers, and with a patience that doesn't end."""
    patience = {"message.timeout.ms": "60000", "socket.timeout.ms": "10000", "batch.num.messages": "50"}
    return Kafka("json", cluster, **AT_ONCE, **patience, **options)


@pytest.mark.needs("tansu")
def test_answers_of_a_kafka_broker_that_are_lost_repeat_nothing(tmp_path: Path, tally: Tally) -> None:
    layout = make_root(tmp_path / "data")
    truth = fill_journal(layout, segments=2, records=rounds(), rows=1000)
    cluster = LossyKafka(LOSS)
    with closing(_open_over(cluster)) as kafka:
        kafka.carry(layout)
        tally.rounds, tally.rows, tally.duplicated = cluster.lost, truth.num_rows, check(kafka, truth)
    assert tally.rounds >= rounds()
    tally.assert_clean()


@pytest.mark.needs("tansu")
def test_without_idempotence_they_do(tmp_path: Path) -> None:
    """The negative control of the one above."""
    layout = make_root(tmp_path / "data")
    fill_journal(layout, segments=1, records=4, rows=1000)
    with closing(_open_over(LossyKafka(LOSS), **WITHOUT_IDEMPOTENCE)) as kafka:
        kafka.carry(layout)
        sequences = kafka.rows()["sequence"].to_pylist()
    assert len(set(sequences)) == 4000 < len(sequences)


@pytest.mark.long
@pytest.mark.needs("tansu")
@pytest.mark.parametrize(("options", "repeated"), [({}, False), (WITHOUT_IDEMPOTENCE, True)])
def test_neither_do_they_of_the_coverage(tmp_path: Path, options: dict[str, str], repeated: bool) -> None:
    """With the same control. All dates that a start sends, of three symbols."""
    symbols, newest = ("A", "B", "C"), datetime.now(UTC) - timedelta(1)
    since = f"{(newest - timedelta(40)).date()}T00:00"
    recording = Recording(tmp_path / "data", symbols, started=since)
    recording.prove(symbols, since)
    last = {f"{ROOT}|{newest.date()}|{symbol}" for symbol in symbols}
    with closing(LossyKafka(3 * LOSS)) as cluster:
        cluster.create("coverage.test")
        settings = KafkaSettings(brokers=cluster.brokers, options={**AT_ONCE, **options})
        with (
            closing(TopicReader(cluster.brokers, "coverage.test")) as reader,
            closing(CoverageTopic(settings, "coverage.test", None, ROOT, recording.layout)) as topic,
        ):

            def told() -> list[str]:
                for _ in range(100):  # a date per acknowledgement
                    topic.tick(0.0, to_us(newest))
                    time.sleep(0.005)
                return [message.key().decode() for message in reader.read_to_end()]

            wait_for(lambda: last <= set(told()) or None, "the newest date")
            keys = told()
        assert cluster.lost
    assert len(set(keys)) >= 29 * len(symbols)
    assert (len(keys) > len(set(keys))) == repeated


@pytest.mark.long
def test_what_one_misses_while_it_is_switched_off_is_in_the_ledger(tmp_path: Path, tally: Tally) -> None:
    database = Sqlite(tmp_path)
    on = {"sinks": {"sqlite": {"path": str(tmp_path / "trades.sqlite")}}}
    with running_venue(tmp_path, "--rate", "1000") as venue:
        for settings in (on, {}):
            site = Site(tmp_path, tmp_path / "data", venue.url, settings=settings)
            with site.running() as recorder:
                recorder.wait_for_rows()
                assert recorder.end() == 0
            tally.rounds += 1
        site = Site(tmp_path, tmp_path / "data", venue.url, settings=on)
        with site.running() as recorder:
            recorder.wait_for(lambda: _skipped(site.layout) or None, "what it has missed")
            venue.stop()
            recorder.wait_for_end_of_stream()
            assert recorder.end() == 0
    rows = read_parquet(site.layout)
    tally.rows = rows.num_rows
    (skipped,) = _skipped(site.layout)
    assert skipped["sink"] == "sqlite"
    assert database.rows().num_rows + skipped["rows"] == rows.num_rows
    assert skipped["rows"] > 0
    tally.assert_clean()


def _new_links(server: PostgresServer, old: set[int]) -> set[int]:
    return set(server.backends) - old


def _skipped(layout: Layout) -> list[dict[str, Any]]:
    return [fact for fact in read_facts(layout) if fact["fact"] == "sink.skipped"]


def _strike(recorder: Recorder, elsewhere: Elsewhere) -> None:
    """Every server killed, and the process that carries to them (for SQLite, which has no server); all come back."""
    for server in elsewhere.servers:
        server.kill()
    child = _child(recorder)
    os.kill(child, signal.SIGKILL)
    recorder.wait_for(lambda: _child(recorder, but=child), "another process for the sinks")
    for server in elsewhere.servers:
        server.start()


def _wait_for_progress(recorder: Recorder, layout: Layout) -> None:
    before = {sink: read_place(layout, sink) for sink in CARRIED}
    recorder.wait_for(
        lambda: all(read_place(layout, sink) > place for sink, place in before.items()), "all sinks moving"
    )


def _child(recorder: Recorder, but: int | None = None) -> int:
    """The process of its sinks; 0 where there is none but this one."""
    children = Path(f"/proc/{recorder.process.pid}/task/{recorder.process.pid}/children").read_text().split()
    threads = Path(f"/proc/{recorder.process.pid}/task").glob("*/children")
    children += [child for thread in threads for child in thread.read_text().split()]
    return next((int(child) for child in children if int(child) != but and not _is_gone(int(child))), 0)


def _is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def _recorded(layout: Layout) -> int:
    vitals = read_status(layout).vitals
    return vitals.flow.counts.trades if vitals else 0


def _carried(layout: Layout) -> bool:
    return all(lag.rows == 0 for lag in Lags(layout, CARRIED).look().values())


def _newest(layout: Layout) -> Cursor:
    """The beginning of the newest segment."""
    return Cursor(max(file.id.number for file in list_segments(layout)), 0)
