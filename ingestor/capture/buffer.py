"""The bounded Buffer between the reader and the recorder: when it is full the reader waits, and nothing is thrown
away.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from ingestor.feeds import Frames

_BLOCK_BYTES = 1 << 20
_TURN_S = 0.2
"""A connection is ahead of another that is read at the same time by no more than this."""
_FRAME_OVERHEAD = 48
"""What a frame takes in memory besides its bytes: a flood of empty ones is a flood, too."""


@dataclass(frozen=True, slots=True)
class FrameBlock:
    """Frames of one connection, as the recorder takes them."""

    connection: int
    frames: Frames


class _Chunk(NamedTuple):
    connection: int
    payloads: list[bytes]
    received_us: int
    size: int
    put_at: float


class Buffer:
    """A queue of frames between two threads, bounded by the memory they take. One lock per chunk of frames, none per
    frame.
    """

    def __init__(self, max_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_bytes = max_bytes
        self._enough = max_bytes // 2
        """Below this a reader that waits for room goes on."""
        self._full_block = min(_BLOCK_BYTES, max_bytes)
        self._clock = clock
        self._chunks: deque[_Chunk] = deque()
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        """For those who wait for room, or for the end; the recorder waits for its bell, which takes far less."""
        self._bell = threading.Lock()
        """Held while the recorder waits for it; a ring lets go of it."""
        self._listens = False
        """Whether the recorder waits for the bell, and it has not been rung."""
        self._closed = False
        self.bytes = 0
        self.frames_put = 0
        self.pauses = 0
        self.paused_s = 0.0

    def put(self, connection: int, payloads: list[bytes], received_us: int) -> bool:
        """Add the frames that one read brought; then wait until there is room for the next ones, or `close`.

        False where the buffer was closed before: the frames are not in it, and nothing may be claimed of them.
        """
        size = sum(map(len, payloads)) + _FRAME_OVERHEAD * len(payloads)
        with self._lock:
            if self._closed:
                return False
            self._chunks.append(_Chunk(connection, payloads, received_us, size, self._clock()))
            self.bytes += size
            self.frames_put += len(payloads)
            if len(self._chunks) == 1 or self.bytes >= self._full_block:  # else the recorder has no reason to wake
                self._ring()
            if self.bytes >= self._max_bytes:
                paused_at = self._clock()
                self.pauses += 1
                self._changed.wait_for(lambda: self.bytes < self._enough or self._closed)
                self.paused_s += self._clock() - paused_at
        return True

    def take(self, linger_s: float, timeout_s: float) -> FrameBlock | None:
        """The frames of one connection that wait, in order, about 1 MB at most; None where none came in `timeout_s`.

        Waits until the oldest frame is `linger_s` old, or a block is full, or the buffer is closed.
        """
        with self._lock:
            if not self._chunks and not self._closed:
                self._listen(timeout_s)
            if not self._chunks:
                return None
            due = self._chunks[0].put_at + linger_s
            while self.bytes < self._full_block and not self._closed and (left := due - self._clock()) > 0:
                self._listen(left)
            connection = self._chunks[0].connection
            payloads: list[bytes] = []
            received_us: list[int] = []
            size = 0
            others: list[_Chunk] = []  # connections that are read at once take turns, a block each
            while self._chunks and size < _BLOCK_BYTES:
                if others and self._chunks[0].put_at > others[0].put_at + _TURN_S:
                    break
                chunk = self._chunks.popleft()
                if chunk.connection != connection:
                    others.append(chunk)
                    continue
                payloads += chunk.payloads
                received_us += [chunk.received_us] * len(chunk.payloads)
                size += chunk.size
            if others:
                self._chunks.extendleft(reversed(others))
            self.bytes -= size
            if self.bytes < self._enough <= self.bytes + size:
                self._changed.notify_all()
            return FrameBlock(connection, Frames(payloads, received_us))

    def _listen(self, timeout_s: float) -> None:
        """Wait for the bell, the lock given up meanwhile. For the recorder, which holds the lock."""
        self._bell.acquire(blocking=False)  # it is free where it was rung when the time before was over
        self._listens = True
        self._lock.release()
        try:
            self._bell.acquire(timeout=timeout_s)
        finally:
            self._lock.acquire()
            self._listens = False

    def _ring(self) -> None:
        """Wake the recorder, if it waits. For whoever holds the lock."""
        if self._listens:
            self._listens = False
            self._bell.release()

    def lag_s(self) -> float:
        """How long the oldest waiting frame has waited."""
        with self._lock:
            return self._clock() - self._chunks[0].put_at if self._chunks else 0.0

    @property
    def frames_waiting(self) -> int:
        with self._lock:
            return sum(len(chunk.payloads) for chunk in self._chunks)

    @property
    def drained(self) -> bool:
        """Closed, and nothing waits any more."""
        return self._closed and not self._chunks

    def wait_closed(self, timeout_s: float) -> bool:
        """Whether the buffer is closed, within this time."""
        with self._changed:
            return self._changed.wait_for(lambda: self._closed, timeout_s)

    def close(self) -> None:
        """No more frames will be put: whoever waits goes on at once."""
        with self._lock:
            self._closed = True
            self._ring()
            self._changed.notify_all()
