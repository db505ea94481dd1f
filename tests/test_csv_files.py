"""CSV files that grow: readable by anyone, and each row in them once, wherever a crash cut the work."""

import csv
import gzip
import io
import json
import os
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest
from journals import (
    NOON,
    SEGMENT,
    Holder,
    Writer,
    break_descriptor,
    csv_sequences,
    drain,
    first_sequence,
    make_root,
    no_file_beyond,
    trades,
    writing_descriptors,
)

from ingestor.errors import SinkUnavailable
from ingestor.journal.follower import Rows, SegmentEnd
from ingestor.journal.records import Cursor
from ingestor.layout import Layout, SegmentId
from ingestor.metrics import Counts
from ingestor.schema import TRADES
from ingestor.sinks.csv_files import CsvFiles, encode_csv

END = SegmentEnd(SEGMENT, Cursor(2, 0))


def as_rows(batch: pa.RecordBatch, *, end: int = 1000, segment: SegmentId = SEGMENT) -> Rows:
    return Rows(segment, batch, Counts(), {}, 0, 0, Cursor(segment.number, end))


def encode(**columns: object) -> list[list[str]]:
    """One row, with these values in their columns, as a CSV reader sees it."""
    row = trades(1, 1).to_pylist()[0] | columns
    return list(
        csv.reader(io.StringIO(encode_csv(pa.RecordBatch.from_pylist([row], schema=TRADES)).to_pybytes().decode()))
    )


class TestTheText:
    def test_times_are_iso_in_utc(self) -> None:
        ((timestamp, *_),) = encode(timestamp=datetime(2026, 11, 20, 14, 30, 0, 123_000, tzinfo=UTC))
        assert timestamp == "2026-11-20T14:30:00.123Z"
        (row,) = encode(received_at=datetime(2026, 11, 20, 14, 30, 0, 123_456, tzinfo=UTC))
        assert row[TRADES.get_field_index("received_at")] == "2026-11-20T14:30:00.123456Z"

    @pytest.mark.parametrize(
        "symbol", ["NA", "TRUE", "1e5", "null", "0123", 'A,"B"', "'", "é 😀", "=SUM(A1)", ";", "A\u2028B"]
    )
    def test_any_symbol_comes_back(self, symbol: str) -> None:
        (row,) = encode(symbol=symbol)
        assert row[1] == symbol

    def test_a_symbol_is_quoted_so_that_it_is_text(self) -> None:
        text = encode_csv(trades(1, 1, symbols=("NA",))).to_pybytes().decode()
        assert ',"NA",' in text

    def test_null_and_empty_conditions_read_alike(self) -> None:
        (absent,), (empty,), (given,) = encode(conditions=None), encode(conditions=""), encode(conditions="1,12")
        at = TRADES.get_field_index("conditions")
        assert (absent[at], empty[at], given[at]) == ("", "", "1,12")

    def test_prices_and_volumes_lose_nothing(self) -> None:
        for value in (0.1, 1e-07, 284.45, 1e15 + 0.5, 123456.789012345, 5e-324):
            (row,) = encode(price=value)
            assert float(row[TRADES.get_field_index("price")]) == value

    def test_a_row_is_a_line(self) -> None:
        assert encode_csv(trades(1, 100)).to_pybytes().count(b"\n") == 100


class TestBasic:
    def test_a_file_grows_with_the_rows_under_a_heading(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path / "root")
        sink = CsvFiles(layout)
        path = layout.csv_file(SEGMENT)
        sink.write(as_rows(trades(1, 0)))
        assert not path.exists()
        sink.write(as_rows(trades(1, 2)))
        assert path.read_text().splitlines()[0] == ",".join(TRADES.names)
        assert csv_sequences(layout) == [1, 2]
        sink.write(as_rows(trades(3, 2)))
        assert csv_sequences(layout) == [1, 2, 3, 4]
        assert sink.rows == {1: 4}
        assert path.stat().st_mode & 0o777 == 0o640
        assert path.parent.name == "date=2026-11-20"

    def test_it_commits_when_it_is_time_and_only_then(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        sink = CsvFiles(layout)
        sink.tick(0.0)
        assert not layout.cursor_file("csv").exists()
        sink.write(as_rows(trades(1, 2), end=500))
        sink.tick(1.0)
        assert sink.committed() == Cursor(1, 500)
        sink.write(as_rows(trades(3, 2), end=900))
        sink.tick(1.9)
        assert sink.committed() == Cursor(1, 500)
        sink.tick(2.0)
        assert sink.committed() == Cursor(1, 900)
        size = layout.csv_file(SEGMENT).stat().st_size
        assert json.loads(layout.cursor_file("csv").read_text()) == {"segment": 1, "offset": 900, "bytes": size}

    def test_each_segment_has_its_file(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        writer = Writer(layout)
        numbers = []
        for _ in range(3):
            numbers += writer.append()
            writer.rotate()
        drain(layout, [CsvFiles(layout)])
        assert len(list(layout.csv.rglob("*.csv"))) == 3
        assert csv_sequences(layout) == numbers


class TestRecovery:
    """A crash is a sink that is dropped; what it had not committed may or may not have reached the file."""

    def interrupted(self, layout: Layout) -> tuple[Writer, Path, list[int]]:
        """A journal with rows of which the sink committed a part, then wrote more; the file; all the rows."""
        writer = Writer(layout)
        numbers = writer.append()
        writer.journal.sync()
        sink = CsvFiles(layout)
        drain(layout, [sink, Holder()])
        assert sink.committed().offset > 0
        numbers += writer.append()
        writer.journal.sync()
        return writer, layout.csv_file(writer.journal.segment), numbers

    def test_it_goes_on_where_it_was(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        _, _, numbers = self.interrupted(layout)
        drain(layout, [CsvFiles(layout), Holder()])
        assert csv_sequences(layout) == numbers

    def test_what_the_cursor_does_not_vouch_for_is_cut_off_at_any_byte(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        writer, path, numbers = self.interrupted(layout)
        writer.append()
        committed = path.read_bytes()
        line = encode_csv(trades(numbers[3], 3)).to_pybytes()
        cursor = layout.cursor_file("csv").read_bytes()
        for cut in range(0, len(line), 5):
            path.write_bytes(committed + line[:cut])
            layout.cursor_file("csv").write_bytes(cursor)
            drain(layout, [CsvFiles(layout), Holder()])
            assert csv_sequences(layout) == numbers

    def test_a_life_that_gets_no_row_keeps_the_rows_of_the_one_before(self, tmp_path: Path) -> None:
        """It commits its place without having opened the file, of whose length it vouches all the same."""
        layout = make_root(tmp_path)
        writer = Writer(layout)
        numbers = writer.append()
        writer.journal.sync()
        drain(layout, [CsvFiles(layout), Holder()])
        writer.append(0)
        writer.journal.sync()
        drain(layout, [CsvFiles(layout), Holder()])
        numbers += writer.append()
        writer.journal.sync()
        drain(layout, [CsvFiles(layout), Holder()])
        assert csv_sequences(layout) == numbers

    def test_what_the_cursor_does_not_vouch_for_is_cut_off_however_long_it_is(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        writer = Writer(layout)
        numbers = writer.append()
        writer.journal.sync()
        drain(layout, [CsvFiles(layout), Holder()])
        path = layout.csv_file(writer.journal.segment)
        with path.open("ab") as file:
            file.write(encode_csv(trades(first_sequence(9), 50)))
        numbers += writer.append()
        writer.journal.sync()
        drain(layout, [CsvFiles(layout), Holder()])
        assert csv_sequences(layout) == numbers

    @pytest.mark.parametrize("cut", [0, 1, 50, -1])
    def test_a_file_that_is_shorter_than_its_cursor_says_is_written_anew(self, tmp_path: Path, cut: int) -> None:
        layout = make_root(tmp_path)
        _, path, numbers = self.interrupted(layout)
        os.truncate(path, cut % path.stat().st_size)
        drain(layout, [CsvFiles(layout), Holder()])
        assert csv_sequences(layout) == numbers

    def test_a_file_that_is_gone_is_written_anew(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        _, path, numbers = self.interrupted(layout)
        path.unlink()
        drain(layout, [CsvFiles(layout), Holder()])
        assert csv_sequences(layout) == numbers

    @pytest.mark.parametrize(
        "text", ["", "{", "[1]", "null", '{"segment": 1}', '{"segment": 1, "offset": "x", "bytes": 1}']
    )
    def test_where_the_cursor_cannot_be_read_all_is_written_anew(self, tmp_path: Path, text: str) -> None:
        layout = make_root(tmp_path)
        writer, _, numbers = self.interrupted(layout)
        writer.rotate()
        numbers += writer.append()
        writer.journal.sync()
        drain(layout, [CsvFiles(layout), Holder()])
        layout.cursor_file("csv").write_text(text)
        drain(layout, [CsvFiles(layout), Holder()])
        assert csv_sequences(layout) == numbers

    def test_a_segment_that_ends_without_more_rows_leaves_the_next_its_own_length(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        writer = Writer(layout)
        numbers = writer.append()
        writer.journal.sync()
        drain(layout, [CsvFiles(layout), Holder()])
        writer.rotate()
        numbers += writer.append()
        writer.journal.sync()
        drain(layout, [CsvFiles(layout), Holder()])
        assert csv_sequences(layout) == numbers

    def test_a_segment_freed_while_no_csv_was_asked_for_does_not_block_the_start(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        writer, _, _ = self.interrupted(layout)
        writer.rotate()
        layout.open_segment(SegmentId(1, NOON, 1)).unlink()
        later = writer.append()
        writer.journal.sync()
        drain(layout, [CsvFiles(layout)])
        assert csv_sequences(layout)[-3:] == later

    @pytest.mark.parametrize("ended", ["both", "compressed", "plain"])
    def test_a_crash_of_an_earlier_version_that_compressed_repeats_no_row(self, tmp_path: Path, ended: str) -> None:
        layout = make_root(tmp_path)
        writer, path, numbers = self.interrupted(layout)
        drain(layout, [CsvFiles(layout), Holder()])
        writer.rotate()
        packed = path.with_name(f"{path.name}.gz")
        if ended in {"both", "compressed"}:
            packed.write_bytes(gzip.compress(path.read_bytes()))
        if ended == "compressed":
            path.unlink()
        drain(layout, [CsvFiles(layout), Holder()])
        assert [file.name for file in path.parent.iterdir()] == [path.name]
        assert csv_sequences(layout) == numbers


class TestKnownErrors:
    def test_a_write_that_was_cut_leaves_no_half_line(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        sink = CsvFiles(layout)
        sink.write(as_rows(trades(1, 10)))
        with no_file_beyond(layout.csv_file(SEGMENT).stat().st_size + 30), pytest.raises(SinkUnavailable):
            sink.write(as_rows(trades(11, 10)))
        assert csv_sequences(layout) == list(range(1, 11))
        sink.write(as_rows(trades(11, 10)))
        assert csv_sequences(layout) == list(range(1, 21))
        assert sink.rows == {1: 20}

    def test_a_full_disk_at_the_heading_is_tried_again_without_leaking(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        sink = CsvFiles(layout)
        with no_file_beyond(20):
            for _ in range(3):
                with pytest.raises(SinkUnavailable):
                    sink.write(as_rows(trades(1, 10)))
            assert [path for _, path in writing_descriptors() if path.is_relative_to(tmp_path)] == []
        sink.write(as_rows(trades(1, 10)))
        assert csv_sequences(layout) == list(range(1, 11))

    def test_a_restart_on_a_full_disk_keeps_what_was_committed(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        writer = Writer(layout)
        numbers = writer.append()
        writer.journal.sync()
        drain(layout, [CsvFiles(layout), Holder()])
        sink = CsvFiles(layout)
        rows = as_rows(trades(first_sequence(1) + 3, 2), segment=writer.journal.segment)
        folder = layout.csv_file(writer.journal.segment).parent
        folder.rename(tmp_path / "elsewhere")
        folder.parent.rmdir()
        folder.parent.symlink_to("nowhere")
        with pytest.raises(SinkUnavailable):
            sink.write(rows)
        folder.parent.unlink()
        folder.parent.mkdir()
        (tmp_path / "elsewhere").rename(folder)
        sink.write(rows)
        assert csv_sequences(layout) == [*numbers, numbers[-1] + 1, numbers[-1] + 2]

    def test_pages_that_an_fsync_refused_are_written_again(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        sink = CsvFiles(layout)
        sink.write(as_rows(trades(1, 3)))
        path = layout.csv_file(SEGMENT)
        whole = path.read_bytes()
        (fd,) = (fd for fd, at in writing_descriptors() if at == path)
        kept = os.dup(fd)
        break_descriptor(fd)
        with pytest.raises(SinkUnavailable):
            sink.tick(1.0)
        path.write_bytes(bytes(len(whole)))  # what the kernel's dropped pages may leave
        os.dup2(kept, fd, inheritable=False)
        os.close(kept)
        sink.write(as_rows(trades(4, 2)))
        sink.tick(2.0)
        assert csv_sequences(layout) == [1, 2, 3, 4, 5]
        assert path.read_bytes().startswith(whole)

    def test_an_end_that_failed_is_done_again_once(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        sink = CsvFiles(layout)
        sink.write(as_rows(trades(1, 1000)))
        with no_file_beyond(10), pytest.raises(SinkUnavailable):
            sink.end_segment(END)
        sink.end_segment(END)
        assert csv_sequences(layout) == list(range(1, 1001))
        assert sink.committed() == Cursor(2, 0)
