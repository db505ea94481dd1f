"""Reads the venue's connection, opens the next one, and hands what comes to the buffer.

An old connection is read on until its successor has received something.
"""

import contextlib
import math
import threading
import time

import structlog

from ingestor.capture.buffer import Buffer
from ingestor.capture.connection import Connection
from ingestor.capture.connection_log import ConnectionLog, ConnectionRecord
from ingestor.capture.connector import Connector
from ingestor.capture.gaps import Gaps
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
        number: int,
        last_frame_us: int,
        buffer: Buffer,
        gaps: Gaps,
        clock: Clock,
        stop: threading.Event,
        overlap_s: float,
    ) -> None:
        """`number` and `last_frame_us` are the connection's; `stop` ends it within two seconds."""
        super().__init__(name="retiring", daemon=True)
        self._connection = connection
        self._number = number
        self.last_frame_us = last_frame_us
        self._buffer = buffer
        self._gaps = gaps
        self._clock = clock
        self._stop_reading = stop
        self._overlap_s = overlap_s
        self._lock = threading.Lock()
        self._ends_s = math.inf
        self._ended = False

    def succeed(self, received_us: int) -> None:
        """The successor has its first frame: if there was any blindness it is over, and this one may go soon."""
        with self._lock:
            self._ends_s = time.monotonic() + self._overlap_s
            if self._ended:
                self._gaps.close(received_us)

    def read_on(self) -> None:
        """The successor is lost: unless this one has gone by now, it is read until the next one hears."""
        with self._lock:
            if not self._ended:
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
            with self._lock:
                self._ended = True
                if self._ends_s == math.inf:  # without a successor that hears, this is where blindness begins
                    self._gaps.open("shutdown" if self._stop_reading.is_set() else "connection", self.last_frame_us)
            log.info("connection.replaced", connection=self._number, seen=self._ends_s != math.inf)

    def _take(self, payloads: list[bytes]) -> None:
        received_us = self._clock.now_us()
        if payloads and self._buffer.put(self._number, payloads, received_us):
            self.last_frame_us = received_us


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
        gaps: Gaps,
        buffer: Buffer,
        clock: Clock,
        stop: threading.Event,
    ) -> None:
        self._terms = terms
        self._connector = connector
        self._monitor = monitor
        self._connection_log = connection_log
        self._gaps = gaps
        self._buffer = buffer
        self._clock = clock
        self._stop = stop
        self._connection: Connection | None = None
        self._retiring: Handover | None = None
        self.connections = 0
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
        self._connection_log.step(by_us)
        if self._retiring:
            self._retiring.last_frame_us += by_us
        if self.last_frame_us is not None:
            self.last_frame_us += by_us

    def run(self) -> None:
        """Until `stop`, heeded within two seconds unless the Buffer is full. Raises FeedRefused where the key is wrong
        for good.
        """
        try:
            for attempt in self._connector.until_stop():
                with attempt:
                    self._live()
        except FeedRefused:  # the run ends in order, and is blind from here on: no crash
            self._gaps.open("refused", self.last_frame_us or self._clock.now_us())
            raise
        if self._retiring:
            self._retiring.join()

    def _live(self) -> None:
        """One connection, from handshake to end. Raises ConnectionLost where it was of no use, FeedRefused."""
        if self._stop.is_set():
            return
        connection = self._connector.connect()
        self._clock.opened(connection.date)
        self.connections += 1
        life = self._connection_log.begin(self.connections, self._clock.now_us())
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
                connection, life.number, life.last_frame_us, self._buffer, self._gaps, self._clock, self._stop,
                self._terms.overlap_s,
            )  # fmt: skip
            self._retiring.start()
        elif lost is None:
            if self._retiring:
                self._retiring.join()  # what it still reads is not within the gap
            self._connection_log.close(life, self._heard_us(life))
        else:
            if self._retiring:
                self._retiring.read_on()
            self._connection_log.lose(life, connection, lost, self._heard_us(life))
            if not self._connection_log.was_of_use(life):
                raise lost
            if isinstance(lost, Stalled):
                self._connector.pause()

    def _heard_us(self, life: ConnectionRecord) -> int:
        """When the last frame was received, on this connection or on the one that it replaced."""
        return max(life.last_frame_us, self._retiring.last_frame_us if self._retiring else 0)

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
                if now_s - life.opened_s >= self._terms.max_age_s and not self._stop.is_set():
                    return True
        for payloads in connection.leave():
            if payloads:
                self._take(life, payloads)
        return False

    def _take(self, life: ConnectionRecord, payloads: list[bytes]) -> None:
        received_us = self._clock.now_us()
        if not life.frames:
            self._gaps.close(received_us)
            if self._retiring:
                self._retiring.succeed(received_us)
        before_s, pauses = time.monotonic(), self._buffer.pauses
        if not self._buffer.put(life.number, payloads, received_us):
            return  # closed: we are told to stop
        life.frames += len(payloads)
        if self._buffer.pauses != pauses and life.paused_s is None:
            life.paused_s, life.paused_us = before_s, received_us
        life.last_frame_us = self.last_frame_us = received_us
