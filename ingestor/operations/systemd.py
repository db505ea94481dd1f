"""What starts and stops a recorder: signals as requests (stop, stop at once, reload), and notices to the service
manager, sd_notify(3), a datagram of a few lines. Without a manager these do nothing.
"""

import os
import signal
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from queue import SimpleQueue
from types import FrameType

import structlog

from ingestor.operations.recorder_status import RecorderStatus

_STATUS_S = 5.0
_WAITING_S = 0.5
_EXTEND_S = 5.0
_EXTENSION_US = 60_000_000

log = structlog.get_logger()


class Notifier:
    """Sends to `$NOTIFY_SOCKET`. What the manager doesn't take is logged once, and ends nothing."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._refused = False
        usec = environ.get("WATCHDOG_USEC", "")
        for_us = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        watched = address and for_us and usec.isdigit() and int(usec)
        self.watchdog_s = int(usec) / 1e6 if watched else None
        """The manager ends a service that has not shown progress for so long; None: it doesn't watch."""

    def tell(self, **fields: str | int) -> None:
        """`tell(READY=1, STATUS="recording")`."""
        if not self._address:
            return
        text = "\n".join(f"{name}={value}" for name, value in fields.items())
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
                channel.sendto(text.encode(), socket.MSG_DONTWAIT, self._address)
        except OSError as error:
            if not self._refused:
                log.warning("systemd.refused", error=error.strerror)
            self._refused = True


class Service:
    """Tells systemd that a recording is ready once the venue has answered, and alive only while it makes progress."""

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier
        self._ready = False
        self._stopping = False
        self._due_s = float("-inf")
        self._fed_s = self._fed_turn_s = float("-inf")
        self._extended_s = self._extended_turn_s = float("-inf")

    def due(self, now_s: float) -> bool:
        """Whether it is time to `tell`: every five seconds, and twice per second while a start waits."""
        if now_s < self._due_s:
            return False
        self._due_s = now_s + (_STATUS_S if self._ready else _WAITING_S)
        return True

    def tell(self, status: RecorderStatus) -> None:
        """Send the status line; also READY, once the venue has answered to the first subscription."""
        if self._ready or not status.link.answered:
            self._notifier.tell(STATUS=summarize(status))
            return
        self._ready = True
        self._notifier.tell(READY=1, STATUS=summarize(status))

    def prove(self, turned_at_s: float, now_s: float) -> None:
        """The thread that matters now came round at `turned_at_s` (monotonic).

        Only a turn that was not shown before counts. It feeds the watchdog; and where a start waits for the venue, or a
        stop for the files, it buys more time.
        """
        watchdog_s = self._notifier.watchdog_s
        if watchdog_s is not None and now_s >= self._fed_s + watchdog_s / 4 and turned_at_s > self._fed_turn_s:
            self._fed_s, self._fed_turn_s = now_s, turned_at_s
            self._notifier.tell(WATCHDOG=1)
        waiting = self._stopping or not self._ready
        if waiting and now_s >= self._extended_s + _EXTEND_S and turned_at_s > self._extended_turn_s:
            self._extended_s, self._extended_turn_s = now_s, turned_at_s
            self._notifier.tell(EXTEND_TIMEOUT_USEC=_EXTENSION_US)

    def reloading(self) -> None:
        """New settings are being read."""
        self._notifier.tell(RELOADING=1, MONOTONIC_USEC=time.monotonic_ns() // 1000)

    def reloaded(self) -> None:
        """They were taken, or refused."""
        if self._ready:
            self._notifier.tell(READY=1)

    def stopping(self) -> None:
        """The recorder drains and seals; from now on each proof of progress extends the timeout."""
        self._stopping = True
        self._notifier.tell(STOPPING=1, STATUS="stopping: what was received is being sealed")


def summarize(status: RecorderStatus) -> str:
    """One line: `recording 57.1 trades/s; 48 of 50 symbols ticking; lag 12 ms`."""
    link, flow = status.link, status.flow
    if not link.connected and not link.open:
        return f"not connected to the venue ({link.connections} connections so far)"
    state = "waiting for the venue's first word," if link.connected and not link.answered else "recording"
    several = f"{link.open} of {link.redundant} connections open; " if link.redundant > 1 else ""
    return (
        f"{state} {flow.trades_per_s:,.1f} trades/s; {several}"
        f"{link.ticking} of {link.symbols} symbols ticking; "
        f"lag {flow.lag_s * 1000:.0f} ms"
    )


@dataclass(frozen=True, slots=True)
class Signals:
    """Requests, each set by whoever makes it."""

    stop: threading.Event = field(default_factory=threading.Event)
    hurry: threading.Event = field(default_factory=threading.Event)
    """Leave the sealing to the next start."""
    reload: threading.Event = field(default_factory=threading.Event)
    """Read the settings again."""


def catch_signals() -> Signals:
    """From now on SIGTERM and SIGINT stop, a second one hurries, and SIGHUP reloads. For the main thread."""
    signals = Signals()
    caught: SimpleQueue[int] = SimpleQueue()

    def take(number: int, _frame: FrameType | None) -> None:
        caught.put(number)  # an Event's lock may be held by what the signal interrupts; this one may be interrupted

    def tell() -> None:
        while True:
            if caught.get() == signal.SIGHUP:
                signals.reload.set()
            else:
                (signals.hurry if signals.stop.is_set() else signals.stop).set()

    threading.Thread(target=tell, name="signals", daemon=True).start()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, take)
    return signals
