"""The longer example runs, and says what is true of the recording that it is shown."""

import subprocess
import sys
from pathlib import Path

import pytest
from recordings import make_sample

pytestmark = pytest.mark.long

EXAMPLE = Path(__file__).parents[1] / "examples/analysis.py"


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("example")
    make_sample(folder / "data")
    command = [sys.executable, str(EXAMPLE), "data", "AAPL"]
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
