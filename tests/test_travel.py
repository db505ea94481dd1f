"""A copy answers as the recording does, vouches for nothing that is not in it, and shows what was changed in it."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import test_raw
from click.testing import CliRunner
from journals import Holder, drain, make_ledger
from recordings import Print, Recording, to_us
from requirements import of_tier
from sink_contract import ROOT
from structlog.testing import capture_logs

import ingestor
from ingestor.cli.main import cli
from ingestor.closed_days import close_days, is_mirrored, read_manifest
from ingestor.dataset.compact import compact_days
from ingestor.dataset.maintenance import delete_expired
from ingestor.dataset.snapshot import open_recording
from ingestor.errors import ConfigError, DamagedFile, NotARecording
from ingestor.layout import Layout
from ingestor.sinks.csv_files import CsvFiles
from ingestor.sinks.object_store import ObjectStore, Retention
from ingestor.store import Store, locate_root, name_in_root

INF = float("inf")
DAY = date(2026, 11, 19)
REJECT = {"received_at": to_us("2026-11-19T14:00"), "reason": "bad_json", "run": 1, "frame": 1 << 30, "trade": None,
          "length": 3, "sha256": "0" * 64, "text": "{{{"}  # fmt: skip


def record(root: Path) -> Recording:
    """Two symbols on two dates, with a gap. The second date is in the journal still."""
    symbols = ["AAPL", "BINANCE:BTCUSDT"]
    recording = Recording(root, symbols, started="2026-11-19")
    recording.prove(symbols, "2026-11-19T14:00:00")
    for day in (19, 20):
        for hour in (14, 15):
            recording.write(
                *(Print(f"2026-11-{day}T{hour}:{n:02}", symbols[n % 2], 100 + n * 7 % 11, 10.0) for n in range(60))
            )
            recording.end_segment()
        if day == 19:
            recording.seal()
    start, end = "2026-11-20T15:00:00", "2026-11-20T15:02:00"
    recording.fact("gap.opened", start, gap="r000001-1", cause="connection", since=to_us(start), symbol=None)
    recording.fact("gap.closed", end, gap="r000001-1", cause="connection", until=to_us(end), symbol=None)
    recording.fact("connection.closed", "2026-11-21T00:00:00", connection=1, frames=1)
    return recording


def mirror(layout: Layout, there: Path, **options: Any) -> ObjectStore:
    """Everything is brought, and each closed day has its manifest."""
    sink = ObjectStore(str(there), layout, ROOT, **options)
    for _ in range(4):
        sink.tick(INF)
    return sink


def invoke(root: str | Path, *question: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli, [*question, "--root", str(root)])
    return result.exit_code, result.stdout


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording that has ended, one of its days closed; its mirror is beside it."""
    folder = tmp_path_factory.mktemp("travel")
    recording = record(folder / "data")
    recording.stop("2026-11-21T00:00:01")
    recording.layout.rejects_file(DAY).write_text(json.dumps(REJECT) + "\n")
    list(close_days(recording.layout, date(2026, 11, 20)))
    mirror(recording.layout, folder / "there")
    return folder


@pytest.fixture
def copied(stopped: Path, tmp_path: Path) -> Path:
    """The same, to change it."""
    for name in ("data", "there"):
        shutil.copytree(stopped / name, tmp_path / name)
    return tmp_path


ANSWERS: dict[str, Callable[[Any], Any]] = {
    "read_trades": lambda root: ingestor.read_trades(root, engine="arrow"),
    "of a symbol and a time": lambda root: ingestor.read_trades(root, "AAPL", "2026-11-19", "2026-11-20T15:00"),
    "read_bars": lambda root: ingestor.read_bars(root, "5m", fill=True, engine="arrow"),
    "read_coverage": lambda root: ingestor.read_coverage(root, engine="arrow"),
    "of a day": lambda root: ingestor.read_coverage(root, start="2026-11-19", end="2026-11-20", engine="arrow"),
    "read_rejects": lambda root: ingestor.read_rejects(root, engine="arrow"),
    "describe": lambda root: ingestor.describe(root, engine="arrow"),
    "coverage": lambda root: invoke(root, "coverage", "--json"),
    "bars": lambda root: invoke(root, "bars", "1h"),
    "head": lambda root: invoke(root, "head", "--json"),
    "verify": lambda root: invoke(root, "verify", "--json"),
}


@pytest.mark.parametrize("question", ANSWERS)
def test_a_mirror_answers_as_the_recording_does(question: str, stopped: Path) -> None:
    told = ANSWERS[question](stopped / "data")
    for place in (stopped / "there", f"file://{stopped / 'there'}", f"file://{stopped / 'data'}"):
        found = ANSWERS[question](place)
        assert found.equals(told) if hasattr(found, "equals") else found == told, place


def test_several_copies_are_read_as_one(stopped: Path) -> None:
    both: list[str | Path] = [f"file://{stopped / 'there'}", stopped / "data"]
    assert ingestor.describe(both, engine="arrow").equals(ingestor.describe([stopped / "data"] * 2, engine="arrow"))


def test_an_export_is_the_same(stopped: Path, tmp_path: Path) -> None:
    for name in ("data", "there"):
        code, _ = invoke(stopped / name, "export", str(tmp_path / f"{name}.csv"))
        assert code == 0
    assert (tmp_path / "data.csv").read_bytes() == (tmp_path / "there.csv").read_bytes()


def test_a_reader_of_plain_parquet_finds_trades_alone(stopped: Path) -> None:
    found = {path.relative_to(stopped / "there").parts[0] for path in (stopped / "there").rglob("*.parquet")}
    assert found == {"date=2026-11-19", "date=2026-11-20"}


def test_csv_files_stay_on_the_disk(tmp_path: Path) -> None:
    """Their rows are in the mirror, as Parquet; `verify` of it counts them once."""
    recording = record(tmp_path / "data")
    recording.end_segment()
    drain(recording.layout, [Holder(), CsvFiles(recording.layout)])
    recording.stop("2026-11-21T00:00:01")
    mirror(recording.layout, tmp_path / "there")
    assert list((tmp_path / "data").rglob("*.csv"))
    assert not list((tmp_path / "there").rglob("*csv*"))
    codes, answers = zip(*(invoke(tmp_path / name, "verify") for name in ("data", "there")), strict=True)
    assert codes == (0, 0)
    assert answers[0].replace(", 120 rows in csv", "") == answers[1] != answers[0]


# What it vouches for


def test_coverage_ends_where_the_mirrored_rows_end(tmp_path: Path) -> None:
    recording = record(tmp_path / "data")
    mirror(recording.layout, tmp_path / "there")
    last = ingestor.read_trades(tmp_path / "there")["received_at"].max()
    coverage = ingestor.read_coverage(tmp_path / "there")
    assert ingestor.read_coverage(tmp_path / "data")["end"].max() > last == coverage["end"].max()
    assert ingestor.read_trades(tmp_path / "data")["received_at"].max() > last
    recording.stop("2026-11-21T00:00:01")
    mirror(recording.layout, tmp_path / "there")
    assert ingestor.read_coverage(tmp_path / "there").equals(ingestor.read_coverage(tmp_path / "data"))


def test_before_a_segment_is_sealed_nothing_is_vouched_for(tmp_path: Path) -> None:
    recording = Recording(tmp_path / "data", ["AAPL"], started="2026-11-19")
    recording.prove(["AAPL"], "2026-11-19T14:00:00")
    recording.write(Print("2026-11-19T14:00", "AAPL", 1, 1))
    mirror(recording.layout, tmp_path / "there")
    with pytest.raises(NotARecording):
        ingestor.read_coverage(f"file://{tmp_path / 'there'}")


# What was changed


def of_kind(there: Path, kind: str) -> Path:
    pattern = {"trades": "date=2026-11-19/*.parquet"}.get(kind, f"_recording/{kind}/date=2026-11-19*")
    found = next(there.glob(pattern))
    return next(found.iterdir()) if found.is_dir() else found


@pytest.fixture(scope="module")
def published(stopped: Path) -> Path:
    """A data set of the same recording."""
    code, _ = invoke(stopped / "data", "publish", "--to", str(stopped / "published"))
    assert code == 0
    return stopped / "published"


@pytest.fixture(scope="module")
def with_frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mirror of a recording that keeps its frames, with a closed day and one that goes on."""
    folder = tmp_path_factory.mktemp("frames")
    late = [test_raw.Put(1, test_raw.PUTS[0].payloads, test_raw.MIDNIGHT_US)]
    test_raw.record(folder / "data", test_raw.PUTS)
    layout = test_raw.record(folder / "data", late, run=2)
    list(close_days(layout, date.max))
    mirror(layout, folder / "there")
    return folder / "there"


def flip(path: Path, place: float) -> None:
    """One bit of the byte at this share of the file."""
    content = bytearray(path.read_bytes())
    content[int(len(content) * place)] ^= 1
    path.write_bytes(content)


KINDS = {
    "mirror": ("date=2026-11-19/*", "date=2026-11-20/*", "_recording/coverage/date=2026-11-19/*",
               "_recording/accounts/date=2026-11-19/*", "_recording/rejects/date=2026-11-19*", "_recording/ledger/0*",
               "_recording/manifests/date=2026-11-19*"),
    "published": ("trades/date=2026-11-19/*", "trades/date=2026-11-20/*", "coverage/date=2026-11-19/*",
                  "accounts/date=*/*", "ledger/0*", "manifests/date=2026-11-19*"),
    "with_frames": ("_recording/raw/date=*/*",),
}  # fmt: skip
"""Each kind of file that a copy has: trades of a closed day and of one that goes on, and all else."""


@pytest.mark.parametrize("place", [0.02, *of_tier((0.3, 0.6, 0.98), ())])
@pytest.mark.parametrize(("copy", "kind"), [(copy, kind) for copy, kinds in KINDS.items() for kind in kinds])
def test_one_flipped_byte_is_named(
    copy: str, kind: str, place: float, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    made: Path = request.getfixturevalue("stopped" if copy == "mirror" else copy)
    there = tmp_path / "copy"
    shutil.copytree(made / "there" if copy == "mirror" else made, there)
    found = sorted(there.glob(kind))
    assert found
    for path in found:
        before = path.read_bytes()
        flip(path, place)
        code, shown = invoke(there, "verify")
        assert code == 1, path
        name = str(path.relative_to(there))
        in_root = str(name_in_root(name) if copy != "published" else name)
        assert any(line.startswith((name, in_root)) for line in shown.splitlines()), shown
        path.write_bytes(before)
    assert invoke(there, "verify")[0] == 0


def test_every_byte_of_a_manifest_counts(published: Path, tmp_path: Path) -> None:
    [path] = (published / "manifests").glob("date=2026-11-19*")
    manifest, content = read_manifest(path), path.read_bytes()
    copy = tmp_path / path.name
    for at in range(len(content)):
        copy.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        try:
            assert read_manifest(copy) == manifest  # a blank or a letter's escape, which says the same
        except DamagedFile:
            continue
    told = json.loads(content)
    del told["sha256"]
    copy.write_text(json.dumps(told))  # of the version before
    assert read_manifest(copy) == manifest


@pytest.mark.parametrize("change", ["cut", "lost", "added"])
def test_so_is_a_file_that_is_cut_lost_or_added(copied: Path, change: str) -> None:
    path = of_kind(copied / "there", "trades")
    if change == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    elif change == "lost":
        path.unlink()
    else:
        path = path.with_name("000000000009-20261119T000000Z-r000009.parquet")
        path.write_bytes(of_kind(copied / "there", "trades").read_bytes())
    for question in (["verify"], ["verify", "--against", str(copied / "there")]):
        root = copied / ("data" if len(question) > 1 else "there")
        code, shown = invoke(root, *question)
        assert code == 1
        assert str(path.relative_to(copied / "there")) in shown


def test_a_recording_is_compared_with_its_copy(copied: Path) -> None:
    assert invoke(copied / "data", "verify", "--against", str(copied / "there"))[0] == 0
    path = next((copied / "data" / "trades").glob("date=2026-11-19/*"))
    content = bytearray(path.read_bytes())
    content[99] ^= 1
    path.write_bytes(content)
    code, shown = invoke(copied / "data", "verify", "--against", f"file://{copied / 'there'}")
    assert code == 1
    assert f"date=2026-11-19/{path.name}: SHA-256" in shown


def test_a_manifest_is_written_anew_when_its_day_is_compacted(copied: Path) -> None:
    layout = Layout(copied / "data")
    place = locate_root(copied / "there")
    before = read_manifest(Layout(place).manifest_file(DAY))
    list(compact_days(layout, date(2026, 11, 20)))
    assert not is_mirrored(layout, DAY)
    mirror(layout, copied / "there")
    assert is_mirrored(layout, DAY)
    after = read_manifest(Layout(locate_root(copied / "there")).manifest_file(DAY))
    assert (after.rows, after.checksum) == (before.rows, before.checksum)
    assert len(after.files) < len(before.files)
    assert invoke(copied / "there", "verify")[0] == 0


def test_so_it_is_when_a_file_beside_the_trades_changes(copied: Path) -> None:
    layout = Layout(copied / "data")
    with layout.rejects_file(DAY).open("a") as file:
        file.write(json.dumps(REJECT | {"frame": (1 << 30) + 1}) + "\n")
    mirror(layout, copied / "there")
    assert is_mirrored(layout, DAY)
    assert invoke(copied / "there", "verify")[0] == 0


def test_a_copy_that_is_not_as_it_was_sent_is_sent_again(copied: Path) -> None:
    layout = Layout(copied / "data")
    shutil.rmtree(layout.cursors / "mirrored")
    path = of_kind(copied / "there", "trades")
    content = bytearray(path.read_bytes())
    content[99] ^= 1
    path.write_bytes(content)
    with capture_logs() as logs:
        mirror(layout, copied / "there")
    assert [line["file"] for line in logs if line["event"] == "mirror.damaged"] == [
        str(path.relative_to(copied / "there"))
    ]
    assert is_mirrored(layout, DAY)
    assert invoke(copied / "there", "verify")[0] == 0


# Two retentions


def test_a_day_leaves_the_disk_once_its_copy_was_read_back(copied: Path) -> None:
    layout = Layout(copied / "data")
    ledger = make_ledger(layout, 7)
    now = datetime(2026, 11, 21, 12, tzinfo=UTC)

    def expire() -> list[date]:
        return delete_expired(layout, ledger, timedelta(days=1), now, mirrored=True)

    shutil.rmtree(layout.cursors / "mirrored")
    assert expire() == []
    mirror(layout, copied / "there")
    assert expire() == [DAY]


@pytest.mark.parametrize(("retention", "left"), [("disk", 1), ("forever", 2), (36500 * 86400.0, 2)])
def test_what_the_disk_has_deleted_stays_there_as_long_as_its_own_retention(
    copied: Path, retention: float | Retention, left: int
) -> None:
    layout = Layout(copied / "data")
    ledger = make_ledger(layout, 7)
    delete_expired(layout, ledger, timedelta(days=1), datetime(2026, 11, 21, 12, tzinfo=UTC))
    shutil.rmtree(layout.trades / "date=2026-11-20", ignore_errors=True)  # lost, not deleted
    mirror(layout, copied / "there", retention=retention)
    assert len(list((copied / "there").glob("date=*/*.parquet"))) >= left
    days = {path.parent.name for path in (copied / "there").glob("date=*/*.parquet")}
    assert len(days) == left
    assert invoke(copied / "there", "verify")[0] == 0


def test_what_is_older_than_its_own_retention_goes_there_and_stays_here(copied: Path) -> None:
    layout = Layout(copied / "data")
    for _ in range(2):  # nor does it come again
        mirror(layout, copied / "there", retention=86400 * 5.5)
        assert [path.name for path in (copied / "there").glob("date=*") if list(path.iterdir())] == ["date=2026-11-20"]
    assert len(list(layout.trades.glob("date=*"))) == 2
    code, shown = invoke(copied / "there", "verify")
    assert code == 0, shown
    assert ingestor.read_coverage(copied / "there").equals(ingestor.read_coverage(copied / "data"))


# Addresses


@pytest.mark.parametrize(
    ("address", "fault"),
    [
        ("https://host/data", "no place to read from"),
        ("gs://bucket/data", "no place to read from"),
        ("file:///nowhere/at/all", "holds no recording"),
        ("s3://id:hunter2@bucket/path?nope=1", "s3://bucket/path: "),
    ],
)
def test_an_address_that_can_not_be_read(address: str, fault: str) -> None:
    for root in (address, Path(address)):
        with pytest.raises(NotARecording, match=fault) as refused:
            ingestor.read_trades(root)
        assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("address", ["s3://id:hunter2@bucket/data", "file:///data"])
@pytest.mark.parametrize("command", ["run --symbols AAPL --root", "merge one two --into"])
def test_nothing_is_recorded_to_an_address(
    command: str, address: str, stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor to a folder of that name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FINNHUB_API_KEY", "k" * 20)
    for name in ("one", "two"):
        Path(name).symlink_to(stopped / "data")
    line = [sys.executable, "-m", "ingestor", *command.split(), address]
    done = subprocess.run(line, check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert "and a recording is written to a folder: name a folder of this machine" in done.stderr.splitlines()[-1]
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two"}
    checked = CliRunner().invoke(cli, ["check", "--root", address, "--symbols", "AAPL"])
    assert checked.exit_code == 2
    assert "and a recording is written to a folder" in " ".join(checked.output.split())
    assert "hunter2" not in done.stderr + checked.output


def test_a_shared_place_is_read_recorder_by_recorder(stopped: Path, tmp_path: Path) -> None:
    ObjectStore(str(tmp_path), Layout(stopped / "data"), "one", shared=True).tick(INF)
    with pytest.raises(NotARecording, match=r"shared by 1 recorders \(root=one\): read one, as .*/root=one"):
        ingestor.read_trades(f"file://{tmp_path}")
    told = ingestor.read_coverage(stopped / "data")
    assert ingestor.read_coverage(f"file://{tmp_path}/root=one").equals(told)


def test_a_copy_is_not_followed_and_not_compacted(stopped: Path) -> None:
    place = f"file://{stopped / 'there'}"
    with pytest.raises(NotARecording, match="a copy can't be followed"):
        next(ingestor.follow(place))
    assert isinstance(CliRunner().invoke(cli, ["compact", "--root", place]).exception, ConfigError)


def test_a_listing_that_holds_neither_a_file_nor_its_successor_is_not_believed(stopped: Path) -> None:
    store = Store(str(stopped / "there"))
    store.settle()
    assert store.root.is_dir()
    store._listed, store._folders = {}, {}  # as a listing may be that passed one too early and the other too late
    assert not (store.root / "trades").is_dir()
    assert open_recording(store.root).trades.is_dir()


# A data set to hand on


def test_a_published_data_set_is_a_recording(stopped: Path, tmp_path: Path) -> None:
    into = tmp_path / "set"
    chosen = ["--symbols", "AAPL", "--start", "2026-11-20", "--license", "CC-BY-4.0"]
    code, shown = invoke(stopped / "data", "publish", "--to", str(into), *chosen)
    assert code == 0
    assert "look at the terms of the venue" in shown
    told, found = (
        ingestor.read_trades(root, "AAPL", "2026-11-20").drop(columns="sequence") for root in (stopped / "data", into)
    )
    assert found.equals(told)
    assert len(ingestor.read_trades(into)) == len(told)
    coverage = [ingestor.read_coverage(root, "AAPL", "2026-11-20", engine="arrow") for root in (stopped / "data", into)]
    assert coverage[0].equals(coverage[1])
    assert invoke(into, "verify")[0] == 0
    package = json.loads((into / "datapackage.json").read_text())
    assert package["licenses"] == [{"name": "CC-BY-4.0"}]
    for resource in package["resources"]:
        assert all((into / path).is_file() for path in resource["path"])
    everything = b"".join(path.read_bytes() for path in into.rglob("*") if path.is_file())
    assert str(stopped).encode() not in everything
    path = next(into.glob("trades/*/*"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert f"{path.relative_to(into)}: SHA-256" in invoke(into, "verify")[1]


def test_nothing_is_no_data_set(stopped: Path, tmp_path: Path) -> None:
    into = tmp_path / "published"
    code, _ = invoke(stopped / "data", "publish", "--to", str(into), "--symbols", "AAPL", "--end", "2020-01-01")
    assert (code, into.exists()) == (1, False)


def frames_there(copied: Path) -> list[Path]:
    return list((copied / "there/_recording/raw").glob("date=*/*"))


@pytest.mark.parametrize(("retention", "stay"), [("disk", False), ("forever", True), (864e5 * 365, True)])
def test_raw_frames_stay_in_the_mirror_as_long_as_trades_would(
    copied: Path, retention: float | Retention, stay: bool
) -> None:
    layout = Layout(copied / "data")
    folder = layout.raw / f"date={DAY.isoformat()}"
    folder.mkdir(parents=True)
    (folder / "000000000001-20261119T000000Z-r000001.parquet").write_bytes(b"frames")
    mirror(layout, copied / "there", retention=retention)
    shutil.rmtree(folder)
    mirror(layout, copied / "there", retention=retention)
    assert len(frames_there(copied)) == 1  # lost here, which is not said to be on purpose
    ledger = make_ledger(layout, 7)
    ledger.record("raw.deleted", date=DAY.isoformat(), keep_s=86400.0)
    ledger.close()
    mirror(layout, copied / "there", retention=retention)
    assert len(frames_there(copied)) == stay
    assert is_mirrored(layout, DAY)
    if not stay:
        assert invoke(copied / "there", "verify", "--json")[0] == 0


def test_raw_frames_leave_the_mirror_by_its_own_retention(copied: Path) -> None:
    layout = Layout(copied / "data")
    for day in ("2026-11-19", "2026-11-20"):
        folder = layout.raw / f"date={day}"
        folder.mkdir(parents=True)
        (folder / "000000000001-20261119T000000Z-r000001.parquet").write_bytes(b"frames")
    mirror(layout, copied / "there")
    assert len(frames_there(copied)) == 2
    mirror(layout, copied / "there", retention=86400 * 5.5)
    assert [path.parent.name for path in frames_there(copied)] == ["date=2026-11-20"]
