"""Watches the connection and the symbols between two reads: pings, silence, pauses of this process, what to ask for
again.
"""

import time
from datetime import UTC, datetime

import structlog

from ingestor.capture.buffer import Buffer
from ingestor.capture.connection import Connection
from ingestor.capture.connection_log import ConnectionRecord
from ingestor.capture.gaps import Gaps
from ingestor.capture.liveness import Counters, Liveness, TradeWatch
from ingestor.capture.market_calendar import Markets
from ingestor.capture.stream_state import Observed
from ingestor.capture.subscriptions import Subscriptions
from ingestor.capture.wall_clock import Clock
from ingestor.config.sections import ConnectionSettings
from ingestor.errors import Stalled

log = structlog.get_logger()

_AWAY_S = 1.5
"""Looks are half a second apart, and a read takes as long again at most."""
_LOOKS = 4

_LAG_S = 1.0


class PauseDetector:
    """Counts the looks at one connection. Pure: the monotonic clock is an argument."""

    def __init__(self, now_s: float) -> None:
        self._looked_s = now_s
        self._looks = _LOOKS
        self.away_s = 0.0
        """How long nobody looked, until now: what seems silent may wait, or have been held up as well."""

    @property
    def regained(self) -> bool:
        """It has looked often enough since it was away to tell whose the silence is."""
        return self._looks >= _LOOKS

    def look(self, now_s: float) -> None:
        """Somebody looks. Where that is always late, the first time alone counts as having been away."""
        late_s = now_s - self._looked_s
        if late_s <= _AWAY_S:
            late_s = 0.0
        elif not self.away_s:
            self._looks = 0
        self.away_s = late_s
        self._looks += 1
        self._looked_s = now_s


class ConnectionMonitor:
    """Looks after one connection after the other, in the reader's thread."""

    def __init__(
        self,
        subscriptions: Subscriptions,
        settings: ConnectionSettings,
        buffer: Buffer,
        gaps: Gaps,
        observed: Observed,
        markets: Markets,
        clock: Clock,
    ) -> None:
        now_s = time.monotonic()
        self._subscriptions = subscriptions
        self._settings = settings
        self._buffer = buffer
        self._gaps = gaps
        self._observed = observed
        self._markets = markets
        self._clock = clock
        self._pauses = PauseDetector(now_s)
        self._liveness = Liveness(settings.silence, settings.ping_interval, now_s)
        self._trade_watch = TradeWatch(subscriptions.symbols, settings.silence, now_s)

    def begin(self, connection: Connection, life: ConnectionRecord) -> None:
        """A connection has opened: ask for every symbol. Raises ConnectionLost."""
        self._trade_watch.begin(life.opened_s)
        self._adopt_changes(None)
        self._subscriptions.request_all(connection, life.number, life.opened_s)
        connection.ping()  # its answer shows that the socket works, where no trade does
        now_s = time.monotonic()
        self._pauses = PauseDetector(now_s)
        self._liveness = Liveness(self._settings.silence, self._settings.ping_interval, now_s)

    def check(self, connection: Connection, life: ConnectionRecord, now_s: float) -> None:
        """Twice per second: is it alive, is there something to ask for again? Raises ConnectionLost."""
        self._clock.now_us()
        self._clock.doubt()
        self._pauses.look(now_s)
        self._trade_watch.skip(self._pauses.away_s)
        if life.paused_s is not None:  # what waits in the socket says nothing of when it came
            self._liveness.suspend(now_s)
        verdict = self._liveness.judge(Counters(life.frames, connection.bytes_received, connection.pongs), now_s)
        if verdict.lost and self._pauses.regained:
            raise Stalled(verdict.lost)
        if verdict.ping:
            connection.ping()
        self._adopt_changes(connection)
        self._subscriptions.retry_refused(now_s)
        self._watch_trades(life, now_s)
        self._subscriptions.send_due(connection, now_s)

    def _adopt_changes(self, connection: Connection | None) -> None:
        if self._subscriptions.adopt_changes(connection):
            self._trade_watch.change(self._subscriptions.symbols, time.monotonic())

    def _watch_trades(self, life: ConnectionRecord, now_s: float) -> None:
        """Ask again for what has gone silent; call it blindness where that is the likelier reading.

        A silence is called blindness, from the last trade to the next, once it is far beyond what was usual in this
        phase of the market: then a venue that forgot us is likelier than a market that sleeps. A trading halt looks
        the same: for that time nothing is claimed that might be untrue. Before the usual is known, silence on a
        connection stays what it was: unproven, or recorded. Raises ConnectionLost.
        """
        self._markets.refresh(now_s)
        if life.paused_s is not None or self._buffer.lag_s() > _LAG_S:  # trades wait that nobody has seen yet
            self._trade_watch.begin(now_s)
            return
        if not self._pauses.regained:
            return
        phases = self._markets.phases(self._subscriptions.symbols, datetime.now(UTC))
        doubt = self._trade_watch.judge(self._observed.last_trade_s, phases, now_s)
        if doubt.drought and doubt.blind:  # the recorder ends it, with the next trade
            self._gaps.open("stall", max(self._observed.last_received_us, life.opened_us))
        if doubt.drought == "reconnect":
            raise Stalled(f"frames came, but no trades for {doubt.silence_s:.0f} s")
        if doubt.drought == "resubscribe":
            self._subscriptions.request_again("no trades")
        if doubt.mute:
            self._subscriptions.request_again("mute", doubt.mute)
        for symbol in doubt.mute:
            self._gaps.open("symbol_mute", max(self._observed.last_trade_us.get(symbol, 0), life.opened_us), symbol)
