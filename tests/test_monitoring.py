"""Alerts and dashboard ask for metrics that exist, and Prometheus itself reads the rules."""

import json
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from prepared import prepared_recording
from prometheus_client import CollectorRegistry, generate_latest
from requirements import require
from servers import free_ports, wait_until

from ingestor.operations.collector import Watch
from ingestor.operations.health import StatusMetrics, expose

MONITORING = Path(__file__).parents[1] / "config/monitoring"
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "summary": ("_sum", "_count")}
FILLING = ("IngestorDiskFilling", "pending")
LABELS = {"instance", "le", "sink", "cause", "reason", "symbol", "event", "version", "result"}


@pytest.fixture(scope="module")
def exposed(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names that Prometheus stores."""
    with prepared_recording(tmp_path_factory.mktemp("root")) as recording:
        families = list(expose(Watch(recording).look()))
    return {f"{family.name}{suffix}" for family in families for suffix in SUFFIXES.get(family.type, ("",))}


def names(text: str) -> set[str]:
    """Our metrics in an expression or a whole file."""
    return set(re.findall(r"\bingestor_\w+", text))


def panels() -> list[dict[str, Any]]:
    dashboard = json.loads((MONITORING / "grafana.json").read_text())
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


@pytest.mark.needs("promtool")
def test_prometheus_reads_the_rules() -> None:
    promtool = require("promtool")
    done = subprocess.run(
        [promtool, "check", "rules", str(MONITORING / "alerts.yaml")], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "18 rules found" in done.stdout


@pytest.mark.parametrize("file", ["alerts.yaml", "grafana.json"])
def test_what_is_asked_for_exists(exposed: set[str], file: str) -> None:
    asked = names((MONITORING / file).read_text())
    assert asked
    assert asked <= exposed


def test_the_dashboard_shows_all_there_is(exposed: set[str]) -> None:
    shown = names((MONITORING / "grafana.json").read_text())
    unshown = exposed - shown
    assert unshown == {
        "ingestor_frames_received_total",
        "ingestor_frames_notices_total",
        "ingestor_reader_pauses_total",
        "ingestor_sink_skipped_rows_total",
        "ingestor_start_time_seconds",
        "ingestor_trade_delay_seconds_sum",
        "ingestor_trade_delay_seconds_count",
    }


def test_every_panel_asks_one_instance_and_has_a_place_of_its_own() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24, panel["title"]
        taken |= cells
        for target in panel["targets"]:
            selectors = re.findall(r"(?:ingestor|process)_\w+(\{[^}]*\})?", target["expr"])
            assert set(selectors) == {'{instance=~"$instance"}'}, target["expr"]
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= LABELS


@pytest.mark.needs("promtool")
def test_an_alert_fires_when_it_should(tmp_path: Path) -> None:
    """By Prometheus' own simulation of a disk that fills, and a venue that hangs up."""
    promtool = require("promtool")
    story = {
        "rule_files": [str(MONITORING / "alerts.yaml")],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [
                    {"series": 'ingestor_build_info{instance="a"}', "values": "1x20"},
                    {"series": 'ingestor_connected{instance="a"}', "values": "1 1 1 1 1 0x15"},
                    {"series": 'ingestor_disk_free_bytes{instance="a"}', "values": "10 8 6 4 2 0x15"},
                    {"series": 'ingestor_disk_floor_bytes{instance="a"}', "values": "5x20"},
                ],
                "promql_expr_test": [
                    {
                        "expr": "sum by (alertname, alertstate) (ALERTS)",
                        "eval_time": f"{minute}m",
                        "exp_samples": [
                            {"labels": f'{{alertname="{name}", alertstate="{state}"}}', "value": 1}
                            for name, state in alerts
                        ],
                    }
                    for minute, alerts in (
                        (2, [FILLING]),
                        (4, [FILLING, ("IngestorDiskLow", "firing")]),
                        (6, [FILLING, ("IngestorDiskLow", "firing"), ("IngestorNotConnected", "pending")]),
                        (8, [FILLING, ("IngestorDiskLow", "firing"), ("IngestorNotConnected", "firing")]),
                    )
                ],
            }
        ],
    }
    path = tmp_path / "story.yaml"
    path.write_text(json.dumps(story))  # JSON is YAML
    done = subprocess.run([promtool, "test", "rules", str(path)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


# The whole way, with the servers that a user has


class Exchange(ThreadingHTTPServer):
    """What Prometheus asks for metrics, and whom Alertmanager tells."""

    metrics = ""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Exchanged)
        self.told: list[dict[str, Any]] = []


class Exchanged(BaseHTTPRequestHandler):
    server: Exchange

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.end_headers()
        self.wfile.write(self.server.metrics.encode())

    def do_POST(self) -> None:
        self.server.told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base's name
        """Nothing on stderr."""


@contextmanager
def running(*command: str, folder: Path) -> Iterator[None]:
    with (
        (folder / f"{Path(command[0]).name}.log").open("wb") as log,
        subprocess.Popen(command, stdout=log, stderr=log, cwd=folder) as process,
    ):
        try:
            yield
        finally:
            process.terminate()


@pytest.mark.long
@pytest.mark.needs("prometheus")
@pytest.mark.needs("prometheus-alertmanager")
def test_an_incident_arrives_and_so_does_its_end(tmp_path: Path) -> None:
    """From a recorder's metrics through Prometheus, our rules and Alertmanager; only the waits are shortened."""
    listens, answers = free_ports(2)
    rules = re.sub(r"\bfor: \d+\w", "for: 1s", (MONITORING / "alerts.yaml").read_text())
    (tmp_path / "alerts.yaml").write_text(rules)
    with Exchange() as exchange, prepared_recording(tmp_path) as recording:
        threading.Thread(target=exchange.serve_forever, daemon=True).start()
        registry = CollectorRegistry()
        registry.register(StatusMetrics(Watch(recording)))
        metrics = generate_latest(registry).decode()
        assert "ingestor_connected 0.0" in metrics
        exchange.metrics = metrics
        here = f"127.0.0.1:{exchange.server_port}"
        seconds = {"group_wait": "0s", "group_interval": "1s", "repeat_interval": "1h", "group_by": ["alertname"]}
        hook = {"url": f"http://{here}/", "send_resolved": True}
        told = {"route": {"receiver": "us", **seconds}, "receivers": [{"name": "us", "webhook_configs": [hook]}]}
        (tmp_path / "alertmanager.yml").write_text(json.dumps(told))
        asked = {
            "global": {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"},
            "rule_files": ["alerts.yaml"],
            "alerting": {"alertmanagers": [{"static_configs": [{"targets": [f"127.0.0.1:{answers}"]}]}]},
            "scrape_configs": [{"job_name": "ingestor", "static_configs": [{"targets": [here]}]}],
        }
        (tmp_path / "prometheus.yml").write_text(json.dumps(asked))

        def told_of(status: str) -> bool:
            """Whether this was told of the alert: with its instance, and in whole sentences."""
            alerts = [alert for message in exchange.told for alert in message["alerts"] if alert["status"] == status]
            found = [alert for alert in alerts if alert["labels"]["alertname"] == "IngestorNotConnected"]
            assert all(alert["labels"]["severity"] == "critical" for alert in found)
            assert all(alert["annotations"]["summary"] == f"{here} is not connected to the venue" for alert in found)
            return bool(found)

        with (
            running(
                require("prometheus-alertmanager"), "--config.file=alertmanager.yml", "--storage.path=alertmanager",
                f"--web.listen-address=127.0.0.1:{answers}", "--cluster.listen-address=", folder=tmp_path,
            ),
            running(
                require("prometheus"), "--config.file=prometheus.yml", "--storage.tsdb.path=prometheus",
                f"--web.listen-address=127.0.0.1:{listens}", folder=tmp_path,
            ),
        ):  # fmt: skip
            wait_until(lambda: told_of("firing"), "the incident")
            assert not told_of("resolved")
            exchange.metrics = metrics.replace("ingestor_connected 0.0", "ingestor_connected 1.0")
            wait_until(lambda: told_of("resolved"), "its end")
        exchange.shutdown()
