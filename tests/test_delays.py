"""How long trades take, held to a count trade by trade."""

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from journals import trades
from requirements import of_tier

from ingestor.capture.stream_state import BOUNDS_S, Delays
from ingestor.capture.validate import FEW

NEAR_BOUNDS = st.sampled_from(BOUNDS_S).flatmap(lambda s: st.integers(round(s * 1e6) - 1, round(s * 1e6) + 1))
FEW_US = st.lists(NEAR_BOUNDS | st.integers(-5_000_000, 400_000_000), max_size=20)
DELAYS_US = FEW_US | FEW_US.map(lambda delays: delays * FEW)


def block(delays_us: list[int]) -> pa.RecordBatch:
    """Trades that took so long; a negative delay is of a venue whose clock is ahead of ours."""
    rows = trades(1, len(delays_us))
    sent_us = [1000 * ms for ms in rows["timestamp"].cast(pa.int64()).to_pylist()]
    received = pa.array([sent + delay for sent, delay in zip(sent_us, delays_us, strict=True)], pa.int64())
    at = rows.schema.get_field_index("received_at")
    return rows.set_column(at, rows.schema.field(at), received.cast(rows.schema.field(at).type))


@given(st.lists(DELAYS_US, max_size=4))
@settings(max_examples=of_tier(200, 40), deadline=None)
def test_a_histogram_of_what_trades_took(blocks: list[list[int]]) -> None:
    found = Delays()
    for delays_us in blocks:
        found.add(block(delays_us))
    took_us = [max(delay, 0) for delays_us in blocks for delay in delays_us]
    assert found.within == [sum(took <= round(bound * 1e6) for took in took_us) for bound in BOUNDS_S]
    assert found.count == len(took_us)
    assert found.sum_s == pytest.approx(sum(took_us) / 1e6)
