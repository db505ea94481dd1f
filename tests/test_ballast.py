"""Room that is kept for a stop on a full disk."""

from pathlib import Path

from journals import Writer, break_descriptor, journal_sequences, make_root, no_file_beyond


def test_a_stop_gives_it_back_only_where_it_must(tmp_path: Path) -> None:
    layout = make_root(tmp_path)
    writer = Writer(layout)
    writer.append()
    writer.journal.close()
    assert layout.ballast.stat().st_blocks * 512 >= 16 << 20

    failing = Writer(layout, run=2, segment=2)
    numbers = failing.append()
    break_descriptor(failing.fd)
    failing.append()
    failing.journal.close()
    assert not layout.ballast.exists()
    assert journal_sequences(layout, synced_only=True)[-6:-3] == numbers


def test_no_room_for_it_is_no_reason_not_to_record(tmp_path: Path) -> None:
    layout = make_root(tmp_path)
    with no_file_beyond(1 << 20):
        writer = Writer(layout)
        numbers = writer.append()
        writer.journal.sync()
    assert layout.ballast.stat().st_blocks == 0
    assert journal_sequences(layout, synced_only=True) == numbers
