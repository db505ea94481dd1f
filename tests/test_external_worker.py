"""The worker: one way to begin, whatever ended the life before; nobody waits, nothing is passed over in silence."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from journals import Holder, Writer, ends, journal_sequences, make_root, sequences
from recorders import eventually
from structlog.testing import capture_logs

from ingestor.errors import SinkUnavailable
from ingestor.journal.follower import Event, Rows, SegmentEnd, find_journal_end
from ingestor.journal.records import Cursor
from ingestor.layout import Layout
from ingestor.sinks import Sink
from ingestor.sinks.destinations import ExternalWorker
from ingestor.sinks.retention_slots import Lags, read_fault, read_losses, read_place, write_fault, write_place


class Memory(Holder):
    """A destination in memory: a link takes rows, and keeps them at its next tick."""

    name = "memory"

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Event] = []
        self.place = Cursor(0, 0)
        self.opened = 0
        self.fault: Exception | None = None

    def open(self, start: Cursor) -> Sink:
        """A new link, which has forgotten what was not kept."""
        self.opened += 1
        self.events.clear()
        self.place = start
        return self

    def write(self, rows: Rows) -> None:
        if self.fault is not None:
            raise self.fault
        self.events.append(rows)

    def end_segment(self, end: SegmentEnd) -> None:
        self.events.append(end)

    def tick(self, now_s: float) -> None:
        if self.events:
            self.place = self.events[-1].at
            self.kept += self.events
            self.events.clear()

    def committed(self) -> Cursor:
        return self.place


@contextmanager
def carrying(
    layout: Layout, open_sink: Callable[[Cursor], Sink], *, view: bool = False, keeps_slot: bool = True
) -> Iterator[threading.Event]:
    """A worker for the time of the block, which then ends in order."""
    stop = threading.Event()
    thread = threading.Thread(
        target=ExternalWorker(layout, "memory", open_sink, stop, view=view, keeps_slot=keeps_slot).run
    )
    thread.start()
    try:
        yield stop
    finally:
        stop.set()
        thread.join()


def carry(layout: Layout, memory: Memory, *, keeps_slot: bool = True) -> None:
    with carrying(layout, memory.open, keeps_slot=keeps_slot) as stop:
        stop.set()


class TestBasic:
    def test_everything_synced_and_the_place_behind_it(self, tmp_path: Path) -> None:
        layout, memory = make_root(tmp_path), Memory()
        writer = Writer(layout)
        numbers = writer.append()
        writer.rotate()
        numbers += writer.append()
        writer.journal.sync()
        writer.append()  # not synced
        carry(layout, memory)
        assert sequences(memory.kept) == numbers
        assert ends(memory.kept) == [1]
        assert read_place(layout, "memory") == writer.journal.synced

    def test_a_view_begins_now_and_reads_to_the_end(self, tmp_path: Path) -> None:
        layout, memory = make_root(tmp_path), Memory()
        writer = Writer(layout)
        writer.append()
        assert find_journal_end(layout) > writer.journal.synced
        with carrying(layout, memory.open, view=True):
            eventually(lambda: memory.opened, "a link")
            later = eventually(lambda: _appended_and_seen(writer, memory), "what is not synced")
        assert set(later) <= set(journal_sequences(layout))
        assert journal_sequences(layout)[0] not in later
        assert not layout.cursor_file("memory").exists()


class TestRecovery:
    def test_a_link_that_fails_is_opened_anew_at_what_was_kept(self, tmp_path: Path) -> None:
        layout, memory = make_root(tmp_path), Memory()
        writer = Writer(layout)
        numbers = writer.append()
        writer.journal.sync()
        with capture_logs() as logs, carrying(layout, memory.open):
            eventually(lambda: read_place(layout, "memory") == writer.journal.synced, "the first rows")
            memory.fault = SinkUnavailable("not now")
            numbers += writer.append()
            writer.journal.sync()
            eventually(lambda: memory.opened >= 3, "some attempts")
            assert read_fault(layout, "memory") == Lags(layout, ["memory"]).look()["memory"].fault == "not now"
            memory.fault = None
            eventually(lambda: read_place(layout, "memory") == writer.journal.synced, "the later rows")
            eventually(lambda: not read_fault(layout, "memory"), "nothing is wrong any more")
        assert sequences(memory.kept) == numbers
        events = [one["event"] for one in logs if one["event"].startswith("sink.")]
        assert events == ["sink.failed", "sink.recovered"], "each is said once"

    def test_what_an_earlier_process_told_is_over_once_it_is_at_the_end(self, tmp_path: Path) -> None:
        layout, memory = make_root(tmp_path), Memory()
        write_fault(layout, "memory", "not now")
        carry(layout, memory)
        assert read_fault(layout, "memory") == ""

    def test_a_fault_that_cannot_be_read_says_nothing(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        layout.fault_file("memory").mkdir()
        assert read_fault(layout, "memory") == ""
        carry(layout, Memory())  # nor does it keep rows from going

    def test_what_nobody_foresaw_is_told_and_tried_again(self, tmp_path: Path) -> None:
        layout, memory = make_root(tmp_path), Memory()
        writer = Writer(layout)
        numbers = writer.append()
        writer.journal.sync()
        memory.fault = KeyError("a bug")
        with capture_logs() as logs, carrying(layout, memory.open):
            eventually(lambda: memory.opened >= 2, "another attempt")
            memory.fault = None
            # The attempt that is under way may have failed already; at a stop it would be the last.
            eventually(lambda: read_place(layout, "memory") == writer.journal.synced, "the rows")
        assert sequences(memory.kept) == numbers
        assert {"sink.broken", "sink.failed"} <= {one["event"] for one in logs}

    def test_one_that_fails_while_stopping_is_left_to_the_next_start(self, tmp_path: Path) -> None:
        layout, memory = make_root(tmp_path), Memory()
        writer = Writer(layout)
        numbers = writer.append()
        writer.journal.close()
        memory.fault = SinkUnavailable("not now")
        with capture_logs() as logs:
            carry(layout, memory)
        assert [one["event"] for one in logs if one["event"].startswith("sink.")][-1] == "sink.left_behind"
        memory.fault = None
        carry(layout, memory)
        assert sequences(memory.kept) == numbers

    def test_a_place_that_cannot_be_kept_is_told_and_nothing_is_sent_twice(self, tmp_path: Path) -> None:
        layout, memory = make_root(tmp_path), Memory()
        writer = Writer(layout)
        numbers = writer.append()
        writer.journal.close()
        layout.staging.rmdir()
        with capture_logs() as logs, carrying(layout, memory.open):
            eventually(lambda: logs, "the failure told")
            assert read_place(layout, "memory") == Cursor(0, 0)
            layout.staging.mkdir()
            eventually(lambda: read_place(layout, "memory") == Cursor(2, 0), "the place kept")
        assert "can't keep its place" in logs[0]["error"]
        assert sequences(memory.kept) == numbers
        assert memory.opened == 1


class TestLagged:
    def test_it_goes_on_at_the_next_segment_there_is_and_says_so(self, tmp_path: Path) -> None:
        layout, memory = make_root(tmp_path), Memory()
        writer = Writer(layout)
        writer.append()
        writer.journal.sync()
        place = writer.journal.synced
        write_place(layout, "memory", place)
        writer.rotate()
        writer.append()
        writer.rotate()
        later = writer.append()
        writer.rotate()
        for path in sorted(layout.journal.glob("*.journal"))[:2]:
            path.unlink()
        with capture_logs() as logs:
            carry(layout, memory)
        assert sequences(memory.kept) == later
        assert [one["event"] for one in logs if one["log_level"] == "error"] == ["sink.lagged"]
        assert read_place(layout, "memory") == Cursor(4, 0)
        assert [(loss.start, loss.end) for loss in read_losses(layout, "memory")] == [(place, Cursor(3, 0))]

    def test_one_without_a_claim_has_lost_nothing(self, tmp_path: Path) -> None:
        """As the mirror, whose rows come in files."""
        layout, memory = make_root(tmp_path), Memory()
        writer = Writer(layout)
        writer.append()
        writer.rotate()
        later = writer.append()
        writer.rotate()
        write_place(layout, "memory", Cursor(1, 8))
        min(layout.journal.glob("*.journal")).unlink()
        with capture_logs() as logs:
            carry(layout, memory, keeps_slot=False)
        assert sequences(memory.kept) == later
        assert [one["event"] for one in logs if one["log_level"] == "error"] == []
        assert read_losses(layout, "memory") == []


def _appended_and_seen(writer: Writer, memory: Memory) -> list[int]:
    writer.append()
    return sequences(memory.kept)
