"""Writes each segment's account to `accounts/` and to the ledger when it ends, from the records themselves; and holds
them to the equations.
"""

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import structlog

from ingestor.accounts import write_account
from ingestor.errors import SinkUnavailable
from ingestor.journal.follower import Damage, Rows, SegmentEnd
from ingestor.journal.records import Cursor, split_raw
from ingestor.layout import FILE_MODE, Layout, SegmentId, publish, set_mode
from ingestor.ledger import Ledger
from ingestor.metrics import Counts
from ingestor.trade_ids import IdRanges

log = structlog.get_logger()

_COUNT_ROWS = 1 << 13
_COUNT_BATCHES = 256
"""Of a quiet stream: so many small ones take a megabyte."""


@dataclass(slots=True)
class _Account:
    """What one segment holds."""

    id_column: str | None
    counts: Counts = field(default_factory=Counts)
    rows: int = 0
    trades: Counter[str] = field(default_factory=Counter)
    repeated: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    first_received_us: int = 0
    last_received_us: int = 0
    aside: int = 0
    frames_kept: int | None = None
    """None where no frame is kept as it came."""
    ids: IdRanges = field(default_factory=IdRanges)
    unreadable: str | None = None
    uncounted: list[pa.RecordBatch] = field(default_factory=list)
    """Rows whose symbols are still to be counted: many small batches at once."""
    uncounted_rows: int = 0

    def add(self, rows: Rows) -> None:
        self.counts += rows.counts
        self.rows += rows.batch.num_rows
        if rows.raw is not None:
            self.frames_kept = (self.frames_kept or 0) + split_raw(rows.raw)[0].frames
        self.reasons.update(rows.reasons)
        self.first_received_us = self.first_received_us or rows.first_received_us
        self.last_received_us = rows.last_received_us
        self.uncounted.append(rows.batch)
        self.uncounted_rows += rows.batch.num_rows
        if self.uncounted_rows >= _COUNT_ROWS or len(self.uncounted) >= _COUNT_BATCHES:
            self.count()

    def count(self) -> None:
        """Count the symbols of all rows added so far."""
        symbols, repeated = (
            pa.chunked_array([batch.column(name) for batch in self.uncounted], type_)
            for name, type_ in (("symbol", pa.string()), ("repeated", pa.bool_()))
        )
        self.trades.update(_count_values(symbols))
        self.repeated.update(_count_values(symbols.filter(repeated)))
        if self.id_column is not None:
            counted = [batch for batch in self.uncounted if self.id_column in batch.schema.names]
            if counted:
                self.ids.add_columns(
                    *(
                        pa.concat_arrays([batch.column(name) for batch in counted])
                        for name in ("symbol", self.id_column)
                    )
                )
        self.uncounted, self.uncounted_rows = [], 0


class SegmentAccounts:
    """Follows the journal like a sink; its destination is the ledger."""

    name = "accounts"

    def __init__(self, layout: Layout, ledger: Ledger, last_closed: int, id_column: str | None = None) -> None:
        """`last_closed` is the number of the last segment of which the ledger holds an account; `id_column` is of the
        feed's terms.
        """
        self._layout = layout
        self._ledger = ledger
        self._at = self._committed = Cursor(last_closed + 1, 0)
        self._id_column = id_column
        self._account = _Account(id_column)
        self.totals: dict[int, Counts] = {}
        """By run: the sum of its segments' counts."""
        self.filled: Counter[int] = Counter()
        """By run: trades of segments that a source's history has filled."""
        self.violations = 0

    def write(self, rows: Rows) -> None:
        self._account.add(rows)

    def set_aside(self, damage: Damage) -> None:
        """Keep the bytes that could not be read, for a person to look at; a file that can't be read at all stays."""
        if damage.unreadable is not None:
            self._account.unreadable = damage.unreadable
            log.error(
                "journal.unreadable",
                segment=str(damage.segment),
                error=damage.unreadable,
                hint="the recording goes on without its rows; what stands in the journal under this name is left there",
            )
            return
        path = self._layout.aside / f"{damage.segment}.{damage.offset}.bin"
        staged = self._layout.staging / path.name
        try:
            staged.write_bytes(damage.content)
            set_mode(staged, FILE_MODE)
            publish(staged, path)
        except OSError as error:
            raise SinkUnavailable(f"can't set {path.name} aside: {error.strerror or error}") from None
        self._account.aside += len(damage.content)
        log.error("journal.damaged", segment=str(damage.segment), offset=damage.offset, bytes=len(damage.content))

    def end_segment(self, end: SegmentEnd) -> None:
        account = self._account
        account.count()
        self._record(end.segment, account)  # an empty one too: its number must not be taken again
        self._account = _Account(self._id_column)  # not before: what the disk refuses is tried again
        self._check(end.segment, account)
        run = end.segment.run
        self.totals[run] = self.totals.get(run, Counts()) + account.counts
        self.filled[run] += account.counts.trades if account.counts.filled else 0
        self._at = end.at

    def tick(self, now_s: float) -> None:
        """Nothing: an account is written when its segment ends."""

    def committed(self) -> Cursor:
        """An account counts when the ledger has it on the disk: one that waits there is made anew after a crash."""
        if not self._ledger.waiting:
            self._committed = self._at
        return self._committed

    def close(self) -> None:
        """Nothing: an account that is not whole is made anew from the segment."""

    def _record(self, segment: SegmentId, account: _Account) -> None:
        """The rows per symbol as data, before the ledger says that there is an account. Raises SinkUnavailable."""
        told: dict[str, Any] = {
            "segment": str(segment),
            "first_received": account.first_received_us,
            "last_received": account.last_received_us,
            "counts": asdict(account.counts),
            "reasons": dict(account.reasons),
            "aside": account.aside,
        }
        try:
            by_symbol = {"symbols": dict(account.trades), "repeated": dict(account.repeated), "ids": list(account.ids)}
            write_account(self._layout, {**told, **by_symbol})
        except OSError as error:
            raise SinkUnavailable(f"can't write the account of {segment}: {error.strerror or error}") from None
        unreadable: dict[str, Any] = {} if account.unreadable is None else {"unreadable": account.unreadable}
        self._ledger.record("segment.closed", **told, **unreadable)

    def _check(self, segment: SegmentId, account: _Account) -> None:
        """Conservation: every frame became one thing, every rejected one has its reason, every counted trade is a
        row.
        """
        counts = account.counts
        broken = []
        if not counts.balanced:
            broken.append("frames received ≠ decoded + rejected + notices")
        if account.frames_kept not in {None, counts.frames}:
            broken.append("frames received ≠ frames kept")
        if counts.trades != account.rows:
            broken.append("trades counted ≠ rows journaled")
        if counts.rejected_frames + counts.rejected_trades != account.reasons.total():
            broken.append("rejects counted ≠ reasons given")
        for equation in broken:
            self.violations += 1
            log.error("conservation.violated", segment=str(segment), equation=equation, counts=asdict(counts))


def _count_values(symbols: pa.ChunkedArray) -> dict[str, int]:
    return {entry["values"]: entry["counts"] for entry in symbols.value_counts().to_pylist()}
