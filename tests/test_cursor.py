"""How far the journal is synced, published to every reader."""

from pathlib import Path

from journals import make_root

from ingestor.journal.records import Cursor, encode_synced, read_synced


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
