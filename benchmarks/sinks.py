"""How fast each sink carries a journal to its real server on this machine, one after the other, and what that costs.

    python benchmarks/sinks.py [--rows 200000] [--json]

What is at the destination is held to what was journaled. CPU is this process's alone: a server's own is its own, but
for Kafka's mock cluster, which runs in here. To mirror (directory, s3) includes to make the Parquet files.

Beside SQLite, Redis and Kafka (JSON) stands what one would write by hand, at the same server right after: the same
rows, from columns in memory, by `executemany`, redis-py's pipeline and confluent-kafka's `produce`. Of these there are
three turns, each with a new server, and what is told is the turn with the middle ratio.
"""

import argparse
import json
import os
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import structlog
from confluent_kafka import Producer

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from requirements import Missing
from sink_contract import KINDS, Destination, Kafka, Redis, Sqlite, check, destination_of, fill_journal

from ingestor.layout import Layout

ALL_KINDS = (*KINDS, "kafka, arrow")
FULL_ROWS, QUICK_ROWS = 200_000, 100_000
"""The mock brokers keep no more than 100,000 messages of each of the three symbols."""

_RECORD_ROWS = 5_000
"""What 100 ms hold at 50,000 trades a second."""
_SEGMENT_RECORDS = 20
_TURNS = 3
"""Of what is compared: a shared machine is slower in one moment than in the next."""


@dataclass(frozen=True, slots=True)
class SinkRate:
    """One turn of one sink, from the first row read to the last one durable."""

    kind: str
    rows: int
    lasted_s: float
    cpu_s: float
    by_hand_s: float | None = None
    """What the contender took; None: there is none."""

    @property
    def ratio(self) -> float | None:
        """Rows a second, by those of the contender."""
        return self.by_hand_s and self.by_hand_s / self.lasted_s

    @property
    def rows_a_second(self) -> float:
        return self.rows / self.lasted_s

    @property
    def cpu_us(self) -> float:
        """A row."""
        return self.cpu_s / self.rows * 1e6


def main() -> None:
    arguments = parse_arguments()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    with tempfile.TemporaryDirectory(prefix="ingestor-benchmark-") as work:
        rates, left_out = measure_sinks(arguments.rows, Path(work), told=None if arguments.json else print)
    if arguments.json:
        print(json.dumps({"sinks": [asdict(rate) for rate in rates], "left_out": left_out}))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=FULL_ROWS, help="in whole segments of 100,000; at most 300,000")
    parser.add_argument("--json", action="store_true", help="what was measured, as one object")
    return parser.parse_args()


def measure_sinks(
    rows: int, work: Path, kinds: Sequence[str] = ALL_KINDS, told: Callable[[str], None] | None = None
) -> tuple[list[SinkRate], dict[str, str]]:
    """Each of these, in about 20 s for 100,000 rows of all, and why which were left out; `told` hears of each as it
    comes. Fails where a destination does not hold every row.
    """
    if "s3" in kinds:
        os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    rates, left_out = [], {}
    tell = told or (lambda _: None)
    tell(f"{'sink':<14} {'rows/s':>12} {'CPU µs a row':>13} {'by hand':>8}")
    for kind in kinds:
        turns = []
        try:
            for turn in range(_TURNS if kind in BY_HAND else 1):
                folder = work / f"{kind} {turn}"
                folder.mkdir()
                with destination_of(kind, folder) as (destination, layout):
                    turns.append(_measure(kind, destination, layout, rows))
        except Missing as missing:
            left_out[kind] = str(missing)
            tell(f"{kind:<14} left out: {missing}")
        else:
            rates.append(sorted(turns, key=lambda turn: turn.ratio or 0.0)[len(turns) // 2])
            ratio = f"{rates[-1].ratio:>8.2f}" if rates[-1].ratio else ""
            tell(f"{kind:<14} {rates[-1].rows_a_second:>12,.0f} {rates[-1].cpu_us:>13.2f} {ratio}")
    return rates, left_out


def _measure(kind: str, destination: Destination, layout: Layout, rows: int) -> SinkRate:
    truth = fill_journal(layout, rows // (_RECORD_ROWS * _SEGMENT_RECORDS), _SEGMENT_RECORDS, _RECORD_ROWS)
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    destination.carry(layout)
    lasted_s, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
    check(destination, truth)
    by_hand_s = None
    if kind in BY_HAND:
        began_s = time.perf_counter()
        BY_HAND[kind](destination, truth)
        by_hand_s = time.perf_counter() - began_s
    return SinkRate(kind, rows, lasted_s, cpu_s, by_hand_s)


# By hand


def _executemany(destination: Sqlite, truth: pa.Table) -> None:
    """Into a table with the same columns and indexes, a transaction per segment."""
    with closing(sqlite3.connect(destination.path)) as database:
        kept = [sql for (sql,) in database.execute("SELECT sql FROM sqlite_master WHERE tbl_name = 'trades'") if sql]
        columns = [row[1] for row in database.execute("PRAGMA table_info(trades)")]
    with closing(sqlite3.connect(destination.path.with_name("by-hand.sqlite"))) as database:
        database.execute("PRAGMA journal_mode = WAL")
        for sql in kept:
            database.execute(sql)
        named = [name for name in columns if name in truth.column_names]
        insert = f"INSERT INTO trades ({', '.join(named)}) VALUES ({', '.join('?' * len(named))})"  # noqa: S608
        for batch in truth.select(named).to_batches(_RECORD_ROWS * _SEGMENT_RECORDS):
            values = [
                column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column for column in batch.columns
            ]
            database.executemany(insert, zip(*(column.to_pylist() for column in values), strict=True))
            database.commit()


def _pipeline(destination: Redis, truth: pa.Table) -> None:
    """Into a stream per symbol, a thousand entries at once."""
    client: Any = destination.server.client
    for batch in _as_text(truth).to_batches(1000):
        pipeline = client.pipeline(transaction=False)
        for row in batch.to_pylist():
            symbol = row.pop("symbol")
            pipeline.xadd(f"by-hand:{symbol}", {name: value for name, value in row.items() if value is not None})
        pipeline.execute()


def _produce(destination: Kafka, truth: pa.Table) -> None:
    """A message per row, with the options of the sink."""
    options = {"enable.idempotence": "true", "acks": "all", "linger.ms": "50", **destination.settings.options}
    producer = Producer({**options, "bootstrap.servers": destination.cluster.brokers})
    for row in _as_text(truth, "timestamp", "received_at").to_pylist():
        while True:
            try:
                producer.produce("by-hand", json.dumps(row).encode(), key=row["symbol"].encode())
                break
            except BufferError:
                producer.poll(0.1)
    producer.flush()


def _as_text(truth: pa.Table, *names: str) -> pa.Table:
    """With these columns (all, where none is named) as text."""
    chosen = names or truth.column_names
    columns = [
        column.cast(pa.string()) if name in chosen else column
        for name, column in zip(truth.column_names, truth.columns, strict=True)
    ]
    return pa.table(columns, names=truth.column_names)


BY_HAND: dict[str, Callable[[Any, pa.Table], None]] = {"sqlite": _executemany, "redis": _pipeline, "kafka": _produce}


if __name__ == "__main__":
    main()
