"""The modern script: asyncio, `websockets`, json, csv.

    python asyncio_csv.py URL FILE [CA_FILE]

Ends when the venue closes the connection, with every trade written.
"""

import asyncio
import csv
import json
import ssl
import sys
from pathlib import Path

from websockets.asyncio.client import connect


async def main(url: str, path: str, ca_file: str | None) -> None:
    context = ssl.create_default_context(cafile=ca_file) if ca_file else None
    with Path(path).open("w", newline="") as file:  # noqa: ASYNC230  a buffered file, as such scripts have it
        rows = csv.writer(file)
        rows.writerow(("timestamp", "symbol", "price", "volume", "conditions"))
        async with connect(url, ssl=context, ping_interval=None) as venue:
            await venue.send(json.dumps({"type": "subscribe", "symbol": "AAPL"}))
            async for text in venue:
                message = json.loads(text)
                if message["type"] == "trade":
                    rows.writerows(
                        (one["t"], one["s"], one["p"], one["v"], ",".join(one["c"])) for one in message["data"]
                    )


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else None))
