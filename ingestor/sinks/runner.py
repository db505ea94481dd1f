"""Carries the journal to some sinks, in one thread, each at its own place; and frees the segments that all have
passed.
"""

import threading
import time
from collections.abc import Sequence

import structlog

from ingestor.errors import SinkUnavailable
from ingestor.journal.cursor import Cursor
from ingestor.journal.follower import Damage, Event, Follower, Rows
from ingestor.layout import Layout, list_segments
from ingestor.sinks import Sink

_POLL_S = 0.05
_RETRY_S = 1.0

log = structlog.get_logger()


class Runner:
    """Some sinks that share one reading of the journal. `run` is a thread's work."""

    def __init__(self, layout: Layout, sinks: Sequence[Sink], stop: threading.Event) -> None:
        """`stop`: nothing more will be journaled; run to the journal's end, then return."""
        self._layout = layout
        self._sinks = sinks
        self._stop = stop
        self._places = {sink.name: sink.committed() for sink in sinks}
        self._follower = Follower(layout, min(self._places.values()), synced_only=True)
        self._unavailable: set[str] = set()
        self.hurried = threading.Event()
        """Set: give up what is left; the next start does it."""
        self.turned_at_s = time.monotonic()
        """When the loop last came round."""

    def run(self) -> None:
        """Until `stop` and the end of the journal, or `hurried`."""
        while not self.hurried.is_set():
            stopping = self._stop.is_set()  # looked at before reading: what is read after it is all there will be
            for event in self._follower.read():
                self._deliver(event)
                if self.hurried.is_set():
                    return
            self._tick()
            if stopping:
                break
            self._stop.wait(_POLL_S)
        for sink in self._sinks:
            self._attempt(sink, None)
        free_segments(self._layout, self._sinks)

    def _tick(self) -> None:
        self.turned_at_s = time.monotonic()
        for sink in self._sinks:
            self._attempt(sink, self.turned_at_s)
        free_segments(self._layout, self._sinks)

    def _deliver(self, event: Event) -> None:
        """Hand one event to each sink that has not had it, waiting for those that are unavailable."""
        at = Cursor(event.segment.number, event.offset) if isinstance(event, Damage) else event.at
        for sink in self._sinks:
            if self._places[sink.name] >= at:
                continue
            while not self._attempt(sink, event):
                self.turned_at_s = time.monotonic()
                if self.hurried.wait(_RETRY_S):
                    return
            self._places[sink.name] = at

    def _attempt(self, sink: Sink, work: Event | float | None) -> bool:
        """Let the sink take an event, tick at a moment, or (None) close; whether it could."""
        try:
            if isinstance(work, Rows):
                sink.write(work)
            elif isinstance(work, Damage):
                sink.set_aside(work)
            elif isinstance(work, float):
                sink.tick(work)
            elif work is None:
                sink.close()
            else:
                sink.end_segment(work)
        except SinkUnavailable as error:
            if sink.name not in self._unavailable:
                self._unavailable.add(sink.name)
                log.error("sink.failed", sink=sink.name, error=str(error))
            return False
        if sink.name in self._unavailable:
            self._unavailable.discard(sink.name)
            log.info("sink.recovered", sink=sink.name)
        return True


def free_segments(layout: Layout, sinks: Sequence[Sink]) -> None:
    """Delete the segments that every sink has passed."""
    passed = min(sink.committed() for sink in sinks)
    for file in list_segments(layout):
        if file.id.number < passed.segment:
            file.path.unlink()
            log.debug("segment.freed", segment=str(file.id))
