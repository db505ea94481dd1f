"""Commands that draw: `ingestor plot` (a picture, or a window of new trades) and `dashboard` (a browser page)."""

import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ingestor.cli import options
from ingestor.cli.printing import format_address, format_bytes, format_json
from ingestor.errors import ConfigError, IngestorError

if TYPE_CHECKING:
    from ingestor.charts.series import Theme

_MAX_SYMBOLS = 6
_WINDOW = (10.0, 7.0), (15.0, 7.0)
"""In inches, for one column of symbols and for two: either fits a screen of 768 lines."""
_REDRAW_S = 0.1
_COVERAGE_S = 1.0
_BEFORE = timedelta(minutes=1)
"""Age of the trades with which a window begins."""


@click.command(
    epilog=options.example(
        "pip install 'finnhub-ingestor[charts]'",
        "ingestor plot --symbols AAPL --png aapl.png --start 2026-11-20",
        "ingestor plot --symbols AAPL",
    )
)
@options.query_options
@click.option("--png", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Write a picture here.")
@click.option("--overwrite", is_flag=True, help="Replace FILE if it exists.")
@click.option("--interval", metavar="INTERVAL", help="Bars of the picture.  [default: 400 or fewer from side to side]")
@click.option(
    "--points", type=click.IntRange(2, 10_000), metavar="N", default=50, show_default=True, help="Trades in the window."
)
@click.option(
    "--average", type=click.IntRange(2, 1000), metavar="N", default=15, show_default=True, help="Trades in its mean."
)
@click.option("--dark", is_flag=True, help="Draw on a dark background.")
def plot(
    config: Path | None,
    root: Path | None,
    symbols: tuple[str, ...] | None,
    start: str | None,
    end: str | None,
    tz: tzinfo,
    as_json: bool,
    png: Path | None,
    overwrite: bool,
    interval: str | None,
    points: int,
    average: int,
    dark: bool,
) -> None:
    """Draw bars, indicators and gaps of what is recorded; without --png, a window with the newest trades.

    A picture needs no display, and its file and bars are printed. The window follows the recorder without slowing it
    down; close it to end.
    """
    options.require_extra("charts", "matplotlib", "talib")
    from ingestor.charts.series import DARK, LIGHT

    if not symbols or len(symbols) > _MAX_SYMBOLS:
        raise click.UsageError(f"name the symbols to draw, up to {_MAX_SYMBOLS}: --symbols AAPL")
    span, theme, found_root = (
        options.read_span(start, end, tz),
        DARK if dark else LIGHT,
        options.root_from(config, root),
    )
    if png is not None:
        if png.exists() and not overwrite:
            raise ConfigError(f"{png} exists already: choose another name, or add --overwrite")
        bars = _write_picture(found_root, png, symbols, span, tz, interval, theme)
        size = png.stat().st_size
        told = f"{png}: {bars:,} bars, {format_bytes(size)}"
        click.echo(format_json({"file": str(png), "bars": bars, "bytes": size}) if as_json else told)
        return
    if span != options.TimeRange(None, None) or interval is not None or as_json or overwrite:
        raise click.UsageError("--start, --end, --interval, --overwrite and --json belong to a picture: add --png FILE")
    _show_window(found_root, symbols, points, average, tz, theme)


def _write_picture(
    root: Path,
    path: Path,
    symbols: Sequence[str],
    span: options.TimeRange,
    tz: tzinfo,
    interval: str | None,
    theme: "Theme",
) -> int:
    """Draw the picture, and return the number of its bars."""
    from ingestor.charts.matplotlib_chart import draw_picture, save_picture
    from ingestor.charts.series import choose_interval, load_series

    columns = []
    for symbol in symbols:
        try:
            series = load_series(root, symbol, interval or choose_interval(root, symbol, span), span, str(tz))
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--interval") from None
        if not len(series.starts_ms) and not series.blind:
            raise IngestorError(f"nothing to draw: no trade of {symbol!r} is recorded in that time")
        columns.append(series)
    try:
        save_picture(draw_picture(columns, tz, theme), path)
    except OSError as error:
        raise IngestorError(f"{path}: can't be written: {error.strerror}") from None
    return sum(len(series.starts_ms) for series in columns)


def _show_window(
    root: Path, symbols: Sequence[str], points: int, average_over: int, tz: tzinfo, theme: "Theme"
) -> None:
    """Until the window is closed: read a batch, check the ledger once per second, draw at most every 100 ms."""
    from matplotlib import pyplot as plt

    from ingestor.charts.live_chart import LiveChart
    from ingestor.charts.series import BlindTimes
    from ingestor.dataset.trades import follow
    from ingestor.operations.systemd import catch_signals

    figure = plt.figure("ingestor plot", figsize=_WINDOW[len(symbols) > 3])
    if figure.canvas.required_interactive_framework is None:
        raise ConfigError("there is no display for a window here: write a picture with --png FILE")
    chart = LiveChart(figure, symbols, points, average_over, tz, theme)
    figure.show()
    signals = catch_signals()  # a KeyboardInterrupt inside a callback of the window would be printed, and forgotten
    began = datetime.now(UTC) - _BEFORE
    checked_s = drawn_s = float("-inf")
    times, blind, checked_ms = BlindTimes(root), {}, 0
    for batch in follow(root, symbols, from_=began, idle_s=_REDRAW_S):
        if signals.stop.is_set():
            raise click.Abort
        if not plt.fignum_exists(figure.number):
            return
        chart.add_trades(batch)
        now_s = time.monotonic()
        if now_s - checked_s >= _COVERAGE_S:
            checked_s, checked_ms = now_s, int(time.time() * 1000)
            blind = {symbol: times.find(symbol, int(began.timestamp() * 1000), checked_ms) for symbol in symbols}
        if now_s - drawn_s >= _REDRAW_S:
            drawn_s = now_s
            chart.draw(blind, checked_ms)
            figure.canvas.flush_events()


@click.command(
    epilog=options.example(
        "pip install 'finnhub-ingestor[charts]'",
        "ingestor dashboard --symbols AAPL,MSFT",
    )
)
@options.reading_options
@click.option(
    "--interval",
    type=click.Choice(["1s", "5s", "15s", "1m", "5m", "15m", "1h"]),
    default="1s",
    show_default=True,
    help="Bars to begin with.",
)
@options.listen_options(5006, "Address to listen on, of this machine alone.")
@click.option("--dark/--light", default=None, help="Background.  [default: as the system's]")
@options.json_option
def dashboard(
    config: Path | None,
    root: Path | None,
    symbols: tuple[str, ...] | None,
    interval: str,
    host: str,
    port: int,
    dark: bool | None,
    as_json: bool,
) -> None:
    """Show candlesticks, indicators and gaps in the browser, live, until Ctrl-C. Does not slow down the recorder.

    Prints the address when it can be opened.
    """
    options.require_extra("charts", "bokeh", "talib")
    from ingestor.charts.bokeh_app import MAX_SYMBOLS, View, run_dashboard
    from ingestor.charts.series import DARK, LIGHT
    from ingestor.dataset.snapshot import open_recording

    if symbols is not None and len(symbols) > MAX_SYMBOLS:
        raise click.UsageError(f"up to {MAX_SYMBOLS} symbols fit side by side")
    found_root = open_recording(options.root_from(config, root)).root
    view = View(found_root, symbols or (), interval, None if dark is None else DARK if dark else LIGHT)
    run_dashboard(view, host, port, lambda url: click.echo(format_address(url, as_json=as_json)))
