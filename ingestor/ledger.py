"""The ledger: what the recorder asked for, what it heard, and when it was blind. One file a run, never deleted.

A fact is a line of JSON: `at` (µs since 1970), `fact` (`noun.past_participle`), its fields; synced before it counts.

    run.started         format, version, run, feed, venue, columns, tickers, formats, first_segment,
                        open_gaps: those that earlier runs left open, told again (gap, cause, since, symbol)
    connection.opened   connection: its number in this run
    symbols.requested   connection, symbols
    symbol.proven       connection, symbol, since: the receive time of its first trade on this connection
    symbol.refused      connection, symbol (null: the venue named none), text;  symbols.retried with symbols, reason
    symbol.dropped      symbol: not asked for any more
    connection.lost     connection, code, reason, bytes, frames;  connection.closed where we left
    connection.retired  connection, frames: it is old, and read on until the next one hears
    gap.opened          gap, cause, since, symbol (null: blind for all);  gap.closed with until
    clock.stepped       by_us: how far the wall clock was set forward; `at` is what it showed after it
    segment.closed      segment, first_received, last_received, counts, symbols, repeated, reasons, aside
    segment.sealed      segment, dates: rows by UTC date
    day.deleted         date, retention_s: told before it is done
    settings.reloaded   added, dropped: tickers; waiting: other settings that changed.  settings.refused with error
    sink.skipped        sink, rows, from, to: what it lost its claim on, or found gone: places of the journal (segment,
                        offset) and at most so many rows
    disk.low            free, floor: bytes, where less than storage.min_free is left;  disk.recovered
    run.stopped         error (null: in order)
"""

import contextlib
import json
import os
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import structlog

from ingestor.errors import FormatTooNew, NotARecording
from ingestor.layout import FILE_MODE, Layout, SegmentId, sync_directory
from ingestor.schema import FORMAT_VERSION

Fact = dict[str, Any]

_read_json = json.JSONDecoder().raw_decode

_LEDGER = re.compile(r"\d{6,}-\d{8}T\d{6}Z")

log = structlog.get_logger()


def now_us() -> int:
    """The wall clock in µs since 1970."""
    return time.time_ns() // 1000


class Ledger:
    """The writing end of one run's ledger; any thread may record. What the disk refuses waits for the next fact."""

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
            ended = "\n" if self._waiting else ""  # a part of a line that was taken last time must not swallow these
            self._waiting += facts
            text = ended + "".join(json.dumps(fact, separators=(",", ":")) + "\n" for fact in self._waiting)
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

    @property
    def waiting(self) -> int:
        """Facts that the disk has refused so far."""
        return len(self._waiting)

    def close(self) -> bool:
        """Try once more what the disk refused; whether every fact is on it."""
        if self._waiting:
            self.record_all([])
        with self._lock:
            os.close(self._fd)
            return not self._waiting


def list_ledgers(layout: Layout) -> list[Path]:
    """The ledgers of this root, oldest run first. Files of other names are not ours to read."""
    return sorted(path for path in layout.coverage.glob("*.jsonl") if _LEDGER.fullmatch(path.stem))


def read_facts(path: Path, skip: str | None = None) -> Iterator[Fact]:
    """The facts of one ledger. A line that a crash cut, and what is no fact, is passed over.

    Lines that hold `skip` are not read, but for the last line of all: when the run last spoke is always told.
    """
    with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
        line = ""
        for line in file:
            if (skip is None or skip not in line) and (fact := _parse(line)):
                yield fact
        if skip is not None and skip in line and (fact := _parse(line)):
            yield fact


def read_all_facts(layout: Layout, skip: str | None = None) -> Iterator[Fact]:
    """The facts of all runs in order, each beginning with its `run.started`; `skip` as for `read_facts`.

    Raises NotARecording, FormatTooNew, OSError.
    """
    ledgers = list_ledgers(layout)
    if not ledgers:
        raise NotARecording(f"{layout.root} holds no recording: there is no ledger in its folder `coverage`")
    for path in ledgers:
        for fact in read_facts(path, skip):
            if fact["fact"] == "run.started":
                _check_format(path, fact)
            yield fact


def read_new_facts(path: Path, offset: int, skip: str) -> tuple[list[Fact], int]:
    """The facts in the whole lines of one ledger from `offset` (bytes) on, and the offset behind them.

    `skip` as for `read_facts`: the last of these lines is always told. Raises FormatTooNew, OSError.
    """
    with path.open("rb") as file:
        file.seek(offset)
        text = file.read()
    whole = text[: text.rfind(b"\n") + 1]
    lines = whole.decode(errors="replace").split("\n")[:-1]
    told = [line for at, line in enumerate(lines, 1) if skip not in line or at == len(lines)]
    facts = [fact for line in told if (fact := _parse(line))]
    for fact in facts:
        if fact["fact"] == "run.started":
            _check_format(path, fact)
    return facts, offset + len(whole)


def _check_format(path: Path, started: Fact) -> None:
    if started["format"] > FORMAT_VERSION:
        raise FormatTooNew(f"{path} is of format {started['format']}; this version reads up to {FORMAT_VERSION}")


def _parse(line: str) -> Fact | None:
    """The fact in this line, if it is one."""
    try:
        fact, _ = _read_json(line)  # a third of what `json.loads` takes
    except ValueError:
        return None
    return fact if isinstance(fact, dict) and "fact" in fact and isinstance(fact.get("at"), int) else None


@dataclass(frozen=True, slots=True)
class History:
    """What the last run's ledger says to the next run."""

    run: int = 0
    """Its number; 0: this is the first."""
    segment: int = 0
    """The highest segment number that it names."""
    closed: int = 0
    """The highest segment number of which any run's ledger holds the account."""
    stopped: bool = True
    """Whether it ended in order."""
    first_at: int = 0
    """Its first word, in µs since 1970."""
    last_received: int = 0
    """When the last frame that it accounted for was received."""
    open_gaps: tuple[Fact, ...] = ()
    """The `gap.opened` facts that nothing closed."""
    feed: str | None = None


def run_id(run: int, started: datetime) -> str:
    """The name of a run's ledger, without its ending."""
    return f"{run:06d}-{started:%Y%m%dT%H%M%SZ}"


def read_history(layout: Layout) -> History:
    """The last run of this root. A run that never said that it started counts only by its number.

    Raises FormatTooNew.
    """
    ledgers = list_ledgers(layout)
    history = History(run=int(ledgers[-1].name.split("-")[0]) if ledgers else 0)
    for path in reversed(ledgers):
        facts = list(read_facts(path))
        if facts and facts[0]["fact"] == "run.started":
            _check_format(path, facts[0])
            history = _summarise(history.run, facts)
            break
    return replace(history, closed=_last_closed(ledgers))


def _summarise(run: int, facts: list[Fact]) -> History:
    started = facts[0]
    gaps: dict[str, Fact] = {gap["gap"]: gap for gap in started["open_gaps"]}
    for fact in facts:
        if fact["fact"] == "gap.opened":
            gaps[fact["gap"]] = fact
        elif fact["fact"] == "gap.closed":
            gaps.pop(fact["gap"], None)
    closed = [fact for fact in facts if fact["fact"] == "segment.closed"]
    return History(
        run=run,
        segment=max([started["first_segment"] - 1, *map(_number, closed)]),
        stopped=any(fact["fact"] == "run.stopped" and fact.get("error") is None for fact in facts),
        first_at=started["at"],
        last_received=max((fact["last_received"] for fact in closed), default=0),
        open_gaps=tuple(gaps.values()),
        feed=started["feed"],
    )


def _last_closed(ledgers: list[Path]) -> int:
    """Segments are accounted for in order: the newest run that closed one closed the highest."""
    for path in reversed(ledgers):
        numbers = [_number(fact) for fact in read_facts(path) if fact["fact"] == "segment.closed"]
        if numbers:
            return max(numbers)
    return 0


def _number(closed: Fact) -> int:
    return SegmentId.parse(closed["segment"]).number
