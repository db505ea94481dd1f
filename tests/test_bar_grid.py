"""The edges of bars, held against a clock that is simply read at every minute."""

import functools
from bisect import bisect_left, bisect_right
from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pyarrow as pa
import pytest
from requirements import of_tier

from ingestor.dataset.bar_grid import BarGrid, find_pieces, parse_interval

MINUTE_MS = 60_000
INTERVALS = ("1m", "5m", "30m", "1h", "90m", "2h", "4h", "12h", "1d")
NIGHTS = (
    ("UTC", "2026-03-08"),
    ("Asia/Kathmandu", "2026-03-08"),
    ("America/New_York", "2026-06-15"),
    ("America/New_York", "2026-03-08"),
    ("America/New_York", "2026-11-01"),
    ("Australia/Lord_Howe", "2026-04-05"),
    ("Australia/Lord_Howe", "2026-10-04"),
)
"""Those on which the clock is set, by an hour or (on Lord Howe) by half of one, and others."""


def ms(text: str) -> int:
    return round(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


def grid(zone: str, interval: str, day: str) -> BarGrid:
    first_ms = ms(day) - 86_400_000
    return BarGrid(find_pieces(ZoneInfo(zone), first_ms, first_ms + 3 * 86_400_000), parse_interval(interval))


@functools.cache
def wall_clock(zone: str, day: str) -> list[tuple[int, datetime]]:
    """What it shows at every minute from a day before to two days after."""
    minutes = range(ms(day) - 86_400_000, ms(day) + 2 * 86_400_000, MINUTE_MS)
    shown = (datetime.fromtimestamp(at_ms / 1000, UTC).astimezone(ZoneInfo(zone)) for at_ms in minutes)
    return [(at_ms, local.replace(tzinfo=None)) for at_ms, local in zip(minutes, shown, strict=True)]


def edges_by_the_clock(zone: str, interval: str, day: str) -> list[int]:
    """The minutes at which it shows a multiple of the interval, or has passed over one."""
    step = timedelta(milliseconds=parse_interval(interval))
    found: list[int] = []
    before: datetime | None = None
    for at_ms, shown in wall_clock(zone, day):
        multiple = shown - (shown - datetime.combine(shown, time())) % step
        passed_over = before is not None and before < multiple and shown - before > timedelta(minutes=1)
        if multiple == shown or passed_over:
            found.append(at_ms)
        before = shown
    return found


@pytest.mark.parametrize(("zone", "day"), NIGHTS)
@pytest.mark.parametrize("interval", INTERVALS[:: of_tier(1, 8)])
def test_edges_are_where_the_wall_clock_shows_a_multiple(zone: str, interval: str, day: str) -> None:
    expected = edges_by_the_clock(zone, interval, day)
    found = grid(zone, interval, day)
    assert found.edges(ms(day) - 86_400_000, ms(day) + 2 * 86_400_000).to_pylist() == expected
    times = list(range(expected[0], expected[-1], 7 * MINUTE_MS))
    starts = [expected[bisect_right(expected, at_ms) - 1] for at_ms in times]
    assert found.starts(pa.array(times)).to_pylist() == starts
    assert [found.start_of(at_ms) for at_ms in times] == starts
    assert [found.edge_from(at_ms) for at_ms in times] == [expected[bisect_left(expected, at_ms)] for at_ms in times]
    assert found.ends(pa.array(expected[:-1])).to_pylist() == expected[1:]


def test_a_day_is_an_hour_short_or_long_where_the_clock_is_set() -> None:
    new_york = grid("America/New_York", "1d", "2026-03-08")
    start = new_york.start_of(ms("2026-03-08T12:00"))
    assert new_york.edge_from(start + 1) - start == 23 * 3_600_000
    new_york = grid("America/New_York", "1d", "2026-11-01")
    start = new_york.start_of(ms("2026-11-01T12:00"))
    assert new_york.edge_from(start + 1) - start == 25 * 3_600_000


@pytest.mark.parametrize("text", ["7m", "2d", "0s", "5h", "1", "", "-1m", "0.0001ms"])
def test_an_interval_that_does_not_divide_a_day(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_interval(text)


def test_an_interval() -> None:
    assert [parse_interval(text) for text in ("5min", "1H", "1D")] == [
        300_000,
        3_600_000,
        86_400_000,
    ]  # as pandas has it
    assert [parse_interval(text) for text in ("250ms", "1s", "15m", "1h", "1d")] == [
        250, 1000, 900_000, 3_600_000, 86_400_000,
    ]  # fmt: skip
