"""What is released: built from what a clone holds, complete, and usable with each extra alone."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pytest
from checkout import REPOSITORY, copy_checkout, list_checkout
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from requirements import of_tier

import ingestor

PACKAGED = {
    "config/ingestor.yaml": "ingestor/cli/templates/ingestor.yaml",
    "config/binance.yaml": "ingestor/cli/templates/binance.yaml",
    "config/json.yaml": "ingestor/cli/templates/json.yaml",
    "config/venues/": "ingestor/cli/templates/venues/",
    "config/shards.yaml": "ingestor/cli/templates/shards.yaml",
    "config/.env.example": "ingestor/cli/templates/env.example",
    "systemd/": "ingestor/cli/templates/systemd/",
}
"""What stands elsewhere in a checkout, where people look for it."""
EXTRAS = {
    "alerts": {"apprise"},
    "analysis": {"pandas"},
    "charts": {"bokeh", "matplotlib", "numpy", "ta-lib"},
    "delta": {"deltalake"},
    "kafka": {"confluent-kafka"},
    "live": {"pyjwt", "starlette", "uvicorn"},
    "postgres": {"adbc-driver-postgresql"},
    "redis": {"redis"},
    "tui": {"rich"},
}
NEEDS_AN_EXTRA = {
    "plot --symbols AAPL --png aapl.png": "charts",
    "dashboard": "charts",
    "serve": "live",
    "check --config postgres.yaml": "postgres",
    "check --config redis.yaml": "redis",
    "check --config kafka.yaml": "kafka",
    "check --config delta.yaml": "delta",
}
"""What the core alone can't do, and what to install for it."""
SINKS = {
    "postgres": "postgres: {}",
    "redis": 'redis: {url: "redis://127.0.0.1:6379"}',
    "kafka": 'kafka: {brokers: "127.0.0.1:9092"}',
    "delta": "object_store: {table: delta}",
}
USE = {
    "alerts": "from ingestor.operations.alerts import send; print(send('json://127.0.0.1:9/', 'x'))",
    "analysis": "import ingestor; assert len(ingestor.read_trades('data')) > 0",
    "charts": "from ingestor.cli.main import main; main(['plot', '--symbols', 'AAPL', '--png', 'aapl.png'])",
    "delta": "from deltalake import DeltaTable; import ingestor.sinks.delta_table",
    "kafka": "import ingestor.sinks.kafka_topic",
    "live": "from ingestor.live.server import run_service; from ingestor.live.access import load_verifier",
    "postgres": "import ingestor.sinks.postgres_db",
    "redis": "import ingestor.sinks.redis_db",
    "tui": "from ingestor.cli.top import render_rich; print(render_rich(('', '', [], 0.0), 24))",
}
"""What each brings, tried where nothing else is installed."""
PERMISSIVE = {
    "Apache-2.0": r"Apache",
    "BSD-2-Clause": r"BSD|Redistribution and use in source and binary forms",
    "BSD-3-Clause": r"BSD",
    "MIT": r"MIT",
    "PSF-2.0": r"Python Software Foundation|PSF",
}
"""Licences that ask for no more than to be named, and how packages spell them."""


@dataclass(frozen=True)
class Release:
    """What `python -m build` would make."""

    wheel: Path
    sdist: Path
    unpacked: Path
    """What is in the wheel."""
    clone: frozenset[str]
    """What it was built from: paths in the repository."""

    @property
    def metadata(self) -> metadata.PackageMetadata:
        (found,) = metadata.distributions(path=[str(self.unpacked)])
        return found.metadata


def build(source: Path, target: Path, *kinds: str) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(target), *(f"--target={kind}" for kind in kinds)]
    done = subprocess.run(command, cwd=source, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    folder = tmp_path_factory.mktemp("release")
    clone = copy_checkout(folder / "clone")
    files = frozenset(str(path.relative_to(clone)) for path in clone.rglob("*") if path.is_file())
    build(clone, folder / "dist")
    (wheel,), (sdist,) = (folder / "dist").glob("*.whl"), (folder / "dist").glob("*.tar.gz")
    shutil.unpack_archive(wheel, folder / "unpacked", "zip")
    return Release(wheel, sdist, folder / "unpacked", files)


# What is in it


@pytest.mark.needs("git")
def test_the_wheel_holds_the_package_and_nothing_else(release: Release) -> None:
    with zipfile.ZipFile(release.wheel) as file:
        found = {name for name in file.namelist() if ".dist-info/" not in name}
    moves = [(path, place, target) for path in release.clone for place, target in PACKAGED.items()]
    moved = {path.replace(place, target) for path, place, target in moves if path.startswith(place)}
    assert found == moved | {path for path in release.clone if path.startswith("ingestor/")}
    assert {
        *("ingestor/py.typed", "ingestor/live/page/index.html", "ingestor/live/page/page.js"),
        *("ingestor/simulator/presets.yaml", "ingestor/cli/templates/systemd/ingestor@.service"),
    } <= found


@pytest.mark.needs("git")
def test_the_sdist_is_the_checkout(release: Release) -> None:
    with tarfile.open(release.sdist) as file:
        found = {name.partition("/")[2] for name in file.getnames()}
    assert found == {"PKG-INFO", *(path for path in release.clone if not path.startswith(".ci/"))}


@pytest.mark.needs("git")
def test_the_sdist_makes_the_same_wheel(release: Release, tmp_path: Path) -> None:
    with tarfile.open(release.sdist) as file:
        file.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    build(source, tmp_path / "dist", "wheel")
    (again,) = (tmp_path / "dist").glob("*.whl")
    assert (again.name, contents(again)) == (release.wheel.name, contents(release.wheel))


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as file:
        return {name: file.read(name) for name in file.namelist()}


# What it says of itself


@pytest.mark.needs("git")
def test_the_metadata_names_version_licence_and_authors(release: Release) -> None:
    told = release.metadata
    assert told["Version"] == ingestor.__version__
    assert told["License-Expression"] == "MIT"
    assert told.get_all("License-File") == ["LICENSE"]
    assert f"Copyright (c) 2026 {told['Author']}" in (REPOSITORY / "LICENSE").read_text()
    assert told.get_all("Project-URL")
    assert not [one for one in told.get_all("Classifier") or [] if one.startswith("License")]  # PEP 639: one place


@pytest.mark.needs("git")
def test_the_version_is_written_in_one_place() -> None:
    spelled = re.compile(rf"['\"=\s]v?{re.escape(ingestor.__version__)}['\"\s]")
    code = (path for path in list_checkout() if path.endswith((".py", ".toml", ".service", ".yaml")))
    places = [path for path in code if spelled.search((REPOSITORY / path).read_text(encoding="utf-8"))]
    assert places == ["ingestor/__init__.py"]


@pytest.mark.needs("git")
def test_each_extra_is_what_its_name_says(release: Release) -> None:
    told = release.metadata
    assert set(told.get_all("Provides-Extra") or []) == {*EXTRAS, "all", "backtest", "bench", "dev", "docs"}
    for extra, names in (EXTRAS | {"all": set().union(*EXTRAS.values())}).items():
        assert names_of(required(told, extra)) - names_of(required(told, "")) == names


@pytest.mark.needs("git")
def test_every_extra_that_is_asked_for_exists() -> None:
    asked = re.compile(r"finnhub-ingestor\[([a-z,]+)\]")
    texts = (path for path in list_checkout() if path.startswith("ingestor/") or path.endswith((".md", ".toml")))
    found = [match for path in texts for match in asked.findall((REPOSITORY / path).read_text(encoding="utf-8"))]
    assert (
        set(EXTRAS)
        <= {extra for extras in found for extra in extras.split(",")}
        <= {*EXTRAS, "all", "backtest", "bench", "dev", "docs"}
    )


def required(told: metadata.PackageMetadata, extra: str) -> list[Requirement]:
    """What a package needs itself, with this extra or none."""
    every = map(Requirement, told.get_all("Requires-Dist") or [])
    return [one for one in every if one.marker is None or one.marker.evaluate({"extra": extra})]


def names_of(requirements: list[Requirement]) -> set[str]:
    return {canonicalize_name(one.name) for one in requirements}


@pytest.mark.needs("git")
def test_the_docs_name_the_licence_of_everything_it_brings(release: Release) -> None:
    table = (REPOSITORY / "docs/reference/licences.md").read_text().partition("| licence | packages |\n|---|---|\n")[2]
    rows = re.findall(r"^\| (\S+) \| (.+) \|$", table, re.MULTILINE)
    stated = {canonicalize_name(name): licence for licence, names in rows for name in names.split(", ")}
    assert set(stated) == names_of(required(release.metadata, "all"))
    for name, licence in stated.items():
        assert re.search(PERMISSIVE[licence], licence_told_by(name)), (name, licence)


def licence_told_by(name: str) -> str:
    """What the installed package says of its licence; where it says nothing, the licence itself."""
    found = metadata.distribution(name)
    told = {field: found.metadata.get_all(field) or [] for field in ("License-Expression", "Classifier", "License")}
    named = [*told["License-Expression"], *(one for one in told["Classifier"] if one.startswith("License"))]
    files = (file.read_text() for file in found.files or [] if re.search(r"LICEN[CS]E", file.name))
    return "\n".join(named or told["License"] or files)


# That it works, with each extra alone


@dataclass(frozen=True)
class Site:
    """A virtual environment with the release and what it requires: what pip would bring, taken from what is here."""

    folder: Path
    python: Path

    def run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Its Python, in its folder."""
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "FINNHUB"))}
        return subprocess.run(
            [str(self.python), *arguments], cwd=self.folder, check=False, capture_output=True, text=True, timeout=60,
            env={**environ, "FINNHUB_API_KEY": "demo"},
        )  # fmt: skip


def make_site(release: Release, folder: Path, extra: str) -> Site:
    venv.create(folder / "venv", symlinks=True)
    (packages,) = (folder / "venv").glob("lib/python*/site-packages")
    found = [metadata.distribution(name) for name in closure(release.metadata, extra)]
    for path in {*release.unpacked.iterdir(), *(top for one in found for top in tops(one))}:
        (packages / path.name).symlink_to(path)
    return Site(folder, folder / "venv/bin/python")


def closure(told: metadata.PackageMetadata, extra: str) -> set[str]:
    """Everything that pip would bring for this extra."""
    found: set[tuple[str, str]] = set()
    waiting = required(told, extra)
    while waiting:
        one = waiting.pop()
        for wanted in {"", *one.extras} - {extra for name, extra in found if name == one.name}:
            found.add((one.name, wanted))
            waiting += required(metadata.metadata(one.name), wanted)
    return {name for name, _ in found}


def tops(installed: metadata.Distribution) -> Iterator[Path]:
    """Its folders and files beside those of others."""
    names = {file.parts[0] for file in installed.files or []} - {"..", "__pycache__"}
    yield from (Path(str(installed.locate_file(name))) for name in names)


@pytest.fixture(scope="module")
def core(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Without any extra; it has recorded the demo."""
    site = make_site(release, tmp_path_factory.mktemp("core"), "")
    for name, section in SINKS.items():
        (site.folder / f"{name}.yaml").write_text(f"tickers: [AAPL]\nsinks: {{{section}}}\n")
    done = site.run("-m", "ingestor", "demo", "--for", "1s", "--folder", "demo")
    assert done.returncode == 0, done.stderr
    assert "Conservation:" in done.stdout
    return site


@pytest.mark.long
@pytest.mark.needs("git")
@pytest.mark.parametrize("command", ["describe", "head", "bars 1s", "coverage", "verify", "export a.csv", "compact"])
def test_the_core_alone_records_and_reads(core: Site, command: str) -> None:
    done = core.run("-m", "ingestor", *command.split(), "--root", "demo/data")
    assert done.returncode == 0, done.stderr


@pytest.mark.needs("git")
@pytest.mark.parametrize("command", of_tier(list(NEEDS_AN_EXTRA), list(NEEDS_AN_EXTRA)[-1:]))
def test_what_needs_an_extra_says_so_in_one_line(core: Site, command: str) -> None:
    done = core.run("-m", "ingestor", *command.split())
    told = [line for line in (done.stdout + done.stderr).splitlines() if "pip install" in line]
    assert done.returncode == 2, done.stderr
    assert len(told) == 1
    assert f"pip install 'finnhub-ingestor[{NEEDS_AN_EXTRA[command]}]'" in told[0]
    assert "Traceback" not in done.stderr


@pytest.mark.needs("git")
def test_pandas_is_missed_in_one_line(core: Site) -> None:
    done = core.run("-c", "import ingestor; ingestor.read_trades('demo/data')")
    assert "pip install 'finnhub-ingestor[analysis]'" in done.stderr.splitlines()[-1]


@pytest.mark.long
@pytest.mark.needs("git")
@pytest.mark.parametrize("extra", EXTRAS)
def test_each_extra_alone_is_enough_for_what_it_is_for(
    release: Release, core: Site, tmp_path: Path, extra: str
) -> None:
    (tmp_path / "data").symlink_to(core.folder / "demo/data")
    done = make_site(release, tmp_path, extra).run("-c", USE[extra])
    assert done.returncode == 0, done.stderr


def pythons() -> dict[str, str]:
    """The Pythons of this machine that it can be installed for, on PATH or of pyenv: version and path."""
    places = [Path(place) for place in os.environ.get("PATH", "").split(os.pathsep)]
    places += sorted(Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob("versions/*/bin"))
    ask = "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2]) if sys.version_info >= (3, 11) else None"
    found: dict[str, str] = {}
    for path in (path for place in places for path in sorted(place.glob("python3*"))):
        if re.fullmatch(r"python3(\.\d+)?", path.name):
            done = subprocess.run([path, "-c", ask], check=False, capture_output=True, text=True)
            if done.returncode == 0 and done.stdout.strip():
                found.setdefault(done.stdout.strip(), str(path))
    return found


@pytest.mark.long
@pytest.mark.needs("git")
@pytest.mark.timeout(600)
def test_pip_installs_it_into_an_empty_environment(release: Release, tmp_path: Path) -> None:
    """For real, from the registry, for the oldest and the newest Python that are here: as pipx does, too."""
    if os.environ.get("REQUIRE_ALL") != "1":
        pytest.skip("takes half a minute per Python and a package registry: REQUIRE_ALL=1 runs it")
    found = pythons()
    assert found
    by_age = sorted(found, key=lambda version: [*map(int, version.split("."))])
    for version in {by_age[0], by_age[-1]}:
        python = found[version]
        folder = tmp_path / version
        folder.mkdir()
        subprocess.run([python, "-m", "venv", folder / "venv"], check=True)
        site = Site(folder, folder / "venv/bin/python")
        pip = [str(site.python), "-m", "pip", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "--quiet", "--no-compile", str(release.wheel)], check=True)
        subprocess.run([*pip, "check"], check=True)
        for command in ("ingestor", "finnhub-ingestor"):
            done = subprocess.run([folder / "venv/bin" / command, "--version"], check=True, capture_output=True)
            assert done.stdout.decode() == f"ingestor, version {ingestor.__version__}\n"
        recorded = site.run("-m", "ingestor", "demo", "--for", "5s", "--folder", "demo")
        assert recorded.returncode == 0, recorded.stderr
        rows = "import ingestor; print(ingestor.read_trades('demo/data', engine='arrow').num_rows)"
        assert int(site.run("-c", rows).stdout) > 0, version
        assert site.run("-m", "ingestor", "verify", "--root", "demo/data").returncode == 0
        shutil.rmtree(folder)
