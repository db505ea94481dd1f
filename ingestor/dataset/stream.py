"""Streams rows in order of time, in bounded memory: merges files and days."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from ingestor import system
from ingestor.dataset.arguments import Span, day_start_ms
from ingestor.dataset.rows import (
    TEXTS,
    Selection,
    concat_rows,
    filter_rows,
    per_text,
    plain_texts,
    sort_rows,
    split_journaled,
    useful_groups,
)
from ingestor.dataset.snapshot import Snapshot, check_format, read_consistently, take_snapshot
from ingestor.layout import Layout
from ingestor.parquet import check_columns, check_rows, named_errors, open_parquet
from ingestor.store import StorePath

HELD_ROWS = 1 << 18
"""In memory at a time, over all sources."""
AT_ONCE = 128
"""Files to merge at a time: an open reader holds a megabyte."""

_DAY_MS = 86_400_000
_KEYS = ("symbol", "timestamp", "sequence")


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
        check_columns(path, file.schema_arrow.names)
        # Without threads: to hand out a few thousand rows' columns to them costs three times as much as to read them.
        if selection is None:
            batches = file.iter_batches(batch_rows, use_threads=False)
        else:
            groups = useful_groups(file.metadata, selection.span, selection.symbols)
            present = [name for name in selection.needed if name in file.schema_arrow.names]
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
        size = self._held.num_rows if bound is None or self.last <= bound else _count_until(self._held, bound)
        taken, self._held = self._held.slice(0, size), self._held.slice(size)
        return taken


def _key(rows: pa.Table, at: int) -> _Key:
    return _Key(
        rows.column("symbol")[at].as_py(), rows.column("timestamp")[at].value, rows.column("sequence")[at].as_py()
    )


def _count_until(rows: pa.Table, bound: _Key) -> int:
    """The number of these sorted rows that stand at or before this place."""
    symbols, times, sequences = (
        rows.column("symbol"),
        rows.column("timestamp").cast(pa.int64()),
        rows.column("sequence"),
    )
    earlier_symbol = per_text(symbols, lambda texts: pc.less(texts, bound.symbol))
    same_symbol = per_text(symbols, lambda texts: pc.equal(texts, bound.symbol))
    earlier = pc.or_(
        pc.less(times, bound.timestamp_ms),
        pc.and_(pc.equal(times, bound.timestamp_ms), pc.less_equal(sequences, bound.sequence)),
    )
    return int(pc.sum(pc.or_(earlier_symbol, pc.and_(same_symbol, earlier))).as_py() or 0)


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
        with contextlib.ExitStack() as stack:
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
        with contextlib.ExitStack() as stack:
            sources = [open_rows(stack, held.path, batch_rows, selection, held.opened) for held in some]
            yield merge_rows([*sources, *last] if at + AT_ONCE >= len(files) else sources)


def _days(layout: Layout, selection: Selection) -> list[date]:
    snapshot = take_snapshot(layout, selection.span)
    return sorted(snapshot.files.keys() | split_journaled(snapshot.journaled, selection).keys())


def _hold_day(
    stack: contextlib.ExitStack, layout: Layout, selection: Selection, day: date
) -> tuple[list[_Held], pa.Table | None]:
    """A date's files and what of it is in the journal. From here on nothing that happens to the names matters."""

    def hold(snapshot: Snapshot) -> tuple[list[_Held], pa.Table | None]:
        with contextlib.ExitStack() as opened:
            held = _hold(opened, snapshot.files.get(day, []))
            stack.enter_context(opened.pop_all())
            return held, split_journaled(snapshot.journaled, selection).get(day)

    return read_consistently(layout, selection.span, hold)


def _hold(stack: contextlib.ExitStack, paths: list[Path]) -> list[_Held]:
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
