"""A machine that stands still for a while, as a virtual one does that is moved: whose silence is that? Nobody's."""

import signal
import time
from pathlib import Path

import pytest
from harness import Site, Tally, compare, count_repeats, now_us, read_facts, read_gaps, read_parquet, running_venue

from ingestor.layout import Layout

pytestmark = pytest.mark.alone

SILENCE_S = 2
MOMENT_S = 0.5
LISTENED = 3
"""Segments of a second each, recorded afterwards: by then it would have given the connection up."""


def segments_begun_since(layout: Layout, since_us: int) -> int:
    closed = [fact for fact in read_facts(layout) if fact["fact"] == "segment.closed"]
    return sum(fact["first_received"] is not None and fact["first_received"] >= since_us for fact in closed)


@pytest.mark.long
def test_a_machine_that_stood_still_goes_on_with_the_same_connection(tmp_path: Path, tally: Tally) -> None:
    connection = {"silence": f"{SILENCE_S}s", "ping_interval": "1s"}
    with running_venue(tmp_path, "--rate", "500") as venue:
        site = Site(tmp_path, tmp_path / "data", venue.url, settings={"connection": connection})
        with site.running() as recorder:
            recorder.wait_for_rows()
            # The venue stands still a moment longer at both ends, so that nothing waits in the socket.
            venue.process.send_signal(signal.SIGSTOP)
            time.sleep(MOMENT_S)
            recorder.process.send_signal(signal.SIGSTOP)
            time.sleep(SILENCE_S)
            recorder.process.send_signal(signal.SIGCONT)
            time.sleep(MOMENT_S)
            venue.process.send_signal(signal.SIGCONT)
            gone_on_us = now_us()
            recorder.wait_for(lambda: segments_begun_since(site.layout, gone_on_us) >= LISTENED, "segments afterwards")
            assert read_gaps(site.layout) == []
            truth = venue.stop()
            recorder.wait_for_end_of_stream()
            assert recorder.end() == 0
    rows = read_parquet(site.layout)
    tally.rounds, tally.rows, tally.duplicated = 1, rows.num_rows, count_repeats(rows)
    tally.unexplained = compare(truth, rows).unexplained(read_gaps(site.layout))
    tally.assert_clean()
    assert sum(fact["fact"] == "connection.opened" for fact in read_facts(site.layout)) == 1
