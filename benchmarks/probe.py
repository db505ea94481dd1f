"""Follows a recording in another process, as a chart would, and measures how old each trade is when it gets there.

    python benchmarks/probe.py ROOT [SECONDS]

Reads from now on, for so long, or until its stdin is closed and nothing comes any more. The load server's stamped
trades carry in their price when they were sent. Prints how many trades came, and in ms, from a second after the first
one on, p50, p99 and p99.9 of the time since a trade was sent (`sent`) and since the recorder had read it (`received`).

Where it may (as root), it goes before all others: what is measured is the recorder, and not how long the probe waits
for a core.
"""

import contextlib
import json
import os
import select
import sys
import time

import pyarrow as pa
import pyarrow.compute as pc

from ingestor.dataset.trades import follow

_QUANTILES = (0.5, 0.99, 0.999)
_IDLE_S = 0.3
_WARM_UP_S = 1.0
_FIRST = -15


def main(root: str, seconds: str = "inf") -> None:
    since_sent, since_received = [], []
    trades, warm_at_s = 0, float("inf")
    with contextlib.suppress(PermissionError):
        os.nice(_FIRST)
    end_s = time.monotonic() + float(seconds)
    for batch in follow(root, idle_s=_IDLE_S):
        now_us = pa.scalar(time.time_ns() // 1000)
        if batch.num_rows and not trades:
            warm_at_s = time.monotonic() + _WARM_UP_S
        trades += batch.num_rows
        if batch.num_rows and time.monotonic() >= warm_at_s:
            since_sent.append(pc.subtract(now_us, batch.column("price").cast(pa.int64())))
            since_received.append(pc.subtract(now_us, batch.column("received_at").cast(pa.int64())))
        elif not batch.num_rows and select.select([sys.stdin], [], [], 0)[0]:
            break
        if time.monotonic() >= end_s:
            break
    if not since_sent:
        sys.exit(f"{trades} trades came, and none after the first second: this machine needs more time at this rate")
    print(json.dumps({"trades": trades, "sent": quantiles(since_sent), "received": quantiles(since_received)}))


def quantiles(ages_us: list[pa.Array]) -> list[float]:
    """In ms."""
    return [age_us / 1000 for age_us in pc.quantile(pa.chunked_array(ages_us), list(_QUANTILES)).to_pylist()]


if __name__ == "__main__":
    main(*sys.argv[1:])
