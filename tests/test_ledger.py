"""The ledger: each fact is synced before it counts, whatever a crash or a disk does to its last line."""

from pathlib import Path

import pytest
from journals import NOON, Life, break_descriptor, make_ledger, make_root, no_file_beyond, writing_descriptors

from ingestor.errors import FormatTooNew, NotARecording
from ingestor.layout import Layout
from ingestor.ledger import History, Ledger, list_ledgers, read_all_facts, read_facts, read_history, run_id
from ingestor.schema import FORMAT_VERSION


def started(ledger: Ledger, run: int = 1, **fields: object) -> None:
    told = {"format": FORMAT_VERSION, "run": run, "feed": "finnhub", "first_segment": 1, "open_gaps": [], **fields}
    ledger.record("run.started", at=1000 * run, **told)


def names(path: Path, skip: str | None = None) -> list[str]:
    return [fact["fact"] for fact in read_facts(path, skip)]


class TestBasic:
    def test_facts_come_back_in_order(self, tmp_path: Path) -> None:
        ledger = make_ledger(make_root(tmp_path))
        ledger.record("run.started", at=5, run=1)
        ledger.record_all([{"at": 6, "fact": "gap.opened"}, {"at": 7, "fact": "gap.closed"}])
        assert ledger.close()
        [path] = list_ledgers(Layout(tmp_path))
        assert list(read_facts(path)) == [
            {"at": 5, "fact": "run.started", "run": 1},
            {"at": 6, "fact": "gap.opened"},
            {"at": 7, "fact": "gap.closed"},
        ]
        assert path.stat().st_mode & 0o777 == 0o640

    def test_a_run_has_one_ledger(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        assert make_ledger(layout).close()
        with pytest.raises(FileExistsError):
            make_ledger(layout)

    def test_what_is_skipped_is_not_read_but_the_last_word_is(self, tmp_path: Path) -> None:
        ledger = make_ledger(make_root(tmp_path))
        for fact in ("run.started", "segment.closed", "gap.opened", "segment.closed", "segment.sealed"):
            ledger.record(fact)
        [path] = list_ledgers(Layout(tmp_path))
        assert names(path, '"fact":"segment.') == ["run.started", "gap.opened", "segment.sealed"]
        ledger.record("run.stopped")
        assert names(path, '"fact":"segment.') == ["run.started", "gap.opened", "run.stopped"]
        assert ledger.close()

    def test_all_runs_in_order(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        for run in (1, 2, 10):
            ledger = make_ledger(layout, run)
            started(ledger, run)
            assert ledger.close()
        assert [fact["run"] for fact in read_all_facts(layout)] == [1, 2, 10]


class TestKnownErrors:
    def test_no_recording(self, tmp_path: Path) -> None:
        with pytest.raises(NotARecording, match="holds no recording"):
            list(read_all_facts(Layout(tmp_path)))

    def test_a_later_version_wrote_it(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        ledger = make_ledger(layout)
        started(ledger, format=FORMAT_VERSION + 1)
        assert ledger.close()
        with pytest.raises(FormatTooNew, match=f"format {FORMAT_VERSION + 1}"):
            list(read_all_facts(layout))

    def test_what_is_no_fact_is_passed_over(self, tmp_path: Path) -> None:
        path = tmp_path / "x.jsonl"
        path.write_bytes(b'\n[1]\n{"fact":"x"}\n{"at":"now","fact":"x"}\n\xff\xfe\n{"at":1,"fact":"run.stopped"}\n')
        assert names(path) == ["run.stopped"]

    def test_cut_at_every_byte(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        ledger = make_ledger(layout)
        started(ledger)
        ledger.record("gap.opened", gap="g", cause="stall", since=5, symbol=None)
        assert ledger.close()
        [path] = list_ledgers(layout)
        whole = path.read_bytes()
        lines = whole.splitlines(keepends=True)
        for size in range(len(whole)):
            path.write_bytes(whole[:size])
            kept = names(path)
            expected = ["run.started"][: size >= len(lines[0]) - 1]  # a line is a fact without its last newline, too
            assert kept == expected + ["gap.opened"][: size >= len(whole) - 1]
            assert read_history(layout).run == 1

    def test_what_the_disk_refuses_is_written_with_the_next_fact(self, tmp_path: Path) -> None:
        ledger = make_ledger(make_root(tmp_path))
        ledger.record("run.started", at=1)
        [path] = list_ledgers(Layout(tmp_path))
        with no_file_beyond(path.stat().st_size + 10):  # takes a part of the line, then no more
            ledger.record("gap.opened", at=2)
            assert names(path) == ["run.started"]
        ledger.record("gap.closed", at=3)
        assert names(path) == ["run.started", "gap.opened", "gap.closed"]
        assert ledger.close()

    def test_a_part_that_could_not_be_cut_off_swallows_nothing(self, tmp_path: Path) -> None:
        ledger = make_ledger(make_root(tmp_path))
        [path] = list_ledgers(Layout(tmp_path))
        with no_file_beyond(path.stat().st_size):
            ledger.record("gap.opened", at=2)
        with path.open("ab") as file:
            file.write(b'{"at":2,"fact":"gap.ope')
        ledger.record("gap.closed", at=3)
        assert names(path) == ["gap.opened", "gap.closed"]
        assert ledger.close()

    def test_a_close_that_the_disk_refuses_says_so(self, tmp_path: Path) -> None:
        ledger = make_ledger(make_root(tmp_path))
        [path] = list_ledgers(Layout(tmp_path))
        break_descriptor(next(fd for fd, open_path in writing_descriptors() if open_path == path))
        ledger.record("run.stopped")
        assert not ledger.close()


class TestHistory:
    def test_the_first_run_has_none(self, tmp_path: Path) -> None:
        assert read_history(make_root(tmp_path)) == History()

    def test_what_a_run_left_open(self, tmp_path: Path) -> None:
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

    def test_a_run_that_never_said_that_it_started_counts_by_its_number(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        ledger = make_ledger(layout, 1)
        started(ledger)
        ledger.record("run.stopped")
        assert ledger.close()
        layout.ledger_file(run_id(2, NOON)).write_bytes(b'{"at":1,"fa')
        assert (read_history(layout).run, read_history(layout).stopped) == (2, True)

    def test_a_segment_that_two_crashes_left_is_accounted_for_by_the_third_run(self, tmp_path: Path) -> None:
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


def test_a_closed_ledger_writes_into_no_other_file(tmp_path: Path) -> None:
    layout = make_root(tmp_path)
    ledger = make_ledger(layout)
    assert ledger.close()
    with (tmp_path / "other").open("wb"):  # gets the descriptor's number
        ledger.record("gap.opened")
    assert (tmp_path / "other").read_bytes() == b""
