"""Whatever byte a crash cut a file at, the next start succeeds, and every whole batch is in Parquet and CSV once.

The start is the daemon's own, without a venue; it records a little more and stops in order.
"""

import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness import Tally, rounds
from journals import (
    FAST_DISK,
    Clock,
    Life,
    block,
    csv_sequences,
    first_sequence,
    make_root,
    parquet_sequences,
    read_events,
    sequences,
    trades,
)
from requirements import of_tier
from structlog.testing import capture_logs

from ingestor.config import Settings
from ingestor.config.sections import StorageSettings
from ingestor.journal.follower import Rows
from ingestor.layout import Layout, SegmentId, list_segments
from ingestor.recording import prepare

LAST = 1024
STRIDE = 1 if rounds() >= 200 else of_tier(37, 397)
"""The long form cuts at every byte, the short one at some that fall on every place of an aligned word."""


@dataclass(frozen=True)
class Left:
    """What a killed recorder left: an original that is never touched, and the place where copies of it are cut."""

    original: Path
    root: Path
    rows: list[int]
    blocks: list[Rows]
    """Those that are still in the journal."""

    def restore(self) -> Layout:
        shutil.rmtree(self.root, ignore_errors=True)
        shutil.copytree(self.original, self.root)
        return Layout(self.root)

    def surviving(self, segment: Path) -> list[int]:
        """The rows without those of the blocks that this segment no longer has whole."""
        changed, whole = segment.read_bytes(), (self.original / "journal" / segment.name).read_bytes()
        number = SegmentId.parse(segment.name).number
        ends = [(sequences([block]), block.at.offset) for block in self.blocks if block.segment.number == number]
        gone = {row for rows, end in ends if changed[:end] != whole[:end] for row in rows}
        return [row for row in self.rows if row not in gone]


@pytest.fixture
def place() -> Iterator[Path]:
    """A fast one: the long form is thousands of starts."""
    with tempfile.TemporaryDirectory(dir=FAST_DISK) as folder:
        yield Path(folder)


def leave(place: Path, *, more: int) -> Left:
    """A recorder was killed that had sealed a segment, carried a part of the next to CSV, then journaled `more`."""
    layout = make_root(place / "original")
    life = Life(layout, clock=Clock())
    rows = life.writer.append()
    life.writer.rotate()
    rows += life.writer.append()
    life.writer.journal.sync()
    life.drain()
    for _ in range(more):
        rows += life.writer.append(reasons={"bad_time": 1})
    life.writer.journal.sync()
    life.kill()
    layout.ballast.unlink()  # only to copy less
    blocks = [event for event in read_events(layout) if isinstance(event, Rows)]
    return Left(layout.root, place / "root", rows, blocks)


def settings_for(layout: Layout) -> Settings:
    return Settings(tickers=("AAPL",), storage=StorageSettings(root=layout.root, formats=("parquet", "csv")))


def start_and_stop(layout: Layout) -> list[int]:
    """Start as the daemon does, record a little, stop in order; the rows recorded."""
    sinks_stop = threading.Event()
    recording = prepare(settings_for(layout), "key", layout, threading.Event(), sinks_stop)
    rows = trades(first_sequence(recording.run), 2)
    recording.journal.append(block(rows))
    recording.journal.close()
    sinks_stop.set()
    recording.runner.run()
    assert recording.ledger.close()
    assert recording.accounts.violations == 0
    return sequences_of(recording.run, 2)


def sequences_of(run: int, count: int) -> list[int]:
    return list(range(first_sequence(run), first_sequence(run) + count))


def cuts(size: int) -> Iterator[int]:
    """At every byte of the last kilobyte; the very end is no cut."""
    return iter(range(max(size - LAST, 0), size, STRIDE))


def open_segment(layout: Layout) -> Path:
    return list_segments(layout)[-1].path


def check(layout: Layout, expected: list[int], cut: int, tally: Tally) -> None:
    with capture_logs():
        more = start_and_stop(layout)
    assert parquet_sequences(layout) == expected + more, f"cut at {cut}"
    assert csv_sequences(layout) == expected + more, f"cut at {cut}"
    tally.rounds += 1
    tally.rows += len(expected)


@pytest.mark.parametrize("zeros", [False, True], ids=["cut", "zeroed"])
@pytest.mark.parametrize("more", [0, 2], ids=["young", "grown"])
def test_segment(place: Path, tally: Tally, more: int, *, zeros: bool) -> None:
    left = leave(place, more=more)
    if not more:  # a segment that holds nothing yet, beside one whose rows are all there
        layout = Layout(left.original)
        Life(layout, clock=Clock()).kill()
    size = open_segment(Layout(left.original)).stat().st_size
    for cut in cuts(size):
        layout = left.restore()
        path = open_segment(layout)
        os.truncate(path, cut)
        if zeros:
            os.truncate(path, size)
        check(layout, left.surviving(path), cut, tally)
    tally.assert_clean()


def test_ledger(place: Path, tally: Tally) -> None:
    left = leave(place, more=2)
    (ledger,) = left.original.glob("ledger/*.jsonl")
    for cut in cuts(ledger.stat().st_size):
        layout = left.restore()
        os.truncate(layout.ledger / ledger.name, cut)
        check(layout, left.rows, cut, tally)
    tally.assert_clean()


@pytest.mark.parametrize("name", ["cursors/csv.json", "journal/synced"])
def test_cursor(place: Path, tally: Tally, name: str) -> None:
    left = leave(place, more=2)
    for cut in range(0, (left.original / name).stat().st_size, of_tier(1, 5)):
        layout = left.restore()
        os.truncate(layout.root / name, cut)
        check(layout, left.rows, cut, tally)
    tally.assert_clean()


def test_csv(place: Path, tally: Tally) -> None:
    left = leave(place, more=2)
    growing = max(left.original.rglob("*.csv"), key=lambda path: path.name).relative_to(left.original)
    for cut in cuts((left.original / growing).stat().st_size):
        layout = left.restore()
        os.truncate(layout.root / growing, cut)
        check(layout, left.rows, cut, tally)
    tally.assert_clean()
