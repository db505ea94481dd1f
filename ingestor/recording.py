"""The parts of one run, wired and at rest: what is built, in which order, and from what the last run left."""

import threading
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import structlog

from ingestor import __version__
from ingestor.capture.buffer import Buffer
from ingestor.capture.gaps import Gaps, OpenGap
from ingestor.capture.holidays import Holidays, find_rest_base
from ingestor.capture.known_key import KnownKey
from ingestor.capture.observed import Observed
from ingestor.capture.recorder import Recorder
from ingestor.capture.rejects import Rejects
from ingestor.capture.session import Session
from ingestor.config import Settings, load_secret
from ingestor.errors import ConfigError
from ingestor.feeds import make_feed
from ingestor.journal.cursor import Cursor, next_segment
from ingestor.journal.follower import Follower, Rows
from ingestor.journal.writer import Journal, Rotation
from ingestor.layout import Layout, list_segments
from ingestor.ledger import Fact, History, Ledger, now_us, read_history, run_id
from ingestor.schema import FORMAT_VERSION, recorded
from ingestor.sinks.accounts import SegmentAccounts
from ingestor.sinks.claims import Claims
from ingestor.sinks.csv_files import CsvFiles
from ingestor.sinks.destinations import SECRETS, claiming_sinks, configured_sinks
from ingestor.sinks.parquet_files import ParquetFiles
from ingestor.sinks.process import Handover, SinkProcess
from ingestor.sinks.runner import Runner

_RESTART_US = 60_000_000

FileSink = ParquetFiles | CsvFiles

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Recording:
    """One run of the recorder on one root. Nothing in it runs yet."""

    settings: Settings
    layout: Layout
    run: int
    ledger: Ledger
    gaps: Gaps
    observed: Observed
    holidays: Holidays
    buffer: Buffer
    session: Session
    journal: Journal
    rejects: Rejects
    recorder: Recorder
    accounts: SegmentAccounts
    files: list[FileSink]
    claims: Claims
    runner: Runner


def prepare(
    settings: Settings, key: str, layout: Layout, stop: threading.Event, sinks_stop: threading.Event
) -> Recording:
    """Build them. `stop` ends the reader, `sinks_stop` the sinks; what the last run left is taken up.

    Raises ConfigError, OSError.
    """
    history = read_history(layout)
    run = history.run + 1
    feed = make_feed(settings.feed, key)
    schema = recorded(feed.schema)
    first_segment = next_segment(layout, history.segment)
    inherited = _inherited_gaps(layout, history)
    ledger = Ledger(layout, run_id(run, datetime.now(UTC)))
    ledger.record(
        "run.started",
        format=FORMAT_VERSION,
        version=__version__,
        run=run,
        feed=feed.name,
        columns=schema.names,
        tickers=list(settings.symbols),
        formats=list(settings.storage.formats),
        first_segment=first_segment,
        open_gaps=[_as_fact(gap) for gap in inherited],
    )
    rotation = Rotation(settings.storage.rotate.age, settings.storage.rotate.size)
    journal = Journal(layout, run, first_segment, feed.name, schema, rotation)
    gaps = Gaps(ledger, run, inherited)
    observed = Observed()
    buffer = Buffer(settings.connection.buffer)
    holidays = Holidays(layout, find_rest_base(settings.feed.url), key, settings.connection.ca_file)
    known_key = KnownKey(layout, key)
    session = Session(
        feed, settings.symbols, settings.connection, buffer, ledger, gaps, observed, known_key, holidays, stop
    )
    rejects = Rejects(layout, run, settings.storage.rejects_per_day)
    recorder = Recorder(feed, run, settings.journal, buffer, journal, rejects, ledger, gaps, observed)
    accounts = SegmentAccounts(layout, ledger, history.closed)
    files = _make_file_sinks(settings, layout, ledger)
    claimants = claiming_sinks(settings.sinks)
    claims = Claims(layout, claimants, settings.journal.max_bytes, settings.storage.min_free, ledger)
    runner = Runner(layout, [accounts, *files], sinks_stop, claims)
    return Recording(
        settings, layout, run, ledger, gaps, observed, holidays, buffer, session, journal, rejects, recorder, accounts,
        files, claims, runner,
    )  # fmt: skip


def _inherited_gaps(layout: Layout, history: History) -> list[OpenGap]:
    """The gaps that are open as this run starts: those that the last run left, or the crash that ended it."""
    gaps = [OpenGap(fact["gap"], fact["cause"], fact["since"], fact["symbol"]) for fact in history.open_gaps]
    whole = next((gap for gap in gaps if gap.symbol is None), None)
    if history.run and not history.stopped:
        since_us = _last_journaled_us(layout, history.run) or history.last_received or history.first_at
        log.warning("crash.found", run=history.run, last_received=since_us)
        if whole is None:
            gaps.append(OpenGap(f"r{history.run + 1:06d}-0", "crash", since_us))
        else:  # what had been received before that gap, and was not journaled yet, is lost too
            gaps[gaps.index(whole)] = replace(whole, since_us=min(whole.since_us, since_us))
    elif whole is not None and whole.cause == "shutdown" and now_us() - whole.since_us < _RESTART_US:
        gaps[gaps.index(whole)] = replace(whole, cause="restart")
    return gaps


def _last_journaled_us(layout: Layout, run: int) -> int:
    """When the last frame was received that this run journaled and no account names yet; 0: there is none.

    By the rules of reading: what stands behind the end of an abandoned segment was lost, if it was not journaled again.
    """
    first = next((file.id.number for file in list_segments(layout) if file.id.run == run), None)
    if first is None:
        return 0
    last_us = 0
    follower = Follower(layout, Cursor(first, 0), synced_only=False)
    for event in follower.read():
        if isinstance(event, Rows) and event.segment.run == run:
            last_us = event.last_received_us or last_us
    follower.close()
    return last_us


def _as_fact(gap: OpenGap) -> Fact:
    return {"gap": gap.id, "cause": gap.cause, "since": gap.since_us, "symbol": gap.symbol}


def _make_file_sinks(settings: Settings, layout: Layout, ledger: Ledger) -> list[FileSink]:
    """The sinks that `storage.formats` asks for. Raises OSError."""
    sinks: list[FileSink] = []
    if "parquet" in settings.storage.formats:
        sinks.append(ParquetFiles(layout, ledger))
    if "csv" in settings.storage.formats:
        sinks.append(CsvFiles(layout, compress=settings.storage.csv_gzip))
    return sinks


def make_sink_process(settings: Settings, layout: Layout, config_dir: Path) -> SinkProcess | None:
    """The process for what `sinks` asks for, with the passwords that are found where the key is; not started yet.

    Raises ConfigError, also where an extra is not installed.
    """
    asked = configured_sinks(settings.sinks)
    if not asked:
        return None
    if "object_store" in asked and "parquet" not in settings.storage.formats:
        raise ConfigError("sinks.object_store mirrors the Parquet files: add parquet to storage.formats")
    passwords = {sink: load_secret(name, config_dir) for sink, name in SECRETS.items() if sink in asked}
    handover = Handover(
        root=layout.root,
        feed=settings.feed.type,
        sinks=settings.sinks,
        secrets={sink: password for sink, password in passwords.items() if password is not None},
        logging=settings.logging,
        stop_timeout=settings.stop_timeout,
    )
    return SinkProcess(handover)
