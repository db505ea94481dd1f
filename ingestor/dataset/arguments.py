"""Arguments of the analysis API: roots, names, words and times as a caller writes them, checked."""

import os
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, tzinfo
from datetime import time as time_of_day
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from ingestor.errors import ConfigError
from ingestor.store import locate_root
from ingestor.texts import parse_duration

if TYPE_CHECKING:
    from numpy import datetime64

    Time = str | date | datetime | datetime64
else:
    Time = str | date | datetime

Engine = Literal["pandas", "arrow"]
Roots = str | Path | Sequence[str | Path]
"""The directory of a recording or the address of its copy (`s3://bucket/path`), or a list of those that several
recorders of one venue made.
"""
Names = str | Sequence[str]
"""One name, or several in whatever holds text: a list, a set, a Series, an array."""


def find_root(root: Roots) -> Path:
    """The directory of a recording, or its place at an address. Raises NotARecording for an address that can't be read,
    ValueError for what is neither.
    """
    if not isinstance(root, str | os.PathLike):
        raise ValueError(f"{root!r} is no root: give the directory of one recording")  # noqa: TRY004  see find_names
    return locate_root(root)


def find_roots(root: Roots) -> list[Path]:
    """The directory of a recording, or those of several recorders of one venue. Raises as `find_root`."""
    if isinstance(root, str | Path) or not isinstance(root, list | tuple):
        return [find_root(root)]
    if not root:
        raise ValueError("no root: give the directory of a recording, or a list of them")
    return [find_root(one) for one in root]


def find_names(names: Names | None, what: str = "symbol") -> tuple[str, ...] | None:
    """The names that a caller gives; text is one name. None is all. Raises ValueError with a sentence."""
    if names is None:
        return None
    if isinstance(names, str):
        return (str(names),)
    if isinstance(names, bytes) or not isinstance(names, Iterable):
        raise ValueError(f"{names!r} is no {what}: write it as text, or a list of texts")  # noqa: TRY004  as below
    found = tuple(names)
    for name in found:
        if not isinstance(name, str):
            raise ValueError(f"{name!r} is no {what}: each must be text")  # noqa: TRY004  one error for all arguments
    return tuple(map(str, found))


def check_engine(engine: str) -> None:
    """Before anything is read. Raises ValueError for another name, ConfigError where pandas is missing."""
    if engine == "polars":
        raise ValueError("engine must be 'pandas' or 'arrow', not 'polars': polars.DataFrame takes what 'arrow' gives")
    check_word("engine", engine, ("pandas", "arrow"))
    if engine == "pandas":
        try:
            import pandas  # noqa: F401, ICN001  is it there?
        except ImportError:
            raise ConfigError(
                "pandas is not installed: pip install 'finnhub-ingestor[analysis]', or ask for engine='arrow'"
            ) from None


def check_word(argument: str, word: str, known: tuple[str, ...]) -> None:
    """Raises ValueError where an argument that takes one of some words is given another."""
    if word not in known:
        raise ValueError(f"{argument} must be {' or '.join(map(repr, known))}, not {word!r}")


"""Text as `parse_time` reads it, a date, a datetime, a pandas Timestamp, or a numpy datetime64, which never has a zone;
the others with or without one.
"""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)
_DAY = timedelta(days=1)
_DAYS_MAX = 4_000_000
FOREVER_US = 1 << 62
"""Later than any time of a recording."""
_CLOCK = re.compile(r"\d{1,2}:\d{2}(:\d{2}(\.\d{1,6})?)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Span:
    """A half-open interval in ms since 1970; None is open."""

    start_ms: int | None
    end_ms: int | None

    @property
    def days(self) -> tuple[date, date]:
        """The first and the last UTC date of which any moment may be in it."""
        first = date.min.toordinal() if self.start_ms is None else _ordinal(self.start_ms)
        last = date.max.toordinal() if self.end_ms is None else _ordinal(self.end_ms - 1)
        return date.fromordinal(first), date.fromordinal(last)

    @property
    def bounds_us(self) -> tuple[int, int]:
        """Start and end in µs; an open one lies beyond all times of a recording."""
        return (self.start_ms or 0) * 1000, FOREVER_US if self.end_ms is None else self.end_ms * 1000

    def holds_all_of(self, day: date) -> bool:
        """Whether every moment of this UTC date is in it."""
        first_ms = day_start_ms(day)
        return (self.start_ms is None or first_ms >= self.start_ms) and (
            self.end_ms is None or first_ms + 86_400_000 <= self.end_ms
        )


EVER = Span(None, None)


def find_zone(name: str) -> tzinfo:
    """The zone of this name. Raises ValueError with a sentence."""
    if name == "UTC":
        return UTC  # needs no time zone database
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError, TypeError):
        raise ValueError(f"no time zone {name!r} here: write it like America/New_York") from None


def find_span(start: Time | None, end: Time | None, tz: str) -> Span:
    """The interval from `start` up to but without `end`; a time without a zone is in `tz`. Raises ValueError."""
    zone = find_zone(tz)
    span = Span(None if start is None else _to_ms(start, zone), None if end is None else _to_ms(end, zone))
    if span.start_ms is not None and span.end_ms is not None and span.start_ms > span.end_ms:
        raise ValueError(f"start must be before end: {start} is after {end}")
    return span


def find_time(time: Time, tz: str = "UTC") -> datetime:
    """The moment that a caller means, to the millisecond; without a zone it is in `tz`. Raises ValueError."""
    try:
        return _EPOCH + _to_ms(time, find_zone(tz)) * _MS
    except OverflowError:
        raise ValueError(f"{time} is no time that can be recorded") from None


def parse_time(text: str, zone: tzinfo, now: datetime) -> datetime:
    """`2026-11-20`, `2026-11-20T14:30`, `2026-11-20T14:30:05.250Z`, `15:30` (today), `today` and `yesterday` (their
    midnight), `-1h` (before `now`) or `now`; in `zone` where it names none. Raises ValueError with a sentence.
    """
    word = text.strip()
    today = now.astimezone(zone).date()
    try:
        if word == "now":
            return now
        if word in ("today", "yesterday"):
            return datetime.combine(today - _DAY * (word == "yesterday"), time_of_day(), zone)
        if re.match(r"-\d", word, re.ASCII):
            return now - timedelta(seconds=parse_duration(word[1:]))
        if _CLOCK.fullmatch(word):
            clock = f"0{word}" if word[1] == ":" else word
            return datetime.combine(today, time_of_day.fromisoformat(clock), zone)
        found = datetime.fromisoformat(word)
        return found if found.tzinfo else datetime.combine(found.date(), found.time(), zone)
    except (ValueError, OverflowError):
        raise ValueError(
            f"{text!r} is no time: write 2026-11-20, 2026-11-20T14:30, 2026-11-20T14:30:00Z, 15:30, today, yesterday"
            " or -1h"
        ) from None


def to_span(bounds: tuple[datetime | None, datetime | None]) -> Span:
    """The interval between two aware times; None is open."""
    start, end = bounds
    return Span(None if start is None else _to_ms(start, UTC), None if end is None else _to_ms(end, UTC))


def day_start_ms(day: date) -> int:
    """Midnight UTC of this date, in ms since 1970."""
    return (day - _EPOCH.date()) // _DAY * 86_400_000


def utc_date(ms: int) -> date:
    """The UTC date of a moment in ms since 1970."""
    return _EPOCH.date() + timedelta(days=ms // 86_400_000)


def _ordinal(ms: int) -> int:
    """The number of a moment's UTC date; of one before or after all dates the first or the last."""
    return min(max(_EPOCH.toordinal() + ms // 86_400_000, date.min.toordinal()), date.max.toordinal())


def _to_ms(time: Time, zone: tzinfo) -> int:
    """The first whole millisecond at or after this time: for rows in ms, `>=` and `<` then mean what they say."""
    if isinstance(time, str):
        time = parse_time(time, zone, datetime.now(UTC))
    numpy = sys.modules.get("numpy")  # who has no numpy gives none of its times
    if numpy is not None and isinstance(time, numpy.datetime64):
        time = _from_numpy(time)
    if not isinstance(time, date):
        why = f"{time!r} is no time: give text such as 2026-11-20T14:30, a date, a datetime or a Timestamp"
        if isinstance(time, int | float) and not isinstance(time, bool):
            why = (
                f"{time} is a number, and nobody can tell in which unit: "
                f"write pd.Timestamp({time}, unit='ms', tz='UTC') or datetime.fromtimestamp(…, UTC)"
            )
        raise ValueError(why)  # noqa: TRY004  as for every argument that can't be used
    if time != time:  # noqa: PLR0124  NaT, a datetime by its type
        raise ValueError("NaT is no time: leave the bound out, or drop what is missing")
    if not isinstance(time, datetime):
        time = datetime(time.year, time.month, time.day)  # noqa: DTZ001  its zone follows
    try:
        if time.tzinfo is None:
            time = time.replace(tzinfo=zone)
        return -((_EPOCH - time) // _MS)
    except OverflowError:
        raise ValueError(f"{time} is no time that can be recorded") from None


def _from_numpy(time: Any) -> datetime:
    """Raises ValueError for NaT, and for what no datetime holds."""
    if time != time:  # noqa: PLR0124  NaT
        raise ValueError("NaT is no time: leave the bound out, or drop what is missing")
    if abs(int(time.astype("datetime64[D]").astype("int64"))) > _DAYS_MAX:  # in µs it would be another time
        raise ValueError(f"{time} is no time that can be recorded")
    whole = time.astype("datetime64[us]")
    try:
        at = datetime(1970, 1, 1) + timedelta(microseconds=int(whole.astype("int64")))  # noqa: DTZ001  it has no zone
    except OverflowError:
        raise ValueError(f"{time} is no time that can be recorded") from None
    return at + timedelta(microseconds=1) if whole < time else at
