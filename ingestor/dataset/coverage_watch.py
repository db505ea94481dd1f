"""Coverage of a recording that goes on, looked at again and again: each time only what the ledger has new is read."""

from typing import TYPE_CHECKING

from ingestor.coverage import IRRELEVANT, Coverage, find_coverage
from ingestor.errors import NotARecording
from ingestor.layout import Layout
from ingestor.ledger import list_ledgers, read_new_facts

if TYPE_CHECKING:
    from pathlib import Path

    from ingestor.facts import Fact

_FOREVER_US = 1 << 60


class CoverageWatch:
    """What the facts of days that are not closed say, as if what holds now held for ever: clip it to what has passed.

    All of them are read when a file of the ledger begins; then, of that one, what it has told since the last look.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._ledgers: list[Path] = []
        self._facts: list[Fact] = []
        self._offset = 0
        """Up to where the newest ledger is read."""
        self._coverage = find_coverage([])

    def look(self) -> Coverage:
        """The same object as long as nothing has changed. Raises NotARecording, FormatTooNew, OSError."""
        ledgers = list_ledgers(self._layout)
        if not ledgers:
            raise NotARecording(f"{self._layout.root} holds no recording: there is no ledger in its folder `ledger`")
        begun = ledgers != self._ledgers or ledgers[-1].stat().st_size < self._offset
        if begun:
            self._facts = [fact for path in ledgers[:-1] for fact in read_new_facts(path, 0, IRRELEVANT)[0]]
            self._offset = 0
        news, self._offset = read_new_facts(ledgers[-1], self._offset, IRRELEVANT)
        self._facts += news
        self._ledgers = ledgers
        if begun or any(not fact["fact"].startswith("segment.") for fact in news):
            self._coverage = find_coverage(self._facts, None, _FOREVER_US)
        return self._coverage
