"""How fast each sink carries a journal to its real server on this machine, one after the other, and what that costs.

    PYTHONPATH=.:tests python benchmarks/sinks.py [--rows 1000000]

What is at the destination is held to what was journaled. CPU is this process's alone: the server's own is its own.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import structlog
from sink_contract import KINDS, Destination, check, destination_of, fill_journal

from ingestor.layout import Layout

_RECORD_ROWS = 5_000
"""What 100 ms hold at 50,000 trades a second."""
_SEGMENT_RECORDS = 20


def main() -> None:
    arguments = parse_arguments()
    os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    print(f"{'sink':<10} {'rows/s':>12} {'CPU µs a row':>13}")
    for kind in KINDS:
        with (
            tempfile.TemporaryDirectory(prefix="ingestor-benchmark-") as folder,
            destination_of(kind, Path(folder)) as (destination, layout),
        ):
            seconds, cpu_s = measure(destination, layout, arguments.rows)
        print(f"{kind:<10} {arguments.rows / seconds:>12,.0f} {cpu_s / arguments.rows * 1e6:>13.2f}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000, help="in whole segments of 100,000")
    return parser.parse_args()


def measure(destination: Destination, layout: Layout, rows: int) -> tuple[float, float]:
    """Seconds, and CPU seconds, from the first row read to the last one durable."""
    truth = fill_journal(layout, rows // (_RECORD_ROWS * _SEGMENT_RECORDS), _SEGMENT_RECORDS, _RECORD_ROWS)
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    destination.carry(layout)
    seconds, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
    check(destination, truth)
    return seconds, cpu_s


if __name__ == "__main__":
    main()
