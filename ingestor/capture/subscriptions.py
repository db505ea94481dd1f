"""Asks the venue for symbols, and asks again for those that it refused or that fell silent; divides them among
connections where one doesn't take all.
"""

import math
from collections import deque
from collections.abc import Sequence

import structlog

from ingestor.capture.connection import Connection
from ingestor.capture.gaps import Gaps, GroupGaps
from ingestor.capture.stream_state import Observed, Requests
from ingestor.errors import ConfigError
from ingestor.feeds import Feed
from ingestor.ledger import Ledger, now_us

log = structlog.get_logger()

_LOOK_S = 0.5
"""How often there is a look at what is due."""


class Division:
    """The symbols of a run in groups, each of which has connections of its own. One where one connection takes all."""

    def __init__(self, ledger: Ledger, observed: Observed, symbols: Sequence[str], most: int | None) -> None:
        """As few groups of at most `most` symbols as there can be, about as large, in the order of the symbols."""
        count = -(-len(symbols) // most) if most else 1
        size = -(-len(symbols) // count)
        if count > 1:
            log.info("symbols.divided", symbols=len(symbols), groups=count)
        self._most = most
        self.groups = [
            Requests(ledger, observed, symbols[at : at + size], of_all=count == 1)
            for at in range(0, len(symbols), size)
        ]

    @property
    def symbols(self) -> tuple[str, ...]:
        """All that are wanted, as of the last change."""
        return tuple(symbol for group in self.groups for symbol in group.wanted)

    def change(self, symbols: Sequence[str]) -> None:
        """From now on these; from any thread. An open connection stays, and what both lists hold is not touched: what
        is new is asked for where there is room. Raises ConfigError where there is none, or a connection would be left
        without a symbol; then nothing is changed.
        """
        keep, had = set(symbols), set(self.symbols)
        lists = [[symbol for symbol in group.wanted if symbol in keep] for group in self.groups]
        # What a session has not dropped yet has its place there: it is asked for in one group at a time.
        held = {symbol: place for place, group in enumerate(self.groups) for symbol in group.symbols()}
        left: list[str] = []
        for symbol in (symbol for symbol in symbols if symbol not in had):
            homes = [lists[held[symbol]]] if symbol in held else lists
            home = next((one for one in homes if len(one) < (self._most or math.inf)), None)
            (left if home is None else home).append(symbol)
        again = "restart the recorder, which divides them anew"
        if left:
            raise ConfigError(
                f"{len(left)} of {len(symbols)} tickers, such as {left[0]}, are more than the {len(lists)} connections"
                f" have room for, of {self._most} symbols each: {again}"
            )
        if not all(lists):
            raise ConfigError(f"{len(symbols)} tickers leave a connection of {len(lists)} without any: {again}")
        if len(lists) == 1:
            lists = [list(symbols)]
        for group, wanted in zip(self.groups, lists, strict=True):
            group.wanted = tuple(wanted)


class Subscriptions:
    """The symbols of a session. Nothing survives a connection: each begins with `request_all`."""

    def __init__(
        self,
        feed: Feed,
        ledger: Ledger,
        gaps: Gaps | GroupGaps,
        observed: Observed,
        requests: Requests,
        retry_s: float,
    ) -> None:
        self._feed = feed
        self.symbols = requests.wanted
        self._ledger = ledger
        self._gaps = gaps
        self._observed = observed
        self._requests = requests
        self._retry_s = retry_s
        self._retry_at_s: dict[str, float] = {}
        self._number = 0
        self._requested_s = 0.0
        self._outbox: deque[str] = deque()
        self._next_send_s = 0.0
        self._heartbeat = feed.terms.heartbeat
        self._next_heartbeat_s = math.inf

    def request_all(self, connection: Connection, number: int, now_s: float) -> None:
        """Ask for every symbol on a new connection. Raises ConnectionLost."""
        self._number = number
        self._requested_s = now_s
        self._retry_at_s.clear()
        self._outbox = deque(self._feed.subscribe(self.symbols, first=True))
        self._next_send_s = now_s
        self._next_heartbeat_s = now_s + (self._heartbeat.every_s if self._heartbeat else math.inf)
        self.send_due(connection, now_s)
        self._requests.ask(number, self.symbols)

    def adopt_changes(self, connection: Connection | None) -> bool:
        """Take over what `Division.change` asked for, in the reader's thread; whether there was anything.

        What is new is asked for on the open connection, after what is not wanted any more was given up: places may
        be few. Where there is none, the next one begins with all.
        """
        before, wanted = self.symbols, self._requests.wanted
        if wanted == before:
            return False
        self.symbols = wanted
        keep, had = set(wanted), set(before)
        dropped = [symbol for symbol in before if symbol not in keep]
        added = [symbol for symbol in wanted if symbol not in had]
        for symbol in self._requests.adopt(wanted):
            self._gaps.close(now_us(), symbol)
        for symbol in dropped:
            self._retry_at_s.pop(symbol, None)
        if connection is not None:
            self._outbox += self._feed.unsubscribe(dropped)
            if added:
                self._outbox += self._feed.subscribe(added)
                self._requests.ask_more(self._number, added)
        return True

    def request_again(self, reason: str, symbols: Sequence[str] | None = None) -> None:
        """Ask once more for these symbols (None: for all), which is harmless where they flow."""
        asked = self.symbols if symbols is None else symbols
        self._outbox += self._feed.subscribe(asked)
        self._ledger.record("symbols.retried", connection=self._number, symbols=list(asked), reason=reason)
        log.warning("symbols.retried", reason=reason, symbols=asked)

    def retry_refused(self, now_s: float) -> None:
        """Ask again, some time later, for what the venue refused: its refusals can be false (Finnhub-API #472), and
        places get free.
        """
        others = self._requests.others(self._number)
        refusals, told_us = self._requests.refusals.take(others), now_us()
        facts = [
            {
                "at": told_us,
                "fact": "symbol.refused",
                "connection": self._number,
                "symbol": one.symbol,
                "text": one.text,
            }
            for one in refusals
        ]
        if facts:
            self._ledger.record_all(facts)
        for refusal in refusals:
            log.warning("symbol.refused", symbol=refusal.symbol, text=refusal.text, retry_s=self._retry_s)
            meant = [one for one in self.symbols if one == refusal.symbol]
            if not meant:  # it may mean any symbol of which no trade came on this connection
                last_s = self._observed.last_trade_s
                meant = [one for one in self.symbols if last_s.get(one, float("-inf")) < self._requested_s]
            elif not any(refusal.symbol in self._requests.brought(other) for other in others):
                self._gaps.open("refused", refusal.received_us, refusal.symbol)
            for symbol in meant:
                self._retry_at_s.setdefault(symbol, now_s + self._retry_s)
        due = [symbol for symbol, at_s in self._retry_at_s.items() if at_s <= now_s]
        if due:
            for symbol in due:
                del self._retry_at_s[symbol]
            self.request_again("refused", due)

    def send_due(self, connection: Connection, now_s: float) -> None:
        """Send what is to be asked for, as fast as the venue wants to be asked, and the heartbeat. Raises
        ConnectionLost.
        """
        if self._heartbeat and now_s >= self._next_heartbeat_s:  # before all else: it keeps the connection
            self._outbox.appendleft(self._heartbeat.message)
            self._next_heartbeat_s = now_s + self._heartbeat.every_s
        while self._outbox and now_s >= self._next_send_s:
            connection.send(self._outbox.popleft())
            pause_s = self._feed.terms.message_pause_s
            # Two looks per second are enough for slow venues; for the others what was due since the last one is sent.
            due_s = max(self._next_send_s, now_s - _LOOK_S) if pause_s < _LOOK_S / 2 else now_s
            self._next_send_s = due_s + pause_s
