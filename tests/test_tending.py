"""An open connection that brings nothing any more is given up. What its trades should be like: test_trade_watch."""

from pathlib import Path

import pytest
from sessions import recording

from ingestor.simulator.faults import Mute, Trickle


def test_silence_is_a_stall(tmp_path: Path) -> None:
    fault = Mute(connection=1, after_s=0.3, pings=False)
    with recording(tmp_path, fault, silence=1.0, ping_interval=1.0) as (_, rig):
        lost = rig.wait_fact("connection.lost")
        rig.wait_fact("gap.closed", cause="stall")
    assert "nothing came" in lost["reason"]


@pytest.mark.parametrize("fast_frames", [True, False])
def test_bytes_that_never_make_a_frame_are_a_stall(tmp_path: Path, fast_frames: bool) -> None:
    fault = Trickle(connection=1, after_s=0.3, pause_s=0.05)
    with recording(tmp_path, fault, silence=1.0, ping_interval=1.0, fast_frames=fast_frames) as (_, rig):
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
