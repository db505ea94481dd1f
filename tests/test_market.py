"""The market: prices move as geometric Brownian motion, prints have the venue's habits, and a seed repeats both."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest

from ingestor.simulator.market import (
    LATENCY_MS,
    STEP_BACK_MS,
    TRADING_YEAR_S,
    Intervals,
    Market,
    MarketSettings,
    Trade,
    bars,
    is_crypto,
    is_forex,
)

NOW_MS = 1_795_000_000_000
MIXED = ("AAPL", "BINANCE:BTCUSDT", "OANDA:EUR_USD")


def trades(settings: MarketSettings, symbols: tuple[str, ...] = MIXED, batches: int = 300) -> list[Trade]:
    market = Market(settings)
    return [trade for _ in range(batches) for trade in market.batch(symbols, NOW_MS).trades]


# basic


def test_a_seed_repeats_the_run_and_another_does_not() -> None:
    assert trades(MarketSettings(seed=7)) == trades(MarketSettings(seed=7))
    assert trades(MarketSettings(seed=7)) != trades(MarketSettings(seed=8))


def test_a_symbol_trades_alike_whatever_else_is_traded() -> None:
    settings = MarketSettings(seed=7, volatility=0)
    alone = trades(settings, ("AAPL",))
    among = [trade for trade in trades(settings) if trade.symbol == "AAPL"]

    def distinct(prints: list[Trade]) -> list[tuple[float, str | None, int]]:
        """Without the repeats of sweeps, which belong to the batch; without the price, which follows time."""
        facts = [(trade.volume, trade.conditions, trade.time_ms) for trade in prints]
        return [fact for before, fact in pairwise([None, *facts]) if fact and fact != before]

    assert distinct(alone)[: len(distinct(among))] == distinct(among)


def test_a_batch_holds_one_to_ten_trades_of_several_symbols() -> None:
    market = Market(MarketSettings(seed=1))
    batches = [market.batch(MIXED, NOW_MS).trades for _ in range(300)]
    assert {len(batch) for batch in batches} == set(range(1, 11))
    assert any(len({trade.symbol for trade in batch}) == 3 for batch in batches)


@pytest.mark.parametrize(
    ("settings", "expected_s"),
    [
        (MarketSettings(rate=200), lambda size: size / 200),
        (MarketSettings(rate=math.inf), lambda size: 0),
        (MarketSettings(interval_s=0.25), lambda size: 0.25),
    ],
)
def test_the_rate_or_the_interval_sets_the_pace(settings: MarketSettings, expected_s: Callable[[int], float]) -> None:
    market = Market(settings)
    for _ in range(50):
        batch = market.batch(MIXED, NOW_MS)
        assert batch.lasts_s == expected_s(len(batch.trades))


# prices


def test_without_volatility_the_price_follows_the_drift() -> None:
    settings = MarketSettings(
        drift=TRADING_YEAR_S / 100, volatility=0, interval_s=1, start_price=100, start_prices={}, tick_size=1e-6
    )
    market = Market(settings)
    for _ in range(50):
        last = market.batch(("AAPL",), NOW_MS).trades[-1]
    assert last.price == pytest.approx(100 * math.exp(0.49), rel=1e-6)


def test_returns_have_the_volatility_that_was_asked_for() -> None:
    settings = MarketSettings(seed=3, volatility=0.4, drift=0, interval_s=60, tick_size=1e-9, start_price=100)
    market = Market(settings)
    closes = [market.batch(("AAPL",), NOW_MS).trades[0].price for _ in range(4000)]
    returns = [math.log(after / before) for before, after in pairwise(closes)]
    a_year = math.sqrt(sum(step**2 for step in returns) / len(returns) * TRADING_YEAR_S / 60)
    assert a_year == pytest.approx(0.4, rel=0.05)


@pytest.mark.parametrize("tick", [0.01, 0.05, 0.25, 5.0])
def test_prices_are_multiples_of_the_tick_size(tick: float) -> None:
    for trade in trades(MarketSettings(tick_size=tick, volatility=20, interval_s=1), ("AAPL",)):
        assert trade.price / tick == pytest.approx(round(trade.price / tick), abs=1e-9)
        assert len(str(trade.price)) < 12, "binary dust"


def test_start_prices_are_the_ones_that_were_given() -> None:
    market = Market(MarketSettings(start_price=50, start_prices={"MSFT": 70.0}, volatility=0, drift=0))
    assert market.trade("MSFT", NOW_MS).price == 70
    assert market.trade("AAPL", NOW_MS).price == 50


def test_the_wildest_volatility_ends_in_no_impossible_price() -> None:
    for trade in trades(MarketSettings(volatility=1e6, interval_s=3600)):
        assert 0 < trade.price < math.inf


# habits


def test_times_step_back_as_far_as_the_venue_lets_them() -> None:
    steps = {NOW_MS - LATENCY_MS - trade.time_ms for trade in trades(MarketSettings(seed=2))}
    assert 0 in steps
    back = steps - {0}
    assert back
    assert STEP_BACK_MS[0] <= min(back)
    assert max(back) <= STEP_BACK_MS[1]


def test_sweeps_are_trades_equal_in_every_field() -> None:
    market = Market(MarketSettings(seed=2))
    batches = [market.batch(("AAPL", "MSFT"), NOW_MS).trades for _ in range(200)]
    assert any(first is second for batch in batches for first, second in pairwise(batch))


def test_stocks_show_every_form_of_conditions_and_price_only_updates() -> None:
    prints = trades(MarketSettings(seed=2), ("AAPL",), 1000)
    forms = {trade.conditions for trade in prints}
    assert {None, "[]", '["1"]', '["1","8"]', '["1","12"]', '["1","24","12"]'} <= forms
    assert any(trade.volume == 0 for trade in prints)
    assert any(round(trade.price, 2) != trade.price for trade in prints), "sub-penny prints"
    assert any(trade.price == int(trade.price) for trade in prints)


def test_crypto_has_fractional_volumes_and_null_conditions() -> None:
    prints = trades(MarketSettings(), ("BINANCE:BTCUSDT",))
    assert {trade.conditions for trade in prints} == {"null"}
    assert all(trade.volume > 0 for trade in prints)
    assert any(trade.volume % 1 for trade in prints)


def test_forex_is_price_updates_only() -> None:
    prints = trades(MarketSettings(), ("OANDA:EUR_USD",))
    assert {(trade.volume, trade.conditions) for trade in prints} == {(0, None)}


@pytest.mark.parametrize(
    ("symbol", "kind"),
    [
        ("AAPL", (False, False)),
        ("BRK.B", (False, False)),
        ("BINANCE:X", (True, False)),
        ("IC MARKETS:1", (False, True)),
    ],
)
def test_the_prefix_tells_the_kind(symbol: str, kind: tuple[bool, bool]) -> None:
    assert (is_crypto(symbol), is_forex(symbol)) == kind


# bars


def test_bars_are_the_first_highest_lowest_and_last_print() -> None:
    prints = [
        Trade("A", price, volume, NOW_MS, None) for price, volume in ((10.0, 1.0), (12.0, 0.0), (9.0, 2.5), (11.0, 3.0))
    ]
    a, b = bars([prints[0], Trade("B", 5.0, 7.0, NOW_MS, None), *prints[1:]])
    assert (a.symbol, a.open, a.high, a.low, a.close, a.volume) == ("A", 10, 12, 9, 11, 6.5)
    assert (b.symbol, b.open, b.high, b.low, b.close, b.volume) == ("B", 5, 5, 5, 5, 7)


def test_every_symbol_has_a_bar_each_interval() -> None:
    market = Intervals(MarketSettings(interval_s=0.5))
    for _ in range(5):
        batch = market.batch(MIXED, NOW_MS)
        assert batch.lasts_s == 0.5
        assert [bar.symbol for bar in bars(batch.trades)] == list(MIXED)
