"""Several connections at once: either may be cut at any time; nothing is missed, nothing comes twice, none is blind."""

import json
import os
import random
import time
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
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
from recorders import Rig, eventually, make_rig, running
from requirements import of_tier
from simulated_venues import running_venue
from test_handover import SYMBOLS, VENUE, Ageing, recorded_ids
from test_raw import Put, feed, stop

import ingestor
from ingestor.capture.buffer import Buffer, FrameBlock
from ingestor.capture.connection_log import ConnectionLog, ConnectionRecord, Connections, find_holes
from ingestor.capture.gaps import Gaps
from ingestor.capture.monitor import Pursuit
from ingestor.capture.recorder import BlockDecoder
from ingestor.capture.stream_state import Observed, Requests
from ingestor.capture.wall_clock import VenueTime
from ingestor.cli.main import cli
from ingestor.cli.top import headline
from ingestor.coverage import Interval, find_coverage, state_at
from ingestor.daemon import Report
from ingestor.dataset.verify import Verification
from ingestor.feeds import Frames
from ingestor.feeds.binance import Binance
from ingestor.layout import Layout, locked_root
from ingestor.ledger import Ledger, day_of, now_us
from ingestor.metrics import Conservation, Counts
from ingestor.operations.collector import Watch
from ingestor.operations.health import HealthServer
from ingestor.operations.recorder_status import find_problems
from ingestor.operations.systemd import summarize
from ingestor.schema import FORMAT_VERSION, recorded
from ingestor.simulator.faults import Mute, Schedule
from ingestor.simulator.market import MarketSettings

CUTS_S = float(os.environ.get("REDUNDANT_SECONDS", of_tier("12", "4")))
"""How long connections are cut at random."""
RATE = float(os.environ.get("REDUNDANT_RATE", "500"))
"""Trades per second meanwhile."""
SECOND_US = 1_000_000


# Against a venue


def both_hear(rig: Rig, opened: int) -> bool:
    """So many connections were opened in all, and two of them are read."""
    return rig.connections.opened == opened and len(rig.connection_log._reading()) == 2


def test_either_may_be_cut_at_any_time(tmp_path: Path) -> None:
    dice = random.Random(7)
    cuts, began_s = 0, time.monotonic()
    with (
        running_venue(replace(VENUE, market=MarketSettings(rate=RATE, seed=7))) as venue,
        running(make_rig(tmp_path, venue.url, SYMBOLS, feed=Binance(venue.url, "trade"), redundant=2)) as rig,
    ):
        while time.monotonic() < began_s + CUTS_S or cuts < 2:
            eventually(partial(both_hear, rig, 2 + cuts), "both connections")
            time.sleep(dice.uniform(0.0, 0.5))
            venue.drop(dice.randrange(2))
            cuts += 1
        eventually(partial(both_hear, rig, 2 + cuts), "both connections")
        rig.wait_trades(50)
    ids = recorded_ids(rig)
    assert set(ids) == set(SYMBOLS)
    for numbers in ids.values():  # one may be read a moment after the other
        assert sorted(numbers) == list(range(1, len(numbers) + 1))
    assert [gap["cause"] for gap in rig.facts("gap.opened")] == ["shutdown"]
    assert rig.facts("ids.missed") == []
    assert len(rig.facts("connection.lost")) == cuts
    counts = rig.recorder.counts
    assert rig.buffer.frames_put == counts.frames
    assert rig.recorder.reasons.keys() == {"repeated_id"}
    assert counts.decoded == counts.trades + counts.rejected_trades
    coverage = find_coverage(rig.facts())
    for symbol in SYMBOLS:
        states = [one.state for one in coverage.intervals(symbol)]
        assert states[:2] == ["unproven", "recorded"]
        assert "blind" not in states[:-1], "but for the stop"


def test_both_are_renewed_in_turn(tmp_path: Path) -> None:
    """As they get too old: up to four connections are read for a moment."""
    with (
        running_venue(VENUE) as venue,
        running(make_rig(tmp_path, venue.url, SYMBOLS, feed=Ageing(venue.url, "trade"), redundant=2)) as rig,
    ):
        rig.wait_fact("connection.retired", 5)
        rig.wait_trades(50)
    for numbers in recorded_ids(rig).values():
        assert sorted(numbers) == list(range(1, len(numbers) + 1))
    assert [gap["cause"] for gap in rig.facts("gap.opened")] == ["shutdown"]
    assert rig.recorder.reasons.keys() == {"repeated_id"}


def test_planned_renewals_never_fall_together(tmp_path: Path) -> None:
    rig = make_rig(tmp_path, "ws://127.0.0.1:9", feed=Ageing("ws://127.0.0.1:9", "trade"))
    lives = [rig.connection_log.begin(AT_US + number) for number in range(2)]
    assert abs(lives[1].renewed_s - lives[0].renewed_s) >= Ageing.terms.max_age_s / 4
    rig.connection_log.retire(lives[0])
    third = rig.connection_log.begin(AT_US + 3)
    assert abs(third.renewed_s - lives[1].renewed_s) >= Ageing.terms.max_age_s / 4
    rig.ledger.close()


# What is claimed of any story


@dataclass
class Life:
    """A connection of the story, with what it brought: when its first and its last frame came, and each symbol."""

    record: ConnectionRecord
    first_us: int | None = None
    last_us: int = 0
    symbols: dict[str, int] = field(default_factory=dict)
    known: dict[str, int] = field(default_factory=dict)
    """When the recorder came to the first trade of each."""

    def hears(self, at_us: int) -> bool:
        return self.first_us is not None and self.first_us <= at_us <= self.last_us


class Story:
    """Two sessions, their connections and a recorder that may be behind, by a clock of its own."""

    def __init__(self, root: Path) -> None:
        self.now_us = AT_US
        self.ledger = Ledger(make_root(root), 1, day_of(AT_US), lambda: self.now_us)
        self.ledger.record("run.started", run=1, open_gaps=[], tickers=list(SYMBOLS))
        observed = Observed()
        self.gaps = Gaps(self.ledger, 1, [])
        self.requests = Requests(self.ledger, observed, SYMBOLS)
        self.log = ConnectionLog(self.ledger, self.gaps, observed, self.requests, Connections())
        self.open: dict[int, Life] = {}
        self.lives: list[Life] = []
        self.waiting: list[tuple[Life, str, int]] = []
        self.recorded: list[tuple[str, int]] = []

    def tell(self, what: str, lane: int, symbol: str) -> None:
        self.now_us += 6
        life = self.open.get(lane)
        if what == "record":
            self.record()
        elif what == "open" and life is None:
            life = self.open[lane] = Life(self.log.begin(self.now_us))
            self.lives.append(life)
            self.now_us += 2
            self.requests.ask(life.record.number, SYMBOLS)
        elif what == "end" and life is not None:
            self.log.close(self.open.pop(lane).record)
        elif what == "trade" and life is not None:
            self.hear(life, symbol)

    def hear(self, life: Life, symbol: str) -> None:
        if life.first_us is None:
            life.first_us = self.now_us
            self.log.hear(life.record, self.now_us)
        life.record.frames += 1
        life.record.last_frame_us = life.last_us = self.now_us
        life.symbols.setdefault(symbol, self.now_us)
        self.waiting.append((life, symbol, self.now_us))

    def record(self) -> None:
        waiting, self.waiting = self.waiting, []
        for life, symbol, at_us in waiting:
            life.known.setdefault(symbol, self.now_us)
            if symbol not in self.requests.brought(life.record.number):
                self.requests.prove(life.record.number, {symbol: at_us})
            self.gaps.hear([symbol], at_us, lambda _, at_us=at_us: at_us, partial(_after, at_us))  # type: ignore[misc]
            self.recorded.append((symbol, at_us))

    def end(self) -> None:
        self.now_us += 6
        for lane in list(self.open):
            self.log.close(self.open.pop(lane).record)
        self.record()
        self.ledger.record("run.stopped", error=None)
        self.ledger.close()


def _after(at_us: int, since_us: int) -> int | None:
    return at_us if at_us > since_us else None


Event = tuple[str, int, str]
EVENTS = st.tuples(
    st.sampled_from(["open", "trade", "trade", "trade", "end", "record"]), st.integers(0, 1), st.sampled_from(SYMBOLS)
)
A, B = SYMBOLS


def tell_story(events: list[Event], *, prompt: bool) -> tuple[Story, dict[str, list[Interval]]]:
    """`prompt`: each connection hears something before anything else happens, so that none is silent at its end."""
    with TemporaryDirectory() as folder:
        story = Story(Path(folder))
        for event in events:
            for life in list(story.open.values()) if prompt else ():
                story.now_us += 1
                story.hear(life, SYMBOLS[0])
            story.tell(*event)
        story.end()
        facts = ledger_facts(make_root(Path(folder)))
    coverage = find_coverage(facts)
    return story, {symbol: coverage.intervals(symbol) for symbol in SYMBOLS}


def moments(story: Story) -> range:
    """Each µs since something was heard first."""
    began_us = min((life.first_us for life in story.lives if life.first_us is not None), default=story.now_us)
    return range(began_us, story.now_us - 6)


@given(st.lists(EVENTS, max_size=14))
@example([("open", 0, A), ("trade", 0, A), ("open", 1, A), ("trade", 1, A), ("end", 1, A), ("open", 1, A),
          ("trade", 1, A), ("end", 0, A)])  # fmt: skip
@example([("open", 1, A), ("open", 0, A), ("trade", 1, A), ("trade", 0, B), ("end", 0, A)])
def test_blind_is_when_no_connection_heard_and_recorded_what_one_heard(events: list[Event]) -> None:
    """Whatever was silent before its end was known."""
    story, told = tell_story(events, prompt=False)
    for at_us in moments(story):
        heard = [life for life in story.lives if life.hears(at_us)]
        for symbol, intervals in told.items():
            state = state_at(intervals, at_us)
            assert state is not None
            assert (state.state == "blind") == (not heard), (symbol, at_us - AT_US)
            if state.state == "recorded":
                assert any(life.symbols.get(symbol, at_us + 1) <= at_us for life in heard), (symbol, at_us - AT_US)
    for symbol, at_us in story.recorded:
        held = state_at(told[symbol], at_us)
        assert held is None or held.state != "blind"


@given(st.lists(EVENTS, max_size=14))
@example([("open", 0, A), ("open", 1, A), ("open", 0, A), ("record", 0, A), ("end", 0, A), ("record", 0, A)])
def test_what_any_connection_hears_that_has_brought_it_is_recorded(events: list[Event]) -> None:
    """From when the recorder knows of it, at the latest."""
    story, told = tell_story(events, prompt=True)
    for at_us in moments(story):
        for symbol, intervals in told.items():
            known = any(life.hears(at_us) and life.known.get(symbol, at_us + 1) <= at_us for life in story.lives)
            state = state_at(intervals, at_us)
            assert state is not None
            assert state.state == "recorded" or not known, (symbol, at_us - AT_US)


def test_a_gap_that_is_found_later_leaves_one_that_is_open(tmp_path: Path) -> None:
    """As where no trade comes on any connection, and one of them turns out to have been silent for longer."""
    story = Story(tmp_path)
    story.requests.ask(1, SYMBOLS)
    story.requests.prove(1, {A: AT_US + 10})
    story.gaps.open("stall", AT_US + 50)
    story.now_us = AT_US + 70
    story.gaps.add("connection", AT_US + 20, AT_US + 30, heard_us=AT_US + 25)
    story.gaps.close(AT_US + 90)
    story.now_us = AT_US + 100
    story.ledger.record("run.stopped", error=None)
    story.ledger.close()
    told = find_coverage(ledger_facts(make_root(tmp_path))).intervals(A)
    spans = [(one.state, one.cause, one.start_us - AT_US, one.end_us - AT_US) for one in told]
    assert spans[1:] == [
        ("recorded", None, 10, 21),
        ("unproven", None, 21, 26),
        ("blind", "connection", 26, 30),
        ("recorded", None, 30, 51),
        ("blind", "stall", 51, 90),
        ("recorded", None, 90, 100),
    ]


@pytest.mark.parametrize(
    ("heard", "holes"),
    [
        ([], [(10, 20)]),
        ([(5, 12)], [(12, 20)]),
        ([(5, 12), (15, 17)], [(12, 15), (17, 20)]),
        ([(12, 30)], [(10, 12)]),
        ([(25, 30)], [(10, 20)]),
        ([(5, 30)], []),
        ([(11, 15), (13, 14), (15, 20)], [(10, 11)]),
    ],
)
def test_holes_are_what_nobody_heard(heard: list[tuple[int, int]], holes: list[tuple[int, int]]) -> None:
    assert list(find_holes(10, heard, 20)) == holes


# What both bring is recorded once


def trade_frames(symbol: str, ids: range, sent: int) -> list[bytes]:
    """`sent`: when the venue says that it sent them, by which a text may differ from one connection to the other."""
    text = '{"e":"trade","E":%d,"s":"%s","t":%d,"p":"1.5","q":"0.1","T":%d,"m":true,"M":true}'  # a trade has one time
    return [(text % (sent, symbol, number, AT_US // 1000 + number)).encode() for number in ids]


class Market:
    """Two lanes read the same trades; a lane that is cut goes on where the market is by then."""

    def __init__(self, *, same_text: bool) -> None:
        self.same_text = same_text
        self.head = 1
        self.places = [1, 1]
        self.numbers = [1, 2]
        self.sent: list[range] = []
        self.buffer = Buffer(1 << 24)
        self.decoder = BlockDecoder(Binance("", "trade"), 1, VenueTime())
        self.rows: list[int] = []
        self.frames = self.trades = self.repeats = 0

    def tell(self, what: str, lane: int, size: int) -> None:
        if what == "trade":
            self.head += size
        elif what == "cut":
            self.numbers[lane] = max(self.numbers) + 1
            self.places[lane] = self.head
        elif what == "read" and self.places[lane] < self.head:
            ids = range(self.places[lane], self.head)
            self.places[lane] = self.head
            self.sent.append(ids)
            frames = trade_frames("A", ids, 0 if self.same_text else lane)
            self.buffer.put(self.numbers[lane], frames, AT_US + self.head)
        elif what == "take":
            self.take()

    def take(self) -> None:
        while (block := self.buffer.take(0.0, 0.0)) is not None:
            decoded = self.decoder.decode(block)
            self.rows += decoded.batch["trade_id"].to_pylist()
            counts = decoded.header.counts
            assert counts.balanced
            self.frames += counts.frames
            self.trades += counts.trades
            self.repeats += counts.rejected_trades
            assert decoded.reasons == ({"repeated_id": counts.rejected_trades} if counts.rejected_trades else {})
            received = decoded.batch["received_at"].cast(pa.int64()).to_pylist()
            assert all(block.frames.received_us[0] <= at_us <= block.frames.received_us[-1] for at_us in received)


MOVES = st.tuples(
    st.sampled_from(["trade", "read", "read", "take", "cut"]), st.integers(0, 1), st.sampled_from([1, 3, 100])
)


@given(st.lists(MOVES, max_size=30), st.booleans())
def test_each_trade_that_any_of_them_brought_is_recorded_once(moves: list[Event], same_text: bool) -> None:
    market = Market(same_text=same_text)
    for move in moves:
        market.tell(*move)  # type: ignore[arg-type]
    market.buffer.close()
    market.take()
    assert sorted(market.rows) == sorted({number for ids in market.sent for number in ids})
    assert market.frames == market.trades + market.repeats == sum(map(len, market.sent))


def test_what_is_not_a_trade_is_read_on_each_connection() -> None:
    """Beside trades whose text is known: a notice, and what is refused, with their places among all frames."""
    decoder = BlockDecoder(Binance("", "trade"), 1, VenueTime())

    def decode(connection: int, *payloads: bytes) -> tuple[list[int], list[tuple[int, str]], list[int]]:
        decoded = decoder.decode(FrameBlock(connection, Frames(list(payloads), [AT_US] * len(payloads))))
        refused = [(one.frame, one.reason) for one in decoded.refused]
        return decoded.batch["trade_id"].to_pylist(), refused, [one.frame for one in decoded.notices]

    one, two, three, four = trade_frames("A", range(1, 5), 0)
    assert decode(2, b'{"result":null,"id":1}') == ([], [], [0])
    assert decode(1, one, two) == ([1, 2], [], [])
    assert decode(2, one, b'{"result":null,"id":2}', b"junk", two, three) == ([3], [(5, "not_json")], [1])
    assert decode(1, three, b"junk", four) == ([4], [(9, "not_json")], [])
    assert decode(2, four, four) == ([], [], [])
    assert decode(1, four) == ([4], [], []), "its own repeat is genuine"


def test_a_text_is_known_for_no_longer_than_an_id() -> None:
    decoder = BlockDecoder(Binance("", "trade"), 1, VenueTime())

    def recorded(connection: int, at_us: int, *payloads: bytes) -> list[int]:
        decoded = decoder.decode(FrameBlock(connection, Frames(list(payloads), [at_us] * len(payloads))))
        ids: list[int] = decoded.batch["trade_id"].to_pylist()
        return ids

    (one,) = trade_frames("A", range(1, 2), 0)
    assert recorded(2, AT_US, b'{"result":null,"id":1}') == []
    assert recorded(1, AT_US, one) == [1]
    for second in range(4, 20, 4):  # both are heard, and neither brings a trade
        for connection in (1, 2):
            assert recorded(connection, AT_US + second * SECOND_US, b'{"result":null,"id":1}') == []
    assert recorded(2, AT_US + 17 * SECOND_US, one) == [1]
    assert recorded(1, AT_US + 18 * SECOND_US, one) == []


def test_a_recording_of_two_is_verified_and_decodes_to_the_same_again(tmp_path: Path) -> None:
    rig = make_rig(tmp_path / "data", "ws://127.0.0.1:9", ["A"], feed=Binance("", "trade"), keeps_frames=True)
    told: dict[str, Any] = {
        "format": FORMAT_VERSION,
        "feed": "binance",
        "tickers": ["A"],
        "raw": True,
        "id_column": "trade_id",
    }
    told["columns"] = recorded(Binance.schema).names
    rig.ledger.record("run.started", at=AT_US - 1, run=1, open_gaps=[], first_segment=1, **told)
    one, two, three, four = (trade_frames("A", range(at, at + 3), 0) for at in (1, 4, 7, 10))
    puts = [(1, one), (2, two), (1, two), (2, [*three, b"junk"]), (1, three), (2, four), (3, four)]
    feed(rig, [Put(connection, frames, AT_US + at * 1000) for at, (connection, frames) in enumerate(puts)])
    assert stop(rig).violations == 0
    config = tmp_path / "settings.yaml"
    config.write_text("feed: {type: binance}\ntickers: [A]\n")
    into = tmp_path / "into"
    for target in ((), ("--into", str(into))):
        done = CliRunner().invoke(
            cli, ["redecode", "--config", str(config), "--root", str(rig.layout.root), "--json", *target]
        )
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["trades"] == {"recorded": 12, "decoded": 12}
    for root in (rig.layout.root, into):
        verification = Verification(Layout(root))
        assert [str(one) for step in verification.run() for one in step] == []
        assert verification.account.counts.rejected_trades == 9
        assert verification.account.rejects == 1, "what came twice is counted, and not written down"
        assert ingestor.read_trades(root, engine="arrow").num_rows == 12


def test_one_that_falls_behind_is_found_out_and_one_that_began_late_is_not() -> None:
    late = Pursuit()
    assert [late.look(0, 700, now_s) for now_s in (10.0, 15.0, 30.0)] == [0.0, 0.0, 0.0], "nothing since it began"
    assert [late.look(0, 800, now_s) for now_s in (31.0, 36.0)] == [0.0, 5.0]
    assert late.look(800, 900, 37.0) == 0.0
    assert [late.look(850, 1000 + step, 38.0 + step) for step in range(3)] == [1.0, 2.0, 3.0]


def test_a_connection_that_brings_nothing_is_ended_while_the_other_is_read(tmp_path: Path) -> None:
    """It is open and answers: that it misses what the other brings is all that shows it."""
    deaf = Mute(connection=2)
    with (
        running_venue(replace(VENUE, faults=Schedule([deaf]))) as venue,
        running(make_rig(tmp_path, venue.url, SYMBOLS, feed=Binance(venue.url, "trade"), redundant=2)) as rig,
    ):
        lost = rig.wait_fact("connection.lost")
        eventually(partial(both_hear, rig, 3), "both connections")  # a stop before that leaves a gap between the two
    assert lost["connection"] == 2
    assert "behind another connection" in lost["reason"]
    assert [gap["cause"] for gap in rig.facts("gap.opened")] == ["shutdown"]


# What people are told

JSON: dict[str, Any] = {"type": "json", "url": "ws://127.0.0.1:9"}


@pytest.mark.parametrize(
    ("feed", "why"),
    [
        ({}, "Finnhub ends both where a key has a second one"),
        (JSON, "`feed.limits.connections` allows one"),
        (JSON | {"limits": {"connections": 2}}, "has no `trade_id`"),
        (JSON | {"limits": {"connections": 2}, "columns": {"trade_id": {"from": "i"}}}, None),
        ({"type": "binance"}, None),
    ],
)
def test_it_is_refused_where_it_can_do_no_good(tmp_path: Path, feed: dict[str, Any], why: str | None) -> None:
    path = tmp_path / "settings.yaml"
    settings = {"feed": feed, "tickers": ["BTCUSDT"], "connection": {"redundant": 2}}
    path.write_text(json.dumps({"storage": {"root": str(tmp_path / "data")}, **settings}))
    told = CliRunner().invoke(cli, ["check", "--config", str(path)], env={"FINNHUB_API_KEY": "x"})
    assert told.exit_code == (2 if why else 0), told.output
    assert why is None or why in told.output


def test_the_truth_of_both_is_told(tmp_path: Path) -> None:
    settings = {"feed": {"type": "binance", "url": "ws://127.0.0.1:9/ws"}, "connection": {"redundant": 2}}
    with (
        prepared_recording(tmp_path, tickers=["A"], **settings) as recording,
        locked_root(recording.layout) as lock,
        closing(HealthServer("127.0.0.1:0", Watch(recording))) as server,
    ):
        lock.announce(health=server.address)
        one_open: Any = SimpleNamespace(bytes_received=1)
        recording.groups[0].sessions[1]._connection = one_open
        recording.groups[0].sessions[1].last_frame_us = now_us()
        recording.recorder.counts = Counts(frames=7, decoded=7, rejected_trades=7)
        recording.recorder.reasons["repeated_id"] = 7
        status = Watch(recording).look()
        said = CliRunner().invoke(cli, ["status", "--root", str(recording.layout.root)])
        summary = Report(recording).summary(datetime.now(UTC))
        ready = find_problems(status)
    assert (status.link.redundant, status.link.open, status.link.connected) == (2, 1, True)
    assert said.exit_code == 1
    assert "! 2 connections, 1 open\n" in said.output
    assert "2 connections, 1 open, 0 of 1 symbols ticking" in said.output
    assert "0 in this run, 7 came twice, 0 rejected" in said.output
    assert ready == [], "it records all the same"
    assert summary.startswith("2 connections, 1 open; ")
    assert "; 1 of 2 connections open; " in summarize(status)
    assert "  1/2 connections  " in headline(status, tmp_path, 0.0)[0]


def test_the_account_tells_repeats_apart() -> None:
    counts = Counts(frames=10, decoded=10, trades=5, rejected_trades=5)
    assert "10 trades = 5 journaled + 4 repeated + 1 rejected; " in str(Conservation(10, counts, repeats=4))
