"""Do trades come as they usually do? Whole days of a stream in a table, without a clock."""

from collections.abc import Callable, Mapping
from itertools import pairwise

import pytest

from ingestor.capture.market_calendar import Phase
from ingestor.capture.monitor import Doubt, TradeWatch

SILENCE_S = 150.0
HOUR_S = 3600.0
A, B, C, D = "BINANCE:A", "BINANCE:B", "BINANCE:C", "BINANCE:D"
Stream = Callable[[float], Mapping[str, float]]
"""When each symbol last traded, seen from a moment."""
OPEN: Mapping[str, Phase] = dict.fromkeys((A, B, C, D), "regular")


def ticking(every_s: Mapping[str, float], until_s: Mapping[str, float] | None = None) -> Stream:
    """Each symbol trades so often, up to a moment."""
    ends = until_s or {}

    def last(now_s: float) -> Mapping[str, float]:
        return {
            symbol: min(now_s, ends.get(symbol, now_s)) // step_s * step_s
            for symbol, step_s in every_s.items()
            if now_s >= step_s
        }

    return last


def watch(
    stream: Stream,
    seconds: float,
    phase: Callable[[float], Mapping[str, Phase]] = lambda _: OPEN,
    step_s: float = 0.5,
) -> list[tuple[float, Doubt]]:
    """What was decided when, in a watch that begins at 0."""
    watcher = TradeWatch(phase(0.0), SILENCE_S, 0.0)
    looks = [at * step_s for at in range(int(seconds / step_s))]
    doubts = [(now_s, watcher.judge(stream(now_s), phase(now_s), now_s)) for now_s in looks]
    return [(now_s, doubt) for now_s, doubt in doubts if doubt.drought or doubt.mute]


def kinds(doubts: list[tuple[float, Doubt]]) -> list[tuple[float, str | None, bool]]:
    return [(now_s, doubt.drought, doubt.blind) for now_s, doubt in doubts]


# All symbols


def test_a_stream_that_flows_raises_no_doubt() -> None:
    assert watch(ticking({A: 1.0, B: 2.0, C: 7.0, D: 60.0}), HOUR_S) == []


def test_no_trade_from_the_first_second_on_is_doubted_but_not_called_blind() -> None:
    doubts = watch(ticking({}), 1000.0)
    assert kinds(doubts) == [(300.0, "resubscribe", False), (450.0, "reconnect", False)]


def test_a_stream_that_ends_is_called_blind() -> None:
    stream = ticking(dict.fromkeys(OPEN, 1.0), dict.fromkeys(OPEN, 600.0))
    doubts = watch(stream, 1100.0)
    assert kinds(doubts) == [(900.0, "resubscribe", True), (1050.0, "reconnect", True)]
    assert doubts[1][1].silence_s == 450.0


def test_it_connects_anew_at_worst_once_an_hour_whatever_that_brings() -> None:
    watcher = TradeWatch(OPEN, SILENCE_S, 0.0)
    reconnected: list[float] = []
    for half_seconds in range(6 * 7200):
        now_s = half_seconds / 2
        if watcher.judge({}, OPEN, now_s).drought == "reconnect":
            reconnected.append(now_s)
            watcher.begin(now_s + 0.25)
    assert len(reconnected) == 6
    assert all(after - before >= HOUR_S for before, after in pairwise(reconnected))


def test_trades_after_asking_again_end_the_doubt() -> None:
    def stream(now_s: float) -> Mapping[str, float]:
        return {A: now_s} if now_s < 100 or now_s >= 401 else {A: 100.0}

    assert kinds(watch(stream, 2000.0)) == [(400.0, "resubscribe", True)]


def test_a_thin_stream_is_given_the_time_it_usually_takes() -> None:
    """A trade each five minutes: nobody is blind where ten times as long is usual."""
    stream = ticking({A: 200.0}, {A: 4000.0})
    doubts = watch(stream, 4000.0 + 30 * 200 + 10)
    assert [now_s for now_s, doubt in doubts if doubt.blind] == [10_000.0]


def test_nothing_is_expected_of_a_market_that_is_closed() -> None:
    closed: Mapping[str, Phase] = dict.fromkeys(OPEN, "closed")
    assert watch(ticking({}), HOUR_S, lambda _: closed) == []


def test_at_the_opening_silence_begins_at_the_opening() -> None:
    closed: Mapping[str, Phase] = dict.fromkeys(OPEN, "closed")
    doubts = watch(ticking({}), HOUR_S + 320, lambda now_s: closed if now_s < HOUR_S else OPEN)
    assert kinds(doubts) == [(HOUR_S + 300.0, "resubscribe", False)]


def test_the_pace_of_the_day_says_nothing_of_the_evening() -> None:
    evening: Mapping[str, Phase] = dict.fromkeys(OPEN, "extended")

    def stream(now_s: float) -> Mapping[str, float]:
        return {A: now_s if now_s < 600.0 else 600.0 + (now_s - 600.0) // 290.0 * 290.0}

    assert watch(stream, 3000.0, lambda now_s: OPEN if now_s < 600.0 else evening) == []


def test_a_pause_of_the_reader_says_nothing_of_the_venue() -> None:
    watcher = TradeWatch(OPEN, SILENCE_S, 0.0)
    for half_seconds in range(1200):
        watcher.begin(half_seconds / 2)
        assert watcher.judge({}, OPEN, half_seconds / 2) == Doubt()


def test_time_in_which_nobody_looked_is_no_silence_but_what_was_heard_before_counts() -> None:
    """A stream ends at 600; from 700 to 1000, and again from 1200 on, the machine stands still for 300 s."""
    stream = ticking(dict.fromkeys(OPEN, 1.0), dict.fromkeys(OPEN, 600.0))
    watcher = TradeWatch(OPEN, SILENCE_S, 0.0)
    doubts: list[tuple[float, Doubt]] = []
    for half_seconds in range(3400):
        now_s = half_seconds / 2
        if 700.0 < now_s < 1000.0 or 1200.0 < now_s < 1500.0:
            continue
        if now_s in {1000.0, 1500.0}:
            watcher.skip(300.0)
        doubts.append((now_s, watcher.judge(stream(now_s), OPEN, now_s)))
    assert kinds([one for one in doubts if one[1].drought]) == [
        (1200.0, "resubscribe", True),
        (1650.0, "reconnect", True),
    ]


# One symbol


def test_one_that_is_the_first_of_all_to_be_missed_is_not_mute() -> None:
    """Its last trade was a moment before the others'."""
    stream = ticking({A: 10.0, B: 11.0, C: 11.0}, dict.fromkeys(OPEN, 598.0))
    doubts = watch(stream, 900.0, lambda _: dict.fromkeys((A, B, C), "regular"))
    assert [(now_s, doubt.drought, doubt.mute) for now_s, doubt in doubts] == [(894.0, "resubscribe", ())]


def test_one_symbol_far_beyond_its_usual_while_the_others_flow_is_mute() -> None:
    stream = ticking({A: 1.0, B: 1.0, C: 1.0, D: 1.0}, {A: 600.0})
    doubts = watch(stream, 1000.0)
    assert [(now_s, doubt.mute) for now_s, doubt in doubts] == [(900.0, (A,))]


def test_a_mute_symbol_is_asked_for_again_every_ten_minutes_until_it_trades() -> None:
    def stream(now_s: float) -> Mapping[str, float]:
        mute = 600.0 < now_s < 2000.0
        return dict.fromkeys((B, C, D), now_s) | {A: 600.0 if mute else now_s}

    doubts = watch(stream, 4000.0)
    assert [now_s for now_s, _ in doubts] == [900.0, 1500.0]


@pytest.mark.parametrize("silent", [(A, B, C), (A, B, C, D)])
def test_most_symbols_silent_is_no_symbols_affair(silent: tuple[str, ...]) -> None:
    stream = ticking(dict.fromkeys(OPEN, 1.0), dict.fromkeys(silent, 600.0))
    assert [doubt.mute for _, doubt in watch(stream, 1000.0) if doubt.mute] == []


def test_a_symbol_that_trades_seldom_is_not_mute() -> None:
    stream = ticking({A: 100.0, B: 1.0, C: 1.0}, {A: 1000.0})
    phases: Mapping[str, Phase] = {A: "regular", B: "regular", C: "regular"}
    assert watch(stream, 1000.0 + 30 * 100 - 10, lambda _: phases) == []
    assert [doubt.mute for _, doubt in watch(stream, 1000.0 + 30 * 100 + 10, lambda _: phases)] == [(A,)]


def test_a_symbol_whose_pace_nobody_knows_is_not_mute() -> None:
    assert watch(ticking({B: 1.0, C: 1.0, D: 1.0}), HOUR_S) == []


def test_one_symbol_alone_has_nobody_to_be_compared_with() -> None:
    phases: Mapping[str, Phase] = {A: "regular"}
    doubts = watch(ticking({A: 1.0}, {A: 600.0}), 910.0, lambda _: phases)
    assert kinds(doubts) == [(900.0, "resubscribe", True)]


def test_a_closed_market_among_open_ones_is_not_mute() -> None:
    def phases(now_s: float) -> Mapping[str, Phase]:
        return {**OPEN, A: "closed" if now_s >= 600.0 else "regular"}

    stream = ticking({A: 1.0, B: 1.0, C: 1.0, D: 1.0}, {A: 600.0})
    assert watch(stream, HOUR_S, phases) == []


def test_other_symbols_from_now_on() -> None:
    watcher = TradeWatch([A, B], SILENCE_S, 0.0)
    watcher.change([B, C], 10.0)
    assert watcher.judge({B: 11.0}, {B: "regular", C: "regular"}, 11.0) == Doubt()
