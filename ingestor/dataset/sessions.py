"""When US stocks trade, in New York's time. Vectorised: a year of trades is judged at once."""

from datetime import date, timedelta
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from ingestor.dataset.bar_grid import Zone, find_pieces
from ingestor.dataset.times import find_zone
from ingestor.us_market import Calendar, Hours, is_us_symbol

Session = Literal["all", "regular", "extended"]
NEW_YORK = "America/New_York"
AUCTION_MS = 15 * 60_000
"""So long after the close its auction may be reported."""

_MINUTE_MS = 60_000
_DAY_MS = 86_400_000
_EPOCH = date(1970, 1, 1)
_RULES = Calendar()
_ORDINARY = Hours()


def in_session(
    times_ms: pa.Array, session: Literal["regular", "extended"], calendar: Calendar = _RULES, beyond_ms: int = 0
) -> pa.Array:
    """Whether each moment lies in this session: regular 09:30 to 16:00, extended 04:00 to 20:00, weekdays but for
    holidays; on a day that closes early to 13:00 and 17:00. Half-open; `beyond_ms` is added to its end.
    """
    local_ms = _new_york(times_ms).local(times_ms)
    days = pc.divide(local_ms, _DAY_MS)
    clock_ms = pc.subtract(local_ms, pc.multiply(days, _DAY_MS))
    opens_ms, closes_ms = _bounds_ms(_ORDINARY, session)
    weekday = pc.subtract(pc.add(days, 3), pc.multiply(pc.divide(pc.add(days, 3), 7), 7))  # 1970 began on a Thursday
    odd = _odd_days(days, session, calendar)
    inside: pa.Array = pc.less(weekday, 5)
    if odd:
        numbers, opens, closes = (pa.array(column, pa.int64()) for column in zip(*odd, strict=True))
        which = pc.index_in(days, numbers)
        opens_ms = pc.coalesce(opens.take(which), pa.scalar(opens_ms, pa.int64()))
        closes_ms = pc.coalesce(closes.take(which), pa.scalar(closes_ms, pa.int64()))
    inside = pc.and_(inside, pc.greater_equal(clock_ms, opens_ms))
    return pc.and_(inside, pc.less(clock_ms, pc.add(closes_ms, beyond_ms)))


def are_abroad(symbols: pa.Array) -> pa.Array:
    """Whether each of these texts is a symbol that US hours and rules say nothing of."""
    return pa.array([None if one is None else not is_us_symbol(one) for one in symbols.to_pylist()], pa.bool_())


def _bounds_ms(hours: Hours | None, session: Literal["regular", "extended"]) -> tuple[int, int]:
    """A session of a day; one that never begins where there is none."""
    if hours is None:
        return _DAY_MS, -_DAY_MS
    bounds = (hours.opens, hours.closes) if session == "regular" else (hours.early, hours.late)
    return bounds[0] * _MINUTE_MS, bounds[1] * _MINUTE_MS


def _odd_days(
    days: pa.Array, session: Literal["regular", "extended"], calendar: Calendar
) -> list[tuple[int, int, int]]:
    """Number since 1970, begin and end of each day among these that is not as any other."""
    span = pc.min_max(days)
    if span["min"].as_py() is None:
        return []
    first, last = (_EPOCH + timedelta(span[end].as_py()) for end in ("min", "max"))
    return [((day - _EPOCH).days, *_bounds_ms(hours, session)) for day, hours in calendar.odd_days(first, last)]


def _new_york(times_ms: pa.Array) -> Zone:
    span = pc.min_max(times_ms)
    first_ms, last_ms = span["min"].as_py() or 0, span["max"].as_py() or 0
    return Zone(find_pieces(find_zone(NEW_YORK), first_ms, last_ms))
