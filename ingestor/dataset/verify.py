"""Verification: every file recounted against the ledger, and the ledger held to the equations of conservation.

Safe beside a live recorder. What is compared was written in a fixed order: a record's rejects, the record, the account
of its segment, the files, the commit, `segment.sealed`. So this looks the other way round: it lists the files,
reads the journal, then the ledger (a listed file has its account there), then opens the files of segments that the
journal no longer speaks for (they are all there), and the rejects last.
"""

import contextlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

from ingestor.dataset.files import date_folder, list_days
from ingestor.dataset.recount import Recount, recount_csv, recount_parquet
from ingestor.dataset.stock import (
    CompactedDay,
    Journaled,
    list_compactions,
    list_compactions_of,
    list_csv,
    list_parts,
    read_deleted,
    read_journal,
    read_sealed,
)
from ingestor.layout import Layout, SegmentId
from ingestor.ledger import Fact, read_all_facts
from ingestor.metrics import Counts
from ingestor.schema import RUN_SHIFT, TRADES


@dataclass(frozen=True, slots=True)
class Difference:
    """Something that is not as it must be."""

    place: str
    """A file under the root, or a segment in the ledger."""
    found: str
    expected: str

    def __str__(self) -> str:
        return f"{self.place}: {self.found}; expected {self.expected}"


@dataclass(slots=True)
class Account:
    """What was verified, in total."""

    segments: int = 0
    counts: Counts = field(default_factory=Counts)
    """Of all segments, from the ledger, and from the journal where the ledger has no account yet."""
    rows: dict[str, int] = field(default_factory=lambda: {"parquet": 0, "csv": 0, "journal": 0})
    """Recounted in `parquet`, in `csv`, and in the `journal` (what the dataset doesn't speak for yet)."""
    rejects: int = 0
    """Lines recounted that a record counts."""
    uncounted_rejects: int = 0
    """Lines that no record counts: a crash came between the line and its record, or it is on its way."""

    def __str__(self) -> str:
        counts = self.counts
        segments = f"{self.segments:,} segment{'' if self.segments == 1 else 's'}"
        rows = ", ".join(f"{rows:,} rows in {place}" for place, rows in self.rows.items() if rows)
        uncounted = f" (and {self.uncounted_rejects:,} without a record)" if self.uncounted_rejects else ""
        return (
            f"{segments}: {counts.frames:,} frames = {counts.fates}; {counts.trades:,} trades journaled"
            f": {rows or 'no rows'}; {self.rejects:,} rejects{uncounted}"
        )


@dataclass(slots=True)
class _Rejected:
    """What the records of a run say of its rejects."""

    frames: int = 0
    """How many frames of the run have a record: a line of a later frame is of none."""
    reasons: Counter[str] = field(default_factory=Counter)
    damaged: bool = False


class Verification:
    """One look at a whole root. `run` does the work; after it `account` holds the totals."""

    def __init__(self, layout: Layout) -> None:
        """List the files and read the journal. Raises NotARecording, FormatTooNew, OSError."""
        self.account = Account()
        self._layout = layout
        self._compactions = list_compactions(layout)
        self._compacted: dict[date, set[str]] = {}
        for compaction in self._compactions:
            self._compacted.setdefault(compaction.day, set()).update(compaction.origin)
        self._parts = list_parts(layout)
        self._csv = list_csv(layout)
        self._journaled = read_journal(layout)
        self._sealed = read_sealed(layout)
        self._columns: dict[int, list[str]] = {}
        self._formats: list[str] = []
        self._rejected: dict[int, _Rejected] = {}
        self._last_sequence = -1
        self._missing: list[tuple[date, Difference]] = []
        self.files = sum(map(len, [*self._parts.values(), *self._csv.values()])) + len(self._compactions)
        """How many steps `run` will about take."""

    def run(self) -> Iterator[list[Difference]]:
        """The differences, a list (mostly empty) for each step of the work. Raises OSError."""
        yield list(_strangers(self._layout))
        for fact in read_all_facts(self._layout, '"fact":"symbol'):
            if fact["fact"] == "run.started":
                self._columns[fact["run"]] = fact["columns"]
                self._formats = fact["formats"]
            elif fact["fact"] == "segment.closed":
                yield list(self._check_closed(fact))
        for segment, journaled in self._journaled.items():
            yield list(self._check_journaled(segment, journaled))
        for compaction in self._compactions:
            yield list(self._check_compaction(compaction))
        yield list(self._check_missing())
        yield [*self._unknown_files(), *self._check_rejects()]

    def _check_closed(self, closed: Fact) -> Iterator[Difference]:
        """A segment of which the ledger has the account."""
        segment = SegmentId.parse(closed["segment"])
        counts = Counts(**closed["counts"])
        self._count(segment, counts, closed["reasons"], damaged=closed["aside"] > 0)
        yield from _unbalanced(str(segment), counts, sum(closed["symbols"].values()), closed["reasons"])
        journaled = self._journaled.pop(str(segment), None)
        if journaled is not None and journaled.ended:
            self._parts.pop(str(segment), None)  # published, not committed: made anew at the next start
            self.account.rows["journal"] += journaled.recount.rows
            yield from _compare(f"{segment} in the journal", journaled.recount, closed)
        elif self._layout.open_segment(segment).exists():
            self._parts.pop(str(segment), None)  # ended since the journal was read
        else:
            yield from self._check_parts(segment, closed)
        yield from self._check_csv(segment, closed)

    def _check_journaled(self, segment: str, journaled: Journaled) -> Iterator[Difference]:
        """A segment of which the ledger has no account yet: it is open, or a crash left it."""
        self._parts.pop(segment, None)
        self._csv.pop(segment, None)
        self.account.rows["journal"] += journaled.recount.rows
        self._count(SegmentId.parse(segment), journaled.counts, journaled.reasons, damaged=journaled.damaged)
        yield from _unbalanced(segment, journaled.counts, journaled.recount.rows, journaled.reasons)

    def _check_parts(self, segment: SegmentId, closed: Fact) -> Iterator[Difference]:
        """The files of one segment, a date each."""
        sealed = self._sealed.get(str(segment))
        days = self._parts.pop(str(segment), set()) | set(sealed or ())
        if not days and sealed is None and "parquet" not in self._formats:
            return
        if not days:  # published after the files were listed, or a crash came between commit and `segment.sealed`
            days = {day for day in list_days(self._layout) if self._layout.parquet_file(segment, day).exists()}
        if not days and closed["symbols"]:
            missing = Difference(str(segment), "no file of it", f"{sum(closed['symbols'].values())} rows")
            self._missing.append((segment.started.date(), missing))
            return
        whole, sound = Recount(), True
        for day in sorted(days):
            if self._is_compacted(segment, day):
                sound = False
                continue
            found, differences = self._check_part(segment, day, None if sealed is None else sealed.get(day, 0))
            yield from differences
            if found is None:
                sound = False
            else:
                whole.join(found)
        if sound:
            place = _place(self._layout, self._layout.parquet_file(segment, min(days))) if days else str(segment)
            yield from _compare(place, whole, closed)
            yield from self._check_sequence(place, whole, segment.run)

    def _check_part(self, segment: SegmentId, day: date, rows: int | None) -> tuple[Recount | None, list[Difference]]:
        """What one file holds, None where it is not sound; it must be `rows` rows (None: the ledger doesn't say)."""
        path = self._layout.parquet_file(segment, day)
        place = _place(self._layout, path)
        try:
            found, origin = recount_parquet(path, day, self._columns.get(segment.run, TRADES.names))
        except FileNotFoundError:
            expected = "the rows of its segment" if rows is None else f"{rows} rows (segment.sealed)"
            self._missing.append((day, Difference(place, "missing", expected)))
            return None, []
        differences = [Difference(place, *fault) for fault in found.faults]
        if not differences and origin != str(segment):
            differences.append(Difference(place, f"origin {origin or 'missing'}", str(segment)))
        if not differences and rows is not None and found.rows != rows:
            differences.append(Difference(place, f"{found.rows} rows", f"{rows} (segment.sealed)"))
        self.account.rows["parquet"] += found.rows
        return None if differences else found, differences

    def _check_sequence(self, place: str, found: Recount, run: int) -> Iterator[Difference]:
        """Sequence numbers rise from segment to segment, and name the run."""
        if found.first_sequence is None or found.last_sequence is None:
            return
        if found.first_sequence <= self._last_sequence:
            yield Difference(place, f"sequence from {found.first_sequence}", f"above {self._last_sequence}")
        if {found.first_sequence >> RUN_SHIFT, found.last_sequence >> RUN_SHIFT} != {run}:
            yield Difference(place, "sequence of another run", f"of run {run}")
        self._last_sequence = max(self._last_sequence, found.last_sequence)

    def _is_compacted(self, segment: SegmentId, day: date) -> bool:
        """Whether a compaction speaks for this part, be it one that was made since we looked."""
        if str(segment) in self._compacted.get(day, ()):
            return True
        if self._layout.parquet_file(segment, day).exists():
            return False
        return any(str(segment) in one.origin for one in list_compactions_of(self._layout, day))

    def _check_compaction(self, compaction: CompactedDay) -> Iterator[Difference]:
        """A day's compacted files. Where the ledger lacks a seal, nothing says how many rows they must hold."""
        columns = self._columns[max(self._columns)]
        rows = 0
        for path in compaction.paths:
            try:
                found, origin = recount_parquet(path, compaction.day, columns)
            except FileNotFoundError:  # compacted anew since it was listed
                return
            place = _place(self._layout, path)
            yield from (Difference(place, *fault) for fault in found.faults)
            if found.faults:
                return
            if frozenset(origin.split(",")) != compaction.origin:
                yield Difference(place, "origin differs from that of its sisters", "the same segments in each")
            rows += found.rows
        self.account.rows["parquet"] += rows
        seals = [self._sealed.get(segment) for segment in compaction.origin]
        expected = sum(seal.get(compaction.day, 0) for seal in seals if seal is not None)
        if None not in seals and rows != expected:
            yield Difference(_place(self._layout, compaction.paths[0]), f"{rows} rows", f"{expected} (segment.sealed)")

    def _check_csv(self, segment: SegmentId, closed: Fact) -> Iterator[Difference]:
        """The CSV file of one segment, once the journal has let go of it."""
        listed = self._csv.pop(str(segment), [])
        if self._layout.open_segment(segment).exists() or self._layout.sealed_segment(segment).exists():
            return
        plain = self._layout.csv_file(segment)
        own = [path for path in (plain, plain.with_name(plain.name + ".gz")) if path.exists()]
        for path in sorted(set(listed) - set(own)):
            if path.exists():
                yield Difference(_place(self._layout, path), "in another folder", _place(self._layout, plain))
        if not own and closed["symbols"] and "csv" in self._formats:
            missing = Difference(_place(self._layout, plain), "missing", f"{sum(closed['symbols'].values())} rows")
            self._missing.append((segment.started.date(), missing))
        if len(own) > 1:
            yield Difference(_place(self._layout, plain), "beside a packed copy", "one of the two")
        for path in own[:1]:
            found = recount_csv(path, self._columns.get(segment.run, TRADES.names))
            place = _place(self._layout, path)
            yield from (Difference(place, *fault) for fault in found.faults)
            if not found.faults:
                yield from _compare(place, found, closed)
            self.account.rows["csv"] += found.rows

    def _check_missing(self) -> Iterator[Difference]:
        """Files that are not there and whose date was not deleted: the ledger says so before it is done."""
        if self._missing:
            deleted = read_deleted(self._layout)
            yield from (difference for day, difference in self._missing if day not in deleted)

    def _unknown_files(self) -> Iterator[Difference]:
        """What was listed and belongs to no segment that the ledger or the journal knows."""
        files = [
            date_folder(self._layout, day) / f"{name}.parquet" for name, days in self._parts.items() for day in days
        ]
        for path in sorted(files + [path for paths in self._csv.values() for path in paths]):
            if path.exists():
                yield Difference(_place(self._layout, path), "of no segment that the ledger knows", "no such file")

    # Rejects

    def _count(self, segment: SegmentId, counts: Counts, reasons: Mapping[str, int], *, damaged: bool) -> None:
        self.account.segments += 1
        self.account.counts += counts
        rejected = self._rejected.setdefault(segment.run, _Rejected())
        rejected.frames += counts.frames
        rejected.reasons.update(reasons)
        rejected.damaged = rejected.damaged or damaged

    def _check_rejects(self) -> Iterator[Difference]:
        """Lines of rejects, by run and reason, against what the records count.

        A crash between a line and its record leaves a line that no record counts: its frame comes after all that have
        one. Of a run with a damaged record the lines may be more.
        """
        lines: dict[int, Counter[str]] = {}
        for path in sorted(self._layout.rejects.glob("date=*.jsonl")):
            for run, reason, counted, uncounted in self._read_rejects(path):
                if counted:
                    lines.setdefault(run, Counter())[reason] += counted
                self.account.rejects += counted
                self.account.uncounted_rejects += uncounted
        for run in sorted(self._rejected.keys() | lines.keys()):
            rejected, found = self._rejected.get(run, _Rejected()), lines.get(run, Counter())
            for reason in sorted(rejected.reasons.keys() | found.keys()):
                lacking = found[reason] < rejected.reasons[reason]
                if lacking or (found[reason] > rejected.reasons[reason] and not rejected.damaged):
                    expected = f"{rejected.reasons[reason]} (counted by its records)"
                    yield Difference(f"rejects of run {run}", f"{found[reason]} lines of {reason}", expected)

    def _read_rejects(self, path: Path) -> Iterator[tuple[int, str, int, int]]:
        """Run, reason, how many of them records count, and how many no record does, of each line, by its key once; what
        a crash cut is passed over. Beyond the day's limit a line stands for many.
        """
        seen: set[tuple[int, int, int | None]] = set()
        with path.open("rb") as file:
            for line in file:
                with contextlib.suppress(ValueError):
                    reject = json.loads(line)
                    key = (reject["run"], reject["frame"], reject["trade"])
                    rejected = self._rejected.get(key[0], _Rejected())
                    recorded = key[1] < rejected.frames or rejected.damaged
                    if "left_out" in reject:
                        uncounted = 0 if recorded else reject["left_out_last"]
                        yield key[0], reject["reason"], reject["left_out"] - uncounted, uncounted
                    elif key not in seen:
                        seen.add(key)
                        yield key[0], reject["reason"], int(recorded), int(not recorded)


# Comparing


def _strangers(layout: Layout) -> Iterator[Difference]:
    """What is in the dataset and no file of it."""
    for folder, _, names in os.walk(layout.trades):
        for name in names:
            if not name.endswith(".parquet") or not Path(folder).name.startswith("date="):
                yield Difference(
                    _place(layout, Path(folder, name)), "not a file of a date", "nothing else in the dataset"
                )


def _compare(place: str, found: Recount, closed: Fact) -> Iterator[Difference]:
    """What was counted again, against the segment's account."""
    for what, counted, told in (
        ("rows", found.trades, closed["symbols"]),
        ("repeated rows", found.repeated, closed["repeated"]),
    ):
        for symbol in sorted(counted.keys() | told.keys()):
            if counted[symbol] != told.get(symbol, 0):
                yield Difference(
                    place, f"{counted[symbol]} {what} of {symbol!r}", f"{told.get(symbol, 0)} (segment.closed)"
                )


def _unbalanced(place: str, counts: Counts, rows: int, reasons: Mapping[str, int]) -> Iterator[Difference]:
    """The equations of conservation, for one segment."""
    if not counts.balanced:
        yield Difference(place, counts.fates, f"{counts.frames:,} frames")
    if rows != counts.trades:
        yield Difference(place, f"{rows:,} rows", f"{counts.trades:,} trades (counted by its records)")
    rejected = counts.rejected_frames + counts.rejected_trades
    if (told := sum(reasons.values())) != rejected:
        yield Difference(place, f"{told:,} reasons of rejects", f"{rejected:,} (counted by its records)")


def _place(layout: Layout, path: Path) -> str:
    return str(path.relative_to(layout.root))
