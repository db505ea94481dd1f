"""When trades are to be expected of a symbol."""

from datetime import UTC, date, datetime

import pytest

from ingestor.capture.market_hours import NEW_YORK, Phase, find_phase

CHRISTMAS = frozenset({date(2026, 12, 25)})


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
    assert find_phase(symbol, new_york(when), CHRISTMAS) == phase


def test_daylight_saving_moves_the_market_not_the_clock() -> None:
    winter, summer = datetime(2026, 1, 14, 8, 30, tzinfo=UTC), datetime(2026, 7, 15, 8, 30, tzinfo=UTC)
    assert find_phase("AAPL", winter) == "closed"  # 03:30 in New York
    assert find_phase("AAPL", summer) == "extended"  # 04:30


def test_without_holidays_weekdays_are_the_rule() -> None:
    assert find_phase("AAPL", new_york("2026-12-25T12:00:00")) == "regular"
