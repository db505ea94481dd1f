"""Coverage of a root, as it is now: the ledger's facts, and how far the journal has come since."""

import contextlib
from collections.abc import Collection

from ingestor.coverage import IRRELEVANT, Coverage, find_coverage
from ingestor.journal.scan import last_received_us
from ingestor.layout import Layout, list_segments
from ingestor.ledger import list_ledgers, read_all_facts


def read_coverage(layout: Layout, symbols: Collection[str] | None = None, journaled_us: int | None = None) -> Coverage:
    """What can be said of these symbols (None: of all); beside a live recorder, up to its newest frame.

    `journaled_us` is when that was received, where the caller has read the journal. Raises NotARecording,
    FormatTooNew, OSError.
    """
    if journaled_us is None:
        journaled_us = _newest_frame_us(layout)  # before the ledger: what that says later holds for these frames too
    return find_coverage(read_all_facts(layout, IRRELEVANT), symbols, journaled_us)


def read_known_coverage(
    layout: Layout, symbols: Collection[str] | None = None, journaled_us: int | None = None
) -> Coverage:
    """The same; nothing where a root has no ledger, as a copied dataset. Raises FormatTooNew, OSError."""
    return read_coverage(layout, symbols, journaled_us) if list_ledgers(layout) else find_coverage([])


def _newest_frame_us(layout: Layout) -> int:
    """The receive time of the newest frame in the journal; 0 where the ledger accounts for all of them."""
    for file in reversed(list_segments(layout)):
        with contextlib.suppress(FileNotFoundError):  # freed since it was listed: the ledger has its account
            if received_us := last_received_us(file.path):
                return received_us
    return 0
