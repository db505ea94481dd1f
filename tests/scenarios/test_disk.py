"""A disk that is full or fails, under the journal, the staging and the dataset: nothing is lost, all goes on after it.

Full disks are real ones, small; errors are put into a process's system calls by strace. Writes that the kernel cuts
short are in tests/test_writer.py and the model: strace would only claim them.
"""

import os
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest
from harness import Tally, wait_for
from journals import (
    Clock,
    Life,
    csv_sequences,
    first_sequence,
    ledger_facts,
    make_root,
    parquet_sequences,
)
from requirements import require, small_disk
from structlog.testing import capture_logs

from ingestor.journal.writer import Rotation

HERE = Path(__file__).parent
BLOCKS = 40


def fill(place: Path) -> Path:
    """Take all the room that there is on this disk; the file that holds it."""
    filler = place / "filler"
    with filler.open("wb", buffering=0) as file:
        while True:
            try:
                file.write(bytes(4096))
            except OSError:
                return filler


@pytest.mark.needs("mounts")
@pytest.mark.parametrize("full", ["journal", "files", "everything"])
def test_full(tmp_path: Path, tally: Tally, full: str) -> None:
    with ExitStack() as stack:
        root = stack.enter_context(small_disk(tmp_path / "root", "4m"))
        if full != "everything":
            stack.enter_context(small_disk(root / "journal", "2m" if full == "journal" else "32m"))
        layout = make_root(root)
        logs = stack.enter_context(capture_logs())
        life = Life(layout, rotation=Rotation(age_s=1, size=20_000), clock=Clock())
        journal, ended = life.writer.journal, threading.Event()
        runner, accounts = life.make_runner(ended)
        files = threading.Thread(target=runner.run)
        files.start()
        rows = life.writer.append(100)
        journal.sync()
        filler = fill(root / "journal" if full == "journal" else root)

        def refused() -> bool:
            return bool(journal.failed) or any(line["event"] == "sink.failed" for line in logs)

        for _ in range(BLOCKS):  # more than the disk has room for now, less than it holds without the filler
            if not refused():
                rows += life.writer.append(100)
                journal.sync()
                journal.rotate_if_due()
        wait_for(refused, "the disk is full")
        assert bool(journal.failed) or full != "journal"
        filler.unlink()
        if journal.failed:
            wait_for(journal.recover, "the journal works again")
        for _ in range(BLOCKS):
            rows += life.writer.append(10)
            journal.rotate_if_due()
        journal.close()
        ended.set()
        files.join()
        assert life.ledger.close()
        assert accounts.violations == 0
        assert parquet_sequences(layout) == rows
        assert csv_sequences(layout) == rows
        assert sum(fact["counts"]["trades"] for fact in ledger_facts(layout, "segment.closed")) == len(rows)
        tally.rounds, tally.rows = 1, len(rows)
        tally.assert_clean()


@pytest.mark.needs("tracing")
@pytest.mark.parametrize(
    "fault",
    [
        "fdatasync:error=EIO:when=5+6",
        pytest.param("fsync:error=EIO:when=25+25", marks=pytest.mark.long),
        "writev:error=ENOSPC:when=4+5",
        "pwrite64:error=EIO:when=6+9",
        pytest.param("rename,renameat,renameat2:error=EROFS:when=3+9", marks=pytest.mark.long),
        pytest.param("unlink,unlinkat:error=EROFS:when=1+3", marks=pytest.mark.long),
        pytest.param("pread64:error=EIO:when=30+40", marks=pytest.mark.long),
    ],
    ids=lambda fault: fault.split(",")[0].split(":")[0],
)
def test_errors(tmp_path: Path, tally: Tally, fault: str) -> None:
    strace = require("strace")
    command = [strace, "-f", "-qq", "-o", str(tmp_path / "trace"), "-e", f"inject={fault}", sys.executable]
    driver = [str(HERE / "drive_journal.py"), str(tmp_path / "root"), str(BLOCKS)]
    environ = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE.parent.parent)])}
    done = subprocess.run([*command, *driver], env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    injected = (tmp_path / "trace").read_text().count("(INJECTED)")
    assert injected > 0

    layout = make_root(tmp_path / "root")
    with capture_logs():
        accounts = Life(layout, clock=Clock()).stop()
    expected = list(range(first_sequence(1), first_sequence(1) + 3 * BLOCKS))
    assert parquet_sequences(layout) == expected
    assert csv_sequences(layout) == expected
    assert accounts.violations == 0
    tally.rounds, tally.rows = injected, len(expected)
    tally.assert_clean()
