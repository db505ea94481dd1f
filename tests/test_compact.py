"""Compaction: one sorted file a day, the same rows; and what a crash leaves is read rightly and cleared."""

import stat
from datetime import UTC, date, datetime
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from journals import parquet_rows, trades
from recordings import Print, Recording, add_trade_ids

import ingestor
from ingestor.dataset.compact import Compaction, clear_leftovers, compact_days, has_work, locked_maintenance
from ingestor.dataset.snapshot import Compacted, date_folder, list_names, read_origin
from ingestor.errors import CompactionRunning, ConservationViolated, DamagedFile, FormatTooNew
from ingestor.layout import Layout
from ingestor.parquet import FORMAT_KEY, ORIGIN_KEY, ROW_GROUP

DAY = date(2026, 11, 19)
TOMORROW = date(2026, 11, 20)


def write_segment(recording: Recording, *prices: float, day: str = "2026-11-19") -> None:
    """A segment of two symbols, its rows not in their order, one of them for the day before."""
    recording.write(
        *(
            Print(f"{day}T12:00:0{int(price) % 7}", "MSFT" if price % 2 else "AAPL", price, 10, "1,12")
            for price in prices
        ),
    )
    recording.seal()


@pytest.fixture
def recording(tmp_path: Path) -> Recording:
    recording = Recording(tmp_path, started="2026-11-18")
    for first in (1, 11, 21):
        write_segment(recording, first, first + 3, first + 1, first + 2)
    return recording


def compact(recording: Recording, before: date = TOMORROW, **options: int) -> list[Compaction]:
    return list(compact_days(recording.layout, before, **options))


def names(layout: Layout, day: date = DAY) -> list[str]:
    return list(list_names(date_folder(layout, day)))


def rows(recording: Recording) -> pa.Table:
    return ingestor.read_trades(recording.layout.root, engine="arrow")


# What it makes


def test_a_day_becomes_one_sorted_file(recording: Recording) -> None:
    before = rows(recording)
    (done,) = compact(recording)
    assert (done.day, done.files_before, done.files_after, done.rows) == (DAY, 3, 1, 12)
    assert names(recording.layout) == ["compacted-000000000003-0001of0001.parquet"]
    (path,) = date_folder(recording.layout, DAY).iterdir()
    table = pq.read_table(path, partitioning=None)
    assert table.equals(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o750
    assert rows(recording) == before


def test_what_older_parts_lack_is_null_in_their_rows(tmp_path: Path) -> None:
    """So many of them that they are merged before the first of the others."""
    recording, noon = Recording(tmp_path, started="2026-11-18"), datetime(2026, 11, 19, 12, tzinfo=UTC)
    for symbol, count in (("AAPL", 70_000), ("MSFT", 10)):
        recording.append(trades(recording.sequence, count, at=noon, symbols=[symbol]))
        recording.seal()
    add_trade_ids(date_folder(recording.layout, DAY) / names(recording.layout)[-1])
    before = rows(recording)
    assert before["trade_id"].to_pylist() == [None] * 70_000 + list(range(10))
    assert [done.rows for done in compact(recording)] == [70_010]
    assert rows(recording) == before


def test_its_file_is_as_any_other_and_names_its_segments(recording: Recording) -> None:
    parts = [date_folder(recording.layout, DAY) / name for name in names(recording.layout)]
    segments = {path.name.removesuffix(".parquet") for path in parts}
    part = pq.read_metadata(parts[0])
    compact(recording)
    (path,) = date_folder(recording.layout, DAY).iterdir()
    assert read_origin(path) == segments
    made = pq.read_metadata(path)
    assert made.metadata[FORMAT_KEY] == part.metadata[FORMAT_KEY]
    assert made.schema.equals(part.schema)
    for column in range(made.num_columns):
        one, other = made.row_group(0).column(column), part.row_group(0).column(column)
        assert (one.encodings, one.compression) == (other.encodings, other.compression)
    assert made.row_group(0).sorting_columns == part.row_group(0).sorting_columns


def test_what_pandas_reads_is_the_same(recording: Recording) -> None:
    before = pd.read_parquet(recording.layout.trades).sort_values("sequence", ignore_index=True)
    compact(recording)
    after = pd.read_parquet(recording.layout.trades).sort_values("sequence", ignore_index=True)
    pd.testing.assert_frame_equal(before, after)


def test_nothing_is_left_behind(recording: Recording) -> None:
    compact(recording)
    assert [path.name for path in recording.layout.staging.iterdir() if path.suffix != ".lock"] == []


def test_a_large_day_is_split_into_files_that_together_are_sorted(tmp_path: Path) -> None:
    recording = Recording(tmp_path)
    for _ in range(2):
        prints = [Print("2026-11-19T12:00", f"S{number % 50:02d}", number, 10) for number in range(ROW_GROUP)]
        recording.write(*prints)
        recording.seal()
    before = rows(recording)
    (done,) = compact(recording, file_bytes=1)
    assert names(recording.layout) == [
        "compacted-000000000002-0001of0002.parquet",
        "compacted-000000000002-0002of0002.parquet",
    ]
    assert done.files_after == 2
    tables = [
        pq.read_table(date_folder(recording.layout, DAY) / name, partitioning=None) for name in names(recording.layout)
    ]
    assert pa.concat_tables(tables).equals(before)
    assert {
        pq.read_metadata(date_folder(recording.layout, DAY) / name).num_row_groups for name in names(recording.layout)
    } == {1}
    assert rows(recording) == before


# What it leaves alone


def test_days_that_are_not_over(recording: Recording) -> None:
    assert compact(recording, before=DAY) == []
    assert len(names(recording.layout)) == 3


def test_a_day_of_one_file_and_a_compacted_one(recording: Recording) -> None:
    write_segment(recording, 1, day="2026-11-18")
    assert len(compact(recording)) == 1
    assert names(recording.layout, date(2026, 11, 18)) == ["000000000004-20261118T000000Z-r000001.parquet"]
    assert not has_work(recording.layout, TOMORROW)
    assert compact(recording) == []


def test_segments_for_which_the_journal_still_speaks(recording: Recording) -> None:
    """Published, not committed: such a file may be made anew, so it stays what it is."""
    write_segment(recording, 31, 32)
    uncommitted = names(recording.layout)[-1]
    (recording.layout.journal / uncommitted.replace(".parquet", ".journal")).write_bytes(b"")
    compact(recording)
    assert names(recording.layout) == [uncommitted, "compacted-000000000003-0001of0001.parquet"]


def test_late_trades_make_a_new_file_that_is_merged_next_time(recording: Recording) -> None:
    compact(recording)
    write_segment(recording, 41, 42, day="2026-11-20")
    write_segment(recording, 5, 6)
    before = rows(recording)
    assert len(names(recording.layout)) == 2
    assert has_work(recording.layout, TOMORROW)
    assert [(done.files_before, done.rows) for done in compact(recording)] == [(2, 14)]
    assert names(recording.layout) == ["compacted-000000000005-0001of0001.parquet"]
    assert rows(recording) == before


@pytest.mark.long
def test_a_day_of_very_many_files_takes_several_goes(tmp_path: Path) -> None:
    recording = Recording(tmp_path)
    for number in range(300):
        recording.write(Print("2026-11-19T12:00", "AAPL", number, 10))
        recording.end_segment()
    recording.seal()
    before = rows(recording)
    assert [done.files_before for done in compact(recording)] == [128, 128, 46]
    assert rows(recording) == before


# What goes wrong


def test_only_one_at_a_time(recording: Recording) -> None:
    with (
        locked_maintenance(recording.layout),
        pytest.raises(CompactionRunning, match="being compacted by another process"),
    ):
        compact(recording)
    assert len(compact(recording)) == 1


def test_a_damaged_file_stops_it_and_nothing_is_changed(recording: Recording) -> None:
    path = date_folder(recording.layout, DAY) / names(recording.layout)[1]
    content = bytearray(path.read_bytes())
    content[60] ^= 1
    path.write_bytes(content)
    before = names(recording.layout)
    with pytest.raises((DamagedFile, ConservationViolated), match=r"\w"):
        compact(recording)
    assert names(recording.layout) == before


def test_a_file_of_a_later_version_stops_it(recording: Recording) -> None:
    path = date_folder(recording.layout, DAY) / names(recording.layout)[1]
    table = pq.read_table(path, partitioning=None)
    pq.write_table(table.replace_schema_metadata({FORMAT_KEY: "3", ORIGIN_KEY: path.stem}), path)
    with pytest.raises(FormatTooNew):
        compact(recording)


# What a crash leaves, where the file system can't exchange folders


def make_compacted(recording: Recording, file_bytes: int = 1 << 30) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """The contents of the day's files before and after a compaction, which is undone."""
    folder = date_folder(recording.layout, DAY)
    parts = {path.name: path.read_bytes() for path in folder.iterdir()}
    compact(recording, file_bytes=file_bytes)
    compacted = {path.name: path.read_bytes() for path in folder.iterdir()}
    put(recording, parts)
    return parts, compacted


def put(recording: Recording, contents: dict[str, bytes]) -> None:
    """Let the day's folder hold these files and no others."""
    folder = date_folder(recording.layout, DAY)
    for path in folder.iterdir():
        path.unlink()
    for name, content in contents.items():
        (folder / name).write_bytes(content)


def test_at_any_moment_of_the_moving_a_reader_finds_each_row_once(tmp_path: Path) -> None:
    recording = Recording(tmp_path)
    for _ in range(2):
        recording.write(*(Print("2026-11-19T12:00", "AAPL", number, 10) for number in range(ROW_GROUP)))
        recording.seal()
    truth = rows(recording)
    parts, compacted = make_compacted(recording, file_bytes=1)
    first, second = compacted
    one, other = parts
    whole = parts | compacted
    states = [
        parts,
        parts | {first: compacted[first]},
        parts | {second: compacted[second]},
        whole,
        {name: whole[name] for name in (first, second, one)},
        {name: whole[name] for name in (first, second, other)},
        compacted,
    ]
    for state in states:
        put(recording, state)
        assert rows(recording) == truth, sorted(state)
        clear_leftovers(recording.layout)
        assert rows(recording) == truth, sorted(state)
        assert names(recording.layout) in (sorted(parts), sorted(compacted))


def test_of_a_compaction_and_its_successor_only_that_is_read(recording: Recording) -> None:
    compact(recording)
    write_segment(recording, 5, 6)
    truth = rows(recording)
    parts, compacted = make_compacted(recording)
    put(recording, parts | compacted)
    assert rows(recording) == truth
    clear_leftovers(recording.layout)
    assert names(recording.layout) == list(compacted)
    assert rows(recording) == truth


def test_a_folder_left_in_staging_is_removed_before_the_next_compaction(recording: Recording) -> None:
    left = recording.layout.staging / "date=2026-11-19.compacted"
    left.mkdir()
    (left / "000001").write_bytes(b"half")
    assert len(compact(recording)) == 1
    assert not left.exists()


# Names


def test_a_compacted_name() -> None:
    name = Compacted(42, 1, 3)
    assert str(name) == "compacted-000000000042-0001of0003.parquet"
    assert Compacted.parse(str(name)) == name
    assert Compacted.parse("000000000042-20261119T000000Z-r000001.parquet") is None


def test_sequences_stay_unique(recording: Recording) -> None:
    compact(recording)
    sequences = parquet_rows(recording.layout)["sequence"].to_pylist()
    assert sequences == list(range(sequences[0], sequences[0] + 12))
