"""Hours of US stocks."""

from datetime import datetime
from zoneinfo import ZoneInfo

import pyarrow as pa
import pytest
from requirements import of_tier

from ingestor.capture.market_calendar import find_phase
from ingestor.config.sections import ConnectionSettings
from ingestor.dataset.market_rules import Session, in_session
from ingestor.us_market import OVERNIGHT

NEW_YORK = ZoneInfo("America/New_York")


def ms(local: str) -> int:
    return round(datetime.fromisoformat(local).replace(tzinfo=NEW_YORK).timestamp() * 1000)


@pytest.mark.parametrize(
    ("local", "regular", "extended"),
    [
        ("2026-11-20T03:59:59.999", False, False),
        ("2026-11-20T04:00", False, True),
        ("2026-11-20T09:29:59.999", False, True),
        ("2026-11-20T09:30", True, True),
        ("2026-11-20T15:59:59.999", True, True),
        ("2026-11-20T16:00", False, True),
        ("2026-11-20T20:00", False, False),
        ("2026-11-21T12:00", False, False),  # Saturday
        ("2026-11-26T12:00", False, False),  # Thanksgiving
        ("2026-11-27T12:59:59.999", True, True),
        ("2026-11-27T13:00", False, True),
        ("2026-11-27T17:00", False, False),
        ("2001-09-12T12:00", False, False),
        ("2026-11-22T12:00", False, False),
        ("2026-11-23T12:00", True, True),  # Monday
        ("2026-07-20T09:30", True, True),  # summer time
        ("2026-03-06T09:30", True, True),  # the last winter day
        ("2026-03-09T09:30", True, True),  # the first summer day
        ("2026-10-30T09:30", True, True),
        ("2026-11-02T09:30", True, True),
    ],
)
def test_hours(local: str, regular: bool, extended: bool) -> None:
    assert in_session(pa.array([ms(local)]), "regular").to_pylist() == [regular]
    assert in_session(pa.array([ms(local)]), "extended").to_pylist() == [extended]


@pytest.mark.parametrize(
    ("local", "night"),
    [
        ("2026-11-22T19:59:59.999", False),
        ("2026-11-22T20:00", True),  # Sunday evening
        ("2026-11-23T03:59:59.999", True),
        ("2026-11-23T04:00", False),
        ("2026-11-23T12:00", False),
        ("2026-11-23T23:59", True),
        ("2026-11-20T20:00", False),  # Friday evening
        ("2026-11-21T02:00", False),
        ("2026-11-25T21:00", False),  # before Thanksgiving
        ("2026-11-26T02:00", False),
        ("2026-11-26T20:00", True),  # before the early close
        ("2026-11-27T03:00", True),
        ("2026-11-27T20:00", False),
        ("2026-03-08T20:00", True),  # the evening of the first summer day
        ("2026-11-01T20:00", True),
        ("2026-11-01T01:30", False),
    ],
)
def test_the_night_belongs_to_the_day_that_comes(local: str, night: bool) -> None:
    assert in_session(pa.array([ms(local)]), "overnight").to_pylist() == [night]
    when = datetime.fromisoformat(local).replace(tzinfo=NEW_YORK)
    assert (find_phase("AAPL", when, night=OVERNIGHT) == "overnight") is night
    assert find_phase("AAPL", when) != "overnight"


def test_the_hours_of_a_night_are_a_setting() -> None:
    assert ConnectionSettings().night is None
    assert ConnectionSettings.model_validate({"overnight": "20:00-04:00"}).night == OVERNIGHT
    assert ConnectionSettings.model_validate({"overnight": "21:30-04:00"}).night == 21 * 60 + 30


@pytest.mark.parametrize("hours", ["20:00", "20-4", "08:00-04:00", "20:00-09:30", "25:00-04:00", "20:00-04:00-5"])
def test_hours_that_are_no_night(hours: str) -> None:
    with pytest.raises(ValueError, match="must be hours of New York"):
        ConnectionSettings.model_validate({"overnight": hours})


@pytest.mark.parametrize("session", ["regular", "extended", "overnight"])
def test_a_year_at_once_is_as_each_moment_alone(session: Session) -> None:
    assert session != "all"
    moments = [ms("2026-01-01T00:00") + step * 4_999_000 * of_tier(1, 8) for step in range(of_tier(6000, 750))]
    alone = [in_session(pa.array([at_ms]), session)[0].as_py() for at_ms in moments]
    assert in_session(pa.array(moments), session).to_pylist() == alone
    assert any(alone)


def test_no_moment() -> None:
    assert in_session(pa.array([], pa.int64()), "regular").to_pylist() == []
