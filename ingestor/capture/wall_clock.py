"""Checks the wall clock, which stamps every receipt, and which may be set, sleep, or be wrong from the start.

Clocks are witnesses. Three of the machine's are compared at each receipt: the wall clock, one that stands still while
the machine sleeps (`CLOCK_MONOTONIC`), one that doesn't (`CLOCK_BOOTTIME`). So a sleep, a step and a slow drift are
told apart; a machine that merely stood still (see `PauseDetector`) moves all three alike. The venue is the fourth: the
`Date` of its handshake, and the times of its trades.

What waited in the socket over a sleep or a standstill is stamped when it is read: `received_at` is the time of receipt,
never of sending, and coverage is told by it. How late trades were is in the rows, and bars allow for it.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from statistics import median
from typing import NamedTuple

import structlog

from ingestor.capture.gaps import Gaps
from ingestor.ledger import Ledger

STEP_US = 2_000_000
WRONG_US = 10_000_000
"""A `Date` is of whole seconds, and a handshake takes up to ten: less says nothing."""
_BLOCKS = 64
_TRADES = 3
_DAY_US = 86_400_000_000
_WAITING_US = 60_000_000
"""So long before the clock was set, at most, a block was received that is looked at afterwards."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_BOOTTIME: int | None = getattr(time, "CLOCK_BOOTTIME", None)  # Linux has it

log = structlog.get_logger()


class Reading(NamedTuple):
    """Three clocks at one moment, in µs."""

    wall_us: int
    monotonic_us: int
    boottime_us: int

    @classmethod
    def now(cls) -> "Reading":
        monotonic_us = time.monotonic_ns() // 1000
        boottime_us = monotonic_us if _BOOTTIME is None else time.clock_gettime_ns(_BOOTTIME) // 1000
        return cls(time.time_ns() // 1000, monotonic_us, boottime_us)


@dataclass(frozen=True, slots=True)
class Step:
    """How far the wall clock went beyond the time that was lived."""

    by_us: int
    slept_us: int
    """How much of it the machine slept; the rest was set."""
    since_us: int
    """The last that was shown before: nobody knows what of the time since then is the step."""


class WallClock:
    """Compares readings. Pure. A drift below 2 s from one to the next is none: NTP slews by 0.5 ms a second. So that no
    two receipts change places by one, what is shown stands still until a clock that fell back by less has caught up.
    """

    def __init__(self, reading: Reading) -> None:
        self._last = reading
        self.shown_us = reading.wall_us
        """The wall clock; since the last step never less than before."""

    def find_step(self, reading: Reading) -> Step | None:
        """What happened since the last reading; None where time just passed."""
        last, self._last = self._last, reading
        lived_us = reading.monotonic_us - last.monotonic_us
        slept_us = reading.boottime_us - last.boottime_us - lived_us
        set_us = reading.wall_us - last.wall_us - lived_us - slept_us
        since_us, self.shown_us = self.shown_us, reading.wall_us
        if abs(slept_us) > STEP_US or abs(set_us) > STEP_US:
            return Step(set_us + slept_us, slept_us, since_us)
        if reading.wall_us < since_us - STEP_US:  # in several small ones
            return Step(reading.wall_us - since_us, 0, since_us)
        self.shown_us = max(since_us, reading.wall_us)
        return None


class VenueTime:
    """Our clock against the venue's. Pure; differences are ours less the venue's, in µs.

    The `Date` of a handshake is believed at once. Trades alone show that our clock is behind where those of block
    after block, whatever their symbols, are ahead of it alike: nobody sends from the future. That they are late
    shows nothing, since feeds may be delayed.
    """

    def __init__(self) -> None:
        self._by_date_us: int | None = None
        self._newest_us: deque[int] = deque(maxlen=_BLOCKS)
        """Of the newest trade in each of the last blocks."""
        self._ahead_us: deque[int] = deque(maxlen=_TRADES)
        """Of the last trades that were too far ahead to be taken, with none between that was not."""
        self._before: tuple[int, int | None] = 0, None
        """The last receipt before our clock was set, by it, and what the `Date` had told of it until then."""

    def saw_date(self, date: str | None, now_us: int) -> None:
        """The header of an answer that came at `now_us`; what can't be read says nothing."""
        try:
            told_us = None if date is None else round(parsedate_to_datetime(date).timestamp() * 1e6)
        except (ValueError, OverflowError):
            told_us = None
        self._by_date_us = None if told_us is None else now_us - told_us

    def saw_trades(self, newest_us: int) -> None:
        """A block was recorded, the newest of whose trades has this difference."""
        self._newest_us.append(newest_us)
        if newest_us > -_DAY_US:
            self._ahead_us.clear()

    def saw_ahead(self, differences_us: list[int], received_us: int) -> int:
        """All trades of a block are over a day ahead: by how much our clock may be taken to be behind; 0: not at all.

        Taken from a `Date` that agrees, or, without one, from three trades that agree with each other to an hour
        while none came that fits our clock. `received_us` is when the block came: if that was before our clock was set,
        it is judged by what the `Date` told then.
        """
        until_us, by_date_us = self._before
        if by_date_us is not None and 0 <= until_us - received_us <= _WAITING_US:
            told_us = -round(median(differences_us))
            return told_us if abs(told_us + by_date_us) < _DAY_US else 0
        self._ahead_us.extend(differences_us)
        told_us = -round(median(self._ahead_us))
        if self._by_date_us is not None:
            return told_us if abs(told_us + self._by_date_us) < _DAY_US else 0
        alike = max(self._ahead_us) - min(self._ahead_us) < 3_600_000_000
        fits = any(newest_us > -_DAY_US for newest_us in self._newest_us)
        return told_us if alike and len(self._ahead_us) == _TRADES and not fits else 0

    def step(self, by_us: int, since_us: int) -> None:
        """Our clock was set by so much; `since_us` is the last that it had shown. Trades that are too far ahead even so
        count on: else each sleep costs two.
        """
        self._before = since_us, self._by_date_us
        if self._by_date_us is not None:
            self._by_date_us += by_us
        self._newest_us.clear()
        still_us = [moved_us for ahead_us in self._ahead_us if (moved_us := ahead_us + by_us) <= -_DAY_US]
        self._ahead_us = deque(still_us, maxlen=_TRADES)

    @property
    def wrong_us(self) -> int:
        """By how much our clock is wrong; 0: as far as can be told it isn't. Negative where it is behind."""
        trades_us = self.trades_us
        if self._by_date_us is None:
            return trades_us if trades_us is not None and trades_us < -WRONG_US else 0
        fits = trades_us is not None and abs(trades_us) <= WRONG_US  # the venue's `Date` is wrong, or its proxy's
        return 0 if fits or abs(self._by_date_us) <= WRONG_US else self._by_date_us

    @property
    def trades_us(self) -> int | None:
        """Of the venue's newest trades, whatever the reason; None before some came."""
        newest_us = list(self._newest_us)
        return round(median(newest_us)) if len(newest_us) >= _TRADES else None

    @property
    def by_date_us(self) -> int | None:
        """By the venue's `Date`."""
        return self._by_date_us


class Clock:
    """Stamps receipts, for any thread, and tells the ledger and the log what is wrong with the stamps."""

    def __init__(self, ledger: Ledger, gaps: Gaps, read: Callable[[], Reading] = Reading.now) -> None:
        reading = read()
        self._read = read
        self._ledger = ledger
        self._lock = threading.Lock()
        self._wall = WallClock(reading)
        self._since_us = reading.wall_us
        """Since when the wall clock has not been set, as far as we were there."""
        self._doubted = False
        self.venue = VenueTime()
        self.on_step: list[Callable[[int], None]] = [gaps.step]
        """Called with each step, by whoever finds it: receipts before it are compared with what comes, by their times
        on the clock as it is now.
        """

    def now_us(self) -> int:
        """The wall clock, in µs since 1970. What it skipped since it was last asked is in the ledger first."""
        with self._lock:
            reading = self._read()
            step = self._wall.find_step(reading)
            if step is not None:
                self._ledger.record(
                    "clock.stepped", at=reading.wall_us, by_us=step.by_us, slept_us=step.slept_us, since=step.since_us
                )
                log.warning("clock.stepped", by_s=round(step.by_us / 1e6, 3), slept_s=round(step.slept_us / 1e6, 3))
                self._since_us = reading.wall_us
                self._doubted = False  # coverage begins anew with a step: what is still wrong is told again
                for tell in self.on_step:
                    tell(step.by_us)
                self.venue.step(step.by_us - step.slept_us, step.since_us)
            return self._wall.shown_us

    def opened(self, date: str | None) -> None:
        """A connection has opened, with this `Date` in the venue's answer."""
        now_us = self.now_us()
        self.venue.saw_date(date, now_us)
        self.doubt()

    def venue_now(self) -> datetime | None:
        """What time it is by the venue's `Date`; None: it told none."""
        by_date_us = self.venue.by_date_us
        now_us = self.now_us()
        return None if by_date_us is None else _EPOCH + timedelta(microseconds=now_us - by_date_us)

    def doubt(self) -> None:
        """Whether the wall clock is wrong: while it is, nothing is claimed of the time that it shows."""
        with self._lock:
            wrong_us = self.venue.wrong_us
            if bool(wrong_us) == self._doubted:
                return
            self._doubted = bool(wrong_us)
            if wrong_us:
                self._ledger.record("clock.doubted", by_us=wrong_us, since=self._since_us)
                log.error(
                    "clock.wrong", by_s=round(wrong_us / 1e6, 1), hint="set this computer's clock: see timedatectl"
                )
            else:
                self._ledger.record("clock.trusted")
                log.info("clock.trusted")
