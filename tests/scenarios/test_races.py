"""Readers beside a writer that rotates, seals and frees as fast as it can: each reads a consistent prefix.

Each thread counts its own rounds and goes on until the writer has done its share; the writer waits for nobody.
"""

import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest
from harness import Tally, rounds
from journals import Clock, Holder, Life, csv_sequences, make_root, parquet_sequences, sequences
from requirements import of_tier
from structlog.testing import capture_logs

from ingestor.errors import Lagged
from ingestor.journal.follower import Follower
from ingestor.journal.writer import Rotation
from ingestor.layout import Layout, list_segments

BLOCKS = 8 * max(of_tier(60, 10), rounds())
"""Half of that lets a reader that looks at a file's size too early pass in one run of two."""


def write(life: Life, ended: threading.Event) -> list[int]:
    """Append and rotate as fast as it goes; every row appended."""
    try:
        rows: list[int] = []
        for number in range(BLOCKS):
            rows += life.writer.append(1 + number % 5)
            if number % 3 == 0:
                life.writer.journal.sync()
            life.writer.journal.rotate_if_due()
        life.writer.journal.close()
        return rows
    finally:
        ended.set()


def follow(layout: Layout, ended: threading.Event, *, synced_only: bool) -> list[int]:
    """All that one follower reads while the writer writes and after it has ended."""
    follower = Follower(layout, None, synced_only=synced_only)
    rows: list[int] = []
    while not ended.is_set():
        rows += sequences(list(follower.read()))
    rows += sequences(list(follower.read()))
    follower.close()
    return rows


def look_again_and_again(layout: Layout, ended: threading.Event) -> int:
    """New followers, one after the other, each of which must read a run of neighbours; how many read anything."""
    looks = 0
    while not ended.is_set():
        follower = Follower(layout, None, synced_only=looks % 2 == 0)
        try:
            rows = sequences(list(follower.read()))
        except Lagged:
            continue  # freed between two reads: it says so, and gives nothing wrong
        finally:
            follower.close()
        assert all(later == earlier + 1 for earlier, later in pairwise(rows))
        looks += bool(rows)
    return looks


@pytest.mark.parametrize("freeing", [False, True], ids=["kept", "freed"])
def test_races(tmp_path: Path, tally: Tally, *, freeing: bool) -> None:
    layout = make_root(tmp_path)
    ended = threading.Event()
    with capture_logs():
        life = Life(layout, rotation=Rotation(age_s=1, size=3000), clock=Clock())
        runner, accounts = life.make_runner(ended, *([] if freeing else [Holder()]))
        with ThreadPoolExecutor() as pool:
            writing = pool.submit(write, life, ended)
            running = pool.submit(runner.run)
            followers = (
                []
                if freeing
                else [pool.submit(follow, layout, ended, synced_only=synced_only) for synced_only in (False, True)]
            )
            looking = pool.submit(look_again_and_again, layout, ended)
            rows = writing.result()
            running.result()
            looks = looking.result()
            for follower in followers:
                assert follower.result() == rows
    assert life.ledger.close()
    assert accounts.violations == 0
    assert parquet_sequences(layout) == rows
    assert csv_sequences(layout) == rows
    assert all(file.sealed for file in list_segments(layout))
    assert looks > 0
    tally.rounds, tally.rows = looks, len(rows)
    tally.assert_clean()
