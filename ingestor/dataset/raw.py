"""Frames as they came (`storage.raw`): reads them, from `raw/` and, where they are not sealed, from the journal; and
compares what was recorded of them with what they are decoded to now.
"""

import contextlib
import math
import operator
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from ingestor.dataset.arguments import EVER, Span, day_start_ms
from ingestor.dataset.rows import with_columns
from ingestor.dataset.snapshot import Snapshot, check_format, list_names, parse_days, read_consistently, split_names
from ingestor.errors import DamagedFile, Lagged
from ingestor.journal.follower import Follower, Rows
from ingestor.journal.records import Cursor, RawHead, expand_frames, split_raw
from ingestor.layout import Layout, SegmentId, list_segments
from ingestor.parquet import ORIGIN_KEY, check_pages, named_errors, open_parquet
from ingestor.schema import FRAMES, PACKED_FRAMES, RECEIVED_AT

_DAY_MS = 86_400_000
_TABLE_BYTES = 8 << 20
_PLAIN = pa.schema([(field.name, pa.binary() if field.name == "data" else pa.int64()) for field in PACKED_FRAMES])
_NEAR = 32
"""So many trades of the same moment are looked at to find the one that a trade has become."""


def list_raw_days(layout: Layout) -> list[date]:
    """The UTC dates of receipt of which there are frames, oldest first."""
    return sorted(parse_days(path.name for path in layout.raw.iterdir())) if layout.raw.is_dir() else []


def list_raw_files(layout: Layout, span: Span = EVER) -> dict[str, list[date]]:
    """The dates of each segment's frames, of those that may hold a moment of the span. Raises DamagedFile."""
    first, last = span.days
    found: dict[str, list[date]] = {}
    for day in list_raw_days(layout):
        if first <= day <= last:
            for name in split_names(list_names(layout.raw / f"date={day.isoformat()}"))[1]:
                found.setdefault(name.removesuffix(".parquet"), []).append(day)
    return found


def read_frames(layout: Layout, span: Span = EVER) -> Iterator[pa.Table]:
    """The frames that were received in the span, in the order of their receipt, with the columns FRAMES; together with
    them come those that were decoded in one block with one of them.

    Raises DamagedFile, FormatTooNew, OSError.
    """
    # The journal first: what is sealed after that is read from it still, or, once it is freed, from the files.
    unsealed = {file.id for file in list_segments(layout) if not file.sealed}
    files = list_raw_files(layout, span)
    for segment in sorted({*map(SegmentId.parse, files), *unsealed}):
        tables: Iterable[pa.Table] | None = _read_journaled(layout, segment) if segment in unsealed else None
        if tables is None:
            days = files.get(str(segment)) or list_raw_files(layout, span).get(str(segment), [])
            tables = _read_files(layout, segment, days, span)
        for table in tables:
            asked = are_received_in(table, span)
            if pc.any(asked).as_py():
                blocks = pc.unique(table.column("block").filter(asked))
                yield table.filter(pc.is_in(table.column("block"), blocks))


def are_received_in(rows: pa.Table, span: Span) -> pa.ChunkedArray:
    """Whether each of these rows was received in the span."""
    received = rows.column("received_at")
    asked = pc.is_valid(received)
    if span.start_ms is not None:
        asked = pc.and_(asked, pc.greater_equal(received, pa.scalar(span.start_ms * 1000, RECEIVED_AT)))
    if span.end_ms is not None:
        asked = pc.and_(asked, pc.less(received, pa.scalar(span.end_ms * 1000, RECEIVED_AT)))
    return asked


def _read_journaled(layout: Layout, segment: SegmentId) -> list[pa.Table] | None:
    """The frames of a segment of the journal; None where it was freed, and so published."""
    tables = []
    with contextlib.closing(Follower(layout, Cursor(segment.number, 0), synced_only=False)) as follower:
        try:
            for event in follower.read():
                if event.segment != segment:
                    break
                if isinstance(event, Rows) and event.raw is not None:
                    head, data = split_raw(event.raw)
                    batch = expand_frames(segment.run, head.first_frame, head, data)
                    tables.append(pa.Table.from_batches([batch]))
        except (FileNotFoundError, Lagged):
            return None
    return tables


def _read_files(layout: Layout, segment: SegmentId, days: Collection[date], span: Span) -> Iterator[pa.Table]:
    """The frames of a segment's files that may lie in the span; none where retention deletes them meanwhile."""
    if len(days) > 1:  # it lasted beyond midnight, and a block may have done so, too
        parts = [table for day in days for table in read_frame_file(layout.raw_file(segment, day), span)]
        yield from [pa.concat_tables(parts).sort_by("frame")] if parts else []
        return
    for day in days:
        yield from read_frame_file(layout.raw_file(segment, day), span)


def read_frame_file(path: Path, span: Span) -> Iterator[pa.Table]:
    """As `read_frames` of one file; nothing where it is gone."""
    with contextlib.suppress(FileNotFoundError):
        check_pages(path)
        with open_parquet(path) as file, named_errors(path):
            check_format(path, file.metadata.metadata)
            schema = file.schema_arrow.remove_metadata()
            if schema not in (PACKED_FRAMES, FRAMES):
                raise DamagedFile(f"{path}: has other columns than frames have: {', '.join(PACKED_FRAMES.names)}")
            for group in range(file.num_row_groups):
                rows = file.read_row_group(group)
                if schema == FRAMES:  # a row per frame: of earlier recorders
                    yield rows.replace_schema_metadata()
                else:
                    yield from _expand(rows, span)


def _expand(packed: pa.Table, span: Span) -> Iterator[pa.Table]:
    """The frames of those rows that may hold a moment of the span."""
    start_us = -math.inf if span.start_ms is None else span.start_ms * 1000
    end_us = math.inf if span.end_ms is None else span.end_ms * 1000
    held: list[pa.RecordBatch] = []
    size = 0
    for run, block, *said, data in zip(*packed.cast(_PLAIN).to_pydict().values(), strict=True):
        head = RawHead(*said)
        if head.first_received_us < end_us and head.last_received_us >= start_us:
            held.append(expand_frames(run, block, head, data))
            size += held[-1].nbytes
        if size >= _TABLE_BYTES:
            yield pa.Table.from_batches(held)
            held, size = [], 0
    if held:
        yield pa.Table.from_batches(held)


def recount_frames(path: Path, segment: SegmentId, day: date) -> tuple[int, str | None]:
    """The frames of one file, and what is wrong with it. Raises FileNotFoundError."""
    frames, last, day_ms = 0, -1, day_start_ms(day)
    path.stat()
    try:
        with open_parquet(path) as file, named_errors(path):
            origin = (file.metadata.metadata or {}).get(ORIGIN_KEY, b"").decode(errors="replace")
        if origin != str(segment):
            return 0, f"origin {origin or 'missing'}"
        for table in read_frame_file(path, EVER):
            frames += table.num_rows
            numbers = pa.chunked_array([pa.array([last]), *table.column("frame").chunks])
            if not pc.all(pc.less(numbers.slice(0, table.num_rows), numbers.slice(1))).as_py():
                return frames, "frames out of order"
            if not pc.all(are_received_in(table, Span(day_ms, day_ms + _DAY_MS))).as_py():
                return frames, "frames of another date"
            if table.column("payload").null_count or pc.unique(table.column("run")).to_pylist() != [segment.run]:
                return frames, "frames without bytes, or of another run"
            last = numbers[-1].as_py()
    except DamagedFile as error:
        return frames, str(error).removeprefix(f"{path}: ")
    return frames, None


def read_recorded(layout: Layout, first: int, end: int, schema: pa.Schema) -> pa.Table:
    """The trades with the sequence numbers from `first` up to but without `end`, in their order, with these columns.

    Raises FormatTooNew, DamagedFile, OSError.
    """

    def select(rows: pa.Table) -> pa.Table:
        numbers = rows.column("sequence")
        return with_columns(rows.filter(pc.and_(pc.greater_equal(numbers, first), pc.less(numbers, end))), schema)

    def read(snapshot: Snapshot) -> pa.Table:
        tables = [select(pa.Table.from_batches([batch])) for batch in snapshot.journaled]
        for path in (path for paths in snapshot.files.values() for path in paths):
            with open_parquet(path, page_checksum_verification=True) as file, named_errors(path):
                check_format(path, file.metadata.metadata)
                at = file.schema_arrow.get_field_index("sequence")
                bounds = [file.metadata.row_group(group).column(at).statistics for group in range(file.num_row_groups)]
                groups = [
                    group
                    for group, held in enumerate(bounds)
                    if held is None or not held.has_min_max or (held.min < end and held.max >= first)
                ]
                if groups:
                    tables.append(select(file.read_row_groups(groups)))
        return pa.concat_tables([schema.empty_table(), *(table.cast(schema) for table in tables)])

    return read_consistently(layout, EVER, read).sort_by("sequence")


class Difference(NamedTuple):
    """A trade that was recorded otherwise than it is decoded now."""

    recorded: dict[str, Any] | None
    """None: it is added."""
    decoded: dict[str, Any] | None
    """None: it is no trade any more."""

    @property
    def kind(self) -> str:
        """`added`, `missing` or `changed`."""
        return "added" if self.recorded is None else "missing" if self.decoded is None else "changed"

    @property
    def symbol(self) -> str:
        """As it is decoded now, where it is."""
        return str((self.decoded or self.recorded or {})["symbol"])


def compare_trades(recorded: pa.Table, decoded: pa.Table) -> Iterator[Difference]:
    """How the trades of the same frames differ, as often as they are there. Both tables have the same columns.

    A recorded trade that is not among the decoded ones, and a decoded one that was not recorded, are one that has
    changed where both came at the same moment and half of their values, at least, are the same.
    """
    if recorded.equals(decoded):
        return
    old, new = (_as_tuples(table) for table in (recorded, decoded))
    missing, added = _find_excess(old, new), _find_excess(new, old)
    if not missing and not added:  # in another order
        return
    at = recorded.column_names.index("received_at")
    together: dict[int, list[int]] = {}
    for row in added:
        together.setdefault(new[row][at], []).append(row)
    changed: dict[int, int] = {}
    for row in missing:
        near = together.get(old[row][at], [])[:_NEAR]
        alike = {other: sum(map(operator.eq, old[row], new[other])) - 1 for other in near}
        best = max(near, key=lambda other, alike=alike: alike[other], default=None)  # type: ignore[misc]
        if best is not None and 2 * alike[best] >= len(recorded.column_names) - 1:
            changed[row] = best
            together[old[row][at]].remove(best)
    rest = [row for rows in together.values() for row in rows]
    before = dict(zip(missing, recorded.take(pa.array(missing, pa.int64())).to_pylist(), strict=True))
    after = dict(zip(added, decoded.take(pa.array(added, pa.int64())).to_pylist(), strict=True))
    yield from (Difference(before[row], after[changed[row]] if row in changed else None) for row in missing)
    yield from (Difference(None, after[row]) for row in rest)


def _as_tuples(rows: pa.Table) -> list[tuple[Any, ...]]:
    plain = (one.cast(pa.int64()) if pa.types.is_timestamp(one.type) else one for one in rows.columns)
    return list(zip(*(one.to_pylist() for one in plain), strict=True))


def _find_excess(rows: list[tuple[Any, ...]], others: list[tuple[Any, ...]]) -> list[int]:
    """The places of those rows of which there are more than among the others."""
    excess = Counter(rows)
    excess.subtract(others)
    places = []
    for place, row in enumerate(rows):
        if excess[row] > 0:
            excess[row] -= 1
            places.append(place)
    return places
