"""Retention: whole days go, the ledger says so first, and coverage stays."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from journals import ledger_facts
from recordings import Print, Recording
from structlog.testing import capture_logs

import ingestor
from ingestor.dataset.maintenance import delete_expired
from ingestor.dataset.snapshot import list_days

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)


@pytest.fixture
def recording(tmp_path: Path) -> Recording:
    recording = Recording(tmp_path, ["AAPL"], started="2026-11-10")
    recording.prove(["AAPL"], "2026-11-10T00:00:00")
    recording.write(*(Print(f"2026-11-{day}T12:00", "AAPL", day, 10) for day in (15, 17, 18, 19)))
    recording.seal()
    for day in (14, 19):
        folder = recording.layout.csv / f"date=2026-11-{day}"
        folder.mkdir(parents=True)
        (folder / f"000000000009-202611{day}T000000Z-r000001.csv").write_text("")
    return recording


def days(recording: Recording, hours: float) -> list[str]:
    deleted = delete_expired(recording.layout, recording.ledger, timedelta(hours=hours), NOW)
    return [day.isoformat() for day in deleted]


def test_days_that_ended_longer_ago_are_deleted(recording: Recording) -> None:
    assert days(recording, 48) == ["2026-11-14", "2026-11-15", "2026-11-17"]
    assert ingestor.read_trades(recording.layout.root)["price"].to_list() == [18, 19]
    assert [path.name for path in recording.layout.csv.iterdir()] == ["date=2026-11-19"]
    assert [path.name for path in recording.layout.staging.iterdir() if path.suffix != ".lock"] == []


STORIES: dict[str, tuple[timedelta, datetime | None, timedelta, bool]] = {
    "the clock is right": (timedelta(0), NOW, timedelta(0), True),
    "the venue tells no time": (timedelta(0), None, timedelta(0), True),
    "two years ahead, and the venue tells no time": (timedelta(days=731), None, timedelta(days=300), False),
    "two years ahead": (timedelta(days=731), NOW, timedelta(days=300), False),
    "three days ahead": (timedelta(days=3), NOW, timedelta(days=2), False),
    "two years behind": (timedelta(days=-731), NOW, timedelta(0), False),
}
"""How far the clock is ahead, what the venue says, for how long no day is due in truth, and whether one is deleted."""


@pytest.mark.parametrize("story", STORIES)
def test_nothing_is_deleted_on_one_clocks_word(recording: Recording, story: str) -> None:
    ahead, venue, left, deleted = STORIES[story]
    before = list_days(recording.layout)
    oldest_ended = datetime.combine(before[0], datetime.min.time(), UTC) + timedelta(days=1)
    with capture_logs() as logs:
        gone = delete_expired(recording.layout, recording.ledger, NOW - oldest_ended + left, NOW + ahead, venue)
    assert bool(gone) is deleted
    assert (list_days(recording.layout) == before) is not deleted
    assert ("retention.waiting" in {one["event"] for one in logs}) is (ahead > timedelta(0))


@pytest.mark.parametrize(
    ("hours", "left"), [(36.01, [18, 19]), (36, [19]), (12.01, [19]), (12, []), (10_000, [15, 17, 18, 19])]
)
def test_to_the_moment(recording: Recording, hours: float, left: list[float]) -> None:
    days(recording, hours)
    assert ingestor.read_trades(recording.layout.root)["price"].to_list() == left


def test_the_ledger_says_so_and_coverage_stays(recording: Recording) -> None:
    before = ingestor.read_coverage(recording.layout.root, end="2026-11-18")
    days(recording, 48)
    facts = ledger_facts(recording.layout, "day.deleted")
    assert [(fact["date"], fact["retention_s"]) for fact in facts] == [
        (f"2026-11-{day}", 172_800.0) for day in (14, 15, 17)
    ]
    assert ingestor.read_coverage(recording.layout.root, end="2026-11-18").equals(before)


def test_nothing_is_deleted_that_the_ledger_does_not_tell(recording: Recording) -> None:
    """Where the lock is refused after the ledger's entry, the day is still whole, and goes the next time."""
    recording.layout.staging.rename(recording.layout.root / "away")
    with pytest.raises(OSError, match="2026-11-14"):
        days(recording, 48)
    assert 15 in ingestor.read_trades(recording.layout.root)["price"].to_list()
    assert [fact["date"] for fact in ledger_facts(recording.layout, "day.deleted")] == ["2026-11-14"]


def test_nothing_to_delete(recording: Recording) -> None:
    assert days(recording, 1000) == []
    assert ledger_facts(recording.layout, "day.deleted") == []
