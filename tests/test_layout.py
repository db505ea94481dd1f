"""Where files live and how one becomes final."""

import os
import subprocess
import sys
import threading
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from journals import NOON, SEGMENT, make_root

from ingestor.errors import RootLocked
from ingestor.layout import (
    Layout,
    SegmentId,
    list_segments,
    locked_date,
    locked_root,
    make_folder,
    publish,
    write_whole,
)


class TestNames:
    @given(
        st.integers(1, 10**12 - 1),
        st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1)),  # noqa: DTZ001  hypothesis adds the zone
        st.integers(1, 10**6 - 1),
    )
    def test_a_segments_name_is_read_back(self, number: int, started: datetime, run: int) -> None:
        segment = SegmentId(number, started.replace(microsecond=0, tzinfo=UTC), run)
        for ending in ("", ".journal", ".sealed.journal", ".parquet", ".csv.gz"):
            assert SegmentId.parse(f"{segment}{ending}") == segment

    @pytest.mark.parametrize(
        "name", ["", "synced", "a-b-c", "1-2", "000000000001-20261120T120000Z", "1-x-r1", "x.journal"]
    )
    def test_other_names_are_no_segments(self, name: str) -> None:
        with pytest.raises(ValueError, match=r"unpack|int|time data"):
            SegmentId.parse(name)

    def test_the_order_is_by_number_and_the_names_sort_alike(self) -> None:
        later = SegmentId(2, NOON.replace(year=1999), 9)
        assert sorted([later, SEGMENT]) == [SEGMENT, later]
        assert sorted([str(later), str(SEGMENT)]) == [str(SEGMENT), str(later)]

    def test_the_journal_lists_its_segments_and_nothing_else(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        second = SegmentId(2, NOON, 1)
        layout.sealed_segment(SEGMENT).touch()
        layout.open_segment(second).touch()
        for name in ("synced", "ballast", "notes.journal", f"{second}.journal.swp"):
            (layout.journal / name).touch()
        assert [(file.id, file.sealed) for file in list_segments(layout)] == [(SEGMENT, True), (second, False)]
        assert list_segments(Layout(tmp_path / "nowhere")) == []


class TestPublish:
    def test_a_file_has_its_final_name_and_no_other(self, tmp_path: Path) -> None:
        staged, final = tmp_path / "staged", tmp_path / "trades/date=2026-11-20/x.parquet"
        staged.write_bytes(b"whole")
        publish(staged, final)
        assert final.read_bytes() == b"whole"
        assert not staged.exists()

    def test_it_replaces(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        for text in ("first", "second"):
            write_whole(layout.cursor_file("csv"), text, layout.staging)
        assert layout.cursor_file("csv").read_text() == "second"
        assert list(layout.staging.iterdir()) == []

    def test_what_cannot_be_staged_leaves_the_old_file(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        write_whole(layout.cursor_file("csv"), "first", layout.staging)
        with pytest.raises(FileNotFoundError):
            write_whole(layout.cursor_file("csv"), "second", tmp_path / "nowhere")
        assert layout.cursor_file("csv").read_text() == "first"

    def test_folders_and_small_files_are_not_open_to_others(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path / "a/b/root")
        write_whole(layout.cursor_file("csv"), "x", layout.staging)
        make_folder(layout.trades / "date=2026-11-20")
        for folder in (layout.root, layout.journal, layout.cursors, layout.trades, layout.trades / "date=2026-11-20"):
            assert folder.stat().st_mode & 0o777 == 0o750
        assert layout.cursor_file("csv").stat().st_mode & 0o777 == 0o640

    def test_a_root_may_exist_already(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        layout.create()
        assert layout.journal.is_dir()


class TestLocks:
    def test_a_second_recorder_is_told_of_the_first(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        with locked_root(layout):
            with pytest.raises(RootLocked, match=f"process {os.getpid()};") as refused, locked_root(layout):
                pass
            assert refused.value.exit_code == 2
        with locked_root(layout):
            assert str(os.getpid()) in (tmp_path / ".lock").read_text()

    def test_a_dead_recorder_holds_nothing(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        script = (
            "import os, sys; from pathlib import Path; from ingestor.layout import Layout, locked_root\n"
            "with locked_root(Layout(Path(sys.argv[1]))): os.kill(os.getpid(), 9)"
        )
        assert subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False).returncode == -9
        with locked_root(layout):
            assert str(os.getpid()) in (tmp_path / ".lock").read_text()

    def test_a_date_is_held_by_one_at_a_time(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        got = threading.Event()

        def take() -> None:
            with locked_date(layout, date(2026, 11, 20)):
                got.set()

        with locked_date(layout, date(2026, 11, 20)):
            other = threading.Thread(target=take)
            other.start()
            with locked_date(layout, date(2026, 11, 21)):
                assert not got.is_set()
        other.join()
        assert got.is_set()
