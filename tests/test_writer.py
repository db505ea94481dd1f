"""The journal's writing end: no row is lost or doubled, whatever its disk does."""

import os
from pathlib import Path

import pytest
from journals import (
    NEVER,
    Clock,
    Writer,
    block,
    break_descriptor,
    damages,
    ends,
    first_sequence,
    journal_sequences,
    make_root,
    no_file_beyond,
    read_events,
    sequences,
    trades,
    writing_descriptors,
)

from ingestor import system
from ingestor.errors import RowsUnsaved
from ingestor.journal.follower import Rows
from ingestor.journal.records import Cursor, read_synced
from ingestor.journal.scan import read_identity
from ingestor.journal.writer import Rotation
from ingestor.layout import list_segments

DAY_S = 86400.0


class TestBasic:
    def test_rows_are_read_as_they_were_appended(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        writer = Writer(layout)
        rows = trades(first_sequence(1), 5)
        writer.journal.append(block(rows, notices=2, reasons={"bad_time": 1}))
        (event,) = read_events(layout)
        assert isinstance(event, Rows)
        assert event.batch.equals(rows)
        assert event.counts == block(rows, notices=2, reasons={"bad_time": 1}).header.counts
        assert event.reasons == {"bad_time": 1}
        received = [time.value for time in rows["received_at"]]
        assert (event.first_received_us, event.last_received_us) == (received[0], received[-1])

    def test_nothing_is_published_as_synced_before_it_is(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        writer = Writer(layout)
        numbers = writer.append()
        assert writer.journal.unsynced.rows == 3
        assert journal_sequences(layout, synced_only=True) == []
        writer.journal.sync()
        assert writer.journal.unsynced.rows == 0
        assert read_synced(layout) == writer.journal.synced == Cursor(1, writer.path.stat().st_size)
        assert journal_sequences(layout, synced_only=True) == numbers

    def test_the_files_are_not_open_to_others(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path / "root")
        writer = Writer(layout)
        assert writer.path.stat().st_mode & 0o777 == 0o640
        assert layout.journal.stat().st_mode & 0o777 == 0o750

    def test_a_segment_rotates_and_the_next_takes_up(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        writer = Writer(layout, rotation=Rotation(900, 1 << 40))
        before = writer.append()
        writer.clock.step(9.9)
        writer.journal.rotate_if_due()
        assert writer.journal.segment.number == 1
        writer.clock.step(0.1)
        writer.journal.rotate_if_due()
        assert writer.journal.segment.number == 2
        after = writer.append()
        events = read_events(layout)
        assert sequences(events) == before + after
        assert ends(events) == [1]

    def test_rotation_syncs_what_it_ends(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        writer = Writer(layout)
        numbers = writer.append()
        writer.rotate()
        assert journal_sequences(layout, synced_only=True) == numbers
        assert writer.journal.unsynced.rows == 0

    def test_nothing_empty_rotates(self, tmp_path: Path) -> None:
        writer = Writer(make_root(tmp_path), rotation=Rotation(1, 1))
        writer.clock.step(DAY_S)
        writer.journal.rotate_if_due()
        writer.journal.append(block(trades(0, 0), notices=3))
        writer.clock.step(DAY_S)
        writer.journal.rotate_if_due()
        assert writer.journal.segment.number == 1

    def test_age_counts_from_the_first_row(self, tmp_path: Path) -> None:
        writer = Writer(make_root(tmp_path), rotation=Rotation(900, 1 << 40))
        writer.clock.step(3600)
        writer.append()
        writer.journal.rotate_if_due()
        assert writer.journal.segment.number == 1

    def test_a_clock_that_steps_back_overwrites_nothing(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        writer = Writer(layout, rotation=Rotation(900, 1))
        numbers: list[int] = []
        for _ in range(5):
            numbers += writer.append()
            writer.clock.step(-3600)
            writer.journal.rotate_if_due()
        assert [file.id.number for file in list_segments(layout)] == [1, 2, 3, 4, 5, 6]
        assert journal_sequences(layout) == numbers

    def test_closing_ends_the_last_segment(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        writer = Writer(layout)
        numbers = writer.append()
        writer.journal.close()
        events = read_events(layout, synced_only=True)
        assert (sequences(events), ends(events)) == (numbers, [1])

    def test_a_run_follows_on_another_that_was_killed(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        killed = Writer(layout)
        before = killed.append()
        after = Writer(layout, run=2, segment=2).append()
        events = read_events(layout)
        assert (sequences(events), ends(events)) == (before + after, [1])
        assert journal_sequences(layout, synced_only=True) == before

    def test_too_much_unsynced_asks_for_a_sync(self, tmp_path: Path) -> None:
        writer = Writer(make_root(tmp_path))
        while not writer.journal.unsynced.full:
            assert writer.path.stat().st_size < 32 << 20
            writer.append(50_000)
        writer.journal.sync()
        assert not writer.journal.unsynced.full


class TestRecovery:
    """Real refusals: a device that is full under the segment's descriptor, a limit on the size of files."""

    def test_rows_that_a_full_disk_refused_are_written_to_the_next_segment(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        writer = Writer(layout)
        synced = writer.append()
        writer.journal.sync()
        abandoned_at = writer.journal.synced
        unsynced = writer.append()
        break_descriptor(writer.fd)
        refused = writer.append()
        assert isinstance(writer.journal.failed, OSError)
        assert writer.journal.unsynced.rows == 6
        assert writer.journal.recover()
        assert writer.journal.failed is None
        later = writer.append()
        writer.journal.sync()
        for synced_only in (False, True):
            assert journal_sequences(layout, synced_only=synced_only) == synced + unsynced + refused + later
        identity = read_identity(writer.path)
        assert identity is not None
        assert identity["continues"] == [abandoned_at.segment, abandoned_at.offset]

    def test_an_fsync_that_failed_is_not_asked_again(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        writer = Writer(layout)
        numbers = writer.append()
        break_descriptor(writer.fd)
        writer.journal.sync()
        assert isinstance(writer.journal.failed, OSError)
        writer.journal.sync()
        assert journal_sequences(layout, synced_only=True) == []
        assert writer.journal.recover()
        assert writer.journal.segment.number == 2
        events = read_events(layout, synced_only=True)
        assert (sequences(events), ends(events)) == (numbers, [1])
        assert damages(events) == []

    def test_a_sync_after_a_write_that_failed_vouches_for_nothing(self, tmp_path: Path) -> None:
        """The recorder may sync before it recovers, and that fsync would succeed: the rows are not in the file."""
        layout = make_root(tmp_path)
        writer = Writer(layout)
        synced = writer.append()
        writer.journal.sync()
        refused = writer.append_refused()
        writer.journal.sync()
        assert journal_sequences(layout, synced_only=True) == synced
        assert writer.journal.unsynced.rows == len(refused)
        assert writer.journal.recover()
        assert journal_sequences(layout, synced_only=True) == synced + refused

    def test_a_part_of_a_record_is_left_behind(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        writer = Writer(layout)
        synced = writer.append()
        writer.journal.sync()
        refused = writer.append_refused()
        assert writer.path.stat().st_size == writer.journal.synced.offset + 100
        assert journal_sequences(layout) == synced
        assert writer.journal.recover()
        events = read_events(layout)
        assert (sequences(events), damages(events)) == (synced + refused, [])

    def test_a_recovery_that_fails_leaves_nothing_and_is_tried_again(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        writer = Writer(layout)
        synced = writer.append()
        writer.journal.sync()
        break_descriptor(writer.fd)
        refused = writer.append(200)
        with no_file_beyond(0):
            assert not writer.journal.recover()  # not even a segment's first record
        with no_file_beyond(2000):
            for _ in range(3):
                assert not writer.journal.recover()  # a segment, but not the rows
        assert [file.id.number for file in list_segments(layout)] == [1]
        assert len([path for _, path in writing_descriptors() if path.is_relative_to(tmp_path)]) == 1  # `synced`
        assert writer.journal.recover()
        assert journal_sequences(layout, synced_only=True) == synced + refused

    def test_a_rotation_that_fails_loses_nothing(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        writer = Writer(layout)
        before = writer.append()
        with no_file_beyond(0):
            writer.rotate()
        assert writer.journal.failed
        assert writer.journal.recover()
        after = writer.append()
        writer.journal.sync()
        events = read_events(layout, synced_only=True)
        assert (sequences(events), ends(events)) == (before + after, [1])

    def test_a_segment_that_could_not_be_opened_at_rotation_is_tried_again(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        writer = Writer(layout)
        before = writer.append()
        moved = tmp_path / "elsewhere"
        layout.journal.rename(moved)
        writer.rotate()
        assert writer.journal.failed
        assert not writer.journal.recover()
        moved.rename(layout.journal)
        assert writer.journal.recover()
        assert journal_sequences(layout, synced_only=True) == before

    def test_a_stop_on_a_disk_that_takes_nothing_says_how_much_is_lost(self, tmp_path: Path) -> None:
        writer = Writer(make_root(tmp_path))
        writer.append(4)
        break_descriptor(writer.fd)
        writer.append(5)
        with no_file_beyond(0), pytest.raises(RowsUnsaved, match="9 trades could not be saved") as refused:
            writer.journal.close()
        assert refused.value.exit_code == 4


class TestInvariants:
    def test_what_a_run_left_is_synced_before_anything_follows_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """From then on it is read as synced: a power cut may not take what a sink has got."""
        layout = make_root(tmp_path)
        killed = Writer(layout)
        killed.append()
        left, synced = killed.path.stat().st_ino, list[int]()
        monkeypatch.setattr(system, "sync_whole", lambda fd: synced.append(os.fstat(fd).st_ino))
        following = Writer(layout, run=2, segment=2)
        assert synced[:2] == [left, following.path.stat().st_ino]

    def test_numbers_given_up_are_not_taken_again(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        writer = Writer(layout)
        writer.append()
        break_descriptor(writer.fd)
        writer.journal.sync()
        with no_file_beyond(0):
            assert not writer.journal.recover()
        assert writer.journal.recover()
        assert writer.journal.segment.number == 3

    def test_a_disk_that_fails_again_and_again_costs_no_row(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        writer = Writer(layout, clock=Clock(), rotation=NEVER)
        numbers: list[int] = []
        for step in range(30):
            numbers += writer.append(step % 4)
            if step % 3 == 0:
                break_descriptor(writer.fd)
            if step % 2:
                writer.journal.sync()
            while writer.journal.failed and not writer.journal.recover():
                pass
        writer.journal.close()
        assert journal_sequences(layout) == journal_sequences(layout, synced_only=True) == numbers
