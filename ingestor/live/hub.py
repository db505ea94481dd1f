"""Hub from a price source to the clients: one thread follows the source, the event loop hands its trades out."""

import asyncio
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple, Protocol

from ingestor.live.board import UNKNOWN, Board, Quote, State, SymbolTrades, json_frame, price_frame
from ingestor.live.subscriptions import ClientLanguage, Limits, Subscriber, TooMany

_STATE_S = 0.5
"""A change is known half a second after it is written down, and so within a second."""


def gap_frame(symbol: str, now: State, before: State) -> bytes:
    """Says that from now on the silence of a symbol is not the market's, or that it is again, and why it wasn't."""
    event, told = ("gap_end", before) if now.state == "recorded" else ("gap", now)
    return json_frame({"event": event, "symbol": symbol, "state": now.state, "cause": told.cause})


class TradeBlock(NamedTuple):
    """Trades that came together."""

    trades: list[SymbolTrades]
    received_at: float
    """When the newest was received, in seconds since 1970."""


class RecordingState(NamedTuple):
    """State of the recording."""

    states: Mapping[str, State]
    """Of each symbol that is claimed now."""
    recording: bool | None
    """Whether anybody records; None: unknown."""


class PriceSource(Protocol):
    """A recording on this machine, or Redis; open: what comes from then on is not missed."""

    def quotes(self) -> list[Quote]:
        """The last known prices."""
        ...

    def state(self) -> RecordingState:
        """State of the recording now."""
        ...

    def blocks(self, stop: threading.Event) -> Iterator[TradeBlock | None]:
        """For a thread of its own: block by block until `stop`; None where some were missed."""
        ...


class Hub:
    """Knows the clients and the board. All of it in one event loop, but `follow`."""

    def __init__(self, source: PriceSource, limits: Limits) -> None:
        """Asks for the last known prices. Raises what the source does."""
        self.limits = limits
        self.board = Board(source.quotes())
        self.board.set_state(*source.state())
        self.clients: set[Subscriber] = set()
        self.trades = 0
        """Handed out, each once."""
        self.skipped = 0
        """Of clients that have left."""
        self.given_up = 0
        self.behind_s = 0.0
        """From the receipt of the newest trade to its being handed out."""
        self._source = source
        self._by_symbol: dict[str, set[Subscriber]] = {}

    # The clients

    def join(self, language: ClientLanguage) -> Subscriber:
        """A new client. Raises TooMany."""
        if len(self.clients) >= self.limits.clients:
            raise TooMany(f"at most {self.limits.clients} connections")
        subscriber = Subscriber(language, self.limits)
        self.clients.add(subscriber)
        return subscriber

    def leave(self, subscriber: Subscriber) -> None:
        """The client is gone: forget it, but for its counts."""
        self._forget(subscriber, list(self._by_symbol) if subscriber.fault else list(subscriber.symbols))
        self.clients.discard(subscriber)
        self.skipped += subscriber.skipped
        self.given_up += bool(subscriber.fault)

    def subscribe(
        self, subscriber: Subscriber, symbols: Collection[str], every_s: float | None, *, gaps: bool = False
    ) -> list[str]:
        """Tell its client of these from now on, beginning with the last known prices; those that nobody records.
        `gaps`: also when their silence is not the market's, beginning with those of which it isn't now.

        Raises TooMany.
        """
        subscriber.subscribe(symbols, every_s, gaps=gaps)
        unknown = []
        for symbol in symbols:
            self._by_symbol.setdefault(symbol, set()).add(subscriber)
            quote = self.board.quotes.get(symbol)
            if quote is None:
                unknown.append(symbol)
            elif quote.last is not None and subscriber.language is ClientLanguage.PRICES:
                subscriber.enqueue(price_frame(symbol, quote.last))
            if gaps and quote is not None and quote.state.state != "recorded":
                subscriber.enqueue(gap_frame(symbol, quote.state, quote.state))
        return unknown

    def unsubscribe(self, subscriber: Subscriber, symbols: Collection[str]) -> None:
        """Tell its client of these no more."""
        subscriber.unsubscribe(symbols)
        self._forget(subscriber, symbols)

    def _forget(self, subscriber: Subscriber, symbols: Collection[str]) -> None:
        for symbol in symbols:
            subscribers = self._by_symbol.get(symbol, set())
            subscribers.discard(subscriber)
            if not subscribers:
                self._by_symbol.pop(symbol, None)

    # The trades

    def publish(self, block: TradeBlock) -> None:
        """Hand a block of trades out."""
        now = time.time()
        self.behind_s = max(now - block.received_at, 0.0)
        for trades in block.trades:
            self.trades += len(trades)
            newest = self.board.add_trades(trades, now)
            for subscriber in self._by_symbol.get(trades.symbol, ()):
                if not subscriber.fault:
                    subscriber.offer(trades, newest=newest)

    def report_missed(self) -> None:
        """Say to whoever wanted every trade that some passed unseen."""
        for subscriber in self.clients:
            if subscriber.language is ClientLanguage.PRICES:
                subscriber.enqueue(json_frame({"error": "trades were missed: this server fell behind"}))

    def follow(self, loop: asyncio.AbstractEventLoop, stop: threading.Event) -> None:
        """Publish what comes, until `stop`. For a thread of its own. Raises what the source does.

        Block after block: while the loop is busy the next ones wait in the source, not in memory here.
        """

        async def hand_out(block: TradeBlock | None) -> None:
            if block is None:
                self.report_missed()
            else:
                self.publish(block)

        for block in self._source.blocks(stop):
            asyncio.run_coroutine_threadsafe(hand_out(block), loop).result()

    async def watch_coverage(self) -> None:
        """Keep the board's states true, without end, and tell who asked of each change. Raises what the source does."""
        while True:
            await asyncio.sleep(_STATE_S)
            self.set_state(await asyncio.to_thread(self._source.state))

    def set_state(self, state: RecordingState) -> None:
        """Take over what coverage says, and tell who asked of each change."""
        quotes = self.board.quotes
        before = {symbol: quotes[symbol].state for symbol in self._by_symbol if symbol in quotes}
        self.board.set_state(*state)
        for symbol, subscribers in self._by_symbol.items():
            if symbol in quotes and quotes[symbol].state != (was := before.get(symbol, UNKNOWN)):
                told = gap_frame(symbol, quotes[symbol].state, was)
                for subscriber in subscribers:
                    if symbol in subscriber.gaps:
                        subscriber.enqueue(told)
