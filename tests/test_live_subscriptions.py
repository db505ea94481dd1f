"""What waits for a client: every trade in order, or the newest so often; never more than its bound."""

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from journals import trades
from test_live_updates import unframed

from ingestor.live.board import SymbolTrades, frame, split_by_symbol
from ingestor.live.subscriptions import ClientLanguage, Limits, Subscriber, TooMany


def client(language: ClientLanguage = ClientLanguage.PRICES, **limits: int) -> Subscriber:
    return Subscriber(language, Limits(**limits))


def some(symbol: str, first: int = 0, count: int = 1) -> SymbolTrades:
    (found,) = split_by_symbol(trades(first, count, symbols=(symbol,)))
    return found


def test_all_gets_every_trade_in_order() -> None:
    subscriber = client()
    subscriber.subscribe(["A"], None)
    offered = [some("A", 0, 3), some("A", 3, 2)]
    for one in offered:
        subscriber.offer(one, newest=True)
    assert subscriber.next_frames(0.0) == offered[0].price_frames + offered[1].price_frames
    assert subscriber.next_frames(0.0) == b""


def test_all_gets_late_trades_too() -> None:
    subscriber = client()
    subscriber.subscribe(["A"], None)
    subscriber.offer(some("A"), newest=False)
    assert subscriber.next_frames(0.0) == some("A").price_frames


def test_finnhub_gets_finnhub() -> None:
    subscriber = client(ClientLanguage.FINNHUB)
    subscriber.subscribe(["A"], None)
    subscriber.offer(some("A", 0, 3), newest=True)
    assert subscriber.next_frames(0.0) == some("A", 0, 3).finnhub_frames


def test_latest_gets_the_first_at_once_and_then_the_newest_each_interval() -> None:
    subscriber = client()
    subscriber.subscribe(["A"], 0.1)
    subscriber.offer(some("A", 0), newest=True)
    assert subscriber.next_frames(10.0) == some("A", 0).newest_frame
    for number in (1, 2, 3):
        subscriber.offer(some("A", number), newest=True)
    assert subscriber.next_frames(10.05) == b""
    assert subscriber.due_s() == pytest.approx(10.1)
    assert subscriber.next_frames(10.1) == some("A", 3).newest_frame
    assert subscriber.due_s() is None
    assert subscriber.skipped == 2


def test_latest_is_not_led_back_in_time() -> None:
    subscriber = client()
    subscriber.subscribe(["A"], 0.1)
    subscriber.offer(some("A", 5), newest=True)
    subscriber.offer(some("A", 6), newest=False)
    assert subscriber.next_frames(1.0) == some("A", 5).newest_frame


def test_symbols_have_intervals_of_their_own() -> None:
    subscriber = client()
    subscriber.subscribe(["FAST"], 0.1)
    subscriber.subscribe(["SLOW"], 10.0)
    subscriber.subscribe(["EACH"], None)
    for at_s in (0.0, 1.0, 2.0):
        for symbol in ("FAST", "SLOW", "EACH"):
            subscriber.offer(some(symbol), newest=True)
        taken = unframed(subscriber.next_frames(at_s))
        assert [symbol for symbol in ("FAST", "SLOW", "EACH") if any(symbol in text for text in taken)] == (
            ["FAST", "SLOW", "EACH"] if at_s == 0.0 else ["FAST", "EACH"]
        )


def test_to_subscribe_again_changes_the_mode() -> None:
    subscriber = client()
    subscriber.subscribe(["A"], 0.1)
    subscriber.offer(some("A", 0), newest=True)
    subscriber.subscribe(["A"], None)
    subscriber.offer(some("A", 1, 2), newest=True)
    assert subscriber.next_frames(0.0) == some("A", 1, 2).price_frames


def test_after_unsubscribing_nothing_waits() -> None:
    subscriber = client()
    subscriber.subscribe(["A", "B"], 0.1)
    subscriber.offer(some("A"), newest=True)
    subscriber.unsubscribe(["A", "NEVER"])
    assert (subscriber.due_s(), subscriber.next_frames(0.0), list(subscriber.symbols)) == (None, b"", ["B"])


def test_intervals_that_nobody_uses_any_more_take_no_memory() -> None:
    subscriber = client()
    tracemalloc.start()
    try:
        for number in range(1, 5000):
            subscriber.subscribe(["A", "B"], number / 100)
        held_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held_bytes < 20_000


def test_a_reason_fits_into_a_close_frame() -> None:
    subscriber = client()
    subscriber.give_up("é\ud800" * 100)
    assert 120 < len(subscriber.fault.encode()) <= 123
    subscriber.give_up("another")
    assert subscriber.fault.startswith("é")


def test_too_many_symbols_are_refused_whole() -> None:
    subscriber = client(symbols=3)
    subscriber.subscribe(["A", "B"], None)
    with pytest.raises(TooMany, match="at most 3 symbols per connection: this would make 4"):
        subscriber.subscribe(["B", "C", "D"], None)
    assert list(subscriber.symbols) == ["A", "B"]
    subscriber.subscribe(["A", "B", "C"], None)


def test_who_falls_behind_with_all_is_given_up_and_holds_nothing() -> None:
    one = some("A")
    subscriber = client(queue_bytes=len(one.price_frames) * 2)
    subscriber.subscribe(["A"], None)
    subscriber.offer(one, newest=True)
    subscriber.offer(one, newest=True)
    assert not subscriber.over.is_set()
    subscriber.offer(one, newest=True)
    assert subscriber.over.is_set()
    assert subscriber.fault.startswith("too slow")
    assert len(subscriber.fault.encode()) <= 123, "what a close frame holds"
    assert (subscriber.next_frames(0.0), list(subscriber.symbols)) == (b"", [])


def test_who_reads_the_newest_only_holds_one_a_symbol() -> None:
    subscriber = client(queue_bytes=1)
    subscriber.subscribe(["A", "B"], 1.0)
    for number in range(2000):
        subscriber.offer(some("A" if number % 2 else "B", number), newest=True)
    assert not subscriber.over.is_set()
    assert len(unframed(subscriber.next_frames(0.0))) == 2


def test_a_large_queue_is_taken_in_pieces() -> None:
    subscriber = client()
    message = frame(b"x" * 1000)
    for _ in range(500):
        subscriber.enqueue(message)
    pieces = []
    while piece := subscriber.next_frames(0.0):
        pieces.append(piece)
    assert b"".join(pieces) == message * 500
    assert max(map(len, pieces)) < 70_000


@given(st.lists(st.one_of(st.sampled_from(["offer", "take"]), st.integers(1, 40)), max_size=60))
def test_everything_offered_is_taken_once_in_order(steps: list[str | int]) -> None:
    subscriber = client()
    subscriber.subscribe(["A"], None)
    offered, taken = b"", b""
    for number, step in enumerate(steps):
        if step == "take":
            taken += subscriber.next_frames(0.0)
        else:
            one = some("A", number, step if isinstance(step, int) else 1)
            offered += one.price_frames
            subscriber.offer(one, newest=True)
    while piece := subscriber.next_frames(0.0):
        taken += piece
    assert taken == offered
