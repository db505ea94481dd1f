"""An open connection that brings nothing any more is given up. What its trades should be like: test_trade_watch."""

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from recorders import Rig, make_rig
from sessions import recording

from ingestor.capture.connection_log import ConnectionRecord
from ingestor.errors import Stalled
from ingestor.ledger import now_us
from ingestor.simulator.faults import Mute, Trickle

CONNECTION: Any = SimpleNamespace(bytes_received=0, pongs=0, ping=lambda: None, send=lambda _: None)
"""One that takes what is said, and says nothing."""


def test_silence_is_a_stall(tmp_path: Path) -> None:
    fault = Mute(connection=1, after_s=0.3, pings=False)
    with recording(tmp_path, fault, silence=1.0, ping_interval=1.0) as (_, rig):
        lost = rig.wait_fact("connection.lost")
        rig.wait_fact("gap.closed", cause="stall")
    assert "nothing came" in lost["reason"]


def test_bytes_that_never_make_a_frame_are_a_stall(tmp_path: Path) -> None:
    fault = Trickle(connection=1, after_s=0.3, pause_s=0.05)
    with recording(tmp_path, fault, silence=1.0, ping_interval=1.0) as (_, rig):
        lost = rig.wait_fact("connection.lost")
        rig.wait_fact("gap.closed", cause="stall")
    assert "never a whole frame" in lost["reason"]


def test_a_ping_that_this_venue_no_longer_answers_is_a_stall(tmp_path: Path) -> None:
    fault = Mute(connection=1, after_s=1.5, pings=False)
    with recording(tmp_path, fault, silence=60.0, ping_interval=0.5) as (_, rig):
        lost = rig.wait_fact("connection.lost")
        rig.wait_fact("gap.closed", cause="stall")
    assert "no answer to a ping" in lost["reason"]


def test_a_first_connection_that_says_nothing_is_a_gap_from_its_request(tmp_path: Path) -> None:
    fault = Mute(connection=1, pings=False)
    with recording(tmp_path, fault, silence=1.0, ping_interval=1.0) as (_, rig):
        rig.wait_fact("gap.closed", cause="stall")
    assert rig.facts("gap.opened")[0]["since"] <= rig.facts("symbols.requested")[0]["at"]


# A machine that stands still


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """Of a connection that has just opened; it is silent after four seconds, a drought after eight."""
    rig = make_rig(tmp_path, "ws://127.0.0.1:9", silence=4.0, ping_interval=1.0)
    with closing(rig.ledger), closing(rig.journal):
        yield rig


def begin(rig: Rig) -> ConnectionRecord:
    life = ConnectionRecord(1, time.monotonic(), now_us(), 0, now_us())
    rig.monitor.begin(CONNECTION, life)
    return life


def test_the_silence_of_a_machine_that_stood_still_is_judged_once_it_has_listened(rig: Rig) -> None:
    life = begin(rig)
    for second in (0.5, 1.0, 11.0, 11.5, 12.0):
        rig.monitor.check(CONNECTION, life, life.opened_s + second)
    with pytest.raises(Stalled, match="nothing came"):
        rig.monitor.check(CONNECTION, life, life.opened_s + 12.5)


def test_time_in_which_the_machine_stood_still_is_no_drought(rig: Rig) -> None:
    """Frames come, and no trade: eight seconds of that, from the first look on, were listened to at 18.5 s."""
    life = begin(rig)
    asked_again: list[float] = []
    for second in (0.5, 1.0, *(11 + half / 2 for half in range(20))):
        life.frames += 1
        rig.monitor.check(CONNECTION, life, life.opened_s + second)
        asked_again += [second] * (len(rig.facts("symbols.retried")) - len(asked_again))
    assert asked_again == [18.5]
