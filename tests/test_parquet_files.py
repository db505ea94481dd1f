"""Sealing: a segment's rows into the dataset, once, sorted, under their own dates, in an encoding others can read."""

import os
from datetime import date, timedelta
from itertools import accumulate
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from journals import (
    NOON,
    SEGMENT,
    Holder,
    Writer,
    block,
    drain,
    first_sequence,
    ledger_facts,
    make_ledger,
    make_root,
    no_file_beyond,
    parquet_rows,
    parquet_sequences,
    trades,
    unsealed,
)

from ingestor.errors import DamagedFile, SinkUnavailable
from ingestor.journal.follower import Rows, SegmentEnd
from ingestor.journal.records import Cursor
from ingestor.layout import Layout, list_segments
from ingestor.metrics import Counts
from ingestor.parquet import check_pages, open_parquet
from ingestor.schema import FORMAT_VERSION, TRADES
from ingestor.sinks.parquet_files import ParquetFiles, publish_rows

TODAY, YESTERDAY = date(2026, 11, 20), date(2026, 11, 19)
END = SegmentEnd(SEGMENT, Cursor(2, 0))


def as_rows(batch: pa.RecordBatch) -> Rows:
    return Rows(SEGMENT, batch, Counts(), {}, 0, 0, Cursor(1, 80))


def published(layout: Layout) -> list[str]:
    return sorted(str(path.relative_to(layout.trades)) for path in layout.trades.rglob("*") if path.is_file())


def one_file(path: Path, rows: pa.RecordBatch) -> pq.ParquetFile:
    layout = make_root(path)
    publish_rows(layout, SEGMENT, [rows])
    return pq.ParquetFile(layout.parquet_file(SEGMENT, TODAY), page_checksum_verification=True)


class TestTheFile:
    def test_the_rows_are_those_that_came(self, tmp_path: Path) -> None:
        rows = trades(1, 10_000)
        assert one_file(tmp_path, rows).read().sort_by("sequence").equals(pa.table(rows))

    def test_it_is_sorted_and_says_so(self, tmp_path: Path) -> None:
        late = trades(1, 500, at=NOON, every_ms=-7)
        file = one_file(tmp_path, late)
        keys = list(zip(*(file.read()[name].to_pylist() for name in ("symbol", "timestamp", "sequence")), strict=True))
        assert keys == sorted(keys)
        sorting = file.metadata.row_group(0).sorting_columns
        names = [file.schema_arrow.names[column.column_index] for column in sorting]
        assert names == ["symbol", "timestamp", "sequence"]

    def test_equal_times_stay_in_order_of_arrival_across_batches(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        publish_rows(layout, SEGMENT, [trades(1 + 400 * part, 400, every_ms=0) for part in range(30)])
        table = pq.read_table(layout.parquet_file(SEGMENT, TODAY), partitioning=None)
        for symbol in table["symbol"].unique().to_pylist():
            sequence = table.filter(pc.field("symbol") == symbol)["sequence"].to_pylist()
            assert sequence == sorted(sequence)

    def test_the_encodings_suit_the_columns(self, tmp_path: Path) -> None:
        group = one_file(tmp_path, trades(1, 5000)).metadata.row_group(0)
        for index in range(group.num_columns):
            column = group.column(index)
            delta = column.path_in_schema in ("timestamp", "received_at", "sequence")
            assert ("DELTA_BINARY_PACKED" in column.encodings) == delta, column.path_in_schema
            assert column.compression == "ZSTD"
            assert column.has_offset_index

    def test_row_groups_are_small_enough_to_skip(self, tmp_path: Path) -> None:
        metadata = one_file(tmp_path, trades(1, 70_000)).metadata
        assert [metadata.row_group(index).num_rows for index in range(3)] == [32768, 32768, 4464]

    def test_symbols_are_plain_strings_and_times_never_nanoseconds(self, tmp_path: Path) -> None:
        file = one_file(tmp_path, trades(1, 10))
        assert file.schema_arrow.remove_metadata().equals(TRADES)

    def test_it_says_its_format_and_origin(self, tmp_path: Path) -> None:
        metadata = one_file(tmp_path, trades(1, 10)).schema_arrow.metadata
        assert metadata[b"ingestor.format"] == str(FORMAT_VERSION).encode()
        assert metadata[b"ingestor.origin"] == str(SEGMENT).encode()

    def test_a_changed_bit_in_a_page_is_found(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        publish_rows(layout, SEGMENT, [trades(1, 5000)])
        path = layout.parquet_file(SEGMENT, TODAY)
        column = pq.ParquetFile(path).metadata.row_group(0).column(2)
        start = column.dictionary_page_offset or column.data_page_offset
        with path.open("r+b") as file:
            at = start + column.total_compressed_size - 5
            (byte,) = os.pread(file.fileno(), 1, at)
            os.pwrite(file.fileno(), bytes([byte ^ 1]), at)
        with pytest.raises(OSError, match="CRC checksum"):
            pq.ParquetFile(path, page_checksum_verification=True).read()

    def test_a_feeds_own_columns_come_along(self, tmp_path: Path) -> None:
        rows = trades(1, 3)
        wide = rows.append_column("trade_id", pa.array([7, 8, 9]))
        assert one_file(tmp_path, wide).read().sort_by("sequence")["trade_id"].to_pylist() == [7, 8, 9]


class TestChecksums:
    def published(self, tmp_path: Path) -> Path:
        layout = make_root(tmp_path)
        publish_rows(layout, SEGMENT, [trades(1, 60)])
        return layout.parquet_file(SEGMENT, TODAY)

    def test_a_changed_bit_anywhere_is_found_before_arrow_sees_it(self, tmp_path: Path) -> None:
        path = self.published(tmp_path)
        content = path.read_bytes()
        footer_at = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
        with path.open("r+b", buffering=0) as file:
            for at in range(len(content) - 8):  # the length and what follows: below
                os.pwrite(file.fileno(), bytes([content[at] ^ (1 << at % 8)]), at)
                with pytest.raises(DamagedFile, match=f"{path.name}: can't be read: the .* ha(s|ve) another CRC"):
                    check_pages(path)
                if at >= footer_at:
                    with pytest.raises(DamagedFile, match="the footer has another CRC"):
                        open_parquet(path)
                os.pwrite(file.fileno(), content[at : at + 1], at)
        assert check_pages(path)

    def test_a_changed_length_of_a_large_footer_is_found(self, tmp_path: Path) -> None:
        path = self.published(tmp_path)
        content = path.read_bytes()
        for bit in range(32):
            length = (int.from_bytes(content[-8:-4], "little") ^ 1 << bit).to_bytes(4, "little")
            path.write_bytes(content[:-8] + length + content[-4:])
            with pytest.raises(DamagedFile, match="can't be read"):
                open_parquet(path)

    def test_a_file_without_checksums_is_read(self, tmp_path: Path) -> None:
        path = self.published(tmp_path)
        pq.write_table(pq.read_table(path, partitioning=None), path)
        assert not check_pages(path)
        with open_parquet(path) as file:
            assert file.metadata.num_rows == 60

    def test_nobody_else_minds_them(self, tmp_path: Path) -> None:
        path = self.published(tmp_path)
        assert ds.dataset(path).to_table(filter=pc.field("sequence") >= 0).num_rows == 60

    @pytest.mark.parametrize("damage", ["a fifo", "too short", "nothing"])
    def test_what_is_no_parquet_is_named(self, tmp_path: Path, damage: str) -> None:
        path = tmp_path / "some.parquet"
        if damage == "a fifo":
            os.mkfifo(path)
        else:
            path.write_bytes(b"PAR1" if damage == "too short" else b"")
        with pytest.raises(DamagedFile, match=r"some\.parquet"):
            open_parquet(path)


class TestDates:
    def test_a_late_trade_goes_to_its_own_date(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        midnight = NOON.replace(hour=0)
        rows = trades(1, 4, at=midnight - timedelta(milliseconds=2))
        assert publish_rows(layout, SEGMENT, [rows]) == {YESTERDAY: 2, TODAY: 2}
        assert published(layout) == [f"date=2026-11-19/{SEGMENT}.parquet", f"date=2026-11-20/{SEGMENT}.parquet"]
        late = pq.read_table(layout.parquet_file(SEGMENT, YESTERDAY), partitioning=None)
        assert late["sequence"].to_pylist() == [1, 2]

    def test_the_whole_is_one_dataset(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        publish_rows(layout, SEGMENT, [trades(1, 4, at=NOON - timedelta(days=1)), trades(5, 4)])
        dataset = ds.dataset(layout.trades, partitioning="hive")
        assert dataset.count_rows() == 8
        assert dataset.count_rows(filter=ds.field("date") == "2026-11-19") == 4

    def test_nothing_empty_is_published(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        assert publish_rows(layout, SEGMENT, []) == {}
        sink = ParquetFiles(layout, make_ledger(layout))
        sink.write(as_rows(trades(1, 0)))
        sink.end_segment(END)
        assert published(layout) == []
        assert ledger_facts(layout, "segment.sealed") == []


def test_small_batches_are_held_as_few_and_sealed_as_they_came(tmp_path: Path) -> None:
    """Each of them alone takes three kilobytes, however few its rows."""
    sizes = [3] * 1000 + [500] * 300 + [1] * 600
    starts = list(accumulate(sizes, initial=1))
    batches = [trades(start, size) for start, size in zip(starts, sizes, strict=False)]
    layout, whole = make_root(tmp_path / "small"), make_root(tmp_path / "whole")
    sink = ParquetFiles(layout, make_ledger(layout))
    for batch in batches:
        sink.write(as_rows(batch))
    assert len(sink._batches) < 300 + 2 * 256 + 10
    sink.end_segment(END)
    publish_rows(whole, SEGMENT, pa.Table.from_batches(batches).combine_chunks().to_batches())
    one, other = (pq.read_table(each.trades) for each in (layout, whole))
    assert one.num_rows == sum(sizes)
    assert one.equals(other)
    sink.write(as_rows(batches[0]))
    assert len(sink._batches) == 1


class TestRecovery:
    def test_making_it_again_gives_the_same(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        batches = [trades(1, 100, at=NOON - timedelta(hours=12, milliseconds=50)), trades(101, 50)]
        publish_rows(layout, SEGMENT, batches)
        first = {path: path.read_bytes() for path in layout.trades.rglob("*.parquet")}
        publish_rows(layout, SEGMENT, batches)
        assert {path: path.read_bytes() for path in layout.trades.rglob("*.parquet")} == first
        assert len(first) == 2
        assert [path.suffix for path in layout.staging.iterdir()] == [".lock", ".lock"]

    def test_the_rename_is_the_commit(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        writer = Writer(layout)
        numbers = writer.append()
        segment = writer.journal.segment
        writer.rotate()
        ledger = make_ledger(layout)
        publish_rows(layout, segment, [trades(numbers[0], 3)])  # a crash came before the rename
        assert ParquetFiles(layout, ledger).committed() == Cursor(1, 0)
        sink = ParquetFiles(layout, ledger)
        drain(layout, [sink, Holder()])
        assert parquet_sequences(layout) == numbers
        assert layout.sealed_segment(segment).exists()
        assert ParquetFiles(layout, ledger).committed() == Cursor(2, 0)
        assert sink.rows == {1: 3}

    def test_rows_of_a_segment_that_has_not_ended_are_not_published(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        writer = Writer(layout)
        writer.append()
        writer.journal.sync()
        drain(layout, [ParquetFiles(layout, make_ledger(layout))])
        assert published(layout) == []
        assert unsealed(layout) == [1]

    def test_behind_the_newest_segment_where_all_is_sealed(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        ledger = make_ledger(layout)
        assert ParquetFiles(layout, ledger).committed() == Cursor(0, 0)
        writer = Writer(layout)
        writer.append()
        writer.journal.close()
        drain(layout, [ParquetFiles(layout, ledger), Holder()])
        assert [file.sealed for file in list_segments(layout)] == [True]
        assert ParquetFiles(layout, ledger).committed() == Cursor(2, 0)

    def test_a_refusal_is_tried_again_and_published_once(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        sink = ParquetFiles(layout, make_ledger(layout))
        layout.open_segment(SEGMENT).touch()
        rows = trades(first_sequence(1), 5000)
        sink.write(as_rows(rows))
        with no_file_beyond(1000), pytest.raises(SinkUnavailable, match="File too large"):
            sink.end_segment(END)
        assert published(layout) == []
        assert unsealed(layout) == [1]
        sink.end_segment(END)
        assert parquet_rows(layout).equals(pa.table(rows))
        assert sink.rows == {1: 5000}
        assert unsealed(layout) == []

    def test_a_dataset_that_is_gone_is_unavailable(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        sink = ParquetFiles(layout, make_ledger(layout))
        layout.trades.symlink_to(tmp_path / "not mounted")
        sink.write(as_rows(trades(1, 5)))
        with pytest.raises(SinkUnavailable):
            sink.end_segment(END)
        layout.trades.unlink()
        layout.open_segment(SEGMENT).touch()
        sink.end_segment(END)
        assert parquet_sequences(layout) == [1, 2, 3, 4, 5]


def test_a_sealed_segment_is_in_the_ledger(tmp_path: Path) -> None:
    layout = make_root(tmp_path)
    writer = Writer(layout)
    segment = writer.journal.segment
    writer.journal.append(block(trades(first_sequence(1), 4, at=NOON.replace(hour=0) - timedelta(milliseconds=1))))
    writer.journal.close()
    drain(layout, [ParquetFiles(layout, make_ledger(layout))])
    (fact,) = ledger_facts(layout, "segment.sealed")
    assert (fact["segment"], fact["dates"]) == (str(segment), {"2026-11-19": 1, "2026-11-20": 3})
