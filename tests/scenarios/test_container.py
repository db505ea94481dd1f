"""The image: built from the Dockerfile, and run with the recorder as process 1 of namespaces of its own, as a container
engine would by what the image says: its user, environment, command, volume, stop signal and health check.

No engine and no registry of images is needed. The base is made of Debian's packages under the name of the real one,
which shows everything but that the real one is alike.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from documents import REPOSITORY
from harness import wait_for

from ingestor.layout import Layout, list_segments

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(600),
    pytest.mark.needs("mounts", "buildah", "mmdebstrap", "unshare", "nsenter", "chroot", "ip"),
]

BASE = "docker.io/library/python:3.13-slim"
PACKAGES = "python3,python3-venv,ca-certificates"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
INIT = """
read -r _
ip link set lo up
mount --rbind /dev "$1/dev"
mount -t proc proc "$1/proc"
mount --bind "$2" "$1$3"
shift 3
exec "$@"
"""
"""What an engine does before it starts process 1; it waits for its line, so that there is a moment before the start."""


@dataclass(frozen=True)
class Image:
    """A built one, mounted."""

    root: Path
    config: dict[str, Any]
    """As Docker writes it."""

    def command(self, *arguments: str) -> list[str]:
        """Run this in its root, as its user, with its environment alone and in its folder."""
        environ = [*self.config["Env"], "FINNHUB_API_KEY=demo"]
        enter = ["chroot", f"--userspec={self.config['User']}", str(self.root)]
        return [*enter, "/usr/bin/env", "-i", "-C", self.config["WorkingDir"], *environ, *arguments]


@dataclass(frozen=True)
class Container:
    """One that runs, in namespaces of its own."""

    image: Image
    outside: "subprocess.Popen[str]"
    log: Path
    begun: "list[subprocess.Popen[str]]" = field(default_factory=list)
    """What runs beside process 1; it ends with it."""

    @property
    def process_1(self) -> int:
        """Its pid here. Fails the test where it has ended."""
        children = Path(f"/proc/{self.outside.pid}/task/{self.outside.pid}/children")
        return wait_for(lambda: int(children.read_text() or 0) or None, "process 1", self.outside)

    def start(self) -> None:
        assert self.outside.stdin is not None
        self.outside.stdin.write("\n")
        self.outside.stdin.flush()

    def begin(self, *command: str) -> "subprocess.Popen[str]":
        """As `docker exec --detach`."""
        enter = ["nsenter", "-t", str(self.process_1), "-m", "-p", "-n", "-i", "-u"]
        process = subprocess.Popen(
            [*enter, *self.image.command(*command)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        self.begun.append(process)
        return process

    def run(self, *command: str) -> tuple[int, str]:
        """As `docker exec`: exit code and output."""
        process = self.begin(*command)
        said, _ = process.communicate(timeout=60)
        return process.returncode, said

    def check_health(self) -> int:
        """The exit code of one health check."""
        kind, *test = self.image.config["Healthcheck"]["Test"]
        assert kind == "CMD"
        return self.run(*test)[0]

    def end(self, number: int) -> int:
        """Send process 1 this signal; its exit code."""
        os.kill(self.process_1, number)
        return self.outside.wait(90)


@contextlib.contextmanager
def container(image: Image, volume: Path, *arguments: str) -> Iterator[Container]:
    """One that has not started its command yet."""
    (inside,) = image.config["Volumes"]
    entry = image.command(*image.config["Entrypoint"], *arguments)
    log = volume.with_name("log")
    with log.open("a") as file:
        outside = subprocess.Popen(
            ["unshare", "--mount", "--pid", "--net", "--ipc", "--uts", "--fork", "--kill-child",
             "sh", "-ec", INIT, "init", str(image.root), str(volume), inside, *entry],
            stdin=subprocess.PIPE, stdout=file, stderr=file, text=True,
        )  # fmt: skip
    running = Container(image, outside, log)
    try:
        yield running
    finally:
        for process in (outside, *running.begun):
            process.kill()
            process.communicate()


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    """Nothing of it is left afterwards: it is built in a store of its own."""
    folder = tmp_path_factory.mktemp("image")
    store = ["buildah", "--root", str(folder / "store"), "--runroot", str(folder / "run")]

    def buildah(*arguments: str) -> str:
        done = subprocess.run(
            [*store, *arguments], cwd=REPOSITORY, env={**os.environ, "BUILDAH_ISOLATION": "chroot"}, check=False,
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        unmount = ["umount", "-l", str(folder / "store/overlay")]
        stack.callback(lambda: subprocess.run(unmount, check=False, capture_output=True))
        base = buildah("from", "scratch")
        bootstrap = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={PACKAGES}", f"--keyring={KEYRING}"]
        with (folder / "base.tar").open("wb") as archive:
            subprocess.run([*bootstrap, "trixie", "-"], check=True, stdout=archive)
        buildah("add", "--quiet", base, str(folder / "base.tar"), "/")
        buildah("commit", "--quiet", "--rm", base, BASE)
        certificates = "/etc/ssl/certs:/etc/ssl/certs:ro"  # of the machine, where its proxy has one of its own
        buildah("build", "--format", "docker", "--pull-never", "--volume", certificates, "--tag", "ingestor", ".")
        config = json.loads(buildah("inspect", "--type", "image", "ingestor"))["Docker"]["config"]
        working = buildah("from", "--pull-never", "ingestor")
        stack.callback(buildah, "rm", working)
        root = Path(buildah("mount", working))
        stack.callback(buildah, "umount", working)
        yield Image(root, config)


@pytest.fixture
def volume(image: Image, tmp_path: Path) -> Path:
    """A named volume: as an engine makes one, with the owner that the folder has in the image."""
    folder = tmp_path / "volume"
    folder.mkdir()
    (inside,) = image.config["Volumes"]
    owner = (image.root / inside.lstrip("/")).stat()
    os.chown(folder, owner.st_uid, owner.st_gid)
    return folder


def state(codes: list[int], retries: int) -> str:
    """What Docker makes of the exit codes of the health checks so far, the first of them in the start period."""
    if 0 not in codes:
        return "starting"
    return "unhealthy" if len(codes) > retries and all(codes[-retries:]) else "healthy"


def test_the_demo_runs_in_it(image: Image, volume: Path) -> None:
    with container(image, volume, "demo", "--for", "8s") as demo:
        demo.start()
        assert demo.outside.wait(60) == 0, demo.log.read_text()
    said = demo.log.read_text()
    assert "Conservation:" in said
    assert "Gap:" in said


def test_a_recording_its_health_a_crash_and_a_stop(image: Image, volume: Path) -> None:
    retries = image.config["Healthcheck"]["Retries"]
    venue = "ws://127.0.0.1:8765"
    arguments = [*image.config["Cmd"], "--symbols", "AAPL,MSFT", "--url", venue]

    with container(image, volume, *arguments) as first:
        codes = [first.check_health()]
        assert state(codes, retries) == "starting"
        first.start()
        first.begin("ingestor", "simulate")
        while codes[-1]:
            assert first.outside.poll() is None, first.log.read_text()
            codes.append(first.check_health())
        assert state(codes, retries) == "healthy"
        assert first.run("ingestor", "tail", "--count", "20")[0] == 0
        code, said = first.run("ingestor", "status")
        assert code == 0, said
        os.kill(first.process_1, signal.SIGSTOP)
        codes += [first.check_health() for _ in range(retries)]
        assert state(codes, retries) == "unhealthy"
        os.kill(first.process_1, signal.SIGCONT)
        codes.append(first.check_health())
        assert state(codes, retries) == "healthy"
        assert first.end(signal.SIGKILL) != 0

    layout = Layout(volume)
    assert [file for file in list_segments(layout) if not file.sealed], "a crash leaves what the next start seals"

    with container(image, volume, *arguments) as second:
        second.start()
        second.begin("ingestor", "simulate")
        assert second.run("ingestor", "tail", "--count", "20")[0] == 0
        assert second.run("ingestor", "coverage")[1].count("crash") > 0
        assert second.end(getattr(signal, image.config["StopSignal"])) == 0, second.log.read_text()

    assert [file for file in list_segments(layout) if not file.sealed] == []
    owners = {path.stat().st_uid for path in volume.rglob("*")}
    assert owners == {int(image.config["User"].split(":")[0])}
    with container(image, volume, "verify") as third:
        third.start()
        assert third.outside.wait(60) == 0, third.log.read_text()
    assert "Everything is there, once" in third.log.read_text()
