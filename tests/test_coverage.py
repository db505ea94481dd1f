"""Coverage, by tables: what the ledger's facts say of a symbol at each moment. Times are small numbers of µs."""

from collections.abc import Iterable, Sequence
from itertools import pairwise

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingestor.coverage import (
    Gap,
    Interval,
    Shares,
    blind_by_cause,
    clip,
    find_coverage,
    join_intervals,
    state_at,
    sum_proved,
    sum_shares,
)
from ingestor.dataset.coverage import find_states
from ingestor.facts import Fact
from ingestor.schema import RECEIVED_AT


def started(at: int, *tickers: str, gaps: Iterable[Fact] = ()) -> Fact:
    return {"at": at, "fact": "run.started", "tickers": list(tickers or "A"), "open_gaps": list(gaps)}


def stopped(at: int) -> Fact:
    return {"at": at, "fact": "run.stopped", "error": None}


def requested(at: int, connection: int = 1, symbols: str = "A") -> Fact:
    return {"at": at, "fact": "symbols.requested", "connection": connection, "symbols": list(symbols)}


def proven(since: int, connection: int = 1, symbol: str = "A", at: int | None = None) -> Fact:
    return {
        "at": at or since, "fact": "symbol.proven", "symbol": symbol, "connection": connection, "since": since,
    }  # fmt: skip


def lost(at: int, connection: int = 1) -> Fact:
    return {"at": at, "fact": "connection.lost", "connection": connection}


def closed(at: int, connection: int = 1) -> Fact:
    return {"at": at, "fact": "connection.closed", "connection": connection}


def filled(start: int, end: int, symbol: str = "A") -> Fact:
    told = {"at": end + 10, "fact": "gap.filled", "symbol": symbol, "since": start - 1, "until": end}
    return {**told, "source": "binance", "rows": 1}


def dropped(at: int, symbol: str = "A") -> Fact:
    return {"at": at, "fact": "symbol.dropped", "symbol": symbol}


def opened(since: int, cause: str = "connection", symbol: str | None = None, at: int | None = None) -> Fact:
    """A gap that begins at `since`: the last frame was received 1 µs before."""
    return {"at": at or since, "fact": "gap.opened", "gap": "g", "cause": cause, "since": since - 1, "symbol": symbol}


def ended(until: int, symbol: str | None = None) -> Fact:
    return {"at": until, "fact": "gap.closed", "gap": "g", "cause": "", "until": until, "symbol": symbol}


def stepped(at: int, by: int, slept: int = 0) -> Fact:
    return {"at": at, "fact": "clock.stepped", "by_us": by} | ({"slept_us": slept} if slept else {})


def doubted(at: int, since: int = 0) -> Fact:
    return {"at": at, "fact": "clock.doubted", "by_us": -9, "since": since}


def trusted(at: int) -> Fact:
    return {"at": at, "fact": "clock.trusted"}


def missed(since: int, until: int, symbol: str = "A") -> Fact:
    fact = {"at": until, "fact": "ids.missed", "symbol": symbol, "first": 7, "last": 8, "count": 2}
    return {**fact, "since": since, "until": until}


def ids_go_on(since: int, until: int, symbol: str = "A") -> Fact:
    """From the receipt at `since` to the one at `until`."""
    return {"at": until, "fact": "ids.proven", "base": since, "before": {symbol: 0}, "symbols": {symbol: until - since}}


def sealed(at: int) -> Fact:
    return {"at": at, "fact": "segment.sealed", "segment": "…", "dates": {}}


def told(intervals: Sequence[Interval]) -> str:
    """`10 unproven 12 recorded 30 stall 42`: moments, and between them the state or, where it is blind, the cause."""
    words: list[str] = []
    for one in intervals:
        if not words or words[-1] != str(one.start_us):
            words += ["-", str(one.start_us)] if words else [str(one.start_us)]
        words += [one.cause or one.state, str(one.end_us)]
    return " ".join(words)


RUN = [started(0), requested(10), proven(12)]
"""A run that goes well: A is asked for at 10, and its first trade comes at 12."""
COUNTED = [{**started(0), "id_column": "trade_id"}, *RUN[1:]]
"""The same of a venue that counts its trades."""

ONE_SYMBOL: dict[str, tuple[list[Fact], str]] = {
    "ids that never came": ([*RUN, missed(20, 30), sealed(40)], "10 unproven 12 recorded 21 lost 30 recorded 40"),
    "ids that never came between two trades of one receipt": (
        [*RUN, missed(20, 20), sealed(40)],
        "10 unproven 12 recorded 40",
    ),
    "ids that never came around a gap, which says why": (
        [*RUN, lost(31), opened(30, at=31), requested(40, 2), ended(42), proven(45, 2), missed(25, 45), sealed(60)],
        "10 unproven 12 recorded 30 connection 42 unproven 45 recorded 60",
    ),
    "a gap that was filled": (
        [*RUN, lost(31), opened(30, at=31), requested(40, 2), ended(42), proven(45, 2), filled(30, 45), sealed(60)],
        "10 unproven 12 recorded 30 filled 45 recorded 60",
    ),
    "a gap that was filled in part": (
        [*RUN, lost(31), opened(30, at=31), requested(40, 2), ended(42), proven(45, 2), filled(32, 41), sealed(60)],
        "10 unproven 12 recorded 30 connection 32 filled 41 connection 42 unproven 45 recorded 60",
    ),
    "a backfill after a crash, which says nothing of what came behind it": (
        [*RUN, sealed(40), {**started(70), "backfill": True}, filled(20, 25), stopped(90)],
        "10 unproven 12 recorded 20 filled 25 recorded 40",
    ),
    "a gap of another symbol that was filled": (
        [
            *RUN,
            lost(31),
            opened(30, at=31),
            requested(40, 2),
            ended(42),
            proven(45, 2),
            filled(30, 45, "B"),
            sealed(60),
        ],
        "10 unproven 12 recorded 30 connection 42 unproven 45 recorded 60",
    ),
    "ids that go on over a gap": (
        [
            *COUNTED,
            lost(31),
            opened(30, at=31),
            requested(40, 2),
            ended(42),
            proven(45, 2),
            ids_go_on(25, 45),
            sealed(60),
        ],
        "10 unproven 12 recorded 60",
    ),
    "ids of another symbol that go on": (
        [*RUN, lost(31), opened(30, at=31), requested(40, 2), ended(42), ids_go_on(25, 45, "B"), sealed(60)],
        "10 unproven 12 recorded 30 connection 42 unproven 60",
    ),
    "ids that go on over a gap of this symbol": (
        [*RUN, opened(20, "symbol_mute", "A"), ended(25, "A"), ids_go_on(15, 25), sealed(30)],
        "10 unproven 12 recorded 30",
    ),
    "ids prove nothing of time that never was": (
        [*RUN, stepped(30, 10), ids_go_on(15, 35), sealed(40)],
        "10 unproven 12 recorded 20 clock 30 recorded 40",
    ),
    "ids prove nothing of time in doubt": (
        [*RUN, doubted(20, 15), trusted(30), ids_go_on(13, 35), sealed(40)],
        "10 unproven 12 recorded 15 unproven 30 recorded 40",
    ),
    "nothing was ever asked for": ([started(0), stopped(9)], ""),
    "unproven up to the first trade": ([*RUN, sealed(20)], "10 unproven 12 recorded 20"),
    "never proven": ([started(0), requested(10), sealed(20)], "10 unproven 20"),
    "a proof counts only on its connection": (
        [started(0), requested(10, 2), proven(12, 1), sealed(20)],
        "10 unproven 20",
    ),
    "a gap for all, then proven anew": (
        [*RUN, lost(31), opened(30, at=31), requested(40, 2), ended(42), proven(45, 2), sealed(60)],
        "10 unproven 12 recorded 30 connection 42 unproven 45 recorded 60",
    ),
    "a gap that is still open": ([*RUN, lost(31), opened(30, "stall", at=31)], "10 unproven 12 recorded 30 stall 31"),
    "a gap of this symbol": (
        [*RUN, opened(20, "refused", "A"), ended(25, "A"), sealed(30)],
        "10 unproven 12 recorded 20 refused 25 recorded 30",
    ),
    "a gap of another symbol": (
        [*RUN, opened(20, "refused", "B"), ended(25, "B"), sealed(30)],
        "10 unproven 12 recorded 30",
    ),
    "of two gaps the first stands while both hold": (
        [*RUN, opened(20, "refused", "A"), opened(25), ended(35), ended(30, "A"), sealed(40)],
        "10 unproven 12 recorded 20 refused 30 connection 35 recorded 40",
    ),
    "asked for again on the same connection": ([*RUN, requested(20), sealed(30)], "10 unproven 12 recorded 30"),
    "a proof that comes late, when the connection is lost": (
        [
            started(0),
            requested(10),
            lost(31),
            opened(30, at=31),
            requested(40, 2),
            ended(42),
            proven(12, 1, at=43),
            sealed(50),
        ],
        "10 unproven 12 recorded 30 connection 42 unproven 50",
    ),
    "a connection that ended without a word of a gap": (
        [*RUN, lost(30), requested(40, 2), proven(45, 2), sealed(50)],
        "10 unproven 12 recorded 30 connection 40 unproven 45 recorded 50",
    ),
    "stopped, started again": (
        [
            *RUN,
            closed(31),
            opened(30, "shutdown", at=31),
            stopped(32),
            started(90, gaps=[opened(30, "restart")]),
            requested(95),
            ended(97),
            proven(97),
            sealed(99),
        ],
        "10 unproven 12 recorded 30 restart 97 recorded 99",
    ),
    "stopped before any frame came, started again": (
        [started(0), requested(10), closed(20), stopped(21), started(30), requested(35), proven(36), sealed(40)],
        "10 unproven 20 shutdown 35 unproven 36 recorded 40",
    ),
    "nothing is claimed after the last stop": (
        [*RUN, opened(30, "shutdown"), stopped(32)],
        "10 unproven 12 recorded 30 shutdown 32",
    ),
    "a crash, told by the next run": (
        [*RUN, sealed(25), started(90, gaps=[opened(40, "crash")]), requested(95), ended(97), proven(98), sealed(99)],
        "10 unproven 12 recorded 40 crash 97 unproven 98 recorded 99",
    ),
    "a crash that the next run doesn't tell": (
        [*RUN, sealed(25), started(90), requested(95), proven(96), sealed(99)],
        "10 unproven 12 recorded 25 crash 95 unproven 96 recorded 99",
    ),
    "a crash that nobody has found yet": ([*RUN, sealed(25)], "10 unproven 12 recorded 25"),
    "a crash within a gap goes on under its cause": (
        [*RUN, opened(20), started(90, gaps=[opened(20)]), requested(95), ended(97), proven(97), sealed(99)],
        "10 unproven 12 recorded 20 connection 97 recorded 99",
    ),
    "a crash before what was asked for was journaled": (
        [*RUN, opened(20), requested(30, 2), ended(32), started(90, gaps=[opened(20, "crash")]), sealed(99)],
        "10 unproven 12 recorded 20 connection 32 crash 99",
    ),
    "dropped by a later run": (
        [
            *RUN,
            opened(30, "shutdown"),
            stopped(32),
            started(90, "B", gaps=[opened(30, "restart")]),
            requested(95, symbols="B"),
            ended(97),
            sealed(99),
        ],
        "10 unproven 12 recorded 30 restart 32",
    ),
    "dropped after a crash": (
        [*RUN, sealed(25), started(90, "B", gaps=[opened(40, "crash")]), sealed(99)],
        "10 unproven 12 recorded 40",
    ),
    "dropped, and asked for again": (
        [
            *RUN,
            opened(30, "shutdown"),
            stopped(32),
            started(40, "B", gaps=[opened(30, "restart")]),
            requested(41, symbols="B"),
            ended(43),
            opened(50, "shutdown"),
            stopped(52),
            started(60, "A", gaps=[opened(50, "restart")]),
            requested(61),
            ended(63),
            proven(64),
            sealed(70),
        ],
        "10 unproven 12 recorded 30 restart 32 - 61 restart 63 unproven 64 recorded 70",
    ),
    "dropped while it runs": (
        [*RUN, opened(20, "refused", "A"), dropped(30), sealed(40)],
        "10 unproven 12 recorded 20 refused 30",
    ),
    "dropped while it runs, and asked for again": (
        [*RUN, dropped(20), requested(30), proven(14, at=31), proven(35), sealed(40)],
        "10 unproven 12 recorded 20 - 30 unproven 35 recorded 40",
    ),
    "what came late before a gap proves nothing of its time": (
        [*RUN, opened(20, at=31) | {"heard": 30}, ended(42), sealed(50)],
        "10 unproven 12 recorded 20 unproven 31 connection 42 recorded 50",
    ),
    "the clock was set forward: what it skipped nobody lived": (
        [*RUN, stepped(1000, 970), sealed(1010)],
        "10 unproven 12 recorded 30 clock 1000 recorded 1010",
    ),
    "the machine slept": (
        [*RUN, stepped(1000, 970, slept=965), sealed(1010)],
        "10 unproven 12 recorded 30 sleep 1000 recorded 1010",
    ),
    "the clock was set forward before a trade came": (
        [started(0), requested(10), stepped(1000, 970), proven(1004), sealed(1010)],
        "10 unproven 30 clock 1000 unproven 1004 recorded 1010",
    ),
    "the clock was set forward within a gap": (
        [*RUN, opened(20), stepped(1000, 970), ended(1005), sealed(1010)],
        "10 unproven 12 recorded 20 connection 1005 recorded 1010",
    ),
    "the clock was wrong until it was set": (
        [started(0), requested(10), doubted(14), proven(12, at=15), stepped(1000, 970), sealed(1010)],
        "10 unproven 30 clock 1000 recorded 1010",
    ),
    "the clock was wrong for the whole run": (
        [
            started(0),
            requested(10),
            doubted(14),
            proven(12, at=15),
            opened(30, "shutdown"),
            stopped(32),
            started(90),
            requested(93),
            ended(95),
            proven(96),
            sealed(99),
        ],
        "10 unproven 30 shutdown 95 unproven 96 recorded 99",
    ),
    "the clock was wrong, and then it was not": (
        [*RUN, doubted(14, since=13), trusted(20), sealed(30)],
        "10 unproven 12 recorded 13 unproven 20 recorded 30",
    ),
    "the clock was wrong in another way after it was set": (
        [*RUN, doubted(14), stepped(50, 20), doubted(51, since=50), sealed(60)],
        "10 unproven 30 clock 50 unproven 60",
    ),
    "the clock was set back: what was blind once is not claimed": (
        [*RUN, opened(110), ended(120), stepped(100, -50), sealed(160)],
        "10 unproven 12 recorded 110 unproven 120 recorded 160",
    ),
    "the clock was set back within a gap": (
        [*RUN, opened(50), stepped(40, -20), ended(45), sealed(80)],
        "10 unproven 12 recorded 40 unproven 45 recorded 50 unproven 60 recorded 80",
    ),
    "the clock was set back while nobody looked": (
        [
            *RUN,
            opened(50, "shutdown"),
            stopped(52),
            started(30, gaps=[opened(50, "restart")]),
            requested(32),
            ended(35),
            proven(35),
            sealed(70),
        ],
        "10 unproven 12 recorded 30 unproven 35 recorded 50 unproven 52 recorded 70",
    ),
    "the clock was set back: nothing beyond the last word": (
        [*RUN, stepped(50, -50), sealed(55)],
        "10 unproven 12 recorded 55",
    ),
}


@pytest.mark.parametrize("story", ONE_SYMBOL)
def test_what_is_said_of_one_symbol(story: str) -> None:
    facts, expected = ONE_SYMBOL[story]
    assert told(find_coverage(facts).intervals("A")) == expected


def test_what_is_recorded_is_proved_where_the_venue_counts() -> None:
    counted = {**started(0), "id_column": "trade_id"}
    facts = [counted, requested(10), proven(12), stopped(20), started(30, "A"), requested(31), proven(32), sealed(40)]
    intervals = find_coverage(facts).intervals("A")
    assert [(one.start_us, one.proof) for one in intervals if one.state == "recorded"] == [(12, "ids"), (32, None)]
    assert sum_proved(intervals) == 8
    assert all(one.proof is None for one in intervals if one.state != "recorded")


def test_of_two_tellings_the_one_without_proof_stands() -> None:
    pieces = [Interval("A", "recorded", None, 0, 10, "ids"), Interval("A", "recorded", None, 5, 8)]
    assert [(one.start_us, one.end_us, one.proof) for one in join_intervals("A", pieces)] == [
        (0, 5, "ids"),
        (5, 8, None),
        (8, 10, "ids"),
    ]


def test_each_symbol_has_its_own_proof() -> None:
    facts = [started(0, "A", "B"), requested(10, symbols="AB"), proven(12), proven(15, symbol="B"), sealed(20)]
    coverage = find_coverage(facts)
    assert coverage.symbols == ["A", "B"]
    assert told(coverage.intervals("A")) == "10 unproven 12 recorded 20"
    assert told(coverage.intervals("B")) == "10 unproven 15 recorded 20"
    assert find_coverage(facts, ["B", "C"]).symbols == ["B"]
    assert coverage.intervals("C") == []


def test_the_horizon_is_the_newest_of_the_last_fact_and_the_journal() -> None:
    assert find_coverage(RUN).horizon_us == 12
    live = find_coverage(RUN, journaled_us=500)
    assert live.horizon_us == 500
    assert told(live.intervals("A")) == "10 unproven 12 recorded 500"
    assert find_coverage([*RUN, sealed(600)], journaled_us=500).horizon_us == 600
    assert find_coverage([]).horizon_us == 0


def test_a_gap_counts_while_somebody_is_claimed() -> None:
    facts = [
        *RUN, opened(20, "refused", "A"), opened(30, "shutdown"), stopped(32),
        started(90, "B", gaps=[opened(30, "restart"), opened(20, "refused", "A")]),
        requested(95, symbols="B"), ended(97), sealed(99),
    ]  # fmt: skip
    gaps = find_coverage(facts).gaps
    assert gaps == [Gap("A", "refused", 20, 32), Gap(None, "restart", 30, 32), Gap(None, "restart", 95, 97)]
    assert blind_by_cause(gaps) == {"refused": 12, "restart": 4}


def test_time_that_several_symbols_were_blind_counts_once() -> None:
    gaps = [Gap("A", "refused", 0, 10), Gap("B", "refused", 5, 12), Gap(None, "stall", 8, 9)]
    assert blind_by_cause(gaps) == {"refused": 12, "stall": 1}
    assert blind_by_cause(clip(gaps, 6, 8)) == {"refused": 2}


INTERVALS = find_coverage([*RUN, opened(20), ended(24), sealed(40)]).intervals("A")


@pytest.mark.parametrize(
    ("at", "state"),
    [(9, None), (10, "unproven"), (11, "unproven"), (12, "recorded"), (20, "blind"), (39, "recorded"), (40, None)],
)
def test_the_state_at_a_moment(at: int, state: str | None) -> None:
    found = state_at(INTERVALS, at)
    assert (found and found.state) == state


@pytest.mark.parametrize(
    ("start", "end", "shares"),
    [
        (0, 100, Shares(24, 4, 2)),
        (12, 20, Shares(8, 0, 0)),
        (11, 21, Shares(8, 1, 1)),
        (40, 50, Shares(0, 0, 0)),
    ],
)
def test_shares_of_a_span(start: int, end: int, shares: Shares) -> None:
    assert sum_shares(clip(INTERVALS, start, end)) == shares


# Whatever the facts and the clock


@st.composite
def stories(draw: st.DrawFn) -> list[Fact]:
    """Facts as a recorder might write them, on a clock that mostly goes forward; cut anywhere, as by a crash."""
    now, facts = 1000, [started(1000, "A", "B")]
    for _ in range(draw(st.integers(0, 25))):
        now += draw(st.sampled_from([0, 1, 5, 20, 20, 20, -30]))
        connection = draw(st.integers(1, 3))
        symbol = draw(st.sampled_from(["A", "B"]))
        facts.append(
            draw(
                st.sampled_from(
                    [
                        started(now, *draw(st.sampled_from(["A", "B", "AB"])), gaps=[opened(now - 9, "crash")]),
                        requested(now, connection, "AB"), proven(now - 3, connection, symbol, at=now), lost(now),
                        opened(now - 2, at=now), ended(now), opened(now, "refused", symbol), ended(now, symbol),
                        stopped(now), dropped(now, symbol), stepped(now, draw(st.sampled_from([-40, 40]))), sealed(now),
                    ]
                )
            )
        )  # fmt: skip
    return facts


@given(stories())
def test_intervals_are_sorted_apart_and_end_at_the_horizon(facts: list[Fact]) -> None:
    coverage = find_coverage(facts)
    asked = {symbol for fact in facts if fact["fact"] == "symbols.requested" for symbol in fact["symbols"]}
    assert set(coverage.symbols) == asked
    for symbol in asked:
        intervals = coverage.intervals(symbol)
        assert all(one.start_us < one.end_us <= coverage.horizon_us for one in intervals)
        assert all(one.end_us <= other.start_us for one, other in pairwise(intervals))
        assert all((one.cause is not None) == (one.state == "blind") for one in intervals)


@given(stories(), st.data())
def test_a_moment_in_a_gap_is_never_recorded(facts: list[Fact], data: st.DataObject) -> None:
    """It is blind; only where a clock was set back, which may have shown it twice, and only where a trade proved the
    symbol, it may be unproven: recorded once and blind once.
    """
    coverage = find_coverage(facts)
    set_back = any(after["at"] < before["at"] or after.get("by_us", 0) < 0 for before, after in pairwise(facts))
    for gap in coverage.gaps:
        at = data.draw(st.integers(gap.start_us, gap.end_us - 1))
        for symbol in coverage.symbols if gap.symbol is None else [gap.symbol]:
            found = state_at(coverage.intervals(symbol), at)
            proven = any(fact["fact"] == "symbol.proven" and fact["symbol"] == symbol for fact in facts)
            assert found is None or found.state == "blind" or (found.state == "unproven" and set_back and proven)


def test_a_gap_of_all_is_one_of_those_that_nothing_filled() -> None:
    story = [started(0, "A", "B"), requested(10, symbols="AB"), proven(12), proven(12, symbol="B"), lost(31)]
    story += [opened(30, at=31), requested(40, 2, symbols="AB"), ended(42), proven(45, 2), proven(45, 2, symbol="B")]
    assert find_coverage([*story, filled(30, 45), sealed(60)]).gaps == [Gap(None, "connection", 30, 42)]
    both = [filled(30, 45), filled(35, 45, "B")]
    assert find_coverage([*story, *both, sealed(60)]).gaps == [Gap(None, "connection", 30, 35)]
    assert find_coverage([*story, *both, filled(30, 35, "B"), sealed(60)]).gaps == []


# The state of each row


STORY = [
    started(0, "A", "B"), requested(10, symbols="AB"), proven(20, symbol="A"), lost(40), requested(50, 2, "A"),
    proven(60, 2, "A"), {"at": 70, "fact": "symbol.dropped", "symbol": "B"}, closed(90, 2), stopped(95),
]  # fmt: skip


@settings(deadline=None)  # the first call imports
@given(st.lists(st.tuples(st.sampled_from("ABC"), st.integers(0, 94)), max_size=30))
def test_each_row_has_the_state_of_its_moment(rows: list[tuple[str, int]]) -> None:
    found = find_coverage(STORY)
    table = pa.table(
        {"symbol": pa.array([symbol for symbol, _ in rows], pa.string()).dictionary_encode(),
         "received_at": pa.array([at for _, at in rows], RECEIVED_AT)}
    )  # fmt: skip
    expected = [state_at(found.intervals(symbol), at) for symbol, at in rows]
    assert find_states(table, found).to_pylist() == [one and one.state for one in expected]


def test_the_newest_row_is_at_the_horizon() -> None:
    found = find_coverage([started(0), requested(10), proven(20)], None, 80)
    table = pa.table({"symbol": ["A", "A"], "received_at": pa.array([found.horizon_us, 5], RECEIVED_AT)})
    assert find_states(table, found).to_pylist() == ["recorded", None]


# Several connections


def went_on(at: int, since: int, symbols: str = "", connection: int = 2) -> Fact:
    """A connection was lost, and another one, which is open, goes on with these."""
    return {**requested(at, connection, symbols), "since": since}


def joined(at: int, connection: int = 2) -> Fact:
    return {"at": at, "fact": "connection.joined", "connection": connection}


@pytest.mark.parametrize(
    ("facts", "states"),
    [
        pytest.param(
            [requested(10), proven(20), joined(30), lost(50), went_on(50, 49), stopped(90)],
            [("unproven", 10, 20), ("recorded", 20, 90)],
            id="the other one had brought it",
        ),
        pytest.param(
            [requested(10), proven(20), joined(30), lost(50), went_on(50, 49, "A"), proven(60, 2), stopped(90)],
            [("unproven", 10, 20), ("recorded", 20, 50), ("unproven", 50, 60), ("recorded", 60, 90)],
            id="it has yet to bring it",
        ),
        pytest.param(
            [requested(10), proven(20), joined(30), lost(80), went_on(80, 39, "A"), proven(60, 2, at=80), stopped(90)],
            [("unproven", 10, 20), ("recorded", 20, 40), ("unproven", 40, 60), ("recorded", 60, 90)],
            id="the one that is lost had been silent for long",
        ),
    ],
)
def test_a_connection_that_is_lost_beside_another(facts: list[Fact], states: list[tuple[str, int, int]]) -> None:
    told = find_coverage([started(0), *facts]).intervals("A")
    assert [(one.state, one.start_us, one.end_us) for one in told] == states


def test_a_silence_that_began_on_a_closed_day_is_unproven_there() -> None:
    """The facts of the day before have become data, which say that it was recorded."""
    day: Fact = {
        "at": 100, "fact": "day.started", "run": 1, "open_gaps": [], "requested": ["A"], "unconnected": None,
        "segment": 1, "closed": 0, "last_received": 90,
        "asked": [{"connection": 1, "since": 10, "proven": {"A": 20}, "unproven": []}],
    }  # fmt: skip
    told = find_coverage([day, lost(150), went_on(150, 79, "A"), proven(160, 2), stopped(190)]).intervals("A")
    assert [(one.state, one.start_us, one.end_us) for one in told] == [
        ("unproven", 80, 100), ("unproven", 100, 160), ("recorded", 160, 190),
    ]  # fmt: skip
