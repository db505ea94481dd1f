"""How long trades take from the venue to us: a histogram, counted a block at a time."""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

BOUNDS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_BOUNDS_US = tuple(round(bound * 1e6) for bound in BOUNDS_S)
_ZERO = pa.scalar(0)
_US_PER_MS = pa.scalar(1000)


class Delays:
    """Of `received_at` less `timestamp`. Written by the recorder's thread, read by any."""

    def __init__(self) -> None:
        self.within = [0] * len(BOUNDS_S)
        """How many trades took at most BOUNDS_S[i]."""
        self.count = 0
        self.sum_s = 0.0

    def add(self, trades: pa.RecordBatch) -> int | None:
        """Count these trades, and tell the least delay (µs), negative where a trade is ahead of our clock; None without
        trades. What is ahead counts as a delay of zero.
        """
        if not trades.num_rows:
            return None
        sent_ms: Any = trades.column("timestamp").view(pa.int64())
        received_us: Any = trades.column("received_at").view(pa.int64())
        delays_us: Any = pc.subtract(received_us, pc.multiply(sent_ms, _US_PER_MS))
        least_us, most_us = pc.min_max(delays_us).as_py().values()
        if least_us < 0:
            delays_us = pc.max_element_wise(delays_us, _ZERO)
        for at, bound_us in enumerate(_BOUNDS_US):  # most bounds have all of a block on one side
            if least_us <= bound_us:
                all_within = most_us <= bound_us
                counted = trades.num_rows if all_within else pc.less_equal(delays_us, pa.scalar(bound_us)).true_count
                self.within[at] += counted
        self.sum_s += pc.sum(delays_us).as_py() / 1e6
        self.count += trades.num_rows
        return int(least_us)
