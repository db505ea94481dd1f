"""Chart of one symbol in the browser: candlesticks, volume, RSI and MACD over one axis of time, gaps shaded.

A frame is what the browser holds of it; of the next one only the little that has changed is sent. Frames are pure.
"""

from typing import Any, NamedTuple

import numpy as np
from bokeh import models
from bokeh.plotting import figure
from numpy.typing import NDArray

from ingestor.charts.indicators import MACD_BARS, RSI_BARS, bollinger, describe_lack, ema, macd, rsi, sma
from ingestor.charts.series import LiveBars, Series, Theme
from ingestor.dataset.bar_grid import parse_interval
from ingestor.texts import describe_blindness

_LET_SCROLL = "cb_context.index.find_one(cb_obj).canvas_view.events_el.style.touchAction = 'pan-y'"
"""A finger that moves up or down on a chart scrolls the page: Bokeh would take every gesture, and a phone be stuck."""

Frame = dict[str, NDArray[Any]]
"""Columns of one length; a row per bar, or per a few bars merged into one."""

_NEEDED = {"rsi": RSI_BARS, "macd": MACD_BARS}
_SEEN_BARS = 400
"""So many, merged if need be, are between the edges of what is seen; as many again wait on either side."""
_GROUPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 900, 3600)
_SUMMED = {"high": np.fmax, "low": np.fmin, "volume": np.add}


class Cut(NamedTuple):
    """The part of a chart that the browser has: bars that begin in [start, end), `group` intervals merged into one."""

    start_ms: float
    end_ms: float
    group: int


class Chart:
    """The panes of one symbol."""

    def __init__(self, bars: LiveBars, x_range: models.Range1d, theme: Theme) -> None:
        self.bars = bars
        self._theme = theme
        self._frame: Frame = {}
        self._blind_frame: Frame = {}
        self._source = models.ColumnDataSource()
        self._blind_source = models.ColumnDataSource()
        self._last_line = models.Span(dimension="width", line_dash=[2, 3], line_width=0.8, visible=False)
        # An axis of its own: a label would be cut off at the edge of the pane.
        self._last_price = models.LinearAxis(
            ticker=models.FixedTicker(ticks=[]), axis_line_color=None, major_tick_line_color=None,
            major_label_text_font_style="bold", major_label_standoff=0,
        )  # fmt: skip
        self._lacks = {
            name: models.Label(
                x=models.Node.frame.center, y=models.Node.frame.center, text="", text_align="center",
                text_baseline="middle", text_font_size="11px", text_color=theme.quiet,
            )
            for name in _NEEDED
        }  # fmt: skip
        self._cut: Cut | None = None
        self._interval_ms = parse_interval(bars.interval)
        self.update(bars.series([]), (x_range.start, x_range.end))
        self.panes = [self._draw_price(x_range), *self._draw_indicators(x_range)]
        for pane in self.panes:  # blind time, with its cause and length at the pointer
            shade = pane.vstrip(
                x0="start", x1="end", source=self._blind_source, fill_color="colour", line_color="colour",
                fill_alpha=0.3, line_alpha=0.3, level="underlay",
            )  # fmt: skip
            pane.add_tools(
                models.HoverTool(renderers=[shade], tooltips=[("state", "@state"), ("for", "@seconds{0,0.0} s")])
            )

    def update(self, series: Series, seen: tuple[float, float]) -> None:
        """Send what has changed of the stretch of time (ms) that is seen, and of some to its sides."""
        cut = choose_cut(self._cut, seen, self._interval_ms)
        new = make_frame(series, cut, self._theme)
        delta = find_delta(self._frame, new) if cut == self._cut else None
        if delta is None:
            self._source.data = dict(new)
        else:
            if delta.patches:
                self._source.patch(delta.patches)
            if delta.appended:
                self._source.stream(delta.appended)
        self._frame, self._cut = new, cut
        blind = make_blind_frame(series, self._theme)
        if not self._blind_frame or any(list(blind[name]) != list(self._blind_frame[name]) for name in blind):
            self._blind_frame = blind
            self._blind_source.data = dict(blind)
        self._name_last_price(series)
        for name, label in self._lacks.items():
            label.text = describe_lack(series.closes, _NEEDED[name]) if np.isnan(new[name]).all() else ""

    def _name_last_price(self, series: Series) -> None:
        """A line at the last close, and the price where the axis has its own: in the colour of that bar."""
        known = np.flatnonzero(~np.isnan(series.close))
        self._last_line.visible = bool(len(known))
        if len(known):
            close = float(series.close[known[-1]])
            colour = self._theme.up if close >= series.open[known[-1]] else self._theme.down
            self._last_line.update(location=close, line_color=colour)
            self._last_price.ticker.ticks = [close]
            self._last_price.update(major_label_overrides={close: f"{close:,.8g}"}, major_label_text_color=colour)

    def _draw_price(self, x_range: models.Range1d) -> figure:
        pane = self._make_pane(x_range, 360, self.bars.symbol)
        theme = self._theme
        bands = [
            pane.line(
                "time", name, source=self._source, color=theme.bands, line_width=0.8, legend_label="Bollinger 20, 2"
            )
            for name in ("upper", "lower")
        ]
        wicks = pane.segment("time", "low", "time", "high", source=self._source, color="colour")
        pane.rect("time", "body", "width", "body_height", source=self._source, color="colour", line_color=None)
        # A bar that stood still has neither wick nor body to see.
        pane.scatter("time", "close", marker="dash", size=4, source=self._source, color="colour")
        pane.line("time", "sma", source=self._source, color=theme.average, line_width=1.5, legend_label="SMA 20")
        pane.line("time", "ema", source=self._source, color=theme.exponential, line_width=1.5, legend_label="EMA 20")
        pane.y_range.renderers = [wicks, *bands]
        pane.add_layout(self._last_line)
        pane.add_layout(self._last_price, "right")
        unseen = pane.line("time", "close", source=self._source, line_alpha=0)
        self._add_hover(pane, unseen, ["open", "high", "low", "close", "sma", "ema", "volume"])
        pane.add_layout(pane.legend[0], "above")
        pane.legend.location = "left"
        pane.legend.padding = pane.legend.margin = 0
        pane.legend.spacing = 14
        pane.legend.orientation = "horizontal"
        pane.legend.background_fill_alpha = pane.legend.border_line_alpha = 0
        pane.legend.label_text_color = theme.quiet
        pane.legend.label_text_font_size = "11px"
        return pane

    def _draw_indicators(self, x_range: models.Range1d) -> list[figure]:
        """Volume, RSI and MACD, top to bottom; the lowest bears the time axis."""
        source, theme = self._source, self._theme
        volume = self._make_pane(x_range, 100, "Volume", small=True)
        self._draw_boxes(volume, "volume_middle", "volume", "colour")
        unseen = volume.line("time", "volume", source=source, line_alpha=0)
        volume.y_range.renderers = [unseen]
        volume.y_range.start = 0
        volume.yaxis.formatter = models.NumeralTickFormatter(format="0.[0]a")
        self._add_hover(volume, unseen, ["volume"])

        strength = self._make_pane(x_range, 110, "RSI 14", small=True)
        line = strength.line("time", "rsi", source=source, color=theme.average, line_width=1.3)
        strength.y_range = models.Range1d(0, 100)
        strength.yaxis.ticker = [30, 50, 70]
        for level in (30, 70):
            strength.add_layout(models.Span(location=level, line_color=theme.quiet, line_dash=[4, 4], line_width=0.7))
        strength.add_layout(self._lacks["rsi"])
        self._add_hover(strength, line, ["rsi"])

        difference = self._make_pane(x_range, 165, "MACD 12, 26, 9", small=True)
        self._draw_boxes(difference, "histogram_middle", "histogram_height", "sign")
        unseen = difference.line("time", "histogram", source=source, line_alpha=0)
        # In sight also where there is no MACD yet: a pane without a range has no axis either.
        zero = difference.hspan(y=[0], line_color=theme.quiet, line_dash=[4, 4], line_width=0.7)
        difference.y_range.renderers = [
            zero,
            unseen,
            difference.line("time", "macd", source=source, color=theme.average, line_width=1.3),
            difference.line("time", "signal", source=source, color=theme.exponential, line_width=1.3),
        ]
        difference.add_layout(self._lacks["macd"])
        difference.xaxis.visible = True
        difference.xaxis.axis_label = "UTC"
        self._add_hover(difference, unseen, ["macd", "signal", "histogram"])
        return [volume, strength, difference]

    def _add_hover(self, pane: figure, line: "models.GlyphRenderer[Any]", names: list[str]) -> None:
        """Text at the pointer on the nearest bar, above or below it: boxes are only hit from within.

        Right on a bar it hits the line on either side of it: once is enough.
        """
        told = [("time", "@time{%F %T}"), *((name, f"@{name}{{0,0.00[0000]}}") for name in names)]
        pane.add_tools(
            models.HoverTool(
                renderers=[line],
                tooltips=told,
                formatters={"@time": "datetime"},
                mode="vline",
                line_policy="nearest",
                limit=1,
            )
        )

    def _draw_boxes(self, pane: figure, middle: str, height: str, colour: str) -> None:
        """Upright boxes. Not Bokeh's vbar: it draws those outside the pane as a line along its edge."""
        pane.rect("time", middle, "width", height, source=self._source, color=colour, line_color=None, alpha=0.65)

    def _make_pane(self, x_range: models.Range1d, height: int, title: str, *, small: bool = False) -> figure:
        theme = self._theme
        pane = figure(
            x_axis_type="datetime", x_range=x_range, y_range=models.DataRange1d(), window_axis="x", height=height,
            sizing_mode="stretch_width", tools="xpan,xwheel_zoom", active_scroll="xwheel_zoom", y_axis_location="right",
            title=title, background_fill_color=theme.ground, border_fill_color=theme.ground, outline_line_color=None,
            toolbar_location=None, min_border_left=10, min_border_right=105,
        )  # fmt: skip
        pane.title.text_font_size = "11px" if small else "16px"
        pane.title.text_color = theme.quiet if small else theme.ink
        pane.grid.grid_line_color = theme.grid
        pane.axis.axis_line_color = pane.axis.major_tick_line_color = pane.axis.minor_tick_line_color = None
        pane.axis.major_label_text_color = pane.axis.axis_label_text_color = theme.quiet
        pane.axis.axis_label_text_font_style = "normal"
        pane.xaxis.visible = False
        pane.xaxis.ticker = models.DatetimeTicker(desired_num_ticks=4)
        pane.yaxis.ticker = models.BasicTicker(desired_num_ticks=3 if small else 6)
        pane.js_on_change("inner_width", models.CustomJS(code=_LET_SCROLL))  # as soon as it is laid out
        return pane


# Frames


class Delta(NamedTuple):
    """Difference between two frames: rows that replace others, then rows that are appended."""

    patches: dict[str, list[tuple[slice, NDArray[Any]]]]
    appended: Frame


def choose_cut(before: Cut | None, seen: tuple[float, float], interval_ms: int) -> Cut:
    """The cut for a browser that shows this stretch of time (ms): the one it has, if that is enough."""
    width_ms = seen[1] - seen[0]
    group = next((one for one in _GROUPS if width_ms <= one * interval_ms * _SEEN_BARS), _GROUPS[-1])
    if before is not None and before.group == group and before.start_ms <= seen[0] and seen[1] <= before.end_ms:
        return before
    return Cut(seen[0] - width_ms, seen[1] + width_ms, group)


def make_frame(series: Series, cut: Cut, theme: Theme) -> Frame:
    """Bars and indicators of a cut: `time` is the middle of a bar in ms since 1970, NaN is nothing.

    Merged bars bear the indicators of the last of them.
    """
    closes = series.closes
    bands, difference = bollinger(closes), macd(closes)
    columns = {
        "start": series.starts_ms, "open": series.open, "high": series.high, "low": series.low, "close": series.close,
        "volume": series.volume, "sma": sma(closes), "ema": ema(closes), "upper": bands.upper, "lower": bands.lower,
        "rsi": rsi(closes), "macd": difference.line, "signal": difference.signal, "histogram": difference.histogram,
    }  # fmt: skip
    first, last = np.searchsorted(series.starts_ms, [cut.start_ms, cut.end_ms])
    length_ms = series.interval_ms * cut.group
    frame = merge_bars({name: column[first:last] for name, column in columns.items()}, length_ms)
    return {
        "time": frame.pop("start") + length_ms / 2,
        **frame,
        "body": (frame["open"] + frame["close"]) / 2,
        "body_height": abs(frame["open"] - frame["close"]),
        "volume_middle": frame["volume"] / 2,
        "histogram_middle": frame["histogram"] / 2,
        "histogram_height": abs(frame["histogram"]),
        "width": np.full(len(frame["open"]), length_ms * 0.7),
        "colour": np.where(frame["close"] >= frame["open"], theme.up, theme.down),
        "sign": np.where(frame["histogram"] >= 0, theme.up, theme.down),
    }


def merge_bars(columns: Frame, length_ms: int) -> Frame:
    """Bars that begin in the same `length_ms` as one."""
    groups = columns["start"] // length_ms
    firsts = np.flatnonzero(np.diff(groups, prepend=-1))
    lasts = np.append(firsts[1:], len(groups))[: len(firsts)] - 1
    merged = {name: column[lasts] for name, column in columns.items()}
    if len(firsts):
        merged |= {name: combine.reduceat(columns[name], firsts) for name, combine in _SUMMED.items()}
    return merged | {"start": groups[firsts] * length_ms, "open": columns["open"][firsts]}


def make_blind_frame(series: Series, theme: Theme) -> Frame:
    """A row per stretch of blindness."""
    colours = theme.gap_colours(one.cause for one in series.blind)
    return {
        "start": np.array([one.start_ms for one in series.blind], dtype=np.float64),
        "end": np.array([one.end_ms for one in series.blind], dtype=np.float64),
        "cause": np.array([one.cause for one in series.blind], dtype=np.str_),
        "state": np.array([describe_blindness(one.cause) for one in series.blind], dtype=np.str_),
        "colour": np.array([colours[one.cause] for one in series.blind], dtype=np.str_),
        "seconds": np.array([(one.end_ms - one.start_ms) / 1000 for one in series.blind], dtype=np.float64),
    }


def find_delta(old: Frame, new: Frame) -> Delta | None:
    """Difference to the next frame of the same cut; None if bars are gone, and all of it must be sent."""
    before, after = len(old["time"]), len(new["time"])
    if after < before:
        return None
    first = min(first_difference(old[name], new[name][:before]) for name in new)
    patches = {name: [(slice(first, before), new[name][first:before])] for name in new} if first < before else {}
    return Delta(patches, {name: column[before:] for name, column in new.items()} if after > before else {})


def first_difference(old: NDArray[Any], new: NDArray[Any]) -> int:
    """The first row in which two columns of one length differ; their length where they are the same. NaN is NaN."""
    different = old != new
    if old.dtype.kind == "f":
        different &= ~(np.isnan(old) & np.isnan(new))
    return int(different.argmax()) if different.any() else len(old)
