"""From the Buffer into a real journal: rows, counts, rejects, marks, and a disk that fails."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
from blocks import AT_US, PING, frame, record_all
from recorders import Rig, make_rig

from ingestor.metrics import Counts


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return make_rig(tmp_path, "ws://127.0.0.1:9")


def test_rows_have_their_key_their_time_and_their_place(rig: Rig) -> None:
    rows = record_all(
        rig,
        (1, [frame({"p": 1.0}, {"p": 2.0, "s": "MSFT"}), PING], AT_US),
        (1, [frame({"p": 3.0})], AT_US + 500),
    )
    assert rows["price"].to_pylist() == [1.0, 2.0, 3.0]
    assert rows["symbol"].to_pylist() == ["AAPL", "MSFT", "AAPL"]
    assert rows["sequence"].to_pylist() == [(1 << 40) + n for n in range(3)]
    assert rows["received_at"].cast(pa.int64()).to_pylist() == [AT_US, AT_US, AT_US + 500]
    assert rig.recorder.counts == Counts(frames=3, decoded=2, notices=1, trades=3)


def test_what_is_refused_is_kept_under_the_runs_frame_and_the_trades_place(rig: Rig) -> None:
    puts = [
        (1, [frame({}), b"junk"], AT_US),
        (1, [frame({"p": -1}, {}, {"p": "x"}, {"t": 5})], AT_US),
    ]
    rows = record_all(rig, *puts)
    assert rows.num_rows == 2
    (path,) = rig.layout.rejects.glob("*.jsonl")
    told = [json.loads(line) for line in path.read_text().splitlines()]
    places = {(one["frame"], one["trade"], one["reason"]) for one in told}
    assert places == {(1, None, "not_json"), (2, 0, "bad_price"), (2, 2, "bad_price"), (2, 3, "bad_time")}
    assert rig.recorder.counts == Counts(frames=3, decoded=2, rejected_frames=1, trades=2, rejected_trades=3)
    assert rig.recorder.counts.balanced


def test_a_frame_equal_to_the_one_before_it_on_its_connection_is_marked(rig: Rig) -> None:
    same, other = frame({"p": 1.0}), frame({"p": 2.0})
    rows = record_all(
        rig,
        (1, [same, same, other, same], AT_US),
        (1, [same, PING, same], AT_US),
        (2, [same], AT_US),
    )
    assert rows["repeated"].to_pylist() == [False, True, False, False, True, False, False]
