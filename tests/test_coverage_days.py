"""Which dates of the coverage a destination is given, and when again."""

import math
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from recordings import make_recent

from ingestor.sinks.coverage_days import CoverageDays


@pytest.mark.parametrize("given", range(5))
@pytest.mark.parametrize("now_s", [0.0, math.inf], ids=["at the next ticks", "at the last"])
def test_what_a_segment_brings_is_told_whenever_it_ends(tmp_path: Path, given: int, now_s: float) -> None:
    """After so many ticks, each of which gives one of the recording's three dates while there is one."""
    days = CoverageDays(make_recent(tmp_path / "data").layout, None, None)
    today = datetime.now(UTC).date()
    for _ in range(given):
        list(days.due(0, 0.0))
    days.segment_ended()
    told = [day for _ in range(6) for day, _ in days.due(0, now_s)]
    assert told[-2:] == [today - timedelta(1), today]
    assert list(days.due(0, now_s)) == []


def test_a_table_that_is_ahead_of_the_clock_is_given_the_newest_dates(tmp_path: Path) -> None:
    ahead = datetime.now(UTC) + timedelta(9)
    days = CoverageDays(make_recent(tmp_path / "data").layout, ahead, ahead)
    today = datetime.now(UTC).date()
    days.segment_ended()
    assert {day for _ in range(6) for day, _ in days.due(0, 0.0)} == {today - timedelta(1), today}
