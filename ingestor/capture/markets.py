"""Which phase a symbol's market is in, as far as the feed and the exchange's holidays tell."""

from collections.abc import Iterable
from datetime import datetime

from ingestor.capture.holidays import Holidays
from ingestor.capture.market_hours import Phase, find_phase


class Markets:
    """The markets of one venue."""

    def __init__(self, holidays: Holidays, *, never_close: bool) -> None:
        """`never_close`: they all trade around the clock, whatever their symbols look like."""
        self.holidays = holidays
        self._never_close = never_close

    def phase(self, symbol: str, now: datetime) -> Phase:
        """Of this symbol's market, by the holidays that are known so far."""
        return "regular" if self._never_close else find_phase(symbol, now, self.holidays.calendar)

    def any_open(self, symbols: Iterable[str], now: datetime) -> bool:
        """Whether trades of one of these are to be expected."""
        return any(self.phase(symbol, now) != "closed" for symbol in symbols)

    def refresh(self, now_s: float) -> None:
        """Have the holidays fetched again where they are due."""
        self.holidays.refresh(now_s)
