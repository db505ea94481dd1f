"""Intervals of blindness, as the ledger then tells them."""

from collections.abc import Callable
from pathlib import Path

import pytest
from journals import make_ledger, make_root

from ingestor.capture.gaps import Gaps, OpenGap
from ingestor.facts import Fact
from ingestor.layout import Layout
from ingestor.ledger import Ledger, list_ledgers, read_facts


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return make_root(tmp_path)


@pytest.fixture
def ledger(layout: Layout) -> Ledger:
    return make_ledger(layout)


def facts(layout: Layout) -> list[Fact]:
    """Without the time they were told."""
    told = [fact for path in list_ledgers(layout) for fact in read_facts(path)]
    return [{name: value for name, value in fact.items() if name != "at"} for fact in told]


def test_a_gap_opens_and_closes(layout: Layout, ledger: Ledger) -> None:
    gaps = Gaps(ledger, 3, [])
    gaps.open("connection", 100)
    gaps.close(250)
    gap = {"gap": "r000003-1", "cause": "connection", "symbol": None}
    assert facts(layout) == [
        {"fact": "gap.opened", "since": 100, **gap},
        {"fact": "gap.closed", "since": 100, "until": 250, **gap},
    ]
    assert gaps.blind_us["connection"] == 150


def test_a_gap_that_is_open_goes_on_under_its_own_cause(layout: Layout, ledger: Ledger) -> None:
    gaps = Gaps(ledger, 1, [])
    gaps.open("stall", 100)
    gaps.open("connection", 200)
    gaps.close(300)
    gaps.close(400)
    assert [(fact["fact"], fact["cause"]) for fact in facts(layout)] == [
        ("gap.opened", "stall"),
        ("gap.closed", "stall"),
    ]


def test_symbols_have_gaps_of_their_own(layout: Layout, ledger: Ledger) -> None:
    gaps = Gaps(ledger, 1, [])
    gaps.open("refused", 100, "AAPL")
    gaps.open("symbol_mute", 110, "MSFT")
    gaps.open("connection", 120)
    assert gaps.blind_symbols == {"AAPL", "MSFT"}
    gaps.close(130)
    gaps.close(140, "AAPL")
    assert gaps.blind_symbols == {"MSFT"}
    assert [fact["symbol"] for fact in facts(layout) if fact["fact"] == "gap.closed"] == [None, "AAPL"]


def test_what_an_earlier_run_left_open_ends_here_under_its_name(layout: Layout, ledger: Ledger) -> None:
    gaps = Gaps(ledger, 2, [OpenGap("r000001-7", "crash", 50), OpenGap("r000001-8", "refused", 60, "AAPL")])
    gaps.open("connection", 70)
    gaps.close(80)
    gaps.close(90, "AAPL")
    assert [(fact["fact"], fact["gap"]) for fact in facts(layout)] == [
        ("gap.closed", "r000001-7"),
        ("gap.closed", "r000001-8"),
    ]


def test_nobody_waits_for_symbols_that_are_not_asked_for(layout: Layout, ledger: Ledger) -> None:
    gaps = Gaps(ledger, 2, [OpenGap("r000001-8", "refused", 60, "OLD"), OpenGap("r000001-9", "refused", 60, "AAPL")])
    gaps.drop_others(["AAPL"], 100)
    assert gaps.blind_symbols == {"AAPL"}
    assert [(fact["fact"], fact["symbol"]) for fact in facts(layout)] == [
        ("symbol.dropped", "OLD"),
        ("gap.closed", "OLD"),
    ]


def test_a_gap_ends_with_the_first_trade_within_it_and_begins_behind_the_last(layout: Layout, ledger: Ledger) -> None:
    gaps = Gaps(ledger, 1, [])
    gaps.hear(["AAPL"], 100, lambda _: 90, lambda _: None)
    gaps.open("symbol_mute", 80, "AAPL")  # decided before that trade was recorded
    gaps.open("stall", 80)
    gaps.hear(["MSFT"], 100, lambda _: 95, lambda since_us: None if since_us >= 95 else 95)
    assert gaps.whole is not None, "what was received before it ends nothing"
    gaps.hear(["AAPL"], 140, lambda _: 120, lambda since_us: 120 if since_us < 120 else None)
    told = [(fact["fact"], fact["symbol"], fact.get("heard"), fact.get("until")) for fact in facts(layout)]
    assert told == [
        ("gap.opened", "AAPL", 100, None),
        ("gap.opened", None, 100, None),
        ("gap.closed", "AAPL", None, 120),
        ("gap.closed", None, None, 120),
    ]


def test_a_clock_that_is_set_back_keeps_no_gap_open(ledger: Ledger) -> None:
    gaps = Gaps(ledger, 1, [])
    gaps.open("stall", 1000)
    gaps.step(-900)
    gaps.hear(["AAPL"], 140, lambda _: 120, lambda since_us: 120 if since_us < 120 else None)
    assert gaps.whole is None


def within(*received_us: int) -> tuple[int, Callable[[str], int], Callable[[int], int | None]]:
    """What a block of trades with these receipts tells."""

    def first_after(since_us: int) -> int | None:
        return next((at_us for at_us in received_us if at_us > since_us), None)

    return received_us[-1], lambda _: received_us[0], first_after


def test_a_trade_from_before_a_loss_ends_what_was_open_and_the_loss_follows(layout: Layout, ledger: Ledger) -> None:
    """The recorder may come to it when the connection is lost already."""
    gaps = Gaps(ledger, 1, [])
    gaps.open("stall", 100)
    gaps.open("connection", 200)
    gaps.hear(["AAPL"], *within(150))
    assert gaps.whole == OpenGap("r000001-2", "connection", 200)
    gaps.open("connection", 220)
    gaps.hear(["AAPL"], *within(180))
    assert gaps.whole is not None
    gaps.close(300)
    gaps.open("stall", 310)
    gaps.hear(["AAPL"], *within(320))
    assert gaps.whole is None, "what followed was over with the first frame"
    told = [(fact["cause"], fact["since"], fact.get("until")) for fact in facts(layout)]
    assert told[:4] == [
        ("stall", 100, None),
        ("stall", 100, 150),
        ("connection", 200, None),
        ("connection", 200, 300),
    ]


def test_a_trade_that_waits_ends_a_gap_beside_which_another_was_found(layout: Layout, ledger: Ledger) -> None:
    gaps = Gaps(ledger, 1, [])
    gaps.open("stall", 100)
    gaps.add("connection", 120, 140, heard_us=120)
    gaps.hear(["AAPL"], *within(140))
    told = [(fact["fact"], fact["cause"], fact["since"], fact.get("until")) for fact in facts(layout)]
    assert told == [
        ("gap.opened", "stall", 100, None),
        ("gap.closed", "stall", 100, 101),
        ("gap.opened", "connection", 120, None),
        ("gap.closed", "connection", 120, 140),
        ("gap.opened", "stall", 100, None),
        ("gap.closed", "stall", 100, 140),
    ]
