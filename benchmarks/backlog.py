"""What a view costs at rest, by how many segments stand in the journal.

    python benchmarks/backlog.py [--turns 3]

Prints `{"none": …, "many": …, "ratio": …}`: the CPU time of one `follow()` at rest, as a share of a core, behind no
segment and behind 300, and the one by the other; medians of so many turns.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import ingestor
from ingestor.journal.writer import Segments
from ingestor.layout import Layout
from ingestor.schema import TRADES

_MANY = 300
_SETTLE_S = 3.0
_REST_S = 5.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3)
    print(json.dumps(measure_turns(parser.parse_args().turns)))


def measure_turns(count: int) -> dict[str, float]:
    """One after the other, since a machine is slower in one minute than in the next."""
    turns = [(measure(0), measure(_MANY)) for _ in range(count)]
    none, many = (statistics.median(shares) for shares in zip(*turns, strict=True))
    return {"none": none, "many": many, "ratio": statistics.median(one[1] / one[0] for one in turns)}


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
    main()
