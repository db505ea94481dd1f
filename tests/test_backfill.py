"""Backfill: what was missed comes from the history that a venue serves, or stays blind, and the ledger says which."""

import json
import os
import random
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import one_venue
import pyarrow as pa
import pytest
import test_id_watch as id_runs
import yaml
from click.testing import CliRunner
from prepared import prepared_recording
from recorders import eventually
from requirements import of_tier
from simulated_venues import RunningVenue, running_venue
from structlog.testing import capture_logs

import ingestor
from ingestor.backfill.audit import Audit, SymbolAudit
from ingestor.backfill.fill import Backfill, Hole, _Around
from ingestor.backfill.sources import SOURCES, Ask, Source, SourceRefused, _read_sip, make_source
from ingestor.cli.main import cli
from ingestor.closed_days import close_days
from ingestor.config import Settings
from ingestor.config.feeds import JsonSettings
from ingestor.config.sections import BackfillSettings
from ingestor.coverage import Interval, sum_shares
from ingestor.dataset.compact import compact_days
from ingestor.dataset.coverage import load_coverage
from ingestor.dataset.verify import Verification
from ingestor.errors import ConfigError
from ingestor.facts import Fact
from ingestor.layout import Layout, locked_root
from ingestor.ledger import read_all_facts
from ingestor.operations.backfill_process import BackfillProcess, make_backfill_process
from ingestor.recording import Recording, prepare
from ingestor.schema import ORIGIN, TIMESTAMP
from ingestor.simulator.history import History, HistoryFault, HistorySettings
from ingestor.simulator.market import MarketSettings, Trade
from ingestor.simulator.protocols import PLAIN_JSON
from ingestor.simulator.venue import VenueSettings

T = TypeVar("T")

CONFIG = Path(__file__).parents[1] / "config"
KEY = "demo"
VENUES: dict[str, tuple[str, tuple[str, ...]]] = {
    "binance": ("binance", ("BTCUSDT", "ETHUSDT")),
    "coinbase": ("json", ("BTC-USD", "ETH-USD")),
    "kraken": ("json", ("BTC/USD", "ETH/USD")),
    "finnhub": ("finnhub", ("AAPL", "BINANCE:BTCUSDT")),
}
"""Of each source the protocol of its feed, and symbols."""


def feed_of(source: str) -> dict[str, Any]:
    protocol, _ = VENUES[source]
    if protocol != "json":
        return {"type": protocol}
    # As settings are read: every scalar is text.
    told = yaml.load((CONFIG / f"venues/{source}.yaml").read_text(), Loader=yaml.BaseLoader)  # noqa: S506  no objects
    return {**told["feed"], "name": source}


def settings_of(source: str, **history: Any) -> VenueSettings:
    protocol: Any = VENUES[source][0]
    feed = feed_of(source)
    return VenueSettings(
        protocol=protocol,
        json_feed=JsonSettings.model_validate(feed) if protocol == "json" else PLAIN_JSON,
        market=MarketSettings(seed=5, rate=400.0),
        history=HistorySettings(**history),
    )


def in_venue(venue: RunningVenue, do: Callable[[], T]) -> T:
    """In its own thread."""
    return venue._call(do)


def drop_trades(venue: RunningVenue, count: int) -> None:
    """In its own thread: the next trades are not sent to whoever is connected."""
    for client in venue._venue._clients.values():
        client.drop_next(count)


@contextmanager
def recording(root: Path, source: str, url: str, *, killed: bool = False) -> Iterator[Recording]:
    """A run of a recorder, wired as the daemon does it. `killed`: its segment and its ledger have no end."""
    settings = Settings.model_validate(
        {
            "feed": {**feed_of(source), "url": url, "allow_plaintext": True},
            "tickers": VENUES[source][1],
            "storage": {"root": root, "min_free": "0B", "formats": ["parquet", "csv"]},
            "connection": {"backoff_max": "1s"},
        }
    )
    layout = Layout(root)
    layout.create()
    stop, ended = threading.Event(), threading.Event()
    ended.set()
    with capture_logs():
        run = prepare(settings, KEY, layout, stop, ended)
        reader = threading.Thread(target=run.groups[0].sessions[0].run)
        recorder = threading.Thread(target=run.recorder.run)
        reader.start()
        recorder.start()
        try:
            yield run
        finally:
            stop.set()
            reader.join()
            run.buffer.close()
            recorder.join()
        if not killed:
            run.runner.run()
            run.ledger.record("run.stopped", error=None)
        run.ledger.close()


def wait_trades(run: Recording, more: int) -> None:
    target = run.observed.trades + more
    eventually(lambda: run.observed.trades >= target, f"{more} more trades")


def record_with_faults(root: Path, source: str, venue: RunningVenue, faults: int = 3) -> None:
    """Dropped ids, cuts, a kill and a stop, with trades around each."""
    url, long = venue.url, 600 if source == "finnhub" else 100  # without ids it takes time to see what was heard
    with recording(root, source, url, killed=True) as run:
        wait_trades(run, long)
        for number in range(faults):
            if source != "finnhub":
                in_venue(venue, lambda: drop_trades(venue, 3))
                wait_trades(run, 60)
            venue.drop()
            eventually(lambda: venue.connections, f"connection {number}")
            wait_trades(run, long)
    with recording(root, source, url) as run:
        wait_trades(run, 2 * long)


def fill(root: Path, source: Source, **options: Any) -> list[Any]:
    with locked_root(Layout(root)), capture_logs():
        work = Backfill(Layout(root), source, **options)
        return list(work.fill(work.find_holes(None, 0, 1 << 62)))


def http(venue: RunningVenue) -> str:
    return venue.url.replace("ws:", "http:")


def facts(root: Path, *names: str) -> list[Fact]:
    return [fact for fact in read_all_facts(Layout(root)) if fact["fact"] in names]


def verify(root: Path) -> Verification:
    verification = Verification(Layout(root))
    assert [str(one) for step in verification.run() for one in step] == []
    return verification


def recorded_trades(root: Path) -> dict[str, Counter[tuple[int, float, float]]]:
    rows = ingestor.read_trades(root, engine="arrow")
    found: dict[str, Counter[tuple[int, float, float]]] = {}
    columns = [rows["symbol"], rows["timestamp"].cast(pa.int64()), rows["price"], rows["volume"]]
    for symbol, *trade in zip(*(column.to_pylist() for column in columns), strict=True):
        found.setdefault(symbol, Counter())[tuple(trade)] += 1
    return found


def files_of(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.long
@pytest.mark.parametrize("source", VENUES)
def test_after_faults_the_dataset_is_the_truth(source: str, tmp_path: Path) -> None:
    with running_venue(settings_of(source)) as venue:
        record_with_faults(tmp_path, source, venue)
        before = audit_of(tmp_path, make_source(source, http(venue), KEY), *VENUES[source][1])
        outcomes = fill(tmp_path, make_source(source, http(venue), KEY))
        assert [one.why for one in outcomes if one.why] == []
        happened = in_venue(venue, lambda: venue._venue.history.trades)
        found = recorded_trades(tmp_path)
        for symbol in VENUES[source][1]:
            truth = happened[symbol][: found[symbol].total()]
            assert found[symbol] == Counter((one.time_ms, one.price, one.volume) for one in truth)
        assert sum(one.missing for one in before) == sum(one.in_gaps for one in before)
        assert [(one.extra, one.differ) for one in before if one.extra or one.differ] == []
        after = audit_of(tmp_path, make_source(source, http(venue), KEY), *VENUES[source][1])
        # Nothing is missing but what came before the first proof, or was on its way at the stop.
        assert [one for one in after if not one.clean] == []
        again = files_of(tmp_path)
        assert fill(tmp_path, make_source(source, http(venue), KEY)) == []
        assert files_of(tmp_path) == again
    account = verify(tmp_path).account
    assert account.filled == sum(one.rows for one in outcomes) > 0
    assert not account.missing_ids
    filled = ingestor.read_trades(tmp_path, engine="arrow", origin="filled")
    assert filled["origin"].unique().to_pylist() == [source]
    assert filled.num_rows == account.filled
    for symbol in VENUES[source][1]:
        told = load_coverage(Layout(tmp_path)).intervals(symbol)
        assert [one.cause for one in told if one.state == "blind"] == ["shutdown"]  # which has not ended
        assert sum_shares(told).filled_us > 0
    with running_venue(settings_of(source)) as venue, recording(tmp_path, source, venue.url) as run:
        wait_trades(run, 20)  # a recorder goes on where the last one was, not where the fill was
    verify(tmp_path)


# Sources, one by one


def trade(number: int, symbol: str = "BTC/USD", *, price: float = 1.5, time_ms: int = 0) -> Trade:
    return Trade(symbol, price, 2.0, time_ms or 1_700_000_000_000 + number * 10, '["1","12"]', number)


ASKS = {
    "binance": Ask("BTC/USD", 0, 0, 3, 2500),
    "binance-aggregates": Ask("BTC/USD", 0, 0, 3, 2500),
    "coinbase": Ask("BTC/USD", 0, 0, 3, 2500),
    "kraken": Ask("BTC/USD", 1_700_000_000_030, 1_700_000_025_001, 3, 2500),
    "finnhub": Ask("BTC/USD", 1_700_000_000_030, 1_700_000_025_001, None, None),
    "alpaca": Ask("BTC/USD", 1_700_000_000_030, 1_700_000_025_001, None, None),
}
HISTORY = VenueSettings(history=HistorySettings(faults=frozenset({"throttled"})), keys=None)


def remember(venue: RunningVenue, trades: list[Trade]) -> History:
    in_venue(venue, lambda: venue._venue.history.add(trades))
    return venue._venue.history


def test_each_source_is_read_page_by_page() -> None:
    """A thousand rows a page, and every third call is refused for now."""
    with running_venue(HISTORY) as venue:
        remember(venue, [trade(number) for number in range(1, 3001)])
        for name in SOURCES:
            pages = list(make_source(name, http(venue), KEY).read(ASKS[name]))
            times = {at_ms for page in pages for at_ms in page["timestamp"].cast(pa.int64()).to_pylist()}
            assert times >= {1_700_000_000_000 + number * 10 for number in range(3, 2501)}, name
            assert sum(page.num_rows for page in pages) == len(times), name  # none twice
            assert {page["price"][0].as_py() for page in pages} == {1.5}, name
            if pages[0]["trade_id"].null_count == 0:
                ids = {number for page in pages for number in page["trade_id"].to_pylist()}
                assert ids >= set(range(3, 2501)), name
                sides = {row["trade_id"] % 2: row["side"] for page in pages for row in page.to_pylist()}
                assert sides == {1: "buy", 0: "sell"}, name
            else:
                assert pages[0]["conditions"][0].as_py() == "1,12", name


ANSWERS: dict[str, tuple[str, int, bytes, str]] = {
    "not JSON": ("binance", 200, b"<html>", "no JSON"),
    "an object": ("binance", 200, b'{"a":1}', "another form"),
    "a number that is none": (
        "binance", 200, b'[{"id":1,"price":"NaN","qty":"1","time":1,"isBuyerMaker":true}]', "another form",
    ),
    "an id that is none": (
        "coinbase", 200,
        b'[{"trade_id":"x","price":"1","size":"1","side":"buy","time":"2026-01-01T00:00:00Z"}]', "another form",
    ),
    "a time without a zone": (
        "coinbase", 200,
        b'[{"trade_id":1,"price":"1","size":"1","side":"buy","time":"2026-01-01T00:00:00"}]', "another form",
    ),
    "columns of other lengths": ("finnhub", 200, b'{"t":[1,2],"p":[1],"v":[1],"c":[null]}', "another form"),
    "a list": ("alpaca", 200, b"[]", "another form"),
    "an unknown pair": ("kraken", 200, b'{"error":["EQuery:Unknown asset pair"]}', "Unknown asset pair"),
    "not found": ("coinbase", 404, b"{}", "404"),
    "forbidden": ("finnhub", 403, b"{}", "403"),
    "banned for days": ("binance", 418, b"{}", "not before 9000 s"),
}  # fmt: skip


@pytest.mark.parametrize("case", ANSWERS)
def test_an_answer_of_another_form_is_refused(case: str) -> None:
    name, status, body, expected = ANSWERS[case]
    head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\nRetry-After: 9000\r\n\r\n".encode()
    retried = head if status == 418 else head.replace(b"Retry-After: 9000\r\n", b"")
    with one_venue.venue(one_venue.answer(retried + body)) as url:
        base = url.replace("ws://", "http://").partition("/?")[0]
        with pytest.raises(SourceRefused, match=expected) as told:
            list(make_source(name, base, KEY).read(ASKS[name]))
    assert told.value.final == (status in {403, 418})


@pytest.mark.parametrize(
    ("letters", "tape", "conditions"),
    [
        (["@", "I"], "C", "1,12"),
        ([" ", "T", "I"], "A", "1,24,12"),
        (["B"], "A", "3"),
        (["B"], "C", "4"),
        (["O"], "B", "18"),
        (["O"], "C", "19"),
        (["?"], "C", "?"),  # kept as it is
        ([], "C", ""),
        (None, "C", None),
    ],
)
def test_letters_of_the_sip_are_finnhubs_numbers(letters: list[str] | None, tape: str, conditions: str | None) -> None:
    told = {"t": "2026-11-20T14:30:00.123456789Z", "p": 1, "s": 2, "c": letters, "z": tape}
    assert _read_sip(told)[:4] == (1_795_185_000_123, 1.0, 2.0, conditions)


@pytest.mark.parametrize("url", ["http://venue.example", "ftp://127.0.0.1", "venue.example", "https://"])
def test_no_key_goes_in_clear(url: str) -> None:
    with pytest.raises(ConfigError, match="https"):
        make_source("finnhub", url, "secret")


# Agreement


def hear_with_a_gap(root: Path, venue: RunningVenue, *, dropped: tuple[int, ...] = ()) -> None:
    """Sixty trades of a symbol by their ids, of which the recorder has the first twenty and the last."""
    with id_runs.running(root) as run:
        began_ms = run.at_us // 1000
        run.connect()
        for first in (1, 41):
            for number in range(first, first + 20):
                if number not in dropped:
                    run.hear("BTCUSDT", number)
            run.connect()
        run.hear("BTCUSDT", 61)
        rows = ingestor.read_trades(root, engine="arrow")
    known = dict(zip(rows["trade_id"].to_pylist(), rows["timestamp"].cast(pa.int64()).to_pylist(), strict=True))
    times = {number: known.get(number, began_ms + number * 1000) for number in range(1, 62)}
    remember(venue, [trade(number, "BTCUSDT", time_ms=times[number]) for number in times])
    remember(venue, [trade(number, "AAAUSDT", price=7.0, time_ms=times[number]) for number in times])


@pytest.mark.parametrize(
    ("fault", "options", "why"),
    [
        (None, {}, None),
        ("shifted", {}, "agreement of 0.0% and 0.0%"),
        ("rounded", {}, "agreement of 0.0% and 0.0%"),
        ("other_symbol", {}, "agreement of 0.0% and 0.0%"),
        ("holes", {}, "agreement of 80.5% and 100.0%"),
        ("holes", {"min_agreement": 0.8}, "4 of its ids are not in the history"),
        ("forbidden", {}, "403"),
    ],
)
def test_a_source_that_does_not_agree_fills_nothing(
    fault: HistoryFault | None, options: dict[str, float], why: str | None, tmp_path: Path
) -> None:
    history = HistorySettings(faults=frozenset({fault} if fault else set()))
    with running_venue(VenueSettings(history=history, keys=None)) as venue:
        hear_with_a_gap(tmp_path, venue)
        source = make_source("binance", http(venue))
        [outcome] = fill(tmp_path, source, **options)
        before = files_of(tmp_path)
        fill(tmp_path, source, **options)
        assert files_of(tmp_path) == before
    verify(tmp_path)
    states = [one.state for one in load_coverage(Layout(tmp_path)).intervals("BTCUSDT")]
    if why is None:
        assert (outcome.rows, outcome.why, outcome.compared, outcome.agreement) == (20, None, 41, (1.0, 1.0))
        assert "filled" in states
        [described] = ingestor.describe(tmp_path, "BTCUSDT", engine="arrow").to_pylist()
        assert (described["trades"], described["delay_max_ms"], described["late"]) == (61, 0, 0)
        assert described["filled"] > 0
        bars = ingestor.read_bars(tmp_path, "1s", "BTCUSDT", engine="arrow").to_pylist()
        assert {round(bar["coverage"] + bar["filled"], 6) for bar in bars[1:-1]} == {1.0}
        assert any(bar["filled"] == 1.0 for bar in bars)
        [fact] = facts(tmp_path, "gap.filled", "gap.unfilled")
        assert (fact["source"], fact["rows"], fact["compared"], fact["agreement"]) == ("binance", 20, 41, [1.0, 1.0])
        return
    assert why in outcome.why
    assert "filled" not in states
    told = facts(tmp_path, "gap.filled", "gap.unfilled")
    assert {(one["fact"], one["why"]) for one in told} == {("gap.unfilled", outcome.why)}
    assert outcome.rows == (16 if options else 0)


def test_of_trades_that_are_alike_so_many_are_missing_as_are_not_recorded() -> None:
    """They have no ids, and one of them was recorded: where the hole begins no clock says to the millisecond."""
    at_ms, price = 1_795_000_000_000, [1.0] * 3
    times = pa.array([at_ms] * 3, TIMESTAMP)
    history = pa.table({"timestamp": times, "price": price, "volume": price})
    received = pa.array([at_ms * 1000] * 3, pa.timestamp("us", "UTC"))
    rows = history.append_column("symbol", pa.array(["A"] * 3)).append_column("received_at", received)
    rows = rows.append_column(ORIGIN, pa.nulls(3, ORIGIN.type)).slice(0, 1)
    around = _Around(rows, Hole("A", at_ms * 1000 + 1, at_ms * 1000 + 9, "connection"), [], 60_000_000, None)
    missing, absent = around.find_missing(history)
    assert (missing.num_rows, absent) == (2, 0)


@pytest.mark.long
def test_what_has_not_settled_yet_is_filled_later(tmp_path: Path) -> None:
    with running_venue(VenueSettings(history=HistorySettings(settle_s=3600.0), keys=None)) as venue:
        hear_with_a_gap(tmp_path, venue)
        [early] = fill(tmp_path, make_source("binance", http(venue)))
        assert "agreement" in early.why
        venue._venue.history.settings = HistorySettings()
        [later] = fill(tmp_path, make_source("binance", http(venue)))
    assert (later.why, later.rows) == (None, 20)
    verify(tmp_path)


# The command


def call(root: Path, venue: RunningVenue, *options: str) -> Any:
    done = CliRunner().invoke(cli, ["backfill", "--root", str(root), "--url", http(venue), *options])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert max(map(len, done.stdout.splitlines())) <= 80 or "--json" in options
    return done


def test_the_command(tmp_path: Path) -> None:
    with running_venue(VenueSettings(history=HistorySettings(), keys=None)) as venue:
        hear_with_a_gap(tmp_path, venue, dropped=(45,))
        before = files_of(tmp_path)
        told = json.loads(call(tmp_path, venue, "--dry-run", "--json").stdout)
        assert files_of(tmp_path) == before
        assert (told["source"], told["trades"], told["dry_run"]) == ("binance", 21, True)
        assert [(one["cause"], one["trades"], one["result"]) for one in told["gaps"]] == [
            ("connection", 20, "could be filled"),
            ("lost", 1, "could be filled"),
        ]
        assert call(tmp_path, venue, "--symbols", "ETHUSDT").stdout == "No gap is left to fill.\n"
        with locked_root(Layout(tmp_path)), pytest.raises(ConfigError, match=r"stop that one.*--dry-run"):
            call(tmp_path, venue)
        assert "filled" in call(tmp_path, venue).stdout
        assert call(tmp_path, venue).stdout == "No gap is left to fill.\n"
    assert verify(tmp_path).account.missing_ids == 0
    states = ingestor.read_trades(tmp_path, origin="filled", coverage=True, engine="arrow")["coverage"]
    assert states.unique().to_pylist() == ["filled"]
    heard = ingestor.read_trades(tmp_path, columns=["trade_id", "origin"], origin="heard", engine="arrow")
    assert (heard.num_rows, heard["origin"].null_count) == (40, 40)
    assert ingestor.read_trades(tmp_path, origin="kraken", engine="arrow").num_rows == 0


def test_a_venue_without_a_known_history_wants_a_name(tmp_path: Path) -> None:
    told = {"type": "json", "url": "wss://venue.example/ws"}
    with prepared_recording(tmp_path, feed=told):
        pass
    with pytest.raises(ConfigError, match=r"venue\.example.*--source"):
        CliRunner().invoke(cli, ["backfill", "--root", str(tmp_path / "data")], catch_exceptions=False)


# The audit of a day


def audit_of(root: Path, source: Source, *symbols: str) -> list[SymbolAudit]:
    audits = (Audit(Layout(root), source, day, symbols).run() for day in days_of(root))
    return [one for found in audits for one in found]


def days_of(root: Path) -> list[date]:
    times = ingestor.read_trades(root, columns="timestamp", engine="arrow")["timestamp"].to_pylist()
    return sorted({at.date() for at in times})


AUDITS: dict[str, tuple[HistoryFault | None, tuple[int, ...], tuple[str, ...]]] = {
    "a gap that is told": (None, (), ("missing in gap",) * 20),
    "ids that were dropped": (None, (45,), ("missing in gap",) * 21),
    "what the source lacks": ("holes", (), ("extra",) * 8 + ("missing in gap",) * 16),
    "another price": ("rounded", (), ("differs",) * 40 + ("missing in gap",) * 20),
    "nothing": ("forbidden", (), ()),
}
"""By case the fault of the source, the ids that the recorder dropped, and what the audit names."""


@pytest.mark.long
@pytest.mark.parametrize("case", AUDITS)
def test_a_day_is_compared_by_ids(case: str, tmp_path: Path) -> None:
    fault, dropped, expected = AUDITS[case]
    history = HistorySettings(faults=frozenset({fault} if fault else set()))
    with running_venue(VenueSettings(history=history, keys=None)) as venue:
        hear_with_a_gap(tmp_path, venue, dropped=dropped)
        before = files_of(tmp_path)
        found = audit_of(tmp_path, make_source("binance", http(venue)), "BTCUSDT")
        assert files_of(tmp_path) == before
    named = [f"{one.kind}{' in gap' if one.in_gap else ''}" for audited in found for one in audited.unmatched]
    assert sorted(named) == sorted(expected)
    assert {one.why for one in found} == {"it answers 403: this key may not read it" if fault == "forbidden" else None}
    if fault != "forbidden":
        assert sum(one.missing for one in found) == sum(one.in_gaps for one in found) == named.count("missing in gap")
        assert sum(one.differ for one in found) == named.count("differs")
        assert sum(one.extra for one in found) == named.count("extra")


def test_the_command_that_audits(tmp_path: Path) -> None:
    def call_audit(*options: str) -> Any:
        asked = ["audit", "--root", str(tmp_path), "--url", http(venue), "--day", day.isoformat(), *options]
        return CliRunner().invoke(cli, asked, catch_exceptions=False)

    with running_venue(VenueSettings(history=HistorySettings(), keys=None)) as venue:
        hear_with_a_gap(tmp_path, venue)
        [day, *_] = days_of(tmp_path)
        done = call_audit("--symbols", "BTCUSDT", "--json")
        told = json.loads(done.stdout)
        assert (done.exit_code, told["source"]) == (0, "binance")
        [found] = told["symbols"]
        assert found["missing"] == found["in_gaps"] == len(found["unmatched"])
        venue._venue.history.settings = HistorySettings(faults=frozenset({"rounded"}))
        done = call_audit("--symbols", "BTCUSDT")
        assert done.exit_code == 1
        assert "What no gap explains:" in done.stdout
        assert max(map(len, done.stdout.splitlines())) <= 80
        assert call_audit("--symbols", "ETHUSDT").exit_code == 1  # none of its ids are recorded
        assert "Nothing was asked for" in call_audit("--day", "2020-01-01").stdout


# While the recorder runs


def history_rows(root: Path, *numbers: int) -> pa.Table:
    """What a fill gives the recorder: rows in the columns of the root, and their origin."""
    rows = ingestor.read_trades(root, engine="arrow").slice(0, 1)
    rows = pa.concat_tables([rows] * len(numbers))
    ids = rows.set_column(
        rows.column_names.index("trade_id"), rows.schema.field("trade_id"), pa.array(numbers, pa.int64())
    )
    return ids.append_column("origin", pa.repeat("binance", len(numbers)))


def test_a_fill_gets_a_segment_of_its_own(tmp_path: Path) -> None:
    with id_runs.running(tmp_path) as run:
        recorder = run.recording.recorder
        run.connect()
        run.hear("BTCUSDT", 1, 2, 3)
        live = run.recording.journal.segment.number
        recorder._begin_fill(history_rows(tmp_path, 7, 8))
        assert run.recording.journal.segment.number == live + 2
        run.hear("BTCUSDT", 4, 5)
        rows = ingestor.read_trades(tmp_path, engine="arrow").sort_by("sequence")
        assert rows["trade_id"].to_pylist() == [1, 2, 3, 7, 8, 4, 5]
        assert rows["origin"].to_pylist() == [None] * 3 + ["binance"] * 2 + [None] * 2
    account = verify(tmp_path).account
    assert (account.counts.trades, account.filled) == (7, 2)
    assert [sink.rows[run.recording.run] for sink in run.recording.files] == [7]
    assert run.recording.accounts.filled[run.recording.run] == 2
    assert facts(tmp_path, "ids.missed") == []  # what was filled says nothing of what was heard


def test_a_fill_survives_a_disk_that_refuses(tmp_path: Path) -> None:
    with id_runs.running(tmp_path) as run:
        recorder, journal = run.recording.recorder, run.recording.journal
        run.connect()
        run.hear("BTCUSDT", 1, 2, 3)
        rows = history_rows(tmp_path, 7, 8)
        at = tmp_path / "journal"
        for refused in (True, False):
            if refused:
                os.close(journal._open._fd)  # the end of its segment can't be written
                recorder._begin_fill(rows)
                assert journal.failed
                assert recorder._filling
                journal._open._fd = os.open(at / f"{journal.segment}.journal", os.O_WRONLY | os.O_APPEND)
                assert journal.recover()
            else:
                recorder._go_on_filling()
        assert not recorder._filling
        run.hear("BTCUSDT", 4, 5)
    assert verify(tmp_path).account.filled == 2
    assert ingestor.read_trades(tmp_path, engine="arrow")["trade_id"].to_pylist().count(7) == 1


@contextmanager
def filling(run: Recording, root: Path, source: str, url: str, **settings: Any) -> Iterator[BackfillProcess]:
    """The process that fills beside this recorder, as the daemon makes it."""
    told = {"url": url, "settle": 0.0, "every": 1.0, "source": source, **settings}
    asked = run.settings.model_copy(update={"backfill": BackfillSettings.model_validate(told)})
    process = make_backfill_process(asked, Layout(root), KEY, root, run.ledger, run.recorder.fills)
    assert process is not None
    thread = threading.Thread(target=process.run)
    thread.start()
    try:
        yield process
    finally:
        process.end()
        thread.join()


def has_done(process: BackfillProcess, gaps: int) -> bool:
    return process.state.filled >= gaps


@pytest.mark.long
@pytest.mark.alone
def test_a_recorder_fills_its_own_gaps_while_it_records(tmp_path: Path) -> None:
    symbols = VENUES["binance"][1]
    with running_venue(settings_of("binance")) as venue:
        with recording(tmp_path, "binance", venue.url, killed=True) as run:
            wait_trades(run, 100)
        with recording(tmp_path, "binance", venue.url) as run:
            wait_trades(run, 100)
            venue.drop()
            eventually(lambda: venue.connections == 1, "a connection")
            wait_trades(run, 100)
            with filling(run, tmp_path, "binance", http(venue)) as process:
                for gaps in range(1, 2 * len(symbols) + 1):  # both of each; the process has the lowest priority
                    eventually(partial(has_done, process, gaps), f"{gaps} gaps filled")
                assert (process.state.unfilled, process.state.error) == (0, None)
                before = process.state.last_round_at
                eventually(lambda: process.state.last_round_at != before, "another round")
                wait_trades(run, 50)
            assert process.state.trades == run.recorder.fills.rows > 0
        happened = in_venue(venue, lambda: venue._venue.history.trades)
        found = recorded_trades(tmp_path)
        for symbol in symbols:  # up to the last trade that was heard
            truth = happened[symbol][: found[symbol].total()]
            assert found[symbol] == Counter((one.time_ms, one.price, one.volume) for one in truth)
        account = verify(tmp_path).account
        assert account.filled == process.state.trades
        assert {one["fact"] for one in facts(tmp_path, "gap.filled", "gap.unfilled")} == {"gap.filled"}


# Kills


def hear_with_gaps(root: Path, venue: RunningVenue, gaps: int) -> int:
    """So many gaps of twenty trades each, and five trades between two; how many there were."""
    number = 1
    with id_runs.running(root, ago_s=gaps * 20) as run:
        began_ms = run.at_us // 1000
        for at in range(gaps + 1):
            run.connect(lost=at > 0)
            run.hear("BTCUSDT", *range(number, number + 5))
            number += 25
        rows = ingestor.read_trades(root, engine="arrow")
    known = dict(zip(rows["trade_id"].to_pylist(), rows["timestamp"].cast(pa.int64()).to_pylist(), strict=True))
    last = number - 21
    times = [known.get(one, began_ms + one * 200) for one in range(1, last + 1)]
    remember(venue, [trade(one, "BTCUSDT", time_ms=time_ms) for one, time_ms in enumerate(times, 1)])
    return last


def has_filled(root: Path, gaps: int, process: "subprocess.Popen[bytes]") -> bool:
    """More than so many, or it has ended."""
    return len(facts(root, "gap.filled")) > gaps or process.poll() is not None


@pytest.mark.long
def test_a_fill_that_is_killed_is_completed_by_the_next(tmp_path: Path) -> None:
    """SIGKILL once a chosen number of gaps is filled, or while the process begins."""
    made, gaps = tmp_path / "made", 10
    with running_venue(VenueSettings(history=HistorySettings(page=30), keys=None)) as venue:
        last = hear_with_gaps(made, venue, gaps)
        for number in range(int(os.environ.get("CHAOS_ROUNDS", of_tier(3, 1)))):
            root = tmp_path / str(number)
            shutil.copytree(made, root)
            target = random.Random(number).randrange(gaps)
            command = [sys.executable, "-m", "ingestor", "backfill", "--root", str(root), "--url", http(venue)]
            with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
                eventually(partial(has_filled, root, target, process), "a fill")
                process.kill()
            found = ingestor.read_trades(root, columns="trade_id", engine="arrow")["trade_id"].to_pylist()
            assert len(found) == len(set(found))  # nothing twice, whatever was done
            fill(root, make_source("binance", http(venue)))
            rows = ingestor.read_trades(root, engine="arrow")
            assert sorted(rows["trade_id"].to_pylist()) == list(range(1, last + 1))
            assert rows["origin"].null_count == (gaps + 1) * 5
            assert verify(root).account.filled == gaps * 20
            told = load_coverage(Layout(root)).intervals("BTCUSDT")
            assert [one.cause for one in told if one.state == "blind"] == ["shutdown"]
            before = files_of(root)
            assert fill(root, make_source("binance", http(venue))) == []
            assert files_of(root) == before


def filled_intervals(root: Path) -> list[Interval]:
    return [one for one in load_coverage(Layout(root)).intervals("BTCUSDT") if one.state == "filled"]


@pytest.mark.long
def test_what_was_filled_stays_filled_when_days_are_compacted_and_closed(tmp_path: Path) -> None:
    with running_venue(VenueSettings(history=HistorySettings(), keys=None)) as venue:
        hear_with_a_gap(tmp_path, venue)
        fill(tmp_path, make_source("binance", http(venue)))
    with id_runs.running(tmp_path, ago_s=5) as run:
        run.connect()
        run.hear("BTCUSDT", 62)  # goes on where the last recorder was, not where the fill was
    assert [fact["first"] for fact in facts(tmp_path, "ids.missed")] == [21]
    before = ingestor.read_trades(tmp_path, engine="arrow")
    told = filled_intervals(tmp_path)
    with capture_logs():
        list(compact_days(Layout(tmp_path), date.max))
    assert ingestor.read_trades(tmp_path, engine="arrow").equals(before)
    assert before.column_names[-1] == "origin"
    assert verify(tmp_path).account.filled == 20
    with capture_logs():
        list(close_days(Layout(tmp_path), date.max))
    assert filled_intervals(tmp_path) == told != []
    assert verify(tmp_path).account.filled == 20
    assert [fact["rows"] for fact in facts(tmp_path, "gap.filled")] == [20]
    done = CliRunner().invoke(cli, ["export", str(tmp_path / "all.csv"), "--root", str(tmp_path)])
    assert (tmp_path / "all.csv").read_text().count(',"binance"\n') == 20, done.output
    assert CliRunner().invoke(cli, ["head", "--root", str(tmp_path), "--count", "99", "--json"]).stdout.count(
        '"binance"'
    ) == 20  # fmt: skip
