"""`import ingestor`: light, whole, and each function's example is true."""

import doctest
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, date, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, assert_type

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from recordings import make_sample
from requirements import of_tier

import ingestor
from ingestor.errors import ConfigError, NotARecording

FUNCTIONS = [name for name in ingestor.__all__ if name.islower() and name != "__version__"]

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


@pytest.mark.parametrize(
    "name", of_tier([name for name in FUNCTIONS if name not in {"bars_of", "follow", "scan_trades"}], ["read_trades"])
)
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


# What people give it

READERS: dict[str, Any] = {
    "read_trades": ingestor.read_trades,
    "read_bars": lambda root, **given: ingestor.read_bars(root, "1m", **given),
    "read_coverage": ingestor.read_coverage,
    "describe": ingestor.describe,
    "scan_trades": lambda root, **given: ingestor.scan_trades(root, **given).read_pandas(),
    "follow": lambda root, **given: next(ingestor.follow(root, from_="start", idle_s=0.1, **given)).to_pandas(),
}
every_reader = pytest.mark.parametrize("read", READERS.values(), ids=READERS)


@every_reader
@pytest.mark.parametrize(
    "symbols", ["AAPL", np.str_("AAPL"), {"AAPL"}, ("AAPL",), pd.Series(["AAPL"]), np.array(["AAPL"])], ids=str
)
def test_one_symbol_is_one_however_it_is_given(read: Any, symbols: Any, sample: Path) -> None:
    found = read(sample / "data", symbols=symbols)
    assert len(found)
    assert set(found["symbol"]) == {"AAPL"}


@every_reader
@pytest.mark.parametrize("symbols", [5, b"AAPL", [5], [None], ["AAPL", float("nan")]], ids=str)
def test_what_is_no_symbol_is_refused(read: Any, symbols: Any, sample: Path) -> None:
    with pytest.raises(ValueError, match="is no symbol"):
        read(sample / "data", symbols=symbols)


@every_reader
@pytest.mark.parametrize(
    ("symbol", "sentence"),
    [
        ("aapl", "'aapl' is not recorded here; AAPL is"),
        ("APPL", "; AAPL is"),
        ("AAPL,MSFT", "; AAPL"),
        ("ZZZZ", "here$"),
    ],
)
def test_an_unknown_symbol_is_named(read: Any, symbol: str, sentence: str, sample: Path) -> None:
    with pytest.warns(UserWarning, match=sentence):
        read(sample / "data", symbols=symbol)


def test_one_column_is_one(sample: Path) -> None:
    assert list(ingestor.read_trades(sample / "data", columns="price").columns) == ["price"]
    with pytest.raises(ValueError, match="no column 'prices'"):
        ingestor.read_trades(sample / "data", columns="prices")


AT = "2026-11-20T14:30"
SPANNED = {name: READERS[name] for name in ("read_trades", "scan_trades", "read_bars", "read_coverage")} | {
    "read_rejects": ingestor.read_rejects
}
every_spanned = pytest.mark.parametrize("read", SPANNED.values(), ids=SPANNED)


@every_spanned
@pytest.mark.parametrize(
    "time",
    [
        AT,
        date(2026, 11, 20),
        datetime(2026, 11, 20, 14, 30),  # noqa: DTZ001  without a zone is what is tried
        pytest.param(datetime(2026, 11, 20, 14, 30, tzinfo=UTC), marks=pytest.mark.long),
        pytest.param(pd.Timestamp(AT), marks=pytest.mark.long),
        pd.Timestamp(AT, tz="America/New_York"),
        pytest.param(np.datetime64("2026-11-20"), marks=pytest.mark.long),
        np.datetime64(AT, "ns"),
        pytest.param(np.datetime64(AT, "s"), marks=pytest.mark.long),
    ],
    ids=repr,
)
def test_every_kind_of_time_works_everywhere(read: Any, time: Any, sample: Path) -> None:
    read(sample / "data", start=time)
    read(sample / "data", end=time, tz="Asia/Seoul")


@every_spanned
@pytest.mark.parametrize("bound", ["start", "end"])
@pytest.mark.parametrize(
    ("time", "sentence"),
    [
        (pd.NaT, "NaT is no time"),
        (np.datetime64("NaT", "s"), "NaT is no time"),
        (float("nan"), "is a number"),
        (1_767_225_600_000, "is a number"),
        (True, "is no time"),
        ([AT], "is no time"),
        ("someday", "is no time"),
        (np.datetime64(2**62, "s"), "can be recorded"),
    ],
    ids=repr,
)
def test_what_is_no_time_is_refused_with_a_sentence(
    read: Any, bound: str, time: Any, sentence: str, sample: Path
) -> None:
    with pytest.raises(ValueError, match=sentence):
        read(sample / "data", **{bound: time})


@every_spanned
def test_a_start_after_the_end_is_refused(read: Any, sample: Path) -> None:
    with pytest.raises(ValueError, match="start must be before end"):
        read(sample / "data", start="2027-01-01", end="2026-01-01")


@pytest.mark.parametrize(
    "time", [AT, date(2020, 1, 1), np.datetime64("2020-01-01"), pd.Timestamp("2020-01-01")], ids=repr
)
def test_follow_takes_the_same_times(time: Any, sample: Path) -> None:
    assert next(ingestor.follow(sample / "data", from_=time, idle_s=0.1)) is not None
    with pytest.raises(ValueError, match="is a number"):
        next(ingestor.follow(sample / "data", from_=5))  # type: ignore[call-overload]


def test_who_stops_following_holds_no_file(sample: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))  # noqa: PTH208  names only
    batches = ingestor.follow(sample / "data", from_="start", idle_s=0.1)
    assert next(batches).num_rows
    assert set(os.listdir("/proc/self/fd")) - before  # noqa: PTH208
    del batches
    assert set(os.listdir("/proc/self/fd")) <= before  # noqa: PTH208


def test_a_numpy_time_is_the_moment_it_says(sample: Path) -> None:
    first = ingestor.read_trades(sample / "data", "AAPL")["timestamp"]
    assert len(ingestor.read_trades(sample / "data", "AAPL", start=first.to_numpy()[0])) == len(first)


@pytest.mark.parametrize("read", [*READERS.values(), ingestor.read_rejects])
def test_a_root_is_a_directory_or_an_address(read: Any) -> None:
    for root in ("https://host/data", Path("https://host/data")):
        with pytest.raises(NotARecording, match="a root is a directory, s3://bucket/path or file:///path"):
            read(root)
    for strange in (5, None, [5], {"data": 1}):
        with pytest.raises(ValueError, match="is no root"):
            read(strange)


def test_of_rejects_and_while_it_is_recorded_one_root_is_read() -> None:
    with pytest.raises(ValueError, match="is no root"):
        ingestor.read_rejects(["data"])  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="is no root"):
        next(ingestor.follow(["data"]))  # type: ignore[call-overload]


AS_TABLE: dict[str, Callable[[pa.Table], Any]] = {
    "arrow": lambda table: table,
    "in another order, as Delta has times": lambda table: pa.table(
        {
            name: column.cast(pa.timestamp("us", "UTC")) if pa.types.is_timestamp(column.type) else column
            for name, column in zip(table.column_names, table[::-1].columns, strict=True)
        }
    ),
    "pandas": lambda table: table.to_pandas(),
    "polars": pl.DataFrame,
}


@pytest.mark.parametrize("kind", AS_TABLE)
def test_bars_of_what_something_else_has_read(kind: str, sample: Path) -> None:
    trades, spans = (read(sample / "data", engine="arrow") for read in (ingestor.read_trades, ingestor.read_coverage))
    made = ingestor.bars_of(AS_TABLE[kind](trades), "5m", "America/New_York", coverage=AS_TABLE[kind](spans))
    assert made.equals(ingestor.read_bars(sample / "data", "5m", tz="America/New_York", engine="arrow"))


def test_bars_of_a_table_per_date(sample: Path) -> None:
    days = ("2026-11-19", "2026-11-20", "2026-11-21")
    tables = (
        ingestor.read_trades(sample / "data", start=start, end=end, engine="arrow") for start, end in pairwise(days)
    )
    assert ingestor.bars_of(tables).equals(ingestor.read_bars(sample / "data", engine="arrow").drop(["coverage"]))
    assert ingestor.bars_of([]).num_rows == 0
