"""The sinks that run in a process of their own: which are asked for, what they need installed, how each is opened, and
how each carries the journal to a destination that may fail, in a thread of its own: nobody waits for it.

A destination that fails is given up with all that it had not committed, and opened anew after a pause, at its cursor.
So there is one way to begin, after a crash, a lost server or a restart alike.
"""

import math
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from threading import Event as Flag
from typing import TYPE_CHECKING

import structlog
import tenacity
from tenacity.nap import sleep_using_event

from ingestor.config.sections import SinkSettings
from ingestor.errors import ConfigError, Lagged, SinkUnavailable
from ingestor.journal.follower import Damage, Event, Follower, Rows, find_journal_end
from ingestor.journal.records import Cursor
from ingestor.layout import Layout, list_segments
from ingestor.sinks import Sink
from ingestor.sinks.retention_slots import name_root, note_loss, read_fault, read_place, write_fault, write_place

if TYPE_CHECKING:
    from ingestor.sinks.kafka_topic import CoverageTopic

log = structlog.get_logger()

_POLL_S = 0.05
_TICK_S = 0.5
_PAUSE_S = 0.5
_PAUSE_MAX_S = 30.0


class ExternalWorker:
    """One sink's way. `run` is a thread's work.

    A record sink gets what is synced, and its place is kept in `cursors/`; a view gets everything as it comes, and
    nothing waits for it.
    """

    def __init__(
        self,
        layout: Layout,
        name: str,
        open_sink: Callable[[Cursor], Sink],
        stop: Flag,
        *,
        view: bool = False,
        keeps_slot: bool = True,
    ) -> None:
        """`open_sink` is given the place that was kept last; it raises SinkUnavailable. `stop`: run to the synced end
        of the journal, then return. `keeps_slot`: what the journal no longer holds is lost to it, and that is told.
        """
        self._layout = layout
        self.name = name
        self._open_sink = open_sink
        self._stop = stop
        self._view = view
        self._keeps_slot = keeps_slot and not view
        self._backoff = tenacity.wait_exponential(_PAUSE_S, _PAUSE_MAX_S) + tenacity.wait_random(0, _PAUSE_S)
        self._kept = read_place(layout, name)
        self._tick_due_s = 0.0
        self._fault: str | None = read_fault(layout, name) or None
        """What was told last, by an earlier process perhaps."""
        self._done = False

    def run(self) -> None:
        """Until `stop` and the end of the journal; a destination that fails while stopping is left to the next
        start.
        """
        while not self._done:
            retrying = tenacity.Retrying(
                retry=tenacity.retry_if_exception_type(SinkUnavailable),
                wait=self._pause,
                sleep=sleep_using_event(self._stop),
                stop=tenacity.stop_when_event_set(self._stop),
                reraise=True,
            )
            try:
                retrying(self._live_once)
            except SinkUnavailable as error:
                log.warning("sink.left_behind", sink=self.name, error=str(error))
                return

    def _pause(self, state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        self._note_fault(str(error))
        return self._backoff(state)

    def _live_once(self) -> None:
        """One life of the destination, from opening to loss. Returns where it was of use, so that back-off begins
        anew; raises SinkUnavailable where it was not.
        """
        kept = self._kept
        try:
            sink = self._open_sink(self._kept)
            try:
                self._carry(sink)
            finally:
                with suppress(SinkUnavailable):
                    sink.close()
        except SinkUnavailable as error:
            if self._kept == kept or self._stop.is_set():
                raise
            self._note_fault(str(error))
        except Exception as error:  # whatever one destination does, the others go on
            log.exception("sink.broken", sink=self.name)
            raise SinkUnavailable(f"{type(error).__name__}: {error}") from error

    def _carry(self, sink: Sink) -> None:
        follower = self._follow(find_journal_end(self._layout) if self._view else sink.committed())
        try:
            while not self._done:
                stopping = self._stop.is_set()  # looked at before reading: what is read after it is all there will be
                try:
                    for event in follower.read():
                        if isinstance(event, Damage) and event.unreadable is not None:
                            start = Cursor(event.segment.number, event.offset)
                            self._tell_loss(start, Cursor(event.segment.number + 1, 0), event.unreadable)
                        deliver(sink, event)
                        self._tick(sink, time.monotonic())
                except Lagged as error:
                    follower.close()
                    follower = self._follow(self._pass_over(follower.cursor, error))
                    continue
                self._tick(sink, math.inf if stopping else time.monotonic(), at_end=True)
                self._done = stopping
                self._stop.wait(_POLL_S)
        finally:
            follower.close()

    def _pass_over(self, place: Cursor, error: Lagged) -> Cursor:
        """Where there is something again, behind a place that is gone."""
        numbers = [file.id.number for file in list_segments(self._layout) if file.id.number >= place.segment]
        following = Cursor(min(numbers, default=place.segment + 1), 0)
        self._tell_loss(place, following, str(error))
        return following

    def _tell_loss(self, start: Cursor, end: Cursor, error: str) -> None:
        """It will never get what stood between these places. Raises SinkUnavailable."""
        if self._keeps_slot:
            log.error("sink.lagged", sink=self.name, error=error)
            try:
                note_loss(self._layout, self.name, start, end)
            except OSError as fault:
                raise SinkUnavailable(f"can't note what it has missed: {fault.strerror or fault}") from fault

    def _follow(self, start: Cursor) -> Follower:
        return Follower(self._layout, start, synced_only=not self._view)

    def _tick(self, sink: Sink, now_s: float, *, at_end: bool = False) -> None:
        """Let it commit, at the journal's end or now and then on the way there, and keep its place."""
        if now_s < self._tick_due_s and not at_end:
            return
        self._tick_due_s = now_s + _TICK_S
        sink.tick(now_s)
        place = sink.committed()
        if place == self._kept and not (at_end and self._fault):
            return
        try:
            if not self._view:
                write_place(self._layout, self.name, place)
                write_fault(self._layout, self.name, None)
        except OSError as error:  # the next tick tries again: what the destination has must not be sent anew for it
            self._note_fault(f"can't keep its place: {error.strerror or error}")
            return
        self._kept = place
        if self._fault is not None:
            self._fault = None
            log.info("sink.recovered", sink=self.name)

    def _note_fault(self, fault: str) -> None:
        """A fault is logged once, until it is another one."""
        if fault != self._fault:
            self._fault = fault
            log.error("sink.failed", sink=self.name, error=fault)
            if not self._view:
                with suppress(OSError):  # the log has it
                    write_fault(self._layout, self.name, fault)


def deliver(sink: Sink, event: Event) -> None:
    match event:
        case Rows():
            sink.write(event)
        case Damage():
            sink.set_aside(event)
        case _:
            sink.end_segment(event)


SECRETS = {"postgres": "POSTGRES_PASSWORD", "redis": "REDIS_PASSWORD", "kafka": "KAFKA_PASSWORD"}
"""By sink: where its password is looked for, as the API key is."""

_PACKAGES = {"postgres": "adbc_driver_postgresql", "redis": "redis", "kafka": "confluent_kafka"}
"""By sink, and by the extra of that name: the package that it needs."""
_RECORDS = ("sqlite", "postgres", "redis", "kafka")
"""Those that take their rows from the journal, and so keep a slot for what they have not passed."""


def configured_sinks(settings: SinkSettings) -> list[str]:
    """Raises ConfigError, in one line, where a sink's package is not installed."""
    asked = [name for name in type(settings).model_fields if getattr(settings, name) is not None]
    for name in asked:
        if name in _PACKAGES and find_spec(_PACKAGES[name]) is None:
            raise ConfigError(f"sinks.{name} needs the extra `{name}`: pip install 'finnhub-ingestor[{name}]'")
    store = settings.object_store
    if store is not None and store.table == "delta" and find_spec("deltalake") is None:
        raise ConfigError(
            "sinks.object_store.table: delta needs the extra `delta`: pip install 'finnhub-ingestor[delta]'"
        )
    return asked


def check_options(settings: SinkSettings, passwords: Mapping[str, str]) -> None:
    """Raises ConfigError, in one line, for options that no waiting would mend. Whatever they need is installed."""
    if settings.kafka is not None:
        from ingestor.sinks.kafka_topic import check_kafka_options

        check_kafka_options(settings.kafka, passwords.get("kafka"))


def sinks_with_slots(settings: SinkSettings) -> list[str]:
    """Those for which the journal is kept."""
    return [name for name in _RECORDS if getattr(settings, name) is not None]


def make_external_workers(
    settings: SinkSettings, layout: Layout, feed: str, secrets: dict[str, str], stop: threading.Event
) -> list[ExternalWorker]:
    """One for each sink that is asked for; Redis has two, a record and a view. Nothing is open yet. Raises OSError."""
    root = name_root(layout)
    coverage = None
    if settings.kafka is not None and (topic := settings.kafka.topics(feed)[1]) is not None:
        from ingestor.sinks.kafka_topic import CoverageTopic

        # One for all lives of Kafka's sink: it knows what was sent.
        coverage = CoverageTopic(settings.kafka, topic, secrets.get("kafka"), root, layout)
    workers = [
        ExternalWorker(
            layout,
            name,
            partial(_open, name, settings, layout, feed, secrets.get(name), root, coverage),
            stop,
            keeps_slot=name in _RECORDS,
        )
        for name in configured_sinks(settings)
    ]
    if settings.redis is not None:
        live = partial(_open, "redis_live", settings, layout, feed, secrets.get("redis"), root, None)
        workers.append(ExternalWorker(layout, "redis_live", live, stop, view=True))
    return workers


def _open(
    name: str,
    settings: SinkSettings,
    layout: Layout,
    feed: str,
    password: str | None,
    root: str,
    coverage: "CoverageTopic | None",
    start: Cursor,
) -> Sink:
    """The sink of this name, ready. `coverage` is for Kafka's; `start` for those that can't keep their cursor at the
    destination.

    Raises SinkUnavailable.
    """
    if name == "sqlite" and settings.sqlite is not None:
        from ingestor.sinks.sqlite_db import SqliteDatabase

        return SqliteDatabase(settings.sqlite.path, root, layout)
    if name == "postgres" and settings.postgres is not None:
        from ingestor.sinks.postgres_db import PostgresDatabase

        return PostgresDatabase(settings.postgres, password, root, layout)
    if name == "redis" and settings.redis is not None:
        from ingestor.sinks.redis_db import RedisStreams

        return RedisStreams(settings.redis, password, root, layout)
    if name == "redis_live" and settings.redis is not None:
        from ingestor.sinks.redis_db import RedisLive

        return RedisLive(settings.redis, password)
    if name == "kafka" and settings.kafka is not None:
        from ingestor.sinks.kafka_topic import KafkaTopic

        return KafkaTopic(settings.kafka, settings.kafka.topics(feed)[0], password, root, start, coverage)
    if name == "object_store" and settings.object_store is not None:
        from ingestor.sinks.object_store import ObjectStore

        store = settings.object_store
        return ObjectStore(store.uri, layout, root, shared=store.shared, retention=store.retention, table=store.table)
    raise ValueError(f"no sink {name}")
