"""Carries the journal to some sinks, in one thread, each at its own place; and frees the segments that all have
passed.
"""

import os
import threading
import time
from collections.abc import Iterable, Sequence

import structlog

from ingestor.errors import DamagedFile, Lagged, SinkUnavailable
from ingestor.journal.follower import Damage, Event, Follower, Rows
from ingestor.journal.records import Cursor
from ingestor.journal.scan import blames_file, open_file
from ingestor.layout import Layout, list_segments
from ingestor.sinks import Sink
from ingestor.sinks.retention_slots import RetentionSlots

_POLL_S = 1.0  # what is synced grows once in `journal.sync_interval`
_RETRY_S = 1.0

log = structlog.get_logger()


class Runner:
    """Some sinks that share one reading of the journal. `run` is a thread's work."""

    def __init__(
        self, layout: Layout, sinks: Sequence[Sink], stop: threading.Event, slots: RetentionSlots | None = None
    ) -> None:
        """`stop`: nothing more will be journaled; run to the journal's end, then return. `slots`: what others need."""
        self._layout = layout
        self._sinks = sinks
        self._stop = stop
        self._slots = slots
        self._places = {sink.name: sink.committed() for sink in sinks}
        self._follower = Follower(layout, _first_place(layout, self._places.values()), synced_only=True)
        self._failing: set[str] = set()
        self._freed_before: int | None = None
        """All segments below this number are deleted, unless somebody else keeps a slot."""
        self.hurried = threading.Event()
        """Set: give up what is left; the next start does it."""
        self.turned_at_s = time.monotonic()
        """When the loop last came round."""

    def run(self) -> None:
        """Until `stop` and the end of the journal, or `hurried`."""
        while not self.hurried.is_set():
            stopping = self._stop.is_set()  # looked at before reading: what is read after it is all there will be
            at_end = self._deliver_all()
            self.turned_at_s = time.monotonic()
            for sink in self._sinks:
                self._attempt(sink, self.turned_at_s)
            self._free()
            if stopping and at_end:
                for sink in self._sinks:
                    self._attempt(sink, None)  # None: close
                self._free()
                return
            if at_end:
                self._stop.wait(_POLL_S)
            else:
                self.hurried.wait(_RETRY_S)

    def _deliver_all(self) -> bool:
        """Hand out all that is synced; whether the journal's end was reached. What can't be read waits."""
        events = self._follower.read()
        while not self.hurried.is_set():
            try:
                event = next(events, None)
            except (OSError, DamagedFile) as error:
                return self._works("journal", error)
            except Lagged as error:  # somebody deleted a segment
                log.error("journal.lost", error=str(error), hint="the rows of the segments that are gone are lost")
                self._follower.close()
                oldest = _first_place(self._layout, [self._follower.cursor])
                self._follower = Follower(self._layout, oldest, synced_only=True)
                return False
            if event is None:
                return self._works("journal", None)
            self._deliver(event)
        return False

    def _free(self) -> None:
        number = min(sink.committed() for sink in self._sinks).segment
        if self._slots is None and number == self._freed_before:
            return
        try:
            free_segments(self._layout, self._sinks, self._slots)
        except (OSError, DamagedFile) as error:
            self._works("freeing", error)
        else:
            self._works("freeing", None)
            self._freed_before = number

    def _deliver(self, event: Event) -> None:
        """Hand one event to each sink that has not had it, waiting for those that are unavailable."""
        self.turned_at_s = time.monotonic()
        for sink in self._sinks:
            if self._places[sink.name] >= event.at:
                continue
            while not self._attempt(sink, event):
                self.turned_at_s = time.monotonic()
                if self.hurried.wait(_RETRY_S):
                    return
            self._places[sink.name] = event.at

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
            return self._works(sink.name, error)
        return self._works(sink.name, None)

    def _works(self, name: str, error: Exception | None) -> bool:
        """Whether it does; a failure and its end are logged once."""
        if error is not None and name not in self._failing:
            self._failing.add(name)
            log.error("sink.failed", sink=name, error=str(error))
        elif error is None and name in self._failing:
            self._failing.discard(name)
            log.info("sink.recovered", sink=name)
        return error is None


def _first_place(layout: Layout, places: Iterable[Cursor]) -> Cursor:
    """Where the first of the sinks stands; a segment that is gone was freed while that sink was not asked for."""
    oldest = next((Cursor(file.id.number, 0) for file in list_segments(layout)), Cursor(0, 0))
    return max(min(places), oldest)


def free_segments(layout: Layout, sinks: Sequence[Sink], slots: RetentionSlots | None) -> None:
    """Delete the segments that every sink has passed, and for which nobody else keeps a slot. Raises OSError."""
    place = min(sink.committed() for sink in sinks)
    passed = [file for file in list_segments(layout) if file.id.number < place.segment]
    for file in passed if slots is None else slots.settle(passed):
        try:
            os.close(open_file(file.path))
        except OSError as error:
            if not blames_file(error):
                raise
            continue  # no file: its account has told of it, and it is kept for a person to look at
        file.path.unlink()
        log.debug("segment.freed", segment=str(file.id))
