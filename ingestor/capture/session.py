"""The logical link to the venue: outlives connections, owns retry, liveness and gaps."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    stop_when_event_set,
    wait_exponential,
    wait_random,
)
from tenacity.nap import sleep_using_event

from ingestor.capture.buffer import Buffer
from ingestor.capture.connection import Connection
from ingestor.capture.gaps import Cause, Gaps
from ingestor.capture.holidays import Holidays
from ingestor.capture.known_key import KnownKey
from ingestor.capture.liveness import Counters, Liveness
from ingestor.capture.market_hours import Phase, find_phase
from ingestor.capture.observed import Observed
from ingestor.capture.retiring import Retiring
from ingestor.capture.subscriptions import Subscriptions
from ingestor.capture.trade_watch import TradeWatch
from ingestor.capture.wall_clock import WallClock
from ingestor.config import ConnectionSettings
from ingestor.errors import ConnectionLost, FeedRefused, HandshakeRefused, Stalled
from ingestor.feeds import Feed
from ingestor.ledger import Ledger, now_us

_TEND_S = 0.5
_SHORT_LIFE_S = 1.0
_LONG_LIFE_S = 30.0
_SHORT_LIVES_OF_A_SHARED_KEY = 3
_LAG_S = 1.0

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Waits:
    """How long to leave a venue alone that said no, in seconds."""

    again_s: float = 0.5
    """After a connection that was of no use, with as much jitter; it doubles from there."""
    refused_s: float = 300.0
    """After a 401 or 403."""
    throttled_s: float = 30.0
    """After a 429, at least."""
    symbol_s: float = 600.0
    """Until a refused symbol is asked for again."""


@dataclass(slots=True)
class _Life:
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
    drought_us: int | None = None
    """The last trade before a drought that is called blindness."""

    @property
    def seen_until_us(self) -> int:
        """Up to here nothing was missed."""
        return self.last_frame_us if self.paused_s is None else self.paused_us


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
        holidays: Holidays,
        stop: threading.Event,
        waits: Waits = Waits(),
    ) -> None:
        self._feed = feed
        self.symbols = self._wanted = tuple(symbols)
        self._settings = settings
        self._buffer = buffer
        self._ledger = ledger
        self._gaps = gaps
        self._observed = observed
        self._known_key = known_key
        self._holidays = holidays
        self._stop = stop
        self._waits = waits
        self._subscriptions = Subscriptions(feed, symbols, ledger, gaps, observed, waits.symbol_s)
        self._trade_watch = TradeWatch(symbols, settings.silence, time.monotonic())
        self._wall_clock = WallClock(now_us(), time.monotonic())
        self._backoff = wait_exponential(waits.again_s, settings.backoff_max) + wait_random(0, waits.again_s)
        self._short_lives = 0
        self._connection: Connection | None = None
        self._retiring: Retiring | None = None
        self._subscribed = False
        self.connections = 0
        self.last_frame_us: int | None = None

    @property
    def connected(self) -> bool:
        return self._connection is not None

    @property
    def answered(self) -> bool:
        """Something came on this connection since the symbols were asked for."""
        connection = self._connection
        return connection is not None and self._subscribed and connection.bytes_received > 0

    def change_symbols(self, symbols: Sequence[str]) -> None:
        """From now on these; from any thread. An open connection stays, and what both lists hold is not touched."""
        self._wanted = tuple(symbols)

    def run(self) -> None:
        """Until `stop`, heeded within two seconds unless the Buffer is full. Raises FeedRefused where the key is wrong
        for good.
        """
        self._live()
        if self._retiring:
            self._retiring.join()

    def _live(self) -> None:
        """One connection after the other."""
        self._gaps.drop_others(self.symbols, now_us())
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

    def _pause(self, state: RetryCallState) -> float:
        """How long to wait before the next attempt, by what ended the last one."""
        seconds = self._backoff(state)
        error = state.outcome.exception() if state.outcome else None
        told_no = isinstance(error, HandshakeRefused) and error.status in (401, 403)
        if told_no:
            seconds = self._waits.refused_s
        elif isinstance(error, HandshakeRefused) and error.status == 429:
            seconds = max(seconds, self._waits.throttled_s)
        if not self._stop.is_set():
            level = log.error if told_no else log.warning
            level("connection.retried", reason=str(error), attempt=state.attempt_number, wait_s=round(seconds, 1))
        return seconds

    def _live_once(self) -> None:
        """One connection, from handshake to loss. Returns where it was of use, so that back-off begins anew.

        Raises ConnectionLost where it was not, FeedRefused.
        """
        if self._stop.is_set():
            return
        connection = self._connect()
        life = self._begin_life()
        self._connection = connection
        lost: ConnectionLost | None = None
        aged = False
        try:
            self.adopt_changes()
            self._subscriptions.request_all(connection, life.number, life.opened_s)
            connection.ping()  # its answer shows that the socket works, where no trade does
            self._subscribed = True
            aged = self._read(connection, life)
        except ConnectionLost as error:
            if not self._stop.is_set():
                lost = error
                self._record_loss(connection, life, error)
                if not self._was_of_use(life):
                    raise
        finally:
            self._connection = None
            self._subscribed = False
            if not aged:
                connection.close()
        if aged:
            self._retire(connection, life)
        elif lost is None:
            self._ledger.record("connection.closed", connection=life.number, frames=life.frames)
            self._gaps.open("shutdown", life.seen_until_us)
        elif isinstance(lost, Stalled):
            # It was we who hung up: until the venue has noticed, a second connection would end both.
            self._stop.wait(self._waits.again_s)

    def _retire(self, connection: Connection, life: _Life) -> None:
        """It is read on, elsewhere, while the next one is opened: the venue would end it soon, at a time of its own."""
        self._ledger.record("connection.retired", connection=life.number, frames=life.frames)
        log.info("connection.retired", connection=life.number)
        self._retiring = Retiring(
            connection,
            life.number,
            life.seen_until_us,
            self._buffer,
            self._gaps,
            self._stop,
            self._feed.terms.overlap_s,
        )
        self._retiring.start()

    def _connect(self) -> Connection:
        try:
            connection = Connection(
                self._feed.url(),
                connect_timeout_s=self._settings.connect_timeout,
                ca_file=self._settings.ca_file,
                fast_frames=self._settings.fast_frames,
                stop=self._stop,
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

    def _begin_life(self) -> _Life:
        self.connections += 1
        opened_us = now_us()
        life = _Life(self.connections, time.monotonic(), opened_us, self._observed.trades, opened_us)
        self._ledger.record("connection.opened", connection=life.number)
        log.info("connection.opened", connection=life.number)
        self._trade_watch.begin(life.opened_s)
        return life

    def _was_of_use(self, life: _Life) -> bool:
        """Whether the next connection may be tried at once: trades came on this one, or it lasted."""
        age_s = time.monotonic() - life.opened_s
        return age_s >= _LONG_LIFE_S or (age_s >= _SHORT_LIFE_S and self._observed.trades > life.trades_before)

    def _read(self, connection: Connection, life: _Life) -> bool:
        """Frames into the Buffer until it is lost (raises ConnectionLost), too old (True), or `stop` (False): then
        also those that were on their way.
        """
        liveness = Liveness(self._settings.silence, self._settings.ping_interval, time.monotonic())
        tend_at_s = 0.0
        while not self._stop.is_set():
            bytes_before = connection.bytes_received
            payloads = connection.receive()
            if payloads:
                self._take(life, payloads)
            elif connection.bytes_received == bytes_before:
                life.paused_s = None  # the socket was empty
            now_s = time.monotonic()
            if now_s >= tend_at_s:
                tend_at_s = now_s + _TEND_S
                self._tend(connection, life, liveness, now_s)
                if now_s - life.opened_s >= self._feed.terms.max_age_s and not self._stop.is_set():
                    return True
        for payloads in connection.leave():
            if payloads:
                self._take(life, payloads)
        return False

    def _take(self, life: _Life, payloads: list[bytes]) -> None:
        received_us = now_us()
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

    def _tend(self, connection: Connection, life: _Life, liveness: Liveness, now_s: float) -> None:
        """Twice a second: is it alive, is there something to ask for again? Raises ConnectionLost."""
        step_us = self._wall_clock.find_step(now_us(), now_s)
        if step_us is not None:
            self._ledger.record("clock.stepped", by_us=step_us)
            log.warning("clock.stepped", by_s=round(step_us / 1e6, 3))
        if life.paused_s is not None:  # what waits in the socket says nothing of when it came
            liveness.suspend(now_s)
        verdict = liveness.judge(Counters(life.frames, connection.bytes_received, connection.pongs), now_s)
        if verdict.lost:
            raise Stalled(verdict.lost)
        if verdict.ping:
            connection.ping()
        self.adopt_changes(connection)
        self._subscriptions.retry_refused(now_s)
        self._watch_trades(life, now_s)
        self._subscriptions.send_due(connection, now_s)

    def adopt_changes(self, connection: Connection | None = None) -> None:
        """Take over what `change_symbols` asked for; for the reader's thread. Raises ConnectionLost."""
        wanted = self._wanted
        if wanted != self.symbols:
            self.symbols = wanted
            self._trade_watch.change(wanted, time.monotonic())
            self._subscriptions.change(connection, wanted)

    def _watch_trades(self, life: _Life, now_s: float) -> None:
        """Ask again for what has gone silent; call it blindness where that is the likelier reading.

        A silence is called blindness, from the last trade to the next, once it is far beyond what was usual in this
        phase of the market: then a venue that forgot us is likelier than a market that sleeps. A trading halt looks
        the same: for that time nothing is claimed that might be untrue. Before the usual is known, silence on a
        connection stays what it was: unproven, or recorded. Raises ConnectionLost.
        """
        self._holidays.refresh(now_s)
        if life.drought_us is not None and self._observed.last_received_us > life.drought_us:
            self._gaps.close(self._observed.last_received_us)
            life.drought_us = None
        if life.paused_s is not None or self._buffer.lag_s() > _LAG_S:  # trades wait that nobody has seen yet
            self._trade_watch.begin(now_s)
            return
        now = datetime.now(UTC)
        phases = {symbol: self.phase(symbol, now) for symbol in self.symbols}
        doubt = self._trade_watch.judge(self._observed.last_trade_s, phases, now_s)
        if doubt.drought and doubt.blind and life.drought_us is None:
            life.drought_us = max(self._observed.last_received_us, life.opened_us)
            self._gaps.open("stall", life.drought_us)
        if doubt.drought == "reconnect":
            raise Stalled(f"frames came, but no trades for {doubt.silence_s:.0f} s")
        if doubt.drought == "resubscribe":
            self._subscriptions.request_again("no trades")
        if doubt.mute:
            self._subscriptions.request_again("mute", doubt.mute)
        for symbol in doubt.mute:
            self._gaps.open("symbol_mute", max(self._observed.last_trade_us.get(symbol, 0), life.opened_us), symbol)

    def phase(self, symbol: str, now: datetime) -> Phase:
        """Of this symbol's market, by what the feed says of its markets and the holidays as far as they are known."""
        return "regular" if self._feed.terms.never_closes else find_phase(symbol, now, self._holidays.days)

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
        self._gaps.open(self._cause(life, error), life.seen_until_us)
        self._short_lives = self._short_lives + 1 if time.monotonic() - life.opened_s < _SHORT_LIFE_S else 0
        if self._short_lives >= _SHORT_LIVES_OF_A_SHARED_KEY:
            log.error("key.shared", hint="connections close as soon as they open: somebody else uses this API key")

    def _cause(self, life: _Life, error: ConnectionLost) -> Cause:
        if life.paused_s is not None:
            return "disk" if self._observed.disk_failed_s >= life.paused_s else "backpressure"
        return "stall" if isinstance(error, Stalled) else "connection"
