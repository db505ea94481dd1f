"""What the recorder has understood of the stream, told to the session: which symbols tick, which were refused."""

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

_INVENTED_MAX = 10_000
_REFUSALS_MAX = 1000


@dataclass(frozen=True, slots=True)
class Refusal:
    """The venue refused a subscription; `symbol` is None where it doesn't say which."""

    symbol: str | None
    text: str
    received_us: int


@dataclass(frozen=True, slots=True)
class Unread:
    """Messages that were read as no trade, and as nothing else that this feed knows."""

    messages: int
    """So many in this run."""
    reason: str
    """Of the last one that there is a sample of."""
    sample: str
    rejected: bool
    """It should have been a trade; else it was passed over as something else."""


class Observed:
    """Written by the recorder's thread, read by any. What a venue invents is bounded: symbols and refusals."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._refusals: dict[str | None, Refusal] = {}
        self._unproven: set[str] = set()
        self._invented: set[str] = set()
        self.asked: frozenset[str] = frozenset()
        """The symbols that are asked for: all others are the venue's invention, and bounded."""
        self.last_trade_s: dict[str, float] = {}
        """By symbol, on the monotonic clock: when its last trade was decoded."""
        self.last_trade_us: dict[str, int] = {}
        """By symbol: when its last trade was received, in µs since 1970."""
        self.last_received_us = 0
        """When the last trade of any symbol was received."""
        self.trades = 0
        self.unread: Unread | None = None
        self.disk_failing = False
        """The disk refuses what is to be recorded just now."""
        self.disk_failed_s = float("-inf")
        """Up to when it last did, on the monotonic clock."""

    def saw_trades(self, symbols: dict[str, int], received_us: int) -> None:
        """Trades were decoded: how many, by symbol; the last of them was received then."""
        now_s = time.monotonic()
        known = symbols.keys() & self.asked
        others = symbols.keys() - known
        if others:
            self._invented.update(islice(others - self._invented, _INVENTED_MAX - len(self._invented)))
            known |= others & self._invented
        self.last_trade_us.update(dict.fromkeys(known, received_us))
        self.last_trade_s.update(dict.fromkeys(known, now_s))
        if symbols:
            self.last_received_us = received_us
        self.trades += sum(symbols.values())

    def asked_anew(self, symbols: Iterable[str]) -> None:
        """These are added on a connection that is open: what was proven on it before counts no more."""
        with self._lock:
            self._unproven.update(symbols)

    def take_unproven(self) -> set[str]:
        """Those symbols since the last call."""
        if not self._unproven:
            return set()
        with self._lock:
            taken, self._unproven = self._unproven, set()
        return taken

    def saw_disk(self, *, failing: bool) -> None:
        """The disk refused, or works again."""
        if failing or self.disk_failing:
            self.disk_failed_s = time.monotonic()
        self.disk_failing = failing

    def saw_refusal(self, refusal: Refusal) -> None:
        with self._lock:
            if len(self._refusals) < _REFUSALS_MAX:
                self._refusals[refusal.symbol] = refusal

    def take_refusals(self) -> Iterable[Refusal]:
        """The refusals since the last call, the last one of each symbol."""
        with self._lock:
            taken, self._refusals = self._refusals, {}
        return taken.values()
