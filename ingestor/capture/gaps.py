"""Intervals of blindness, written to the ledger as they open and close."""

from collections.abc import Iterable
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
    """The open gaps: at most one for all symbols (closed by the first frame after resubscription), and one a symbol."""

    def __init__(self, ledger: Ledger, run: int, inherited: Iterable[OpenGap]) -> None:
        """`inherited` are the gaps that the runs before left open."""
        self._ledger = ledger
        self._run = run
        self._count = 0
        self._open = {gap.symbol: gap for gap in inherited}

    def open(self, cause: Cause, since_us: int, symbol: str | None = None) -> None:
        """Blindness begins. A gap that is open already goes on under its own cause."""
        if symbol in self._open:
            return
        self._count += 1
        gap = OpenGap(f"r{self._run:06d}-{self._count}", cause, since_us, symbol)
        self._open[symbol] = gap
        self._ledger.record("gap.opened", gap=gap.id, cause=cause, since=since_us, symbol=symbol)

    def close(self, until_us: int, symbol: str | None = None) -> None:
        """Blindness ends, where there was any."""
        gap = self._open.pop(symbol, None)
        if gap is None:
            return
        self._ledger.record("gap.closed", gap=gap.id, cause=gap.cause, until=until_us, symbol=symbol)
        seconds = round((until_us - gap.since_us) / 1e6, 3)
        log.warning("gap.recorded", cause=gap.cause, seconds=seconds, gap=gap.id, symbol=symbol)
