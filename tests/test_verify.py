"""Verification: a sound recording passes, beside its recorder too; each thing that is wrong is named, in one line."""

import gzip
import json
import re
import shutil
import struct
import threading
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from journals import NOON, Crash, Life, make_root
from ledger_stories import as_format_1
from requirements import of_tier

from ingestor.accounts import read_accounts, write_account
from ingestor.capture.rejects import Refused, Rejects
from ingestor.cli.main import cli
from ingestor.dataset.compact import compact_days
from ingestor.dataset.maintenance import delete_expired
from ingestor.dataset.snapshot import read_origin
from ingestor.dataset.verify import Verification
from ingestor.errors import NotARecording
from ingestor.journal.writer import Rotation
from ingestor.layout import Layout, SegmentId
from ingestor.ledger import Ledger, list_ledgers
from ingestor.parquet import file_schema, writer_options

TODAY = NOON.date()
TOMORROW = TODAY + timedelta(days=1)


def reject(layout: Layout, run: int, *frames: int, reason: str = "not_json", limit: int = 1 << 30) -> None:
    """Lines of rejects, as the recorder writes them."""
    rejects = Rejects(layout, run, limit)
    received_us = round(NOON.timestamp() * 1e6)
    rejects.write([Refused(frame, None, reason, received_us, b"?") for frame in frames])
    rejects.close()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two segments, the second with trades of two dates and two rejects; and a run of one."""
    layout = make_root(tmp_path_factory.mktemp("recorded") / "data")
    life = Life(layout)
    life.writer.append(30)
    life.writer.rotate()
    life.writer.append(20)
    reject(layout, 1, 50, 51)
    life.writer.append(10, at=NOON + timedelta(days=1), reasons={"not_json": 2})
    life.stop()
    life = Life(layout)
    life.writer.append(7)
    life.stop(compress=True)
    return layout.root


@pytest.fixture
def layout(recorded: Path, tmp_path: Path) -> Layout:
    """A copy of it, to be changed."""
    return Layout(shutil.copytree(recorded, tmp_path / "data", symlinks=True))


def differences(layout: Layout) -> list[str]:
    return [str(one) for step in Verification(layout).run() for one in step]


def parquet(layout: Layout, number: int, day: date = TODAY) -> Path:
    [path] = layout.trades.glob(f"date={day.isoformat()}/{number:012d}-*.parquet")
    return path


def csv(layout: Layout, number: int) -> Path:
    [path] = layout.csv.glob(f"date=*/{number:012d}-*")
    return path


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table], origin: str | None = None) -> None:
    """Write a file of the dataset anew, as the recorder would have, with other rows."""
    rows = change(pq.read_table(path, partitioning=None))
    schema = file_schema(rows.schema, origin or path.name.removesuffix(".parquet"))
    pq.write_table(rows.cast(schema), path, **writer_options(schema))


class TestBasic:
    def test_a_sound_recording(self, layout: Layout) -> None:
        verification = Verification(layout)
        assert [one for step in verification.run() for one in step] == []
        account = verification.account
        assert account.rows == {"parquet": 67, "csv": 67, "journal": 0}
        assert (account.counts.trades, account.counts.frames, account.rejects) == (67, 69, 2)
        assert "67 trades journaled: 67 rows in parquet, 67 rows in csv; 2 rejects" in str(account)

    def test_no_recording(self, tmp_path: Path) -> None:
        with pytest.raises(NotARecording):
            Verification(Layout(tmp_path))

    def test_what_is_still_in_the_journal_is_counted_there(self, layout: Layout) -> None:
        life = Life(layout)
        life.writer.append(5)
        life.writer.journal.sync()
        verification = Verification(layout)
        assert [one for step in verification.run() for one in step] == []
        assert verification.account.rows == {"parquet": 67, "csv": 67, "journal": 5}
        life.kill()
        assert differences(layout) == []
        Life(layout).stop()
        assert differences(layout) == []

    def test_a_day_that_retention_deleted(self, layout: Layout) -> None:
        now = NOON + timedelta(days=9)
        ledger = Ledger(layout, 3, now.date())
        assert delete_expired(layout, ledger, timedelta(days=4), now) == [TODAY]
        assert ledger.close()
        assert differences(layout) == []
        drop_a_file(layout)
        assert len(differences(layout)) == 1


class TestRecovery:
    @pytest.mark.parametrize(
        ("after", "before"), [(after, before) for after in range(4) for before in of_tier(range(4), [3 - after])]
    )
    def test_a_crash_between_any_two_steps_is_no_difference(self, layout: Layout, after: int, before: int) -> None:
        life = Life(layout)
        life.writer.append(5)
        life.writer.rotate()
        life.writer.append(6)
        life.writer.journal.close()
        life.drain(Crash(after, before))
        life.kill()
        assert differences(layout) == []
        Life(layout).stop()
        assert differences(layout) == []

    def test_a_reject_whose_record_a_crash_lost(self, layout: Layout) -> None:
        reject(layout, 2, 7, 8)  # the run journaled 7 frames: 0 to 6
        verification = Verification(layout)
        assert [one for step in verification.run() for one in step] == []
        assert verification.account.uncounted_rejects == 2
        assert "(and 2 without a record)" in str(verification.account)

    @pytest.mark.parametrize(("frames", "uncounted"), [((50, 51), 0), ((50, 51, 500), 1)])
    def test_rejects_that_were_only_counted(self, layout: Layout, frames: tuple[int, ...], uncounted: int) -> None:
        """Frame 500 has no record: a crash came between."""
        [path] = layout.rejects.iterdir()
        path.unlink()
        rejects = Rejects(layout, 1, 0)
        for frame in frames:
            rejects.write([Refused(frame, None, "not_json", round(NOON.timestamp() * 1e6), b"?")])
        rejects.close()
        verification = Verification(layout)
        assert [one for step in verification.run() for one in step] == []
        assert verification.account.rejects == 2
        assert verification.account.uncounted_rejects == uncounted

    def test_a_line_of_rejects_that_was_written_twice_counts_once(self, layout: Layout) -> None:
        reject(layout, 1, 50)
        assert differences(layout) == []


def flip_a_byte(layout: Layout) -> str:
    path = parquet(layout, 1)
    content = bytearray(path.read_bytes())
    column = pq.read_metadata(path).row_group(0).column(0)
    content[column.data_page_offset + column.total_compressed_size - 1] ^= 1
    path.write_bytes(content)
    return r"^trades/date=2026-11-20/0{11}1-.*\.parquet: can't be read: .*CRC"


def cut_a_file(layout: Layout) -> str:
    path = parquet(layout, 1)
    path.write_bytes(path.read_bytes()[:-20])
    return r"^trades/date=2026-11-20/0{11}1-.*: can't be read"


def drop_a_file(layout: Layout) -> str:
    parquet(layout, 2, TOMORROW).unlink()
    return r"^trades/date=2026-11-21/0{11}2-.*: missing; expected 10 rows"


def put_a_file_in_the_place_of_another(layout: Layout) -> str:
    parquet(layout, 2).write_bytes(parquet(layout, 1).read_bytes())
    return r"^trades/date=2026-11-20/0{11}2-.*: origin 0{11}1-.*; expected 0{11}2-"


def give_a_copy_the_name_of_no_segment(layout: Layout) -> str:
    source = parquet(layout, 1)
    source.with_name(source.name.replace("000000000001", "000000000009")).write_bytes(source.read_bytes())
    return r"^trades/date=2026-11-20/0{11}9-.*: of no segment"


def remove_rows(layout: Layout) -> str:
    rewrite(parquet(layout, 1), lambda rows: rows.slice(2))
    return r"^trades/date=2026-11-20/0{11}1-.*: 28 rows; expected 30"


def change_a_symbol(layout: Layout) -> str:
    rewrite(parquet(layout, 1), lambda rows: rows.set_column(1, "symbol", pa.array(["AAPL"] * 30)).sort_by("sequence"))
    return r"^trades/date=2026-11-20/0{11}1-.*: 30 rows of 'AAPL'; expected 10"


def unsort(layout: Layout) -> str:
    rewrite(parquet(layout, 1), lambda rows: rows.take(list(range(29, -1, -1))))
    return r"^trades/date=2026-11-20/0{11}1-.*: rows out of order"


def move_to_a_wrong_date(layout: Layout) -> str:
    path = parquet(layout, 1)
    path.rename(layout.trades / "date=2026-11-21" / path.name)
    return r"^trades/date=2026-11-21/0{11}1-.*: rows of another date; expected rows of 2026-11-21 only"


def repeat_a_sequence_number(layout: Layout) -> str:
    def change(rows: pa.Table) -> pa.Table:
        sequences = rows["sequence"].to_pylist()
        return rows.set_column(6, "sequence", pa.array([*sequences[:-1], sequences[0]]))

    rewrite(parquet(layout, 1), change)
    return r"^trades/date=2026-11-20/0{11}1-.*: 1 repeated sequence numbers"


def give_it_the_numbers_of_an_earlier_segment(layout: Layout) -> str:
    rewrite(parquet(layout, 2, TOMORROW), lambda rows: _moved(rows, by=-50))
    return r"^trades/date=2026-11-2\d/0{11}2-.*: sequence from \d+; expected above"


def give_it_the_numbers_of_another_run(layout: Layout) -> str:
    rewrite(parquet(layout, 3), lambda rows: _moved(rows, by=1 << 40))
    return r"^trades/date=2026-11-20/0{11}3-.*: sequence of another run; expected of run 2"


def _moved(rows: pa.Table, by: int) -> pa.Table:
    return rows.set_column(6, "sequence", pa.array([number + by for number in rows["sequence"].to_pylist()]))


def change_a_type(layout: Layout) -> str:
    rewrite(parquet(layout, 1), lambda rows: rows.set_column(2, "price", rows["price"].cast(pa.float32())))
    return r"^trades/date=2026-11-20/0{11}1-.*: column price of type float; expected double"


def remove_a_column(layout: Layout) -> str:
    rewrite(parquet(layout, 1), lambda rows: rows.drop_columns(["volume"]))
    return r"^trades/date=2026-11-20/0{11}1-.*: columns timestamp,symbol,price,conditions"


def leave_something_else_in_the_dataset(layout: Layout) -> str:
    (layout.trades / "date=2026-11-20" / "notes.txt").touch()
    return r"^trades/date=2026-11-20/notes.txt: not a file of a date"


def cut_a_csv(layout: Layout) -> str:
    path = csv(layout, 1)
    path.write_bytes(path.read_bytes()[:-4])
    return r"^csv/date=2026-11-20/0{11}1-.*\.csv: can't be read"


def change_a_price_in_a_csv(layout: Layout) -> str:
    path = csv(layout, 1)
    lines = path.read_text().splitlines(keepends=True)
    cells = lines[7].split(",")
    cells[2] = f"1{cells[2]}"
    path.write_text("".join([*lines[:7], ",".join(cells), *lines[8:]]))
    return (
        r"^csv/date=2026-11-20/0{11}1-.*\.csv: other values of price; expected the values of the same rows in Parquet"
    )


def change_a_time_in_a_packed_csv(layout: Layout) -> str:
    path = csv(layout, 3)
    path.write_bytes(gzip.compress(re.sub(rb"(\n.*?:\d\d)\.", rb"\1.1", gzip.decompress(path.read_bytes()), count=1)))
    return r"^csv/date=2026-11-20/0{11}3-.*: (can't be read|other values of timestamp)"


def change_a_condition_in_a_csv_of_two_dates(layout: Layout) -> str:
    path = csv(layout, 2)
    lines = path.read_text().splitlines(keepends=True)
    cells = lines[-1].split(",")
    cells[4] = '"Z"'
    path.write_text("".join([*lines[:-1], ",".join(cells)]))
    return r"^csv/date=2026-11-\d\d/0{11}2-.*\.csv: other values of conditions"


def repeat_a_line(layout: Layout) -> str:
    path = csv(layout, 1)
    path.write_text(path.read_text() + path.read_text().splitlines()[-1] + "\n")
    return r"^csv/date=2026-11-20/0{11}1-.*\.csv: sequence falls or repeats"


def remove_a_line_of_a_packed_csv(layout: Layout) -> str:
    path = csv(layout, 3)
    lines = gzip.decompress(path.read_bytes()).splitlines(keepends=True)
    path.write_bytes(gzip.compress(b"".join(lines[:-1])))
    return r"^csv/date=2026-11-20/0{11}3-.*\.csv\.gz: 2 rows of 'BRK.B'; expected 3"


def cut_a_packed_csv(layout: Layout) -> str:
    path = csv(layout, 3)
    path.write_bytes(path.read_bytes()[:-10])
    return r"^csv/date=2026-11-20/0{11}3-.*\.csv\.gz: can't be read"


def drop_a_csv(layout: Layout) -> str:
    csv(layout, 2).unlink()
    return r"^csv/date=2026-11-21/0{11}2-.*\.csv: missing; expected 30 rows"


def change_a_heading(layout: Layout) -> str:
    path = csv(layout, 1)
    path.write_text(path.read_text().replace("price", "preis"))
    return r"^csv/date=2026-11-20/0{11}1-.*\.csv: columns 'timestamp,symbol,preis"


def leave_the_plain_csv_beside_the_packed_one(layout: Layout) -> str:
    path = csv(layout, 3)
    path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
    return r"^csv/date=2026-11-20/0{11}3-.*\.csv: beside a packed copy"


def drop_a_reject(layout: Layout) -> str:
    [path] = layout.rejects.iterdir()
    path.write_text(path.read_text().splitlines()[0] + "\n")
    return r"^rejects of run 1: 1 lines of not_json; expected 2"


def invent_a_reject(layout: Layout) -> str:
    reject(layout, 1, 5, reason="no_data")
    return r"^rejects of run 1: 1 lines of no_data; expected 0"


def change_an_account(layout: Layout) -> str:
    account = next(read_accounts(layout))
    write_account(layout, {**account, "counts": {**account["counts"], "frames": 31}})
    return r"^0{11}1-.*: 30 decoded \+ 0 rejected \+ 0 notices; expected 31 frames"


def change_the_ledger(layout: Layout) -> str:
    path = list_ledgers(layout)[0]
    path.write_text(path.read_text().replace('"frames":30', '"frames":31', 1))
    return rf"^ledger/{path.name}: 1 line.* not as .* written"


def change_a_name_in_a_ledger_without_checksums(layout: Layout) -> str:
    """Those of format 1 have none."""
    as_format_1(layout)
    [path] = layout.coverage.glob("000001-*.jsonl")
    path.write_text(path.read_text().replace('"frames":30', '"frbmes":30', 1))
    layout.account_file(SegmentId.parse(parquet(layout, 1).stem)).unlink()
    return r"^0{11}1-.*: 30 decoded \+ 0 rejected \+ 0 notices; expected 0 frames"


def lose_the_account_and_its_line(layout: Layout) -> str:
    path = list_ledgers(layout)[0]
    path.write_text(path.read_text().replace("segment.closed", "segment.clxsed", 1))
    min(layout.accounts.glob("date=*/*.parquet")).unlink()
    return r"^trades/date=2026-11-20/0{11}1-.*: of no segment that the ledger knows"


def lose_an_account(layout: Layout) -> str:
    path = min(layout.accounts.glob("date=*/*.parquet"))
    path.unlink()
    return rf"{path.name}: missing; expected the account of 30 rows"


def cut_an_account(layout: Layout) -> str:
    path = min(layout.accounts.glob("date=*/*.parquet"))
    path.write_bytes(path.read_bytes()[:-20])
    return rf"{path.name}: .*can't be read"


def cut_the_coverage_of_a_closed_day(layout: Layout) -> str:
    path = layout.coverage_file(TODAY)
    path.parent.mkdir()
    path.write_bytes(b"PAR1")
    return r"coverage.parquet: .*can't be read"


def lie_in_the_statistics(layout: Layout) -> str:
    path = parquet(layout, 1)
    rewrite(path, lambda rows: rows)
    content = path.read_bytes()
    footer_at = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    last = struct.pack("<q", pq.read_metadata(path).row_group(0).column(0).statistics.max_raw)
    earlier = struct.pack("<q", pq.read_metadata(path).row_group(0).column(0).statistics.max_raw - 1)
    path.write_bytes(content[:footer_at] + content[footer_at:].replace(last, earlier))
    return rf"{path.name}: statistics with max .* of timestamp; expected .*"


def lie_in_a_page_header(layout: Layout) -> str:
    path = parquet(layout, 1)
    content = bytearray(path.read_bytes())
    content[pq.read_metadata(path).row_group(0).column(0).data_page_offset + 2] ^= 1
    path.write_bytes(content)
    return rf"{path.name}: can't be read: the pages have another CRC"


CORRUPTIONS = [
    change_a_price_in_a_csv, change_a_time_in_a_packed_csv, change_a_condition_in_a_csv_of_two_dates,
    lie_in_the_statistics, lie_in_a_page_header,
    flip_a_byte, cut_a_file, drop_a_file, put_a_file_in_the_place_of_another, give_a_copy_the_name_of_no_segment,
    remove_rows, change_a_symbol, unsort, move_to_a_wrong_date, repeat_a_sequence_number,
    give_it_the_numbers_of_an_earlier_segment, give_it_the_numbers_of_another_run, change_a_type, remove_a_column,
    leave_something_else_in_the_dataset, cut_a_csv, repeat_a_line, remove_a_line_of_a_packed_csv, cut_a_packed_csv,
    drop_a_csv, change_a_heading, leave_the_plain_csv_beside_the_packed_one, drop_a_reject, invent_a_reject,
    change_an_account, change_the_ledger, change_a_name_in_a_ledger_without_checksums,
    lose_the_account_and_its_line, lose_an_account, cut_an_account, cut_the_coverage_of_a_closed_day,
]  # fmt: skip


class TestKnownErrors:
    @pytest.mark.parametrize("corrupt", CORRUPTIONS, ids=lambda corrupt: corrupt.__name__)
    def test_what_is_wrong_is_named(self, layout: Layout, corrupt: Callable[[Layout], str]) -> None:
        pattern = corrupt(layout)
        found = differences(layout)
        assert [line for line in found if re.search(pattern, line)] != [], found
        assert all("\n" not in line for line in found)


class TestCompaction:
    """A day's files are one, which names the segments whose rows it holds."""

    @staticmethod
    def compact(layout: Layout) -> Path:
        assert len(list(compact_days(layout, TOMORROW))) == 1
        [path] = (layout.trades / f"date={TODAY.isoformat()}").iterdir()
        return path

    def test_a_compacted_day_is_sound(self, layout: Layout) -> None:
        self.compact(layout)
        verification = Verification(layout)
        assert [one for step in verification.run() for one in step] == []
        assert verification.account.rows["parquet"] == 67

    def test_a_row_that_a_compaction_lost(self, layout: Layout) -> None:
        path = self.compact(layout)
        rewrite(path, lambda rows: rows.slice(1), ",".join(read_origin(path)))
        assert differences(layout) == [f"trades/date=2026-11-20/{path.name}: 56 rows; expected 57 (segment.sealed)"]

    def test_a_value_of_a_csv_that_the_compacted_rows_lack(self, layout: Layout) -> None:
        self.compact(layout)
        change_a_price_in_a_csv(layout)
        [difference] = differences(layout)
        assert difference.startswith(f"csv/date=2026-11-20/{csv(layout, 1).name}: other values of price; expected")

    def test_a_compaction_that_can_not_be_read(self, layout: Layout) -> None:
        path = self.compact(layout)
        path.write_bytes(path.read_bytes()[:-9])
        assert any(
            line.startswith(f"trades/date=2026-11-20/{path.name}: can't be read") for line in differences(layout)
        )


class TestRaces:
    @pytest.mark.long
    def test_beside_a_recorder_that_rotates_and_seals(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        life = Life(layout, rotation=Rotation(age_s=0, size=1))
        stop, recorded = threading.Event(), threading.Event()

        def record() -> None:
            segments = 0
            while not stop.is_set():
                life.writer.append(50)
                life.writer.journal.sync()
                life.writer.journal.rotate_if_due()
                life.drain(compress=segments % 2 == 0)
                segments += 1
                if segments == 5:
                    recorded.set()
                stop.wait(0.02)  # each verification looks at all of them

        recorder = threading.Thread(target=record)
        recorder.start()
        try:
            assert recorded.wait(60)
            rows = []
            for _ in range(5):
                verification = Verification(layout)
                assert [one for step in verification.run() for one in step] == []
                rows.append(verification.account.rows["parquet"] + verification.account.rows["journal"])
        finally:
            stop.set()
            recorder.join()
        assert rows == sorted(rows)
        assert rows[0] >= 5 * 50
        life.stop()
        assert differences(layout) == []


class TestWhatIsClaimed:
    """Nothing is said of a file that was not opened; whatever is finished is."""

    def test_the_csv_of_a_sealed_segment_that_a_sink_still_claims_is_looked_at(self, layout: Layout) -> None:
        path = csv(layout, 2)
        sealed = layout.journal / f"{path.name.partition('.')[0]}.sealed.journal"
        sealed.write_bytes(b"a sink that is behind claims it")
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:10]))
        assert any(path.name in one for one in differences(layout))

    def test_what_is_not_finished_is_counted(self, layout: Layout) -> None:
        life = Life(layout)
        life.writer.append(5)
        life.writer.journal.sync()
        life.drain()
        verification = Verification(layout)
        assert [one for step in verification.run() for one in step] == []
        assert verification.account.not_looked_at == 1
        life.kill()
        done = CliRunner().invoke(cli, ["verify", "--root", str(layout.root)])
        last = done.stdout.splitlines()[-1]
        assert last == "No differences; 1 file was not looked at: their segments are not finished yet."


class TestCommand:
    @staticmethod
    def call(layout: Layout, *arguments: str) -> Result:
        return CliRunner().invoke(cli, ["verify", "--root", str(layout.root), *arguments])

    def test_all_is_well(self, layout: Layout) -> None:
        done = self.call(layout)
        assert done.exit_code == 0
        assert done.stdout.splitlines()[-1] == "Everything is there, once."
        assert "67 rows in parquet" in done.stdout

    def test_something_is_wrong(self, layout: Layout) -> None:
        drop_a_file(layout)
        done = self.call(layout)
        assert done.exit_code == 1
        assert "missing; expected 10 rows" in done.stdout
        assert done.stdout.splitlines()[-1] == "Differences: 1"

    def test_json(self, layout: Layout) -> None:
        assert json.loads(self.call(layout, "--json").stdout) == {
            "differences": [],
            "account": {
                "segments": 3,
                "counts": {
                    "frames": 69, "decoded": 67, "rejected_frames": 2, "notices": 0, "trades": 67, "rejected_trades": 0,
                },
                "rows": {"parquet": 67, "csv": 67, "journal": 0},
                "frames_kept": None,
                "filled": 0,
                "imported": 0,
                "rejects": 2,
                "uncounted_rejects": 0,
                "ids": None,
                "missing_ids": None,
                "holes": [],
                "not_looked_at": 0,
                "foreign": [],
            },
        }  # fmt: skip
        drop_a_reject(layout)
        [difference] = json.loads(self.call(layout, "--json").stdout)["differences"]
        assert difference == {
            "place": "rejects of run 1", "found": "1 lines of not_json", "expected": "2 (counted by its records)",
        }  # fmt: skip

    def test_no_recording(self, tmp_path: Path) -> None:
        done = self.call(Layout(tmp_path))
        assert isinstance(done.exception, NotARecording)
