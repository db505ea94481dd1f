"""What was refused is kept with its reason and its very bytes, and a crash or a full disk garbles no line."""

import hashlib
import json
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from journals import make_root, no_file_beyond
from structlog.testing import capture_logs

from ingestor.capture.rejects import Refused, Rejects
from ingestor.layout import Layout

NOON_US = int(datetime(2026, 11, 20, 12, tzinfo=UTC).timestamp() * 1e6)
DAY_US = 86_400_000_000
TODAY, TOMORROW = date(2026, 11, 20), date(2026, 11, 21)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return make_root(tmp_path)


def refused(frame: int, payload: bytes = b"not JSON", at_us: int = NOON_US, trade: int | None = None) -> Refused:
    return Refused(frame, trade, "not_json", at_us, payload)


def lines(layout: Layout, day: date = TODAY) -> list[dict[str, Any]]:
    return [json.loads(line) for line in layout.rejects_file(day).read_text().splitlines()]


def test_a_line_tells_everything(layout: Layout) -> None:
    rejects = Rejects(layout, 3, 1 << 20)
    payload = b'\x00\xff{"p":1}\n'
    rejects.write([refused(7, payload, trade=2)])
    rejects.close()
    (line,) = lines(layout)
    assert line.pop("text").encode("latin-1") == payload
    assert line == {
        "run": 3,
        "frame": 7,
        "trade": 2,
        "reason": "not_json",
        "received_at": NOON_US,
        "length": len(payload),
        "sha256": hashlib.sha256(payload).hexdigest(),
    }
    assert layout.rejects_file(TODAY).stat().st_mode & 0o777 == 0o640


def test_each_day_has_a_file_also_when_the_clock_goes_back(layout: Layout) -> None:
    rejects = Rejects(layout, 1, 1 << 20)
    for frame, at_us in enumerate([NOON_US, NOON_US + DAY_US, NOON_US]):
        rejects.write([refused(frame, at_us=at_us)])
    rejects.close()
    assert [line["frame"] for line in lines(layout)] == [0, 2]
    assert [line["frame"] for line in lines(layout, TOMORROW)] == [1]


def test_a_text_is_kept_up_to_64_kb(layout: Layout) -> None:
    rejects = Rejects(layout, 1, 1 << 30)
    rejects.write([refused(1, b"x" * 100_000)])
    rejects.close()
    assert len(lines(layout)[0]["text"]) == 65_536
    assert lines(layout)[0]["length"] == 100_000


def test_beyond_the_days_limit_they_are_only_counted_and_that_is_said_once(layout: Layout) -> None:
    rejects = Rejects(layout, 1, 5000)
    sizes = []
    with capture_logs() as logs:
        for frame in range(0, 20_000, 2):
            rejects.write([refused(frame), Refused(frame + 1, 0, "bad_price", NOON_US, b"x")])
            sizes.append(layout.rejects_file(TODAY).stat().st_size)
    rejects.close()
    assert max(sizes) < 5000 + 1000
    *kept, one, other = lines(layout)
    assert all("text" in line for line in kept)
    assert [one["reason"], other["reason"]] == ["not_json", "bad_price"]
    assert len(kept) + one["left_out"] + other["left_out"] == 20_000
    assert (one["left_out_last"], one["frame"], other["frame"]) == (1, 19_998, 19_999)
    assert [one["event"] for one in logs] == ["rejects.flooded"]
    assert rejects.truncated_on == TODAY


def test_after_a_restart_the_days_counts_go_on_behind_those_of_before(layout: Layout) -> None:
    for run in (1, 2):
        rejects = Rejects(layout, run, 0)
        rejects.write([refused(1), refused(2)])
        rejects.write([refused(3)])
        rejects.close()
    told = [(line["run"], line["left_out"], line["left_out_last"]) for line in lines(layout)]
    assert told == [(1, 3, 1), (2, 3, 1)]


def test_a_disk_that_takes_no_count_takes_it_later(layout: Layout) -> None:
    rejects = Rejects(layout, 1, 0)
    with no_file_beyond(100), pytest.raises(OSError, match=r"part|large"):
        rejects.write([refused(1)])
    rejects.write([refused(1)])
    with no_file_beyond(300), pytest.raises(OSError, match=r"part|large"):
        rejects.write([Refused(2, None, "bad_price", NOON_US, b"x")])
    rejects.write([Refused(2, None, "bad_price", NOON_US, b"x")])
    rejects.close()
    assert [(line["reason"], line["left_out"]) for line in lines(layout)] == [("not_json", 1), ("bad_price", 1)]


def test_a_line_that_a_crash_cut_does_not_swallow_the_next(layout: Layout) -> None:
    layout.rejects_file(TODAY).write_bytes(b'{"run":1,"fra')
    rejects = Rejects(layout, 2, 1 << 20)
    rejects.write([refused(1)])
    rejects.close()
    cut, whole = layout.rejects_file(TODAY).read_text().splitlines()
    assert cut == '{"run":1,"fra'
    assert json.loads(whole)["run"] == 2


def test_a_full_disk_takes_all_lines_of_a_call_or_none(layout: Layout) -> None:
    rejects = Rejects(layout, 1, 1 << 20)
    rejects.write([refused(0)])
    size = layout.rejects_file(TODAY).stat().st_size
    with no_file_beyond(size + 300):
        with pytest.raises(OSError, match=r"part|large"):
            rejects.write([refused(1), refused(2), refused(3)])
        assert layout.rejects_file(TODAY).stat().st_size == size
    rejects.write([refused(1), refused(2), refused(3)])
    rejects.close()
    assert [line["frame"] for line in lines(layout)] == [0, 1, 2, 3]


def test_closing_what_was_never_opened_or_is_closed_does_nothing(layout: Layout) -> None:
    rejects = Rejects(layout, 1, 1 << 20)
    rejects.close()
    rejects.sync()
    rejects.write([refused(1)])
    rejects.close()
    rejects.close()
    rejects.write([refused(2)])
    rejects.close()
    assert [line["frame"] for line in lines(layout)] == [1, 2]
