"""Alerts: which condition is told when, to whom, and that no receiver holds anything up."""

import json
import os
import socket
import socketserver
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from prepared import SETTINGS
from recorders import eventually
from simulated_venues import running_venue
from structlog.testing import capture_logs
from test_daemon import Run, running

from ingestor.cli.main import cli
from ingestor.config import Settings, load_settings
from ingestor.config.sections import AlertSettings
from ingestor.errors import ConfigError, FeedRefused
from ingestor.layout import Layout
from ingestor.ledger import list_ledgers
from ingestor.metrics import Counts
from ingestor.operations.alerts import (
    VARIABLE,
    Condition,
    Incidents,
    Receiver,
    find_conditions,
    load_receivers,
    make_alert_process,
)
from ingestor.operations.recorder_status import Disk, Flow, Histogram, Link, RecorderStatus, SinkLag
from ingestor.simulator.market import MarketSettings
from ingestor.simulator.venue import VenueSettings

VENUE = VenueSettings(market=MarketSettings(rate=100, seed=7))
NIGHT = datetime(2026, 11, 20, 21, 30, tzinfo=UTC)
BLIND = Condition("blind (no connection)", 120.0)


# What is told when


def told(
    story: Sequence[tuple[float, dict[str, Condition]]], settings: AlertSettings | None = None, every_s: float = 5.0
) -> list[tuple[float, str]]:
    """(seconds, message) for conditions that hold from a second on, up to the last one's."""
    incidents = Incidents(settings or AlertSettings())
    messages, now_s = [], 0.0
    while now_s <= story[-1][0]:
        holds = [conditions for from_s, conditions in story if from_s <= now_s][-1]
        if message := incidents.look(holds, now_s, NIGHT + timedelta(seconds=now_s)):
            messages.append((now_s, message))
        now_s += every_s
    return messages


def test_ten_minutes_blind_are_two_messages() -> None:
    assert told([(0, {}), (60, {"blind": BLIND}), (660, {}), (3600, {})]) == [
        (180, "21:33 UTC: blind (no connection)"),
        (715, "21:41 UTC: all well again: blind (no connection) (10 min)"),
    ]


def test_a_short_blindness_is_none_of_anybodys_business() -> None:
    assert told([(0, {"blind": BLIND}), (115, {}), (600, {"blind": BLIND}), (700, {}), (2000, {})]) == []


def test_flapping_is_one_incident() -> None:
    story = [(at * 30.0, {"blind": BLIND} if at % 2 else {}) for at in range(1, 9)]
    assert len(told([(0, {"blind": BLIND}), (150, {}), *((one + 150, two) for one, two in story), (900, {})])) == 2


def test_all_is_well_only_when_all_is() -> None:
    disk = Condition("the disk lasts for 2.0 days")
    story = [(0, {"blind": BLIND, "disk": disk}), (300, {"disk": disk}), (1000, {}), (2000, {})]
    first, second, last = [message for _, message in told(story)]
    assert (first[11:], second[11:]) == ("the disk lasts for 2.0 days", "blind (no connection)")
    assert last[11:] == "all well again: blind (no connection) (5 min); the disk lasts for 2.0 days (17 min)"


def test_a_second_incident_of_a_kind_is_told_though_another_goes_on() -> None:
    disk = {"disk": Condition("disk")}
    both = {"blind": BLIND, **disk}
    messages = told([(0, both), (200, disk), (1000, both), (1500, disk), (1600, disk)])
    assert [message[11:] for _, message in messages] == ["disk", "blind (no connection)", "blind (no connection)"]


@pytest.mark.parametrize(
    ("quiet", "zone", "at_s"),
    [("22:00-07:00", "UTC", 34_200), ("20:00-21:45", "UTC", 900), ("23:00-07:00", "Europe/Berlin", 30_600)],
)
def test_quiet_hours_hold_messages_back(quiet: str, zone: str, at_s: float) -> None:
    settings = AlertSettings.model_validate({"quiet": quiet, "time_zone": zone})
    begins = 0 if quiet.startswith("20") else 1800
    messages = told([(0, {}), (begins, {"blind": BLIND}), (begins + 400, {}), (40_000, {})], settings)
    assert [at for at, _ in messages] == [at_s]
    assert [line[11:] for line in messages[0][1].splitlines()] == [
        "blind (no connection)",
        "all well again: blind (no connection) (7 min)",
    ]


def status(
    link: dict[str, Any] | None = None, disk: dict[str, Any] | None = None, *, flood: bool = False
) -> RecorderStatus:
    well = Link(
        connected=True, answered=True, connections=1, silence_s=0.1, silence_max_s=150.0, symbols=2, ticking=2,
        last_trade_at={}, gap=None, blind_symbols=(), gaps={}, blind_s={},
    )  # fmt: skip
    flow = Flow(
        frames_received=1, counts=Counts(), reasons={}, trades_per_s=1.0, rejects_flood=flood,
        delays=Histogram((), (), 0, 0.0), buffer_bytes=0, buffer_max_bytes=1, pauses=0, paused_s=0.0, lag_s=0.0,
        turned_s=0.1, conservation_violations=0,
    )  # fmt: skip
    room = Disk(
        failing=False, syncs=1, sync_s=0.1, sync_age_s=0.1, killed_loss_s=0.1, unpowered_loss_s=1.0, sinks=(),
        sink_patience_s=1800.0, free_bytes=5 << 30, floor_bytes=1 << 30,
    )  # fmt: skip
    return RecorderStatus(
        at=0.0, version="1", pid=1, root="data", run=1, started_at=0.0,
        link=replace(well, **(link or {})), flow=flow, disk=replace(room, **(disk or {})),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("found", "days_left", "kinds"),
    [
        (status(), 8.0, {}),
        (status(), None, {}),
        (status(), 6.9, {"disk": "the disk lasts for 6.9 days"}),
        (status({"connected": False}), None, {"blind": "blind (no connection)"}),
        (status({"gap": "stall", "gap_s": 5.0}), None, {"blind": "blind (connection stalled)"}),
        (status({"connected": False, "gap": "refused"}), None, {"key": "the venue refuses the API key"}),
        (status({"blind_symbols": ("A", "B")}), None, {"symbols": "A, B: blind, while others trade"}),
        (status(disk={"failing": True}), None, {"disk": "the disk refuses the journal"}),
        (status(disk={"free_bytes": 1}), None, {"disk": "the disk is full up to storage.min_free: 0 MB free"}),
        (status(disk={"sinks": (SinkLag("redis", 12, 1900.0),)}), None, {"sink redis": "redis is far behind: 12 rows"}),
        (status(disk={"sinks": (SinkLag("redis", 12, 1700.0),)}), None, {}),
        (status(flood=True), None, {"rejects": "rejects are flooding: much of what comes can't be read"}),
    ],
)  # fmt: skip
def test_what_is_wrong(found: RecorderStatus, days_left: float | None, kinds: dict[str, str]) -> None:
    conditions = find_conditions(found, days_left, AlertSettings())
    assert {kind: condition.text for kind, condition in conditions.items()} == kinds


# Receivers


class Mailbox(socketserver.StreamRequestHandler):
    """A mail server's side of SMTP, as far as a client that sends one message needs it (RFC 5321)."""

    def handle(self) -> None:
        def say(line: str) -> None:
            self.wfile.write(f"{line}\r\n".encode())

        say("220 test")
        while line := self.rfile.readline().decode().strip():
            verb = line.split(" ")[0].upper()
            if verb == "DATA":
                say("354 go on")
                body = []
                while (text := self.rfile.readline()) not in (b".\r\n", b""):
                    body.append(text.decode())
                self.server.messages.append("".join(body))  # type: ignore[attr-defined]
            elif verb == "QUIT":
                say("221 bye")
                return
            say("250 ok")


class Hook(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.server.messages.append(self.rfile.read(int(self.headers["Content-Length"])).decode())  # type: ignore[attr-defined]
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base's name
        """Nothing."""


class Receivers:
    """A web hook, a mail server, and one that takes a connection and never says anything."""

    def __init__(self, stack: ExitStack) -> None:
        self.hook = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), Hook))
        self.mail = stack.enter_context(socketserver.ThreadingTCPServer(("127.0.0.1", 0), Mailbox))
        hanging = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        for server in (self.hook, self.mail):
            server.messages = []  # type: ignore[union-attr]
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
            stack.callback(server.shutdown)
        ports = (hanging.getsockname()[1], self.hook.server_address[1], self.mail.server_address[1])
        self.urls = (
            f"json://me:hook-pa55@127.0.0.1:{ports[0]}/",
            f"json://me:hook-pa55@127.0.0.1:{ports[1]}/",
            f"mailto://127.0.0.1:{ports[2]}/?from=ingestor@example.org&to=me@example.org&mode=insecure",
        )

    @property
    def received(self) -> tuple[list[str], list[str]]:
        """What the hook and the mail server have."""
        return self.hook.messages, self.mail.messages  # type: ignore[attr-defined]


@pytest.fixture
def receivers() -> Iterator[Receivers]:
    with ExitStack() as stack:
        yield Receivers(stack)


@contextmanager
def named(urls: Sequence[str]) -> Iterator[None]:
    os.environ[VARIABLE] = " ".join(urls)
    try:
        yield
    finally:
        del os.environ[VARIABLE]


@pytest.mark.long
def test_an_incident_is_two_messages_to_each_receiver_and_one_that_hangs_delays_nothing(
    tmp_path: Path, receivers: Receivers, capfd: pytest.CaptureFixture[str]
) -> None:
    alerts = {"blind": "1s", "settle": "1s", "disk_days": 0}
    with ExitStack() as stack:
        with running_venue(VENUE) as venue:
            more = {"feed": {"url": venue.url}, "connection": {"backoff_max": "1s"}, "alerts": alerts}
            run = stack.enter_context(running(tmp_path, key="demo", receivers=receivers.urls, **more))
            run.wait_for(lambda: any(fact["fact"] == "symbols.proven" for fact in run.facts()))
        eventually(lambda: all(len(one) == 1 for one in receivers.received), "the first message")
        stack.enter_context(running_venue(replace(VENUE, port=int(venue.url.rpartition(":")[2]))))
        eventually(lambda: all(len(one) == 2 for one in receivers.received), "the second message")
        stack.callback(run.join)
        run.signals.stop.set()
    assert [len(one) for one in receivers.received] == [2, 2]
    for first, second in receivers.received:
        assert "blind (no connection)" in first
        assert "all well again: blind (no connection)" in second
    log = capfd.readouterr()
    assert "hook-pa55" not in log.err + log.out


@pytest.mark.long
def test_a_start_after_a_crash_is_told_and_a_refused_key_too(tmp_path: Path, receivers: Receivers) -> None:
    alerts = {"blind": "1h", "settle": "1s", "disk_days": 0}
    with running(tmp_path) as before:
        pass
    ledger = list_ledgers(before.layout)[-1]
    lines = ledger.read_text().splitlines(keepends=True)
    assert '"run.stopped"' in lines[-1]
    ledger.write_text("".join(lines[:-1]))
    with running(tmp_path, alerts=alerts, receivers=receivers.urls[1:]):
        eventually(lambda: all(len(one) == 2 for one in receivers.received), "both messages")
    first, second = receivers.received[0]
    assert "the recorder started after a crash" in first
    assert "all well again: the recorder started after a crash" in second
    with running_venue(VENUE) as venue:
        more = {"feed": {"url": venue.url}, "alerts": alerts, "receivers": receivers.urls}
        run = Run(tmp_path / "other", key="wrong", **more)
        run.start()
        run.join()
    assert isinstance(run.outcome, FeedRefused)
    assert [len(one) for one in receivers.received] == [3, 3]
    assert "the recorder stopped: the venue refused the API key (401)" in receivers.received[0][2]


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:.imghdr:DeprecationWarning")  # of Apprise, on Python 3.11 and 3.12
def test_the_test_message_arrives(tmp_path: Path, receivers: Receivers) -> None:
    path = tmp_path / "ingestor.yaml"
    path.write_text("tickers: [A]\nalerts: {blind: 5m}\n")
    with named(receivers.urls[1:]):
        done = CliRunner().invoke(cli, ["alerts", "test", "--config", str(path)])
    assert (done.exit_code, done.output) == (0, "receiver 1 (json): sent\nreceiver 2 (mailto): sent\n")
    hook, mail = receivers.received
    assert "arrive here" in json.loads(hook[0])["message"]
    assert "arrive here" in mail[0].replace("=\n", "")
    with named(["json://127.0.0.1:9/", "nonsense://x"]):
        done = CliRunner().invoke(cli, ["alerts", "test", "--config", str(path)])
    assert (done.exit_code, done.output) == (1, "receiver 1 (json): failed\nreceiver 2 (nonsense): failed\n")


def test_a_receiver_is_called_by_its_number_and_kind() -> None:
    assert Receiver(3, "tgram://123456:secret/chat").label == "receiver 3 (tgram)"


# Settings


def test_receivers_are_found_where_the_key_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert load_receivers(None, tmp_path) == ()
    with pytest.raises(ConfigError, match=f"alerts have no receiver: set {VARIABLE}"):
        load_receivers(AlertSettings(), tmp_path)
    (tmp_path / ".env").write_text(f'{VARIABLE}="ntfy://topic json://host"\n')
    assert load_receivers(AlertSettings(), tmp_path) == ("ntfy://topic", "json://host")


@pytest.mark.parametrize(
    ("section", "refusal"),
    [
        ("{quiet: 22-7 pm}", "two times of day"),
        ("{quiet: 07:00-07:00}", "different times"),
        ("{time_zone: Mars/Olympus}", "no time zone"),
        ("{url: json://me:pa55@x}", "unknown key `url`"),
    ],
)
def test_settings_that_are_refused(tmp_path: Path, section: str, refusal: str) -> None:
    path = tmp_path / "ingestor.yaml"
    path.write_text(f"tickers: [A]\nalerts: {section}\n")
    with pytest.raises(ConfigError, match=refusal) as error:
        load_settings(path)
    assert "pa55" not in str(error.value)


def test_alerts_ask_the_health_server() -> None:
    with pytest.raises(ValueError, match=r"need `health\.listen`"):
        Settings.model_validate({**SETTINGS, "health": {"listen": None}, "alerts": {}})


def test_settings_survive_the_pipe() -> None:
    settings = AlertSettings.model_validate({"quiet": "22:00-07:00", "blind": "90s"})
    assert AlertSettings.model_validate(json.loads(settings.model_dump_json())) == settings


def test_a_process_that_cannot_be_started_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings.model_validate({**SETTINGS, "alerts": {}})
    alerts = make_alert_process(settings, Layout(tmp_path), ["json://x"], after_crash=False)
    assert alerts is not None
    monkeypatch.setattr("sys.executable", str(tmp_path / "missing"))
    with capture_logs() as logs:
        alerts.tick(0.0)
        alerts.tick(59.0)
        alerts.tick(61.0)
        alerts.end(None)
    assert [entry["event"] for entry in logs] == ["alerts.unstarted", "alerts.unstarted"]
