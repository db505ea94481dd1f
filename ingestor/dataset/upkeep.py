"""What a recorder does for its dataset once a day: a child process at low priority compacts, retention deletes.

In a thread of its own (`UpkeepLoop`): to list years of dates, or to delete one, may take a slow disk minutes, in which
signals are to be heard.
"""

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from functools import partial

import structlog

from ingestor.closed_days import has_days_to_close
from ingestor.dataset.compact import clear_leftovers, has_work, locked_upkeep
from ingestor.dataset.retention import delete_expired
from ingestor.errors import CompactionRunning, IngestorError
from ingestor.layout import Layout
from ingestor.ledger import Ledger

GRACE = timedelta(hours=1)
"""After midnight UTC: late trades come up to 40 minutes after their time."""
_STOP_S = 5.0
_WATCH_S = 0.5

log = structlog.get_logger()


class Upkeep:
    """Looks after one root. `tick` from one thread."""

    def __init__(
        self,
        layout: Layout,
        ledger: Ledger,
        retention_s: float | None,
        venue_now: Callable[[], datetime | None] = lambda: None,
        turned: Callable[[], None] = lambda: None,
    ) -> None:
        """Clear what a crash has left, unless a compaction that was started by hand is at work. What can't be
        cleared is told: the recording goes on without.

        `venue_now` tells the venue's time, where it is known; `turned` is called as the work gets on.
        """
        self._turned = turned
        self._venue_now = venue_now
        self._layout = layout
        self._ledger = ledger
        self._retention = None if retention_s is None else timedelta(seconds=retention_s)
        self._done_for: date | None = None
        self.child: subprocess.Popen[bytes] | None = None
        """The compaction that is under way."""
        try:
            with locked_upkeep(layout):
                clear_leftovers(layout, turned)
        except CompactionRunning:
            log.info("compaction.running", hint="it was started by hand, and clears what an earlier one left")
        except (OSError, IngestorError) as error:
            log.error("upkeep.failed", error=_text(error), hint="the recording goes on without")

    def tick(self, now: datetime | None = None) -> None:
        """Do what is due: once a UTC date, an hour after it began, and once after a start. Never raises OSError."""
        self._reap()
        now = datetime.now(UTC) if now is None else now
        day = (now - GRACE).date()
        if day == self._done_for:
            return
        self._done_for = day
        try:
            if self._retention is not None:
                delete_expired(self._layout, self._ledger, self._retention, now, self._venue_now(), self._turned)
            if self.child is None and (has_days_to_close(self._layout, day) or has_work(self._layout, day)):
                self._start(day)
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

    def _start(self, day: date) -> None:
        command = [sys.executable, "-m", "ingestor", "compact", "--root", str(self._layout.root), "--background"]
        self.child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)  # noqa: S603  our own
        log.info("compaction.started", before=day.isoformat(), pid=self.child.pid)

    def _reap(self) -> None:
        if self.child is not None and (code := self.child.poll()) is not None:
            self.child = None
            if code:
                log.error("compaction.failed", code=code)
            else:
                log.info("compaction.ended")


class UpkeepLoop:
    """Looks after one root until `stop`. `run` is a thread's work."""

    def __init__(
        self,
        layout: Layout,
        ledger: Ledger,
        retention_s: float | None,
        venue_now: Callable[[], datetime | None] = lambda: None,
    ) -> None:
        """Nothing is done yet."""
        self._make = partial(Upkeep, layout, ledger, retention_s, venue_now, self._turn)
        self.stop = threading.Event()
        self.turned_at_s = time.monotonic()
        """When the work last got on."""

    def run(self) -> None:
        upkeep = self._make()
        try:
            while not self.stop.is_set():
                self._turn()
                upkeep.tick()
                self.stop.wait(_WATCH_S)
        finally:
            upkeep.close()

    def _turn(self) -> None:
        self.turned_at_s = time.monotonic()


def _text(error: Exception) -> str:
    """What went wrong, and with which file."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)
