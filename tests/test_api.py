"""`import ingestor`: light, whole, and each function's example is true."""

import doctest
import subprocess
import sys
from pathlib import Path
from typing import assert_type

import pandas as pd
import pytest
from recordings import make_sample

import ingestor
from ingestor.errors import ConfigError

FUNCTIONS = [name for name in ingestor.__all__ if name != "__version__"]

WITHOUT_PANDAS = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "pandas":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
"""


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recording in `data`."""
    folder = tmp_path_factory.mktemp("sample")
    make_sample(folder / "data")
    return folder


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_example_in_its_docstring(name: str, sample: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(sample)
    function = getattr(ingestor, name)
    (test,) = doctest.DocTestFinder(recurse=False).find(function, name, globs={})
    assert test.examples, "each public function shows how it is used"
    said: list[str] = []
    assert doctest.DocTestRunner().run(test, out=said.append).failed == 0, "".join(said)


def test_importing_it_imports_nothing_else() -> None:
    program = "import sys; before = set(sys.modules); import ingestor; print(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "ingestor" in loaded
    assert not loaded & {"pandas", "pyarrow", "numpy", "structlog", "pydantic"}


def test_what_it_names() -> None:
    assert set(FUNCTIONS) <= set(dir(ingestor))
    with pytest.raises(AttributeError, match="no attribute 'read_quotes'"):
        _ = ingestor.read_quotes


def test_a_type_checker_knows_that_they_give_frames(sample: Path) -> None:
    """What `assert_type` says mypy holds; here, that it is so."""
    root = sample / "data"
    frames = (
        assert_type(ingestor.read_trades(root), pd.DataFrame),
        assert_type(ingestor.read_bars(root, "5m", engine="pandas"), pd.DataFrame),
        assert_type(ingestor.read_coverage(root, ["AAPL"]), pd.DataFrame),
        assert_type(ingestor.read_rejects(root), pd.DataFrame),
        assert_type(ingestor.describe(root), pd.DataFrame),
    )
    assert {type(frame) for frame in frames} == {pd.DataFrame}


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name != "follow"])
def test_without_pandas_it_says_what_to_install(name: str, sample: Path) -> None:
    """And with `engine="arrow"` nobody misses it."""
    program = WITHOUT_PANDAS + (
        "import ingestor\n"
        f"print(type(ingestor.{name}('data', engine='arrow')).__name__)\n"
        f"try: ingestor.{name}('data')\n"
        "except ingestor.errors.ConfigError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=sample)
    table, complaint = done.stdout.splitlines()
    assert table == "Table"
    assert complaint == ("pandas is not installed: pip install 'finnhub-ingestor[analysis]', or ask for engine='arrow'")
    assert ConfigError.exit_code == 2
