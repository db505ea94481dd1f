"""What a recording claims while clocks are set, sleep, stand still or are wrong: nothing that was not lived and seen.

The parts of the reader and of the recorder run here in one thread, on clocks that a story moves. Each story is a line
of a table; random ones follow.
"""

from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path

import pytest
from recorders import blind_rows, make_rig

from ingestor.capture.wall_clock import Reading
from ingestor.coverage import Coverage, find_coverage

START_US = 1_795_000_000_000_000
SECOND_US = 1_000_000
HOUR_S = 3600
DAY_S = 24 * HOUR_S
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
            self.rig.clock.opened(formatdate(self.true_us / 1e6, usegmt=True) if self.date else None)
            self.life = self.rig.session._connection_log.begin(self.connection, self.rig.clock.now_us())
            self.rig.ledger.record("symbols.requested", connection=self.connection, symbols=[SYMBOL])

    def lose(self) -> None:
        if self.connected:
            self.connected = False
            self.rig.session._connection_log.close(self.life, self.rig.session._heard_us(self.life))

    def passes(self, seconds: int, drift_s: float = 0, *, quiet: bool = False) -> None:
        """Time, second by second, in each of which the clock is looked at and a trade comes."""
        for _ in range(seconds):
            before_us = self.read().wall_us
            self.stand_still(1)
            self.wrong_us += round(drift_s * SECOND_US)
            self.rig.clock.now_us()
            self.rig.clock.doubt()
            if self.connected:
                if not quiet:
                    self.hear(1)
                self.heard.append((before_us, self.read().wall_us))

    def hear(self, trades: int) -> None:
        """Frames come, and are recorded."""
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
        self.rig.clock.now_us()

    def set(self, wrong_s: float) -> None:
        self.stand_still(0.001)
        self.wrong_us = round(wrong_s * SECOND_US)

    def coverage(self) -> Coverage:
        return find_coverage(self.rig.facts(), journaled_us=self.life.last_frame_us)

    def claimed(self) -> list[tuple[int, int]]:
        return [(one.start_us, one.end_us) for one in self.coverage().intervals(SYMBOL) if one.state == "recorded"]

    def end(self) -> None:
        self.rig.recorder._keeper.sync()
        assert blind_rows(self.rig) == [], "a recorded trade lies in a blind span"
        refused = self.frames - self.rig.recorder.counts.trades
        assert refused <= (0 if self.date else 2), "without a date it takes three trades to know that it is the clock"
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


class Said:
    """What is told of a story: seconds claimed, the causes of blindness, and by how many seconds the clock is wrong."""

    def __init__(self, claimed_s: int, causes: str = "", wrong_s: int = 0) -> None:
        self.claimed_s, self.causes, self.wrong_s = claimed_s, causes, wrong_s


STORIES: dict[str, tuple[float, bool, float, Callable[[World], None], Said]] = {
    # our clock at the start, whether the venue tells a date, delay of the feed, what happens, what is said of it
    "nothing": (0, True, 0.1, steps(), Said(19)),
    "a delayed feed": (0, True, 900, steps(), Said(19)),
    "no battery, set by NTP": (-10 * HOUR_S, True, 0.1, no_battery, Said(19, "clock")),
    "no battery, set by NTP, no date": (-10 * HOUR_S, False, 0.1, no_battery, Said(19, "clock")),
    "no battery, a delayed feed": (-10 * HOUR_S, True, 900, no_battery, Said(19, "clock")),
    "a sleep with frames waiting": (0, True, 0.1, sleeps, Said(39, "sleep")),
    "a standstill": (0, True, 0.1, stands_still, Said(639)),
    "set back, and right again": (0, True, 0.1, steps(-2 * HOUR_S, 0), Said(38, "clock", 0)),
    "set forward": (0, True, 0.1, steps(HOUR_S), Said(19, "clock", HOUR_S)),
    "set forward by mistake, and right again": (0, True, 0.1, steps(60, 0), Said(38, "clock")),
    "set back": (0, False, 0.1, steps(-HOUR_S), Said(0, "", -HOUR_S)),  # the true time is shown again
    "three days behind": (-3 * DAY_S, True, 0.1, steps(), Said(0, "", -3 * DAY_S)),
    "three days behind, no date": (-3 * DAY_S, False, 0.1, steps(), Said(0, "", -3 * DAY_S)),
    "three days ahead": (3 * DAY_S, True, 0.1, steps(), Said(0, "", 3 * DAY_S)),
    "two years behind": (-731 * DAY_S, True, 0.1, steps(), Said(0, "", -731 * DAY_S)),
    "two years ahead": (731 * DAY_S, True, 0.1, steps(), Said(0, "", 731 * DAY_S)),
    "two years ahead, then right": (731 * DAY_S, True, 0.1, no_battery, Said(19, "")),
    "a slow drift ahead": (0, True, 0.1, drifts, Said(77)),  # a minute by our clock
    "lost behind a step back": (0, True, 0.1, loses_after_a_step, Said(0, "shutdown", -2 * HOUR_S)),
}


@pytest.mark.parametrize("story", STORIES)
def test_what_is_said_of_a_story(tmp_path: Path, story: str) -> None:
    wrong_s, date, delay_s, happen, said = STORIES[story]
    world = World(tmp_path, wrong_s, date=date, delay_s=delay_s)
    happen(world)
    claimed_s = sum(end_us - start_us for start_us, end_us in world.claimed()) / 1e6
    causes = {gap.cause for gap in world.coverage().gaps}
    clock_wrong_s = world.rig.clock.venue.wrong_us / 1e6
    world.end()
    assert (abs(claimed_s - said.claimed_s) <= 2, causes) == (True, set(said.causes.split()))
    assert abs(clock_wrong_s - said.wrong_s) <= 1
