"""What the log says of a recording as it goes: one sentence after the start, then a line a minute. Never a line a
trade.
"""

import time
from collections.abc import Sequence
from datetime import UTC, datetime

import structlog

from ingestor.recording import Recording

_FIRST_S = 15.0
_EVERY_S = 60.0
_NAMED = 5

log = structlog.get_logger()


class Report:
    """Looks at the parts of a recording and says how they are."""

    def __init__(self, recording: Recording) -> None:
        self._session = recording.session
        self._subscriptions = recording.subscriptions
        self._markets = recording.markets
        self._buffer = recording.buffer
        self._recorder = recording.recorder
        self._observed = recording.observed
        feed = recording.settings.feed
        self._is_json, self._has_plans = feed.type == "json", feed.type == "finnhub"
        self._welcome_at_s: float | None = time.monotonic() + _FIRST_S
        self._last_at_s = time.monotonic()
        self._last_trades = 0

    def tick(self, now_s: float) -> None:
        """Say what is due."""
        if self._welcome_at_s is not None and now_s >= self._welcome_at_s:
            self._welcome_at_s = None
            log.info("recording.summarized", summary=self.summary(datetime.now(UTC)))
        if now_s >= self._last_at_s + _EVERY_S:
            self._progress(now_s)

    def summary(self, now: datetime) -> str:
        """What a newcomer needs: `connected; 2 of 4 ticking; AAPL, MSFT silent: the US market is closed`."""
        link = "connected" if self._session.connected else "not connected"
        symbols = self._subscriptions.symbols
        silent = [symbol for symbol in symbols if symbol not in self._observed.last_trade_s]
        ticking = f"{len(symbols) - len(silent)} of {len(symbols)} ticking"
        closed = [symbol for symbol in silent if self._markets.phase(symbol, now) == "closed"]
        puzzling = [symbol for symbol in silent if symbol not in closed]
        parts = [link, ticking]
        stocks = [symbol for symbol in closed if ":" not in symbol]
        currencies = [symbol for symbol in closed if ":" in symbol]
        if stocks:
            parts.append(f"{_name(stocks)} silent: the US market is closed")
        if currencies:
            parts.append(f"{_name(currencies)} silent: the currency market is closed")
        if puzzling:
            parts.append(f"{_name(puzzling)} silent: {self._why_silent()}")
        return "; ".join(parts)

    def _why_silent(self) -> str:
        """As far as it is known. Names may differ from those asked for; a message may fit nothing."""
        counts = self._recorder.counts
        unasked = sorted(set(self._observed.last_trade_s) - set(self._subscriptions.symbols))
        if not self._session.connected:
            return "there is no connection"
        if not counts.frames:
            return "the venue has sent nothing yet"
        if unasked:
            return f"trades come of {_name(unasked)}, which nobody asked for"
        unread = self._observed.unread
        if unread and not counts.trades:
            kind = (
                "says what `feed.match` asks for"
                if self._is_json and not unread.rejected
                else "could be read as a trade"
            )
            return f"{unread.messages} messages came, and none {kind} ({unread.reason}): {unread.sample}"
        if unread:
            return f"no trade yet, and {unread.messages} messages fit nothing ({unread.reason}): {unread.sample}"
        return "no trade yet, or not on your plan" if self._has_plans else "no trade yet"

    def _progress(self, now_s: float) -> None:
        counts = self._recorder.counts
        rate = (counts.trades - self._last_trades) / (now_s - self._last_at_s)
        self._last_at_s, self._last_trades = now_s, counts.trades
        minute_ago_s = now_s - _EVERY_S
        log.info(
            "recording.progressed",
            trades=counts.trades,
            trades_per_s=round(rate, 1),
            frames=counts.frames,
            rejected=counts.rejected_frames + counts.rejected_trades,
            ticking=sum(at_s >= minute_ago_s for at_s in list(self._observed.last_trade_s.values())),
            connected=self._session.connected,
            connections=self._session.connections,
            buffer_bytes=self._buffer.bytes,
            lag_ms=round(self._buffer.lag_s() * 1000),
            pauses=self._buffer.pauses,
        )


def _name(symbols: Sequence[str]) -> str:
    more = len(symbols) - _NAMED
    return ", ".join(symbols[:_NAMED]) + (f" and {more} more" if more > 0 else "")
