"""Inventory of a recording: lists its files, and counts their rows again."""

import contextlib
import gzip
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from ingestor import parquet
from ingestor.dataset.snapshot import date_folder, list_days, list_names, read_origin, split_names, whole_compactions
from ingestor.errors import DamagedFile, Lagged, NotARecording
from ingestor.journal.follower import Damage, Event, Follower, Rows, SegmentEnd
from ingestor.journal.records import Cursor
from ingestor.layout import Layout, SegmentId, check_is_file, is_own, list_segments
from ingestor.ledger import read_all_facts
from ingestor.metrics import Counts
from ingestor.schema import FORMAT_VERSION, ORIGIN, TRADES
from ingestor.trade_ids import IdRanges

_MAGIC = b"PAR1"
_DAY_MS = 86_400_000
_EPOCH = date(1970, 1, 1)


@dataclass(slots=True)
class Recount:
    """The rows counted in one file, or in one segment of the journal."""

    rows: int = 0
    trades: Counter[str] = field(default_factory=Counter)
    """By symbol."""
    repeated: Counter[str] = field(default_factory=Counter)
    ids: IdRanges = field(default_factory=IdRanges)
    """Those by which the venue counts each symbol's trades."""
    first_sequence: int | None = None
    last_sequence: int | None = None
    """The lowest and the highest."""
    digests: list[parquet.Digest] = field(default_factory=list)
    """Of the rows in each span that was asked for."""
    faults: list[tuple[str, str]] = field(default_factory=list)
    """(what is wrong, what was expected)."""

    def add(self, rows: pa.Table | pa.RecordBatch, id_column: str | None = None) -> None:
        """Count rows with the columns symbol, sequence and repeated; `id_column` is of the feed's terms."""
        if not rows.num_rows:
            return
        self.rows += rows.num_rows
        symbols, repeated = rows.column("symbol"), rows.column("repeated")
        self.trades.update(count_values(symbols))
        self.repeated.update(count_values(symbols.filter(repeated)))
        if id_column in rows.schema.names:
            table = pa.Table.from_batches([rows]) if isinstance(rows, pa.RecordBatch) else rows
            for batch in table.select(["symbol", id_column]).combine_chunks().to_batches():
                self.ids.add_columns(*batch.columns)
        self._widen(*pc.min_max(rows.column("sequence")).as_py().values())

    def digest(self, rows: pa.Table | pa.RecordBatch, spans: Sequence[parquet.Span]) -> None:
        """Digest rows that have all their columns, span by span."""
        if not spans:
            return
        found = parquet.digest_rows(rows, spans)
        self.digests = (
            [parquet.add_digests(*both) for both in zip(self.digests, found, strict=True)] if self.digests else found
        )

    def join(self, other: "Recount") -> None:
        """Count another file of the same segment."""
        self.rows += other.rows
        self.trades += other.trades
        self.repeated += other.repeated
        self.ids.add_all(other.ids)
        if other.first_sequence is not None and other.last_sequence is not None:
            self._widen(other.first_sequence, other.last_sequence)

    def _widen(self, low: int, high: int) -> None:
        self.first_sequence = low if self.first_sequence is None else min(self.first_sequence, low)
        self.last_sequence = high if self.last_sequence is None else max(self.last_sequence, high)


def count_values(symbols: Any) -> dict[str, int]:
    """The number of rows of each symbol in a column."""
    return {entry["values"]: entry["counts"] for entry in symbols.value_counts().to_pylist()}


def recount_parquet(
    path: Path, day: date, columns: list[str], id_column: str | None, spans: Sequence[parquet.Span] = ()
) -> tuple[Recount, str]:
    """The rows of a file of the dataset, and the origin it names. Raises FileNotFoundError; lists other faults."""
    recount = Recount()
    origin = ""
    try:
        parquet.check_pages(path)
        with parquet.open_parquet(path, page_checksum_verification=True) as file, parquet.named_errors(path):
            metadata = file.schema_arrow.metadata or {}
            origin = metadata.get(parquet.ORIGIN_KEY, b"").decode(errors="replace")
            recount.faults += _faults_of_schema(file.schema_arrow, columns)
            if not recount.faults:
                _recount_groups(file, day, recount, id_column, spans)
            with path.open("rb") as head:
                if head.read(len(_MAGIC)) != _MAGIC:
                    recount.faults.append(("another beginning than a Parquet file has", _MAGIC.decode()))
    except DamagedFile as error:
        recount.faults.append((str(error).removeprefix(f"{path}: "), "whole pages with right checksums"))
    return recount, origin


def recount_csv(path: Path, columns: list[str]) -> Recount:
    """The rows of a CSV file, gzipped or not. Raises FileNotFoundError; lists every other fault."""
    recount = Recount()
    last = -1
    try:
        check_is_file(path)
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            heading = file.readline(1 << 16).decode(errors="replace").removesuffix("\n")
        # What a recorder fills lies in segments of their own, which have the origin.
        if heading not in {",".join(columns), ",".join([*columns, ORIGIN.name])}:
            recount.faults.append((f"columns {heading[:200]!r}", f"{','.join(columns)}"))
            return recount
        names = heading.split(",")
        types = {name: TRADES.field(name).type if name in TRADES.names else pa.string() for name in names}
        with pacsv.open_csv(path, convert_options=pacsv.ConvertOptions(column_types=types)) as reader:
            for batch in reader:
                sequences = pa.concat_arrays([pa.array([last]), batch.column("sequence")])
                rises = pc.less(sequences.slice(0, len(sequences) - 1), sequences.slice(1))
                if pc.all(pc.fill_null(rises, False)).as_py() is False:  # null where there is no row
                    recount.faults.append(("sequence falls or repeats", "rising from row to row"))
                    return recount
                last = sequences[-1].as_py()
                recount.add(batch)
                recount.digest(batch, [parquet.WHOLE])
    except FileNotFoundError:
        raise
    except DamagedFile as error:
        recount.faults.append((str(error).removeprefix(f"{path}: "), "whole lines"))
    except (OSError, EOFError, ValueError, pa.ArrowException) as error:
        recount.faults.append((f"can't be read: {parquet.first_line(error)}", "whole lines"))
    return recount


def _recount_groups(
    file: pq.ParquetFile, day: date, recount: Recount, id_column: str | None, spans: Sequence[parquet.Span]
) -> None:
    unsorted = misplaced = False
    before: pa.Table | None = None
    sequences: list[pa.ChunkedArray] = []
    ordinal = (day - _EPOCH).days
    for index in range(file.metadata.num_row_groups):
        rows = file.read_row_group(index)
        unsorted |= not is_sorted(rows if before is None else pa.concat_tables([before, rows]))
        bounds = pc.min_max(rows.column("timestamp").cast(pa.timestamp("ms", tz="UTC")).cast(pa.int64())).as_py()
        misplaced |= any(bound is not None and bound // _DAY_MS != ordinal for bound in bounds.values())
        before = rows.slice(rows.num_rows - 1)
        sequences.append(rows.column("sequence"))
        recount.add(rows, id_column)
        recount.digest(rows, spans)
        if not recount.faults:  # those of one row group are enough to name
            recount.faults += _faults_of_statistics(file.metadata.row_group(index), rows)
    if unsorted:
        recount.faults.append(("rows out of order", "sorted by symbol, timestamp, sequence"))
    if misplaced:
        recount.faults.append(("rows of another date", f"rows of {day.isoformat()} only"))
    distinct = pc.count_distinct(pa.chunked_array([chunk for one in sequences for chunk in one.chunks], pa.int64()))
    if distinct.as_py() != recount.rows:
        recount.faults.append((f"{recount.rows - distinct.as_py()} repeated sequence numbers", "each only once"))


def _faults_of_statistics(group: pq.RowGroupMetaData, rows: pa.Table) -> Iterator[tuple[str, str]]:
    """Faults of a row group's statistics that differ from its rows: a filter by them would return other rows.

    For groups whose columns were all read: Arrow then raises what in their metadata `column` would abort at.
    """
    for index in range(group.num_columns):
        held = group.column(index).statistics
        name = group.column(index).path_in_schema
        if held is None or name not in rows.column_names:
            continue
        column = rows.column(name)
        told: dict[str, Any] = {"nulls": held.null_count} if held.has_null_count else {}
        found: dict[str, Any] = {"nulls": column.null_count}
        if held.has_min_max:
            told |= {"min": held.min, "max": held.max}
            found |= pc.min_max(column).as_py()
        for what, value in told.items():
            if value != found[what]:
                yield f"statistics with {what} {value!r} of {name}", f"{found[what]!r}, as in the rows"


def is_sorted(rows: pa.Table) -> bool:
    """Whether each row stands after the one before it in (symbol, timestamp, sequence). No null stands in order."""
    in_order: Any = False
    for name in ("sequence", "timestamp", "symbol"):
        column = rows.column(name)
        before, after = column.slice(0, rows.num_rows - 1), column.slice(1)
        rises = pc.less(before, after)
        in_order = rises if in_order is False else pc.or_(rises, pc.and_(pc.equal(before, after), in_order))
    return rows.num_rows < 2 or pc.all(pc.fill_null(in_order, False)).as_py() is True


def _faults_of_schema(schema: pa.Schema, columns: list[str]) -> list[tuple[str, str]]:
    """Faults of a schema that is not as this root's ledger and this version have it."""
    version = (schema.metadata or {}).get(parquet.FORMAT_KEY, b"missing").decode(errors="replace")
    if version not in map(str, range(1, FORMAT_VERSION + 1)):
        return [(f"format {version}", str(FORMAT_VERSION))]
    # A day's compacted file has the origin where any of its rows was filled, whatever the newest run recorded.
    if [name for name in schema.names if name != ORIGIN.name] != [name for name in columns if name != ORIGIN.name]:
        return [(f"columns {','.join(schema.names)}", ",".join(columns))]
    return [
        (f"column {name} of type {schema.field(name).type}", str(TRADES.field(name).type))
        for name in TRADES.names
        if schema.field(name).type != TRADES.field(name).type
    ]


@dataclass(slots=True)
class Journaled:
    """A segment for which the journal speaks."""

    recount: Recount = field(default_factory=Recount)
    counts: Counts = field(default_factory=Counts)
    reasons: Counter[str] = field(default_factory=Counter)
    ended: bool = False
    damaged: bool = False

    def add(self, event: Event, id_column: str | None = None) -> None:
        """Count one more event of it."""
        if isinstance(event, Rows):
            self.counts += event.counts
            self.reasons.update(event.reasons)
            self.recount.add(event.batch, id_column)
        else:
            self.ended = isinstance(event, SegmentEnd)
            self.damaged |= isinstance(event, Damage)


@dataclass(frozen=True, slots=True)
class CompactedDay:
    """A day's files that hold the rows of many segments."""

    day: date
    paths: list[Path]
    origin: frozenset[str]


def list_parts(layout: Layout) -> dict[str, set[date]]:
    """The dates of each segment's files."""
    found: dict[str, set[date]] = {}
    for day in list_days(layout):
        _, parts = split_names(list_names(date_folder(layout, day)))
        for name in parts:
            found.setdefault(name.removesuffix(".parquet"), set()).add(day)
    return found


def list_compactions(layout: Layout) -> list[CompactedDay]:
    """The whole compactions of all days. Others are leftovers that no reader reads."""
    return [compaction for day in list_days(layout) for compaction in list_compactions_of(layout, day)]


def list_compactions_of(layout: Layout, day: date) -> list[CompactedDay]:
    """The whole compactions of one day."""
    folder = date_folder(layout, day)
    compacted, _ = split_names(list_names(folder))
    found = []
    for names in whole_compactions(compacted):
        paths = [folder / str(name) for name in names]
        try:
            found.append(CompactedDay(day, paths, read_origin(paths[0])))
        except DamagedFile:  # which whoever recounts it will report
            found.append(CompactedDay(day, paths, frozenset()))
        except FileNotFoundError:  # compacted anew since it was listed
            continue
    return found


def list_csv(layout: Layout) -> dict[str, list[Path]]:
    """The CSV files of each segment."""
    found: dict[str, list[Path]] = {}
    for path in layout.csv.glob("date=*/*.csv*"):
        if is_own(path.relative_to(layout.root).as_posix()):
            found.setdefault(path.name.partition(".")[0], []).append(path)
    return found


def read_journal(layout: Layout, id_column: str | None = None) -> dict[str, Journaled]:
    """The segments for which the dataset doesn't speak yet, as they are now. Raises FormatTooNew, OSError."""
    unsealed = [file.id for file in list_segments(layout) if not file.sealed]
    while True:
        try:
            return _follow(layout, unsealed, id_column)
        except FileNotFoundError as error:  # sealed and freed between the listing and the opening, or never there
            before, unsealed = unsealed, [file.id for file in list_segments(layout) if not file.sealed]
            if unsealed == before:
                place = error.filename or layout.journal
                raise DamagedFile(f"{place}: is listed, and leads to no file") from None


def _follow(layout: Layout, unsealed: list[SegmentId], id_column: str | None) -> dict[str, Journaled]:
    """These segments, stepping over numbers that the journal lacks."""
    found: dict[str, Journaled] = {}
    left = unsealed
    while left:
        with contextlib.closing(Follower(layout, Cursor(left[0].number, 0), synced_only=False)) as follower:
            try:
                for event in follower.read():
                    if event.segment in unsealed:
                        found.setdefault(str(event.segment), Journaled()).add(event, id_column)
            except Lagged:  # a segment between them was freed, or lost
                left = [segment for segment in left if segment.number > follower.cursor.segment]
            else:
                break
    return found


def read_id_column(layout: Layout) -> str | None:
    """The column by which the newest run's venue counts each symbol's trades. Raises NotARecording, OSError."""
    facts = read_all_facts(layout, '"fact":"s')
    columns = [fact.get("id_column") for fact in facts if fact["fact"] in {"run.started", "day.started"}]
    return columns[-1] if columns else None


def has_fills(layout: Layout) -> bool:
    """Whether a backfill, or a recorder that fills, has written to this root. Raises OSError."""
    with contextlib.suppress(NotARecording):  # a copy of the trades alone
        facts = read_all_facts(layout, '"fact":"s')
        return any(fact["fact"] == "gap.filled" or fact.get("backfill", False) for fact in facts)
    return False


def read_deleted(layout: Layout, what: str = "day") -> set[date]:
    """The dates that retention has deleted, or is about to: of trades, or (`raw`) of frames as they came."""
    facts = read_all_facts(layout, '"fact":"s')  # segments and symbols: most of a ledger
    return {date.fromisoformat(fact["date"]) for fact in facts if fact["fact"] == f"{what}.deleted"}
