"""From a source to the clients: one thread follows, the event loop hands out."""

import asyncio
import threading
import time
from collections.abc import Collection

from ingestor.live.board import Board
from ingestor.live.source import Block, Source
from ingestor.live.subscriptions import Language, Limits, Subscriber, TooMany
from ingestor.live.updates import json_frame, price_frame

_LOOK_S = 2.0


class Hub:
    """Knows the clients and the board. All of it in one event loop, but `follow`."""

    def __init__(self, source: Source, limits: Limits) -> None:
        """Asks for the last known prices. Raises what the source does."""
        self.limits = limits
        self.board = Board(source.quotes())
        look = source.look()
        self.board.note(look.states, recording=look.recording)
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

    def join(self, language: Language) -> Subscriber:
        """A new client. Raises TooMany."""
        if len(self.clients) >= self.limits.clients:
            raise TooMany(f"at most {self.limits.clients} connections")
        subscriber = Subscriber(language, self.limits)
        self.clients.add(subscriber)
        return subscriber

    def leave(self, subscriber: Subscriber) -> None:
        self._forget(subscriber, list(self._by_symbol) if subscriber.fault else list(subscriber.symbols))
        self.clients.discard(subscriber)
        self.skipped += subscriber.skipped
        self.given_up += bool(subscriber.fault)

    def subscribe(self, subscriber: Subscriber, symbols: Collection[str], every_s: float | None) -> list[str]:
        """Tell its client of these from now on, beginning with the last known prices; those that nobody records.

        Raises TooMany.
        """
        subscriber.subscribe(symbols, every_s)
        unknown = []
        for symbol in symbols:
            self._by_symbol.setdefault(symbol, set()).add(subscriber)
            quote = self.board.quotes.get(symbol)
            if quote is None:
                unknown.append(symbol)
            elif quote.last is not None and subscriber.language is Language.PRICES:
                subscriber.tell(price_frame(symbol, quote.last))
        return unknown

    def unsubscribe(self, subscriber: Subscriber, symbols: Collection[str]) -> None:
        subscriber.unsubscribe(symbols)
        self._forget(subscriber, symbols)

    def _forget(self, subscriber: Subscriber, symbols: Collection[str]) -> None:
        for symbol in symbols:
            subscribers = self._by_symbol.get(symbol, set())
            subscribers.discard(subscriber)
            if not subscribers:
                self._by_symbol.pop(symbol, None)

    # The trades

    def publish(self, block: Block) -> None:
        """Hand a block of trades out."""
        now = time.time()
        self.behind_s = max(now - block.received_at, 0.0)
        for trades in block.trades:
            self.trades += len(trades)
            newest = self.board.take(trades, now)
            for subscriber in self._by_symbol.get(trades.symbol, ()):
                if not subscriber.fault:
                    subscriber.offer(trades, newest=newest)

    def tell_missed(self) -> None:
        """Say to whoever wanted every trade that some passed unseen."""
        for subscriber in self.clients:
            if subscriber.language is Language.PRICES:
                subscriber.tell(json_frame({"error": "trades were missed: this server fell behind"}))

    def follow(self, loop: asyncio.AbstractEventLoop, stop: threading.Event) -> None:
        """Publish what comes, until `stop`. For a thread of its own. Raises what the source does.

        Block after block: while the loop is busy the next ones wait in the source, not in memory here.
        """
        for block in self._source.blocks(stop):
            asyncio.run_coroutine_threadsafe(self._take(block), loop).result()

    async def _take(self, block: Block | None) -> None:
        if block is None:
            self.tell_missed()
        else:
            self.publish(block)

    async def watch_coverage(self) -> None:
        """Keep the board's states true, without end. Raises what the source does."""
        while True:
            await asyncio.sleep(_LOOK_S)
            look = await asyncio.to_thread(self._source.look)
            self.board.note(look.states, recording=look.recording)
