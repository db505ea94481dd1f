"""The runner: each event to each sink once, at its own place; nothing is freed that one of them still needs."""

import threading
from pathlib import Path

import pytest
from journals import Holder, Writer, drain, ends, make_root, read_events, sequences, unsealed
from structlog.testing import capture_logs

from ingestor.errors import SinkUnavailable
from ingestor.journal.follower import Damage, Event, Rows, SegmentEnd
from ingestor.journal.records import Cursor
from ingestor.layout import Layout, list_segments
from ingestor.sinks.runner import Runner

START = Cursor(0, 0)


class Keeper(Holder):
    """A sink in memory that vouches at once for what it took; it refuses its first `refusals` events."""

    def __init__(self, name: str = "keeper", *, start: Cursor = START, refusals: int = 0) -> None:
        super().__init__()
        self.name = name
        self.refusals = refusals
        self.refused = threading.Event()
        self.ticked = threading.Event()
        self.closed = False
        self._place = start

    def _take(self, event: Event) -> None:
        if self.refusals:
            self.refusals -= 1
            self.refused.set()
            raise SinkUnavailable("not now")
        self.events.append(event)
        self._place = event.at

    def write(self, rows: Rows) -> None:
        self._take(rows)

    def set_aside(self, damage: Damage) -> None:
        self._take(damage)

    def end_segment(self, end: SegmentEnd) -> None:
        self._take(end)

    def tick(self, now_s: float) -> None:
        self.ticked.set()

    def committed(self) -> Cursor:
        return self._place

    def close(self) -> None:
        self.closed = True


def journal_of(layout: Layout, segments: int) -> list[int]:
    """A journal of so many segments that have ended; its rows."""
    writer = Writer(layout)
    numbers: list[int] = []
    for _ in range(segments):
        numbers += writer.append()
        writer.journal.sync()
        numbers += writer.append()
        writer.rotate()
    return numbers


class TestBasic:
    def test_every_sink_gets_everything_in_order(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        numbers = journal_of(layout, 3)
        sinks = [Keeper("a"), Keeper("b")]
        drain(layout, sinks)
        for sink in sinks:
            assert sequences(sink.events) == numbers
            assert ends(sink.events) == [1, 2, 3]
            assert sink.closed

    def test_it_carries_what_comes_while_it_runs(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        writer = Writer(layout)
        stop, sink = threading.Event(), Keeper()
        runner = Runner(layout, [sink], stop)
        thread = threading.Thread(target=runner.run)
        thread.start()
        numbers = []
        for _ in range(20):
            numbers += writer.append()
            writer.rotate()
        writer.journal.close()
        stop.set()
        thread.join()
        assert sequences(sink.events) == numbers
        assert list_segments(layout) == []

    def test_nothing_unsynced_is_carried(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        writer = Writer(layout)
        synced = writer.append()
        writer.journal.sync()
        writer.append()
        sink = Keeper()
        drain(layout, [sink])
        assert sequences(sink.events) == synced

    def test_each_sink_goes_on_at_its_own_place(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        numbers = journal_of(layout, 3)
        events = read_events(layout)
        for place in range(len(events)):
            ahead = Keeper("ahead", start=events[place].at)
            behind = Keeper("behind", start=events[place // 2].at)
            drain(layout, [ahead, behind, Holder()])
            assert ahead.events == events[place + 1 :]
            assert behind.events == events[place // 2 + 1 :]
        assert sequences(events) == numbers

    def test_damage_right_behind_a_record_is_handed_on(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        writer = Writer(layout)
        numbers = writer.append()
        with writer.path.open("ab") as file:
            file.write(b"junk")
        Writer(layout, run=2, segment=2)
        sink = Keeper()
        drain(layout, [sink])
        assert [type(event) for event in sink.events] == [Rows, Damage, SegmentEnd]
        assert sequences(sink.events) == numbers


class TestFreeing:
    def test_only_what_all_have_passed_is_freed(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        journal_of(layout, 3)
        drain(layout, [Keeper(), Holder()])
        assert unsealed(layout) == [1, 2, 3, 4]
        drain(layout, [Keeper()])
        assert unsealed(layout) == [4]

    def test_a_segment_that_cannot_be_freed_does_not_end_the_recording(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        numbers = journal_of(layout, 2)
        passed = list_segments(layout)[0].path
        passed.unlink()
        passed.mkdir()  # unlink refuses a directory, whoever asks
        sink = Keeper(start=Cursor(2, 0))
        drain(layout, [sink])
        assert sequences(sink.events) == numbers[6:]
        assert unsealed(layout) == [1, 3]  # what is no segment stays for a person to look at, and holds up nothing

    def test_a_segment_that_somebody_deleted_is_told_and_passed(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        numbers = journal_of(layout, 3)
        sink, stop = Keeper(start=Cursor(1, 200)), threading.Event()
        runner = Runner(layout, [sink], stop)
        list_segments(layout)[0].path.unlink()
        stop.set()
        with capture_logs() as logs:
            runner.run()
        assert [entry["event"] for entry in logs if entry["log_level"] == "error"] == ["journal.lost"]
        assert sequences(sink.events) == numbers[6:]


class TestKnownErrors:
    def test_an_unavailable_sink_is_asked_again_and_the_others_get_nothing_twice(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        numbers = journal_of(layout, 1)
        good, bad = Keeper("good"), Keeper("bad", refusals=1)
        drain(layout, [good, bad])
        assert bad.refused.is_set()
        assert sequences(good.events) == sequences(bad.events) == numbers

    def test_a_journal_that_cannot_be_read_is_read_later(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        numbers = journal_of(layout, 1)
        sink = Keeper()
        stop = threading.Event()
        stop.set()
        runner = Runner(layout, [sink], stop)
        away = tmp_path / "away"
        layout.journal.rename(away)
        layout.journal.touch()
        thread = threading.Thread(target=runner.run)
        thread.start()
        assert sink.ticked.wait(30)
        assert sink.events == []
        layout.journal.unlink()
        away.rename(layout.journal)
        thread.join()
        assert sequences(sink.events) == numbers

    def test_in_a_hurry_it_leaves_the_rest_for_the_next_start(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        numbers = journal_of(layout, 2)
        stuck = Keeper(refusals=1 << 40)
        stop = threading.Event()
        runner = Runner(layout, [stuck], stop)
        thread = threading.Thread(target=runner.run)
        thread.start()
        assert stuck.refused.wait(30)
        stop.set()
        runner.hurried.set()
        thread.join()
        assert not stuck.closed
        later = Keeper()
        drain(layout, [later])
        assert sequences(later.events) == numbers

    def test_what_ends_a_sink_ends_the_runner(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        journal_of(layout, 1)

        class Broken(Keeper):
            def write(self, rows: Rows) -> None:
                raise OSError("not said in the sink's own words")

        with pytest.raises(OSError, match="own words"):
            drain(layout, [Broken()])

    def test_a_sink_whose_segment_was_freed_without_it_goes_on_with_the_oldest(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        numbers = journal_of(layout, 3)
        drain(layout, [Keeper()])
        writer = Writer(layout, run=2, segment=5)
        later = writer.append()
        writer.journal.sync()
        sink = Keeper(start=Cursor(1, 900))
        drain(layout, [sink])
        assert sequences(sink.events) == later
        assert len(numbers) == 18
