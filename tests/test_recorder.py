"""From the Buffer into a real journal: rows, counts, rejects, marks, and a disk that fails."""

import json
from dataclasses import replace
from pathlib import Path
from random import Random

import pyarrow as pa
import pytest
from blocks import AT_US, PING, frame, record_all
from frame_mutations import block
from recorders import Rig, make_rig
from requirements import of_tier

from ingestor.capture.buffer import FrameBlock
from ingestor.capture.recorder import BlockDecoder
from ingestor.capture.wall_clock import VenueTime
from ingestor.feeds import Decoded, DecodedColumns, Frames
from ingestor.feeds.finnhub import Finnhub
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


class OnlyColumns(Finnhub):
    """It never tells its trades as rows."""

    def decode(self, frames: Frames) -> Decoded:
        right = super().decode(frames)
        return DecodedColumns(right.trades, right.frame_of, right.rejects, right.notices)


def test_a_few_rows_become_what_columns_become() -> None:
    """Over two connections, amid frames of every kind."""
    random = Random(1)
    rows, columns = (BlockDecoder(one("ws://x", "k"), 1, VenueTime()) for one in (Finnhub, OnlyColumns))
    last: list[bytes] = [PING]
    few = 0
    for number in range(of_tier(3000, 500)):
        payloads = block(random, random.randint(1, 12), random.choice([0.0, 0.0, 0.3]))
        if random.random() < 0.1:
            payloads[0] = last[-1]
        last, received_us = payloads, [AT_US + 1000 * number + at for at in range(len(payloads))]
        one, other = (
            decoder.decode(FrameBlock(1 + number // 7 % 2, Frames(payloads, received_us)))
            for decoder in (rows, columns)
        )
        few += one.few is not None
        assert replace(one, few=None) == other
        assert one.batch.schema.equals(other.batch.schema, check_metadata=True)
        assert one.batch.nbytes == other.batch.nbytes
        one.batch.validate(full=True)
    assert few > number / 2


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
