"""Dashboard: one browser tab, kept up to date from the journal, and Bokeh's server on this machine only.

A tab has its own follower of the journal; nothing is shared between tabs, and the recorder knows of none.
"""

import html
import logging
import secrets
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import structlog
from bokeh.application import Application
from bokeh.application.handlers import FunctionHandler
from bokeh.document import Document
from bokeh.layouts import column, row
from bokeh.models import CustomJS, Div, InlineStyleSheet, MultiChoice, Range1d, Select, Toggle
from bokeh.server.server import BaseServer
from bokeh.server.tornado import BokehTornado
from bokeh.server.views.doc_handler import DocHandler
from jinja2 import Template
from tornado.httpserver import HTTPServer
from tornado.ioloop import IOLoop
from tornado.netutil import bind_sockets

from ingestor.charts.bokeh_chart import Chart
from ingestor.charts.live_bars import LiveBars
from ingestor.charts.series import Blind, BlindTimes
from ingestor.charts.theme import Theme
from ingestor.config.addresses import is_loopback
from ingestor.dataset.bar_grid import parse_interval
from ingestor.dataset.coverage import load_coverage
from ingestor.dataset.snapshot import open_recording
from ingestor.dataset.times import Span
from ingestor.errors import ConfigError, Lagged
from ingestor.journal.follower import Follower, Rows, find_journal_end
from ingestor.layout import read_holder
from ingestor.texts import describe_blindness, escape

INTERVALS = ("1s", "5s", "15s", "1m", "5m", "15m", "1h")
MAX_SYMBOLS = 4
BARS = 28_800
"""Eight hours of seconds."""

_TICK_MS = 250
_BLIND_S = 1.0
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
    """First contents of a tab."""

    root: Path
    symbols: Sequence[str]
    interval: str
    theme: Theme


class Dashboard:
    """One tab: the choosers, the charts, and the journal followed for them."""

    def __init__(self, document: Document, view: View) -> None:
        self._view = view
        self._layout = open_recording(view.root)
        self._follower: Follower | None = None
        self._charts: list[Chart] = []
        self._refreshed_s = 0.0
        self._blind_times = BlindTimes(view.root)
        self._blind: dict[str, list[Blind]] = {}
        self._x_range = self._newest_range = Range1d(0, 1)
        known = load_coverage(self._layout, span=Span(int((time.time() - _KNOWN_S) * 1000), None)).symbols
        chosen = list(view.symbols) or known[:1]
        # Value and label of each. Bokeh shows a label as HTML: a symbol is the venue's text, and no markup.
        options = [(symbol, html.escape(escape(symbol))) for symbol in sorted({*known, *chosen})]
        theme, css = view.theme, _WIDGETS  # Bokeh's widgets are made for light ground
        for name, colour in (
            ("GROUND", theme.ground),
            ("INK", theme.ink),
            ("QUIET", theme.quiet),
            ("GRID", theme.grid),
        ):
            css = css.replace(name, colour)
        style = [InlineStyleSheet(css=css)]
        self._symbols = MultiChoice(
            options=options, value=chosen, max_items=MAX_SYMBOLS, stylesheets=style,
            sizing_mode="stretch_width", min_width=240, max_width=480,
        )  # fmt: skip
        self._interval = Select(options=list(INTERVALS), value=view.interval, width=90, stylesheets=style)
        self._following = Toggle(
            label="Following the newest", active=True, button_type="primary", width=180, stylesheets=style
        )
        self._newest = Div(text="", styles={"color": theme.quiet, "font-size": "13px", "padding-top": "6px"})
        self._columns = row([], sizing_mode="stretch_width", styles=_WRAPPED)
        document.title = "finnhub-ingestor"
        document.template = Template(_PAGE.replace("GROUND", theme.ground).replace("SCHEME", theme.scheme))
        widgets = row(
            [self._symbols, self._interval, self._following, self._newest], sizing_mode="stretch_width", styles=_WRAPPED
        )
        document.add_root(column([widgets, self._columns], sizing_mode="stretch_width"))
        for chooser in (self._symbols, self._interval):
            chooser.on_change("value", lambda _name, _old, _new: self.reload())
        self._following.on_change("active", lambda _name, _old, active: self._follow(active=active))
        document.add_periodic_callback(self.tick, _TICK_MS)
        document.on_session_destroyed(lambda _: self.close())
        self.reload()

    def close(self) -> None:
        """Follow the journal no more."""
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
        self._charts = [Chart(one, self._x_range, self._view.theme) for one in made]
        # A server that told the browser what to show would move a user who has just zoomed or panned. So the browser
        # decides: the server tells the newest range, and the browser takes it over while it follows.
        self._newest_range = Range1d(self._x_range.start, self._x_range.end)
        told = {"shown": self._x_range, "newest": self._newest_range, "following": self._following}
        move = "if (following.active) shown.setv({start: newest.start, end: newest.end})"
        self._newest_range.js_on_change("start", CustomJS(args=told, code=move))
        stop = CustomJS(args=told, code="if (shown.start !== newest.start) following.active = false")
        self._x_range.js_on_change("start", stop)
        self._columns.children = [
            column(list(chart.panes), sizing_mode="stretch_width", min_width=_COLUMN_MIN) for chart in self._charts
        ]
        self._refreshed_s = 0.0
        self._follow(active=True)
        self.tick()

    def tick(self) -> None:
        """Read what is new, and send what that changes."""
        now_ms = self._now_ms()
        try:
            for event in self._follower.read() if self._follower is not None else ():
                if isinstance(event, Rows) and event.batch.num_rows:
                    for chart in self._charts:
                        chart.bars.add_trades(event.batch, now_ms)
        except Lagged:  # this process stood still for longer than the journal keeps segments
            log.warning("dashboard.lagged")
            self.reload()
            return
        if time.monotonic() - self._refreshed_s >= _BLIND_S:
            self._refreshed_s, now_ms = time.monotonic(), self._now_ms()
            for chart in self._charts:
                symbol = chart.bars.symbol
                self._blind[symbol] = self._blind_times.find(symbol, now_ms - chart.bars.length_ms, now_ms)
            held = {one[-1].cause for one in self._blind.values() if one and one[-1].end_ms >= now_ms}
            if read_holder(self._layout) is None:
                self._newest.text = "no recorder runs"
            else:
                self._newest.text = ", ".join(map(describe_blindness, sorted(held)))
        start, self._newest_range.end = newest_range(self._now_ms(), parse_interval(self._interval.value))
        self._newest_range.start = start
        seen = self._x_range.start, self._x_range.end
        for chart in self._charts:
            chart.update(chart.bars.series(self._blind.get(chart.bars.symbol, [])), seen)

    def _follow(self, *, active: bool) -> None:
        self._following.active = active
        self._following.label = "Following the newest" if active else "Follow the newest"
        self._following.button_type = "primary" if active else "default"

    @staticmethod
    def _now_ms() -> int:
        return int(time.time() * 1000)


def newest_range(now_ms: int, interval_ms: int) -> tuple[int, int]:
    """From when to when a chart shows that follows: 120 bars, and room for a few more."""
    return now_ms - interval_ms * _SHOWN_BARS, now_ms + interval_ms * 4


class _Page(DocHandler):  # type: ignore[misc]  # Bokeh's handlers carry no types
    """Bokeh's page, in which no script runs but its own: what a venue calls a symbol is never one.

    The page itself says nothing of a venue; that comes through the WebSocket. Bokeh makes functions of text and styles
    as it goes, so those are allowed.
    """

    def write(self, chunk: str | bytes | dict[str, Any]) -> None:
        """Name the page's scripts, which are not known before."""
        nonce = secrets.token_urlsafe(16)
        self.set_header(
            "Content-Security-Policy",
            f"default-src 'self'; script-src 'self' 'nonce-{nonce}' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
            f"img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' ws://{self.request.host}; "
            "object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        )
        super().write(chunk.replace("<script", f'<script nonce="{nonce}"') if isinstance(chunk, str) else chunk)


def run_dashboard(view: View, host: str, port: int, started: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; `started` is given the URL when a browser can come. Port 0 takes a free one.

    Any web page can make a browser call a loopback port: only pages that came from here may open the WebSocket. Raises
    ConfigError where the address can't be had, or other machines could reach it: nobody would be asked who they are.
    """
    if not is_loopback(host):
        raise ConfigError(
            f"{host} can be reached from other machines, and the dashboard asks nobody who they are: listen on"
            " 127.0.0.1, and come from elsewhere through `ssh -L`"
        )
    try:
        sockets = bind_sockets(port, host)
    except OSError as error:
        raise ConfigError(f"can't listen on {host}:{port}: {error.strerror or error}") from None
    place = f"{f'[{host}]' if ':' in host else host}:{sockets[0].getsockname()[1]}"
    loop = IOLoop.current()
    logging.getLogger("bokeh").setLevel(logging.WARNING)  # it would log each request, with its query string
    logging.getLogger("tornado").setLevel(logging.WARNING)

    def open_tab(document: Document) -> None:
        Dashboard(document, view)

    origins = [place, f"localhost:{sockets[0].getsockname()[1]}"]
    pages = BokehTornado({"/": Application(FunctionHandler(open_tab))}, extra_websocket_origins=origins)
    for rule in pages.wildcard_router.rules:
        if rule.target is DocHandler:
            rule.target = _Page
    http = HTTPServer(pages)
    http.add_sockets(sockets)
    server = BaseServer(loop, pages, http)
    server.start()

    def stop(_number: int, _frame: FrameType | None) -> None:
        loop.add_callback_from_signal(loop.stop)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    started(f"http://{place}")
    loop.start()
    server.unlisten()
    server.stop()
