"""Where each external sink stands in the journal, in `cursors/<sink>.json`: written by its own thread, read by all."""

import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from ingestor.journal.backlog import Backlogs
from ingestor.journal.cursor import Cursor
from ingestor.layout import Layout, write_whole

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Lag:
    """What a sink has not got yet."""

    rows: int
    seconds: float
    """Age of the oldest of these rows."""


def read_place(layout: Layout, sink: str) -> Cursor:
    """Everything before it is durable in the sink; Cursor(0, 0) where that is unknown."""
    try:
        stored = json.loads(layout.cursor_file(sink).read_bytes())
        return Cursor(int(stored["segment"]), int(stored["offset"]))
    except FileNotFoundError:
        return Cursor(0, 0)
    except (ValueError, KeyError, TypeError) as error:
        log.warning("cursor.unreadable", sink=sink, error=str(error))
        return Cursor(0, 0)


def write_place(layout: Layout, sink: str, place: Cursor) -> None:
    """Raises OSError."""
    text = json.dumps({"segment": place.segment, "offset": place.offset})
    write_whole(layout.cursor_file(sink), text, layout.staging)


class Lags:
    """How far sinks are behind the synced journal."""

    def __init__(self, layout: Layout, sinks: Sequence[str]) -> None:
        self._layout = layout
        self._sinks = sinks
        self._backlogs = Backlogs(layout)

    def look(self) -> dict[str, Lag]:
        """By sink, now. Raises OSError."""
        now_us = time.time_ns() // 1000
        lags = {}
        for sink in self._sinks:
            backlog = self._backlogs.measure(read_place(self._layout, sink))
            lags[sink] = Lag(backlog.rows, max(now_us - backlog.oldest_received_us, 0) / 1e6 if backlog.rows else 0.0)
        return lags


def name_root(layout: Layout) -> str:
    """A name for this root that no other has: sequence numbers are unique in a root only. Raises OSError."""
    path = layout.root_name
    if not path.exists():
        write_whole(path, secrets.token_hex(8), layout.staging)
    return path.read_text("utf-8").strip()
