"""Tells the ledger and the log of each connection: how it began, what of it was seen, why it ended; and of the time in
which none was read.
"""

import math
import threading
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import structlog

from ingestor.capture.connection import Connection
from ingestor.capture.gaps import Cause, Gaps, GroupGaps
from ingestor.capture.stream_state import Observed, Requests
from ingestor.errors import ConnectionLost, Stalled
from ingestor.facts import Fact
from ingestor.ledger import Ledger

log = structlog.get_logger()

_SHORT_S = 1.0
_LONG_S = 30.0
_SHORT_LIVES_OF_A_SHARED_KEY = 3
_APART = 4
"""Planned renewals of two connections are at least a part of their greatest age, one of so many, from each other; where
there are several groups of symbols, that is shared among these.
"""
_GROUPS_KNOWN = 10_000
"""Of so many connections is known for whom they were: frames of one that has ended may still wait."""


@dataclass(slots=True)
class ConnectionRecord:
    """One connection's life as the session sees it."""

    number: int
    opened_s: float
    opened_us: int
    trades_before: int
    """Of the whole run."""
    last_frame_us: int
    """When the last frame was received, or the connection opened."""
    address: str = ""
    """Of the machine at the other end."""
    renewed_s: float = math.inf
    """When its successor is to be opened (monotonic)."""
    watched: bool = False
    """The symbols were asked for on it, and its session looks after it."""
    heard_us: int | None = None
    """When its first frame was received, after the symbols were asked for: from then on nothing is missed."""
    frames: int = 0
    paused_s: float | None = None
    """Since when (monotonic) what piled up at the venue, while the reader waited for room, has not drained."""
    paused_us: int = 0
    """The last receive time before that: later ones say nothing of when their frames came."""

    @property
    def seen_until_us(self) -> int:
        """Up to here nothing was missed."""
        return self.last_frame_us if self.paused_s is None else self.paused_us


class Heard(NamedTuple):
    """What a connection that has ended could see: from its first frame up to `until_us` nothing was missed."""

    from_us: int
    until_us: int
    last_us: int
    """Its last receipt; what came after `until_us` came late, and says nothing of its time."""


def find_holes(since_us: int, heard: Iterable[tuple[int, int]], end_us: int) -> Iterator[tuple[int, int]]:
    """The parts of the time behind `since_us` up to `end_us` that lie behind none of these: receipts, of which the
    second is the last before a hole, or the first after it.
    """
    for from_us, until_us in sorted(heard):
        if from_us > end_us:
            break
        if since_us < from_us:
            yield since_us, from_us
        since_us = max(since_us, until_us)
    if since_us < end_us:
        yield since_us, end_us


class Connections:
    """Numbers the connections of a run, over all groups of symbols, and keeps their planned renewals apart."""

    def __init__(self, max_age_s: float = math.inf, groups: int = 1) -> None:
        """`max_age_s`: of the feed's terms."""
        self._max_age_s = max_age_s
        self._apart_s = max_age_s / (_APART * groups)
        self._lock = threading.Lock()
        self._renewed_s: dict[int, float] = {}
        """Of those that are open: when each gets a successor (monotonic)."""
        self.opened = 0
        """So many were opened."""
        self.group_of: dict[int, int] = {}
        """By connection; those of the first group, 0, are left out."""

    def begin(self, group: int) -> tuple[int, float]:
        """One more has opened: its number, and when it is to be renewed, never together with another one: earlier, if
        need be.
        """
        with self._lock:
            self.opened += 1
            renewed_s = time.monotonic() + self._max_age_s
            for other_s in sorted(self._renewed_s.values(), reverse=True):
                if abs(renewed_s - other_s) < self._apart_s:
                    renewed_s = other_s - self._apart_s
            self._renewed_s[self.opened] = renewed_s
            if group:
                self.group_of[self.opened] = group
            if len(self.group_of) > _GROUPS_KNOWN:
                for ended in sorted(self.group_of.keys() - self._renewed_s.keys())[: _GROUPS_KNOWN // 2]:
                    del self.group_of[ended]
            return self.opened, renewed_s

    def retire(self, number: int) -> None:
        """Its successor is being opened."""
        with self._lock:
            self._renewed_s[number] = math.inf

    def end(self, number: int) -> None:
        """It is read no more."""
        with self._lock:
            del self._renewed_s[number]


class ConnectionLog:
    """Records the connections of a group of symbols, and the gaps that they leave: where none of them was read. Any
    thread may tell it of its own.

    While another connection is read, one that ends leaves no gap. But each is believed to be read until its end is
    known, and only then is it known when its last frame was received: where nobody else had been listening since, the
    gap is recorded afterwards.
    """

    def __init__(
        self,
        ledger: Ledger,
        gaps: Gaps | GroupGaps,
        observed: Observed,
        requests: Requests,
        connections: Connections,
        group: int = 0,
    ) -> None:
        """`gaps` and `requests` are the group's; `connections` those of the whole run."""
        self._ledger = ledger
        self._gaps = gaps
        self._observed = observed
        self._requests = requests
        self._connections = connections
        self._group = group
        self._lock = threading.Lock()
        self._lives: dict[int, ConnectionRecord] = {}
        """Those that have not ended."""
        self._ended: list[Heard] = []
        """Those that have, as long as one is open that may have been silent since."""
        self._short_lives = 0

    @property
    def addresses(self) -> Collection[str]:
        """At the other ends of the connections that are open."""
        with self._lock:
            return {life.address for life in self._lives.values()}

    def leads(self, life: ConnectionRecord) -> bool:
        """Whether this is the one, of all whose symbols were asked for, that looks after the symbols."""
        with self._lock:
            return life.number == min(one.number for one in [life, *self._lives.values()] if one.watched or one is life)

    def begin(self, opened_us: int, address: str = "") -> ConnectionRecord:
        """A connection has opened."""
        with self._lock:
            number, renewed_s = self._connections.begin(self._group)
            now_s, trades = time.monotonic(), self._observed.trades
            self._ledger.record("connection.opened", at=opened_us, connection=number)
            log.info("connection.opened", connection=number, **({"address": address} if address else {}))
            life = ConnectionRecord(number, now_s, opened_us, trades, opened_us, address, renewed_s)
            self._lives[number] = life
            return life

    def hear(self, life: ConnectionRecord, received_us: int) -> None:
        """Its first frame, since the symbols were asked for: if all were blind, that is over."""
        with self._lock:
            if not self._reading():
                self._gaps.close(received_us)
            life.heard_us = received_us

    def step(self, by_us: int) -> None:
        """The wall clock was set by so much: receipts before it, on the clock as it is now."""
        with self._lock:
            for life in self._lives.values():
                life.opened_us += by_us
                life.last_frame_us += by_us
                life.paused_us += by_us
                life.heard_us = None if life.heard_us is None else life.heard_us + by_us
            self._ended = [Heard(*(at_us + by_us for at_us in one)) for one in self._ended]

    def was_of_use(self, life: ConnectionRecord) -> bool:
        """Whether the next connection may be tried at once: trades came on this one, or it lasted."""
        age_s = time.monotonic() - life.opened_s
        alone = self._requests.of_all and not self._requests.others(life.number)
        came = self._observed.trades > life.trades_before if alone else self._requests.brought(life.number)
        return age_s >= _LONG_S or (age_s >= _SHORT_S and bool(came))

    def retire(self, life: ConnectionRecord) -> None:
        """It is too old, and read on elsewhere."""
        life.watched, life.renewed_s = False, math.inf
        self._connections.retire(life.number)
        self._ledger.record("connection.retired", connection=life.number, frames=life.frames)
        log.info("connection.retired", connection=life.number)

    def leave(self, life: ConnectionRecord, *, stopped: bool) -> None:
        """One that was retired is read no more."""
        self._end(life, "shutdown" if stopped else "connection", [])

    def close(self, life: ConnectionRecord) -> None:
        """It was ended by a stop."""
        fact = {"fact": "connection.closed", "connection": life.number, "frames": life.frames}
        self._end(life, "shutdown", [{"at": self._ledger.now_us(), **fact}])

    def lose(self, life: ConnectionRecord, connection: Connection, error: ConnectionLost) -> None:
        """It ended in this way, without our asking."""
        fact = {
            "at": self._ledger.now_us(),
            "fact": "connection.lost",
            "connection": life.number,
            "code": connection.close_code,
            "reason": str(error),
            "bytes": connection.bytes_received,
            "frames": life.frames,
        }
        cause: Cause = "stall" if isinstance(error, Stalled) else "connection"
        if life.paused_s is not None:  # the venue gave up on a reader that waited
            cause = "disk" if self._observed.disk_failed_s >= life.paused_s else "backpressure"
        left = self._end(life, cause, [fact])
        told = {"open": left} if left else {}
        log.warning("connection.lost", connection=life.number, reason=str(error), frames=life.frames, **told)
        self._short_lives = self._short_lives + 1 if time.monotonic() - life.opened_s < _SHORT_S else 0
        if self._short_lives >= _SHORT_LIVES_OF_A_SHARED_KEY:
            log.error("key.shared", hint="connections close as soon as they open: somebody else uses this API key")

    def refuse(self, now_us: int) -> None:
        """The venue refuses us for good: nobody is heard any more, unless another connection still is."""
        with self._lock:
            if not self._reading():
                self._gaps.open("refused", now_us)

    def _reading(self) -> list[ConnectionRecord]:
        return [life for life in self._lives.values() if life.heard_us is not None]

    def _end(self, life: ConnectionRecord, cause: Cause, told: list[Fact]) -> int:
        """How many are left that are read. `told` are the facts that say how it ended."""
        with self._lock:
            life.watched = False
            del self._lives[life.number]
            self._connections.end(life.number)
            self._requests.end(life.number, life.seen_until_us, told)
            reading = self._reading()
            ended = self._ended
            if life.heard_us is not None:
                ended = [*ended, Heard(life.heard_us, life.seen_until_us, life.last_frame_us)]
                # It was believed to be read until now: where nobody else was since its last frame, a gap has been.
                end_us = max(one.until_us for one in ended)
                if reading:
                    end_us = min(one.heard_us for one in reading if one.heard_us is not None)
                for since_us, until_us in find_holes(life.seen_until_us, [one[:2] for one in ended], end_us):
                    late_us = max(one.last_us for one in ended if one.until_us <= since_us)
                    self._gaps.add(cause, since_us, until_us, heard_us=late_us)
            if reading:
                least_us = min(one.seen_until_us for one in reading)
                self._ended = [one for one in ended if one.until_us > least_us]
            else:
                self._ended = []
                since_us = max((one.until_us for one in ended), default=life.seen_until_us)
                self._gaps.open(cause, since_us, heard_us=max((one.last_us for one in ended), default=since_us))
            return len(reading)
