"""What the wall clock is worth: steps, sleeps and drifts of three clocks, and the venue's word on the time."""

from email.utils import formatdate

import pytest

from ingestor.capture.wall_clock import Reading, Step, VenueTime, WallClock

NOON_US = 1_795_000_000_000_000
SECOND_US = 1_000_000
HOUR_US = 3600 * SECOND_US
DAY_US = 24 * HOUR_US

LIVED: dict[str, tuple[tuple[int, int, int], Step | None]] = {
    "time passed": ((1, 1, 1), None),
    "nobody looked for ten minutes: a standstill": ((600, 600, 600), None),
    "set forward": ((36_001, 1, 1), Step(36_000 * SECOND_US, 0, NOON_US)),
    "set back": ((-7199, 1, 1), Step(-7200 * SECOND_US, 0, NOON_US)),
    "set by less than two seconds": ((3, 1, 1), None),
    "slept": ((3601, 1, 3601), Step(3600 * SECOND_US, 3600 * SECOND_US, NOON_US)),
    "slept, and set forward": ((3611, 1, 3601), Step(3610 * SECOND_US, 3600 * SECOND_US, NOON_US)),
    "slept, and the clock slept, too": ((1, 1, 3601), Step(0, 3600 * SECOND_US, NOON_US)),
}


@pytest.mark.parametrize("story", LIVED)
def test_what_happened_between_two_readings(story: str) -> None:
    passed_s, expected = LIVED[story]
    wall_us, monotonic_us, boottime_us = (seconds * SECOND_US for seconds in passed_s)
    clock = WallClock(Reading(NOON_US, 5, 9))
    after = Reading(NOON_US + wall_us, 5 + monotonic_us, 9 + boottime_us)
    assert clock.find_step(after) == expected
    later = Reading(after.wall_us + SECOND_US, after.monotonic_us + SECOND_US, after.boottime_us + SECOND_US)
    assert clock.find_step(later) is None, "it is told once"


def test_a_clock_that_is_slewed_never_steps() -> None:
    clock = WallClock(Reading(NOON_US, 0, 0))
    readings = (Reading(NOON_US + at * (SECOND_US + 500), at * SECOND_US, at * SECOND_US) for at in range(10_000))
    assert [clock.find_step(reading) for reading in readings] == [None] * 10_000


def test_small_steps_back_change_no_order_and_are_one_step_together() -> None:
    clock = WallClock(Reading(NOON_US, 0, 0))
    wrong_us, shown = 0, []
    for second in range(1, 6):
        wrong_us -= 1_500_000
        at_us = second * SECOND_US
        step = clock.find_step(Reading(NOON_US + at_us + wrong_us, at_us, at_us))
        shown.append(clock.shown_us - NOON_US)
    assert step == Step(-2_500_000, 0, NOON_US)
    assert shown == [0, 0, 0, 0, -2_500_000]


def date(us: int) -> str:
    return formatdate(us / 1e6, usegmt=True)


TOLD: dict[str, tuple[str | None, list[int], int]] = {
    "nothing": (None, [], 0),
    "a prompt feed": (None, [80_000] * 5, 0),
    "a delayed feed": (date(NOON_US), [900 * SECOND_US] * 5, 0),
    "a delayed feed without a date": (None, [900 * SECOND_US] * 5, 0),
    "ten hours behind, by the date": (date(NOON_US + 10 * HOUR_US), [], -10 * HOUR_US),
    "ten hours behind, by the trades": (None, [-10 * HOUR_US] * 5, -10 * HOUR_US),
    "two years ahead, by the date": (date(NOON_US - 731 * DAY_US), [731 * DAY_US] * 5, 731 * DAY_US),
    "a date that the trades contradict": (date(NOON_US - HOUR_US), [90_000] * 5, 0),
    "one trade from the future": (None, [80_000, 80_000, -20 * HOUR_US, 80_000], 0),
    "one late trade, the others ahead": (None, [-HOUR_US, HOUR_US, -HOUR_US, -HOUR_US], -HOUR_US),
    "no date": ("yesterday", [], 0),
    "a hostile date": ("Fri, 31 Dec 99999 23:59:59 GMT", [], 0),
}


@pytest.mark.parametrize("story", TOLD)
def test_our_clock_against_the_venues(story: str) -> None:
    told, newest_us, wrong_us = TOLD[story]
    venue = VenueTime()
    venue.saw_date(told, NOON_US)
    for one in newest_us:
        venue.saw_trades(one)
    assert venue.wrong_us == wrong_us
    if wrong_us:
        venue.step(-wrong_us, NOON_US)
        assert venue.wrong_us == 0, "set right"


AHEAD: dict[str, tuple[str | None, list[int], list[list[int]], list[int]]] = {
    "the date agrees": (date(NOON_US + 3 * DAY_US), [], [[-3 * DAY_US]], [3 * DAY_US]),
    "the date says our clock is right": (date(NOON_US), [], [[-3 * DAY_US] * 3], [0]),
    "three trades agree, and there is no date": (None, [], [[-3 * DAY_US], [-3 * DAY_US] * 2], [0, 3 * DAY_US]),
    "they don't agree": (None, [], [[-3 * DAY_US, -9 * DAY_US, -3 * DAY_US]], [0]),
    "others fit our clock": (None, [80_000], [[-3 * DAY_US] * 3], [0]),
}


@pytest.mark.parametrize("story", AHEAD)
def test_trades_that_are_all_ahead(story: str) -> None:
    told, newest_us, blocks, believed = AHEAD[story]
    venue = VenueTime()
    venue.saw_date(told, NOON_US)
    for one in newest_us:
        venue.saw_trades(one)
    assert [venue.saw_ahead(block, NOON_US) for block in blocks] == believed


@pytest.mark.parametrize(
    ("by_us", "believed"), [(0, 3 * DAY_US), (DAY_US, 2 * DAY_US), (-DAY_US, 4 * DAY_US), (3 * DAY_US, 0)]
)
def test_trades_ahead_are_known_after_a_sleep_and_a_step_that_leaves_the_clock_wrong(by_us: int, believed: int) -> None:
    venue = VenueTime()
    venue.saw_ahead([-3 * DAY_US] * 2, NOON_US)
    venue.step(by_us, NOON_US)
    assert venue.saw_ahead([-3 * DAY_US + by_us], NOON_US + by_us + SECOND_US) == believed


def test_what_came_before_our_clock_was_set_is_judged_by_what_was_known_then() -> None:
    """A block waits a moment in the Buffer, and the clock may be set meanwhile."""
    venue = VenueTime()
    venue.saw_date(date(NOON_US + 3 * DAY_US), NOON_US)
    last_us = NOON_US + SECOND_US
    venue.step(3 * DAY_US, last_us)
    assert venue.saw_ahead([-3 * DAY_US] * 3, last_us) == 3 * DAY_US
    assert venue.saw_ahead([-9 * DAY_US] * 3, last_us) == 0
    assert venue.saw_ahead([-3 * DAY_US] * 3, last_us + 3 * DAY_US) == 0, "from the future, by a clock that is right"
