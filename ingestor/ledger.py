"""The ledger: what the recorder asked for, what it heard, and when it was blind. One file a run, never deleted.

A fact is a line of JSON: `at` (µs since 1970), `fact` (`noun.past_participle`) and its fields. Each is synced before it counts.
"""

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import structlog

from ingestor.layout import FILE_MODE, Layout, SegmentId, sync_directory

Fact = dict[str, Any]

log = structlog.get_logger()


def now_us() -> int:
    """The wall clock in µs since 1970."""
    return time.time_ns() // 1000


class Ledger:
    """The writing end of one run's ledger; any thread may record. A fact that the disk refuses waits for the next one."""

    def __init__(self, layout: Layout, run_id: str) -> None:
        """Create the run's file. Raises OSError; FileExistsError where the run has one already."""
        self._lock = threading.Lock()
        self._waiting: list[Fact] = []
        path = layout.ledger_file(run_id)
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, FILE_MODE)
        sync_directory(path.parent)

    def record(self, fact: str, *, at: int | None = None, **fields: Any) -> None:
        """Append one fact and sync it."""
        self.record_all([{"at": now_us() if at is None else at, "fact": fact, **fields}])

    def record_all(self, facts: list[Fact]) -> None:
        """Append facts and sync them together; never raises OSError: what the disk refuses is written with the next."""
        with self._lock:
            self._waiting += facts
            text = "".join(json.dumps(fact, separators=(",", ":")) + "\n" for fact in self._waiting)
            size = os.fstat(self._fd).st_size
            try:
                written = os.write(self._fd, text.encode())
                if written < len(text.encode()):
                    raise OSError("the disk took only a part of it")
                os.fdatasync(self._fd)
            except OSError as error:
                with contextlib.suppress(OSError):  # a part of a line is passed over by every reader
                    os.ftruncate(self._fd, size)
                log.error("ledger.refused", facts=len(self._waiting), error=error.strerror or str(error))
            else:
                self._waiting.clear()

    def close(self) -> bool:
        """Try once more what the disk refused; whether every fact is on it."""
        if self._waiting:
            self.record_all([])
        with self._lock:
            os.close(self._fd)
            return not self._waiting


def list_ledgers(layout: Layout) -> list[Path]:
    """The ledgers of this root, oldest run first."""
    return sorted(layout.coverage.glob("*.jsonl"))


def read_facts(path: Path) -> Iterator[Fact]:
    """The facts of one ledger. A line that a crash cut, and what is no fact, is passed over."""
    with path.open("rb") as file:
        for line in file:
            with contextlib.suppress(ValueError):
                fact = json.loads(line)
                if isinstance(fact, dict) and "fact" in fact and isinstance(fact.get("at"), int):
                    yield fact


@dataclass(frozen=True, slots=True)
class History:
    """What the last run's ledger says to the next run."""

    run: int = 0
    """Its number; 0: this is the first."""
    segment: int = 0
    """The highest segment number that it names."""
    stopped: bool = True
    """Whether it ended in order."""
    last_at: int = 0
    """Its last word, in µs since 1970."""
    last_received: int = 0
    """When the last frame that it accounted for was received."""
    open_gaps: tuple[Fact, ...] = ()
    """The `gap.opened` facts that nothing closed."""
    feed: str | None = None


def run_id(run: int, started: datetime) -> str:
    """The name of a run's ledger, without its ending."""
    return f"{run:06d}-{started:%Y%m%dT%H%M%SZ}"


def read_history(layout: Layout) -> History:
    """The last run of this root. A run that never said that it started counts only by its number."""
    ledgers = list_ledgers(layout)
    run = int(ledgers[-1].name.split("-")[0]) if ledgers else 0
    for path in reversed(ledgers):
        facts = list(read_facts(path))
        if facts and facts[0]["fact"] == "run.started":
            return _summarise(run, facts)
    return History(run=run)


def _summarise(run: int, facts: list[Fact]) -> History:
    started = facts[0]
    segment = started["first_segment"] - 1
    gaps: dict[str, Fact] = {gap["gap"]: gap for gap in started["open_gaps"]}
    for fact in facts:
        if fact["fact"] == "gap.opened":
            gaps[fact["gap"]] = fact
        elif fact["fact"] == "gap.closed":
            gaps.pop(fact["gap"], None)
        elif fact["fact"] == "segment.closed":
            segment = max(segment, SegmentId.parse(fact["segment"]).number)
    return History(
        run=run,
        segment=segment,
        stopped=any(fact["fact"] == "run.stopped" for fact in facts),
        last_at=max(fact["at"] for fact in facts),
        last_received=max((fact["last_received"] for fact in facts if fact["fact"] == "segment.closed"), default=0),
        open_gaps=tuple(gaps.values()),
        feed=started["feed"],
    )
