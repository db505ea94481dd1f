"""Every sink at once, with its real server, at full speed, all of them killed twice: each ends with the truth under
its guarantee, and the recorder notices nothing.
"""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from harness import Recorder, Site, Tally, compare, read_facts, read_gaps, read_parquet, running_venue, wait_for
from servers import KafkaCluster, PostgresServer, RedisServer, S3Server
from sink_contract import Destination, Kafka, Postgres, Redis, Sqlite, TopicReader, check, read_store

from ingestor.journal.segment import Cursor
from ingestor.layout import Layout, list_segments
from ingestor.operations.recorder_status import read_status
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
        self.servers: list[RedisServer | PostgresServer | KafkaCluster | S3Server] = [
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
