"""Files of others in a root: what a desktop, an editor, a browser or a person leaves there. Nothing reads them, nothing
fails on them, nothing mirrors or removes them, and `verify` names them.
"""

import shutil
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from journals import NOON, Life, make_ledger, make_root
from sink_contract import ROOT

import ingestor
from ingestor.capture.rejects import Refused, Rejects
from ingestor.cli.main import cli
from ingestor.closed_days import close_days, list_day_files
from ingestor.config.sections import SinkSettings
from ingestor.dataset.compact import clear_leftovers, compact_days
from ingestor.dataset.maintenance import delete_expired
from ingestor.dataset.verify import Verification
from ingestor.layout import Layout, is_own, list_foreign
from ingestor.sinks.object_store import ObjectStore

TODAY = NOON.date()
LATER = datetime(2026, 12, 20, tzinfo=UTC)
STRAY = (
    ".DS_Store", "Thumbs.db", "desktop.ini", "notes.txt", "notes.json", "mine.parquet", "mine.csv", "date=mine.jsonl",
    "date=2026-02-31", "date=2026-02-31.json", "compacted-mine.parquet",
    "000000000001-20260231T000000Z-r000001.parquet",
)  # fmt: skip
"""In every folder, with content that is no file of ours."""
COPIES = ("{name}~", ".{name}.swp", "{name}.crdownload", "{stem} (1){ending}", "Copy of {name}", "._{name}", "{name}.1")
"""Beside every file, with its content."""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs with trades of two dates, rejects and CSV files; the facts of the first date are data."""
    layout = make_root(tmp_path_factory.mktemp("recorded") / "data")
    for number in (30, 20):
        life = Life(layout)
        life.writer.append(number)
        life.writer.rotate()
        rejects = Rejects(layout, life.run, 1 << 30)
        rejects.write([Refused(number, None, "not_json", round(NOON.timestamp() * 1e6), b"?")])
        rejects.close()
        life.writer.append(10, at=NOON + timedelta(days=1), reasons={"not_json": 1})
        life.stop()
    list(close_days(layout, date.max))
    return layout.root


@pytest.fixture
def layout(recorded: Path, tmp_path: Path) -> Layout:
    return Layout(shutil.copytree(recorded, tmp_path / "data"))


def strew(layout: Layout) -> dict[Path, bytes]:
    """Put files of others everywhere; each with its content."""
    before = [layout.root, *sorted(layout.root.rglob("*"))]
    strewn = {folder / name: b"not ours" for folder in before if folder.is_dir() for name in STRAY}
    for file in before:
        if file.is_file() and file.parent != layout.staging and file != layout.ballast:
            stem, dot, ending = file.name.partition(".")
            names = (copy.format(name=file.name, stem=stem, ending=dot + ending) for copy in COPIES)
            strewn |= {file.with_name(name): file.read_bytes() for name in names}
    for path, content in strewn.items():
        path.write_bytes(content)
    return strewn


def still_there(strewn: dict[Path, bytes]) -> bool:
    return all(path.read_bytes() == content for path, content in strewn.items())


def answers(layout: Layout) -> list[object]:
    """What each reader says of a root."""
    root = layout.root
    return [
        ingestor.read_trades(root, engine="arrow").to_pylist(),
        ingestor.read_bars(root, "1m", engine="arrow").to_pylist(),
        ingestor.read_coverage(root, engine="arrow").to_pylist(),
        ingestor.read_rejects(root, engine="arrow").to_pylist(),
        ingestor.describe(root, engine="arrow").to_pylist(),
    ]


def test_readers_do_not_see_them(layout: Layout) -> None:
    before = answers(layout)
    strewn = strew(layout)
    assert answers(layout) == before
    assert still_there(strewn)


def test_readers_of_an_address_do_not_see_them(layout: Layout) -> None:
    rows = ingestor.read_trades(layout.root, engine="arrow")
    strew(layout)
    assert ingestor.read_trades(f"file://{layout.root}", engine="arrow").equals(rows)


def test_verify_names_them(layout: Layout) -> None:
    strewn = strew(layout)
    verification = Verification(layout)
    differences = [one for step in verification.run() for one in step]
    in_the_way = {one.place for one in differences}
    named = in_the_way | set(verification.account.foreign)
    assert named == {path.relative_to(layout.root).as_posix() for path in strewn}
    assert {name.partition("/")[0] for name in in_the_way} == {"trades", "csv"}
    day = f"date={TODAY}"
    for name in (f"trades/{day}/notes.txt", f"trades/{day}/mine.parquet", f"csv/{day}/mine.csv", "trades/notes.txt"):
        assert name in in_the_way  # of those who read all that is there, such as pandas
    for name in ("notes.txt", ".DS_Store", f"trades/{day}/.DS_Store", f"csv/{day}/notes.txt", f"rejects/{day}.jsonl~"):
        assert name not in in_the_way
    assert verification.account.rows == {"parquet": 70, "csv": 70, "journal": 0}


def test_the_command_names_the_first_ones_and_is_content(layout: Layout) -> None:
    (layout.root / "notes\x1b.txt").touch()
    (layout.root / "backup").mkdir()
    done = CliRunner().invoke(cli, ["verify", "--root", str(layout.root)])
    assert done.exit_code == 0
    assert done.stdout.splitlines()[-2:] == [
        "not of this recording, and not looked at: 2 (backup/, notes\\x1b.txt)",
        "Everything is there, once.",
    ]


def test_nothing_that_tidies_removes_them(layout: Layout) -> None:
    strewn = strew(layout)
    rows = ingestor.read_trades(layout.root)
    assert len(list(compact_days(layout, date.max))) == 2
    assert ingestor.read_trades(layout.root).equals(rows)
    assert still_there(strewn)
    ledger = make_ledger(layout, 9)
    assert len(delete_expired(layout, ledger, timedelta(hours=1), LATER)) == 2
    assert len(ingestor.read_trades(layout.root)) == 0
    own = [path for path in layout.trades.rglob("*") if path.is_file() and path not in strewn]
    assert own == []
    assert still_there(strewn)
    assert delete_expired(layout, ledger, timedelta(hours=1), LATER) == []  # what is left is nobody's to delete again


def test_a_crash_of_retention_loses_none(layout: Layout) -> None:
    strewn = strew(layout)
    folder = layout.trades / f"date={TODAY}"
    folder.rename(layout.staging / f"trades.{folder.name}.deleted")
    clear_leftovers(layout)
    assert still_there(strewn)
    assert [name for name in list_foreign(layout) if ".deleted" in name] == []


def test_the_mirror_brings_none_and_removes_none(layout: Layout, tmp_path: Path) -> None:
    strew(layout)
    there = tmp_path / "there"
    ObjectStore(str(there), layout, ROOT).tick(float("inf"))
    assert all(map(is_own, list_day_files(layout, TODAY)))  # of which a manifest tells
    brought = {path for path in there.rglob("*") if path.is_file()}
    assert len([path for path in brought if path.suffix == ".parquet"]) == 4
    theirs = {path.with_name(f"{path.name}~"): b"theirs" for path in brought if path.parent != there}
    theirs |= {folder / name: b"theirs" for folder in there.rglob("*") if folder.is_dir() for name in STRAY}
    for path, content in theirs.items():
        path.write_bytes(content)
    list(compact_days(layout, date.max))
    ObjectStore(str(there), layout, ROOT).tick(float("inf"))
    assert still_there(theirs)
    rows = ingestor.read_trades(layout.root, engine="arrow")
    assert ingestor.read_trades(f"file://{there}", engine="arrow").equals(rows)


@pytest.mark.parametrize("place", ["file", "file/data"])
def test_a_file_where_the_root_is_to_be_is_refused_and_stays(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError, match="is a file, not a folder"):
        Layout(tmp_path / place).create()
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    "name",
    ["trades/date=2026-11-20", "cursors/kafka.json", "cursors/redis.17.lost", ".lock.damaged-2", "staging/upkeep.lock",
     "staging/state.json.4711", "trades/.date=2026-11-20.damaged", "manifests/date=2026-11-20.json"],
)  # fmt: skip
def test_what_is_ours(name: str) -> None:
    assert is_own(name)


def test_the_cursor_of_each_destination_is_ours() -> None:
    assert all(is_own(f"cursors/{name}.json") for name in SinkSettings.model_fields)
