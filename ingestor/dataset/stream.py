"""All rows of a span as a stream: any size in bounded memory."""

import contextlib
import os
import resource
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from ingestor.dataset.merge import AT_ONCE, HELD_ROWS, merge_rows, open_rows
from ingestor.dataset.rows import Selection, plain_texts, sort_rows, split_journaled
from ingestor.dataset.snapshot import Snapshot, read_consistently, take_snapshot
from ingestor.dataset.times import Span, day_start_ms
from ingestor.layout import Layout
from ingestor.parquet import named_errors

_DAY_MS = 86_400_000
_KEYS = ("symbol", "timestamp", "sequence")


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
        asked = replace(selection, span=_within(selection.span, day_start_ms(day)), columns=columns)
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


def _within(span: Span, start_ms: int) -> Span:
    end_ms = start_ms + _DAY_MS
    return Span(
        start_ms if span.start_ms is None else max(span.start_ms, start_ms),
        end_ms if span.end_ms is None else min(span.end_ms, end_ms),
    )


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
    _allow_open_files(len(paths))
    held = []
    for path in paths:
        with named_errors(path):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a fifo would wait for a writer
        stack.callback(os.close, fd)
        held.append(_Held(path, Path(f"/dev/fd/{fd}")))
    return held


def _allow_open_files(count: int) -> None:
    """A day that was rotated every minute has more files than a process may open by default."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = min(count + 64, hard)
    if soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
