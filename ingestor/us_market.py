"""Calendar of US stocks: holidays, early closes and hours, by rule, for any year from 1990 on.

The rules are those of the New York Stock Exchange (Rule 7.2, and its yearly calendar of holidays and early closings, at
nyse.com/markets/hours-calendars); the days on which it closed for other reasons are listed one by one. What a venue
says of a day (`tradingHour`) stands above the rule.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta
from functools import cache
from pathlib import Path

import structlog

from ingestor.errors import DamagedFile
from ingestor.layout import read_small

log = structlog.get_logger()

_DAY = timedelta(days=1)
_MONDAY, _THURSDAY, _SATURDAY, _SUNDAY = 0, 3, 5, 6

OPENS = 9 * 60 + 30
CLOSES = 16 * 60
EARLY = 4 * 60
LATE = 20 * 60
OVERNIGHT = 20 * 60
"""Where stocks trade at night: from then on the evening before a trading day until that day's early trading."""
_CLOSES_EARLY = 13 * 60
_LATE_AFTER_EARLY_CLOSE = 17 * 60

CLOSED = frozenset(
    date.fromisoformat(day)
    for day in (
        "1994-04-27",  # funeral of President Nixon
        "2001-09-11", "2001-09-12", "2001-09-13", "2001-09-14",  # attacks
        "2004-06-11",  # mourning for President Reagan
        "2007-01-02",  # mourning for President Ford
        "2012-10-29", "2012-10-30",  # hurricane Sandy
        "2018-12-05",  # mourning for President G. H. W. Bush
        "2025-01-09",  # mourning for President Carter
    )
)  # fmt: skip
"""Days off that no rule gives."""

SHORT = {
    date(1990, 12, 24): 14 * 60, date(1991, 12, 24): 14 * 60, date(1992, 12, 24): 14 * 60,  # 13:00 only since 1993
    date(1992, 11, 27): 14 * 60,
    date(1996, 1, 8): 14 * 60,  # a blizzard; it opened at 11:00
    date(1997, 10, 27): 15 * 60 + 30,  # circuit breakers
    date(1997, 12, 26): 13 * 60,
    date(1999, 12, 31): 13 * 60,
    date(2003, 12, 26): 13 * 60,
}  # fmt: skip
"""Early closes that no rule gives, in minutes since midnight."""


_ABROAD = frozenset(
    [
        "AS", "AT", "AX", "BA", "BC", "BD", "BE", "BK", "BO", "BR", "CA", "CN", "CO", "CR", "CS", "DB", "DE", "DU", "F",
        "HA", "HE", "HK", "HM", "IC", "IR", "IS", "JK", "JO", "KL", "KQ", "KS", "KW", "L", "LN", "LS", "MC", "ME", "MI",
        "MT", "MU", "MX", "NE", "NL", "NS", "NZ", "OL", "PA", "PM", "PR", "PS", "QA", "RG", "RO", "SA", "SC", "SG",
        "SI", "SN", "SR", "SS", "ST", "SW", "SX", "SZ", "T", "TA", "TG", "TL", "TO", "TW", "TWO", "V", "VI", "VN", "VS",
        "WA", "XA",
    ]
)  # fmt: skip
"""Finnhub's codes of other exchanges, as suffixes: `7203.T`, `VOD.L`. `BRK.B` is a class of shares."""


def is_us_symbol(symbol: str) -> bool:
    """Whether these hours apply to a symbol: no prefix (`BINANCE:BTCUSDT`), and no suffix of another exchange."""
    return ":" not in symbol and symbol.rpartition(".")[2] not in _ABROAD if "." in symbol else ":" not in symbol


@dataclass(frozen=True, slots=True)
class Hours:
    """A trading day in minutes since midnight, New York."""

    early: int = EARLY
    opens: int = OPENS
    closes: int = CLOSES
    late: int = LATE


def hours_closing_at(closes: int, opens: int = OPENS) -> Hours:
    """Of a day that closes then: after an early close late trading ends at 17:00."""
    return Hours(opens=opens, closes=closes, late=LATE if closes >= CLOSES else max(closes, _LATE_AFTER_EARLY_CLOSE))


@dataclass(frozen=True, slots=True)
class Calendar:
    """The rules, and above them what a venue has told of single days; None: closed."""

    told: Mapping[date, Hours | None] = field(default_factory=dict)

    def hours(self, day: date) -> Hours | None:
        """None: no trading."""
        if day in self.told:
            return self.told[day]
        if day.weekday() >= _SATURDAY or day in holidays(day.year):
            return None
        closes = early_closes(day.year).get(day, CLOSES)
        return hours_closing_at(closes)

    def odd_days(self, first: date, last: date) -> Iterator[tuple[date, Hours | None]]:
        """The weekdays from `first` to `last` that are not as any other."""
        for year in range(first.year, last.year + 1):
            days = holidays(year) | early_closes(year).keys() | {day for day in self.told if day.year == year}
            yield from ((day, self.hours(day)) for day in sorted(days) if first <= day <= last)


@cache
def holidays(year: int) -> frozenset[date]:
    """The weekdays of a year on which the exchange is closed all day."""
    end_of_may = date(year, 5, 31)
    days = {
        _nth(year, 2, _MONDAY, 3),  # Washington's birthday
        _easter(year) - 2 * _DAY,  # Good Friday
        end_of_may - timedelta(end_of_may.weekday()),  # its last Monday: Memorial Day
        _observed(date(year, 7, 4)),
        _nth(year, 9, _MONDAY, 1),  # Labor Day
        _nth(year, 11, _THURSDAY, 4),  # Thanksgiving
        _observed(date(year, 12, 25)),
    }
    new_year = date(year, 1, 1)
    if new_year.weekday() != _SATURDAY:  # it is not made up for on the last day of the year before
        days.add(_observed(new_year))
    if year >= 1998:
        days.add(_nth(year, 1, _MONDAY, 3))  # Martin Luther King's birthday
    if year >= 2022:
        days.add(_observed(date(year, 6, 19)))  # Juneteenth
    return frozenset(days | {day for day in CLOSED if day.year == year})


@cache
def early_closes(year: int) -> Mapping[date, int]:
    """The days of a year on which trading ends early, and when."""
    thanksgiving, independence = _nth(year, 11, _THURSDAY, 4), date(year, 7, 4)
    days = {day for day in (date(year, 12, 24),) if day.weekday() <= _THURSDAY}
    if year >= 1992:
        days.add(thanksgiving + _DAY)
    before = independence - _DAY
    if year >= 1995 and independence.weekday() not in (_MONDAY, _SATURDAY, _SUNDAY):
        days.add(before)
    if 1996 <= year < 2013 and independence.weekday() == _THURSDAY:
        days.discard(before)  # in those years the Friday after it was short instead
        days.add(independence + _DAY)
    found = dict.fromkeys(days - holidays(year), _CLOSES_EARLY)
    return found | {day: closes for day, closes in SHORT.items() if day.year == year}


def parse_hours(text: str) -> Hours | None:
    """A venue's `tradingHour`: `09:30-13:00`; nothing means closed. Raises ValueError."""
    if not text.strip():
        return None
    opens, closes = (int(hour) * 60 + int(minute) for hour, minute in (part.split(":") for part in text.split("-")))
    if not 0 <= opens < closes <= 24 * 60:
        raise ValueError(f"no trading hours: {text[:32]!r}")
    return hours_closing_at(closes, opens)


def _nth(year: int, month: int, weekday: int, number: int) -> date:
    first = date(year, month, 1)
    return first + timedelta((weekday - first.weekday()) % 7 + 7 * (number - 1))


def _observed(day: date) -> date:
    """Saturday's holiday is kept on Friday, Sunday's on Monday."""
    return day + timedelta({_SATURDAY: -1, _SUNDAY: 1}.get(day.weekday(), 0))


def _easter(year: int) -> date:
    """Easter Sunday (the anonymous Gregorian algorithm)."""
    a, b, c = year % 19, year // 100, year % 100
    d, e = divmod(b, 4)
    g = (8 * b + 13) // 25
    h = (19 * a + b - d - g + 15) % 30
    i, k = divmod(c, 4)
    n = (32 + 2 * e + 2 * i - h - k) % 7
    m = (a + 11 * h + 22 * n) // 451
    month, day = divmod(h + n - 7 * m + 114, 31)
    return date(year, month, day + 1)


def read_calendar(path: Path) -> Calendar:
    """The rules, and what a venue has told of single days as far as this file has it: a day and its `tradingHour` each.

    A list of days, as earlier versions wrote, holds those that are closed. What can't be read says nothing.
    """

    def parse(content: bytes) -> Calendar:
        stored = json.loads(content)
        told = stored if isinstance(stored, dict) else dict.fromkeys(stored, "")
        return Calendar({date.fromisoformat(day): parse_hours(hours) for day, hours in told.items()})

    try:
        return read_small(path, parse)
    except FileNotFoundError:
        return Calendar()
    except DamagedFile as error:  # the venue is asked again
        log.warning("holidays.unreadable", error=str(error))
        return Calendar()
