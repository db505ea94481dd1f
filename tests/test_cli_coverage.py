"""`ingestor coverage`: the ledger of a root as a table and as JSON, within a span, in a time zone."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from journals import NOON, Life, block, make_ledger, make_root, trades

from ingestor.cli.main import cli
from ingestor.errors import NotARecording
from ingestor.layout import Layout
from ingestor.schema import FORMAT_VERSION

NOON_US = round(NOON.timestamp() * 1e6)


def at(seconds: float) -> int:
    return NOON_US + round(seconds * 1e6)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """A and B asked for at noon; A ticks from 10 s on; all is blind from 60 to 90 s, B from 20 s on; 100 s in all."""
    layout = make_root(tmp_path / "data")
    ledger = make_ledger(layout)
    ledger.record("run.started", at=at(-1), format=FORMAT_VERSION, tickers=["A", "B"], open_gaps=[])
    ledger.record("symbols.requested", at=at(0), connection=1, symbols=["A", "B"])
    ledger.record("symbol.proven", at=at(10), connection=1, symbol="A", since=at(10))
    ledger.record("gap.opened", at=at(21), gap="g1", cause="refused", since=at(20) - 1, symbol="B")
    ledger.record("gap.opened", at=at(62), gap="g2", cause="connection", since=at(60) - 1, symbol=None)
    ledger.record("symbols.requested", at=at(89), connection=2, symbols=["A", "B"])
    ledger.record("gap.closed", at=at(90), gap="g2", cause="connection", until=at(90), symbol=None)
    ledger.record("symbol.proven", at=at(90), connection=2, symbol="A", since=at(90))
    ledger.record("segment.closed", at=at(100), segment="000000000001-20261120T120000Z-r000001",
                  first_received=0, last_received=0, counts={}, reasons={}, aside=0)  # fmt: skip
    assert ledger.close()
    return layout


def call(layout: Layout, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["coverage", "--root", str(layout.root), *arguments])


def report(layout: Layout, *arguments: str) -> Any:
    done = call(layout, "--json", *arguments)
    assert done.exit_code == 0
    return json.loads(done.stdout)


def test_the_table(layout: Layout) -> None:
    lines = [line.split() for line in call(layout, "--wide").stdout.splitlines()]
    assert lines[1] == [
        "A",
        "2026-11-20T12:00:00.000Z",
        "2026-11-20T12:01:40.000Z",
        "60.00",
        "30.00",
        "10.00",
        "1",
    ]
    assert lines[2][3:] == ["0.00", "80.00", "20.00", "1"]
    assert ["2026-11-20T12:01:00.000Z", "2026-11-20T12:01:30.000Z", "30.000", "connection", "all"] in lines
    assert ["2026-11-20T12:00:20.000Z", "2026-11-20T12:01:40.000Z", "80.000", "refused", "B"] in lines
    assert lines[-2:] == [["connection", "30.000"], ["refused", "80.000"]]


def test_json(layout: Layout) -> None:
    told = report(layout)
    assert told["horizon"] == "2026-11-20T12:01:40.000Z"
    assert told["symbols"][0] == {
        "symbol": "A",
        "start": "2026-11-20T12:00:00.000Z",
        "end": "2026-11-20T12:01:40.000Z",
        "recorded": 0.6,
        "blind": 0.3,
        "unproven": 0.1,
        "filled": 0.0,
        "imported": 0.0,
        "gaps": 1,
        "proved_by_ids": 0.0,
        "ids": None,
        "missing": None,
    }
    assert [(gap["cause"], gap["seconds"], gap["symbol"]) for gap in told["gaps"]] == [
        ("refused", 80.0, "B"),
        ("connection", 30.0, None),
    ]
    assert told["blind_by_cause"] == {"connection": 30.0, "refused": 80.0}
    assert [(one["symbol"], one["state"], one["cause"], one["seconds"]) for one in told["intervals"]] == [
        ("A", "unproven", None, 10.0),
        ("A", "recorded", None, 50.0),
        ("A", "blind", "connection", 30.0),
        ("A", "recorded", None, 10.0),
        ("B", "unproven", None, 20.0),
        ("B", "blind", "refused", 80.0),
    ]


def test_a_span_in_a_zone(layout: Layout) -> None:
    told = report(layout, "--tz", "America/New_York", "--start", "2026-11-20T07:01:20", "--end", "2026-11-20T07:01:35")
    assert told["gaps"][1] == {
        "start": "2026-11-20T07:01:20.000-05:00",
        "end": "2026-11-20T07:01:30.000-05:00",
        "seconds": 10.0,
        "cause": "connection",
        "symbol": None,
    }
    assert told["symbols"][0]["blind"] == pytest.approx(2 / 3)
    assert told["blind_by_cause"] == {"connection": 10.0, "refused": 15.0}


def test_symbols(layout: Layout) -> None:
    told = report(layout, "--symbols", "A")
    assert [one["symbol"] for one in told["symbols"]] == ["A"]
    assert [gap["symbol"] for gap in told["gaps"]] == [None]


def test_a_span_in_which_nothing_is_claimed(layout: Layout) -> None:
    told = report(layout, "--end", "2026-11-20")
    assert told["symbols"][0] == {
        "symbol": "A", "start": None, "end": None, "recorded": None, "blind": None, "unproven": None, "filled": None,
        "imported": None,
        "gaps": 0,
        "proved_by_ids": None, "ids": None, "missing": None,
    }  # fmt: skip
    assert told["gaps"] == told["intervals"] == []
    assert call(layout, "--end", "2026-11-20").exit_code == 0


def test_beside_a_recorder_the_newest_frame_is_the_last_word(tmp_path: Path) -> None:
    layout = make_root(tmp_path)
    life = Life(layout)
    life.ledger.record("symbols.requested", at=at(0), connection=1, symbols=["AAPL"])
    later = trades(life.writer.sequence, 3, at=NOON.replace(year=NOON.year + 100))
    life.writer.journal.append(block(later))
    told = report(layout)
    assert told["horizon"].startswith("2126-11-20T12:00:00")
    assert told["symbols"][0]["end"] == told["horizon"]
    life.stop()
    assert report(layout)["horizon"] < told["horizon"]  # what the stop's facts say, by the clock of that moment


def test_no_recording(tmp_path: Path) -> None:
    done = call(Layout(tmp_path))
    assert isinstance(done.exception, NotARecording)
    assert done.exception.exit_code == 2
    assert str(tmp_path) in str(done.exception)
