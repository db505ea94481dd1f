"""What is exported for backtesters is what was recorded, is read back by them, and bridges no blind time.

hftbacktest and nautilus_trader are too large for the extra `dev`, and hold pandas back: what reads by them runs where
they are installed. REQUIRE_BACKTEST=1 requires it, as a job of the workflow does.
"""

import csv
import importlib
import json
import os
import sys
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_id_watch as id_runs
from click.testing import CliRunner, Result
from recordings import Print, Recording, to_us

import ingestor
from ingestor.cli.main import cli
from ingestor.coverage import Interval
from ingestor.dataset.backtest import find_stretches, name_of
from ingestor.errors import ConfigError, IngestorError

SYMBOLS = ["AAPL", "BINANCE:BTCUSDT"]
GAP = ("2026-11-18T23:50:00", "2026-11-18T23:55:00")
DTYPE = np.dtype(
    [("ev", "u8"), ("exch_ts", "i8"), ("local_ts", "i8"), ("px", "f8"), ("qty", "f8"), ("order_id", "u8"),
     ("ival", "i8"), ("fval", "f8")], align=True,
)  # fmt: skip
"""As hftbacktest documents it: https://hftbacktest.readthedocs.io/en/latest/data.html"""
EXCHANGE, LOCAL, TRADE = 1 << 31, 1 << 30, 2


def needs(package: str) -> pytest.MarkDecorator:
    skips = find_spec(package) is None and os.environ.get("REQUIRE_BACKTEST") != "1"
    return pytest.mark.skipif(skips, reason=f"needs {package}: pip install -e '.[backtest]'")


needs_hftbacktest, needs_nautilus = needs("hftbacktest"), needs("nautilus_trader")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two symbols around midnight, with a gap before it; some come late, some have no volume."""
    recording = Recording(tmp_path_factory.mktemp("backtest") / "data", SYMBOLS, started="2026-11-18T23:40:00")
    recording.prove(SYMBOLS, "2026-11-18T23:40:00")
    recording.fact("gap.opened", GAP[0], gap="g", cause="connection", since=to_us(GAP[0]), symbol=None)
    recording.fact("gap.closed", GAP[1], gap="g", cause="connection", until=to_us(GAP[1]), symbol=None)
    minutes = [*(f"2026-11-18T23:{one}" for one in range(40, 60)), *(f"2026-11-19T00:{one:02d}" for one in range(10))]
    for number, minute in enumerate(minutes):
        if not GAP[0][:16] <= minute < GAP[1][:16]:
            recording.write(
                Print(f"{minute}:01", "AAPL", 189.25 + number / 100, 10.0, delay_s=0.1),
                Print(f"{minute}:00.500", "AAPL", 189.25 + number / 100, 20.0, delay_s=0.8),  # after the one above
                Print(f"{minute}:02", "AAPL", 189.25, 0.0),
                Print(f"{minute}:03", "BINANCE:BTCUSDT", 91_000.5, 0.0015, delay_s=-0.2 if number == 1 else 0.1),
                Print(f"{minute}:59.950", "BINANCE:BTCUSDT", 91_000.5, None),
            )
    recording.stop("2026-11-19T00:10:00")
    return recording.layout.root


def export(root: Path, folder: Path, kind: str, *more: str) -> Result:
    done = CliRunner().invoke(cli, ["export", str(folder), "--root", str(root), "--format", kind, *more])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def stretches(folder: Path) -> list[dict[str, str]]:
    with (folder / "stretches.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def recorded(root: Path, symbol: str) -> list[tuple[int, float, float]]:
    """The trades with a volume, in ns, in order of time."""
    rows = ingestor.read_trades(root, symbol, engine="arrow").to_pylist()
    found = [(round(one["timestamp"].timestamp() * 1000) * 10**6, one["price"], one["volume"]) for one in rows]
    return [one for one in found if one[2]]


def test_events_are_the_recorded_trades_a_file_per_unbroken_stretch(root: Path, tmp_path: Path) -> None:
    done = json.loads(export(root, tmp_path / "hft", "hftbacktest", "--json").stdout)
    lines = stretches(tmp_path / "hft")
    assert [
        (one["symbol"], one["start"][5:16], one["end"][5:16], one["continues"], one["ended_by"]) for one in lines
    ] == [
        ("AAPL", "11-18T23:40", "11-18T23:50", "false", "blind (connection)"),
        ("AAPL", "11-18T23:55", "11-19T00:00", "true", ""),
        ("BINANCE:BTCUSDT", "11-18T23:40", "11-18T23:50", "false", "blind (connection)"),
        ("BINANCE:BTCUSDT", "11-18T23:55", "11-19T00:00", "true", ""),
        ("AAPL", "11-19T00:00", "11-19T00:10", "false", ""),
        ("BINANCE:BTCUSDT", "11-19T00:00", "11-19T00:10", "false", ""),
    ]
    assert done["trades"] == sum(int(one["trades"]) for one in lines)
    for symbol in SYMBOLS:
        trades = []
        for line in (one for one in lines if one["symbol"] == symbol):
            events = np.load(tmp_path / "hft" / line["file"])["data"]
            assert events.dtype == DTYPE
            there, here = ((events["ev"] & flag) > 0 for flag in (EXCHANGE, LOCAL))
            assert (np.diff(events["exch_ts"][there]) >= 0).all()
            assert (np.diff(events["local_ts"][here]) >= 0).all()
            assert there.sum() == here.sum() == int(line["trades"])
            assert (events["local_ts"] >= events["exch_ts"]).all()
            assert ((events["ev"] & 0xFF) == TRADE).all()
            bounds = [round(datetime.fromisoformat(line[name]).timestamp() * 1e9) for name in ("start", "end")]
            assert (events["local_ts"][here] < bounds[1] + 10**6).all()
            assert (events["local_ts"][here] >= bounds[0]).all()
            trades += list(zip(*(events[name][there].tolist() for name in ("exch_ts", "px", "qty")), strict=True))
        assert trades == sorted(recorded(root, symbol))
    assert {path.name for path in (tmp_path / "hft").iterdir()} == {"stretches.csv", *(one["file"] for one in lines)}


@needs_hftbacktest
def test_hftbacktest_replays_them(root: Path, tmp_path: Path) -> None:
    library: Any = importlib.import_module("hftbacktest")
    validation: Any = importlib.import_module("hftbacktest.data")
    export(root, tmp_path / "hft", "hftbacktest")
    for line in stretches(tmp_path / "hft"):
        path = tmp_path / "hft" / line["file"]
        events = np.load(path)["data"]
        assert events.dtype == library.types.event_dtype
        validation.validate_event_order(events)
        asset = (
            library.BacktestAsset().data([str(path)]).linear_asset(1.0).constant_order_latency(0, 0)
            .risk_adverse_queue_model().no_partial_fill_exchange().trading_value_fee_model(0.0, 0.0).tick_size(0.01)
            .lot_size(0.0001).last_trades_capacity(1000)
        )  # fmt: skip
        backtest = library.HashMapMarketDepthBacktest([asset])
        heard = []
        while backtest.wait_next_feed(True, 10**15) == 2:
            heard += [(int(one["exch_ts"]), float(one["px"]), float(one["qty"])) for one in backtest.last_trades(0)]
            backtest.clear_last_trades(0)
        heard += [(int(one["exch_ts"]), float(one["px"]), float(one["qty"])) for one in backtest.last_trades(0)]
        backtest.close()
        here = (events["ev"] & LOCAL) > 0
        assert heard == list(zip(*(events[name][here].tolist() for name in ("exch_ts", "px", "qty")), strict=True))


def read_catalog(folder: Path) -> Any:
    catalogs: Any = importlib.import_module("nautilus_trader.persistence.catalog")
    return catalogs.ParquetDataCatalog(str(folder))


@needs_nautilus
def test_nautilus_reads_its_catalog_and_misses_the_blind_time(root: Path, tmp_path: Path) -> None:
    data: Any = importlib.import_module("nautilus_trader.model.data")
    export(root, tmp_path / "nautilus", "nautilus", "--instrument-venue", "xnas")
    catalog = read_catalog(tmp_path / "nautilus")
    for symbol, instrument in zip(SYMBOLS, ("AAPL.XNAS", "BTCUSDT.BINANCE"), strict=True):
        ticks = catalog.trade_ticks(instrument_ids=[instrument])
        found = [(one.ts_event, float(one.price), float(one.size)) for one in ticks]
        assert sorted(found) == sorted(recorded(root, symbol))
        assert [one.ts_init for one in ticks] == sorted(one.ts_init for one in ticks)
        start, end = (round(to_us(at) * 1000) for at in ("2026-11-18T23:40:00.1", "2026-11-19T00:09:00"))
        [missing] = catalog.get_missing_intervals_for_request(start, end, data.TradeTick, instrument)
        assert [abs(one - to_us(at) * 1000) <= 1000 for one, at in zip(missing, GAP, strict=True)] == [True, True]
    first = catalog.trade_ticks(instrument_ids=["AAPL.XNAS"])[0]
    assert (str(first.price), str(first.size), first.ts_init - first.ts_event) == ("189.25", "10", 100_000_000)


@needs_nautilus
def test_sides_and_ids_are_the_venues(tmp_path: Path) -> None:
    with id_runs.running(tmp_path / "data") as run:
        run.connect()
        run.hear("BTCUSDT", 1, 2, 3)
    export(tmp_path / "data", tmp_path / "nautilus", "nautilus")
    ticks = read_catalog(tmp_path / "nautilus").trade_ticks()
    assert [(str(one.instrument_id), str(one.trade_id), one.aggressor_side.name) for one in ticks] == [
        ("BTCUSDT.BINANCE", str(number), "SELLER") for number in (1, 2, 3)
    ]


def of_symbols(root: Path, *symbols: str) -> Path:
    recording = Recording(root, symbols, started="2026-11-18T12:00:00")
    recording.prove(symbols, "2026-11-18T12:00:00")
    recording.write(*(Print("2026-11-18T12:00:01", symbol, 1e-7, 2.0) for symbol in symbols))
    recording.stop("2026-11-18T12:01:00")
    return root


@needs_nautilus
def test_catalogs_take_the_symbols_that_can_be_read_back(tmp_path: Path) -> None:
    root = of_symbols(tmp_path / "data", "BRK.B", "BTC-USD", "ETH/USD", "^GSPC", "OANDA:EUR_USD")
    export(root, tmp_path / "nautilus", "nautilus")
    told = ["BRK.B.FINNHUB", "BTC-USD.FINNHUB", "ETH/USD.FINNHUB", "EUR_USD.OANDA", "^GSPC.FINNHUB"]
    for instrument in told:
        [tick] = read_catalog(tmp_path / "nautilus").trade_ticks(instrument_ids=[instrument])
        assert (str(tick.instrument_id), str(tick.price)) == (instrument, "0.0000001")
    for symbols, sentence in ((("A;DROP TABLE x",), "can't read a catalog"), (("A/B", "AB"), "are one in a catalog")):
        place = tmp_path / symbols[0].replace("/", "")
        with pytest.raises(IngestorError, match=sentence):
            export(of_symbols(place, *symbols), tmp_path / "other", "nautilus")
        assert not (tmp_path / "other").exists()


def test_without_the_package_the_error_names_it(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nautilus_trader.model.data", None)
    with pytest.raises(ConfigError, match="pip install nautilus_trader"):
        export(root, tmp_path / "nautilus", "nautilus")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_is_not_touched(root: Path, tmp_path: Path) -> None:
    (tmp_path / "hft").mkdir()
    with pytest.raises(ConfigError, match="exists already"):
        export(root, tmp_path / "hft", "hftbacktest")
    with pytest.raises(IngestorError, match="can't export"):
        export(root, tmp_path / "hft" / "no" / "where", "hftbacktest")


def test_a_symbol_is_no_path() -> None:
    names = [name_of(symbol) for symbol in ("../../x", "..", "BINANCE:BTC/USD", "A" * 101, "é" * 128)]
    assert all("/" not in name and len(name) <= 100 for name in names)
    assert len(set(names)) == len(names)


DAY = to_us("2026-11-19")


@pytest.mark.parametrize(
    ("told", "states", "expected"),
    [
        ([("recorded", 0, 9)], ("recorded",), [(0, 9, "")]),
        ([("recorded", 0, 5), ("filled", 5, 7), ("recorded", 7, 9)], ("recorded",), [(0, 5, "filled"), (7, 9, "")]),
        ([("recorded", 0, 5), ("filled", 5, 7), ("recorded", 7, 9)], ("recorded", "filled"), [(0, 9, "")]),
        ([("recorded", 0, 5), ("imported", 5, 9)], ("recorded", "filled"), [(0, 5, "imported")]),
        ([("unproven", 0, 5), ("recorded", 5, 9), ("blind", 9, 10)], ("recorded",), [(5, 9, "blind (stall)")]),
        ([("recorded", 0, 5), ("recorded", 6, 9)], ("recorded",), [(0, 5, ""), (6, 9, "")]),
    ],
)
def test_a_stretch_ends_where_something_may_be_missing(told: list[Any], states: Any, expected: list[Any]) -> None:
    intervals = [
        Interval("A", state, "stall" if state == "blind" else None, DAY + start, DAY + end)
        for state, start, end in told
    ]
    found = [(one.start_us - DAY, one.end_us - DAY, one.ended_by) for one in find_stretches(intervals, states, 0)]
    assert found == expected
