"""The service under a real systemd, from installation to stop: what docs/operate.md promises an operator."""

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from documents import read, shell_lines, split_sections
from harness import read_parquet, wait_for
from journals import one_by_one
from machine import DEPENDENCIES, PREFIX, Machine, booted_machine
from simulated_venues import read_truth

from ingestor.layout import Layout

pytestmark = [pytest.mark.alone, pytest.mark.needs("machine")]

KEY = "c0ffee-not-a-real-key"
VENUE = "ws://127.0.0.1:8765"
SETTINGS = f"""\
feed: {{url: "{VENUE}"}}
tickers: [AAPL, MSFT, BINANCE:BTCUSDT]
storage: {{min_free: 0B}}
"""
IMPATIENT = "[Service]\nWatchdogSec=4\nLimitCORE=0\n"
"""The watchdog's two minutes are too long for a test."""
ROOT = "/var/lib/finnhub-ingestor/data"
CONFIG = "/etc/finnhub-ingestor/ingestor.yaml"
STOP_THREAD = Path(__file__).with_name("stop_thread.py")


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A system with the service installed as docs/operate.md says, and a venue."""
    with booted_machine(tmp_path_factory.mktemp("systemd")) as machine:
        machine.write("/srv/ingestor.yaml", SETTINGS)
        machine.write("/srv/.env", f"FINNHUB_API_KEY={KEY}\n", 0o600)
        machine.run(f"{PREFIX}/bin/ingestor", "install", "--config", "/srv/ingestor.yaml")
        machine.write("/etc/systemd/system/ingestor.service.d/test.conf", IMPATIENT)
        machine.run("systemctl", "daemon-reload")
        machine.run(
            *("systemd-run", "--unit=venue", "-p", "Type=exec", f"{PREFIX}/bin/ingestor", "simulate"),
            *("--any-key", "--seed", "7", "--rate", "500", "--truth", "/srv/truth.jsonl"),
        )
        machine.run("systemctl", "enable", "--now", "ingestor")
        yield machine


def status(machine: Machine) -> dict[str, Any]:
    """What `ingestor status` says there; the exit code is in it."""
    told = machine.call("ingestor", "status", "--config", CONFIG, "--root", ROOT, "--json").stdout
    found: dict[str, Any] = json.loads(told)
    return found


def facts(machine: Machine) -> list[dict[str, Any]]:
    """The ledgers of all runs."""
    paths = sorted((machine.root / ROOT.lstrip("/") / "ledger").glob("*.jsonl"))
    lines = (line for path in paths for line in path.read_text().splitlines() if line.endswith("}"))
    return list(one_by_one(map(json.loads, lines)))


def wait_until_recording(machine: Machine, run: int) -> dict[str, Any]:
    """The vitals of this run, once it is healthy."""

    def healthy() -> dict[str, Any] | None:
        found = status(machine)
        vitals: dict[str, Any] | None = found["vitals"]
        return vitals if found["exit_code"] == 0 and vitals and vitals["run"] == run else None

    return wait_for(healthy, f"run {run} in health: {machine.journal('ingestor')[-3000:]}")


# In the order of an operator's day; each leaves the service running.


def test_the_units_are_sound(machine: Machine) -> None:
    assert machine.run("systemd-analyze", "verify", "--man=no", "ingestor.service", "ingestor@main.service") == ""
    for unit in ("ingestor.service", "ingestor@main.service"):
        machine.run("systemd-analyze", "security", "--threshold=15", "--no-pager", unit)
    assert machine.show("ingestor", "MemoryMax") == str(2 << 30)


def test_started_means_subscribed_and_answered(machine: Machine) -> None:
    """`enable --now` has returned: systemd was told READY."""
    assert machine.show("ingestor", "ActiveState") == "active"
    requested = next(fact for fact in facts(machine) if fact["fact"] == "symbols.requested")
    assert requested["symbols"] == ["AAPL", "MSFT", "BINANCE:BTCUSDT"]
    vitals = wait_until_recording(machine, 1)
    assert vitals["link"]["answered"]
    rates = re.compile(r"recording [1-9]\d*\.\d trades/s; 3 of 3 symbols ticking")
    wait_for(lambda: rates.match(machine.show("ingestor", "StatusText")), "a STATUS with rates")


def test_a_member_of_the_group_can_read_and_nobody_else(machine: Machine) -> None:
    machine.run("useradd", "-G", "ingestor", "alice")
    machine.run("useradd", "mallory")
    list_all = ("find", "/var/lib/finnhub-ingestor", "-type", "f")
    files = machine.run("runuser", "-u", "alice", "--", *list_all).splitlines()
    assert any(path.endswith(".journal") for path in files)
    for path in files:
        machine.run("runuser", "-u", "alice", "--", "head", "-c1", path)
        assert machine.call("runuser", "-u", "alice", "--", "sh", "-c", f"echo >> '{path}'").returncode != 0
    assert machine.call("runuser", "-u", "mallory", "--", *list_all).returncode != 0
    for user in ("alice", "mallory", "ingestor"):
        assert machine.call("runuser", "-u", user, "--", "cat", "/etc/finnhub-ingestor/api-key").returncode != 0


def test_the_key_is_in_no_environment_and_on_no_command_line(machine: Machine) -> None:
    pid = machine.show("ingestor", "MainPID")
    assert "CREDENTIALS_DIRECTORY" in machine.run("cat", f"/proc/{pid}/environ")
    assert KEY not in machine.run("cat", f"/proc/{pid}/environ", f"/proc/{pid}/cmdline")
    assert KEY not in machine.run("systemctl", "show", "ingestor")


def test_reload_adds_a_ticker_without_reconnecting(machine: Machine) -> None:
    before = machine.show("ingestor", "MainPID")
    _edit(machine, lambda text: text.replace("MSFT", "NVDA"))
    machine.run("systemctl", "reload", "ingestor")
    changed = next(fact for fact in facts(machine) if fact["fact"] == "settings.reloaded")
    assert (changed["added"], changed["dropped"]) == (["NVDA"], ["MSFT"])
    proven = wait_for(lambda: _find(machine, fact="symbol.proven", symbol="NVDA"), "a trade of NVDA")
    assert proven["connection"] == 1
    assert machine.show("ingestor", "MainPID") == before
    assert machine.show("ingestor", "ActiveState") == "active"


def test_a_broken_file_is_refused_and_the_old_settings_stay(machine: Machine) -> None:
    good = _edit(machine, lambda text: text.replace("tickers", "tikkers"))
    assert machine.call("systemctl", "reload", "ingestor").returncode != 0
    assert "unknown key `tikkers`: did you mean `tickers`?" in machine.journal("ingestor")
    machine.write(CONFIG, good)
    assert status(machine)["vitals"]["link"]["symbols"] == 3
    assert _find(machine, fact="connection.lost") is None


def test_a_second_recorder_of_the_same_key_is_told_who_has_it(machine: Machine) -> None:
    machine.write("/etc/finnhub-ingestor/second.yaml", SETTINGS + "health: {listen: null}\n")
    machine.write("/etc/finnhub-ingestor/second.key", KEY, 0o600)
    machine.run("systemd-tmpfiles", "--create", "finnhub-ingestor.conf")
    assert machine.call("systemctl", "start", "ingestor@second").returncode != 0
    first = machine.show("ingestor", "MainPID")
    assert f"process {first} of user ingestor on this machine records with this API key" in machine.journal(
        "ingestor@second"
    )
    assert machine.show("ingestor@second", "ActiveState") == "failed"  # and is not tried again
    assert machine.show("ingestor@second", "NRestarts") == "0"
    machine.run("systemctl", "reset-failed", "ingestor@second")


def test_killed_it_is_restarted_and_salvaged(machine: Machine) -> None:
    wait_until_recording(machine, 1)
    machine.run("systemctl", "kill", "-s", "KILL", "ingestor")
    wait_until_recording(machine, 2)
    assert machine.show("ingestor", "NRestarts") == "1"
    gaps = [gap["cause"] for fact in facts(machine) if fact["fact"] == "run.started" for gap in fact["open_gaps"]]
    assert gaps == ["crash"]


def test_a_stopped_recorder_thread_is_found_by_the_watchdog(machine: Machine) -> None:
    pid = machine.show("ingestor", "MainPID")
    machine.write("/srv/stop_thread.py", STOP_THREAD.read_text())
    with machine.start(f"{PREFIX}/bin/python3", "/srv/stop_thread.py", pid, "recorder") as tracer:
        assert tracer.stdout is not None
        assert tracer.stdout.readline() == "stopped\n"
        wait_until_recording(machine, 3)
        assert tracer.wait(10) == 0
    assert "Watchdog timeout" in machine.journal()
    assert "recorder.py" in machine.journal("ingestor")  # the watchdog's signal has left a trace of every thread


def test_stopped_it_has_sealed_everything(machine: Machine) -> None:
    """Nothing the venue sent is missing outside the gaps, and the key was shown to nobody."""
    began_s = time.monotonic()
    machine.run("systemctl", "stop", "ingestor")
    took_s = time.monotonic() - began_s
    assert machine.show("ingestor", "Result") == "success"
    assert machine.show("ingestor", "ExecMainStatus") == "0"
    assert took_s < 60
    layout = Layout(machine.root / ROOT.lstrip("/"))
    recorded = read_parquet(layout)
    assert not [path for path in layout.journal.glob("*.journal") if not path.name.endswith(".sealed.journal")]
    machine.run("systemctl", "stop", "venue")
    _assert_nothing_invented(recorded, read_truth(machine.root / "srv/truth.jsonl"))
    assert KEY not in machine.journal()
    assert machine.call("grep", "-rlF", KEY, "/var/lib/finnhub-ingestor").stdout == ""


def test_taken_off_as_the_docs_say_the_recording_stays(machine: Machine) -> None:
    """The last one."""
    machine.run("rm", "-r", "/etc/systemd/system/ingestor.service.d")  # this test's own
    for line in shell_lines(split_sections(read("docs/operate.md"))["Uninstall"]):
        machine.run("sh", "-ec", line.removeprefix("sudo "))
    places = ("/etc", "/opt", "/usr/lib/systemd", "/usr/local")
    ours = ("-path", DEPENDENCIES, "-prune")  # the checkout's packages, which a machine would not have
    assert machine.run("find", *places, *ours, "-o", "-name", "*ingestor*", "-print") == ""
    assert machine.show("ingestor", "LoadState") == "not-found"
    assert machine.run("find", ROOT, "-name", "*.parquet") != ""


def _edit(machine: Machine, change: Callable[[str], str]) -> str:
    """Change the settings in place, as an editor would; the text before."""
    before = machine.run("cat", CONFIG)
    machine.write(CONFIG, change(before))
    return before


def _find(machine: Machine, **wanted: Any) -> dict[str, Any] | None:
    return next((fact for fact in facts(machine) if wanted.items() <= fact.items()), None)


def _assert_nothing_invented(recorded: pa.Table, truth: pa.Table) -> None:
    columns = ["symbol", "timestamp", "price", "volume"]
    sent = {tuple(row.values()) for row in truth.select(columns).to_pylist()}
    kept = {tuple(row.values()) for row in recorded.select(columns).to_pylist()}
    assert kept <= sent
    assert recorded.num_rows > 1000
