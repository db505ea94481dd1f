"""Where each external sink stands in the journal, and what the journal keeps for it.

A sink's cursor is in `cursors/<sink>.json`: its own thread writes it, and everybody reads it.
"""

import json
import os
import re
import secrets
import shutil
import string
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import structlog
from pydantic import BaseModel, Field

from ingestor.accounts import count_trades
from ingestor.errors import DamagedFile
from ingestor.journal.records import Cursor
from ingestor.journal.scan import Backlogs
from ingestor.layout import Layout, SegmentFile, read_small, set_aside, write_whole
from ingestor.ledger import Ledger, now_us, read_all_facts

log = structlog.get_logger()

_FAULT_MAX = 500

_LOOK_S = 1.0
_NAME_LETTERS = 14  # 65 bits
_NAME = re.compile(r"[\w.-]{1,64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Lag:
    """What a sink has not got yet."""

    rows: int
    seconds: float
    """Age of the oldest of these rows."""
    fault: str = ""
    """Why it takes nothing now."""


Whole = Annotated[int, Field(ge=0, lt=1 << 63, strict=True)]


class _StoredPlace(BaseModel):
    """`cursors/<sink>.json`."""

    segment: Whole
    offset: Whole

    @property
    def cursor(self) -> Cursor:
        return Cursor(self.segment, self.offset)


class _StoredLoss(BaseModel):
    """`cursors/<sink>.<segment>.lost`."""

    start: tuple[Whole, Whole] = Field(alias="from")
    end: tuple[Whole, Whole] = Field(alias="to")


def read_place(layout: Layout, sink: str) -> Cursor:
    """Everything before it is durable in the sink; Cursor(0, 0) where that is unknown."""
    try:
        return read_small(layout.cursor_file(sink), _StoredPlace.model_validate_json).cursor
    except FileNotFoundError:
        return Cursor(0, 0)
    except DamagedFile as error:
        log.warning("cursor.unreadable", sink=sink, error=str(error))
        return Cursor(0, 0)


def write_place(layout: Layout, sink: str, place: Cursor) -> None:
    """Raises OSError."""
    text = json.dumps({"segment": place.segment, "offset": place.offset})
    write_whole(layout.cursor_file(sink), text, layout.staging)


def write_fault(layout: Layout, sink: str, fault: str | None) -> None:
    """Say for the recorder's status why a sink takes nothing; None: it does again. Raises OSError."""
    if fault is None:
        layout.fault_file(sink).unlink(missing_ok=True)
    else:
        write_whole(layout.fault_file(sink), fault[:_FAULT_MAX], layout.staging)


def read_fault(layout: Layout, sink: str) -> str:
    """Why a sink takes nothing; empty where it does, or nobody can say."""
    try:
        return read_small(layout.fault_file(sink), bytes.decode)
    except (FileNotFoundError, DamagedFile):
        return ""


@dataclass(frozen=True, slots=True)
class Loss:
    """What a sink found gone from the journal before it had got it. It is told to the recorder, who has the ledger."""

    start: Cursor
    end: Cursor
    note: Path
    """Where this is written until the ledger has it."""


def note_loss(layout: Layout, sink: str, start: Cursor, end: Cursor) -> None:
    """Raises OSError."""
    text = json.dumps({"from": [start.segment, start.offset], "to": [end.segment, end.offset]})
    write_whole(layout.cursors / f"{sink}.{end.segment}.lost", text, layout.staging)


def read_losses(layout: Layout, sink: str) -> list[Loss]:
    """Those that the ledger may not have yet; a note that can't be read is told once, and set aside. Raises OSError."""
    losses = []
    for path in sorted(layout.cursors.glob(f"{sink}.*.lost")):
        try:
            told = read_small(path, _StoredLoss.model_validate_json)
        except DamagedFile as error:
            set_aside(path, str(error))
        else:
            losses.append(Loss(Cursor(*told.start), Cursor(*told.end), path))
    return losses


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
            seconds = max(now_us - backlog.oldest_received_us, 0) / 1e6 if backlog.rows else 0.0
            lags[sink] = Lag(backlog.rows, seconds, read_fault(self._layout, sink))
        return lags


def name_root(layout: Layout) -> str:
    """A name for this root that no other has: sequence numbers are unique in a root only. Raises OSError, DamagedFile.

    Of letters, since it may become the name of a folder, which engines read as a number where they can.
    """
    path = layout.root_name
    if not os.path.lexists(path):
        name = "".join(secrets.choice(string.ascii_lowercase) for _ in range(_NAME_LETTERS))
        write_whole(path, name, layout.staging)
    return read_small(path, _parse_name)


def _parse_name(content: bytes) -> str:
    """Raises ValueError: with another name than the one that they know, sinks would take everything for new."""
    name = content.decode("ascii").strip()
    if not _NAME.fullmatch(name):
        raise ValueError("no name")
    return name


class RetentionSlots:
    """Each sink has a slot, which keeps the segments that it has not passed, within bounds. Beyond them the sink that
    is furthest behind loses the oldest segment first, and the log and the ledger say so.
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
        """Rows that were no longer kept for a sink, in this run."""

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
        # Tell what sinks found gone although its slot kept it: they had not been asked for, or were given back an older
        # state.
        for sink in self._sinks:
            for loss in read_losses(self._layout, sink):
                rows = _rows_of_segments(self._layout, sink, range(loss.start.segment, loss.end.segment))
                if rows:
                    reason = "gone when it came for them: it was switched off, or set back to an older state"
                    self._record_skipped(sink, rows, loss.start, loss.end, reason)
                loss.note.unlink()
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
            # The ledger is told whom this segment is taken from before it is freed.
            following = Cursor(oldest.id.number + 1, 0)
            for sink, place in places.items():
                if place >= following:
                    continue
                start = max(place, Cursor(oldest.id.number, 0))
                rows = Backlogs(self._layout).measure(start, following).rows
                reason = "too far behind: see journal.max_bytes and storage.min_free"
                self._record_skipped(sink, rows, start, following, reason)
            freed.append(oldest)
        return freed

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
