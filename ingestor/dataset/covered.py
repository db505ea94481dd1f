"""The share of a bar in which its symbol was recorded. Pure.

Coverage is told by when things were received, bars are made of when trades happened: what lies between is the feed's
delay. It is measured on the trades themselves (`received_at` less `timestamp`), so that both are judged by one clock. A
feed that is 15 minutes late, and loses a minute, has lost what happened 15 minutes earlier.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from datetime import date
from statistics import median

import pyarrow as pa
import pyarrow.compute as pc

from ingestor.coverage import Interval

_BUCKET_US = 10_000_000
_BUCKETS = 30
_FRESH_US = 60_000_000
_LATE_US = 2_000_000
"""Less than that is what a network takes: edges are true to two seconds."""


class Delays:
    """How old the newest trades of each symbol were when they came, in steps of ten seconds."""

    def __init__(self) -> None:
        self._tables: list[pa.Table] = []
        self._known: dict[str, tuple[list[int], list[int]]] = {}

    def measured(self, dates: Iterable[tuple[date, pa.Table]]) -> Iterator[tuple[date, pa.Table]]:
        """The same, measured as they pass."""
        for day, rows in dates:
            received_us = rows.column("received_at").cast(pa.int64())
            columns = {
                "symbol": rows.column("symbol"),
                "bucket": pc.divide(received_us, _BUCKET_US),
                "received": received_us,
                "sent": pc.multiply(rows.column("timestamp").cast(pa.int64()), 1000),
            }
            grouped = pa.table(columns).group_by(["symbol", "bucket"], use_threads=False)
            newest = grouped.aggregate([("received", "max"), ("sent", "max")])
            self._tables.append(newest.set_column(0, "symbol", newest.column("symbol").cast(pa.string())))
            yield day, rows

    def shift(self, symbol: str, spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Spans (µs) of receipt as spans of when trades happened."""
        received_us, delays_us = self._of(symbol)
        shifted = []
        for start_us, end_us in spans:
            first = bisect_left(received_us, start_us)
            after = delays_us[first : first + _BUCKETS]
            begin_us = round(median(after)) if after else 0
            last = bisect_right(received_us, end_us)
            before = delays_us[max(last - _BUCKETS, 0) : last]
            late_us = round(median(before)) if before else begin_us
            if before and received_us[last - 1] > end_us - _FRESH_US:  # what had piled up and was read at last
                late_us = max(late_us, before[-1])
            begin_us = begin_us if abs(begin_us) > _LATE_US else 0
            late_us = late_us if abs(late_us) > _LATE_US else 0
            shifted.append((start_us - begin_us, end_us - late_us))
        return [(start_us, end_us) for start_us, end_us in shifted if start_us < end_us]

    def _of(self, symbol: str) -> tuple[list[int], list[int]]:
        """Receipts, ascending, and the delays then; of all symbols where this one has none."""
        if symbol not in self._known:
            own = [table.filter(pc.equal(table.column("symbol"), symbol)) for table in self._tables]
            found = pa.concat_tables(own if any(one.num_rows for one in own) else self._tables) if own else None
            received, delays = [], []
            if found is not None:
                found = found.sort_by("received_max")
                received = found.column("received_max").to_pylist()
                delays = pc.subtract(found.column("received_max"), found.column("sent_max")).to_pylist()
            self._known[symbol] = received, delays
        return self._known[symbol]


def recorded_spans(intervals: list[Interval]) -> list[tuple[int, int]]:
    """The spans (µs) in which a symbol was proven recorded, joined where one follows on another."""
    spans: list[tuple[int, int]] = []
    for one in intervals:
        if one.state != "recorded":
            continue
        if spans and spans[-1][1] == one.start_us:
            spans[-1] = (spans[-1][0], one.end_us)
        else:
            spans.append((one.start_us, one.end_us))
    return spans


def recorded_shares(spans: list[tuple[int, int]], starts_ms: pa.Array, ends_ms: pa.Array) -> pa.Array:
    """For each bar of one symbol, the share of it (0 to 1) that lies in these spans. `starts_ms` ascends."""
    if not spans or not len(starts_ms):
        return pa.repeat(0.0, len(starts_ms))
    starts_us, ends_us = pc.multiply(starts_ms, 1000), pc.multiply(ends_ms, 1000)
    first_us, last_us = starts_us[0].as_py(), ends_us[-1].as_py()
    covered_us = pa.repeat(pa.scalar(0, pa.int64()), len(starts_ms))
    for start_us, end_us in spans:
        if start_us < last_us and end_us > first_us:
            shared_us = pc.subtract(pc.min_element_wise(ends_us, end_us), pc.max_element_wise(starts_us, start_us))
            covered_us = pc.add(covered_us, pc.max_element_wise(shared_us, 0))
    return pc.divide(covered_us.cast(pa.float64()), pc.subtract(ends_us, starts_us).cast(pa.float64()))
