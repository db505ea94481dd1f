"""The logical link to the venue: outlives connections, owns retry, subscriptions, liveness and gaps."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import structlog
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    stop_when_event_set,
    wait_exponential_jitter,
)
from tenacity.nap import sleep_using_event

from ingestor.capture.buffer import Buffer
from ingestor.capture.connection import Connection
from ingestor.capture.gaps import Cause, Gaps
from ingestor.capture.known_key import KnownKey
from ingestor.capture.liveness import Counters, Liveness
from ingestor.capture.observed import Observed
from ingestor.config import ConnectionSettings
from ingestor.ledger import Ledger, now_us
from ingestor.errors import ConnectionLost, FeedRefused, HandshakeRefused, Stalled
from ingestor.feeds import Feed

_REFUSED_WAIT_S = 300.0
_THROTTLED_WAIT_S = 30.0
_RETRY_SYMBOLS_S = 600.0
_TEND_S = 0.5
_SHORT_LIFE_S = 1.0
_SHORT_LIVES_OF_A_SHARED_KEY = 3

log = structlog.get_logger()


@dataclass(slots=True)
class _Life:
    """One connection's life as the session sees it."""

    number: int
    opened_s: float
    opened_us: int
    frames: int = 0
    paused: bool = False
    """The reader waited for room, and what piled up at the venue has not drained yet."""


class Session:
    """Reads the venue's stream into the Buffer, through as many connections as it takes. `run` is the reader's
    thread.
    """

    def __init__(
        self,
        feed: Feed,
        symbols: Sequence[str],
        settings: ConnectionSettings,
        buffer: Buffer,
        ledger: Ledger,
        gaps: Gaps,
        observed: Observed,
        known_key: KnownKey,
        stop: threading.Event,
    ) -> None:
        self._feed = feed
        self._symbols = tuple(symbols)
        self._settings = settings
        self._buffer = buffer
        self._ledger = ledger
        self._gaps = gaps
        self._observed = observed
        self._known_key = known_key
        self._stop = stop
        self._backoff = wait_exponential_jitter(initial=0.5, max=settings.backoff_max, jitter=0.5)
        self._retry_symbols_at: dict[str, float] = {}
        self._short_lives = 0
        self._connection: Connection | None = None
        self.connections = 0
        self.last_frame_us: int | None = None

    @property
    def connected(self) -> bool:
        return self._connection is not None

    def run(self) -> None:
        """Until `stop`. Raises FeedRefused where the key is wrong for good."""
        while not self._stop.is_set():
            retrying = Retrying(
                retry=retry_if_exception_type(ConnectionLost),
                wait=self._pause,
                sleep=sleep_using_event(self._stop),
                stop=stop_when_event_set(self._stop),
                reraise=True,
            )
            try:
                retrying(self._live_once)
            except ConnectionLost:
                if not self._stop.is_set():
                    raise
        if self.last_frame_us is not None:
            self._gaps.open("shutdown", self.last_frame_us)

    def interrupt(self) -> None:
        """Wake the reader after `stop` was set; from any thread."""
        connection = self._connection
        if connection is not None:
            connection.interrupt()

    def _pause(self, state: RetryCallState) -> float:
        """How long to wait before the next attempt, by what ended the last one."""
        seconds = self._backoff(state)
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, HandshakeRefused):
            if error.status in (401, 403):
                seconds = _REFUSED_WAIT_S
            elif error.status == 429:
                seconds = max(seconds, _THROTTLED_WAIT_S)
        level = log.error if seconds >= _REFUSED_WAIT_S else log.warning
        level("connection.retried", reason=str(error), attempt=state.attempt_number, wait_s=round(seconds, 1))
        return seconds

    def _live_once(self) -> None:
        """One connection, from handshake to loss. Returns where it was of use, so that back-off begins anew.

        Raises ConnectionLost where it was not, FeedRefused.
        """
        if self._stop.is_set():
            return
        connection = self._connect()
        self.connections += 1
        life = _Life(self.connections, time.monotonic(), now_us())
        self._ledger.record("connection.opened", connection=life.number)
        log.info("connection.opened", connection=life.number)
        self._connection = connection
        try:
            self._subscribe(connection, life, self._symbols)
            self._read(connection, life)
        except ConnectionLost as error:
            if self._stop.is_set():
                return
            self._record_loss(connection, life, error)
            if not life.frames or time.monotonic() - life.opened_s < _SHORT_LIFE_S:
                raise
        finally:
            self._connection = None
            connection.close()

    def _connect(self) -> Connection:
        try:
            connection = Connection(
                self._feed.url(),
                connect_timeout_s=self._settings.connect_timeout,
                ca_file=self._settings.ca_file,
                fast_frames=self._settings.fast_frames,
            )
        except HandshakeRefused as error:
            if error.status == 401 and not self._known_key.accepted:
                raise FeedRefused(
                    "the venue refused the API key (401), and has never accepted it for this root: "
                    "check FINNHUB_API_KEY"
                ) from None
            raise
        self._known_key.remember()
        return connection

    def _subscribe(self, connection: Connection, life: _Life, symbols: Sequence[str]) -> None:
        for message in self._feed.subscribe(symbols):
            connection.send(message)
        self._ledger.record("symbols.requested", connection=life.number, symbols=list(symbols))

    def _read(self, connection: Connection, life: _Life) -> None:
        """Frames into the Buffer until the connection is lost (raises ConnectionLost) or `stop` (returns)."""
        liveness = Liveness(self._settings.silence, self._settings.ping_interval, time.monotonic())
        tend_at_s = 0.0
        while not self._stop.is_set():
            payloads = connection.receive()
            if payloads:
                self._take(life, payloads)
            else:
                life.paused = False
            now_s = time.monotonic()
            if now_s >= tend_at_s:
                tend_at_s = now_s + _TEND_S
                self._tend(connection, life, liveness, now_s)
        self._ledger.record("connection.closed", connection=life.number, frames=life.frames)

    def _take(self, life: _Life, payloads: list[bytes]) -> None:
        received_us = now_us()
        if not life.frames:
            self._gaps.close(received_us)
        life.frames += len(payloads)
        self.last_frame_us = received_us
        pauses = self._buffer.pauses
        self._buffer.put(life.number, payloads, received_us)
        if self._buffer.pauses != pauses:
            life.paused = True

    def _tend(self, connection: Connection, life: _Life, liveness: Liveness, now_s: float) -> None:
        """Twice a second: is it alive, is there something to ask for again? Raises ConnectionLost."""
        if life.paused:  # what waits in the socket says nothing of when it came
            liveness.suspend(now_s)
        verdict = liveness.judge(Counters(life.frames, connection.bytes_received, connection.pongs), now_s)
        if verdict.lost:
            raise Stalled(verdict.lost)
        if verdict.ping:
            connection.ping()
        self._retry_refused(connection, life, now_s)

    def _retry_refused(self, connection: Connection, life: _Life, now_s: float) -> None:
        """Ask again for what the venue refused: its refusals can be false (#472), and places get free."""
        for refusal in self._observed.take_refusals():
            self._ledger.record("symbol.refused", symbol=refusal.symbol, text=refusal.text, connection=life.number)
            log.warning("symbol.refused", symbol=refusal.symbol, text=refusal.text, retry_s=_RETRY_SYMBOLS_S)
            if refusal.symbol in self._symbols:
                self._gaps.open("refused", refusal.received_us, refusal.symbol)
            for symbol in [refusal.symbol] if refusal.symbol in self._symbols else self._silent_symbols():
                self._retry_symbols_at.setdefault(symbol, now_s + _RETRY_SYMBOLS_S)
        due = [symbol for symbol, at_s in self._retry_symbols_at.items() if at_s <= now_s]
        if due:
            for symbol in due:
                del self._retry_symbols_at[symbol]
            self._subscribe(connection, life, due)
            log.info("symbols.retried", symbols=due)

    def _silent_symbols(self) -> list[str]:
        return [symbol for symbol in self._symbols if symbol not in self._observed.last_trade_s]

    def _record_loss(self, connection: Connection, life: _Life, error: ConnectionLost) -> None:
        self._ledger.record(
            "connection.lost",
            connection=life.number,
            code=connection.close_code,
            reason=str(error),
            bytes=connection.bytes_received,
            frames=life.frames,
        )
        log.warning("connection.lost", connection=life.number, reason=str(error), frames=life.frames)
        self._gaps.open(self._cause(life, error), self.last_frame_us or life.opened_us)
        self._short_lives = self._short_lives + 1 if time.monotonic() - life.opened_s < _SHORT_LIFE_S else 0
        if self._short_lives >= _SHORT_LIVES_OF_A_SHARED_KEY:
            log.error("key.shared", hint="connections close as soon as they open: somebody else uses this API key")

    def _cause(self, life: _Life, error: ConnectionLost) -> Cause:
        if life.paused:
            return "disk" if self._observed.disk_failing else "backpressure"
        return "stall" if isinstance(error, Stalled) else "connection"
