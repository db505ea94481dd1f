"""A Linux system of its own, booted with a real systemd: an overlay of this one that is gone when it ends.

Nothing is installed from anywhere: the recorder's virtual environment there is made from this checkout, and from the
packages that these tests run with. It has no network but its own loopback.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from harness import wait_for
from requirements import SYSTEM_PYTHON, require

import ingestor

PREFIX = Path("/opt/finnhub-ingestor")
DEPENDENCIES = "/opt/dependencies"
_REPOSITORY = Path(ingestor.__file__).parents[1]
_ENTER = ("-m", "-u", "-i", "-n", "-p", "-C", "-r", "-w")
_TEMPLATES = {"config/ingestor.yaml": "ingestor.yaml", "config/.env.example": "env.example", "systemd": "systemd"}
"""What the wheel puts beside the commands."""


@dataclass(frozen=True)
class Machine:
    """One that runs."""

    root: Path
    """Its file system, as seen from here."""
    init: int
    """The pid of its systemd, here."""

    def run(self, *command: str, check: bool = True, **environ: str) -> str:
        """What a command prints there, as root; both streams. Fails the test where it fails, unless `check` is off."""
        done = self.call(*command, **environ)
        if check:
            assert done.returncode == 0, f"{command}: {done.returncode}: {done.stdout}\n{self.journal()}"
        return done.stdout

    def call(self, *command: str, **environ: str) -> "subprocess.CompletedProcess[str]":
        """The same, however it ends."""
        return subprocess.run(
            self._enter(command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True,
            check=False, timeout=60, env=_environ(environ),
        )  # fmt: skip

    def start(self, *command: str) -> "subprocess.Popen[str]":
        """A command there that goes on; its end is the caller's affair."""
        return subprocess.Popen(self._enter(command), stdout=subprocess.PIPE, text=True, env=_environ({}))

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.run("systemctl", "show", "--value", "-p", name, unit).strip()

    def journal(self, unit: str | None = None) -> str:
        of_unit = ("-u", unit) if unit else ()
        return self.call("journalctl", "--no-pager", "-o", "cat", *of_unit).stdout

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        place = self.root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
        place.chmod(mode)

    def _enter(self, command: tuple[str, ...]) -> list[str]:
        return [require("nsenter"), "-t", str(self.init), *_ENTER, "--", *command]


def _environ(more: dict[str, str]) -> dict[str, str]:
    return {"PATH": f"{PREFIX}/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", **more}


@contextmanager
def booted_machine(folder: Path) -> Iterator[Machine]:
    """One for the time of the block; leaves nothing behind, whatever happens. Needs "machine"."""
    with ExitStack() as stack:
        stack.callback(os.umask, os.umask(0o022))  # its services are to read its files
        root = stack.enter_context(_overlay(folder))
        _prepare(root)
        _install_package(root)
        nspawn = stack.enter_context(_spawned(root))
        machine = Machine(root, wait_for(lambda: _find_init(nspawn.pid), "its init", nspawn))
        wait_for(
            lambda: machine.call("systemctl", "is-active", "multi-user.target").returncode == 0,
            f"boot (see {folder}/console.log)",
            nspawn,
        )
        yield machine


@contextmanager
def _overlay(folder: Path) -> Iterator[Path]:
    """The files of this system, with a layer in memory over them that takes all changes."""
    memory, root = folder / "memory", folder / "root"
    memory.mkdir()
    root.mkdir()
    with ExitStack() as stack:
        _mount(stack, memory, "-t", "tmpfs", "-o", "size=1g,mode=755", "tmpfs")
        for name in ("upper", "work"):
            (memory / name).mkdir()
        layers = f"lowerdir=/,upperdir={memory}/upper,workdir={memory}/work"
        _mount(stack, root, "-t", "overlay", "-o", layers, "overlay")
        yield root


def _mount(stack: ExitStack, place: Path, *arguments: str) -> None:
    subprocess.run(["mount", *arguments, str(place)], check=True)
    stack.callback(subprocess.run, ["umount", "-l", str(place)], check=True)


def _prepare(root: Path) -> None:
    """A system that boots to what this test needs, and starts none of the services of the one below it."""
    etc = root / "etc"
    (etc / "machine-id").write_text("")
    for wants in (*(etc / "systemd/system").glob("*.wants"), *etc.glob("rc?.d")):
        shutil.rmtree(wants)
    default = etc / "systemd/system/default.target"
    default.unlink(missing_ok=True)
    default.symlink_to("/lib/systemd/system/multi-user.target")
    for updated in ("etc/.updated", "var/.updated"):  # else it makes caches anew, for as long as that takes
        (root / updated).write_text("")
    for place in ("opt/finnhub-ingestor", "etc/finnhub-ingestor", "var/lib/finnhub-ingestor"):
        if (root / place).exists():
            shutil.rmtree(root / place)
    (root / DEPENDENCIES.lstrip("/")).mkdir(parents=True, exist_ok=True)


def _install_package(root: Path) -> None:
    """As pip would, without a network: the package as its wheel has it, its dependencies from where they are now."""
    place = root / str(PREFIX).lstrip("/")
    subprocess.run([SYSTEM_PYTHON, "-m", "venv", "--without-pip", str(place)], check=True)
    packages = place / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    shutil.copytree(_REPOSITORY / "ingestor", packages / "ingestor", ignore=shutil.ignore_patterns("__pycache__"))
    for source, name in _TEMPLATES.items():
        copy = shutil.copytree if (_REPOSITORY / source).is_dir() else shutil.copy
        target = packages / "ingestor/cli/templates" / name
        target.parent.mkdir(exist_ok=True)
        copy(_REPOSITORY / source, target)
    (packages / "dependencies.pth").write_text(f"{DEPENDENCIES}\n")
    command = place / "bin/ingestor"
    command.write_text(f"#!{PREFIX}/bin/python3\nfrom ingestor.cli.main import main\n\nmain()\n")
    command.chmod(0o755)
    for path in place.rglob("*"):  # whatever the umask here: others can read it
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.parent.name == "bin" else 0o644)


@contextmanager
def _spawned(root: Path) -> "Iterator[subprocess.Popen[bytes]]":
    """The container, in a control group of its own."""
    command = [
        *("systemd-nspawn", "-q", "--register=no", "--keep-unit", "--private-network", "--capability=all"),
        *("--system-call-filter=bpf", "-M", f"ingestor-{os.getpid()}", "-D", str(root), "--console=pipe"),
        *(f"--bind-ro={sysconfig.get_path('purelib')}:{DEPENDENCIES}", "--boot"),
    ]
    with _control_groups(f"ingestor-{os.getpid()}") as groups, (root.parent / "console.log").open("wb") as console:
        nspawn = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=console, stderr=console,
            preexec_fn=lambda: _join(groups),  # noqa: PLW1509  it writes its own pid to files, and takes no lock
        )  # fmt: skip
        try:
            yield nspawn
        finally:
            _end(nspawn)
            with contextlib.suppress(FileNotFoundError):  # nspawn leaves it where /run is on a disk
                Path(f"/run/systemd/nspawn/propagate/ingestor-{os.getpid()}").rmdir()


def _find_init(nspawn: int) -> int | None:
    """The child that has become the container's systemd."""
    for child in _children(nspawn):
        with contextlib.suppress(OSError):  # one that only prepared the way, and is gone
            if Path(f"/proc/{child}/comm").read_text() == "systemd\n":
                return child
    return None


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):  # it has ended
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _end(nspawn: "subprocess.Popen[bytes]") -> None:
    """The container's init first: with it goes everything that runs there."""
    for child in _children(nspawn.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    try:
        nspawn.wait(20)
    except subprocess.TimeoutExpired:
        nspawn.kill()
        nspawn.wait()


@contextmanager
def _control_groups(name: str) -> Iterator[list[Path]]:
    """A group in each hierarchy that systemd writes to; removed with all below it."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    tops = [Path(fields[1]) for fields in mounts if fields[2] == "cgroup2" or "name=systemd" in fields[3].split(",")]
    groups = [top / name for top in tops]
    try:
        for group in groups:
            group.mkdir()
        yield groups
    finally:
        for group in groups:
            for below in sorted([*group.rglob("*/"), group], reverse=True):
                if below.is_dir():
                    wait_for(partial(_removed, below), f"end of control group {below}")


def _removed(group: Path) -> bool:
    try:
        group.rmdir()
    except FileNotFoundError:
        return True
    except OSError:  # its last process is just ending
        return False
    return True


def _join(groups: list[Path]) -> None:
    for group in groups:
        (group / "cgroup.procs").write_text(str(os.getpid()))
