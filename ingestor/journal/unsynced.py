"""What a power cut would lose now: the records that no fsync has covered yet, kept in memory until one has."""

import time
from collections.abc import Iterator

from ingestor.journal.segment import Pieces

_MAX = 16 << 20


class Unsynced:
    """The records, in order, each with the number of its rows."""

    def __init__(self) -> None:
        self._records: list[tuple[int, Pieces]] = []
        self._bytes = 0
        self._since_s = 0.0

    def __iter__(self) -> Iterator[tuple[int, Pieces]]:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)

    @property
    def rows(self) -> int:
        return sum(rows for rows, _ in self._records)

    @property
    def age_s(self) -> float:
        """How long the oldest of them has been waiting."""
        return time.monotonic() - self._since_s if self._records else 0.0

    @property
    def full(self) -> bool:
        """Whether this is more than should be held in memory: sync now, whatever the interval."""
        return self._bytes >= _MAX

    def add(self, rows: int, pieces: Pieces) -> None:
        if not self._records:
            self._since_s = time.monotonic()
        self._records.append((rows, pieces))
        self._bytes += sum(len(piece) for piece in pieces)

    def clear(self) -> None:
        self._records.clear()
        self._bytes = 0
