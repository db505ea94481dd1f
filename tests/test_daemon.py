"""The process: what it holds while it records, in which order it ends, and what it says of itself meanwhile."""

import json
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from prepared import SETTINGS
from structlog.testing import capture_logs

from ingestor.cli.main import cli
from ingestor.config import Settings, Source
from ingestor.daemon import record
from ingestor.errors import IngestorError, KeyInUse, RootDeleted, RootLocked
from ingestor.layout import Layout, locked_root, read_holder
from ingestor.ledger import list_ledgers, read_facts
from ingestor.metrics import Conservation, Counts
from ingestor.operations.recorder_status import read_status
from ingestor.operations.systemd import Signals, catch_signals

PATIENCE_S = 30.0


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    """`record` sets that of its process, which here is everybody's."""
    before = os.umask(0)
    os.umask(before)
    yield
    os.umask(before)


class Run(threading.Thread):
    """`record`, in a thread."""

    def __init__(self, folder: Path, **more: Any) -> None:
        super().__init__()
        self.signals: Signals = more.pop("signals", None) or Signals()
        self.receivers: tuple[str, ...] = more.pop("receivers", ())
        self.key: str = more.pop("key", f"key of {folder}")
        storage = {**SETTINGS["storage"], "root": folder / "data", **more.pop("storage", {})}
        self.settings = Settings.model_validate({**SETTINGS, "storage": storage, **more})
        self.layout = Layout(folder / "data")
        self.outcome: Conservation | BaseException | None = None
        self.source = Source(folder / "ingestor.yaml")

    def run(self) -> None:
        try:
            self.outcome = record(self.settings, self.source, self.key, self.signals, receivers=self.receivers)
        except BaseException as error:  # noqa: BLE001  the test looks at it
            self.outcome = error

    def facts(self) -> list[dict[str, Any]]:
        return [fact for path in list_ledgers(self.layout) for fact in read_facts(path)]

    def wait_for(self, fact: Callable[[], object]) -> None:
        deadline_s = time.monotonic() + PATIENCE_S
        while not fact():
            assert self.is_alive(), self.outcome
            assert time.monotonic() < deadline_s
            time.sleep(0.01)


@contextmanager
def running(folder: Path, **more: Any) -> Iterator[Run]:
    """One that records, for the time of the block; nobody listens where its venue should be."""
    run = Run(folder, **more)
    run.start()
    try:
        run.wait_for(lambda: (holder := read_holder(run.layout)) and holder.health)
        yield run
    finally:
        run.signals.stop.set()
        run.join()


def test_a_stop_ends_in_order_with_an_account(tmp_path: Path) -> None:
    with running(tmp_path) as run:
        assert read_status(run.layout).ailments == ["not connected to the venue"]
    assert run.outcome == Conservation(0, Counts(), {"parquet": 0, "csv": 0})
    assert run.facts()[-1]["fact"] == "run.stopped"
    assert run.facts()[-1]["error"] is None
    assert read_holder(run.layout) is None


def test_one_root_has_one_recorder(tmp_path: Path) -> None:
    with running(tmp_path) as run, pytest.raises(RootLocked, match="one root has one recorder"):
        record(run.settings, run.source, "another key", Signals())


def test_one_key_has_one_recorder_and_the_second_root_stays_free(tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    with running(tmp_path) as first:
        second = Run(tmp_path / "second")
        with pytest.raises(KeyInUse):
            record(second.settings, second.source, first.key, Signals())
        assert read_holder(second.layout) is None
        assert list_ledgers(second.layout) == []


# ingestor stop


@pytest.fixture
def signals() -> Iterator[Signals]:
    """Those that this process takes, for the time of a test."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield catch_signals()
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def stop(root: Path, *options: str) -> Result:
    return CliRunner().invoke(cli, ["stop", "--root", str(root), *options])


def test_stop_ends_a_recorder_in_order_and_says_what_it_left(tmp_path: Path, signals: Signals) -> None:
    with running(tmp_path, signals=signals) as run:
        done = stop(run.layout.root)
        assert (done.exit_code, done.stderr) == (0, "")
        told = done.stdout.splitlines()[-1]  # behind the log of this process
        assert re.fullmatch(
            rf"process {os.getpid()} stopped in order after [\d.]+ m?s; it sealed the last 0 trades", told
        )
    assert isinstance(run.outcome, Conservation)
    again = stop(run.layout.root)
    assert (again.exit_code, again.stdout, again.stderr) == (3, "", f"nothing records into {run.layout.root}\n")


def test_stop_tells_an_end_that_is_not_in_order(tmp_path: Path, signals: Signals) -> None:
    layout = Layout(tmp_path)
    layout.create()
    held = threading.Event()

    def hold() -> None:
        with locked_root(layout):
            held.set()
            signals.hurry.wait(PATIENCE_S)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(PATIENCE_S)
    first = stop(layout.root, "--timeout", "50ms")
    assert "still runs after 50 ms" in str(first.exception)
    second = stop(layout.root, "--json")
    holder.join()
    told = json.loads(second.stdout)
    assert (second.exit_code, told["error"]) == (1, "no word of an end: the next start finds a crash")


def test_stop_signals_no_process_that_does_not_hold_the_lock(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layout.create()
    with locked_root(layout):
        layout.lock.write_text(json.dumps({"pid": os.getppid(), "health": None}))  # as a container's would look here
        done = stop(layout.root)
    assert isinstance(done.exception, IngestorError)
    assert re.search("runs elsewhere|belongs to another user", str(done.exception))


# Trouble


def test_a_full_disk_is_said_once_and_the_recording_goes_on(tmp_path: Path) -> None:
    with running(tmp_path, storage={"min_free": "1024TB"}) as run:
        run.wait_for(lambda: any(fact["fact"] == "disk.low" for fact in run.facts()))
        assert any("disk low" in ailment for ailment in read_status(run.layout).ailments)
    assert isinstance(run.outcome, Conservation)
    low = [fact for fact in run.facts() if fact["fact"] == "disk.low"]
    assert len(low) == 1
    assert low[0]["free"] < low[0]["floor"]


def test_a_disk_that_cannot_be_asked_ends_nothing(tmp_path: Path) -> None:
    with running(tmp_path) as run, capture_logs() as logs:
        run.layout.root.rename(tmp_path / "unmounted")
        run.wait_for(lambda: any(entry["event"] == "disk.unknown" for entry in logs))
        (tmp_path / "unmounted").rename(run.layout.root)
    assert isinstance(run.outcome, Conservation)


def test_a_reload_reads_the_settings_again(tmp_path: Path) -> None:
    with running(tmp_path) as run:
        assert run.source.path is not None
        run.source.path.write_text("tickers: [AAPL, TSLA]\n")
        run.signals.reload.set()
        run.wait_for(lambda: any(fact["fact"] == "settings.reloaded" for fact in run.facts()))
        assert not run.signals.reload.is_set()
    reloaded = next(fact for fact in run.facts() if fact["fact"] == "settings.reloaded")
    assert (reloaded["added"], reloaded["dropped"]) == (["TSLA"], ["MSFT"])


def test_a_saved_file_is_taken_over_without_being_asked(tmp_path: Path) -> None:
    with running(tmp_path, tickers_watch=True) as run:
        assert run.source.path is not None
        run.source.path.write_text("tickers: [AAPL, TSLA]\n")
        run.wait_for(lambda: any(fact["fact"] == "settings.reloaded" for fact in run.facts()))


def test_threads_bear_their_names(tmp_path: Path) -> None:
    with running(tmp_path):
        names = {path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")}
    assert {"reader", "recorder", "files"} <= names


def test_leftovers_of_a_crash_are_removed(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "data")
    layout.create()
    half = layout.staging / "000000000001-20261120T073348Z-r000001.2026-11-20.parquet"
    theirs = [layout.root / "notes.txt", layout.staging / "notes.txt"]
    for path in (half, *theirs):
        path.write_text("x")
    with capture_logs() as logs, running(tmp_path):
        assert not half.exists()
    assert all(path.exists() for path in theirs)
    assert [one["files"] for one in logs if one["event"] == "files.foreign"] == [["notes.txt"]]


def test_what_ends_the_main_thread_ends_the_run_in_order(tmp_path: Path) -> None:
    with running(tmp_path) as run:
        run.layout.lock.unlink()
        run.join(PATIENCE_S)
    assert isinstance(run.outcome, RootDeleted)
    assert run.facts()[-1]["fact"] == "run.stopped"
    assert run.facts()[-1]["error"] == "RootDeleted"


def test_a_root_that_is_deleted_ends_the_run(tmp_path: Path) -> None:
    with running(tmp_path) as run:
        shutil.rmtree(run.layout.root)
        run.join(PATIENCE_S)
        assert not run.is_alive()
    assert isinstance(run.outcome, RootDeleted | OSError)
