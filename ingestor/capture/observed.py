"""What the recorder has understood of the stream, told to the session: which symbols tick, which were refused."""

import threading
import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Refusal:
    """The venue refused a subscription; `symbol` is None where it doesn't say which."""

    symbol: str | None
    text: str
    received_us: int


class Observed:
    """Written by the recorder's thread, read by any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._refusals: list[Refusal] = []
        self.last_trade_s: dict[str, float] = {}
        """By symbol, on the monotonic clock."""
        self.trades = 0
        self.disk_failing = False
        """The journal can't be written just now."""

    def saw_trades(self, symbols: dict[str, int]) -> None:
        """Trades were decoded: how many, by symbol."""
        now_s = time.monotonic()
        self.last_trade_s.update(dict.fromkeys(symbols, now_s))
        self.trades += sum(symbols.values())

    def saw_refusal(self, refusal: Refusal) -> None:
        with self._lock:
            self._refusals.append(refusal)

    def take_refusals(self) -> list[Refusal]:
        """The refusals since the last call."""
        with self._lock:
            taken, self._refusals = self._refusals, []
        return taken
