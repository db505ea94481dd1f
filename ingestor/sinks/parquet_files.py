"""Seals segments into the dataset: one Parquet file per segment and UTC date. Exactly once: a file's name is its
segment's id.
"""

from collections import Counter
from collections.abc import Iterator
from datetime import date, timedelta

import pyarrow as pa
import pyarrow.compute as pc
import structlog

from ingestor.errors import SinkUnavailable
from ingestor.journal.follower import Damage, Rows, SegmentEnd
from ingestor.journal.segment import Cursor
from ingestor.layout import Layout, SegmentId, list_segments, locked_date, publish, sync_directory
from ingestor.ledger import Ledger
from ingestor.parquet import sort_trades, write_parquet
from ingestor.schema import TIMESTAMP

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
        segments = list_segments(layout)
        behind = Cursor(segments[-1].id.number + 1, 0) if segments else Cursor(0, 0)
        # The oldest segment that the dataset doesn't speak for, or the place behind the newest.
        self._committed = next((Cursor(file.id.number, 0) for file in segments if not file.sealed), behind)
        self.rows: Counter[int] = Counter()
        """Published by this process, by the run that recorded them."""

    def write(self, rows: Rows) -> None:
        if rows.batch.num_rows:
            self._batches.append(rows.batch)

    def set_aside(self, damage: Damage) -> None:
        """Nothing: what is no record holds no row."""

    def end_segment(self, end: SegmentEnd) -> None:
        try:
            files = publish_rows(self._layout, end.segment, self._batches)
            self._commit(end.segment)
        except OSError as error:
            raise SinkUnavailable(f"can't seal {end.segment}: {error.strerror or error}") from None
        self._batches = []
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

    def _commit(self, segment: SegmentId) -> None:
        """Every date's file is published: from now on the dataset speaks for this segment. Raises OSError."""
        unsealed = self._layout.open_segment(segment)
        if unsealed.exists():  # else a first attempt had renamed it and failed after that
            unsealed.rename(self._layout.sealed_segment(segment))
        sync_directory(self._layout.journal)


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
