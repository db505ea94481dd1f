"""The docs' pictures: of a real recording of a simulated venue, with its connection cut. `make screenshots`, 2 minutes.

It stands beside what it makes. It starts processes as the scenarios do, and looks at pages with the tests' browser.
"""

import io
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import mplfinance
from browser import running_browser
from dashboards import BARS, PANES, running_dashboard
from harness import Site, running_venue
from live_servers import running_serve
from PIL import Image
from rich.console import Console

import ingestor
from ingestor.cli.top import render_rich, watch
from ingestor.layout import Layout

PLACE = Path(__file__).parent
SYMBOLS = ["AAPL", "MSFT", "NVDA", "BRK.B", "BINANCE:BTCUSDT", "OANDA:EUR_USD"]
RECORDED_S = 90.0
"""Enough bars for each indicator on either side of the outage."""
OUTAGE = "[{at: 50s, do: outage, for: 6s}]\n"


def main() -> None:
    """From the terminal to the plot, one after the other, beside the running recorder."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "faults.yaml").write_text(OUTAGE)
        options = ["--rate", "300", "--symbols", ",".join(SYMBOLS), "--faults", str(folder / "faults.yaml")]
        with running_venue(folder, *options) as venue:
            site = Site(folder, folder / "data", venue.url, settings={"tickers": SYMBOLS})
            with site.running() as recorder:
                recorder.wait_for_rows()
                os.chdir(folder)  # so that it is called `data` in the pictures
                with running_serve(Path("data")) as server:  # which sees the outage, and shows it
                    draw_terminal(PLACE / "top.svg")
                    shoot_pages(Path("data"), server.url)
                draw_plot(PLACE / "plot.png")
                draw_unaware(PLACE / "unaware.png")


def draw_terminal(path: Path) -> None:
    """`ingestor top`, as its last screen was after RECORDED_S."""
    console = Console(record=True, width=104, height=14, file=io.StringIO(), force_terminal=True)
    began_s = time.monotonic()
    for screen in watch(Layout(Path("data")), None, 1.0, threading.Event()):
        if time.monotonic() - began_s > RECORDED_S:
            console.print(render_rich(screen, console.height))
            break
    svg = console.export_svg(title="ingestor top", unique_id="top")
    path.write_text(re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL))  # they would be asked from the network


def shoot_pages(root: Path, served: str) -> None:
    """What a browser shows of `ingestor serve`, at this address, and of `ingestor dashboard`."""
    with running_browser() as browser:
        browser.open(served, width=960, height=400)
        rates = "[...document.querySelectorAll('#rows .rate')].map(cell => parseFloat(cell.textContent))"
        browser.wait(f"{rates}.length == {len(SYMBOLS)} && {rates}.every(rate => rate > 30)")
        browser.picture(PLACE / "page.png")
        shrink(PLACE / "page.png")
        browser.call("Page.navigate", url="about:blank")
        with running_dashboard(root, "--symbols", "AAPL,BINANCE:BTCUSDT") as url:
            browser.open(url, width=1280, height=810)
            browser.wait(f"{PANES}.length == 8 && {BARS}.every(bars => bars.data.close.length > 60)")
            browser.picture(PLACE / "dashboard.png")
            shrink(PLACE / "dashboard.png")
            browser.call("Page.navigate", url="about:blank")


def draw_plot(path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "ingestor",
        "plot",
        "--root",
        "data",
        "--symbols",
        "AAPL",
        "--png",
        str(path),
        "--overwrite",
    ]
    subprocess.run(command, check=True)  # noqa: S603  our own command
    shrink(path)


def draw_unaware(path: Path) -> None:
    """The same bars in a chart that knows of bars alone: mplfinance as it comes, one bar beside the next."""
    bars = ingestor.read_bars("data", "1s", ["AAPL"]).set_index("start").dropna(subset="close")
    mplfinance.plot(
        bars, type="candle", volume=True, mav=20, style="yahoo", title="AAPL", figsize=(12, 8.4),
        tight_layout=True, datetime_format="%H:%M:%S", xrotation=0, savefig={"fname": str(path), "dpi": 120},
    )  # fmt: skip
    shrink(path)


def shrink(path: Path) -> None:
    """256 colours are enough for lines and letters, and a third of the bytes."""
    with Image.open(path) as picture:
        small = picture.convert("RGB").quantize(256)
    small.save(path, optimize=True)
    print(f"{path.name}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
