"""A power cut: what was synced is there, nothing torn is published, no sink is ahead of the journal.

The disk is a file system in a file that is shut down under the recorder. What was acknowledged, and what was sent, is
known outside of it.
"""

import json
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from harness import (
    LAG_S,
    LINGER_S,
    PATIENCE_S,
    Site,
    Tally,
    assert_frames_agree,
    compile_shim,
    missing_sequences,
    now_us,
    read_journal,
    rounds,
    running_venue,
    wait_for,
)
from requirements import of_tier

from ingestor.errors import Lagged
from ingestor.journal.follower import Follower, Rows
from ingestor.journal.scan import end_of_records
from ingestor.layout import Layout, list_segments

pytestmark = pytest.mark.alone

SYNC_INTERVAL_S = 0.3
BOUND_S = SYNC_INTERVAL_S + LINGER_S + LAG_S
"""The lag includes one fsync here."""
SETTINGS: dict[str, dict[str, Any]] = {
    "journal": {"sync_interval": "300ms"},
    "storage": {"rotate": {"age": "1s", "size": "256KB"}},
}
KEEPING = SETTINGS | {"storage": {**SETTINGS["storage"], "raw": {}}}
"""With the frames as they came."""


@dataclass
class Disk:
    """A file system whose power can be cut."""

    image: Path
    place: Path

    def mount(self) -> None:
        _run("mount", "-o", "loop", str(self.image), str(self.place))

    def cut(self) -> None:
        """Nothing more reaches the disk: not even the file system's own journal is flushed."""
        _run("xfs_io", "-x", "-c", "shutdown", str(self.place))

    def unmount(self) -> None:
        """Also wait for who has a copy of the mount, as a container that is just starting has: until its end the next
        mount would bring back what was cut off.
        """
        _run("umount", str(self.place))
        wait_for(lambda: not _run("losetup", "-j", str(self.image)) or None, "the end of the loop device")

    def is_mounted(self) -> bool:
        """Not asked of the place itself: after a cut it only says that it can't be read."""
        return any(line.split()[1] == str(self.place) for line in Path("/proc/mounts").read_text().splitlines())


@contextmanager
def powered_disk(folder: Path, kind: str) -> Iterator[Disk]:
    """A fresh disk, mounted; whatever happens, the mount and its loop device are gone afterwards."""
    disk = Disk(folder / "disk.img", folder / "disk")
    disk.place.mkdir()
    with disk.image.open("wb") as image:
        image.truncate(400 << 20)
    _run(f"mkfs.{kind}", "-q", str(disk.image))
    try:
        disk.mount()
        yield disk
    finally:
        while disk.is_mounted():
            _run("umount", "-l", str(disk.place))
        disk.image.unlink()


def _run(*command: str) -> bytes:
    return subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE_S).stdout


class Witness:
    """Reads what the journal calls synced, live, as a record sink would, and keeps it off that disk."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self.acknowledged: dict[int, int] = {}
        """By run: the last sequence number that was called synced."""
        self.ended = threading.Event()

    def run(self) -> None:
        """A thread's work, until `ended` or the end of the power."""
        while not self.ended.is_set():
            follower = Follower(self._layout, None, synced_only=True)
            try:
                self._follow(follower)
            except Lagged:
                continue  # the segment was freed as it was opened: begin anew
            except OSError:
                return
            finally:
                follower.close()

    def _follow(self, follower: Follower) -> None:
        while not self.ended.is_set():
            for event in follower.read():
                if isinstance(event, Rows) and event.batch.num_rows:
                    self.acknowledged[event.segment.run] = event.batch["sequence"][-1].as_py()
            self.ended.wait(0.01)


@contextmanager
def running_witness(layout: Layout) -> Iterator[Witness]:
    seen = Witness(layout)
    thread = threading.Thread(target=seen.run, name="witness")
    thread.start()
    try:
        yield seen
    finally:
        seen.ended.set()
        thread.join()


def _suffer_a_cut(disk: Disk, site: Site, seconds: float, **more: str) -> tuple[dict[int, int], int]:
    """Record, cut the power, and mount what is left: what had been called synced by then, and when that was."""
    with site.running(**more) as recorder:
        recorder.wait_for_rows()
        with running_witness(site.layout) as seen:
            recorder.wait_for(lambda: seen.acknowledged or None, "an acknowledgement")
            time.sleep(seconds)  # the fault's own moment: nothing is waited for
            acknowledged = dict(seen.acknowledged)
            cut_us = now_us()
            disk.cut()
        recorder.kill()
    disk.unmount()
    disk.mount()
    return acknowledged, cut_us


@pytest.mark.needs("loop mounts", "xfs_io", "mkfs.xfs")
@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_power(tmp_path: Path, tally: Tally, kind: str) -> None:
    """Lost: rows that were called synced, or sent longer before the cut than the stated bound."""
    moments = random.Random(7)
    with powered_disk(tmp_path, kind) as disk, running_venue(tmp_path, "--rate", "3000") as venue:
        sites = [Site(tmp_path, disk.place / "data", venue.url, settings=settings) for settings in (SETTINGS, KEEPING)]
        acknowledged: dict[int, int] = {}
        lives: list[tuple[int, float]] = []
        for number in range(max(of_tier(3, 1), rounds() // 20)):
            started_us, site = now_us(), sites[(number + (kind == "ext4")) % 2]
            synced, cut_us = _suffer_a_cut(disk, site, moments.uniform(1, 3))
            lives.append((started_us, cut_us))
            acknowledged |= synced
            _assert_published_whole(site.layout)
            _assert_no_sink_ahead(site.layout)
            tally.rounds += 1
        lives.append((now_us(), float("inf")))
        site = sites[1]
        with site.running() as recorder:
            recorder.wait_for_rows()
            truth = venue.stop()
            recorder.wait_for_end_of_stream()
            assert recorder.end() == 0
        assert_frames_agree(site.layout)
        tally.settle(site.layout, truth, acknowledged, lives, BOUND_S)
    tally.assert_clean()


def _assert_published_whole(layout: Layout) -> None:
    """Everything in the dataset is a whole file with rows in it."""
    for path in layout.trades.glob("date=*/*"):
        assert path.suffix == ".parquet", path
        assert pq.read_table(path, partitioning=None, page_checksum_verification=True).num_rows > 0, path


def _assert_no_sink_ahead(layout: Layout) -> None:
    """No sink vouches for what the journal has lost."""
    journaled = read_journal(layout)["sequence"]
    unsealed = {str(file.id) for file in list_segments(layout) if not file.sealed}
    for path in layout.trades.glob("date=*/*.parquet"):
        if path.stem in unsealed:
            published = pq.read_table(path, partitioning=None)["sequence"]
            assert pc.all(pc.is_in(published, journaled)).as_py(), f"{path} has rows that the journal has not"
    if layout.cursor_file("csv").exists():
        cursor = json.loads(layout.cursor_file("csv").read_text())
        newest = list_segments(layout)[-1]
        ends = ((newest.id.number, end_of_records(newest.path)), (newest.id.number + 1, 0))
        assert (cursor["segment"], cursor["offset"]) <= max(ends[: 1 if cursor["offset"] else 2])


@pytest.mark.long
@pytest.mark.needs("loop mounts", "xfs_io", "cc")
def test_power_catches_who_acknowledges_before_fsync(tmp_path: Path, tally: Tally) -> None:
    """The same recorder on a disk whose fsync does nothing must be caught, or the scenario above proves nothing."""
    shim = compile_shim("lying_fsync.c", tmp_path)
    with powered_disk(tmp_path, "ext4") as disk, running_venue(tmp_path, "--rate", "3000") as venue:
        site = Site(tmp_path, disk.place / "data", venue.url, settings={"storage": {"rotate": {"age": "1h"}}})
        acknowledged, _ = _suffer_a_cut(disk, site, 1.0, LD_PRELOAD=shim)
        missing = missing_sequences(read_journal(site.layout), acknowledged)
        tally.rounds, tally.note = 1, f"as it must, the harness misses {missing} acknowledged rows"
    assert missing > 0
