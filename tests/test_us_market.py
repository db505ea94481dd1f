"""Holidays and early closes of US stocks, against the exchange's own yearly lists."""

from datetime import date
from pathlib import Path

import pytest

from ingestor.us_market import Calendar, Hours, early_closes, hours_closing_at, is_us_symbol, parse_hours, read_calendar

CALENDARS = {
    1998: ("01-01 01-19 02-16 04-10 05-25 07-03 09-07 11-26 12-25", "11-27 12-24"),
    2001: ("01-01 01-15 02-19 04-13 05-28 07-04 09-03 09-11 09-12 09-13 09-14 11-22 12-25", "07-03 11-23 12-24"),
    2002: ("01-01 01-21 02-18 03-29 05-27 07-04 09-02 11-28 12-25", "07-05 11-29 12-24"),
    2012: ("01-02 01-16 02-20 04-06 05-28 07-04 09-03 10-29 10-30 11-22 12-25", "07-03 11-23 12-24"),
    2013: ("01-01 01-21 02-18 03-29 05-27 07-04 09-02 11-28 12-25", "07-03 11-29 12-24"),
    2018: ("01-01 01-15 02-19 03-30 05-28 07-04 09-03 11-22 12-05 12-25", "07-03 11-23 12-24"),
    2021: ("01-01 01-18 02-15 04-02 05-31 07-05 09-06 11-25 12-24", "11-26"),
    2022: ("01-17 02-21 04-15 05-30 06-20 07-04 09-05 11-24 12-26", "11-25"),
    2024: ("01-01 01-15 02-19 03-29 05-27 06-19 07-04 09-02 11-28 12-25", "07-03 11-29 12-24"),
    2025: ("01-01 01-09 01-20 02-17 04-18 05-26 06-19 07-04 09-01 11-27 12-25", "07-03 11-28 12-24"),
    2026: ("01-01 01-19 02-16 04-03 05-25 06-19 07-03 09-07 11-26 12-25", "11-27 12-24"),
    2027: ("01-01 01-18 02-15 03-26 05-31 06-18 07-05 09-06 11-25 12-24", "11-26"),
    2028: ("01-17 02-21 04-14 05-29 06-19 07-04 09-04 11-23 12-25", "07-03 11-24"),
}


@pytest.mark.parametrize("year", CALENDARS)
def test_a_year(year: int) -> None:
    closed, short = ({date.fromisoformat(f"{year}-{day}") for day in text.split()} for text in CALENDARS[year])
    odd = dict(Calendar().odd_days(date(year, 1, 1), date(year, 12, 31)))
    assert {day for day, hours in odd.items() if hours is None} == closed
    assert {day for day, hours in odd.items() if hours == hours_closing_at(13 * 60)} == short
    assert odd.keys() == closed | short


def test_an_ordinary_day_and_a_weekend() -> None:
    assert Calendar().hours(date(2026, 11, 20)) == Hours()
    assert Calendar().hours(date(2026, 11, 21)) is None
    assert hours_closing_at(13 * 60).late == 17 * 60
    assert early_closes(1990)[date(1990, 12, 24)] == 14 * 60


@pytest.mark.parametrize("text", ["lunch", "09:30", "16:00-09:30", "9-25", "09:30-99:00", "a:b-c:d"])
def test_hours_that_are_none(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  whatever it says
        parse_hours(text)


@pytest.mark.parametrize(
    ("stored", "told"),
    [
        ('["2026-12-25"]', {date(2026, 12, 25): None}),  # as earlier versions wrote
        ('{"2026-11-27": "09:30-13:00", "2026-12-25": ""}',
         {date(2026, 11, 27): hours_closing_at(780), date(2026, 12, 25): None}),
        ("[[]]", {}), ("7", {}), ("{", {}), ('{"2026-11-27": 5}', {}), ("[" * 100_000, {}), (None, {}),
    ],
)  # fmt: skip
def test_what_is_stored(tmp_path: Path, stored: str | None, told: dict[date, Hours | None]) -> None:
    path = tmp_path / "holidays.json"
    if stored is not None:
        path.write_text(stored)
    assert read_calendar(path) == Calendar(told)


@pytest.mark.parametrize(
    ("symbol", "expected"),
    [("AAPL", True), ("BRK.B", True), ("BINANCE:BTCUSDT", False), ("OANDA:EUR_USD", False), ("7203.T", False),
     ("VOD.L", False), ("SAP.DE", False), ("BF.A", True)],
)  # fmt: skip
def test_whose_hours(symbol: str, expected: bool) -> None:
    assert is_us_symbol(symbol) is expected
