"""What frames say that are read one at a time, gathered: every feed's strict way ends here."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pyarrow as pa

from ingestor.feeds import Decoded, Notice, Reject
from ingestor.feeds.strict_json import RefusedError

T = TypeVar("T")


@dataclass(slots=True)
class Reading:
    """What the frames read so far say."""

    rows: list[tuple[Any, ...]] = field(default_factory=list)
    """Values in the order of the feed's columns; times in the unit of theirs."""
    frame_of: list[int] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)

    def add_trades(self, frame: int, items: Iterable[T], read: Callable[[T], tuple[Any, ...]]) -> None:
        """`read` makes a row of each item; one that it refuses (RefusedError) is rejected, and the others are not."""
        for index, item in enumerate(items):
            try:
                self.rows.append(read(item))
                self.frame_of.append(frame)
            except RefusedError as refused:
                self.rejects.append(Reject(frame, index, str(refused)))

    def reject(self, frame: int, refused: RefusedError) -> None:
        """The whole frame."""
        self.rejects.append(Reject(frame, None, str(refused)))

    def decoded(self, schema: pa.Schema) -> Decoded:
        """All of it, the rows as columns of this schema."""
        columns = zip(*self.rows, strict=True) if self.rows else [()] * len(schema)
        arrays = [pa.array(column, type_) for column, type_ in zip(columns, schema.types, strict=True)]
        return Decoded(
            trades=pa.record_batch(arrays, schema=schema),
            frame_of=pa.array(self.frame_of, pa.int64()),
            rejects=self.rejects,
            notices=self.notices,
        )
