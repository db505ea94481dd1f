"""When trades are to be expected of a symbol. Pure; a wrong guess must be cheap wherever it is used."""

from datetime import datetime, time
from typing import Literal
from zoneinfo import ZoneInfo

from ingestor.us_market import Calendar, is_us_symbol

Phase = Literal["closed", "extended", "regular"]
"""Of a market's day. Trades come at another pace in each: what is usual in one says nothing of the next."""

NEW_YORK = ZoneInfo("America/New_York")
_FOREX = frozenset({"OANDA", "FXCM", "FX", "FOREX.COM", "IC MARKETS", "ICM", "FXPRO", "PEPPERSTONE", "SAXO", "FXPIG"})
_RULES = Calendar()


def find_phase(symbol: str, now: datetime, calendar: Calendar = _RULES) -> Phase:
    """The phase of this symbol's market at `now` (aware).

    A US stock (`AAPL`, `BRK.B`): New York, by the calendar. Currencies (a broker's prefix, such as `OANDA:`): Sunday
    17:00 to Friday 17:00 New York. A prefix that names a crypto venue, or one that is unknown here, and a suffix of
    another exchange (`7203.T`): always.
    """
    local = now.astimezone(NEW_YORK)
    if is_us_symbol(symbol):
        return _stock_phase(local, calendar)
    return "closed" if symbol.partition(":")[0] in _FOREX and _is_forex_weekend(local) else "regular"


def _stock_phase(local: datetime, calendar: Calendar) -> Phase:
    hours, minute = calendar.hours(local.date()), local.hour * 60 + local.minute
    if hours is None or not hours.early <= minute < hours.late:
        return "closed"
    return "regular" if hours.opens <= minute < hours.closes else "extended"


def _is_forex_weekend(local: datetime) -> bool:
    friday, saturday, sunday = 4, 5, 6
    evening = local.time() >= time(17, 0)
    day = local.weekday()
    return day == saturday or (day == friday and evening) or (day == sunday and not evening)
