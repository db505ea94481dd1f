"""Sinks are followers of the journal: each keeps a cursor, and none can slow the recorder or make it lose a row.

A new destination is one file here, and one line where the daemon builds the sinks.
"""

from collections.abc import Mapping
from typing import Protocol

from ingestor.journal.follower import Damage, Rows, SegmentEnd
from ingestor.journal.records import Cursor


def advise(told: str, advice: Mapping[str, str]) -> str:
    """What a destination said, and what to do about it: the first of these that it has in its words, in any case."""
    lower = told.lower()
    hint = next((what for words, what in advice.items() if words.lower() in lower), None)
    return told if hint is None else f"{told}: {hint}"


class Sink(Protocol):
    """A destination. Any call may raise SinkUnavailable: the same call is then made again later, and must not do twice
    what the first attempt had already done.
    """

    name: str

    def write(self, rows: Rows) -> None:
        """Take these rows. They need not be durable before `committed` says so."""
        ...

    def set_aside(self, damage: Damage) -> None:
        """A dead segment holds bytes that are no record."""
        ...

    def end_segment(self, end: SegmentEnd) -> None:
        """A segment is complete: seal, flush, rotate."""
        ...

    def tick(self, now_s: float) -> None:
        """Idle work: flush, poll, commit. `now_s` is a monotonic clock."""
        ...

    def committed(self) -> Cursor:
        """Everything before this place is durable there; Cursor(0, 0): nothing is yet."""
        ...

    def close(self) -> None:
        """Flush and let go. Raises SinkUnavailable where something could not be made durable: it is done again at the
        next start.
        """
        ...
