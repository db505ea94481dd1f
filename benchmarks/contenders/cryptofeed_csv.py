"""cryptofeed, taught Finnhub's language as it is taught any venue's, with a csv callback.

    python cryptofeed_csv.py URL FILE [CA_FILE]

Runs in a virtual environment of its own that has cryptofeed 3: its needs and ours need not agree. Ends half a second
after SIGTERM, which comes when all is read: what still waits in its queues is written by then.
"""

import asyncio
import csv
import os
import signal
import sys
from decimal import Decimal
from pathlib import Path

import uvloop
from cryptofeed import FeedHandler
from cryptofeed import _json as json  # what its own exchanges decode with: msgspec
from cryptofeed.connection import AsyncConnection, WebsocketEndpoint
from cryptofeed.defines import TRADES
from cryptofeed.feed import Feed
from cryptofeed.symbols import Symbols
from cryptofeed.types import Trade

_SYMBOL = "AAPL-USD"
_DRAIN_S = 0.5


class Finnhub(Feed):  # type: ignore[misc]  # not installed where types are checked
    """Finnhub as one of cryptofeed's exchanges."""

    id = "FINNHUB"
    websocket_channels = {TRADES: "trade"}  # noqa: RUF012  cryptofeed's own way to say it

    async def subscribe(self, connection: AsyncConnection) -> None:
        await connection.write(json.dumps({"type": "subscribe", "symbol": "AAPL"}))

    async def message_handler(self, text: str, _connection: AsyncConnection, received: float) -> None:
        message = json.loads(text, parse_float=Decimal)
        if message["type"] == "trade":
            for one in message["data"]:
                trade = Trade(
                    self.id, one["s"], None, Decimal(one["v"]), Decimal(one["p"]), one["t"] / 1000, raw=one
                )  # fmt: skip
                await self.callback(TRADES, trade, received)


async def main(url: str, path: str) -> None:
    Symbols.set(
        Finnhub.id, {_SYMBOL: "AAPL"}, {"instrument_type": {_SYMBOL: "spot"}}
    )  # else it asks the venue for them
    Finnhub.websocket_endpoints = [WebsocketEndpoint(url)]
    with Path(path).open("w", newline="") as file:  # noqa: ASYNC230  a buffered file, as such scripts have it
        rows = csv.writer(file)
        rows.writerow(("timestamp", "symbol", "price", "volume", "conditions", "received_at"))

        async def write(trade: Trade, received: float) -> None:
            rows.writerow(
                (trade.timestamp, trade.symbol, trade.price, trade.amount, ",".join(trade.raw["c"]), received)
            )

        handler = FeedHandler(config={"log": {"filename": None, "level": "WARNING"}})  # to stderr alone
        handler.add_feed(Finnhub(symbols=[_SYMBOL], channels=[TRADES], callbacks={TRADES: write}))
        loop = asyncio.get_running_loop()
        # Its own handler of the signal stops at once, and what it has read but not handled yet is lost.
        loop.add_signal_handler(signal.SIGTERM, loop.call_later, _DRAIN_S, handler.request_stop)
        await handler.run_async(install_signal_handlers=False)


if __name__ == "__main__":
    if len(sys.argv) > 3:
        os.environ["SSL_CERT_FILE"] = sys.argv[3]
    uvloop.run(main(sys.argv[1], sys.argv[2]))  # as FeedHandler.run would
