"""Looked at again and again, the ledger says what it says to whoever reads it whole; only what is new is read."""

from datetime import date
from pathlib import Path

import pytest
from recordings import Recording, to_us

from ingestor.coverage import Coverage, Interval, clip, find_coverage
from ingestor.dataset.coverage import CoverageWatch
from ingestor.errors import FormatTooNew, NotARecording
from ingestor.facts import encode_line
from ingestor.layout import Layout
from ingestor.ledger import list_ledgers, read_open_facts

NOW_US = to_us("2026-03-01")
GAP = {"gap": "r000001-1", "cause": "stall", "symbol": None}


@pytest.fixture
def recording(tmp_path: Path) -> Recording:
    recording = Recording(tmp_path / "data", ["A", "B"])
    recording.prove(["A"], "2026-01-01T10:00")
    return recording


def of_all(coverage: Coverage) -> list[list[Interval]]:
    return [clip(coverage.intervals(symbol), 0, NOW_US) for symbol in ("A", "B")]


def read_whole(layout: Layout) -> list[list[Interval]]:
    return of_all(find_coverage(read_open_facts(layout), None, NOW_US))


def test_after_each_fact_it_is_what_the_whole_ledger_says(recording: Recording) -> None:
    watch = CoverageWatch(recording.layout)
    for fact, at, more in (
        ("gap.opened", "2026-01-01T11:00", {**GAP, "since": to_us("2026-01-01T11:00")}),
        ("segment.closed", "2026-01-01T11:01", {}),
        ("gap.closed", "2026-01-01T11:02", {**GAP, "until": to_us("2026-01-01T11:02")}),
        ("symbols.requested", "2026-01-01T11:03", {"connection": 2, "symbols": ["A", "B"]}),
        ("symbol.proven", "2026-01-01T11:04", {"connection": 2, "symbol": "B", "since": to_us("2026-01-01T11:04")}),
        ("connection.lost", "2026-01-01T12:00", {"connection": 2}),
        ("run.stopped", "2026-01-01T13:00", {"error": None}),
    ):
        recording.fact(fact, at, **more)
        assert of_all(watch.look()) == read_whole(recording.layout), fact
    again = Recording(recording.layout.root, ["A"], started="2026-01-02", run=2)
    assert of_all(watch.look()) == read_whole(recording.layout), "the next run"
    again.prove(["A"], "2026-01-02T10:00")
    assert of_all(watch.look()) == read_whole(recording.layout)


def test_a_crash_began_with_the_last_word_whatever_that_was(recording: Recording) -> None:
    watch = CoverageWatch(recording.layout)
    watch.look()
    recording.fact("segment.closed", "2026-01-01T14:00")
    watch.look()
    Recording(recording.layout.root, ["A"], started="2026-01-02", run=2)
    crash = Interval("A", "blind", "crash", to_us("2026-01-01T14:00"), NOW_US)
    assert of_all(watch.look())[0][-1] == crash


def test_what_says_nothing_of_coverage_changes_nothing(recording: Recording) -> None:
    watch = CoverageWatch(recording.layout)
    before = watch.look()
    assert watch.look() is before
    recording.fact("segment.sealed", "2026-01-01T14:00")
    assert watch.look() is before


def test_half_a_line_waits_for_its_end(recording: Recording) -> None:
    watch = CoverageWatch(recording.layout)
    before = watch.look()
    line = encode_line({"at": 1, "fact": "gap.opened", **GAP, "since": to_us("2026-01-01T11:00")})
    with list_ledgers(recording.layout)[-1].open("a") as file:
        file.write(line[:40])
        file.flush()
        assert watch.look() is before
        file.write(line[40:])
    assert of_all(watch.look())[0][-1].cause == "stall"


def test_what_the_disk_took_back_is_forgotten(recording: Recording) -> None:
    watch, path = CoverageWatch(recording.layout), list_ledgers(recording.layout)[-1]
    size, before = path.stat().st_size, of_all(watch.look())
    recording.fact("gap.opened", "2026-01-01T11:00", **GAP, since=to_us("2026-01-01T11:00"))
    assert of_all(watch.look()) != before
    with path.open("r+b") as file:
        file.truncate(size)
    assert of_all(watch.look()) == before


def test_no_recording_and_one_of_a_later_version(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    with pytest.raises(NotARecording):
        CoverageWatch(layout).look()
    layout.ledger.mkdir()
    started = {"at": 1, "fact": "run.started", "format": 99, "open_gaps": [], "tickers": []}
    layout.ledger_file(1, 1, date(2026, 1, 1)).write_text(encode_line(started))
    with pytest.raises(FormatTooNew):
        CoverageWatch(layout).look()
