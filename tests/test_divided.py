"""More symbols than a connection takes: several connections, one process, one root, and each is blind for its own."""

import json
import os
import random
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from itertools import combinations, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from blocks import AT_US
from click.testing import CliRunner
from hypothesis import example, given
from hypothesis import strategies as st
from journals import ledger_facts, make_root
from prepared import prepared_recording
from recorders import Rig, eventually, make_rig, recorded_rows, running
from requirements import of_tier
from simulated_venues import running_venue
from test_redundant import trade_frames

from ingestor.capture.buffer import FrameBlock
from ingestor.capture.connection_log import ConnectionLog, ConnectionRecord, Connections
from ingestor.capture.gaps import Gaps, GroupGaps, OpenGap
from ingestor.capture.recorder import BlockDecoder
from ingestor.capture.stream_state import Observed
from ingestor.capture.subscriptions import Division
from ingestor.capture.wall_clock import VenueTime
from ingestor.cli.main import cli
from ingestor.config import Settings, Source
from ingestor.config.feeds import JsonSettings
from ingestor.coverage import Interval, clip, find_coverage, state_at
from ingestor.daemon import Report
from ingestor.errors import ConfigError
from ingestor.facts import Fact, RunState
from ingestor.feeds import Frames
from ingestor.feeds.binance import Binance
from ingestor.layout import locked_root
from ingestor.ledger import Ledger, day_of, now_us
from ingestor.operations.collector import Watch
from ingestor.operations.health import HealthServer
from ingestor.operations.recorder_status import find_problems
from ingestor.operations.reload import LiveSettings
from ingestor.operations.systemd import summarize
from ingestor.recording import Recording
from ingestor.simulator.faults import RefuseSymbols, Schedule
from ingestor.simulator.market import MarketSettings
from ingestor.simulator.venue import VenueSettings

CUTS_S = float(os.environ.get("DIVIDED_SECONDS", of_tier("12", "4")))
"""How long connections are cut at random."""
SYMBOLS = tuple(f"S{number}USDT" for number in range(8))
GROUPS = (SYMBOLS[:3], SYMBOLS[3:6], SYMBOLS[6:])
VENUE = VenueSettings(protocol="binance", symbols=SYMBOLS, market=MarketSettings(rate=800, seed=7))


class Few(Binance):
    """As if Binance took three symbols per connection."""

    terms = replace(Binance.terms, symbols_per_connection=3)


def reading(rig: Rig, opened: int = 0) -> bool:
    """So many connections were opened in all, and each session reads one."""
    heard = [len(group.connection_log._reading()) for group in rig.groups]
    return heard == [len(group.sessions) for group in rig.groups] and rig.connections.opened >= opened


def ids_and_receipts(rig: Rig) -> dict[str, list[tuple[int, int]]]:
    """By symbol, sorted."""
    rows = recorded_rows(rig)
    found: dict[str, list[tuple[int, int]]] = {symbol: [] for symbol in SYMBOLS}
    columns = (rows["symbol"], rows["trade_id"], rows["received_at"].cast(pa.int64()))
    for symbol, number, at_us in zip(*(column.to_pylist() for column in columns), strict=True):
        found[symbol].append((number, at_us))
    return {symbol: sorted(pairs) for symbol, pairs in found.items()}


def check_each_trade_is_recorded_once_or_in_a_gap(rig: Rig) -> None:
    """The venue trades all symbols, whoever asks for them, and counts the trades of each."""
    coverage = find_coverage(rig.facts())
    for symbol, pairs in ids_and_receipts(rig).items():
        assert pairs, symbol
        assert len({number for number, _ in pairs}) == len(pairs), "none twice"
        blind = [one for one in coverage.intervals(symbol) if one.state == "blind"]
        for (number, since_us), (following, until_us) in pairwise(pairs):
            if following != number + 1:
                assert any(one.start_us < until_us and since_us < one.end_us for one in blind), (symbol, number)


# Against a venue


def test_more_symbols_than_a_connection_takes_are_divided(tmp_path: Path) -> None:
    with (
        running_venue(VENUE) as venue,
        running(make_rig(tmp_path, venue.url, SYMBOLS, feed=Few(venue.url, "trade"))) as rig,
    ):
        eventually(partial(reading, rig), "three connections")
        for symbol in SYMBOLS:
            rig.wait_fact("symbol.proven", symbol=symbol)
        rig.wait_trades(50)
        assert venue.connections == 3
    requested = [(fact["connection"], tuple(fact["symbols"])) for fact in rig.facts("symbols.requested")][:3]
    assert sorted(symbols for _, symbols in requested) == sorted(GROUPS)
    assert not rig.facts("connection.joined", "connection.lost", "ids.missed", "symbol.refused")
    check_each_trade_is_recorded_once_or_in_a_gap(rig)
    assert rig.recorder.counts.rejected_trades == 0
    assert rig.buffer.frames_put == rig.recorder.counts.frames
    coverage = find_coverage(rig.facts())
    for symbol in SYMBOLS:
        assert [one.state for one in coverage.intervals(symbol)][:2] == ["unproven", "recorded"]
    assert {gap["cause"] for gap in rig.facts("gap.opened")} == {"shutdown"}
    assert {gap["symbol"] for gap in rig.facts("gap.opened")} == set(SYMBOLS)


@pytest.mark.long
def test_three_connections_take_2500_symbols_of_binance(tmp_path: Path) -> None:
    many = tuple(f"S{number}USDT" for number in range(2500))
    market = MarketSettings(rate=4000, seed=7)
    with (
        running_venue(VenueSettings(protocol="binance", market=market)) as venue,
        running(make_rig(tmp_path, venue.url, many, feed=Binance(venue.url, "trade"))) as rig,
    ):
        eventually(lambda: len(rig.facts("symbols.requested")) == 3, "three connections")
        rig.wait_trades(4000)
    assert [len(fact["symbols"]) for fact in rig.facts("symbols.requested")[:3]] == [834, 834, 832]
    assert not rig.facts("connection.lost", "symbol.refused", "ids.missed")
    rows = recorded_rows(rig)
    traded = set(rows["symbol"].to_pylist())
    assert all(len(traded.intersection(fact["symbols"])) > 100 for fact in rig.facts("symbols.requested")[:3])
    for of_symbol in rows.group_by("symbol").aggregate([("trade_id", "list")])["trade_id_list"].to_pylist():
        assert sorted(of_symbol) == list(range(1, len(of_symbol) + 1))


def test_what_befalls_a_connection_befalls_its_symbols_alone(tmp_path: Path) -> None:
    with (
        running_venue(VENUE) as venue,
        running(make_rig(tmp_path, venue.url, SYMBOLS, feed=Few(venue.url, "trade"))) as rig,
    ):
        eventually(partial(reading, rig), "three connections")
        rig.wait_trades(50)
        venue.drop(1)
        lost = rig.wait_fact("connection.lost")
        asked = {fact["connection"]: fact["symbols"] for fact in rig.facts("symbols.requested") if fact["symbols"]}
        group = next(one for one in GROUPS if asked[lost["connection"]][0] in one)
        rig.wait_fact("gap.closed", len(group), cause="connection")
        rig.wait_trades(50)
        opened = rig.facts("gap.opened")
        closed = rig.facts("gap.closed")
    facts = rig.facts()
    assert [gap["symbol"] for gap in opened] == [gap["symbol"] for gap in closed] == list(group)
    assert len({(gap["since"], gap["cause"]) for gap in opened}) == 1
    assert len({gap["until"] for gap in closed}) == 1, "all at once, with the first frame"
    told = facts[facts.index(lost) + 1]
    assert (told["fact"], told["symbols"], told["at"]) == ("symbols.requested", [], lost["at"])
    coverage = find_coverage(facts)
    for symbol in SYMBOLS:
        causes = [one.cause for one in coverage.intervals(symbol) if one.state == "blind"]
        assert causes == (["connection", "shutdown"] if symbol in group else ["shutdown"])
    check_each_trade_is_recorded_once_or_in_a_gap(rig)
    assert {fact["symbol"] for fact in rig.facts("ids.missed")} <= set(group)


@pytest.mark.parametrize("redundant", [1, 2])
def test_any_may_be_cut_at_any_time(tmp_path: Path, redundant: int) -> None:
    dice = random.Random(7)
    cuts, began_s = 0, time.monotonic()
    with (
        running_venue(VENUE) as venue,
        running(make_rig(tmp_path, venue.url, SYMBOLS, feed=Few(venue.url, "trade"), redundant=redundant)) as rig,
    ):
        while time.monotonic() < began_s + CUTS_S or cuts < 3:
            eventually(partial(reading, rig, 3 * redundant + cuts), "all connections")
            time.sleep(dice.uniform(0.0, 0.3))
            venue.drop(dice.randrange(3 * redundant))
            cuts += 1
        eventually(partial(reading, rig, 3 * redundant + cuts), "all connections")
        rig.wait_trades(50)
    check_each_trade_is_recorded_once_or_in_a_gap(rig)
    assert len(rig.facts("connection.lost")) == cuts
    opened = [gap for gap in rig.facts("gap.opened") if gap["cause"] != "shutdown"]
    assert None not in {gap["symbol"] for gap in opened}
    if redundant == 1:
        assert rig.recorder.counts.rejected_trades == 0
        assert {gap["cause"] for gap in opened} == {"connection"}
    else:
        assert opened == rig.facts("ids.missed") == []
        assert rig.recorder.reasons.keys() == {"repeated_id"}


class FewAgeing(Few):
    """And as if it ended connections after two seconds."""

    terms = replace(Few.terms, max_age_s=2.0, overlap_s=0.7)


def test_each_is_renewed_without_a_gap(tmp_path: Path) -> None:
    with (
        running_venue(VENUE) as venue,
        running(make_rig(tmp_path, venue.url, SYMBOLS, feed=FewAgeing(venue.url, "trade"))) as rig,
    ):
        rig.wait_fact("connection.retired", 4)
        rig.wait_fact("connection.joined", 4)
        rig.wait_trades(50)
    check_each_trade_is_recorded_once_or_in_a_gap(rig)
    assert {gap["cause"] for gap in rig.facts("gap.opened")} == {"shutdown"}
    assert not rig.facts("ids.missed")
    assert rig.recorder.reasons.keys() == {"repeated_id"}


def test_a_refusal_is_heeded_by_the_session_that_asked(tmp_path: Path) -> None:
    """Whichever session looks first."""
    refusal = RefuseSymbols(at_s=0.0, for_s=2.0, symbols=(SYMBOLS[7],))
    with (
        running_json_venue(faults=Schedule([refusal])) as url,
        prepared_recording(tmp_path, **divided(url)) as recording,
        threads_of(recording),
    ):
        refused = eventually(lambda: ledger_facts(recording.layout, "symbol.refused"), "a refusal")[0]
        asked = ledger_facts(recording.layout, "symbols.requested")
        connection = next(fact["connection"] for fact in asked if SYMBOLS[7] in fact["symbols"])
        (gap,) = eventually(lambda: ledger_facts(recording.layout, "gap.opened"), "a gap")
    assert refused["connection"] == connection
    assert (gap["cause"], gap["symbol"]) == ("refused", SYMBOLS[7])


# From run to run


def divided(url: str, **more: Any) -> dict[str, Any]:
    """Settings of a venue that allows three symbols on each of three connections."""
    feed = {
        "type": "json",
        "url": url,
        "match": {"type": "trade"},
        "fields": {"symbol": "s", "price": "p", "volume": "v", "timestamp": "t"},
        "columns": {"trade_id": {"from": "i", "type": "integer"}},  # that ids go on would close gaps
        "subscribe": '{"op":"subscribe","symbol":"{symbol}"}',
        "unsubscribe": '{"op":"unsubscribe","symbol":"{symbol}"}',
        "refused": [{"match": {"type": "error"}, "text": "msg", "symbol_in": "([A-Z0-9]+USDT)"}],
        "limits": {"symbols": 3, "connections": 6},
        "never_closes": True,
    }
    return {"feed": feed, "tickers": list(SYMBOLS), "storage": {"min_free": "0B"}, **more}


@contextmanager
def running_json_venue(**more: Any) -> Iterator[str]:
    """Its address."""
    json_feed = JsonSettings.model_validate(divided("ws://127.0.0.1:9")["feed"])
    settings = replace(VENUE, protocol="json", json_feed=json_feed, keys=frozenset(), **more)
    with running_venue(settings) as venue:
        yield venue.url


@contextmanager
def threads_of(recording: Recording, stop: bool = True) -> Iterator[None]:
    """Its readers and its recorder run. At the end they are stopped in order."""
    event = recording.groups[0].sessions[0]._stop
    sessions = [session for group in recording.groups for session in group.sessions]
    readers = [threading.Thread(target=session.run) for session in sessions]
    recorder = threading.Thread(target=recording.recorder.run)
    for thread in (*readers, recorder):
        thread.start()
    try:
        yield
    finally:
        event.set()
        for thread in readers:
            thread.join()
        recording.buffer.close()
        recorder.join()
        recording.ledger.record("run.stopped", error=None)


def first_receipts(recording: Recording) -> dict[str, int]:
    """By symbol of this run: when the connection on which it was asked for had its first frame, as its gap says."""
    closed = ledger_facts(recording.layout, "gap.closed")
    return {fact["symbol"]: fact["until"] for fact in closed if fact["symbol"] is not None}


@pytest.mark.parametrize("killed", [False, True])
def test_after_a_restart_each_is_blind_until_its_own_connection_is_heard(tmp_path: Path, killed: bool) -> None:
    with running_json_venue() as url:
        with prepared_recording(tmp_path / "one", **divided(url)) as recording, threads_of(recording):
            eventually(lambda: all(group.connection_log._reading() for group in recording.groups), "all connections")
            eventually(lambda: set(recording.observed.last_trade_us) == set(SYMBOLS), "all symbols")
            if killed:  # what a killed process leaves is what the disk has at that moment
                shutil.copytree(tmp_path / "one", tmp_path / "two")
        root = tmp_path / ("two" if killed else "one")
        ended_us = now_us()
        with prepared_recording(root, **divided(url)) as recording, threads_of(recording):
            eventually(lambda: all(group.connection_log._reading() for group in recording.groups), "all connections")
            target = recording.observed.trades + 100
            eventually(lambda: recording.observed.trades >= target, "more trades")
            facts = ledger_facts(recording.layout)
    coverage = find_coverage(facts)
    assert recording.after_crash == killed
    ends: dict[int, set[int]] = {}
    for symbol in SYMBOLS:
        blind = [one for one in coverage.intervals(symbol) if one.state == "blind"]
        assert {one.cause for one in blind} <= ({"crash"} if killed else {"restart", "shutdown"})
        assert blind[-1].end_us > ended_us
        ends.setdefault(next(at for at, group in enumerate(GROUPS) if symbol in group), set()).add(blind[-1].end_us)
        asked = next(fact for fact in facts if fact["fact"] == "symbols.requested" and fact["at"] > ended_us
                     and symbol in fact["symbols"])  # fmt: skip
        assert asked["at"] <= blind[-1].end_us
    assert all(len(one) == 1 for one in ends.values()), "a group ends at once"
    assert len(set.union(*ends.values())) == 3, "and each by itself"


@pytest.mark.parametrize(
    ("frames", "ended_us"),
    [
        ([(1, 0, 10), (2, 3, 20), (3, 7, 30), (1, 1, 5000), (3, 6, 6000)], (5000, 20, 6000)),
        ([(1, 0, 10), (1, 1, 5000)], (5000, 10, 10)),
        ([], None),
    ],
)
def test_behind_a_crash_a_group_is_blind_since_its_own_last_frame(
    tmp_path: Path, frames: list[tuple[int, int, int]], ended_us: tuple[int, int, int] | None
) -> None:
    """That the others were heard says nothing of one that was silent. `frames`: connection, symbol, receipt."""
    with prepared_recording(tmp_path, **divided("ws://127.0.0.1:9")) as recording:
        frame = '{"type":"trade","s":"%s","p":1.5,"v":1,"t":%d,"i":%d}'
        for place, group in enumerate(recording.groups):
            life = group.connection_log.begin(now_us())
            recording.division.groups[place].ask(life.number, GROUPS[place])
            group.connection_log.hear(life, now_us())
        at_us = now_us()
        for trade_id, (connection, number, behind_us) in enumerate(frames):
            payload = (frame % (SYMBOLS[number], at_us // 1000, trade_id)).encode()
            recording.buffer.put(connection, [payload], at_us + behind_us)
            block = recording.buffer.take(0.0, 0.0)
            assert block is not None
            recording.recorder._record(block)
        recording.buffer.close()
        recording.recorder.run()
        time.sleep(0.01)  # what was received is in the past
    with prepared_recording(tmp_path, **divided("ws://127.0.0.1:9")) as recording:
        facts = ledger_facts(recording.layout)
    coverage = find_coverage(facts)
    gaps = next(fact for fact in facts if fact.get("run") == 2)["open_gaps"]
    assert len({gap["gap"] for gap in gaps}) == len(gaps), "each has a name of its own"
    for symbol in SYMBOLS:
        blind = [one for one in coverage.intervals(symbol) if one.state == "blind"]
        place = next(at for at, group in enumerate(GROUPS) if symbol in group)
        if ended_us:
            assert blind[0].start_us == at_us + ended_us[place] + 1
        else:
            assert blind[0].start_us == coverage.intervals(symbol)[0].start_us
        assert {one.cause for one in blind} == {"crash"}
        assert blind[-1].end_us == coverage.horizon_us
        assert [one.end_us for one in blind[:-1]] == [one.start_us for one in blind[1:]]


def test_a_run_of_one_group_ends_what_one_of_several_left(tmp_path: Path) -> None:
    inherited = [OpenGap(f"r1-{symbol}", "shutdown", AT_US, symbol) for symbol in SYMBOLS[:2]]
    rig = make_rig(
        tmp_path, "ws://127.0.0.1:9", SYMBOLS, inherited=[*inherited, OpenGap("r1-0", "symbol_mute", 1, SYMBOLS[2])]
    )
    rig.connection_log.hear(rig.connection_log.begin(AT_US + 5), AT_US + 9)
    closed = [(fact["symbol"], fact["until"]) for fact in rig.facts("gap.closed")]
    assert closed == [(symbol, AT_US + 9) for symbol in SYMBOLS[:2]]
    rig.ledger.close()


# What is claimed of any story


@dataclass
class Life:
    """A connection of the story: when its first and its last frame came, and each symbol's first."""

    group: int
    record: ConnectionRecord
    first_us: int | None = None
    last_us: int = 0
    symbols: dict[str, int] = field(default_factory=dict)

    def hears(self, at_us: int) -> bool:
        return self.first_us is not None and self.first_us <= at_us <= self.last_us


class Story:
    """Two groups of two symbols, two sessions each, and a recorder that may be behind, by a clock of its own."""

    def __init__(self, root: Path) -> None:
        self.now_us = AT_US
        self.ledger = Ledger(make_root(root), 1, day_of(AT_US), lambda: self.now_us)
        self.ledger.record("run.started", run=1, open_gaps=[], tickers=list(FOUR), groups=2)
        observed = Observed()
        gaps = Gaps(self.ledger, 1, [])
        self.gaps = gaps
        self.division = Division(self.ledger, observed, FOUR, 2)
        self.of_group = [GroupGaps(gaps, group.symbols) for group in self.division.groups]
        connections = Connections(groups=2)
        self.logs = [
            ConnectionLog(self.ledger, self.of_group[at], observed, group, connections, at)
            for at, group in enumerate(self.division.groups)
        ]
        self.open: dict[tuple[int, int], Life] = {}
        self.lives: list[Life] = []
        self.waiting: list[tuple[Life, str, int]] = []
        self.recorded: list[tuple[str, int]] = []

    def tell(self, what: str, lane: int, symbol: str) -> None:
        self.now_us += 6
        group = FOUR.index(symbol) // 2
        life = self.open.get((group, lane))
        if what == "record":
            self.record()
        elif what == "open" and life is None:
            life = Life(group, self.logs[group].begin(self.now_us))
            self.open[group, lane] = life
            self.lives.append(life)
            self.now_us += 2
            self.division.groups[group].ask(life.record.number, self.division.groups[group].wanted)
        elif what == "end" and life is not None:
            self.logs[group].close(self.open.pop((group, lane)).record)
        elif what == "trade" and life is not None:
            self.hear(life, symbol)
        elif what == "mute" and life is not None and not self.waiting:
            self.of_group[group].open("symbol_mute", life.symbols.get(symbol, life.record.opened_us), symbol)
        elif what == "drought" and life is not None and not self.waiting:
            lives = [one for one in self.lives if one.group == group]
            self.of_group[group].open("stall", max(life.record.opened_us, *(one.last_us for one in lives)))

    def hear(self, life: Life, symbol: str) -> None:
        if life.first_us is None:
            life.first_us = self.now_us
            self.logs[life.group].hear(life.record, self.now_us)
        life.record.frames += 1
        life.record.last_frame_us = life.last_us = self.now_us
        life.symbols.setdefault(symbol, self.now_us)
        self.waiting.append((life, symbol, self.now_us))

    def record(self) -> None:
        waiting, self.waiting = self.waiting, []
        for life, symbol, at_us in waiting:
            requests = self.division.groups[life.group]
            if symbol not in requests.brought(life.record.number):
                requests.prove(life.record.number, {symbol: at_us})
            self.of_group[life.group].hear([symbol], at_us, partial(_same, at_us), partial(_after, at_us))
            self.recorded.append((symbol, at_us))

    def end(self) -> None:
        self.now_us += 6
        for lane in list(self.open):
            self.logs[lane[0]].close(self.open.pop(lane).record)
        self.record()
        self.ledger.record("run.stopped", error=None)
        self.ledger.close()


def _same(at_us: int, _symbol: str) -> int:
    return at_us


def _after(at_us: int, since_us: int) -> int | None:
    return at_us if at_us > since_us else None


FOUR = A, B, C, D = ("A", "B", "C", "D")
Event = tuple[str, int, str]


def events(*more: str) -> st.SearchStrategy[list[Event]]:
    kinds = st.sampled_from(["open", "trade", "trade", "trade", "end", "record", *more])
    return st.lists(st.tuples(kinds, st.integers(0, 1), st.sampled_from(FOUR)), max_size=20)


def tell_story(told: Sequence[Event], *, prompt: bool = False) -> tuple[Story, list[Fact]]:
    """`prompt`: each connection hears something before anything else happens, so that none is silent at its end."""
    with TemporaryDirectory() as folder:
        story = Story(Path(folder))
        for event in told:
            for life in list(story.open.values()) if prompt else ():
                story.now_us += 1
                story.hear(life, FOUR[2 * life.group])
            story.tell(*event)
        story.end()
        return story, ledger_facts(make_root(Path(folder)))


def began_us(story: Story, symbol: str) -> int:
    """When its group heard something first."""
    lives = [life for life in story.lives if life.group == FOUR.index(symbol) // 2 and life.first_us is not None]
    return min((life.first_us or 0 for life in lives), default=story.now_us)


def check_nothing_recorded_is_blind(story: Story, told: dict[str, list[Interval]]) -> None:
    for symbol, at_us in story.recorded:
        held = state_at(told[symbol], at_us)
        assert held is None or held.state != "blind", (symbol, at_us - AT_US)


@given(events(), st.booleans())
@example([("open", 0, A), ("open", 0, C), ("trade", 0, A), ("trade", 0, C), ("end", 0, A), ("trade", 0, C),
          ("record", 0, A), ("open", 0, A), ("trade", 0, B)], False)  # fmt: skip
def test_blind_is_when_no_connection_of_the_group_heard(told: list[Event], prompt: bool) -> None:
    story, facts = tell_story(told, prompt=prompt)
    coverage = find_coverage(facts)
    intervals = {symbol: coverage.intervals(symbol) for symbol in FOUR}
    for symbol in FOUR:
        for at_us in range(began_us(story, symbol), story.now_us - 6):
            group = FOUR.index(symbol) // 2
            heard = [life for life in story.lives if life.group == group and life.hears(at_us)]
            state = state_at(intervals[symbol], at_us)
            assert state is not None
            assert (state.state == "blind") == (not heard), (symbol, at_us - AT_US)
            if state.state == "recorded" and prompt:
                assert any(life.symbols.get(symbol, at_us + 1) <= at_us for life in heard), (symbol, at_us - AT_US)
    check_nothing_recorded_is_blind(story, intervals)
    assert all(fact["symbols"] is not None for fact in facts if fact["fact"] == "symbols.requested")


@given(events("mute", "drought"))
def test_symbols_and_groups_that_fall_silent_are_blind_too(told: list[Event]) -> None:
    story, facts = tell_story(told)
    coverage = find_coverage(facts)
    intervals = {symbol: coverage.intervals(symbol) for symbol in FOUR}
    for symbol in FOUR:
        for at_us in range(began_us(story, symbol), story.now_us - 6):
            group = FOUR.index(symbol) // 2
            state = state_at(intervals[symbol], at_us)
            if not any(life.group == group and life.hears(at_us) for life in story.lives):
                assert state is not None
                assert state.state == "blind", (symbol, at_us - AT_US)
    check_nothing_recorded_is_blind(story, intervals)
    opened = {fact["gap"]: fact["symbol"] for fact in facts if fact["fact"] == "gap.opened"}
    for fact in facts:  # a symbol has one gap at a time
        if fact["fact"] == "gap.closed":
            assert opened.pop(fact["gap"]) == fact["symbol"]
    assert sorted(opened.values()) == sorted(story.gaps.blind_symbols)


@given(events("mute", "drought"), st.integers(0, 100))
def test_a_new_day_tells_where_each_group_stands(told: list[Event], share: int) -> None:
    """Its file is understood without those before it."""
    _, facts = tell_story(told)
    place = 1 + share * (len(facts) - 2) // 100
    while facts[place]["fact"] == "symbols.requested" and "since" in facts[place]:
        place += 1  # it is written together with the fact before it
    state = RunState()
    for fact in facts[:place]:
        state.tell(fact)
    day = state.restate(max(facts[place]["at"], facts[place - 1]["at"]))
    assert day["unconnected"] is None, "a group's gaps say it"
    whole, alone = find_coverage(facts), find_coverage([day, *facts[place:]])
    for symbol in FOUR:
        spans = (clip(one.intervals(symbol), day["at"], whole.horizon_us) for one in (whole, alone))
        before, after = ([(one.state, one.cause, one.start_us, one.end_us) for one in span] for span in spans)
        assert after == before


# The gaps of a group


def gaps_of_two(tmp_path: Path) -> Story:
    story = Story(tmp_path)
    story.tell("open", 0, A)
    story.tell("open", 0, C)
    return story


def told_gaps(story: Story) -> list[tuple[str, str, str, int]]:
    facts = ledger_facts(make_root(Path(story.ledger._layout.root)), "gap.opened", "gap.closed")
    names = {"gap.opened": "since", "gap.closed": "until"}
    return [(fact["fact"][4:], fact["symbol"], fact["cause"], fact[names[fact["fact"]]] - AT_US) for fact in facts]


def test_trades_that_came_before_a_group_fell_silent_end_nothing(tmp_path: Path) -> None:
    story = gaps_of_two(tmp_path)
    story.of_group[0].open("connection", AT_US + 50)
    story.of_group[0].hear([A], AT_US + 50, partial(_same, AT_US + 50), partial(_after, AT_US + 50))
    assert story.gaps.blind_symbols == {A, B}
    story.of_group[1].hear([C], AT_US + 60, partial(_same, AT_US + 60), partial(_after, AT_US + 60))
    assert story.gaps.blind_symbols == {A, B}, "another group's say nothing of it"
    story.of_group[0].hear([A], AT_US + 60, partial(_same, AT_US + 60), partial(_after, AT_US + 60))
    assert story.gaps.blind_symbols == frozenset()
    assert [one for one in told_gaps(story) if one[0] == "closed"] == [
        ("closed", A, "connection", 60),
        ("closed", B, "connection", 60),
    ]
    story.ledger.close()


def test_what_is_refused_stays_blind_when_its_group_is_heard(tmp_path: Path) -> None:
    story = gaps_of_two(tmp_path)
    story.of_group[0].open("stall", AT_US + 50)
    whole = story.of_group[0].whole
    assert whole is not None
    assert whole.cause == "stall"
    assert story.of_group[1].whole is None
    story.of_group[0].open("refused", AT_US + 70, B)
    story.of_group[0].close(AT_US + 90)
    assert story.gaps.blind_symbols == story.gaps.silent_symbols == {B}
    assert told_gaps(story) == [
        ("opened", A, "stall", 50),
        ("opened", B, "stall", 50),
        ("closed", B, "stall", 71),
        ("opened", B, "refused", 70),
        ("closed", A, "stall", 90),
    ]
    story.ledger.close()


def test_a_silent_symbol_whose_last_trade_is_recorded_late_is_blind_as_its_group_is(tmp_path: Path) -> None:
    story = gaps_of_two(tmp_path)
    story.of_group[0].open("symbol_mute", AT_US + 20, A)
    story.of_group[0].open("connection", AT_US + 50)
    story.of_group[0].close(AT_US + 60, "X")
    story.of_group[0].hear([A], AT_US + 40, partial(_same, AT_US + 40), partial(_after, AT_US + 40))
    assert story.gaps.blind_symbols == {A, B}
    story.of_group[0].close(AT_US + 90)
    assert told_gaps(story) == [
        ("opened", A, "symbol_mute", 20),
        ("opened", B, "connection", 50),
        ("closed", A, "symbol_mute", 40),
        ("opened", A, "connection", 50),
        ("closed", A, "connection", 90),
        ("closed", B, "connection", 90),
    ]
    story.of_group[0].open("symbol_mute", AT_US + 90, A)
    story.of_group[0].open("connection", AT_US + 95)
    story.of_group[0].close(AT_US + 99)
    story.of_group[0].hear([A], AT_US + 100, partial(_same, AT_US + 100), partial(_after, AT_US + 100))
    assert story.gaps.blind_symbols == frozenset(), "its group was heard before it"
    story.ledger.close()


def test_what_is_refused_among_late_frames_is_blind_like_its_group(tmp_path: Path) -> None:
    """Nobody knows when they came, and with them the refusal."""
    story = gaps_of_two(tmp_path)
    story.of_group[0].open("refused", AT_US + 150, A)
    story.now_us = AT_US + 300
    story.of_group[0].open("backpressure", AT_US + 100, heard_us=AT_US + 200)
    story.of_group[0].close(AT_US + 400)
    assert story.gaps.blind_symbols == {A}
    coverage = find_coverage([
        {"at": AT_US, "fact": "symbols.requested", "connection": 1, "symbols": [A, B]},
        {"at": AT_US, "fact": "symbols.proven", "connection": 1, "base": AT_US, "symbols": {A: 1, B: 1}},
        *ledger_facts(make_root(tmp_path), "gap.opened", "gap.closed"),
        {"at": AT_US + 500, "fact": "run.stopped"},
    ])  # fmt: skip
    told = {
        symbol: [(one.state, one.start_us - AT_US, one.end_us - AT_US) for one in coverage.intervals(symbol)][1:]
        for symbol in (A, B)
    }
    assert told[B] == [("recorded", 1, 101), ("unproven", 101, 201), ("blind", 201, 400), ("recorded", 400, 500)]
    assert told[A] == [("recorded", 1, 101), ("unproven", 101, 201), ("blind", 201, 500)]
    story.ledger.close()


def test_what_was_recorded_late_is_unproven_for_the_whole_group(tmp_path: Path) -> None:
    story = gaps_of_two(tmp_path)
    story.of_group[0].hear([A], AT_US + 80, partial(_same, AT_US + 80), partial(_after, AT_US + 80))
    story.of_group[0].open("stall", AT_US + 50)
    told = ledger_facts(make_root(tmp_path), "gap.opened")
    assert [(fact["symbol"], fact["since"], fact["heard"]) for fact in told] == [
        (A, AT_US + 50, AT_US + 80),
        (B, AT_US + 50, AT_US + 80),
    ]
    story.ledger.close()


def test_what_is_dropped_is_blind_as_long_as_it_is_asked_for(tmp_path: Path) -> None:
    """A session comes to a change some time later."""
    rig = make_rig(tmp_path, "ws://127.0.0.1:9", SYMBOLS, feed=Few("", "trade"))
    requests, connection_log = rig.division.groups[0], rig.groups[0].connection_log
    life = connection_log.begin(AT_US)
    requests.ask(life.number, GROUPS[0])
    connection_log.hear(life, AT_US + 1)
    rig.division.change(SYMBOLS[1:])
    connection_log.close(life)
    assert rig.gaps.blind_symbols == set(GROUPS[0])
    rig.ledger.close()


def test_a_request_names_its_symbols_where_the_last_one_may_be_another_groups(tmp_path: Path) -> None:
    """Also where no fact says that the connection before it has ended."""
    story = gaps_of_two(tmp_path)
    life = story.open.pop((0, 0)).record
    story.logs[0].retire(life)
    story.logs[0].leave(life, stopped=False)
    story.tell("open", 0, A)
    told = ledger_facts(make_root(tmp_path), "symbols.requested")
    assert [fact["symbols"] for fact in told] == [[A, B], [C, D], [A, B]]
    story.ledger.close()


def test_a_gap_for_all_becomes_one_for_each_where_there_are_groups(tmp_path: Path) -> None:
    """It ends where they begin."""
    ledger = Ledger(make_root(tmp_path), 2, day_of(AT_US), lambda: AT_US + 500)
    gaps = Gaps(ledger, 2, [OpenGap("r1-0", "shutdown", AT_US, None), OpenGap("r1-1", "refused", AT_US - 9, B)])
    gaps.divide([A, B, C])
    gaps.divide([A, B, C])
    facts = ledger_facts(make_root(tmp_path))
    assert [(fact["fact"], fact["symbol"], fact.get("until", fact["since"] + 1)) for fact in facts] == [
        ("gap.closed", None, AT_US + 500),
        ("gap.opened", A, AT_US + 500),
        ("gap.opened", C, AT_US + 500),
    ]
    assert len({fact["at"] for fact in facts}) == 1
    ledger.close()


# What two groups do not share


def test_nothing_of_one_group_is_looked_for_in_another() -> None:
    decoder = BlockDecoder(Binance("", "trade"), 1, VenueTime(), {3: 1, 4: 1})

    def recorded(connection: int, symbol: str, ids: range) -> int:
        payloads = trade_frames(symbol, ids, 0)
        rows = decoder.decode(FrameBlock(connection, Frames(payloads, [AT_US] * len(payloads)))).batch
        return len(rows)

    assert recorded(1, A, range(1, 9)) == recorded(3, C, range(1, 9)) == recorded(1, A, range(9, 17)) == 8
    assert [bool(texts._held) for texts in decoder._texts.values()] == [False, False], "one connection each: none kept"
    assert [{one.connection for one in known._recent} for known in decoder._deduplicators.values()] == [{1}, {3}]
    assert recorded(4, C, range(1, 9)) == recorded(2, A, range(1, 9)) == 0, "within a group it is found"


def test_the_last_text_of_each_connection_is_kept_however_often_another_is_renewed() -> None:
    decoder = BlockDecoder(Binance("", "trade"), 1, VenueTime())

    def repeats(connection: int) -> list[bool]:
        payloads = trade_frames(A, range(connection, connection + 1), 0)
        decoded = decoder.decode(FrameBlock(connection, Frames(payloads, [AT_US])))
        repeated: list[bool] = decoded.batch["repeated"].to_pylist()
        return repeated

    assert repeats(1) == [False]
    for connection in range(2, 200):
        assert repeats(connection) == [False]
        assert repeats(1) == [True]


def test_planned_renewals_of_all_groups_are_apart() -> None:
    apart_s = 100.0  # a whole number, so that it can be taken from any uptime without rounding
    connections = Connections(max_age_s=12 * apart_s, groups=3)
    renewed = [connections.begin(place % 3)[1] for place in range(6)]
    connections.retire(1)
    connections.retire(2)
    renewed = [*renewed[2:], *(connections.begin(place)[1] for place in range(2))]
    assert all(abs(one - other) >= apart_s for one, other in combinations(renewed, 2))
    assert min(renewed) > time.monotonic() + 300, "and none is renewed soon"
    assert connections.opened == 8
    assert connections.group_of == {2: 1, 3: 2, 5: 1, 6: 2, 8: 1}


def test_whose_a_connection_was_is_forgotten_when_it_has_long_ended() -> None:
    connections = Connections(groups=2)
    (kept, _) = connections.begin(1)
    for _ in range(10_500):
        connections.end(connections.begin(1)[0])
    assert kept in connections.group_of
    assert connections.opened in connections.group_of
    assert len(connections.group_of) <= 10_001


# Changes while it records


def test_what_is_new_goes_where_there_is_room(tmp_path: Path) -> None:
    with (
        running_venue(replace(VENUE, symbols=(*SYMBOLS, "NEWUSDT"))) as venue,
        running(make_rig(tmp_path, venue.url, SYMBOLS, feed=Few(venue.url, "trade"))) as rig,
    ):
        eventually(partial(reading, rig), "three connections")
        rig.division.change([*SYMBOLS[1:], "NEWUSDT"])
        rig.wait_fact("symbol.proven", symbol="NEWUSDT")
        rig.wait_fact("symbol.dropped", symbol=SYMBOLS[0])
        assert [group.wanted for group in rig.division.groups] == [(*SYMBOLS[1:3], "NEWUSDT"), *GROUPS[1:]]
    (asked,) = [fact for fact in rig.facts("symbols.requested") if fact["symbols"] == ["NEWUSDT"]]
    first = next(fact for fact in rig.facts("symbols.requested") if SYMBOLS[0] in fact["symbols"])
    assert asked["connection"] == first["connection"]
    assert not rig.facts("connection.lost")


def test_more_than_there_is_room_for_is_refused(tmp_path: Path) -> None:
    rig = make_rig(tmp_path, "ws://127.0.0.1:9", SYMBOLS, feed=Few("", "trade"))
    with pytest.raises(ConfigError, match=r"1 of 10 tickers, such as Y, are more than the 3 connections have room for"):
        rig.division.change([*SYMBOLS, "X", "Y"])
    with pytest.raises(ConfigError, match="6 tickers leave a connection of 3 without any: restart the recorder"):
        rig.division.change(SYMBOLS[:6])
    assert rig.division.symbols == SYMBOLS, "and nothing is changed"
    rig.division.change([*SYMBOLS[1:], "X", "Y"])
    assert rig.division.symbols == ("S1USDT", "S2USDT", "X", *SYMBOLS[3:], "Y")
    with pytest.raises(ConfigError, match="restart"):  # its first connection still asks for it, and is full
        rig.division.change([*SYMBOLS, "X"])
    rig.division.groups[0].adopt(rig.division.groups[0].wanted)
    rig.division.change([*SYMBOLS, "X"])
    assert rig.division.groups[2].wanted == (*SYMBOLS[6:], SYMBOLS[0])
    rig.ledger.close()


def test_a_reload_that_is_refused_is_told_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    settings = {**divided("ws://127.0.0.1:9"), "storage": {"root": str(tmp_path / "data"), "min_free": "0B"}}
    with prepared_recording(tmp_path, **divided("ws://127.0.0.1:9")) as recording:
        path.write_text(json.dumps(settings))
        source = Source(path)
        live = LiveSettings(source, recording.settings, recording.division, recording.ledger)
        path.write_text(json.dumps({**settings, "tickers": [*SYMBOLS, "X", "Y"]}))
        live.reload()
        (refused,) = ledger_facts(recording.layout, "settings.refused")
        assert "are more than the 3 connections have room for, of 3 symbols each: restart" in refused["error"]
        assert recording.division.symbols == SYMBOLS
        path.write_text(json.dumps({**settings, "tickers": [*SYMBOLS, "X"]}))
        live.reload()
        (reloaded,) = ledger_facts(recording.layout, "settings.reloaded")
    assert reloaded["added"] == ["X"]


# What people are told

LIMITS = {"symbols": 3, "connections": 3}


@pytest.mark.parametrize(
    ("limits", "redundant", "why"),
    [
        (LIMITS, 1, None),
        (
            LIMITS | {"connections": 2},
            1,
            "8 tickers need 3 connections, of 3 symbols each, and `feed.limits.connections`",
        ),
        (LIMITS, 2, "need 6 connections"),
        (LIMITS | {"connections": 6}, 2, None),
        ({"symbols": 8}, 1, None),
    ],
)
def test_check_says_how_many_connections_are_needed(
    tmp_path: Path, limits: dict[str, int], redundant: int, why: str | None
) -> None:
    path = tmp_path / "settings.yaml"
    settings = divided("ws://127.0.0.1:9", connection={"redundant": redundant})
    settings["feed"]["limits"] = limits
    path.write_text(json.dumps({**settings, "storage": {"root": str(tmp_path / "data"), "min_free": "0B"}}))
    told = CliRunner().invoke(cli, ["check", "--config", str(path)])
    assert told.exit_code == (2 if why else 0), told.output
    words = " ".join(told.output.split())
    assert (why or "") in words
    if not why and limits["symbols"] == 3:
        twice = ", two for each symbol" if redundant == 2 else ""
        assert f"8 tickers need {3 * redundant} connections: 3 symbols at most on each{twice}" in words


def test_what_is_sent_unasked_is_not_divided() -> None:
    settings = divided("ws://127.0.0.1:9")
    settings["feed"] = {name: value for name, value in settings["feed"].items() if name != "subscribe"}
    with pytest.raises(ValueError, match="allows 3 on a connection, which brings all"):
        Settings.model_validate(settings)


def test_a_group_without_a_connection_is_a_problem(tmp_path: Path) -> None:
    with (
        prepared_recording(tmp_path, **divided("ws://127.0.0.1:9", health={"listen": "127.0.0.1:0"})) as recording,
        locked_root(recording.layout) as lock,
        closing(HealthServer("127.0.0.1:0", Watch(recording))) as server,
    ):
        lock.announce(health=server.address)
        for group in recording.groups[:2]:
            one_open: Any = SimpleNamespace(bytes_received=1)
            group.sessions[0]._connection = one_open
            group.sessions[0].last_frame_us = now_us()
        recording.groups[2].gaps.open("connection", now_us() - 5_000_000)
        recording.observed.last_trade_s.update(dict.fromkeys(SYMBOLS, time.monotonic()))
        status = Watch(recording).look()
        said = CliRunner().invoke(cli, ["status", "--root", str(recording.layout.root)])
        summary = Report(recording).summary(datetime.now(UTC))
        recording.groups[2].sessions[0]._connection = one_open
        recording.groups[2].sessions[0].last_frame_us = now_us()
        mended = Watch(recording).look()
    link = status.link
    assert (link.groups, link.redundant, link.open, link.connected) == (3, 3, 2, False)
    assert (link.gap, link.blind_symbols, link.ticking) == ("connection", SYMBOLS[6:], 6)
    assert find_problems(status) == ["3 connections, 2 open: a part of the symbols is not recorded"]
    assert said.exit_code == 1
    assert "! 3 connections, 2 open: a part of the symbols is not recorded\n" in said.output
    assert "3 connections, 2 open, 6 of 8 symbols ticking" in said.output
    assert summary.startswith("3 connections, 2 open; ")
    assert summarize(status).startswith("recording 0.0 trades/s; 2 of 3 connections open; ")
    assert mended.link.connected
    assert find_problems(mended) == ["blind (no connection): frames come, but no trades (of a part of the symbols)"]
