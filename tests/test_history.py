"""What a start knows of the runs before it, from few bytes, whatever was lost or damaged."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from journals import NOON, SEGMENT, Life, make_ledger, make_root
from structlog.testing import capture_logs
from test_ledger import started

from ingestor.accounts import write_account
from ingestor.errors import FormatTooNew
from ingestor.facts import FAR_US, encode_line
from ingestor.history import History, next_segment, read_history
from ingestor.layout import Layout, SegmentId
from ingestor.ledger import list_ledgers, read_all_facts


def test_the_first_run_has_none(tmp_path: Path) -> None:
    assert read_history(make_root(tmp_path)) == History()


def test_what_a_run_left_open(tmp_path: Path) -> None:
    layout = make_root(tmp_path)
    ledger = make_ledger(layout, 3)
    inherited = {"gap": "r1-1", "cause": "refused", "since": 1, "symbol": "A"}
    started(ledger, 3, first_segment=7, open_gaps=[inherited])
    ledger.record("gap.opened", at=9000, gap="r3-1", cause="stall", since=8, symbol=None)
    ledger.record("gap.closed", at=9001, gap="r1-1", cause="refused", until=9, symbol="A")
    assert ledger.close()
    history = read_history(layout)
    assert (history.run, history.segment, history.stopped, history.first_at) == (3, 6, False, 3000)
    assert [gap["gap"] for gap in history.open_gaps] == ["r3-1"]


def test_a_run_that_never_said_that_it_started_counts_by_its_number(tmp_path: Path) -> None:
    layout = make_root(tmp_path)
    ledger = make_ledger(layout, 1)
    started(ledger)
    ledger.record("run.stopped")
    assert ledger.close()
    layout.ledger_file(2, 1, NOON.date()).write_bytes(b'{"at":1,"fa')
    assert (read_history(layout).run, read_history(layout).stopped) == (2, True)


def test_a_segment_that_two_crashes_left_is_accounted_for_by_the_third_run(tmp_path: Path) -> None:
    layout = make_root(tmp_path)
    for _ in range(2):  # each dies before it has closed any segment
        life = Life(layout)
        life.writer.append()
        life.writer.journal.sync()
        life.kill()
    assert read_history(layout).closed == 0
    Life(layout).stop()
    closed = [fact["segment"][:12] for fact in read_all_facts(layout) if fact["fact"] == "segment.closed"]
    assert closed == ["000000000001", "000000000002", "000000000003"]
    assert read_history(layout).closed == 3


@pytest.mark.parametrize(("by_us", "right"), [(FAR_US - 1, None), (FAR_US, 31), (-FAR_US, 31)])
def test_a_clock_that_goes_far_is_right_no_more(tmp_path: Path, by_us: int, right: int | None) -> None:
    layout = make_root(tmp_path)
    ledger = make_ledger(layout)
    started(ledger)
    ledger.record("symbols.requested", at=20, connection=1, symbols=["A"])
    ledger.record("clock.stepped", at=40 + by_us, by_us=by_us, since=30)
    assert ledger.close()
    assert read_history(layout).right == right


# Numbers that are never given twice


def test_it_follows_the_journal_and_the_cursors(tmp_path: Path) -> None:
    layout = make_root(tmp_path)
    assert next_segment(layout, read_history(layout).segment) == 1
    layout.open_segment(SEGMENT).touch()
    assert next_segment(layout, read_history(layout).segment) == 2
    layout.cursor_file("csv").write_text(json.dumps({"segment": 5, "offset": 0, "bytes": 0}))
    assert read_history(layout).segment == 4  # everything before 5 is done with; 5 itself need not exist
    layout.cursor_file("sqlite").write_text(json.dumps({"segment": 5, "offset": 80}))
    assert read_history(layout).segment == 5


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "7", '{"segment": "x", "offset": 0}', '{"segment": 3}', "\0\0\0", "[" * 100_000,
        '{"segment": 1e999, "offset": 0}', '{"segment": 18446744073709551617, "offset": 0}',
        '{"segment": -1, "offset": 0}',
    ],
)  # fmt: skip
def test_a_cursor_that_cannot_be_read_does_not_block_the_start(tmp_path: Path, text: str) -> None:
    layout = make_root(tmp_path)
    layout.cursor_file("csv").write_text(text)
    assert read_history(layout).segment == 0


def a_sealed_segment(layout: Layout) -> None:
    layout.sealed_segment(SegmentId(9, NOON, 4)).touch()


def a_file_of_the_dataset(layout: Layout) -> None:
    path = layout.parquet_file(SegmentId(9, NOON, 4), NOON.date())
    path.parent.mkdir(parents=True)
    path.touch()


def an_account(layout: Layout) -> None:
    segment = str(SegmentId(9, NOON, 4))
    counts = {"first_received": 1, "last_received": 2, "counts": {}, "reasons": {}, "aside": 0, "symbols": {}}
    write_account(layout, {"segment": segment, **counts})


def the_state(layout: Layout) -> None:
    told = {"run": 4, "segment": 9, "began": 1, "closed": 0, "last_received": 5, "open_gaps": [], "feed": "finnhub"}
    layout.state.write_text(encode_line({"at": 6, "fact": "state.kept", "format": 2, **told}))


@pytest.mark.parametrize("leave", [a_sealed_segment, a_file_of_the_dataset, an_account, the_state])
def test_a_run_whose_ledger_is_lost_keeps_its_numbers(tmp_path: Path, leave: Callable[[Layout], None]) -> None:
    layout = make_root(tmp_path)
    ledger = make_ledger(layout, 3)
    started(ledger, 3)
    ledger.record("run.stopped", at=4000, error=None)
    assert ledger.close()
    assert (read_history(layout).run, read_history(layout).stopped) == (3, True)
    leave(layout)
    with capture_logs() as logs:
        history = read_history(layout)
    assert (history.run, history.stopped) == (4, False)
    assert next_segment(layout, history.segment) == 10
    assert [one["event"] for one in logs] == ["ledger.lost"]


def test_without_any_ledger_the_state_speaks(tmp_path: Path) -> None:
    layout = make_root(tmp_path)
    the_state(layout)
    history = read_history(layout)
    assert (history.run, history.segment, history.last_received, history.feed) == (4, 9, 5, "finnhub")


def test_the_state_is_kept_as_the_run_goes_on(tmp_path: Path) -> None:
    layout = make_root(tmp_path)
    life = Life(layout)
    life.writer.append()
    life.stop()
    for path in list_ledgers(layout):
        path.unlink()
    history = read_history(layout)
    assert (history.run, history.segment, history.closed) == (1, 1, 1)


@pytest.mark.parametrize("spoil", [b"", b"{}", b"[" * 100_000, b"\0" * 100, b'{"at":1,"fact":"state.kept","run":99}\n'])
def test_a_state_that_is_damaged_costs_a_warning(tmp_path: Path, spoil: bytes) -> None:
    layout = make_root(tmp_path)
    Life(layout).stop()
    layout.state.write_bytes(spoil)
    with capture_logs() as logs:
        assert read_history(layout).run == 1
    assert [one["event"] for one in logs] == ["state.unreadable"]


def test_a_later_version_is_refused(tmp_path: Path) -> None:
    layout = make_root(tmp_path)
    layout.state.write_text(encode_line({"at": 6, "fact": "state.kept", "format": 3, "run": 1, "began": 1, "segment": 1,
                                         "closed": 0, "last_received": 5, "open_gaps": [], "feed": None}))  # fmt: skip
    with pytest.raises(FormatTooNew, match="format 3"):
        read_history(layout)


def test_a_line_that_the_disk_has_changed_makes_the_end_doubtful(tmp_path: Path) -> None:
    layout = make_root(tmp_path)
    ledger = make_ledger(layout)
    started(ledger)
    ledger.record("gap.opened", gap="g", cause="refused", since=5, symbol="A")
    ledger.record("run.stopped", error=None)
    assert ledger.close()
    (path,) = list_ledgers(layout)
    path.write_bytes(path.read_bytes().replace(b"refused", b"refusee"))
    assert not read_history(layout).stopped
