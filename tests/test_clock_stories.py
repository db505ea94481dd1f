"""What a recording claims while clocks are set, sleep, stand still or are wrong: nothing that was not lived and seen.

The parts of the reader and of the recorder run here in one thread, on clocks that a story moves. Each story is a line
of a table; random ones follow.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow.compute as pc
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from prepared import prepared_recording
from recorders import blind_rows, make_rig
from requirements import of_tier

import ingestor
from ingestor.capture.wall_clock import Reading
from ingestor.coverage import Coverage, find_coverage
from ingestor.dataset.maintenance import delete_expired
from ingestor.operations.collector import Watch, read_clock
from ingestor.operations.recorder_status import RecorderStatus, find_problems

START_US = 1_795_000_000_000_000
SECOND_US = 1_000_000
HOUR_S = 3600
DAY_S = 24 * HOUR_S
DAY_US = DAY_S * SECOND_US
SYMBOL = "BINANCE:BTCUSDT"
BLUR_US = 3 * SECOND_US
"""Less is no step, and the clock is looked at each second."""
FRAME = b'{"data":[{"c":null,"p":%d.5,"s":"BINANCE:BTCUSDT","t":%d,"v":1}],"type":"trade"}'


class World:
    """A recorder, its venue, and the time that really passes."""

    def __init__(self, root: Path, wrong_s: float = 0, *, date: bool = True, delay_s: float = 0.1) -> None:
        self.true_us, self.monotonic_us, self.boottime_us = START_US, 0, 0
        self.wrong_us = round(wrong_s * SECOND_US)
        self.date, self.delay_us = date, round(delay_s * SECOND_US)
        self.fell_behind = int(self.wrong_us < -DAY_US)
        """How often the clock came to be more than a day behind."""
        self.looked_us = self.wrong_us
        """How wrong the clock was when the recorder last looked at it; it may have been set to and fro since."""
        self.stood: list[tuple[int, int]] = []
        """Spans of true time since then, in which the socket kept what came."""
        self.rig = make_rig(root, "ws://127.0.0.1:1", [SYMBOL], read=self.read)
        self.connection = self.frames = 0
        self.connected = False
        self.heard: list[tuple[int, int]] = []
        """Spans of the wall clock in which the venue was heard."""
        self.connect()

    def read(self) -> Reading:
        return Reading(self.true_us + self.wrong_us, self.monotonic_us, self.boottime_us)

    def connect(self) -> None:
        if not self.connected:
            self.connected = True
            self.connection += 1
            self.look()
            self.rig.clock.opened(formatdate(self.true_us / 1e6, usegmt=True) if self.date else None)
            self.life = self.rig.connection_log.begin(self.rig.clock.now_us())
            self.rig.ledger.record("symbols.requested", connection=self.connection, symbols=[SYMBOL])

    def lose(self) -> None:
        if self.connected:
            self.connected = False
            self.rig.connection_log.close(self.life)

    def passes(self, seconds: int, drift_s: float = 0, *, quiet: bool = False) -> None:
        """Time, second by second, in each of which the clock is looked at and a trade comes."""
        for _ in range(seconds):
            before_us = self.read().wall_us
            self.stand_still(1)
            self.wrong_us += round(drift_s * SECOND_US)
            self.look()
            self.rig.clock.doubt()
            if self.connected:
                if not quiet:
                    self.hear(1)
                self.heard.append((before_us, self.read().wall_us))

    def hear(self, trades: int) -> None:
        """Frames come, and are recorded."""
        self.look()
        payloads = [FRAME % (self.frames + at, (self.true_us - self.delay_us) // 1000) for at in range(trades)]
        self.frames += trades
        self.rig.session._take(self.life, payloads)
        block = self.rig.buffer.take(0, 0)
        assert block is not None
        self.rig.recorder._record(block)

    def stand_still(self, seconds: float) -> None:
        for name in ("true_us", "monotonic_us", "boottime_us"):
            setattr(self, name, getattr(self, name) + round(seconds * SECOND_US))

    def sleep(self, seconds: float) -> None:
        self.stand_still(seconds)
        self.monotonic_us -= round(seconds * SECOND_US) - 1000  # it takes a moment to fall asleep
        self.look()

    def set(self, wrong_s: float) -> None:
        self.stand_still(0.001)
        before_us, self.wrong_us = self.wrong_us, round(wrong_s * SECOND_US)
        self.fell_behind += self.wrong_us < -DAY_US <= before_us

    def look(self) -> None:
        """The recorder looks at the clock. What it was set in between, and back again, nobody has seen."""
        self.rig.clock.now_us()
        if abs(self.wrong_us - self.looked_us) < BLUR_US:
            self.heard += [(start_us + self.wrong_us, end_us + self.wrong_us) for start_us, end_us in self.stood]
        self.stood.clear()
        self.looked_us = self.wrong_us

    @property
    def refused(self) -> int:
        return self.frames - self.rig.recorder.counts.trades

    def coverage(self) -> Coverage:
        return find_coverage(self.rig.facts(), journaled_us=self.life.last_frame_us)

    def claimed(self) -> list[tuple[int, int]]:
        return [(one.start_us, one.end_us) for one in self.coverage().intervals(SYMBOL) if one.state == "recorded"]

    def delete_expired(self) -> str:
        """The days that retention deletes by these clocks, of one that is due in truth and one that isn't."""
        today = datetime.fromtimestamp(self.true_us / 1e6, UTC).date()
        days = {today - timedelta(400): "due", today - timedelta(1): "kept"}
        for day in days:
            (self.rig.layout.trades / f"date={day}").mkdir(parents=True)
        now = datetime.fromtimestamp(self.read().wall_us / 1e6, UTC)
        gone = delete_expired(self.rig.layout, self.rig.ledger, timedelta(365), now, self.rig.clock.venue_now())
        return " ".join(days[day] for day in gone)

    def end(self) -> None:
        self.rig.recorder._keeper.sync()
        assert blind_rows(self.rig) == [], "a recorded trade lies in a blind span"
        unknown = 0 if self.date else 2 * self.fell_behind
        assert self.refused <= unknown, "without a date it takes three trades to know it is the clock"
        for start_us, end_us in self.claimed():
            unheard_us = start_us
            for first_us, last_us in sorted(self.heard):
                if first_us <= unheard_us + BLUR_US:
                    unheard_us = max(unheard_us, last_us)
            assert unheard_us >= end_us - BLUR_US, f"{start_us} to {end_us} is claimed, and was not heard"
        self.rig.recorder._keeper.close()
        self.rig.ledger.close()


def no_battery(world: World) -> None:
    world.passes(20)
    world.set(0)
    world.passes(20)


def sleeps(world: World) -> None:
    world.passes(20)
    world.sleep(8 * HOUR_S)
    world.hear(50)  # they waited in the socket
    world.passes(20)


def stands_still(world: World) -> None:
    world.passes(20)
    world.stand_still(600)
    world.hear(50)
    world.heard.append((world.read().wall_us - 600 * SECOND_US, world.read().wall_us))  # the socket kept it
    world.passes(20)


def steps(*wrong_s: float) -> Callable[[World], None]:
    def tell(world: World) -> None:
        world.passes(20)
        for offset_s in wrong_s:
            world.set(offset_s)
            world.passes(20)

    return tell


def loses_after_a_step(world: World) -> None:
    """No frame tells the new time before the connection is lost."""
    world.passes(20)
    world.set(-2 * HOUR_S)
    world.passes(1, quiet=True)
    world.lose()
    world.passes(30)
    world.connect()
    world.passes(20)


def drifts(world: World) -> None:
    world.passes(60, drift_s=0.3)


@dataclass(frozen=True)
class Said:
    """What is told of a story."""

    claimed_s: int
    """Coverage: seconds recorded."""
    causes: str = ""
    """Coverage: why the symbol was blind."""
    bars: int = 0
    """Bars of a second that are recorded whole."""
    quiet: int = 0
    """Those of them in which nothing was traded."""
    refused: int = 0
    """Validation: trades."""
    deleted: str = "due"
    """Retention."""
    wrong: str = ""
    """`status`: this computer's clock."""
    late: str = ""
    """`status`: the venue's trades."""


STORIES: dict[str, tuple[float, bool, float, Callable[[World], None], Said]] = {
    # our clock at the start, whether the venue tells a date, delay of the feed, what happens, what is said of it
    "nothing": (0, True, 0.1, steps(), Said(19, bars=19)),
    "a delayed feed": (0, True, 900, steps(), Said(19, bars=19)),
    "no battery": (-10 * HOUR_S, True, 0.1, steps(), Said(0, wrong="10:00:00 h behind")),
    "no battery, set by NTP": (-10 * HOUR_S, True, 0.1, no_battery, Said(19, "clock", bars=18)),
    "no battery, set by NTP, no date": (-10 * HOUR_S, False, 0.1, no_battery, Said(19, "clock", bars=18)),
    "no battery, a delayed feed": (-10 * HOUR_S, True, 900, no_battery, Said(19, "clock", bars=18)),
    "a sleep with frames waiting": (0, True, 0.1, sleeps, Said(39, "sleep", bars=39)),
    "a standstill": (0, True, 0.1, stands_still, Said(639, bars=639, quiet=599)),
    "set back, and right again": (0, True, 0.1, steps(-2 * HOUR_S, 0), Said(38, "clock", bars=37)),
    "set forward": (0, True, 0.1, steps(HOUR_S), Said(19, "clock", bars=19, wrong="1:00:00 h ahead of")),
    "set forward by mistake, and right again": (0, True, 0.1, steps(60, 0), Said(38, "clock", bars=37)),
    "set back": (0, False, 0.1, steps(-HOUR_S), Said(0, wrong="1:00:00 h behind")),  # the true time is shown again
    "three days behind": (-3 * DAY_S, True, 0.1, steps(), Said(0, wrong="3 days, 0:00:00 h behind")),
    "three days behind, no date": (
        -3 * DAY_S,
        False,
        0.1,
        steps(),
        Said(0, refused=2, wrong="3 days, 0:00:00 h behind"),
    ),
    "three days ahead": (3 * DAY_S, True, 0.1, steps(), Said(0, wrong="3 days, 0:00:00 h ahead of")),
    "two years behind": (-731 * DAY_S, True, 0.1, steps(), Said(0, deleted="", wrong="731 days, 0:00:00 h behind")),
    "two years ahead": (731 * DAY_S, True, 0.1, steps(), Said(0, wrong="731 days, 0:00:00 h ahead of")),
    "two years ahead, no date": (
        731 * DAY_S,
        False,
        0.1,
        steps(),
        Said(19, bars=18, late="731 days, 0:00:00 h behind"),
    ),
    "two years ahead, then right": (731 * DAY_S, True, 0.1, no_battery, Said(19, bars=18)),
    "a slow drift ahead": (0, True, 0.1, drifts, Said(77, bars=59)),  # a minute in truth
    "lost behind a step back": (0, True, 0.1, loses_after_a_step, Said(0, "shutdown", wrong="2:00:00 h behind")),
}


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> RecorderStatus:
    with prepared_recording(tmp_path_factory.mktemp("healthy")) as recording:
        status = Watch(recording).look()
    return replace(status, link=replace(status.link, connected=True, answered=True))


@pytest.mark.parametrize("story", STORIES)
def test_what_is_said_of_a_story(tmp_path: Path, healthy: RecorderStatus, story: str) -> None:
    wrong_s, date, delay_s, happen, expected = STORIES[story]
    world = World(tmp_path, wrong_s, date=date, delay_s=delay_s)
    happen(world)
    claimed_s = sum(end_us - start_us for start_us, end_us in world.claimed()) / 1e6
    causes = {gap.cause for gap in world.coverage().gaps}
    problems = "; ".join(find_problems(replace(healthy, clock=read_clock(world.rig.clock.venue))))
    deleted = world.delete_expired()
    world.end()
    bars = ingestor.read_bars(tmp_path, "1s", fill=True, engine="arrow")
    whole = bars.filter(pc.equal(bars.column("coverage"), 1.0))
    quiet = whole.filter(pc.equal(whole.column("trades"), 0)).num_rows
    wrong = expected.wrong and (
        f"this computer's clock is {expected.wrong} the venue's: set it; "
        "trades are kept, and until then all symbols count as unproven"
    )
    late = expected.late and f"the venue's trades are {expected.late} this computer's clock"
    assert problems == wrong + late
    told = Said(
        round(claimed_s), " ".join(sorted(causes)), whole.num_rows, quiet, world.refused, deleted,
        expected.wrong, expected.late,
    )  # fmt: skip
    assert told == expected


EVENTS = st.one_of(
    st.tuples(st.just("passes"), st.integers(1, 5)),
    st.tuples(st.just("sleep"), st.integers(3, 10_000)),
    st.tuples(st.just("stand_still"), st.integers(1, 5)),
    st.tuples(st.just("set"), st.integers(-100_000, 100_000)),
    st.tuples(st.just("hear"), st.integers(1, 3)),
    st.tuples(st.sampled_from(["lose", "connect"])),
)


@settings(max_examples=int(os.environ.get("CLOCK_STORIES", of_tier(40, 2))), deadline=None)
@given(events=st.lists(EVENTS, max_size=25), date=st.booleans(), wrong_s=st.sampled_from([0, 5, -HOUR_S, 3 * DAY_S]))
@example(events=[("passes", 1), ("set", -8), ("sleep", 3)], date=True, wrong_s=0)
@example(events=[("passes", 1), ("set", 0), ("sleep", 3)], date=False, wrong_s=3 * DAY_S)
@example(
    events=[("passes", 5), ("set", -3404), ("passes", 4), ("lose",), ("passes", 5), ("sleep", 4974)],
    date=False,
    wrong_s=0,
)
@example(events=[("passes", 2), ("lose",), ("connect",), ("hear", 2), ("sleep", 3)], date=False, wrong_s=0)
@example(events=[("passes", 1), ("set", -1), ("stand_still", 1), ("set", 2), ("passes", 1)], date=False, wrong_s=0)
@example(events=[("set", -86401), ("passes", 1), ("passes", 1), ("sleep", 3), ("passes", 1)], date=False, wrong_s=0)
@example(events=[("passes", 1), ("sleep", 3), ("set", -600), ("passes", 1), ("sleep", 599)], date=False, wrong_s=0)
@example(events=[("passes", 1), ("sleep", 30), ("set", -660), ("passes", 1), ("sleep", 659)], date=False, wrong_s=0)
def test_no_recorded_trade_is_blind_and_nothing_is_claimed_unheard(
    events: list[tuple[str] | tuple[str, int]], date: bool, wrong_s: int
) -> None:
    with TemporaryDirectory() as root:
        world = World(Path(root), wrong_s, date=date)
        for name, *arguments in events:
            if name == "hear" and not world.connected:
                continue
            before_us, began_us = world.read().wall_us, world.true_us
            getattr(world, name)(*arguments)
            if name == "stand_still" and world.connected:
                world.heard.append((before_us, world.read().wall_us))
                world.stood.append((began_us, world.true_us))
        world.end()
