"""The panes of one symbol in the browser: candlesticks, volume, RSI and MACD over one axis of time, gaps shaded."""

from typing import Any

from bokeh.models import (
    BasicTicker,
    ColumnDataSource,
    CustomJS,
    DataRange1d,
    DatetimeTicker,
    GlyphRenderer,
    HoverTool,
    NumeralTickFormatter,
    Range1d,
    Span,
)
from bokeh.plotting import figure

from ingestor.charts.bokeh_frame import Cut, Frame, choose_cut, find_delta, make_blind_frame, make_frame
from ingestor.charts.live_bars import LiveBars
from ingestor.charts.look import Look
from ingestor.charts.series import Series
from ingestor.dataset.bar_grid import parse_interval

_LET_SCROLL = "cb_context.index.find_one(cb_obj).canvas_view.events_el.style.touchAction = 'pan-y'"
"""A finger that moves up or down on a chart scrolls the page: Bokeh would take every gesture, and a phone be stuck."""


class Chart:
    """The panes of one symbol."""

    def __init__(self, bars: LiveBars, x_range: Range1d, look: Look) -> None:
        self.bars = bars
        self._look = look
        self._frame: Frame = {}
        self._blind_frame: Frame = {}
        self._source = ColumnDataSource()
        self._blind_source = ColumnDataSource()
        self._cut: Cut | None = None
        self._interval_ms = parse_interval(bars.interval)
        self.update(bars.series([]), (x_range.start, x_range.end))
        self.panes = [self._draw_price(x_range), self._draw_volume(x_range)]
        self.panes += [self._draw_strength(x_range), self._draw_difference(x_range)]
        for pane in self.panes:
            self._shade(pane)

    def update(self, series: Series, seen: tuple[float, float]) -> None:
        """Send what has changed of the stretch of time (ms) that is seen, and of some to its sides."""
        cut = choose_cut(self._cut, seen, self._interval_ms)
        new = make_frame(series, cut, self._look)
        delta = find_delta(self._frame, new) if cut == self._cut else None
        if delta is None:
            self._source.data = dict(new)
        else:
            if delta.patches:
                self._source.patch(delta.patches)
            if delta.appended:
                self._source.stream(delta.appended)
        self._frame, self._cut = new, cut
        blind = make_blind_frame(series, self._look)
        if not self._blind_frame or any(list(blind[name]) != list(self._blind_frame[name]) for name in blind):
            self._blind_frame = blind
            self._blind_source.data = dict(blind)

    def _draw_price(self, x_range: Range1d) -> figure:
        pane = self._make_pane(x_range, 360, self.bars.symbol)
        look = self._look
        for name in ("upper", "lower"):
            pane.line(
                "time", name, source=self._source, color=look.bands, line_width=0.8, legend_label="Bollinger 20, 2"
            )
        wicks = pane.segment("time", "low", "time", "high", source=self._source, color="colour")
        pane.rect("time", "body", "width", "body_height", source=self._source, color="colour", line_color=None)
        # A bar that stood still has neither wick nor body to see.
        pane.scatter("time", "close", marker="dash", size=4, source=self._source, color="colour")
        pane.line("time", "sma", source=self._source, color=look.average, line_width=1.5, legend_label="SMA 20")
        pane.line("time", "ema", source=self._source, color=look.exponential, line_width=1.5, legend_label="EMA 20")
        pane.y_range.renderers = [wicks]
        unseen = pane.line("time", "close", source=self._source, line_alpha=0)
        self._tell(pane, unseen, ["open", "high", "low", "close", "sma", "ema", "volume"])
        pane.add_layout(pane.legend[0], "above")
        pane.legend.location = "left"
        pane.legend.padding = pane.legend.margin = 0
        pane.legend.spacing = 14
        pane.legend.orientation = "horizontal"
        pane.legend.background_fill_alpha = pane.legend.border_line_alpha = 0
        pane.legend.label_text_color = look.quiet
        pane.legend.label_text_font_size = "11px"
        return pane

    def _draw_volume(self, x_range: Range1d) -> figure:
        pane = self._make_pane(x_range, 100, "Volume", small=True)
        self._draw_boxes(pane, "volume_middle", "volume", "colour")
        unseen = pane.line("time", "volume", source=self._source, line_alpha=0)
        pane.y_range.renderers = [unseen]
        pane.y_range.start = 0
        pane.yaxis.formatter = NumeralTickFormatter(format="0.[0]a")
        self._tell(pane, unseen, ["volume"])
        return pane

    def _draw_strength(self, x_range: Range1d) -> figure:
        pane = self._make_pane(x_range, 110, "RSI 14", small=True)
        line = pane.line("time", "rsi", source=self._source, color=self._look.average, line_width=1.3)
        pane.y_range = Range1d(0, 100)
        pane.yaxis.ticker = [30, 50, 70]
        for level in (30, 70):
            pane.add_layout(Span(location=level, line_color=self._look.quiet, line_dash=[4, 4], line_width=0.7))
        self._tell(pane, line, ["rsi"])
        return pane

    def _draw_difference(self, x_range: Range1d) -> figure:
        """The lowest pane, which bears the time axis."""
        pane, look = self._make_pane(x_range, 165, "MACD 12, 26, 9", small=True), self._look
        self._draw_boxes(pane, "histogram_middle", "histogram_height", "sign")
        unseen = pane.line("time", "histogram", source=self._source, line_alpha=0)
        # In sight also where there is no MACD yet: a pane without a range has no axis either.
        zero = pane.hspan(y=[0], line_color=look.quiet, line_dash=[4, 4], line_width=0.7)
        pane.y_range.renderers = [
            zero,
            unseen,
            pane.line("time", "macd", source=self._source, color=look.average, line_width=1.3),
            pane.line("time", "signal", source=self._source, color=look.exponential, line_width=1.3),
        ]
        pane.xaxis.visible = True
        pane.xaxis.axis_label = "UTC"
        self._tell(pane, unseen, ["macd", "signal", "histogram"])
        return pane

    def _tell(self, pane: figure, line: "GlyphRenderer[Any]", names: list[str]) -> None:
        """What the pointer says of the nearest bar, be it above or below: boxes are only hit from within.

        Right on a bar it hits the line on either side of it: once is enough.
        """
        told = [("time", "@time{%F %T}"), *((name, f"@{name}{{0,0.00[0000]}}") for name in names)]
        pane.add_tools(
            HoverTool(
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

    def _make_pane(self, x_range: Range1d, height: int, title: str, *, small: bool = False) -> figure:
        look = self._look
        pane = figure(
            x_axis_type="datetime", x_range=x_range, y_range=DataRange1d(), window_axis="x", height=height,
            sizing_mode="stretch_width", tools="xpan,xwheel_zoom", active_scroll="xwheel_zoom", y_axis_location="right",
            title=title, background_fill_color=look.ground, border_fill_color=look.ground, outline_line_color=None,
            toolbar_location=None, min_border_left=10, min_border_right=70,
        )  # fmt: skip
        pane.title.text_font_size = "11px" if small else "16px"
        pane.title.text_color = look.quiet if small else look.ink
        pane.grid.grid_line_color = look.grid
        pane.axis.axis_line_color = pane.axis.major_tick_line_color = pane.axis.minor_tick_line_color = None
        pane.axis.major_label_text_color = pane.axis.axis_label_text_color = look.quiet
        pane.axis.axis_label_text_font_style = "normal"
        pane.xaxis.visible = False
        pane.xaxis.ticker = DatetimeTicker(desired_num_ticks=4)
        pane.yaxis.ticker = BasicTicker(desired_num_ticks=3 if small else 6)
        pane.js_on_change("inner_width", CustomJS(code=_LET_SCROLL))  # as soon as it is laid out
        return pane

    def _shade(self, pane: figure) -> None:
        """Blind time, and what the pointer says of it."""
        shade = pane.vstrip(
            x0="start", x1="end", source=self._blind_source, fill_color="colour", line_color="colour",
            fill_alpha=0.3, line_alpha=0.3, level="underlay",
        )  # fmt: skip
        pane.add_tools(HoverTool(renderers=[shade], tooltips=[("blind", "@cause"), ("for", "@seconds{0,0.0} s")]))
