"""What the tests promise of themselves: skipped before anything is started, nothing left running, two tiers."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent

NEEDY = """
import pathlib, pytest

@pytest.fixture
def server():
    pathlib.Path("started").touch()

@pytest.mark.needs("no-such-program")
def test_it(server):
    pass
"""
LEAVING = """
import pathlib, subprocess

def test_it():
    pid = subprocess.Popen(["sleep", "600"]).pid
    while not pathlib.Path(f"/proc/{pid}/cmdline").read_bytes():
        pass  # for an instant after its exec it has none
    pathlib.Path("pid").write_text(str(pid))
"""
LONG = """
import pytest

@pytest.mark.long
def test_long():
    pass

def test_quick():
    pass
"""


def outcome(folder: Path, program: str, *options: str, **environ: str) -> tuple[int, str]:
    """Exit code and output of a run of its own over this program."""
    (folder / "test_program.py").write_text(program)
    inherited = {name: value for name, value in os.environ.items() if name not in ("REQUIRE_ALL", "QUICK_TIER")}
    command = [
        *(sys.executable, "-m", "pytest", "-p", "conftest", "-c", str(HERE.parent / "pyproject.toml")),
        *("-W", "ignore", "--rootdir", str(folder), "test_program.py", *options),
    ]
    done = subprocess.run(
        command, cwd=folder, env={**inherited, "PYTHONPATH": str(HERE), **environ}, check=False, capture_output=True,
        text=True,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_what_is_missing_is_found_before_a_fixture_starts_anything(tmp_path: Path) -> None:
    code, said = outcome(tmp_path, NEEDY)
    assert (code, "needs no-such-program" in said, "1 skipped" in said) == (0, True, True), said
    assert not (tmp_path / "started").exists()


@pytest.mark.long
def test_where_everything_is_required_it_fails(tmp_path: Path) -> None:
    code, said = outcome(tmp_path, NEEDY, REQUIRE_ALL="1")
    assert (code, "needs no-such-program" in said) == (1, True), said
    assert not (tmp_path / "started").exists()


@pytest.mark.long
def test_a_process_that_is_left_ends_and_fails_the_run(tmp_path: Path) -> None:
    code, said = outcome(tmp_path, LEAVING)
    assert (code, bool(re.search("left behind: .*sleep 600", said))) == (1, True), said
    assert not Path("/proc", (tmp_path / "pid").read_text()).exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [((), "2 passed"), (("--quick",), "1 passed, 1 deselected")],
)
@pytest.mark.long
def test_the_quick_tier_leaves_out_what_is_long(tmp_path: Path, options: tuple[str, ...], said: str) -> None:
    assert said in outcome(tmp_path, LONG, *options)[1]
