"""Claims: the journal is kept for a sink that is behind, within bounds; beyond them the last loses its own, loudly."""

from pathlib import Path

from journals import Holder, Writer, drain, ledger_facts, make_ledger, make_root, unsealed
from structlog.testing import capture_logs

from ingestor.journal.records import Cursor
from ingestor.layout import Layout, list_segments
from ingestor.ledger import Ledger
from ingestor.sinks.retention_slots import RetentionSlots, note_loss, read_losses, write_place
from ingestor.sinks.segment_accounts import SegmentAccounts

PLENTY = 1 << 40


def journal_of(layout: Layout, segments: int) -> None:
    """So many segments that have ended, of six rows each; one more is open."""
    writer = Writer(layout)
    for _ in range(segments):
        writer.append()
        writer.append()
        writer.rotate()


def slots_of(layout: Layout, ledger: Ledger, *sinks: str, max_bytes: int = PLENTY, min_free: int = 0) -> RetentionSlots:
    return RetentionSlots(layout, sinks, max_bytes, min_free, ledger)


def freed(layout: Layout, slots: RetentionSlots, passed: int) -> list[int]:
    """What is to be freed where the files have passed the segments up to this number."""
    return [file.id.number for file in slots.settle([one for one in list_segments(layout) if one.id.number <= passed])]


class TestBasic:
    def test_where_nobody_claims_all_that_is_passed_is_freed(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        journal_of(layout, 3)
        assert freed(layout, slots_of(layout, make_ledger(layout)), 3) == [1, 2, 3]

    def test_a_sink_claims_what_it_has_not_passed(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        journal_of(layout, 3)
        write_place(layout, "a", Cursor(3, 0))
        write_place(layout, "b", Cursor(2, 100))
        assert freed(layout, slots_of(layout, make_ledger(layout), "a", "b"), 3) == [1]

    def test_a_sink_that_has_no_place_yet_claims_everything(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        journal_of(layout, 3)
        write_place(layout, "a", Cursor(4, 0))
        assert freed(layout, slots_of(layout, make_ledger(layout), "a", "new"), 3) == []

    def test_the_files_keep_their_own_claim(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        journal_of(layout, 3)
        slots = slots_of(layout, make_ledger(layout), "a", max_bytes=0)
        drain(layout, [Holder()])
        assert freed(layout, slots, 0) == []
        assert unsealed(layout) == [1, 2, 3, 4]


class TestBounds:
    def test_beyond_max_bytes_the_furthest_behind_loses_the_oldest(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        journal_of(layout, 3)
        write_place(layout, "ahead", Cursor(3, 0))
        ledger = make_ledger(layout)
        size = list_segments(layout)[1].path.stat().st_size
        slots = slots_of(layout, ledger, "ahead", "behind", max_bytes=2 * size)
        with capture_logs() as logs:
            assert freed(layout, slots, 3) == [1]
        assert [(one["event"], one["log_level"], one["sink"]) for one in logs] == [("sink.skipped", "error", "behind")]
        facts = [(one["sink"], one["rows"], one["from"], one["to"]) for one in ledger_facts(layout, "sink.skipped")]
        assert facts == [("behind", 6, [1, 0], [2, 0])]
        assert slots.skipped == {"behind": 6}

    def test_the_rows_that_it_had_passed_are_not_counted(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        writer = Writer(layout)
        writer.append(5)
        writer.journal.sync()
        place = writer.journal.synced
        writer.append(4)
        writer.rotate()
        write_place(layout, "behind", place)
        slots = slots_of(layout, make_ledger(layout), "behind", max_bytes=0)
        assert freed(layout, slots, 1) == [1]
        assert slots.skipped == {"behind": 4}

    def test_below_min_free_too(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        journal_of(layout, 2)
        slots = slots_of(layout, make_ledger(layout), "behind", min_free=1 << 60)
        assert freed(layout, slots, 2) == [1, 2]
        assert slots.skipped == {"behind": 12}


class TestLosses:
    """What a sink found gone, such as after runs in which it was switched off."""

    def test_the_ledger_gets_it_with_the_rows_that_the_segments_held(self, tmp_path: Path) -> None:
        layout, ledger = accounted(tmp_path, 3)
        slots = slots_of(layout, ledger, "a", "b")
        note_loss(layout, "b", Cursor(1, 0), Cursor(3, 0))
        with capture_logs() as logs:
            slots.settle([])
        assert [(one["sink"], one["rows"], one["from"], one["to"]) for one in ledger_facts(layout, "sink.skipped")] == [
            ("b", 12, [1, 0], [3, 0])
        ]
        assert [(one["event"], one["log_level"], one["sink"]) for one in logs] == [("sink.skipped", "error", "b")]
        assert slots.skipped == {"b": 12}
        assert read_losses(layout, "b") == []

    def test_what_the_ledger_has_told_is_not_told_again(self, tmp_path: Path) -> None:
        layout, ledger = accounted(tmp_path, 3)
        slots = slots_of(layout, ledger, "a", max_bytes=0)
        assert freed(layout, slots, 2) == [1, 2]
        assert slots.skipped == {"a": 12}
        note_loss(layout, "a", Cursor(1, 8), Cursor(3, 0))
        slots_of(layout, ledger, "a").settle([])
        assert sum(one["rows"] for one in ledger_facts(layout, "sink.skipped")) == 12
        note_loss(layout, "a", Cursor(1, 8), Cursor(4, 0))
        slots_of(layout, ledger, "a").settle([])
        assert sum(one["rows"] for one in ledger_facts(layout, "sink.skipped")) == 18
        assert read_losses(layout, "a") == []

    def test_what_another_has_lost_is_its_own(self, tmp_path: Path) -> None:
        """What was told of one sink says nothing of another that has lost the same segments."""
        layout, ledger = accounted(tmp_path, 3)
        assert freed(layout, slots_of(layout, ledger, "a", max_bytes=0), 2) == [1, 2]
        note_loss(layout, "b", Cursor(1, 0), Cursor(3, 0))
        slots_of(layout, ledger, "b").settle([])
        facts = [(one["sink"], one["rows"]) for one in ledger_facts(layout, "sink.skipped")]
        assert facts == [("a", 6), ("a", 6), ("b", 12)]


def accounted(folder: Path, segments: int) -> tuple[Layout, Ledger]:
    """A root with so many segments of six rows each, and their accounts in its ledger."""
    layout = make_root(folder)
    journal_of(layout, segments)
    ledger = make_ledger(layout)
    drain(layout, [Holder(), SegmentAccounts(layout, ledger, 0)])
    return layout, ledger
