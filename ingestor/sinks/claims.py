"""What the sinks of the other process still need of the journal, and when that is no longer kept for them."""

import shutil
import time
from collections import Counter
from collections.abc import Iterable, Sequence

import structlog

from ingestor.journal.backlog import Backlogs
from ingestor.journal.cursor import Cursor
from ingestor.layout import Layout, SegmentFile
from ingestor.ledger import Ledger, now_us
from ingestor.sinks.places import read_place

_LOOK_S = 1.0

log = structlog.get_logger()


class Claims:
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
        now_s = time.monotonic()
        if not passed or (self._sinks and now_s < self._look_due_s):
            return []
        self._look_due_s = now_s + _LOOK_S
        places = {sink: read_place(self._layout, sink) for sink in self._sinks}
        first_claimed = min((place.segment for place in places.values()), default=passed[-1].id.number + 1)
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
            if place >= following:
                continue
            start = max(place, Cursor(number, 0))
            rows = Backlogs(self._layout).measure(start, following).rows
            self.skipped[sink] += rows
            places_lost = {"from": [start.segment, start.offset], "to": [following.segment, following.offset]}
            fact = {"at": now_us(), "fact": "sink.skipped", "sink": sink, "rows": rows, **places_lost}
            self._ledger.record_all([fact])
            log.error(
                "sink.skipped",
                sink=sink,
                segment=str(file.id),
                rows=rows,
                hint="too far behind: these rows are in the dataset only; see journal.max_bytes and storage.min_free",
            )
