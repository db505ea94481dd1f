"""Watches the connection and the symbols between two reads: pings, silence, pauses of this process, what to ask for
again.

An application ping shows that the transport lives, not that data flows (that is `TradeWatch`); a protocol ping may go
unanswered by a venue that is well. So silence is judged by what came at all, and an unanswered ping counts only where
nothing else came either, and only on a connection that has answered one before.

A wrong guess must be cheap, and most silence is the market's: nothing is done before twice the silence that a
connection is allowed, and nothing is called unusual before the stream's own pace is known and the silence is far beyond
it. Pace is a market phase's own: what was usual at noon says nothing of the evening.
"""

import time
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import structlog

from ingestor.capture.buffer import Buffer
from ingestor.capture.connection import Connection
from ingestor.capture.connection_log import ConnectionLog, ConnectionRecord
from ingestor.capture.gaps import Gaps, GroupGaps
from ingestor.capture.market_calendar import Markets, Phase
from ingestor.capture.stream_state import Observed, Requests
from ingestor.capture.subscriptions import Subscriptions
from ingestor.capture.wall_clock import Clock
from ingestor.config.sections import ConnectionSettings
from ingestor.errors import Stalled

log = structlog.get_logger()


_KNOWN = 4
_MEMORY = 32
_FAR_BEYOND = 30
"""A silence 30 times the mean is chance once in 10^13 where trades are independent; real ones come in bursts."""
_ASK_AGAIN_S = 600.0
_RECONNECT_S = 3600.0


@dataclass(frozen=True, slots=True)
class Counters:
    """What a connection has shown so far."""

    frames: int
    bytes: int
    pongs: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do now: `ping` the venue, or give the connection up because of `lost`."""

    ping: bool = False
    lost: str | None = None


class Liveness:
    """Watches one connection, from its first second."""

    def __init__(self, silence_s: float, ping_interval_s: float, now_s: float) -> None:
        self._silence_s = silence_s
        self._ping_interval_s = ping_interval_s
        self._seen = Counters(0, 0, 0)
        self._frame_at_s = now_s
        self._bytes_at_s = now_s
        self._pinged_at_s: float | None = None
        self._next_ping_s = now_s + ping_interval_s

    def judge(self, counters: Counters, now_s: float) -> Verdict:
        """What these counters mean at this moment."""
        if counters.frames != self._seen.frames:  # pongs don't count: a proxy may answer for a venue that stalls
            self._frame_at_s = now_s
        if counters.bytes != self._seen.bytes:
            self._bytes_at_s = now_s
            self._pinged_at_s = None
        self._seen = counters
        if now_s - self._frame_at_s >= self._silence_s:
            trickles = self._bytes_at_s > self._frame_at_s
            what = "bytes came, but never a whole frame" if trickles else "nothing came"
            return Verdict(lost=f"{what} for {self._silence_s:g} s")
        patience_s = 2 * self._ping_interval_s
        if self._pinged_at_s is not None and counters.pongs and now_s - self._pinged_at_s >= patience_s:
            return Verdict(lost=f"no answer to a ping, and nothing else, for {patience_s:g} s")
        if now_s < self._next_ping_s:
            return Verdict()
        self._next_ping_s = now_s + self._ping_interval_s
        if self._pinged_at_s is None:
            self._pinged_at_s = now_s
        return Verdict(ping=True)

    def suspend(self, now_s: float) -> None:
        """The reader was paused, and what waits in the socket says nothing of when it came: start anew."""
        self._frame_at_s = self._bytes_at_s = now_s
        self._pinged_at_s = None
        self._next_ping_s = now_s + self._ping_interval_s


@dataclass(frozen=True, slots=True)
class Doubt:
    """What the silence calls for."""

    drought: Literal["resubscribe", "reconnect"] | None = None
    """No trades of any symbol while some are to be expected."""
    blind: bool = False
    """The drought is far beyond the stream's own usual silence: the venue's word that nothing traded is not taken."""
    silence_s: float = 0.0
    mute: tuple[str, ...] = ()
    """Symbols that are silent far beyond their own usual, while most others flow."""


class _Pace:
    """How often trades come: the mean of the silences between them, the latest weighing most.

    Looked at twice a second, so that a burst counts as one trade.
    """

    def __init__(self, now_s: float) -> None:
        self.since_s = now_s
        """The last trade, or when listening for one began."""
        self._phase: Hashable = None
        self._silences = 0
        self._mean_s = 0.0

    @property
    def known(self) -> bool:
        return self._silences >= _KNOWN

    def listen(self, phase: Hashable, trade_s: float, now_s: float) -> None:
        """The last trade so far was at `trade_s`; it is `phase` now."""
        if phase != self._phase:
            self._phase, self._silences, self._mean_s = phase, 0, 0.0
            self.since_s = now_s
        if trade_s > self.since_s:
            self._silences += 1
            self._mean_s += (trade_s - self.since_s - self._mean_s) / min(self._silences, _MEMORY)
            self.since_s = trade_s

    def longest_s(self, at_least_s: float) -> float:
        """The longest silence that is still usual."""
        return max(at_least_s, _FAR_BEYOND * self._mean_s) if self.known else at_least_s


class TradeWatch:
    """Watches the trades of a group of symbols, over all of its connections."""

    def __init__(self, symbols: Iterable[str], silence_s: float, now_s: float) -> None:
        self._silence_s = silence_s
        self._all = _Pace(now_s)
        self._paces = {symbol: _Pace(now_s) for symbol in symbols}
        self._resubscribed_s: float | None = None
        self._may_reconnect_s = float("-inf")
        self._asked_s: dict[str, float] = {}
        self._phases: Mapping[str, Phase] | None = None
        self._kinds: frozenset[Phase] = frozenset()
        """The phases among them, each once."""
        self._listened_s = float("-inf")
        """The last trade of any symbol that the paces know of."""
        self._known: dict[str, _Pace] = {}
        """Those whose usual silence is known, of markets that are not closed."""

    def begin(self, now_s: float) -> None:
        """A new connection, or a reader that was paused: what was silent until now says nothing."""
        self._all.since_s = now_s
        for pace in self._paces.values():
            pace.since_s = now_s
        self._resubscribed_s = None
        self._asked_s.clear()

    def skip(self, seconds: float) -> None:
        """Nobody looked for so long, until now: that is no silence."""
        if not seconds:
            return
        for pace in (self._all, *self._paces.values()):
            pace.since_s += seconds
        if self._resubscribed_s is not None:
            self._resubscribed_s += seconds

    def change(self, symbols: Iterable[str], now_s: float) -> None:
        """From now on these; what is known of the others' pace stays."""
        self._paces = {symbol: self._paces.get(symbol) or _Pace(now_s) for symbol in symbols}
        self._phases = None  # all of them are looked at again

    def judge(self, last_trade_s: Mapping[str, float], phases: Mapping[str, Phase], now_s: float) -> Doubt:
        """What these last trades mean at this moment. `phases` has every symbol.

        Without a trade since the last time, and with the same object as `phases`, no symbol is looked at whose usual
        silence isn't known: of 11,000 symbols, which are judged twice per second, most hardly trade.
        """
        last_s = max(list(last_trade_s.values()), default=float("-inf"))  # in one step: the recorder adds to it
        if phases is not self._phases or last_s > self._listened_s:
            self._phases, self._listened_s = phases, last_s
            self._listen(last_trade_s, phases, now_s)
        if self._kinds == {"closed"}:
            return Doubt()
        silence_s = now_s - self._all.since_s
        if silence_s < self._all.longest_s(2 * self._silence_s):
            self._resubscribed_s = None
            return Doubt(mute=self._find_mute(now_s))
        # Ask again for everything; where that helps nothing connect anew, at worst once an hour.
        if self._resubscribed_s is None:
            self._resubscribed_s = now_s
            return Doubt(drought="resubscribe", blind=self._all.known, silence_s=silence_s)
        if now_s - self._resubscribed_s < self._silence_s or now_s < self._may_reconnect_s:
            return Doubt(silence_s=silence_s)
        self._may_reconnect_s = now_s + _RECONNECT_S
        return Doubt(drought="reconnect", blind=self._all.known, silence_s=silence_s)

    def _listen(self, last_trade_s: Mapping[str, float], phases: Mapping[str, Phase], now_s: float) -> None:
        last_s = float("-inf")
        for symbol, pace in self._paces.items():
            trade_s = last_trade_s.get(symbol, float("-inf"))
            pace.listen(phases[symbol], trade_s, now_s)
            last_s = max(last_s, trade_s)
        self._kinds = frozenset(phases.values())
        self._all.listen(self._kinds, last_s, now_s)
        self._known = {
            symbol: pace for symbol, pace in self._paces.items() if pace.known and phases[symbol] != "closed"
        }

    def _find_mute(self, now_s: float) -> tuple[str, ...]:
        """One symbol's silence is its own affair only while most others flow; it is asked for again every ten minutes.

        Half of them silent is a market that pauses, or a drought in the making.
        """
        known, least_s = self._known, 2 * self._silence_s
        silent = [symbol for symbol, pace in known.items() if now_s - pace.since_s >= pace.longest_s(least_s)]
        self._asked_s = {symbol: at_s for symbol, at_s in self._asked_s.items() if symbol in silent}
        if 2 * len(silent) > len(known):
            return ()
        # Something traded in the later half of its silence: otherwise all of them fell silent together.
        alone = [symbol for symbol in silent if self._all.since_s > (known[symbol].since_s + now_s) / 2]
        due = [symbol for symbol in alone if now_s - self._asked_s.get(symbol, float("-inf")) >= _ASK_AGAIN_S]
        self._asked_s |= dict.fromkeys(due, now_s)
        return tuple(due)


_AWAY_S = 1.5
"""Looks are half a second apart, and a read takes as long again at most."""
_LOOKS = 4

_LAG_S = 1.0
_BEHIND_S = 10.0
"""Less than the trades of another connection are remembered."""


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


class Pursuit:
    """Tells how long a connection is behind another, which has brought a trade newer than all of its own. Pure."""

    def __init__(self) -> None:
        self._began_ms: int | None = None
        """The other's newest trade at the first look: it may have come before this one was asked."""
        self._target_ms = 0
        self._since_s = 0.0

    def look(self, newest_ms: int, theirs_ms: int, now_s: float) -> float:
        """The times of the newest trades that both have brought, and the monotonic clock; in seconds."""
        if self._began_ms is None:
            self._began_ms = theirs_ms
        if max(newest_ms, self._began_ms) >= self._target_ms:
            self._target_ms, self._since_s = theirs_ms, now_s
        return now_s - self._since_s


class ConnectionMonitor:
    """Looks after one connection after the other, in the reader's thread."""

    def __init__(
        self,
        subscriptions: Subscriptions,
        settings: ConnectionSettings,
        buffer: Buffer,
        gaps: Gaps | GroupGaps,
        observed: Observed,
        markets: Markets,
        clock: Clock,
        connection_log: ConnectionLog,
        trade_watch: TradeWatch,
        requests: Requests,
    ) -> None:
        """`trade_watch` is one for all sessions of a group: the one that leads looks at it."""
        now_s = time.monotonic()
        self._connection_log = connection_log
        self._requests = requests
        self._pursuit = Pursuit()
        self._subscriptions = subscriptions
        self._settings = settings
        self._buffer = buffer
        self._gaps = gaps
        self._observed = observed
        self._markets = markets
        self._clock = clock
        self._pauses = PauseDetector(now_s)
        self._liveness = Liveness(settings.silence, settings.ping_interval, now_s)
        self._trade_watch = trade_watch

    def begin(self, connection: Connection, life: ConnectionRecord) -> None:
        """A connection has opened: ask for every symbol. Raises ConnectionLost."""
        if self._connection_log.leads(life):
            self._trade_watch.begin(life.opened_s)
        self._adopt_changes(None)
        self._subscriptions.request_all(connection, life.number, life.opened_s)
        life.watched = True
        connection.ping()  # its answer shows that the socket works, where no trade does
        now_s = time.monotonic()
        self._pauses = PauseDetector(now_s)
        self._liveness = Liveness(self._settings.silence, self._settings.ping_interval, now_s)
        self._pursuit = Pursuit()

    def check(self, connection: Connection, life: ConnectionRecord, now_s: float) -> None:
        """Twice per second: is it alive, is there something to ask for again? Raises ConnectionLost."""
        self._clock.now_us()
        self._clock.doubt()
        self._pauses.look(now_s)
        leads = self._connection_log.leads(life)
        if leads:
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
        if leads:
            self._watch_trades(life, now_s)
        self._compare(life, now_s)
        self._subscriptions.send_due(connection, now_s)

    def _adopt_changes(self, connection: Connection | None) -> None:
        if self._subscriptions.adopt_changes(connection):
            self._trade_watch.change(self._subscriptions.symbols, time.monotonic())

    def _compare(self, life: ConnectionRecord, now_s: float) -> None:
        """Whether it brings what another connection brings, and in time to be told apart. Raises ConnectionLost."""
        others = self._requests.others(life.number)
        newest_ms = self._requests.newest_ms.copy()
        if not others or life.heard_us is None or life.paused_s is not None or self._buffer.lag_s() > _LAG_S:
            self._pursuit = Pursuit()
            return
        theirs_ms = max((newest_ms.get(other, 0) for other in others), default=0)
        behind_s = self._pursuit.look(newest_ms.get(life.number, 0), theirs_ms, now_s)
        if behind_s >= _BEHIND_S and self._pauses.regained:
            raise Stalled(f"it has been behind another connection for {behind_s:.0f} s")

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
            self._gaps.open("stall", max(self._requests.last_received_us, life.opened_us))
        if doubt.drought == "reconnect":
            raise Stalled(f"frames came, but no trades for {doubt.silence_s:.0f} s")
        if doubt.drought == "resubscribe":
            self._subscriptions.request_again("no trades")
        if doubt.mute:
            self._subscriptions.request_again("mute", doubt.mute)
        for symbol in doubt.mute:
            self._gaps.open("symbol_mute", max(self._observed.last_trade_us.get(symbol, 0), life.opened_us), symbol)
