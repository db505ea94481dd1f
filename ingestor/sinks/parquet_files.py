"""Seals segments into the dataset: one Parquet file per segment and UTC date, of trades; and, with `storage.raw`, one
of the frames as they came, by date of receipt. Exactly once: a file's name is its segment's id, and it is published
before the segment is committed.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from datetime import date, timedelta
from itertools import chain, groupby
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import structlog

from ingestor.errors import SinkUnavailable
from ingestor.journal.follower import Damage, Rows, SegmentEnd
from ingestor.journal.records import Cursor, decompress, pack_frames, split_raw, unpack_frames
from ingestor.layout import Layout, SegmentId, list_segments, locked_date, publish, sync_directory
from ingestor.ledger import DAY_US, Ledger
from ingestor.parquet import add_checksums, file_schema, sort_trades, write_parquet
from ingestor.schema import PACKED_FRAMES, TIMESTAMP

if TYPE_CHECKING:
    from pathlib import Path

_GATHER = 256
_SMALL_ROWS = 64
"""Of a batch with fewer, most of the memory is what stands around its rows."""
_DAY_MS = 86_400_000
_EPOCH = date(1970, 1, 1)

log = structlog.get_logger()


class ParquetFiles:
    """Holds a segment's rows until it ends, then publishes its files and commits by renaming the segment."""

    name = "parquet"

    def __init__(self, layout: Layout, ledger: Ledger) -> None:
        self._layout = layout
        self._ledger = ledger
        self._batches: list[pa.RecordBatch] = []
        self._seen = 0
        """So many of them, the first ones, are gathered, or large."""
        segments = list_segments(layout)
        behind = Cursor(segments[-1].id.number + 1, 0) if segments else Cursor(0, 0)
        # The oldest segment that the dataset doesn't speak for, or the place behind the newest.
        self._committed = next((Cursor(file.id.number, 0) for file in segments if not file.sealed), behind)
        self.rows: Counter[int] = Counter()
        """Published by this process, by the run that recorded them."""

    def write(self, rows: Rows) -> None:
        if rows.batch.num_rows:
            self._batches.append(rows.batch)
            if len(self._batches) - self._seen >= _GATHER:
                self._gather()

    def _gather(self) -> None:
        """Make one batch of many small ones: a quiet stream brings thousands until a segment ends."""
        newest = self._batches[self._seen :]
        if sum(one.num_rows for one in newest) < _SMALL_ROWS * len(newest):
            self._batches[self._seen :] = pa.Table.from_batches(newest).combine_chunks().to_batches()
        self._seen = len(self._batches)

    def set_aside(self, damage: Damage) -> None:
        """Nothing: what is no record holds no row."""

    def end_segment(self, end: SegmentEnd) -> None:
        try:
            files = publish_rows(self._layout, end.segment, self._batches)
            # Every date's file is published: from now on the dataset speaks for this segment.
            unsealed = self._layout.open_segment(end.segment)
            if unsealed.exists():  # else a first attempt had renamed it and failed after that
                unsealed.rename(self._layout.sealed_segment(end.segment))
            sync_directory(self._layout.journal)
        except OSError as error:
            raise SinkUnavailable(f"can't seal {end.segment}: {error.strerror or error}") from None
        self._batches, self._seen = [], 0
        self._committed = end.at
        if files:
            rows = sum(files.values())
            self.rows[end.segment.run] += rows
            dates = {day.isoformat(): count for day, count in files.items()}
            self._ledger.record("segment.sealed", segment=str(end.segment), dates=dates)
            log.info("segment.sealed", segment=str(end.segment), rows=rows, dates=list(dates))

    def tick(self, now_s: float) -> None:
        """Nothing: a segment is sealed when it ends."""

    def committed(self) -> Cursor:
        return self._committed

    def close(self) -> None:
        """Nothing: the rows of a segment that has not ended are in the journal."""


def publish_rows(layout: Layout, segment: SegmentId, batches: list[pa.RecordBatch]) -> dict[date, int]:
    """Publish a segment's rows, a file per UTC date; how many rows went to each. Raises OSError.

    The same rows give the same files under the same names, however often it is done.
    """
    if not batches:
        return {}
    published = {}
    for day, rows in split_by_date(sort_trades(pa.Table.from_batches(batches))):
        staged = layout.staging / f"{segment}.{day.isoformat()}.parquet"
        write_parquet(staged, rows, str(segment))
        with locked_date(layout, day):
            publish(staged, layout.parquet_file(segment, day))
        published[day] = rows.num_rows
    return published


def split_by_date(rows: pa.Table) -> Iterator[tuple[date, pa.Table]]:
    """The rows of each UTC date of `timestamp`: a late trade goes to its own date."""
    days = pc.divide(rows.column("timestamp").cast(TIMESTAMP).cast(pa.int64()), _DAY_MS)
    found = sorted(pc.unique(days).to_pylist())
    for day in found:
        part = rows if len(found) == 1 else rows.filter(pc.equal(days, day))
        yield _EPOCH + timedelta(days=day), part


_FRAME_GROUP_BYTES = 8 << 20
"""Blocks of so many bytes become a row group."""
_SMALL_BYTES = 1 << 15
"""A block below this is compressed together with its neighbours, since alone it hardly gets smaller; no other is
compressed again.
"""
_FRAME_OPTIONS: dict[str, Any] = {
    "compression": "zstd",
    "compression_level": 1,
    "use_dictionary": False,
    "write_statistics": [name for name in PACKED_FRAMES.names if name != "data"],
    "write_page_checksum": True,
}


class RawFiles:
    """Holds a segment's frames, compressed as the journal has them, until it ends; then publishes its files."""

    name = "raw"

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._blocks: list[bytes] = []
        segments = list_segments(layout)
        behind = Cursor(segments[-1].id.number + 1, 0) if segments else Cursor(0, 0)
        # The oldest segment that is not committed: its frames are published again, under the same names.
        self._committed = next((Cursor(file.id.number, 0) for file in segments if not file.sealed), behind)
        self.frames: Counter[int] = Counter()
        """Published by this process, by the run that received them."""

    def write(self, rows: Rows) -> None:
        if rows.raw is not None:
            self._blocks.append(rows.raw)

    def set_aside(self, damage: Damage) -> None:
        """Nothing: what is no record holds no frame."""

    def end_segment(self, end: SegmentEnd) -> None:
        try:
            publish_frames(self._layout, end.segment, self._blocks)
        except OSError as error:
            raise SinkUnavailable(f"can't keep the frames of {end.segment}: {error.strerror or error}") from None
        self.frames[end.segment.run] += sum(split_raw(body)[0].frames for body in self._blocks)
        self._blocks = []
        self._committed = end.at

    def tick(self, now_s: float) -> None:
        """Nothing: the frames are sealed when their segment ends."""

    def committed(self) -> Cursor:
        return self._committed

    def close(self) -> None:
        """Nothing: the frames of a segment that has not ended are in the journal."""


def publish_frames(layout: Layout, segment: SegmentId, blocks: Iterable[bytes]) -> None:
    """Publish the frames in these bodies of records, a file per UTC date of receipt, in order. Raises OSError.

    The same frames give the same files under the same names, however often it is done.
    """
    staged: dict[date, Path] = {}
    with ExitStack() as stack:
        groups: dict[date, _FrameGroup] = {}
        for day, row in chain.from_iterable(_split_by_receipt(body, segment.run) for body in blocks):
            if day not in groups:
                staged[day] = layout.staging / f"{segment}.{day.isoformat()}.raw.parquet"
                schema = file_schema(PACKED_FRAMES, str(segment))
                groups[day] = _FrameGroup(stack.enter_context(pq.ParquetWriter(staged[day], schema, **_FRAME_OPTIONS)))
            groups[day].add(row)
        for group in groups.values():
            group.write()
    for day, path in staged.items():
        add_checksums(path)
        with locked_date(layout, day):
            publish(path, layout.raw_file(segment, day))


_FrameRow = tuple[Any, ...]
"""Of PACKED_FRAMES."""


class _FrameGroup:
    """Rows that are not in their file yet."""

    def __init__(self, writer: pq.ParquetWriter) -> None:
        self._writer = writer
        self._rows: list[_FrameRow] = []
        self._bytes = 0

    def add(self, row: _FrameRow) -> None:
        self._rows.append(row)
        self._bytes += len(row[-1])
        if self._bytes >= _FRAME_GROUP_BYTES:
            self.write()

    def write(self) -> None:
        if self._rows:
            columns = zip(zip(*self._rows, strict=True), self._writer.schema, strict=True)
            arrays = [pa.array(values, field.type) for values, field in columns]
            self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._writer.schema), len(self._rows))
            self._rows, self._bytes = [], 0


def _split_by_receipt(body: bytes, run: int) -> Iterator[tuple[date, _FrameRow]]:
    """The frames in this body of a record: one row, or one for each part that was received on another UTC date."""
    head, data = split_raw(body)
    if head.first_received_us // DAY_US == head.last_received_us // DAY_US:
        small = head.size < _SMALL_BYTES
        yield (
            _date_of(head.first_received_us),
            (run, head.first_frame, *head, decompress(data, head) if small else data),
        )
        return
    received_at, payloads = unpack_frames(data, head)
    frames = zip(received_at.cast(pa.int64()).to_pylist(), payloads.to_pylist(), strict=True)
    first = head.first_frame
    for day, part in groupby(frames, key=lambda frame: _date_of(frame[0])):
        times, texts = zip(*part, strict=True)
        packed = pack_frames(times, texts)
        own = head._replace(
            frames=len(times),
            first_frame=first,
            size=len(packed),
            first_received_us=min(times),
            last_received_us=max(times),
        )
        yield day, (run, head.first_frame, *own, packed)
        first += len(times)


def _date_of(received_us: int) -> date:
    return _EPOCH + timedelta(days=received_us // DAY_US)
