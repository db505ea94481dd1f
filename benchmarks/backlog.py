"""What a view costs at rest, by how many segments stand in the journal: `python -m benchmarks.backlog`.

Prints a line each for a journal without a backlog and with 64 and 300 segments: the CPU time of one `follow()` at
rest, as a share of a core.
"""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import ingestor
from ingestor.journal.writer import Segments
from ingestor.layout import Layout
from ingestor.schema import TRADES

_SETTLE_S = 3.0
_REST_S = 5.0


def measure(segments: int) -> float:
    """The share of a core that one `follow()` takes behind so many segments."""
    began = datetime.now(UTC) - timedelta(days=1)
    with TemporaryDirectory() as folder:
        layout = Layout(Path(folder))
        layout.create()
        opener = Segments(layout, 1, 1, "finnhub", TRADES, lambda: began)
        previous = None
        for _ in range(segments + 1):
            opened = opener.open(previous, None)
            opened.close()
            previous = opened.id
        batches = ingestor.follow(folder, idle_s=0.1)
        _rest(batches, _SETTLE_S)
        cpu_s = time.process_time()
        _rest(batches, _REST_S)
        return (time.process_time() - cpu_s) / _REST_S


def _rest(batches: Iterator[object], seconds: float) -> None:
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        next(batches)


if __name__ == "__main__":
    for segments in (0, 64, 300):
        print(f"follow() at rest, {segments:3} segments behind it: {measure(segments):.2%} of a core")
