"""The tape of a venue: its trades, batch by batch, as they fall due."""

import math
import time
from collections import Counter
from collections.abc import Sequence

from ingestor.simulator.market import Source, Trade

BURST_MESSAGES = 100
"""Messages written between two looks at whether the clients keep up."""
ARREARS_S = 1.0
"""A venue that was held up by more than this doesn't catch up: its market has moved on."""


class Tape:
    """Times are those of one clock, whichever that is."""

    def __init__(self, source: Source, now_s: float) -> None:
        self._source = source
        self._numbers: Counter[str] = Counter()
        self._due_s = now_s

    @property
    def due_s(self) -> float:
        """When the next batch is: infinity after the last."""
        return self._due_s

    def rest(self, now_s: float) -> None:
        """Nothing was wanted until now."""
        self._due_s = max(self._due_s, now_s)

    def take_due(self, universe: Sequence[str], now_s: float) -> list[list[Trade]]:
        """The batches of these symbols that are due, at most BURST_MESSAGES."""
        self._due_s = max(self._due_s, now_s - ARREARS_S)
        batches: list[list[Trade]] = []
        while self._due_s <= now_s and len(batches) < BURST_MESSAGES:
            batch = self._source.batch(universe, time.time_ns() // 1_000_000)
            if batch is None:
                self._due_s = math.inf
                break
            batches.append(self._numbered(batch.trades))
            self._due_s += batch.lasts_s
        return batches

    def _numbered(self, trades: list[Trade]) -> list[Trade]:
        """Each with its place among all trades of its symbol here: Binance sends it as the trade's id."""
        numbered = []
        for trade in trades:
            self._numbers[trade.symbol] += 1
            numbered.append(trade._replace(number=self._numbers[trade.symbol]))
        return numbered
