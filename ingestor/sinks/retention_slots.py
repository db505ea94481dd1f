"""Keeps what external sinks still need of the journal, and says when that is no longer kept for them."""

import shutil
import time
from collections import Counter
from collections.abc import Iterable, Sequence

import structlog

from ingestor.accounts import count_trades
from ingestor.journal.cursor import Cursor
from ingestor.journal.scan import Backlogs
from ingestor.layout import Layout, SegmentFile
from ingestor.ledger import Ledger, now_us, read_all_facts
from ingestor.sinks.cursors import read_losses, read_place

log = structlog.get_logger()

_LOOK_S = 1.0


class RetentionSlots:
    """Each sink claims the segments that it has not passed, within bounds. Beyond them the one that is furthest behind
    loses its claim on the oldest segment first: loudly, and in the ledger.
    """

    def __init__(self, layout: Layout, sinks: Sequence[str], max_bytes: int, min_free: int, ledger: Ledger) -> None:
        """`max_bytes` bounds what is kept for these sinks alone; less than `min_free` on the disk ends it too."""
        self._layout = layout
        self._sinks = sinks
        self._max_bytes = max_bytes
        self._min_free = min_free
        self._ledger = ledger
        self._look_due_s = 0.0
        self.skipped: Counter[str] = Counter()
        """Rows that a sink lost its claim on in this run."""

    def settle(self, passed: Sequence[SegmentFile]) -> list[SegmentFile]:
        """Of the segments that the sinks of this process have passed, oldest first: those to be freed now.

        Raises OSError.
        """
        if not self._sinks:
            return list(passed)
        now_s = time.monotonic()
        if now_s < self._look_due_s:
            return []
        self._look_due_s = now_s + _LOOK_S
        self._record_losses()
        return self._free(passed) if passed else []

    def _free(self, passed: Sequence[SegmentFile]) -> list[SegmentFile]:
        places = {sink: read_place(self._layout, sink) for sink in self._sinks}
        first_claimed = min(place.segment for place in places.values())
        freed = [file for file in passed if file.id.number < first_claimed]
        kept = passed[len(freed) :]
        sizes = [file.path.stat().st_size for file in kept]
        free = shutil.disk_usage(self._layout.root).free + sum(file.path.stat().st_size for file in freed)
        while kept and (sum(sizes) > self._max_bytes or free < self._min_free):
            oldest, *kept = kept
            free += sizes.pop(0)
            self._end_claims(oldest, places.items())
            freed.append(oldest)
        return freed

    def _end_claims(self, file: SegmentFile, places: Iterable[tuple[str, Cursor]]) -> None:
        """Tell whom this segment is taken from. Raises OSError."""
        number = file.id.number
        following = Cursor(number + 1, 0)
        for sink, place in places:
            if place < following:
                start = max(place, Cursor(number, 0))
                rows = Backlogs(self._layout).measure(start, following).rows
                reason = "too far behind: see journal.max_bytes and storage.min_free"
                self._record_skipped(sink, rows, start, following, reason)

    def _record_losses(self) -> None:
        """Tell what sinks found gone although no claim on it was ended: they had not been asked for, or were given back
        an older state. Raises OSError.
        """
        for sink in self._sinks:
            for loss in read_losses(self._layout, sink):
                rows = _rows_of_segments(self._layout, sink, range(loss.start.segment, loss.end.segment))
                if rows:
                    reason = "gone when it came for them: it was switched off, or set back to an older state"
                    self._record_skipped(sink, rows, loss.start, loss.end, reason)
                loss.note.unlink()

    def _record_skipped(self, sink: str, rows: int, start: Cursor, end: Cursor, reason: str) -> None:
        self.skipped[sink] += rows
        places = {"from": [start.segment, start.offset], "to": [end.segment, end.offset]}
        fact = {"at": now_us(), "fact": "sink.skipped", "sink": sink, "rows": rows, **places}
        self._ledger.record_all([fact])
        log.error(
            "sink.skipped", sink=sink, rows=rows, **places, reason=reason, hint="these rows are in the dataset only"
        )


def _rows_of_segments(layout: Layout, sink: str, numbers: range) -> int:
    """How many rows these segments held by the ledger, but for those that it has already told this sink has lost."""
    rows = count_trades(layout, numbers)
    for fact in read_all_facts(layout, '"fact":"symbol'):
        if fact["fact"] == "sink.skipped" and fact["sink"] == sink:
            for number in range(fact["from"][0], fact["to"][0]):
                rows.pop(number, None)
    return sum(rows.values())
