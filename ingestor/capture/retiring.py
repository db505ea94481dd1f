"""A connection that has grown too old is read on until its successor hears: no moment without one of them.

What both bring in that time is told apart by the venue's own ids, in `twins`.
"""

import contextlib
import math
import threading
import time

import structlog

from ingestor.capture.buffer import Buffer
from ingestor.capture.connection import Connection
from ingestor.capture.gaps import Gaps
from ingestor.capture.wall_clock import Clock
from ingestor.errors import ConnectionLost

log = structlog.get_logger()


class Retiring(threading.Thread):
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
            self._end()

    def _take(self, payloads: list[bytes]) -> None:
        received_us = self._clock.now_us()
        if payloads and self._buffer.put(self._number, payloads, received_us):
            self.last_frame_us = received_us

    def _end(self) -> None:
        """Without a successor that hears, this is where blindness begins."""
        with self._lock:
            self._ended = True
            if self._ends_s == math.inf:
                self._gaps.open("shutdown" if self._stop_reading.is_set() else "connection", self.last_frame_us)
        log.info("connection.replaced", connection=self._number, seen=self._ends_s != math.inf)
