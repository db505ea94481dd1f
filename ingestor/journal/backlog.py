"""How much of the journal lies behind a place: read from the records' headers alone, so that it may be asked often."""

from dataclasses import dataclass

from ingestor.journal.cursor import Cursor, read_synced
from ingestor.journal.scan import blames_file, read_headers
from ingestor.layout import Layout, SegmentFile, list_segments


@dataclass(frozen=True, slots=True)
class Backlog:
    """What stands between two places of the journal."""

    rows: int = 0
    oldest_received_us: int = 0
    """When the oldest of these rows was received, in µs since 1970; 0 where there is none."""

    def __add__(self, later: "Backlog") -> "Backlog":
        return Backlog(self.rows + later.rows, self.oldest_received_us or later.oldest_received_us)


class Backlogs:
    """Measures one root's journal again and again. What whole segments hold is remembered: they don't change."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._whole: dict[int, Backlog] = {}

    def measure(self, start: Cursor, end: Cursor | None = None) -> Backlog:
        """The rows from `start` to `end` (None: as far as the journal is synced). Raises OSError."""
        end = end or read_synced(self._layout)
        files = list_segments(self._layout)
        backlog = Backlog()
        for file in files:
            if start.segment <= file.id.number <= end.segment:
                backlog += self._measure_segment(file, start, end)
        oldest = files[0].id.number if files else 0
        self._whole = {number: known for number, known in self._whole.items() if number >= oldest}
        return backlog

    def _measure_segment(self, file: SegmentFile, start: Cursor, end: Cursor) -> Backlog:
        number = file.id.number
        first = start.offset if number == start.segment else 0
        last = end.offset if number == end.segment else None
        if first or last is not None:
            return self._read(file, first, last)
        if number not in self._whole:
            self._whole[number] = self._read(file, first, last)
        return self._whole[number]

    def _read(self, file: SegmentFile, first: int, last: int | None) -> Backlog:
        backlog = Backlog()
        for path in (file.path, self._layout.sealed_segment(file.id)):
            try:
                for header in read_headers(path, first, last):
                    if header.counts.trades:
                        backlog += Backlog(header.counts.trades, header.first_received_us)
            except FileNotFoundError:  # sealed, and so renamed, or freed since it was listed
                continue
            except OSError as error:
                if not blames_file(error):
                    raise
                return backlog  # whoever carries the journal tells of it
            return backlog
        return backlog
