"""Frames are printed, and decoded again: what a decoder once misread is named and made good, trade by trade."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from blocks import AT_US, PING, frame
from click.testing import CliRunner, Result
from recorders import Rig, make_rig
from test_raw import HOSTILE, Put, differences, feed, stop

import ingestor
from ingestor.cli.main import cli
from ingestor.cli.raw import Report, compare_again
from ingestor.dataset.arguments import EVER
from ingestor.dataset.raw import compare_trades
from ingestor.feeds import Decoded, DecodedColumns, Frames
from ingestor.feeds.finnhub import Finnhub
from ingestor.layout import Layout
from ingestor.schema import FORMAT_VERSION, TRADES


class Careless(Finnhub):
    """It forgets every odd lot, and takes the prices of MSFT for cents."""

    def decode(self, frames: Frames) -> Decoded:
        right = super().decode(frames)
        keep = pc.invert(pc.match_substring(right.trades["conditions"], "12").fill_null(False))
        trades = right.trades.filter(keep)
        cents = pc.if_else(pc.equal(trades["symbol"], "MSFT"), pc.divide(trades["price"], 100.0), trades["price"])
        trades = trades.set_column(trades.schema.names.index("price"), trades.schema.field("price"), cents)
        return DecodedColumns(trades, right.frame_of.filter(keep), right.rejects, right.notices)


def puts(count: int, first: int = 0) -> list[Put]:
    """Blocks of two frames, half a second apart, and a ping; all of their trades differ."""
    found = []
    for number in range(first, first + count):
        at_us = AT_US + number * 500_000
        odd_lot: dict[str, Any] = {"c": ["1", "12"], "p": 20.0 + number, "v": number}
        trades = [{"p": 10.0 + number}, odd_lot, {"s": "MSFT", "p": 400.0 + number}]
        same = [one | {"t": at_us // 1000 - 100} for one in trades]
        found.append(Put(1 + number % 2, [frame(*same), PING, frame({**same[0], "v": 7.0})], at_us))
    return found


def record(root: Path, blocks: list[Put], broken: bool, *, run: int = 1) -> Layout:
    rig = make_rig(
        root, "ws://127.0.0.1:9", run=run, keeps_frames=True, feed=(Careless if broken else Finnhub)("ws://x", "k")
    )
    names = ["AAPL", "MSFT"]
    told: dict[str, Any] = {
        "format": FORMAT_VERSION,
        "feed": "finnhub",
        "open_gaps": [],
        "first_segment": run,
        "tickers": names,
        "raw": True,
    }
    at_us = blocks[0].at_us
    rig.ledger.record("run.started", at=at_us - 1, run=run, **told)
    rig.ledger.record("connection.opened", at=at_us - 1, connection=1)
    rig.ledger.record("symbols.requested", at=at_us - 1, connection=1, symbols=names)
    feed(rig, blocks)
    assert stop(rig).violations == 0
    return rig.layout


def hour_frames(second: int) -> list[bytes]:
    """The frames of a moment of the hour, twelve trades in each, some of them alike."""
    at_ms = AT_US // 1000 + second * 1000 - 100
    found = []
    for number in range(2):
        first = second * 24 + number * 12
        items = [
            {
                "s": ("AAPL", "MSFT", "BINANCE:BTCUSDT")[one % 3], "c": ["1", "12"] if one % 4 == 0 else ["1"],
                "p": 100.0 + one // 2, "v": one % 5, "t": at_ms + number,
            }
            for one in range(first, first + 12)
        ]  # fmt: skip
        found.append(frame(*items))
    return found


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """Two runs of a recorder that was careless. No test changes it."""
    root = tmp_path_factory.mktemp("broken")
    record(root, puts(10), broken=True)
    return record(root, puts(10, first=10), broken=True, run=2)


@pytest.fixture
def truth(tmp_path: Path) -> pa.Table:
    """What a recorder that reads rightly makes of the same frames."""
    layout = record(tmp_path / "truth", puts(20), broken=False)
    return without_numbers(layout)


def without_numbers(layout: Layout) -> pa.Table:
    rows = ingestor.read_trades(layout.root, engine="arrow")
    return rows.sort_by("sequence").drop_columns(["sequence"]).combine_chunks()


def call(*arguments: str) -> Result:
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done


def redecode(layout: Layout, *arguments: str) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(call("redecode", "--root", str(layout.root), "--json", *arguments).stdout)
    return told


class TestRedecode:
    def test_the_differences_are_exactly_what_was_broken(self, broken: Layout) -> None:
        told = redecode(broken, "--diff")
        assert (told["frames"], told["trades"]) == (60, {"recorded": 60, "decoded": 80})
        assert told["symbols"] == [
            {"symbol": "AAPL", "added": 20, "missing": 0, "changed": 0},
            {"symbol": "MSFT", "added": 0, "missing": 0, "changed": 20},
        ]
        added = [one["decoded"] for one in told["differences"] if one["kind"] == "added"]
        assert [(one["price"], one["conditions"]) for one in added] == [(20.0 + n, "1,12") for n in range(20)]
        changed = [one for one in told["differences"] if one["kind"] == "changed"]
        assert [(one["recorded"]["price"], one["decoded"]["price"]) for one in changed] == [
            ((400.0 + n) / 100, 400.0 + n) for n in range(20)
        ]

    def test_every_trade_of_the_truth_is_restored(self, broken: Layout, truth: pa.Table, tmp_path: Path) -> None:
        into = Layout(tmp_path / "anew")
        told = redecode(broken, "--into", str(into.root))
        assert told["trades"] == {"recorded": 60, "decoded": 80}
        assert without_numbers(into).equals(truth)
        assert differences(into) == []

    def test_coverage_is_claimed_where_frames_are_and_nowhere_else(self, broken: Layout, tmp_path: Path) -> None:
        start, end = AT_US + 2_000_000, AT_US + 7_000_000
        into = tmp_path / "anew"
        call("redecode", "--root", str(broken.root), "--into", str(into), *span(start, end))
        told = ingestor.read_coverage(into, engine="arrow")
        us = [one.cast(pa.int64()).to_pylist() for one in (told["start"], told["end"])]
        # From the first to the last frame of each run: between them nobody knows.
        runs = {(start, AT_US + 4_500_001), (AT_US + 5_000_000, AT_US + 6_500_001)}
        assert {(first, last) for first, last in zip(*us, strict=True)} <= runs
        assert us[0]

    def test_nothing_differs_where_nothing_was_broken(self, tmp_path: Path) -> None:
        layout = record(tmp_path / "data", puts(5), broken=False)
        assert redecode(layout, "--diff")["differences"] == []
        assert call("redecode", "--root", str(layout.root)).stdout == (
            "15 frames: 20 trades recorded, 20 decoded now; no difference\n"
        )

    def test_a_span_is_one_of_receipt_to_the_millisecond(self, broken: Layout) -> None:
        told = redecode(broken, *span(AT_US + 2_000_000, AT_US + 3_000_000))
        assert (told["frames"], told["trades"]) == (6, {"recorded": 6, "decoded": 8})

    @pytest.mark.long
    def test_an_hour_of_carelessness_is_made_good(self, tmp_path: Path) -> None:
        blocks = [Put(1, hour_frames(second), AT_US + second * 1_000_000) for second in range(0, 3600, 4)]
        careless = record(tmp_path / "data", blocks, broken=True)
        truth = without_numbers(record(tmp_path / "truth", blocks, broken=False))
        told = redecode(careless, "--diff", "--into", str(tmp_path / "anew"))
        assert without_numbers(Layout(tmp_path / "anew")).equals(truth)
        added = sorted(one["decoded"]["price"] for one in told["differences"] if one["kind"] == "added")
        changed = sorted(one["decoded"]["price"] for one in told["differences"] if one["kind"] == "changed")
        odd_lots = pc.match_substring(truth["conditions"], "12")
        of_msft = pc.and_(pc.equal(truth["symbol"], "MSFT"), pc.invert(odd_lots))
        assert added == sorted(truth["price"].filter(odd_lots).to_pylist())
        assert changed == sorted(truth["price"].filter(of_msft).to_pylist())
        assert len(added) + len(changed) == len(told["differences"]) > 10_000

    def test_for_people(self, broken: Layout) -> None:
        lines = call(
            "redecode", "--root", str(broken.root), "--diff", *span(AT_US, AT_US + 500_000)
        ).stdout.splitlines()
        assert lines[0].startswith("changed  ")
        assert lines[0].endswith("MSFT  400.0  1.0  1  (price was 4.0)")
        assert lines[1].startswith("added    ")
        assert lines[-1] == "3 frames: 3 trades recorded, 4 decoded now; 2 differ"

    def test_another_venue_is_refused(self, broken: Layout, tmp_path: Path) -> None:
        config = tmp_path / "binance.yaml"
        config.write_text("feed: {type: binance}\ntickers: [BTCUSDT]\n")
        done = CliRunner().invoke(cli, ["redecode", "--root", str(broken.root), "--config", str(config)])
        assert "name its settings with --config" in str(done.exception)

    def test_trades_are_compared_some_at_a_time(self, broken: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("ingestor.cli.raw._AT_ONCE", 5)
        report = Report()
        assert len(list(compare_again(broken, Finnhub("ws://x", "k"), EVER, report))) == 20
        assert (report.recorded, report.decoded, len(report.differences)) == (60, 80, 40)


def span(start_us: int, end_us: int) -> Iterator[str]:
    for flag, at_us in (("--start", start_us), ("--end", end_us)):
        at = pa.scalar(at_us, pa.timestamp("us", "UTC")).as_py()
        yield from (flag, at.isoformat())


def rows(*trades: dict[str, Any]) -> pa.Table:
    usual = {
        "timestamp": 1, "symbol": "A", "price": 1.0, "volume": 1.0, "conditions": None, "received_at": 5, "sequence": 1,
        "repeated": False,
    }  # fmt: skip
    return pa.Table.from_pylist([usual | one for one in trades], TRADES).drop_columns(["sequence"])


COMPARED: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]], list[str]]] = {
    "nothing": ([], [], []),
    "equal": ([{}, {}], [{}, {}], []),
    "another order": ([{}, {"price": 2.0}], [{"price": 2.0}, {}], []),
    "one less of equals": ([{}, {}], [{}], ["missing"]),
    "one more of equals": ([{}], [{}, {}, {}], ["added", "added"]),
    "a value": ([{"volume": None}], [{}], ["changed"]),
    "another name": ([{"symbol": "B"}], [{}], ["changed"]),
    "another trade": ([{"symbol": "B", "price": 9.0, "volume": 8.0, "timestamp": 7}], [{}], ["missing", "added"]),
    "another moment": ([{"received_at": 6}], [{}], ["missing", "added"]),
    "the most alike": ([{"price": 2.0}], [{"symbol": "B", "price": 3.0}, {"price": 3.0}], ["changed", "added"]),
}


@pytest.mark.parametrize("case", COMPARED)
def test_how_trades_are_compared(case: str) -> None:
    recorded, decoded, kinds = COMPARED[case]
    found = list(compare_trades(rows(*recorded), rows(*decoded)))
    assert [one.kind for one in found] == kinds
    assert {one.decoded["symbol"] for one in found if one.recorded and one.decoded} <= {"A"}


class TestRaw:
    @pytest.fixture(scope="class")
    @classmethod
    def layout(cls, tmp_path_factory: pytest.TempPathFactory) -> Layout:
        rig: Rig = make_rig(tmp_path_factory.mktemp("raw"), "ws://127.0.0.1:9", keeps_frames=True)
        rig.ledger.record(
            "run.started", format=FORMAT_VERSION, run=1, feed="finnhub", open_gaps=[], first_segment=1, raw=True
        )
        feed(rig, [Put(1, [PING, HOSTILE], AT_US), Put(2, [frame({"s": "MSFT"})], AT_US + 1_000_000)])
        stop(rig)
        return rig.layout

    def test_nothing_hostile_reaches_the_terminal(self, layout: Layout) -> None:
        lines = call("raw", "--root", str(layout.root)).stdout.splitlines()
        assert [line.split("  ", 3)[1:] for line in lines] == [
            ["1", "0", '{"type":"ping"}'],
            ["1", "1", "\\x1b]0;owned\\x07\\xff\\x00\\u202e\\r\\n"],
            ["2", "2", frame({"s": "MSFT"}).decode()],
        ]

    def test_a_copy_of_the_frames_alone_is_enough(self, layout: Layout, tmp_path: Path) -> None:
        shutil.copytree(layout.raw, tmp_path / "raw")
        assert call("raw", "--root", str(tmp_path)).stdout == call("raw", "--root", str(layout.root)).stdout
        done = CliRunner().invoke(cli, ["raw", "--root", str(tmp_path / "raw")])
        assert "holds no recording" in str(done.exception)

    def test_json_has_the_bytes(self, layout: Layout) -> None:
        lines = call("raw", "--root", str(layout.root), "--json").stdout.splitlines()
        told = [json.loads(line) for line in lines]
        assert told[0]["text"] == '{"type":"ping"}'
        assert (told[1]["text"], told[1]["base64"]) == (None, "G10wO293bmVkB/8A4oCuDQo=")

    def test_of_some_symbols(self, layout: Layout) -> None:
        found = call("raw", "--root", str(layout.root), "--symbols", "MSFT,AMD").stdout
        assert (found.count("\n"), "MSFT" in found) == (1, True)
        none = call("raw", "--root", str(layout.root), "--symbols", "MS")
        assert (none.stdout, "no such frames" in none.stderr) == ("", True)
