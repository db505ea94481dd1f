"""`kill -9` of a recorder that fills its own gaps: nothing twice, nothing lost, and every gap is filled in the end."""

import os
import random
import time
from functools import partial
from pathlib import Path

import pyarrow.compute as pc
import pytest
from harness import Site, running_venue

import ingestor
from ingestor.coverage import Interval
from ingestor.dataset.coverage import load_coverage
from ingestor.dataset.verify import Verification

pytestmark = [pytest.mark.long, pytest.mark.alone]
SYMBOLS = ("BTCUSDT", "ETHUSDT")


def left_blind(site: Site) -> list[Interval]:
    """What is still blind of what is over."""
    coverage = load_coverage(site.layout)
    intervals = [one for symbol in SYMBOLS for one in coverage.intervals(symbol)]
    return [one for one in intervals if one.state == "blind" and one.end_us < coverage.horizon_us]


def has_fewer(site: Site, than: int) -> bool:
    return len(left_blind(site)) < than


def test_a_recorder_that_fills_is_killed(tmp_path: Path) -> None:
    moments = random.Random(17)
    with running_venue(tmp_path, "--protocol", "binance", "--rate", "300", "--history") as venue:
        url = venue.url.replace("ws:", "http:")
        site = Site(
            tmp_path, tmp_path / "data", f"{venue.url}/ws",
            settings={
                "feed": {"type": "binance"},
                "tickers": SYMBOLS,
                "storage": {"rotate": {"age": "5s"}},
                "backfill": {"url": url, "settle": "0s", "every": "1s"},
            },
        )  # fmt: skip
        for _ in range(int(os.environ.get("CHAOS_ROUNDS", "2"))):
            with site.running() as recorder:
                recorder.wait_for_rows()
                time.sleep(moments.uniform(0, 4))  # the fault's own moment: nothing is waited for
                recorder.kill()
            ids = [
                ingestor.read_trades(site.root, symbol, columns="trade_id", engine="arrow")["trade_id"]
                for symbol in SYMBOLS
            ]
            assert [len(own) - pc.count_distinct(own).as_py() for own in ids] == [0, 0]
        with site.running() as recorder:
            recorder.wait_for_rows()
            while left := len(left_blind(site)):
                recorder.wait_for(partial(has_fewer, site, left), f"fewer than {left} that are blind")
            assert recorder.end() == 0
    filled = 0
    for symbol in SYMBOLS:
        rows = ingestor.read_trades(site.root, symbol, columns=["trade_id", "origin"], engine="arrow")
        bounds = pc.min_max(rows["trade_id"]).as_py()
        assert sorted(rows["trade_id"].to_pylist()) == list(range(bounds["min"], bounds["max"] + 1))
        filled += rows.num_rows - rows["origin"].null_count
    verification = Verification(site.layout)
    assert [str(one) for step in verification.run() for one in step] == []
    assert verification.account.filled == filled > 0
