"""What is known of each symbol: the last price is the newest, a rate counts whole seconds, blindness is shown."""

import pytest
from test_live_updates import only

from ingestor.live.board import DAY_MS, NOBODY, POINTS, UNASKED_MAX, UNKNOWN, Board, Price, Quote, State, SymbolTrades

NOW = 1_000_000.0


def test_a_late_trade_is_counted_and_is_not_the_last_price() -> None:
    board = Board()
    assert board.add_trades(only((10.0, 1.0, 2000)), NOW)
    assert not board.add_trades(only((9.0, 1.0, 1000)), NOW)
    assert board.quotes["A"].last == Price(10.0, 1.0, 2000)
    board.turn(NOW + 1)
    assert board.quotes["A"].rate == 0.2


def test_change_is_since_the_first_price_of_the_date() -> None:
    quote = Quote("A")
    for price, at_ms in ((100.0, 1), (110.0, 2), (99.0, 3)):
        quote.move(Price(price, 1.0, at_ms))
    assert quote.change == pytest.approx(-0.01)
    quote.move(Price(50.0, 1.0, DAY_MS))
    assert quote.change == 0.0


def test_a_trade_from_the_future_holds_up_nothing() -> None:
    quote, now = Quote("A"), 1_000_000.0
    now_ms = int(now * 1000)
    assert quote.move(Price(1.0, 1.0, now_ms - 50), now)
    assert quote.move(Price(9.0, 1.0, now_ms + DAY_MS), now)
    assert quote.change == 8.0, "no day began"
    assert quote.move(Price(2.0, 1.0, now_ms - 20), now)
    assert quote.change == 1.0
    assert not quote.move(Price(3.0, 1.0, now_ms - 40), now), "a late one"
    assert quote.move(Price(4.0, 1.0, now_ms + DAY_MS), now + 86_400)
    assert quote.change == 0.0, "now it has"


def test_without_a_price_there_is_no_change() -> None:
    assert Quote("A").change is None


def test_the_rate_forgets_after_ten_seconds() -> None:
    board = Board()
    board.add_trades(only(*((1.0, 1.0, at) for at in range(50))), NOW)
    rates = []
    for second in range(1, 13):
        board.turn(NOW + second)
        rates.append(board.quotes["A"].rate)
    assert rates == [5.0] * 10 + [0.0] * 2


def test_a_course_has_a_point_each_ten_seconds_and_an_end() -> None:
    board = Board()
    board.add_trades(only((1.0, 1.0, 1)), NOW)
    board.turn(NOW + 9)
    assert list(board.quotes["A"].course) == []
    board.turn(NOW + 10)
    board.add_trades(only((2.0, 1.0, 2)), NOW + 11)
    board.turn(NOW + 30)
    assert list(board.quotes["A"].course) == [1.0, 2.0, 2.0]
    board.quotes["A"].state = State("blind", "connection")
    board.turn(NOW + 50)
    board.quotes["A"].state = State("recorded")
    board.turn(NOW + 60)
    assert list(board.quotes["A"].course) == [1.0, 2.0, 2.0, None, None, 2.0]
    board.turn(NOW + 1e6)
    assert len(board.quotes["A"].course) == POINTS


def test_a_clock_that_is_set_back_changes_nothing() -> None:
    board = Board()
    board.add_trades(only((1.0, 1.0, 1)), NOW)
    board.turn(NOW - 3600)
    assert sum(board.quotes["A"].counts) == 1
    for second in range(1, 13):
        board.turn(NOW - 3600 + second)
    assert board.quotes["A"].rate == 0.0, "and time goes on"


@pytest.mark.parametrize(
    ("recording", "claimed", "shown"),
    [
        (True, State("recorded"), State("recorded")),
        (True, State("blind", "stall"), State("blind", "stall")),
        (None, State("blind", "no_redis"), State("blind", "no_redis")),
        (False, State("recorded"), NOBODY),
        (False, State("unproven"), NOBODY),
        (False, UNKNOWN, UNKNOWN),
    ],
)
def test_what_nobody_records_is_blind(recording: bool | None, claimed: State, shown: State) -> None:
    board = Board()
    board.set_state({"A": claimed}, recording=recording)
    assert board.quotes["A"].state == shown


def test_what_is_no_longer_claimed_is_unknown() -> None:
    board = Board()
    board.set_state({"A": State("recorded")}, recording=True)
    board.set_state({}, recording=True)
    assert board.quotes["A"].state == UNKNOWN


def trade_of(symbol: str) -> SymbolTrades:
    trade = only((1.0, 1.0, 1))
    trade.symbol = symbol
    return trade


@pytest.mark.long
def test_what_a_venue_invents_is_forgotten_and_what_was_asked_for_is_not() -> None:
    board = Board([Quote("old")])
    board.set_state({"A": State("recorded")}, recording=True)
    for number in range(UNASKED_MAX + 100):
        board.add_trades(trade_of(f"S{number}"), NOW)
        board.add_trades(trade_of("S0"), NOW)
    assert len(board.quotes) == UNASKED_MAX + 1
    assert {"A", "S0", f"S{UNASKED_MAX + 99}"} <= board.quotes.keys()
    assert board.quotes.keys().isdisjoint({"old", "S1"})
    board.set_state({}, recording=True)
    assert len(board.quotes) == UNASKED_MAX
