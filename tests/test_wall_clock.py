"""Steps of the wall clock against the monotonic one."""

import pytest

from ingestor.capture.wall_clock import WallClock

NOON_US = 1_795_000_000_000_000
SECOND_US = 1_000_000


@pytest.mark.parametrize("by_us", [3600 * SECOND_US, -3600 * SECOND_US, 2_000_001])
def test_a_step_is_told_once(by_us: int) -> None:
    clock = WallClock(NOON_US, 50.0)
    assert clock.find_step(NOON_US + SECOND_US, 51.0) is None
    assert clock.find_step(NOON_US + 2 * SECOND_US + by_us, 52.0) == by_us
    assert clock.find_step(NOON_US + 3 * SECOND_US + by_us, 53.0) is None


def test_a_clock_that_is_slewed_never_steps() -> None:
    clock = WallClock(NOON_US, 0.0)
    assert [clock.find_step(NOON_US + at * (SECOND_US + 500), float(at)) for at in range(10_000)] == [None] * 10_000


def test_time_that_nobody_looked_is_no_step() -> None:
    clock = WallClock(NOON_US, 0.0)
    assert clock.find_step(NOON_US + 600 * SECOND_US, 600.0) is None
