"""A disk that refuses what is to be recorded: it waits, and at a stop it is said what is lost."""

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from blocks import AT_US, frame, journaled
from journals import no_file_beyond
from recorders import Rig, eventually, make_rig

from ingestor.errors import RowsUnsaved
from ingestor.metrics import Counts


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return make_rig(tmp_path, "ws://127.0.0.1:9")


def test_rows_wait_in_memory_while_the_disk_is_full_and_lose_nothing(rig: Rig) -> None:
    rows = [frame({"p": float(n + 1)}) for n in range(500)]
    recording = threading.Thread(target=rig.recorder.run)
    with no_file_beyond(3000):
        recording.start()
        for one in rows:
            rig.buffer.put(1, [one], AT_US)
        eventually(lambda: rig.observed.disk_failing, "a disk that refuses")
    eventually(lambda: not rig.observed.disk_failing and rig.journal.failed is None, "a disk that works again")
    rig.buffer.close()
    recording.join()
    assert journaled(rig)["price"].to_pylist() == [float(n + 1) for n in range(500)]
    assert rig.observed.disk_failed_s > 0


def test_a_stop_with_a_disk_that_takes_nothing_says_what_is_lost(rig: Rig) -> None:
    errors: list[BaseException] = []

    def run() -> None:
        try:
            rig.recorder.run()
        except RowsUnsaved as error:
            errors.append(error)

    recording = threading.Thread(target=run)
    with no_file_beyond(0):
        recording.start()
        rig.buffer.put(1, [frame({}, {})], AT_US)
        eventually(lambda: rig.observed.disk_failing, "a disk that refuses")
        rig.buffer.put(1, [frame({})] * 3, AT_US)
        rig.buffer.close()
        recording.join()
    assert len(errors) == 1
    assert "2 trades and 3 frames" in str(errors[0])


def test_rejects_that_no_disk_takes_never_hold_back_a_stop(rig: Rig) -> None:
    """Their folder is gone: while it runs they wait for the disk, at a stop the rows come first."""
    shutil.rmtree(rig.layout.rejects)
    recording = threading.Thread(target=rig.recorder.run)
    recording.start()
    rig.buffer.put(1, [b"junk", frame({})], AT_US)
    eventually(lambda: rig.observed.disk_failing, "rejects that wait")
    rig.buffer.close()
    recording.join()
    assert journaled(rig).num_rows == 1
    assert rig.recorder.counts == Counts(frames=2, decoded=1, rejected_frames=1, trades=1)


@contextmanager
def recording(rig: Rig) -> Iterator[None]:
    """The recorder's thread, from here to the end of the Buffer."""
    thread = threading.Thread(target=rig.recorder.run)
    thread.start()
    try:
        yield
    finally:
        rig.buffer.close()
        thread.join()


def test_while_the_disk_refuses_frames_wait_in_the_buffer_which_is_bounded(rig: Rig) -> None:
    with recording(rig):
        with no_file_beyond(0):
            rig.buffer.put(1, [frame({})], AT_US)
            eventually(lambda: rig.observed.disk_failing, "a disk that refuses")
            rig.buffer.put(1, [frame({})] * 3, AT_US)
            for _ in range(2):  # the second turn began after they came
                turned_at_s = rig.recorder.turned_at_s
                eventually(lambda: rig.recorder.turned_at_s > turned_at_s, "a turn")  # noqa: B023  asked at once
            waiting, unsynced = rig.buffer.frames_waiting, rig.journal.unsynced.rows
        eventually(lambda: not rig.observed.disk_failing, "a disk that works again")
    assert (waiting, unsynced) == (3, 1)
    assert journaled(rig).num_rows == 4


def test_rejects_wait_for_their_disk_and_none_is_lost(rig: Rig) -> None:
    rejects = rig.layout.rejects
    gone = rejects.rename(rejects.with_name("gone"))
    with recording(rig):
        rig.buffer.put(1, [b"junk", frame({})], AT_US)
        eventually(lambda: rig.observed.disk_failing, "a disk that refuses")
        assert rig.recorder.counts.frames == 0
        gone.rename(rejects)
        eventually(lambda: not rig.observed.disk_failing, "a disk that works again")
    kept = [json.loads(line) for path in rejects.iterdir() for line in path.read_text().splitlines()]
    assert [(one["text"], one["reason"]) for one in kept] == [("junk", "not_json")]
    assert journaled(rig).num_rows == 1
