"""Board of quotes: each symbol's last price, change, rate, course, and whether it is being recorded. Pure."""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

from ingestor.live.updates import Price, SymbolTrades

DAY_MS = 86_400_000
POINT_S = 10
"""From point to point of a course."""
POINTS = 90
UNASKED_MAX = 10_000
"""Symbols of which nothing is claimed."""
_RATE_S = 10


class State(NamedTuple):
    """`recorded`, `blind` or `unproven`, as of coverage; `cause` of blindness."""

    state: str
    cause: str | None = None


UNKNOWN = State("unknown")
"""Asked for by nobody, as far as the ledger says."""
NOBODY = State("blind", "no_recorder")
"""No recorder holds the root."""


@dataclass(slots=True)
class Quote:
    """One symbol."""

    symbol: str
    last: Price | None = None
    first_price: float | None = None
    """Of the UTC date of `last`."""
    day: int | None = None
    """That date, in days since 1970; None: as `last` says."""
    state: State = UNKNOWN
    counts: "deque[int]" = field(default_factory=lambda: deque([0], maxlen=_RATE_S + 1))
    """Trades in each of the last seconds; the present one is last, and not over."""
    course: "deque[float]" = field(default_factory=lambda: deque(maxlen=POINTS))
    """The last price at each point that had one."""

    @property
    def change(self) -> float | None:
        """Since the day's first price: 0.01 is one percent."""
        if self.last is None or not self.first_price:
            return None
        return self.last.price / self.first_price - 1

    @property
    def rate(self) -> float:
        """Trades per second over the last 10 whole seconds."""
        return (sum(self.counts) - self.counts[-1]) / _RATE_S

    def move(self, price: Price, now: float | None = None) -> bool:
        """Take a price over, unless it is older than the last one; whether it was.

        A trade from the future holds up nothing: the next one counts, whatever its time, and no day begins before the
        clock says so.
        """
        now_ms = price.timestamp_ms if now is None else int(now * 1000)
        if (
            self.last is not None
            and price.timestamp_ms < self.last.timestamp_ms
            and (now is None or self.last.timestamp_ms <= now_ms)
        ):
            return False
        day = min(price.timestamp_ms, now_ms) // DAY_MS
        before = self.last.timestamp_ms // DAY_MS if self.day is None and self.last is not None else self.day
        if before is None or day > before:
            self.first_price = price.price
        self.day = day if before is None else max(day, before)
        self.last = price
        return True

    def as_json(self) -> dict[str, Any]:
        """As `/symbols` tells it; `timestamp` in ms since 1970."""
        price, volume, timestamp_ms = self.last or (None, None, None)
        return {
            "symbol": self.symbol,
            "price": price,
            "volume": volume,
            "timestamp": timestamp_ms,
            "change": self.change,
            "rate": self.rate,
            "course": list(self.course),
            "state": self.state.state,
            "cause": self.state.cause,
        }


class Board:
    """The quotes. Times are seconds since 1970."""

    def __init__(self, quotes: Iterable[Quote] = ()) -> None:
        self.quotes = {quote.symbol: quote for quote in quotes}
        self.recording: bool | None = None
        """Whether anybody records; None: unknown."""
        self._second = 0
        self._unasked = {quote.symbol: None for quote in self.quotes.values() if quote.state == UNKNOWN}
        """Of these nothing is claimed: the venue may invent as many as it likes. The one that traded last is last."""

    def add_trades(self, trades: SymbolTrades, now: float) -> bool:
        """Count these; whether there is a new last price among them."""
        self.turn(now)
        quote = self.quotes.setdefault(trades.symbol, Quote(trades.symbol))
        if quote.state == UNKNOWN:
            self._unasked.pop(trades.symbol, None)
            self._unasked[trades.symbol] = None
            self._bound()
        quote.counts[-1] += len(trades)
        return quote.move(trades.newest, now)

    def set_state(self, states: Mapping[str, State], recording: bool | None) -> None:
        """Take over what coverage says. What nobody records is blind, whatever it was before."""
        self.recording = recording
        for symbol in states:
            self.quotes.setdefault(symbol, Quote(symbol))
        for quote in self.quotes.values():
            claimed = states.get(quote.symbol, UNKNOWN)
            quote.state = NOBODY if recording is False and claimed != UNKNOWN else claimed
            if claimed != UNKNOWN:
                self._unasked.pop(quote.symbol, None)
            else:
                self._unasked.setdefault(quote.symbol)
        self._bound()

    def _bound(self) -> None:
        """Forget what nobody asked for, the longest silent first, where there is too much of it."""
        for symbol in list(islice(self._unasked, max(len(self._unasked) - UNASKED_MAX, 0))):
            del self._unasked[symbol], self.quotes[symbol]

    def turn(self, now: float) -> None:
        """Let time pass up to `now`: seconds begin new counts, every tenth a new point."""
        if int(now) < self._second - _RATE_S:  # the clock was set back
            self._second = 0
        before, self._second = self._second, max(self._second, int(now))
        if not before or before == self._second:
            return
        points = min(self._second // POINT_S - before // POINT_S, POINTS)
        for quote in self.quotes.values():
            quote.counts.extend([0] * min(self._second - before, _RATE_S + 1))
            if quote.last is not None:
                quote.course.extend([quote.last.price] * points)
