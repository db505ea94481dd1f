"""Where a sink stands, and how far that is behind: from the headers of the journal."""

import time
from pathlib import Path

import pytest
from journals import Writer, make_root
from structlog.testing import capture_logs

from ingestor.history import read_history
from ingestor.journal.records import Cursor
from ingestor.journal.scan import Backlog, Backlogs
from ingestor.layout import list_segments
from ingestor.sinks.retention_slots import Lags, name_root, note_loss, read_losses, read_place, write_place


def test_a_place_is_read_as_it_was_written(tmp_path: Path) -> None:
    layout = make_root(tmp_path)
    assert read_place(layout, "kafka") == Cursor(0, 0)
    write_place(layout, "kafka", Cursor(7, 4096))
    assert read_place(layout, "kafka") == Cursor(7, 4096)


def test_the_next_run_takes_no_number_that_a_sink_has_passed(tmp_path: Path) -> None:
    layout = make_root(tmp_path)
    write_place(layout, "kafka", Cursor(8, 0))
    assert read_history(layout).segment == 7
    write_place(layout, "kafka", Cursor(8, 64))
    assert read_history(layout).segment == 8


@pytest.mark.parametrize("text", ["", "{", "[]", '{"segment": 1}', '{"segment": "x", "offset": 1}'])
def test_a_place_that_cannot_be_read_is_the_beginning(tmp_path: Path, text: str) -> None:
    layout = make_root(tmp_path)
    layout.cursor_file("redis").write_text(text)
    with capture_logs() as logs:
        assert read_place(layout, "redis") == Cursor(0, 0)
    assert [one["event"] for one in logs] == ["cursor.unreadable"]


def test_what_lies_behind_a_place_is_counted_up_to_the_synced_one(tmp_path: Path) -> None:
    layout = make_root(tmp_path)
    writer = Writer(layout)
    writer.append(5)
    writer.journal.sync()
    place = writer.journal.synced
    writer.append(4)
    writer.rotate()
    writer.append(3, reasons={"price": 2})
    writer.journal.sync()
    writer.append(100)  # not synced
    everything = Backlogs(layout).measure(Cursor(0, 0))
    assert everything.rows == 12
    assert Backlogs(layout).measure(place).rows == 7
    assert Backlogs(layout).measure(place, Cursor(2, 0)).rows == 4
    assert Backlogs(layout).measure(writer.journal.synced) == Backlog()


def test_sealing_changes_no_count(tmp_path: Path) -> None:
    layout = make_root(tmp_path)
    writer = Writer(layout)
    writer.append(5)
    writer.rotate()
    writer.journal.sync()
    backlogs = Backlogs(layout)
    before = backlogs.measure(Cursor(0, 0))
    segment = list_segments(layout)[0]
    segment.path.rename(layout.sealed_segment(segment.id))
    assert backlogs.measure(Cursor(0, 0)) == before == Backlogs(layout).measure(Cursor(0, 0))


def test_measured_again_and_again_while_the_journal_grows_and_is_freed(tmp_path: Path) -> None:
    layout = make_root(tmp_path)
    writer, backlogs = Writer(layout), Backlogs(layout)
    for segment in range(1, 6):
        writer.append(5)
        writer.rotate()
        writer.append(2)
        writer.journal.sync()
        assert backlogs.measure(Cursor(0, 0)) == Backlogs(layout).measure(Cursor(0, 0))
        assert backlogs.measure(Cursor(segment, 0)).rows == 7 + 2 * (segment > 1)
        if segment >= 3:
            list_segments(layout)[0].path.unlink()


def test_lags(tmp_path: Path) -> None:
    layout = make_root(tmp_path)
    writer = Writer(layout)
    writer.append(5)
    writer.journal.sync()
    write_place(layout, "done", writer.journal.synced)
    oldest_s = Backlogs(layout).measure(Cursor(0, 0)).oldest_received_us / 1e6
    before_s = max(time.time() - oldest_s, 0.0)
    lags = Lags(layout, ["done", "new"]).look()
    assert (lags["done"].rows, lags["done"].seconds) == (0, 0.0)
    assert lags["new"].rows == 5
    assert before_s <= lags["new"].seconds <= max(time.time() - oldest_s, 0.0)


def test_a_root_keeps_its_name_and_shares_it_with_none(tmp_path: Path) -> None:
    first, second = make_root(tmp_path / "a"), make_root(tmp_path / "b")
    assert name_root(first) == name_root(first)
    assert name_root(first) != name_root(second)
    assert name_root(first).isalpha(), "an engine reads a folder's name as a number where it can"


@pytest.mark.parametrize("text", ["", "{", "null", '{"from": [1]}', '{"from": [1, 1e999], "to": [2, 0]}', "[" * 4000])
def test_a_note_of_a_loss_that_was_hit_is_told_and_kept(tmp_path: Path, text: str) -> None:
    layout = make_root(tmp_path)
    note_loss(layout, "kafka", Cursor(1, 0), Cursor(2, 0))
    (note,) = layout.cursors.glob("*.lost")
    note.write_text(text)
    note_loss(layout, "kafka", Cursor(3, 0), Cursor(4, 0))
    assert [loss.start for loss in read_losses(layout, "kafka")] == [Cursor(3, 0)]
    assert note.with_name(f".{note.name}.damaged").read_text() == text
