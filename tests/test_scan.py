"""What a segment's file holds, however damaged."""

import random
from pathlib import Path

from journals import opened, whole

from ingestor.journal.records import MAGIC, Header, Kind, encode_start
from ingestor.journal.scan import end_of_records, find_record, last_received_us, read_headers, read_identity
from ingestor.metrics import Counts

HEADER = Header(Kind.BLOCK, Counts(frames=9, trades=5), last_received_us=1_700_000_000_000_009)


def test_a_segment_says_whose_it_is(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_bytes(b"".join(map(bytes, encode_start({"feed": "finnhub", "continues": [3, 80]}))))
    assert read_identity(path) == {"feed": "finnhub", "continues": [3, 80]}


def test_the_last_receive_time_is_found_behind_damage(tmp_path: Path) -> None:
    early, late = (
        whole(Header(Kind.BLOCK, last_received_us=5), b"x"),
        whole(Header(Kind.BLOCK, last_received_us=9), b""),
    )
    path = tmp_path / "s"
    path.write_bytes(late + b"junk" + early)  # the clock had been set back
    assert last_received_us(path) == 5
    path.write_bytes(early + b"junk" + late)
    assert last_received_us(path) == 9
    path.write_bytes(b"")
    assert last_received_us(path) == 0


def test_the_next_record_is_found_behind_any_damage() -> None:
    good = whole(HEADER, b"good")
    dice = random.Random(2)
    for length in (1, 3, 4, 79, 80, 81, 1000, (1 << 20) - 2, (1 << 20) + 1):
        damage = dice.randbytes(length)
        with opened(damage + good) as fd:
            assert find_record(fd, 0, length + len(good)) == length


def test_the_magic_within_damage_is_no_record() -> None:
    good = whole(HEADER, b"good")
    damage = MAGIC + MAGIC + good[:70]
    with opened(damage + good) as fd:
        assert find_record(fd, 0, len(damage + good)) == len(damage)


def test_no_record_is_found_that_ends_beyond_the_size() -> None:
    good = whole(HEADER, b"12345678")
    with opened(b"junk" + good) as fd:
        assert find_record(fd, 0, len(good) + 3) is None


def test_a_segment_whose_first_record_is_torn_says_nothing(tmp_path: Path) -> None:
    path = tmp_path / "s"
    content = b"".join(map(bytes, encode_start({"feed": "finnhub"})))
    for cut in range(len(content)):
        path.write_bytes(content[:cut])
        if read_identity(path) is not None:
            assert not content[cut:].strip(b"\0")


def test_a_segment_that_begins_with_another_record_says_nothing(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_bytes(whole(HEADER, b""))
    assert read_identity(path) is None


def test_the_end_is_behind_the_last_whole_record(tmp_path: Path) -> None:
    path = tmp_path / "s"
    good = whole(HEADER, b"good")
    path.write_bytes(good + b"junk" + good + good[:-8])
    assert end_of_records(path) == 2 * len(good) + len(b"junk")


def test_headers_are_read_up_to_the_limit_or_to_what_is_none(tmp_path: Path) -> None:
    path = tmp_path / "s"
    good = whole(HEADER, b"12345678")
    path.write_bytes(3 * good + bytes(100))
    assert list(read_headers(path, 0, None)) == [HEADER] * 3
    assert list(read_headers(path, len(good), None)) == [HEADER] * 2
    assert list(read_headers(path, 0, len(good))) == [HEADER]
