"""The records that no fsync has covered."""

from ingestor.journal.writer import Unsynced


def test_records_are_kept_in_order_until_they_are_synced() -> None:
    unsynced = Unsynced()
    unsynced.add(2, [b"one"])
    unsynced.add(0, [b"two", b"three"])
    assert (list(unsynced), len(unsynced), unsynced.rows) == ([(2, [b"one"]), (0, [b"two", b"three"])], 2, 2)
    unsynced.clear()
    assert (list(unsynced), len(unsynced), unsynced.rows) == ([], 0, 0)


def test_the_age_is_that_of_the_oldest() -> None:
    unsynced = Unsynced()
    assert unsynced.age_s == 0.0
    unsynced.add(1, [b"one"])
    first_s = unsynced.age_s
    unsynced.add(1, [b"two"])
    assert unsynced.age_s >= first_s
    unsynced.clear()
    assert unsynced.age_s == 0.0


def test_it_is_full_by_bytes() -> None:
    unsynced = Unsynced()
    half = bytes(8 << 20)
    unsynced.add(1, [half])
    assert not unsynced.full
    unsynced.add(1, [half])
    assert unsynced.full
    unsynced.clear()
    assert not unsynced.full
