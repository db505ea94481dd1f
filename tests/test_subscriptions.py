"""How a session asks a venue that counts its clients' messages. What is asked, and when again: test_session."""

from pathlib import Path

from recorders import make_rig, running

from ingestor.feeds.binance import Binance
from ingestor.simulator.market import MarketSettings
from ingestor.simulator.venue import VenueSettings, running_venue

MANY = tuple(f"S{number}USDT" for number in range(1024))


def test_a_full_connection_is_asked_for_as_slowly_as_the_venue_wants(tmp_path: Path) -> None:
    """The venue ends a connection that sends more than five messages a second; these are six, and a ping."""
    settings = VenueSettings(protocol="binance", market=MarketSettings(rate=5000, seed=7))
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
        rig.session.change_symbols(MANY[1:3])
        rig.wait_fact("symbol.proven", symbol=MANY[2])
        (dropped,) = rig.facts("symbol.dropped")
    assert dropped["symbol"] == MANY[0]
    assert not rig.facts("connection.lost")
