"""The dashboard: what one browser tab shows, kept up to date by what the journal holds that is new.

A tab has its own follower of the journal; nothing is shared between tabs, and the recorder knows of none.
"""

import html
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog
from bokeh.document import Document
from bokeh.layouts import column, row
from bokeh.models import (
    CustomJS,
    Div,
    InlineStyleSheet,
    MultiChoice,
    Range1d,
    Select,
    Toggle,
)
from jinja2 import Template

from ingestor.charts.bokeh_chart import Chart
from ingestor.charts.live_bars import LiveBars
from ingestor.charts.look import Look
from ingestor.charts.series import Blind, BlindTimes
from ingestor.dataset.bar_grid import parse_interval
from ingestor.dataset.coverage import read_coverage
from ingestor.dataset.snapshot import open_recording
from ingestor.dataset.times import Span
from ingestor.errors import Lagged
from ingestor.journal.follower import Follower, Rows, find_journal_end
from ingestor.layout import read_holder
from ingestor.texts import escape

INTERVALS = ("1s", "5s", "15s", "1m", "5m", "15m", "1h")
MAX_SYMBOLS = 4
BARS = 28_800
"""Eight hours of seconds."""

_TICK_MS = 250
_LOOK_S = 1.0
_SHOWN_BARS = 120
_FEW_BARS = 2000
"""Of intervals longer than a minute: four weeks of quarters of an hour, without reading months of trades."""
_COLUMN_MIN = 340
"""In pixels: side by side where there is room, else one below the other."""
_WRAPPED = {"flex-wrap": "wrap"}
_WIDGETS = """
.bk-input, .choices__inner, .choices__list--dropdown, .bk-btn-default { background-color: GROUND; color: INK;
  border-color: QUIET; }
select.bk-input { background-image: none !important; appearance: auto !important; }
.choices__input { background-color: transparent; color: INK; }
.choices__list--dropdown .choices__item--selectable.is-highlighted, .bk-btn-default:hover { background-color: GRID; }
"""
_PAGE = """
{% extends base %}
{% block preamble %}<meta name="viewport" content="width=device-width, initial-scale=1">{% endblock %}
{% block postamble %}<style>
html { background: GROUND; color-scheme: SCHEME; }
body { margin: 8px; height: auto; }
</style>{% endblock %}
"""

_KNOWN_S = 31 * 86_400.0
"""Symbols that were asked for within this time are offered."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class View:
    """What a tab shows at first."""

    root: Path
    symbols: Sequence[str]
    interval: str
    look: Look


class Dashboard:
    """One tab: the choosers, the charts, and the journal followed for them."""

    def __init__(self, document: Document, view: View) -> None:
        self._view = view
        self._layout = open_recording(view.root)
        self._follower: Follower | None = None
        self._charts: list[Chart] = []
        self._looked_s = 0.0
        self._blind_times = BlindTimes(view.root)
        self._blind: dict[str, list[Blind]] = {}
        self._x_range = self._newest_range = Range1d(0, 1)
        known = read_coverage(self._layout, span=Span(int((time.time() - _KNOWN_S) * 1000), None)).symbols
        chosen = list(view.symbols) or known[:1]
        style = [_style_widgets(view.look)]
        self._symbols = MultiChoice(
            options=_as_options({*known, *chosen}), value=chosen, max_items=MAX_SYMBOLS, stylesheets=style,
            sizing_mode="stretch_width", min_width=240, max_width=480,
        )  # fmt: skip
        self._interval = Select(options=list(INTERVALS), value=view.interval, width=90, stylesheets=style)
        self._following = Toggle(
            label="Following the newest", active=True, button_type="primary", width=180, stylesheets=style
        )
        self._newest = Div(text="", styles={"color": view.look.quiet, "font-size": "13px", "padding-top": "6px"})
        self._columns = row([], sizing_mode="stretch_width", styles=_WRAPPED)
        self._lay_out(document)
        for chooser in (self._symbols, self._interval):
            chooser.on_change("value", lambda _name, _old, _new: self.reload())
        self._following.on_change("active", lambda _name, _old, active: self._follow(active=active))
        document.add_periodic_callback(self.tick, _TICK_MS)
        document.on_session_destroyed(lambda _: self.close())
        self.reload()

    def _lay_out(self, document: Document) -> None:
        look = self._view.look
        document.title = "finnhub-ingestor"
        document.template = Template(_PAGE.replace("GROUND", look.ground).replace("SCHEME", look.scheme))
        widgets = row(
            [self._symbols, self._interval, self._following, self._newest], sizing_mode="stretch_width", styles=_WRAPPED
        )
        document.add_root(column([widgets, self._columns], sizing_mode="stretch_width"))

    def close(self) -> None:
        if self._follower is not None:
            self._follower.close()
            self._follower = None

    def reload(self) -> None:
        """Read the history of what is chosen; what comes from now on follows on it."""
        self.close()
        self._follower = Follower(self._layout, find_journal_end(self._layout), synced_only=False)
        interval = self._interval.value
        interval_ms = parse_interval(interval)
        bars = BARS if interval_ms <= 60_000 else _FEW_BARS
        limits = {"min_interval": 10 * interval_ms, "max_interval": int(1.1 * bars * interval_ms)}
        self._x_range = Range1d(*newest_range(self._now_ms(), interval_ms), **limits)
        now_ms = self._now_ms()
        made = [LiveBars(self._view.root, symbol, interval, bars, now_ms) for symbol in self._symbols.value]
        self._charts = [Chart(one, self._x_range, self._view.look) for one in made]
        self._move_in_the_browser()
        self._columns.children = [
            column(list(chart.panes), sizing_mode="stretch_width", min_width=_COLUMN_MIN) for chart in self._charts
        ]
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
            self._blind[symbol] = self._blind_times.find(symbol, now_ms - chart.bars.length_ms, now_ms)
        held = {one[-1].cause for one in self._blind.values() if one and one[-1].end_ms >= now_ms}
        if read_holder(self._layout) is None:
            self._newest.text = "no recorder runs"
        else:
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
        stop = CustomJS(args=told, code="if (shown.start !== newest.start) following.active = false")
        self._x_range.js_on_change("start", stop)

    @staticmethod
    def _now_ms() -> int:
        return int(time.time() * 1000)


def _as_options(symbols: Iterable[str]) -> list[tuple[str, str]]:
    """Value and label of each. Bokeh shows a label as HTML: a symbol is the venue's text, and no markup."""
    return [(symbol, html.escape(escape(symbol))) for symbol in sorted(symbols)]


def _style_widgets(look: Look) -> InlineStyleSheet:
    """Bokeh's widgets are made for light ground."""
    css = _WIDGETS
    for name, colour in (("GROUND", look.ground), ("INK", look.ink), ("QUIET", look.quiet), ("GRID", look.grid)):
        css = css.replace(name, colour)
    return InlineStyleSheet(css=css)


def newest_range(now_ms: int, interval_ms: int) -> tuple[int, int]:
    """From when to when a chart shows that follows: 120 bars, and room for a few more."""
    return now_ms - interval_ms * _SHOWN_BARS, now_ms + interval_ms * 4
