"""The first ten minutes: the commands of README and docs/ on a fresh clone, as they stand there and in their order.

A line is run unless it is in ELSEWHERE, which says why, and has to succeed. What STAYS is given a terminal of its own.
`make demo` makes the environment that all of it runs in, from the package registry.
"""

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeVar
from zoneinfo import ZoneInfo

import pytest
from checkout import copy_checkout
from documents import GUIDES, blocks, read, shell_lines, split_sections
from harness import wait_for

Test = TypeVar("Test", bound=Callable[..., None])


def walks(test: Test) -> Test:
    pytest.mark.needs("bash", "make", "curl", "git")(test)
    pytest.mark.long(test)
    return test


SECTIONS = {guide: split_sections(read(guide)) for guide in GUIDES}
NOT_WALKED = {
    ("docs/record.md", "Other venues"): "wants these venues: tests/scenarios/test_feeds.py",
    ("docs/container.md", "Run it"): "wants a container engine: tests/scenarios/test_container.py",
    ("docs/container.md", "Compose"): "wants Docker: tests/test_container_files.py",
    ("docs/repair.md", "Fill gaps from a venue's history"): "wants a venue with a history: tests/test_backfill.py",
    ("docs/repair.md", "Import files"): "wants files of yours: tests/test_import_files.py",
    ("docs/repair.md", "Audit a day"): "wants a venue with a history: tests/test_backfill.py",
    ("docs/scale.md", "Read years on several machines"): "wants recordings of years: tests/test_examples.py",
    ("docs/scale.md", "Two recorders, one truth"): "wants two recorders: tests/test_merged_roots.py",
    ("docs/scale.md", "Divide symbols between machines"): "wants three machines: tests/scenarios/test_shards.py",
}
"""Sections that nobody walks, and where else what they show is run."""
ELSEWHERE = {
    r"^make test": "it runs this",
    r"-m venv \.venv|^\.venv/": "make demo has just done it: tests/test_docs.py",
    r"^ingestor run(?!.*--url)": "wants Finnhub",
    r"…": "wants a secret of yours",
    r"^ingestor check --online": "asks Finnhub",
    r"^ingestor plot(?!.*--png)": "opens a window: tests/test_plot.py",
    r"^ingestor serve .*--public-key": "wants keys of yours: tests/test_live_access.py",
    r"--symbols AAPL,MSFT,BINANCE:BTCUSDT": "a second venue on one port: tests/test_truth.py",
    r"^ingestor symbols": "asks these venues: tests/test_venue_presets.py",
    r"^ingestor stop": "wants the recorder before it: tests/test_daemon.py",
    r"^ingestor alerts": "wants receivers of yours: tests/test_alerts.py",
    r"--format nautilus": "wants nautilus_trader: tests/test_backtest.py",
    r"s3://": "wants a bucket: tests/scenarios/test_copies.py",
    r"^git pull": "wants a newer version",
    r"^sudo (?!/opt/finnhub-ingestor/bin/(ingestor|pip install --upgrade))": "tests/scenarios/test_service.py",
}
"""What is not run, and where else it is or why not."""
STAYS = {
    r"ingestor simulate": "listening on",
    r"ingestor run": "connection.opened",
    r"ingestor tail(?!.*--count)": "AAPL",
    r"ingestor top": "AAPL",
    r"ingestor (serve|dashboard)": "listening on",
}
"""What goes on until Ctrl-C, and what it says when it has come so far."""
LOOKED_AT = r"ingestor (tail|top)"
"""Of these, what is left as soon as it shows something."""


def shown(guide: str, section: str) -> list[str]:
    """Its commands, without what is said of them."""
    lines = (re.sub(r"(^|\s+)#.*", "", line) for line in shell_lines(SECTIONS[guide][section]))
    return [line for line in lines if line]


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


@dataclass
class Walk:
    """A reader with terminals, in the clone."""

    folder: Path
    environ: dict[str, str]
    changes: dict[str, str]
    """What a reader changes in a line: patterns, and what comes in their place."""
    terminals: "dict[str, subprocess.Popen[bytes]]" = field(default_factory=dict)
    """What runs, by its line."""

    def through(self, guide: str, *sections: str) -> None:
        """Type what these sections show; all that are walked where none is named."""
        for section in sections or [one for one in SECTIONS[guide] if (guide, one) not in NOT_WALKED]:
            for line in shown(guide, section):
                if not any(re.search(pattern, line) for pattern in ELSEWHERE):
                    self.type(line)

    def notebook(self, guide: str) -> None:
        """Its blocks of Python, as one program; without what no extra brings."""
        ours = [self.change(block) for block in blocks(read(guide), "python") if not re.search(r"polars|duckdb", block)]
        (self.folder / "notebook.py").write_text("\n".join([*ours, "assert len(trades) > 10"]))
        wait_for(lambda: [*self.folder.glob("data/trades/date=*/*.parquet")] or None, "the first file")
        self.type("python notebook.py")

    def type(self, line: str) -> str:
        """One line; what it printed so far."""
        line = self.change(line)
        ready = next((text for pattern, text in STAYS.items() if re.search(pattern, line)), None)
        if ready is None:
            return self._run(line)
        said = self._start(line, ready)
        if re.search(LOOKED_AT, line):
            self.leave(line)
        return said

    def change(self, text: str) -> str:
        for pattern, other in self.changes.items():
            text = re.sub(pattern, other, text)
        return text

    def leave(self, line: str) -> None:
        """Ctrl-C there."""
        process = self.terminals[line]
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(30) in {0, 130}, (line, self._log(line).read_text())
        del self.terminals[line]  # only now: what doesn't end is killed with the walk

    def leave_all(self) -> None:
        for line in [*self.terminals][::-1]:
            self.leave(line)

    def _run(self, line: str) -> str:
        """What it changes in the shell (`. activate`) holds for the next ones."""
        after = self.folder / ".environ"
        done = subprocess.run(
            ["bash", "-c", f"{line}\ncode=$?; env -0 > {shlex.quote(str(after))}; exit $code"], cwd=self.folder,
            env=self.environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            check=False, timeout=240,
        )  # fmt: skip
        assert done.returncode == 0, f"{line}: {done.returncode}\n{done.stdout}"
        self.environ = dict(entry.split("=", 1) for entry in after.read_text().split("\0") if entry)
        return done.stdout

    def _start(self, line: str, ready: str) -> str:
        log = self._log(line)
        with log.open("wb") as out:
            process = subprocess.Popen(
                ["bash", "-c", line], cwd=self.folder, env=self.environ, stdin=subprocess.DEVNULL, stdout=out,
                stderr=out, start_new_session=True,
            )  # fmt: skip
        self.terminals[line] = process
        wait_for(lambda: re.search(ready, log.read_text()), f"{ready} of {line} (see {log})", process)
        return log.read_text()

    def _log(self, line: str) -> Path:
        return self.folder.parent / f"{re.sub(r'[^a-z]+', '-', line.lower()).strip('-')}.log"


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walk]:
    clone = copy_checkout(tmp_path_factory.mktemp("readme") / "clone")
    venue, prices, charts = free_port(), free_port(), free_port()
    today = datetime.now(ZoneInfo("America/New_York")).date()
    changes = {
        r"2026-11-20": today.isoformat(),
        r"2026-11-21": (today + timedelta(days=1)).isoformat(),
        r"^(ingestor simulate)": rf"\1 --port {venue}",
        r"^(ingestor serve)": rf"\1 --port {prices}",
        r"^(ingestor dashboard)": rf"\1 --port {charts}",
        r"127\.0\.0\.1:8765": f"127.0.0.1:{venue}",
        r"127\.0\.0\.1:8766": f"127.0.0.1:{prices}",
        r"^curl ": "curl --fail ",
        r"--for 20s": "--for 2s",
        r"^sudo /opt/finnhub-ingestor/bin/ingestor install": "ingestor install --dry-run",
        r"^sudo /opt/finnhub-ingestor/bin/pip install --upgrade": "pip install --upgrade",
    }
    walk = Walk(clone, fresh_environ(), changes)
    try:
        yield walk
    finally:
        for process in walk.terminals.values():
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        shutil.rmtree(clone / ".venv", ignore_errors=True)  # half a GB, which pytest would keep three times


def fresh_environ() -> dict[str, str]:
    """A new user's: not that of these tests, nor of the make that may have started them."""
    ours = ("PYTHON", "MAKE", "MFLAGS", "VIRTUAL_ENV", "FINNHUB", "COV_")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    places = [place for place in inherited["PATH"].split(":") if place != str(Path(sys.prefix) / "bin")]
    return inherited | {
        "PATH": ":".join(places),
        "PIP_NO_COMPILE": "1",  # what is imported is compiled then
        "FOR": "2s",  # make demo
        "EDITOR": "sed -i s/=$/=demo/",  # puts a key in
    }


# In the order of a reader; each stands where the one before has left them.


@walks
def test_demo(walk: Walk) -> None:
    walk.through("README.md", "Two commands")
    assert [*walk.folder.glob("demo-*/data/trades/date=*/*.parquet")]


@walks
def test_first_recording(walk: Walk) -> None:
    walk.through("README.md", "Your first recording")
    assert (walk.folder / "config/.env").read_text().endswith("FINNHUB_API_KEY=demo\n")
    assert any("ingestor run" in line for line in walk.terminals)


@walks
def test_first_dataframe(walk: Walk) -> None:
    walk.notebook("README.md")


@walks
def test_configure(walk: Walk) -> None:
    walk.leave_all()
    walk.through("docs/configure.md")


@walks
def test_record(walk: Walk) -> None:
    """As one who has come to the docs without README."""
    (walk.folder / "config/.env").unlink()
    walk.through("docs/record.md")
    assert [*walk.folder.glob("dist/*.whl")]
    assert (walk.folder / "config/.env").read_text().endswith("FINNHUB_API_KEY=demo\n")
    assert any("ingestor run" in line for line in walk.terminals)


@walks
def test_read(walk: Walk) -> None:
    walk.through("docs/read.md")
    assert (walk.folder / "aapl.csv").read_text().count("AAPL") > 10


@walks
def test_read_in_python(walk: Walk) -> None:
    walk.notebook("docs/read.md")


@walks
def test_watch(walk: Walk) -> None:
    walk.through("docs/watch.md")
    assert any("ingestor serve" in line for line in walk.terminals)
    assert (walk.folder / "aapl.png").stat().st_size > 10_000


@walks
def test_operate_and_upgrade(walk: Walk) -> None:
    walk.leave_all()
    walk.through("docs/operate.md")
    walk.type("ingestor verify")


@walks
def test_what_is_installed_is_taken_off(walk: Walk) -> None:
    """The lines of "Uninstall" name everything that the installation writes; done for real in test_service.py."""
    planned = re.findall(r"^write (\S+)", walk.type("ingestor install --dry-run"), re.MULTILINE)
    lines = [line for line in shown("docs/operate.md", "Uninstall") if " rm -rf " in line]
    removed = re.findall(r"\s(/\S+)", "\n".join(lines))
    assert planned
    assert [path for path in planned if not path.startswith(tuple(removed))] == []


@pytest.mark.parametrize("pattern", ELSEWHERE)
def test_what_is_not_walked_is_shown(pattern: str) -> None:
    lines = [line for guide in GUIDES for section in SECTIONS[guide] for line in shown(guide, section)]
    assert any(re.search(pattern, line) for line in lines)


@pytest.mark.parametrize("guide", GUIDES)
def test_every_section_is_walked_or_says_why_not(guide: str) -> None:
    walked = set(re.findall(r'walk\.through\("([^"]+)"', Path(__file__).read_text(encoding="utf-8")))
    sections = [section for section in SECTIONS[guide] if shown(guide, section) and (guide, section) not in NOT_WALKED]
    assert not sections or guide in walked
