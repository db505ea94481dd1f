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
from bokeh.models import Checkbox, CustomJS, Div, InlineStyleSheet, MultiChoice, Range1d, Select
from bokeh.server.server import BaseServer
from bokeh.server.tornado import BokehTornado
from bokeh.server.views.doc_handler import DocHandler
from jinja2 import Template
from tornado.httpserver import HTTPServer
from tornado.ioloop import IOLoop
from tornado.netutil import bind_sockets

from ingestor.charts.bokeh_chart import Chart
from ingestor.charts.series import DARK, LIGHT, Blind, BlindTimes, LiveBars, Theme
from ingestor.config.addresses import describe_refusal, is_loopback
from ingestor.dataset.arguments import Span
from ingestor.dataset.bar_grid import parse_interval
from ingestor.dataset.coverage import load_coverage
from ingestor.dataset.snapshot import open_recording
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
:host { color: INK; font: 13px system-ui, sans-serif; }
.bk-input-group > label { color: QUIET; font-size: 12px; margin-bottom: 2px; }
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
html { background: GROUND; color: INK; color-scheme: SCHEME; }
body { margin: 8px; height: auto; }
h1 { font: 600 15px system-ui, sans-serif; margin: 4px 5px 6px; }
</style>{% endblock %}
{% block contents %}<header><h1>finnhub-ingestor</h1></header><main>{{ super() }}</main>{% endblock %}
"""
_CHOOSE = """<!doctype html><html lang="en"><title>finnhub-ingestor</title><script>
const page = new URL(location);
page.searchParams.set("scheme", matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
location.replace(page);
</script><noscript>The dashboard needs JavaScript.</noscript></html>
"""
"""Which theme the system wants only the browser knows, and Bokeh draws in the colours that it is given: ask first."""
_SETTLE = """
const chooser = cb_context.index.find_one(symbols).shadow_el;
const mend = () => {
  for (const item of chooser.querySelectorAll(".choices__item[aria-selected]:not([role])")) {
    item.removeAttribute("aria-selected");
  }
  const search = chooser.querySelector("input[role]");
  search?.removeAttribute("role");
  search?.setAttribute("aria-label", symbols.title);
};
new MutationObserver(mend).observe(chooser, {subtree: true, childList: true, attributes: true});
mend();
cb_context.index.find_one(following).shadow_el.querySelector("input").setAttribute("aria-label", following.label);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", event => {
  const page = new URL(location);
  if (!page.searchParams.has("scheme")) return;
  page.searchParams.set("scheme", event.matches ? "dark" : "light");
  location.replace(page);
});
"""
"""Once the page is there: tell screen readers what Bokeh's widgets don't, and follow the system's theme."""
_REMEMBER = """
const page = new URL(location);
page.searchParams.set("symbols", symbols.value.join(","));
page.searchParams.set("interval", interval.value);
history.replaceState(null, "", page);
"""
"""The address holds what is chosen, for a reload or a bookmark."""

_KNOWN_S = 31 * 86_400.0
"""Symbols that were asked for within this time are offered."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class View:
    """First contents of a tab, where its address doesn't say otherwise."""

    root: Path
    symbols: Sequence[str]
    interval: str
    theme: Theme | None
    """None: what the browser says that its system wants."""


class Dashboard:
    """One tab: the choosers, the charts, and the journal followed for them."""

    def __init__(self, document: Document, view: View) -> None:
        self._document = document
        self._view = view
        self._layout = open_recording(view.root)
        self._follower: Follower | None = None
        self._charts: list[Chart] = []
        self._refreshed_s = 0.0
        self._blind_times = BlindTimes(view.root)
        self._blind: dict[str, list[Blind]] = {}
        self._x_range = self._newest_range = Range1d(0, 1)
        known = load_coverage(self._layout, span=Span(int((time.time() - _KNOWN_S) * 1000), None)).symbols
        chosen = (self._asked("symbols").split(",") if self._asked("symbols") else list(view.symbols))[:MAX_SYMBOLS]
        chosen = chosen or known[:1]
        asked = self._asked("interval")
        # Value and label of each. Bokeh shows a label as HTML: a symbol is the venue's text, and no markup.
        options = [(symbol, html.escape(escape(symbol))) for symbol in sorted({*known, *chosen})]
        theme = self._theme = view.theme or (DARK if self._asked("scheme") == DARK.scheme else LIGHT)
        css, page = _WIDGETS, _PAGE  # Bokeh's widgets are made for light ground
        for name, value in (
            ("GROUND", theme.ground),
            ("INK", theme.ink),
            ("QUIET", theme.quiet),
            ("GRID", theme.grid),
            ("SCHEME", theme.scheme),
        ):
            css, page = css.replace(name, value), page.replace(name, value)
        style = [InlineStyleSheet(css=css)]
        self._symbols = MultiChoice(
            options=options, value=chosen, max_items=MAX_SYMBOLS, stylesheets=style,
            sizing_mode="stretch_width", min_width=240, max_width=480, title="Symbols",
        )  # fmt: skip
        self._interval = Select(
            options=list(INTERVALS), value=asked if asked in INTERVALS else view.interval, width=90, stylesheets=style,
            title="Bars",
        )  # fmt: skip
        self._following = Checkbox(label="Follow the newest", active=True, align="end", stylesheets=style)
        self._newest = Div(text="", styles={"color": theme.ink, "font-weight": "600"}, align="end")
        self._columns = row([], sizing_mode="stretch_width", styles=_WRAPPED)
        document.title = "finnhub-ingestor"
        document.template = Template(page)
        widgets = row(
            [self._symbols, self._interval, self._following, self._newest], sizing_mode="stretch_width", styles=_WRAPPED
        )
        document.add_root(column([widgets, self._columns], sizing_mode="stretch_width"))
        for chooser in (self._symbols, self._interval):
            chooser.on_change("value", lambda _name, _old, _new: self.reload())
            chooser.js_on_change(
                "value", CustomJS(args={"symbols": self._symbols, "interval": self._interval}, code=_REMEMBER)
            )
        told = {"symbols": self._symbols, "following": self._following}
        document.js_on_event("document_ready", CustomJS(args=told, code=_SETTLE))
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
        self._charts = [Chart(one, self._x_range, self._theme) for one in made]
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
        self._following.active = True
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

    def _asked(self, name: str) -> str:
        """What the page's address says of this."""
        context = self._document.session_context
        values = context.request.arguments.get(name, []) if context is not None and context.request is not None else []
        return values[0].decode(errors="replace") if values else ""

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


class _AskingPage(_Page):
    """The page where no theme is chosen."""

    async def get(self, *args: Any, **kwargs: Any) -> None:
        """Ask for the theme, or give the page in the one that is asked for."""
        if self.get_query_argument("scheme", "") in (LIGHT.scheme, DARK.scheme):
            await super().get(*args, **kwargs)
        else:
            self.write(_CHOOSE)


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
        raise ConfigError(describe_refusal(host, port, error)) from None
    place = f"{f'[{host}]' if ':' in host else host}:{sockets[0].getsockname()[1]}"
    loop = IOLoop.current()
    logging.getLogger("bokeh").setLevel(logging.WARNING)  # it would log each request, with its query string
    logging.getLogger("bokeh.server.views.ws").setLevel(logging.ERROR)  # a tab may close while it is being sent to
    logging.getLogger("tornado").setLevel(logging.WARNING)

    def open_tab(document: Document) -> None:
        Dashboard(document, view)

    origins = [place, f"localhost:{sockets[0].getsockname()[1]}"]
    pages = BokehTornado({"/": Application(FunctionHandler(open_tab))}, extra_websocket_origins=origins)
    for rule in pages.wildcard_router.rules:
        if rule.target is DocHandler:
            rule.target = _AskingPage if view.theme is None else _Page
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
