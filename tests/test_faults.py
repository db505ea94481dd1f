"""The schedule of faults: tables of what holds and strikes when, and what a script may say."""

from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from ingestor.errors import ConfigError
from ingestor.simulator.faults import (
    Abort,
    Answer,
    DelayHandshake,
    Fragment,
    Junk,
    Mute,
    Outage,
    RefuseSymbols,
    Reorder,
    Repeat,
    Schedule,
    ShiftTime,
    load_faults,
    parse_faults,
    read_presets,
)
from ingestor.simulator.market import Trade

# when


@pytest.mark.parametrize(
    ("fault", "number", "opened_s", "holds_from", "holds_until"),
    [
        (Repeat(at_s=5, for_s=3), 1, 0, 5, 8),
        (Repeat(at_s=5, for_s=3), 4, 6, 5, 8),
        (Repeat(connection=2, after_s=3, for_s=4), 2, 10, 13, 17),
        (Repeat(after_s=3, for_s=4), 9, 10, 13, 17),
    ],
)
def test_a_lasting_fault_holds_from_its_start_to_before_its_end(
    fault: Repeat, number: int, opened_s: float, holds_from: float, holds_until: float
) -> None:
    schedule = Schedule([fault])

    def copies(now_s: float) -> int:
        return schedule.active(now_s, number, opened_s).copies()

    assert [copies(holds_from - 0.01), copies(holds_from), copies(holds_until - 0.01), copies(holds_until)] == [
        1,
        3,
        3,
        1,
    ]


def test_without_an_end_it_stays_and_other_connections_are_spared() -> None:
    schedule = Schedule([Repeat(connection=2)])
    assert schedule.active(1e9, 2, 0).copies() == 3
    assert schedule.active(1e9, 1, 0).copies() == 1


@pytest.mark.parametrize(
    ("fault", "number", "opened_s", "times_s"),
    [
        (Abort(at_s=5), 1, 0, [5]),
        (Abort(at_s=5), 1, 6, []),
        (Abort(at_s=5, for_s=3), 1, 6, [6]),
        (Abort(at_s=5, for_s=3), 1, 8, []),
        (Abort(after_s=3), 1, 10, [13]),
        (Abort(connection=2, after_s=3), 2, 10, [13]),
        (Abort(connection=2, after_s=3), 1, 10, []),
        (Abort(after_s=1, every_s=2, for_s=5), 1, 10, [11, 13, 15]),
        (Abort(at_s=1, every_s=2), 1, 10, [11, 13, 15, 17, 19]),
        (Abort(at_s=1, every_s=2, for_s=11), 1, 10, [11]),
        (Outage(at_s=5, for_s=3), 1, 2, [5]),
    ],
)
def test_a_sudden_fault_strikes_at_its_times(fault: Abort, number: int, opened_s: float, times_s: list[float]) -> None:
    strikes = Schedule([fault]).strikes(number, opened_s)
    assert list(islice(strikes, 5)) == [(time_s, fault) for time_s in times_s]


def test_strikes_of_several_faults_come_in_order_each_with_its_own() -> None:
    junk, abort = Junk(kind="binary", after_s=1, every_s=2), Abort(after_s=4)
    strikes = Schedule([abort, junk]).strikes(1, 0)
    assert list(islice(strikes, 4)) == [(1, junk), (3, junk), (4, abort), (5, junk)]


def test_an_outage_turns_new_connections_away_while_it_lasts() -> None:
    schedule = Schedule([Outage(at_s=5, for_s=3)])
    assert [schedule.outage(now_s) for now_s in (4.9, 5, 7.9, 8)] == [False, True, True, False]


# what


def test_the_handshake_asks_for_its_answer_and_its_delay() -> None:
    active = Schedule([Answer(status=524), DelayHandshake(by_s=2)]).active(0, 1, 0)
    answer = active.answer()
    assert answer is not None
    assert answer.status == 524
    assert active.handshake_delay_s() == 2
    assert Schedule().active(0, 1, 0).answer() is None


SUBSCRIBED = {"MSFT": 1.0, "AAPL": 5.0, "TSLA": 1.0}


@pytest.mark.parametrize(
    ("fault", "muted", "silent"),
    [
        (Mute(), {"MSFT", "AAPL", "TSLA"}, False),
        (Mute(pings=False), {"MSFT", "AAPL", "TSLA"}, True),
        (Mute(symbols=("TSLA", "X")), {"TSLA"}, False),
        (Mute(symbols="first"), {"MSFT"}, False),
        (Mute(at_s=3, until_resubscribed=True), {"MSFT", "TSLA"}, False),
    ],
)
def test_a_mute_withholds_symbols(fault: Mute, muted: set[str], silent: bool) -> None:
    active = Schedule([fault]).active(10, 1, 0)
    assert active.muted(SUBSCRIBED) == muted
    assert active.silent() is silent


def test_the_first_symbol_of_a_client_without_any_is_none() -> None:
    assert Schedule([Mute(symbols="first")]).active(0, 1, 0).muted({}) == frozenset()


def test_refusals_are_of_all_symbols_or_of_some() -> None:
    some = Schedule([RefuseSymbols(symbols=("AAPL",))]).active(0, 1, 0)
    assert (some.refusal("AAPL") is None, some.refusal("MSFT") is None) == (False, True)
    assert Schedule([RefuseSymbols()]).active(0, 1, 0).refusal("MSFT") is not None


def test_times_are_shifted_and_trades_reordered() -> None:
    batches = [
        [Trade("A", 1.0, 1.0, 10_000, None), Trade("B", 1.0, 1.0, 12_000, None)],
        [Trade("A", 2.0, 1.0, 11_000, None)],
    ]

    def times(*faults: ShiftTime | Reorder) -> list[list[int]]:
        active = Schedule(faults).active(0, 1, 0)
        return [[trade.time_ms for trade in batch] for batch in active.distorted(batches)]

    assert times() == [[10_000, 12_000], [11_000]]
    assert times(ShiftTime(back_s=2)) == [[8_000, 10_000], [9_000]]
    assert times(ShiftTime(ahead_s=1)) == [[11_000, 13_000], [12_000]]
    assert times(Reorder()) == [[12_000], [11_000], [10_000]]


def test_fragments_and_copies_are_off_unless_asked_for() -> None:
    assert not Schedule().active(0, 1, 0).fragments()
    assert Schedule([Fragment()]).active(0, 1, 0).fragments()
    assert Schedule([Repeat(times=2), Repeat(times=3)]).active(0, 1, 0).copies() == 6


# scripts


def test_a_script_says_what_its_python_says() -> None:
    schedule = parse_faults(
        "- {at: 5s, do: outage, for: 3s}\n- {connection: 2, after: 250ms, do: mute, symbols: [ON]}", "f"
    )
    assert list(schedule.strikes(1, 0)) == [(5, Outage(at_s=5, for_s=3))]
    assert schedule.active(0.25, 2, 0).muted({"ON": 0, "MSFT": 0}) == {"ON"}


def test_every_preset_is_a_valid_script() -> None:
    names = list(read_presets())
    assert {"answer_401", "abort", "outage", "triple", "half_frame"} <= set(names)
    for name in names:
        schedule = load_faults(name)
        assert (
            schedule.outage(6)
            or schedule.active(6, 1, 5.9).faults
            or schedule.active(6, 1, 2).faults
            or next(schedule.strikes(1, 0), None)
        ), f"{name} does nothing to the first connection"


def test_presets_add_up_and_a_file_is_read(tmp_path: Path) -> None:
    assert load_faults("triple, fragments").active(0, 1, 0).copies() == 3
    assert load_faults("triple, fragments").active(0, 1, 0).fragments()
    (tmp_path / "f.yaml").write_text("- {do: repeat, times: 2}")
    assert load_faults(str(tmp_path / "f.yaml")).active(0, 1, 0).copies() == 2


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("- {at: soon, do: abort}", ["f: fault 1: abort: at: `soon` is no duration"]),
        ("- {at: 1s, do: explode}", ["f: fault 1: ", "'explode'"]),
        ("- {at: 1s}", ["f: fault 1: ", "do"]),
        ("- {do: abort, colour: red}\n- {do: answer}", ["f: fault 1: abort: colour", "f: fault 2: answer: status"]),
        ("- {at: 1s, connection: 2, do: abort}", ["give one or the others"]),
        ("- {do: outage, for: 3s}", ["an outage needs `at` and `for`"]),
        ("- {do: repeat, every: 3s}", ["every"]),
        ("- {do: abort, every: 0s}", ["every", "greater than 0"]),
        ("- {do: answer, status: 99}", ["status"]),
        ("do: abort", ["f: a fault script is a list"]),
        ("", ["f: a fault script is a list"]),
        ("- abort", ["f: fault 1"]),
        ("- [", ["f: not YAML"]),
    ],
)
def test_mistakes_are_named_all_at_once(script: str, says: list[Any]) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_faults(script, "f")
    for part in says:
        assert part in str(refused.value)


@pytest.mark.parametrize(
    ("source", "says"),
    [("abrot", "did you mean abort?"), ("zzz", "there are answer_401, "), ("missing.yaml", "can't be read")],
)
def test_an_unknown_preset_or_file_is_named(source: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_faults(source)
