"""The usual script: websocket-client's WebSocketApp, json, a queue, csv in a thread of its own.

    python script.py URL FILE [--flush] [CA_FILE]

Written as well as its kind allows: one queue entry a message, a `writerows` a message; with `--flush`, a flush when no
message waits, since what stays in memory is lost when it is killed. Ends when the venue closes the connection, with
every trade written.
"""

import csv
import json
import queue
import sys
import threading
from pathlib import Path
from typing import Any

from websocket import WebSocketApp

Trades = list[dict[str, Any]]


def main(url: str, path: str, *options: str) -> None:
    flush, ca_file = "--flush" in options, next((one for one in options if one != "--flush"), None)
    waiting: queue.Queue[Trades | None] = queue.Queue()
    writer = threading.Thread(target=write, args=(waiting, Path(path), flush))
    writer.start()

    def on_open(app: WebSocketApp) -> None:
        app.send(json.dumps({"type": "subscribe", "symbol": "AAPL"}))

    def on_message(_app: WebSocketApp, text: str) -> None:
        message = json.loads(text)
        if message["type"] == "trade":
            waiting.put(message["data"])

    app = WebSocketApp(url, on_open=on_open, on_message=on_message)
    app.run_forever(sslopt={"ca_certs": ca_file} if ca_file else None, skip_utf8_validation=True)
    waiting.put(None)
    writer.join()


def write(waiting: queue.Queue[Trades | None], path: Path, flush: bool) -> None:
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("timestamp", "symbol", "price", "volume", "conditions"))
        while (trades := waiting.get()) is not None:
            rows.writerows((one["t"], one["s"], one["p"], one["v"], ",".join(one["c"])) for one in trades)
            if flush and waiting.empty():
                file.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
