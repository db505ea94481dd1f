"""How far the journal is synced, published to every reader; and the number with which a run may begin."""

import json
from pathlib import Path

import pytest
from journals import SEGMENT, make_root

from ingestor.journal.cursor import Cursor, encode_synced, next_segment, read_synced


def test_what_was_published_is_read(tmp_path: Path) -> None:
    layout = make_root(tmp_path)
    layout.synced.write_bytes(encode_synced(Cursor(12, 1 << 40)))
    assert read_synced(layout) == Cursor(12, 1 << 40)


def test_before_the_first_run_nothing_is_synced(tmp_path: Path) -> None:
    assert read_synced(make_root(tmp_path)) == Cursor(0, 0)


def test_a_torn_or_changed_place_is_unknown(tmp_path: Path) -> None:
    layout = make_root(tmp_path)
    good = encode_synced(Cursor(3, 4096))
    torn = [good[:cut] for cut in range(len(good))] + [good + b"\0", bytes(len(good))]
    changed = [
        good[: bit // 8] + bytes([good[bit // 8] ^ 1 << bit % 8]) + good[bit // 8 + 1 :] for bit in range(len(good) * 8)
    ]
    for content in torn + changed:
        layout.synced.write_bytes(content)
        assert read_synced(layout) == Cursor(0, 0), content.hex()


def test_cursors_are_in_the_order_of_the_journal() -> None:
    assert sorted([Cursor(2, 0), Cursor(1, 900), Cursor(1, 8)]) == [Cursor(1, 8), Cursor(1, 900), Cursor(2, 0)]


class TestNextSegment:
    def test_the_first_is_one(self, tmp_path: Path) -> None:
        assert next_segment(make_root(tmp_path), 0) == 1

    def test_it_follows_the_ledger_the_journal_and_the_cursors(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        assert next_segment(layout, 7) == 8
        layout.open_segment(SEGMENT).touch()
        assert next_segment(layout, 0) == 2
        layout.cursor_file("csv").write_text(json.dumps({"segment": 5, "offset": 0, "bytes": 0}))
        assert next_segment(layout, 0) == 5  # everything before 5 is done with; 5 itself need not exist
        layout.cursor_file("sqlite").write_text(json.dumps({"segment": 5, "offset": 80}))
        assert next_segment(layout, 0) == 6

    @pytest.mark.parametrize("text", ["", "{", "[]", "7", '{"segment": "x", "offset": 0}', '{"segment": 3}', "\0\0\0"])
    def test_a_cursor_that_cannot_be_read_does_not_block_the_start(self, tmp_path: Path, text: str) -> None:
        layout = make_root(tmp_path)
        layout.cursor_file("csv").write_text(text)
        assert next_segment(layout, 2) == 3
