"""The dashboard: what one browser tab shows, kept up to date by what the journal holds that is new.

A tab has its own follower of the journal; nothing is shared between tabs, and the recorder knows of none.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from bokeh.document import Document
from bokeh.events import MouseWheel, PanStart, PinchStart
from bokeh.layouts import column, row
from bokeh.models import (
    BasicTicker,
    ColumnDataSource,
    CustomJS,
    DataRange1d,
    Div,
    HoverTool,
    MultiChoice,
    NumeralTickFormatter,
    Range1d,
    Select,
    Span,
    Toggle,
)
from bokeh.plotting import figure
from jinja2 import Template

from ingestor.charts.bokeh_frame import Cut, Frame, choose_cut, find_delta, make_blind_frame, make_frame
from ingestor.charts.live_bars import LiveBars
from ingestor.charts.look import Look
from ingestor.charts.series import Series, load_blind
from ingestor.dataset.bar_grid import parse_interval
from ingestor.dataset.coverage import read_coverage
from ingestor.dataset.snapshot import open_recording
from ingestor.errors import Lagged
from ingestor.journal.cursor import Cursor
from ingestor.journal.follower import Follower, Rows
from ingestor.journal.segment import end_of_records
from ingestor.layout import Layout, list_segments

INTERVALS = ("1s", "5s", "15s", "1m", "5m", "15m", "1h")
MAX_SYMBOLS = 4
BARS = 28_800
"""Eight hours of seconds."""

_TICK_MS = 250
_LOOK_S = 1.0
_SHOWN_BARS = 120
_FEW_BARS = 2000
"""Of intervals longer than a minute: four weeks of quarters of an hour, without reading months of trades."""
_PAGE = """
{% extends base %}
{% block postamble %}<style>html, body { background: GROUND; margin: 8px; }</style>{% endblock %}
"""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class View:
    """What a tab shows at first."""

    root: Path
    symbols: Sequence[str]
    interval: str
    look: Look


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
        self.panes = [self._draw_price(x_range), *self._draw_lower(x_range)]
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
        bodies = pane.rect("time", "body", "width", "body_height", source=self._source, color="colour", line_color=None)
        # A bar that stood still has neither wick nor body to see.
        pane.scatter("time", "close", marker="dash", size=4, source=self._source, color="colour")
        pane.line("time", "sma", source=self._source, color=look.average, line_width=1.5, legend_label="SMA 20")
        pane.line("time", "ema", source=self._source, color=look.exponential, line_width=1.5, legend_label="EMA 20")
        pane.y_range.renderers = [wicks]
        tooltips = [(name, f"@{name}{{0,0.00[0000]}}") for name in ("open", "high", "low", "close", "sma", "ema")]
        tooltips = [("time", "@time{%F %T}"), *tooltips, ("volume", "@volume{0,0.[00]}")]
        pane.add_tools(HoverTool(renderers=[bodies], tooltips=tooltips, formatters={"@time": "datetime"}, mode="vline"))
        pane.add_layout(pane.legend[0], "above")
        pane.legend.location = "left"
        pane.legend.padding = pane.legend.margin = 0
        pane.legend.spacing = 14
        pane.legend.orientation = "horizontal"
        pane.legend.background_fill_alpha = pane.legend.border_line_alpha = 0
        pane.legend.label_text_color = look.quiet
        pane.legend.label_text_font_size = "11px"
        return pane

    def _draw_lower(self, x_range: Range1d) -> list[figure]:
        look = self._look
        volume = self._make_pane(x_range, 100, "Volume", small=True)
        self._draw_boxes(volume, "volume_middle", "volume", "colour")
        volume.y_range.renderers = [volume.line("time", "volume", source=self._source, line_alpha=0)]
        volume.y_range.start = 0
        volume.yaxis.formatter = NumeralTickFormatter(format="0.[0]a")
        strength = self._make_pane(x_range, 110, "RSI 14", small=True)
        strength.line("time", "rsi", source=self._source, color=look.average, line_width=1.3)
        strength.y_range = Range1d(0, 100)
        strength.yaxis.ticker = [30, 50, 70]
        for level in (30, 70):
            strength.add_layout(Span(location=level, line_color=look.quiet, line_dash=[4, 4], line_width=0.7))
        difference = self._make_pane(x_range, 165, "MACD 12, 26, 9", small=True)
        self._draw_boxes(difference, "histogram_middle", "histogram_height", "sign")
        difference.y_range.renderers = [
            difference.line("time", "macd", source=self._source, color=look.average, line_width=1.3),
            difference.line("time", "signal", source=self._source, color=look.exponential, line_width=1.3),
            difference.line("time", "histogram", source=self._source, line_alpha=0),
        ]
        difference.xaxis.visible = True
        difference.xaxis.axis_label = "UTC"
        for pane, names in ((volume, ["volume"]), (strength, ["rsi"]), (difference, ["macd", "signal", "histogram"])):
            told = [("time", "@time{%F %T}"), *((name, f"@{name}{{0,0.00[0000]}}") for name in names)]
            pane.add_tools(HoverTool(tooltips=told, formatters={"@time": "datetime"}, mode="vline"))
        return [volume, strength, difference]

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
        pane.yaxis.ticker = BasicTicker(desired_num_ticks=3 if small else 6)
        return pane

    def _shade(self, pane: figure) -> None:
        """Blind time, and what the pointer says of it."""
        shade = pane.vstrip(
            x0="start", x1="end", source=self._blind_source, fill_color="colour", line_color="colour",
            fill_alpha=0.3, line_alpha=0.3, level="underlay",
        )  # fmt: skip
        for tool in pane.tools:
            if isinstance(tool, HoverTool) and tool.renderers == "auto":
                tool.renderers = [each for each in pane.renderers if each is not shade]
        pane.add_tools(HoverTool(renderers=[shade], tooltips=[("blind", "@cause"), ("for", "@seconds{0,0.0} s")]))


class Dashboard:
    """One tab: the choosers, the charts, and the journal followed for them."""

    def __init__(self, document: Document, view: View) -> None:
        self._view = view
        self._layout = open_recording(view.root)
        self._follower: Follower | None = None
        self._charts: list[Chart] = []
        self._looked_s = 0.0
        self._blind: dict[str, Any] = {}
        self._x_range = self._newest_range = Range1d(0, 1)
        known = read_coverage(self._layout).symbols
        chosen = list(view.symbols) or known[:1]
        self._symbols = MultiChoice(options=sorted({*known, *chosen}), value=chosen, max_items=MAX_SYMBOLS, width=480)
        self._interval = Select(options=list(INTERVALS), value=view.interval, width=90)
        self._following = Toggle(label="Following the newest", active=True, button_type="primary", width=180)
        self._newest = Div(text="", styles={"color": view.look.quiet, "font-size": "13px", "padding-top": "6px"})
        self._columns = row([], sizing_mode="stretch_width")
        document.title = "finnhub-ingestor"
        document.template = Template(_PAGE.replace("GROUND", view.look.ground))
        widgets = row([self._symbols, self._interval, self._following, self._newest], sizing_mode="stretch_width")
        document.add_root(column([widgets, self._columns], sizing_mode="stretch_width"))
        for chooser in (self._symbols, self._interval):
            chooser.on_change("value", lambda _name, _old, _new: self.reload())
        self._following.on_change("active", lambda _name, _old, active: self._follow(active=active))
        document.add_periodic_callback(self.tick, _TICK_MS)
        document.on_session_destroyed(lambda _: self.close())
        self.reload()

    def close(self) -> None:
        if self._follower is not None:
            self._follower.close()
            self._follower = None

    def reload(self) -> None:
        """Read the history of what is chosen; what comes from now on follows on it."""
        self.close()
        self._follower = Follower(self._layout, _end_of_journal(self._layout), synced_only=False)
        interval = self._interval.value
        interval_ms = parse_interval(interval)
        bars = BARS if interval_ms <= 60_000 else _FEW_BARS
        limits = {"min_interval": 10 * interval_ms, "max_interval": int(1.1 * bars * interval_ms)}
        self._x_range = Range1d(*newest_range(self._now_ms(), interval_ms), **limits)
        now_ms = self._now_ms()
        made = [LiveBars(self._view.root, symbol, interval, bars, now_ms) for symbol in self._symbols.value]
        self._charts = [Chart(one, self._x_range, self._view.look) for one in made]
        self._move_in_the_browser()
        self._columns.children = [column(list(chart.panes), sizing_mode="stretch_width") for chart in self._charts]
        self._looked_s = 0.0
        self._follow(active=True)
        self.tick()

    def tick(self) -> None:
        """Take what is new, and send what that changes."""
        try:
            self._take()
        except Lagged:  # this process stood still for longer than the journal keeps segments
            log.warning("dashboard.lagged")
            self.reload()
            return
        self._look()
        start, self._newest_range.end = newest_range(self._now_ms(), parse_interval(self._interval.value))
        self._newest_range.start = start
        seen = self._x_range.start, self._x_range.end
        for chart in self._charts:
            chart.update(chart.bars.series(self._blind.get(chart.bars.symbol, [])), seen)

    def _take(self) -> None:
        now_ms = self._now_ms()
        if self._follower is None:
            return
        for event in self._follower.read():
            if isinstance(event, Rows) and event.batch.num_rows:
                for chart in self._charts:
                    chart.bars.take(event.batch, now_ms)

    def _look(self) -> None:
        """Once a second: where each symbol was blind."""
        if time.monotonic() - self._looked_s < _LOOK_S:
            return
        self._looked_s, now_ms = time.monotonic(), self._now_ms()
        for chart in self._charts:
            symbol = chart.bars.symbol
            self._blind[symbol] = load_blind(self._view.root, symbol, now_ms - chart.bars.length_ms, now_ms)
        held = {one[-1].cause for one in self._blind.values() if one and one[-1].end_ms >= now_ms}
        self._newest.text = f"blind: {', '.join(sorted(held))}" if held else ""

    def _follow(self, *, active: bool) -> None:
        self._following.active = active
        self._following.label = "Following the newest" if active else "Follow the newest"
        self._following.button_type = "primary" if active else "default"

    def _move_in_the_browser(self) -> None:
        """Whoever zooms or pans must not be moved by what the server said just before: so the browser decides.

        The server tells the newest range, the browser takes it over while it follows, and tells what it shows.
        """
        self._newest_range = Range1d(self._x_range.start, self._x_range.end)
        told = {"shown": self._x_range, "newest": self._newest_range, "following": self._following}
        move = "if (following.active) shown.setv({start: newest.start, end: newest.end})"
        self._newest_range.js_on_change("start", CustomJS(args=told, code=move))
        stop = CustomJS(args=told, code="following.active = false")
        for chart in self._charts:
            for pane in chart.panes:
                for event in (PanStart, MouseWheel, PinchStart):
                    pane.js_on_event(event, stop)

    @staticmethod
    def _now_ms() -> int:
        return int(time.time() * 1000)


def newest_range(now_ms: int, interval_ms: int) -> tuple[int, int]:
    """From when to when a chart shows that follows: 120 bars, and room for a few more."""
    return now_ms - interval_ms * _SHOWN_BARS, now_ms + interval_ms * 4


def _end_of_journal(layout: Layout) -> Cursor | None:
    """Behind the last record that is whole now."""
    segments = list_segments(layout)
    return Cursor(segments[-1].id.number, end_of_records(segments[-1].path)) if segments else None
