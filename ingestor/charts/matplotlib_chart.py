"""Picture of a recording: four panes per symbol, with bars, volume, RSI and MACD, and blind time shaded.

It needs no display: figures are drawn by Agg, and nothing of pyplot's state is touched.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, tzinfo
from pathlib import Path

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, MaxNLocator, ScalarFormatter
from numpy.typing import NDArray

from ingestor.charts.indicators import MACD_BARS, RSI_BARS, Floats, bollinger, describe_lack, ema, macd, rsi, sma
from ingestor.charts.series import Blind, Series, Theme
from ingestor.layout import FILE_MODE, set_mode
from ingestor.texts import CAUSES, describe_blindness

DAY_MS = 86_400_000
"""Matplotlib counts days since 1970."""

_HEIGHTS = (5.0, 1.2, 1.4, 1.4)
_SIZE = 12.0, 8.4
"""In inches, of a symbol alone; two stand beside each other as wide as that."""
_BESIDE = {1: 1, 2: 2, 3: 3, 4: 2, 5: 3, 6: 3}
"""How many symbols stand side by side, of so many: six are two rows of three."""
_SMALL_SIZE = 7.5, 6.6
"""Of each of three symbols or more."""
_BODY = 0.7
"""Of a bar's time, how much its body takes."""
_OFFSETS = ["", "%Y", "%B %Y", "%d %B %Y", "%d %B %Y", "%d %B %Y, %H:%M"]
"""What ticks leave out, in the words of the title. They are years, months, days, hours, minutes or seconds."""
_LABEL_SHARE = 0.05
"""Of the width, from which a gap is wide enough to bear its cause."""


@dataclass(frozen=True, slots=True)
class Pane:
    """The axes of one symbol's column, top to bottom."""

    price: Axes
    volume: Axes
    rsi: Axes
    macd: Axes

    @property
    def all(self) -> tuple[Axes, ...]:
        """All four, top to bottom."""
        return self.price, self.volume, self.rsi, self.macd


def draw_picture(symbols: Sequence[Series], zone: tzinfo, theme: Theme) -> Figure:
    """The picture of one to six symbols, in a grid; each has bars or blind time, or its panes are empty."""
    beside = _BESIDE[len(symbols)]
    rows = -(-len(symbols) // beside)
    width, height = _SIZE if len(symbols) <= 2 else _SMALL_SIZE
    figure = Figure(figsize=(width * beside, height * rows), dpi=120, facecolor=theme.ground)
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained", w_pad=0.18, h_pad=0.06)
    parts = figure.subfigures(rows, beside, squeeze=False, facecolor=theme.ground).ravel()
    for series, part in zip(symbols, parts, strict=False):
        pane = Pane(*part.subplots(len(_HEIGHTS), 1, sharex=True, gridspec_kw={"height_ratios": _HEIGHTS}))
        for each in pane.all:
            style_axes(each, theme)
        set_time_axis(pane.macd, zone, theme)
        show_plain_numbers(pane.price)
        pane.volume.yaxis.set_major_formatter(EngFormatter(sep=""))
        pane.volume.yaxis.set_major_locator(MaxNLocator(2))
        pane.macd.yaxis.set_major_locator(MaxNLocator(3))
        for each, name in ((pane.volume, "Volume"), (pane.rsi, "RSI 14"), (pane.macd, "MACD 12, 26, 9")):
            _write_caption(each, name, theme)
        _draw_series(pane, series, theme)
        for each in pane.all:
            shade_blind(each, series.blind, theme)
        # The limits come before the texts: a cause is written where its shade is wide enough on this axis.
        _set_limits(pane, series)
        _write_texts(pane, series, zone, theme)
        _name_last_price(pane.price, series, theme)
    return figure


def save_picture(figure: Figure, path: Path) -> None:
    """Write it as PNG: whole under its name, or not at all. Raises OSError."""
    part = path.with_name(f"{path.name}.part")
    try:
        figure.savefig(part, format="png")
        set_mode(part, FILE_MODE)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def style_axes(axes: Axes, theme: Theme) -> None:
    """Prices to the right, no frame, a grid that stays behind."""
    axes.set_facecolor(theme.ground)
    axes.set_axisbelow(True)
    axes.grid(visible=True, color=theme.grid, linewidth=0.8)
    axes.tick_params(length=0, labelsize=8.5, colors=theme.quiet)
    axes.yaxis.tick_right()
    for spine in axes.spines.values():
        spine.set_visible(False)


def show_plain_numbers(axes: Axes) -> None:
    """Prices as they are: neither an offset nor an exponent."""
    formatter = ScalarFormatter(useOffset=False)
    formatter.set_scientific(False)
    axes.yaxis.set_major_formatter(formatter)


def set_time_axis(axes: Axes, zone: tzinfo, theme: Theme) -> None:
    """Times of the wall clock in `zone`, which is named at the end of the axis."""
    # matplotlib.dates ships no types.
    locator = AutoDateLocator(tz=zone, minticks=4, maxticks=9)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    formatter = ConciseDateFormatter(locator, tz=zone, offset_formats=_OFFSETS)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_formatter(formatter)
    axes.xaxis.get_offset_text().set_color(theme.quiet)
    axes.xaxis.get_offset_text().set_fontsize(8.5)
    axes.set_xlabel(str(zone), loc="left", fontsize=8.5, color=theme.quiet)


def shade_blind(axes: Axes, blind: Sequence[Blind], theme: Theme) -> list[Artist]:
    """A shade over each stretch of blindness, in the colour of its cause; a short one is a hairline at least."""
    colours = theme.gap_colours(one.cause for one in blind)
    return [
        axes.axvspan(one.start_ms / DAY_MS, one.end_ms / DAY_MS, color=colours[one.cause], alpha=0.28, linewidth=0.6)
        for one in blind
    ]


def format_length(seconds: float) -> str:
    """`3.2 s`, `12 min`, `2.5 h`."""
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s"


def _draw_series(pane: Pane, series: Series, theme: Theme) -> None:
    """Candlesticks (body from open to close, wick from low to high), volume in the same colours, and the indicators."""
    margin = (1 - _BODY) / 2 * series.interval_ms
    starts = (series.starts_ms + margin) / DAY_MS
    ends = starts + series.interval_ms * _BODY / DAY_MS
    middle = (starts + ends) / 2
    colours = np.where(series.close >= series.open, theme.up, theme.down)
    known = ~np.isnan(series.close)
    wicks = np.stack([np.column_stack([middle, series.low]), np.column_stack([middle, series.high])], axis=1)
    pane.price.add_collection(LineCollection(list(wicks[known]), colors=colours[known].tolist(), linewidths=0.9))
    bodies = _boxes(starts, ends, series.open, series.close)[known]
    # An edge keeps the body of a bar that ended where it began from vanishing.
    both = colours[known].tolist()
    pane.price.add_collection(PolyCollection(list(bodies), facecolors=both, edgecolors=both, linewidths=0.9))
    volume = np.nan_to_num(series.volume)
    boxes = _boxes(starts, ends, np.zeros_like(volume), volume)
    pane.volume.add_collection(PolyCollection(list(boxes), facecolors=colours.tolist(), alpha=0.75))
    closes = series.closes
    bands, difference = bollinger(closes), macd(closes)
    pane.price.fill_between(middle, bands.lower, bands.upper, color=theme.bands, alpha=0.10, linewidth=0)
    pane.price.plot(middle, bands.upper, color=theme.bands, linewidth=0.7)
    pane.price.plot(middle, bands.lower, color=theme.bands, linewidth=0.7, label="Bollinger 20, 2")
    pane.price.plot(middle, sma(closes), color=theme.average, linewidth=1.2, label="SMA 20")
    pane.price.plot(middle, ema(closes), color=theme.exponential, linewidth=1.2, label="EMA 20")
    strength = rsi(closes)
    pane.rsi.plot(middle, strength, color=theme.average, linewidth=1.1)
    for axes, values, needed in ((pane.rsi, strength, RSI_BARS), (pane.macd, difference.line, MACD_BARS)):
        if np.isnan(values).all():
            lack = describe_lack(closes, needed) or "the price stood still"
            axes.text(
                0.5, 0.5, lack, transform=axes.transAxes, ha="center", va="center", fontsize=9, color=theme.quiet
            )  # fmt: skip
    for level in (30, 70):
        pane.rsi.axhline(level, color=theme.quiet, linewidth=0.7, linestyle=(0, (4, 4)))
    histogram = np.nan_to_num(difference.histogram)
    boxes = _boxes(starts, ends, np.zeros_like(histogram), histogram)
    signs = np.where(histogram >= 0, theme.up, theme.down)
    pane.macd.add_collection(PolyCollection(list(boxes), facecolors=signs.tolist(), alpha=0.55))
    pane.macd.plot(middle, difference.line, color=theme.average, linewidth=1.1)
    pane.macd.plot(middle, difference.signal, color=theme.exponential, linewidth=1.1)


def _set_limits(pane: Pane, series: Series) -> None:
    """All bars and all blind time from side to side; each pane from the lowest to the highest of what it shows."""
    edges_ms = [*series.starts_ms[[0, -1]], series.starts_ms[-1] + series.interval_ms] if len(series.starts_ms) else []
    edges_ms += [edge for one in series.blind for edge in (one.start_ms, one.end_ms)]
    if edges_ms:
        first, last = min(edges_ms) / DAY_MS, max(edges_ms) / DAY_MS
        margin = (last - first) * 0.01
        pane.price.set_xlim(first - margin, last + margin)
    for axes in pane.all:
        axes.autoscale_view(scalex=False)
    pane.price.margins(y=0.08)
    pane.volume.set_ylim(0, max(np.nan_to_num(series.volume).max(initial=0.0), 1.0) * 1.3)  # room for its name
    pane.rsi.set_ylim(0, 100)
    pane.rsi.set_yticks([30, 50, 70])


def _write_texts(pane: Pane, series: Series, zone: tzinfo, theme: Theme) -> None:
    """Title, and the keys to lines and shades."""
    axes = pane.price
    # A symbol is the venue's text: a $ in it must not be read as mathematics.
    axes.set_title(series.symbol, loc="left", fontsize=15, fontweight="bold", color=theme.ink, parse_math=False, pad=24)
    left, right = axes.get_xlim()
    first, last = (datetime.fromtimestamp(edge * DAY_MS / 1000, zone) for edge in (left, right))
    days = f"{first:%d %B %Y} to {last:%d %B %Y}" if first.date() != last.date() else f"{first:%A, %d %B %Y}"
    _write_caption(axes, f"{series.interval} bars, {days}", theme, above=True)
    _add_legend(axes, *axes.get_legend_handles_labels(), 1.055, theme)
    blind_ms: dict[str, int] = {}
    for one in series.blind:
        blind_ms[one.cause] = blind_ms.get(one.cause, 0) + one.end_ms - one.start_ms
    shades = [Patch(color=colour, alpha=0.45, linewidth=0) for colour in theme.gap_colours(blind_ms).values()]
    names = [f"{describe_blindness(cause)}, {format_length(ms / 1000)}" for cause, ms in sorted(blind_ms.items())]
    _add_legend(axes, shades, names, 1.0, theme)
    for one in series.blind:
        start, end = one.start_ms / DAY_MS, one.end_ms / DAY_MS
        if end - start >= (right - left) * _LABEL_SHARE:  # wide enough to bear its cause
            axes.text(
                (start + end) / 2, 0.02, CAUSES.get(one.cause, one.cause), transform=axes.get_xaxis_transform(),
                ha="center", va="bottom", fontsize=8.5, color=theme.quiet, parse_math=False,
            )  # fmt: skip


def _name_last_price(axes: Axes, series: Series, theme: Theme) -> None:
    """A line at the last close, and the price where the axis has its own: in the colour of that bar."""
    known = np.flatnonzero(~np.isnan(series.close))
    if len(known):
        close = float(series.close[known[-1]])
        colour = theme.up if close >= series.open[known[-1]] else theme.down
        axes.axhline(close, color=colour, linewidth=0.8, linestyle=(0, (2, 3)))
        axes.annotate(
            f"{close:,.8g}", (1, close), xycoords=axes.get_yaxis_transform(), xytext=(4, 0), textcoords="offset points",
            va="center", fontsize=8.5, fontweight="bold", color=theme.ground, annotation_clip=False,
            bbox={"boxstyle": "square,pad=0.25", "facecolor": colour, "edgecolor": "none"},
        )  # fmt: skip


def _add_legend(axes: Axes, handles: Sequence[Artist], names: list[str], above: float, theme: Theme) -> None:
    """A line of keys over the right end of the pane, beside those that are there."""
    axes.add_artist(
        Legend(
            axes, handles, names, loc="lower right", bbox_to_anchor=(1, above), bbox_transform=axes.transAxes,
            ncols=max(len(names), 1), frameon=False, fontsize=9, labelcolor=theme.ink, handlelength=1.3,
            columnspacing=1.4, borderaxespad=0.1, borderpad=0.1,
        )
    )  # fmt: skip


def _write_caption(axes: Axes, text: str, theme: Theme, *, above: bool = False) -> None:
    """A few words in the upper left corner, or above it."""
    x, y, align, size = (0, 1.02, "bottom", 9.5) if above else (0.004, 0.94, "top", 8.5)
    axes.text(x, y, text, transform=axes.transAxes, fontsize=size, color=theme.quiet, va=align)


def _boxes(left: Floats, right: Floats, bottom: Floats, top: Floats) -> NDArray[np.float64]:
    """The corners of upright boxes: (boxes, 4, 2)."""
    corners = [(left, bottom), (left, top), (right, top), (right, bottom)]
    return np.stack([np.column_stack(corner) for corner in corners], axis=1)
