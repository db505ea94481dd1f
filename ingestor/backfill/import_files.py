"""Imports trades from CSV and Parquet files that somebody has: read, judge, compare with what is there, journal.

An import is a run of its own per file, as a fill is: its rows go through the journal to every sink, with sequence
numbers of their own and the file as `origin`. Nobody heard them, so they are evidence of nothing: coverage says
`imported`, and only of times that are neither recorded nor filled. A trade of a time that is recorded is left out: the
recording has it. Everywhere else trades alike in symbol, time, price and volume are counted on both sides, and what the
recording lacks is added. So an import that was killed is completed by the next, and one that is done again adds
nothing.

A file is read once, in pieces, into a folder per UTC date, and all of it is judged before a row is written. After that
the trades of some symbols of one date are in memory at a time.
"""

import contextlib
import tempfile
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from ingestor.backfill.fill import OfflineRun, complete_rows
from ingestor.capture.validate import Validated, validate
from ingestor.closed_days import hash_file
from ingestor.dataset.arguments import EVER, FOREVER_US, Span, day_start_ms, utc_date
from ingestor.dataset.coverage import find_states, read_known_coverage
from ingestor.dataset.inventory import count_values
from ingestor.dataset.merged import find_missing, group_symbols, read_selected
from ingestor.dataset.rows import Selection, by_symbol, known_schema
from ingestor.dataset.snapshot import open_recording, read_consistently
from ingestor.errors import ConfigError, ConservationViolated, IngestorError, NotARecording
from ingestor.layout import Layout, list_segments
from ingestor.ledger import now_us, read_all_facts
from ingestor.parquet import first_line, named_errors
from ingestor.schema import IMPORTED, ORIGIN, TIMESTAMP, TRADES, VENUE_TRADES

if TYPE_CHECKING:
    from ingestor.facts import Fact

Unit = Literal["s", "ms", "us", "ns"]
REQUIRED = ("timestamp", "symbol", "price")
COLUMNS = tuple(VENUE_TRADES.names)
"""Of a trade, all that a file can say."""
FAULTS_KEPT = 1000
"""Rows of a file that are named, if they can't be imported; the others are counted."""
_PER_SECOND: dict[Unit, int] = {"s": 1, "ms": 1000, "us": 1_000_000, "ns": 1_000_000_000}
_PIECE_BYTES = 4 << 20
_PIECE_ROWS = 1 << 16
_DAY_MS = 86_400_000
_EDGE_US = 5_000_000
"""So near to an end of a recorded time, a trade may have been missed, or been heard, whatever its own time says."""
_SYMBOLS_OF_A_FACT = 10_000
_OPEN_FILES = 64
_MOST_DATES = 1 << 17
_AWARE = r"\d:?\d\d.*(Z|[+-]\d\d(:?\d\d)?)$"
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
_TEXT_SHOWN = 80
_FAULTS_SHOWN = 10
_SPILLED = pa.schema([*VENUE_TRADES, pa.field("row", pa.int64()), pa.field("day", pa.int32())])
"""A good row of a file: the trade, its place among the rows, and its UTC date in days since 1970."""
_COLUMN_OF = {
    "bad_time": "timestamp",
    "bad_symbol": "symbol",
    "bad_price": "price",
    "bad_volume": "volume",
    "bad_conditions": "conditions",
}


@dataclass(frozen=True, slots=True)
class Terms:
    """How files are to be read."""

    columns: Mapping[str, str] = field(default_factory=dict)
    """The file's name of a column, by ours; columns that have our names need not be told."""
    symbol: str | None = None
    """Of all rows, where a file has no such column."""
    unit: Unit | None = None
    """Of times that are numbers since 1970; None: they are texts or timestamps."""
    zone: str | None = None
    """Of times without a zone; None: there are none."""
    delimiter: str = ","
    header: bool = True
    """Whether the first line of CSV names the columns; else they are f0, f1, …"""


class Fault(NamedTuple):
    """A row that can't be imported."""

    row: int
    """Its number among the file's rows, from 1; a heading is none."""
    reason: str
    """As of a rejected trade: `bad_time`, `bad_price`, …; or `bad_row`, with the wrong number of values."""
    text: str
    """What stands there."""

    def __str__(self) -> str:
        return f"row {self.row:,}: {self.reason} ({self.text})"


@dataclass(slots=True)
class Report:
    """What became of a file: rows = imported + there + recorded + bad."""

    file: str
    rows: int = 0
    imported: int = 0
    there: int = 0
    """The recording has such a trade already."""
    recorded: int = 0
    """Of a time that is recorded or filled."""
    bad: int = 0
    faults: list[Fault] = field(default_factory=list)
    """The first of the bad ones."""
    starts: dict[str, int] = field(default_factory=dict)
    """By symbol: the time of its first trade in the file, in µs."""
    ends: dict[str, int] = field(default_factory=dict)
    """The end of the millisecond of its last."""
    spans: dict[str, dict[int, tuple[int, int]]] = field(default_factory=dict)
    """By symbol: the same of each time in which coverage says one thing, by the number of that time."""

    def tell(self, trades: pa.RecordBatch) -> None:
        """These good rows are in the file."""
        table = pa.table({"symbol": trades["symbol"], "at": trades["timestamp"].cast(pa.int64())})
        found = table.group_by("symbol", use_threads=False).aggregate([("at", "min"), ("at", "max")])
        for one in found.to_pylist():
            symbol, first_us, end_us = one["symbol"], one["at_min"] * 1000, one["at_max"] * 1000 + 1000
            self.starts[symbol] = min(first_us, self.starts.get(symbol, first_us))
            self.ends[symbol] = max(end_us, self.ends.get(symbol, end_us))


class Import:
    """One import into a root that the caller holds, unless `dry_run`, which writes nothing."""

    def __init__(self, layout: Layout, terms: Terms, *, skip_bad: bool = False, dry_run: bool = False) -> None:
        """Looks at what is there: a recording, or an empty folder.

        Raises ConfigError where times of the zone can't be told, NotARecording, FormatTooNew, DamagedFile, OSError.
        """
        self._layout = layout
        self._terms = terms
        self._skip_bad = skip_bad
        self._dry_run = dry_run
        self.reports: list[Report] = []
        if terms.zone is not None:
            try:
                pc.assume_timezone(pa.array([0], pa.timestamp("s")), terms.zone)
            except pa.ArrowInvalid as error:
                raise ConfigError(f"{first_line(error)}: install tzdata with the system's package manager") from None
        self._started: Fact = {}
        self._told: list[Fact] = []
        schema = TRADES
        if layout.root.is_dir() and any(layout.root.iterdir()):
            open_recording(layout.root)
            with contextlib.suppress(NotARecording):  # trades without a ledger
                for fact in read_all_facts(layout, '"fact":"segment.'):
                    if fact["fact"] == "file.imported":
                        self._told.append(fact)
                    elif fact["fact"] in {"run.started", "day.started"}:
                        self._started = fact
            schema = read_consistently(layout, EVER, known_schema)
        self._coverage = read_known_coverage(layout)
        self._bounds: dict[str, list[int]] = {}
        """By symbol: when a recorder's word of it begins or ends (µs)."""
        self._schema = pa.schema([*(one for one in schema if one.name != ORIGIN.name), ORIGIN])

    def take(self, path: Path, progress: Callable[[float], object]) -> None:
        """Import one file; `progress` is told which share of the work is done. Its report is the last of `reports`.

        Raises ConfigError where the file can't be read in these terms, IngestorError naming the rows that can't be
        imported, where they are not to be skipped (nothing of the file is written then), DamagedFile, OSError.
        """
        report = Report(str(path))
        with tempfile.TemporaryDirectory(prefix="ingestor-import-") as folder, contextlib.ExitStack() as stack:
            spill, missing = Path(folder, "read"), Path(folder, "missing")
            spill.mkdir()
            pads.write_dataset(
                self._judge(path, report, progress), spill, schema=_SPILLED, format="parquet",
                partitioning=pads.partitioning(pa.schema([_SPILLED.field("day")])), max_open_files=_OPEN_FILES,
                max_partitions=_MOST_DATES, use_threads=False,
            )  # fmt: skip
            self.reports.append(report)
            if report.bad and not self._skip_bad:
                shown = "".join(f"\n{path}, {fault}" for fault in report.faults[:_FAULTS_SHOWN])
                raise IngestorError(
                    f"{path}: {report.bad:,} of {report.rows:,} rows can't be imported, so none of the file was: mend "
                    f"it, or import the others with --skip-bad{shown}"
                )
            run = None
            if not self._dry_run:
                run = OfflineRun(self._layout, self._started, self._schema, imports=True)
                stack.callback(run.close)
                if any(not file.sealed for file in list_segments(self._layout)):
                    run.begin()
            days = sorted(int(one.name) for one in spill.iterdir())
            missing.mkdir()
            for number, day in enumerate(days):
                self._compare(spill / str(day), day, report, missing / f"{day}.parquet")
                progress(0.5 + 0.3 * (number + 1) / len(days))
            if report.rows != report.imported + report.there + report.recorded + report.bad:
                raise ConservationViolated(f"{path}: the counts of its rows don't add up: {report}")
            if run is not None:
                for number, day in enumerate(days):
                    self._write(run, missing / f"{day}.parquet", f"{IMPORTED}{path.name}")
                    progress(0.8 + 0.2 * (number + 1) / len(days))
                self._tell(run, path, report)
        progress(1.0)

    def _judge(self, path: Path, report: Report, progress: Callable[[float], object]) -> Iterator[pa.RecordBatch]:
        """The good rows of a file, each with its date and its number; the report counts the others."""
        cut: list[Fault] = []
        whole = 0
        for raw, share in _read_pieces(path, self._terms, cut):
            trades, verdict = self._read_trades(path, raw)
            for row, reason in verdict.rejected:
                report.bad += 1
                if len(report.faults) < FAULTS_KEPT:
                    text = _as_text(raw[_COLUMN_OF[reason]][row]) if _COLUMN_OF[reason] in raw.schema.names else ""
                    report.faults.append(Fault(_number_in_file(whole + row + 1, cut), reason, text))
            numbers = pa.arange(whole, whole + raw.num_rows)
            whole += raw.num_rows
            days = pc.divide(trades["timestamp"].cast(pa.int64()), _DAY_MS).cast(pa.int32())
            columns = [*trades.columns, numbers, days]
            good = pa.RecordBatch.from_arrays(columns, schema=_SPILLED)
            good = good if verdict.kept is None else good.filter(verdict.kept)
            report.tell(good)
            yield good
            progress(share / 2)
        report.rows = whole + len(cut)
        report.bad += len(cut)
        report.faults = sorted([*report.faults, *cut])[:FAULTS_KEPT]

    def _read_trades(self, path: Path, raw: pa.RecordBatch) -> tuple[pa.RecordBatch, Validated]:
        """The rows as trades, and the verdict on them: what can't be converted is null, and bad."""
        size, read = raw.num_rows, dict(zip(raw.schema.names, raw.columns, strict=True))
        if self._terms.symbol is not None:
            read["symbol"] = pa.repeat(self._terms.symbol, size)
        columns: dict[str, Any] = {"timestamp": _to_times(path, read["timestamp"], self._terms)}
        for name, to in (("symbol", pa.string()), ("price", pa.float64()), ("volume", pa.float64()),
                         ("conditions", pa.string())):  # fmt: skip
            columns[name] = _convert(path, read[name], to) if name in read else pa.nulls(size, to)
        trades = pa.RecordBatch.from_arrays([columns[one.name] for one in VENUE_TRADES], schema=VENUE_TRADES)
        verdict = validate(trades, now_us())
        for name, reason in (("volume", "bad_volume"), ("conditions", "bad_conditions")):  # null is good there
            if name in read:
                unread = pc.and_(pc.is_valid(read[name]), pc.is_null(columns[name]))
                verdict = verdict.reject(unread, reason) if pc.any(unread).as_py() else verdict
        return trades, verdict

    def _compare(self, folder: Path, day: int, report: Report, into: Path) -> None:
        """Write what the recording lacks of a date's rows."""
        rows = pads.dataset(folder)
        counts = count_values(rows.to_table(["symbol"]).column(0).combine_chunks())
        columns = [name for name in _SPILLED.names if name not in {"day", "row"}]
        span = Span(day_start_ms(utc_date(day * _DAY_MS)), (day + 1) * _DAY_MS)
        with pq.ParquetWriter(into, pa.schema([_SPILLED.field(name) for name in columns])) as file:
            for symbols in group_symbols(counts):
                some = rows.to_table(filter=pc.field("symbol").isin(symbols))
                some = some.sort_by([(name, "ascending") for name in ("symbol", "timestamp", "row")]).select(columns)
                recorded = self._are_recorded(some)
                some = some.filter(pc.invert(recorded))
                self._note_spans(report, some)
                there = read_selected(
                    self._layout, Selection(span, ("symbol", "timestamp", "price", "volume"), symbols)
                )
                missing = some if there is None else find_missing(some, there)
                report.recorded += pc.sum(recorded).as_py() or 0
                report.there += some.num_rows - missing.num_rows
                report.imported += missing.num_rows
                file.write_table(missing)

    def _note_spans(self, report: Report, rows: pa.Table) -> None:
        """From which trade to which a file tells of each time that coverage doesn't divide: one that is blind is not
        imported beyond them, so a file with the same gap closes nothing.
        """
        for symbol, own in by_symbol(rows):
            if symbol not in self._bounds:
                intervals = self._coverage.intervals(symbol) if symbol in self._coverage.symbols else []
                told = [one for one in intervals if one.state != "imported"]
                self._bounds[symbol] = sorted({at_us for one in told for at_us in (one.start_us, one.end_us)})
            bounds = self._bounds[symbol]
            times_us = pc.multiply(own["timestamp"].cast(pa.int64()), 1000)
            first = bisect_right(bounds, times_us[0].as_py())
            last = bisect_right(bounds, times_us[-1].as_py())
            spans = report.spans.setdefault(symbol, {})
            for number in range(first, last + 1):
                start_us = bounds[number - 1] if number else 0
                end_us = bounds[number] if number < len(bounds) else FOREVER_US
                inside = pc.and_(pc.greater_equal(times_us, start_us), pc.less(times_us, end_us))
                found = pc.min_max(times_us if first == last else times_us.filter(inside)).as_py()
                if found["min"] is not None:
                    known = spans.get(number, (found["min"], 0))
                    spans[number] = min(known[0], found["min"]), max(known[1], min(found["max"] + 1000, end_us))

    def _are_recorded(self, rows: pa.Table) -> pa.ChunkedArray:
        """Whether each trade is of a time that is recorded or filled, and not near an end of it."""
        at_us = pc.multiply(rows.column("timestamp").cast(pa.int64()), 1000)
        found: Any = pa.chunked_array([pa.repeat(True, rows.num_rows)])
        for shift_us in (-_EDGE_US, 0, _EDGE_US):
            moments = pa.table({"symbol": rows.column("symbol"), "received_at": pc.add(at_us, shift_us)})
            states = find_states(moments, self._coverage, open_end=False)
            found = pc.and_(found, pc.is_in(states, pa.array(["recorded", "filled"])))
        return found

    def _write(self, run: OfflineRun, file: Path, origin: str) -> None:
        with pq.ParquetFile(file) as rows:
            for batch in rows.iter_batches(_PIECE_ROWS):
                own = dict(zip(batch.schema.names, batch.columns, strict=True))
                run.write(complete_rows(own, batch.num_rows, self._schema, origin))

    def _tell(self, run: OfflineRun, path: Path, report: Report) -> None:
        """The facts of a file, unless they were told before."""
        with path.open("rb") as content:
            sha256 = hash_file(content)
            size = content.tell()
        source = f"{IMPORTED}{path.name}"
        symbols = sorted(report.spans)
        for at in range(0, len(symbols), _SYMBOLS_OF_A_FACT):
            some = symbols[at : at + _SYMBOLS_OF_A_FACT]
            told: Fact = {"source": source, "bytes": size, "sha256": sha256}
            told["spans"] = {
                symbol: [at_us for _, span in sorted(report.spans[symbol].items()) for at_us in span] for symbol in some
            }
            if report.imported or not any(told.items() <= one.items() for one in self._told):
                run.record("file.imported", **told, rows=0 if at else report.imported)


# Reading somebody's files


def _read_pieces(path: Path, terms: Terms, cut: list[Fault]) -> Iterator[tuple[pa.RecordBatch, float]]:
    """The columns of a file under our names, as they are there, and how far it is read; `cut` gets the rows of CSV that
    have another number of values. Raises ConfigError, DamagedFile.
    """
    with named_errors(path):
        if path.suffix.lower() in {".parquet", ".pq"}:
            with pq.ParquetFile(path) as file:
                found = _find_columns(path, file.schema_arrow.names, terms)
                rows = max(file.metadata.num_rows, 1)
                done = 0
                for batch in file.iter_batches(_PIECE_ROWS, columns=[*found.values()]):
                    done += batch.num_rows
                    yield batch.select([*found.values()]).rename_columns([*found]), done / rows
            return
        codec = _COMPRESSIONS.get(path.suffix.lower())
        if (path.with_suffix("") if codec else path).suffix.lower() != ".csv":
            raise ConfigError(f"{path}: neither .csv (nor .csv.gz, .csv.zst, .csv.bz2) nor .parquet: name it so")
        with _open_csv(path, codec, terms, {}) as (reader, _):
            found = _find_columns(path, reader.schema.names, terms)
        types = dict.fromkeys(found.values(), pa.binary())  # converted here: a value that isn't one is named
        with _open_csv(path, codec, terms, types, cut) as (reader, done_bytes):
            size = max(path.stat().st_size, 1)
            for batch in reader:
                yield batch.select([*found.values()]).rename_columns([*found]), min(done_bytes() / size, 1.0)


@contextlib.contextmanager
def _open_csv(
    path: Path, codec: str | None, terms: Terms, types: dict[str, pa.DataType], cut: list[Fault] | None = None
) -> Iterator[tuple[pacsv.CSVStreamingReader, Callable[[], int]]]:
    """A reader of these columns (none: of all), and how many of the file's bytes it has read."""
    heading = 1 if terms.header else 0

    def skip(row: pacsv.InvalidRow) -> str:
        if cut is not None:
            text = f"{row.actual_columns} values, not {row.expected_columns}"
            cut.append(Fault((row.number or 0) - heading, "bad_row", text))
        return "skip"

    with pa.OSFile(str(path)) as raw, pa.CompressedInputStream(raw, codec) if codec else raw as stream:
        yield (
            pacsv.open_csv(
                stream,
                pacsv.ReadOptions(
                    use_threads=False, block_size=_PIECE_BYTES, autogenerate_column_names=not terms.header
                ),
                pacsv.ParseOptions(delimiter=terms.delimiter, invalid_row_handler=skip),
                pacsv.ConvertOptions(
                    include_columns=[*types], column_types=types, null_values=[""], strings_can_be_null=True
                ),
            ),
            raw.tell,
        )


def _find_columns(path: Path, names: list[str], terms: Terms) -> dict[str, str]:
    """Under which of its names a file has ours. Raises ConfigError."""
    found: dict[str, str] = {}
    for name in COLUMNS:
        if name == "symbol" and terms.symbol is not None:
            continue
        told = terms.columns.get(name, name)
        if names.count(told) == 1:
            found[name] = told
        elif name in terms.columns or name in REQUIRED or told in names:
            fault = f"{names.count(told)} columns {told!r}" if told in names else f"no column {told!r}"
            hint = f"--columns {name}=… names the right one" + (", or --symbol the symbol" if name == "symbol" else "")
            raise ConfigError(f"{path} has {fault}, for {name}; it has {', '.join(names[:20])}: {hint}")
    return found


def _number_in_file(whole: int, cut: list[Fault]) -> int:
    """The number of a row among all rows of a file, given that among those with the right number of values."""
    for row in sorted(one.row for one in cut):
        whole += row <= whole
    return whole


def _cast_each(values: pa.Array, cast: Callable[[pa.Array], pa.Array]) -> pa.Array:
    """What `cast` makes of each value; null where it can't."""
    try:
        return cast(values)
    except pa.ArrowInvalid:
        if len(values) == 1:
            return pa.nulls(1, cast(values.slice(0, 0)).type)
        half = len(values) // 2
        return pa.concat_arrays([_cast_each(values.slice(0, half), cast), _cast_each(values.slice(half), cast)])


def _to_text(values: pa.Array) -> pa.Array:
    """Texts without blanks around them; null where bytes are no UTF-8."""
    return pc.utf8_trim_whitespace(_cast_each(values, lambda some: some.cast(pa.string())))


def _convert(path: Path, values: Any, to: pa.DataType) -> Any:
    """The values as text or numbers; null where one is none. Raises ConfigError for a column of another kind."""
    values = values.dictionary_decode() if pa.types.is_dictionary(values.type) else values
    if _is_text(values.type):
        texts = _to_text(values)
        return texts if to == pa.string() else _cast_each(texts, lambda some: some.cast(to))
    if pa.types.is_integer(values.type) or pa.types.is_floating(values.type) or pa.types.is_decimal(values.type):
        return values.cast(to, safe=False)
    raise ConfigError(f"{path}: a column of {values.type} is neither text nor numbers")


def _to_times(path: Path, values: Any, terms: Terms) -> Any:
    """The times as ours; null where one is none. Raises ConfigError where the terms don't say how to read them."""
    values = values.dictionary_decode() if pa.types.is_dictionary(values.type) else values
    if pa.types.is_timestamp(values.type):
        return _to_utc(path, values, terms) if values.type.tz is None else values.cast(TIMESTAMP, safe=False)
    if terms.unit is not None:  # numbers since 1970: whole ones exactly, others to the nearest millisecond
        per_second = _PER_SECOND[terms.unit]
        floats = _convert(path, values, pa.float64())
        if _is_text(values.type):
            values = _cast_each(_to_text(values), lambda some: some.cast(pa.int64()))
        whole = values.cast(pa.int64()) if pa.types.is_integer(values.type) else pa.nulls(len(values), pa.int64())
        if per_second <= 1000:
            exact = _cast_each(whole, lambda some: pc.multiply_checked(some, 1000 // per_second))
        else:
            exact = pc.divide(whole, per_second // 1000)
        near = pc.round(pc.multiply(floats, 1000 / per_second))
        return pc.coalesce(exact, _cast_each(near, lambda some: some.cast(pa.int64()))).cast(TIMESTAMP)
    texts = _convert(path, values, pa.string())
    first = next((one.as_py() for one in texts if one.is_valid), "")
    if first.replace(".", "", 1).isdecimal():
        raise ConfigError(f"{path}: its times are numbers: say which, with --time-unit s, ms, us or ns")
    aware = pc.match_substring_regex(texts, _AWARE)
    zoned, local = pc.if_else(aware, texts, None), pc.if_else(aware, None, texts)
    times = _cast_each(zoned, lambda some: some.cast(pa.timestamp("ns", "UTC"))).cast(TIMESTAMP, safe=False)
    naive = _cast_each(local, lambda some: some.cast(pa.timestamp("ns")))
    return times if naive.null_count == len(naive) else pc.coalesce(times, _to_utc(path, naive, terms))


def _to_utc(path: Path, naive: pa.Array, terms: Terms) -> pa.Array:
    """Times of the zone of the terms. One that the zone has twice, or not at all, is null."""
    if terms.zone is None:
        raise ConfigError(f"{path}: its times have no zone: say which, with --time-zone America/New_York, or UTC")
    found = _cast_each(naive, lambda some: pc.assume_timezone(some, terms.zone))
    return found.cast(TIMESTAMP, safe=False)


def _is_text(kind: pa.DataType) -> bool:
    return kind in (pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary())


def _as_text(value: pa.Scalar) -> str:
    """What stands in a file, cut where it is long."""
    found = value.as_py()
    text = found.decode(errors="replace") if isinstance(found, bytes) else str(found)
    return "nothing" if found is None else text[:_TEXT_SHOWN]
