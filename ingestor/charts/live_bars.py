"""Live bars: those of one symbol, recorded and as they come, without a seam between the two."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ingestor.charts.series import Blind, Series
from ingestor.dataset.bar_grid import parse_interval
from ingestor.dataset.bar_maker import COLUMNS, Recipe, bars_of
from ingestor.dataset.bars import read_bars
from ingestor.dataset.coverage import no_warnings
from ingestor.dataset.rows import TEXTS, sort_rows
from ingestor.dataset.trades import read_trades
from ingestor.schema import TIMESTAMP

_LATE_MS = 60_000
"""Trades that are told no later than this still find their bar; later ones are in the bars that are read next."""
_SPARE_BARS = 3600
"""Bars held beyond those asked for, before the oldest are dropped."""
_SHOWN = ("start_ms", "open", "high", "low", "close", "volume")


class LiveBars:
    """Settled bars (read as bars, or older than a minute), and the trades of the bars that may still change.

    The trades that are read and those that are followed overlap; `sequence` rises with arrival and parts them. So the
    caller begins to follow the journal *before* it makes one of these, and hands on whatever comes from there.
    """

    def __init__(self, root: Path, symbol: str, interval: str, bars: int, now_ms: int) -> None:
        """Reads the last `bars` intervals before `now_ms`. Raises NotARecording, ValueError."""
        self.symbol = symbol
        self.interval = interval
        self._recipe = Recipe(parse_interval(interval), UTC, "all", "sip")
        self._bars = bars
        self._tail_ms = self._tail_start(now_ms)
        start, end = (_time(ms) for ms in (self._tail_ms - bars * self._recipe.interval_ms, self._tail_ms))
        with no_warnings():
            settled = read_bars(root, interval, [symbol], start, end, engine="arrow")
        starts = settled.column("start").cast(pa.int64())
        self._settled = settled.append_column("start_ms", starts).select(_SHOWN).combine_chunks()
        with no_warnings():
            self._tail = read_trades(root, [symbol], end, columns=[*COLUMNS, "sequence"], engine="arrow")
        self._sequence = pc.max(self._tail.column("sequence")).as_py() or 0

    @property
    def length_ms(self) -> int:
        """The time that all bars take."""
        return self._bars * self._recipe.interval_ms

    def add_trades(self, batch: pa.RecordBatch, now_ms: int) -> None:
        """More trades of any symbols (schema.TRADES), as they come."""
        own = pc.and_(
            pc.equal(batch.column("symbol"), self.symbol), pc.greater(batch.column("sequence"), self._sequence)
        )
        rows = pa.Table.from_batches([batch.filter(own)]).select([*COLUMNS, "sequence"])
        if rows.num_rows:
            self._sequence = rows.column("sequence")[-1].as_py()
            timely = pc.greater_equal(rows.column("timestamp"), pa.scalar(self._tail_ms, TIMESTAMP))
            self._tail = pa.concat_tables([self._tail, rows.filter(timely)])
        self._settle(now_ms)

    def series(self, blind: list[Blind]) -> Series:
        """All bars as they are now."""
        bars = pa.concat_tables([self._settled, self._changing()])
        columns = {name: bars.column(name).to_numpy().astype(np.float64) for name in _SHOWN[1:]}
        return Series(self.symbol, self.interval, bars.column("start_ms").to_numpy(), **columns, blind=blind)

    def _settle(self, now_ms: int) -> None:
        """Bars that nothing can come to any more are made for good."""
        start_ms = self._tail_start(now_ms)
        if start_ms <= self._tail_ms:
            return
        changing = self._changing()
        done = pc.less(changing.column("start_ms"), start_ms)
        self._settled = pa.concat_tables([self._settled, changing.filter(done)]).combine_chunks()
        if self._settled.num_rows > self._bars + _SPARE_BARS:
            self._settled = self._settled.slice(self._settled.num_rows - self._bars)
        unsettled = pc.greater_equal(self._tail.column("timestamp"), pa.scalar(start_ms, TIMESTAMP))
        self._tail = self._tail.filter(unsettled).combine_chunks()
        self._tail_ms = start_ms

    def _changing(self) -> pa.Table:
        """The bars that trades may still come to."""
        rows = self._tail.combine_chunks()
        for name in TEXTS:
            rows = rows.set_column(rows.column_names.index(name), name, rows.column(name).dictionary_encode())
        last_ms = self._tail_ms if not rows.num_rows else pc.max(rows.column("timestamp")).value
        return bars_of(sort_rows(rows), self._recipe.grid(self._tail_ms, last_ms), self._recipe).select(_SHOWN)

    def _tail_start(self, now_ms: int) -> int:
        return self._recipe.grid(now_ms, now_ms).start_of(now_ms - _LATE_MS)


def _time(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)
