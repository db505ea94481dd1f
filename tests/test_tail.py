"""`ingestor tail`: what it prints of trades that come while it runs."""

import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pytest
from journals import NOON, Life, block, make_root
from prepared import prepared_recording
from requirements import of_tier

from ingestor.cli.read import TailNotes
from ingestor.layout import locked_root
from ingestor.ledger import now_us
from ingestor.schema import TRADES

SHIB = "BINANCE:SHIBUSDT"


def tail(root: Path, *options: str) -> list[str]:
    """Its lines while the same two trades come again and again."""
    life = Life(make_root(root))
    command = [sys.executable, "-m", "ingestor", "tail", "--root", str(root), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            while process.poll() is None:
                first, life.writer.sequence = life.writer.sequence, life.writer.sequence + 2
                life.writer.journal.append(block(pa.RecordBatch.from_pylist([aapl(first), shib(first + 1)], TRADES)))
                with suppress(subprocess.TimeoutExpired):
                    process.wait(0.1)
        except BaseException:
            process.kill()
            raise
        assert process.stdout is not None
        lines = process.stdout.read().splitlines()
    life.stop()
    assert process.returncode == 0
    return lines


def aapl(sequence: int) -> dict[str, object]:
    return {
        "timestamp": NOON, "symbol": "AAPL", "price": 189.45, "volume": 1200.0, "conditions": "1,12",
        "received_at": NOON, "sequence": sequence, "repeated": True,
    }  # fmt: skip


def shib(sequence: int) -> dict[str, object]:
    return aapl(sequence) | {"symbol": SHIB, "price": 1.234e-05, "volume": None, "conditions": None, "repeated": False}


@pytest.mark.parametrize(
    ("options", "hour"),
    of_tier([([], "12"), (["--tz", "America/New_York"], "07")], [(["--tz", "America/New_York"], "07")]),
)
def test_a_line_a_trade(tmp_path: Path, options: list[str], hour: str) -> None:
    lines = tail(tmp_path, "--count", "2", *options)
    assert lines == [line.rstrip() for line in lines]
    assert [line.split() for line in lines] == [
        [f"{hour}:00:00.000", "AAPL", "189.45", "1,200", "1,12", "repeated"],
        [f"{hour}:00:00.000", SHIB, "0.00001234"],
    ]


def test_json(tmp_path: Path) -> None:
    (line,) = tail(tmp_path, "--count", "1", "--symbols", SHIB, "--json")
    told = json.loads(line)
    assert list(told) == TRADES.names
    assert (told["timestamp"], told["received_at"]) == ("2026-11-20T12:00:00.000Z", "2026-11-20T12:00:00.000000Z")
    assert (told["price"], told["volume"]) == (1.234e-05, None)


def test_it_says_why_no_trades_come(tmp_path: Path) -> None:
    with prepared_recording(tmp_path) as recording:
        notes = TailNotes(recording.layout, ("AAPL",))
        assert list(notes.look()) == [f"no recorder runs on {recording.layout.root}: waiting for one"]
        assert list(notes.look()) == []
        with locked_root(recording.layout):
            recording.ledger.record("symbols.requested", connection=1, symbols=["AAPL", "MSFT"])
            recording.gaps.open("connection", now_us())
            assert list(notes.look()) == ["a recorder runs again", "blind (no connection): all symbols"]
            assert list(notes.look()) == []
            recording.gaps.close(now_us())
            assert list(notes.look()) == ["no longer blind"]
