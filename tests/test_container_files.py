"""Dockerfile, compose.yaml and the StatefulSet, as far as they can be judged without running them: against their
schemas, and against each other. What runs is in tests/scenarios/test_container.py.
"""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from documents import REPOSITORY, read
from lightkube.models.apps_v1 import StatefulSet
from lightkube.models.core_v1 import ConfigMap, Service
from requirements import require
from test_docs import parse_call

from ingestor.config import ENVIRONMENT, load_settings
from ingestor.texts import parse_duration

STATEFUL = "examples/kubernetes/statefulset.yaml"


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load(read("compose.yaml"))
    return parsed


def ours(compose: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The services that run the image built here."""
    return {name: service for name, service in compose["services"].items() if service["image"] == "finnhub-ingestor"}


# compose.yaml


@pytest.mark.needs("check-jsonschema")
@pytest.mark.parametrize(("change", "code"), [(("", ""), 0), (("stop_grace_period", "stop_grace"), 1)])
def test_the_compose_file_follows_its_schema(tmp_path: Path, change: tuple[str, str], code: int) -> None:
    path = tmp_path / "compose.yaml"
    path.write_text(read("compose.yaml").replace(*change))
    command = [require("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr


def test_its_services_run_commands_that_exist(compose: dict[str, Any]) -> None:
    assert set(ours(compose)) == {"recorder", "simulator", "live"}
    for service in ours(compose).values():
        parse_call(service["command"].replace("${INGESTOR_RUN-}", "--url ws://127.0.0.1:8765").split())
    assert set(re.findall(r"\$\{?(\w+)", read("compose.yaml"))) == {"INGESTOR_RUN"}


def test_a_stop_has_more_time_than_the_settings_give_it(compose: dict[str, Any]) -> None:
    stop_s = load_settings(REPOSITORY / "config/ingestor.yaml").stop_timeout
    assert parse_duration(compose["services"]["recorder"]["stop_grace_period"]) > stop_s
    assert pod(manifest("StatefulSet"))["terminationGracePeriodSeconds"] > stop_s


def test_only_this_machine_can_reach_its_ports(compose: dict[str, Any]) -> None:
    ports = [port for service in compose["services"].values() for port in service.get("ports", ())]
    assert len(ports) == 3
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_what_it_mounts_exists(compose: dict[str, Any]) -> None:
    mounted = [
        volume.split(":")[0] for service in compose["services"].values() for volume in service.get("volumes", ())
    ]
    assert all((REPOSITORY / place).exists() for place in mounted if place.startswith("."))
    assert {place for place in mounted if not place.startswith(".")} == set(compose["volumes"])
    taken = {config["source"] for service in compose["services"].values() for config in service.get("configs", ())}
    assert taken == set(compose["configs"])


@pytest.mark.needs("promtool")
def test_prometheus_reads_its_settings(compose: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "prometheus.yml").write_text(compose["configs"]["prometheus"]["content"])
    alerts = read("config/monitoring/alerts.yaml")
    (tmp_path / "alerts.yaml").write_text(alerts)
    rules = [rule for group in yaml.safe_load(alerts)["groups"] for rule in group["rules"]]
    command = [require("promtool"), "check", "config", str(tmp_path / "prometheus.yml")]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"{len(rules)} rules found" in done.stdout


# Dockerfile


def test_the_image_gives_what_the_others_take(compose: dict[str, Any]) -> None:
    dockerfile = read("Dockerfile")
    (port,) = re.findall(r"^EXPOSE (\d+)$", dockerfile, re.MULTILINE)
    assert set(ENVIRONMENT) == {"INGESTOR_HEALTH_LISTEN"}
    assert f"INGESTOR_HEALTH_LISTEN=0.0.0.0:{port}" in dockerfile
    assert compose["services"]["recorder"]["ports"] == [f"127.0.0.1:{port}:{port}"]
    assert pod(manifest("StatefulSet"))["containers"][0]["ports"] == [{"name": "health", "containerPort": int(port)}]
    (volume,) = re.findall(r"^VOLUME (\S+)$", dockerfile, re.MULTILINE)
    data = [mount for name in ("recorder", "live") for mount in compose["services"][name]["volumes"]]
    assert [mount.split(":")[1] for mount in data if mount.startswith("recording")] == [volume, volume]
    (user,) = re.findall(r"^USER (\d+):\1$", dockerfile, re.MULTILINE)
    security = pod(manifest("StatefulSet"))["securityContext"]
    assert {security["runAsUser"], security["runAsGroup"], security["fsGroup"]} == {int(user)}


def test_nothing_secret_can_get_into_the_image() -> None:
    excluded, *taken = [line for line in read(".dockerignore").splitlines() if line and not line.startswith("#")]
    assert excluded == "*"
    assert {line.removeprefix("!") for line in taken if line.startswith("!")} == {
        *("LICENSE", "README.md", "pyproject.toml"),  # what a wheel is built from
        *("config", "ingestor", "systemd"),
    }
    assert "**/.env" in taken


# The StatefulSet


def manifest(kind: str) -> dict[str, Any]:
    """The one of this kind."""
    (found,) = (one for one in yaml.safe_load_all(read(STATEFUL)) if one["kind"] == kind)
    return dict(found)


def pod(stateful: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = stateful["spec"]["template"]["spec"]
    return spec


def test_the_manifests_follow_the_schema_of_kubernetes() -> None:
    """Its classes refuse what is of another type or is missing, and drop what they don't know."""
    for kind in (StatefulSet, ConfigMap, Service):
        told = manifest(kind.__name__)
        assert kind.from_dict(told, lazy=False).to_dict() == told
    mistaken = manifest("StatefulSet")
    pod(mistaken)["containers"][0]["livenessProbe"]["httpGet"]["paht"] = "/"
    assert StatefulSet.from_dict(mistaken, lazy=False).to_dict() != mistaken


def test_its_container_runs_a_command_that_exists() -> None:
    parse_call(pod(manifest("StatefulSet"))["containers"][0]["args"])


@pytest.mark.needs("sh", "sed")
def test_each_pod_records_the_shard_of_its_number(tmp_path: Path) -> None:
    stateful, template = manifest("StatefulSet"), manifest("ConfigMap")["data"]["ingestor.yaml"]
    (init,) = pod(stateful)["initContainers"]
    (tmp_path / "ingestor.yaml").write_text(template)
    first, count = stateful["spec"]["ordinals"]["start"], stateful["spec"]["replicas"]
    recorded: list[str] = []
    for number in range(first, first + count):
        (shell, option, line) = init["command"]
        written = tmp_path / f"{number}.yaml"
        line = line.replace("/template", str(tmp_path)).replace("/ingestor/config/ingestor.yaml", str(written))
        subprocess.run([shell, option, line], check=True, env={"PATH": "/usr/bin:/bin", "SHARD_INDEX": str(number)})
        settings = load_settings(written)
        assert settings.shard is not None
        assert settings.shard.count == count
        recorded += settings.symbols
    everything = tmp_path / "all.yaml"
    everything.write_text(re.sub(r"^shard:.*\n", "", template, flags=re.MULTILINE))
    assert sorted(recorded) == sorted(load_settings(everything).tickers)
