"""Where each external sink stands in the journal, in `cursors/<sink>.json`: written by its own thread, read by all."""

import json
import secrets
import string
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from ingestor.journal.backlog import Backlogs
from ingestor.journal.cursor import Cursor
from ingestor.journal.scan import blames_file, open_file
from ingestor.layout import Layout, write_whole

_NOTE_MAX = 4096
_NAME_LETTERS = 14  # 65 bits

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
    """Those that the ledger may not have yet. Raises OSError."""
    losses: list[Loss] = []
    for path in sorted(layout.cursors.glob(f"{sink}.*.lost")):
        try:
            losses.append(_read_loss(path))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            aside = path.with_suffix(".unreadable")
            log.error("loss.unreadable", file=path.name, error=str(error), hint=f"kept as {aside.name}")
            path.rename(aside)
        except OSError as error:
            if not blames_file(error):
                raise
            aside = path.with_suffix(".unreadable")
            log.error("loss.unreadable", file=path.name, error=error.strerror, hint=f"kept as {aside.name}")
            path.rename(aside)
    return losses


def _read_loss(path: Path) -> Loss:
    """Raises OSError; ValueError, KeyError, TypeError or RecursionError where it says something else."""
    fd = open_file(path)
    with open(fd, "rb") as file:  # noqa: PTH123  a descriptor
        told = json.loads(file.read(_NOTE_MAX))
    places = [*told["from"], *told["to"]]
    if len(places) != 4 or not all(isinstance(place, int) and 0 <= place < 1 << 63 for place in places):
        raise ValueError("no two places of the journal")
    return Loss(Cursor(*places[:2]), Cursor(*places[2:]), path)


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
    """A name for this root that no other has: sequence numbers are unique in a root only. Raises OSError.

    Of letters, since it may become the name of a folder, which engines read as a number where they can.
    """
    path = layout.root_name
    if not path.exists():
        name = "".join(secrets.choice(string.ascii_lowercase) for _ in range(_NAME_LETTERS))
        write_whole(path, name, layout.staging)
    return path.read_text("utf-8").strip()
