"""What README and docs/ show runs: every block of Python, in the order of its page; and each surprise is one."""

from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pytest
from documents import GUIDES, blocks, read
from journals import drain
from recordings import Print, Recording, make_sample
from sink_contract import ROOT

import ingestor
from ingestor.dataset.arguments import Span
from ingestor.dataset.export import export_trades
from ingestor.sinks.object_store import ObjectStore

SNIPPETS = {guide: found for guide in GUIDES if (found := blocks(read(guide), "python"))}


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recording in `data`, and its mirror, a Delta table, in `mirror`."""
    folder = tmp_path_factory.mktemp("readme")
    recording = make_sample(folder / "data")
    drain(recording.layout, [ObjectStore(str(folder / "mirror"), recording.layout, ROOT, table="delta")])
    return folder


@pytest.fixture
def here(sample: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(sample)
    return sample


@pytest.mark.filterwarnings("default")  # what other libraries warn of is not the snippet's business
@pytest.mark.parametrize("guide", SNIPPETS)
def test_every_block_runs(guide: str, here: Path) -> None:
    """Each in the names that those of its page before it have made, as in one notebook."""
    names: dict[str, object] = {}
    for number, block in enumerate(SNIPPETS[guide], 1):
        exec(compile(block, f"{guide}, Python block {number}", "exec"), names)  # noqa: S102  that is the test
    assert "trades" in names


@pytest.mark.filterwarnings("default")
def test_the_joins_of_trades_and_coverage_say_the_same(here: Path) -> None:
    names: dict[str, Any] = {}
    for block in SNIPPETS["docs/read.md"]:
        exec(block, names)  # noqa: S102  that is the test
    assert ingestor.read_trades("data", columns=["price"], coverage=True).columns.tolist() == ["price", "coverage"]
    frame = ingestor.read_trades("data", coverage=True).sort_values("sequence")
    expected = frame["coverage"].tolist()
    assert set(expected) == {"recorded", "blind"}
    joined = [names["joined"], names["in_polars"].to_pandas(), names["in_duckdb"].df()]
    assert [one.sort_values("sequence")["state"].tolist() for one in joined] == [expected] * 3


def test_blocks_are_found() -> None:
    markdown = "```python\na\nb\n```\n```bash\nc\n```\n```python\nd\n```\n"
    assert blocks(markdown, "python") == ["a\nb\n", "d\n"]
    assert {"README.md", "docs/read.md"} <= set(SNIPPETS)


# The surprises


def test_a_hive_date_is_an_unordered_category_of_text(here: Path) -> None:
    dates = pd.read_parquet("data/trades")["date"]
    assert dates.cat.ordered is False
    with pytest.raises(TypeError, match="Unordered Categoricals"):
        _ = dates >= "2026-11-20"
    assert (
        len(pd.read_parquet("data/trades", filters=[("date", "<", "2026-11-20")])) == (dates == "2026-11-19").sum() > 0
    )


def test_new_yorks_evening_is_the_next_date(tmp_path: Path) -> None:
    recording = Recording(tmp_path)
    recording.write(Print("2026-11-19T19:30-05:00", "AAPL", 1, 1))
    recording.seal()
    assert [path.name for path in recording.layout.trades.iterdir()] == ["date=2026-11-20"]
    assert len(ingestor.read_trades(tmp_path, start="2026-11-19", end="2026-11-20", tz="America/New_York")) == 1


def test_rows_of_bare_files_are_not_in_the_order_of_time(here: Path) -> None:
    trades = pd.read_parquet("data/trades")
    assert not trades["timestamp"].is_monotonic_increasing
    assert trades.sort_values(["timestamp", "sequence"], kind="stable")["timestamp"].is_monotonic_increasing


def test_duckdb_cuts_days_at_utc_midnight(here: Path) -> None:
    query = "SELECT DISTINCT hour(time_bucket(INTERVAL '1 day', \"timestamp\") AT TIME ZONE 'UTC') {files}"
    files = "FROM read_parquet('data/trades/*/*.parquet')"
    with duckdb.connect() as database:
        database.execute("SET TimeZone = 'America/New_York'")
        assert database.sql(query.format(files=files)).fetchall() == [(0,)]


def test_a_code_is_found_in_another(here: Path) -> None:
    conditions = ingestor.read_trades("data", symbols=["AAPL"])["conditions"]
    loose, exact = conditions.str.contains("2", na=False), conditions.str.contains(r"\b2\b", na=False)
    assert set(conditions[loose]) == {"1,12", "2"}
    assert set(conditions[exact]) == {"2"}


def test_a_ticker_that_looks_like_nothing_stays_text(tmp_path: Path) -> None:
    """The call that docs/read.md shows."""
    recording = Recording(tmp_path / "data")
    recording.write(*(Print("2026-11-20T15:00", symbol, 1, None) for symbol in ("NA", "TRUE", "000001")))
    list(export_trades(tmp_path / "data", tmp_path / "trades.csv", "csv", Span(None, None)))
    assert set(pd.read_csv(tmp_path / "trades.csv")["symbol"].isna()) == {True, False}
    text = {"symbol": str, "conditions": str}
    frame = pd.read_csv(
        tmp_path / "trades.csv", dtype=text, keep_default_na=False, na_values={"volume": [""]},
        parse_dates=["timestamp", "received_at"],
    )  # fmt: skip
    assert sorted(frame["symbol"]) == ["000001", "NA", "TRUE"]
    assert frame["volume"].isna().all()
    assert str(frame["timestamp"].dtype).endswith("UTC]")
