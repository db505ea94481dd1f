"""`ingestor dashboard`: candlesticks and indicators in the browser, live."""

from importlib.util import find_spec
from pathlib import Path

import click

from ingestor.cli.options import config_option, format_json, json_option, root_from, root_option, symbols_option
from ingestor.errors import ConfigError


@click.command()
@config_option
@root_option
@symbols_option
@click.option(
    "--interval",
    type=click.Choice(["1s", "5s", "15s", "1m", "5m", "15m", "1h"]),
    default="1s",
    show_default=True,
    help="Bars to begin with.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on, of this machine alone.")
@click.option("--port", type=click.IntRange(0, 65535), default=5006, show_default=True, help="0 takes a free one.")
@click.option("--dark", is_flag=True, help="On dark ground.")
@json_option
def dashboard(
    config: Path | None,
    root: Path | None,
    symbols: tuple[str, ...] | None,
    interval: str,
    host: str,
    port: int,
    dark: bool,
    as_json: bool,
) -> None:
    """Show candlesticks, indicators and gaps in the browser, live; the recorder does not notice. Until Ctrl-C.

    \b
    pip install 'finnhub-ingestor[charts]'
    ingestor dashboard --symbols AAPL,MSFT
    Open http://127.0.0.1:5006
    """  # noqa: D301  \b is click's mark for text as it stands
    if missing := [name for name in ("bokeh", "talib") if find_spec(name) is None]:
        raise ConfigError(f"{missing[0]} is not installed: pip install 'finnhub-ingestor[charts]'")
    from ingestor.charts.bokeh_app import MAX_SYMBOLS, View
    from ingestor.charts.bokeh_server import run_dashboard
    from ingestor.charts.look import DARK, LIGHT
    from ingestor.dataset.snapshot import open_recording

    if symbols is not None and len(symbols) > MAX_SYMBOLS:
        raise click.UsageError(f"up to {MAX_SYMBOLS} symbols fit side by side")
    found_root = open_recording(root_from(config, root)).root
    view = View(found_root, symbols or (), interval, DARK if dark else LIGHT)
    run_dashboard(
        view, host, port, lambda url: click.echo(format_json({"url": url}, None) if as_json else f"listening on {url}")
    )
