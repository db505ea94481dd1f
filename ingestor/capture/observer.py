"""What a journaled block shows, told to the session and the ledger: who ticks, what is proven, what the venue says."""

from collections.abc import Collection
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import structlog

from ingestor.capture.buffer import FrameBlock
from ingestor.capture.gaps import Gaps
from ingestor.capture.observed import Observed, Refusal
from ingestor.feeds import Notice
from ingestor.ledger import Ledger

_UNKNOWN_MAX = 100
"""Of what a venue invents, so many kinds are told apart."""

log = structlog.get_logger()


class Observer:
    """For the recorder's thread."""

    def __init__(self, ledger: Ledger, gaps: Gaps, observed: Observed) -> None:
        self._ledger = ledger
        self._gaps = gaps
        self._observed = observed
        self._proven_on = 0
        self._proven: set[str] = set()
        self._unknown_seen: set[str] = set()

    def observe(self, block: FrameBlock, notices: list[Notice], rows: pa.RecordBatch) -> None:
        """Of the frames of a block, these were notices, and these rows were recorded."""
        if block.connection > self._proven_on:
            self._proven_on, self._proven = block.connection, set()
        self._proven -= self._observed.take_unproven()
        ticking = {entry["values"]: entry["counts"] for entry in rows.column("symbol").value_counts().to_pylist()}
        self._observed.saw_trades(ticking, block.frames.received_us[-1])
        fresh = ticking.keys() - self._proven if block.connection == self._proven_on else set()
        if proven := fresh & self._observed.asked:  # what nobody asked for is not claimed, and fills no ledger
            self._prove(block.connection, rows, proven)
        if ticking:
            self._hear(rows, ticking, block.frames.received_us[-1])
        for notice in notices:
            self._heed(notice, block.frames.received_us[notice.frame])

    def _hear(self, rows: pa.RecordBatch, symbols: Collection[str], last_us: int) -> None:
        """These trades are recorded: no gap of their symbols holds any of them."""

        def first_after(since_us: int) -> int | None:
            received_us: Any = rows.column("received_at").cast(pa.int64())
            later = received_us.filter(pc.greater(received_us, since_us))
            return None if not len(later) else int(later[0].as_py())

        self._gaps.hear(symbols, last_us, partial(_first_received_us, rows), first_after)

    def _prove(self, connection: int, rows: pa.RecordBatch, symbols: set[str]) -> None:
        """The first trade of a symbol on this connection proves its subscription."""
        self._proven |= symbols
        base_us = rows.column("received_at")[0].value
        since_us = {symbol: _first_received_us(rows, symbol) - base_us for symbol in sorted(symbols)}
        self._ledger.record("symbols.proven", connection=connection, base=base_us, symbols=since_us)

    def _heed(self, notice: Notice, received_us: int) -> None:
        """What the venue says besides trades."""
        if notice.refuses:
            self._observed.saw_refusal(Refusal(notice.symbol, notice.text, received_us))
        elif notice.kind == "error":
            log.warning("venue.complained", text=notice.text)
        elif notice.kind == "unknown" and notice.text not in self._unknown_seen:
            if len(self._unknown_seen) < _UNKNOWN_MAX:
                self._unknown_seen.add(notice.text)
            log.warning("notice.unknown", type=notice.text)


def _first_received_us(rows: pa.RecordBatch, symbol: str) -> int:
    """When the first trade of this symbol, which these rows hold, was received."""
    first = pc.index(rows.column("symbol"), symbol).as_py()
    return int(rows.column("received_at")[first].value)
