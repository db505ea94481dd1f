"""When trades are to be expected of a symbol."""

from datetime import UTC, date, datetime

import pytest

from ingestor.capture.market_calendar import NEW_YORK, Phase, find_phase
from ingestor.us_market import Calendar, hours_closing_at

TOLD = Calendar({date(2026, 11, 20): None, date(2026, 11, 23): hours_closing_at(12 * 60)})
"""What a venue says stands above the rules."""


def new_york(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=NEW_YORK)


@pytest.mark.parametrize(
    ("symbol", "when", "phase"),
    [
        ("AAPL", "2026-11-20T03:59:59", "closed"),
        ("AAPL", "2026-11-20T04:00:00", "extended"),
        ("AAPL", "2026-11-20T09:29:59", "extended"),
        ("AAPL", "2026-11-20T09:30:00", "regular"),
        ("BRK.B", "2026-11-20T15:59:59", "regular"),
        ("BRK.B", "2026-11-20T16:00:00", "extended"),
        ("AAPL", "2026-11-20T20:00:00", "closed"),
        ("AAPL", "2026-11-21T12:00:00", "closed"),
        ("AAPL", "2026-12-25T12:00:00", "closed"),
        ("AAPL", "2026-12-24T12:00:00", "regular"),
        ("AAPL", "2026-11-26T12:00:00", "closed"),
        ("AAPL", "2026-11-27T12:59:59", "regular"),
        ("AAPL", "2026-11-27T13:00:00", "extended"),
        ("AAPL", "2026-11-27T17:00:00", "closed"),
        ("7203.T", "2026-11-21T12:00:00", "regular"),
        ("VOD.L", "2026-11-26T03:00:00", "regular"),
        ("OANDA:EUR_USD", "2026-11-20T16:59:59", "regular"),
        ("OANDA:EUR_USD", "2026-11-20T17:00:00", "closed"),
        ("IC MARKETS:1", "2026-11-21T12:00:00", "closed"),
        ("OANDA:EUR_USD", "2026-11-22T16:59:59", "closed"),
        ("OANDA:EUR_USD", "2026-11-22T17:00:00", "regular"),
        ("OANDA:EUR_USD", "2026-11-23T03:00:00", "regular"),
        ("BINANCE:BTCUSDT", "2026-11-21T12:00:00", "regular"),
        ("BINANCE:BTCUSDT", "2026-12-25T03:00:00", "regular"),
        ("UNHEARD OF:X", "2026-11-21T12:00:00", "regular"),
    ],
)
def test_the_phase_of_a_symbols_market(symbol: str, when: str, phase: Phase) -> None:
    assert find_phase(symbol, new_york(when)) == phase


def test_daylight_saving_moves_the_market_not_the_clock() -> None:
    winter, summer = datetime(2026, 1, 14, 8, 30, tzinfo=UTC), datetime(2026, 7, 15, 8, 30, tzinfo=UTC)
    assert find_phase("AAPL", winter) == "closed"  # 03:30 in New York
    assert find_phase("AAPL", summer) == "extended"  # 04:30


@pytest.mark.parametrize(
    ("when", "phase"),
    [
        ("2026-11-20T12:00:00", "closed"),
        ("2026-11-23T11:59:00", "regular"),
        ("2026-11-23T12:00:00", "extended"),
        ("2026-11-23T17:00:00", "closed"),
        ("2026-11-24T12:00:00", "regular"),
    ],
)
def test_what_the_venue_says_of_a_day_stands_above_the_rules(when: str, phase: Phase) -> None:
    assert find_phase("AAPL", new_york(when), TOLD) == phase
