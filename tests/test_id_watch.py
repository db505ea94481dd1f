"""Ids that a venue counts its trades by: what never came is named, what goes on without a hole is proved."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import recorders
from click.testing import CliRunner
from recorders import eventually, make_rig
from simulated_venues import running_venue
from structlog.testing import capture_logs

import ingestor
from ingestor.accounts import read_accounts, read_last_ids
from ingestor.cli.main import cli
from ingestor.config import Settings
from ingestor.dataset.compact import compact_days
from ingestor.dataset.coverage import load_coverage
from ingestor.dataset.verify import Hole, Verification
from ingestor.facts import Fact
from ingestor.feeds.binance import Binance
from ingestor.layout import Layout
from ingestor.ledger import now_us, read_all_facts
from ingestor.recording import Recording, prepare
from ingestor.simulator.faults import parse_faults
from ingestor.simulator.market import MarketSettings
from ingestor.simulator.venue import VenueSettings

SYMBOLS = ("BTCUSDT", "ETHUSDT")
SECOND = 1_000_000


def frame(symbol: str, number: int, at_us: int) -> bytes:
    event = {"e": "trade", "E": 1, "s": symbol, "t": number, "p": "1.5", "q": "2", "T": at_us // 1000, "m": True}
    return json.dumps(event | {"M": True}).encode()


class Run:
    """One run of a recorder of Binance, without a venue: what comes is put, block by block."""

    def __init__(self, recording: Recording, ago_s: int) -> None:
        self.recording = recording
        self.at_us = now_us() - ago_s * SECOND
        self.connection = 0

    def connect(self, *, lost: bool = True) -> None:
        """The next connection; `lost`: the one before was not there any more."""
        self.at_us += SECOND
        if lost:
            self.recording.ledger.record("connection.lost", at=self.at_us, connection=self.connection)
            self.recording.gaps.open("connection", self.at_us)
        self.connection += 1
        self.at_us += SECOND
        self.recording.ledger.record(
            "symbols.requested", at=self.at_us, connection=self.connection, symbols=list(SYMBOLS)
        )

    def hear(self, symbol: str, *numbers: int) -> None:
        """A block with these ids, each received a millisecond after the one before."""
        self.at_us += SECOND
        for number in numbers:
            self.at_us += 1000
            self.recording.buffer.put(self.connection, [frame(symbol, number, self.at_us)], self.at_us)
        block = self.recording.buffer.take(0.0, 0.0)
        assert block is not None
        self.recording.recorder._record(block)

    def hear_old(self, connection: int, symbol: str, *numbers: int) -> None:
        """The same on an earlier connection."""
        newest, self.connection = self.connection, connection
        self.hear(symbol, *numbers)
        self.connection = newest


@contextmanager
def running(root: Path, *, killed: bool = False, ago_s: int = 60) -> Iterator[Run]:
    """What it hears begins `ago_s` before now. `killed`: its segment and its ledger have no end."""
    settings = Settings.model_validate(
        {"feed": {"type": "binance"}, "tickers": SYMBOLS, "storage": {"root": root, "min_free": "0B"}}
    )
    layout = Layout(root)
    layout.create()
    ended = threading.Event()
    ended.set()
    with capture_logs():
        recording = prepare(settings, "", layout, threading.Event(), ended)
        try:
            run = Run(recording, ago_s)
            yield run
            if killed:
                recording.journal.sync()
                return
            recording.buffer.close()
            recording.recorder.run()
            recording.runner.run()
            recording.gaps.open("shutdown", run.at_us)
            recording.ledger.record("run.stopped", error=None)
        finally:
            recording.ledger.close()


def facts(root: Path, name: str) -> list[Fact]:
    return [fact for fact in read_all_facts(Layout(root)) if fact["fact"] == name]


def missed(root: Path) -> list[tuple[str, int, int, int]]:
    return [(one["symbol"], one["first"], one["last"], one["count"]) for one in facts(root, "ids.missed")]


def intervals(root: Path, symbol: str = "BTCUSDT") -> list[tuple[str, str | None, str | None]]:
    return [(one.state, one.cause, one.proof) for one in load_coverage(Layout(root)).intervals(symbol)]


def verified(root: Path) -> Verification:
    verification = Verification(Layout(root))
    assert [str(one) for step in verification.run() for one in step] == []
    return verification


def test_ids_that_never_came_are_named_and_blind(tmp_path: Path) -> None:
    with running(tmp_path) as run:
        run.connect()
        run.hear("BTCUSDT", 100, 101, 102)
        run.hear("ETHUSDT", 7)
        since_us = run.at_us - SECOND - 1000
        run.hear("BTCUSDT", 106, 107, 109)
        run.hear("ETHUSDT", 8)
    assert missed(tmp_path) == [("BTCUSDT", 103, 105, 3), ("BTCUSDT", 108, 108, 1)]
    assert facts(tmp_path, "ids.missed")[0]["since"] == since_us
    told = [one for one in load_coverage(Layout(tmp_path)).intervals("BTCUSDT") if one.cause == "lost"]
    assert [(one.start_us - 1, one.end_us) for one in told] == [
        (fact["since"], fact["until"]) for fact in facts(tmp_path, "ids.missed")
    ]
    assert "lost" not in [cause for _, cause, _ in intervals(tmp_path, "ETHUSDT")]
    account = verified(tmp_path).account
    assert (account.ids, account.missing_ids) == (8, 4)
    assert account.holes == [Hole("BTCUSDT", 103, 105), Hole("BTCUSDT", 108, 108)]


def test_an_unbroken_run_over_a_lost_connection_is_recorded_all_the_while(tmp_path: Path) -> None:
    with running(tmp_path) as run:
        run.connect()
        run.hear("BTCUSDT", 1, 2, 3)
        run.hear("ETHUSDT", 5)
        run.connect()
        run.hear("BTCUSDT", 4, 5)
        run.hear("ETHUSDT", 8)
    recorded = ("recorded", None, "ids")
    assert [one for one in intervals(tmp_path) if one[1] != "shutdown"][1:] == [recorded]
    assert ("blind", "connection", None) in intervals(tmp_path, "ETHUSDT")
    assert missed(tmp_path) == [("ETHUSDT", 6, 7, 2)]
    assert "lost" not in [cause for _, cause, _ in intervals(tmp_path, "ETHUSDT")]  # the gap says why
    [fact] = facts(tmp_path, "ids.proven")
    assert fact["symbols"].keys() == {"BTCUSDT"}


def test_two_proofs_say_nothing_of_what_lies_between(tmp_path: Path) -> None:
    with running(tmp_path) as run:
        run.connect()
        run.hear("BTCUSDT", 1)
        run.connect()
        run.hear("BTCUSDT", 2)
        run.hear("BTCUSDT", 5)
        run.connect()
        run.hear("BTCUSDT", 6)
    assert len(facts(tmp_path, "ids.proven")) == 2
    assert missed(tmp_path) == [("BTCUSDT", 3, 4, 2)]
    assert [cause for _, cause, _ in intervals(tmp_path) if cause] == ["connection", "lost", "shutdown"]


def test_a_symbol_that_was_thought_mute_was_recorded_all_the_while(tmp_path: Path) -> None:
    with running(tmp_path) as run:
        run.connect()
        for symbol in SYMBOLS:
            run.hear(symbol, 1)
        for symbol in SYMBOLS:
            run.recording.gaps.open("symbol_mute", run.at_us, symbol)
        run.hear("BTCUSDT", 2)
        run.hear("ETHUSDT", 3)
        run.hear("BTCUSDT", 3)
    assert "symbol_mute" not in [cause for _, cause, _ in intervals(tmp_path)]
    assert "symbol_mute" in [cause for _, cause, _ in intervals(tmp_path, "ETHUSDT")]
    assert [fact["symbols"].keys() for fact in facts(tmp_path, "ids.proven")] == [{"BTCUSDT"}]


@pytest.mark.parametrize(
    "blocks",
    [
        [(5, 3, 4)],
        [(3, 5), (4,)],
        [(3, 4), (1, 2, 3, 4), (5,)],  # a replay
        [(2, 2, 3), (3, 4, 5), (5,)],
    ],
    ids=["within a block", "a block later", "replayed", "repeated"],
)
def test_ids_out_of_order_and_again_are_no_jump(tmp_path: Path, blocks: list[tuple[int, ...]]) -> None:
    with running(tmp_path) as run:
        run.connect()
        run.hear("BTCUSDT", 1, 2)
        for numbers in blocks:
            run.hear("BTCUSDT", *numbers)
    assert missed(tmp_path) == []
    assert verified(tmp_path).account.missing_ids == 0


def test_two_connections_that_overlap_fill_each_others_holes(tmp_path: Path) -> None:
    with running(tmp_path) as run:
        run.connect()
        run.hear("BTCUSDT", 1, 2)
        run.connect(lost=False)
        run.hear("BTCUSDT", 5, 6)
        run.hear_old(1, "BTCUSDT", 3, 4, 5)
        run.hear("BTCUSDT", 7)
    assert missed(tmp_path) == []


def test_the_next_run_goes_on_from_the_last_id(tmp_path: Path) -> None:
    with running(tmp_path) as run:
        run.connect()
        run.hear("BTCUSDT", 1, 2)
        run.hear("ETHUSDT", 1, 2)
    with running(tmp_path, ago_s=30) as run:
        run.connect(lost=False)
        run.hear("BTCUSDT", 3)
        run.hear("ETHUSDT", 6)
    assert missed(tmp_path) == [("ETHUSDT", 3, 5, 3)]
    assert [fact["symbols"].keys() for fact in facts(tmp_path, "ids.proven")] == [{"BTCUSDT"}]


def test_so_does_one_after_a_crash(tmp_path: Path) -> None:
    with running(tmp_path, killed=True) as run:
        run.connect()
        run.hear("BTCUSDT", 1, 2)
        run.hear("ETHUSDT", 1, 2)
    with running(tmp_path, ago_s=30) as run:
        run.connect(lost=False)
        run.hear("BTCUSDT", 3)
        run.hear("ETHUSDT", 5)
    assert missed(tmp_path) == [("ETHUSDT", 3, 4, 2)]
    assert verified(tmp_path).account.holes == [Hole("ETHUSDT", 3, 4)]


def test_numbers_that_begin_anew_are_neither_missing_nor_proof(tmp_path: Path) -> None:
    with running(tmp_path) as run:
        run.connect()
        run.hear("BTCUSDT", 1_000_000)
        run.connect()
        run.hear("BTCUSDT", 5, 6)
        run.hear("BTCUSDT", 8)
    assert missed(tmp_path) == [("BTCUSDT", 7, 7, 1)]
    assert facts(tmp_path, "ids.proven") == []


def test_a_venue_that_invents_its_ids_fills_no_ledger(tmp_path: Path) -> None:
    with running(tmp_path) as run:
        run.connect()
        run.hear("BTCUSDT", *range(0, 2000, 2))
        run.hear("DOGEUSDT", 1, 3)
    told = missed(tmp_path)
    assert len(told) == 100
    assert sum(count for *_, count in told) == 999


def test_accounts_and_commands_count_them(tmp_path: Path) -> None:
    with running(tmp_path) as run:
        run.connect()
        run.hear("BTCUSDT", 1, 2, 5)
        run.hear("ETHUSDT", 1)
    with running(tmp_path, ago_s=30) as run:
        run.connect(lost=False)
        run.hear("BTCUSDT", 6, 9)
    layout = Layout(tmp_path)
    told = [account["ids"] for account in read_accounts(layout)]
    assert told[0] == [("BTCUSDT", 1, 2), ("BTCUSDT", 5, 5), ("ETHUSDT", 1, 1)]
    assert read_last_ids(layout, SYMBOLS)["BTCUSDT"][0] == 9
    described = ingestor.describe(tmp_path, engine="arrow").to_pylist()
    assert [(one["symbol"], one["ids"], one["missing"]) for one in described] == [("BTCUSDT", 5, 4), ("ETHUSDT", 1, 0)]
    assert "4 of 10 ids missing." in command("coverage", tmp_path)
    report: dict[str, Any] = json.loads(command("coverage", tmp_path, "--json"))
    assert [(one["ids"], one["missing"]) for one in report["symbols"]] == [(5, 4), (1, 0)]
    assert {one["proof"] for one in report["intervals"]} == {None, "ids"}
    proofs = ingestor.read_coverage(tmp_path, engine="arrow").column("proof").to_pylist()
    assert "ids" in proofs
    shown = command("verify", tmp_path)
    assert "ids of BTCUSDT: 3 to 4 missing (2)\nids of BTCUSDT: 7 to 8 missing (2)\n" in shown
    assert "4 of 10 ids missing" in shown
    assert json.loads(command("verify", tmp_path, "--json"))["account"]["missing_ids"] == 4


def test_accounts_of_a_version_that_counted_no_ids_are_read(tmp_path: Path) -> None:
    with running(tmp_path) as run:
        run.connect()
        run.hear("BTCUSDT", 1, 2)
    layout = Layout(tmp_path)
    [path] = layout.accounts.rglob("*.parquet")
    pq.write_table(pq.read_table(path, partitioning=None).drop_columns("ids"), path)
    assert [account["ids"] for account in read_accounts(layout)] == [None]
    assert read_last_ids(layout, SYMBOLS) == {}
    assert command("coverage", tmp_path, "--json")
    assert verified(tmp_path).account.ids == 2


def test_what_a_venue_drops_is_what_is_named(tmp_path: Path) -> None:
    faults = parse_faults("- {after: 300ms, do: drop_ids, count: 7}", "faults")
    venue = VenueSettings(protocol="binance", market=MarketSettings(rate=2000, seed=7), faults=faults)
    with (
        capture_logs() as logs,
        running_venue(venue) as there,
        recorders.running(make_rig(tmp_path, there.url, SYMBOLS, feed=Binance(there.url, "trade"))) as rig,
    ):
        eventually(lambda: any(one["event"] == "trades.dropped" for one in logs), "a venue that drops trades")
        rig.wait_trades(200)
    dropped = [one["ids"] for one in logs if one["event"] == "trades.dropped"]
    numbers = sorted((symbol, number) for ids in dropped for symbol, own in ids.items() for number in own)
    named = [
        (one["symbol"], number) for one in rig.facts("ids.missed") for number in range(one["first"], one["last"] + 1)
    ]
    assert len(numbers) == 7
    assert sorted(named) == numbers


def test_a_compaction_has_the_same_ids(tmp_path: Path) -> None:
    for numbers in ((1, 2, 5), (6, 9)):
        with running(tmp_path) as run:
            run.connect()
            run.hear("BTCUSDT", *numbers)
    before = verified(tmp_path).account.holes
    assert list(compact_days(Layout(tmp_path), date.max))
    assert verified(tmp_path).account.holes == before == [Hole("BTCUSDT", 3, 4), Hole("BTCUSDT", 7, 8)]


def command(name: str, root: Path, *arguments: str) -> str:
    done = CliRunner().invoke(cli, [name, "--root", str(root), *arguments])
    assert done.exit_code == 0, done.output
    return done.stdout
