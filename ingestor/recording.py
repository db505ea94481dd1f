"""Wires the parts of one run, in three groups: Capture, JournalWriter and FileSinks.

Each group is one thread's work, and has its own `build`. A Run holds what they share. Nothing runs yet.
"""

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ingestor import __version__
from ingestor.capture.buffer import Buffer
from ingestor.capture.connection_log import ConnectionLog, Connections
from ingestor.capture.connector import Backoff, Connector, KnownKey
from ingestor.capture.gaps import Gaps, GroupGaps, OpenGap, find_inherited_gaps
from ingestor.capture.id_watch import IdWatch, LastId, find_last_ids
from ingestor.capture.market_calendar import Holidays, Markets, find_rest_base
from ingestor.capture.monitor import ConnectionMonitor, TradeWatch
from ingestor.capture.recorder import BlockDecoder, Keeper, Recorder
from ingestor.capture.rejects import Rejects
from ingestor.capture.session import Group, Session
from ingestor.capture.stream_state import Observed, Observer
from ingestor.capture.subscriptions import Division, Subscriptions
from ingestor.capture.wall_clock import Clock, Reading
from ingestor.config import Settings
from ingestor.config.addresses import choose_proxy
from ingestor.config.key import load_secret
from ingestor.config.sections import ConnectionSettings, JournalSettings
from ingestor.errors import ConfigError
from ingestor.feeds import Feed, make_feed
from ingestor.history import History, next_segment, read_history
from ingestor.journal.writer import Journal, Rotation, Segments
from ingestor.layout import Layout
from ingestor.ledger import Ledger, day_of, now_us, take_over_format_1
from ingestor.schema import FORMAT_VERSION, recorded
from ingestor.sinks.csv_files import CsvFiles
from ingestor.sinks.destinations import SECRETS, check_options, configured_sinks, sinks_with_slots
from ingestor.sinks.parquet_files import ParquetFiles, RawFiles
from ingestor.sinks.process import SinkProcess, SinkSetup
from ingestor.sinks.retention_slots import RetentionSlots
from ingestor.sinks.runner import Runner
from ingestor.sinks.segment_accounts import SegmentAccounts

FileSink = ParquetFiles | CsvFiles

_WAITS = Backoff()
_STAGGER_S = 2.0
"""Between the first connections of two sessions: what befalls one as it begins does not befall both."""
_GROUP_STAGGER_S = 0.5
"""Between those of two groups, which share nothing: a venue may count how fast connections are opened."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run on one root, and what its threads share: facts, gaps, the clock, the symbols, waiting frames."""

    layout: Layout
    number: int
    feed: Feed
    ledger: Ledger
    gaps: Gaps
    clock: Clock
    observed: Observed
    division: Division
    group_gaps: Sequence[Gaps | GroupGaps]
    """Of each group of the division."""
    connections: Connections
    buffer: Buffer

    @classmethod
    def build(
        cls,
        layout: Layout,
        number: int,
        feed: Feed,
        ledger: Ledger,
        symbols: Sequence[str],
        inherited: Iterable[OpenGap],
        buffer_bytes: int,
        read_clock: Callable[[], Reading] = Reading.now,
    ) -> "Run":
        """`symbols` are to be asked for; `inherited` are the gaps that the runs before left open."""
        gaps, observed = Gaps(ledger, number, inherited), Observed()
        gaps.drop_others(symbols, now_us())
        clock = Clock(ledger, gaps, read_clock)
        division = Division(ledger, observed, symbols, feed.terms.symbols_per_connection)
        clock.on_step += [observed.step, *(requests.step for requests in division.groups)]
        group_gaps: list[Gaps | GroupGaps] = [gaps]
        if len(division.groups) > 1:
            gaps.divide(symbols)
            group_gaps = [GroupGaps(gaps, requests.symbols) for requests in division.groups]
        connections = Connections(feed.terms.max_age_s, len(division.groups))
        return cls(
            layout, number, feed, ledger, gaps, clock, observed, division, group_gaps, connections, Buffer(buffer_bytes)
        )


@dataclass(frozen=True, slots=True)
class JournalWriter:
    """From the Buffer to the journal: the recorder's thread."""

    journal: Journal
    rejects: Rejects
    recorder: Recorder

    @classmethod
    def build(
        cls,
        run: Run,
        first_segment: int,
        rotation: Rotation,
        settings: JournalSettings,
        rejects_per_day: int,
        last_ids: Mapping[str, LastId] = MappingProxyType({}),
        *,
        keeps_frames: bool = False,
    ) -> "JournalWriter":
        """Opens the first segment. `last_ids` is where the ids of the runs before left off; `keeps_frames`: as they
        came, too. Raises OSError.
        """
        feed, layout = run.feed, run.layout
        segments = Segments(layout, run.number, first_segment, feed.name, recorded(feed.schema))
        journal = Journal(layout, segments, rotation)
        rejects = Rejects(layout, run.number, rejects_per_day)
        keeper = Keeper(journal, rejects, run.buffer, run.observed)
        groups, group_of = list(zip(run.group_gaps, run.division.groups, strict=True)), run.connections.group_of
        observer = Observer(run.observed, groups, group_of, may_replay=feed.terms.may_replay)
        column = feed.terms.id_column
        ids = IdWatch(column, run.ledger, run.gaps, run.observed, last_ids) if column else None
        venue = run.clock.venue
        decoder = BlockDecoder(feed, run.number, venue, group_of)
        recorder = Recorder(
            decoder, settings, run.buffer, journal, keeper, observer, venue, ids, keeps_frames=keeps_frames
        )
        return cls(journal, rejects, recorder)


@dataclass(frozen=True, slots=True)
class Capture:
    """From the venue to the Buffer: the readers' threads, one for each session."""

    markets: Markets
    monitor: ConnectionMonitor
    """Of the first session."""
    groups: list[Group]

    @classmethod
    def build(
        cls,
        run: Run,
        settings: ConnectionSettings,
        key: str,
        stop: threading.Event,
        *,
        rest_base: str | None,
        waits: Backoff = _WAITS,
    ) -> "Capture":
        """Asks nothing of the venue yet. `rest_base` is where holidays are asked for, None for nowhere."""
        feed, ledger, observed = run.feed, run.ledger, run.observed
        proxy = choose_proxy(rest_base, settings.proxy) if rest_base else None
        holidays = Holidays(run.layout, rest_base, key, settings.ca_file, proxy)
        known_key = KnownKey(run.layout, key)
        monitors, all_markets, groups = [], [], []
        for place, (gaps, requests) in enumerate(zip(run.group_gaps, run.division.groups, strict=True)):
            markets = Markets(holidays, never_close=feed.terms.never_closes, night=settings.night)
            connection_log = ConnectionLog(ledger, gaps, observed, requests, run.connections, place)
            trade_watch = TradeWatch(requests.wanted, settings.silence, time.monotonic())
            run.clock.on_step.append(connection_log.step)
            sessions = []
            for number in range(settings.redundant):
                connector = Connector(feed, settings, known_key, waits, stop)
                subscriptions = Subscriptions(feed, ledger, gaps, observed, requests, waits.symbol_s)
                monitor = ConnectionMonitor(
                    subscriptions, settings, run.buffer, gaps, observed, markets, run.clock, connection_log,
                    trade_watch, requests,
                )  # fmt: skip
                begins_after_s = number * _STAGGER_S + place * _GROUP_STAGGER_S
                session = Session(
                    feed.terms, connector, monitor, connection_log, run.buffer, run.clock, stop, begins_after_s
                )
                run.clock.on_step.append(session.step)
                sessions.append(session)
                monitors.append(monitor)
            all_markets.append(markets)
            groups.append(Group(sessions, connection_log, gaps))
        return cls(all_markets[0], monitors[0], groups)


@dataclass(frozen=True, slots=True)
class FileSinks:
    """From the journal to accounts and files, and what the journal keeps for other destinations: the files thread."""

    accounts: SegmentAccounts
    files: list[FileSink]
    raw: RawFiles
    slots: RetentionSlots
    runner: Runner

    @classmethod
    def build(cls, run: Run, settings: Settings, last_closed: int, stop: threading.Event) -> "FileSinks":
        """`last_closed` is the last segment of which the ledger has an account. Raises OSError, ConfigError."""
        layout, ledger = run.layout, run.ledger
        accounts = SegmentAccounts(layout, ledger, last_closed, run.feed.terms.id_column)
        files: list[FileSink] = []
        if "parquet" in settings.storage.formats:
            files.append(ParquetFiles(layout, ledger))
        if "csv" in settings.storage.formats:
            files.append(CsvFiles(layout))
        held = sinks_with_slots(settings.sinks)
        slots = RetentionSlots(layout, held, settings.journal.max_bytes, settings.storage.min_free, ledger)
        raw = RawFiles(layout)  # in any case: a run before this one may have kept frames
        # The accounts come first: rows count only once the ledger has the account of their segment. Parquet commits
        # the segment, so its frames come before.
        return cls(accounts, files, raw, slots, Runner(layout, [accounts, raw, *files], stop, slots))


@dataclass(frozen=True, slots=True)
class Recording:
    """One run of the recorder on one root. Nothing in it runs yet."""

    settings: Settings
    layout: Layout
    run: int
    after_crash: bool
    """The run before ended without a stop."""
    ledger: Ledger
    gaps: Gaps
    clock: Clock
    observed: Observed
    buffer: Buffer
    division: Division
    connections: Connections
    markets: Markets
    groups: list[Group]
    journal: Journal
    rejects: Rejects
    recorder: Recorder
    accounts: SegmentAccounts
    files: list[FileSink]
    raw: RawFiles
    slots: RetentionSlots
    runner: Runner


def prepare(
    settings: Settings,
    key: str,
    layout: Layout,
    stop: threading.Event,
    sinks_stop: threading.Event,
    secret: str = "",
) -> Recording:
    """Build them. `stop` ends the reader, `sinks_stop` the sinks; what the last run left is taken up.

    Raises ConfigError, OSError.
    """
    history = read_history(layout)
    check_venue(layout.root, history, settings.feed.type, settings.feed.venue)  # before anything is written
    feed = make_feed(settings.feed, key, secret)
    # What the last run left is read before this one writes: its first facts and its first segment would be the newest.
    first_segment = next_segment(layout, history.segment)
    inherited = find_inherited_gaps(layout, history)
    column = feed.terms.id_column
    last_ids = find_last_ids(layout, column, settings.symbols, history.closed) if column else {}
    take_over_format_1(layout)
    ledger = _begin_ledger(settings, layout, history, feed, first_segment, inherited)
    run = Run.build(layout, history.run + 1, feed, ledger, settings.symbols, inherited, settings.connection.buffer)
    storage = settings.storage
    rotation = Rotation(storage.rotate.age, storage.rotate.size)
    writer = JournalWriter.build(
        run, first_segment, rotation, settings.journal, storage.rejects_per_day, last_ids,
        keeps_frames=storage.raw is not None,
    )  # fmt: skip
    rest_base = find_rest_base(settings.feed.url)
    capture = Capture.build(run, settings.connection, key, stop, rest_base=rest_base)
    sinks = FileSinks.build(run, settings, history.closed, sinks_stop)
    return Recording(
        settings=settings,
        layout=layout,
        run=run.number,
        after_crash=bool(history.run and not history.stopped),
        ledger=ledger,
        gaps=run.gaps,
        clock=run.clock,
        observed=run.observed,
        buffer=run.buffer,
        division=run.division,
        connections=run.connections,
        markets=capture.markets,
        groups=capture.groups,
        journal=writer.journal,
        rejects=writer.rejects,
        recorder=writer.recorder,
        accounts=sinks.accounts,
        files=sinks.files,
        raw=sinks.raw,
        slots=sinks.slots,
        runner=sinks.runner,
    )


def _begin_ledger(
    settings: Settings, layout: Layout, history: History, feed: Feed, first_segment: int, inherited: list[OpenGap]
) -> Ledger:
    """The ledger of this run, with what it begins with. Raises OSError."""
    run, at_us = history.run + 1, now_us()
    ledger = Ledger(layout, run, day_of(at_us))
    raw: dict[str, Any] = {} if settings.storage.raw is None else {"raw": True}
    groups: dict[str, Any] = {} if settings.groups == 1 else {"groups": settings.groups}
    ledger.record(
        "run.started",
        at=at_us,
        format=FORMAT_VERSION,
        version=__version__,
        run=run,
        feed=feed.name,
        venue=settings.feed.venue,
        columns=recorded(feed.schema).names,
        id_column=feed.terms.id_column,
        tickers=list(settings.symbols),
        formats=list(settings.storage.formats),
        first_segment=first_segment,
        **raw,
        **groups,
        closed=history.closed,
        open_gaps=[
            {"gap": gap.id, "cause": gap.cause, "since": gap.since_us, "symbol": gap.symbol} for gap in inherited
        ],
        asked=list(history.asked),
        ended=history.ended,
        **({} if history.right is None else {"right": history.right}),
    )
    return ledger


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
    was written down told the feed alone; a root that was only imported into has none.
    """
    if history.feed == "" or (history.feed in {None, feed} and history.venue in {None, venue}):
        return
    raise ConfigError(
        f"{root} holds the trades of {history.venue or history.feed}, and this is {venue or feed}: give each venue a "
        "root of its own (storage.root); where the venue moved, keep its old name (feed.name of the json feed)"
    )
