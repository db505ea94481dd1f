"""Reading needs no Linux: every reading function and command, in a process from which what other systems lack is taken
away. The workflow of .github/ runs this file on macOS and Windows, where nothing has to be taken; so it imports nothing
of the other tests.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FORMATS = Path(__file__).with_name("formats")
VERSIONS = [path.name for path in sorted(FORMATS.iterdir()) if path.name.isdigit()]
TAKE_AWAY = {
    "untouched": "",
    "macos": """
import ctypes, os, socket
for name in ("fdatasync", "posix_fallocate"):
    delattr(os, name)
for name in ("SOCK_CLOEXEC",):
    delattr(socket, name)
class Library:
    pass
ctypes.CDLL = lambda *args, **options: Library()  # without renameat2
import ingestor.system
ingestor.system.FD_PATHS = False
""",
    "windows": """
import sys
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
import ctypes, os, signal, socket
gone = ("pread", "pwrite", "preadv", "fdatasync", "posix_fallocate", "fchmod", "geteuid", "getuid", "SEEK_DATA",
        "SEEK_HOLE", "O_CLOEXEC", "O_NONBLOCK", "O_DIRECTORY")
import pathlib, tempfile, shutil, pyarrow, pyarrow.dataset, pandas  # they ask for their own system's when imported
for name in gone:
    delattr(os, name)
del socket.AF_UNIX, socket.SOCK_CLOEXEC, signal.SIGHUP
def refuse(*args, **options):
    raise TypeError("a library has a name")
ctypes.CDLL = refuse
import ingestor.system
ingestor.system.FD_PATHS = False
""",
}
"""What to run before `import ingestor`, by system."""
SYSTEMS = [pytest.param(name, marks=[] if name == "windows" else pytest.mark.long) for name in TAKE_AWAY]
READ = """
import json, sys
import ingestor
root, out = sys.argv[1:]
trades = ingestor.read_trades(root, engine="arrow").sort_by("sequence").to_pylist()
found = {"trades": json.loads(json.dumps(trades, default=str))}
for name in ("read_trades", "read_coverage", "read_rejects", "describe"):
    found[name] = len(getattr(ingestor, name)(root))
found["read_bars"] = len(ingestor.read_bars(root, "1s"))
found["scan_trades"] = ingestor.scan_trades(root).read_all().num_rows
found["follow"] = next(ingestor.follow(root, from_="start")).num_rows
json.dump(found, open(out, "w"))
"""
COMMANDS = ("head", "describe", "bars 1s", "coverage", "verify", "export trades.csv", "export trades.parquet", "status")
RUN = "import sys; from ingestor.cli.main import main; main(sys.argv[1:])"


@pytest.fixture(params=VERSIONS)
def recorded(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of a recording: a journal that was not sealed, Parquet, CSV, rejects, a ledger."""
    shutil.copytree(FORMATS / request.param / "data", tmp_path / "data")
    shutil.copy(FORMATS / request.param / "trades.jsonl", tmp_path)
    return tmp_path


def run(system: str, program: str, *arguments: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """A program in a process of its own, on that system."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("INGESTOR", "FINNHUB"))}
    return subprocess.run(
        [sys.executable, "-c", f"{TAKE_AWAY[system]}\n{program}", *arguments], cwd=folder, check=False, text=True,
        env={**environ, "PYTHONPATH": str(Path(__file__).parents[1]), "PYTHONUTF8": "1"}, capture_output=True,
    )  # fmt: skip


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_function_reads(system: str, recorded: Path) -> None:
    done = run(system, READ, "data", "found.json", folder=recorded)
    assert done.returncode == 0, done.stderr
    found = json.loads((recorded / "found.json").read_text(encoding="utf-8"))
    trades = (recorded / "trades.jsonl").read_text(encoding="utf-8").splitlines()
    assert found["trades"] == [json.loads(line) for line in trades]
    assert found["read_trades"] == found["scan_trades"] == len(trades)
    assert min(found[name] for name in ("read_coverage", "read_rejects", "describe", "read_bars", "follow")) > 0


@pytest.mark.long
@pytest.mark.parametrize("system", ["macos", "windows"])
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_reads_does(system: str, command: str, recorded: Path) -> None:
    there = run("untouched", RUN, *command.split(), "--root", "data", folder=recorded)
    shutil.rmtree(recorded / "trades.csv", ignore_errors=True)
    for left in recorded.glob("trades.[cp]*"):
        left.unlink()
    done = run(system, RUN, *command.split(), "--root", "data", folder=recorded)
    assert (done.returncode, done.stdout) == (there.returncode, there.stdout), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_command_is_loaded(system: str, tmp_path: Path) -> None:
    program = "from ingestor.cli.main import COMMANDS, cli; import click; context = click.Context(cli)"
    done = run(system, f"{program}; print([cli.get_command(context, name).name for name in COMMANDS])", folder=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="what is taken away here is missing there")
@pytest.mark.parametrize("command", ["run --symbols AAPL", pytest.param("demo --for 1s", marks=pytest.mark.long)])
def test_the_recorder_says_where_it_can_run(command: str, tmp_path: Path) -> None:
    done = run("windows", RUN, *command.split(), folder=tmp_path)
    sentence = "recording needs Linux: on Windows, use WSL2 or the container; reading works here"
    assert (done.returncode, done.stderr.strip().removeprefix("ingestor: ").removeprefix("error: ")) == (2, sentence)
