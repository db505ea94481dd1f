"""Seals the frames of segments as they came (`storage.raw`): one Parquet file per segment and UTC date of receipt.

Exactly once, as for the rows: a file's name is its segment's id, and it is published before the segment is committed.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ingestor.errors import SinkUnavailable
from ingestor.journal.follower import Damage, Rows, SegmentEnd
from ingestor.journal.segment import Cursor, count_raw, decode_raw
from ingestor.layout import Layout, SegmentId, list_segments, locked_date, publish
from ingestor.ledger import DAY_US
from ingestor.parquet import add_checksums, file_schema
from ingestor.schema import FRAMES

if TYPE_CHECKING:
    from pathlib import Path

_GROUP_BYTES = 8 << 20
"""Frames of so many bytes, or of one block that has more, become a row group: they stand in memory uncompressed."""
_CONSTANT = ("run", "connection", "block", "sequence", "trades")
"""Columns of long runs of the same value."""
_DELTA = ("frame", "received_at")
_OPTIONS: dict[str, Any] = {
    "compression": "zstd",
    "compression_level": 1,
    "use_dictionary": list(_CONSTANT),
    "column_encoding": dict.fromkeys(_DELTA, "DELTA_BINARY_PACKED"),
    "write_statistics": [*_CONSTANT, *_DELTA],
    "write_page_checksum": True,
}
_EPOCH = date(1970, 1, 1)


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
        self.frames[end.segment.run] += sum(map(count_raw, self._blocks))
        self._blocks = []
        self._committed = end.at

    def tick(self, now_s: float) -> None:
        """Nothing: the frames are sealed when their segment ends."""

    def committed(self) -> Cursor:
        return self._committed

    def close(self) -> None:
        """Nothing: the frames of a segment that has not ended are in the journal."""


def publish_frames(layout: Layout, segment: SegmentId, blocks: Sequence[bytes]) -> None:
    """Publish the frames in these bodies of records, a file per UTC date of receipt, in order. Raises OSError.

    The same frames give the same files under the same names, however often it is done.
    """
    staged: dict[date, Path] = {}
    with ExitStack() as stack:
        writers: dict[date, pq.ParquetWriter] = {}
        for group in _read_groups(blocks, segment.run):
            for day, frames in _split_by_receipt(group):
                if day not in writers:
                    staged[day] = layout.staging / f"{segment}.{day.isoformat()}.raw.parquet"
                    schema = file_schema(FRAMES, str(segment))
                    writers[day] = stack.enter_context(pq.ParquetWriter(staged[day], schema, **_OPTIONS))
                writers[day].write_table(frames.cast(writers[day].schema), row_group_size=frames.num_rows)
    for day, path in staged.items():
        add_checksums(path)
        with locked_date(layout, day):
            publish(path, layout.raw_file(segment, day))


def _read_groups(blocks: Sequence[bytes], run: int) -> Iterator[pa.Table]:
    held: list[pa.RecordBatch] = []
    size = 0
    for body in blocks:
        held.append(decode_raw(body, run))
        size += held[-1].nbytes
        if size >= _GROUP_BYTES:
            yield pa.Table.from_batches(held)
            held, size = [], 0
    if held:
        yield pa.Table.from_batches(held)


def _split_by_receipt(frames: pa.Table) -> Iterator[tuple[date, pa.Table]]:
    """The frames of each UTC date of receipt."""
    days = pc.divide(frames.column("received_at").cast(pa.int64()), DAY_US)
    found = sorted(pc.unique(days).to_pylist())
    for day in found:
        yield _EPOCH + timedelta(days=day), frames if len(found) == 1 else frames.filter(pc.equal(days, day))
