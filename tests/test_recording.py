"""Whole runs on one root, one after the other: each balances, and takes up what the last one left."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from journals import ledger_facts
from recorders import CRYPTO, eventually
from simulated_venues import RunningVenue, running_venue
from structlog.testing import capture_logs

from ingestor.config import Settings, Source
from ingestor.daemon import record
from ingestor.dataset.raw import read_frames
from ingestor.errors import FeedRefused
from ingestor.facts import Fact
from ingestor.layout import Layout
from ingestor.metrics import Conservation
from ingestor.operations.systemd import Signals
from ingestor.schema import RUN_SHIFT
from ingestor.simulator.market import MarketSettings
from ingestor.simulator.venue import VenueSettings

VENUE = VenueSettings(market=MarketSettings(rate=300, seed=7))


@pytest.fixture
def venue() -> Iterator[RunningVenue]:
    with running_venue(VENUE) as there:
        yield there


def facts(root: Path, *names: str) -> list[Fact]:
    return ledger_facts(Layout(root), *names)


@contextmanager
def recording(
    root: Path, url: str, signals: Signals, key: str = "demo", **storage: Any
) -> Iterator[Callable[[], Conservation]]:
    """A recorder in a thread; what is yielded stops it and gives its account, or raises what ended it."""
    settings = Settings.model_validate(
        {
            "feed": {"url": url},
            "tickers": CRYPTO,
            "storage": {"root": root, "formats": ["parquet", "csv"], "min_free": "0B", **storage},
            "health": {"listen": None},
        }
    )
    with capture_logs(), ThreadPoolExecutor(1) as executor:
        running = executor.submit(record, settings, Source(None), key, signals)

        def stop() -> Conservation:
            signals.stop.set()
            return running.result()

        try:
            yield stop
        finally:
            signals.stop.set()


def run_once(root: Path, url: str, signals: Signals | None = None, **storage: Any) -> Conservation:
    """From the start until every symbol has traded, and a stop in order."""
    before = len(facts(root, "symbol.proven"))
    with recording(root, url, signals or Signals(), **storage) as stop:
        eventually(lambda: len(facts(root, "symbol.proven")) >= before + len(CRYPTO), "a trade of each symbol")
        return stop()


def parquet_files(root: Path) -> pa.Table:
    paths = sorted(Layout(root).trades.glob("date=*/*.parquet"))
    return pa.concat_tables([pq.read_table(path, partitioning=None) for path in paths])


def test_a_run_ends_with_an_account_that_balances(tmp_path: Path, venue: RunningVenue) -> None:
    account = run_once(tmp_path, venue.url, raw={})
    assert account.violations() == []
    assert account.frames_kept == account.frames_received == sum(map(len, read_frames(Layout(tmp_path))))
    assert account.journaled.trades == parquet_files(tmp_path).num_rows > 0
    assert account.sink_rows == {"parquet": account.journaled.trades, "csv": account.journaled.trades}
    assert facts(tmp_path, "run.stopped")[0]["error"] is None


def test_a_hurried_stop_leaves_the_rest_to_the_next_start(tmp_path: Path, venue: RunningVenue) -> None:
    hurried = Signals()
    hurried.hurry.set()
    first = run_once(tmp_path, venue.url, hurried)
    second = run_once(tmp_path, venue.url)
    assert first.sink_rows == {}  # nobody has counted yet
    left = [row["sequence"] >> RUN_SHIFT for row in parquet_files(tmp_path).select(["sequence"]).to_pylist()]
    assert set(left) == {1, 2}
    assert left.count(2) == second.journaled.trades


def test_a_wrong_key_ends_the_run_and_the_ledger_says_so(tmp_path: Path, venue: RunningVenue) -> None:
    with recording(tmp_path, venue.url, Signals(), "wrong") as stop:
        eventually(lambda: facts(tmp_path, "run.stopped"), "the end")
        with pytest.raises(FeedRefused, match="FINNHUB_API_KEY"):
            stop()
    assert [fact["error"] for fact in facts(tmp_path, "run.stopped")] == ["FeedRefused"]
    assert [fact["cause"] for fact in facts(tmp_path, "gap.opened")] == ["refused"]


def test_a_stop_and_a_start_soon_after_it_are_a_restart(tmp_path: Path, venue: RunningVenue) -> None:
    run_once(tmp_path, venue.url)
    run_once(tmp_path, venue.url)
    (left,) = facts(tmp_path, "run.started")[1]["open_gaps"]
    closed = facts(tmp_path, "gap.closed")[0]
    assert left["cause"] == closed["cause"] == "restart"
    assert left["gap"] == closed["gap"]
    assert left["since"] < closed["until"]
