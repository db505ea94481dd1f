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
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from datetime import date
from functools import partial
from pathlib import Path

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.dataset as pads
import pytest
from click.testing import CliRunner
from deltalake import DeltaTable
from harness import Site, Tally, rounds, running_venue, wait_for
from pyarrow import fs as pafs
from recordings import Print, Recording
from servers import S3Server

from ingestor.cli.main import cli
from ingestor.dataset.compact import compact_days
from ingestor.dataset.trades import read_trades
from ingestor.sinks import delta_table
from ingestor.sinks.object_store import ObjectStore
from ingestor.store import open_place

TEN_FAULTS = ("abort", "close, code: 1000", "reset", "half_frame", "trickle") * 2
QUESTIONS = (
    ("coverage", "--json"),
    ("coverage",),
    ("describe", "--json"),
    ("describe",),
    ("bars", "1s", "--fill", "--json"),
    ("bars", "1s"),
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


# Readings at any moment

Reading = Callable[[], list[int]]
"""The sequence numbers that a reader finds, in any order."""
READINGS = 3
"""Of each reader, by each commit. One of them may have begun before it."""


def numbers_of(rows: pa.Table) -> list[int]:
    sequences: list[int] = rows["sequence"].to_pylist()
    return sequences


def read_while(write: Callable[[int], int], commits: int, readers: Mapping[str, Reading]) -> tuple[int, int]:
    """Write again and again, while all read; (how many rows there are then, how many readings there were). Whatever was
    committed before a reading began has to be in it, and each row once.
    """
    ended = threading.Event()
    committed, counts = [0], dict.fromkeys(readers, 0)

    def read(name: str) -> None:
        while not ended.is_set():
            if least := committed[-1]:
                sequences = readers[name]()
                assert len(set(sequences)) == len(sequences) >= least, name
                counts[name] += 1

    def have_read(before: dict[str, int]) -> bool:
        for one in reading:
            if one.done():
                one.result()  # what it has found wrong
        return all(counts[name] >= before[name] + READINGS for name in counts)

    with ThreadPoolExecutor(len(readers)) as executor:
        reading = [executor.submit(read, name) for name in readers]
        try:
            for number in range(commits):
                committed.append(committed[-1] + write(number))
                wait_for(partial(have_read, dict(counts)), "readings of each")
        finally:
            ended.set()
    for one in reading:
        one.result()
    return committed[-1], sum(counts.values())


@pytest.mark.parametrize("found", [[1, 1], []], ids=["twice", "not at all"])
def test_a_wrong_reading_is_noticed(found: list[int]) -> None:
    with pytest.raises(AssertionError, match="it"):
        read_while(lambda number: 1, 1, {"it": lambda: found})


def write_some(recording: Recording, number: int) -> int:
    """Ten rows in a file of their own; how many."""
    rows: int = recording.write(*(Print("2026-11-19T12:00", "A", number, n) for n in range(10))).num_rows
    recording.seal()
    return rows


@pytest.mark.long
def test_our_readers_see_each_row_once_while_files_are_mirrored_and_compacted(tmp_path: Path, tally: Tally) -> None:
    """They know what a compaction has replaced. A mirror without a table promises that to nobody else."""
    recording, place = Recording(tmp_path / "data", ["A"], started="2026-11-19"), tmp_path / "there"
    sink = ObjectStore(str(place), recording.layout, "mirrored")

    def write(number: int) -> int:
        rows = write_some(recording, number)
        sink.tick(math.inf)
        list(compact_days(recording.layout, date.max))
        sink.tick(math.inf)
        return rows

    def read() -> list[int]:
        rows = read_trades(f"file://{place}", columns=["sequence"], engine="arrow")
        return numbers_of(rows)

    tally.rows, tally.rounds = read_while(write, 2 + rounds(), {"one": read, "two": read})
    assert len(read_trades(place)) == tally.rows


@pytest.mark.long
def test_engines_see_each_row_once_while_files_are_mirrored(tmp_path: Path, tally: Tally) -> None:
    """As they find them in the folders, which holds between compactions."""
    recording, place = Recording(tmp_path / "data", ["A"], started="2026-11-19"), tmp_path / "there"
    sink, files = ObjectStore(str(place), recording.layout, "mirrored"), f"{place}/**/*.parquet"

    def write(number: int) -> int:
        rows = write_some(recording, number)
        sink.tick(math.inf)
        return rows

    def read_by_pyarrow() -> list[int]:
        rows = pads.dataset(place, partitioning="hive").to_table(columns=["sequence"])
        return numbers_of(rows)

    def read_by_duckdb() -> list[int]:
        with duckdb.connect() as connection:
            found = connection.execute(f"SELECT sequence FROM read_parquet('{files}')").fetchall()  # noqa: S608
        return [sequence for (sequence,) in found]

    readers: dict[str, Reading] = {
        "pyarrow": read_by_pyarrow,
        "polars": lambda: list(pl.scan_parquet(files).select("sequence").collect()["sequence"]),
        "duckdb": read_by_duckdb,
    }
    tally.rows, tally.rounds = read_while(write, 2 + rounds() // 2, readers)


# A Delta table

MIRRORING = """
import itertools, sys
from pathlib import Path
from ingestor.layout import Layout
from ingestor.sinks.object_store import ObjectStore

place, root = sys.argv[1:]
sink = ObjectStore(place, Layout(Path(root)), Path(root).name, shared=True, table="delta")
for n in itertools.count():
    sink.tick(n * 120.0)  # so that what is replaced goes after five passes
    if not n:
        print("passed", file=sys.stderr, flush=True)
"""


@contextmanager
def mirroring(place: str, root: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that brings a root to the table again and again, from its first pass on; it had no error."""
    command = [sys.executable, "-c", MIRRORING, place, str(root)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        try:
            assert process.stderr.readline() == b"passed\n", process.stderr.read()
            yield process
        finally:
            process.kill()
        assert process.stderr.read() == b""


def readers_of_table(uri: str) -> dict[str, Reading]:
    """Three engines, and our own function."""
    address, options = delta_table._locate(uri)

    def open_table() -> pads.Dataset:
        return DeltaTable(address, storage_options=options).to_pyarrow_dataset()

    def read_by_duckdb() -> list[int]:
        with duckdb.connect() as connection:
            found = connection.register("there", open_table()).execute("SELECT sequence FROM there").fetchall()
        return [sequence for (sequence,) in found]

    root = uri if "://" in uri else f"file://{uri}"
    return {
        "pyarrow": lambda: numbers_of(open_table().to_table(columns=["sequence"])),
        "polars": lambda: list(
            pl.scan_delta(address, storage_options=options).select("sequence").collect()["sequence"]
        ),
        "duckdb": read_by_duckdb,
        "read_trades": lambda: numbers_of(read_trades(root, columns=["sequence"], engine="arrow")),
    }


@pytest.mark.long
@pytest.mark.parametrize("where", ["directory", pytest.param("bucket", marks=pytest.mark.needs("weed"))])
def test_all_see_each_row_of_a_table_once(
    tmp_path: Path, where: str, request: pytest.FixtureRequest, tally: Tally
) -> None:
    """While it is mirrored and compacted, and what was replaced goes."""
    recording = Recording(tmp_path / "data", ["A"], started="2026-11-19")
    uri = request.getfixturevalue("s3").uri if where == "bucket" else str(tmp_path / "there")
    sink = ObjectStore(uri, recording.layout, "mirrored", table="delta")

    def write(number: int) -> int:
        rows = write_some(recording, number)
        if number % 8 == 7:
            list(compact_days(recording.layout, date.max))
        sink.tick(number * 120.0)  # what is replaced goes after five of them
        return rows

    commits = 8 + rounds() // 2
    tally.rows, tally.rounds = read_while(write, commits, readers_of_table(uri))
    tally.note = f"{commits} commits"
    files, place = open_place(uri)
    folders = files.get_file_info(pafs.FileSelector(f"{place}/date=2026-11-19"))
    address, options = delta_table._locate(uri)
    registered = DeltaTable(address, storage_options=options).file_uris()
    assert len(folders) <= len(registered) + 13  # what is replaced goes


@pytest.mark.long
def test_a_table_of_two_recorders_survives_each_kill(tmp_path: Path, tally: Tally) -> None:
    place, chance = str(tmp_path / "there"), random.Random(16)
    recordings = {root: Recording(tmp_path / root, ["A"], started="2026-11-19") for root in ("one", "two")}
    written: set[tuple[str, int]] = set()

    def record(root: str) -> None:
        rows = recordings[root].write(*(Print("2026-11-19T12:00", "A", 1, n) for n in range(10)))
        written.update((root, sequence) for sequence in rows["sequence"].to_pylist())
        recordings[root].seal()
        if chance.random() < 0.3:
            list(compact_days(recordings[root].layout, date.max))

    def read() -> list[tuple[str, int]]:
        if not list(Path(place).glob("_delta_log/*.json")):  # killed before the first commit
            return []
        table = DeltaTable(place).to_pyarrow_dataset().to_table(columns=["root", "sequence"])
        return list(zip(table["root"].to_pylist(), table["sequence"].to_pylist(), strict=True))

    kills = max(3, rounds() // 4)
    for _ in range(kills):
        with ExitStack() as running:
            mirrors = [running.enter_context(mirroring(place, tmp_path / root)) for root in recordings]
            for root in recordings:
                record(root)
            for mirror in chance.sample(mirrors, 2):
                time.sleep(chance.random() / 10)  # the fault's own moment: nothing is waited for
                mirror.kill()
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
    tally.rounds, tally.rows = kills, len(found)


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
