"""Alerts and dashboard ask for metrics that exist, and Prometheus itself reads the rules."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from prepared import prepared_recording
from requirements import require

from ingestor.operations.collector import Watch
from ingestor.operations.prometheus import expose

MONITORING = Path(__file__).parents[1] / "config/monitoring"
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "summary": ("_sum", "_count")}
FILLING = ("IngestorDiskFilling", "pending")
LABELS = {"instance", "le", "sink", "cause", "reason", "symbol", "event", "version"}


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
    assert "17 rules found" in done.stdout


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
