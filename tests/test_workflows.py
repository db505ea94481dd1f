"""The workflows of .github/: read by actionlint, with the Pythons that the package names, and with steps that do what
they say, as far as they can be run outside of it.
"""

import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from documents import REPOSITORY, read
from requirements import require
from test_docs import calls, parse_call

import ingestor

PLACE = REPOSITORY / ".github/workflows"
WORKFLOWS = sorted(path.name for path in PLACE.glob("*.yml"))
MAY_WRITE = {
    ("release.yml", "attest"): {"id-token": "write", "attestations": "write", "contents": "read"},
    ("release.yml", "publish"): {"id-token": "write"},
    ("release.yml", "release"): {"contents": "write"},
}
"""Jobs that may more than read the repository."""


def workflow(name: str) -> dict[str, Any]:
    """One of them, parsed."""
    parsed: dict[str, Any] = yaml.safe_load((PLACE / name).read_text())
    return parsed


def jobs(name: str) -> dict[str, Any]:
    """Its jobs by name."""
    found: dict[str, Any] = workflow(name)["jobs"]
    return found


def steps(name: str) -> list[dict[str, Any]]:
    """Those of all its jobs."""
    return [step for job in jobs(name).values() for step in job["steps"]]


@pytest.mark.needs("actionlint")
@pytest.mark.parametrize("name", WORKFLOWS)
def test_actionlint_finds_nothing(name: str) -> None:
    done = subprocess.run([require("actionlint"), PLACE / name], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.needs("actionlint")
def test_actionlint_finds_something(tmp_path: Path) -> None:
    broken = tmp_path / "ci.yml"
    broken.write_text((PLACE / "ci.yml").read_text().replace("matrix.python }}", "matrix.snake }}"))
    done = subprocess.run([require("actionlint"), broken], check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert 'property "snake" is not defined' in done.stdout


def test_the_tests_run_on_each_python_that_the_package_names() -> None:
    project = tomllib.loads(read("pyproject.toml"))["project"]
    named = [one.rpartition(" ")[2] for one in project["classifiers"] if re.search(r":: 3\.\d+$", one)]
    tried = jobs("ci.yml")["test"]["strategy"]["matrix"]["python"]
    assert project["requires-python"] == f">={tried[0]}"
    assert set(named) <= set(tried)


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_job_may_write_only_what_it_is_for(name: str) -> None:
    assert workflow(name)["permissions"] == {"contents": "read"}
    more = {(name, job): told["permissions"] for job, told in jobs(name).items() if "permissions" in told}
    assert more == {job: told for job, told in MAY_WRITE.items() if job[0] == name}


@pytest.mark.parametrize("name", WORKFLOWS)
def test_each_action_is_of_a_major_version_and_each_job_ends(name: str) -> None:
    used = [step["uses"] for step in steps(name) if "uses" in step]
    assert [one for one in used if not re.fullmatch(r"[\w-]+/[\w-]+@(v\d+|release/v\d+)", one)] == []
    assert [job for job, told in jobs(name).items() if "timeout-minutes" not in told] == []


@pytest.mark.parametrize("name", WORKFLOWS)
def test_its_commands_exist(name: str) -> None:
    lines = [line for step in steps(name) for line in step.get("run", "").replace("\\\n", " ").splitlines()]
    called = [arguments for line in lines for arguments in calls(line, ("ingestor",))]
    assert called
    for arguments in called:
        parse_call(arguments)
    targets = {word for line in lines for words in calls(line, ("make",)) for word in words if "=" not in word}
    assert targets <= set(re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE))


# The steps of a release that guard it


def run_step(title: str, tag: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """What its shell does in this folder when this tag was pushed."""
    (step,) = (one for one in steps("release.yml") if one.get("name") == title)
    return subprocess.run(
        ["bash", "-eo", "pipefail", "-c", step["run"]], cwd=folder, env={**os.environ, "GITHUB_REF_NAME": tag},
        check=False, capture_output=True, text=True,
    )  # fmt: skip


@pytest.mark.needs("bash")
def test_a_tag_that_is_not_the_version_is_refused() -> None:
    title = "Compare the tag with the version of the package"
    assert run_step(title, f"v{ingestor.__version__}", REPOSITORY).returncode == 0
    done = run_step(title, "v9.9.9", REPOSITORY)
    assert done.returncode == 1
    assert f"the version in ingestor/__init__.py {ingestor.__version__}" in done.stderr


@pytest.mark.needs("bash", "awk")
def test_a_release_tells_its_own_section_of_the_changelog(tmp_path: Path) -> None:
    title = "Take what has changed from the changelog"
    (tmp_path / "CHANGELOG.md").write_text(
        "# Changelog\n\n## Unreleased\n\nnot this\n\n## 1.2.0 (2026-12-01)\n\n### Added\n\nthis\n\n## 1.2\n\nold\n"
    )
    assert run_step(title, "v1.2.0", tmp_path).returncode == 0
    assert (tmp_path / "changes.md").read_text() == "\n### Added\n\nthis\n\n"
    done = run_step(title, "v1.1.0", tmp_path)
    assert (done.returncode, done.stderr) == (1, "CHANGELOG.md has no section 1.1.0\n")
