"""The parts of a recorder on a real root, wired as the daemon wires them, for tests that look at one of them."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
from journals import ledger_facts

from ingestor.capture.buffer import Buffer
from ingestor.capture.connection_log import ConnectionLog, Connections
from ingestor.capture.connector import Backoff
from ingestor.capture.gaps import Gaps, OpenGap
from ingestor.capture.monitor import ConnectionMonitor
from ingestor.capture.recorder import Recorder
from ingestor.capture.session import Group, Session
from ingestor.capture.stream_state import Observed
from ingestor.capture.subscriptions import Division
from ingestor.capture.wall_clock import Clock, Reading
from ingestor.config.sections import ConnectionSettings, JournalSettings
from ingestor.coverage import find_coverage, state_at
from ingestor.facts import Fact
from ingestor.feeds import Feed
from ingestor.feeds.finnhub import Finnhub
from ingestor.journal.follower import Follower, Rows
from ingestor.journal.writer import Journal, Rotation
from ingestor.layout import Layout
from ingestor.ledger import Ledger, day_of, list_ledger_files, read_facts
from ingestor.recording import Capture, JournalWriter, Run

T = TypeVar("T")

PATIENCE_S = 20.0
"""Longer than any fact here takes to come about."""
CRYPTO = ("BINANCE:BTCUSDT", "BINANCE:ETHUSDT", "BINANCE:SOLUSDT")
"""Their market never closes: what is expected of them doesn't hang on when the tests run."""
KEY = "secret-key-of-a-test"
LINGER_S = 0.02
WAITS = Backoff()


def eventually(fact: Callable[[], T | None], what: str) -> T:
    """The fact, once it is there (not None, not False, not empty)."""
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        if found := fact():
            return found
        time.sleep(0.005)
    raise AssertionError(f"never came about: {what}")


@dataclass
class Rig:
    """A Session and a Recorder between a venue and a root."""

    layout: Layout
    ledger: Ledger
    buffer: Buffer
    gaps: Gaps
    clock: Clock
    observed: Observed
    journal: Journal
    recorder: Recorder
    division: Division
    connections: Connections
    monitor: ConnectionMonitor
    groups: list[Group]
    stop: threading.Event
    errors: list[BaseException] = field(default_factory=list)

    def facts(self, *names: str) -> list[Fact]:
        """What the ledger holds so far of these facts (none: all)."""
        return ledger_facts(self.layout, *names)

    def wait_fact(self, name: str, count: int = 1, **fields: Any) -> Fact:
        """The fact number `count` of this name and with these fields, once the ledger holds it."""

        def found() -> list[Fact]:
            all_ = [fact for fact in self.facts(name) if fields.items() <= fact.items()]
            return all_[count - 1 :]

        return eventually(found, f"{name} {fields} number {count}")[0]

    def wait_trades(self, more: int = 1) -> None:
        """So many more trades than now are recorded."""
        target = self.observed.trades + more
        eventually(lambda: self.observed.trades >= target, f"{more} more trades")

    @property
    def sessions(self) -> list[Session]:
        """Of all groups."""
        return [session for group in self.groups for session in group.sessions]

    @property
    def session(self) -> Session:
        """The first one."""
        return self.sessions[0]

    @property
    def connection_log(self) -> ConnectionLog:
        """Of the first group."""
        return self.groups[0].connection_log

    def read(self, session: Session | None = None) -> None:
        """A reader thread's work, the first one's unless told; what ends it is kept."""
        try:
            (session or self.session).run()
        except BaseException as error:  # noqa: BLE001  as the daemon's Worker
            self.errors.append(error)


def make_rig(
    root: Path,
    url: str,
    symbols: Sequence[str] = CRYPTO,
    *,
    waits: Backoff = WAITS,
    inherited: Sequence[OpenGap] = (),
    run: int = 1,
    linger_s: float = LINGER_S,
    feed: Feed | None = None,
    read: Callable[[], Reading] = Reading.now,
    keeps_frames: bool = False,
    **connection: Any,
) -> Rig:
    """`read`: the machine's clocks. `connection` are settings of that section, in seconds and bytes; without a feed
    it is Finnhub's.
    """
    layout = Layout(root)
    layout.create()
    feed = feed or Finnhub(url, KEY)
    ledger = Ledger(layout, run, day_of(read().wall_us), lambda: read().wall_us)
    settings = ConnectionSettings.model_validate({"connect_timeout": 5.0, "backoff_max": 1.0, **connection})
    times = JournalSettings.model_validate({"linger": linger_s, "sync_interval": 0.2})
    stop = threading.Event()
    shared = Run.build(layout, run, feed, ledger, symbols, inherited, settings.buffer, read)
    writer = JournalWriter.build(shared, run, Rotation(900.0, 1 << 26), times, 1 << 30, keeps_frames=keeps_frames)
    capture = Capture.build(shared, settings, KEY, stop, rest_base=None, waits=waits)
    return Rig(
        layout, ledger, shared.buffer, shared.gaps, shared.clock, shared.observed, writer.journal, writer.recorder,
        shared.division, shared.connections, capture.monitor, capture.groups, stop,
    )  # fmt: skip


@contextmanager
def running(rig: Rig) -> Iterator[Rig]:
    """The reader and the recorder in their threads, stopped in order at the end of the block."""
    readers = [threading.Thread(target=rig.read, args=[session], name="reader") for session in rig.sessions]
    recorder = threading.Thread(target=rig.recorder.run, name="recorder")
    for reader in readers:
        reader.start()
    recorder.start()
    try:
        yield rig
    finally:
        for reader in readers:
            stop_reader(rig, reader)
        rig.buffer.close()
        for reader in readers:
            reader.join()
        recorder.join()
        rig.ledger.close()
    assert blind_rows(rig) == []


def blind_rows(rig: Rig) -> list[tuple[str, int]]:
    """Symbol and time of receipt of each recorded trade that coverage calls blind: there must never be any."""
    newest = list_ledger_files(rig.layout)[-1]  # a rig's run doesn't say that it takes over from another
    coverage = find_coverage(read_facts(newest.path))
    rows: list[tuple[str, int]] = []
    intervals = {symbol: coverage.intervals(symbol) for symbol in coverage.symbols}
    follower = Follower(rig.layout, None, synced_only=False)
    for event in follower.read():
        if isinstance(event, Rows) and event.segment.run == newest.run:
            symbols, received = (
                event.batch["symbol"].to_pylist(),
                event.batch["received_at"].cast(pa.int64()).to_pylist(),
            )
            rows += zip(symbols, received, strict=True)
    follower.close()
    held = ((symbol, at_us, state_at(intervals.get(symbol, []), at_us)) for symbol, at_us in sorted(set(rows)))
    return [(symbol, at_us) for symbol, at_us, interval in held if interval is not None and interval.state == "blind"]


def recorded_rows(rig: Rig) -> pa.Table:
    """All that the journal of this rig holds."""
    follower = Follower(rig.layout, None, synced_only=False)
    batches = [event.batch for event in follower.read() if isinstance(event, Rows)]
    follower.close()
    return pa.Table.from_batches(batches)


def stop_reader(rig: Rig, reader: threading.Thread) -> bool:
    """Whether the reader ended within the time that a stop leaves it."""
    rig.stop.set()
    reader.join(2.5)
    return not reader.is_alive()
