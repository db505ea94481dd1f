"""`ingestor dashboard`: candlesticks and indicators in the browser, live."""

from pathlib import Path

import click

from ingestor.cli.options import example, json_option, listen_options, reading_options, require_extra, root_from
from ingestor.cli.printing import format_address


@click.command(
    epilog=example(
        "pip install 'finnhub-ingestor[charts]'",
        "ingestor dashboard --symbols AAPL,MSFT",
    )
)
@reading_options
@click.option(
    "--interval",
    type=click.Choice(["1s", "5s", "15s", "1m", "5m", "15m", "1h"]),
    default="1s",
    show_default=True,
    help="Bars to begin with.",
)
@listen_options(5006, "Address to listen on, of this machine alone.")
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
    """Show candlesticks, indicators and gaps in the browser, live, until Ctrl-C. The recorder does not notice.

    Prints the address when it can be opened.
    """
    require_extra("charts", "bokeh", "talib")
    from ingestor.charts.bokeh_app import MAX_SYMBOLS, View, run_dashboard
    from ingestor.charts.theme import DARK, LIGHT
    from ingestor.dataset.snapshot import open_recording

    if symbols is not None and len(symbols) > MAX_SYMBOLS:
        raise click.UsageError(f"up to {MAX_SYMBOLS} symbols fit side by side")
    found_root = open_recording(root_from(config, root)).root
    view = View(found_root, symbols or (), interval, DARK if dark else LIGHT)
    run_dashboard(view, host, port, lambda url: click.echo(format_address(url, as_json=as_json)))
