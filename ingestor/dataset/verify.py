"""Verifies a recording: recounts every file against the ledger, and holds the ledger to the equations of conservation.

Safe while a recorder runs. A recorder writes in a fixed order: a record's rejects, the record, the account of its
segment, the files, the commit, `segment.sealed`. So verification reads in the opposite order: it lists the files, reads
the journal, then the ledger (a listed file has its account there), then opens the files of segments that the journal no
longer speaks for (all of them exist), and the rejects last.
"""

import contextlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

from ingestor import closed_days
from ingestor.accounts import read_accounts, read_seals
from ingestor.dataset import inventory
from ingestor.dataset.merged import check_one_venue
from ingestor.dataset.raw import list_raw_files, recount_frames
from ingestor.dataset.snapshot import date_folder, list_days, list_names
from ingestor.errors import ConfigError, DamagedFile
from ingestor.facts import DAMAGED, Fact
from ingestor.layout import (
    Layout,
    SegmentId,
    list_cursors,
    list_foreign,
    list_rejects,
    list_segments,
    read_lines,
    read_small,
)
from ingestor.ledger import DAY_US, day_of, list_closed_facts, list_ledgers, read_all_facts, read_facts
from ingestor.metrics import REPEATED, Counts
from ingestor.parquet import WHOLE, Digest, Span, add_digests
from ingestor.schema import RUN_SHIFT, TRADES
from ingestor.store import MIRROR, StorePath, mirrored_name
from ingestor.trade_ids import IdRanges, format_missing


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that verification found wrong."""

    place: str
    """A file under the root, or a segment in the ledger."""
    found: str
    expected: str

    def __str__(self) -> str:
        return f"{self.place}: {self.found}; expected {self.expected}"


@dataclass(frozen=True, slots=True)
class Hole:
    """Ids of a symbol that are in none of the files, although those before and after them are."""

    symbol: str
    first: int
    last: int

    def __str__(self) -> str:
        ids = f"{self.first}" if self.first == self.last else f"{self.first} to {self.last}"
        return f"ids of {self.symbol}: {ids} missing ({self.last - self.first + 1:,})"


@dataclass(slots=True)
class Account:
    """The totals of a verification."""

    segments: int = 0
    counts: Counts = field(default_factory=Counts)
    """Of all segments, from the ledger, and from the journal where the ledger has no account yet."""
    rows: dict[str, int] = field(default_factory=lambda: {"parquet": 0, "csv": 0, "journal": 0})
    """Recounted in `parquet`, in `csv`, and in the `journal` (what the dataset doesn't speak for yet)."""
    frames_kept: int | None = None
    """Frames as they came, recounted; None: none are kept."""
    filled: int = 0
    """Trades that no frame brought: they are from a source's history."""
    imported: int = 0
    """Trades that no frame brought: they are from a file."""
    rejects: int = 0
    """Lines recounted that a record counts."""
    uncounted_rejects: int = 0
    """Lines that no record counts: a crash came between the line and its record, or it is on its way."""
    ids: int | None = None
    """Distinct ids by which the venue counts each symbol's trades; None: it doesn't."""
    missing_ids: int | None = None
    """Those between the first and the last of each symbol that are not there."""
    holes: list[Hole] = field(default_factory=list)
    """Which they are."""
    not_looked_at: int = 0
    """Files that were not opened: their segments are not finished, so that nothing says yet what they must hold."""
    foreign: list[str] = field(default_factory=list)
    """Files and folders in the root that no recorder made, which were not opened either."""

    @property
    def of_them(self) -> str:
        """How many were filled or imported, where any were."""
        brought = {"filled": self.filled, "imported": self.imported}
        terms = [f"{self.counts.trades - sum(brought.values()):,} heard"]
        terms += [f"{trades:,} {how}" for how, trades in brought.items() if trades]
        return f" ({' + '.join(terms)})" if len(terms) > 1 else ""

    def __str__(self) -> str:
        counts = self.counts
        segments = f"{self.segments:,} segment{'' if self.segments == 1 else 's'}"
        rows = ", ".join(f"{rows:,} rows in {place}" for place, rows in self.rows.items() if rows)
        kept = "" if self.frames_kept is None else f"; {self.frames_kept:,} frames kept as they came"
        uncounted = f" (and {self.uncounted_rejects:,} without a record)" if self.uncounted_rejects else ""
        ids = "" if self.ids is None else f";\n{format_missing(self.ids, self.missing_ids or 0)}"
        return (
            f"{segments}: {counts.frames:,} frames = {counts.fates}{kept};\n"
            f"{counts.trades:,} trades journaled{self.of_them}"
            f": {rows or 'no rows'}; {self.rejects:,} rejects{uncounted}{ids}"
        )


@dataclass(frozen=True, slots=True)
class Together:
    """What several recordings say that none of them says alone."""

    recordings: int
    refused: str | None
    """Why no reader takes them as one recording: they are of several venues. None: readers do."""
    ids: int | None
    """Distinct ids that any of them has; None: they are refused, or their venue doesn't count its trades."""
    missing_ids: int | None
    """Those between the first and the last of each symbol that none of them has."""
    holes: list[Hole]
    """Which they are."""

    def __str__(self) -> str:
        if self.refused:
            return f"Together: {self.refused}; no command reads them as one."
        ids = "" if self.ids is None else f"; {format_missing(self.ids, self.missing_ids or 0)} in all of them"
        return f"Together: {self.recordings} recording{'' if self.recordings == 1 else 's'} of one venue{ids}."


@dataclass(slots=True)
class _Rejected:
    """The rejects of a run, by its records."""

    frames: int = 0
    """Frames of the run that have a record: a line of rejects of a later frame has none."""
    reasons: Counter[str] = field(default_factory=Counter)
    damaged: bool = False


class Verification:
    """One verification of a whole root. `run` does the work; after it `account` holds the totals."""

    def __init__(self, layout: Layout) -> None:
        """List the files and read the journal. Raises NotARecording, FormatTooNew, OSError."""
        self.account = Account()
        self._layout = layout
        self._compactions = inventory.list_compactions(layout)
        self._compacted: dict[date, set[str]] = {}
        for compaction in self._compactions:
            self._compacted.setdefault(compaction.day, set()).update(compaction.origin)
        self._parts = inventory.list_parts(layout)
        self._csv = inventory.list_csv(layout)
        self._raw = list_raw_files(layout)
        try:
            self._csv_done = read_small(layout.cursor_file("csv"), lambda content: int(json.loads(content)["segment"]))
        except (FileNotFoundError, DamagedFile):  # then those of all sealed segments are
            unsealed = (file.id.number for file in list_segments(layout) if not file.sealed)
            self._csv_done = min(unsealed, default=1 << 63)
        """CSV files of segments below this number are finished."""
        self._id_column = inventory.read_id_column(layout)
        self.ids = IdRanges()
        """The ids that were found."""
        self._early: list[Difference] = []
        self._journaled = self._read_journal()
        self._sealed = read_seals(layout)
        self._columns: dict[int, list[str]] = {}
        self._formats: list[str] = []
        self._keeping: set[int] = set()
        """The runs that kept frames as they came."""
        self._importing: set[int] = set()
        """The runs that took trades from files."""
        self._rejected: dict[int, _Rejected] = {}
        self._last_sequence = -1
        self._missing: list[tuple[date, Difference]] = []
        self._deleted: set[date] = set()
        """Days whose trades a copy holds no more, as their manifests say."""
        self._csv_values: dict[str, tuple[Path, Span, Digest]] = {}
        self._parquet_values: dict[str, Digest] = {}
        self.files = sum(map(len, [*self._parts.values(), *self._csv.values(), *self._raw.values()])) + len(
            self._compactions
        )
        """The approximate number of steps that `run` will take."""

    def _read_journal(self) -> dict[str, inventory.Journaled]:
        """The segments that the journal speaks for. Where it can't be read: none, and that is a difference."""
        try:
            return inventory.read_journal(self._layout, self._id_column)
        except DamagedFile as error:
            self._early.append(self._damaged(error))
            return {}

    def _damaged(self, error: DamagedFile) -> Difference:
        place, _, fault = str(error).removeprefix(f"{self._layout.root}/").partition(": ")
        return Difference(place, fault, "a file that can be read")

    def run(self) -> Iterator[list[Difference]]:
        """The differences, a list (mostly empty) for each step of the work. Raises OSError."""
        yield [*self._early, *self._check_names(), *self._check_side_files()]
        for day in closed_days.list_manifests(self._layout):
            yield list(self._check_manifest(day))
        yield from self._check_ledger()
        damaged: list[DamagedFile] = []
        for account in read_accounts(self._layout, damaged):
            try:
                differences = list(self._check_closed(account))
            except OSError as error:
                path = Path(error.filename or self._layout.root)
                differences = [
                    Difference(_place(self._layout, path), f"can't be read: {error.strerror}", "a file that can")
                ]
            yield differences
        yield list(map(self._damaged, damaged))
        for segment, journaled in self._journaled.items():
            # The ledger has no account of it yet: it is open, or a crash left it.
            self._pass_over(self._parts, segment)
            self._pass_over(self._csv, segment)
            self._pass_over(self._raw, segment)
            self.account.rows["journal"] += journaled.recount.rows
            self.ids.add_all(journaled.recount.ids)
            self._count(SegmentId.parse(segment), journaled.counts, journaled.reasons, damaged=journaled.damaged)
            yield list(_unbalanced(segment, journaled.counts, journaled.recount.rows, journaled.reasons))
        for compaction in self._compactions:
            yield list(self._check_compaction(compaction))
        yield list(self._check_values())
        if self._missing:  # after the files: retention says so before it deletes a date
            deleted = inventory.read_deleted(self._layout) | self._deleted
            yield [difference for day, difference in self._missing if day not in deleted]
        # What was listed, and belongs to no segment that the ledger or the journal knows.
        unknown = [path for paths in self._csv.values() for path in paths]
        for name, days in self._parts.items():
            unknown += [date_folder(self._layout, day) / f"{name}.parquet" for day in days]
        for name, dates in self._raw.items():
            unknown += [self._layout.raw / f"date={day.isoformat()}" / f"{name}.parquet" for day in dates]
        yield [
            Difference(_place(self._layout, path), "of no segment that the ledger knows", "no such file")
            for path in sorted(unknown)
            if path.exists()
        ]
        yield list(self._check_rejects())
        if self.ids:
            counts = self.ids.counts().values()
            self.account.ids, self.account.missing_ids = map(sum, zip(*counts, strict=True))
            self.account.holes = [Hole(*hole) for hole in self.ids.holes()]

    def _check_ledger(self) -> Iterator[list[Difference]]:
        """Lines of the ledger that the disk has changed, and files of closed days that can't be read."""
        for fact in read_all_facts(self._layout, '"fact":"s'):
            if fact["fact"] in {"run.started", "day.started"}:
                self._columns[fact["run"]] = fact.get("columns", TRADES.names)
                self._formats = fact.get("formats", ["parquet"])
                if fact.get("raw") is True:
                    self._keeping.add(fact["run"])
                if fact.get("imports") is True:
                    self._importing.add(fact["run"])
        for path in [*list_closed_facts(self._layout), *list_ledgers(self._layout)]:
            with contextlib.suppress(FileNotFoundError):  # closed since it was listed
                damaged = sum(fact["fact"] == DAMAGED for fact in read_facts(path, tell_damage=True))
                if damaged:
                    place = _place(self._layout, path)
                    yield [
                        Difference(
                            place,
                            f"{damaged} line{'' if damaged == 1 else 's'} not as they were written",
                            "right checksums",
                        )
                    ]
        for day in closed_days.list_closed_days(self._layout):
            path = self._layout.coverage_file(day)
            try:
                yield list(_check_coverage(_place(self._layout, path), day, closed_days.read_day(path)))
            except DamagedFile as error:
                yield [self._damaged(error)]

    def _check_manifest(self, day: date) -> Iterator[Difference]:
        """What the manifest of a closed day says of each of its files. One that is being written anew says nothing."""
        path = self._layout.manifest_file(day)
        try:
            manifest = closed_days.read_manifest(path)
        except FileNotFoundError:
            return
        except DamagedFile as error:
            yield self._damaged(error)
            return
        if manifest.trades_deleted:
            self._deleted.add(day)
            return
        found = list(compare_files(manifest, _list_files(self._layout, day, manifest), path.name))
        if not found:
            return
        if isinstance(self._layout.root, StorePath):  # perhaps it was compacted meanwhile
            self._layout.root.store.forget()
        with contextlib.suppress(FileNotFoundError):
            if closed_days.read_manifest(path) == manifest:  # still the one that was read
                yield from found

    def _check_names(self) -> Iterator[Difference]:
        """What is in the way of programs that read `trades` or `csv` whole, be it somebody's file or a link of ours to
        nothing. The other files that no recorder made are only named.
        """
        damaged: list[DamagedFile] = []
        for name in list_foreign(self._layout, damaged=damaged):
            if _is_in_the_way(name):
                what = "not a file of a date" if name.rstrip("/").count("/") > 1 else "not the folder of a date"
                yield Difference(name, what, "nothing else in the dataset")
            else:
                self.account.foreign.append(name)
        yield from map(self._damaged, damaged)
        for day in list_days(self._layout):
            folder = date_folder(self._layout, day)
            for path in (folder / name for name in list_names(folder)):
                if path.is_symlink() and not path.exists():
                    yield Difference(_place(self._layout, path), "a link to nothing", "a file of rows")

    def _check_side_files(self) -> Iterator[Difference]:
        """Small files that a start or a sink reads: they hold no trades, and one that can't be read is made anew."""
        layout = self._layout
        for path in [*list_cursors(layout), layout.accepted_keys, layout.holidays, layout.state]:
            try:
                read_small(path, json.loads)
            except FileNotFoundError:
                continue
            except DamagedFile as error:
                yield self._damaged(error)

    def _check_closed(self, closed: Fact) -> Iterator[Difference]:
        """A segment of which the ledger has the account."""
        segment = SegmentId.parse(closed["segment"])
        counts = Counts(**{one.name: closed["counts"].get(one.name, 0) for one in fields(Counts)})
        self._count(segment, counts, closed["reasons"], damaged=closed["aside"] > 0)
        if closed["symbols"] is None:
            place = _place(self._layout, self._layout.account_file(segment))
            yield Difference(place, "missing", f"the account of {counts.trades} rows")
            closed = {**closed, "symbols": {}, "counts": asdict(Counts())}
        yield from _unbalanced(str(segment), counts, sum(closed["symbols"].values()), closed["reasons"])
        journaled = self._journaled.pop(str(segment), None)
        if journaled is not None and journaled.ended:
            self._pass_over(self._parts, str(segment))  # published, not committed: made anew at the next start
            self.account.rows["journal"] += journaled.recount.rows
            self.ids.add_all(journaled.recount.ids)
            yield from _compare(f"{segment} in the journal", journaled.recount, closed)
        elif self._layout.open_segment(segment).exists():
            self._pass_over(self._parts, str(segment))  # ended since the journal was read
            self.ids.add_all(closed["ids"] or ())
        else:
            yield from self._check_parts(segment, closed)
        yield from self._check_csv(segment, closed)
        yield from self._check_frames(segment, closed)

    def _pass_over(self, files: dict[str, Any], segment: str) -> None:
        """Leave the files of an unfinished segment unopened, and count them."""
        self.account.not_looked_at += len(files.pop(segment, ()))

    def _check_parts(self, segment: SegmentId, closed: Fact) -> Iterator[Difference]:
        """The files of one segment, a date each."""
        sealed = self._sealed.get(str(segment))
        days = self._parts.pop(str(segment), set()) | set(sealed or ())
        if not days and sealed is None and "parquet" not in self._formats:
            self.ids.add_all(closed["ids"] or ())
            return
        if not days:  # published after the files were listed, or a crash came between commit and `segment.sealed`
            days = {day for day in list_days(self._layout) if self._layout.parquet_file(segment, day).exists()}
        if not days and closed["symbols"]:
            missing = Difference(str(segment), "no file of it", f"{sum(closed['symbols'].values())} rows")
            self._missing.append((segment.started.date(), missing))
            return
        whole, sound = inventory.Recount(), True
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

    def _add_values(self, segment: str, digests: list[Digest]) -> None:
        """Keep what the Parquet files hold of a segment that has a CSV file."""
        for digest in digests:
            known = self._parquet_values.get(segment)
            self._parquet_values[segment] = digest if known is None else add_digests(digest, known)

    def _check_values(self) -> Iterator[Difference]:
        """The values of CSV files, which have no checksums, against those of the same rows in Parquet."""
        for segment, (path, _, found) in self._csv_values.items():
            told = self._parquet_values.get(segment)
            if told is not None and told["rows"] == found["rows"]:
                other = [name for name in told if told[name] != found.get(name)]
                if other:
                    expected = "the values of the same rows in Parquet"
                    yield Difference(_place(self._layout, path), f"other values of {', '.join(other)}", expected)

    def _check_part(
        self, segment: SegmentId, day: date, rows: int | None
    ) -> tuple[inventory.Recount | None, list[Difference]]:
        """The recount of one file, None where it is not sound; it must hold `rows` rows (None: unknown)."""
        path = self._layout.parquet_file(segment, day)
        place = _place(self._layout, path)
        try:
            columns = self._columns.get(segment.run, TRADES.names)
            spans = [WHOLE] if str(segment) in self._csv else []
            found, origin = inventory.recount_parquet(path, day, columns, self._id_column, spans)
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
        if not differences:
            self._add_values(str(segment), found.digests)
        self.ids.add_all(found.ids)
        return None if differences else found, differences

    def _check_sequence(self, place: str, found: inventory.Recount, run: int) -> Iterator[Difference]:
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
        return any(str(segment) in one.origin for one in inventory.list_compactions_of(self._layout, day))

    def _check_compaction(self, compaction: inventory.CompactedDay) -> Iterator[Difference]:
        """A day's compacted files. Where the ledger lacks a seal, nothing says how many rows they must hold."""
        columns = self._columns[max(self._columns)] if self._columns else TRADES.names
        rows = 0
        with_csv = sorted(compaction.origin & self._csv_values.keys())
        spans = [self._csv_values[segment][1] for segment in with_csv]
        for path in compaction.paths:
            try:
                found, origin = inventory.recount_parquet(path, compaction.day, columns, self._id_column, spans)
            except FileNotFoundError:  # compacted anew since it was listed
                return
            place = _place(self._layout, path)
            yield from (Difference(place, *fault) for fault in found.faults)
            if found.faults:
                return
            if frozenset(origin.split(",")) != compaction.origin:
                yield Difference(place, "origin differs from that of its sisters", "the same segments in each")
            rows += found.rows
            for segment, digest in zip(with_csv, found.digests, strict=False):  # none where it has no rows
                self._add_values(segment, [digest])
            self.ids.add_all(found.ids)
        self.account.rows["parquet"] += rows
        seals = [self._sealed.get(segment) for segment in compaction.origin]
        expected = sum(seal.get(compaction.day, 0) for seal in seals if seal is not None)
        if None not in seals and rows != expected:
            yield Difference(_place(self._layout, compaction.paths[0]), f"{rows} rows", f"{expected} (segment.sealed)")

    def _check_csv(self, segment: SegmentId, closed: Fact) -> Iterator[Difference]:
        """The CSV file of one segment, once it is finished."""
        if isinstance(self._layout.root, StorePath):
            return  # a mirror has no CSV
        journaled = self._layout.open_segment(segment).exists() or self._layout.sealed_segment(segment).exists()
        if journaled and segment.number >= self._csv_done:
            self._pass_over(self._csv, str(segment))
            return
        listed = self._csv.pop(str(segment), [])
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
            found = inventory.recount_csv(path, self._columns.get(segment.run, TRADES.names))
            place = _place(self._layout, path)
            yield from (Difference(place, *fault) for fault in found.faults)
            if not found.faults:
                yield from _compare(place, found, closed)
            if not found.faults and found.first_sequence is not None and found.last_sequence is not None:
                span = (found.first_sequence, found.last_sequence)
                self._csv_values[str(segment)] = (path, span, found.digests[0])
            self.account.rows["csv"] += found.rows

    def _check_frames(self, segment: SegmentId, closed: Fact) -> Iterator[Difference]:
        """The frames as they came of one segment, once it is no more in the journal: as many as were received."""
        if self._layout.open_segment(segment).exists():
            self._pass_over(self._raw, str(segment))
            return
        days = self._raw.pop(str(segment), [])
        received = closed["counts"].get("frames", 0)
        if not days and (segment.run not in self._keeping or not received):
            return
        frames, place = 0, str(segment)
        for day in days or list_raw_files(self._layout).get(place, []):  # published since they were listed
            path = self._layout.raw_file(segment, day)
            place = _place(self._layout, path)
            try:
                found, fault = recount_frames(path, segment, day)
            except FileNotFoundError:  # deleted since it was listed, or lost: the count tells
                continue
            frames += found
            if fault is not None:
                yield Difference(place, fault, "the frames of its segment, in order, with right checksums")
        self.account.frames_kept = (self.account.frames_kept or 0) + frames
        if frames == received:
            return
        first, last = (day_of(closed[name]) for name in ("first_received", "last_received"))
        deleted = inventory.read_deleted(self._layout, "raw")
        if not any(first <= day <= last for day in deleted):
            yield Difference(place, f"{frames:,} frames kept", f"{received:,} (frames received)")

    # Rejects

    def _count(self, segment: SegmentId, counts: Counts, reasons: Mapping[str, int], *, damaged: bool) -> None:
        self.account.segments += 1
        self.account.counts += counts
        if counts.filled and segment.run in self._importing:
            self.account.imported += counts.trades
        elif counts.filled:
            self.account.filled += counts.trades
        rejected = self._rejected.setdefault(segment.run, _Rejected())
        rejected.frames += counts.frames
        rejected.reasons.update(reasons)
        rejected.damaged = rejected.damaged or damaged

    def _check_rejects(self) -> Iterator[Difference]:
        """Lines of rejects, by run and reason, against what the records count.

        A crash between a line and its record leaves a line that no record counts: its frame comes after all that have
        one. Of a run with a damaged record the lines may be more. What two connections brought has no lines, but for
        recordings of version 0.1.
        """
        lines: dict[int, Counter[str]] = {}
        for path in list_rejects(self._layout):
            try:
                for run, reason, counted, uncounted in self._read_rejects(path):
                    if counted:
                        lines.setdefault(run, Counter())[reason] += counted
                    self.account.rejects += counted
                    self.account.uncounted_rejects += uncounted
            except DamagedFile as error:
                yield self._damaged(error)
        for run in sorted(self._rejected.keys() | lines.keys()):
            rejected, found = self._rejected.get(run, _Rejected()), lines.get(run, Counter())
            for reason in sorted(rejected.reasons.keys() | found.keys()):
                lacking = found[reason] < rejected.reasons[reason] and reason != REPEATED
                if lacking or (found[reason] > rejected.reasons[reason] and not rejected.damaged):
                    expected = f"{rejected.reasons[reason]} (counted by its records)"
                    yield Difference(f"rejects of run {run}", f"{found[reason]} lines of {reason}", expected)

    def _read_rejects(self, path: Path) -> Iterator[tuple[int, str, int, int]]:
        """Run, reason, how many of them records count, and how many no record does, of each line, by its key once; what
        a crash cut is passed over. Beyond the day's limit a line stands for many.
        """
        seen: set[tuple[int, int, int | None]] = set()
        for line in read_lines(path):
            try:
                reject = json.loads(line)
                key = (int(reject["run"]), int(reject["frame"]), reject["trade"])
                reason = str(reject["reason"])
                left_out, left_out_last = int(reject.get("left_out", 0)), int(reject.get("left_out_last", 0))
                fresh = key not in seen
            except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError):
                continue  # the records' counts tell what is lacking
            rejected = self._rejected.get(key[0], _Rejected())
            recorded = key[1] < rejected.frames or rejected.damaged
            if "left_out" in reject:
                uncounted = 0 if recorded else left_out_last
                yield key[0], reason, left_out - uncounted, uncounted
            elif fresh:
                seen.add(key)
                yield key[0], reason, int(recorded), int(not recorded)


# Comparing


def _is_in_the_way(name: str) -> bool:
    """Whether readers of plain files would take it for rows: pandas reads all of `trades` but hidden names, a glob all
    that ends as the files do.
    """
    folder, last = name.partition("/")[0], name.rstrip("/").rpartition("/")[2]
    if folder == "trades":
        return "/" in name.rstrip("/") and (not last.startswith((".", "_")) or last.endswith(".parquet"))
    return folder == "csv" and last.endswith((".csv", ".csv.gz"))


def _check_coverage(place: str, day: date, rows: list[closed_days.Row]) -> Iterator[Difference]:
    """A file of coverage: sorted, one state at a time, of its date."""
    start_us = (day - date(1970, 1, 1)).days * DAY_US
    for before, row in pairwise(rows):
        if (before.symbol, before.end_us) > (row.symbol, row.start_us):
            yield Difference(place, f"rows of {row.symbol!r} out of order, or at the same time", "one state at a time")
            return
    if any(not start_us <= row.start_us < row.end_us <= start_us + DAY_US for row in rows):
        yield Difference(place, "rows of another date", f"rows of {day.isoformat()} only")
    if any((row.state == "blind") != (row.cause is not None) for row in rows):
        yield Difference(place, "a cause without blindness, or the other way round", "a cause where it is blind")


def _compare(place: str, found: inventory.Recount, closed: Fact) -> Iterator[Difference]:
    """Compare a recount with the segment's account."""
    for what, counted, told in (
        ("rows", found.trades, closed["symbols"]),
        ("repeated rows", found.repeated, closed["repeated"]),
    ):
        for symbol in sorted(counted.keys() | told.keys()):
            if counted[symbol] != told.get(symbol, 0):
                yield Difference(
                    place, f"{counted[symbol]} {what} of {symbol!r}", f"{told.get(symbol, 0)} (segment.closed)"
                )

    if found.ids and closed["ids"] is not None and list(found.ids) != closed["ids"]:
        yield Difference(place, "other ids than its account names", "the same in both")


def _unbalanced(place: str, counts: Counts, rows: int, reasons: Mapping[str, int]) -> Iterator[Difference]:
    """The equations of conservation, for one segment."""
    if not counts.balanced:
        yield Difference(place, counts.fates, f"{counts.frames:,} frames")
    if rows != counts.trades:
        yield Difference(place, f"{rows:,} rows", f"{counts.trades:,} trades (counted by its records)")
    rejected = counts.rejected_frames + counts.rejected_trades
    if (told := sum(reasons.values())) != rejected:
        yield Difference(place, f"{told:,} reasons of rejects", f"{rejected:,} (counted by its records)")


def compare_files(manifest: closed_days.Manifest, files: Mapping[str, Path], source: str) -> Iterator[Difference]:
    """What a manifest says of a day's files, by where they stand in the copy; `source` is where it was read."""
    told = {one.path: one for one in manifest.files}
    for name in sorted(files.keys() | told.keys()):
        one, path = told.get(name), files.get(name)
        if one is None:
            yield Difference(name, "a file", f"no such file ({source})")
            continue
        if path is None:
            yield Difference(name, "missing", f"{one.bytes:,} bytes ({source})")
            continue
        try:
            with path.open("rb") as file:
                size, sha256 = path.stat().st_size, closed_days.hash_file(file)
        except OSError as error:
            yield Difference(name, f"can't be read: {error.strerror}", f"{one.bytes:,} bytes ({source})")
            continue
        if size != one.bytes:
            yield Difference(name, f"{size:,} bytes", f"{one.bytes:,} ({source})")
        elif sha256 != one.sha256:
            yield Difference(name, f"SHA-256 {sha256[:16]}…", f"{one.sha256[:16]}… ({source})")


def compare_recordings(found: Sequence[tuple[Layout, IdRanges]]) -> Together:
    """What recordings say together, of each of which these ids were found. Raises OSError."""
    refused = None
    try:
        check_one_venue([layout for layout, _ in found])
    except ConfigError as error:
        refused = str(error)
    together = IdRanges()
    for _, ids in found if refused is None else ():
        together.add_all(ids)
    seen = missing = None
    if together:
        seen, missing = map(sum, zip(*together.counts().values(), strict=True))
    return Together(len(found), refused, seen, missing, [Hole(*hole) for hole in together.holes()])


def compare_with_copy(layout: Layout, copy: Layout) -> Iterator[list[Difference]]:
    """The differences of a recording from its copy, a list per date: of closed days by the manifest in the copy, which
    says what was read back from there, of others by names and sizes. Raises NotARecording, FormatTooNew, OSError.
    """
    deleted = inventory.read_deleted(layout)
    unsealed = {f"{file.id}.parquet" for file in list_segments(layout) if not file.sealed}
    for day in sorted({*list_days(layout), *closed_days.list_manifests(copy), *list_days(copy)}):
        path = copy.manifest_file(day)
        try:
            manifest = closed_days.read_manifest(path)
        except FileNotFoundError:
            manifest = None
        except DamagedFile as error:
            yield [Difference(path.name, str(error).partition(": ")[2], "a manifest")]
            continue
        here, there = _list_trades(layout, day), _list_trades(copy, day)
        if not here and (day in deleted or (manifest and manifest.trades_deleted)):
            continue
        if manifest and not manifest.trades_deleted:
            files = _list_files(layout, day, manifest)
            kept = [one for one in manifest.files if one.path in files or "raw/" not in one.path]  # `storage.raw.keep`
            found = list(compare_files(replace(manifest, files=tuple(kept)), files, path.name))
            sizes = {name: file.stat().st_size for name, file in _list_files(copy, day, manifest).items()}
            strange = sorted(sizes.keys() - {one.path for one in manifest.files})
            found += [Difference(name, "a file in the copy", f"no such file ({path.name})") for name in strange]
            yield found + [
                Difference(one.path, f"{sizes.get(one.path, 0):,} bytes in the copy", f"{one.bytes:,} ({path.name})")
                for one in manifest.files
                if sizes.get(one.path) != one.bytes
            ]
            continue
        sizes = {file.name: file.stat().st_size for file in there}
        yield [
            Difference(
                _place(layout, file),
                f"{sizes[file.name]:,} bytes in the copy" if file.name in sizes else "not in the copy",
                f"{file.stat().st_size:,} bytes",
            )
            for file in here
            if file.name not in unsealed and sizes.get(file.name) != file.stat().st_size
        ]


def _list_trades(layout: Layout, day: date) -> list[Path]:
    folder = date_folder(layout, day)
    return [folder / name for name in list_names(folder)]


def _list_files(layout: Layout, day: date, manifest: closed_days.Manifest) -> dict[str, Path]:
    """The files of a closed day, by the names that they have in the manifest's copy: a mirror or a root."""
    files = {_place(layout, path): path for path in _list_trades(layout, day)} | closed_days.list_day_files(layout, day)
    is_mirror = any(one.path.startswith(("date=", f"{MIRROR}/")) for one in manifest.files)
    return {mirrored_name(name) if is_mirror else name: path for name, path in files.items()}


def _place(layout: Layout, path: Path) -> str:
    return str(path.relative_to(layout.root))
