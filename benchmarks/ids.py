"""What checking ids costs: CPU µs a trade, with a venue that counts its trades.

    python benchmarks/ids.py [--trades 400000]

Trades of 50 symbols come as Binance sends them, a frame each, in blocks of a tenth of a second at 10,000 trades/s. The
recorder's own parts decode, check, journal and seal them, without a socket: of all that a recorder does, the share is
smaller still.

Prints `{"trades": …, "cpu_us": …, "ids_us": …}`: a trade's CPU without the check of its id, and that of the check.
"""

import argparse
import json
import logging
import tempfile
import threading
import time
from pathlib import Path

import structlog

from ingestor.capture.buffer import FrameBlock
from ingestor.capture.id_watch import IdWatch
from ingestor.capture.recorder import BlockDecoder
from ingestor.config import Settings
from ingestor.feeds import Frames, make_feed
from ingestor.journal.writer import Block
from ingestor.layout import Layout
from ingestor.recording import prepare

_BLOCK = 1000
_SYMBOLS = 50
_RATE = 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what checking ids costs.")
    parser.add_argument("--trades", type=int, default=400_000)
    trades = parser.parse_args().trades
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    with tempfile.TemporaryDirectory() as folder:
        cpu_us, ids_us = measure(Path(folder) / "data", trades)
    print(json.dumps({"trades": trades, "cpu_us": cpu_us, "ids_us": ids_us}))


def measure(root: Path, trades: int) -> tuple[float, float]:
    """CPU a trade without the check of its id, and of that check."""
    symbols = [f"COIN{number}USDT" for number in range(_SYMBOLS)]
    settings = Settings.model_validate(
        {"feed": {"type": "binance"}, "tickers": symbols, "storage": {"root": root, "min_free": "0B"}}
    )
    layout, stopped = Layout(root), threading.Event()
    layout.create()
    stopped.set()
    recording = prepare(settings, "", layout, threading.Event(), stopped)
    feed, journal = make_feed(settings.feed, ""), recording.journal
    decoder = BlockDecoder(feed, recording.run, recording.clock.venue)
    watch = IdWatch(feed.terms.id_column or "", recording.ledger, recording.gaps, recording.observed, {})
    began_us = time.time_ns() // 1000
    blocks = [make_block(symbols, first, began_us) for first in range(0, trades, _BLOCK)]
    began_s, ids_s = time.process_time(), 0.0
    for block in blocks:
        decoded = decoder.decode(block)
        journal.append(Block(decoded.header, decoded.batch))
        if journal.unsynced.full:
            journal.sync()
        journal.rotate_if_due()
        before_s, now_s = time.process_time(), time.monotonic()
        watch.see(1, decoded.batch, now_s)
        watch.turn(now_s)
        ids_s += time.process_time() - before_s
    before_s = time.process_time()
    watch.close(time.monotonic())
    ids_s += time.process_time() - before_s
    journal.close()
    recording.runner.run()
    spent_s = time.process_time() - began_s - ids_s
    recording.ledger.close()
    return spent_s / trades * 1e6, ids_s / trades * 1e6


def make_block(symbols: list[str], first: int, began_us: int) -> FrameBlock:
    """The trades from this number on, each in a frame of its own."""
    payloads, received_us = [], []
    for number in range(first, first + _BLOCK):
        at_us = began_us + number * 1_000_000 // _RATE
        event = {
            "e": "trade",
            "E": at_us // 1000,
            "s": symbols[number % len(symbols)],
            "t": number // len(symbols) + 1,
            "p": f"{100 + number % 7}.25",
            "q": f"0.{1 + number % 9}",
            "T": at_us // 1000,
            "m": number % 2 == 0,
            "M": True,
        }
        payloads.append(json.dumps(event, separators=(",", ":")).encode())
        received_us.append(at_us)
    return FrameBlock(1, Frames(payloads, received_us))


if __name__ == "__main__":
    main()
