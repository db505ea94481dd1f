"""Intervals of blindness, written to the ledger as they open and close."""

import threading
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal

import structlog

from ingestor.ledger import Ledger

Cause = Literal["connection", "stall", "symbol_mute", "refused", "restart", "crash", "backpressure", "disk", "shutdown"]

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class OpenGap:
    """A gap that has not ended. `since_us`: the receive time of the last frame (or trade of the symbol) before it."""

    id: str
    cause: Cause
    since_us: int
    symbol: str | None = None
    """None: blind for all symbols."""


class Gaps:
    """The open gaps: at most one for all symbols, and one a symbol. Any thread may open and close them.

    The session ends the one for all with the first frame after resubscription; the recorder ends a symbol's with its
    next trade, whenever it was opened: a gap that was opened a moment too late may claim too much, never too little.
    """

    def __init__(self, ledger: Ledger, run: int, inherited: Iterable[OpenGap]) -> None:
        """`inherited` are the gaps that the runs before left open."""
        self._ledger = ledger
        self._run = run
        self._count = 0
        self._lock = threading.Lock()
        self._open = {gap.symbol: gap for gap in inherited}
        self.blind_symbols: frozenset[str] = frozenset()
        """The symbols with a gap of their own."""
        self.opened: Counter[str] = Counter()
        """How many began in this run, by cause."""
        self.blind_us: Counter[str] = Counter()
        """How long those lasted that ended in this run, by cause; gaps of several symbols add up."""
        self._note_symbols()

    @property
    def whole(self) -> OpenGap | None:
        """The gap for all symbols, while it is open."""
        return self._open.get(None)

    def open(self, cause: Cause, since_us: int, symbol: str | None = None) -> None:
        """Blindness begins. A gap that is open already goes on under its own cause."""
        with self._lock:
            if symbol in self._open:
                return
            self._count += 1
            self.opened[cause] += 1
            gap = OpenGap(f"r{self._run:06d}-{self._count}", cause, since_us, symbol)
            self._open[symbol] = gap
            self._note_symbols()
            self._ledger.record("gap.opened", gap=gap.id, cause=cause, since=since_us, symbol=symbol)

    def close(self, until_us: int, symbol: str | None = None) -> None:
        """Blindness ends, where there was any."""
        with self._lock:
            gap = self._open.pop(symbol, None)
            if gap is None:
                return
            self._note_symbols()
            self.blind_us[gap.cause] += max(until_us - gap.since_us, 0)
            self._ledger.record(
                "gap.closed", gap=gap.id, cause=gap.cause, since=gap.since_us, until=until_us, symbol=symbol
            )
        seconds = round((until_us - gap.since_us) / 1e6, 3)
        log.warning("gap.recorded", cause=gap.cause, seconds=seconds, gap=gap.id, symbol=symbol)

    def drop_others(self, symbols: Collection[str], now_us: int) -> None:
        """An earlier run was blind for symbols that this one doesn't ask for: nobody waits for their next trade."""
        for symbol in sorted(self.blind_symbols.difference(symbols)):
            self._ledger.record("symbol.dropped", symbol=symbol)
            self.close(now_us, symbol)

    def _note_symbols(self) -> None:
        self.blind_symbols = frozenset(symbol for symbol in self._open if symbol is not None)
