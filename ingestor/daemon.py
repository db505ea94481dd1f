"""The recorder's process: startup, main loop with its progress in the log, shutdown, and the error that ends it."""

import contextlib
import os
import shlex
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import structlog

from ingestor import __version__
from ingestor.config import DEFAULT_PATH, Settings, Source
from ingestor.config.sections import StorageSettings
from ingestor.dataset.maintenance import MaintenanceLoop
from ingestor.errors import ConfigError, ConservationViolated, IngestorError, RootDeleted, RowsUnsaved
from ingestor.layout import Layout, RootLock, is_own, list_foreign, locked_root, remove_tree
from ingestor.metrics import REPEATED, Conservation, Counts
from ingestor.operations.alerts import AlertProcess, make_alert_process
from ingestor.operations.backfill_process import BackfillProcess, make_backfill_process
from ingestor.operations.collector import Watch
from ingestor.operations.health import HealthServer, open_health
from ingestor.operations.key_lock import locked_key
from ingestor.operations.reload import LiveSettings
from ingestor.operations.systemd import Notifier, Service, Signals
from ingestor.recording import Recording, make_sink_process, prepare
from ingestor.sinks.process import SinkProcess
from ingestor.store import require_folder
from ingestor.system import FreeMemory

_WATCH_S = 0.5
_READER_END_S = 2.5
_HURRY_S = 1.0
_LEDGER_END_S = 10.0
_MAINTENANCE_END_S = 10.0
_SUMMARY_S = 15.0
_PROGRESS_S = 60.0
_NAMED = 5
DEFAULT_ROOT: Path = StorageSettings().root
_FOREIGN_NAMED = 5

log = structlog.get_logger()


class Worker(threading.Thread):
    """A thread that never dies quietly: what ended it is kept, and `ended` is set."""

    def __init__(self, name: str, work: Callable[[], None], ended: threading.Event) -> None:
        super().__init__(name=name, daemon=True)
        self._work = work
        self._ended = ended
        self.error: BaseException | None = None

    def run(self) -> None:
        with contextlib.suppress(OSError):  # the name that `top -H` shows; nothing hangs on it
            Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text(self.name)
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001  whatever ends a thread ends the process, in order
            self.error = error
        finally:
            self._ended.set()


class Report:
    """Logs one summary soon after the start, then a line of progress per minute; never a line per trade."""

    def __init__(self, recording: Recording) -> None:
        self._groups = recording.groups
        self._sessions = [session for group in recording.groups for session in group.sessions]
        self._connections = recording.connections
        self._division = recording.division
        self._markets = recording.markets
        self._buffer = recording.buffer
        self._recorder = recording.recorder
        self._observed = recording.observed
        feed = recording.settings.feed
        self._is_json, self._has_plans = feed.type == "json", feed.type == "finnhub"
        self._layout, self._formats = recording.layout, recording.settings.storage.formats
        self._begun = False
        self._welcome_at_s: float | None = time.monotonic() + _SUMMARY_S
        self._last_at_s = time.monotonic()
        self._last_trades = 0

    def tick(self, now_s: float) -> None:
        """Say what is due."""
        if not self._begun and self._observed.last_trade_s:
            self._begun = True
            # Where it goes, and what to type next.
            root = self._layout.root
            named = "" if root == DEFAULT_ROOT.absolute() else f" --root {shlex.quote(str(root))}"
            places = {"parquet": self._layout.trades, "csv": self._layout.csv}
            log.info(
                "recording.begun",
                symbol=next(iter(list(self._observed.last_trade_s))),
                files=", ".join(str(places[kind]) for kind in self._formats),
                watch=f"ingestor tail{named}",
                stop=f"ingestor stop{named}",
            )
        if self._welcome_at_s is not None and now_s >= self._welcome_at_s:
            self._welcome_at_s = None
            log.info("recording.summarized", summary=self.summary(datetime.now(UTC)))
        if now_s >= self._last_at_s + _PROGRESS_S:
            counts = self._recorder.counts
            rate = (counts.trades - self._last_trades) / (now_s - self._last_at_s)
            self._last_at_s, self._last_trades = now_s, counts.trades
            minute_ago_s = now_s - _PROGRESS_S
            log.info(
                "recording.progressed",
                trades=counts.trades,
                trades_per_s=round(rate, 1),
                frames=counts.frames,
                rejected=counts.rejected_frames + counts.rejected_trades - self._recorder.reasons[REPEATED],
                ticking=sum(at_s >= minute_ago_s for at_s in list(self._observed.last_trade_s.values())),
                connected=self._connected,
                connections=self._connections.opened,
                **({"open": self._open} if len(self._sessions) > 1 else {}),
                buffer_bytes=self._buffer.bytes,
                lag_ms=round(self._buffer.lag_s() * 1000),
                pauses=self._buffer.pauses,
            )

    @property
    def _open(self) -> int:
        return sum(session.connected for session in self._sessions)

    @property
    def _connected(self) -> bool:
        return all(group.connected for group in self._groups)

    def summary(self, now: datetime) -> str:
        """One sentence for a newcomer: `connected; 2 of 4 ticking; AAPL, MSFT silent: the US market is closed`."""
        link = "connected" if self._connected else "not connected"
        if len(self._sessions) > 1:
            link = f"{len(self._sessions)} connections, {self._open} open"
        symbols = self._division.symbols
        silent = [symbol for symbol in symbols if symbol not in self._observed.last_trade_s]
        ticking = f"{len(symbols) - len(silent)} of {len(symbols)} ticking"
        closed = [symbol for symbol in silent if self._markets.phase(symbol, now) == "closed"]
        puzzling = [symbol for symbol in silent if symbol not in closed]
        parts = [link, ticking]
        stocks = [symbol for symbol in closed if ":" not in symbol]
        currencies = [symbol for symbol in closed if ":" in symbol]
        if stocks:
            parts.append(f"{_name(stocks)} silent: the US market is closed")
        if currencies:
            parts.append(f"{_name(currencies)} silent: the currency market is closed")
        if puzzling:
            parts.append(f"{_name(puzzling)} silent: {self._why_silent()}")
        return "; ".join(parts)

    def _why_silent(self) -> str:
        """As far as it is known. Names may differ from those asked for; a message may fit nothing."""
        counts = self._recorder.counts
        unasked = sorted(set(self._observed.last_trade_s) - set(self._division.symbols))
        if not self._open:
            return "there is no connection"
        if not counts.frames:
            return "the venue has sent nothing yet"
        if unasked:
            return f"trades come of {_name(unasked)}, which nobody asked for"
        unread = self._observed.unread
        if unread and not counts.trades:
            kind = (
                "says what `feed.match` asks for"
                if self._is_json and not unread.rejected
                else "could be read as a trade"
            )
            return f"{unread.messages} messages came, and none {kind} ({unread.reason}): {unread.sample}"
        if unread:
            return f"no trade yet, and {unread.messages} messages fit nothing ({unread.reason}): {unread.sample}"
        return "no trade yet, or not on your plan" if self._has_plans else "no trade yet"


def _name(symbols: Sequence[str]) -> str:
    more = len(symbols) - _NAMED
    return ", ".join(symbols[:_NAMED]) + (f" and {more} more" if more > 0 else "")


class Daemon:
    """One run of the recorder on one root, whose lock is held by the caller."""

    def __init__(
        self,
        recording: Recording,
        sinks: SinkProcess | None,
        source: Source,
        signals: Signals,
        sinks_stop: threading.Event,
        alerts: AlertProcess | None = None,
        backfill: BackfillProcess | None = None,
    ) -> None:
        """`recording` was prepared with `signals.stop` and `sinks_stop`; `sinks` carry elsewhere what it journals,
        `alerts` tell people, and `backfill` fills gaps.
        """
        self._recording = recording
        self._signals = signals
        self._sinks_stop = sinks_stop
        self._ended = threading.Event()
        self._readers = [
            Worker("reader", session.run, self._ended) for group in recording.groups for session in group.sessions
        ]
        self._recorder = Worker("recorder", recording.recorder.run, self._ended)
        self._files = Worker("files", recording.runner.run, self._ended)
        self._sinks = sinks
        self._alerts = alerts
        self._sinks_worker = Worker("sinks", sinks.run, self._ended) if sinks else None
        self._report = Report(recording)
        self._watch = Watch(recording, backfill)
        self._backfill = backfill
        # What ends this thread ends nothing else: its own event is looked at by nobody.
        self._backfill_worker = Worker("backfill", backfill.run, threading.Event()) if backfill else None
        self._live_settings = LiveSettings(source, recording.settings, recording.division, recording.ledger)
        storage = recording.settings.storage
        self._maintenance = MaintenanceLoop(
            recording.layout, recording.ledger, storage.retention, recording.clock.venue_now,
            keep_frames_s=storage.raw.keep if storage.raw else None,
            mirrored=recording.settings.sinks.object_store is not None,
        )  # fmt: skip
        self._maintenance_worker = Worker("upkeep", self._maintenance.run, self._ended)
        self._service = Service(Notifier())
        self._memory = FreeMemory()
        self._disk_low = False

    def run(self, lock: RootLock) -> Conservation:
        """Record until `stop`, then stop in order. Returns the run's account.

        Raises what ended a thread (FeedRefused, RowsUnsaved, anything unforeseen) and ConservationViolated.
        """
        workers = [*self._readers, self._recorder, self._files, self._maintenance_worker]
        workers += [self._sinks_worker] if self._sinks_worker else []
        for worker in workers:
            worker.start()
        if self._backfill_worker:
            self._backfill_worker.start()
        health: HealthServer | None = None
        failure: BaseException | None = None
        try:
            health = open_health(self._recording.settings.health, self._watch)
            lock.announce(health=health.address if health else None)
            while not self._ended.is_set() and not self._signals.stop.wait(_WATCH_S):
                self._tick(time.monotonic())
                if lock.deleted:
                    raise RootDeleted(f"{self._recording.layout.root} was deleted under the recorder")
        except BaseException as error:  # noqa: BLE001  whatever ends the main thread ends the process, in order
            failure = error
        failure = failure or next((worker.error for worker in workers if worker.error is not None), None)
        reason = "signal"
        if failure:
            known = isinstance(failure, IngestorError)
            reason = str(failure) if known else f"{type(failure).__name__}: {failure}"
        log.info("stop.requested", reason=reason)
        unsaved = self._stop_in_order()
        # Only now: while it stops, whoever watches can still ask. The ledger is last, since it says how the run ended.
        if health:
            health.close()
        account = self._account()
        cause = failure or next((worker.error for worker in workers if worker.error is not None), unsaved)
        self._close_ledger(cause)
        if self._alerts:
            self._alerts.end(cause)
        self._mirror_end()
        if cause is not None:
            raise cause
        return self._check(account)

    def _tick(self, now_s: float) -> None:
        """One turn of the main thread, twice per second."""
        self._watch.tick(now_s)
        self._report.tick(now_s)
        self._memory.tick(now_s)
        if self._alerts:
            self._alerts.tick(now_s)
        # The thread that is furthest behind feeds the watchdog, by its own progress: none may hide behind another.
        others = [self._maintenance.turned_at_s, *([self._sinks.turned_at_s] if self._sinks else [])]
        self._service.prove(min(self._recording.recorder.turned_at_s, *self._watch.turns(now_s), *others), now_s)
        if self._service.due(now_s):
            self._look()
        if self._signals.reload.is_set() or self._live_settings.file_changed(now_s):
            self._signals.reload.clear()
            self._service.reloading()
            self._live_settings.reload()
            self._service.reloaded()

    def _look(self) -> None:
        """Tell the service manager the status, and note a disk that is running full."""
        try:
            status = self._watch.look()
        except OSError as error:  # whether it can be written to is the journal's to find out
            log.error("disk.unknown", error=error.strerror or str(error))
            return
        self._service.tell(status)
        # At the floor the log and the ledger say so, once; the recording goes on while the disk takes it.
        free, floor = status.disk.free_bytes, status.disk.floor_bytes
        if free < floor and not self._disk_low:
            self._recording.ledger.record("disk.low", free=free, floor=floor)
            log.error("disk.low", free=free, floor=floor, hint="make room: at zero the recording waits in memory")
        elif self._disk_low and free >= floor:
            self._recording.ledger.record("disk.recovered", free=free, floor=floor)
            log.info("disk.recovered", free=free, floor=floor)
        self._disk_low = free < floor

    def _stop_in_order(self) -> RowsUnsaved | None:
        """Reader, Buffer, recorder, segment, sinks: each ends when all that comes before it has ended and is drained.

        Returns an error if a disk that never answers holds the recorder beyond `stop_timeout`.
        """
        recording, signals = self._recording, self._signals
        self._service.stopping()
        signals.stop.set()
        if self._backfill:
            self._backfill.end()
        self._join_readers()  # one that hangs in a handshake has put nothing into the Buffer
        recording.buffer.close()
        self._join_readers()  # one that waited for room goes on now, and has the ledger still to write
        unsaved: RowsUnsaved | None = None
        deadline_s = time.monotonic() + recording.settings.stop_timeout
        while self._recorder.is_alive():
            if time.monotonic() >= deadline_s:
                rows, frames = recording.journal.unsynced.rows, recording.buffer.frames_waiting
                unsaved = RowsUnsaved(f"{rows} trades and {frames} frames could not be saved: the disk doesn't answer")
                break
            self._recorder.join(_WATCH_S)
            self._service.prove(recording.recorder.turned_at_s, time.monotonic())
        # Let the maintenance end its child. What it is deleting on a slow disk, the next start deletes.
        self._maintenance.stop.set()
        deadline_s = time.monotonic() + min(_MAINTENANCE_END_S, recording.settings.stop_timeout)
        while self._maintenance_worker.is_alive() and not signals.hurry.is_set() and time.monotonic() < deadline_s:
            self._service.prove(time.monotonic(), time.monotonic())
            self._maintenance_worker.join(_WATCH_S)
        if self._maintenance_worker.is_alive():
            log.warning("upkeep.left", hint="the next start goes on with it")
        deadline_s = time.monotonic() + recording.settings.stop_timeout
        self._end_follower(self._files, self._sinks_stop, recording.runner.hurried, deadline_s)
        if self._sinks and self._sinks_worker:  # after the files, which a mirror waits for
            self._end_follower(self._sinks_worker, self._sinks.stop, self._sinks.hurried, deadline_s)
        return unsaved

    def _join_readers(self) -> None:
        deadline_s = time.monotonic() + _READER_END_S
        for reader in self._readers:
            reader.join(max(deadline_s - time.monotonic(), 0.0))

    def _end_follower(
        self, follower: Worker, stop: threading.Event, hurried: threading.Event, deadline_s: float
    ) -> None:
        """Let it come to the journal's end, by the deadline and unless a second signal asks for haste."""
        stop.set()
        while follower.is_alive() and not self._signals.hurry.is_set() and (now_s := time.monotonic()) < deadline_s:
            self._service.prove(now_s, now_s)  # `stop_timeout` bounds it: sealing a large segment is one long step
            follower.join(_WATCH_S)
        if follower.is_alive():
            hurried.set()
            follower.join(_HURRY_S)  # one that waits for a lock or a disk is left to it, as a crash would leave it

    def _close_ledger(self, error: BaseException | None) -> None:
        ledger = self._recording.ledger

        def close() -> None:
            ledger.record("run.stopped", error=None if error is None else type(error).__name__)
            if not ledger.close():
                log.error("ledger.unsaved")

        closing = Worker("ledger", close, self._ended)  # a disk that never answers must not hold up the end
        closing.start()
        closing.join(_LEDGER_END_S)
        if closing.is_alive():
            log.error("ledger.unsaved", hint="the disk doesn't answer: the next start finds a crash")

    def _mirror_end(self) -> None:
        """The mirror gets the ledger's last word, which comes after all sinks have ended."""
        if self._sinks is None or not self._sinks.has_mirror or self._signals.hurry.is_set():
            return
        ending = Worker("mirror", self._sinks.mirror_end, self._ended)
        ending.start()
        while ending.is_alive() and not self._signals.hurry.is_set():
            self._service.prove(time.monotonic(), time.monotonic())  # its own timeout bounds it
            ending.join(_WATCH_S)

    def _account(self) -> Conservation:
        """Counts of this run by the reader, by the journal's records, and by the sinks."""
        recording = self._recording
        hurried = recording.runner.hurried.is_set()
        rows = {} if hurried else {sink.name: sink.rows[recording.run] for sink in recording.files}
        counts = recording.accounts.totals.get(recording.run, Counts())
        keeps_frames = recording.settings.storage.raw is not None and not hurried
        kept = recording.raw.frames[recording.run] if keeps_frames else None
        filled = recording.accounts.filled[recording.run]
        repeats = recording.recorder.reasons[REPEATED]
        return Conservation(recording.buffer.frames_put, counts, rows, kept, filled, repeats)

    def _check(self, account: Conservation) -> Conservation:
        """Raises ConservationViolated; where the sinks were cut short the next start completes the account."""
        if self._recording.runner.hurried.is_set():
            log.warning("stop.hurried", left="segments not sealed yet: the next start seals them")
            return account
        violations = account.violations()
        if violations or self._recording.accounts.violations:
            log.error("conservation.violated", equations=violations)
            raise ConservationViolated("; ".join(violations) or "a segment's account does not balance: see the log")
        log.info("conservation.checked", account=str(account))
        return account


def record(
    settings: Settings, source: Source, key: str, signals: Signals, secret: str = "", receivers: Sequence[str] = ()
) -> Conservation:
    """Hold the root and the key, and record until `signals.stop`: the work of `ingestor run`. `secret` is what some
    venues want beside the key; `receivers` are the addresses that alerts go to.

    `source` is where `settings` came from. Raises IngestorError, OSError.
    """
    os.umask(0o027)
    require_folder(settings.storage.root)
    layout = Layout(settings.storage.root.absolute())
    sinks = make_sink_process(settings, layout, (source.path or DEFAULT_PATH).parent)
    try:
        layout.create()
    except OSError as error:
        raise ConfigError(f"can't use {layout.root} as storage.root: {error.filename}: {error.strerror}") from None
    with locked_root(layout) as lock, locked_key(key, settings.feed.url):
        log.info(
            "run.started", root=str(layout.root), version=__version__, tickers=len(settings.symbols), pid=os.getpid()
        )
        # Files that a crash left half made: each is made anew from its segment. Folders are for compaction to clear.
        for path in layout.staging.iterdir():
            if is_own(f"staging/{path.name}") and path.suffix != ".lock" and not path.is_dir():
                log.info("leftover.removed", file=path.name)
                remove_tree(path)
        if foreign := list(list_foreign(layout, depth=0)):
            hint = "not of this recording, and left as they are: `ingestor verify` names all of them"
            log.warning("files.foreign", files=foreign[:_FOREIGN_NAMED], count=len(foreign), hint=hint)
        sinks_stop = threading.Event()
        recording = prepare(settings, key, layout, signals.stop, sinks_stop, secret)
        alerts = make_alert_process(settings, layout, receivers, after_crash=recording.after_crash)
        backfill = make_backfill_process(
            settings, layout, key, (source.path or DEFAULT_PATH).parent, recording.ledger, recording.recorder.fills
        )
        return Daemon(recording, sinks, source, signals, sinks_stop, alerts, backfill).run(lock)
