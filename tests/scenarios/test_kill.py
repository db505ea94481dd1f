"""`kill -9` at any moment: what was journaled is in every file exactly once, and what is missing is accounted for."""

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import (
    LAG_S,
    LINGER_S,
    Recorder,
    Site,
    Tally,
    assert_frames_agree,
    last_sequences,
    now_us,
    read_journal,
    rounds,
    running_venue,
)

from ingestor.layout import Layout, list_segments

pytestmark = pytest.mark.alone

BOUND_S = LINGER_S + LAG_S


def test_kill(tmp_path: Path, tally: Tally) -> None:
    """Lost: rows sent longer before the kill than the stated bound, or journaled and not in every file."""
    moments = random.Random(7)
    faults = tmp_path / "faults.yaml"
    faults.write_text("- {after: 1200ms, do: abort}\n")  # a kill may also come just after a connection was lost
    with running_venue(tmp_path, "--rate", "3000", "--faults", str(faults)) as venue:
        storage = {"rotate": {"age": "1s", "size": "64KB"}}
        # Every other life keeps the frames as they came, too.
        keeps: list[dict[str, Any]] = [{"raw": {}}, {}]
        sites = [Site(tmp_path, tmp_path / "data", venue.url, settings={"storage": storage | one}) for one in keeps]
        journaled: dict[int, int] = {}
        lives: list[tuple[int, float]] = []
        for number in range(rounds()):
            started_us, site = now_us(), sites[number % 2]
            with site.running() as recorder:
                PHASES[number % len(PHASES)](recorder, moments)
                lives.append((started_us, now_us()))
                recorder.kill()
            journaled |= last_sequences(read_journal(site.layout))
            tally.rounds += 1
        lives.append((now_us(), float("inf")))
        site = sites[0]
        with site.running() as recorder:
            recorder.wait_for_rows()
            truth = venue.stop()
            recorder.wait_for_end_of_stream()
            assert recorder.end() == 0
    tally.settle(site.layout, truth, journaled, lives, BOUND_S)
    tally.assert_clean()
    assert_frames_agree(site.layout)
    assert not list_segments(site.layout), "the last run left segments behind"


# When to kill


def _while_starting(_recorder: Recorder, moments: random.Random) -> None:
    time.sleep(moments.uniform(0, 0.6))  # the fault's own moment: nothing is waited for


def _while_recording(recorder: Recorder, moments: random.Random) -> None:
    recorder.wait_for_rows()
    time.sleep(moments.uniform(0, 3))


def _while_rotating(recorder: Recorder, moments: random.Random) -> None:
    recorder.wait_for_rows()
    newest = _newest(recorder.site.layout)
    recorder.wait_for(lambda: _newest(recorder.site.layout) > newest, "a rotation")
    time.sleep(moments.uniform(0, 0.005))


def _while_sealing(recorder: Recorder, _moments: random.Random) -> None:
    recorder.wait_for(lambda: any(recorder.site.layout.staging.glob("*.parquet")), "a file in the making")


def _while_committing(recorder: Recorder, _moments: random.Random) -> None:
    """After a file is published, before or after its segment says so."""
    recorder.wait_for_rows()
    published = _published(recorder.site.layout)
    recorder.wait_for(lambda: _published(recorder.site.layout) != published, "a file published")


PHASES: tuple[Callable[[Recorder, random.Random], None], ...] = (
    _while_starting,
    _while_recording,
    _while_rotating,
    _while_sealing,
    _while_committing,
)


def _newest(layout: Layout) -> int:
    return max(file.id.number for file in list_segments(layout))


def _published(layout: Layout) -> set[str]:
    return {path.name for path in layout.trades.glob("date=*/*")}
