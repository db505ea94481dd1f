"""The share of a bar in which its symbol was recorded. Pure."""

import pyarrow as pa
import pyarrow.compute as pc

from ingestor.coverage import Interval


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
