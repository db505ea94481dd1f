"""The journal, its followers and its sinks, driven at random through every fault there is, against a plain list.

At every moment: a record follower has exactly the rows that are synced, each once and in order; a view never gets a
row twice; what a reader finds in the dataset and the unsealed journal together is the synced rows. After a last orderly
stop Parquet, CSV and the accounts hold exactly these.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from harness import rounds
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from journals import (
    FAST_DISK,
    Clock,
    Crash,
    Life,
    break_descriptor,
    csv_sequences,
    ledger_facts,
    make_root,
    no_file_beyond,
    parquet_sequences,
    recorded_sequences,
    sequences,
    writing_descriptors,
)
from structlog.testing import capture_logs

from ingestor.journal.follower import Follower
from ingestor.journal.records import read_synced
from ingestor.layout import list_segments

crashes = st.builds(Crash, after=st.integers(0, 12), before=st.integers(0, 3))


def alive(machine: "JournalMachine") -> bool:
    return machine.life is not None


def healthy(machine: "JournalMachine") -> bool:
    return machine.life is not None and machine.life.writer.journal.failed is None


def failing(machine: "JournalMachine") -> bool:
    return alive(machine) and not healthy(machine)


class JournalMachine(RuleBasedStateMachine):
    """`synced` is what must be there, `unsynced` what may be lost: sequence numbers in the order appended."""

    def __init__(self) -> None:
        super().__init__()
        self.logs = capture_logs()
        self.logs.__enter__()
        self.root = Path(tempfile.mkdtemp(dir=FAST_DISK))
        self.layout = make_root(self.root)
        self.clock = Clock()
        self.life: Life | None = None
        self.synced: list[int] = []
        self.unsynced: list[int] = []
        self.record = Follower(self.layout, None, synced_only=True)
        self.view = Follower(self.layout, None, synced_only=False)
        self.recorded: list[int] = []
        self.viewed: list[int] = []

    @initialize()
    def begin(self) -> None:
        self.life = Life(self.layout, clock=self.clock)

    def journal_did(self) -> None:
        """Where the journal says that all is synced, it must be there from now on."""
        assert self.life is not None
        if not self.life.writer.journal.unsynced.rows:
            self.synced += self.unsynced
            self.unsynced = []

    # What the recorder does

    @precondition(healthy)
    @rule(count=st.integers(0, 40))
    def append(self, count: int) -> None:
        assert self.life is not None
        self.unsynced += self.life.writer.append(count)

    @precondition(healthy)
    @rule()
    def sync(self) -> None:
        assert self.life is not None
        self.life.writer.journal.sync()
        self.journal_did()

    @precondition(healthy)
    @rule(seconds=st.sampled_from([-7200.0, -1.0, 5.0, 3600.0, 86400.0, 1e9]))
    def step_clock_and_rotate(self, seconds: float) -> None:
        assert self.life is not None
        self.clock.now = self.clock.now.replace(year=2026)
        self.clock.step(seconds)
        self.life.writer.journal.rotate_if_due()
        self.journal_did()

    @precondition(alive)
    @rule()
    def seal(self) -> None:
        assert self.life is not None
        self.life.drain()

    @precondition(alive)
    @rule()
    def stop_and_start(self) -> None:
        assert self.life is not None
        self.life.writer.journal.close()
        self.synced += self.unsynced
        self.unsynced = []
        self.a_record_follower_has_what_is_synced()  # before the segment is freed, else it has lagged
        self.a_view_gets_no_row_twice()
        self.life.drain()
        assert self.life.ledger.close()
        self.life = Life(self.layout, clock=self.clock)

    # What the disk does

    @precondition(healthy)
    @rule()
    def break_disk(self) -> None:
        """The next write fails, and so does the next fsync."""
        assert self.life is not None
        writer = self.life.writer
        if any(path == writer.path for _, path in writing_descriptors()):  # not broken yet
            break_descriptor(writer.fd)

    @precondition(healthy)
    @rule(room=st.integers(0, 3000), count=st.integers(1, 40))
    def append_a_part(self, room: int, count: int) -> None:
        assert self.life is not None
        with no_file_beyond(self.life.writer.path.stat().st_size + room):
            self.unsynced += self.life.writer.append(count)

    @precondition(failing)
    @rule(room=st.integers(0, 4000))
    def recover_with_little_room(self, room: int) -> None:
        assert self.life is not None
        with no_file_beyond(room):
            self.life.writer.journal.recover()
        self.journal_did()

    @precondition(failing)
    @rule()
    def recover(self) -> None:
        assert self.life is not None
        assert self.life.writer.journal.recover()
        assert self.life.writer.journal.unsynced.rows == 0
        self.journal_did()

    # What ends it

    @precondition(alive)
    @rule(crash=crashes)
    def sinks_crash(self, crash: Crash) -> None:
        """The process dies within the work of its sinks."""
        assert self.life is not None
        self.life.drain(crash)
        self.kill()

    @precondition(alive)
    @rule()
    def kill(self) -> None:
        assert self.life is not None
        self.whole_until_now = self.life.writer.journal.failed is None
        self.life.kill()
        self.life = None

    @precondition(alive)
    @rule(kept=st.floats(0, 1), zeros=st.booleans(), forget=st.booleans())
    def cut_power(self, kept: float, *, zeros: bool, forget: bool) -> None:
        """Of what no fsync has covered, any part may be gone, or read as zeros."""
        assert self.life is not None
        journal, path = self.life.writer.journal, self.life.writer.path
        synced = journal.synced
        self.kill()
        self.whole_until_now = False
        assert path.name.startswith(f"{synced.segment:012d}")
        size = path.stat().st_size
        shorten(path, synced.offset + round(kept * (size - synced.offset)), zeros=zeros)
        if self.layout.cursor_file("csv").exists():
            cursor = json.loads(self.layout.cursor_file("csv").read_text())
            for growing in self.layout.csv.rglob(f"{cursor['segment']:012d}-*.csv"):
                length = growing.stat().st_size
                shorten(growing, cursor["bytes"] + round(kept * (length - cursor["bytes"])), zeros=zeros)
        if forget:
            self.layout.synced.write_bytes(bytes(24))

    @precondition(lambda self: self.life is None)
    @rule()
    def start(self) -> None:
        """A crash may have cost a tail of what was not synced, but `kill -9` costs nothing that the disk had taken."""
        self.life = Life(self.layout, clock=self.clock)
        survivors = recorded_sequences(self.layout)[len(self.synced) :]
        assert survivors == self.unsynced[: len(survivors)]
        if self.whole_until_now:
            assert survivors == self.unsynced
        self.synced += survivors
        self.unsynced = []

    # What must hold

    @invariant()
    def a_record_follower_has_what_is_synced(self) -> None:
        self.recorded += sequences(list(self.record.read()))
        if read_synced(self.layout).segment:
            assert self.recorded == self.synced
        else:  # a power cut took the place: until the next start a follower knows less
            assert self.recorded == self.synced[: len(self.recorded)]

    @invariant()
    def a_view_gets_no_row_twice(self) -> None:
        self.viewed += sequences(list(self.view.read()))
        assert all(earlier < later for earlier, later in zip(self.viewed, self.viewed[1:], strict=False))
        if healthy(self):
            assert set(self.synced) <= set(self.viewed)

    @precondition(alive)
    @rule()
    def a_reader_finds_what_is_synced(self) -> None:
        assert recorded_sequences(self.layout) == self.synced

    def end(self) -> None:
        """Stop in order, on a disk that works: what a broken one left without its end is ended by the next start."""
        if self.life is None:
            self.start()
        else:
            self.stop_and_start()
        assert self.life is not None
        self.life.stop()
        assert parquet_sequences(self.layout) == self.synced
        assert csv_sequences(self.layout) == self.synced
        closed = ledger_facts(self.layout, "segment.closed")
        accounts = {fact["segment"]: fact["counts"]["trades"] for fact in closed}
        assert sum(accounts.values()) == len(self.synced)
        assert list_segments(self.layout) == []

    def teardown(self) -> None:
        try:
            if self.life is not None:
                self.end()
        finally:
            self.record.close()
            self.view.close()
            shutil.rmtree(self.root)
            self.logs.__exit__(None, None, None)


def shorten(path: Path, size: int, *, zeros: bool) -> None:
    """Cut the file there; with `zeros` its old length stays."""
    length = path.stat().st_size
    os.truncate(path, size)
    if zeros:
        os.truncate(path, length)


@pytest.mark.filterwarnings("error")
def test_model() -> None:
    run_state_machine_as_test(
        JournalMachine,
        settings=settings(
            max_examples=2 * rounds(),
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )
