"""The mirror: whole files or none, and what goes here goes there. A real S3 server is in test_sink_contract."""

from datetime import UTC, datetime
from pathlib import Path

import pyarrow.dataset as pads
import pytest
from journals import NOON, Holder, drain, make_ledger, make_root, parquet_rows
from sink_contract import ROOT, fill_journal, read_store

from ingestor.dataset.compact import compact_days
from ingestor.errors import SinkUnavailable
from ingestor.journal.follower import SegmentEnd
from ingestor.journal.records import Cursor
from ingestor.layout import Layout, SegmentId, list_segments
from ingestor.sinks.object_store import ObjectStore
from ingestor.sinks.parquet_files import ParquetFiles

INF = float("inf")


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """Two segments in the dataset."""
    made = make_root(tmp_path / "root")
    fill_journal(made, 2, 2, 20)
    drain(made, [Holder(), ParquetFiles(made, make_ledger(made))])
    return made


@pytest.fixture
def there(tmp_path: Path) -> Path:
    return tmp_path / "there"


def mirror(layout: Layout, there: Path) -> ObjectStore:
    sink = ObjectStore(str(there), layout, ROOT)
    sink.tick(INF)
    return sink


def share(layout: Layout, there: Path, root: str) -> None:
    ObjectStore(str(there), layout, root, shared=True).tick(INF)


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.glob("date=*/*"))


class TestBasic:
    def test_the_same_files_under_the_same_names(self, layout: Layout, there: Path) -> None:
        mirror(layout, there)
        assert names(there) == names(layout.trades)
        assert read_store(str(there)).sort_by("sequence").equals(parquet_rows(layout))

    def test_what_is_there_already_is_not_brought_again(self, layout: Layout, there: Path) -> None:
        mirror(layout, there)
        before = {path: path.stat().st_ino for path in there.glob("date=*/*")}
        mirror(layout, there)
        assert {path: path.stat().st_ino for path in there.glob("date=*/*")} == before

    def test_a_file_of_another_size_is(self, layout: Layout, there: Path) -> None:
        mirror(layout, there)
        broken = next(there.glob("date=*/*"))
        broken.write_bytes(b"a part")
        mirror(layout, there)
        assert read_store(str(there)).sort_by("sequence").equals(parquet_rows(layout))

    def test_files_of_a_segment_that_is_not_sealed_stay_here(self, layout: Layout, there: Path) -> None:
        sealed = next(
            file for file in list_segments(layout) if file.sealed and list(layout.trades.rglob(f"{file.id}*"))
        )
        sealed.path.rename(layout.open_segment(sealed.id))
        mirror(layout, there)
        assert [name for name in names(layout.trades) if name not in names(there)] == [
            f"date=2026-11-20/{sealed.id}.parquet"
        ]

    def test_its_place_is_behind_what_is_mirrored(self, layout: Layout, there: Path) -> None:
        sink = ObjectStore(str(there), layout, ROOT)
        sink.end_segment(SegmentEnd(SegmentId(3, NOON, 1), Cursor(4, 0)))
        assert sink.committed() == Cursor(0, 0)
        sink.tick(INF)
        assert sink.committed() == Cursor(4, 0)
        third = next(file for file in list_segments(layout) if file.id.number == 3)
        third.path.rename(layout.open_segment(third.id))
        sink.tick(INF)
        assert sink.committed() == Cursor(3, 0)


class TestWholeOrNotAtAll:
    def test_a_destination_that_fails_shows_no_part(self, layout: Layout, there: Path) -> None:
        sink = ObjectStore(str(there), layout, ROOT)
        (there / "date=2026-11-20").write_text("in the way")
        with pytest.raises(SinkUnavailable):
            sink.tick(INF)
        assert list(there.rglob("*.parquet")) == []
        (there / "date=2026-11-20").unlink()
        mirror(layout, there)
        assert names(there) == names(layout.trades)

    def test_what_waits_to_be_moved_is_no_file_of_the_dataset(self, layout: Layout, there: Path) -> None:
        mirror(layout, there)
        beside = [
            path.relative_to(there)
            for path in there.rglob("*")
            if not path.relative_to(there).parts[0].startswith("date=")
        ]
        assert all(path.parts[0].startswith((".", "_")) and path.suffix != ".parquet" for path in beside)


class TestWhatGoes:
    def test_compaction_follows(self, layout: Layout, there: Path) -> None:
        mirror(layout, there)
        (done,) = compact_days(layout, datetime(2026, 11, 21, tzinfo=UTC).date())
        assert done.files_after == 1
        mirror(layout, there)
        assert names(there) == names(layout.trades)
        assert len(names(there)) == 1
        assert read_store(str(there)).sort_by("sequence").equals(parquet_rows(layout))

    def test_retention_follows(self, layout: Layout, there: Path) -> None:
        mirror(layout, there)
        ledger = make_ledger(layout, 7)
        ledger.record("day.deleted", date="2026-11-20", retention_s=86400.0)
        _delete_day(layout)
        mirror(layout, there)
        assert names(there) == []

    def test_a_day_that_was_lost_here_stays_there(self, layout: Layout, there: Path) -> None:
        mirror(layout, there)
        kept = names(there)
        _delete_day(layout)
        mirror(layout, there)
        assert names(there) == kept

    def test_files_of_others_are_left_alone(self, layout: Layout, there: Path) -> None:
        there.mkdir()
        (there / "README").write_text("ours")
        mirror(layout, there)
        assert (there / "README").read_text() == "ours"


class TestShared:
    @pytest.fixture
    def other(self, tmp_path: Path) -> Layout:
        """Another root whose segments have the same numbers, and so their files the same names."""
        made = make_root(tmp_path / "other")
        fill_journal(made, 2, 2, 20)
        drain(made, [Holder(), ParquetFiles(made, make_ledger(made))])
        return made

    def test_each_root_has_a_folder_which_is_a_column_of_the_whole(
        self, layout: Layout, other: Layout, there: Path
    ) -> None:
        assert names(layout.trades) == names(other.trades)
        share(layout, there, "one")
        share(other, there, "two")
        found = pads.dataset(there, partitioning="hive").to_table()
        keys = found.group_by(["root", "sequence"]).aggregate([])
        expected = [(root, row) for root in ("one", "two") for row in parquet_rows(layout)["sequence"].to_pylist()]
        assert sorted(zip(keys["root"].to_pylist(), keys["sequence"].to_pylist(), strict=True)) == expected
        assert found.num_rows == len(expected)

    def test_compaction_and_retention_touch_no_file_of_another(
        self, layout: Layout, other: Layout, there: Path
    ) -> None:
        share(layout, there, "one")
        share(other, there, "two")
        list(compact_days(layout, datetime(2026, 11, 21, tzinfo=UTC).date()))
        share(layout, there, "one")
        assert names(there / "root=one") == names(layout.trades) != names(there / "root=two")
        make_ledger(layout, 7).record("day.deleted", date="2026-11-20", retention_s=86400.0)
        _delete_day(layout)
        share(layout, there, "one")
        assert names(there / "root=one") == []
        assert names(there / "root=two") == names(other.trades)

    def test_what_is_one_roots_alone_is_not_shared(self, layout: Layout, there: Path) -> None:
        mirror(layout, there)
        with pytest.raises(SinkUnavailable, match="one root alone"):
            share(layout, there, "two")

    def test_what_is_shared_is_no_ones_alone(self, layout: Layout, there: Path) -> None:
        share(layout, there, "two")
        with pytest.raises(SinkUnavailable, match="shared by others"):
            mirror(layout, there)


class TestKnownErrors:
    def test_one_root_a_place(self, layout: Layout, there: Path) -> None:
        mirror(layout, there)
        with pytest.raises(SinkUnavailable, match="another root"):
            ObjectStore(str(there), layout, "another")

    @pytest.mark.parametrize("uri", ["s3://bucket/path?nope=1", "file://"])
    def test_an_address_that_pyarrow_refuses(self, layout: Layout, uri: str) -> None:
        with pytest.raises(SinkUnavailable):
            ObjectStore(uri, layout, ROOT)


def _delete_day(layout: Layout) -> None:
    for path in layout.trades.glob("date=*/*"):
        path.unlink()
    for folder in layout.trades.glob("date=*"):
        folder.rmdir()
