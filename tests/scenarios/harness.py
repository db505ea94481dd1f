"""Runs a venue and a recorder as a user would, as processes, and compares what was recorded with what was sent.

Nothing here trusts the recorder's own reading: files are read by pyarrow, gaps from the ledger's lines. Only rows that
are not yet in a file come through the journal's Follower, as for any reader.
"""

import json
import os
import signal
import subprocess
import sys
import time
from bisect import bisect
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from journals import one_by_one
from requirements import of_tier, require
from simulated_venues import read_truth

import ingestor
from ingestor.cli.raw import Report, compare_again
from ingestor.coverage import state_at
from ingestor.dataset.arguments import EVER
from ingestor.dataset.coverage import load_coverage
from ingestor.feeds.finnhub import Finnhub
from ingestor.journal.follower import Follower, Rows
from ingestor.layout import Layout, list_segments
from ingestor.schema import RUN_SHIFT, TRADES

T = TypeVar("T")

PATIENCE_S = 60.0
"""Longer than any fact here takes to come about: to wait that long is to fail."""
POLL_S = 0.002
_BESIDE_OTHERS = "PYTEST_XDIST_WORKER" in os.environ
LAG_S = 10.0 if _BESIDE_OTHERS else 1.0
"""What the recorder may lag: the bounds are stated for a machine that has nothing else to do. The full tier gives it to
the tests marked `alone`; all others, and all of the quick tier, run beside each other.
"""
EXIT_S = 30.0 if _BESIDE_OTHERS else 5.0
"""How long a stop may take, with the same difference."""
SYMBOLS = ("AAPL", "MSFT", "BINANCE:BTCUSDT")
LINGER_S = 0.1
WHAT = ["symbol", "timestamp", "price", "volume", "conditions"]
"""What makes two trades equal: as they were sent."""


@dataclass
class Tally:
    """What a scenario went through and what that cost."""

    scenario: str
    rounds: int = 0
    rows: int = 0
    lost: int = 0
    """Rows that the stated bounds promised to keep."""
    duplicated: int = 0
    unexplained: int = 0
    """Rows missing outside the recorded gaps, or in the files and never sent."""
    note: str = ""

    def __str__(self) -> str:
        return (
            f"{self.rounds} rounds, {self.rows} rows, {self.lost} lost, {self.duplicated} duplicated, "
            f"{self.unexplained} unexplained{self.note and f'; {self.note}'}"
        )

    def settle(
        self,
        layout: Layout,
        truth: pa.Table,
        kept: dict[int, int],
        lives: list[tuple[int, float]],
        bound_s: float,
    ) -> None:
        """Fill this in from a recording whose recorder has stopped in order, with Parquet and CSV on.

        `kept`: by run, the last sequence number that was promised to stay. `lives`: when each recorder was started and
        when it was struck, infinite for one that was not, in µs since 1970; it may have lost what was sent in the
        `bound_s` before that.
        """
        parquet, csv = read_parquet(layout), read_csv(layout)
        comparison = compare(truth, parquet)
        losses_s = [loss_us / 1e6 for loss_us in _losses_us(comparison, truth, lives)]
        self.rows = parquet.num_rows
        self.lost = missing_sequences(parquet, last_sequences(parquet) | kept)
        self.lost += sum(loss_s > bound_s for loss_s in losses_s)
        self.duplicated = count_repeats(parquet) + count_repeats(csv)
        self.unexplained = comparison.unexplained(read_gaps(layout)) + count_differences(parquet, csv)
        self.unexplained += count_blind_rows(layout, parquet)
        self.note = f"one cost at most {max(losses_s, default=0):.3f} s of {bound_s:g} s"

    def assert_clean(self) -> None:
        assert (self.lost, self.duplicated, self.unexplained) == (0, 0, 0), str(self)
        assert self.rows > 0, "nothing was recorded: nothing was proven"


def rounds() -> int:
    """CHAOS_ROUNDS, or what is enough for every run of this tier."""
    return int(os.environ.get("CHAOS_ROUNDS", of_tier(20, 3)))


def wait_for(fact: Callable[[], T | None], what: str, process: "subprocess.Popen[Any] | None" = None) -> T:
    """The fact, as soon as it is there (not None, not False).

    Fails after PATIENCE_S, or when `process` ends, and says what never came about.
    """
    deadline_s = time.monotonic() + PATIENCE_S
    while (looked_s := time.monotonic()) < deadline_s and (process is None or process.poll() is None):
        found = fact()
        if found is not None and found is not False:
            return found
        # A look that is dear must not take the machine from those it waits for.
        time.sleep(max(POLL_S, 4 * (time.monotonic() - looked_s)))
    pytest.fail(f"never came about: {what}")


def now_us() -> int:
    return time.time_ns() // 1000


# Processes


def environ(**more: str) -> dict[str, str]:
    """The environment of a process of ours: no key but the one given."""
    inherited = {name: value for name, value in os.environ.items() if name != "FINNHUB_API_KEY"}
    return {**inherited, "PYTHONPATH": str(Path(ingestor.__file__).parents[1]), **more}


@dataclass(frozen=True)
class Venue:
    """`ingestor simulate`, running."""

    url: str
    truth: Path
    log: Path
    process: "subprocess.Popen[str]"

    def stop(self) -> pa.Table:
        """The truth, complete once the venue has ended."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(PATIENCE_S) == 0, self.log.read_text()
        return read_truth(self.truth)


@contextmanager
def running_venue(folder: Path, *options: str) -> Iterator[Venue]:
    """A venue for the time of the block. Its pings are rare: a gap then begins at a frame that has trades."""
    truth, log = folder / "truth.jsonl", folder / "venue.log"
    command = [
        *(sys.executable, "-m", "ingestor", "simulate", "--port", "0", "--json", "--seed", "7"),
        *("--ping-interval", "1h", "--truth", str(truth), *options),
    ]
    with log.open("wb") as stderr:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environ())
    with process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, log.read_text()
            yield Venue(json.loads(line)["url"], truth, log, process)
        finally:
            process.kill()


@dataclass(frozen=True)
class Site:
    """One recording: where its settings, its log and its root are."""

    folder: Path
    root: Path
    url: str
    key: str = "demo"
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Sections of the settings, each over what every scenario has of it."""

    @property
    def layout(self) -> Layout:
        return Layout(self.root)

    @property
    def log(self) -> Path:
        return self.folder / "recorder.log"

    @contextmanager
    def running(self, **more: str) -> "Iterator[Recorder]":
        """`ingestor run` for the time of the block, at whose end it is killed if it still runs."""
        newest = max((file.id.number for file in list_segments(self.layout)), default=0)
        with self.log.open("ab") as log:
            log_begins = log.tell()
            process = subprocess.Popen(
                [sys.executable, "-m", "ingestor", "run", "--config", str(self._write_settings())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environ(FINNHUB_API_KEY=self.key, **more),
            )
        with process:
            try:
                yield Recorder(self, process, newest, log_begins)
            finally:
                process.kill()

    def _write_settings(self) -> Path:
        settings: dict[str, Any] = {
            "feed": {"url": self.url},
            "tickers": list(SYMBOLS),
            "storage": {
                "root": str(self.root),
                "formats": ["parquet", "csv"],
                "rotate": {"age": "1s"},
                "min_free": "0B",
            },
            "health": {"listen": "127.0.0.1:0"},
            "logging": {"format": "json"},
        }
        for name, section in self.settings.items():
            settings[name] = {**settings.get(name, {}), **section} if isinstance(section, dict) else section
        path = self.folder / "ingestor.yaml"
        path.write_text(json.dumps(settings))  # JSON is YAML
        return path


@dataclass(frozen=True)
class Recorder:
    """`ingestor run`, running."""

    site: Site
    process: "subprocess.Popen[bytes]"
    newest_before: int
    """The number of the newest segment before it."""
    log_begins: int
    """Where its own part of the log begins."""

    @property
    def log(self) -> str:
        """What it has said so far."""
        return self.site.log.read_bytes()[self.log_begins :].decode()

    @property
    def logged(self) -> list[dict[str, Any]]:
        """The facts that it has logged so far; a line that is still being written is none."""
        return [json.loads(line) for line in self.log.split("\n")[:-1] if line.startswith("{")]

    def wait_for_event(self, event: str) -> None:
        """Until it has logged this fact."""
        self.wait_for(lambda: any(fact["event"] == event for fact in self.logged), event)

    def wait_for(self, fact: Callable[[], T | None], what: str) -> T:
        """As `wait_for`, while it runs."""
        return wait_for(fact, f"{what} (see {self.site.log})", self.process)

    def wait_for_rows(self) -> None:
        """Until it has journaled something."""
        self.wait_for(
            lambda: any(
                file.id.number > self.newest_before and file.path.stat().st_size > 4096
                for file in list_segments(self.site.layout)
            ),
            "rows in the journal",
        )

    def wait_for_end_of_stream(self) -> None:
        """Until the venue has said goodbye: all that it had sent was read."""
        ends = {"connection.lost", "connection.retried"}
        self.wait_for(lambda: self.logged[-1]["event"] in ends, "the end of the stream")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self, number: int = signal.SIGTERM) -> int:
        """Ask it to stop; its exit code. It has EXIT_S for it."""
        self.process.send_signal(number)
        return self.process.wait(EXIT_S)


def compile_shim(source: str, folder: Path) -> str:
    """The value of LD_PRELOAD that puts a C file of this folder between a process and the system. Needs "cc"."""
    shim = folder / f"{source}.so"
    path = Path(__file__).with_name(source)
    subprocess.run([require("cc"), "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", shim, path, "-ldl"], check=True)
    return str(shim)


# What was recorded


def read_parquet(layout: Layout) -> pa.Table:
    """All rows of the dataset, by sequence, page checksums verified."""
    files = sorted(layout.trades.glob("date=*/*.parquet"))
    tables = [pq.read_table(path, partitioning=None, page_checksum_verification=True) for path in files]
    return pa.concat_tables([TRADES.empty_table(), *map(_plain, tables)]).sort_by("sequence")


def read_csv(layout: Layout) -> pa.Table:
    """All whole rows of the CSV files, by sequence; their `conditions` are never null."""
    convert = pacsv.ConvertOptions(
        column_types=TRADES, true_values=["true"], false_values=["false"], strings_can_be_null=False
    )
    tables = []
    for path in sorted(layout.csv.glob("date=*/*.csv")):
        text = path.read_bytes()
        whole = pa.py_buffer(text[: text.rfind(b"\n") + 1])
        tables.append(pacsv.read_csv(whole, convert_options=convert))
    return pa.concat_tables([TRADES.empty_table(), *map(_plain, tables)]).sort_by("sequence")


def read_journal(layout: Layout, *, unsealed_only: bool = False) -> pa.Table:
    """The rows that the journal holds, by sequence; perhaps only those that no Parquet file holds yet."""
    sealed = {file.id for file in list_segments(layout) if file.sealed}
    follower = Follower(layout, None, synced_only=False)
    try:
        batches = [event.batch for event in follower.read() if isinstance(event, Rows)
                   and not (unsealed_only and event.segment in sealed)]  # fmt: skip
    finally:
        follower.close()
    return pa.concat_tables([TRADES.empty_table(), *map(_plain, map(pa.table, batches))]).sort_by("sequence")


def _plain(table: pa.Table) -> pa.Table:
    return table.replace_schema_metadata(None).cast(TRADES)


def assert_frames_agree(layout: Layout) -> None:
    """Frames as they came give the very trades that the runs which kept them have recorded, and no run lacks one."""
    report = Report()
    for _ in compare_again(layout, Finnhub("ws://simulated", "demo"), EVER, report):
        pass
    runs = pa.array([fact["run"] for fact in read_facts(layout) if fact["fact"] == "run.started" and fact.get("raw")])
    recorded = pc.shift_right(read_parquet(layout)["sequence"], RUN_SHIFT)
    kept = int(pc.sum(pc.is_in(recorded, runs.cast(pa.int64()))).as_py() or 0)
    assert (report.recorded, report.decoded, report.differences[:3]) == (kept, kept, [])
    assert kept > 0


def last_sequences(rows: pa.Table) -> dict[int, int]:
    """By run: the last sequence number among these rows."""
    sequences = rows.column("sequence")
    runs = pc.shift_right(sequences, RUN_SHIFT)
    last = pa.table({"run": runs, "sequence": sequences}).group_by("run").aggregate([("sequence", "max")])
    return dict(zip(last["run"].to_pylist(), last["sequence_max"].to_pylist(), strict=True))


def count_repeats(rows: pa.Table) -> int:
    """Rows whose sequence number another row has."""
    return int(rows.num_rows - pc.count_distinct(rows.column("sequence")).as_py())


def missing_sequences(rows: pa.Table, last: Mapping[int, int]) -> int:
    """How many of each run's rows, from its first up to the given last one, are not among these."""
    sequences = rows.column("sequence")
    missing = 0
    for run, sequence in last.items():
        first = run << RUN_SHIFT
        held = pc.and_(pc.greater_equal(sequences, first), pc.less_equal(sequences, sequence))
        missing += sequence - first + 1 - pc.count_distinct(sequences.filter(held)).as_py()
    return int(missing)


def count_differences(parquet: pa.Table, csv: pa.Table) -> int:
    """Rows that one of the two has and the other has not, or has otherwise."""
    filled = pc.fill_null(parquet["conditions"], "")
    expected = parquet.set_column(parquet.column_names.index("conditions"), "conditions", filled)
    if expected.equals(csv):
        return 0
    ours, theirs = (pa.table({"key": pa.array(map(str, table.to_pylist()))}) for table in (expected, csv))
    both = [(ours, 1), (theirs, -1)]
    signed = pa.concat_tables([table.append_column("n", pa.array([n] * table.num_rows)) for table, n in both])
    sums = signed.group_by("key").aggregate([("n", "sum")])["n_sum"]
    return int(pc.sum(pc.abs(sums)).as_py())


# Gaps


@dataclass(frozen=True)
class Gap:
    """An interval of blindness as the ledger has it, in µs since 1970. `until_us` is infinite while it is open."""

    cause: str
    since_us: float
    until_us: float


def read_facts(layout: Layout) -> list[dict[str, Any]]:
    """The facts of all ledgers, in order; a line that was cut is none."""
    facts = []
    for path in sorted(layout.ledger.glob("*-*-*.jsonl")):
        for line in path.read_text().splitlines():
            try:
                facts.append(json.loads(line))
            except ValueError:
                assert not line.endswith("}"), f"{path.name}: a line that is whole, and no fact: {line!r}"
    return list(one_by_one(facts))


def read_gaps(layout: Layout) -> list[Gap]:
    """The gaps of all symbols together."""
    opened: dict[str, tuple[str, int]] = {}
    until: dict[str, float] = defaultdict(lambda: float("inf"))
    for fact in read_facts(layout):
        begun = fact["open_gaps"] if fact["fact"] == "run.started" else [fact] * (fact["fact"] == "gap.opened")
        opened |= {gap["gap"]: (gap["cause"], gap["since"]) for gap in begun if gap["symbol"] is None}
        if fact["fact"] == "gap.closed":
            until[fact["gap"]] = fact["until"]
    return [Gap(cause, since, until[gap]) for gap, (cause, since) in opened.items()]


def count_blind_rows(layout: Layout, rows: pa.Table) -> int:
    """Recorded trades that coverage calls blind, by when they were received."""
    coverage = load_coverage(layout)
    intervals = {symbol: coverage.intervals(symbol) for symbol in coverage.symbols}
    told = rows.select(["symbol", "received_at"]).group_by(["symbol", "received_at"]).aggregate([])
    times = zip(told["symbol"].to_pylist(), told["received_at"].cast(pa.int64()).to_pylist(), strict=True)
    held = (state_at(intervals.get(symbol, []), at_us) for symbol, at_us in times)
    return sum(interval is not None and interval.state == "blind" for interval in held)


# What was sent, and what became of it


@dataclass(frozen=True)
class Missing:
    """A trade that was sent and not recorded."""

    sent_us: int
    connection: int
    frame: int
    seen_us: float
    """When the last recorded frame before it on its connection was received; -inf where there was none."""

    def within(self, gaps: list[Gap]) -> bool:
        """Whether a gap explains it. A trade that was under way when the gap began was sent before it."""
        return any(gap.since_us <= max(self.sent_us, self.seen_us) and self.sent_us <= gap.until_us for gap in gaps)


@dataclass(frozen=True)
class Comparison:
    """The truth against a recording, as multisets of trades."""

    missing: list[Missing]
    invented: int
    """Rows that were never sent, or are recorded more often than they were sent."""
    holes: int
    """Rows missing although a later frame of the same connection is recorded: TCP can't explain that, nor a gap."""

    def unexplained(self, gaps: list[Gap]) -> int:
        return self.holes + self.invented + sum(not one.within(gaps) for one in self.missing)


def compare(truth: pa.Table, recorded: pa.Table) -> Comparison:
    """What is missing of the truth, and what is too much. Of equal trades the last ones count as the missing ones."""
    sent, kept = (_fill(table) for table in (truth, recorded))
    signed = pa.concat_tables(
        [table.select(WHAT).append_column("n", pa.repeat(n, table.num_rows)) for table, n in ((sent, 1), (kept, -1))]
    )
    balance = signed.group_by(WHAT).aggregate([("n", "sum")])
    invented = pc.sum(balance.filter(pc.less(balance["n_sum"], 0))["n_sum"]).as_py() or 0
    short = balance.filter(pc.greater(balance["n_sum"], 0)).to_pylist()
    rows = _last_of_equals(sent, {tuple(row[name] for name in WHAT): row["n_sum"] for row in short})
    holes, missing = 0, []
    for connection, frames in _by_connection(rows).items():
        first = min(frame for frame, _ in frames)
        of_connection = sent.filter(pc.equal(sent["connection"], connection))
        behind = pc.sum(pc.greater_equal(of_connection["frame"], first)).as_py()
        holes += behind - len(frames)
        seen_us = _last_received_us(of_connection.filter(pc.less(of_connection["frame"], first)), kept)
        missing += [Missing(sent_us, connection, frame, seen_us) for frame, sent_us in frames]
    return Comparison(missing, -invented, holes)


def _fill(table: pa.Table) -> pa.Table:
    """Null and empty conditions apart, and both fit to be a key."""
    filled = pc.fill_null(table["conditions"], "null")
    return table.set_column(table.column_names.index("conditions"), "conditions", filled)


def _last_of_equals(sent: pa.Table, short: dict[tuple[Any, ...], int]) -> list[dict[str, Any]]:
    """The rows of the truth that are missing: as many of each kind as `short` says, the last ones."""
    times = pa.array({key[WHAT.index("timestamp")] for key in short}, TRADES.field("timestamp").type)
    found = []
    candidates = sent.filter(pc.is_in(sent["timestamp"], times)).sort_by(
        [("connection", "descending"), ("frame", "descending")]
    )
    for row in candidates.to_pylist():
        key = tuple(row[name] for name in WHAT)
        if short.get(key, 0):
            short[key] -= 1
            found.append(row)
    return found


def _by_connection(rows: list[dict[str, Any]]) -> dict[int, list[tuple[int, int]]]:
    """(frame, sent_us) of these rows, by connection."""
    found: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for row in rows:
        found[row["connection"]].append((row["frame"], row["sent_us"]))
    return found


def _last_received_us(sent: pa.Table, kept: pa.Table) -> float:
    """When the last of these trades of one connection was received."""
    if not sent.num_rows:
        return float("-inf")
    last = sent.sort_by("frame").slice(sent.num_rows - 1)
    same = kept.filter(pc.equal(kept["timestamp"], last["timestamp"][0]))
    for name in WHAT:
        same = same.filter(pc.equal(same[name], last[name][0]))
    return float(pc.max(same["received_at"].cast(pa.int64())).as_py())


def _losses_us(comparison: Comparison, truth: pa.Table, lives: list[tuple[int, float]]) -> list[float]:
    """Of each missing trade, how long before its recorder was struck it was sent; below 0 for one sent after that."""
    opened = truth.group_by("connection").aggregate([("sent_us", "min")])
    opened_us = dict(zip(opened["connection"].to_pylist(), opened["sent_us_min"].to_pylist(), strict=True))
    starts = [started for started, _ in lives]
    ended_us = {connection: lives[bisect(starts, at) - 1][1] for connection, at in opened_us.items()}
    return [ended_us[one.connection] - one.sent_us for one in comparison.missing]
