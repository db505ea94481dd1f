"""`head`, `bars`, `describe` and `compact`: what they print, as a table and as JSON."""

import json
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from recordings import Print, Recording, make_sample

import ingestor
from ingestor.cli.main import cli
from ingestor.dataset.compact import locked_maintenance
from ingestor.ledger import Ledger


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    return make_sample(tmp_path_factory.mktemp("commands") / "data")


def call(recording: Recording, *arguments: str) -> Result:
    return CliRunner().invoke(cli, [*arguments, "--root", str(recording.layout.root)])


def as_json(recording: Recording, *arguments: str) -> Any:
    result = call(recording, *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_head(sample: Recording) -> None:
    lines = call(sample, "head", "--count", "2", "--tz", "America/New_York").stdout.splitlines()
    assert [line.split()[:3] for line in lines] == [
        ["timestamp", "symbol", "price"],
        ["2026-11-19T09:00:00.000-05:00", "AAPL", "230"],
        ["2026-11-19T09:00:15.000-05:00", "MSFT", "430.301"],
    ]
    found = as_json(sample, "head", "--symbols", "MSFT", "--start", "2026-11-20T15:00")
    assert [row["symbol"] for row in found] == ["MSFT"] * 10
    assert found[0]["timestamp"] == "2026-11-20T15:00:15.000Z"
    assert found[0]["repeated"] is False


def test_bars(sample: Recording) -> None:
    arguments = ["bars", "1h", "--symbols", "AAPL", "--tz", "America/New_York", "--session", "regular"]
    found = as_json(sample, *arguments, "--start", "2026-11-20")
    table = ingestor.read_bars(
        sample.layout.root, "1h", ["AAPL"], "2026-11-20", tz="America/New_York", session="regular", engine="arrow"
    )
    expected = table.to_pylist()
    assert [bar["start"] for bar in found] == [bar["start"].isoformat() for bar in expected]
    assert [(bar["open"], bar["vwap"], bar["coverage"]) for bar in found] == [
        (bar["open"], bar["vwap"], bar["coverage"]) for bar in expected
    ]
    heading, *lines = call(sample, *arguments, "--wide").stdout.splitlines()
    assert heading.replace(" %", "").split() == table.column_names
    assert len(lines) == 6


def test_more_bars_where_they_are_filled(sample: Recording) -> None:
    few, many = (as_json(sample, "bars", "15s", "--symbols", "AAPL", *fill) for fill in ([], ["--fill"]))
    assert len(many) > len(few)
    assert all(bar["volume"] == 0 for bar in many if bar not in few)


def test_an_interval_that_is_none(sample: Recording) -> None:
    result = call(sample, "bars", "7m")
    assert result.exit_code == 2
    assert "doesn't divide a day" in result.stderr


def test_describe(sample: Recording) -> None:
    found = as_json(sample, "describe", "--symbols", "AAPL")
    assert [(one["symbol"], one["trades"], one["gaps"], one["delay_p50_ms"]) for one in found] == [
        ("AAPL", 480, 1, 100)
    ]
    heading, *lines = call(sample, "describe", "--wide").stdout.splitlines()
    assert heading.split()[:4] == ["symbol", "first", "last", "trades"]
    assert [line.split()[0] for line in lines] == ["AAPL", "BINANCE:BTCUSDT", "MSFT", "OANDA:EUR_USD"]


def test_the_times_of_a_description_are_in_the_zone_asked_for(sample: Recording) -> None:
    utc, new_york = (as_json(sample, "describe", *zone)[0] for zone in ([], ["--tz", "America/New_York"]))
    assert (utc["first"], new_york["first"]) == ("2026-11-19T14:00:00.000Z", "2026-11-19T09:00:00.000-05:00")


def test_a_warning_is_a_line_as_an_error_is(tmp_path: Path) -> None:
    recording = Recording(tmp_path)
    make_trade(recording)
    ledger = Ledger(recording.layout, 2, date(2026, 11, 21))
    ledger.record("run.started", format=2, run=2, formats=["csv"], open_gaps=[])
    assert ledger.close()
    command = [sys.executable, "-m", "ingestor", "head", "--root", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"warning: {tmp_path} records CSV only since ")
    assert "AAPL" in done.stdout


def test_a_table_of_nothing(tmp_path: Path) -> None:
    recording = Recording(tmp_path)
    for command in (["head"], ["bars", "1m"], ["describe"]):
        result = call(recording, *command)
        assert (result.exit_code, len(result.stdout.splitlines())) == (0, 1)
        assert as_json(recording, *command) == []


def run_compact(recording: Recording, *options: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: it sets the log up."""
    command = [sys.executable, "-m", "ingestor", "compact", "--root", str(recording.layout.root), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def make_trade(recording: Recording) -> None:
    recording.write(Print("2020-01-01T12:00", "AAPL", 1, 1))
    recording.seal()


@pytest.mark.long
def test_compact(tmp_path: Path) -> None:
    recording = Recording(tmp_path, started="2020-01-01")
    for _ in range(2):
        make_trade(recording)
    done = run_compact(recording)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("2020-01-01: 2 trades, 2 files (")
    assert run_compact(recording).stdout == "Nothing to compact.\n"
    make_trade(recording)
    (told,) = json.loads(run_compact(recording, "--json").stdout)
    assert (told["day"], told["rows"], told["files_before"], told["files_after"]) == ("2020-01-01", 3, 2, 1)
    assert json.loads(run_compact(recording, "--json").stdout) == []


def test_compact_in_the_background_logs_what_it_does(tmp_path: Path) -> None:
    recording = Recording(tmp_path, started="2020-01-01")
    for _ in range(2):
        make_trade(recording)
    done = run_compact(recording, "--background")
    events = [json.loads(line)["event"] for line in done.stderr.splitlines()]
    assert events == ["ledger.closed", "day.closed", "day.compacted"]


def test_a_second_compaction_fails_and_says_why(tmp_path: Path) -> None:
    recording = Recording(tmp_path)
    with locked_maintenance(recording.layout):
        done = run_compact(recording)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: {tmp_path} is being compacted by another process\n"


@pytest.mark.parametrize("command", [["head"], ["bars", "1m"], ["describe"], ["export", "x.csv"]])
def test_what_is_no_recording(tmp_path: Path, command: list[str]) -> None:
    result = CliRunner().invoke(cli, [*command, "--root", str(tmp_path)])
    assert "holds no recording" in str(result.exception)
