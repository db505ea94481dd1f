"""What the service manager is told, and when; and that the units say what they should. Under a real systemd:
tests/scenarios/test_service.py.
"""

import re
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from prepared import prepared_recording
from requirements import require

from ingestor.cli.setup import PREFIX, Write, _plan
from ingestor.operations.collector import Watch
from ingestor.operations.recorder_status import RecorderStatus
from ingestor.operations.systemd import Notifier, Service, summarize

UNITS = Path(__file__).parents[1] / "systemd"
BOTH = pytest.mark.parametrize("unit", ["ingestor.service", "ingestor@.service"])


@pytest.fixture
def waiting(tmp_path: Path) -> RecorderStatus:
    """A recording that is not connected yet."""
    with prepared_recording(tmp_path) as recording:
        return Watch(recording).look()


@pytest.fixture
def recording(waiting: RecorderStatus) -> RecorderStatus:
    link = replace(waiting.link, connected=True, answered=True, ticking=1)
    return replace(waiting, link=link, flow=replace(waiting.flow, trades_per_s=57.13, lag_s=0.012))


class Manager:
    """The other end: a systemd that writes down what it is told."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.setblocking(False)

    def told(self) -> list[dict[str, str]]:
        """The messages since the last call."""
        messages = []
        try:
            while True:
                lines = self.socket.recv(4096).decode().splitlines()
                messages.append(dict(line.split("=", 1) for line in lines))
        except BlockingIOError:
            return messages


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(str(tmp_path / "notify"))
    with manager.socket:
        yield manager


def service(tmp_path: Path, **environ: str) -> Service:
    return Service(Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify"), **environ}))


# The protocol


def test_without_a_manager_nothing_is_said() -> None:
    notifier = Notifier({"WATCHDOG_USEC": "1000000"})
    notifier.tell(READY=1)
    assert notifier.watchdog_s is None


def test_an_abstract_address_is_understood() -> None:
    manager = Manager("\0ingestor-test-notify")
    with manager.socket:
        Notifier({"NOTIFY_SOCKET": "@ingestor-test-notify"}).tell(READY=1, STATUS="so so")
        assert manager.told() == [{"READY": "1", "STATUS": "so so"}]


def test_a_manager_that_is_gone_ends_nothing(tmp_path: Path) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "nobody")})
    notifier.tell(READY=1)
    notifier.tell(WATCHDOG=1)


@pytest.mark.parametrize(
    ("environ", "watchdog_s"),
    [
        ({"WATCHDOG_USEC": "120000000"}, 120.0),
        ({"WATCHDOG_USEC": "120000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_that_is_meant_for_us(environ: dict[str, str], watchdog_s: float | None) -> None:
    assert Notifier({"NOTIFY_SOCKET": "@x", **environ}).watchdog_s == watchdog_s


# Ready, and how it goes


def test_ready_only_once_the_venue_has_answered(
    tmp_path: Path, manager: Manager, waiting: RecorderStatus, recording: RecorderStatus
) -> None:
    ours = service(tmp_path)
    ours.tell(waiting)
    ours.tell(replace(waiting, link=replace(waiting.link, connected=True)))
    assert [message.keys() for message in manager.told()] == [{"STATUS"}, {"STATUS"}]
    ours.tell(recording)
    ours.tell(recording)
    ready, after = manager.told()
    assert ready == {"READY": "1", "STATUS": summarize(recording)}
    assert after == {"STATUS": summarize(recording)}


def test_it_looks_twice_a_second_while_it_waits_and_then_every_five(tmp_path: Path, recording: RecorderStatus) -> None:
    ours = service(tmp_path)
    assert [ours.due(now_s) for now_s in (10.0, 10.2, 10.5)] == [True, False, True]
    ours.tell(recording)
    assert [ours.due(now_s) for now_s in (11.0, 15.9, 16.0)] == [True, False, True]


def test_the_status_is_one_line_with_rates(waiting: RecorderStatus, recording: RecorderStatus) -> None:
    assert summarize(waiting) == "not connected to the venue (0 connections so far)"
    assert summarize(recording) == "recording 57.1 trades/s; 1 of 2 symbols ticking; lag 12 ms"


def test_reloading_ends_in_ready(tmp_path: Path, manager: Manager, recording: RecorderStatus) -> None:
    ours = service(tmp_path)
    ours.tell(recording)
    manager.told()
    ours.reloading()
    ours.reloaded()
    begun, ended = manager.told()
    assert begun["RELOADING"] == "1"
    assert int(begun["MONOTONIC_USEC"]) > 0
    assert ended == {"READY": "1"}


def test_a_reload_while_it_waits_for_the_venue_does_not_make_it_ready(tmp_path: Path, manager: Manager) -> None:
    ours = service(tmp_path)
    ours.reloading()
    ours.reloaded()
    assert [message.keys() for message in manager.told()] == [{"RELOADING", "MONOTONIC_USEC"}]


# Proof of progress


def test_only_progress_feeds_the_watchdog(tmp_path: Path, manager: Manager, recording: RecorderStatus) -> None:
    ours = service(tmp_path, WATCHDOG_USEC="120000000")
    ours.tell(recording)
    manager.told()
    ours.prove(turned_at_s=100.0, now_s=100.2)
    assert manager.told() == [{"WATCHDOG": "1"}]
    for now_s in range(101, 1000):  # the main thread lives on; the recorder does not
        ours.prove(turned_at_s=100.0, now_s=now_s)
    assert manager.told() == []
    ours.prove(turned_at_s=1000.0, now_s=1000.1)
    assert manager.told() == [{"WATCHDOG": "1"}]


def test_progress_is_told_four_times_as_often_as_needed(
    tmp_path: Path, manager: Manager, recording: RecorderStatus
) -> None:
    ours = service(tmp_path, WATCHDOG_USEC="120000000")
    ours.tell(recording)
    manager.told()
    for now_s in range(1000, 1120):
        ours.prove(turned_at_s=now_s - 0.2, now_s=now_s)
    assert len(manager.told()) == 4


def test_a_start_that_waits_for_the_venue_gets_time_while_it_gets_on(tmp_path: Path, manager: Manager) -> None:
    ours = service(tmp_path)
    for now_s in (10.0, 12.0, 15.0):
        ours.prove(turned_at_s=now_s, now_s=now_s)
    ours.prove(turned_at_s=15.0, now_s=30.0)
    assert manager.told() == [{"EXTEND_TIMEOUT_USEC": "60000000"}] * 2


def test_a_stop_gets_time_while_it_seals(tmp_path: Path, manager: Manager, recording: RecorderStatus) -> None:
    ours = service(tmp_path)
    ours.tell(recording)
    ours.prove(turned_at_s=2.0, now_s=2.0)
    ours.stopping()
    ours.prove(turned_at_s=3.0, now_s=3.0)
    ready, stopping, extended = manager.told()
    assert "READY" in ready
    assert stopping["STOPPING"] == "1"
    assert extended == {"EXTEND_TIMEOUT_USEC": "60000000"}


# The units


def lines(unit: str) -> list[str]:
    return [line for line in (UNITS / unit).read_text().splitlines() if line and not line.startswith("#")]


@pytest.mark.needs("systemd-analyze")
@BOTH
def test_systemd_reads_it_without_a_word(unit: str, tmp_path: Path) -> None:
    analyze = require("systemd-analyze")
    # An instance is verified by its own name; the paths are those of a machine where it is installed.
    text = (UNITS / unit).read_text().replace("/opt/finnhub-ingestor/bin/ingestor", "/bin/true")
    copy = tmp_path / unit.replace("@", "@main")
    copy.write_text(text)
    done = subprocess.run([analyze, "verify", "--man=no", str(copy)], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.needs("systemd-analyze")
@BOTH
def test_its_exposure_is_small(unit: str) -> None:
    analyze = require("systemd-analyze")
    command = [analyze, "security", "--offline=yes", "--threshold=15", "--no-pager", str(UNITS / unit)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_template_differs_from_the_unit_only_by_its_names() -> None:
    one, many = lines("ingestor.service"), lines("ingestor@.service")
    assert len(one) == len(many)
    different = {ours.split("=")[0] for ours, theirs in zip(one, many, strict=True) if ours != theirs}
    assert different == {
        *("Description", "Documentation", "AssertPathExists", "ExecStart", "ExecReload", "LoadCredential"),
        *("StateDirectory", "WorkingDirectory"),
    }


def test_no_instance_can_write_into_the_recording_of_another() -> None:
    """They run as one user in sandboxes that differ by what can be written."""
    assert {"ProtectSystem=strict", "User=ingestor"} <= set(lines("ingestor.service")) & set(lines("ingestor@.service"))
    written = [value_of(unit, "StateDirectory") for unit in ("ingestor.service", "ingestor@.service")]
    assert written == ["finnhub-ingestor/data", "finnhub-ingestor/%i"]
    for unit, folder in zip(("ingestor.service", "ingestor@.service"), written, strict=True):
        assert not [line for line in lines(unit) if line.startswith(("ReadWritePaths", "BindPaths"))]
        assert re.search(rf"--root /var/lib/{folder}(/|$)", value_of(unit, "ExecStart"))


def value_of(unit: str, name: str) -> str:
    (value,) = [line.removeprefix(f"{name}=") for line in lines(unit) if line.startswith(f"{name}=")]
    return value


def test_the_uninstall_of_the_docs_leaves_nothing_of_install() -> None:
    text = (UNITS.parent / "docs/operate.md").read_text()
    steps = text.partition("## Uninstall")[2].partition("\n## ")[0]
    written = [step.path for step in _plan(PREFIX, None) if isinstance(step, Write)]
    drop_ins = [Path("/etc/systemd/system") / f"{unit}.d" for unit in ("ingestor.service", "ingestor@.service")]
    for path in (*written, *drop_ins):
        covered = [str(path), str(path.parent)]
        assert any(one in re.split(r"\s", steps) for one in covered), path
    assert "userdel ingestor" in steps
    assert "'ingestor@*'" in steps


def test_no_advice_writes_a_secret_that_others_can_read() -> None:
    text = "\n".join(page.read_text() for page in sorted((UNITS.parent / "docs").glob("*.md")))
    makes = [line for line in text.splitlines() if re.search(r"/etc/finnhub-ingestor/(api-key|\S+\.key)", line)]
    commands = [line for line in makes if line.startswith("sudo ")]
    assert commands
    assert all(line.startswith("sudo install -m 600 ") for line in commands)


@BOTH
def test_it_promises_what_the_daemon_keeps(unit: str) -> None:
    assert {"Type=notify", "RestartPreventExitStatus=2 3", "WatchdogSec=120", "UMask=0027"} <= set(lines(unit))
    timeout = next(line for line in lines(unit) if line.startswith("TimeoutStopSec="))
    assert int(re.sub(r"\D", "", timeout)) > 60  # settings.stop_timeout, and what comes before it
