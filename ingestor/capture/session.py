"""Reads a connection to the venue, opens the next one, and hands what comes to the buffer.

Several sessions may do so side by side, for all symbols each (`connection.redundant`), or for a group of them where one
connection doesn't take all: each is a connection after the other. An old one is read on until its successor has
received something.
"""

import contextlib
import math
import threading
import time
from dataclasses import dataclass

import structlog

from ingestor.capture.buffer import Buffer
from ingestor.capture.connection import Connection
from ingestor.capture.connection_log import ConnectionLog, ConnectionRecord
from ingestor.capture.connector import Connector
from ingestor.capture.gaps import Gaps, GroupGaps
from ingestor.capture.monitor import ConnectionMonitor
from ingestor.capture.wall_clock import Clock
from ingestor.errors import ConnectionLost, FeedRefused, Stalled
from ingestor.feeds import Terms

_CHECK_S = 0.5

log = structlog.get_logger()


class Handover(threading.Thread):
    """Reads the old connection into the Buffer, in a thread of its own, and closes it in the end."""

    def __init__(
        self,
        connection: Connection,
        life: ConnectionRecord,
        connection_log: ConnectionLog,
        buffer: Buffer,
        clock: Clock,
        stop: threading.Event,
        overlap_s: float,
    ) -> None:
        """`life` is the connection's; `stop` ends it within two seconds."""
        super().__init__(name="retiring", daemon=True)
        self._connection = connection
        self._life = life
        self._connection_log = connection_log
        self._buffer = buffer
        self._clock = clock
        self._stop_reading = stop
        self._overlap_s = overlap_s
        self._ends_s = math.inf

    def succeed(self) -> None:
        """The successor has its first frame: this one may go soon."""
        self._ends_s = time.monotonic() + self._overlap_s

    def read_on(self) -> None:
        """The successor is lost: unless this one has gone by now, it is read until the next one hears."""
        self._ends_s = math.inf

    def run(self) -> None:
        try:
            with contextlib.suppress(ConnectionLost):  # the venue was faster; whether anybody else hears is seen below
                while not self._stop_reading.is_set() and time.monotonic() < self._ends_s:
                    self._take(self._connection.receive())
            for payloads in self._connection.leave():
                self._take(payloads)
        finally:
            self._connection.close()
            self._connection_log.leave(self._life, stopped=self._stop_reading.is_set())
            log.info("connection.replaced", connection=self._life.number, seen=self._ends_s != math.inf)

    def _take(self, payloads: list[bytes]) -> None:
        received_us = self._clock.now_us()
        if payloads and self._buffer.put(self._life.number, payloads, received_us):
            self._life.frames += len(payloads)
            self._life.last_frame_us = received_us


class Session:
    """Reads the venue's stream into the Buffer, through as many connections as it takes. `run` is the reader's
    thread.
    """

    def __init__(
        self,
        terms: Terms,
        connector: Connector,
        monitor: ConnectionMonitor,
        connection_log: ConnectionLog,
        buffer: Buffer,
        clock: Clock,
        stop: threading.Event,
        begins_after_s: float = 0.0,
    ) -> None:
        """`begins_after_s`: so long after `run` it opens its first connection."""
        self._terms = terms
        self._connector = connector
        self._monitor = monitor
        self._connection_log = connection_log
        self._buffer = buffer
        self._clock = clock
        self._stop = stop
        self._begins_after_s = begins_after_s
        self._connection: Connection | None = None
        self._retiring: Handover | None = None
        self.last_frame_us: int | None = None
        self.turned_at_s = time.monotonic()
        """When the loop that reads a connection last came round."""

    @property
    def connected(self) -> bool:
        """There is a connection, and the symbols were asked for on it."""
        return self._connection is not None

    @property
    def answered(self) -> bool:
        """Something came on it, too."""
        connection = self._connection
        return connection is not None and connection.bytes_received > 0

    def step(self, by_us: int) -> None:
        """The wall clock was set by so much: what was received before, on the clock as it is now."""
        if self.last_frame_us is not None:
            self.last_frame_us += by_us

    def run(self) -> None:
        """Until `stop`, heeded within two seconds unless the Buffer is full. Raises FeedRefused where the key is wrong
        for good.
        """
        self._stop.wait(self._begins_after_s)
        try:
            for attempt in self._connector.until_stop():
                with attempt:
                    self._live()
        except FeedRefused:  # the run ends in order, and is blind from here on: no crash
            self._connection_log.refuse(self.last_frame_us or self._clock.now_us())
            raise
        if self._retiring:
            self._retiring.join()
        self._connector.close()

    def _live(self) -> None:
        """One connection, from handshake to end. Raises ConnectionLost where it was of no use, FeedRefused."""
        if self._stop.is_set():
            return
        connection = self._connector.connect(self._connection_log.addresses)
        self._clock.opened(connection.date)
        life = self._connection_log.begin(self._clock.now_us(), connection.address)
        lost: ConnectionLost | None = None
        aged = False
        try:
            aged = self._listen(connection, life)
        except ConnectionLost as error:
            lost = None if self._stop.is_set() else error
        finally:
            if not aged:
                connection.close()
        if aged:
            # It is read on, elsewhere, while the next one is opened: the venue would end it soon, at a time of its own.
            self._connection_log.retire(life)
            self._retiring = Handover(
                connection, life, self._connection_log, self._buffer, self._clock, self._stop, self._terms.overlap_s
            )
            self._retiring.start()
        elif lost is None:
            if self._retiring:
                self._retiring.join()  # what it still reads is not within the gap
            self._connection_log.close(life)
        else:
            if self._retiring:
                self._retiring.read_on()
            self._connection_log.lose(life, connection, lost)
            if not self._connection_log.was_of_use(life):
                raise lost
            if isinstance(lost, Stalled):
                self._connector.pause()

    def _listen(self, connection: Connection, life: ConnectionRecord) -> bool:
        """Ask for the symbols, and read: see `_read`."""

        def take_login(payloads: list[bytes]) -> None:
            self.turned_at_s = time.monotonic()
            if payloads:  # what comes before anything was asked for ends no gap
                self._buffer.put(life.number, payloads, self._clock.now_us())

        self._connector.log_in(connection, take_login)
        self._monitor.begin(connection, life)
        self.turned_at_s = time.monotonic()
        self._connection = connection
        try:
            return self._read(connection, life)
        finally:
            self._connection = None

    def _read(self, connection: Connection, life: ConnectionRecord) -> bool:
        """Frames into the Buffer until it is lost (raises ConnectionLost), too old (True), or `stop` (False): then
        also those that were on their way.
        """
        check_at_s = 0.0
        while not self._stop.is_set():
            self.turned_at_s = time.monotonic()
            payloads = connection.receive()
            if payloads:
                self._take(life, payloads)
            elif connection.drained:  # not so after a ping that came among frames
                life.paused_s = None
            now_s = time.monotonic()
            if now_s >= check_at_s:
                check_at_s = now_s + _CHECK_S
                self._monitor.check(connection, life, now_s)
                if now_s >= life.renewed_s and not self._stop.is_set():
                    return True
        for payloads in connection.leave():
            if payloads:
                self._take(life, payloads)
        return False

    def _take(self, life: ConnectionRecord, payloads: list[bytes]) -> None:
        received_us = self._clock.now_us()
        if not life.frames:
            self._connection_log.hear(life, received_us)
            if self._retiring:
                self._retiring.succeed()
        before_s, pauses = time.monotonic(), self._buffer.pauses
        if not self._buffer.put(life.number, payloads, received_us):
            return  # closed: we are told to stop
        life.frames += len(payloads)
        if self._buffer.pauses != pauses and life.paused_s is None:
            life.paused_s, life.paused_us = before_s, received_us
        life.last_frame_us = self.last_frame_us = received_us


@dataclass(frozen=True, slots=True)
class Group:
    """The sessions of those symbols that share their connections: each session asks for all of them."""

    sessions: list[Session]
    connection_log: ConnectionLog
    gaps: Gaps | GroupGaps

    @property
    def connected(self) -> bool:
        """One of them is."""
        return any(session.connected for session in self.sessions)

    @property
    def answered(self) -> bool:
        """On one of their connections something came, too."""
        return any(session.answered for session in self.sessions)

    @property
    def last_frame_us(self) -> int:
        """When the last frame was received, on whichever connection; 0: none was."""
        return max(session.last_frame_us or 0 for session in self.sessions)
