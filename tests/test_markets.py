"""Which phase a symbol's market is in, by what is known of it."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from journals import make_root

from ingestor.capture.market_calendar import Holidays, Markets
from ingestor.us_market import Calendar

CHRISTMAS = datetime(2026, 12, 25, 16, 0, tzinfo=UTC)
"""A Friday, eleven in New York."""


@pytest.mark.parametrize(("never_close", "symbol", "phase"), [(True, "AAPL", "regular"), (False, "AAPL", "closed")])
def test_a_venue_that_never_closes_has_no_holidays(tmp_path: Path, never_close: bool, symbol: str, phase: str) -> None:
    markets = Markets(Holidays(make_root(tmp_path), None, ""), never_close=never_close)
    markets.holidays.calendar = Calendar({CHRISTMAS.date(): None})
    assert markets.phase(symbol, CHRISTMAS) == phase
