"""The metrics: conventional names, clean by Prometheus' own linter, and held to what the dashboards ask for."""

import subprocess
from pathlib import Path

import pytest
from prepared import prepared_recording
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from requirements import require

from ingestor.ledger import now_us
from ingestor.operations.collector import Watch
from ingestor.operations.health import StatusMetrics

HOSTILE = 'A"\\\n{}'


def scrape(folder: Path, symbols: int = 2) -> str:
    """What Prometheus reads of a recording in which each symbol has traded, and each cause has made a gap."""
    with prepared_recording(folder) as recording:
        names = [HOSTILE, *(f"S{number}" for number in range(symbols - 1))]
        recording.observed.saw_trades(dict.fromkeys(names, 1), now_us())
        recording.gaps.open("connection", now_us() - 5_000_000)
        recording.gaps.close(now_us())
        recording.recorder.reasons["bad_price"] += 3
        registry = CollectorRegistry()
        registry.register(StatusMetrics(Watch(recording)))
        return generate_latest(registry).decode()


@pytest.mark.needs("promtool")
def test_prometheus_linter_finds_nothing(tmp_path: Path) -> None:
    promtool = require("promtool")
    metrics = scrape(tmp_path)
    done = subprocess.run([promtool, "check", "metrics"], check=False, input=metrics, text=True, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_labels_carry_what_they_say_even_hostile_names(tmp_path: Path) -> None:
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(scrape(tmp_path))
        for sample in family.samples
    }
    assert samples["ingestor_rejected_total", "bad_price"] == 3
    assert samples["ingestor_gaps_total", "connection"] == 1
    assert 4.9 < samples["ingestor_blind_seconds_total", "connection"] < 6
    assert samples["ingestor_last_trade_timestamp_seconds", HOSTILE] > 1.7e9
    assert samples["ingestor_loss_bound_seconds", "power_cut"] > samples["ingestor_loss_bound_seconds", "kill"] >= 0.1
    assert samples["ingestor_connected",] == 0
    assert samples["ingestor_trade_delay_seconds_count",] == 0


def test_symbols_are_capped(tmp_path: Path) -> None:
    assert scrape(tmp_path, 1500).count("ingestor_last_trade_timestamp_seconds{") == 1000
