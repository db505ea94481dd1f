"""How fast each sink carries a journal to its real server on this machine, one after the other, and what that costs.

    python benchmarks/sinks.py [--rows 200000] [--json]

What is at the destination is held to what was journaled. CPU is this process's alone: a server's own is its own, but
for Kafka's mock cluster, which runs in here. To mirror (directory, s3) includes to make the Parquet files.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import structlog

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from requirements import Missing
from sink_contract import KINDS, Destination, check, destination_of, fill_journal

from ingestor.layout import Layout

ALL_KINDS = (*KINDS, "kafka, arrow")
FULL_ROWS, QUICK_ROWS = 200_000, 100_000
"""The mock brokers keep no more than 100,000 messages of each of the three symbols."""

_RECORD_ROWS = 5_000
"""What 100 ms hold at 50,000 trades a second."""
_SEGMENT_RECORDS = 20


@dataclass(frozen=True, slots=True)
class SinkRate:
    """One sink, once, from the first row read to the last one durable."""

    kind: str
    rows: int
    lasted_s: float
    cpu_s: float

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
    """Each of these once, in about 10 s for 100,000 rows of all, and why which were left out; `told` hears of each as
    it comes. Fails where a destination does not hold every row.
    """
    if "s3" in kinds:
        os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    rates, left_out = [], {}
    tell = told or (lambda _: None)
    tell(f"{'sink':<14} {'rows/s':>12} {'CPU µs a row':>13}")
    for kind in kinds:
        folder = work / kind
        folder.mkdir()
        try:
            with destination_of(kind, folder) as (destination, layout):
                rates.append(_measure(kind, destination, layout, rows))
        except Missing as missing:
            left_out[kind] = str(missing)
            tell(f"{kind:<14} left out: {missing}")
        else:
            tell(f"{kind:<14} {rates[-1].rows_a_second:>12,.0f} {rates[-1].cpu_us:>13.2f}")
    return rates, left_out


def _measure(kind: str, destination: Destination, layout: Layout, rows: int) -> SinkRate:
    truth = fill_journal(layout, rows // (_RECORD_ROWS * _SEGMENT_RECORDS), _SEGMENT_RECORDS, _RECORD_ROWS)
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    destination.carry(layout)
    lasted_s, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
    check(destination, truth)
    return SinkRate(kind, rows, lasted_s, cpu_s)


if __name__ == "__main__":
    main()
