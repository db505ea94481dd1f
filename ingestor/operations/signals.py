"""Signals as requests to a running recorder: stop, stop at once, reload."""

import signal
import threading
from dataclasses import dataclass, field
from queue import SimpleQueue
from types import FrameType


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
