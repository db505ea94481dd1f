"""Each example in config/ records its venue, as a user would start it; and several recorders divide one venue."""

import json
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from harness import EXIT_S, Tally, Venue, compare, environ, running_venue, wait_for

from ingestor.config.sections import symbols_of_shard
from ingestor.layout import Layout, list_segments
from ingestor.schema import TRADES

CONFIG = Path(__file__).parents[2] / "config"
ENOUGH_BYTES = 200_000


@dataclass(frozen=True)
class Recorder:
    """`ingestor run` on a settings file, running."""

    layout: Layout
    log: Path
    process: "subprocess.Popen[bytes]"

    def wait_for_rows(self) -> None:
        wait_for(
            lambda: sum(file.path.stat().st_size for file in list_segments(self.layout)) > ENOUGH_BYTES,
            f"rows in the journal (see {self.log})",
            self.process,
        )

    def finish(self) -> pa.Table:
        """What it has recorded, by sequence, once it has read the venue's goodbye and stopped in order."""
        wait_for(lambda: b"connection.retried" in self.log.read_bytes() or None, "the end of the stream", self.process)
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(EXIT_S) == 0, self.log.read_text()
        files = sorted(self.layout.trades.glob("date=*/*.parquet"))
        return pa.concat_tables([pq.read_table(path, partitioning=None) for path in files]).sort_by("sequence")


@contextmanager
def recorder(folder: Path, config: Path, url: str, key: str = "") -> Iterator[Recorder]:
    """A recorder for the time of the block; the root is a folder of its own in `folder`."""
    root, log = folder / f"data-{config.stem}", folder / f"{config.stem}.log"
    options = ("--config", str(config), "--root", str(root), "--url", url)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "ingestor", "run", *options],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=folder,
            env=environ(**({"FINNHUB_API_KEY": key} if key else {})),
        )
    with process:
        try:
            yield Recorder(Layout(root), log, process)
        finally:
            process.kill()


def record(
    folder: Path, venue: Venue, configs: Sequence[Path], url: str, key: str = ""
) -> tuple[pa.Table, list[pa.Table]]:
    """The truth, and what a recorder with each of these settings has of it."""
    with ExitStack() as stack:
        recorders = [stack.enter_context(recorder(folder, config, url, key)) for config in configs]
        for one in recorders:
            one.wait_for_rows()
        truth = venue.stop()
        return truth, [one.finish() for one in recorders]


@pytest.mark.parametrize(
    ("example", "path", "protocol"),
    [
        ("ingestor", "", ["finnhub"]),
        pytest.param("binance", "/ws", ["binance"], marks=pytest.mark.long),
        pytest.param("binance", "/stream", ["binance"], marks=pytest.mark.long),
        pytest.param("json", "", ["json", "--config", str(CONFIG / "json.yaml")], marks=pytest.mark.long),
    ],
    ids=["finnhub", "binance", "binance combined", "json"],
)
def test_an_example_records_its_venue(
    tmp_path: Path, tally: Tally, example: str, path: str, protocol: list[str]
) -> None:
    key = "demo" if protocol == ["finnhub"] else ""
    with running_venue(tmp_path, "--rate", "5000", "--protocol", *protocol) as venue:
        truth, (rows,) = record(tmp_path, venue, [CONFIG / f"{example}.yaml"], f"{venue.url}{path}", key)
    tally.rounds, tally.rows = 1, rows.num_rows
    comparison = compare(truth, rows.select(TRADES.names))
    assert (comparison.missing, comparison.invented, comparison.holes) == ([], 0, 0)
    assert rows.num_rows == truth.num_rows > 1000
    own = [name for name in rows.column_names if name not in TRADES.names]
    assert own == (["trade_id", "side"] if example == "binance" else [])
    if own:
        check_ids(rows)


def check_ids(rows: pa.Table) -> None:
    """The venue numbers a symbol's trades from when it is first asked for; each odd one is a purchase."""
    by_symbol: dict[str, list[int]] = defaultdict(list)
    for row in rows.select(["symbol", "trade_id", "side"]).to_pylist():
        by_symbol[row["symbol"]].append(row["trade_id"])
        assert row["side"] == ("buy" if row["trade_id"] % 2 else "sell")
    for ids in by_symbol.values():
        assert ids == list(range(1, len(ids) + 1))


@pytest.mark.long
def test_shards_divide_a_venue(tmp_path: Path, tally: Tally) -> None:
    """Three recorders, one list of tickers: together they have the truth, and no row twice."""
    tickers = [f"S{number}USDT" for number in range(20)]
    configs = []
    for index in (1, 2, 3):
        configs.append(tmp_path / f"shard{index}.yaml")
        settings = {
            "feed": {"type": "binance"},
            "tickers": tickers,
            "shard": {"index": index, "count": 3},
            "health": {"listen": "null"},
        }
        configs[-1].write_text(json.dumps(settings))  # JSON is YAML
    with running_venue(tmp_path, "--rate", "5000", "--protocol", "binance") as venue:
        truth, shards = record(tmp_path, venue, configs, venue.url)
    tally.rounds, tally.rows = 1, truth.num_rows
    for index, rows in enumerate(shards, 1):
        assert set(rows["symbol"].to_pylist()) == set(symbols_of_shard(tickers, index, 3))
    union = pa.concat_tables([rows.select(TRADES.names) for rows in shards])
    comparison = compare(truth, union)
    assert (comparison.missing, comparison.invented, comparison.holes) == ([], 0, 0)
    assert union.num_rows == truth.num_rows
