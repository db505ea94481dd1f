"""`ingestor top`: a row per symbol, live. It follows the journal as any process can, unnoticed by the recorder."""

import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ingestor.cli.options import example, reading_options, root_from
from ingestor.cli.printing import fit_table, format_seconds
from ingestor.coverage import Coverage, state_at
from ingestor.dataset.arguments import Span, day_start_ms, utc_date
from ingestor.dataset.coverage import load_coverage
from ingestor.dataset.trades import follow
from ingestor.layout import Layout, read_holder
from ingestor.operations.recorder_status import RecorderStatus, ask_status, find_problems
from ingestor.system import is_readable
from ingestor.texts import describe_blindness, escape

try:
    import termios
except ImportError:  # Windows
    termios = None  # type: ignore[assignment]

if TYPE_CHECKING:
    import pyarrow as pa
    from rich.console import RenderableType

_BARS = "▁▂▃▄▅▆▇█"
_WIDTH = 8
_RATE_S = 10
_COVERAGE_S = 10.0
_IDLE_S = 0.25
_PLAIN_LINES = 20
_WIDTH_MAX = 80
_FRAME_LINES = 5


@dataclass(slots=True)
class SymbolRow:
    """State of one symbol."""

    symbol: str
    price: float | None = None
    traded_at: float = 0.0
    """When its last trade was received, in seconds since 1970."""
    delay_s: float = 0.0
    counts: "deque[int]" = field(default_factory=lambda: deque([0], maxlen=_RATE_S))
    """Trades in each of the last seconds, the present one last."""
    prices: "deque[float]" = field(default_factory=lambda: deque(maxlen=_WIDTH))
    """The last price in each of the last seconds that had one."""
    state: str = ""
    gaps: int = 0
    blind_s: float = 0.0


UNASKED_MAX = 10_000


class SymbolBoard:
    """The rows, fed with batches of trades. Pure: the clock is an argument."""

    def __init__(self, symbols: Sequence[str] | None) -> None:
        self._only = None if symbols is None else frozenset(symbols)
        self.rows: dict[str, SymbolRow] = {}
        self._second = 0

    def add_trades(self, batch: "pa.RecordBatch", now: float) -> None:
        """Count these trades (schema.TRADES); columns, not rows: it keeps up with any recorder."""
        # A new second begins a new count and a new point of each line of prices.
        turns = min(int(now) - self._second, _RATE_S) if self._second else 0
        self._second = int(now)
        for known in self.rows.values():
            for _ in range(turns):
                known.counts.append(0)
            if turns and known.price is not None:
                known.prices.append(known.price)
        if not batch.num_rows:
            return
        import pyarrow as pa

        last = pa.table(batch).group_by("symbol", use_threads=False).aggregate(
            [("price", "last"), ("timestamp", "last"), ("received_at", "last"), ("sequence", "count")]
        )  # fmt: skip
        for found in last.to_pylist():
            row = self.rows.pop(found["symbol"], None) or SymbolRow(found["symbol"])
            self.rows[row.symbol] = row  # the one that traded last is last
            row.price = found["price_last"]
            row.traded_at = found["received_at_last"].timestamp()
            row.delay_s = row.traded_at - found["timestamp_last"].timestamp()
            row.counts[-1] += found["sequence_count"]
        # A venue may invent as many symbols as it likes: of those that the ledger doesn't know the last ones stay.
        if len(self.rows) > UNASKED_MAX:
            unasked = [symbol for symbol, row in self.rows.items() if not row.state]
            for symbol in unasked[: max(len(unasked) - UNASKED_MAX, 0)]:
                del self.rows[symbol]

    def set_coverage(self, coverage: Coverage, now: float) -> None:
        """The state of each symbol, and today's gaps (UTC)."""
        now_us, midnight_us = int(now * 1e6), int(now // 86_400 * 86_400 * 1e6)
        for symbol in coverage.symbols:
            if self._only is not None and symbol not in self._only:
                continue
            intervals = coverage.intervals(symbol)
            held = state_at(intervals, min(now_us, coverage.horizon_us) - 1)
            if held is None:  # dropped, and nothing is claimed of it any more
                self.rows.pop(symbol, None)
                continue
            row = self.row(symbol)
            row.state = describe_blindness(held.cause) if held.state == "blind" else held.state
            today = [one for one in intervals if one.state == "blind" and one.end_us > midnight_us]
            row.gaps = len(today)
            ends_us = [now_us if one.end_us >= coverage.horizon_us else one.end_us for one in today]  # it lasts
            starts_us = [max(one.start_us, midnight_us) for one in today]
            blind_us = sum(max(end - start, 0) for start, end in zip(starts_us, ends_us, strict=True))
            row.blind_s = round(blind_us / 1e6, 3)

    def row(self, symbol: str) -> SymbolRow:
        """That of this symbol, made where there was none."""
        return self.rows.setdefault(symbol, SymbolRow(symbol))


HEADINGS = ("symbol", "price", "per s", "age", "delay", "trend", "state", "gaps today")
SPARE = ("delay", "trend", "gaps today", "per s", "age")
"""Columns that a narrow terminal does without, from the one that is missed least."""


def cells(row: SymbolRow, now: float) -> tuple[str, ...]:
    """Cells of one symbol's row."""
    rate = sum(row.counts) / len(row.counts)
    gaps = f"{row.gaps} ({format_seconds(row.blind_s)})" if row.gaps else ""
    if row.price is None:
        return escape(row.symbol), "", "", "", "", "", row.state, gaps
    age, delay = format_seconds(max(now - row.traded_at, 0.0)), format_seconds(row.delay_s)
    per_s = f"{rate:,.1f}" if rate < 1000 else f"{rate:,.0f}"
    # Five digits that matter, or all before the point.
    price = (
        f"{row.price:,.5g}" if row.price < 100 else f"{row.price:,.2f}" if row.price < 10_000 else f"{row.price:,.0f}"
    )
    return escape(row.symbol), price, per_s, age, delay, sparkline(row.prices), row.state, gaps


def sparkline(prices: Iterable[float]) -> str:
    """`▁▂█▅`: lowest to highest."""
    values = list(prices)
    low, high = min(values, default=0.0), max(values, default=0.0)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((value - low) * scale)] for value in values)


def headline(status: RecorderStatus | None, root: Path, now: float) -> tuple[str, str]:
    """(what flows, what is wrong): two lines."""
    clock = f"{datetime.fromtimestamp(now, UTC):%H:%M:%S} UTC"
    if status is None:
        return f"{clock}  {root}", "no recorder answers: what is shown comes from the journal alone"
    link, flow = status.link, status.flow
    several = f"{link.open}/{link.redundant} connections  " if link.redundant > 1 else ""
    text = (
        f"{clock}  {flow.trades_per_s:,.1f} trades/s  {several}{link.ticking}/{link.symbols} ticking  "
        f"lag {format_seconds(flow.lag_s)}  {flow.counts.trades:,} trades in run {status.run}"
    )
    return text, escape("; ".join(find_problems(status)))


@click.command(epilog=example("pip install 'finnhub-ingestor[tui]'", "ingestor top"))
@reading_options
@click.option("--plain", is_flag=True, help="A screen of text every 2 s, as where rich or a terminal is missing.")
def top(config: Path | None, root: Path | None, symbols: tuple[str, ...] | None, plain: bool) -> None:
    """Watch a recording, a row per symbol, until q or Ctrl-C. Does not slow down the recorder.

    Price, trades per second, age and delay of the last trade, trend, state, and today's gaps (UTC). In order of the
    symbols; keys: s by symbol, r by rate, b the blind first, n and p for the next and previous page, q ends.
    """
    layout = Layout(root_from(config, root).absolute())
    stop = threading.Event()
    # A KeyboardInterrupt could come while a file is being closed, which would then be closed twice.
    before = signal.signal(signal.SIGINT, lambda *_: stop.set())
    try:
        screens = watch(layout, symbols, 0.5 if not plain else 2.0, stop)
        if plain or find_spec("rich") is None or not sys.stdout.isatty():
            for line, trouble, rows, now in screens:
                click.echo(render_text(line, trouble, rows, now))
        else:
            _show(screens)
    finally:
        signal.signal(signal.SIGINT, before)


Screen = tuple[str, str, list[SymbolRow], float]


def watch(layout: Layout, symbols: Sequence[str] | None, refresh_s: float, stop: threading.Event) -> Iterator[Screen]:
    """A screen every `refresh_s` until `stop`, heeded within a quarter of a second: headline, trouble, rows by symbol,
    the time. Raises NotARecording.
    """
    board = SymbolBoard(symbols)
    shown_s = covered_s = float("-inf")
    for batch in follow(layout.root, symbols, idle_s=_IDLE_S):
        if stop.is_set():
            return
        now, now_s = time.time(), time.monotonic()
        board.add_trades(batch, now)
        if now_s - covered_s >= _COVERAGE_S:
            covered_s = now_s
            today = Span(day_start_ms(utc_date(int(now * 1000))), None)  # what was before need not be read again
            board.set_coverage(load_coverage(layout, symbols, span=today), now)
        if now_s - shown_s >= refresh_s:
            shown_s = now_s
            line, trouble = headline(_ask(layout), layout.root, now)
            yield line, trouble, sorted(board.rows.values(), key=lambda row: row.symbol), now


def _ask(layout: Layout) -> RecorderStatus | None:
    try:
        holder = read_holder(layout)
        return ask_status(holder.health) if holder and holder.health else None
    except (OSError, ValueError):  # it ended, or is busy starting: the headline says that nobody answers
        return None


@dataclass(slots=True)
class View:
    """What of the rows is shown, in which order. A key changes it; data never does but for the order asked for."""

    order: str = "s"
    page: int = 0

    def press(self, key: str, pages: int) -> bool:
        """Take a key; False where it ends the view."""
        if key in ORDERS:
            self.order, self.page = key, 0
        elif key in " n":
            self.page = min(self.page + 1, max(pages - 1, 0))
        elif key == "p":
            self.page = max(self.page - 1, 0)
        return key != "q"

    def sort(self, rows: list[SymbolRow]) -> list[SymbolRow]:
        """In the order asked for, by symbol among equals."""
        return sorted(rows, key=lambda row: (ORDERS[self.order][1](row), row.symbol))


ORDERS: dict[str, tuple[str, Callable[[SymbolRow], float]]] = {
    "s": ("symbol", lambda _row: 0.0),
    "r": ("rate", lambda row: -sum(row.counts)),
    "b": ("blind first", lambda row: -row.state.startswith("blind")),
}
"""By key: the name of an order, and what is sorted by."""


def render_text(line: str, trouble: str, rows: list[SymbolRow], now: float) -> str:
    """A screen as plain text: the first rows, and how many more there are."""
    shown, _ = fit_table(HEADINGS, [cells(row, now) for row in rows[:_PLAIN_LINES]], SPARE, _WIDTH_MAX)
    more = f"\n… and {len(rows) - _PLAIN_LINES} more symbols" if len(rows) > _PLAIN_LINES else ""
    return "\n".join([line, *([f"! {trouble}"] if trouble else []), f"{shown}{more}\n"])


def _show(screens: Iterator[Screen]) -> None:
    """On the whole terminal, for as long as it lasts."""
    from rich.live import Live

    view = View()
    with pressed_keys() as keys, Live(screen=True, auto_refresh=False) as live:
        for screen in screens:
            pages = -(-len(screen[2]) // max(live.console.height - _FRAME_LINES, 1))
            if not all(view.press(key, pages) for key in keys()):
                return
            live.update(render_rich(screen, live.console.height, live.console.width, view), refresh=True)


@contextmanager
def pressed_keys() -> Iterator[Callable[[], str]]:
    """What was pressed since the last call, while the terminal gives each key at once; nothing where it is none."""
    if termios is None or not sys.stdin.isatty():
        yield lambda: ""
        return
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    mode = termios.tcgetattr(fd)
    mode[3] &= ~(termios.ICANON | termios.ECHO)  # signals, such as that of Ctrl-C, stay
    termios.tcsetattr(fd, termios.TCSADRAIN, mode)
    try:
        yield lambda: os.read(fd, 64).decode(errors="replace") if is_readable(fd, 0) else ""
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def render_rich(screen: Screen, height: int, width: int = 80, view: View | None = None) -> "RenderableType":
    """A screen for rich, of as many rows as fit into `height` lines and as many columns as fit into `width`."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    line, trouble, rows, now = screen
    view = view or View()
    fits = max(height - _FRAME_LINES, 1)
    pages = max(-(-len(rows) // fits), 1)
    first = min(view.page, pages - 1) * fits
    shown = view.sort(rows)[first : first + fits]
    texts = [cells(row, now) for row in shown]
    _, left_out = fit_table(HEADINGS, texts, SPARE, width)
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), expand=True, header_style="bold")
    for heading in HEADINGS:
        if heading in left_out:
            continue
        right = heading in {"price", "per s", "age", "delay"}
        table.add_column(heading, justify="right" if right else "left", no_wrap=True, overflow="ellipsis")
    for row, text in zip(shown, texts, strict=True):
        style = {"recorded": "", "unproven": "yellow", "": "dim"}.get(row.state, "bold red")
        kept = (Text(cell) for cell, heading in zip(text, HEADINGS, strict=True) if heading not in left_out)
        table.add_row(*kept, style=style)
    where = f"symbols {first + 1} to {first + len(shown)} of {len(rows)}, n and p turn the page; " if pages > 1 else ""
    foot = f"{where}by {ORDERS[view.order][0]}; keys: s symbol, r rate, b blind, q ends"
    parts: list[Any] = [Text(line, style="bold", no_wrap=True), Text(trouble, style="bold red", no_wrap=True)]
    return Group(*parts, table, Text(foot, style="dim"))
