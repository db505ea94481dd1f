"""Finds the holes of a recording, compares a source's history with what was recorded around each, and fills them.

A source shows first that it tells of the same trades: around the hole, where the symbol was recorded, the share of ours
that it has, and of its that we have, is its *agreement*. Below the bound nothing is filled. What is missing is told by
the venue's ids where it counts its trades; else trades alike in time, price and volume are counted on both sides, and
never taken for one another's repeats.

A fill is a run of its own: its rows go through the journal to every sink, with sequence numbers of their own and the
source as `origin`. What was filled is judged from the rows themselves, so a fill that was killed is completed by the
next, and one that is done again changes nothing.
"""

import contextlib
import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from ingestor import __version__
from ingestor.backfill.sources import HISTORY, Ask, Source, SourceRefused
from ingestor.capture.gaps import find_inherited_gaps
from ingestor.coverage import Coverage, Interval
from ingestor.dataset.arguments import EVER, Span
from ingestor.dataset.coverage import load_coverage
from ingestor.dataset.rows import Selection, concat_rows, known_schema, plain_texts, read_dates
from ingestor.dataset.snapshot import read_consistently
from ingestor.errors import DamagedFile
from ingestor.facts import Fact
from ingestor.history import next_segment, read_history
from ingestor.journal.records import Header, Kind
from ingestor.journal.writer import Block, Journal, Rotation, Segments, release_ballast
from ingestor.layout import Layout, list_cursors
from ingestor.ledger import Ledger, day_of, now_us, read_all_facts, take_over_format_1
from ingestor.metrics import Counts
from ingestor.operations.preflight import VenueUnreachable
from ingestor.schema import FORMAT_VERSION, ORIGIN, RUN_SHIFT
from ingestor.sinks.csv_files import CsvFiles
from ingestor.sinks.parquet_files import ParquetFiles
from ingestor.sinks.retention_slots import RetentionSlots
from ingestor.sinks.runner import Runner
from ingestor.sinks.segment_accounts import SegmentAccounts

if TYPE_CHECKING:
    from ingestor.sinks import Sink

MARGINS_US = (60_000_000, 600_000_000, 3_600_000_000)
"""How far around a hole is looked for trades to compare; the first that has ENOUGH of them."""
ENOUGH = 20
_COMPARED = 500
"""Trades on each side, at most: the nearest."""
_PAD_US = 500_000
_WIDER_US = 2_000_000
_LATEST_US = 60_000_000
"""A trade that came later than this is not expected to be missing."""
_BLOCK_ROWS = 1 << 13
_ROTATION = Rotation(age_s=1e9, size=32 << 20)
_Spans = list[tuple[int, int]]
_Trade = tuple[Any, ...]
"""Time (µs), price and volume; and the id, where the venue counts its trades."""


class Hole(NamedTuple):
    """A time in which a symbol was blind, with what of it is unproven around that."""

    symbol: str
    start_us: int
    end_us: int
    """Receipts, as in coverage. Not above the start: ids are missing between two trades of one receipt."""
    cause: str
    """Of the blindness; several are joined by commas."""
    ids: tuple[int, int] | None = None
    """The first and the last of the ids that never came, where the ledger names them."""


class Outcome(NamedTuple):
    """What became of a hole."""

    hole: Hole
    rows: int
    """Trades that were missing."""
    compared: int
    """Trades of both that were compared around it."""
    agreement: tuple[float, float] | None
    """The share of ours that the source has, and of its that we have."""
    why: str | None
    """Why it stays as it was; None: it is filled."""


def find_holes(coverage: Coverage, facts: Sequence[Fact], symbols: Collection[str] | None) -> list[Hole]:
    """The holes that are over, oldest first. `facts` are those of the ledger that tell of ids and of fills."""
    holes: list[Hole] = []
    for symbol in coverage.symbols:
        if symbols is not None and symbol not in symbols:
            continue
        found = list(_blind_runs(symbol, coverage.intervals(symbol)))
        told = [(one["since"] + 1, one["until"], one) for one in facts if one["symbol"] == symbol]
        known = [*found, *(Hole(symbol, start, end, "") for start, end, one in told if one["fact"] == "gap.filled")]
        missed: dict[tuple[int, int], Hole] = {}
        for start_us, end_us, one in told:
            around = any(hole.start_us <= end_us + 1 and start_us <= hole.end_us + 1 for hole in known)
            if one["fact"] == "ids.missed" and not around:
                first, last = missed.get((start_us, end_us), Hole(symbol, 0, 0, "")).ids or (one["first"], one["last"])
                ids = min(first, one["first"]), max(last, one["last"])
                missed[start_us, end_us] = Hole(symbol, start_us, end_us, "lost", ids)
        holes += [hole for hole in [*found, *missed.values()] if hole.end_us < coverage.horizon_us]
    return sorted(holes, key=attrgetter("start_us", "symbol"))


def _blind_runs(symbol: str, intervals: Sequence[Interval]) -> Iterator[Hole]:
    """Blind intervals, each with the blind and unproven ones that it touches; recorded ones stand before them."""
    run: list[Interval] = []
    known = False
    for one in [*intervals, None]:
        broken = one is None or one.state in {"recorded", "filled"} or (bool(run) and run[-1].end_us != one.start_us)
        causes = list(dict.fromkeys(piece.cause for piece in run if piece.cause))
        if broken and run:
            if known and causes:
                yield Hole(symbol, run[0].start_us, run[-1].end_us, ",".join(causes))
            run = []
        if one is not None and one.state in {"blind", "unproven"}:
            run.append(one)
        elif one is not None:
            known = True


class Target(Protocol):
    """Where a fill goes: into a run of its own, or to the recorder."""

    def record(self, fact: str, **fields: Any) -> None:
        """A fact for the ledger; whatever was written before it is synced."""

    def write(self, rows: pa.Table) -> None:
        """Rows for the journal."""

    def close(self) -> None:
        """There is no more."""


class Backfill:
    """One backfill of a root. The caller holds the root, unless `dry_run`, which writes nothing, or `target` writes."""

    def __init__(
        self,
        layout: Layout,
        source: Source,
        *,
        min_agreement: float = 0.99,
        dry_run: bool = False,
        target: Target | None = None,
    ) -> None:
        """Looks at what is recorded. Raises NotARecording, FormatTooNew, DamagedFile, OSError."""
        self._layout = layout
        self._source = source
        self._min_agreement = min_agreement
        self._coverage = load_coverage(layout)
        self._told: list[Fact] = []
        self._started: Fact = {}
        for fact in read_all_facts(layout, '"fact":"segment.'):
            if fact["fact"] in {"ids.missed", "gap.filled", "gap.unfilled"}:
                self._told.append(fact)
            elif fact["fact"] in {"run.started", "day.started"}:
                self._started = fact
        self._id_column: str | None = self._started.get("id_column")
        schema = read_consistently(layout, EVER, known_schema)
        self._schema = pa.schema([*(one for one in schema if one.name != ORIGIN.name), ORIGIN])
        self._asks_again = target is not None
        self._run: Target | None = None if dry_run else target or OfflineRun(layout, self._started, self._schema)
        self._final: str | None = None
        """Why the source gives nothing at all."""

    def find_holes(self, symbols: Collection[str] | None, start_us: int, end_us: int) -> list[Hole]:
        """Those of these symbols (None: of all) that overlap [start, end)."""
        holes = find_holes(self._coverage, self._told, symbols)
        return [hole for hole in holes if hole.start_us < end_us and hole.end_us >= start_us]

    def find_due(self, now_us: int, settle_us: int) -> list[Hole]:
        """Those that ended so long ago; one that could not be filled is asked for again after twice the time."""
        asked = {
            (one["symbol"], one["since"] + 1, one["until"]): one["at"]
            for one in self._told
            if one["fact"] == "gap.unfilled" and one["source"] == self._source.name
        }
        holes = [one for one in find_holes(self._coverage, self._told, None) if now_us - one.end_us >= settle_us]
        last_us = [asked.get((one.symbol, one.start_us, one.end_us), one.end_us) for one in holes]
        return [one for one, at_us in zip(holes, last_us, strict=True) if now_us - at_us >= at_us - one.end_us]

    def fill(self, holes: Sequence[Hole]) -> Iterator[Outcome]:
        """What becomes of each, in this order. Raises DamagedFile, OSError."""
        with contextlib.ExitStack() as stack:
            if self._run is not None:
                stack.callback(self._run.close)
            for _, together in groupby(holes, key=attrgetter("start_us")):
                some = list(together)
                rows = self._read_around(some, MARGINS_US[0])
                for hole in some:
                    yield self._settle(hole, rows)

    def _settle(self, hole: Hole, rows: pa.Table) -> Outcome:
        """Fill it if it can be, and say in the ledger what became of it."""
        if self._final is not None:
            outcome = Outcome(hole, 0, 0, None, self._final)
        else:
            try:
                outcome, missing = self._compare(hole, rows)
                if self._run is not None and missing is not None and missing.num_rows:
                    self._run.write(missing)
            except (SourceRefused, VenueUnreachable) as error:
                outcome = Outcome(hole, 0, 0, None, str(error))
                if isinstance(error, SourceRefused) and error.final:
                    self._final = str(error)
        if self._run is not None:
            self._tell(outcome)
        return outcome

    def _compare(self, hole: Hole, rows: pa.Table) -> tuple[Outcome, pa.Table | None]:
        """What is missing there, in the columns of this root; None where nothing may be filled."""
        for margin_us in MARGINS_US:
            wider = rows if margin_us == MARGINS_US[0] else self._read_around([hole], margin_us)
            around = _Around(wider, hole, self._coverage.intervals(hole.symbol), margin_us, self._id_column)
            if around.is_enough:
                break
        if not around.compared:
            return Outcome(hole, 0, 0, None, "no trade was recorded around it to compare with"), None
        if self._id_column is not None and around.between is None:
            return Outcome(hole, 0, 0, None, "no trade was recorded on both sides of it within an hour"), None
        if self._source.by_id and around.ids is None:
            return Outcome(hole, 0, 0, None, f"{self._source.name} is asked by ids, and none are recorded"), None
        ask = Ask(hole.symbol, *around.asked_ms, *(around.ids or (None, None)))
        history = pa.concat_tables([HISTORY.empty_table(), *self._source.read(ask)])
        theirs = around.in_margins(history)
        ours, other = Counter(around.compared), Counter(theirs)
        both = (ours & other).total()
        agreement = both / ours.total(), both / other.total() if other else 0.0
        compared = max(ours.total(), other.total())
        if min(agreement) < self._min_agreement:
            shares = " and ".join(f"{share:.1%}" for share in agreement)
            why = f"agreement of {shares} ({compared} trades): {self._min_agreement:.1%} are asked for"
            return Outcome(hole, 0, compared, agreement, why), None
        missing, absent = around.find_missing(history)
        left = f"{absent} of its ids are not in the history" if absent else None
        own: dict[str, Any] = {name: missing.column(name) for name in missing.column_names}
        own |= {self._id_column: missing.column("trade_id")} if self._id_column else {}
        own |= {"symbol": pa.repeat(hole.symbol, missing.num_rows)}
        rows = complete_rows(own, missing.num_rows, self._schema, self._source.name)
        return Outcome(hole, missing.num_rows, compared, agreement, left), rows

    def _read_around(self, holes: Sequence[Hole], margin_us: int) -> pa.Table:
        """The rows of these symbols from the first of the holes to the last, with a margin."""
        reach_us = margin_us + _LATEST_US
        start_ms = (min(hole.start_us for hole in holes) - reach_us) // 1000
        end_ms = (max(hole.end_us for hole in holes) + reach_us) // 1000
        names = ["symbol", "timestamp", "price", "volume", "received_at", "sequence", ORIGIN.name]
        columns = (*names, *([self._id_column] if self._id_column else []))
        selection = Selection(Span(start_ms, end_ms), columns, tuple({hole.symbol for hole in holes}))

        def read(snapshot: Any) -> pa.Table:
            tables = [plain_texts(rows) for _, rows in read_dates(snapshot, selection)]
            found = concat_rows(tables)
            if found is None:
                return self._schema.empty_table()
            if ORIGIN.name not in found.column_names:
                found = found.append_column(ORIGIN, pa.nulls(found.num_rows, ORIGIN.type))
            return found

        return read_consistently(self._layout, selection.span, read)

    def _tell(self, outcome: Outcome) -> None:
        """The fact of an outcome, unless it was told before."""
        hole = outcome.hole
        told: dict[str, Any] = {"symbol": hole.symbol, "since": hole.start_us - 1, "until": hole.end_us}
        told["source"] = self._source.name
        if outcome.why is not None:
            told["why"] = outcome.why
            again = any(one["fact"] == "gap.unfilled" and told.items() <= one.items() for one in self._told)
            if again and not self._asks_again:
                return
        measured = {"compared": outcome.compared, "agreement": outcome.agreement and list(outcome.agreement)}
        if self._run is None:
            return
        if outcome.why is None:
            self._run.record("gap.filled", **told, rows=outcome.rows, **measured)
        else:
            self._run.record("gap.unfilled", **told, **measured)


def complete_rows(own: Mapping[str, Any], size: int, schema: pa.Schema, origin: str) -> pa.Table:
    """So many trades that nobody heard, of these columns, in those of a root; sequence numbers are given as they are
    written.
    """
    known = {
        **own,
        "received_at": pa.repeat(pa.scalar(now_us(), pa.int64()), size),
        "sequence": pa.repeat(pa.scalar(0, pa.int64()), size),
        "repeated": pa.repeat(False, size),
        ORIGIN.name: pa.repeat(origin, size),
    }
    columns = [known[one.name].cast(one.type) if one.name in known else pa.nulls(size, one.type) for one in schema]
    return pa.table(columns, schema=schema)


class _Around:
    """What was recorded in and around a hole.

    Trades are told of by time of receipt in coverage, and by their own time in a history. Between the two lies their
    delay, which is measured on the rows: whatever could have been received in the hole is in the hole.
    """

    def __init__(
        self,
        rows: pa.Table,
        hole: Hole,
        intervals: Sequence[Interval],
        margin_us: int,
        id_column: str | None,
    ) -> None:
        rows = rows.filter(pc.equal(rows.column("symbol"), hole.symbol)) if rows.num_rows else rows
        times_us = pc.multiply(rows.column("timestamp").cast(pa.int64()), 1000)
        columns = [times_us, rows.column("price"), rows.column("volume")]
        if id_column is not None:
            own = id_column in rows.column_names
            columns.append(rows.column(id_column) if own else pa.nulls(rows.num_rows, pa.int64()))
        self._ours: list[_Trade] = list(zip(*(column.to_pylist() for column in columns), strict=True))
        live = pc.is_null(rows.column(ORIGIN.name)).to_pylist()
        received_us = rows.column("received_at").cast(pa.int64()).to_pylist()
        heard = [(row, at_us) for row, own, at_us in zip(self._ours, live, received_us, strict=True) if own]
        self._has_ids = id_column is not None
        self.ids: tuple[int, int] | None = None
        """The ids to ask a source for."""
        self.between: tuple[int, int] | None = None
        """The ids between which any may be missing."""
        asked_us = self._compare_times(hole, intervals, margin_us, heard)
        if self._has_ids:  # they say which trades are alike, however short the time was in which all were heard
            known = sorted((row for row, _ in heard if row[3] is not None), key=itemgetter(3))
            earlier = [row[3] for row, at_us in heard if row[3] is not None and at_us < hole.start_us]
            later = [row[3] for row, at_us in heard if row[3] is not None and at_us >= hole.end_us]
            if hole.ids is not None:
                self.between = hole.ids[0] - 1, hole.ids[1] + 1
            elif earlier and later:
                self.between = max(earlier), min(later)
            if self.between is not None:
                low, high = self.between
                self.compared = [row for row in known if row[3] <= low][-_COMPARED:]
                self.compared += [row for row in known if row[3] >= high][:_COMPARED]
                ids = [row[3] for row in self.compared]
                self.ids = min([low, *ids]), max([high, *ids])
            times = [row[0] for row in self.compared]
            asked_us = min([asked_us[0], *times]), max([asked_us[1], *times])
        self._compared_ids = {row[3] for row in self.compared} if self._has_ids else set[int]()
        self.asked_ms = asked_us[0] // 1000, asked_us[1] // 1000 + 2
        """The time of trades to ask a source for: of those that may be missing, and of the nearest to compare."""

    def _compare_times(
        self, hole: Hole, intervals: Sequence[Interval], margin_us: int, heard: "list[tuple[_Trade, int]]"
    ) -> tuple[int, int]:
        """Find the time in which all trades were heard, and those of them that are nearest to the hole."""
        delays = sorted(at_us - row[0] for row, at_us in heard) or [0]
        early_us = delays[0] - _PAD_US
        late_us = min(delays[-1], delays[len(delays) // 2] + _LATEST_US) + _PAD_US
        hole_end_us = max(hole.end_us, hole.start_us)
        by_receipt = sorted((at_us, row[0]) for row, at_us in heard)
        # A venue sends in order: what happened between the last trade that was heard and the next may be missing,
        # however long some of it was on its way when the connection broke.
        latest = max((at for _, at in by_receipt[: bisect_left(by_receipt, (hole.start_us,))]), default=hole.start_us)
        first = min((at for _, at in by_receipt[bisect_left(by_receipt, (hole_end_us,)) :]), default=hole_end_us)
        inner = (
            min(hole.start_us - late_us, max(latest, hole.start_us - _LATEST_US)),
            max(hole_end_us - early_us, min(first, hole_end_us + _LATEST_US)),
        )
        self._hole = inner[0] - _WIDER_US, inner[1] + _WIDER_US
        """The time of trades that may be missing: rather too much of it, since what was recorded there is counted."""
        near = hole.start_us - margin_us, hole_end_us + margin_us
        spans: _Spans = []
        for one in intervals:
            if one.state == "recorded" and one.start_us < near[1] and one.end_us > near[0]:
                some = by_receipt[bisect_left(by_receipt, (one.start_us,)) : bisect_left(by_receipt, (one.end_us,))]
                start_us, end_us = max(one.start_us - early_us, near[0]), min(one.end_us - late_us, near[1])
                if some:
                    start_us = max(start_us, min(at for _, at in some) + 1000)
                    end_us = min(end_us, max(at for _, at in some))
                spans.append((start_us, end_us))
        if hole.end_us <= hole.start_us:  # which coverage doesn't know
            spans = [piece for start, end in spans for piece in ((start, inner[0]), (inner[1], end))]
        margins = [(start, end) for start, end in spans if start < end]
        times_us = sorted(row[0] for row, _ in heard if _lies_in(row[0], margins))
        before = [at_us for at_us in times_us if at_us < inner[0]][-_COMPARED:]
        after = [at_us for at_us in times_us if at_us >= inner[1]][:_COMPARED]
        start_us = before[0] if before else self._hole[0]
        end_us = after[-1] + 1000 if after else self._hole[1]
        self._margins: _Spans = [
            (max(start, start_us), min(end, end_us)) for start, end in margins if start < end_us and end > start_us
        ]
        self.compared = [row for row, _ in heard if _lies_in(row[0], self._margins)]
        """The nearest trades that were heard."""
        return min(start_us, self._hole[0]), max(end_us, self._hole[1])

    @property
    def is_enough(self) -> bool:
        """Whether a wider look is not needed."""
        return len(self.compared) >= ENOUGH and (self.between is not None or not self._has_ids)

    def in_margins(self, history: pa.Table) -> list[_Trade]:
        """The trades of a source to compare: of the ids that are compared, else of the time in which we heard all."""
        rows = self._as_tuples(history)
        if self._has_ids:  # ids that we lack say something of us, and nothing of the source
            return [row for row in rows if row[3] in self._compared_ids]
        return [row for row in rows if _lies_in(row[0], self._margins)]

    def find_missing(self, history: pa.Table) -> tuple[pa.Table, int]:
        """The trades of a source that are missing in the hole; and how many ids are missing that it hasn't either."""
        rows = self._as_tuples(history)
        chosen: list[int] = []
        absent = 0
        if self.between is not None:
            low, high = self.between
            ours = {row[3] for row in self._ours}
            there = {row[3]: at for at, row in enumerate(rows) if low < row[3] < high}
            chosen = [at for number, at in sorted(there.items()) if number not in ours]
            absent = max(high - low - 1, 0) - len({one for one in ours if one and low < one < high} | there.keys())
        else:
            have = Counter(row for row in self._ours)
            for at, row in sorted(enumerate(rows), key=lambda one: one[1][0]):
                if not self._hole[0] <= row[0] < self._hole[1]:
                    continue
                if have[row]:
                    have[row] -= 1
                else:
                    chosen.append(at)
        return history.take(pa.array(chosen, pa.int64())), absent

    def _as_tuples(self, history: pa.Table) -> list[_Trade]:
        times_us = pc.multiply(history.column("timestamp").cast(pa.int64()), 1000)
        columns = [times_us, history.column("price"), history.column("volume")]
        if self._has_ids:
            columns.append(history.column("trade_id"))
        return list(zip(*(column.to_pylist() for column in columns), strict=True))


def _lies_in(at_us: int, spans: _Spans) -> bool:
    return any(start <= at_us < end for start, end in spans)


class OfflineRun:
    """A run of its own, without a recorder: its ledger and journal, which begin with the first thing there is to write.

    The caller holds the root.
    """

    def __init__(self, layout: Layout, started: Mapping[str, Any], schema: pa.Schema, **told: Any) -> None:
        """`started`: how the run before began, whose files and columns this one goes on with; `told`: what else the
        ledger says of this one.
        """
        self._layout = layout
        self._told = told
        self._started = started
        self._schema = schema
        self._ledger: Ledger | None = None
        self._journal: Journal | None = None
        self._number = 0
        self._closed = 0
        self._sequence = 0

    def begin(self) -> None:
        """Begin it, although there is nothing to write yet: its end seals what earlier runs left in the journal."""
        self._begin()

    def record(self, fact: str, **fields: Any) -> None:
        """A fact in this run's ledger; whatever was written before it is synced. Raises OSError."""
        ledger, journal = self._begin()
        journal.sync()
        if journal.failed:
            raise journal.failed
        ledger.record(fact, **fields)

    def write(self, rows: pa.Table) -> None:
        """Journal these rows. Raises OSError."""
        _, journal = self._begin()
        for batch in rows.combine_chunks().to_batches(max_chunksize=_BLOCK_ROWS):
            size, first = batch.num_rows, self._sequence
            at = batch.schema.names.index("sequence")
            numbered = batch.set_column(at, "sequence", pa.arange(first, first + size)).cast(rows.schema)
            bounds = pc.min_max(numbered.column("received_at").cast(pa.int64())).as_py().values()
            journal.append(Block(Header(Kind.BLOCK, Counts(trades=size), 0, first, *bounds), numbered, {}))
            self._sequence += size
            if journal.unsynced.full:
                journal.sync()
                journal.rotate_if_due()
            if journal.failed:
                raise journal.failed

    def close(self) -> None:
        """Seal what was written, as a recorder does. Raises DamagedFile, OSError."""
        if self._ledger is None or self._journal is None:
            return
        ledger, layout = self._ledger, self._layout
        with contextlib.closing(ledger):
            self._journal.close()
            formats = self._started.get("formats", ["parquet"])
            accounts = SegmentAccounts(layout, ledger, self._closed, self._started.get("id_column"))
            sinks: list[Sink] = [accounts]
            sinks += [ParquetFiles(layout, ledger)] if "parquet" in formats else []
            sinks += [CsvFiles(layout)] if "csv" in formats else []
            # Whatever another destination has not had yet stays in the journal until its recorder carries it on.
            others = [path.stem for path in list_cursors(layout) if path.stem != CsvFiles.name]
            slots = RetentionSlots(layout, others, 1 << 62, 0, ledger)
            stop = threading.Event()
            stop.set()
            Runner(layout, sinks, stop, slots).run()
            release_ballast(layout)
            if accounts.violations:
                raise DamagedFile(f"{layout.root}: what was written is not what was read")
            ledger.record("run.stopped", error=None)

    def _begin(self) -> tuple[Ledger, Journal]:
        if self._ledger is not None and self._journal is not None:
            return self._ledger, self._journal
        layout, started = self._layout, self._started
        layout.create()
        history = read_history(layout)
        first_segment = next_segment(layout, history.segment)
        # A stop stays one, however soon this begins: only a recorder that starts can say that it was a restart.
        gaps = [
            replace(gap, cause="shutdown") if gap.cause == "restart" else gap
            for gap in find_inherited_gaps(layout, history)
        ]
        take_over_format_1(layout)
        self._number, self._closed, at_us = history.run + 1, history.closed, now_us()
        self._sequence = self._number << RUN_SHIFT
        ledger = Ledger(layout, self._number, day_of(at_us))
        ledger.record(
            "run.started",
            at=at_us,
            format=FORMAT_VERSION,
            version=__version__,
            run=self._number,
            feed=history.feed or "",
            venue=history.venue or "",
            columns=self._schema.names,
            id_column=started.get("id_column"),
            tickers=list(history.asked),
            formats=started.get("formats", ["parquet"]),
            first_segment=first_segment,
            closed=history.closed,
            open_gaps=[
                {"gap": gap.id, "cause": gap.cause, "since": gap.since_us, "symbol": gap.symbol} for gap in gaps
            ],
            asked=list(history.asked),
            ended=history.ended,
            **({} if history.right is None else {"right": history.right}),
            backfill=True,
            **self._told,
        )
        segments = Segments(layout, self._number, first_segment, history.feed or "", self._schema)
        self._ledger, self._journal = ledger, Journal(layout, segments, _ROTATION)
        return self._ledger, self._journal
