"""How a recorder is, asked from another process: who holds the root, what it says, how fast its files grow."""

import json
import os
import re
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from journals import make_ledger
from prepared import FRAME, prepared_recording, record_frames

from ingestor.cli.main import cli
from ingestor.cli.status import describe
from ingestor.layout import Layout, RootLock, locked_root
from ingestor.ledger import now_us
from ingestor.operations.collector import Watch
from ingestor.operations.health import HealthServer
from ingestor.operations.recorder_status import RecorderStatus, SinkLag, Status, measure_growth, read_status
from ingestor.operations.systemd import summarize
from ingestor.recording import Recording

DAY_S = 86_400.0
NOW = 1_795_200_000.0


@pytest.fixture
def recording(tmp_path: Path) -> Iterator[Recording]:
    with prepared_recording(tmp_path) as recording:
        yield recording


@pytest.fixture
def lock(recording: Recording) -> Iterator[RootLock]:
    with locked_root(recording.layout) as lock:
        yield lock


@pytest.fixture
def server(recording: Recording, lock: RootLock) -> Iterator[HealthServer]:
    server = HealthServer("127.0.0.1:0", Watch(recording))
    lock.announce(health=server.address)
    yield server
    server.close()


def call(layout: Layout, *flags: str) -> Result:
    return CliRunner().invoke(cli, ["status", "--root", str(layout.root), *flags])


# Who, and how


def test_nothing_runs(recording: Recording) -> None:
    assert read_status(recording.layout).exit_code == 3
    assert call(recording.layout).exit_code == 3


def test_a_directory_that_never_was_a_recording(tmp_path: Path) -> None:
    found = call(Layout(tmp_path / "nothing"))
    assert found.exit_code == 3
    assert "not running" in found.stdout


def test_to_look_is_not_to_lock(recording: Recording) -> None:
    read_status(recording.layout)
    with locked_root(recording.layout):
        pass


def test_a_running_one_says_what_is_wrong(recording: Recording, server: HealthServer) -> None:
    found = read_status(recording.layout)
    assert found.holder is not None
    assert (found.holder.pid, found.holder.health) == (os.getpid(), server.address)
    assert found.exit_code == 1
    assert found.ailments == ["not connected to the venue"]


def test_one_that_answers_nowhere_is_not_called_healthy(recording: Recording, lock: RootLock) -> None:
    lock.announce(health=None)
    found = read_status(recording.layout)
    assert found.exit_code == 1
    assert found.ailments == ["nobody can say how it is: health.listen is off, or its port was taken"]


def test_one_that_does_not_answer_is_not_called_healthy(recording: Recording, lock: RootLock) -> None:
    lock.announce(health="127.0.0.1:9")
    found = read_status(recording.layout)
    assert found.exit_code == 1
    assert found.ailments[0].startswith("it does not answer at 127.0.0.1:9")


def test_symbols_with_a_gap_of_their_own_degrade_it(recording: Recording, server: HealthServer) -> None:
    recording.gaps.open("refused", 1, "MSFT")
    assert "blind for MSFT: see `ingestor coverage`" in read_status(recording.layout).ailments


def test_while_blind_nothing_says_otherwise(recording: Recording, server: HealthServer) -> None:
    """Symbols that ticked a moment ago don't tick, and the gap that is open counts up to now."""
    sent_us = now_us()
    record_frames(recording, [FRAME % (b"AAPL", sent_us // 1000)], sent_us - 41_000_000)
    recording.gaps.close(sent_us - 41_000_000)
    recording.gaps.open("connection", sent_us - 40_000_000)
    found = read_status(recording.layout)
    assert found.vitals is not None
    told = dict(describe(found))
    assert told["venue"].startswith("not connected, 0 of 2 symbols ticking")
    assert re.search(r"connection \(4\d s\)", told["gaps"])
    assert summarize(found.vitals).startswith("not connected")
    assert re.search(r"^ingestor_symbols_ticking 0.0$", get_metrics(server), re.MULTILINE)


@pytest.mark.parametrize(
    ("frames", "degraded"),
    [([b"\x1b[2J"], True), ([FRAME % (b"AAPL", now_us() // 1000), b"\x1b[2J"], False)],
)
def test_what_fits_nothing_is_told_with_a_sample(
    recording: Recording, server: HealthServer, frames: list[bytes], degraded: bool
) -> None:
    """It degrades a recording that has no trade at all."""
    record_frames(recording, frames, now_us())
    found = read_status(recording.layout)
    assert dict(describe(found))["unread"] == r"1 messages fit nothing, such as (not_json): \x1b[2J"
    told = [one for one in found.ailments if "no message could be read as a trade" in one]
    assert bool(told) == degraded


def get_metrics(server: HealthServer) -> str:
    with urllib.request.urlopen(f"http://{server.address}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


def test_programs_get_all_of_it(recording: Recording, server: HealthServer) -> None:
    found = call(recording.layout, "--json")
    told = json.loads(found.stdout)
    assert told["exit_code"] == found.exit_code == 1
    assert told["vitals"]["link"]["symbols"] == 2
    assert told["holder"]["pid"] == os.getpid()


# In a terminal


def lively(vitals: RecorderStatus) -> RecorderStatus:
    """The same, as large as it gets."""
    link = replace(vitals.link, connected=True, answered=True, ticking=498, symbols=500, gaps={"connection": 12})
    counts = replace(vitals.flow.counts, trades=12_345_678_901)
    flow = replace(vitals.flow, trades_per_s=50_123.4, counts=counts)
    return replace(vitals, link=link, flow=flow, disk=replace(vitals.disk, sinks=(SinkLag("csv", 9_999_999, 880.0),)))


def test_it_fits_a_terminal_of_eighty_columns(recording: Recording, server: HealthServer) -> None:
    found = read_status(recording.layout)
    assert found.vitals is not None
    full: Status = replace(found, vitals=lively(found.vitals), ailments=[], bytes_per_day=3e10, days_left=2.4)
    lines = [f"{heading:<11} {text}" for heading, text in describe(full)][1:]
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    for expected in (
        "healthy",
        "50,123.4 per second",
        "498 of 500",
        "12 no connection",
        "27.9 GB per day: 2 days left",
    ):
        assert expected in text


# Growth


def grown(tmp_path: Path, started: str, files: dict[str, tuple[int, float]]) -> float | None:
    """A root whose first run began then, with these files (size, age in seconds)."""
    layout = Layout(tmp_path)
    layout.create()
    began_us = round(datetime.strptime(started, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp() * 1e6)
    ledger = make_ledger(layout)
    ledger.record("run.started", at=began_us, run=1, open_gaps=[])
    ledger.close()
    for path in layout.root.rglob("*.json*"):
        os.utime(path, (NOW - 2 * DAY_S, NOW - 2 * DAY_S))
    for name, (size, age_s) in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(size))
        os.utime(path, (NOW - age_s, NOW - age_s))
    return measure_growth(layout, NOW)


def test_growth_is_what_the_last_day_brought(tmp_path: Path) -> None:
    files = {
        "trades/date=2026-11-20/a.parquet": (1000, 3600.0),
        "trades/date=2026-11-19/b.parquet": (500, 0.9 * DAY_S),
        "trades/date=2026-11-19/c.parquet": (90_000, 1.1 * DAY_S),
        "csv/date=2026-11-20/a.csv": (7000, 60.0),
        "rejects/date=2026-11-20.jsonl": (10, 60.0),
        "journal/x.journal": (1 << 20, 1.0),  # comes and goes
    }
    assert grown(tmp_path, "20261101T000000Z", files) == 8510


def test_growth_of_the_first_day_is_scaled_up(tmp_path: Path) -> None:
    started = "20261120T174000Z"  # an hour before NOW
    assert NOW == 1_795_200_000
    rate = grown(tmp_path, started, {"trades/date=2026-11-20/a.parquet": (1000, 60.0)})
    assert rate == pytest.approx(24_000, rel=0.01)


def test_growth_of_the_first_minutes_is_unknown(tmp_path: Path) -> None:
    assert grown(tmp_path, "20261120T183500Z", {"trades/date=2026-11-20/a.parquet": (1000, 1.0)}) is None
