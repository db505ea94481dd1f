"""The network, and a venue that misbehaves in every way it knows: what was sent is recorded, or lies in a gap.

Each preset of `ingestor simulate --faults` has a session, a recorder and a journal of its own, AT_ONCE at the same
time: they mostly sleep. Ten faults in a row are recorded by the processes that a user runs.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from harness import (
    Comparison,
    Gap,
    Site,
    Tally,
    compare,
    count_repeats,
    environ,
    read_facts,
    read_gaps,
    read_journal,
    read_parquet,
    wait_for,
)
from harness import running_venue as running_venue_process
from recorders import CRYPTO, KEY, Rig, make_rig, running
from requirements import of_tier
from simulated_venues import read_truth, running_venue
from structlog.testing import capture_logs

from ingestor.capture.connector import Backoff
from ingestor.errors import FeedRefused
from ingestor.layout import Layout
from ingestor.metrics import Conservation
from ingestor.simulator.faults import load_faults, read_presets
from ingestor.simulator.market import MarketSettings
from ingestor.simulator.venue import VenueSettings

pytestmark = pytest.mark.alone

CONNECTION: dict[str, Any] = {"silence": "2s", "ping_interval": "1s", "backoff_max": "1s"}
WAITS = Backoff(refused_s=1.0, throttled_s=1.0, symbol_s=2.0)
AT_ONCE = 8
"""Each syncs several times a second, which a slow disk does one after the other."""
FLOWS = 100
"""Trades that show that the stream flows."""


@dataclass(frozen=True)
class Expected:
    """What becomes of a recording under a fault."""

    cause: str | None = None
    """Of the gap that the fault makes; None where it makes none."""
    symbol: bool = False
    """The gap is one symbol's."""
    rejected: str | None = None
    """A reason for which frames or trades are refused."""
    refused_for_good: bool = False


EXPECTED: Mapping[str, Expected] = MappingProxyType(
    {
        "answer_401": Expected(refused_for_good=True),
        "answer_403": Expected(),  # nothing was asked for yet: the first gap could only be that of the stop
        "answer_429": Expected(),
        "answer_200": Expected(),
        "answer_524": Expected(),
        "redirect": Expected(),
        "slow_handshake": Expected(),
        "close_1000": Expected("connection"),
        "close_1001": Expected("connection"),
        "abort": Expected("connection"),
        "reset": Expected("connection"),
        "outage": Expected("connection"),
        "intruder": Expected("connection"),
        "flapping": Expected("connection"),
        "mute_from_birth": Expected("stall"),
        "mute": Expected("stall"),
        "mute_with_pings": Expected("stall"),
        "mute_until_resubscribed": Expected("stall"),
        "symbol_mute": Expected("symbol_mute", symbol=True),
        "symbol_mute_until_resubscribed": Expected("symbol_mute", symbol=True),
        "half_frame": Expected("stall"),
        "trickle": Expected("stall"),
        "false_invalid_symbol": Expected("refused", symbol=True),
        "fragments": Expected(),
        "huge_frames": Expected(),
        "triple": Expected(),
        "reorder": Expected(),
        "late": Expected(),
        "a_day_ahead": Expected(rejected="bad_time"),
        "garbage": Expected(rejected="not_json"),
        "binary": Expected(rejected="not_utf8"),
        "invalid_utf8": Expected(rejected="not_utf8"),
        "unknown_types": Expected(rejected="no_type"),
    }
)
WHOLLY_SILENT = {"false_invalid_symbol", "a_day_ahead"}
"""Under these no trade is recorded for as long as they last, which is longer than anybody waits here."""
STAYS_MUTE = {"symbol_mute"}
"""That symbol trades no more on its connection."""
QUICK = (
    "answer_401",
    "close_1000",
    "reset",
    "symbol_mute",
    "false_invalid_symbol",
    "huge_frames",
    "a_day_ahead",
    "garbage",
)
"""One of each kind, for the quick tier."""
PLAYED = of_tier(tuple(EXPECTED), QUICK)
RECORDED = [fault for fault in PLAYED if not EXPECTED[fault].refused_for_good]


@dataclass(frozen=True)
class Outcome:
    """What a recording under one fault left."""

    facts: list[dict[str, object]]
    gaps: list[Gap]
    comparison: Comparison
    rows: int
    sent: int
    repeats: int
    account: Conservation
    reasons: Mapping[str, int]


def record_under(fault: str, folder: Path) -> Outcome:
    """One recording, stopped in order once the fault has struck and its gap, if any, is over."""
    venue = VenueSettings(
        keys=frozenset({KEY}),
        faults=load_faults(fault),
        truth=folder / "truth.jsonl",
        market=MarketSettings(rate=200, seed=7),
        ping_interval_s=0.5,
    )
    with running_venue(venue) as there:
        rig = make_rig(folder / "data", there.url, waits=WAITS, **CONNECTION)
        with running(rig):
            wait_for(lambda: bool(rig.errors) or has_struck(fault, rig), f"{fault} and what follows from it")
    if rig.errors:
        raise rig.errors[0]
    recorded, sent = read_journal(rig.layout), read_truth(folder / "truth.jsonl")
    outcome = Outcome(
        facts=rig.facts(),
        gaps=read_gaps(rig.layout),
        comparison=compare(sent, recorded),
        rows=recorded.num_rows,
        sent=sent.num_rows,
        repeats=count_repeats(recorded),
        account=Conservation(rig.buffer.frames_put, rig.recorder.counts),
        reasons=dict(rig.recorder.reasons),
    )
    shutil.rmtree(rig.layout.root)
    return outcome


def has_struck(fault: str, rig: Rig) -> bool:
    expected = EXPECTED[fault]
    counts = rig.recorder.counts
    if fault in WHOLLY_SILENT:
        return rig.gaps.blind_symbols == set(CRYPTO) or counts.rejected_trades >= FLOWS
    if expected.cause is not None:
        struck = rig.gaps.opened[expected.cause] > 0
        over = fault in STAYS_MUTE or rig.gaps.blind_us[expected.cause] > 0
        return struck and over and flows(rig)
    refused = counts.rejected_frames + counts.notices
    return flows(rig) and counts.trades >= 5 * FLOWS and (expected.rejected is None or refused > 0)


def flows(rig: Rig) -> bool:
    return rig.session.connected and proven_on(rig.layout, rig.connections.opened)


# Ten faults in one run, by the processes that a user runs

TEN_FAULTS = (
    ("abort", "connection"),
    ("close, code: 1000", "connection"),
    ("half_frame", "stall"),
    ("reset", "connection"),
    ("close, code: 1001, reason: going away", "connection"),
    ("trickle", "stall"),
    ("mute, pings: false", "stall"),
    ("abort", "connection"),
    ("close, code: 4000", "connection"),
    ("half_frame", "stall"),
)


@dataclass(frozen=True)
class TenFaults:
    """What a run under ten faults left."""

    shown: dict[str, Any]
    """By `ingestor coverage --json`."""
    comparison: Comparison
    gaps: list[Gap]
    rows: int
    repeats: int


def record_under_ten_faults(folder: Path) -> TenFaults:
    """Each connection ends by another one, until the eleventh."""
    faults = folder / "faults.yaml"
    script = [f"- {{connection: {n}, after: 1200ms, do: {do}}}\n" for n, (do, _) in enumerate(TEN_FAULTS, 1)]
    faults.write_text("".join(script))
    settings = {"tickers": list(CRYPTO), "connection": CONNECTION}
    with running_venue_process(folder, "--rate", "500", "--faults", str(faults)) as venue:
        site = Site(folder, folder / "data", venue.url, settings=settings)
        with site.running() as recorder:
            recorder.wait_for(lambda: proven_on(site.layout, len(TEN_FAULTS) + 1), "a stream after ten faults")
            truth = venue.stop()
            recorder.wait_for_end_of_stream()
            assert recorder.end() == 0
    rows = read_parquet(site.layout)
    command = [sys.executable, "-m", "ingestor", "coverage", "--root", str(site.root), "--json"]
    shown = subprocess.run(command, check=True, capture_output=True, text=True, env=environ())
    gaps = read_gaps(site.layout)
    return TenFaults(json.loads(shown.stdout), compare(truth, rows), gaps, rows.num_rows, count_repeats(rows))


def proven_on(layout: Layout, connection: int) -> bool:
    """All symbols trade on this connection."""
    proven = [fact for fact in read_facts(layout) if fact["fact"] == "symbol.proven"]
    return {fact["symbol"] for fact in proven if fact["connection"] == connection} == set(CRYPTO)


Runs = Mapping[str, Future[Outcome]]
"""By preset."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    with capture_logs(), ThreadPoolExecutor(AT_ONCE) as executor:
        yield {fault: executor.submit(record_under, fault, tmp_path_factory.mktemp(fault)) for fault in PLAYED}


def test_every_preset_is_tested() -> None:
    assert set(EXPECTED) == set(read_presets())


@pytest.mark.parametrize("fault", RECORDED)
def test_network(fault: str, runs: Runs, tally: Tally) -> None:
    outcome, expected = runs[fault].result(), EXPECTED[fault]
    tally.rounds = 1
    tally.rows = outcome.rows + outcome.account.journaled.rejected_trades
    tally.duplicated = outcome.repeats
    if expected.rejected == "bad_time":
        assert outcome.rows == 0
        assert 0 < outcome.account.journaled.rejected_trades <= outcome.sent
    elif fault in WHOLLY_SILENT:
        assert outcome.sent == outcome.rows == 0
        tally.rows = 1
    else:
        tally.unexplained = outcome.comparison.unexplained(outcome.gaps)
    tally.assert_clean()
    assert outcome.account.violations() == []
    if expected.rejected is not None:
        assert outcome.reasons[expected.rejected] > 0


@pytest.mark.parametrize("fault", RECORDED)
def test_its_gap_has_the_right_cause(fault: str, runs: Runs) -> None:
    outcome, expected = runs[fault].result(), EXPECTED[fault]
    opened = [(fact["cause"], fact["symbol"]) for fact in outcome.facts if fact["fact"] == "gap.opened"]
    causes = {cause for cause, _ in opened}
    assert causes == {"shutdown", expected.cause} - {None}
    assert all((symbol is not None) == expected.symbol for cause, symbol in opened if cause == expected.cause)
    if fault in STAYS_MUTE or fault == "symbol_mute_until_resubscribed":
        assert {symbol for cause, symbol in opened if cause == "symbol_mute"} == {CRYPTO[0]}


def test_a_key_that_was_never_accepted_ends_the_recording(runs: Runs) -> None:
    with pytest.raises(FeedRefused):
        runs["answer_401"].result()


@pytest.mark.long
def test_ten_faults_in_a_run_are_ten_gaps(tmp_path: Path, tally: Tally) -> None:
    ten = record_under_ten_faults(tmp_path)
    tally.rounds, tally.rows, tally.duplicated = len(TEN_FAULTS), ten.rows, ten.repeats
    tally.unexplained = ten.comparison.unexplained(ten.gaps)
    tally.assert_clean()
    shown = ten.shown["gaps"]
    # What the venue's own end, and the recorder's stop, add comes after the ten.
    assert [gap["cause"] for gap in shown[: len(TEN_FAULTS)]] == [cause for _, cause in TEN_FAULTS]
    assert len(shown) <= len(TEN_FAULTS) + 1
    assert all(gap["symbol"] is None for gap in shown)
