"""The parts of one run, wired and at rest: what is built, in which order, and from what the last run left."""

import threading
from dataclasses import dataclass
from pathlib import Path

from ingestor import __version__
from ingestor.capture.buffer import Buffer
from ingestor.capture.connection_log import ConnectionLog
from ingestor.capture.connector import Backoff, Connector, KnownKey
from ingestor.capture.gaps import Gaps, OpenGap, find_inherited_gaps
from ingestor.capture.market_calendar import Holidays, Markets, find_rest_base
from ingestor.capture.monitor import ConnectionMonitor
from ingestor.capture.recorder import Keeper, Recorder
from ingestor.capture.rejects import Rejects
from ingestor.capture.session import Session
from ingestor.capture.stream_state import Observed, Observer
from ingestor.capture.subscriptions import Subscriptions
from ingestor.capture.wall_clock import Clock
from ingestor.config import Settings
from ingestor.config.key import load_secret
from ingestor.errors import ConfigError
from ingestor.facts import Fact
from ingestor.feeds import Feed, make_feed
from ingestor.history import History, next_segment, read_history
from ingestor.journal.writer import Journal, Rotation, Segments
from ingestor.layout import Layout
from ingestor.ledger import Ledger, day_of, now_us, take_over_format_1
from ingestor.schema import FORMAT_VERSION, recorded
from ingestor.sinks.csv_files import CsvFiles
from ingestor.sinks.destinations import SECRETS, check_options, configured_sinks, sinks_with_slots
from ingestor.sinks.parquet_files import ParquetFiles
from ingestor.sinks.process import SinkProcess, SinkSetup
from ingestor.sinks.retention_slots import RetentionSlots
from ingestor.sinks.runner import Runner
from ingestor.sinks.segment_accounts import SegmentAccounts

FileSink = ParquetFiles | CsvFiles


@dataclass(frozen=True, slots=True)
class Recording:
    """One run of the recorder on one root. Nothing in it runs yet."""

    settings: Settings
    layout: Layout
    run: int
    ledger: Ledger
    gaps: Gaps
    clock: Clock
    observed: Observed
    buffer: Buffer
    subscriptions: Subscriptions
    markets: Markets
    session: Session
    journal: Journal
    rejects: Rejects
    recorder: Recorder
    accounts: SegmentAccounts
    files: list[FileSink]
    slots: RetentionSlots
    runner: Runner


def prepare(
    settings: Settings, key: str, layout: Layout, stop: threading.Event, sinks_stop: threading.Event
) -> Recording:
    """Build them. `stop` ends the reader, `sinks_stop` the sinks; what the last run left is taken up.

    Raises ConfigError, OSError.
    """
    history = read_history(layout)
    check_venue(layout.root, history, settings.feed.type, settings.feed.venue)
    run = history.run + 1
    feed = make_feed(settings.feed, key)
    first_segment = next_segment(layout, history.segment)
    inherited = find_inherited_gaps(layout, history)
    take_over_format_1(layout)
    ledger = _begin_ledger(settings, layout, history, feed, first_segment, inherited)
    rotation = Rotation(settings.storage.rotate.age, settings.storage.rotate.size)
    journal = Journal(layout, Segments(layout, run, first_segment, feed.name, recorded(feed.schema)), rotation)
    gaps = Gaps(ledger, run, inherited)
    clock = Clock(ledger, gaps)
    gaps.drop_others(settings.symbols, now_us())
    observed = Observed()
    buffer = Buffer(settings.connection.buffer)
    waits = Backoff()
    attempts = Connector(feed, settings.connection, KnownKey(layout, key), waits, stop)
    subscriptions = Subscriptions(feed, settings.symbols, ledger, gaps, observed, waits.symbol_s)
    holidays = Holidays(layout, find_rest_base(settings.feed.url), key, settings.connection.ca_file)
    markets = Markets(holidays, never_close=feed.terms.never_closes)
    monitor = ConnectionMonitor(subscriptions, settings.connection, buffer, gaps, observed, markets, clock)
    session = Session(feed.terms, attempts, monitor, ConnectionLog(ledger, gaps, observed), gaps, buffer, clock, stop)
    rejects = Rejects(layout, run, settings.storage.rejects_per_day)
    keeper = Keeper(journal, rejects, buffer, observed)
    observer = Observer(ledger, gaps, observed, may_replay=feed.terms.may_replay)
    recorder = Recorder(feed, run, settings.journal, buffer, journal, keeper, observer, clock.venue)
    accounts = SegmentAccounts(layout, ledger, history.closed)
    files = _make_file_sinks(settings, layout, ledger)
    slot_holders = sinks_with_slots(settings.sinks)
    slots = RetentionSlots(layout, slot_holders, settings.journal.max_bytes, settings.storage.min_free, ledger)
    runner = Runner(layout, [accounts, *files], sinks_stop, slots)
    return Recording(
        settings, layout, run, ledger, gaps, clock, observed, buffer, subscriptions, markets, session, journal, rejects,
        recorder, accounts, files, slots, runner,
    )  # fmt: skip


def _begin_ledger(
    settings: Settings, layout: Layout, history: History, feed: Feed, first_segment: int, inherited: list[OpenGap]
) -> Ledger:
    """The ledger of this run, with what it begins with. Raises OSError."""
    run, at_us = history.run + 1, now_us()
    ledger = Ledger(layout, run, day_of(at_us))
    ledger.record(
        "run.started",
        at=at_us,
        format=FORMAT_VERSION,
        version=__version__,
        run=run,
        feed=feed.name,
        venue=settings.feed.venue,
        columns=recorded(feed.schema).names,
        tickers=list(settings.symbols),
        formats=list(settings.storage.formats),
        first_segment=first_segment,
        closed=history.closed,
        open_gaps=[_as_fact(gap) for gap in inherited],
        asked=list(history.asked),
        ended=history.ended,
    )
    return ledger


def _as_fact(gap: OpenGap) -> Fact:
    return {"gap": gap.id, "cause": gap.cause, "since": gap.since_us, "symbol": gap.symbol}


def _make_file_sinks(settings: Settings, layout: Layout, ledger: Ledger) -> list[FileSink]:
    """The sinks that `storage.formats` asks for. Raises OSError."""
    sinks: list[FileSink] = []
    if "parquet" in settings.storage.formats:
        sinks.append(ParquetFiles(layout, ledger))
    if "csv" in settings.storage.formats:
        sinks.append(CsvFiles(layout))
    return sinks


def make_sink_process(settings: Settings, layout: Layout, config_dir: Path) -> SinkProcess | None:
    """The process for what `sinks` asks for, with the passwords that are found where the key is; not started yet.

    Raises ConfigError, also where an extra is not installed or a destination's options can't be used.
    """
    asked = configured_sinks(settings.sinks)
    if not asked:
        return None
    if "object_store" in asked and "parquet" not in settings.storage.formats:
        raise ConfigError("sinks.object_store mirrors the Parquet files: add parquet to storage.formats")
    found = {sink: load_secret(name, config_dir) for sink, name in SECRETS.items() if sink in asked}
    passwords = {sink: password for sink, password in found.items() if password is not None}
    check_options(settings.sinks, passwords)
    handover = SinkSetup(
        root=layout.root,
        feed=settings.feed.type,
        sinks=settings.sinks,
        secrets=passwords,
        logging=settings.logging,
        stop_timeout=settings.stop_timeout,
    )
    return SinkProcess(handover)


def check_venue(root: Path, history: History, feed: str, venue: str) -> None:
    """Raises ConfigError where the newest run of this root recorded another venue.

    `venue` tells those apart that speak one language; it is empty where a language is one venue's. Runs before this
    was written down told the feed alone.
    """
    if history.feed in {None, feed} and history.venue in {None, venue}:
        return
    raise ConfigError(
        f"{root} holds the trades of {history.venue or history.feed}, and this is {venue or feed}: give each venue a "
        "root of its own (storage.root); where the venue moved, keep its old name (feed.name of the json feed)"
    )
