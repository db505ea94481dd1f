"""A journal that grows by so many trades a second, each of the time of its appending, until stdin is closed.

python benchmarks/live_journal.py ROOT --rate 10000
"""

import argparse
import select
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
from trade_load import SYMBOLS

from ingestor.journal.records import Header, Kind
from ingestor.journal.writer import Block, Journal, Rotation, Segments
from ingestor.layout import Layout
from ingestor.ledger import Ledger
from ingestor.metrics import Counts
from ingestor.schema import FORMAT_VERSION, RUN_SHIFT, TRADES

FIRST = 1 << RUN_SHIFT
"""The first sequence number of the first run."""
_BLOCK_S = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description="Let a journal grow.")
    parser.add_argument("root", type=Path)
    parser.add_argument("--rate", type=int, required=True, help="trades a second, over 50 symbols")
    arguments = parser.parse_args()
    journal = begin(arguments.root)
    sequence, rows = FIRST, round(arguments.rate * _BLOCK_S)
    journal.append(block_of_now(sequence, rows))
    print("{}", flush=True)
    due_s = time.monotonic()
    while not select.select([sys.stdin], [], [], max(due_s - time.monotonic(), 0.0))[0]:
        sequence += rows
        journal.append(block_of_now(sequence, rows))
        due_s += _BLOCK_S


def begin(root: Path) -> Journal:
    """The journal of a new recording."""
    layout = Layout(root)
    layout.create()
    ledger = Ledger(layout, 1, datetime.now(UTC).date())
    ledger.record("run.started", format=FORMAT_VERSION, run=1, feed="finnhub", columns=TRADES.names,
                  tickers=SYMBOLS, formats=["parquet"], first_segment=1, open_gaps=[])  # fmt: skip
    ledger.close()
    return Journal(layout, Segments(layout, 1, 1, "finnhub", TRADES), Rotation(1e9, 1 << 40))


def block_of_now(first: int, count: int) -> Block:
    """Trades of all symbols in turn, the first under this sequence number."""
    now_us = time.time_ns() // 1000
    return make_block(first, [SYMBOLS[index % len(SYMBOLS)] for index in range(count)], [now_us] * count)


def make_block(first: int, symbols: list[str], times_us: list[int]) -> Block:
    """A trade of each of these, received when it happened."""
    count = len(symbols)
    columns = {
        "timestamp": [time_us // 1000 for time_us in times_us],
        "symbol": symbols,
        "price": [100 + index % 100 / 100 for index in range(count)],
        "volume": [100.0] * count,
        "conditions": ["1"] * count,
        "received_at": times_us,
        "sequence": list(range(first, first + count)),
        "repeated": [False] * count,
    }
    header = Header(Kind.BLOCK, Counts(frames=count, decoded=count, trades=count), 0, first, times_us[0], times_us[-1])
    return Block(header, pa.RecordBatch.from_pydict(columns, schema=TRADES), {})


if __name__ == "__main__":
    main()
