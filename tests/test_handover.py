"""A connection is replaced before the venue ends it: both are read, nothing is missed, nothing comes twice."""

import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from recorders import PATIENCE_S, Rig, eventually, make_rig, running
from simulated_venues import RunningVenue, running_venue

from ingestor.capture.connection import connect
from ingestor.capture.session import Handover
from ingestor.coverage import find_coverage
from ingestor.feeds.binance import Binance
from ingestor.journal.follower import Follower, Rows
from ingestor.simulator.market import MarketSettings
from ingestor.simulator.venue import VenueSettings

SYMBOLS = ("BTCUSDT", "ETHUSDT")
VENUE = VenueSettings(protocol="binance", market=MarketSettings(rate=500, seed=7))


class Ageing(Binance):
    """As if Binance ended connections after a second."""

    terms = replace(Binance.terms, max_age_s=1.0, overlap_s=0.7)


def recorded_ids(rig: Rig) -> dict[str, list[int]]:
    """By symbol, in the order of the journal."""
    ids: dict[str, list[int]] = defaultdict(list)
    follower = Follower(rig.layout, None, synced_only=False)
    for event in follower.read():
        if isinstance(event, Rows):
            for row in event.batch.select(["symbol", "trade_id"]).to_pylist():
                ids[row["symbol"]].append(row["trade_id"])
    follower.close()
    return ids


@pytest.mark.long
def test_nothing_is_missed_and_nothing_comes_twice(tmp_path: Path) -> None:
    with (
        running_venue(VENUE) as venue,
        running(make_rig(tmp_path, venue.url, SYMBOLS, feed=Ageing(venue.url, "trade"))) as rig,
    ):
        rig.wait_fact("connection.retired", 3)
        rig.wait_fact("connection.joined", connection=4)
        rig.wait_trades(50)
    ids = recorded_ids(rig)
    assert set(ids) == set(SYMBOLS)
    for numbers in ids.values():
        assert sorted(numbers) == list(range(1, len(numbers) + 1))
    assert rig.recorder.reasons["repeated_id"] > 0
    assert rig.recorder.reasons.keys() == {"repeated_id"}
    (gap,) = rig.facts("gap.opened")
    assert gap["cause"] == "shutdown"
    assert not rig.facts("connection.lost")
    assert rig.buffer.frames_put == rig.recorder.counts.frames
    assert not rig.errors
    coverage = find_coverage(rig.facts())
    intervals = [interval for symbol in SYMBOLS for interval in coverage.intervals(symbol)]
    assert {interval.cause for interval in intervals if interval.state == "blind"} <= {"shutdown"}
    for symbol in SYMBOLS:
        states = [interval.state for interval in coverage.intervals(symbol)]
        assert states == ["unproven", "recorded", *states[2:3]], "the next connection goes on with what the old one had"


def test_the_new_connection_proves_its_symbols_once(tmp_path: Path) -> None:
    with (
        running_venue(VENUE) as venue,
        running(make_rig(tmp_path, venue.url, SYMBOLS, feed=Ageing(venue.url, "trade"))) as rig,
    ):
        rig.wait_fact("connection.retired", 2)
    proven = [(fact["connection"], fact["symbol"]) for fact in rig.facts("symbol.proven")]
    assert len(proven) == len(set(proven))


# What becomes of the old one


@contextmanager
def retiring(tmp_path: Path) -> Iterator[tuple[RunningVenue, Rig, Handover, threading.Event]]:
    """A connection that is read on, and no successor yet."""
    stop = threading.Event()
    with running_venue(VENUE) as venue:
        rig = make_rig(tmp_path, venue.url, SYMBOLS, feed=Ageing(venue.url, "trade"))
        connection = connect(venue.url, timeout_s=5.0, ca_file=None, stop=stop)
        for message in Ageing(venue.url, "trade").subscribe(SYMBOLS):
            connection.send(message)
        life = rig.connection_log.begin(1_000_000)
        rig.connection_log.hear(life, 1_000_001)
        thread = Handover(connection, life, rig.connection_log, rig.buffer, rig.clock, stop, overlap_s=0.1)
        thread.start()
        try:
            eventually(lambda: rig.buffer.frames_put, "frames of the old connection")
            yield venue, rig, thread, stop
        finally:
            stop.set()
            thread.join(PATIENCE_S)
            rig.ledger.close()


def test_it_goes_once_its_successor_hears(tmp_path: Path) -> None:
    with retiring(tmp_path) as (venue, rig, thread, _):
        assert thread.is_alive()
        rig.connection_log.hear(rig.connection_log.begin(1_500_000), 2_000_000)
        thread.succeed()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
        assert eventually(lambda: venue.connections == 0, "the goodbye")
        assert not rig.facts("gap.opened")


def test_a_venue_that_is_faster_makes_a_gap_until_the_successor_hears(tmp_path: Path) -> None:
    with retiring(tmp_path) as (venue, rig, thread, _):
        venue.drop()
        thread.join(PATIENCE_S)
        (opened,) = rig.facts("gap.opened")
        assert opened["cause"] == "connection"
        assert opened["since"] > 1_000_000
        rig.connection_log.hear(rig.connection_log.begin(opened["since"] + 4), opened["since"] + 5)
        (closed,) = rig.facts("gap.closed")
        assert (closed["gap"], closed["until"]) == (opened["gap"], opened["since"] + 5)


def test_a_stop_without_a_successor_is_a_shutdown(tmp_path: Path) -> None:
    with retiring(tmp_path) as (_, rig, thread, stop):
        stop.set()
        thread.join(PATIENCE_S)
        (opened,) = rig.facts("gap.opened")
        assert opened["cause"] == "shutdown"
