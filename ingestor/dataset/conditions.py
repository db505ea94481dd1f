"""Which prints of a US stock move what, by their conditions.

The rules are those of the sheet that Finnhub's documentation links to (after the consolidated tape's), as far as a
feed without exchanges allows: a print with several codes moves a field only if every code allows it; without codes it
moves all.
"""

from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

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


class Moves(NamedTuple):
    """What one print may move."""

    high_low: bool
    last: bool
    """Open and last, whatever else the bar has; a print that moves only high and low is their last resort."""
    volume: bool


@dataclass(frozen=True, slots=True)
class Circumstance:
    """Where a print stands."""

    regular_hours: bool
    daily_bar: bool


def judge(conditions: str | None, where: Circumstance) -> Moves:
    """What a print with these codes (joined by `,`) moves.

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
    """What each print moves; `regular_hours` says for each whether it is in them, None means bars of a day.

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
