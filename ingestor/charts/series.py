"""Series for charts: the bars of one symbol as columns, recorded and as they come, the time in which the recorder was
blind, and the colours of both on light and on dark ground.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ingestor.charts.indicators import Closes, Floats
from ingestor.closed_days import read_closed_coverage
from ingestor.coverage import Coverage, Interval, clip, join_intervals
from ingestor.dataset.arguments import Span, to_span, utc_date
from ingestor.dataset.bar_grid import parse_interval
from ingestor.dataset.bar_maker import COLUMNS, Recipe, bars_of
from ingestor.dataset.bars import read_bars
from ingestor.dataset.coverage import CoverageWatch, no_warnings, read_known_coverage
from ingestor.dataset.rows import TEXTS, sort_rows
from ingestor.dataset.trades import read_trades
from ingestor.layout import Layout
from ingestor.schema import TIMESTAMP

INTERVALS = ("1s", "5s", "15s", "30s", "1m", "5m", "15m", "30m", "1h", "4h", "1d")
"""Those a chart chooses from."""

Bounds = tuple[datetime | None, datetime | None]
"""From the first, aware time up to but without the second; None is open."""

_CHOSEN_BARS = 400
_FOREVER_MS = 1 << 52


class Blind(NamedTuple):
    """A stretch of time in ms since 1970 in which a symbol was not recorded, and the cause."""

    start_ms: int
    end_ms: int
    cause: str


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """The bars of one symbol that had trades, in order, and its blind time, in order and without overlap."""

    symbol: str
    interval: str
    starts_ms: NDArray[np.int64]
    open: Floats
    """Prices are NaN in a bar of odd lots alone."""
    high: Floats
    low: Floats
    close: Floats
    volume: Floats
    """NaN where the venue told none."""
    blind: Sequence[Blind]

    @property
    def interval_ms(self) -> int:
        """The length of a bar."""
        return parse_interval(self.interval)

    @property
    def closes(self) -> Closes:
        """Closing prices, parted where the symbol was blind between two bars."""
        return Closes(self.close, find_blind_before(self.starts_ms, self.interval_ms, self.blind))


def load_series(root: Path, symbol: str, interval: str, bounds: Bounds, tz: str) -> Series:
    """Bars of a symbol within these bounds, and its blind time.

    `interval` divides a day; bars are aligned to midnight in `tz`. Raises NotARecording, ValueError.
    """
    with no_warnings():
        bars = read_bars(root, interval, [symbol], *bounds, tz, engine="arrow")
    blind = find_blind(_intervals(root, symbol, to_span(bounds)))
    columns = {name: bars.column(name).to_numpy() for name in ("open", "high", "low", "close", "volume")}
    return Series(symbol, interval, bars.column("start").cast(pa.int64()).to_numpy(), **columns, blind=blind)


def choose_interval(root: Path, symbol: str, bounds: Bounds) -> str:
    """The shortest interval that parts what was claimed of a symbol in these bounds into no more than 400 bars.

    A minute where no ledger says what was claimed. Raises NotARecording.
    """
    intervals = _intervals(root, symbol, to_span(bounds))
    if not intervals:
        return "1m"
    length_ms = (intervals[-1].end_us - intervals[0].start_us) / 1000
    fits = (name for name in INTERVALS if length_ms <= parse_interval(name) * _CHOSEN_BARS)
    return next(fits, INTERVALS[-1])


class BlindTimes:
    """The blind time of the symbols of a recording that goes on."""

    def __init__(self, root: Path) -> None:
        self._layout = Layout(root)
        self._watch = CoverageWatch(self._layout)
        self._coverage: Coverage | None = None
        self._since: dict[str, date] = {}
        """By symbol: the date from which on closed days are among its intervals."""
        self._intervals: dict[str, list[Interval]] = {}
        """By symbol, of that coverage: to make them takes long where a link was unsteady for a year."""

    def find(self, symbol: str, start_ms: int, now_ms: int) -> list[Blind]:
        """A symbol's since `start_ms`; what is so still, up to `now_ms`.

        Raises NotARecording, FormatTooNew, OSError.
        """
        coverage = self._watch.look()
        if coverage is not self._coverage:
            self._coverage, self._intervals, self._since = coverage, {}, {}
        first = utc_date(start_ms)
        if symbol not in self._intervals or first < self._since[symbol]:
            closed = read_closed_coverage(self._layout, [symbol], first, date.max).intervals.get(symbol, [])
            self._intervals[symbol] = join_intervals(symbol, [*closed, *coverage.intervals(symbol)])
            self._since[symbol] = first
        return find_blind(clip(self._intervals[symbol], start_ms * 1000, now_ms * 1000))


def find_blind(intervals: Iterable[Interval]) -> list[Blind]:
    """The blind ones of one symbol's intervals, from the millisecond in which each began."""
    return [
        Blind(one.start_us // 1000, one.end_us // 1000, one.cause or "") for one in intervals if one.state == "blind"
    ]


def find_blind_before(
    starts_ms: NDArray[np.int64] | Floats, interval_ms: int, blind: Sequence[Blind]
) -> NDArray[np.bool_]:
    """For each bar, whether some of the time since the end of the bar before it was blind.

    Blindness inside a bar that has trades parts nothing: its close is known.
    """
    found = np.zeros(len(starts_ms), dtype=bool)
    if not blind or len(starts_ms) < 2:
        return found
    latest = np.searchsorted([one.start_ms for one in blind], starts_ms[1:]) - 1
    ended_ms = np.array([one.end_ms for one in blind])[latest]
    previous_end_ms = starts_ms[:-1] + interval_ms
    found[1:] = (latest >= 0) & (ended_ms > previous_end_ms) & (previous_end_ms < starts_ms[1:])
    return found


def _intervals(root: Path, symbol: str, span: Span) -> list[Interval]:
    """The symbol's intervals of coverage within the span; none where the root has no ledger, as a copied dataset."""
    start_ms = 0 if span.start_ms is None else span.start_ms
    end_ms = _FOREVER_MS if span.end_ms is None else span.end_ms
    return clip(
        read_known_coverage(Layout(root), [symbol], span=span).intervals(symbol), start_ms * 1000, end_ms * 1000
    )


@dataclass(frozen=True, slots=True)
class Theme:
    """Colours as `#rrggbb`."""

    scheme: str
    """`light` or `dark`: what a browser is told, for its own scroll bars."""
    ground: str
    ink: str
    quiet: str
    """Of ticks and notes."""
    grid: str
    up: str
    down: str
    average: str
    """Of an SMA, and of a MACD."""
    exponential: str
    """Of an EMA, and of a signal."""
    bands: str
    gaps: tuple[str, ...]
    """A colour for each cause of blindness, in turn."""

    def gap_colours(self, causes: Iterable[str]) -> dict[str, str]:
        """The colour of each of these causes: in alphabetical order, so that pictures of the same causes agree."""
        return {cause: self.gaps[at % len(self.gaps)] for at, cause in enumerate(sorted(set(causes)))}


LIGHT = Theme(
    scheme="light",
    ground="#ffffff", ink="#1f2933", quiet="#6b7785", grid="#e8ebee", up="#2f8f7f", down="#c65d4a",
    average="#2f6db3", exponential="#c98a1b", bands="#8796a8",
    gaps=("#d9a441", "#b07aa1", "#7f9fbf", "#c77d6b", "#8fae7e"),
)  # fmt: skip
DARK = Theme(
    scheme="dark",
    ground="#14181d", ink="#e3e8ed", quiet="#8b97a4", grid="#262d35", up="#4db6a2", down="#e07a65",
    average="#6ba6e8", exponential="#e0ad4f", bands="#708090",
    gaps=("#d9a441", "#b58bb0", "#7f9fbf", "#d08a78", "#8fae7e"),
)  # fmt: skip


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
        start_ms = self._tail_ms - bars * self._recipe.interval_ms
        start, end = (datetime.fromtimestamp(ms / 1000, UTC) for ms in (start_ms, self._tail_ms))
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
