"""Reading while all else goes on: every reading is a whole prefix of what was recorded, no row missing or twice."""

import subprocess
import sys
import time
from pathlib import Path

import pyarrow.compute as pc
import pytest
from harness import LAG_S, Site, Tally, compare, environ, now_us, rounds, running_venue
from requirements import of_tier

import ingestor
from ingestor.schema import RUN_SHIFT

SEEN_WITHIN_S = 0.25
READINGS = of_tier(10 * rounds(), 100)
"""At least: as many as it takes until the writer has done what the readings are to withstand."""
GROWN = of_tier(20, 5)
"""Readings that found more rows than the one before."""
COMPARED = 20

WRITE = """
import datetime, sys, time
sys.path.insert(0, sys.argv[2])
from pathlib import Path
import structlog
from journals import trades
from recordings import Recording
from ingestor.dataset.compact import compact_days
structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
recording = Recording(Path(sys.argv[1]), started="2026-11-18")
days = [datetime.datetime(2026, 11, day, 12, tzinfo=datetime.timezone.utc) for day in (17, 18)]
print("begun", flush=True)
turn = 0
while True:
    turn += 1
    for part in range(7):
        recording.append(trades(recording.sequence, 20, at=days[turn % 2]))
        if part % 3 == 0:
            recording.end_segment()
    if turn % 2:
        recording.seal()
    if turn % 3 == 0:
        list(compact_days(recording.layout, datetime.date(2026, 12, 1), 20_000))
"""


def test_read_during_rotation_sealing_and_compaction(tmp_path: Path, tally: Tally) -> None:
    """A writer that rotates, seals and compacts without a pause, and a thousand readings or more beside it."""
    root = tmp_path / "data"
    command = [sys.executable, "-c", WRITE, str(root), str(Path(__file__).parents[1])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environ()) as writer:
        try:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"begun\n"
            seen, grown, compacted = 0, 0, 0
            while tally.rounds < READINGS or grown < GROWN or not compacted:
                assert writer.poll() is None
                assert tally.rounds < 20 * READINGS, "the writer does nothing: nothing is proven"
                sequences = ingestor.read_trades(root, columns=["sequence"], engine="arrow")["sequence"]
                count = len(sequences)
                expected = {"min": 1 << RUN_SHIFT, "max": (1 << RUN_SHIFT) + count - 1}
                assert count == 0 or pc.min_max(sequences).as_py() == expected, "a row is missing"
                assert pc.count_distinct(sequences).as_py() == count, "a row is there twice"
                assert count >= seen, "a row that was there is gone"
                grown += count > seen
                seen = count
                compacted += any(root.glob("trades/*/compacted-*"))
                tally.rounds += 1
        finally:
            writer.kill()
    tally.rows = seen


@pytest.mark.long
def test_a_trade_is_seen_within_a_quarter_of_a_second(tmp_path: Path, tally: Tally) -> None:
    """What the venue had sent that long before a reading began is in it."""
    with running_venue(tmp_path, "--rate", "500") as venue:
        site = Site(tmp_path, tmp_path / "data", venue.url)
        readings = []
        with site.running() as recorder:
            recorder.wait_for_rows()
            for _ in range(COMPARED):
                time.sleep(0.1)  # the moments of the readings, spread over rotations
                readings.append((now_us(), ingestor.read_trades(site.root, engine="arrow")))
            truth = venue.stop()
            recorder.wait_for_end_of_stream()
            assert recorder.end() == 0
    for began_us, found in readings:
        due = truth.filter(pc.less(truth["sent_us"], round(began_us - (SEEN_WITHIN_S + LAG_S) * 1e6)))
        assert compare(due, found).missing == []
        tally.rounds += 1
    tally.rows = readings[-1][1].num_rows
    assert tally.rows > 0
