"""Recordings of every format version there was: each is read, and recorded on, by this one; newer ones are refused.

What an upgrade finds: sealed files, the journal of a recorder that was struck down, a ledger without an end. Each was
made by the version of its time, with `tests/formats/make.py`.
"""

import json
import shutil
import threading
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest

from ingestor.config import Settings
from ingestor.dataset.trades import read_trades
from ingestor.errors import FormatTooNew
from ingestor.facts import encode_line
from ingestor.layout import Layout, list_segments
from ingestor.ledger import Ledger, read_all_facts
from ingestor.recording import Recording, prepare
from ingestor.schema import FORMAT_VERSION

FORMATS = Path(__file__).with_name("formats")
VERSIONS = [str(version) for version in range(1, FORMAT_VERSION + 1)]


@pytest.fixture(params=VERSIONS)
def kept(request: pytest.FixtureRequest) -> Path:
    return FORMATS / str(request.param)


@pytest.fixture
def layout(kept: Path, tmp_path: Path) -> Layout:
    """A copy to work on."""
    shutil.copytree(kept / "data", tmp_path / "data")
    return Layout(tmp_path / "data")


def expected(kept: Path) -> list[dict[str, Any]]:
    """Its trades by sequence, as they were read when it was made."""
    return [json.loads(line) for line in (kept / "trades.jsonl").read_text().splitlines()]


def trades(layout: Layout) -> list[dict[str, Any]]:
    rows = read_trades(layout.root, engine="arrow").sort_by("sequence").to_pylist()
    return [json.loads(json.dumps(row, default=str)) for row in rows]


def test_it_holds_what_an_upgrade_finds(kept: Path) -> None:
    layout = Layout(kept / "data")
    sealed = ds.dataset(layout.trades, format="parquet").count_rows()
    assert 0 < sealed < len(expected(kept))
    assert [file for file in list_segments(layout) if not file.sealed]
    assert list(layout.rejects.iterdir())
    assert [fact["fact"] for fact in read_all_facts(layout)].count("run.stopped") == 0


def test_it_is_read_as_it_was(kept: Path, layout: Layout) -> None:
    assert trades(layout) == expected(kept)


def test_a_recorder_takes_it_up_and_seals_what_was_left(kept: Path, layout: Layout) -> None:
    recording = _prepare(layout)
    recording.buffer.close()
    recording.recorder.run()
    recording.runner.run()
    recording.ledger.close()
    assert ds.dataset(layout.trades, format="parquet").count_rows() == len(expected(kept))
    assert sum(sink.rows[1] for sink in recording.files[:1]) > 0
    assert recording.accounts.violations == 0
    assert trades(layout) == expected(kept)


def test_a_newer_one_is_refused_with_a_sentence(layout: Layout) -> None:
    layout.create()
    told = {"run": 1, "began": 1, "segment": 1, "closed": 0, "last_received": 1, "open_gaps": [], "feed": "finnhub"}
    layout.state.write_text(encode_line({"at": 1, "fact": "state.kept", "format": FORMAT_VERSION + 1, **told}))
    ledger = Ledger(layout, 2, date(2026, 11, 27))
    ledger.record("run.started", format=FORMAT_VERSION + 1, run=2, open_gaps=[])
    ledger.close()
    says = f"this version reads up to {FORMAT_VERSION}"
    with pytest.raises(FormatTooNew, match=says):
        list(read_all_facts(layout))
    with pytest.raises(FormatTooNew, match=says):
        _prepare(layout)


def _prepare(layout: Layout) -> Recording:
    """A recorder of this version on that root; its sinks stop at the journal's end."""
    settings = Settings.model_validate(
        {"tickers": ["AAPL"], "feed": {"url": "ws://127.0.0.1:9"}, "storage": {"formats": ["parquet", "csv"]}}
    )
    layout.create()
    at_end = threading.Event()
    at_end.set()
    return prepare(settings, "demo", layout, threading.Event(), at_end)
