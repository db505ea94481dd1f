"""How a recording is: what of it is a problem, and that it reads the same elsewhere."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prepared import prepared_recording

from ingestor.operations.collector import Watch
from ingestor.operations.recorder_status import RecorderStatus, SinkLag, decode_status, encode_status, find_problems


@pytest.fixture
def healthy(tmp_path: Path) -> RecorderStatus:
    """A recording that was just prepared, as if its venue had answered."""
    with prepared_recording(tmp_path) as recording:
        status = Watch(recording).look()
    return replace(status, link=replace(status.link, connected=True, answered=True))


def test_a_healthy_recording_has_no_problem(healthy: RecorderStatus) -> None:
    assert find_problems(healthy) == []


@pytest.mark.parametrize(
    ("part", "change", "says"),
    [
        ("link", {"connected": False, "answered": False}, "not connected to the venue"),
        ("link", {"answered": False}, "subscribed, and nothing has come yet"),
        ("link", {"silence_s": 76.0}, "mute: nothing has come for 76 s"),
        ("link", {"gap": "stall"}, "blind (connection stalled): frames come, but no trades"),
        ("flow", {"turned_s": 11.0}, "not writing: the recorder has stood still for 11 s"),
        ("flow", {"lag_s": 12.0}, "the recorder is 12 s late"),
        ("flow", {"rejects_flood": True}, "rejects are flooding: see rejects/ for what can't be read"),
        ("flow", {"conservation_violations": 2}, "conservation was violated 2 times: see the log"),
        ("disk", {"failing": True}, "not writing: the disk refuses the journal"),
        ("disk", {"free_bytes": 5 << 20, "floor_bytes": 9 << 20}, "disk low: 5 MB free, storage.min_free is 9MB"),
        ("disk", {"sinks": (SinkLag("csv", 7, 2101.0),)}, "csv is far behind: 7 rows, 2101 s"),
    ],
)
def test_each_problem_is_a_sentence(healthy: RecorderStatus, part: str, change: dict[str, Any], says: str) -> None:
    ill = replace(healthy, **{part: replace(getattr(healthy, part), **change)})
    assert find_problems(ill) == [says]


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("link", {"silence_s": 74.0}),  # Finnhub speaks once a minute
        ("flow", {"turned_s": 9.0, "lag_s": 9.0}),
        ("disk", {"sinks": (SinkLag("parquet", 100_000, 1000.0),)}),  # an open segment is not a lag
    ],
)
def test_what_is_usual_is_no_problem(healthy: RecorderStatus, part: str, change: dict[str, Any]) -> None:
    assert find_problems(replace(healthy, **{part: replace(getattr(healthy, part), **change)})) == []


def test_a_status_arrives_as_it_was_sent(healthy: RecorderStatus) -> None:
    assert decode_status(encode_status(healthy)) == healthy
    with pytest.raises(ValueError, match="validation error"):
        decode_status(b"{}")
