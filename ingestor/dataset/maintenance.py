"""Deletes expired days and compacts closed ones, once per day, in a thread of its own.

A child process at low priority compacts. The work has a thread (`MaintenanceLoop`) because listing years of dates, or
deleting one, may take minutes on a slow disk, and signals must be handled meanwhile.
"""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime, timedelta
from functools import partial
from operator import itemgetter
from pathlib import Path

import structlog

from ingestor.closed_days import has_days_to_close, is_mirrored
from ingestor.dataset.compact import clear_leftovers, has_work, locked_maintenance, remove_day
from ingestor.dataset.raw import list_raw_days
from ingestor.dataset.snapshot import date_folder, list_days, list_names, parse_days
from ingestor.errors import CompactionRunning, IngestorError
from ingestor.history import read_history
from ingestor.layout import Layout, is_own, locked_date, sync_directory
from ingestor.ledger import Ledger

log = structlog.get_logger()

_DAY = timedelta(days=1)
_REST = timedelta(days=5)

GRACE = timedelta(hours=1)
"""After midnight UTC: late trades come up to 40 minutes after their time."""
_STOP_S = 5.0
_WATCH_S = 2.0


def delete_expired(
    layout: Layout,
    ledger: Ledger,
    retention: timedelta,
    now: datetime,
    venue: datetime | None = None,
    turned: Callable[[], None] = lambda: None,
    *,
    mirrored: bool = False,
) -> list[date]:
    """Delete the UTC dates of trades and CSV that ended longer ago than `retention`, and return them. `turned` is
    called for each file that is removed. `mirrored`: a date stays until the mirror's copy of its trades was read back.
    Raises OSError.

    A deletion can't be undone, so no clock is trusted alone: a date goes once the wall clock (`now`) and the venue's
    clock (`venue`, where it is known) say that it is old enough, and neither the newest date of trades nor the newest
    receipt that the last run accounted for is older than that by more than a long weekend, in which nothing trades.
    Where only the wall clock says so, a warning is logged and nothing is deleted.
    """
    days = _days(layout)
    expired = _find_expired(layout, days, retention, now, venue, (layout.trades, layout.csv))
    if mirrored:
        unsafe = [day for day in expired if list_names(date_folder(layout, day)) and not is_mirrored(layout, day)]
        if unsafe:
            log.warning(
                "retention.unmirrored", days=len(unsafe), oldest=unsafe[0].isoformat(),
                hint="they stay on the disk until the mirror has them, and each was read back",
            )  # fmt: skip
        expired = [day for day in expired if day not in unsafe]
    for day in expired:
        # The fact first: after a crash the next call deletes the day; never is one missing that no fact names.
        ledger.record("day.deleted", date=day.isoformat(), retention_s=retention.total_seconds())
        _delete_day(layout, day, (layout.trades, layout.csv), turned)
        log.info("day.deleted", date=day.isoformat())
    return expired


def delete_expired_frames(
    layout: Layout,
    ledger: Ledger,
    keep: timedelta,
    now: datetime,
    venue: datetime | None = None,
    turned: Callable[[], None] = lambda: None,
) -> list[date]:
    """The same for the frames as they came (`storage.raw`), by the UTC date of their receipt. Raises OSError."""
    expired = _find_expired(layout, list_raw_days(layout), keep, now, venue, (layout.raw,))
    for day in expired:
        ledger.record("raw.deleted", date=day.isoformat(), keep_s=keep.total_seconds())
        _delete_day(layout, day, (layout.raw,), turned)
        log.info("raw.deleted", date=day.isoformat())
    return expired


def _find_expired(
    layout: Layout,
    days: list[date],
    retention: timedelta,
    now: datetime,
    venue: datetime | None,
    kinds: Iterable[Path],
) -> list[date]:
    """Those of these dates that every clock calls old enough, and of which one of these folders holds a file of ours.
    Frames are dated by the wall clock: only trades are a witness, and where there are none nothing is deleted.
    """
    witnessed = _days(layout)
    if not days or not witnessed:
        return []
    witnesses = {"wall clock": now, "newest trade": _end(witnessed[-1]) + _REST}
    if received_us := read_history(layout).last_received:
        witnesses["ledger"] = datetime.fromtimestamp(received_us / 1e6, UTC) + _REST
    if venue is not None:
        witnesses["venue"] = venue
    witness, agreed = min(witnesses.items(), key=itemgetter(1))
    waiting = [day for day in days if agreed < _end(day) + retention <= now]
    if waiting:
        log.warning(
            "retention.waiting", days=len(waiting), wall_clock=now.isoformat(timespec="seconds"), witness=witness,
            says=agreed.isoformat(timespec="seconds"), hint="nothing is deleted on one clock's word: which is right?",
        )  # fmt: skip
    return [day for day in days if _end(day) + retention <= agreed and any(_has_own(kind, day) for kind in kinds)]


def _has_own(kind: Path, day: date) -> bool:
    """Whether there is a folder of this date that holds more than what an earlier deletion has left to others."""
    folder = kind / f"date={day.isoformat()}"
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else None
    return names == [] or any(is_own(f"{kind.name}/{folder.name}/{name}") for name in names or ())


def _delete_day(layout: Layout, day: date, kinds: Iterable[Path], turned: Callable[[], None]) -> None:
    """Each folder goes in one step, so that no reader finds a part of it. Raises OSError."""
    with locked_date(layout, day):
        for folder in filter(Path.is_dir, (kind / f"date={day.isoformat()}" for kind in kinds)):
            aside = layout.staging / f"{folder.parent.name}.{folder.name}.deleted"
            remove_day(layout, aside, turned)  # left by a crash
            folder.rename(aside)
            sync_directory(folder.parent)
            remove_day(layout, aside, turned)


def _end(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC) + _DAY


def _days(layout: Layout) -> list[date]:
    csv_days = parse_days(path.name for path in layout.csv.iterdir()) if layout.csv.is_dir() else ()
    return sorted({*list_days(layout), *csv_days})


class Maintenance:
    """The maintenance of one root. Call `tick` from one thread only."""

    def __init__(
        self,
        layout: Layout,
        ledger: Ledger,
        retention_s: float | None,
        venue_now: Callable[[], datetime | None] = lambda: None,
        turned: Callable[[], None] = lambda: None,
        *,
        keep_frames_s: float | None = None,
        mirrored: bool = False,
    ) -> None:
        """Clear what a crash has left, unless a compaction that was started by hand is running. What can't be cleared
        is logged: the recording goes on.

        `venue_now` returns the venue's time, where it is known; `turned` is called as the work proceeds.
        """
        self._turned = turned
        self._venue_now = venue_now
        self._layout = layout
        self._ledger = ledger
        self._mirrored = mirrored
        self._retention = None if retention_s is None else timedelta(seconds=retention_s)
        self._keep_frames = None if keep_frames_s is None else timedelta(seconds=keep_frames_s)
        self._done_for: date | None = None
        self.child: subprocess.Popen[bytes] | None = None
        """The compaction that is under way."""
        try:
            with locked_maintenance(layout):
                clear_leftovers(layout, turned)
        except CompactionRunning:
            log.info("compaction.running", hint="it was started by hand, and clears what an earlier one left")
        except (OSError, IngestorError) as error:
            log.error("upkeep.failed", error=_text(error), hint="the recording goes on without")

    def tick(self, now: datetime | None = None) -> None:
        """Do what is due: once per UTC date, an hour after it began, and once after a start. Never raises OSError."""
        if self.child is not None and (code := self.child.poll()) is not None:
            self.child = None
            if code:
                log.error("compaction.failed", code=code)
            else:
                log.info("compaction.ended")
        now = datetime.now(UTC) if now is None else now
        day = (now - GRACE).date()
        if day == self._done_for:
            return
        self._done_for = day
        try:
            if self._retention is not None:
                delete_expired(
                    self._layout, self._ledger, self._retention, now, self._venue_now(), self._turned,
                    mirrored=self._mirrored,
                )  # fmt: skip
            if self._keep_frames is not None:
                keep, venue = self._keep_frames, self._venue_now()
                delete_expired_frames(self._layout, self._ledger, keep, now, venue, self._turned)
            if self.child is None and (has_days_to_close(self._layout, day) or has_work(self._layout, day)):
                root = str(self._layout.root)
                command = [sys.executable, "-m", "ingestor", "compact", "--root", root, "--background"]
                self.child = subprocess.Popen(  # noqa: S603  our own
                    command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
                )
                log.info("compaction.started", before=day.isoformat(), pid=self.child.pid)
        except (OSError, IngestorError) as error:
            log.error("upkeep.failed", error=_text(error), hint="it is tried again tomorrow")

    def close(self) -> None:
        """End a compaction that is under way; what it leaves is cleared at the next start."""
        if self.child is not None:
            self.child.terminate()
            try:
                self.child.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self.child.kill()
                self.child.wait()
            self.child = None


class MaintenanceLoop:
    """The maintenance of one root until `stop`. `run` is the body of its thread."""

    def __init__(
        self,
        layout: Layout,
        ledger: Ledger,
        retention_s: float | None,
        venue_now: Callable[[], datetime | None] = lambda: None,
        *,
        keep_frames_s: float | None = None,
        mirrored: bool = False,
    ) -> None:
        """Nothing is done yet. `mirrored`: see `delete_expired`."""
        self._make = partial(
            Maintenance, layout, ledger, retention_s, venue_now, self._turn,
            keep_frames_s=keep_frames_s, mirrored=mirrored,
        )  # fmt: skip
        self.stop = threading.Event()
        self.turned_at_s = time.monotonic()
        """When the work last made progress."""

    def run(self) -> None:
        """Do what is due until `stop` is set."""
        maintenance = self._make()
        try:
            while not self.stop.is_set():
                self._turn()
                maintenance.tick()
                self.stop.wait(_WATCH_S)
        finally:
            maintenance.close()

    def _turn(self) -> None:
        self.turned_at_s = time.monotonic()


def _text(error: Exception) -> str:
    """What went wrong, and with which file."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)
