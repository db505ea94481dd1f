"""A wall clock that jumps: nothing is lost or overwritten, nothing reconnects, rotation goes on, nobody spins."""

import os
import struct
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from harness import (
    Recorder,
    Site,
    Tally,
    compare,
    compile_shim,
    count_blind_rows,
    count_differences,
    count_repeats,
    read_csv,
    read_facts,
    read_parquet,
    running_venue,
)

import ingestor
from ingestor.dataset.coverage import load_coverage
from ingestor.layout import Layout, SegmentId, list_segments
from ingestor.operations.recorder_status import read_status

pytestmark = pytest.mark.alone

HOUR_S = 3600.0
RATE = 300
SEALED = 2
"""That many segments after each jump show that it goes on."""
BUSY = 0.5
"""Of one processor. At this rate a recorder needs a tenth of that; a thread that spins needs all of it."""


class WallClock:
    """The clock of the processes that run under the shim: right until it is moved."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "offset"
        self._path.write_bytes(bytes(8))
        self.environ = {"LD_PRELOAD": compile_shim("clock.c", folder), "CLOCK_OFFSET": str(self._path)}

    def move_to(self, offset_s: float) -> None:
        """Be this far from the true time, at once."""
        with self._path.open("r+b") as file:
            file.write(struct.pack("=q", int(offset_s * 1e9)))


@pytest.mark.long
@pytest.mark.needs("cc")
def test_clock(tmp_path: Path, tally: Tally) -> None:
    """An hour ahead, then two back, then right again."""
    clock = WallClock(tmp_path)
    with running_venue(tmp_path, "--rate", str(RATE)) as venue:
        site = _site(tmp_path, venue.url)
        with site.running(**clock.environ) as recorder:
            _assert_goes_on(recorder)
            for offset_s in (HOUR_S, -HOUR_S, 0.0):
                clock.move_to(offset_s)
                _assert_goes_on(recorder)
                tally.rounds += 1
            truth = venue.stop()
            recorder.wait_for_end_of_stream()
            assert recorder.end() == 0
    _settle(tally, site, truth)
    steps_s = [fact["by_us"] / 1e6 for fact in read_facts(site.layout) if fact["fact"] == "clock.stepped"]
    assert steps_s == [pytest.approx(step_s, abs=1) for step_s in (HOUR_S, -2 * HOUR_S, HOUR_S)]


@pytest.mark.needs("cc")
@pytest.mark.parametrize("behind_s", [10 * HOUR_S, 72 * HOUR_S])
def test_a_clock_that_is_behind_until_it_is_set(tmp_path: Path, tally: Tally, behind_s: float) -> None:
    """No battery, and a time server that answers late: all is kept, nothing is claimed of a time that nobody lived."""
    clock = WallClock(tmp_path)
    clock.move_to(-behind_s)
    with running_venue(tmp_path, "--rate", str(RATE)) as venue:
        site = _site(tmp_path, venue.url)
        with site.running(**clock.environ) as recorder:
            _assert_goes_on(recorder)
            (ailment,) = read_status(site.layout).ailments
            assert "clock is" in ailment
            assert "behind the venue's" in ailment
            clock.move_to(0.0)
            _assert_goes_on(recorder)
            assert read_status(site.layout).ailments == []
            truth = venue.stop()
            recorder.wait_for_end_of_stream()
            assert recorder.end() == 0
    tally.rounds = 1
    _settle(tally, site, truth)
    rows = read_parquet(site.layout)
    assert count_blind_rows(site.layout, rows) == 0
    (stepped,) = (fact for fact in read_facts(site.layout) if fact["fact"] == "clock.stepped")
    coverage = load_coverage(site.layout)
    for symbol in coverage.symbols:
        intervals = coverage.intervals(symbol)
        assert [one.state for one in intervals if one.end_us <= stepped["at"]] == ["unproven", "blind"]
        (skipped,) = (one for one in intervals if one.cause == "clock")
        assert skipped.end_us - skipped.start_us == pytest.approx(behind_s * 1e6, rel=0.01)
        assert "recorded" in {one.state for one in intervals if one.start_us >= stepped["at"]}
    filled = ingestor.read_bars(site.root, "1s", fill=True, engine="arrow")
    truly = [one for one in filled.to_pylist() if one["trades"] == 0 and one["coverage"] == 1]
    before_us = stepped["at"] - HOUR_S * 1e6
    assert [one for one in truly if one["start"].timestamp() * 1e6 < before_us] == []


@pytest.mark.needs("cc")
def test_clock_passes_midnight(tmp_path: Path, tally: Tally) -> None:
    """A segment that was begun before midnight is closed at it, long before its age."""
    clock = WallClock(tmp_path)
    midnight = datetime.combine(datetime.now(UTC) + timedelta(days=1, hours=1), datetime.min.time(), UTC)
    with running_venue(tmp_path, "--rate", str(RATE)) as venue:
        site = _site(tmp_path, venue.url, age="1d")
        with site.running(**clock.environ) as recorder:
            recorder.wait_for_rows()
            clock.move_to((midnight - datetime.now(UTC)).total_seconds() - 2)
            segment = recorder.wait_for(lambda: _begun_after(site.layout, midnight), "rows of the new day")
            tally.rounds += 1
            truth = venue.stop()
            recorder.wait_for_end_of_stream()
            assert recorder.end() == 0
    _settle(tally, site, truth)
    assert segment.started < midnight + timedelta(seconds=30), "not midnight, but its age has closed the last one"
    assert f"date={midnight.date()}" in {path.parent.name for path in site.layout.csv.glob("date=*/*.csv")}


def _begun_after(layout: Layout, moment: datetime) -> SegmentId | None:
    """The first segment with rows that was begun after this moment."""
    begun = (file for file in list_segments(layout) if file.id.started >= moment)
    return next((file.id for file in begun if file.path.stat().st_size > 4096), None)


def _site(folder: Path, url: str, age: str = "1s") -> Site:
    settings = {"connection": {"silence": "10s", "ping_interval": "2s"}, "storage": {"rotate": {"age": age}}}
    return Site(folder, folder / "data", url, settings=settings)


def _settle(tally: Tally, site: Site, truth: pa.Table) -> None:
    """The venue ended first, and all it had sent arrived: every single trade must be there."""
    parquet, csv = read_parquet(site.layout), read_csv(site.layout)
    comparison = compare(truth, parquet)
    tally.rows = parquet.num_rows
    tally.lost = len(comparison.missing)
    tally.duplicated = count_repeats(parquet) + count_repeats(csv)
    tally.unexplained = comparison.invented + comparison.holes + count_differences(parquet, csv)
    tally.assert_clean()
    opened = [fact for fact in read_facts(site.layout) if fact["fact"] == "connection.opened"]
    assert len(opened) == 1, "a connection was given up for a clock"


def _assert_goes_on(recorder: Recorder) -> None:
    """Segments are sealed as before, no faster, by a recorder that does not spin; what was published stays as it is."""
    published, began_s, used_s = _published(recorder.site.layout), time.monotonic(), _processor_s(recorder)
    more = recorder.wait_for(lambda: _grown(recorder.site.layout, published), "segments sealed after the jump")
    elapsed_s = time.monotonic() - began_s
    assert published.items() <= more.items(), "a published file was changed or is gone"
    assert len(more) - len(published) <= 2 * elapsed_s + 2, "it rotates without end"
    assert _processor_s(recorder) - used_s < BUSY * elapsed_s


def _grown(layout: Layout, published: dict[Path, tuple[int, int]]) -> dict[Path, tuple[int, int]] | None:
    now = _published(layout)
    return now if len(now) >= len(published) + SEALED else None


def _published(layout: Layout) -> dict[Path, tuple[int, int]]:
    """Each file of the dataset, and what changes when it is written again."""
    files = ((path, path.stat()) for path in layout.trades.glob("date=*/*"))
    return {path: (stat.st_ino, stat.st_mtime_ns) for path, stat in files}


def _processor_s(recorder: Recorder) -> float:
    fields = Path(f"/proc/{recorder.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
