"""Upkeep: what is due is done once a day, by a child that is ended with its recorder."""

import threading
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from recorders import eventually
from recordings import Print, Recording

from ingestor.closed_days import close_days
from ingestor.dataset.compact import locked_maintenance
from ingestor.dataset.maintenance import GRACE, Maintenance, MaintenanceLoop
from ingestor.dataset.snapshot import date_folder, list_days, list_names
from ingestor.layout import locked_date
from ingestor.ledger import read_all_facts

DAY = date(2026, 1, 19)
LONG_AGO = datetime(2026, 1, 20, 12, tzinfo=UTC)


@pytest.fixture
def recording(tmp_path: Path) -> Recording:
    recording = Recording(tmp_path, started="2026-01-18")
    for number in range(3):
        recording.write(Print("2026-01-19T12:00", "AAPL", number, 10))
        recording.seal()
    return recording


def close_ledger(recording: Recording) -> None:
    """Nothing is left to be made data of."""
    list(close_days(recording.layout, date.max))


def names(recording: Recording, day: date = DAY) -> tuple[str, ...]:
    return list_names(date_folder(recording.layout, day))


def tick_until_compacted(upkeep: Maintenance, recording: Recording, now: datetime) -> None:
    """While its child works; the child ends by itself."""
    upkeep.tick(now)
    assert upkeep.child is not None
    assert upkeep.child.wait(60) == 0
    upkeep.tick(now)
    assert upkeep.child is None
    assert names(recording) == ("compacted-000000000003-0001of0001.parquet",)


def test_a_child_compacts_what_is_due(recording: Recording) -> None:
    tick_until_compacted(Maintenance(recording.layout, recording.ledger, None), recording, LONG_AGO)


def test_once_a_day_after_the_grace(recording: Recording) -> None:
    close_ledger(recording)
    upkeep = Maintenance(recording.layout, recording.ledger, None)
    midnight = datetime(2026, 1, 20, tzinfo=UTC)
    upkeep.tick(midnight + GRACE - timedelta(seconds=1))
    assert upkeep.child is None
    tick_until_compacted(upkeep, recording, midnight + GRACE)
    recording.write(Print("2026-01-19T12:00", "AAPL", 4, 10))
    recording.seal()
    upkeep.tick(midnight + timedelta(hours=24))
    assert upkeep.child is None
    upkeep.tick(midnight + timedelta(hours=24) + GRACE)
    assert upkeep.child is not None
    upkeep.close()
    assert upkeep.child is None


def test_no_child_where_nothing_is_to_be_done(recording: Recording) -> None:
    close_ledger(recording)
    upkeep = Maintenance(recording.layout, recording.ledger, None)
    upkeep.tick(datetime(2026, 1, 19, 23, tzinfo=UTC))
    assert upkeep.child is None


def test_retention(recording: Recording) -> None:
    upkeep = Maintenance(recording.layout, recording.ledger, 86400.0)
    upkeep.tick(LONG_AGO)
    assert list_days(recording.layout) == [DAY]
    upkeep.close()
    upkeep.tick(LONG_AGO + timedelta(days=1))
    upkeep.close()
    assert list_days(recording.layout) == []


def test_a_start_clears_what_a_crash_left_unless_somebody_is_at_work(recording: Recording) -> None:
    left = recording.layout.staging / "date=2026-01-19.compacted"
    left.mkdir()
    with locked_maintenance(recording.layout):
        Maintenance(recording.layout, recording.ledger, None)
        assert left.exists()
    Maintenance(recording.layout, recording.ledger, None)
    assert not left.exists()


def test_each_file_that_goes_is_progress(recording: Recording) -> None:
    turns: list[None] = []
    upkeep = Maintenance(recording.layout, recording.ledger, 86400.0, turned=lambda: turns.append(None))
    before = len(turns)
    files = len(names(recording))
    upkeep.tick(LONG_AGO + timedelta(days=1))
    upkeep.close()
    assert list_days(recording.layout) == []
    assert len(turns) - before >= files


def test_a_date_that_cannot_be_had_holds_up_its_own_thread_only(recording: Recording) -> None:
    """Whoever asks it to stop goes on, and its last turn is seen to grow old."""
    loop = MaintenanceLoop(recording.layout, recording.ledger, 86400.0)
    thread = threading.Thread(target=loop.run)
    with locked_date(recording.layout, DAY):
        thread.start()
        eventually(lambda: any(fact["fact"] == "day.deleted" for fact in facts(recording)), "the deletion")
        turned_at_s = loop.turned_at_s
        loop.stop.set()
        assert thread.is_alive()
        assert loop.turned_at_s == turned_at_s
    thread.join()
    assert list_days(recording.layout) == []


def facts(recording: Recording) -> list[dict[str, Any]]:
    return list(read_all_facts(recording.layout))
