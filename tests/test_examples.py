"""The longer examples run, and say what is true of the recordings that they are shown."""

import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from recordings import make_sample

import ingestor
from ingestor.sinks.object_store import ObjectStore

pytestmark = pytest.mark.long

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("example")
    make_sample(folder / "data")
    command = [sys.executable, str(EXAMPLES / "analysis.py"), "data", "AAPL"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    "heading",
    [
        "What is recorded",
        "Five-minute bars of AAPL, regular hours",
        "By day",
        "Sizes of trades, in polars",
        "The busiest minutes, in SQL",
        "When silence was not the market",
    ],
)
def test_each_part_is_there(said: str, heading: str) -> None:
    assert heading in said.splitlines()


def test_the_gap_is_named(said: str) -> None:
    (line,) = [line for line in said.splitlines() if "connection" in line]
    assert "2026-11-20 10:00:00.000001-05:00" in line, "behind the last receipt"
    assert "2026-11-20 10:02:00-05:00" in line


def test_bars_of_a_cluster_are_those_of_one_process(tmp_path: Path) -> None:
    """A shared mirror, by a process of Dask: every bar, and the coverage of each."""
    recording = make_sample(tmp_path / "data")
    recording.seal()
    recording.stop("2026-11-21T01:00:00")
    ObjectStore(str(tmp_path / "there"), recording.layout, "one", shared=True).tick(float("inf"))
    root = f"file://{tmp_path}/there/root=one"
    command = [sys.executable, str(EXAMPLES / "cluster.py"), "1m", "bars.parquet", root, "--workers", "1"]
    subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)
    assert pq.read_table(tmp_path / "bars.parquet").equals(ingestor.read_bars(root, engine="arrow"))
