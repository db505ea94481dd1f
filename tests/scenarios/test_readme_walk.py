"""The first ten minutes: README's commands on a fresh clone, as they stand there and in their order.

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
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from checkout import copy_checkout
from documents import read, shell_lines, split_sections
from harness import wait_for

pytestmark = [pytest.mark.long, pytest.mark.needs("bash", "make", "curl", "git")]

SECTIONS = split_sections(read("README.md"))
ELSEWHERE = {
    r"^make test": "it runs this",
    r"-m venv \.venv|^\.venv/": "make demo has just done it: tests/test_docs.py",
    r"^ingestor run(?!.*--url)": "wants Finnhub",
    r"…": "wants a secret of yours",
    r"^ingestor check --online": "asks Finnhub",
    r"^ingestor plot(?!.*--png)": "opens a window: tests/test_plot.py",
    r"^ingestor serve .*--public-key": "wants keys of yours: tests/test_live_auth.py",
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


def shown(section: str) -> list[str]:
    """Its commands, without what is said of them."""
    lines = (re.sub(r"(^|\s+)#.*", "", line) for line in shell_lines(SECTIONS[section]))
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

    def through(self, section: str) -> None:
        """Type what this section shows."""
        for line in shown(section):
            if not any(re.search(pattern, line) for pattern in ELSEWHERE):
                self.type(line)

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
            check=False, timeout=120,
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
        r"^sudo /opt/finnhub-ingestor/bin/pip install --upgrade finnhub-ingestor": "pip install --upgrade .",
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


# In README's order; each stands where the one before has left the reader.


def test_demo(walk: Walk) -> None:
    walk.through("Two commands")
    assert [*walk.folder.glob("demo-*/data/trades/date=*/*.parquet")]


def test_record(walk: Walk) -> None:
    walk.through("Record")
    assert (walk.folder / "config/.env").read_text().endswith("FINNHUB_API_KEY=demo\n")
    assert any("ingestor run" in line for line in walk.terminals)


def test_read(walk: Walk) -> None:
    walk.through("Read")
    walk.through("From files to answers")
    assert (walk.folder / "aapl.csv").read_text().count("AAPL") > 10


def test_watch(walk: Walk) -> None:
    walk.through("Watch")


def test_read_in_python(walk: Walk) -> None:
    """Somewhat later than in README: bare files need the first of them."""
    text = SECTIONS["Read"] + SECTIONS["From files to answers"]
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    ours = [walk.change(block) for block in blocks if not re.search(r"polars|duckdb", block)]  # what no extra brings
    (walk.folder / "notebook.py").write_text("\n".join([*ours, "assert len(trades) > 10"]))
    wait_for(lambda: [*walk.folder.glob("data/trades/date=*/*.parquet")] or None, "the first file")
    walk.type("python notebook.py")


def test_watch_live(walk: Walk) -> None:
    walk.through("Watch it live")
    assert any("ingestor serve" in line for line in walk.terminals)


def test_charts(walk: Walk) -> None:
    walk.through("Charts")
    assert (walk.folder / "aapl.png").stat().st_size > 10_000


def test_operate_and_upgrade(walk: Walk) -> None:
    walk.leave_all()
    walk.through("Operate")
    walk.type("ingestor verify")


def test_what_is_installed_is_taken_off(walk: Walk) -> None:
    """README's last lines name everything that the installation writes; done for real in test_service.py."""
    planned = re.findall(r"^write (\S+)", walk.type("ingestor install --dry-run"), re.MULTILINE)
    removed = re.findall(r"\s(/\S+)", "\n".join(line for line in shown("Operate") if " rm -r " in line))
    assert planned
    assert [path for path in planned if not path.startswith(tuple(removed))] == []


@pytest.mark.parametrize("pattern", ELSEWHERE)
def test_what_is_not_walked_is_in_readme(pattern: str) -> None:
    assert any(re.search(pattern, line) for section in SECTIONS for line in shown(section))
