"""Each segment's account in the ledger: recounted from its records, held to the equations."""

import itertools
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from journals import (
    Writer,
    block,
    break_descriptor,
    drain,
    first_sequence,
    ledger_facts,
    make_ledger,
    make_root,
    trades,
    writing_descriptors,
)

from ingestor.accounts import read_accounts
from ingestor.journal.records import Cursor
from ingestor.journal.writer import Block
from ingestor.layout import Layout
from ingestor.metrics import Counts
from ingestor.sinks.segment_accounts import SegmentAccounts


def account(layout: Layout, *blocks: Block) -> SegmentAccounts:
    """The accounts of a journal whose one segment holds these blocks."""
    writer = Writer(layout)
    for each in blocks:
        writer.journal.append(each)
    writer.journal.close()
    accounts = SegmentAccounts(layout, make_ledger(layout), 0)
    drain(layout, [accounts])
    return accounts


class TestBasic:
    def test_a_segment_is_accounted_for(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        first, second = trades(first_sequence(1), 5), trades(first_sequence(1) + 5, 4)
        refused = {"bad_time": 1}
        accounts = account(layout, block(first, notices=2, reasons=refused), block(second, reasons={"bad_time": 2}))
        (fact,) = ledger_facts(layout, "segment.closed")
        assert fact["counts"] == {
            "frames": 14, "decoded": 9, "rejected_frames": 3, "notices": 2, "trades": 9, "rejected_trades": 0,
        }  # fmt: skip
        (filed,) = read_accounts(layout)
        assert filed["symbols"] == {"AAPL": 3, "BINANCE:BTCUSDT": 3, "BRK.B": 3}
        assert filed["counts"] == fact["counts"]
        assert fact["reasons"] == {"bad_time": 3}
        repeats = [row["symbol"] for rows in (first, second) for row in rows.to_pylist() if row["repeated"]]
        assert filed["repeated"] == dict(Counter(repeats))
        assert fact["first_received"] == first["received_at"][0].value
        assert fact["last_received"] == second["received_at"][3].value
        assert accounts.totals == {1: Counts(14, 9, 3, 2, 9, 0)}
        assert accounts.violations == 0
        assert accounts.committed() == Cursor(2, 0)

    def test_symbols_are_counted_over_many_blocks(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        sizes = (1, 5000, 5000, 0, 7, 9000, 2)  # some are counted by themselves, some together, some at the end
        starts = itertools.accumulate(sizes, initial=first_sequence(1))
        blocks = [trades(first, count) for first, count in zip(starts, sizes, strict=False)]
        account(layout, *map(block, blocks))
        (filed,) = read_accounts(layout)
        rows = [row for batch in blocks for row in batch.to_pylist()]
        assert filed["symbols"] == dict(Counter(row["symbol"] for row in rows))
        assert filed["repeated"] == dict(Counter(row["symbol"] for row in rows if row["repeated"]))

    def test_an_empty_segment_is_accounted_for_too(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        accounts = account(layout)
        (fact,) = ledger_facts(layout, "segment.closed")
        assert fact["counts"] == dict.fromkeys(Counts.__dataclass_fields__, 0)
        assert accounts.violations == 0

    def test_each_run_has_its_total(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        for run in (1, 2):
            writer = Writer(layout, run=run, segment=run)
            writer.append(run)
            writer.journal.close()
        accounts = SegmentAccounts(layout, make_ledger(layout), 0)
        drain(layout, [accounts])
        assert {run: counts.trades for run, counts in accounts.totals.items()} == {1: 1, 2: 2}


class TestInvariants:
    ROWS = trades(first_sequence(1), 3)

    def broken(self, **counts: int) -> Block:
        good = block(self.ROWS)
        return replace(good, header=replace(good.header, counts=replace(good.header.counts, **counts)))

    @pytest.mark.parametrize(
        "counts",
        [
            {"frames": 4},
            {"decoded": 2},
            {"notices": 1},
            {"frames": 4, "rejected_frames": 1},
            {"trades": 4},
            {"trades": 2},
            {"rejected_trades": 1},
        ],
    )
    def test_an_account_that_does_not_balance_is_a_violation(self, tmp_path: Path, counts: dict[str, int]) -> None:
        assert account(make_root(tmp_path), self.broken(**counts)).violations == 1

    def test_a_rejected_trade_with_its_reason_balances(self, tmp_path: Path) -> None:
        good = self.broken(rejected_trades=1)
        assert account(make_root(tmp_path), replace(good, reasons={"bad_price": 1})).violations == 0


class TestRecovery:
    def test_what_is_no_record_is_set_aside_whole(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        writer = Writer(layout)
        writer.append()
        size = writer.path.stat().st_size
        junk = os.urandom(300)
        with writer.path.open("ab") as file:
            file.write(junk)
        segment = writer.journal.segment
        later = Writer(layout, run=2, segment=2)
        accounts = SegmentAccounts(layout, make_ledger(layout), 0)
        drain(layout, [accounts])
        aside = layout.aside / f"{segment}.{size}.bin"
        assert aside.read_bytes() == junk
        assert aside.stat().st_mode & 0o777 == 0o640
        (fact,) = ledger_facts(layout, "segment.closed")
        assert fact["aside"] == 300
        assert accounts.violations == 0
        assert not layout.open_segment(segment).exists()  # passed, and freed
        assert later.path.exists()

    def test_an_account_that_the_ledger_could_not_take_is_not_committed(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        ledger = make_ledger(layout)
        (fd,) = (fd for fd, path in writing_descriptors() if path.is_relative_to(layout.ledger))
        kept = os.dup(fd)
        break_descriptor(fd)
        accounts = SegmentAccounts(layout, ledger, 0)
        writer = Writer(layout)
        writer.append()
        writer.rotate()
        drain(layout, [accounts])
        assert accounts.committed() == Cursor(1, 0)
        os.dup2(kept, fd)
        os.close(kept)
        ledger.record("gap.closed")
        assert accounts.committed() == Cursor(2, 0)
        assert len(ledger_facts(layout, "segment.closed")) == 1

    def test_what_the_ledger_holds_is_not_told_again(self, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        writer = Writer(layout)
        for _ in range(3):
            writer.append()
            writer.rotate()
        drain(layout, [SegmentAccounts(layout, make_ledger(layout), 2)])
        assert [str(fact["segment"])[:12] for fact in ledger_facts(layout, "segment.closed")] == ["000000000003"]
