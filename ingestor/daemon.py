"""The recorder's process: what is built, in which order; who is watched; how it all stops, and with which exit code."""

import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import structlog

from ingestor import __version__
from ingestor.capture.buffer import Buffer
from ingestor.capture.gaps import Gaps, OpenGap
from ingestor.capture.known_key import KnownKey
from ingestor.capture.observed import Observed
from ingestor.capture.recorder import Recorder
from ingestor.capture.rejects import Rejects
from ingestor.capture.session import Session
from ingestor.config import Settings
from ingestor.ledger import History, Ledger, now_us, read_history, run_id
from ingestor.errors import ConfigError, ConservationViolated
from ingestor.feeds import make_feed
from ingestor.journal.segment import last_received_us
from ingestor.journal.writer import Journal, Rotation
from ingestor.layout import Layout, list_segments, locked_root
from ingestor.metrics import Conservation, Counts
from ingestor.report import Report
from ingestor.schema import FORMAT_VERSION, recorded
from ingestor.sinks.accounts import SegmentAccounts
from ingestor.sinks.csv_files import CsvFiles
from ingestor.sinks.parquet_files import ParquetFiles
from ingestor.sinks.runner import Runner

_WATCH_S = 0.2
_READER_END_S = 2.0
_RESTART_US = 60_000_000

FileSink = ParquetFiles | CsvFiles

log = structlog.get_logger()


class Worker(threading.Thread):
    """A thread that never dies quietly: what ended it is kept, and `ended` is set."""

    def __init__(self, name: str, work: Callable[[], None], ended: threading.Event) -> None:
        super().__init__(name=name, daemon=True)
        self._work = work
        self._ended = ended
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001  whatever ends a thread ends the process, in order
            self.error = error
        finally:
            self._ended.set()


class Daemon:
    """One run of the recorder on one root, whose lock is held by the caller."""

    def __init__(self, settings: Settings, key: str, layout: Layout, stop: threading.Event) -> None:
        """Take up where the last run stopped. Raises ConfigError, OSError."""
        self._settings = settings
        self._stop = stop
        self._sinks_stop = threading.Event()
        self._ended = threading.Event()
        history = read_history(layout)
        self._run = history.run + 1
        feed = make_feed(settings.feed.type, settings.feed.url, key)
        first_segment = 1 + max([history.segment, *(file.id.number for file in list_segments(layout))])
        gaps = _inherited_gaps(layout, history)
        self._ledger = Ledger(layout, run_id(self._run, datetime.now(UTC)))
        self._ledger.record(
            "run.started",
            format=FORMAT_VERSION,
            version=__version__,
            run=self._run,
            feed=feed.name,
            columns=recorded(feed.schema).names,
            tickers=list(settings.tickers),
            first_segment=first_segment,
            open_gaps=[_as_fact(gap) for gap in gaps],
        )
        rotation = Rotation(settings.storage.rotate.age, settings.storage.rotate.size)
        journal = Journal(layout, self._run, first_segment, feed.name, recorded(feed.schema), rotation)
        observed = Observed()
        open_gaps = Gaps(self._ledger, self._run, gaps)
        self._buffer = Buffer(settings.connection.buffer)
        self._session = Session(
            feed, settings.tickers, settings.connection, self._buffer, self._ledger, open_gaps, observed,
            KnownKey(layout, key), stop,
        )  # fmt: skip
        rejects = Rejects(layout, self._run, settings.storage.rejects_per_day)
        self._recorder = Recorder(
            feed, self._run, settings.journal, self._buffer, journal, rejects, self._ledger, open_gaps, observed
        )  # fmt: skip
        self._accounts = SegmentAccounts(layout, self._ledger, history.segment)
        self._files = _make_file_sinks(settings, layout, self._ledger)
        self._runner = Runner(layout, [self._accounts, *self._files], self._sinks_stop)
        self._report = Report(settings.tickers, self._session, self._buffer, self._recorder, observed)
        self._reader_worker = Worker("reader", self._session.run, self._ended)
        self._recorder_worker = Worker("recorder", self._recorder.run, self._ended)
        self._files_worker = Worker("files", self._runner.run, self._ended)

    def run(self, hurry: threading.Event) -> Conservation:
        """Record until `stop`, then stop in order; `hurry` cuts the sinks short. Returns the run's account.

        Raises what ended a thread (FeedRefused, RowsUnsaved, anything unforeseen) and ConservationViolated.
        """
        workers = (self._reader_worker, self._recorder_worker, self._files_worker)
        for worker in workers:
            worker.start()
        while not self._ended.is_set() and not self._stop.wait(_WATCH_S):
            self._report.tick(time.monotonic())
        log.info("stop.requested", reason="a thread ended" if self._ended.is_set() else "signal")
        self._stop_in_order(hurry)
        account = self._account()
        error = next((worker.error for worker in workers if worker.error is not None), None)
        self._ledger.record("run.stopped", error=None if error is None else type(error).__name__)
        if not self._ledger.close():
            log.error("ledger.unsaved")
        if error is not None:
            raise error
        return self._check(account)

    def _stop_in_order(self, hurry: threading.Event) -> None:
        """Reader, Buffer, recorder, segment, sinks: what flows is drained from the source on."""
        self._stop.set()
        self._session.interrupt()
        self._reader_worker.join(_READER_END_S)  # one that hangs in a handshake has put nothing into the Buffer
        self._buffer.close()
        self._recorder_worker.join()
        self._sinks_stop.set()
        deadline_s = time.monotonic() + self._settings.stop_timeout
        while self._files_worker.is_alive():
            if hurry.is_set() or time.monotonic() > deadline_s:
                self._runner.hurried.set()
            self._files_worker.join(_WATCH_S)

    def _account(self) -> Conservation:
        """What the reader received, what the journal's records count, what the sinks hold of this run."""
        rows = {} if self._runner.hurried.is_set() else {sink.name: sink.rows[self._run] for sink in self._files}
        return Conservation(self._buffer.frames_put, self._accounts.totals.get(self._run, Counts()), rows)

    def _check(self, account: Conservation) -> Conservation:
        """Raises ConservationViolated; where the sinks were cut short the next start completes the account."""
        if self._runner.hurried.is_set():
            log.warning("stop.hurried", left="segments not sealed yet: the next start seals them")
            return account
        violations = account.violations()
        if violations or self._accounts.violations:
            log.error("conservation.violated", equations=violations)
            raise ConservationViolated("; ".join(violations) or "a segment's account does not balance: see the log")
        log.info("conservation.checked", account=str(account))
        return account


def record(settings: Settings, key: str, stop: threading.Event, hurry: threading.Event) -> Conservation:
    """Hold the root and record until `stop`: the work of `ingestor run`. Raises IngestorError, OSError."""
    os.umask(0o027)
    layout = Layout(settings.storage.root.absolute())
    try:
        layout.create()
    except OSError as error:
        raise ConfigError(f"can't use {layout.root} as storage.root: {error.strerror}") from None
    with locked_root(layout):
        log.info(
            "run.started",
            root=str(layout.root),
            version=__version__,
            tickers=len(settings.tickers),
            pid=os.getpid(),
        )
        _clear_staging(layout)
        return Daemon(settings, key, layout, stop).run(hurry)


def _clear_staging(layout: Layout) -> None:
    """Files that a crash left half made: each is made anew from its segment."""
    for path in layout.staging.iterdir():
        if path.suffix != ".lock":
            path.unlink()
            log.info("leftover.removed", file=path.name)


def _inherited_gaps(layout: Layout, history: History) -> list[OpenGap]:
    """The gaps that are open as this run starts: those that the last run left, or the crash that ended it."""
    gaps = [OpenGap(fact["gap"], fact["cause"], fact["since"], fact["symbol"]) for fact in history.open_gaps]
    whole = next((gap for gap in gaps if gap.symbol is None), None)
    if whole is None and history.run and not history.stopped:
        journaled = [last_received_us(file.path) for file in list_segments(layout) if file.id.run == history.run]
        since_us = max([history.last_received, *journaled]) or history.last_at
        gaps.append(OpenGap(f"r{history.run + 1:06d}-0", "crash", since_us))
        log.warning("crash.found", run=history.run, last_received=since_us)
    if whole is not None and whole.cause == "shutdown" and now_us() - whole.since_us < _RESTART_US:
        gaps[gaps.index(whole)] = replace(whole, cause="restart")
    return gaps


def _as_fact(gap: OpenGap) -> dict[str, object]:
    return {"gap": gap.id, "cause": gap.cause, "since": gap.since_us, "symbol": gap.symbol}


def _make_file_sinks(settings: Settings, layout: Layout, ledger: Ledger) -> list[FileSink]:
    """The sinks that `storage.formats` asks for. Raises OSError."""
    sinks: list[FileSink] = []
    if "parquet" in settings.storage.formats:
        sinks.append(ParquetFiles(layout, ledger))
    if "csv" in settings.storage.formats:
        sinks.append(CsvFiles(layout, compress=settings.storage.csv_gzip))
    return sinks
