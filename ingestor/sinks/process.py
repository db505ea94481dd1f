"""The process that carries the journal to other systems, as the recorder sees it: started, watched, ended in order.

It gets its settings, with their passwords, on its standard input, and never by arguments or environment. The pipe
stays open as long as the recorder lives: at its end, however that came, the process runs to the synced end of the
journal and ends. So none is left behind by a recorder that was killed.
"""

import contextlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import structlog
import tenacity
from pydantic import BaseModel, ConfigDict, Field

from ingestor.config.sections import LoggingSettings, SinkSettings

_WATCH_S = 0.2
_PAUSE_S = 0.5
_PAUSE_MAX_S = 60.0
_LASTING_S = 60.0
_MIRROR_END_S = 10.0
_NOT_ITS_BUSINESS = (
    "FINNHUB_API_KEY",
    "API_KEY",
    "POSTGRES_PASSWORD",
    "REDIS_PASSWORD",
    "KAFKA_PASSWORD",
    "ALPACA_API_KEY_ID",
    "ALPACA_API_SECRET_KEY",
)

log = structlog.get_logger()


def child_environment() -> dict[str, str]:
    """The environment of a process that is told its secrets: without any."""
    return {name: value for name, value in os.environ.items() if name not in _NOT_ITS_BUSINESS}


class SinkSetup(BaseModel):
    """What the process is told: one line of JSON."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)
    root: Path
    feed: str
    sinks: SinkSettings
    secrets: dict[str, str] = Field(repr=False)
    """Passwords by sink."""
    logging: LoggingSettings
    stop_timeout: float


class _Died(Exception):
    """The process ended by itself."""


class SinkProcess:
    """`run` is a thread's work: it keeps the process alive until `stop`."""

    def __init__(self, handover: SinkSetup) -> None:
        self.handover = handover
        self._backoff = tenacity.wait_exponential(_PAUSE_S, _PAUSE_MAX_S) + tenacity.wait_random(0, _PAUSE_S)
        self.stop = threading.Event()
        """Set: nothing more will be journaled."""
        self.hurried = threading.Event()
        """Set: what it has not carried yet is left to the next start."""
        self.starts = 0
        self.turned_at_s = time.monotonic()
        """When the loop last came round: a destination that hangs is the process's affair, not this thread's."""

    def run(self) -> None:
        """Until `stop`, and until the process has come to the end of the journal or `stop_timeout` is over."""
        while not self.stop.is_set():
            retrying = tenacity.Retrying(
                retry=tenacity.retry_if_exception_type(_Died),
                wait=self._backoff,
                sleep=self._sleep,
                stop=tenacity.stop_when_event_set(self.stop),
                retry_error_callback=lambda state: None,  # noqa: ARG005  `stop` came while it was dead
            )
            retrying(self._live_once)

    @property
    def has_mirror(self) -> bool:
        """Whether one of the destinations is a mirror, which has the ledger, too."""
        return self.handover.sinks.object_store is not None

    def mirror_end(self) -> None:
        """One more life, of the mirror alone: for when all has ended, and the ledger is closed."""
        sinks = SinkSettings(object_store=self.handover.sinks.object_store)
        patience_s = min(_MIRROR_END_S, self.handover.stop_timeout)
        ending = SinkProcess(self.handover.model_copy(update={"sinks": sinks, "stop_timeout": patience_s}))
        ending.stop.set()
        ending._live_once()

    def _sleep(self, seconds: float) -> None:
        """Until it is over, or `stop`."""
        end_s = time.monotonic() + seconds
        while (left_s := end_s - time.monotonic()) > 0 and not self.stop.wait(min(left_s, _WATCH_S)):
            self.turned_at_s = time.monotonic()

    def _live_once(self) -> None:
        """One life of the process. Returns where it ended as it was told to, or after a good while; raises _Died."""
        began_s = time.monotonic()
        process = self._start()
        try:
            while process.poll() is None and not self.stop.wait(_WATCH_S):
                self.turned_at_s = time.monotonic()
            if self.stop.is_set():
                self._end(process)
                return
        finally:
            process.kill()
            process.wait()
            self._close_pipe(process)
        log.error("sinks.died", code=process.returncode)
        if time.monotonic() - began_s < _LASTING_S:
            raise _Died

    def _start(self) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "ingestor.sinks"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, env=child_environment())  # noqa: S603  our own
        self.starts += 1
        if process.stdin is None:
            raise _Died
        with contextlib.suppress(BrokenPipeError):  # it has ended already: the next look finds that
            process.stdin.write(self.handover.model_dump_json().encode() + b"\n")
            process.stdin.flush()
        log.info("sinks.started", pid=process.pid)
        return process

    def _end(self, process: "subprocess.Popen[bytes]") -> None:
        """Let it come to the end of the journal."""
        self._close_pipe(process)
        deadline_s = time.monotonic() + self.handover.stop_timeout
        while process.poll() is None and time.monotonic() < deadline_s and not self.hurried.wait(_WATCH_S):
            pass
        if process.poll() is None:
            log.warning("sinks.hurried", left="the next start carries on where each stands")

    def _close_pipe(self, process: "subprocess.Popen[bytes]") -> None:
        if process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # what it was told had not reached it
                process.stdin.close()
