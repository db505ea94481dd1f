"""A venue that pings and never trades: what is done about it is cheap, bounded, and in the ledger."""

from dataclasses import replace
from pathlib import Path

import pytest
from recorders import CRYPTO, KEY, eventually, make_rig, running
from simulated_venues import running_venue

from ingestor.capture.connector import Backoff
from ingestor.coverage import find_coverage
from ingestor.simulator.faults import Mute, Schedule
from ingestor.simulator.market import MarketSettings
from ingestor.simulator.venue import VenueSettings

pytestmark = pytest.mark.alone

SILENCE_S, PING_S = 1.0, 0.3
VENUE = VenueSettings(keys=frozenset({KEY}), market=MarketSettings(rate=300, seed=7), ping_interval_s=PING_S)
WAITS = Backoff(again_s=0.05)


@pytest.mark.long
def test_no_trades_at_all_cost_one_connection_an_hour(tmp_path: Path) -> None:
    """Everything is asked for again, once that helped nothing a new connection is tried, and then the venue is let be:
    nobody can tell its silence from the market's, and so it is unproven.
    """
    with running_venue(replace(VENUE, faults=Schedule([Mute()]))) as there:
        rig = make_rig(tmp_path, there.url, waits=WAITS, silence=SILENCE_S, ping_interval=SILENCE_S)
        with running(rig):
            rig.wait_fact("symbols.retried", connection=2)
            frames = rig.recorder.counts.frames
            # By then a second connection within the hour would have been given up.
            eventually(lambda: rig.recorder.counts.frames > frames + 2 * SILENCE_S / PING_S, "pings after that")
    assert [fact["connection"] for fact in rig.facts("connection.opened")] == [1, 2]
    assert [fact["reason"].split(" for ")[0] for fact in rig.facts("connection.lost")] == ["frames came, but no trades"]
    retried = [(fact["connection"], fact["reason"], fact["symbols"]) for fact in rig.facts("symbols.retried")]
    assert retried == [(1, "no trades", list(CRYPTO)), (2, "no trades", list(CRYPTO))]
    coverage = find_coverage(rig.facts())
    for symbol in CRYPTO:
        states = [(one.state, one.cause) for one in coverage.intervals(symbol)]
        assert states == [("unproven", None), ("blind", "stall"), ("unproven", None), ("blind", "shutdown")]
