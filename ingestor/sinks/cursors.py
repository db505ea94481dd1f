"""Where each external sink stands in the journal, in `cursors/<sink>.json`: written by its own thread, read by all."""

import json
import os
import re
import secrets
import string
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import structlog
from pydantic import BaseModel, Field

from ingestor.errors import DamagedFile
from ingestor.journal.cursor import Cursor
from ingestor.journal.scan import Backlogs
from ingestor.layout import Layout, read_small, set_aside, write_whole

log = structlog.get_logger()

_NAME_LETTERS = 14  # 65 bits
_NAME = re.compile(r"[\w.-]{1,64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Lag:
    """What a sink has not got yet."""

    rows: int
    seconds: float
    """Age of the oldest of these rows."""


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
            lags[sink] = Lag(backlog.rows, max(now_us - backlog.oldest_received_us, 0) / 1e6 if backlog.rows else 0.0)
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
