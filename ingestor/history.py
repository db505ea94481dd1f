"""Reads what a start has to know of earlier runs: a few numbers, without reading what is old.

The newest file of the ledger begins with where its run stands. `state.json` beside it, and the names of whatever a run
has left (segments, files of the dataset, accounts, cursors), are witnesses: a number that any of them knows is never
given again, so that a ledger that was lost or set back costs a warning, not a row.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import structlog

from ingestor.errors import DamagedFile
from ingestor.facts import DAMAGED, STATE, Fact, RunState, decode_line
from ingestor.layout import Layout, SegmentId, list_cursors, list_segments, read_small
from ingestor.ledger import LedgerFile, check_format, list_ledger_files, read_facts

_STATE_BYTES = 1 << 26
_NEWEST_DAYS = 3
_NUMBERS = 10**12
"""Segments have twelve digits."""
_NAME_WITHIN = 48
"""Bytes of a line in which the name of its fact stands."""
_NAME_AT = slice(len('{"at":1764201600000000,"fact":'), len('{"at":1764201600000000,"fact":"symbol.proven"'))
"""Where it stands after a time between 2001 and 2286."""
_ORDERLY = (None, "FeedRefused")
"""Errors with which a run may end after it has journaled all that it received."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class History:
    """Numbers and open gaps that earlier runs leave to the next one."""

    run: int = 0
    """The highest number of a run that anything remembers; 0: this is the first."""
    segment: int = 0
    """The highest number of a segment that anything but the journal remembers."""
    closed: int = 0
    """The highest number of a segment that has an account."""
    stopped: bool = True
    """Whether the last run ended in order."""
    first_at: int = 0
    """Its first word, in µs since 1970."""
    last_received: int = 0
    """When the last frame that it accounted for was received."""
    open_gaps: tuple[Fact, ...] = ()
    """The `gap.opened` facts that nothing closed."""
    asked: tuple[str, ...] = ()
    """Symbols that it still asked for when it ended."""
    groups: tuple[tuple[str, ...], ...] = ()
    """Those that it asked for on one connection each, where it divided them among several."""
    ended: int = 0
    """The end of its coverage, at most."""
    right: int | None = None
    """The last that a clock has shown which was known to be right; None: all up to the end was."""
    feed: str | None = None
    venue: str | None = None
    """None: not told."""


def read_history(layout: Layout) -> History:
    """The history with which the next run begins. Damage costs a warning.

    Raises FormatTooNew where a later version has recorded here, OSError where the root can't be read.
    """
    files = list_ledger_files(layout)
    told, kept = _fold_newest(files), _Kept(**read_state(layout))
    left = list(_list_witnesses(layout))
    named = max((file.run for file in files), default=0)
    run = max([named, kept.run, *(segment.run for segment in left)])
    passed = []
    for path in list_cursors(layout):
        with contextlib.suppress(FileNotFoundError, DamagedFile):  # what can't be read is for its sink to report
            passed.append(read_small(path, _parse_cursor))
    segment = max([told.segment, kept.segment, *(segment.number for segment in left), *passed])
    lost = run > named
    if lost:
        log.warning("ledger.lost", run=run, newest=named, hint="this run has left files, but no ledger")
    gaps = {gap["gap"]: gap for gap in kept.open_gaps} if lost and kept.run == run else told.gaps
    return History(
        run=run,
        segment=segment,
        closed=max(told.closed, kept.closed),
        stopped=not lost and (not told.run or (told.stopped and told.error in _ORDERLY and not told.damaged)),
        first_at=told.began_us or kept.began,
        ended=max(told.ended_us, kept.at) if lost else told.ended_us,
        last_received=max(told.last_received_us, kept.last_received) if lost else told.last_received_us,
        open_gaps=tuple(gaps.values()),
        asked=tuple(sorted(told.asked)),
        groups=tuple(
            tuple(symbol for symbol, one in told.asked.items() if one.connection == connection)
            for connection in sorted({one.connection for one in told.asked.values()})
            if "groups" in told.started
        ),
        right=None if told.is_right or not told.run else told.right_us,
        feed=told.started.get("feed") or kept.feed,
        venue=told.started.get("venue"),
    )


@dataclass(frozen=True, slots=True)
class _Kept:
    """Fields of `state.json`."""

    at: int = 0
    run: int = 0
    began: int = 0
    segment: int = 0
    closed: int = 0
    last_received: int = 0
    open_gaps: tuple[Fact, ...] = ()
    feed: str | None = None


def read_state(layout: Layout) -> Fact:
    """The fields of `state.json`; nothing where it is missing or damaged. Raises FormatTooNew."""
    names = [one.name for one in fields(_Kept)]

    def parse(content: bytes) -> Fact:
        told = decode_line(content.decode())
        if told is None or told["fact"] != STATE:
            raise ValueError("not the state of a root")
        return {name: told[name] for name in ("format", *names)}

    try:
        told = read_small(layout.state, parse, _STATE_BYTES)
    except FileNotFoundError:
        return {}
    except DamagedFile as error:
        log.warning("state.unreadable", error=str(error), hint="it is made anew from the ledger and the files")
        return {}
    check_format(layout.state, told)
    return {name: told[name] for name in names}


def next_segment(layout: Layout, named: int) -> int:
    """The number of a run's first segment: above all that the history (`named`) and the journal know of."""
    return 1 + max([named, *(file.id.number for file in list_segments(layout))])


def _fold_newest(files: list[LedgerFile]) -> RunState:
    """The newest run that said that it started. One that never did counts by its number alone."""
    for run in sorted({file.run for file in files}, reverse=True):
        state = RunState()
        for file in (one for one in files if one.run == run):
            try:
                for fact in read_facts(file.path, tell_damage=True) if file.checked else _skim(file.path):
                    state.tell(fact)
            except (OSError, DamagedFile) as error:  # what it said is not known
                log.error("ledger.unreadable", file=str(file.path), error=str(error))
                state.tell({"at": state.last_us, "fact": DAMAGED})
        if state.run:
            # Format 1 doesn't tell `closed` from run to run. Segments are accounted for in order, so the newest run
            # that closed one closed the highest.
            for file in reversed([one for one in files if one.run < run and not one.checked]):
                if state.closed:
                    break
                earlier = RunState()
                for fact in _skim(file.path):
                    earlier.tell(fact)
                state.closed = earlier.closed
            return state
    return RunState()


def _skim(path: Path) -> Iterator[Fact]:
    """Of a file of format 1, which may be of a year and a gigabyte: what a start has to know. Raises OSError."""
    closed = last = b""
    with path.open("rb") as file:
        for line in file:
            last = line
            if line[_NAME_AT] == b'"symbol.proven"':  # nearly all of them: a third of what the search below takes
                continue
            name = line[:_NAME_WITHIN]
            if b'"symbol.proven"' in name or b'"segment.sealed"' in name:
                continue
            if b'"segment.closed"' in name:
                closed = line
            elif fact := decode_line(line.decode(errors="replace"), checked=False):
                yield fact
    for line in (closed, last):
        if fact := decode_line(line.decode(errors="replace"), checked=False):
            yield fact


def _list_witnesses(layout: Layout) -> Iterator[SegmentId]:
    """The segments whose names stand in the journal, and in the newest dates of dataset, accounts and frames."""
    yield from (file.id for file in list_segments(layout))
    for folder in (layout.trades, layout.accounts, layout.raw):
        try:
            days = sorted(name for name in os.listdir(folder) if name.startswith("date="))  # noqa: PTH208  ten times as fast
        except OSError:  # not there, not a folder, or not ours to read: the others speak
            continue
        for day in days[-_NEWEST_DAYS:]:
            with contextlib.suppress(OSError):  # deleted since, or not ours to read
                for path in (folder / day).iterdir():
                    with contextlib.suppress(ValueError):
                        yield SegmentId.parse(path.name.removeprefix("closed-"))


def _parse_cursor(content: bytes) -> int:
    """The number of the segment that a sink has passed or is in."""
    stored = json.loads(content)
    segment, offset = stored["segment"], stored["offset"]
    if not isinstance(segment, int) or not 0 <= segment < _NUMBERS:
        raise ValueError(f"no number of a segment: {segment!r}")
    return segment - int(offset == 0)
