"""Reads rows from Parquet files and the journal, filtered: whole, as Arrow tables or data frames; or as a stream in
order of time, in bounded memory, merging files and days.

Inside, `symbol` and `conditions` are dictionaries: one integer per row, and each text once.
"""

import os
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import date
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ingestor import system
from ingestor.dataset.arguments import EVER, Engine, Span, day_start_ms, utc_date
from ingestor.dataset.snapshot import Snapshot, check_format, read_consistently, take_snapshot
from ingestor.layout import Layout
from ingestor.parquet import check_columns, check_rows, named_errors, open_parquet
from ingestor.schema import TIMESTAMP, TRADES
from ingestor.store import StorePath

TEXTS = ("symbol", "conditions")
"""Columns that are read as dictionaries."""
TIME_BITS = 42
"""A millisecond since 1970 in so many bits: until 2109."""
_DAY_MS = 86_400_000
_FEW_ROWS = 1000
"""Per block of the journal, on average."""
HELD_ROWS = 1 << 18
"""In memory at a time, over all sources."""
AT_ONCE = 128
"""Files to merge at a time: an open reader holds a megabyte."""

_KEYS = ("symbol", "timestamp", "sequence")


@dataclass(frozen=True, slots=True)
class Selection:
    """The rows and columns to read."""

    span: Span
    columns: tuple[str, ...]
    symbols: tuple[str, ...] | None = None
    drop_repeats: bool = False

    @property
    def needed(self) -> list[str]:
        """The columns that must be read: those asked for, and those that are looked at."""
        looked_at = ["timestamp", "symbol", *(["repeated"] if self.drop_repeats else [])]
        return list(dict.fromkeys([*self.columns, *looked_at]))


def read_dates(snapshot: Snapshot, selection: Selection) -> Iterator[tuple[date, pa.Table]]:
    """The rows of each UTC date that has any, oldest first, each sorted by (symbol, timestamp, sequence).

    With the columns of `selection.needed`. Raises FileNotFoundError where a file is gone, FormatTooNew, DamagedFile.
    """
    journaled = split_journaled(snapshot.journaled, selection)
    for day in sorted(snapshot.files.keys() | journaled.keys()):
        tables = [table for path in snapshot.files.get(day, ()) if (table := read_rows(path, selection, day)).num_rows]
        is_sorted = len(tables) == 1 and day not in journaled  # as each file is
        rows = concat_rows([*tables, journaled[day]] if day in journaled else tables)
        if rows is not None:
            yield day, rows if is_sorted else sort_rows(rows)


def read_rows(path: Path, selection: Selection, day: date | None = None) -> pa.Table:
    """The rows of one file, in its order. `day` is the file's UTC date: where all of it lies in the span, times aren't
    compared.
    """
    with (
        open_parquet(path, read_dictionary=list(TEXTS), pre_buffer=False, page_checksum_verification=True) as file,
        named_errors(path),
    ):
        check_format(path, file.metadata.metadata)
        names = file.schema_arrow.names  # made anew each time it is asked for
        check_columns(path, names)
        span = EVER if day is not None and selection.span.holds_all_of(day) else selection.span
        groups = useful_groups(file.metadata, span, selection.symbols)
        present = [name for name in selection.needed if name in names]
        rows = file.read_row_groups(groups, columns=present)
        check_rows(path, rows)
        return filter_rows(rows, selection, span)


def filter_rows(rows: pa.Table, selection: Selection, span: Span) -> pa.Table:
    """The rows that are asked for; `span` is what is left to be checked of the selection's."""
    masks = []
    if selection.symbols is not None:
        wanted = pa.array(selection.symbols, pa.string())
        masks.append(per_text(rows.column("symbol"), lambda texts: pc.is_in(texts, wanted)))
    if span.start_ms is not None:
        masks.append(pc.greater_equal(rows.column("timestamp"), pa.scalar(span.start_ms, TIMESTAMP)))
    if span.end_ms is not None:
        masks.append(pc.less(rows.column("timestamp"), pa.scalar(span.end_ms, TIMESTAMP)))
    if selection.drop_repeats:
        masks.append(pc.invert(rows.column("repeated")))
    for mask in masks[1:]:
        masks[0] = pc.and_(masks[0], mask)
    return rows.filter(masks[0]) if masks else rows


def per_text(column: pa.ChunkedArray, judge: Callable[[pa.Array], pa.Array]) -> pa.ChunkedArray:
    """A function of texts applied to a dictionary column: once per text, not once per row. Null gives null."""
    chunks = [judge(chunk.dictionary).take(chunk.indices) for chunk in column.chunks]
    return pa.chunked_array(chunks, None if chunks else judge(pa.array([], pa.string())).type)


def concat_rows(tables: Sequence[pa.Table]) -> pa.Table | None:
    """The rows of all tables, one after the other; a column that one of them lacks is null there. None of none."""
    if not tables:
        return None
    joined = tables[0] if len(tables) == 1 else pa.concat_tables(tables, promote_options="default")
    return joined.unify_dictionaries().combine_chunks()


def with_columns(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """The rows with these columns, in this order; one that they lack, being older than it, is null."""
    known = set(rows.column_names)
    columns = [rows.column(one.name) if one.name in known else pa.nulls(rows.num_rows, one.type) for one in schema]
    return pa.table(columns, names=schema.names)


def plain_texts(rows: pa.Table) -> pa.Table:
    """The rows with text where there were dictionaries, as schema and files have it."""
    for index, field in enumerate(rows.schema):
        if pa.types.is_dictionary(field.type):
            rows = rows.set_column(index, field.name, rows.column(index).cast(field.type.value_type))
    return rows


def sort_rows(rows: pa.Table) -> pa.Table:
    """Rows in order of (symbol, timestamp, sequence), given so that rows alike in the first two are in order of
    sequence.
    """
    key = sort_key(rows)
    in_order = pc.all(pc.greater_equal(key.slice(1), key.slice(0, max(len(key) - 1, 0)))).as_py()
    return rows if in_order in (True, None) else rows.take(pc.sort_indices(key))


def by_symbol(rows: pa.Table) -> Iterator[tuple[str, pa.RecordBatch]]:
    """The rows of each symbol, of rows sorted by it."""
    if not rows.num_rows:
        return
    rows = rows.combine_chunks()
    runs = pc.run_end_encode(rows.column("symbol").chunk(0))
    at = 0
    symbols, ends = runs.values.to_pylist(), runs.run_ends.to_pylist()
    for symbol, end in zip(symbols, ends, strict=True):
        yield symbol, rows.slice(at, end - at).to_batches()[0]
        at = end


def sort_key(rows: pa.Table) -> pa.Array:
    """(symbol, timestamp) as one integer per row: a sort by it is three times as fast as one by text and time."""
    symbols = rows.column("symbol").combine_chunks()
    if isinstance(symbols, pa.ChunkedArray):  # of no row
        return pa.array([], pa.int64())
    ranks = pc.sort_indices(pc.sort_indices(symbols.dictionary)).cast(pa.int64())
    times = rows.column("timestamp").combine_chunks().cast(pa.int64())
    return pc.add(pc.shift_left(ranks.take(symbols.indices), TIME_BITS), times)


def useful_groups(metadata: pq.FileMetaData, span: Span, symbols: Collection[str] | None) -> list[int]:
    """The row groups that may hold a row asked for, by their statistics."""
    if span == EVER and symbols is None:
        return list(range(metadata.num_row_groups))
    names = metadata.schema.names
    at_symbol, at_time = names.index("symbol"), names.index("timestamp")
    found = []
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        held = group.column(at_symbol).statistics if symbols is not None else None
        if held is not None and held.has_min_max:
            first, last = held.min, held.max
            if not any(first <= symbol <= last for symbol in symbols or ()):
                continue
        times = group.column(at_time).statistics if span != EVER else None
        if times is not None and times.has_min_max:
            too_late = span.end_ms is not None and times.min_raw >= span.end_ms
            if too_late or (span.start_ms is not None and times.max_raw < span.start_ms):
                continue
        found.append(index)
    return found


def split_journaled(batches: list[pa.RecordBatch], selection: Selection) -> dict[date, pa.Table]:
    """The journal's rows that are asked for, by UTC date."""
    if not batches:
        return {}
    rows = pa.concat_tables([pa.Table.from_batches([batch]) for batch in batches], promote_options="default")
    rows = rows.select([name for name in selection.needed if name in rows.column_names])
    if rows.num_rows < len(batches) * _FEW_ROWS:  # of a quiet stream: calls per block would cost more than one copy
        rows = rows.combine_chunks()
    for name in set(TEXTS) & set(rows.column_names):
        at = rows.column_names.index(name)
        rows = rows.set_column(at, name, rows.column(name).dictionary_encode())
    rows = filter_rows(rows, selection, selection.span)
    days = pc.divide(rows.column("timestamp").cast(pa.int64()), _DAY_MS)
    found = pc.unique(days).to_pylist()
    return {utc_date(day * _DAY_MS): rows.filter(pc.equal(days, day)) for day in found}


def known_schema(snapshot: Snapshot) -> pa.Schema:
    """The columns of this root: of its newest rows, which know any that came later."""
    if snapshot.journaled:
        return snapshot.journaled[-1].schema.remove_metadata()
    if snapshot.files:
        newest = snapshot.files[max(snapshot.files)][-1]
        with named_errors(newest):
            found = newest.stat()
        return _read_schema(newest, found.st_ino, found.st_size, found.st_mtime_ns)
    return TRADES


@lru_cache(maxsize=256)  # those of a year's days
def _read_schema(path: Path, *_as_it_is: int) -> pa.Schema:
    """The columns of a file, once as long as it is the one that these numbers tell. In a store a name is never used
    again.
    """
    with open_parquet(path) as file, named_errors(path):
        return file.schema_arrow.remove_metadata()


def as_frame(table: pa.Table, engine: Engine, tz: str) -> Any:
    """The table with its times in `tz`: a pandas DataFrame, `symbol` as a category; or Arrow, plain."""
    for index, field in enumerate(table.schema):
        if pa.types.is_timestamp(field.type) and field.type.tz is not None and field.type.tz != tz:
            table = table.set_column(index, field.name, table.column(index).cast(pa.timestamp(field.type.unit, tz)))
    if engine == "arrow":
        return plain_texts(table)
    frame = plain_texts(table)
    if "symbol" in table.column_names:
        at = table.column_names.index("symbol")
        # A category for each symbol that occurs, in alphabetical order.
        plain = table.column(at).cast(pa.string())
        symbols = pc.unique(plain)
        categories = symbols.take(pc.sort_indices(symbols))
        chunks = [pa.DictionaryArray.from_arrays(chunk, categories) for chunk in pc.index_in(plain, categories).chunks]
        codes = pa.chunked_array(chunks, pa.dictionary(pa.int32(), pa.string()))
        frame = frame.set_column(at, "symbol", codes)
    return frame.to_pandas()


# As a stream


class _Key(NamedTuple):
    """A row's place in the order."""

    symbol: str
    timestamp_ms: int
    sequence: int


def merge_rows(
    sources: Sequence[Iterator[pa.Table]], held_rows: int = HELD_ROWS, look: Callable[[pa.Table], None] | None = None
) -> Iterator[pa.Table]:
    """The rows of all sources in order of (symbol, timestamp, sequence), in tables of no particular size.

    Each source is sorted so itself; sources are given in order of sequence. `look` is shown every table that is read.
    """
    heads = [_Head(source, max(held_rows // len(sources), 1), look) for source in sources]
    heads = [head for head in heads if head.fill()]
    while heads:
        bound = min((head.last for head in heads if not head.ended), default=None)
        # Parts are of different hours: in a busy symbol only a few of them have rows before the bound.
        reached = [head for head in heads if bound is None or head.first <= bound]
        merged = concat_rows([head.take(bound) for head in reached])
        if merged is not None:
            yield sort_rows(merged)
        spent = [head for head in reached if not head.fill()]
        heads = [head for head in heads if head not in spent]


def open_rows(
    stack: ExitStack, path: Path, batch_rows: int, selection: Selection | None = None, opened: Path | None = None
) -> Iterator[pa.Table]:
    """The rows of one file that are asked for (None: all), in its order, a few at a time.

    The file is open at once, so that it stays readable whatever becomes of its name, and until the stack is closed.
    `opened`: a path that stays good where the file was opened already; errors name `path`. Raises FileNotFoundError,
    FormatTooNew, DamagedFile, here and from the iterator.
    """
    with named_errors(path):
        file = stack.enter_context(
            open_parquet(path, opened, read_dictionary=list(TEXTS), pre_buffer=False, page_checksum_verification=True)
        )
        check_format(path, file.metadata.metadata)
        names = file.schema_arrow.names
        check_columns(path, names)
        # Without threads: to hand out a few thousand rows' columns to them costs three times as much as to read them.
        if selection is None:
            batches = file.iter_batches(batch_rows, use_threads=False)
        else:
            groups = useful_groups(file.metadata, selection.span, selection.symbols)
            present = [name for name in selection.needed if name in names]
            batches = file.iter_batches(batch_rows, groups, columns=present, use_threads=False)
    return _read_batches(path, batches, selection)


def _read_batches(path: Path, batches: Iterator[pa.RecordBatch], selection: Selection | None) -> Iterator[pa.Table]:
    while True:
        with named_errors(path):
            batch = next(batches, None)
            if batch is None:
                return
            table = pa.Table.from_batches([batch])
            check_rows(path, table)
            rows = table if selection is None else filter_rows(table, selection, selection.span)
        yield rows


class _Head:
    """The rows held of one source: those that come next."""

    def __init__(self, source: Iterator[pa.Table], rows: int, look: Callable[[pa.Table], None] | None) -> None:
        self._source = source
        self._rows = rows
        self._look = look
        self._held: pa.Table | None = None
        self.ended = False
        self.first = self.last = _Key("", 0, 0)
        """Of the rows held; what the source has yet to give comes after the last."""

    def fill(self) -> bool:
        """Read on where less than half is left; whether any row is."""
        while not self.ended and (self._held is None or self._held.num_rows < (self._rows + 1) // 2):
            table = next(self._source, None)
            if table is None:
                self.ended = True
            else:
                if self._look is not None:
                    self._look(table)
                self._held = concat_rows([self._held, table]) if self._held and self._held.num_rows else table
        if self._held is None or not self._held.num_rows:
            return False
        self.first, self.last = _key(self._held, 0), _key(self._held, self._held.num_rows - 1)
        return True

    def take(self, bound: _Key | None) -> pa.Table:
        """The rows up to and with this place (None: all), of which there are some."""
        if self._held is None:
            raise ValueError("nothing is held before it is filled")
        size = self._held.num_rows
        if bound is not None and self.last > bound:
            symbol, at_ms, sequence = bound
            symbols, sequences = self._held.column("symbol"), self._held.column("sequence")
            times = self._held.column("timestamp").cast(pa.int64())
            earlier_symbol = per_text(symbols, lambda texts: pc.less(texts, symbol))
            same_symbol = per_text(symbols, lambda texts: pc.equal(texts, symbol))
            same_time = pc.and_(pc.equal(times, at_ms), pc.less_equal(sequences, sequence))
            earlier = pc.or_(pc.less(times, at_ms), same_time)
            size = int(pc.sum(pc.or_(earlier_symbol, pc.and_(same_symbol, earlier))).as_py() or 0)
        taken, self._held = self._held.slice(0, size), self._held.slice(size)
        return taken


def _key(rows: pa.Table, at: int) -> _Key:
    return _Key(
        rows.column("symbol")[at].as_py(), rows.column("timestamp")[at].value, rows.column("sequence")[at].as_py()
    )


def stream_rows(layout: Layout, selection: Selection) -> Iterator[tuple[date, pa.Table]]:
    """The rows asked for: UTC date by date, within each by (symbol, timestamp, sequence), in tables of no particular
    size. (A date of more than AT_ONCE files comes in several such runs, until it is compacted: see `stream_runs`.)

    Each date is a consistent whole as it is when it is reached. Columns as in `selection.columns`, without those
    that are younger than the rows; texts plain. Raises FormatTooNew, OSError.
    """
    for day, runs in stream_runs(layout, selection):
        for run in runs:
            for rows in run:
                yield day, rows


def stream_runs(layout: Layout, selection: Selection) -> Iterator[tuple[date, Iterator[Iterator[pa.Table]]]]:
    """The same, where the order matters: of each date its runs, each of them sorted. A late trade stands in a later run
    than its neighbours. A run that is not read to its end costs nothing more.
    """
    columns = tuple(dict.fromkeys([*selection.columns, *_KEYS]))
    for day in _days(layout, selection):
        day_ms, span = day_start_ms(day), selection.span
        start_ms = day_ms if span.start_ms is None else max(span.start_ms, day_ms)
        end_ms = day_ms + _DAY_MS if span.end_ms is None else min(span.end_ms, day_ms + _DAY_MS)
        asked = replace(selection, span=Span(start_ms, end_ms), columns=columns)
        with ExitStack() as stack:
            files, journaled = _hold_day(stack, layout, asked, day)
            yield day, (_finished(run, selection) for run in _merged(files, journaled, asked))


class _Held(NamedTuple):
    """A file that stays readable, even where it is deleted."""

    path: Path
    opened: Path
    """Good until the stack is closed."""


def _finished(run: Iterator[pa.Table], selection: Selection) -> Iterator[pa.Table]:
    """With the columns that were asked for."""
    for rows in run:
        yield plain_texts(rows.select([name for name in selection.columns if name in rows.column_names]))


def _merged(files: list[_Held], journaled: pa.Table | None, selection: Selection) -> Iterator[Iterator[pa.Table]]:
    """The rows of these files and of the journal, AT_ONCE files at a time."""
    last = [] if journaled is None else [iter([sort_rows(journaled)])]
    for at in range(0, max(len(files), 1), AT_ONCE):
        some = files[at : at + AT_ONCE]
        batch_rows = min(max(HELD_ROWS // max(len(some), 1), 1 << 10), 1 << 16)
        with ExitStack() as stack:
            sources = [open_rows(stack, held.path, batch_rows, selection, held.opened) for held in some]
            yield merge_rows([*sources, *last] if at + AT_ONCE >= len(files) else sources)


def _days(layout: Layout, selection: Selection) -> list[date]:
    snapshot = take_snapshot(layout, selection.span)
    return sorted(snapshot.files.keys() | split_journaled(snapshot.journaled, selection).keys())


def _hold_day(stack: ExitStack, layout: Layout, selection: Selection, day: date) -> tuple[list[_Held], pa.Table | None]:
    """A date's files and what of it is in the journal. From here on nothing that happens to the names matters."""

    def hold(snapshot: Snapshot) -> tuple[list[_Held], pa.Table | None]:
        with ExitStack() as opened:
            held = _hold(opened, snapshot.files.get(day, []))
            stack.enter_context(opened.pop_all())
            return held, split_journaled(snapshot.journaled, selection).get(day)

    return read_consistently(layout, selection.span, hold)


def _hold(stack: ExitStack, paths: list[Path]) -> list[_Held]:
    system.allow_open_files(len(paths) + 64)  # a day that was rotated every minute has more than is usual
    held = []
    for path in paths:
        if isinstance(path, StorePath):
            copy = Path(stack.enter_context(TemporaryDirectory(prefix="ingestor-"))) / path.name
            with named_errors(path), path.open("rb") as file, copy.open("wb") as local:
                shutil.copyfileobj(file, local)
            held.append(_Held(path, copy))
            continue
        with named_errors(path):
            fd = os.open(path, system.READ)  # a fifo would wait for a writer
        stack.callback(os.close, fd)
        held.append(_Held(path, Path(f"/dev/fd/{fd}") if system.FD_PATHS else path))
    return held
