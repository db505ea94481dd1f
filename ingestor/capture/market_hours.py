"""When trades are to be expected of a symbol. Pure; a wrong guess must be cheap wherever it is used."""

from collections.abc import Set as AbstractSet
from datetime import date, datetime, time
from typing import Literal
from zoneinfo import ZoneInfo

Phase = Literal["closed", "extended", "regular"]
"""Of a market's day. Trades come at another pace in each: what is usual in one says nothing of the next."""

NEW_YORK = ZoneInfo("America/New_York")
_EARLY = time(4, 0)
_OPEN = time(9, 30)
_CLOSE = time(16, 0)
_LATE = time(20, 0)
_FOREX = frozenset({"OANDA", "FXCM", "FX", "FOREX.COM", "IC MARKETS", "ICM", "FXPRO", "PEPPERSTONE", "SAXO", "FXPIG"})


def find_phase(symbol: str, now: datetime, holidays: AbstractSet[date] = frozenset()) -> Phase:
    """The phase of this symbol's market at `now` (aware).

    A US stock (no prefix): New York, Monday to Friday but for `holidays`, extended 04:00 to 20:00, regular 09:30 to
    16:00. Currencies (a broker's prefix, such as `OANDA:`): Sunday 17:00 to Friday 17:00 New York. A prefix that names
    a crypto venue, or one that is unknown here: always.
    """
    local = now.astimezone(NEW_YORK)
    prefix, colon, _ = symbol.partition(":")
    if not colon:
        return _stock_phase(local, holidays)
    return "closed" if prefix in _FOREX and _is_forex_weekend(local) else "regular"


def _stock_phase(local: datetime, holidays: AbstractSet[date]) -> Phase:
    if local.weekday() >= 5 or local.date() in holidays or not _EARLY <= local.time() < _LATE:
        return "closed"
    return "regular" if _OPEN <= local.time() < _CLOSE else "extended"


def _is_forex_weekend(local: datetime) -> bool:
    friday, saturday, sunday = 4, 5, 6
    evening = local.time() >= time(17, 0)
    day = local.weekday()
    return day == saturday or (day == friday and evening) or (day == sunday and not evening)
