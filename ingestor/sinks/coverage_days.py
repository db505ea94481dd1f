"""The coverage of a recording, one UTC date after the other, for a database that keeps it beside the trades."""

import math
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta

import pyarrow as pa
import structlog

from ingestor.closed_days import oldest_and_newest_closed_days, read_closed_coverage
from ingestor.coverage import IRRELEVANT, clip, find_coverage
from ingestor.errors import IngestorError, NotARecording
from ingestor.layout import Layout
from ingestor.ledger import DAY_US, list_ledger_files, read_open_facts
from ingestor.schema import RECEIVED_AT

log = structlog.get_logger()

ROWS = pa.schema(
    [
        ("symbol", pa.string()), ("state", pa.string()), ("cause", pa.string()), ("start", RECEIVED_AT),
        ("end", RECEIVED_AT), ("proof", pa.string()), ("source", pa.string()),
    ]
)  # fmt: skip
"""As `read_coverage` has them."""
NEWEST = timedelta(29)
"""How far back a destination starts that can't say what it has: with the day before, and today, 31 dates."""

_EPOCH = date(1970, 1, 1)
_DAY = timedelta(1)


class CoverageDays:
    """What a table of coverage lacks. Facts reach back over a midnight, so the two newest dates are given again after
    each segment and at each start; older ones are final, unless a backfill changes them.
    """

    def __init__(self, layout: Layout, start: datetime | None, end: datetime | None) -> None:
        """`start` and `end`: the newest that the table has."""
        self._layout = layout
        self._next = _EPOCH if start is None else start.astimezone(UTC).date() - _DAY
        self._begun = False
        """Whether the next date is one of the recording."""
        self._until_us = 0 if end is None else (end - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) - 1
        """What was said up to here holds: the database had the trades."""
        self._looked = False
        """Whether all dates up to today were given."""
        self._news = False
        """Whether a segment has ended since the round of dates began, which may have passed what is new."""

    def segment_ended(self) -> None:
        """There is news, as of every segment."""
        self._news = True

    def due(self, received_us: int, now_s: float) -> Iterator[tuple[date, pa.Table]]:
        """What is to be said at this tick: a date and its rows, which replace those of the table; at the last one,
        before a stop (`now_s` is infinite), the newest date, too. Nothing where the table is as the ledger is.

        `received_us`: the receipt of the newest trade that the database has. A date that can't be read is logged and
        passed over.
        """
        while (found := self._take(received_us)) is not None:
            yield found
            if now_s < math.inf or self._next < datetime.now(UTC).date():
                return  # one per tick: trades come first

    def _take(self, received_us: int) -> tuple[date, pa.Table] | None:
        today = datetime.now(UTC).date()
        if self._begun and self._next > today:
            self._next, self._looked = today - _DAY, True
        if self._looked:
            if not self._news:
                return None
            self._looked = self._news = False
        try:
            if not self._begun:
                closed, _ = oldest_and_newest_closed_days(self._layout, 1)
                opened = [date.fromisoformat(file.day) for file in list_ledger_files(self._layout) if file.day]
                began = min([today, *closed, *opened])  # before it there is nothing to say
                self._next, self._begun = min(max(began, self._next), today), True
            day = self._next
            rows = self._read(day, received_us)
            self._next = day + _DAY
        except (NotARecording, FileNotFoundError):  # nobody has begun it yet, or a day is closed at this moment
            self._looked = True
            return None
        except (IngestorError, OSError) as error:
            log.warning("coverage.unreadable", error=str(error))
            if self._begun:
                self._next += _DAY
            return None
        return day, rows

    def _read(self, day: date, received_us: int) -> pa.Table:
        closed = read_closed_coverage(self._layout, None, day, day)
        coverage = find_coverage(
            read_open_facts(self._layout, IRRELEVANT), None, max(received_us, self._until_us), closed
        )
        start_us = (day - _EPOCH).days * DAY_US
        rows = [
            one for symbol in coverage.symbols for one in clip(coverage.intervals(symbol), start_us, start_us + DAY_US)
        ]
        columns = [list(column) for column in zip(*rows, strict=True)] or [[] for _ in ROWS]
        return pa.table(dict(zip(ROWS.names, columns, strict=True)), ROWS)
