"""When a venue is called upon again, and which of its refusals ends the recording."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from recorders import KEY, WAITS, eventually, make_rig, running
from sessions import SOON, VENUE, listening, recording
from simulated_venues import running_venue
from structlog.testing import capture_logs

from ingestor.config.feeds import JsonSettings
from ingestor.errors import FeedRefused
from ingestor.feeds.json_map import JsonMap
from ingestor.simulator.faults import Abort, Answer, Mute
from ingestor.simulator.venue import VenueSettings


def test_a_venue_that_was_never_reached_was_asked_for_nothing(tmp_path: Path) -> None:
    with listening() as (url, server):
        server.close()
        with capture_logs() as logs, running(make_rig(tmp_path, url)) as rig:
            eventually(lambda: [one for one in logs if one["event"] == "connection.retried"], "a second attempt")
    assert rig.facts() == []


def test_after_a_connection_of_use_the_next_one_is_opened_at_once(tmp_path: Path) -> None:
    with capture_logs() as logs, recording(tmp_path, Abort(after_s=2.5)) as (_, rig):
        rig.wait_fact("symbol.proven", connection=3)
    assert [one for one in logs if one["event"] == "connection.retried"] == []


def test_a_connection_that_brought_nothing_makes_the_next_one_wait(tmp_path: Path) -> None:
    with capture_logs() as logs, recording(tmp_path, Mute(), Abort(after_s=0.0)) as (_, rig):
        rig.wait_fact("connection.lost", 3)
    attempts = [one["attempt"] for one in logs if one["event"] == "connection.retried"]
    assert attempts[:2] == [1, 2]


# The venue says no


def test_a_key_that_was_never_accepted_ends_it(tmp_path: Path) -> None:
    with running_venue(replace(VENUE, keys=frozenset({"another"}))) as venue:
        rig = make_rig(tmp_path, venue.url, waits=SOON)
        with pytest.raises(FeedRefused) as raised:
            rig.session.run()
    assert KEY not in str(raised.value)
    assert [(fact["fact"], fact["cause"]) for fact in rig.facts()] == [("gap.opened", "refused")]  # no crash


def test_a_401_for_a_key_that_was_accepted_before_is_retried(tmp_path: Path) -> None:
    with recording(tmp_path / "data") as (_, rig):
        rig.wait_trades()
    with capture_logs() as logs, recording(tmp_path / "data", Answer(connection=1, status=401), run=2) as (_, rig):
        rig.wait_trades()
    (retried,) = [one for one in logs if one["event"] == "connection.retried"]
    assert (retried["log_level"], retried["wait_s"]) == ("error", 0.2)
    assert rig.errors == []


@pytest.mark.parametrize(("status", "level"), [(403, "error"), (429, "warning"), (200, "warning"), (524, "warning")])
def test_any_other_refusal_is_retried_even_the_first_time(tmp_path: Path, status: int, level: str) -> None:
    with capture_logs() as logs, recording(tmp_path, Answer(connection=1, status=status)) as (_, rig):
        rig.wait_trades()
    (retried,) = [one for one in logs if one["event"] == "connection.retried"]
    assert retried["log_level"] == level
    assert str(status) in retried["reason"]


@pytest.mark.parametrize(("status", "wait_s"), [(401, 300.0), (403, 300.0), (429, 30.0)])
def test_a_venue_that_said_no_is_left_alone_for_a_while(tmp_path: Path, status: int, wait_s: float) -> None:
    with recording(tmp_path / "data") as (_, rig):
        rig.wait_trades()
    fault = Answer(status=status)
    with capture_logs() as logs, recording(tmp_path / "data", fault, run=2, waits=WAITS, backoff_max=1.0):
        (retried,) = eventually(lambda: [one for one in logs if one["event"] == "connection.retried"], "a refusal")
        assert retried["wait_s"] == wait_s


def test_a_redirect_is_not_followed_and_the_key_goes_nowhere_else(tmp_path: Path) -> None:
    with listening() as (elsewhere, server):
        fault = Answer(connection=1, status=302, location=f"{elsewhere}/x")
        with capture_logs() as logs, recording(tmp_path, fault) as (_, rig):
            rig.wait_trades()
        server.settimeout(0)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert "302" in next(one["reason"] for one in logs if one["event"] == "connection.retried")


# Logins by message

LOGIN: dict[str, Any] = {
    "type": "json",
    "url": "wss://venue",
    "never_closes": True,
    "login": {
        "send": '{"auth":"{key}","secret":"{secret}"}',
        "after": {"status": "connected"},
        "accepted": {"status": "welcome"},
        "refused": {"status": "denied"},
        "timeout": "1s",
    },
    "heartbeat": {"every": "1s", "send": "ping", "answer": "pong"},
    "subscribe": '{"ask":["{symbol}"]}',
    "symbols_per_message": 2,
    "limits": {"messages_per_second": 20},
}
ASKED = ("A", "B", "C")


def with_login(key: str = KEY, **changes: Any) -> tuple[VenueSettings, JsonMap]:
    """A venue that takes `key`, and the feed of a client that has KEY."""
    settings = JsonSettings.model_validate(LOGIN | changes)
    return replace(VENUE, protocol="json", json_feed=settings, keys=frozenset({key})), JsonMap(settings, KEY, "s3cret")


def of_venue(feed: JsonMap, url: str) -> JsonMap:
    return JsonMap(feed._settings.model_copy(update={"url": url}), KEY, "s3cret")


def test_after_the_login_it_asks_and_keeps_the_connection_by_its_heartbeat(tmp_path: Path) -> None:
    settings, feed = with_login()
    with (
        running_venue(settings) as venue,
        running(make_rig(tmp_path, venue.url, ASKED, feed=of_venue(feed, venue.url))) as rig,
    ):
        for symbol in ASKED:
            rig.wait_fact("symbol.proven", symbol=symbol)
        eventually(
            lambda: rig.recorder.counts.notices >= 5 or None, "three heartbeats answered"
        )  # and connected, welcome
    assert rig.facts("connection.lost") == []
    assert rig.recorder.counts.rejected_frames == 0


def test_a_login_that_is_refused_and_never_was_accepted_ends_it(tmp_path: Path) -> None:
    settings, feed = with_login("another")
    with running_venue(settings) as venue:
        rig = make_rig(tmp_path, venue.url, ASKED, feed=of_venue(feed, venue.url))
        with pytest.raises(FeedRefused, match="refused the login") as raised:
            rig.session.run()
    assert KEY not in str(raised.value)
    assert rig.facts("gap.opened")[-1]["cause"] == "refused"


def test_a_login_that_was_accepted_before_is_tried_again(tmp_path: Path) -> None:
    settings, feed = with_login()
    with (
        running_venue(settings) as venue,
        running(make_rig(tmp_path, venue.url, ASKED, feed=of_venue(feed, venue.url))) as rig,
    ):
        rig.wait_fact("symbol.proven", symbol="A")
    settings, feed = with_login("another")
    with (
        capture_logs() as logs,
        running_venue(settings) as venue,
        running(make_rig(tmp_path, venue.url, ASKED, feed=of_venue(feed, venue.url), waits=SOON, run=2)) as rig,
    ):
        eventually(lambda: [one for one in logs if one["event"] == "connection.retried"][1:], "a second attempt")
    retried = next(one for one in logs if one["event"] == "connection.retried")
    assert (retried["log_level"], retried["wait_s"]) == ("error", 0.2)
    assert rig.errors == []
    assert rig.facts("gap.closed") == []  # what a venue says before it lets us in ends no blindness


def test_a_login_without_an_answer_is_given_up(tmp_path: Path) -> None:
    settings, _ = with_login()
    _, feed = with_login(login={**LOGIN["login"], "accepted": {"status": "else"}})
    with (
        capture_logs() as logs,
        running_venue(settings) as venue,
        running(make_rig(tmp_path, venue.url, ASKED, feed=of_venue(feed, venue.url), waits=SOON)) as rig,
    ):
        rig.wait_fact("connection.lost")
    assert "no answer to the login for 1 s" in str(logs)
