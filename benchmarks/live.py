"""How far behind the journal the clients of `ingestor serve` are, and what that costs.

    python benchmarks/live.py [--seconds 10] [--rate 10000]

A journal grows at a steady rate; a client's delay is from a block's being appended to its bytes being read. All three,
the journal's writer, the server and the reader of all clients, share the machine: the server's own cost is its CPU.
"""

import argparse
import json
import os
import resource
import selectors
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import websocket

from ingestor.journal.segment import Header, Kind
from ingestor.journal.writer import Block, Journal, Rotation
from ingestor.layout import Layout
from ingestor.ledger import Ledger, run_id
from ingestor.metrics import Counts
from ingestor.schema import FORMAT_VERSION, RUN_SHIFT, TRADES

SYMBOLS = [f"S{number:02}" for number in range(50)]
BLOCK_S = 0.05
WARM_UP_S = 2.0
SCENARIOS = (("all", 1), ("all", 100), ("latest", 100), ("idle", 1000))
_TIME = b'"timestamp":'
_TIME_DIGITS = 13


class Load:
    """A journal that grows by `rate` trades a second; each trade's time is that of its appending."""

    def __init__(self, root: Path, rate: int) -> None:
        layout = Layout(root)
        layout.create()
        ledger = Ledger(layout, run_id(1, datetime.now(UTC)))
        ledger.record("run.started", format=FORMAT_VERSION, run=1, feed="finnhub", columns=TRADES.names,
                      tickers=SYMBOLS, formats=["parquet"], first_segment=1, open_gaps=[])  # fmt: skip
        ledger.close()
        self._journal = Journal(layout, 1, 1, "finnhub", TRADES, Rotation(1e9, 1 << 40))
        self._sequence = 1 << RUN_SHIFT
        self._rows = round(rate * BLOCK_S)
        self.append()

    def append(self) -> None:
        """One block."""
        first, count, now_us = self._sequence, self._rows, time.time_ns() // 1000
        self._sequence += count
        columns = {
            "timestamp": [now_us // 1000] * count,
            "symbol": [SYMBOLS[index % len(SYMBOLS)] for index in range(count)],
            "price": [100 + index % 100 / 100 for index in range(count)],
            "volume": [100.0] * count,
            "conditions": ["1"] * count,
            "received_at": [now_us] * count,
            "sequence": list(range(first, first + count)),
            "repeated": [False] * count,
        }
        counts = Counts(frames=count, decoded=count, trades=count)
        header = Header(Kind.BLOCK, counts, 0, first, now_us, now_us)
        self._journal.append(Block(header, pa.RecordBatch.from_pydict(columns, schema=TRADES), {}))

    def run(self, stop: threading.Event) -> None:
        due_s = time.monotonic()
        while not stop.is_set():
            self.append()
            due_s += BLOCK_S
            stop.wait(max(due_s - time.monotonic(), 0.0))


@dataclass
class Crowd:
    """Many clients, read in one loop; what they are sent is counted and dated, not decoded."""

    url: str
    mode: str
    clients: int
    messages: int = 0
    delays_ms: list[float] = field(default_factory=list)

    def run(self, seconds: float) -> None:
        with ExitStack() as stack, selectors.DefaultSelector() as selector:
            for _ in range(self.clients):
                selector.register(stack.enter_context(self._connect()), selectors.EVENT_READ)
            began_s = time.monotonic()
            while (now_s := time.monotonic()) < began_s + WARM_UP_S + seconds:
                for key, _ in selector.select(0.1):
                    self._read(os.read(key.fd, 1 << 18), counts=now_s >= began_s + WARM_UP_S)

    def _connect(self) -> socket.socket:
        client = websocket.create_connection(self.url.replace("http", "ws") + "/live-price")
        if self.mode != "idle":
            client.send(json.dumps({"action": "subscribe", "symbols": SYMBOLS, "mode": self.mode}))
        if client.sock is None:
            raise SystemExit("a client was refused")
        return client.sock

    def _read(self, data: bytes, *, counts: bool) -> None:
        if not data:
            raise SystemExit("a client was closed: the server can't keep up with this load here")
        at = data.rfind(_TIME, 0, len(data) - _TIME_DIGITS) + len(_TIME)
        if counts and at >= len(_TIME):
            self.messages += data.count(_TIME)
            self.delays_ms.append(time.time() * 1000 - int(data[at : at + _TIME_DIGITS]))


@contextmanager
def serving(root: Path) -> Iterator[tuple[str, int]]:
    """Address and pid."""
    command = [sys.executable, "-m", "ingestor", "serve", "--root", str(root), "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield json.loads(process.stdout.readline() if process.stdout else "")["url"], process.pid
        finally:
            process.terminate()


def cpu_s(pid: int) -> float:
    ticks = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


def rss_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def measure(mode: str, clients: int, rate: int, seconds: float) -> str:
    """One line of the table."""
    root = Path(tempfile.mkdtemp(prefix="bench-live-"))
    stop = threading.Event()
    try:
        load = Load(root, rate)
        writer = threading.Thread(target=load.run, args=(stop,))
        with serving(root) as (url, pid):
            writer.start()
            crowd = Crowd(url, mode, clients)
            began_s, spent_s = time.monotonic(), cpu_s(pid)
            crowd.run(seconds)
            cpu = (cpu_s(pid) - spent_s) / (time.monotonic() - began_s)
            memory = rss_mb(pid)
            stop.set()
            writer.join()
    finally:
        stop.set()
        shutil.rmtree(root)
    delays = sorted(crowd.delays_ms) or [float("nan")]
    p50, p99 = (delays[int(len(delays) * share)] for share in (0.5, 0.99))
    return (
        f"{mode:<7} {clients:>7} {rate:>9,} {crowd.messages / seconds:>12,.0f} {p50:>7.0f} {p99:>7.0f}"
        f" {cpu:>6.0%} {memory:>7.0f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rate", type=int, default=10_000, help="trades a second, over 50 symbols")
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    print("mode    clients  trades/s   messages/s  p50 ms  p99 ms    CPU  RSS MB")
    for mode, clients in SCENARIOS:
        print(measure(mode, clients, options.rate, options.seconds), flush=True)


if __name__ == "__main__":
    main()
