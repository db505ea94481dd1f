"""The copy in the bucket answers as the recording did: after ten faults, without its root, and while it is written. A
Delta table over it holds each row once, whatever is committed, compacted and killed.
"""

import json
import math
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import date
from pathlib import Path

import duckdb
import polars as pl
import pyarrow as pa
import pytest
from click.testing import CliRunner
from deltalake import DeltaTable
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


# A Delta table

MIRRORING = """
import itertools, sys
from pathlib import Path
from ingestor.layout import Layout
from ingestor.sinks.object_store import ObjectStore

place, *roots = sys.argv[1:]
sinks = [ObjectStore(place, Layout(Path(root)), Path(root).name, shared=True, table="delta") for root in roots]
for n in itertools.count():
    for sink in sinks:
        sink.tick(n * 120.0)  # so that what is replaced goes after five passes
    if not n:
        print("passed", file=sys.stderr, flush=True)
"""


def read_by_polars(place: str) -> list[int]:
    return list(pl.scan_delta(place).select("sequence").collect()["sequence"])


def read_by_duckdb(place: str) -> list[int]:
    there = DeltaTable(place).to_pyarrow_dataset()
    with duckdb.connect() as connection:
        found = connection.register("there", there).execute("SELECT sequence FROM there").fetchall()
    return [sequence for (sequence,) in found]


@pytest.mark.long
def test_two_engines_see_each_row_of_a_table_once(tmp_path: Path, tally: Tally) -> None:
    recording, place = Recording(tmp_path / "data", ["A"], started="2026-11-19"), tmp_path / "there"
    ended, looked = threading.Event(), {"polars": threading.Event(), "duckdb": threading.Event()}
    committed: list[int] = []

    def write() -> int:
        sink = ObjectStore(str(place), recording.layout, "mirrored", table="delta")
        rows = 0
        for number in range(8 + rounds() // 2):
            rows += recording.write(*(Print("2026-11-19T12:00", "A", number, n) for n in range(10))).num_rows
            recording.seal()
            if number % 8 == 7:
                list(compact_days(recording.layout, date.max))
            sink.tick(number * 120.0)
            committed.append(rows)
            for one in looked.values():  # each engine reads anew before the next commit
                one.clear()
                assert one.wait(PATIENCE_S), "nobody reads"
        return rows

    def read(engine: str, look: Callable[[str], list[int]]) -> int:
        looks = 0
        while not ended.is_set():
            if committed:
                least = committed[-1]
                sequences = look(str(place))
                assert len(set(sequences)) == len(sequences) >= least
                looks += 1
                looked[engine].set()
        return looks

    with ThreadPoolExecutor() as executor:
        readers = [executor.submit(read, "polars", read_by_polars), executor.submit(read, "duckdb", read_by_duckdb)]
        writing = executor.submit(write)
        try:
            rows = writing.result()
        finally:
            ended.set()
        tally.rounds, tally.rows = sum(one.result() for one in readers), rows
    assert len(read_by_polars(str(place))) == rows
    assert len(list(place.glob("date=*/*.parquet"))) <= len(DeltaTable(place).file_uris()) + 13  # what is replaced goes


@pytest.mark.long
def test_a_table_of_two_recorders_survives_each_kill(tmp_path: Path, tally: Tally) -> None:
    place, chance = str(tmp_path / "there"), random.Random(16)
    recordings = {root: Recording(tmp_path / root, ["A"], started="2026-11-19") for root in ("one", "two")}
    written: set[tuple[str, int]] = set()
    command = [sys.executable, "-c", MIRRORING, place, *(str(tmp_path / root) for root in recordings)]

    def record(root: str) -> None:
        rows = recordings[root].write(*(Print("2026-11-19T12:00", "A", 1, n) for n in range(10)))
        written.update((root, sequence) for sequence in rows["sequence"].to_pylist())
        recordings[root].seal()
        if chance.random() < 0.3:
            list(compact_days(recordings[root].layout, date.max))

    def read() -> list[tuple[str, int]]:
        table = DeltaTable(place).to_pyarrow_dataset().to_table(columns=["root", "sequence"])
        return list(zip(table["root"].to_pylist(), table["sequence"].to_pylist(), strict=True))

    for _ in range(1 + rounds() // 8):
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
            assert process.stderr is not None
            assert process.stderr.readline() == b"passed\n", process.stderr.read()
            try:
                for root in recordings:
                    record(root)
                time.sleep(chance.random() / 10)
            finally:
                process.kill()
            assert process.stderr.read() == b""
        found = read()
        assert len(set(found)) == len(found)
        assert set(found) <= written
    for root, recording in recordings.items():
        sink = ObjectStore(place, recording.layout, root, shared=True, table="delta")
        for now_s in (0.0, 600.0):
            sink.tick(now_s)
    found = read()
    assert sorted(found) == sorted(written)
    files = {str(path) for path in Path(place).glob("root=*/date=*/*.parquet")}
    assert set(DeltaTable(place).file_uris()) == files
    tally.rounds, tally.rows = 1 + rounds() // 8, len(found)


@pytest.mark.long
@pytest.mark.needs("weed")
def test_two_recorders_share_a_table_in_a_bucket(tmp_path: Path, s3: S3Server, tally: Tally) -> None:
    recordings = {root: Recording(tmp_path / root, ["A"], started="2026-11-19") for root in ("one", "two")}

    def mirror(root: str) -> int:
        rows = 0
        sink = ObjectStore(s3.uri, recordings[root].layout, root, shared=True, table="delta")
        for number in range(4):
            rows += recordings[root].write(*(Print("2026-11-19T12:00", "A", number, n) for n in range(10))).num_rows
            recordings[root].seal()
            if number == 2:
                list(compact_days(recordings[root].layout, date.max))
            sink.tick(number * 100.0)
        return rows

    with ThreadPoolExecutor() as executor:
        rows = sum(executor.map(mirror, recordings))
    address, _, options = s3.uri.partition("?")
    endpoint = f"http://{options.partition('endpoint_override=')[2].partition('&')[0]}"
    storage = {"AWS_ENDPOINT_URL": endpoint, "AWS_ALLOW_HTTP": "true", "AWS_REGION": "us-east-1"}
    by_polars = pl.scan_delta(address, storage_options=storage).select("root", "sequence").collect()
    assert (by_polars.height, by_polars.n_unique()) == (rows, rows)
    there = DeltaTable(address, storage_options=storage)
    assert pa.table(there.get_add_actions(flatten=True)).num_rows == 4
    tally.rounds, tally.rows = 2, rows
