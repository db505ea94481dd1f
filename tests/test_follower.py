"""The journal's reading end: whole records, once each, in order, whatever the writer or a crash does meanwhile."""

import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from journals import (
    NOON,
    Clock,
    Writer,
    block,
    break_descriptor,
    damages,
    ends,
    first_sequence,
    journal_sequences,
    make_journal,
    make_root,
    no_file_beyond,
    read_events,
    sequences,
    trades,
)
from requirements import of_tier

from ingestor.errors import Lagged
from ingestor.journal.follower import Event, Follower, Rows, find_journal_end
from ingestor.journal.records import Cursor
from ingestor.journal.scan import Backlogs, JournalFolder
from ingestor.journal.writer import Segments
from ingestor.layout import Layout, SegmentId, list_segments
from ingestor.schema import TRADES

NO_FILES: dict[str, Callable[[Path], None]] = {
    "folder": Path.mkdir,
    "link to nowhere": lambda path: path.symlink_to("nowhere"),
    "link to itself": lambda path: path.symlink_to(path),
    "fifo": os.mkfifo,
    "link to a folder": lambda path: path.symlink_to(path.parent),
    "device": lambda path: path.symlink_to("/dev/zero"),
}


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        content = os.pread(file.fileno(), 1, offset)
        os.pwrite(file.fileno(), bytes([content[0] ^ 0x40]), offset)


def seal(layout: Layout, number: int) -> None:
    file = next(file for file in list_segments(layout) if file.id.number == number)
    file.path.rename(layout.sealed_segment(file.id))


def free(layout: Layout, number: int) -> None:
    next(file for file in list_segments(layout) if file.id.number == number).path.unlink()


class TestBasic:
    def test_where_there_is_no_journal_there_is_nothing(self, tmp_path: Path) -> None:
        assert read_events(Layout(tmp_path / "nowhere")) == []

    def test_it_goes_on_where_it_was(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        writer = Writer(layout)
        follower = Follower(layout, None, synced_only=False)
        for _ in range(3):
            numbers = writer.append()
            assert sequences(list(follower.read())) == numbers
            assert list(follower.read()) == []

    def test_it_goes_on_across_rotation(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        writer = Writer(layout)
        follower = Follower(layout, None, synced_only=True)
        for number in range(1, 4):
            numbers = writer.append()
            writer.rotate()
            events = list(follower.read())
            assert (sequences(events), ends(events)) == (numbers, [number])
            assert follower.cursor == Cursor(number + 1, 0)

    def test_from_the_journals_end_only_what_comes_after_it(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        assert find_journal_end(layout) == Cursor(0, 0)
        writer = Writer(layout)
        writer.append()
        writer.rotate()
        writer.append()
        end = find_journal_end(layout)
        later = writer.append()
        follower = Follower(layout, end, synced_only=False)
        assert (sequences(list(follower.read())), follower.cursor) == (later, find_journal_end(layout))

    def test_the_journals_end_is_found_while_its_segment_is_sealed(self, tmp_path: Path) -> None:
        """A look between the listing and the renaming finds no file under the name that was listed."""
        layout = make_root(tmp_path)
        writer = Writer(layout)
        writer.append()
        end, stop = find_journal_end(layout), threading.Event()
        unsealed, sealed = writer.path, layout.sealed_segment(writer.journal.segment)

        def rename() -> None:
            while not stop.is_set():
                unsealed.rename(sealed)
                sealed.rename(unsealed)

        renaming = threading.Thread(target=rename)
        renaming.start()
        try:
            assert {find_journal_end(layout) for _ in range(300)} <= {end, Cursor(0, 0)}
        finally:
            stop.set()
            renaming.join()

    def test_every_event_says_from_where_to_go_on(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        writer = Writer(layout)
        for _ in range(2):
            for _ in range(3):
                writer.append(reasons={"bad_time": 1})
            writer.rotate()
        events = read_events(layout)
        assert len(events) == 8
        for index, event in enumerate(events):
            assert read_events(layout, event.at) == events[index + 1 :]

    def test_the_schema_is_known_in_mid_segment(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        writer = Writer(layout)
        writer.append()
        place = read_events(layout)[-1].at
        rows = trades(first_sequence(1) + 3, 4)
        writer.journal.append(block(rows))
        (event,) = read_events(layout, place)
        assert isinstance(event, Rows)
        assert event.batch.equals(rows)


class TestStandsStill:
    def test_at_a_record_that_is_not_whole_yet(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        writer = Writer(layout)
        before = writer.append()
        size = writer.path.stat().st_size
        after = writer.append()
        content = writer.path.read_bytes()
        follower = Follower(layout, None, synced_only=False)
        os.truncate(writer.path, size)
        assert sequences(list(follower.read())) == before
        for cut in range(size, len(content) - 8, 7):
            writer.path.write_bytes(content[:cut])
            assert list(follower.read()) == []
        writer.path.write_bytes(content)
        assert sequences(list(follower.read())) == after

    def test_at_what_is_not_synced(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        writer = Writer(layout)
        follower = Follower(layout, None, synced_only=True)
        synced: list[int] = []
        for _ in range(3):
            synced += writer.append()
            writer.journal.sync()
            unsynced = writer.append()
            assert sequences(list(follower.read())) == synced
            synced = unsynced

    def test_where_the_synced_place_cannot_be_read(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        writer = Writer(layout)
        numbers = writer.append()
        writer.journal.sync()
        good = layout.synced.read_bytes()
        layout.synced.write_bytes(bytes(len(good)))
        follower = Follower(layout, None, synced_only=True)
        assert list(follower.read()) == []
        layout.synced.write_bytes(good)
        assert sequences(list(follower.read())) == numbers

    def test_at_damage_in_a_segment_that_is_still_written(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        writer = Writer(layout)
        first = writer.append()
        size = writer.path.stat().st_size
        writer.append()
        third = writer.append()
        writer.journal.sync()
        flip(writer.path, size + 90)
        follower = Follower(layout, None, synced_only=True)
        assert sequences(list(follower.read())) == first
        assert list(follower.read()) == []
        writer.rotate()
        events = list(follower.read())
        assert (sequences(events), ends(events)) == (third, [1])
        assert [damage.offset for damage in damages(events)] == [size]


class TestRecovery:
    def test_damage_in_a_dead_segment_is_stepped_over_and_reported(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        writer = Writer(layout)
        first = writer.append()
        size = writer.path.stat().st_size
        writer.append()
        end = writer.path.stat().st_size
        third = writer.append()
        flip(writer.path, size + 100)
        content = writer.path.read_bytes()
        Writer(layout, run=2, segment=2)
        events = read_events(layout)
        assert (sequences(events), ends(events)) == (first + third, [1])
        (damage,) = damages(events)
        assert (damage.offset, damage.content, damage.at) == (size, content[size:end], Cursor(1, end))

    @pytest.mark.parametrize("tail", [b"junk", b"FIJ\x1a" * 30, os.urandom(500), b"\1" + bytes(200)])
    def test_a_torn_tail_is_reported_and_holds_no_row(self, tmp_path: Path, tail: bytes) -> None:
        layout = make_root(tmp_path)
        writer = Writer(layout)
        numbers = writer.append()
        with writer.path.open("ab") as file:
            file.write(tail)
        Writer(layout, run=2, segment=2)
        events = read_events(layout)
        assert (sequences(events), ends(events)) == (numbers, [1])
        assert [damage.content for damage in damages(events)] == [tail]

    def test_reasons_count_only_together_with_their_block(self, tmp_path: Path) -> None:
        """The block that they stood before was damaged: they are not the next one's."""
        layout = make_root(tmp_path)
        writer = Writer(layout)
        first = writer.append()
        writer.append(reasons={"bad_price": 1})
        at = writer.path.stat().st_size - 20
        third = writer.append()
        with writer.path.open("r+b") as file:
            file.seek(at)
            file.write(b"\xff" * 8)
        Writer(layout, run=2, segment=2)
        events = read_events(layout)
        assert sequences(events) == first + third
        assert [event.reasons for event in events if isinstance(event, Rows)] == [{}, {}]

    def test_a_tail_of_zeros_is_nothing(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        writer = Writer(layout)
        numbers = writer.append()
        os.truncate(writer.path, writer.path.stat().st_size + 5000)
        Writer(layout, run=2, segment=2)
        events = read_events(layout)
        assert (sequences(events), ends(events), damages(events)) == (numbers, [1], [])

    @pytest.mark.parametrize("content", [b"", bytes(100), b"FIJ\x1a"])
    def test_a_segment_that_never_became_one_is_passed(self, tmp_path: Path, content: bytes) -> None:
        layout = make_root(tmp_path)
        writer = Writer(layout)
        before = writer.append()
        writer.journal.close()
        layout.open_segment(type(writer.journal.segment)(2, writer.clock.now, 1)).write_bytes(content)
        after = Writer(layout, run=2, segment=3).append()
        events = read_events(layout)
        assert (sequences(events), ends(events)) == (before + after, [1, 2])

    def test_what_an_abandoned_segment_holds_beyond_its_offset_is_void(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        writer = Writer(layout)
        synced = writer.append()
        writer.journal.sync()
        lost = writer.append()  # whole in the file, but no fsync vouches for it
        break_descriptor(writer.fd)
        writer.journal.sync()
        assert writer.journal.recover()
        for synced_only in (False, True):
            events = read_events(layout, synced_only=synced_only)
            assert sequences(events) == synced + lost
            places = [event.at.segment for event in events if isinstance(event, Rows)]
            assert places == [1, 2]

    def test_void_rows_stay_void_where_the_next_segment_never_got_them(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        writer = Writer(layout)
        synced = writer.append()
        writer.journal.sync()
        writer.append()
        break_descriptor(writer.fd)
        writer.journal.sync()
        assert writer.journal.recover()
        header = [event for event in read_events(layout) if isinstance(event, Rows)]
        assert len(header) == 2
        os.truncate(writer.path, header[1].at.offset - 16)  # the power went before the rows were on the disk
        Writer(layout, run=2, segment=3)
        assert journal_sequences(layout) == journal_sequences(layout, synced_only=True) == synced

    def test_a_reader_that_was_beyond_the_offset_gets_no_row_twice(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        writer = Writer(layout)
        synced = writer.append()
        writer.journal.sync()
        view = Follower(layout, None, synced_only=False)
        lost = writer.append()
        assert sequences(list(view.read())) == synced + lost
        break_descriptor(writer.fd)
        refused = writer.append()
        assert writer.journal.recover()
        later = writer.append()
        assert sequences(list(view.read())) == refused + later

    def test_a_segment_given_up_while_it_was_read_is_void(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        writer = Writer(layout)
        before = writer.append()
        writer.journal.sync()
        break_descriptor(writer.fd)
        refused = writer.append(200)
        view = Follower(layout, None, synced_only=False)
        assert sequences(list(view.read())) == before
        with no_file_beyond(3000):
            assert not writer.journal.recover()
        assert list(view.read()) == []
        assert writer.journal.recover()
        assert sequences(list(view.read())) == refused

    def test_the_file_of_a_segment_that_was_given_up_is_void_where_it_stays(self, tmp_path: Path) -> None:
        """A recovery came as far as its rows, and then its file could not even be removed."""
        layout = make_root(tmp_path)
        writer = Writer(layout)
        synced = writer.append()
        writer.journal.sync()
        refused = writer.append_refused()
        given_up = Segments(layout, 1, 2, "finnhub", TRADES, writer.clock).open(
            writer.journal.segment, writer.journal.synced
        )
        for _, pieces in writer.journal.unsynced:
            given_up.write(pieces)
        given_up.close()
        assert not writer.journal.recover()  # that number is taken
        assert writer.journal.recover()
        events = read_events(layout)
        assert [event.at.segment for event in events if isinstance(event, Rows)] == [1, 3]
        assert sequences(events) == synced + refused

    def test_sealing_renames_while_it_reads(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        writer = Writer(layout)
        numbers = writer.append()
        follower = Follower(layout, None, synced_only=False)
        events = list(follower.read())
        more = writer.append()
        writer.rotate()
        seal(layout, 1)
        last = writer.append()
        events += follower.read()
        assert (sequences(events), ends(events)) == (numbers + more + last, [1])

    def test_a_sealed_segment_is_read_as_before(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        writer = Writer(layout)
        numbers = writer.append()
        writer.rotate()
        seal(layout, 1)
        events = read_events(layout, synced_only=True)
        assert (sequences(events), ends(events)) == (numbers, [1])


class TestKnownErrors:
    def stopped_after(self, layout: Layout, segments: int) -> tuple[Writer, list[Cursor]]:
        """A journal of so many closed segments; the place behind each event of the first."""
        writer = Writer(layout)
        for _ in range(segments):
            writer.append()
            writer.append()
            writer.rotate()
        return writer, [event.at for event in read_events(layout) if event.segment.number == 1]

    def test_a_reader_whose_segment_is_gone_has_lagged(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        _, places = self.stopped_after(layout, 3)
        free(layout, 1)
        for place in places[:2]:
            with pytest.raises(Lagged, match="segment 1"):
                read_events(layout, place)
        assert ends(read_events(layout, places[2])) == [2, 3]

    def test_a_reader_before_a_segment_that_is_gone_has_lagged(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        _, places = self.stopped_after(layout, 3)
        free(layout, 1)
        free(layout, 2)
        assert places[2] == Cursor(2, 0)
        with pytest.raises(Lagged, match="segment 2"):
            read_events(layout, places[2])
        assert ends(read_events(layout, None)) == [3]

    def test_numbers_that_the_disk_refused_are_not_missed(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        writer = Writer(layout)
        writer.append()
        view = Follower(layout, None, synced_only=False)
        list(view.read())
        with no_file_beyond(0):
            writer.rotate()
            for _ in range(3):
                assert not writer.journal.recover()
        assert writer.journal.recover()
        numbers = writer.append()
        assert writer.journal.segment.number == 5
        assert sequences(list(view.read())) == numbers

    def test_a_reader_that_waits_for_the_next_segment_has_not_lagged(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        writer = Writer(layout)
        writer.append()
        writer.journal.close()
        view = Follower(layout, None, synced_only=False)
        assert ends(list(view.read())) == [1]
        free(layout, 1)
        assert list(view.read()) == []
        numbers = Writer(layout, run=2, segment=2).append()
        assert sequences(list(view.read())) == numbers

    def test_the_whole_journal_gone_is_lagging(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        writer = Writer(layout)
        writer.append()
        place = read_events(layout)[0].at
        free(layout, 1)
        with pytest.raises(Lagged):
            read_events(layout, place)


class TestAnyDamage:
    """One thing is wrong with one of several segments: the next start gets to the journal's end, and what is whole is
    read once.
    """

    def make(self, path: Path) -> tuple[Layout, list[int], list[list[int]]]:
        """A journal of three segments, the second of which failed and is continued by the third; its rows; the rows of
        each record.
        """
        layout = make_root(path)
        writer = Writer(layout)
        records = [writer.append(reasons={"bad_time": 1}), writer.append()]
        writer.rotate()
        records.append(writer.append())
        writer.journal.sync()
        records.append(writer.append())
        break_descriptor(writer.fd)
        writer.journal.sync()
        assert writer.journal.recover()
        records.append(writer.append())
        writer.journal.close()
        return layout, [number for record in records for number in record], records

    def read_after_the_next_start(self, layout: Layout, *, synced_only: bool) -> list[Event]:
        writer = Writer(layout, run=2, segment=4)
        follower = Follower(layout, None, synced_only=synced_only)
        with contextlib.closing(follower):
            events = list(follower.read())
            assert follower.cursor.segment == 4
            assert sequences(list(follower.read())) == []
        writer.journal.close()
        writer.path.unlink()
        return events

    @pytest.mark.parametrize("synced_only", [True, False])
    def test_a_flipped_bit(self, tmp_path: Path, *, synced_only: bool) -> None:
        layout, numbers, records = self.make(tmp_path)
        assert sequences(self.read_after_the_next_start(layout, synced_only=synced_only)) == numbers
        for file in list_segments(layout):
            content = file.path.read_bytes()
            for offset in range(0, len(content), of_tier(11, 37)):
                bit = 1 << offset % 8
                file.path.write_bytes(content[:offset] + bytes([content[offset] ^ bit]) + content[offset + 1 :])
                found = sequences(self.read_after_the_next_start(layout, synced_only=synced_only))
                lost = sorted(set(numbers) - set(found))
                assert len(found) == len(set(found))
                assert lost in [[], *records], (file.path.name, offset)  # the record that was hit, or none
                Backlogs(layout).measure(Cursor(0, 0), Cursor(9, 0))  # whatever it counts then, it ends
            file.path.write_bytes(content)

    def test_a_cut(self, tmp_path: Path) -> None:
        layout, numbers, _ = self.make(tmp_path)
        for file in list_segments(layout):
            content = file.path.read_bytes()
            for size in range(0, len(content), 61):
                file.path.write_bytes(content[:size])
                found = sequences(self.read_after_the_next_start(layout, synced_only=True))
                assert found == sorted(set(found))
                assert set(found) <= set(numbers)
            file.path.write_bytes(content)

    @pytest.mark.parametrize("number", [1, 2, 3])
    @pytest.mark.parametrize("kind", sorted(NO_FILES))
    def test_what_is_no_file(self, tmp_path: Path, kind: str, number: int) -> None:
        layout, numbers, _ = self.make(tmp_path)
        path = list_segments(layout)[number - 1].path
        lost = sequences([event for event in read_events(layout) if event.segment.number == number])
        path.unlink()
        NO_FILES[kind](path)
        events = self.read_after_the_next_start(layout, synced_only=True)
        (damage,) = (event for event in damages(events) if event.unreadable)
        assert str(damage.segment) in path.name
        assert set(numbers) - set(sequences(events)) <= set(lost)
        assert find_journal_end(layout) >= Cursor(3, 0)

    @pytest.mark.parametrize("kind", sorted(NO_FILES))
    def test_the_newest_is_no_file_and_nothing_follows_it(self, tmp_path: Path, kind: str) -> None:
        layout, numbers, _ = self.make(tmp_path)
        path = layout.open_segment(SegmentId(4, NOON, 2))
        NO_FILES[kind](path)
        assert journal_sequences(layout) == numbers
        assert find_journal_end(layout) == Cursor(4, 0)
        assert Backlogs(layout).measure(Cursor(0, 0), Cursor(5, 0)).rows == len(numbers) + 3  # and what was voided

    def test_a_schema_that_was_hit_is_taken_from_the_next_segment(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        schema = TRADES.insert(2, pa.field("trade_id", pa.string()))
        rows = trades(0, 3)
        more = pa.RecordBatch.from_arrays(
            [*rows.columns[:2], pa.array(["a", "b", "c"]), *rows.columns[2:]], schema=schema
        )
        clock = Clock()
        journal = make_journal(layout, 1, 1, schema=schema, clock=clock)
        for _ in range(2):
            journal.append(block(more))
            clock.step(86400)
            journal.rotate_if_due()
        journal.close()
        first = list_segments(layout)[0].path
        flip(first, first.read_bytes().index(b"trade_id"))
        (found, *_) = (event for event in read_events(layout) if isinstance(event, Rows))
        assert found.batch.equals(more)

    def test_names_that_are_almost_a_segments_are_not_read(self, tmp_path: Path) -> None:
        layout, numbers, _ = self.make(tmp_path)
        first = list_segments(layout)[0]
        for name in (f"{first.id}.copy.journal", f"{first.id}.sealed.old.journal", f" {first.id}.journal"):
            (layout.journal / name).write_bytes(first.path.read_bytes())
        assert journal_sequences(layout) == numbers


def test_a_look_costs_the_same_however_many_segments_there_are(tmp_path: Path) -> None:
    """By what is asked of the kernel: at rest nothing is listed."""
    layout = make_root(tmp_path)
    writer = Writer(layout)
    for _ in range(5):
        writer.append()
        writer.rotate()
    hours_ago = time.time() - 7200
    folder = JournalFolder(layout)
    os.utime(layout.journal, (hours_ago, hours_ago))
    listed = folder.segments()
    assert len(listed) == 6
    deadline_s = time.monotonic() + 20
    while folder.segments() is not (before := folder.segments()):  # listed anew until the folder has settled
        assert time.monotonic() < deadline_s
    writer.append()  # a segment that grows changes no folder
    assert folder.segments() is before
    writer.rotate()
    assert len(folder.segments()) == 7
