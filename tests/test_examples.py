"""The longer examples run, and say what is true of the recordings that they are shown."""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from documents import blocks, read
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


_SPARK = """
import sys
import ingestor, pyarrow as pa, pyarrow.parquet as pq
from pyspark.sql import SparkSession
here = {"spark.driver.bindAddress": "127.0.0.1", "spark.driver.host": "127.0.0.1", "spark.ui.enabled": "false"}
spark = SparkSession.builder.master("local[1]").config(map={**here, "spark.sql.session.timeZone": "UTC"}).getOrCreate()
"""


@pytest.mark.skipif(
    (find_spec("pyspark") is None or shutil.which("java") is None) and os.environ.get("REQUIRE_SPARK") != "1",
    reason="needs Java and pyspark, which is 0.5 GB: pip install pyspark",
)
def test_bars_of_spark_are_those_of_one_process(tmp_path: Path) -> None:
    """The block of docs/scale.md, with the recording's folder in place of the bucket."""
    recording = make_sample(tmp_path / "data")
    recording.seal()
    recording.stop("2026-11-21T01:00:00")
    (block,) = (one for one in blocks(read("docs/scale.md"), "py") if "applyInArrow" in one)
    assert '"s3a://my-bucket/trades"' in block
    script = tmp_path / "bars.py"
    save = "pq.write_table(bars.toArrow(), 'bars.parquet')"
    script.write_text(f"{_SPARK}{block.replace('s3a://my-bucket/trades', str(recording.layout.trades))}\n{save}\n")
    environ = {**os.environ, "PYSPARK_PYTHON": sys.executable, "PYSPARK_DRIVER_PYTHON": sys.executable}
    subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, check=True, env=environ)
    wanted = ingestor.read_bars(tmp_path / "data", engine="arrow").drop_columns(["coverage"])
    found = pq.read_table(tmp_path / "bars.parquet").sort_by([("symbol", "ascending"), ("start", "ascending")])
    assert found.cast(wanted.schema).equals(wanted)
