"""Makes the recording of the present format version that tests/test_formats.py keeps: `python tests/formats/make.py`.

A recorder of a simulated venue, struck down while it records: sealed files, an unsealed journal, rejects, a ledger
without an end. Made once, when a format version begins; a version that has been released is never made again.
"""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from ingestor.dataset.trades import read_trades
from ingestor.schema import FORMAT_VERSION

PLACE = Path(__file__).parent
SECONDS = 16.0
"""The first segment is sealed after ten; the rest is still in the journal then."""
NOT_KEPT = ("ballast", "*.lock", ".accepted-keys.json")


def main() -> None:
    target = PLACE / str(FORMAT_VERSION)
    work = PLACE / "work"
    work.mkdir()
    try:
        _record(work)
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(work / "data", target / "data", ignore=shutil.ignore_patterns(*NOT_KEPT))
    finally:
        shutil.rmtree(work)
    rows = read_trades(target / "data", engine="arrow").sort_by("sequence").to_pylist()
    (target / "trades.jsonl").write_text("".join(json.dumps(row, default=str) + "\n" for row in rows))


def _record(work: Path) -> None:
    """Until the recorder is struck."""
    ours = [sys.executable, "-m", "ingestor"]
    venue = subprocess.Popen(
        [*ours, "simulate", "--port", "0", "--rate", "20", "--seed", "7", "--faults", "garbage"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert venue.stdout is not None
    settings = {
        "feed": {"url": venue.stdout.readline().removeprefix("listening on ").strip()},
        "tickers": ["AAPL", "BRK.B", "BINANCE:BTCUSDT", "OANDA:EUR_USD"],
        "storage": {"root": str(work / "data"), "formats": ["parquet", "csv"], "min_free": "0B"},
        "health": {"listen": None},
    }
    (work / "ingestor.yaml").write_text(json.dumps(settings))
    command = [*ours, "run", "--config", str(work / "ingestor.yaml")]
    recorder = subprocess.Popen(command, env={"FINNHUB_API_KEY": "demo", "PYTHONPATH": str(PLACE.parents[1])})
    time.sleep(SECONDS)
    for process in (recorder, venue):
        process.send_signal(signal.SIGKILL)
        process.wait()


if __name__ == "__main__":
    main()
