"""Closed days: what the ledger told becomes data, and says the same, wherever a crash falls between the steps."""

import shutil
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from journals import Life, make_root
from ledger_stories import FIRST, HOUR_US, LAST_DAY, SYMBOLS, Story, as_format_1, write_story
from requirements import of_tier
from structlog.testing import capture_logs

from ingestor.accounts import read_accounts, read_seals
from ingestor.closed_days import (
    Row,
    close_days,
    has_days_to_close,
    join_rows,
    list_closed_days,
    oldest_and_newest_closed_days,
    read_day,
)
from ingestor.coverage import Coverage, Interval, clip, sum_shares
from ingestor.dataset.arguments import Span, day_start_ms
from ingestor.dataset.coverage import load_coverage
from ingestor.dataset.verify import Verification
from ingestor.errors import DamagedFile
from ingestor.facts import Fact
from ingestor.history import read_history
from ingestor.layout import Layout
from ingestor.ledger import DAY_US, day_of, list_ledgers, read_all_facts, take_over_format_1


def all_intervals(coverage: Coverage) -> dict[str, list[Interval]]:
    return {symbol: coverage.intervals(symbol) for symbol in coverage.symbols}


def close_all(layout: Layout, before: date = LAST_DAY) -> list[date]:
    return list(close_days(layout, before))


def test_closed_days_say_what_the_ledger_said(tmp_path: Path) -> None:
    layout = write_story(tmp_path).layout
    before = load_coverage(layout)
    intervals = all_intervals(before)
    days = close_all(layout)
    assert len(list_ledgers(layout)) == 1
    assert days == sorted(days)
    after = load_coverage(layout)
    assert all_intervals(after) == intervals
    assert after.horizon_us == before.horizon_us
    whole = [gap for gap in before.gaps if gap.symbol is None]
    assert [gap for gap in after.gaps if gap.symbol is None] == whole
    assert [fact["fact"] for fact in read_all_facts(layout)].count("run.started") == 3
    assert [step for step in Verification(layout).run() if step] == []
    assert not has_days_to_close(layout, LAST_DAY)
    assert close_all(layout) == []


YEAR_H = 8766.0


class Run(NamedTuple):
    """A run, in hours of the time that really passes."""

    begins: float
    ends: float
    wrong: float = 0.0
    """So far ahead is its clock when it begins; the venue's clock shows it, once there is a connection."""
    set_right: float | None = None
    connects: float | None = None
    """When, if not at once."""
    killed: bool = False
    """It ends without a word."""


def live(story: Story, run: Run) -> list[tuple[float, float]]:
    """Facts of this run; when it heard the venue by a clock that was right."""
    wrong, heard = run.wrong, []
    right_from = run.begins if not wrong else run.ends if run.set_right is None else run.set_right
    story.hour = run.begins + wrong
    story.start(("A", "B"))
    connects = run.begins if run.connects is None else run.connects
    for hour in sorted({connects, right_from}):
        if hour == right_from and wrong and run.set_right is not None:
            showed_us, story.hour = story.at(hour + wrong), hour
            story.tell("clock.stepped", by_us=round(-wrong * HOUR_US), since=showed_us)
            wrong = 0.0
        if hour == connects < run.ends:
            story.hour = hour + wrong
            if wrong:
                story.tell("clock.doubted", by_us=round(wrong * HOUR_US), since=story.at())
            story.connect()
            story.prove("A", "B")
    story.hour = run.ends + wrong
    if run.killed:
        story.tell("disk.low", free=1, floor=2)
        story.kill()
    else:
        story.stop()
    if max(right_from, connects) < run.ends:
        heard.append((max(right_from, connects), run.ends))
    return heard


CLOCKS = {
    "ahead by years, then a restart": [Run(8, 10), Run(20, 22, YEAR_H * 2), Run(30, 32), Run(56, 58)],
    "ahead by decades": [Run(8, 10), Run(20, 22, YEAR_H * 60), Run(30, 32), Run(56, 58)],
    "local time taken for UTC": [Run(8, 10), Run(20, 21, 9), Run(22, 40), Run(56, 58)],
    "no battery: 1970, set before the connection": [
        Run(8, 10), Run(30, 34, -20_000 * 24, set_right=30.1, connects=30.2), Run(56, 58)],
    "no battery: 1970, set on the connection": [
        Run(8, 10), Run(30, 34, -20_000 * 24, set_right=31), Run(56, 58), Run(80, 82)],
    "no battery: a factory's date, in the run before as well": [
        Run(8, 10), Run(20, 21, -YEAR_H, connects=99), Run(30, 34, -YEAR_H - 5, set_right=30.1), Run(56, 58)],
    "no battery at the first start": [Run(8, 34, -20_000 * 24, set_right=9), Run(56, 58)],
    "wrong for more than a day": [Run(8, 10), Run(20, 50, YEAR_H, set_right=49), Run(60, 62)],
    "an hour behind, in a run that goes on": [Run(8, 10), Run(20, 50, -1, set_right=49), Run(60, 62)],
    "off for years, by a clock that is right": [Run(8, 10), Run(8 + 3 * YEAR_H, 34 + 3 * YEAR_H)],
}  # fmt: skip


@pytest.mark.parametrize("name", CLOCKS)
def test_a_wrong_clock_takes_nothing_from_what_was_recorded_by_a_right_one(tmp_path: Path, name: str) -> None:
    check_runs(tmp_path, CLOCKS[name])


@st.composite
def runs_of_two_clocks(draw: st.DrawFn) -> list[Run]:
    """Some by a clock that is right, each of the others between two of these."""
    runs, ended = [], 0.0
    for number in range(draw(st.integers(1, 3)) * 2 + 1):
        begins = ended + draw(st.sampled_from([0.5, 3, 10, 30]))
        lasts = draw(st.sampled_from([0.5, 2, 15, 40]))
        ended = begins + lasts
        wrong = draw(st.sampled_from([9, -5, 30, -30, YEAR_H, -YEAR_H, 20 * YEAR_H, -20_000 * 24])) if number % 2 else 0
        set_right = draw(st.sampled_from([None, begins + lasts / 2, begins + 0.1])) if wrong else None
        connects = draw(st.sampled_from([begins, begins + 0.2, begins + lasts * 0.6]))
        runs.append(Run(begins, ended, wrong, set_right, connects, draw(st.booleans())))
    return runs


@settings(max_examples=of_tier(50, 10), deadline=None)
@given(runs_of_two_clocks())
def test_runs_by_wrong_clocks_take_nothing_from_those_by_right_ones(
    tmp_path_factory: pytest.TempPathFactory, runs: list[Run]
) -> None:
    check_runs(tmp_path_factory.mktemp("runs"), runs)


def check_runs(folder: Path, runs: list[Run]) -> None:
    """Told by the ledger, and by what is closed day by day; and what no clock has lived fills no files."""
    story, whole, heard = Story(folder / "closed"), Story(folder / "whole"), set[int]()
    for run in runs:
        close_all(story.layout, day_of(story.at(run.begins)))
        heard |= {minute for span in live(story, run) for minute in minutes(*span)}
        live(whole, run)
    # What a wrong clock has shown as well is in doubt, or not: both may be said.
    shown = {
        minute
        for run in runs
        if run.wrong
        for minute in minutes(run.begins + run.wrong, (run.set_right or run.ends) + run.wrong)
    }
    first, last = min(runs[0].begins, min(heard, default=0) / 60), runs[-1].ends
    for layout in (whole.layout, story.layout):
        for symbol in ("A", "B"):
            told = clip(load_coverage(layout).intervals(symbol), story.at(first), story.at(last))
            recorded = {
                minute
                for one in told
                if one.state == "recorded"
                for minute in minutes(story.hour_of(one.start_us), story.hour_of(one.end_us))
            }
            assert heard - shown <= recorded <= heard
            assert sum(one.end_us - one.start_us for one in told) <= story.at(last) - story.at(first)
    years = sum(366 for run in runs if abs(run.wrong) == YEAR_H)
    assert len(list_closed_days(story.layout)) <= (last - runs[0].begins) / 24 + 6 * len(runs) + years


def minutes(from_hour: float, to_hour: float) -> range:
    return range(round(from_hour * 60), round(to_hour * 60))


def test_each_date_has_its_file_and_a_span_reads_no_other(tmp_path: Path) -> None:
    layout = write_story(tmp_path).layout
    whole = all_intervals(load_coverage(layout))
    close_all(layout)
    days = list_closed_days(layout)
    assert days == [day_of(FIRST + number * DAY_US) for number in range(5)]  # the last as far as its facts are closed
    for day in days[:4]:
        start_us = day_start_ms(day) * 1000
        rows = read_day(layout.coverage_file(day))
        assert all(start_us <= row.start_us < row.end_us <= start_us + DAY_US for row in rows)
        span = Span(start_us // 1000, start_us // 1000 + 86_400_000)
        told = load_coverage(layout, ["A"], span=span).intervals("A")
        assert clip(told, start_us, start_us + DAY_US) == clip(whole["A"], start_us, start_us + DAY_US)


def test_any_tool_reads_the_folder(tmp_path: Path) -> None:
    layout = write_story(tmp_path).layout
    take_over_format_1(layout)
    close_all(layout)
    table = ds.dataset(layout.coverage, format="parquet", partitioning="hive").to_table()
    assert set(table.column_names) == {
        "symbol",
        "state",
        "cause",
        "all_symbols",
        "start",
        "end",
        "proof",
        "source",
        "date",
    }
    assert table.num_rows == sum(len(read_day(layout.coverage_file(day))) for day in list_closed_days(layout))


def test_what_ids_say_stays_the_same(tmp_path: Path) -> None:
    story = Story(tmp_path)
    story.hour = 8
    story.start()
    story.connect()
    story.hour = 9
    story.prove("A", "B")
    story.hour = 10
    story.tell("ids.missed", symbol="A", first=7, last=9, count=3, since=story.at(9.5), until=story.at())
    story.hour = 12
    story.lose()
    story.hour = 13
    story.connect()
    story.hour = 14
    story.prove("A", "B")
    base = story.at(11.5)
    story.tell("ids.proven", base=base, before={"A": 0}, symbols={"A": story.at() - base})
    story.hour = 40
    story.stop()
    story.hour = 41
    story.start()
    told = [load_coverage(story.layout).intervals(symbol) for symbol in SYMBOLS]
    assert {(one.state, one.cause, one.proof) for one in told[0]} == {
        ("unproven", None, None),
        ("recorded", None, None),
        ("recorded", None, "ids"),
        ("blind", "lost", None),
        ("blind", "shutdown", None),
    }
    close_all(story.layout)
    assert [load_coverage(story.layout).intervals(symbol) for symbol in SYMBOLS] == told


def test_what_is_filled_afterwards_is_filled_on_the_closed_day(tmp_path: Path) -> None:
    story = Story(tmp_path)
    story.hour = 8
    story.start()
    story.connect()
    story.hour = 9
    story.prove("A", "B")
    story.hour = 12
    story.lose()
    story.hour = 13
    story.connect()
    story.hour = 14
    story.prove("A", "B")
    story.hour = 40
    story.stop()
    close_all(story.layout)
    story.hour = 60
    story.start()
    story.tell("gap.filled", symbol="A", since=story.at(12) - 1, until=story.at(14), source="binance", rows=3)
    story.hour = 62
    story.stop()
    story.hour = 90
    story.start()
    told = load_coverage(story.layout)
    filled = [one for one in told.intervals("A") if one.state == "filled"]
    assert [(one.start_us, one.end_us, one.source) for one in filled] == [(story.at(12), story.at(14), "binance")]
    assert not [one for one in told.intervals("B") if one.state == "filled"]
    assert sum_shares(told.intervals("A")).filled_us == 2 * HOUR_US
    before = [told.intervals(symbol) for symbol in SYMBOLS]
    close_all(story.layout)
    again = load_coverage(story.layout)
    assert [again.intervals(symbol) for symbol in SYMBOLS] == before
    kept = [fact for fact in read_all_facts(story.layout) if fact["fact"] == "gap.filled"]
    assert [fact["rows"] for fact in kept] == [3]  # what coverage doesn't hold is not forgotten


@pytest.mark.parametrize("added", [["proof", "source"], ["source"]])
def test_coverage_of_a_version_that_knew_less_is_read(tmp_path: Path, added: list[str]) -> None:
    layout = write_story(tmp_path).layout
    day = close_all(layout)[0]
    path = layout.coverage_file(day)
    before = read_day(path)
    pq.write_table(pq.read_table(path, partitioning=None).drop_columns(added), path)
    assert read_day(path) == before


class Struck(Exception):
    """The process ends here."""


def struck_versions(layout: Layout, folder: Path) -> Iterator[Layout]:
    """Copies of a root in which the closing ended after each of its steps on the disk."""
    copies: list[Path] = []

    def copy() -> None:
        copies.append(folder / str(len(copies)))
        shutil.copytree(layout.root, copies[-1])

    original = Path.replace, Path.unlink

    def replace(path: Path, target: Path) -> Path:
        done = original[0](path, target)
        copy()
        return done

    def unlink(path: Path, *, missing_ok: bool = False) -> None:
        original[1](path, missing_ok=missing_ok)
        copy()

    Path.replace, Path.unlink = replace, unlink  # type: ignore[method-assign, assignment]
    try:
        close_all(layout)
    finally:
        Path.replace, Path.unlink = original  # type: ignore[method-assign]
    yield from map(Layout, copies)


def test_wherever_a_crash_falls_the_next_call_makes_it_good(tmp_path: Path) -> None:
    layout = write_story(tmp_path / "data").layout
    intervals = all_intervals(load_coverage(layout))
    struck = list(struck_versions(layout, tmp_path))
    assert len(struck) > 12
    for one in struck:
        assert all_intervals(load_coverage(one)) == intervals, "between two steps"
        close_all(one)
        assert all_intervals(load_coverage(one)) == intervals
        assert len(list_ledgers(one)) == 1
        assert [fact["fact"] for fact in read_all_facts(one)].count("run.started") == 3


def test_what_is_damaged_is_set_aside_and_the_rest_goes_on(tmp_path: Path) -> None:
    story = write_story(tmp_path)
    close_all(story.layout)
    damaged = story.layout.coverage_file(day_of(FIRST + 4 * DAY_US))
    damaged.write_bytes(damaged.read_bytes()[:-9])
    with pytest.raises(DamagedFile, match=r"coverage\.parquet: can't be read"):
        load_coverage(story.layout)
    story.hour = 121.0
    story.tell("disk.recovered", free=2, floor=2)
    with capture_logs() as logs:
        close_all(story.layout)
    assert [one["event"] for one in logs] == ["coverage.damaged", "ledger.closed"]
    assert (damaged.parent / "_damaged-coverage.parquet").exists()
    assert load_coverage(story.layout).intervals("A")


def test_a_line_that_was_damaged_leaves_nothing_recorded_until_the_next_proof(tmp_path: Path) -> None:
    """It may have said that something was blind."""
    story = Story(tmp_path)
    story.hour = 1.0
    story.start(("A",))
    story.connect()
    story.prove("A")
    story.hour = 2.0
    story.tell("gap.opened", gap="m", cause="symbol_mute", since=story.at(), symbol="A")
    story.hour = 25.0
    story.tell("disk.low", free=1, floor=2)
    story.hour = 26.0
    story.tell("disk.recovered", free=1, floor=2)
    first, _ = list_ledgers(story.layout)
    first.write_bytes(first.read_bytes().replace(b"symbol_mute", b"symbol_mote"))
    for close in (False, True):
        if close:
            close_all(story.layout)
        told = load_coverage(story.layout).intervals("A")
        assert [one.state for one in told if one.start_us < story.at(25)] == ["unproven"]
        assert told[0].end_us == story.at(25)


def test_accounts_and_seals_are_the_same_when_their_days_are_closed(tmp_path: Path) -> None:
    layout = make_root(tmp_path)
    for _ in range(3):
        life = Life(layout)
        life.writer.append(30)
        life.writer.rotate()
        life.writer.append(5)
        life.stop()
    accounts, seals = list(read_accounts(layout)), read_seals(layout)
    assert len(accounts) == 6
    close_all(layout, date.max)
    assert len(list_ledgers(layout)) == 1
    closed = list(read_accounts(layout))
    assert [{**one, "dates": None} for one in closed] == [{**one, "dates": None, **AS_FILED(one)} for one in accounts]
    assert read_seals(layout) == seals
    assert [step for step in Verification(layout).run() if step] == []


def AS_FILED(account: Fact) -> Fact:  # noqa: N802  a fact of the ledger has more than its account
    return {name: account[name] for name in ("segment", "counts", "symbols", "repeated", "reasons", "aside")}


def test_format_1_is_read_taken_over_and_says_the_same(tmp_path: Path) -> None:
    story = write_story(tmp_path)
    layout = story.layout
    intervals = all_intervals(load_coverage(layout))
    history = read_history(layout)
    as_format_1(layout)
    assert all_intervals(load_coverage(layout)) == intervals, "as it was"
    again = read_history(layout)
    assert (again.run, again.stopped, again.open_gaps) == (history.run, history.stopped, history.open_gaps)
    assert again.asked == history.asked
    take_over_format_1(layout)
    assert not list(layout.coverage.glob("0*.jsonl"))
    assert all_intervals(load_coverage(layout)) == intervals, "moved"
    assert close_all(layout) == [], "the newest can't be understood alone"
    story.hour += 1
    story.start(("A", "B"))
    more = all_intervals(load_coverage(layout))
    assert len(close_all(layout)) > 3
    assert [path.name[:6] for path in list_ledgers(layout)] == ["000004"]
    assert all_intervals(load_coverage(layout)) == more


def test_wherever_a_crash_falls_while_format_1_becomes_data_the_same_is_said(tmp_path: Path) -> None:
    story = write_story(tmp_path / "data")
    as_format_1(story.layout)
    take_over_format_1(story.layout)
    story.hour += 1
    story.start(("A", "B"))
    intervals = all_intervals(load_coverage(story.layout))
    for one in struck_versions(story.layout, tmp_path):
        assert all_intervals(load_coverage(one)) == intervals, "between two steps"
        close_all(one)
        assert all_intervals(load_coverage(one)) == intervals


PIECES = st.lists(
    st.tuples(
        st.sampled_from("AB"), st.sampled_from(("recorded", "blind", "unproven")), st.sampled_from(("x", "y")),
        st.integers(0, 20), st.integers(1, 10),
    ),
    max_size=12,
)  # fmt: skip
RANK = {"blind": 0, "unproven": 1, "recorded": 2}


@settings(max_examples=of_tier(200, 50))
@given(PIECES)
def test_where_claims_meet_the_least_stands(pieces: list[tuple[str, Any, str, int, int]]) -> None:
    rows = [
        Row(symbol, state, cause if state == "blind" else None, state == "blind" or None, start, start + length)
        for symbol, state, cause, start, length in pieces
    ]
    joined = join_rows(rows)
    for symbol in "AB":
        for moment in range(32):
            claims = [row.state for row in rows if row.symbol == symbol and row.start_us <= moment < row.end_us]
            stands = [row.state for row in joined if row.symbol == symbol and row.start_us <= moment < row.end_us]
            assert stands == ([min(claims, key=RANK.__getitem__)] if claims else [])
    assert join_rows([*joined, *rows]) == joined


STEPS = st.lists(st.tuples(st.sampled_from(("connect", "prove", "lose", "late", "stop", "kill")), st.floats(0.1, 9)),
                 min_size=3, max_size=25)  # fmt: skip


def play(story: Story, steps: list[tuple[str, float]], data: st.DataObject) -> None:
    story.start()
    for what, hours in [*steps, ("end", 1.0)]:
        story.hour += hours
        if story.ledger is None:
            story.start()
        match what:
            case "connect":
                story.connect()
            case "prove" if story.connection:
                story.prove(data.draw(st.sampled_from(SYMBOLS)))
            case "lose" | "late":
                story.lose("stall", late_h=min(hours, 2.0) if what == "late" else 0.0)
            case "stop" | "kill":
                story.stop() if what == "stop" else story.kill()
                story.ledger = None
    story.tell("disk.low", free=1, floor=2)


@settings(max_examples=of_tier(60, 8), deadline=None)
@given(STEPS, st.data())
def test_whatever_happens_closing_promises_nothing_more(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, float]], data: st.DataObject
) -> None:
    """Closed in one go or day by day, nothing is claimed that the whole ledger didn't say, and hardly less is."""
    root = tmp_path_factory.mktemp("story")
    story, daily = Story(root), root.parent / f"{root.name}-daily"
    play(story, steps, data)
    whole = all_intervals(load_coverage(story.layout))
    shutil.copytree(story.layout.root, daily)
    close_all(story.layout)
    by_day = Layout(daily)
    for number in range(12):
        close_all(by_day, day_of(FIRST) + timedelta(number))
    for layout in (story.layout, by_day):
        closed = all_intervals(load_coverage(layout))
        for symbol, told in whole.items():
            for one in closed.get(symbol, []):
                if one.state == "recorded":
                    sure = sum_shares(clip(told, one.start_us, one.end_us))
                    assert sure.recorded_us == one.end_us - one.start_us
            assert sum_shares(closed.get(symbol, [])).recorded_us == sum_shares(told).recorded_us
    shutil.rmtree(story.layout.root)
    shutil.rmtree(daily)


def test_the_oldest_and_the_newest_days_are_found_among_folders_that_hold_none(tmp_path: Path) -> None:
    layout = make_root(tmp_path / "data")
    days = [date(2026, 1, 1) + timedelta(number) for number in range(40)]
    for day in days:
        layout.coverage_file(day).parent.mkdir()
    for day in days[5:-5]:
        layout.coverage_file(day).touch()
    assert oldest_and_newest_closed_days(layout, 3) == (days[5:8], days[-8:-5])
    assert oldest_and_newest_closed_days(layout, 99) == (days[5:-5], days[5:-5])
    assert list_closed_days(layout) == days[5:-5]
