"""Segments that are being written."""

import stat
from pathlib import Path

import pytest
from journals import Clock, make_root, no_file_beyond

from ingestor.journal.records import Cursor, Kind, encode_reasons
from ingestor.journal.scan import read_headers, read_identity
from ingestor.journal.writer import Segments
from ingestor.layout import Layout, list_segments
from ingestor.schema import FORMAT_VERSION, TRADES


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return make_root(tmp_path)


@pytest.fixture
def segments(layout: Layout) -> Segments:
    return Segments(layout, 3, 7, "finnhub", TRADES, Clock())


def test_a_segment_says_whose_it_is_and_what_it_continues(layout: Layout, segments: Segments) -> None:
    opened = segments.open(None, None)
    segments.open(opened.id, None).discard()
    segments.open(opened.id, Cursor(7, 88)).close()
    opened.close()
    first, second = list_segments(layout)
    assert read_identity(first.path) == {
        "format": FORMAT_VERSION,
        "segment": str(first.id),
        "feed": "finnhub",
        "previous": 6,
        "continues": None,
    }
    assert (first.id.number, first.id.run, second.id.number) == (7, 3, 9)
    identity = read_identity(second.path) or {}
    assert (identity["previous"], identity["continues"]) == (7, [7, 88])
    assert stat.S_IMODE(first.path.stat().st_mode) == 0o640


def test_records_stand_behind_one_another_and_its_end_is_known(layout: Layout, segments: Segments) -> None:
    segment = segments.open(None, None)
    segment.write(encode_reasons({"bad_time": 1}))
    segment.write_end()
    segment.sync()
    (file,) = list_segments(layout)
    assert [header.kind for header in read_headers(file.path, 0, None)] == [
        Kind.START,
        Kind.SCHEMA,
        Kind.REASONS,
        Kind.END,
    ]
    assert segment.end == Cursor(7, file.path.stat().st_size)
    segment.close()


def test_what_can_not_be_opened_whole_leaves_nothing_and_its_number_is_not_taken_again(
    layout: Layout, segments: Segments
) -> None:
    with no_file_beyond(0), pytest.raises(OSError, match="File too large"):
        segments.open(None, None)
    assert list_segments(layout) == []
    segments.open(None, None).close()
    assert [file.id.number for file in list_segments(layout)] == [8]


def test_a_segment_that_is_discarded_is_gone(layout: Layout, segments: Segments) -> None:
    segments.open(None, None).discard()
    assert list_segments(layout) == []
