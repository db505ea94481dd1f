"""The careful script: asyncio, `websockets`, json, aiosqlite.

    python asyncio_sqlite.py URL FILE [CA_FILE]

In WAL mode, a thousand rows an `executemany`, a commit a second. Ends when the venue closes the connection, with every
trade committed.
"""

import asyncio
import json
import ssl
import sys
import time

import aiosqlite
from websockets.asyncio.client import connect

_ROWS = 1000
_COMMIT_S = 1.0

Row = tuple[int, str, float, float, str]


async def main(url: str, path: str, ca_file: str | None) -> None:
    context = ssl.create_default_context(cafile=ca_file) if ca_file else None
    async with aiosqlite.connect(path) as database:
        await database.execute("PRAGMA journal_mode = WAL")
        await database.execute(
            "CREATE TABLE trades (timestamp INT, symbol TEXT, price REAL, volume REAL, conditions TEXT)"
        )
        waiting: list[Row] = []
        commit_at_s = time.monotonic() + _COMMIT_S
        async with connect(url, ssl=context, ping_interval=None) as venue:
            await venue.send(json.dumps({"type": "subscribe", "symbol": "AAPL"}))
            async for text in venue:
                message = json.loads(text)
                if message["type"] == "trade":
                    waiting += [(one["t"], one["s"], one["p"], one["v"], ",".join(one["c"])) for one in message["data"]]
                if len(waiting) >= _ROWS:
                    await insert(database, waiting)
                    waiting.clear()
                    if time.monotonic() >= commit_at_s:
                        await database.commit()
                        commit_at_s = time.monotonic() + _COMMIT_S
        await insert(database, waiting)
        await database.commit()


async def insert(database: aiosqlite.Connection, rows: list[Row]) -> None:
    await database.executemany("INSERT INTO trades VALUES (?, ?, ?, ?, ?)", rows)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else None))
