"""The ledger: what the recorder asked for, what it heard, and when it was blind.

A fact is a line of JSON: `at` (µs since 1970), `fact` (`noun.past_participle`), its fields, and `crc`, the CRC32 of all
before it in the line. It is synced before it counts. A run begins a file of its own, and a new one at each midnight UTC
(`ledger/<run>-<part>-<day>.jsonl`), which begins with `day.started`: so each file can be understood without those
before it. The facts of days that are over become data (`closed_days`). Format 1 had one file per run, without
checksums, in `coverage/`.

    run.started         format, version, run, feed, venue, columns, tickers, formats, first_segment,
                        id_column: in which the venue counts each symbol's trades (null: it doesn't),
                        closed: the last segment that has an account, raw: true where frames are kept as they came,
                        open_gaps: those that earlier runs left open, told again (gap, cause, since, symbol),
                        groups: into so many the symbols are divided, each with connections of its own, where that
                        is more than one: what befalls these is a gap for each symbol, and none is for all,
                        asked: the symbols that the run before still asked for, ended: when it was last heard of,
                        right: the last that a clock known to be right has shown, where that is not `ended`;
                        merged, redecoded: of which roots a root was made that no recorder made;
                        backfill: true of a run that fills gaps or imports files, and hears nothing; imports: true of
                        one that imports
    day.started         the same of the run that goes on, and where it stands: segment, last_received, began;
                        asked: what is asked for since when, by connection, and proven since when;
                        requested: what was last asked for as a whole; unconnected: since when no connection is open,
                        doubted: since when the clock is wrong (null: it isn't)
    connection.opened   connection: its number in this run
    connection.joined   connection: the symbols were asked for on it, while another one is read: its requests go on
    symbols.requested   connection, symbols (null: the same as the last time that all were asked for); since: up to that
                        receipt another connection had brought these, and it has ended; this one was open already.
                        Without symbols: that one has ended, and others are heard all the while
    symbols.proven      connection, base, symbols: the receive time of each symbol's first trade on this connection is
                        base + its number
    symbol.proven       the same of one symbol: symbol, connection, since (format 1)
    symbol.refused      connection, symbol (null: the venue named none), text;  symbols.retried with symbols, reason
    symbol.dropped      symbol: not asked for any more
    connection.lost     connection, code, reason, bytes, frames;  connection.closed where we left
    connection.retired  connection, frames: it is old, and read on until the next one hears
    gap.opened          gap, cause, since: the receipt behind which it begins, symbol (null: blind for all),
                        heard: the last receipt, where that was later: up to it unproven, then blind
    gap.closed          gap, cause, since, symbol; until: the receipt with which it ends
    gap.filled          symbol, since, until: blind or unproven behind `since` up to `until`, and filled; source: whose
                        history; rows: so many trades of it were missing; compared: trades of the margins, agreement:
                        the share of ours that the source has, and of its that we have
    gap.unfilled        symbol, since, until, source, why: what is left as it is; compared, agreement where known
    file.imported       source: `import:` and the file's name; its bytes and sha256; rows: so many of its trades were
                        added; spans: by symbol starts and ends in turn (µs), each the time of the file's first trade in
                        a time that nothing divides, and the end of the millisecond of its last there
    ids.missed          symbol, first, last, count: so many ids from the first to the last never came; since, until: the
                        receipts of the trades around them
    ids.proven          base, before, symbols: no trade of a symbol was missed between the receipts base + its number in
                        `before` and base + its number in `symbols`: its ids go on without a hole
    clock.stepped       by_us: how far the wall clock went beyond the time that was lived; `at` is what it showed then
                        slept_us: how much of that the machine slept; since: the last that it showed before
    clock.doubted       by_us: our clock less the venue's, since: when it was last set, or the run began; it ends with
                        clock.trusted, a step or the run
    segment.closed      segment, first_received, last_received, counts, reasons, aside; unreadable: why its file could
                        not be read at all; in format 1 the rows per symbol as well (symbols, repeated), which are in
                        `accounts/` since
    segment.sealed      segment, dates: rows by UTC date
    day.deleted         date, retention_s: told before it is done;  raw.deleted with date, keep_s: frames as they came
    ledger.copied       in the copy of a mirror alone: what was received later is not there yet
    settings.reloaded   added, dropped: tickers; waiting: other settings that changed.  settings.refused with error
    sink.skipped        sink, rows, from, to: at most so many rows that its slot no longer kept, or that it found gone,
                        between two places of the journal (segment, offset)
    disk.low            free, floor: bytes, where less than storage.min_free is left;  disk.recovered
    run.stopped         error (null: in order)
"""

import contextlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import structlog

from ingestor import system
from ingestor.errors import DamagedFile, FormatTooNew, NotARecording
from ingestor.facts import DAMAGED, STATE, Fact, RunState, decode_line, encode_line, is_sound
from ingestor.layout import FILE_MODE, Layout, check_is_file, make_folder, sync_directory, write_whole
from ingestor.schema import FORMAT_VERSION
from ingestor.store import list_folder

_RUN_FILE = re.compile(r"(\d{6,})-\d{8}T\d{6}Z")  # format 1
_DAY_FILE = re.compile(r"(\d{6,})-(\d{4,})-(\d{4}-\d\d-\d\d)")
_LINE_CHARACTERS = 16 << 20
"""Of the longest line to expect: 11,000 symbols with all that a run knows of them are a tenth."""
_CLOSED_FILE = re.compile(r"closed-\d{4}-\d\d")
_BARRIER = "999999-00000000T000000Z.jsonl"
"""The name of a ledger of format 1 that is newer than any; a folder, so that no reader of a dataset looks into it."""
DAY_US = 86_400_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_CHECKPOINTS = frozenset({"run.started", "segment.closed", "run.stopped"})

log = structlog.get_logger()


def now_us() -> int:
    """The wall clock in µs since 1970."""
    return time.time_ns() // 1000


def day_of(at_us: int) -> date:
    """The UTC date of a moment in µs since 1970."""
    return (_EPOCH + timedelta(days=at_us // DAY_US)).date()


# Reading


class LedgerFile(NamedTuple):
    """The name of a file with facts of days that are not closed. In order of these they tell a root's story."""

    run: int
    part: int
    """0: the whole run, as format 1 had it; else from 1, one per day of the run."""
    day: str
    path: Path

    @property
    def checked(self) -> bool:
        """Whether its lines carry checksums."""
        return self.part > 0


def parse_ledger_name(path: Path) -> LedgerFile | None:
    """The run, part and day in a file's name; None where it isn't one of the ledger's."""
    if path.suffix != ".jsonl":
        return None
    if old := _RUN_FILE.fullmatch(path.stem):
        return LedgerFile(int(old[1]), 0, "", path)
    if new := _DAY_FILE.fullmatch(path.stem):
        return LedgerFile(int(new[1]), int(new[2]), new[3], path)
    return None


def list_ledgers(layout: Layout) -> list[Path]:
    """The files with the facts of days that are not closed, oldest first. Other names are not ours to read."""
    return [file.path for file in list_ledger_files(layout)]


def list_ledger_files(layout: Layout) -> list[LedgerFile]:
    """The same with what their names say. The old place first: what is moved meanwhile is found in the new one."""
    found: dict[tuple[int, int, str], LedgerFile] = {}
    for folder in (layout.coverage, layout.ledger):
        try:
            for name in list_folder(folder):
                path = folder / name if name.endswith(".jsonl") else None
                if path is not None and (file := parse_ledger_name(path)) is not None and path.is_file():
                    found[file[:3]] = file
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise DamagedFile(f"{folder}: can't be read: {error.strerror}") from None
    return sorted(found.values())


def read_facts(path: Path, skip: str | None = None, *, tell_damage: bool = False) -> Iterator[Fact]:
    """The facts of one file. A line that a crash cut is passed over, and so is one that the disk has changed, unless
    `tell_damage` asks for a fact named DAMAGED in its place.

    Lines that hold `skip` are not read, but for the last line of all: when the run last spoke is always told.
    Raises FileNotFoundError, DamagedFile, FormatTooNew.
    """
    check_is_file(path)
    try:
        with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
            lines = iter(partial(file.readline, _LINE_CHARACTERS), "")
            yield from _read_lines(path, lines, skip, tell_damage=tell_damage)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DamagedFile(f"{path}: can't be read: {error.strerror}") from None


def read_first_fact(path: Path) -> Fact:
    """The first fact of one file, not to be changed; empty where there is none. Raises as `read_facts`.

    It names what a run was asked for, up to thousands of symbols, and every question begins by reading it: one that was
    read before is known by its text.
    """
    check_is_file(path)
    first = ""
    with contextlib.suppress(OSError), path.open(encoding="utf-8", errors="replace", newline="\n") as file:
        first = file.readline(_LINE_CHARACTERS)
    return _decode_known(first) or next(read_facts(path), {})  # which names the file where it can't be read


_decode_known = lru_cache(maxsize=8)(decode_line)


def read_open_facts(layout: Layout, skip: str | None = None) -> Iterator[Fact]:
    """The facts of all days that are not closed, in order, with DAMAGED ones; `skip` as for `read_facts`.

    Raises NotARecording where there is no ledger, FileNotFoundError where a day is closed meanwhile, FormatTooNew,
    OSError.
    """
    for path in _list_known(layout):
        yield from read_facts(path, skip, tell_damage=True)


def _list_known(layout: Layout) -> list[Path]:
    """`list_ledgers`. Raises NotARecording where a root has neither these nor what is kept of closed days."""
    ledgers = list_ledgers(layout)
    if not ledgers and not list_closed_facts(layout):
        raise NotARecording(f"{layout.root} holds no recording: there is no ledger in its folder `ledger`")
    return ledgers


def read_all_facts(layout: Layout, skip: str | None = None) -> Iterator[Fact]:
    """The facts kept of closed days (neither coverage nor accounts), then those of the others; `skip` as above.

    A fact may be told twice while a day is being closed. Raises NotARecording, FormatTooNew, OSError.
    """
    for path in list_closed_facts(layout):
        yield from read_facts(path, skip)
    closed_meanwhile = False
    for path in _list_known(layout):
        try:
            yield from read_facts(path, skip)
        except FileNotFoundError:
            closed_meanwhile = True
    if closed_meanwhile:
        for path in list_closed_facts(layout):
            yield from read_facts(path, skip)


def list_closed_facts(layout: Layout) -> list[Path]:
    """The files, one per month, with what of closed days is neither coverage nor accounts; oldest first."""
    return sorted(path for path in layout.ledger.glob("closed-*.jsonl") if _CLOSED_FILE.fullmatch(path.stem))


def read_new_facts(path: Path, offset: int, skip: str | None = None) -> tuple[list[Fact], int]:
    """The facts in the whole lines of one file from `offset` (bytes) on, and the offset behind them.

    `skip` and DAMAGED as for `read_open_facts`: the last of these lines is always told. Raises FormatTooNew, OSError.
    """
    with path.open("rb") as file:
        file.seek(offset)
        text = file.read()
    whole = text[: text.rfind(b"\n") + 1]
    lines = (f"{line}\n" for line in whole.decode(errors="replace").split("\n")[:-1])
    return list(_read_lines(path, lines, skip, tell_damage=True)), offset + len(whole)


def _read_lines(path: Path, lines: Iterable[str], skip: str | None, *, tell_damage: bool) -> Iterator[Fact]:
    name = parse_ledger_name(path)
    checked = name is None or name.checked
    at_us = 0
    last, is_whole = "", True
    for line in lines:
        if not is_whole:  # it was longer than any line of ours, and cut: nothing behind it is told
            break
        last, is_whole = "", line.endswith("\n")
        if skip is not None and skip in line:
            last = line
            continue
        fact = decode_line(line, checked=checked)
        if fact is None:
            if tell_damage and is_whole and line.strip():
                yield {"at": at_us, "fact": DAMAGED}
            continue
        at_us = fact["at"]
        check_format(path, fact)
        yield fact
    if last and (fact := decode_line(last, checked=checked)):
        yield fact


def check_format(path: Path, told: Fact) -> None:
    """Raises FormatTooNew where a later version began to write this file. Format 1 can't be told from damage."""
    if told.get("format", 0) > FORMAT_VERSION:
        raise FormatTooNew(f"{path} is of format {told['format']}; this version reads up to {FORMAT_VERSION}")


# Writing


def take_over_format_1(layout: Layout) -> None:
    """Bring a root's ledgers of format 1 to where those of format 2 are; done again, it changes nothing.

    What they tell becomes data later, in the background. In their old place stays a name by which a version that
    knows nothing of format 2 fails, instead of beginning anew with run 1. Raises OSError.
    """
    old = [file for file in list_ledger_files(layout) if file.path.parent == layout.coverage]
    for file in old:
        file.path.rename(layout.ledger / file.path.name)
    barrier = layout.coverage / _BARRIER
    if not barrier.exists():
        make_folder(barrier)
    if old:
        sync_directory(layout.ledger)
        sync_directory(layout.coverage)


class Ledger:
    """The writing end of one run's ledger; any thread may record. What the disk refuses waits for the next fact."""

    def __init__(self, layout: Layout, run: int, day: date, clock: Callable[[], int] = now_us) -> None:
        """Create the run's first file. `clock` tells the time of facts that come without one.

        Raises OSError; FileExistsError where the run has one already.
        """
        self._lock = threading.Lock()
        self.now_us = clock
        self._layout = layout
        self._run = run
        self._part = 1
        self._day = day
        self._waiting: list[Fact] = []
        self._state = RunState()
        self._closed = False
        self._fd = _create(layout.ledger_file(run, self._part, day))

    def record(self, fact: str, *, at: int | None = None, **fields: Any) -> None:
        """Append one fact and sync it."""
        self.record_all([{"at": self.now_us() if at is None else at, "fact": fact, **fields}])

    def record_all(self, facts: list[Fact]) -> None:
        """Append facts and sync them together; never raises OSError: what the disk refuses is written with the next."""
        with self._lock:
            if self._closed:  # by a thread that was too late for the end: its descriptor may be another file's by now
                log.error("ledger.closed", facts=[fact["fact"] for fact in facts])
                return
            self._begin_day(max((fact["at"] for fact in facts), default=0))
            again = bool(self._waiting)  # a part of a line that was taken last time must not swallow these
            self._waiting += facts
            try:
                _append(self._fd, self._waiting, again=again)
            except OSError as error:
                log.error("ledger.refused", facts=len(self._waiting), error=error.strerror or str(error))
                return
            written, self._waiting = self._waiting, []
            for fact in filter(is_sound, written):
                self._state.tell(fact)
            if any(fact["fact"] in _CHECKPOINTS for fact in written):
                self._save_state()
            if any(fact["fact"] == "clock.stepped" and fact.get("by_us", 0) <= -DAY_US for fact in written):
                self._day = date.min  # its file is of a day that is still to come: here begins another
                self._begin_day(self._state.last_us)

    @property
    def waiting(self) -> int:
        """Facts that the disk has refused so far."""
        return len(self._waiting)

    def close(self) -> bool:
        """Try once more what the disk refused; whether every fact is on it."""
        if self._waiting:
            self.record_all([])
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self._fd)
            return not self._waiting

    def _begin_day(self, at_us: int) -> None:
        """A file of its own for each UTC date; where the disk refuses it, the one before goes on."""
        if not at_us or (day := day_of(at_us)) <= self._day or not self._state.run:
            return
        path = self._layout.ledger_file(self._run, self._part + 1, day)
        try:
            fd = _create(path)
            try:
                _append(fd, [self._state.restate(at_us)])
            except OSError:
                os.close(fd)
                path.unlink()
                raise
        except OSError as error:
            log.error("ledger.refused", file=path.name, error=error.strerror or str(error))
            return
        os.close(self._fd)
        self._fd, self._day = fd, day
        self._part += 1

    def _save_state(self) -> None:
        """Remember beside the ledger what a start must never forget. A refusal costs a witness, nothing else."""
        state = self._state
        told: Fact = {
            "at": state.last_us,
            "fact": STATE,
            **{name: state.started[name] for name in ("format", "version", "feed") if name in state.started},
            "run": state.run,
            "began": state.began_us,
            "segment": state.segment,
            "closed": state.closed,
            "last_received": state.last_received_us,
            "open_gaps": list(state.gaps.values()),
        }
        try:
            write_whole(self._layout.state, encode_line(told), self._layout.staging)
        except OSError as error:
            log.warning("state.unsaved", file=str(self._layout.state), error=error.strerror or str(error))


def _create(path: Path) -> int:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, FILE_MODE)
    sync_directory(path.parent)
    return fd


def _append(fd: int, facts: list[Fact], *, again: bool = False) -> None:
    """Write and sync facts; where that fails, nothing of them is left to be read. Raises OSError."""
    content = (("\n" if again else "") + "".join(map(encode_line, facts))).encode()
    size = os.fstat(fd).st_size
    try:
        if os.write(fd, content) < len(content):
            raise OSError("the disk took only a part of it")
        system.sync_data(fd)
    except OSError:
        with contextlib.suppress(OSError):  # a part of a line is passed over by every reader
            os.ftruncate(fd, size)
        raise
