"""The Delta table over a mirror: its files are the mirror's, and a reader through it sees each row once."""

import os
from collections.abc import Mapping
from datetime import date
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from journals import Holder, drain, make_ledger, make_root
from recordings import Print, Recording
from sink_contract import EXTRA, ROOT, fill_journal

import ingestor
from ingestor.closed_days import close_days, is_mirrored
from ingestor.dataset.compact import compact_days
from ingestor.errors import SinkUnavailable
from ingestor.schema import TRADES
from ingestor.sinks import delta_table
from ingestor.sinks.object_store import ObjectStore
from ingestor.sinks.parquet_files import ParquetFiles

GRACE_S = 600.0
DAY = date(2026, 11, 19)


def record(root: Path, day: date = DAY) -> Recording:
    """Three files of one date, and one of the next."""
    recording = Recording(root, ["AAPL", "MSFT"], started=day.isoformat())
    recording.prove(["AAPL", "MSFT"], f"{day}T14:00:00")
    for hour in range(3):
        recording.write(*(Print(f"{day}T{14 + hour}:{n:02}", "AAPL", 100 + n, 1) for n in range(20)))
        recording.end_segment()
    recording.write(Print(f"{day.replace(day=day.day + 1)}T14:00", "MSFT", 1, 1))
    recording.seal()
    recording.fact("connection.closed", f"{day.replace(day=day.day + 2)}T00:00:00", connection=1, frames=1)
    recording.stop(f"{day.replace(day=day.day + 2)}T00:00:01")
    return recording


@pytest.fixture
def recording(tmp_path: Path) -> Recording:
    return record(tmp_path / "data")


@pytest.fixture
def there(tmp_path: Path) -> Path:
    return tmp_path / "there"


def open_mirror(recording: Recording, there: Path, **options: bool) -> ObjectStore:
    return ObjectStore(str(there), recording.layout, ROOT, table="delta", **options)


def rows_of(place: Path) -> pa.Table:
    return DeltaTable(place).to_pyarrow_dataset().to_table().sort_by("sequence")


def files_of(place: Path) -> set[str]:
    return {path.removeprefix(f"{place}/") for path in DeltaTable(place).file_uris()}


def names(there: Path) -> set[str]:
    return {str(path.relative_to(there)) for path in there.glob("**/*.parquet") if "_delta_log" not in path.parts}


def check(recording: Recording, there: Path) -> None:
    """What engines read through the table is what the recording has."""
    expected = ingestor.read_trades(recording.layout.root, engine="arrow").sort_by("sequence")
    found = rows_of(there)
    assert found["sequence"].equals(expected["sequence"])
    assert found["price"].equals(expected["price"])
    assert pl.scan_delta(str(there)).collect().sort("sequence")["sequence"].to_list() == found["sequence"].to_pylist()


def test_the_files_are_the_table(recording: Recording, there: Path) -> None:
    open_mirror(recording, there).tick(0.0)
    assert files_of(there) == names(there)
    assert len(files_of(there)) == 4
    check(recording, there)
    assert set(rows_of(there)["date"].to_pylist()) == {DAY, date(2026, 11, 20)}


def test_a_pass_without_news_is_no_commit(recording: Recording, there: Path) -> None:
    sink = open_mirror(recording, there)
    for now_s in (0.0, 10.0, 20.0):
        sink.tick(now_s)
    open_mirror(recording, there).tick(0.0)
    assert DeltaTable(there).version() == 1  # it was made, and filled


def test_a_compaction_is_one_commit_and_what_it_replaces_stays_for_a_while(recording: Recording, there: Path) -> None:
    sink = open_mirror(recording, there)
    sink.tick(0.0)
    before, old = names(there), DeltaTable(there)
    list(close_days(recording.layout, date(2026, 11, 20)))
    list(compact_days(recording.layout, date(2026, 11, 20)))
    sink.tick(20.0)
    assert DeltaTable(there).version() == old.version() + 1
    assert len(files_of(there)) == 2
    assert before < names(there)
    check(recording, there)
    assert old.to_pyarrow_dataset().to_table().num_rows == rows_of(there).num_rows  # a reader that began before
    read = ingestor.read_trades(f"file://{there}")  # without the table
    assert len(read) == rows_of(there).num_rows
    sink.tick(20.0 + GRACE_S - 1)
    assert before < names(there)
    assert not is_mirrored(recording.layout, DAY)
    for now_s in (20.0 + GRACE_S, 40.0 + GRACE_S, 60.0 + GRACE_S):  # the third writes the second of two manifests
        sink.tick(now_s)
    assert names(there) == files_of(there)
    assert is_mirrored(recording.layout, DAY)


@pytest.mark.long
def test_so_does_what_an_earlier_life_has_left(recording: Recording, there: Path) -> None:
    sink = open_mirror(recording, there)
    sink.tick(0.0)
    list(compact_days(recording.layout, date(2026, 11, 20)))
    sink.tick(float("inf"))  # a stop: nothing goes
    left = names(there) - files_of(there)
    assert left
    sink = open_mirror(recording, there)
    sink.tick(5.0)
    assert left < names(there)
    sink.tick(5.0 + GRACE_S)
    assert names(there) == files_of(there)
    check(recording, there)


@pytest.mark.long
def test_a_crash_before_the_commit_is_made_good(
    recording: Recording, there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log is refused as a full disk refuses it: the folder can't be written to."""
    sink = open_mirror(recording, there)
    sink.tick(0.0)
    list(compact_days(recording.layout, date(2026, 11, 20)))
    log = there / "_delta_log"
    log.rename(there / "away")
    log.write_text("in the way")
    with pytest.raises(SinkUnavailable, match="there"):
        sink.tick(20.0)
    log.unlink()
    (there / "away").rename(log)
    assert len(files_of(there)) == 4
    open_mirror(recording, there).tick(0.0)
    assert len(files_of(there)) == 2
    check(recording, there)


@pytest.mark.long
def test_a_mirror_becomes_a_table_and_is_none_by_mistake_any_more(recording: Recording, there: Path) -> None:
    ObjectStore(str(there), recording.layout, ROOT).tick(0.0)
    open_mirror(recording, there).tick(0.0)
    check(recording, there)
    with pytest.raises(SinkUnavailable, match=r"set sinks\.object_store\.table: delta"):
        ObjectStore(str(there), recording.layout, ROOT)


@pytest.mark.long
def test_the_coverage_of_closed_days_is_a_table_too(recording: Recording, there: Path) -> None:
    sink = open_mirror(recording, there)
    sink.tick(0.0)
    coverage = there / "_recording" / "coverage"
    assert not DeltaTable.is_deltatable(str(coverage))
    list(close_days(recording.layout, date(2026, 11, 20)))
    open_mirror(recording, there).tick(0.0)
    found = rows_of_coverage(coverage)
    told = pq.read_table(recording.layout.coverage_file(DAY))
    assert (
        found.select(["symbol", "state", "cause"]).to_pylist() == told.select(["symbol", "state", "cause"]).to_pylist()
    )
    assert pl.scan_delta(str(coverage)).filter(pl.col("date") == DAY).collect().height == told.num_rows
    version = DeltaTable(coverage).version()
    open_mirror(recording, there).tick(0.0)
    assert DeltaTable(coverage).version() == version
    file = recording.layout.coverage_file(DAY)
    pq.write_table(told.slice(1), file)  # as a backfill writes it anew
    os.utime(file, (4e9, 4e9))
    open_mirror(recording, there).tick(0.0)
    assert rows_of_coverage(coverage).num_rows == told.num_rows - 1
    told = ingestor.read_trades(f"file://{there}", engine="arrow")
    assert told.num_rows == rows_of(there).num_rows


def rows_of_coverage(coverage: Path) -> pa.Table:
    return DeltaTable(coverage).to_pyarrow_dataset().to_table(filter=pc.field("date") == DAY)


@pytest.mark.long
def test_several_recorders_share_a_table(tmp_path: Path, recording: Recording, there: Path) -> None:
    other = record(tmp_path / "other")
    for one, root in ((recording, "one"), (other, "two")):
        ObjectStore(str(there), one.layout, root, shared=True, table="delta").tick(0.0)
    list(compact_days(recording.layout, date(2026, 11, 20)))
    ObjectStore(str(there), recording.layout, "one", shared=True, table="delta").tick(0.0)
    files = files_of(there)
    assert (len([name for name in files if name.startswith("root=one/")]), len(files)) == (2, 6)
    found = rows_of(there)
    expected = ingestor.read_trades(recording.layout.root).shape[0]
    assert sorted(found["root"].to_pylist()) == ["one"] * expected + ["two"] * expected


def test_a_compaction_of_another_recorder_at_the_same_moment_delays_nothing(
    tmp_path: Path, recording: Recording, there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both remove files: of two such commits that began at one version, Delta refuses the second."""
    other = record(tmp_path / "other")
    mirrors = [
        ObjectStore(str(there), one.layout, root, shared=True, table="delta")
        for one, root in ((recording, "one"), (other, "two"))
    ]
    for mirror, own in zip(mirrors, (recording, other), strict=True):
        mirror.tick(0.0)
        list(compact_days(own.layout, date.max))
    opened = delta_table.DeltaTable._open
    waiting = [mirrors[1]]

    def open_while_another_commits(table: delta_table.DeltaTable, footers: Mapping[str, pq.FileMetaData]) -> DeltaTable:
        found = opened(table, footers)
        if waiting:
            waiting.pop().tick(GRACE_S)
        return found

    monkeypatch.setattr(delta_table.DeltaTable, "_open", open_while_another_commits)
    mirrors[0].tick(GRACE_S)
    assert not waiting
    assert DeltaTable(there).to_pyarrow_dataset().count_rows() == 2 * 61
    assert len(DeltaTable(there).file_uris()) == 4


@pytest.mark.long
def test_a_column_of_one_feed_alone_comes_into_the_table(tmp_path: Path, there: Path) -> None:
    for root, schema in (("one", TRADES), ("two", EXTRA)):
        layout = make_root(tmp_path / root)
        fill_journal(layout, 1, 1, 10, schema=schema)
        drain(layout, [Holder(), ParquetFiles(layout, make_ledger(layout))])
        ObjectStore(str(there), layout, root, shared=True, table="delta").tick(0.0)
    assert rows_of(there)["side"].null_count == 10 + 5
    assert pl.scan_delta(str(there)).collect()["side"].null_count() == 15


def test_the_log_lets_an_engine_pass_over_files(recording: Recording, there: Path) -> None:
    open_mirror(recording, there).tick(0.0)
    told = pa.table(DeltaTable(there).get_add_actions(flatten=True)).sort_by("min.timestamp").to_pylist()
    assert [one["num_records"] for one in told] == [20, 20, 20, 1]
    expected = ingestor.read_trades(recording.layout.root, engine="arrow")
    assert (told[0]["min.sequence"], told[-1]["max.symbol"]) == (expected["sequence"][0].as_py(), "MSFT")
    assert told[0]["min.timestamp"] == expected["timestamp"][0].as_py()


@pytest.mark.parametrize(
    ("uri", "environment", "place", "options"),
    [
        ("folder", {}, "folder", {}),
        ("s3://b/x", {}, "s3://b/x", {}),
        ("s3://b/x?region=eu-central-1", {}, "s3://b/x", {"AWS_REGION": "eu-central-1"}),
        ("s3://me:p%2Fw@b/x/", {}, "s3://b/x", {"AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "p/w"}),
        (
            "s3://b/x?scheme=http&endpoint_override=h:1&region=r",
            {},
            "s3://b/x",
            {"AWS_ENDPOINT_URL": "http://h:1", "AWS_REGION": "r", "AWS_ALLOW_HTTP": "true"},
        ),
        (
            "s3://b/x",
            {"AWS_ENDPOINT_URL": "https://h"},
            "s3://b/x",
            {"AWS_ENDPOINT_URL": "https://h", "AWS_REGION": "us-east-1"},
        ),
    ],
)
def test_an_address_as_delta_takes_it(
    uri: str, environment: Mapping[str, str], place: str, options: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert delta_table._locate(uri) == (place, options)
