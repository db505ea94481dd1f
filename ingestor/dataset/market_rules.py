"""Rules of US stocks: which trades move a price, a volume or a day's bar, and which belong to a session.

The rules are those of the sheet that Finnhub's documentation links to (after the consolidated tape's), as far as a
feed without exchanges allows: a print with several codes moves a field only if every code allows it; without codes it
moves all.
"""

from dataclasses import dataclass
from datetime import date, timedelta
from typing import Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from ingestor.dataset.arguments import find_zone
from ingestor.dataset.bar_grid import Zone, find_pieces
from ingestor.us_market import OVERNIGHT, Calendar, Hours, is_us_symbol

NEVER_PRICE = frozenset({"3", "5", "10", "11", "12", "16", "17", "20", "22", "24", "25", "26", "37"})
"""Never last, high or low."""
NEVER_VOLUME = frozenset({"16", "20", "39"})
IF_NOTHING_ELSE = frozenset({"9", "15", "18", "21", "30", "32"})
"""High and low always; open and last only where a bar has nothing unconditional."""
FORM_T = "24"
"""Traded outside regular hours."""
CLOSING = frozenset({"35", "36", "39"})
"""Of the closing auction: market center closing, closing prints, and the corrected consolidated close.

The auction of 16:00 is reported some seconds later, as part of the regular session: the consolidated tape's closing
prints (UTP code 6, CTA code 6) move last, high and low without form T (UTP participant specification and CTS output
specification, tables of sale conditions). 16, the official close, repeats its price and moves nothing.
"""
DAILY_ONLY = "39"
"""Corrected consolidated close: moves the prices of daily bars."""

Session = Literal["all", "regular", "extended", "overnight"]
NEW_YORK = "America/New_York"
AUCTION_MS = 15 * 60_000
"""So long after the close its auction may be reported."""
_MINUTE_MS = 60_000
_DAY_MS = 86_400_000
_EPOCH = date(1970, 1, 1)
_RULES = Calendar()
_ORDINARY = Hours()


class Moves(NamedTuple):
    """The fields of a bar that one print may move."""

    high_low: bool
    last: bool
    """Open and last, whatever else the bar has; a print that moves only high and low is their last resort."""
    volume: bool


@dataclass(frozen=True, slots=True)
class Circumstance:
    """The bar and the hours that a print is judged for."""

    regular_hours: bool
    daily_bar: bool


def judge(conditions: str | None, where: Circumstance) -> Moves:
    """The fields that a print with these codes (joined by `,`) moves.

    Outside regular hours code 24 is what every print has: there it doesn't keep one from moving an intraday bar.
    """
    codes = set((conditions or "").split(","))
    barred = codes & NEVER_PRICE
    if not where.regular_hours and not where.daily_bar:
        barred -= {FORM_T}
    priced = not barred and (where.daily_bar or DAILY_ONLY not in codes)
    return Moves(priced, priced and not codes & IF_NOTHING_ELSE, not codes & NEVER_VOLUME)


class MovesColumns(NamedTuple):
    """`Moves` of every row; no nulls."""

    high_low: pa.Array
    last: pa.Array
    volume: pa.Array


def judge_rows(conditions: pa.DictionaryArray, regular_hours: pa.Array | None) -> MovesColumns:
    """The fields that each print moves; `regular_hours` says for each whether it is in them, None means daily bars.

    The rules are asked once for each text that occurs, and a row gets its answers as the bits of one number.
    """
    if regular_hours is None:
        bits = _bits(conditions, Circumstance(regular_hours=True, daily_bar=True))
    else:
        inside = _bits(conditions, Circumstance(regular_hours=True, daily_bar=False))
        outside = _bits(conditions, Circumstance(regular_hours=False, daily_bar=False))
        bits = pc.if_else(regular_hours, inside, outside)
    return MovesColumns(*(pc.not_equal(pc.bit_wise_and(bits, pa.scalar(1 << bit, pa.uint8())), 0) for bit in range(3)))


def _bits(conditions: pa.DictionaryArray, where: Circumstance) -> pa.Array:
    """For each row its `Moves`, the first as the lowest bit; a print without codes moves all."""
    verdicts = [judge(text, where) for text in conditions.dictionary.to_pylist()]
    numbers = [sum(moved << bit for bit, moved in enumerate(verdict)) for verdict in verdicts]
    return pa.array(numbers, pa.uint8()).take(conditions.indices).fill_null(0b111)


def in_session(
    times_ms: pa.Array,
    session: Literal["regular", "extended", "overnight"],
    calendar: Calendar = _RULES,
    beyond_ms: int = 0,
) -> pa.Array:
    """Whether each moment lies in this session: regular 09:30 to 16:00, extended 04:00 to 20:00, weekdays but for
    holidays; on a day that closes early to 13:00 and 17:00; overnight 20:00 to 04:00 before a trading day. Half-open;
    `beyond_ms` is added to its end.
    """
    span = pc.min_max(times_ms)
    first_ms, last_ms = span["min"].as_py() or 0, span["max"].as_py() or 0
    local_ms = Zone(find_pieces(find_zone(NEW_YORK), first_ms, last_ms)).local(times_ms)
    if session == "overnight":  # it belongs to the day that comes
        local_ms = pc.add(local_ms, _DAY_MS - OVERNIGHT * _MINUTE_MS)
    days = pc.divide(local_ms, _DAY_MS)
    clock_ms = pc.subtract(local_ms, pc.multiply(days, _DAY_MS))
    opens_ms, closes_ms = _bounds_ms(_ORDINARY, session)
    weekday = pc.subtract(pc.add(days, 3), pc.multiply(pc.divide(pc.add(days, 3), 7), 7))  # 1970 began on a Thursday
    inside: pa.Array = pc.less(weekday, 5)
    first, last = (_EPOCH + timedelta(ms // _DAY_MS) for ms in (first_ms - _DAY_MS, last_ms + _DAY_MS))
    odd = [((day - _EPOCH).days, *_bounds_ms(hours, session)) for day, hours in calendar.odd_days(first, last)]
    if odd:  # number since 1970, begin and end of each day that is not as any other
        numbers, opens, closes = (pa.array(column, pa.int64()) for column in zip(*odd, strict=True))
        which = pc.index_in(days, numbers)
        opens_ms = pc.coalesce(opens.take(which), pa.scalar(opens_ms, pa.int64()))
        closes_ms = pc.coalesce(closes.take(which), pa.scalar(closes_ms, pa.int64()))
    inside = pc.and_(inside, pc.greater_equal(clock_ms, opens_ms))
    return pc.and_(inside, pc.less(clock_ms, pc.add(closes_ms, beyond_ms)))


def are_abroad(symbols: pa.Array) -> pa.Array:
    """For each of these texts, whether it is a symbol to which US hours and rules don't apply."""
    return pa.array([None if one is None else not is_us_symbol(one) for one in symbols.to_pylist()], pa.bool_())


def _bounds_ms(hours: Hours | None, session: Literal["regular", "extended", "overnight"]) -> tuple[int, int]:
    """A session of a day, a night's from its begin on; one that never begins where there is none."""
    if hours is None:
        return _DAY_MS, -_DAY_MS
    if session == "overnight":
        return 0, _DAY_MS + (hours.early - OVERNIGHT) * _MINUTE_MS
    bounds = (hours.opens, hours.closes) if session == "regular" else (hours.early, hours.late)
    return bounds[0] * _MINUTE_MS, bounds[1] * _MINUTE_MS
