"""Many clients of `ingestor serve`, read in one loop: what they are sent is counted and dated, not decoded.

    python benchmarks/live_crowd.py ws://127.0.0.1:8766 --mode all --clients 100 --idle 0 --seconds 5

Prints the messages a second of all of them together, and p50 and p99 (ms) of how old the newest trade of what one read
brought was.
"""

import argparse
import json
import os
import resource
import selectors
import socket
import time
from contextlib import ExitStack

import websocket
from trade_load import SYMBOLS

_WARM_UP_S = 1.0
_READ = 1 << 18
_TIME = b'"timestamp":'
_TIME_DIGITS = 13


def main() -> None:
    parser = argparse.ArgumentParser(description="Be many clients.")
    parser.add_argument("url")
    parser.add_argument("--mode", choices=["all", "latest"], default="all")
    parser.add_argument("--clients", type=int, required=True)
    parser.add_argument("--idle", type=int, default=0, help="clients beside those, which subscribe to nothing")
    parser.add_argument("--seconds", type=float, required=True)
    arguments = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with ExitStack() as stack, selectors.DefaultSelector() as selector:
        for number in range(arguments.idle + arguments.clients):
            mode = arguments.mode if number >= arguments.idle else None
            selector.register(stack.enter_context(connect(arguments.url, mode)), selectors.EVENT_READ)
        read(selector, _WARM_UP_S)
        messages, ages_ms = read(selector, arguments.seconds)
    ages_ms.sort()
    p50, p99 = (ages_ms[int(len(ages_ms) * share)] for share in (0.5, 0.99))
    print(json.dumps({"messages_s": messages / arguments.seconds, "p50_ms": p50, "p99_ms": p99}))


def connect(url: str, mode: str | None) -> socket.socket:
    """A client that wants every symbol in this mode, or nothing."""
    client = websocket.create_connection(f"{url}/live-price")
    if mode is not None:
        client.send(json.dumps({"action": "subscribe", "symbols": SYMBOLS, "mode": mode}))
    if client.sock is None:
        raise SystemExit("a client was refused")
    return client.sock


def read(selector: selectors.BaseSelector, seconds: float) -> tuple[int, list[float]]:
    """For so long: the messages, and for each read the age (ms) of the newest trade in it."""
    messages, ages_ms = 0, []
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        for key, _ in selector.select(0.1):
            data = os.read(key.fd, _READ)
            if not data:
                raise SystemExit("a client was closed: the server can't keep up with this load here")
            at = data.rfind(_TIME, 0, len(data) - _TIME_DIGITS) + len(_TIME)
            if at >= len(_TIME):
                messages += data.count(_TIME)
                ages_ms.append(time.time() * 1000 - int(data[at : at + _TIME_DIGITS]))
    return messages, ages_ms


if __name__ == "__main__":
    main()
