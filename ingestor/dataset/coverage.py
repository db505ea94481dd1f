"""Coverage of a recording's days, read once or kept up to date."""

import contextlib
from collections.abc import Collection
from datetime import date
from typing import TYPE_CHECKING

from ingestor.closed_days import list_closed_days, read_closed_coverage
from ingestor.coverage import IRRELEVANT, Coverage, find_coverage
from ingestor.dataset.times import EVER, Span
from ingestor.errors import NotARecording
from ingestor.journal.scan import last_received_us
from ingestor.layout import Layout, list_segments
from ingestor.ledger import list_ledgers, read_new_facts, read_open_facts

if TYPE_CHECKING:
    from pathlib import Path

    from ingestor.facts import Fact

_FOREVER_US = 1 << 60


def read_coverage(
    layout: Layout, symbols: Collection[str] | None = None, journaled_us: int | None = None, span: Span = EVER
) -> Coverage:
    """What can be said of these symbols (None: of all); beside a live recorder, up to its newest frame.

    `journaled_us` is when that was received, where the caller has read the journal. `span` bounds what must be looked
    at: of other times the answer may say less. Raises NotARecording, FormatTooNew, DamagedFile, OSError.
    """
    if journaled_us is None:
        journaled_us = _newest_frame_us(layout)  # before the ledger: what that says later holds for these frames too
    while True:
        ledgers = list_ledgers(layout)
        try:
            facts = list(read_open_facts(layout, IRRELEVANT))
        except NotARecording:
            if not list_closed_days(layout):  # a copy of a dataset need not have a ledger
                raise
            facts = []
        except FileNotFoundError:
            if list_ledgers(layout) == ledgers:  # not a day that was closed meanwhile
                raise
            continue
        # After the ledger: a day is data before its facts go.
        return find_coverage(facts, symbols, journaled_us, read_closed_coverage(layout, symbols, *_dates(span)))


def read_known_coverage(
    layout: Layout, symbols: Collection[str] | None = None, journaled_us: int | None = None, span: Span = EVER
) -> Coverage:
    """The same; nothing where a root has neither ledger nor coverage, as a copy of the trades alone.

    Raises FormatTooNew, DamagedFile, OSError.
    """
    try:
        return read_coverage(layout, symbols, journaled_us, span)
    except NotARecording:
        return find_coverage([])


def _dates(span: Span) -> tuple[date, date]:
    """The UTC dates that a span touches."""
    first, last = span.days
    return first, last


def _newest_frame_us(layout: Layout) -> int:
    """The receive time of the newest frame in the journal; 0 where the ledger accounts for all of them."""
    for file in reversed(list_segments(layout)):
        with contextlib.suppress(OSError):  # freed since it was listed, or damaged: the ledger's last word stands
            if received_us := last_received_us(file.path):
                return received_us
    return 0


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
