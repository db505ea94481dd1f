"""Subscriptions of one client, and its queue: every trade, or the newest per interval. The clock is an argument.

What waits is bounded. A client of every trade that falls behind is given up, and told why; one of the newest skips.
"""

import asyncio
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from enum import Enum

from ingestor.live.board import SymbolTrades

_WRITE_BYTES = 64 << 10
"""About what is given to the socket at once: small beside the bound, large beside a frame."""

_REASON_BYTES = 123
"""Of a close frame (RFC 6455, 5.5)."""


class ClientLanguage(Enum):
    """The protocol of one client."""

    PRICES = "prices"
    FINNHUB = "finnhub"


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one server, and of each of its clients."""

    clients: int = 2000
    symbols: int = 1000
    """Subscriptions of one client."""
    queue_bytes: int = 4 << 20
    """Bytes that may wait for one client."""
    message_bytes: int = 256 << 10
    """Of one message from a client."""


class TooMany(Exception):
    """A limit stands against the request; the argument is the sentence."""


@dataclass(slots=True)
class _Conflated:
    """The subscriptions that are served together, at most once per interval: the newest of each symbol."""

    every_s: float
    pending: dict[str, SymbolTrades] = field(default_factory=dict)
    next_s: float = 0.0


class Subscriber:
    """One client's subscriptions and its queue."""

    def __init__(self, language: ClientLanguage, limits: Limits) -> None:
        self.language = language
        self.ready = asyncio.Event()
        """Set when there may be something to take sooner than `due_s` said."""
        self.over = asyncio.Event()
        """Set when the client is given up, for the reason in `fault`."""
        self.fault = ""
        self.skipped = 0
        """Updates that a newer one replaced before they were sent."""
        self.gaps: set[str] = set()
        """Those of which the client is told when their silence is not the market's."""
        self._limits = limits
        self._every_s: dict[str, float | None] = {}
        self._conflated: dict[float, _Conflated] = {}
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0

    @property
    def symbols(self) -> Collection[str]:
        """Those that are subscribed now."""
        return self._every_s.keys()

    def subscribe(self, symbols: Collection[str], every_s: float | None, *, gaps: bool = False) -> None:
        """From now on these, every trade (None) or the newest each `every_s`, and their gaps where asked for. Raises
        TooMany: then nothing changed.
        """
        total = len(self._every_s.keys() | set(symbols))
        if total > self._limits.symbols:
            raise TooMany(f"at most {self._limits.symbols} symbols per connection: this would make {total}")
        self.unsubscribe(symbols)
        self._every_s.update(dict.fromkeys(symbols, every_s))
        self.gaps.update(symbols if gaps else ())
        if every_s is not None:
            self._conflated.setdefault(every_s, _Conflated(every_s))

    def unsubscribe(self, symbols: Collection[str]) -> None:
        """These no more; what was not subscribed isn't missed."""
        left = set()
        self.gaps.difference_update(symbols)
        for symbol in symbols:
            every_s = self._every_s.pop(symbol, None)
            if every_s is not None:
                self._conflated[every_s].pending.pop(symbol, None)
                left.add(every_s)
        for every_s in left - set(self._every_s.values()):
            del self._conflated[every_s]

    def offer(self, trades: SymbolTrades, *, newest: bool) -> None:
        """Trades of a subscribed symbol; `newest` unless all of them are older than one that came before."""
        every_s = self._every_s[trades.symbol]
        if every_s is None:
            self.enqueue(trades.finnhub_frames if self.language is ClientLanguage.FINNHUB else trades.price_frames)
        elif newest:
            conflated = self._conflated[every_s]
            if not conflated.pending:
                self.ready.set()
            self.skipped += len(trades) - (trades.symbol not in conflated.pending)
            conflated.pending[trades.symbol] = trades

    def enqueue(self, frames: bytes) -> None:
        """Queue finished frames. A client whose queue is full is given up."""
        if self.fault:
            return
        if self._queued_bytes + len(frames) > self._limits.queue_bytes:
            self.give_up(f"too slow: {self._limits.queue_bytes >> 10} KB waited; ask for mode latest, or less")
            return
        self._queue.append(frames)
        self._queued_bytes += len(frames)
        self.ready.set()

    def give_up(self, fault: str) -> None:
        """Nothing more is queued; what waits is dropped. The first fault stands, cut to what a close frame holds."""
        if not self.fault:
            self.fault = fault.encode(errors="replace")[:_REASON_BYTES].decode(errors="ignore")
            self._queue.clear()
            self._queued_bytes = 0
            self._conflated.clear()
            self._every_s.clear()
            self.over.set()

    def next_frames(self, now_s: float) -> bytes:
        """The next frames to send, about 64 KB at most; empty where nothing is due."""
        taken = []
        size = 0
        while self._queue and size < _WRITE_BYTES:
            taken.append(self._queue.popleft())
            size += len(taken[-1])
        self._queued_bytes -= size
        if not self._queue:
            for one in self._conflated.values():
                if one.pending and now_s >= one.next_s:
                    taken += [trades.newest_frame for trades in one.pending.values()]
                    one.pending.clear()
                    one.next_s = now_s + one.every_s
        return b"".join(taken)

    def due_s(self) -> float | None:
        """When there is something to take; None where nothing waits."""
        if self._queue:
            return 0.0
        return min((one.next_s for one in self._conflated.values() if one.pending), default=None)
