"""What is asked of a venue, how fast, and what of it again."""

from pathlib import Path

import pytest
from recorders import CRYPTO, make_rig, running
from sessions import recording
from simulated_venues import running_venue

from ingestor.feeds.binance import Binance
from ingestor.simulator.faults import RefuseSymbols
from ingestor.simulator.market import MarketSettings
from ingestor.simulator.venue import VenueSettings

MANY = tuple(f"S{number}USDT" for number in range(1024))


@pytest.mark.long
def test_a_full_connection_is_asked_for_as_slowly_as_the_venue_wants(tmp_path: Path) -> None:
    """The venue ends a connection that sends more than five messages a second; these are six, and a ping."""
    settings = VenueSettings(protocol="binance", market=MarketSettings(rate=2500, seed=7))
    with (
        running_venue(settings) as venue,
        running(make_rig(tmp_path, venue.url, MANY, feed=Binance(venue.url, "trade"))) as rig,
    ):
        rig.wait_fact("symbol.proven", symbol=MANY[0])
        rig.wait_fact("symbol.proven", symbol=MANY[-1])
    assert not rig.facts("connection.lost")
    assert rig.recorder.counts.notices == 6
    assert rig.facts("connection.opened")[-1]["connection"] == 1


def test_a_change_is_asked_for_in_the_same_way(tmp_path: Path) -> None:
    settings = VenueSettings(protocol="binance", market=MarketSettings(rate=500, seed=7))
    with (
        running_venue(settings) as venue,
        running(make_rig(tmp_path, venue.url, MANY[:2], feed=Binance(venue.url, "trade"))) as rig,
    ):
        rig.wait_fact("symbol.proven", symbol=MANY[1])
        rig.division.change(MANY[1:3])
        rig.wait_fact("symbol.proven", symbol=MANY[2])
        (dropped,) = rig.facts("symbol.dropped")
    assert dropped["symbol"] == MANY[0]
    assert not rig.facts("connection.lost")


def test_a_refused_symbol_is_asked_for_again_without_disturbing_the_rest(tmp_path: Path) -> None:
    refusal = RefuseSymbols(at_s=0.0, for_s=1.0, symbols=(CRYPTO[0],))
    with recording(tmp_path, refusal) as (_, rig):
        refused = rig.wait_fact("symbol.refused", symbol=CRYPTO[0])
        rig.wait_fact("symbols.retried", symbols=[CRYPTO[0]], reason="refused")
        closed = rig.wait_fact("gap.closed", cause="refused", symbol=CRYPTO[0])
        proven = rig.wait_fact("symbol.proven", symbol=CRYPTO[0])
    assert "Invalid symbol" in refused["text"]
    assert closed["until"] == proven["since"]
    assert len(rig.facts("connection.opened")) == 1
    assert {gap["symbol"] for gap in rig.facts("gap.opened")} == {CRYPTO[0], None}


def test_a_refusal_without_a_name_is_no_gap_but_whoever_is_silent_is_asked_for_again(tmp_path: Path) -> None:
    with recording(tmp_path, venue={"limit": 2}) as (_, rig):
        rig.wait_fact("symbol.refused", symbol=None, text="Subscribing to too many symbols")
        retried = rig.wait_fact("symbols.retried", 2, reason="refused")
    assert retried["symbols"] == [CRYPTO[2]]
    assert [gap["cause"] for gap in rig.facts("gap.opened")] == ["shutdown"]
