"""Live chart in a window: a pane per symbol, with its last trades, their moving average, and blind time shaded."""

from collections.abc import Mapping, Sequence
from datetime import tzinfo
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ingestor.charts.indicators import Closes, Floats, sma
from ingestor.charts.matplotlib_chart import DAY_MS, set_time_axis, shade_blind, show_plain_numbers, style_axes
from ingestor.charts.series import Blind, Theme, find_blind_before
from ingestor.texts import describe_blindness

if TYPE_CHECKING:
    from matplotlib.artist import Artist


_ONE_COLUMN = 3
"""Up to so many symbols stand one below the other, more in two columns."""


class Points(NamedTuple):
    """The trades that are shown, in order of arrival."""

    times_ms: Floats
    """When each was received, in ms since 1970: rising, however late a trade was told."""
    prices: Floats
    average: Floats
    """The mean of each price and those before it; NaN where they are too few since the symbol was last blind."""
    blind_before: NDArray[np.bool_]


class Rolling:
    """The newest trades of one symbol, in order of arrival: `points` that are shown, and what their average needs."""

    def __init__(self, symbol: str, points: int, average_over: int) -> None:
        self.symbol = symbol
        self._points = points
        self._average_over = average_over
        self._times_ms: Floats = np.empty(0)
        self._prices: Floats = np.empty(0)

    def add_trades(self, batch: pa.RecordBatch) -> None:
        """Its trades in these rows (schema.TRADES)."""
        own = batch.filter(pc.equal(batch.column("symbol"), self.symbol))
        kept = self._points + self._average_over - 1
        received_ms = own.column("received_at").cast(pa.int64()).to_numpy() / 1000
        self._times_ms = np.concatenate([self._times_ms, received_ms])[-kept:]
        self._prices = np.concatenate([self._prices, own.column("price").to_numpy(zero_copy_only=False)])[-kept:]

    def points(self, blind: Sequence[Blind]) -> Points:
        """The points to show if the symbol was blind in these stretches."""
        parted = find_blind_before(self._times_ms, 0, blind)
        average = sma(Closes(self._prices, parted), self._average_over)
        shown = slice(-self._points, None)
        return Points(self._times_ms[shown], self._prices[shown], average[shown], parted[shown])


class LiveChart:
    """Panes on a figure, which the caller shows."""

    def __init__(
        self, figure: Figure, symbols: Sequence[str], points: int, average_over: int, zone: tzinfo, theme: Theme
    ) -> None:
        figure.set_facecolor(theme.ground)
        # A layout that is computed anew at each drawing would take most of its time.
        edge = 0.5 / figure.get_figheight()
        figure.subplots_adjust(left=0.03, right=0.92, bottom=1.3 * edge, top=1 - edge, hspace=0.42, wspace=0.2)
        self._figure = figure
        beside = 1 if len(symbols) <= _ONE_COLUMN else 2
        grid = figure.subplots(-(-len(symbols) // beside), beside, squeeze=False).ravel()
        for unused in grid[len(symbols) :]:
            unused.remove()
        self._panes = [
            _LivePane(axes, Rolling(symbol, points, average_over), average_over, zone, theme)
            for symbol, axes in zip(symbols, grid, strict=False)
        ]

    def add_trades(self, batch: pa.RecordBatch) -> None:
        """More trades (schema.TRADES)."""
        for pane in self._panes:
            pane.rolling.add_trades(batch)

    def draw(self, blind: Mapping[str, Sequence[Blind]], now_ms: float) -> None:
        """Show what there is, and by symbol what was blind up to `now_ms`, when the ledger was looked at."""
        for pane in self._panes:
            pane.update(blind.get(pane.rolling.symbol, ()), now_ms)
        self._figure.canvas.draw_idle()


class _LivePane:
    def __init__(self, axes: Axes, rolling: Rolling, average_over: int, zone: tzinfo, theme: Theme) -> None:
        self.rolling = rolling
        self._axes = axes
        self._theme = theme
        self._shades: list[Artist] = []
        style_axes(axes, theme)
        set_time_axis(axes, zone, theme)
        show_plain_numbers(axes)
        title: dict[str, Any] = {"fontsize": 13, "fontweight": "bold", "color": theme.ink, "parse_math": False}
        axes.set_title(rolling.symbol, loc="left", **title)
        self._newest = axes.set_title("", loc="right", **title)
        (self._prices,) = axes.plot(
            [], [], color=theme.average, linewidth=1.2, marker="o", markersize=2.5, label="price"
        )
        (self._average,) = axes.plot([], [], color=theme.exponential, linewidth=1.5, label=f"mean of {average_over}")
        # Above the pane, between its two titles: within it, prices would run through it.
        axes.legend(
            loc="lower center", bbox_to_anchor=(0.5, 1), borderaxespad=0.2, frameon=False, fontsize=9,
            labelcolor=theme.quiet, ncols=2,
        )  # fmt: skip

    def update(self, blind: Sequence[Blind], now_ms: float) -> None:
        """Show the points, and what was blind up to `now_ms`."""
        points = self.rolling.points(blind)
        breaks = np.flatnonzero(points.blind_before)  # no line across what nobody saw
        times = np.insert(points.times_ms, breaks, np.nan) / DAY_MS
        self._prices.set_data(times, np.insert(points.prices, breaks, np.nan))
        self._average.set_data(times, np.insert(points.average, breaks, np.nan))
        held = blind[-1].cause if blind and blind[-1].end_ms >= now_ms else None
        if len(points.prices):
            self._set_limits(points, now_ms if held else points.times_ms[-1])
        price = f"{points.prices[-1]:,.10g}" if len(points.prices) else "no trade yet"
        self._newest.set_text(describe_blindness(held) if held else price)
        self._newest.set_color(self._theme.down if held else self._theme.ink)
        for shade in self._shades:
            shade.remove()
        first, last = (edge * DAY_MS for edge in self._axes.get_xlim())
        seen = [one for one in blind if one.start_ms < last and one.end_ms > first]
        self._shades = shade_blind(self._axes, seen, self._theme)

    def _set_limits(self, points: Points, end_ms: float) -> None:
        """From side to side what is shown; a single point, and a price that stands still, need some room too."""
        first, last = points.times_ms[0] / DAY_MS, end_ms / DAY_MS
        margin = max((last - first) * 0.02, 100 / DAY_MS)
        self._axes.set_xlim(first - margin, last + margin)
        low, high = float(points.prices.min()), float(points.prices.max())
        room = max((high - low) * 0.15, abs(high) * 1e-5, 1e-9)
        self._axes.set_ylim(low - room, high + room)
