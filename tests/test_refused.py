"""What of a block is refused, and where it stood."""

import pyarrow as pa

from ingestor.capture.rejects import Refused, find_refused
from ingestor.feeds import Decoded, DecodedColumns, Frames, Reject
from ingestor.schema import VENUE_TRADES

FRAMES = Frames([b"first", b"second", b"third"], [10, 20, 30])


def decoded(frame_of: list[int], rejects: list[Reject]) -> Decoded:
    rows = VENUE_TRADES.empty_table().to_batches()
    return DecodedColumns(
        rows[0] if rows else pa.RecordBatch.from_pylist([], VENUE_TRADES), pa.array(frame_of), rejects, []
    )


def test_frames_and_trades_are_told_by_the_runs_count_of_frames() -> None:
    rejects = [Reject(0, None, "not_json"), Reject(2, 1, "bad_price")]
    assert find_refused(FRAMES, decoded([1, 2], rejects), [], 100) == [
        Refused(100, None, "not_json", 10, b"first"),
        Refused(102, 1, "bad_price", 30, b"third"),
    ]


def test_a_trade_that_is_not_sane_has_its_place_among_all_trades_of_its_frame() -> None:
    """Frame 1 held four trades: the first and the third could not be read."""
    rejects = [Reject(1, 0, "bad_price"), Reject(1, 2, "bad_time")]
    refused = find_refused(FRAMES, decoded([0, 1, 1, 2], rejects), [(0, "a"), (1, "b"), (2, "c"), (3, "d")], 0)
    assert [(one.frame, one.trade, one.reason) for one in refused[2:]] == [
        (0, 0, "a"),
        (1, 1, "b"),
        (1, 3, "c"),
        (2, 0, "d"),
    ]


def test_nothing_is_refused() -> None:
    assert find_refused(FRAMES, decoded([0, 1, 2], []), [], 0) == []
