"""Alerts to people who have no Prometheus: what goes wrong with a recorder, sent by Apprise from a process of its own.

The recorder starts `python -m ingestor.operations.alerts`, tells it on its standard input what to do, and waits for it
in nothing. That process asks the recorder for its status, as anybody can, and has a thread per receiver: one that hangs
delays neither the recorder nor another receiver. Receivers' addresses hold secrets: only the pipe tells them, and no
log names them.
"""

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from queue import Queue
from zoneinfo import ZoneInfo

import structlog
from pydantic import BaseModel, ConfigDict, Field

from ingestor.config import Settings
from ingestor.config.key import load_secret
from ingestor.config.sections import AlertSettings, LoggingSettings
from ingestor.errors import ConfigError, FeedRefused
from ingestor.layout import Layout, read_holder
from ingestor.logs import configure_logs
from ingestor.operations.recorder_status import RecorderStatus, ask_status, find_problems, measure_growth
from ingestor.system import is_readable
from ingestor.texts import describe_blindness

VARIABLE = "ALERT_URLS"
"""Where the receivers are looked for, as a password is: Apprise's URLs, with blanks or line ends between."""
_NICE = 10
_NAMED = 5
_LOOK_MAX_S = 5.0
_GROWTH_S = 600.0
_RETRIES_S = (10.0, 60.0, 300.0, 900.0)
_LAST_WORD_S = 10.0
_REFUSED_S = 30.0
_OTHER_END_S = 1.0
_AGAIN_S = 60.0
_PIECE = 65_536

log = structlog.get_logger()


# What is wrong


@dataclass(frozen=True, slots=True)
class Condition:
    """Something that is wrong now."""

    text: str
    patience_s: float = 0.0
    """How long it may last before anybody is told."""
    age_s: float = 0.0
    """How long it has lasted at least."""


def find_conditions(status: RecorderStatus, days_left: float | None, settings: AlertSettings) -> dict[str, Condition]:
    """What is wrong, by kind: one incident may be open for each."""
    link, disk = status.link, status.disk
    found = {}
    if link.gap == "refused":
        found["key"] = Condition("the venue refuses the API key", 0.0, link.gap_s)
    elif link.gap is not None or not link.connected:
        found["blind"] = Condition(describe_blindness(link.gap or "connection"), settings.blind, link.gap_s)
    if link.blind_symbols:
        more = len(link.blind_symbols) - _NAMED
        named = ", ".join(link.blind_symbols[:_NAMED]) + (f" and {more} more" if more > 0 else "")
        found["symbols"] = Condition(f"{named}: blind, while others trade", settings.symbol)
    if disk.failing:
        found["disk"] = Condition("the disk refuses the journal")
    elif disk.free_bytes < disk.floor_bytes:
        found["disk"] = Condition(f"the disk is full up to storage.min_free: {disk.free_bytes >> 20} MB free")
    elif days_left is not None and days_left < settings.disk_days:
        found["disk"] = Condition(f"the disk lasts for {days_left:.1f} days")
    found |= {
        f"sink {sink.name}": Condition(f"{sink.name} is far behind: {sink.rows:,} rows")
        for sink in disk.sinks
        if sink.seconds > disk.sink_patience_s
    }
    if status.flow.rejects_flood:
        found["rejects"] = Condition("rejects are flooding: much of what comes can't be read")
    others = [text for text in find_problems(status) if text.startswith(("not writing", "not reading", "conservation"))]
    if others and "disk" not in found:
        found["recorder"] = Condition(others[0], settings.blind)
    return found


class Incidents:
    """One message when something has lasted too long, and one when all is well again. Pure: clocks are arguments."""

    def __init__(self, settings: AlertSettings) -> None:
        self._settings = settings
        self._since_s: dict[str, float] = {}
        self._seen_s: dict[str, float] = {}
        self._told: dict[str, str] = {}
        self._ended: list[str] = []
        self._held: list[str] = []

    def look(self, conditions: Mapping[str, Condition], now_s: float, at: datetime) -> str | None:
        """The message that is due, if any. `now_s` never steps; `at` is the wall clock."""
        news = []
        for kind, condition in conditions.items():
            self._since_s.setdefault(kind, now_s - condition.age_s)
            self._seen_s[kind] = now_s
            if kind not in self._told and now_s - self._since_s[kind] >= condition.patience_s:
                self._told[kind] = condition.text
                news.append(condition.text)
        for kind in [kind for kind in self._since_s if kind not in conditions]:
            if kind not in self._told:
                del self._since_s[kind]
            elif now_s - self._seen_s[kind] >= self._settings.settle:
                lasted_s = self._seen_s[kind] - self._since_s.pop(kind)
                lasted = f"{lasted_s:.0f} s" if lasted_s < 120 else f"{lasted_s / 60:.0f} min"
                self._ended.append(f"{self._told.pop(kind)} ({lasted})")
        if self._ended and not self._told:
            news.append(f"all well again: {'; '.join(self._ended)}")
            self._ended = []
        lines = [f"{at.astimezone(UTC):%H:%M} UTC: {text}" for text in news]
        if self._settings.quiet is not None:  # in these hours it is held
            begin, end = self._settings.quiet
            zone = UTC if self._settings.time_zone == "UTC" else ZoneInfo(self._settings.time_zone)
            local = at.astimezone(zone).time()
            if begin <= local < end if begin < end else local >= begin or local < end:
                self._held += lines
                return None
        lines, self._held = self._held + lines, []
        return "\n".join(lines) or None


# The process


class AlertSetup(BaseModel):
    """What the process is told: the first line of its standard input."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)
    root: Path
    alerts: AlertSettings
    urls: tuple[str, ...] = Field(repr=False)
    after_crash: bool
    logging: LoggingSettings


class Receiver(threading.Thread):
    """Sends messages to one receiver, each until it is taken, or has been refused several times."""

    def __init__(self, number: int, url: str) -> None:
        self.label = f"receiver {number} ({url.partition('://')[0]})"
        super().__init__(name=self.label, daemon=True)
        self._url = url
        self.messages: Queue[str] = Queue()

    def wait(self, timeout_s: float) -> None:
        """Until all is sent, or the time is over."""
        with self.messages.all_tasks_done:
            self.messages.all_tasks_done.wait_for(lambda: not self.messages.unfinished_tasks, timeout_s)

    def run(self) -> None:
        while True:
            message = self.messages.get()
            for pause_s in (*_RETRIES_S, None):
                if send(self._url, message):
                    log.info("alert.sent", receiver=self.label)
                    break
                log.warning("alert.unsent", receiver=self.label, again_s=pause_s)
                if pause_s is not None:
                    time.sleep(pause_s)
            self.messages.task_done()


def send(url: str, text: str) -> bool:
    """Whether Apprise has sent this text there."""
    from apprise import Apprise, NotifyFormat  # heavy, and an extra

    logging.getLogger("apprise").setLevel(logging.CRITICAL + 1)  # it would name the receiver, who may be a secret
    carrier = Apprise()
    return carrier.add(url) and bool(carrier.notify(text, title="finnhub-ingestor", body_format=NotifyFormat.TEXT))


def load_receivers(settings: AlertSettings | None, config_dir: Path) -> tuple[str, ...]:
    """The receivers' URLs; none where alerts are off. Raises ConfigError where none is named, or Apprise is missing."""
    if settings is None:
        return ()
    urls = tuple((load_secret(VARIABLE, config_dir) or "").split())
    if not urls:
        raise ConfigError(f"alerts have no receiver: set {VARIABLE}, or put it into the .env beside the config")
    if find_spec("apprise") is None:
        raise ConfigError("apprise is not installed: pip install 'finnhub-ingestor[alerts]'")
    return urls


class Watcher:
    """Looks at the recorder of a root, and tells the receivers what is new."""

    def __init__(self, setup: AlertSetup, receivers: Sequence[Receiver]) -> None:
        self._layout = Layout(setup.root)
        self._settings = setup.alerts
        self._receivers = receivers
        self._incidents = Incidents(setup.alerts)
        self._crashed = setup.after_crash
        self._growth: float | None = None
        self._measured_s = float("-inf")
        self._head = f"{setup.root} on {socket.gethostname()}"

    @property
    def interval_s(self) -> float:
        """The time between two looks: what lasts longer than it may is noticed soon."""
        return min(_LOOK_MAX_S, max(min(self._settings.blind, self._settings.settle) / 4, 0.1))

    def look(self, now_s: float) -> None:
        conditions = self._find(now_s)
        if self._crashed:
            self._crashed = False
            conditions["crash"] = Condition("the recorder started after a crash: see its log, and `ingestor coverage`")
        if message := self._incidents.look(conditions, now_s, datetime.now(UTC)):
            self.tell(message)

    def tell(self, message: str) -> None:
        """Send it to all receivers."""
        for receiver in self._receivers:
            receiver.messages.put(f"{self._head}\n{message}")

    def _find(self, now_s: float) -> dict[str, Condition]:
        try:
            holder = read_holder(self._layout)
            status = ask_status(holder.health) if holder and holder.health else None
        except (OSError, ValueError):
            status = None
        if status is None:
            return {"silent": Condition("the recorder does not answer", self._settings.blind)}
        if now_s - self._measured_s >= _GROWTH_S:
            self._measured_s, self._growth = now_s, measure_growth(self._layout, time.time())
        room = max(status.disk.free_bytes - status.disk.floor_bytes, 0)
        return find_conditions(status, room / self._growth if self._growth else None, self._settings)


def main(fd: int) -> None:
    """Watch until the pipe ends; the recorder's last word is passed on before that."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # they are for the recorder, which ends the pipe
        signal.signal(number, signal.SIG_IGN)
    os.nice(_NICE)
    pipe = _Pipe(fd)
    told = pipe.take(None)
    if not told:
        return
    setup = AlertSetup.model_validate(json.loads(told))
    configure_logs(setup.logging.level, setup.logging.format, setup.urls)
    receivers = [Receiver(number, url) for number, url in enumerate(setup.urls, 1)]
    for receiver in receivers:
        receiver.start()
    watcher = Watcher(setup, receivers)
    while (word := pipe.take(watcher.interval_s)) != b"":
        if word is None:
            watcher.look(time.monotonic())
        else:
            watcher.tell(f"the recorder stopped: {json.loads(word)['ended']}")
            deadline_s = time.monotonic() + _LAST_WORD_S
            for receiver in receivers:
                receiver.wait(max(deadline_s - time.monotonic(), 0.0))


class _Pipe:
    """Lines from a descriptor, waited for no longer than is said."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._held = b""

    def take(self, patience_s: float | None) -> bytes | None:
        """The next line; None if none has come in this time (None: wait for ever), empty at the end."""
        while b"\n" not in self._held:
            if not is_readable(self._fd, patience_s):
                return None
            piece = os.read(self._fd, _PIECE)
            if not piece:
                return b""
            self._held += piece
        line, _, self._held = self._held.partition(b"\n")
        return line


def make_alert_process(
    settings: Settings, layout: Layout, urls: Sequence[str], *, after_crash: bool
) -> "AlertProcess | None":
    """The process for what `alerts` asks for; not started yet."""
    if settings.alerts is None or not urls:
        return None
    return AlertProcess(
        AlertSetup(
            root=layout.root,
            alerts=settings.alerts,
            urls=tuple(urls),
            after_crash=after_crash,
            logging=settings.logging,
        )
    )


class AlertProcess:
    """That process, as the recorder sees it: started again where it ends, and waited for only at an end by error."""

    def __init__(self, setup: AlertSetup) -> None:
        self._setup = setup
        self._process: subprocess.Popen[bytes] | None = None
        self._next_s = float("-inf")

    def tick(self, now_s: float) -> None:
        """Start it where it doesn't run, once a minute at most."""
        if now_s < self._next_s or (self._process is not None and self._process.poll() is None):
            return
        if self._process is not None:
            log.error("alerts.died", code=self._process.returncode)
            self._setup = self._setup.model_copy(update={"after_crash": False})
        self._next_s = now_s + _AGAIN_S
        command = [sys.executable, "-m", "ingestor.operations.alerts"]
        environ = {
            name: value for name, value in os.environ.items() if not name.endswith(("_KEY", "_PASSWORD", VARIABLE))
        }
        try:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, env=environ)  # noqa: S603  our own
        except OSError as error:  # no memory, too many processes: nothing that may end a recording
            log.error("alerts.unstarted", error=error.strerror, again_s=_AGAIN_S)
            return
        self._say(self._setup.model_dump_json())

    def end(self, error: BaseException | None) -> None:
        """The recorder ends. An error is sent; it is waited for where the recorder won't be started again anyway."""
        if self._process is None and error is not None:
            self.tick(time.monotonic())
        if self._process is None or self._process.stdin is None:
            return
        if error is not None:
            self._say(json.dumps({"ended": str(error) or type(error).__name__}))
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        patience_s = _REFUSED_S if isinstance(error, FeedRefused) else _OTHER_END_S
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(patience_s)
        self._process.kill()
        self._process.wait()

    def _say(self, line: str) -> None:
        """A line: shorter than the pipe's buffer, so that it is never waited for."""
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # it has ended already: the next look finds that
                self._process.stdin.write(line.encode() + b"\n")
                self._process.stdin.flush()


if __name__ == "__main__":
    main(sys.stdin.fileno())
    sys.stderr.flush()
    os._exit(0)  # a thread that still waits for its receiver must not keep the process
