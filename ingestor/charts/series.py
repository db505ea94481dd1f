"""Series for charts: the bars of one symbol as columns, and the time in which the recorder was blind."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ingestor.charts.indicators import Closes, Floats
from ingestor.closed_days import read_closed_coverage
from ingestor.coverage import Coverage, Interval, clip, join_intervals
from ingestor.dataset.bar_grid import parse_interval
from ingestor.dataset.bars import read_bars
from ingestor.dataset.coverage import CoverageWatch, no_warnings, read_known_coverage
from ingestor.dataset.times import Span, to_span, utc_date
from ingestor.layout import Layout

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
