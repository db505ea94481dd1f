"""When a segment closes. Pure: the clock, the first row's time, the size and the segment's place in its run."""

from datetime import timedelta

import pytest
from journals import NOON

from ingestor.journal.writer import Rotation

RULE = Rotation(age_s=900, size=1000)


@pytest.mark.parametrize(("index", "age_s"), [(0, 10), (1, 60), (2, 300), (3, 900), (50, 900)])
def test_the_first_segments_close_early(index: int, age_s: float) -> None:
    assert not RULE.due(NOON + timedelta(seconds=age_s - 0.001), NOON, 1, index)
    assert RULE.due(NOON + timedelta(seconds=age_s), NOON, 1, index)


def test_an_age_below_the_first_ages_stands() -> None:
    rule = Rotation(age_s=5, size=1000)
    assert rule.due(NOON + timedelta(seconds=5), NOON, 1, 0)


def test_size_closes() -> None:
    assert not RULE.due(NOON, NOON, 999, 9)
    assert RULE.due(NOON, NOON, 1000, 9)


def test_midnight_parts_the_days() -> None:
    last = NOON.replace(hour=23, minute=59, second=59, microsecond=999_999)
    assert not RULE.due(last, last, 1, 9)
    assert RULE.due(last + timedelta(microseconds=1), last, 1, 9)


def test_a_clock_that_steps_back_closes() -> None:
    assert RULE.due(NOON - timedelta(seconds=900), NOON, 1, 9)
    assert not RULE.due(NOON - timedelta(seconds=899), NOON, 1, 9)
