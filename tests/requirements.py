"""What a test needs of the machine: it skips with the reason where that is missing, and fails under REQUIRE_ALL=1."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def require(tool: str) -> str:
    """The path of this program; skips where there is none."""
    path = shutil.which(tool, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if path is None:
        refuse(f"needs {tool}")
    return str(path)


def refuse(reason: str) -> None:
    """Skip this test for a reason that lies in the machine; where everything is required, fail."""
    if os.environ.get("REQUIRE_ALL") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def require_root() -> None:
    if os.geteuid() != 0:
        refuse("needs root")


def require_tracing() -> str:
    """The path of strace, where this machine lets it trace."""
    strace = require("strace")
    if subprocess.run([strace, "-o", "/dev/null", "true"], check=False, capture_output=True).returncode:
        refuse("needs permission to trace (ptrace)")
    return strace


@contextmanager
def small_disk(place: Path, size: str) -> Iterator[Path]:
    """A file system of its own that holds no more than `size` ("1m"), mounted on `place`. Needs root."""
    require_root()
    place.mkdir(exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], check=False, capture_output=True, text=True
    )
    if done.returncode:
        refuse(f"needs to mount a tmpfs: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)
