"""The processes of a benchmark: the load server, a contender, and what a process used when it ended.

This process imports nothing of weight: a child's peak RSS begins with what its parent had when the child was started
(getrusage(2): ru_maxrss survives execve).
"""

import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import PIPE
from typing import IO, Any

from trade_load import SYMBOLS

HERE = Path(__file__).parent
_GIVE_UP_S = 900.0
"""The longest part, memory after ten minutes, takes a little over 600."""
_LOOK_S = 0.1


class BenchmarkFailed(Exception):
    """A run that proves nothing: a process failed, or what was written is not what was sent."""


class LeftOut(Exception):
    """A part that this machine can't measure, for what the message names; the others can be."""


@dataclass(frozen=True, slots=True)
class Used:
    """What a process that has ended used, by the kernel's account of it."""

    code: int
    ended_s: float
    """Since 1970."""
    cpu_s: float
    system_s: float
    """What of it the kernel took: for sockets, files and fresh memory."""
    peak_rss: int
    """Bytes."""


class Process:
    """A child process. Its stdout is read by the caller; its stderr goes to a file."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self._log = log
        self.started_s = time.time()
        with log.open("wb") as errors:
            process = subprocess.Popen(command, stdin=PIPE, stdout=PIPE, stderr=errors, text=True, env=environment())
        if process.stdin is None or process.stdout is None:
            raise BenchmarkFailed("a process without pipes")
        self._process, self._stdin, self._stdout = process, process.stdin, process.stdout
        self.pid = process.pid
        self._deadline = threading.Timer(_GIVE_UP_S, self.signal, [signal.SIGKILL])
        self._deadline.daemon = True
        self._deadline.start()
        self._used: Used | None = None

    @property
    def stdout(self) -> IO[str]:
        return self._stdout

    def end_input(self) -> None:
        """Close its stdin."""
        self._stdin.close()

    def has_ended(self) -> bool:
        """Whether it has; `wait` then returns at once."""
        if self._used is not None:
            return True
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def rss(self) -> int:
        """Bytes, until `wait`; 0 once it is ending: the kernel takes its memory before it says that it has ended."""
        status = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next((int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS:")), 0)

    def own_bytes(self) -> int:
        """What no other process shares and no file holds. Raises BenchmarkFailed where it is ending."""
        try:
            told = Path(f"/proc/{self.pid}/smaps_rollup").read_text()
        except ProcessLookupError:  # its memory is gone already
            raise BenchmarkFailed(f"it ended too early: {self.complaint()}") from None
        return int(told.split("Private_Dirty:")[1].split()[0]) * 1024

    def signal(self, number: int) -> None:
        if self._used is None:
            os.kill(self.pid, number)

    def wait(self, codes: Sequence[int] = (0,)) -> Used:
        """Until it ends. Raises BenchmarkFailed with the end of its stderr for any other exit code."""
        if self._used is None:
            _, status, usage = os.wait4(self.pid, 0)
            code = self._process.returncode = os.waitstatus_to_exitcode(status)
            self._used = Used(
                code, time.time(), usage.ru_utime + usage.ru_stime, usage.ru_stime, usage.ru_maxrss * 1024
            )
            self._deadline.cancel()
            self.stdout.close()
            self.end_input()
        if self._used.code not in codes:
            raise BenchmarkFailed(f"exit code {self._used.code}: {self.complaint()}")
        return self._used

    def answer(self) -> dict[str, Any]:
        """The JSON object that it prints before it ends. Raises BenchmarkFailed where it prints none."""
        text = self.stdout.read()
        if not text:
            self.wait()
            raise BenchmarkFailed(f"it printed nothing: {self.complaint()}")
        facts: dict[str, Any] = json.loads(text)
        return facts

    def complaint(self) -> str:
        """The end of its stderr."""
        return self._log.read_text(errors="replace")[-2000:]


@contextmanager
def running(command: Sequence[str], log: Path) -> Iterator[Process]:
    """A process that is gone afterwards, whatever happened."""
    process = Process(command, log)
    try:
        yield process
    except BaseException:
        process.signal(signal.SIGKILL)
        process.wait(range(-64, 256))
        raise
    process.wait()


def answer_of(command: Sequence[str], log: Path, python: str = sys.executable) -> dict[str, Any]:
    """The JSON object that a program prints; empty where it prints nothing."""
    with running([python, *command], log) as process:
        text = process.stdout.read()
    facts: dict[str, Any] = json.loads(text or "{}")
    return facts


@dataclass(frozen=True, slots=True)
class Tls:
    """A certificate for 127.0.0.1 and its key."""

    certificate: Path
    key: Path


def make_tls(folder: Path) -> Tls:
    """A new one, self-signed. Raises LeftOut where there is no openssl."""
    if shutil.which("openssl") is None:
        raise LeftOut("needs openssl")
    tls = Tls(folder / "certificate.pem", folder / "key.pem")
    command = [
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
        "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-out", str(tls.certificate),
        "-keyout", str(tls.key),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    return tls


def forget_libraries(folder: Path) -> None:
    """Have the system read these packages' libraries from the disk again, as after a boot.

    What was written just now, by an installation, it may hold in larger pieces than what it has read, and a process
    that touches one of them is charged for it whole: one that has imported pyarrow had 72 to 113 MB of RSS by that.
    """
    for path in folder.rglob("*.so*"):
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)  # what is still to be written stays
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


class Venue:
    """A load server (load_server.py) that listens."""

    def __init__(self, process: Process, tls: Tls | None) -> None:
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._read, args=(process.stdout,), daemon=True).start()
        self.tls = tls
        port = self.next("listening", process)["port"]
        self.url = f"{'wss' if tls else 'ws'}://127.0.0.1:{port:.0f}"

    def next(self, wanted: str, party: Process) -> dict[str, float]:
        """Wait for this event, which is the next one, and return its facts. Raises BenchmarkFailed where it can't come:
        the server has ended, or the party on which it depends.
        """
        line = ""
        while not line:
            try:
                line = self._lines.get(timeout=_LOOK_S)
            except queue.Empty:
                if party.has_ended():
                    raise BenchmarkFailed(f"a process ended: {party.complaint()}") from None
        facts: dict[str, Any] = json.loads(line)
        if facts.pop("event", None) != wanted:
            raise BenchmarkFailed(f"the load server ended before it was {wanted!r}: {line}")
        return facts

    def _read(self, output: IO[str]) -> None:
        for line in output:
            self._lines.put(line)
        self._lines.put("{}")


@contextmanager
def venue(load: Path, options: Sequence[str], tls: Tls | None, log: Path) -> Iterator[Venue]:
    """The load server with these options; its one client must be gone before this ends."""
    secured = ["--tls", str(tls.certificate), str(tls.key)] if tls else []
    with running([sys.executable, str(HERE / "load_server.py"), str(load), *options, *secured], log) as process:
        yield Venue(process, tls)


@dataclass(frozen=True, slots=True)
class Contender:
    """A program that records."""

    name: str
    formats: tuple[str, ...] = ()
    """What the recorder writes; empty for the scripts."""
    script: str = ""
    options: tuple[str, ...] = ()
    """Of the script."""
    written_as: str = "csv"
    python: str = sys.executable
    keeps_frames: bool = False
    """Of the recorder: with `storage.raw`."""
    rotate_size: str = "16MB"
    """Of the recorder's segments."""
    ends_by_itself: bool = True
    """Whether it ends when the venue closes the connection; else by SIGTERM, once it has read everything."""
    tickers: Sequence[str] = tuple(SYMBOLS)
    """Of the recorder."""
    sinks: Mapping[str, Any] = field(default_factory=dict)
    """The recorder's `sinks` section; what has not arrived there a second after the stop waits for the next start."""

    def command(self, at: Venue, folder: Path) -> list[str]:
        """How to start it, recording into this folder."""
        if self.formats:
            config = folder / "ingestor.yaml"
            config.write_text(json.dumps(self._settings(at, folder / "data")))
            return [self.python, "-m", "ingestor", "run", "--config", str(config)]
        ca_file = [str(at.tls.certificate)] if at.tls else []
        script = str(HERE / "contenders" / self.script)
        return [self.python, script, at.url, str(self.output(folder)), *self.options, *ca_file]

    def output(self, folder: Path) -> Path:
        """Where it writes its trades."""
        if self.formats:
            return folder / "data" / ("trades" if self.formats[0] == "parquet" else "csv")
        return folder / "trades.out"

    def _settings(self, at: Venue, root: Path) -> dict[str, Any]:
        """What a user would write, and ports of its own: nothing here is tuned for the benchmark."""
        return {
            "tickers": list(self.tickers),
            "feed": {"url": at.url},
            "storage": {
                "root": str(root),
                "formats": list(self.formats),
                "rotate": {"size": self.rotate_size},
                "raw": {} if self.keeps_frames else None,
            },
            "connection": {"ca_file": str(at.tls.certificate) if at.tls else None},
            "health": {"listen": "127.0.0.1:0"},
            "logging": {"format": "json"},
            **({"sinks": self.sinks, "stop_timeout": "1s"} if self.sinks else {}),
        }


def recorder(name: str, *formats: str, keeps_frames: bool = False) -> Contender:
    """The recorder, as `ingestor run` runs it."""
    return Contender(name, formats, written_as=formats[0], keeps_frames=keeps_frames, ends_by_itself=False)


def environment() -> dict[str, str]:
    """Ours, with the checkout's package in reach and keys that any venue and any store of ours accepts. What is
    imported stays compiled, as an installed package is: else a start compiles 79 modules each time.
    """
    keys = dict.fromkeys(("FINNHUB_API_KEY", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "test")
    ours = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return ours | {"PYTHONPATH": str(HERE.parent)} | keys
