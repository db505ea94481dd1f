"""The copy in the bucket answers as the recording did: after ten faults, without its root, and while it is written."""

import json
import math
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import date
from pathlib import Path

import pytest
from click.testing import CliRunner
from harness import PATIENCE_S, Site, Tally, rounds, running_venue
from recordings import Print, Recording
from servers import S3Server

from ingestor.cli.main import cli
from ingestor.dataset.compact import compact_days
from ingestor.dataset.trades import read_trades
from ingestor.errors import NotARecording
from ingestor.sinks.object_store import ObjectStore

TEN_FAULTS = ("abort", "close, code: 1000", "reset", "half_frame", "trickle") * 2
QUESTIONS = (
    ("coverage", "--json"),
    ("coverage",),
    ("describe", "--json"),
    ("bars", "1s", "--fill", "--json"),
    ("head", "--json"),
    ("verify", "--json"),
    ("verify",),
)


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    (tmp_path / "s3").mkdir()
    with closing(S3Server(tmp_path / "s3")) as made:
        yield made


def ask(root: str, *question: str) -> str:
    result = CliRunner().invoke(cli, [*question, "--root", root])
    assert result.exit_code == 0, f"{question}: {result.output} {result.exception}"
    return result.stdout


@pytest.mark.long
@pytest.mark.alone
@pytest.mark.needs("weed")
def test_ten_faults_and_only_the_bucket_is_left(
    tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch, tally: Tally
) -> None:
    faults = tmp_path / "faults.yaml"
    script = [f"- {{connection: {n}, after: 400ms, do: {do}}}\n" for n, do in enumerate(TEN_FAULTS, 1)]
    faults.write_text("".join(script))
    settings = {
        "sinks": {"object_store": {"uri": s3.uri}},
        "storage": {"formats": ["parquet"]},
        "connection": {"silence": "1s", "ping_interval": "500ms", "backoff_max": "200ms"},
    }
    with running_venue(tmp_path, "--rate", "2000", "--faults", str(faults)) as venue:
        site = Site(tmp_path, tmp_path / "data", venue.url, settings=settings)
        with site.running() as recorder:
            recorder.wait_for(lambda: _gaps(recorder.log) >= len(TEN_FAULTS), "ten gaps")
            venue.stop()
            recorder.wait_for_end_of_stream()
            assert recorder.end() == 0
    before = {question: ask(str(site.root), *question) for question in QUESTIONS}
    assert json.loads(before["verify", "--json"])["differences"] == []
    told = json.loads(before["coverage", "--json"])
    assert len(told["gaps"]) >= len(TEN_FAULTS)
    shutil.rmtree(site.root)
    address, _, options = s3.uri.partition("?")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{options.partition('endpoint_override=')[2].partition('&')[0]}")
    assert {question: ask(address, *question) for question in QUESTIONS} == before
    tally.rounds, tally.rows = len(TEN_FAULTS), int(read_trades(address, engine="arrow").num_rows)


def _gaps(log: str) -> int:
    return log.count('"gap.recorded"')


@pytest.mark.long
def test_each_row_once_while_it_is_mirrored_and_compacted(tmp_path: Path, tally: Tally) -> None:
    recording, place = Recording(tmp_path / "data", ["A"], started="2026-11-19"), tmp_path / "there"
    layout = recording.layout
    ended, found = threading.Event(), threading.Event()
    committed: list[int] = []

    def write() -> int:
        sink = ObjectStore(str(place), layout, "mirrored")
        rows = 0
        for number in range(2 + rounds()):
            rows += recording.write(*(Print("2026-11-19T12:00", "A", number, n) for n in range(40))).num_rows
            recording.seal()
            sink.tick(math.inf)
            committed.append(rows)
            list(compact_days(layout, date.max))
            sink.tick(math.inf)
            found.clear()
            assert found.wait(PATIENCE_S), "nobody reads"
        return rows

    def read() -> int:
        looks = 0
        while not ended.is_set():
            least = committed[-1] if committed else 0
            try:
                trades = read_trades(f"file://{place}", columns=["sequence"], engine="arrow")
            except NotARecording:  # nothing is there yet
                assert not least
                continue
            sequences = trades.column("sequence").to_pylist()
            assert len(set(sequences)) == len(sequences) >= least
            looks += 1
            found.set()
        return looks

    with ThreadPoolExecutor() as executor:
        readers = [executor.submit(read) for _ in range(2)]
        writing = executor.submit(write)
        try:
            rows = writing.result()
        finally:
            ended.set()
        tally.rounds, tally.rows = sum(one.result() for one in readers), rows
    assert len(read_trades(place)) == rows
