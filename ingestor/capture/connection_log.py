"""Tells the ledger and the log of each connection: how it began, what of it was seen, why it ended."""

import time
from dataclasses import dataclass

import structlog

from ingestor.capture.connection import Connection
from ingestor.capture.gaps import Cause, Gaps
from ingestor.capture.stream_state import Observed
from ingestor.errors import ConnectionLost, Stalled
from ingestor.ledger import Ledger

log = structlog.get_logger()

_SHORT_S = 1.0
_LONG_S = 30.0
_SHORT_LIVES_OF_A_SHARED_KEY = 3


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
    frames: int = 0
    paused_s: float | None = None
    """Since when (monotonic) what piled up at the venue, while the reader waited for room, has not drained."""
    paused_us: int = 0
    """The last receive time before that: later ones say nothing of when their frames came."""

    @property
    def seen_until_us(self) -> int:
        """Up to here nothing was missed."""
        return self.last_frame_us if self.paused_s is None else self.paused_us


class ConnectionLog:
    """Records a session's connections, and the gaps that they leave."""

    def __init__(self, ledger: Ledger, gaps: Gaps, observed: Observed) -> None:
        self._ledger = ledger
        self._gaps = gaps
        self._observed = observed
        self._short_lives = 0
        self._life: ConnectionRecord | None = None

    def begin(self, number: int, opened_us: int) -> ConnectionRecord:
        self._ledger.record("connection.opened", at=opened_us, connection=number)
        log.info("connection.opened", connection=number)
        self._life = ConnectionRecord(number, time.monotonic(), opened_us, self._observed.trades, opened_us)
        return self._life

    def step(self, by_us: int) -> None:
        """The wall clock was set by so much: the newest connection's receipts, on the clock as it is now."""
        if self._life is not None:
            self._life.opened_us += by_us
            self._life.last_frame_us += by_us
            self._life.paused_us += by_us

    def was_of_use(self, life: ConnectionRecord) -> bool:
        """Whether the next connection may be tried at once: trades came on this one, or it lasted."""
        age_s = time.monotonic() - life.opened_s
        return age_s >= _LONG_S or (age_s >= _SHORT_S and self._observed.trades > life.trades_before)

    def retire(self, life: ConnectionRecord) -> None:
        """It is too old, and read on elsewhere."""
        self._ledger.record("connection.retired", connection=life.number, frames=life.frames)
        log.info("connection.retired", connection=life.number)

    def close(self, life: ConnectionRecord, heard_us: int) -> None:
        """It was ended by a stop; the last frame, of whichever connection, was received at `heard_us`."""
        self._ledger.record("connection.closed", connection=life.number, frames=life.frames)
        self._gaps.open("shutdown", life.seen_until_us, heard_us=heard_us)

    def lose(self, life: ConnectionRecord, connection: Connection, error: ConnectionLost, heard_us: int) -> None:
        """It ended in this way, without our asking; the last frame was received, here or elsewhere, at `heard_us`."""
        self._ledger.record(
            "connection.lost",
            connection=life.number,
            code=connection.close_code,
            reason=str(error),
            bytes=connection.bytes_received,
            frames=life.frames,
        )
        log.warning("connection.lost", connection=life.number, reason=str(error), frames=life.frames)
        cause: Cause = "stall" if isinstance(error, Stalled) else "connection"
        if life.paused_s is not None:  # the venue gave up on a reader that waited
            cause = "disk" if self._observed.disk_failed_s >= life.paused_s else "backpressure"
        self._gaps.open(cause, life.seen_until_us, heard_us=heard_us)
        self._short_lives = self._short_lives + 1 if time.monotonic() - life.opened_s < _SHORT_S else 0
        if self._short_lives >= _SHORT_LIVES_OF_A_SHARED_KEY:
            log.error("key.shared", hint="connections close as soon as they open: somebody else uses this API key")
