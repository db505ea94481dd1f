"""How long one update of `ingestor dashboard` takes: what its server does each 250 ms for one browser tab.

    python benchmarks/live_dashboard.py ROOT --seconds 5

Four symbols side by side, each with eight hours of one-second bars, while the journal grows by 10,000 trades a second
over 50 symbols; first with two minutes in sight, as it follows, then with all eight hours. Prints p50 and the longest.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

from bokeh.document import Document
from bokeh.models import Plot
from live_journal import FIRST, begin, block_of_now, make_block
from trade_load import SYMBOLS

from ingestor.charts.bokeh_app import BARS, Dashboard, View
from ingestor.charts.series import LIGHT
from ingestor.journal.writer import Journal

_SHOWN = SYMBOLS[:4]
_TICK_S = 0.25
_RATE = 10_000
_HISTORY_BLOCK_S = 600


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the updates of a dashboard.")
    parser.add_argument("root", type=Path)
    parser.add_argument("--seconds", type=float, required=True)
    arguments = parser.parse_args()
    journal = begin(arguments.root)
    sequence = write_history(journal)
    document = Document()
    dashboard = Dashboard(document, View(arguments.root, _SHOWN, "1s", LIGHT))
    sequence, following_ms = time_updates(dashboard, journal, sequence, arguments.seconds)
    shown = next(iter(document.select({"type": Plot}))).x_range
    shown.start = shown.end - BARS * 1000
    _, whole_ms = time_updates(dashboard, journal, sequence, arguments.seconds)
    dashboard.close()
    print(json.dumps({"2 minutes in sight": summary(following_ms), "8 hours in sight": summary(whole_ms)}))


def write_history(journal: Journal) -> int:
    """A trade a second of each symbol that is shown, up to now; the sequence number behind it."""
    sequence, began_us = FIRST, time.time_ns() // 1000 - BARS * 1_000_000
    for start in range(0, BARS, _HISTORY_BLOCK_S):
        times_us = [began_us + (start + at) * 1_000_000 for at in range(_HISTORY_BLOCK_S) for _ in _SHOWN]
        journal.append(make_block(sequence, _SHOWN * _HISTORY_BLOCK_S, times_us))
        sequence += len(times_us)
    return sequence


def time_updates(dashboard: Dashboard, journal: Journal, sequence: int, seconds: float) -> tuple[int, list[float]]:
    """For so long, at the steady rate: the sequence number behind it, and what each update took (ms)."""
    took_ms, rows = [], round(_RATE * _TICK_S)
    for _ in range(round(seconds / _TICK_S)):
        due_s = time.monotonic() + _TICK_S
        journal.append(block_of_now(sequence, rows))
        sequence += rows
        began_s = time.perf_counter()
        dashboard.tick()
        took_ms.append((time.perf_counter() - began_s) * 1000)
        time.sleep(max(due_s - time.monotonic(), 0.0))
    return sequence, took_ms


def summary(took_ms: list[float]) -> dict[str, float]:
    return {"p50_ms": statistics.median(took_ms), "max_ms": max(took_ms)}


if __name__ == "__main__":
    main()
