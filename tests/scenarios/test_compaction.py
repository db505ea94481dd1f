"""`kill -9` at any moment of compaction, retention and the closing of days: nothing lost, doubled or left behind."""

import os
import random
import shutil
import subprocess
import sys
import time
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from harness import Tally, compile_shim, environ, rounds
from journals import trades
from ledger_stories import as_format_1, write_story
from recordings import Recording
from requirements import of_tier

import ingestor
from ingestor.accounts import read_accounts, read_seals
from ingestor.coverage import clip
from ingestor.dataset.compact import clear_leftovers, compact_days, locked_maintenance
from ingestor.dataset.coverage import load_coverage
from ingestor.dataset.maintenance import delete_expired
from ingestor.dataset.snapshot import list_days, list_names
from ingestor.layout import Layout
from ingestor.ledger import Ledger

DAYS = (date(2026, 11, 17), date(2026, 11, 18))
PARTS = 12
ROWS = 2000
ROUNDS = max(of_tier(5, 1), rounds() // 4)
WITH_TESTS = os.pathsep.join(str(folder) for folder in (Path(ingestor.__file__).parents[1], Path(__file__).parents[1]))
KILLS = 4
"""At most so many a round, then it may finish."""

COMPACT = """
import datetime, sys
from pathlib import Path
from ingestor.dataset.compact import compact_days
from ingestor.layout import Layout
print("begun", flush=True)
list(compact_days(Layout(Path(sys.argv[1])), datetime.date(2026, 11, 19), 30_000))
"""
RETAIN = """
import datetime, sys
from pathlib import Path
from ingestor.dataset.coverage import load_coverage
from ingestor.dataset.maintenance import delete_expired
from ingestor.layout import Layout
from ingestor.ledger import Ledger
layout = Layout(Path(sys.argv[1]))
now = datetime.datetime(2026, 11, 20, tzinfo=datetime.timezone.utc)
print("begun", flush=True)
delete_expired(layout, Ledger(layout, int(sys.argv[2]), now.date()), datetime.timedelta(hours=24), now)
"""
CLOSE = """
import datetime, sys
from pathlib import Path
from ingestor.closed_days import close_days
from ingestor.ledger import list_ledger_files, take_over_format_1
from ledger_stories import Story
story = Story(Path(sys.argv[1]))
print("begun", flush=True)
take_over_format_1(story.layout)
if not list_ledger_files(story.layout)[-1].checked:
    story.hour = 9_000
    story.start()
list(close_days(story.layout, datetime.date.max))
"""


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """Two days of many parts, and one that is not over."""
    recording = Recording(tmp_path_factory.mktemp("original"), started="2026-11-17")
    for day in (*DAYS, date(2026, 11, 19)):
        noon = datetime(day.year, day.month, day.day, 12, tzinfo=UTC)
        for _ in range(PARTS):
            recording.append(trades(recording.sequence, ROWS, at=noon))
            recording.end_segment()
    recording.stop("2026-11-20")
    return recording.layout


def read(root: Path) -> pa.Table:
    return ingestor.read_trades(root, engine="arrow")


def kill_within(
    program: str, root: Path, most_s: float, moment: random.Random, *arguments: str, **environment: str
) -> bool:
    """Run it and kill it after a random time; whether it was still at work."""
    command = [sys.executable, "-c", program, str(root), *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environ(**environment)
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"begun\n"
            time.sleep(moment.uniform(0, most_s))  # the fault's own moment: nothing is waited for
        finally:
            process.kill()
    return process.returncode != 0


def duration_s(program: str, original: Layout, folder: Path, *arguments: str, **environment: str) -> float:
    """How long it takes when nobody kills it."""
    root = folder / "whole"
    shutil.copytree(original.root, root)
    command = [sys.executable, "-c", program, str(root), *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environ(**environment)
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        began_s = time.monotonic()
        assert process.wait() == 0
    return time.monotonic() - began_s


@pytest.mark.parametrize(
    "exchanges",
    [True, pytest.param(False, marks=[pytest.mark.long, pytest.mark.needs("cc")])],
    ids=["exchange", "no_exchange"],
)
def test_kill_compaction(original: Layout, tmp_path: Path, tally: Tally, exchanges: bool) -> None:
    """On a file system that can exchange folders, and on one that can't."""
    environment = {} if exchanges else {"LD_PRELOAD": compile_shim("no_exchange.c", tmp_path)}
    most_s = duration_s(COMPACT, original, tmp_path, **environment)
    truth, moment = read(original.root), random.Random(7)
    interrupted = 0
    for number in range(ROUNDS):
        root = tmp_path / str(number)
        shutil.copytree(original.root, root)
        for _ in range(KILLS):
            interrupted += kill_within(COMPACT, root, most_s, moment, **environment)
            assert read(root) == truth
            if interrupted % 3 == 0:  # what a start of the recorder does
                with locked_maintenance(Layout(root)):
                    clear_leftovers(Layout(root))
                assert read(root) == truth
        list(compact_days(Layout(root), date(2026, 11, 19), 30_000))
        assert list(compact_days(Layout(root), date(2026, 11, 19), 30_000)) == []
        assert read(root) == truth
        assert_clean(root)
        shutil.rmtree(root)
        tally.rounds += 1
        tally.rows += truth.num_rows
    tally.note = f"{interrupted} kills"
    assert interrupted > 0


def assert_clean(root: Path) -> None:
    """Compacted days hold compacted files alone, staging holds locks alone."""
    layout = Layout(root)
    for day in DAYS:
        assert all(name.startswith("compacted-") for name in list_names(layout.trades / f"date={day}"))
    assert [path.name for path in layout.staging.iterdir() if path.suffix != ".lock"] == []


@pytest.mark.long
def test_kill_retention(original: Layout, tmp_path: Path, tally: Tally) -> None:
    """A day is whole or gone, and gone only where the ledger says so."""
    most_s = duration_s(RETAIN, original, tmp_path, "2")
    truth, moment = read(original.root), random.Random(7)
    by_day = {day: truth.filter(pa.compute.equal(truth["timestamp"].cast(pa.date32()), day)).num_rows for day in DAYS}
    interrupted = 0
    for number in range(ROUNDS):
        root = tmp_path / str(number)
        shutil.copytree(original.root, root)
        for life in range(2, 2 + KILLS):
            interrupted += kill_within(RETAIN, root, most_s, moment, str(life))
            left = list_days(Layout(root))
            told = "".join(path.read_text() for path in sorted((root / "ledger").glob("*.jsonl")))
            assert all(day in left or f'"date":"{day}"' in told for day in DAYS)
            assert read(root).num_rows == truth.num_rows - sum(rows for day, rows in by_day.items() if day not in left)
        ledger = Ledger(Layout(root), 2 + KILLS, date(2026, 11, 20))
        delete_expired(Layout(root), ledger, timedelta(hours=24), datetime(2026, 11, 20, tzinfo=UTC))
        with locked_maintenance(Layout(root)):
            clear_leftovers(Layout(root))
        assert list_days(Layout(root)) == [date(2026, 11, 19)]
        assert [path.name for path in (root / "staging").iterdir() if path.suffix != ".lock"] == []
        shutil.rmtree(root)
        tally.rounds += 1
    tally.note = f"{interrupted} kills"


@pytest.mark.long
def test_kill_closing(tmp_path: Path, tally: Tally) -> None:
    """A root of format 1 is taken over and its days are closed: each reader is told the same at every moment."""
    original = write_story(tmp_path / "original")
    for hour in range(100, 1700, 32):  # what lies on the days of two months more
        original.hour = float(hour)
        original.lose()
        original.hour += 0.5
        original.connect()
        original.prove("A", "B")
        segment = f"{hour:012d}-20241004T100000Z-r000003"
        original.tell("segment.sealed", segment=segment, dates={"2024-10-04": hour})
        original.tell(
            "segment.closed", segment=segment, first_received=1, last_received=2, counts={"frames": 1, "trades": hour},
            symbols={"A": hour}, repeated={}, reasons={}, aside=0,
        )  # fmt: skip
    original.kill()
    end_us = original.at()
    as_format_1(original.layout)

    def told(root: Path) -> object:
        coverage = load_coverage(Layout(root))
        intervals = {name: clip(coverage.intervals(name), 0, end_us) for name in coverage.symbols}
        accounts = [(one["segment"], one["counts"]["trades"], one["symbols"]) for one in read_accounts(Layout(root))]
        return intervals, (accounts, read_seals(Layout(root)))

    truth, moment = told(original.layout.root), random.Random(7)
    most_s = duration_s(CLOSE, original.layout, tmp_path, PYTHONPATH=WITH_TESTS)
    interrupted = 0
    for number in range(max(1, rounds() // 4 - 4)):
        root = tmp_path / str(number)
        shutil.copytree(original.layout.root, root)
        for _ in range(KILLS):
            interrupted += kill_within(CLOSE, root, most_s, moment, PYTHONPATH=WITH_TESTS)
            assert told(root) == truth
        kill_within(CLOSE, root, 60.0, moment, PYTHONPATH=WITH_TESTS)
        tally.rounds += 1
    tally.note = f"{interrupted} kills"
    assert interrupted > 0
