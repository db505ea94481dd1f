"""Which phase a symbol's market is in, by what is known of it."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from journals import make_root

from ingestor.capture.market_calendar import NEW_YORK, Holidays, Markets
from ingestor.us_market import Calendar

CHRISTMAS = datetime(2026, 12, 25, 16, 0, tzinfo=UTC)
"""A Friday, eleven in New York."""


@pytest.mark.parametrize(("never_close", "symbol", "phase"), [(True, "AAPL", "regular"), (False, "AAPL", "closed")])
def test_a_venue_that_never_closes_has_no_holidays(tmp_path: Path, never_close: bool, symbol: str, phase: str) -> None:
    markets = Markets(Holidays(make_root(tmp_path), None, ""), never_close=never_close)
    markets.holidays.calendar = Calendar({CHRISTMAS.date(): None})
    assert markets.phase(symbol, CHRISTMAS) == phase


def test_phases_are_the_same_object_until_one_changes(tmp_path: Path) -> None:
    """The watch of 11,000 symbols asks twice per second, and looks at all of them only where there is another one."""
    markets = Markets(Holidays(make_root(tmp_path), None, ""), never_close=False)
    symbols = ("AAPL", "OANDA:EUR_USD", "BINANCE:BTCUSDT")
    before = markets.phases(symbols, datetime(2026, 11, 25, 9, 29, tzinfo=NEW_YORK))
    assert before == {"AAPL": "extended", "OANDA:EUR_USD": "regular", "BINANCE:BTCUSDT": "regular"}
    assert markets.phases(symbols, datetime(2026, 11, 25, 9, 29, 59, tzinfo=NEW_YORK)) is before
    open_now = datetime(2026, 11, 25, 9, 30, tzinfo=NEW_YORK)
    assert markets.phases(symbols, open_now)["AAPL"] == "regular"
    assert markets.phases((*symbols, "MSFT"), open_now)["MSFT"] == "regular"
