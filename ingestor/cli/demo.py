"""`ingestor demo`: a simulated venue, a real recording of it with its connection cut, and what pandas then reads."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import click

from ingestor.cli.options import DurationType, example
from ingestor.errors import ConfigError, IngestorError
from ingestor.system import require_recorder
from ingestor.texts import format_duration

_SYMBOLS = ("AAPL", "MSFT", "BRK.B", "BINANCE:BTCUSDT", "OANDA:EUR_USD")
_RATE = 400
_CUT_S = 3.0
_READY_S = 20.0
_STOP_S = 30.0
_CONFIG = """\
feed: {{url: "{url}"}}
tickers: [{tickers}]
storage: {{root: "{root}", formats: [parquet, csv]}}
logging: {{format: json}}
"""


@click.command(epilog=example("ingestor demo --for 1m --folder demo"))
@click.option(
    "--for",
    "seconds",
    type=DurationType(),
    metavar="DURATION",
    default="20s",
    show_default=True,
    help="How long to record.",
)
@click.option(
    "--folder", type=click.Path(path_type=Path), metavar="DIR", help="A new one, for all of it.  [default: demo-<now>]"
)
def demo(seconds: float, folder: Path | None) -> None:
    """Record a simulated venue and show what comes of it; never reads a real key.

    Starts `ingestor simulate` and `ingestor run`, as you would; cuts their connection for 3 s in the middle; stops the
    recorder in the end, or on Ctrl-C; prints the rows that pandas reads, the account of every frame, and the gap.
    """
    require_recorder()
    folder = folder or Path(f"demo-{datetime.now(UTC):%Y%m%dT%H%M%S}")
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise ConfigError(f"{folder} exists: name a new folder with --folder") from None
    click.echo(f"A simulated venue, a recorder, {format_duration(seconds)}. Everything is in {folder}/", err=True)
    with ExitStack() as stack:
        # A venue that drops its clients in the middle.
        faults = folder / "faults.yaml"
        faults.write_text(f"[{{at: {seconds / 2:.1f}s, do: outage, for: {min(_CUT_S, seconds / 4):.1f}s}}]\n")
        arguments = ["simulate", "--port", "0", "--rate", str(_RATE), "--faults", str(faults)]
        arguments += ["--truth", str(folder / "truth.jsonl")]
        venue = _start(stack, arguments, subprocess.PIPE, folder / "venue.log")
        line = venue.stdout.readline() if venue.stdout else ""
        if not line.startswith("listening on "):
            raise IngestorError(f"the simulated venue did not start: see {folder / 'venue.log'}")
        url = line.removeprefix("listening on ").strip()
        config = folder / "ingestor.yaml"
        config.write_text(_CONFIG.format(url=url, tickers=", ".join(_SYMBOLS), root=folder / "data"))
        recorder = _start(stack, ["run", "--config", str(config)], subprocess.DEVNULL, folder / "recorder.log")
        deadline_s = time.monotonic() + _READY_S
        while not any((folder / "data" / "journal").glob("*.journal")):
            if recorder.poll() is not None or time.monotonic() > deadline_s:
                raise IngestorError(f"the recorder did not start: see {folder / 'recorder.log'}")
            time.sleep(0.05)
        try:
            _watch(folder / "data", recorder, seconds)
        except KeyboardInterrupt:
            click.echo("\nStopping.", err=True)
        recorder.send_signal(signal.SIGTERM)
        if code := recorder.wait(_STOP_S):
            raise IngestorError(f"the recorder ended with exit code {code}: see its log")
    _show(folder)


def _start(stack: ExitStack, arguments: list[str], out: IO[Any] | int, log: Path) -> subprocess.Popen[str]:
    """One of our own commands, as a user would start it, ended with the demo."""
    process = subprocess.Popen(  # noqa: S603  our own command and our own arguments
        [sys.executable, "-m", "ingestor", *arguments],
        stdout=out,
        stderr=stack.enter_context(log.open("w")),
        text=True,
        env=os.environ | {"FINNHUB_API_KEY": "demo"},
        start_new_session=True,  # a Ctrl-C is for the demo, which then stops them in order
    )
    stack.callback(_end, process)
    return process


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.terminate()
        process.wait(_STOP_S)


def _watch(root: Path, recorder: subprocess.Popen[str], seconds: float) -> None:
    """Live progress, as any other process can have it: from the journal, through `follow`."""
    from ingestor.dataset.trades import follow

    started_s = heard_s = time.monotonic()
    shown_s = 0.0
    trades, last = 0, ""
    for batch in follow(root, from_="start", idle_s=0.25):
        now_s = time.monotonic()
        if batch.num_rows:
            trades += batch.num_rows
            last = f"{batch['symbol'][-1].as_py()} {batch['price'][-1].as_py():,.4f}"
            heard_s = now_s
        if now_s - shown_s >= (0.25 if sys.stderr.isatty() else 2.0):
            shown_s = now_s
            blind = f"   blind for {now_s - heard_s:.1f} s" if now_s - heard_s >= 1 else ""
            line = f"{now_s - started_s:5.1f} s  {trades:>8,} trades   {last}{blind}"
            on_terminal = sys.stderr.isatty()
            click.echo(f"\r\x1b[2K{line}" if on_terminal else line, err=True, nl=not on_terminal)
        if now_s - started_s >= seconds or recorder.poll() is not None:
            break
    click.echo("", err=True)


def _show(folder: Path) -> None:
    """What there is now, by the means that a user has."""
    data = folder / "data"
    trades = data / "trades"
    if find_spec("pandas") is None:
        import pyarrow.dataset as ds

        table = ds.dataset(trades, partitioning="hive").to_table()
        click.echo(f">>> pyarrow.dataset.dataset('{trades}').to_table()\n{table.slice(0, 5).to_pylist()}")
        rows = int(table.num_rows)
    else:
        import pandas as pd

        frame = pd.read_parquet(trades)
        click.echo(f">>> pandas.read_parquet('{trades}')")
        some = frame.groupby("symbol", observed=True).head(1)
        click.echo(some[["timestamp", "symbol", "price", "volume", "conditions"]].to_string(index=False))
        click.echo(f"\n{frame['symbol'].value_counts().to_string()}")
        rows = len(frame)
    size = sum(path.stat().st_size for path in data.glob("trades/**/*.parquet"))
    click.echo(f"\n{rows:,} rows; {size:,} bytes of Parquet, {size / max(rows, 1):.1f} a trade")
    for line in (folder / "recorder.log").read_text().splitlines():
        fact = json.loads(line)
        if fact["event"] == "conservation.checked":
            click.echo("Conservation: " + ";\n              ".join(fact["account"].split("; ")))
        elif fact["event"] == "gap.recorded":
            click.echo(f"Gap:          blind for {fact['seconds']} s, cause: {fact['cause']}")
    click.echo(f"\nParquet:  {data / 'trades'}\nCSV:      {data / 'csv'}\nLedger:   {data / 'ledger'}")
    click.echo(f"Log:      {folder / 'recorder.log'}\nTruth:    {folder / 'truth.jsonl'} (what the venue really sent)")
    click.echo(f"\nNext: ingestor coverage --root {data}")
    click.echo(f"      ingestor bars 1s --symbols AAPL --root {data}")
    click.echo("      ingestor init")
