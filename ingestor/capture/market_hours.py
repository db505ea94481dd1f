"""When trades are to be expected of a symbol. Pure; a wrong guess must be cheap wherever it is used."""

from datetime import date, datetime, time
from zoneinfo import ZoneInfo

NEW_YORK = ZoneInfo("America/New_York")
_OPENS = time(4, 0)  # early trading begins
_CLOSES = time(20, 0)  # late trading ends


def trades_expected(symbol: str, now: datetime, holidays: frozenset[date] = frozenset()) -> bool:
    """Whether this symbol's market should be trading at `now` (aware).

    A US stock (no prefix): weekdays 04:00 to 20:00 New York, but for `holidays`. Currencies (`OANDA:` and other
    brokers): never on a weekend. A prefix that names a crypto venue, or one unknown here: always.
    """
    local = now.astimezone(NEW_YORK)
    weekday = local.weekday() < 5
    prefix, colon, _ = symbol.partition(":")
    if not colon:
        return weekday and _OPENS <= local.time() < _CLOSES and local.date() not in holidays
    return weekday or prefix not in _FOREX


_FOREX = frozenset({"OANDA", "FXCM", "FOREX.COM", "IC MARKETS", "FXPRO", "PEPPERSTONE", "SAXO", "FXPIG"})
