"""The ledger: each fact is synced before it counts, whatever a crash or a disk does to its last line."""

from pathlib import Path
from typing import Any

import pytest
from journals import break_descriptor, make_ledger, make_root, no_file_beyond, writing_descriptors
from requirements import of_tier
from structlog.testing import capture_logs

from ingestor.errors import FormatTooNew, NotARecording
from ingestor.facts import DAMAGED, RunState
from ingestor.history import read_history
from ingestor.layout import Layout
from ingestor.ledger import DAY_US, Ledger, day_of, list_ledgers, read_all_facts, read_facts
from ingestor.schema import FORMAT_VERSION

OF_FORMAT_1 = "000001-20261120T120000Z.jsonl"
SEGMENT = "000000000001-20261120T120000Z-r000001"


def started(ledger: Ledger, run: int = 1, **fields: object) -> None:
    told = {
        "format": FORMAT_VERSION, "run": run, "feed": "finnhub", "tickers": ["A"], "first_segment": 1, "open_gaps": [],
        **fields,
    }  # fmt: skip
    ledger.record("run.started", at=1000 * run, **told)


def names(path: Path, skip: str | None = None) -> list[str]:
    return [fact["fact"] for fact in read_facts(path, skip)]


class TestBasic:
    def test_facts_come_back_in_order(self, tmp_path: Path) -> None:
        ledger = make_ledger(make_root(tmp_path))
        ledger.record("run.started", at=5, run=1, open_gaps=[])
        ledger.record_all([{"at": 6, "fact": "disk.low"}, {"at": 7, "fact": "disk.recovered"}])
        assert ledger.close()
        [path] = list_ledgers(Layout(tmp_path))
        assert list(read_facts(path)) == [
            {"at": 5, "fact": "run.started", "run": 1, "open_gaps": []},
            {"at": 6, "fact": "disk.low"},
            {"at": 7, "fact": "disk.recovered"},
        ]
        assert path.stat().st_mode & 0o777 == 0o640

    def test_a_run_has_one_ledger(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        assert make_ledger(layout).close()
        with pytest.raises(FileExistsError):
            make_ledger(layout)

    def test_what_is_skipped_is_not_read_but_the_last_word_is(self, tmp_path: Path) -> None:
        ledger = make_ledger(make_root(tmp_path))
        for fact in ("disk.low", "segment.noted", "disk.recovered", "segment.noted", "segment.sealed"):
            more: dict[str, Any] = {"segment": SEGMENT, "dates": {}} if fact == "segment.sealed" else {}
            ledger.record(fact, **more)
        [path] = list_ledgers(Layout(tmp_path))
        assert names(path, '"fact":"segment.') == ["disk.low", "disk.recovered", "segment.sealed"]
        ledger.record("run.stopped")
        assert names(path, '"fact":"segment.') == ["disk.low", "disk.recovered", "run.stopped"]
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
        path = tmp_path / OF_FORMAT_1
        path.write_bytes(b'\n[1]\n{"fact":"x"}\n{"at":"now","fact":"x"}\n\xff\xfe\n{"at":1,"fact":"run.stopped"}\n')
        assert names(path) == ["run.stopped"]

    @pytest.mark.parametrize(
        "line",
        [
            '{"at":1,"fact":"gap.opened","gap":"g","cause":"stall","since":1e999,"symbol":null}',
            '{"at":1,"fact":"gap.opened","gap":"g","cause":"stall","since":99999999999999999999,"symbol":null}',
            '{"at":1,"fact":"gap.opened","gap":"g","cause":"stall","symbol":null}',
            '{"at":1,"fact":"gap.opened","gap":"g","cause":"stall","since":true,"symbol":null}',
            '{"at":1,"fact":"segment.closed","segment":"x","first_received":0,"last_received":0,"counts":{},"reasons":{},"aside":0}',
            '{"at":1,"fact":"segment.sealed","segment":"000000000001-20261120T120000Z-r000001","dates":{"today":1}}',
            '{"at":1,"fact":"day.deleted","date":"2026-13-01"}',
            '{"at":1,"fact":"run.started","open_gaps":[{}]}',
            '{"at":1,"fact":"run.started","open_gaps":[],"tickers":"AAPL"}',
            '{"at":1,"fact":"symbols.requested","connection":"1","symbols":[]}',
            '{"at":1,"fact":"x","more":' + "[" * 100_000,
        ],
    )  # fmt: skip
    def test_what_has_not_the_shape_of_its_fact_is_passed_over(self, tmp_path: Path, line: str) -> None:
        path = tmp_path / OF_FORMAT_1
        path.write_text(f'{line}\n{{"at":2,"fact":"run.stopped"}}\n')
        assert names(path) == ["run.stopped"]

    def test_a_bit_that_flips_anywhere_changes_no_fact(self, tmp_path: Path) -> None:
        """The line is told as damaged, or where its end went the one behind it, too; no other fact is said."""
        ledger = make_ledger(make_root(tmp_path))
        started(ledger)
        ledger.record("gap.opened", gap="g", cause="stall", since=5, symbol=None)
        ledger.record("gap.closed", gap="g", cause="stall", since=5, until=9, symbol=None)
        assert ledger.close()
        [path] = list_ledgers(Layout(tmp_path))
        whole = path.read_bytes()
        facts = list(read_facts(path))
        for bit in range(0, len(whole) * 8, of_tier(1, 5)):
            changed = bytearray(whole)
            changed[bit // 8] ^= 1 << bit % 8
            path.write_bytes(changed)
            found = list(read_facts(path, tell_damage=True))
            told = [fact for fact in found if fact["fact"] != DAMAGED]
            assert all(fact in facts for fact in told)
            assert len(told) < len(facts) or bit // 8 == len(whole) - 1, bit
            assert len(told) < len(found) or bit // 8 >= whole.rfind(b"\n", 0, -1), bit  # the last may have been cut

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
        ledger.record("run.started", at=1, open_gaps=[])
        [path] = list_ledgers(Layout(tmp_path))
        with no_file_beyond(path.stat().st_size + 10):  # takes a part of the line, then no more
            ledger.record("disk.low", at=2)
            assert names(path) == ["run.started"]
        ledger.record("disk.recovered", at=3)
        assert names(path) == ["run.started", "disk.low", "disk.recovered"]
        assert ledger.close()

    def test_a_part_that_could_not_be_cut_off_swallows_nothing(self, tmp_path: Path) -> None:
        ledger = make_ledger(make_root(tmp_path))
        [path] = list_ledgers(Layout(tmp_path))
        with no_file_beyond(path.stat().st_size):
            ledger.record("disk.low", at=2)
        with path.open("ab") as file:
            file.write(b'{"at":2,"fact":"gap.ope')
        ledger.record("disk.recovered", at=3)
        assert names(path) == ["disk.low", "disk.recovered"]
        assert ledger.close()

    def test_a_close_that_the_disk_refuses_says_so(self, tmp_path: Path) -> None:
        ledger = make_ledger(make_root(tmp_path))
        [path] = list_ledgers(Layout(tmp_path))
        break_descriptor(next(fd for fd, open_path in writing_descriptors() if open_path == path))
        ledger.record("run.stopped")
        assert not ledger.close()


class TestDays:
    def test_at_midnight_a_file_begins_that_can_be_understood_alone(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        ledger = Ledger(layout, 7, day_of(DAY_US))
        started(ledger, 7, closed=3, asked=["A", "Z"], ended=DAY_US - 5)
        for fact in (
            {"fact": "symbols.requested", "connection": 1, "symbols": ["A", "B"]},
            {"fact": "symbols.proven", "connection": 1, "base": DAY_US + 20, "symbols": {"A": 1}},
            {"fact": "gap.opened", "gap": "g", "cause": "refused", "since": DAY_US + 30, "symbol": "B"},
            {"fact": "gap.opened", "gap": "h", "cause": "stall", "since": DAY_US + 30, "symbol": None},
            {"fact": "gap.closed", "gap": "h", "cause": "stall", "since": DAY_US, "until": DAY_US + 40, "symbol": None},
        ):
            ledger.record_all([{"at": DAY_US + 10, **fact}])
        ledger.record("disk.low", at=2 * DAY_US + 1)
        assert ledger.close()
        first, second = list_ledgers(layout)
        assert (first.name, second.name) == ("000007-0001-1970-01-02.jsonl", "000007-0002-1970-01-03.jsonl")
        state = RunState()
        for fact in read_facts(second):
            state.tell(fact)
        whole = RunState()
        for path in (first, second):
            for fact in read_facts(path):
                whole.tell(fact)
        assert state == whole
        assert (state.run, state.closed, state.began_us) == (7, 3, 7000)
        assert list(state.gaps) == ["g"]
        assert {symbol: one.proven_us for symbol, one in state.asked.items()} == {"A": DAY_US + 21, "B": None}

    def test_where_the_disk_refuses_the_new_file_the_old_one_goes_on(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        ledger = Ledger(layout, 1, day_of(DAY_US))
        started(ledger)
        layout.ledger_file(1, 2, day_of(2 * DAY_US)).mkdir()
        with capture_logs() as logs:
            ledger.record("disk.low", at=2 * DAY_US)
        assert [one["event"] for one in logs] == ["ledger.refused"]
        assert names(list_ledgers(layout)[0]) == ["run.started", "disk.low"]
        layout.ledger_file(1, 2, day_of(2 * DAY_US)).rmdir()
        ledger.record("disk.recovered", at=2 * DAY_US)
        assert names(list_ledgers(layout)[1]) == ["day.started", "disk.recovered"]
        assert ledger.close()

    def test_a_clock_that_was_years_ahead_leaves_no_file_that_never_ends(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        ledger = Ledger(layout, 1, day_of(900 * DAY_US))
        ledger.record("run.started", at=900 * DAY_US, run=1, open_gaps=[])
        ledger.record("clock.stepped", at=3 * DAY_US, by_us=-897 * DAY_US)
        ledger.record("disk.low", at=3 * DAY_US)
        ledger.record("disk.recovered", at=4 * DAY_US)
        assert [path.name[7:] for path in list_ledgers(layout)] == [
            "0001-1972-06-19.jsonl", "0002-1970-01-04.jsonl", "0003-1970-01-05.jsonl",
        ]  # fmt: skip
        assert ledger.close()

    def test_what_comes_after_the_end_is_said_and_written_nowhere(self, tmp_path: Path) -> None:
        ledger = make_ledger(make_root(tmp_path))
        assert ledger.close()
        with (tmp_path / "other").open("wb"), capture_logs() as logs:
            ledger.record("gap.opened")
        assert logs == [{"event": "ledger.closed", "facts": ["gap.opened"], "log_level": "error"}]
        assert (tmp_path / "other").stat().st_size == 0
        assert ledger.close()
