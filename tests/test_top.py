"""The live view: what a batch of trades makes of the board, and what fits a terminal."""

import os
import pty
import sys
import termios
from datetime import UTC, datetime
from io import StringIO

import pyarrow as pa
import pytest
from rich.console import Console

from ingestor.cli.top import (
    HEADINGS,
    UNASKED_MAX,
    SymbolBoard,
    SymbolRow,
    View,
    cells,
    pressed_keys,
    render_rich,
    render_text,
    sparkline,
)
from ingestor.coverage import find_coverage
from ingestor.schema import TRADES
from ingestor.system import is_readable

NOW = 1_795_200_000.0
SECOND_US = 1_000_000
NOW_US = int(NOW) * SECOND_US


def trades(*rows: tuple[str, float], received_at: float = NOW, delay_s: float = 0.1) -> pa.RecordBatch:
    """(symbol, price) of each."""
    received = datetime.fromtimestamp(received_at, UTC)
    return pa.RecordBatch.from_pylist(
        [
            {
                "timestamp": datetime.fromtimestamp(received_at - delay_s, UTC),
                "symbol": symbol,
                "price": price,
                "volume": 1.0,
                "conditions": None,
                "received_at": received,
                "sequence": number,
                "repeated": False,
            }
            for number, (symbol, price) in enumerate(rows)
        ],
        schema=TRADES,
    )


def board_after(*batches: tuple[float, pa.RecordBatch]) -> SymbolBoard:
    board = SymbolBoard(None)
    for now, batch in batches:
        board.add_trades(batch, now)
    return board


# The board


def test_a_row_shows_the_last_trade_and_counts_all() -> None:
    row = board_after((NOW, trades(("AAPL", 189.5), ("MSFT", 400.0), ("AAPL", 190.25)))).rows["AAPL"]
    assert (row.price, row.counts[-1]) == (190.25, 2)
    assert row.traded_at == NOW
    assert row.delay_s == pytest.approx(0.1)


def test_the_rate_is_over_the_last_ten_seconds() -> None:
    many = trades(*[("AAPL", 1.0)] * 100)
    board = board_after(*((NOW + second, many) for second in range(5)))
    assert cells(board.rows["AAPL"], NOW + 4)[2] == "100.0"
    for second in range(5, 10):
        board.add_trades(trades(), NOW + second)
    assert cells(board.rows["AAPL"], NOW + 9)[2] == "50.0"
    board.add_trades(trades(), NOW + 500)
    assert cells(board.rows["AAPL"], NOW + 500)[2:4] == ("0.0", "8.3 min")


def test_the_course_has_a_point_a_second() -> None:
    batches = [(NOW + second, trades(("AAPL", price))) for second, price in enumerate((1.0, 3.0, 2.0, 5.0))]
    board = board_after(*batches, (NOW + 4.2, trades()), (NOW + 4.9, trades()))
    assert list(board.rows["AAPL"].prices) == [1.0, 3.0, 2.0, 5.0]


@pytest.mark.parametrize(
    ("prices", "line"), [([], ""), ([5.0], "▁"), ([5.0, 5.0], "▁▁"), ([1.0, 8.0, 4.5], "▁█▅"), ([3, 2, 1], "█▅▁")]
)
def test_a_sparkline_spans_lowest_to_highest(prices: list[float], line: str) -> None:
    assert sparkline(prices) == line


def facts(*more: dict[str, object]) -> list[dict[str, object]]:
    started = {"at": NOW_US - 7200 * SECOND_US, "fact": "run.started", "open_gaps": [], "tickers": ["AAPL", "MSFT"]}
    requested = {"at": NOW_US - 7199 * SECOND_US, "fact": "symbols.requested", "connection": 1}
    return [started, {**requested, "symbols": ["AAPL", "MSFT"]}, *more]


def proven(symbol: str, ago_s: int) -> dict[str, object]:
    at_us = NOW_US - ago_s * SECOND_US
    return {"at": at_us, "fact": "symbol.proven", "connection": 1, "symbol": symbol, "since": at_us}


def test_the_state_and_todays_gaps_come_from_the_ledger() -> None:
    gap = {"gap": "r1-1", "cause": "stall", "symbol": None}
    story = facts(
        proven("AAPL", 7000),
        {"at": NOW_US - 600 * SECOND_US, "fact": "gap.opened", "since": NOW_US - 600 * SECOND_US, **gap},
        {"at": NOW_US - 590 * SECOND_US, "fact": "gap.closed", "until": NOW_US - 590 * SECOND_US, **gap},
    )
    board = SymbolBoard(None)
    board.set_coverage(find_coverage(story, None, NOW_US), NOW)
    aapl, msft = board.rows["AAPL"], board.rows["MSFT"]
    assert (aapl.state, aapl.gaps, aapl.blind_s) == ("recorded", 1, 10.0)
    assert msft.state == "unproven"
    assert cells(aapl, NOW)[-2:] == ("recorded", "1 (10 s)")


def test_a_blind_symbol_shows_the_cause() -> None:
    opened = {"at": NOW_US - SECOND_US, "fact": "gap.opened", "gap": "r1-1", "cause": "refused", "symbol": "MSFT"}
    board = SymbolBoard(["MSFT"])
    board.set_coverage(find_coverage(facts({**opened, "since": NOW_US - SECOND_US}), None, NOW_US), NOW)
    assert {row.symbol: row.state for row in board.rows.values()} == {"MSFT": "blind (refused by the venue)"}


def test_a_gap_that_is_open_lasts_until_now() -> None:
    """Also where the ledger has said nothing since."""
    opened = {"at": NOW_US - 40 * SECOND_US, "fact": "gap.opened", "gap": "r1-1", "cause": "connection", "symbol": None}
    story = facts(proven("AAPL", 7000), {**opened, "since": NOW_US - 40 * SECOND_US})
    board = SymbolBoard(["AAPL"])
    board.set_coverage(find_coverage(story, None, NOW_US - 30 * SECOND_US), NOW)
    row = board.rows["AAPL"]
    assert (row.state, row.gaps, row.blind_s) == ("blind (no connection)", 1, 40.0)


def test_a_dropped_symbol_leaves_the_board() -> None:
    board = SymbolBoard(None)
    board.add_trades(trades(("MSFT", 1.0)), NOW)
    dropped = {"at": NOW_US - 60 * SECOND_US, "fact": "symbol.dropped", "symbol": "MSFT"}
    board.set_coverage(find_coverage(facts(proven("AAPL", 7000), dropped), None, NOW_US), NOW)
    assert list(board.rows) == ["AAPL"]


# What fits


def widest() -> SymbolRow:
    row = SymbolRow(
        "BINANCE:BTCUSDT", price=97_123.45, traded_at=NOW - 100, delay_s=1.234, state="blind (symbol silent)", gaps=12
    )
    row.counts.extend([50_000] * 10)
    row.prices.extend([1.0, 2.0] * 4)
    row.blind_s = 119.0
    return row


def shown(rows: list[SymbolRow], width: int, view: View | None = None, height: int = 24) -> list[str]:
    console = Console(width=width, height=height, file=StringIO(), force_terminal=True, color_system=None)
    with console.capture() as captured:
        console.print(render_rich(("head", "", rows, NOW), height, width, view))
    return captured.get().splitlines()


@pytest.mark.parametrize(("width", "lacks"), [(120, set()), (80, {"trend"}), (60, {"trend", "gaps today", "per s"})])
def test_a_narrow_terminal_drops_columns_and_cuts_no_number(width: int, lacks: set[str]) -> None:
    lines = shown([widest()], width)
    text = "\n".join(lines)
    for heading, cell in zip(HEADINGS, cells(widest(), NOW), strict=True):
        assert (heading in lines[2]) is (heading not in lacks), heading
        assert cell in text or heading in lacks
    assert "…" not in text
    assert max(map(len, lines)) <= width


def test_more_symbols_than_lines_are_pages() -> None:
    rows, view = [SymbolRow(f"S{number:03}") for number in range(500)], View()
    lines = shown(rows, 100, view)
    assert len(lines) <= 24
    assert lines[-1].startswith("symbols 1 to 19 of 500, n and p turn the page; by symbol; keys: ")
    assert view.press("n", 27)
    assert [line.split()[0] for line in shown(rows, 100, view)[3:5]] == ["S019", "S020"]
    for _ in range(100):
        view.press("n", 27)
    assert view.page == 26
    assert view.press("p", 27)
    assert view.page == 25
    assert not view.press("q", 27)


def test_the_order_is_that_of_the_symbols_until_a_key_asks_for_another() -> None:
    rows = [SymbolRow("A"), SymbolRow("B", state="blind (no connection)"), SymbolRow("C")]
    rows[2].counts[-1] = 9
    view = View()
    assert [row.symbol for row in view.sort(rows[::-1])] == ["A", "B", "C"]
    for key, expected in (("r", "CAB"), ("b", "BAC"), ("x", "BAC"), ("s", "ABC")):
        assert view.press(key, 1)
        assert "".join(row.symbol for row in view.sort(rows)) == expected


def test_keys_come_at_once_and_the_terminal_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(theirs) as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        before = termios.tcgetattr(terminal)
        with pressed_keys() as keys:
            os.write(ours, b"rq")
            assert is_readable(terminal.fileno(), 10)
            assert keys() == "rq"
            assert keys() == ""
        assert termios.tcgetattr(terminal) == before
    os.close(ours)


def test_plain_text_fits_eighty_columns() -> None:
    lines = render_text("head", "trouble", [widest()], NOW).splitlines()
    assert lines[:2] == ["head", "! trouble"]
    assert {"symbol", "price", "state"} <= {heading for heading in HEADINGS if heading in lines[2]}
    assert max(map(len, lines)) <= 80


def test_hostile_names_are_text_and_not_markup() -> None:
    console = Console(width=80, height=24, file=StringIO())
    with console.capture() as captured:
        console.print(render_rich(("head", "", [SymbolRow("[red]X[/]")], NOW), 24))
    assert "[red]X[/]" in captured.get()


def test_old_symbols_are_no_commands_for_the_terminal() -> None:
    """Those that were recorded before they were refused."""
    board = board_after((NOW, trades(("\x1b[2J", 1.0), ("\u202eLPAA", 2.0))))
    text = render_text("", "", list(board.rows.values()), NOW)
    assert r"\x1b[2J" in text
    assert r"\u202eLPAA" in text
    assert text.replace("\n", "").isprintable()


def test_symbols_that_a_venue_invents_are_forgotten() -> None:
    board = SymbolBoard(None)
    for thousand in range(12):
        board.add_trades(trades(("AAPL", 1.0), *((f"S{thousand}-{one}", 1.0) for one in range(1000))), NOW)
    assert len(board.rows) == UNASKED_MAX
    assert {"AAPL", "S11-999"} <= board.rows.keys()
