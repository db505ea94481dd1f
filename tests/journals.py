"""Builders for the tests of the journal and of what follows it: trades, blocks, roots, and real faults of the disk."""

import contextlib
import gzip
import os
import resource
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from structlog.testing import capture_logs

from ingestor.facts import Fact, proofs
from ingestor.history import next_segment, read_history
from ingestor.journal.follower import Damage, Event, Follower, Rows, SegmentEnd
from ingestor.journal.records import Cursor, Header, Kind, encode_record
from ingestor.journal.writer import Block, Journal, Rotation, Segments
from ingestor.layout import Layout, SegmentId, list_segments
from ingestor.ledger import Ledger, day_of, list_ledgers, now_us, read_facts
from ingestor.metrics import Counts
from ingestor.schema import FORMAT_VERSION, RUN_SHIFT, TRADES
from ingestor.sinks import Sink
from ingestor.sinks.csv_files import CsvFiles
from ingestor.sinks.parquet_files import ParquetFiles
from ingestor.sinks.runner import Runner
from ingestor.sinks.segment_accounts import SegmentAccounts

NOON = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
NEVER = Rotation(age_s=1e9, size=1 << 40)
SYMBOLS = ("AAPL", "BINANCE:BTCUSDT", "BRK.B")

SEGMENT = SegmentId(1, NOON, 1)


_MEMORY = Path("/dev/shm")  # noqa: S108  a folder of our own is made in it
FAST_DISK = _MEMORY if _MEMORY.is_dir() else None
"""For what starts a recorder thousands of times: memory where there is such a disk, else where temporary files go."""


class Clock:
    """A wall clock that a test sets."""

    def __init__(self, now: datetime = NOON) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    def step(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


def make_root(path: Path) -> Layout:
    layout = Layout(path)
    layout.create()
    return layout


def make_ledger(layout: Layout, run: int = 1) -> Ledger:
    return Ledger(layout, run, day_of(now_us()))


def first_sequence(run: int) -> int:
    return run << RUN_SHIFT


def trades(
    first: int, count: int, *, at: datetime = NOON, symbols: Sequence[str] = SYMBOLS, every_ms: int = 1
) -> pa.RecordBatch:
    """Rows with the sequence numbers from `first` on: each differs from its neighbours."""
    at_ms = round(at.timestamp() * 1000)
    numbers = range(first, first + count)
    return pa.RecordBatch.from_pydict(
        {
            "timestamp": [at_ms + index * every_ms for index in range(count)],
            "symbol": [symbols[number % len(symbols)] for number in numbers],
            "price": [100 + number % 1000 / 100 for number in numbers],
            "volume": [float(number % 7) for number in numbers],
            "conditions": [(None, "", "1,12")[number % 3] for number in numbers],
            "received_at": [at_ms * 1000 + index for index in range(count)],
            "sequence": list(numbers),
            "repeated": [number % 5 == 0 for number in numbers],
        },
        schema=TRADES,
    )


def block(rows: pa.RecordBatch, *, notices: int = 0, reasons: dict[str, int] | None = None) -> Block:
    """A balanced block: one frame a row, one a notice, one a reason's count."""
    rejected = sum((reasons or {}).values())
    counts = Counts(
        frames=rows.num_rows + notices + rejected,
        decoded=rows.num_rows,
        rejected_frames=rejected,
        notices=notices,
        trades=rows.num_rows,
    )
    received = rows.column("received_at").cast(pa.int64()).to_pylist() or [1]
    first = rows.column("sequence")[0].as_py() if rows.num_rows else 0
    return Block(Header(Kind.BLOCK, counts, 0, first, received[0], received[-1]), rows, reasons or {})


def whole(header: Header, body: bytes | pa.Buffer) -> bytes:
    """A record as it stands in a segment."""
    return b"".join(bytes(piece) for piece in encode_record(header, body))


@contextlib.contextmanager
def opened(content: bytes) -> Iterator[int]:
    """A descriptor of a file with this content."""
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.flush()
        yield file.fileno()


def make_journal(
    layout: Layout,
    run: int,
    first_segment: int,
    *,
    schema: pa.Schema = TRADES,
    rotation: Rotation = NEVER,
    clock: Callable[[], datetime],
) -> Journal:
    return Journal(layout, Segments(layout, run, first_segment, "finnhub", schema, clock), rotation, clock)


class Writer:
    """A journal and the number of its next row: what the recorder is to it."""

    def __init__(
        self, layout: Layout, *, run: int = 1, segment: int = 1, rotation: Rotation = NEVER, clock: Clock | None = None
    ) -> None:
        self._layout = layout
        self.clock = clock or Clock()
        self.journal = make_journal(layout, run, segment, rotation=rotation, clock=self.clock)
        self.sequence = first_sequence(run)

    @property
    def path(self) -> Path:
        """The open segment's file."""
        return self._layout.open_segment(self.journal.segment)

    @property
    def fd(self) -> int:
        """The descriptor by which the journal writes its open segment."""
        return next(fd for fd, path in writing_descriptors() if path == self.path)

    def append(self, count: int = 3, *, at: datetime = NOON, reasons: dict[str, int] | None = None) -> list[int]:
        """Append a block of new rows; their sequence numbers."""
        rows = trades(self.sequence, count, at=at)
        self.sequence += count
        self.journal.append(block(rows, reasons=reasons))
        return list(range(self.sequence - count, self.sequence))

    def append_refused(self) -> list[int]:
        """Append a block of which the disk takes a part, then no more; the rows' sequence numbers."""
        with no_file_beyond(self.path.stat().st_size + 100):
            return self.append()

    def rotate(self) -> None:
        """Make the rotation due by the clock, then due again for the next call."""
        self.clock.step(86400)
        self.journal.rotate_if_due()


def writing_descriptors() -> list[tuple[int, Path]]:
    """The descriptors by which this process writes, and to what."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the listing's own is gone
            flags = Path(f"/proc/self/fdinfo/{link.name}").read_text().split("flags:")[1].split()[0]
            if int(flags, 8) & os.O_ACCMODE:
                found.append((int(link.name), link.readlink()))
    return found


def recording_descriptors() -> set[int]:
    """The descriptors by which this process holds a journal's or a ledger's files."""
    found = set()
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208  after each test: a Path each would take four times as long
        with contextlib.suppress(FileNotFoundError):  # the listing's own is gone
            path = os.readlink(f"/proc/self/fd/{name}").removesuffix(" (deleted)")  # noqa: PTH115
            if path.endswith((".journal", ".jsonl", "/synced")):
                found.add(int(name))
    return found


def break_descriptor(fd: int) -> None:
    """From now on this descriptor stands for a full device: a write fails with ENOSPC, an fsync with EINVAL."""
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, fd, inheritable=False)
    os.close(full)


@contextlib.contextmanager
def no_file_beyond(size: int) -> Iterator[None]:
    """While this holds, the kernel lets no file of this process grow beyond `size`: it takes a part, then refuses."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        with capture_logs():  # pytest's own capture is such a file
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class Life:
    """One run of a recorder on a root, without a venue: started as the daemon does it, ended by `stop` or `kill`."""

    def __init__(self, layout: Layout, *, rotation: Rotation = NEVER, clock: Clock | None = None) -> None:
        history = read_history(layout)
        self.run = history.run + 1
        self._layout = layout
        self.clock = clock or Clock()
        self._closed = history.closed
        self.ledger = Ledger(layout, self.run, day_of(now_us()))
        first_segment = next_segment(layout, history.segment)
        self.ledger.record(
            "run.started",
            format=FORMAT_VERSION,
            run=self.run,
            feed="finnhub",
            columns=TRADES.names,
            tickers=list(SYMBOLS),
            formats=["parquet", "csv"],
            first_segment=first_segment,
            closed=history.closed,
            open_gaps=[],
        )
        self.writer = Writer(layout, run=self.run, segment=first_segment, rotation=rotation, clock=self.clock)

    def make_runner(self, stop: threading.Event, *others: Sink) -> tuple[Runner, SegmentAccounts]:
        """What carries the journal to new sinks, and to `others` with them; the accounts among them."""
        accounts = SegmentAccounts(self._layout, self.ledger, self._closed)
        csv = CsvFiles(self._layout)
        sinks: list[Sink] = [accounts, ParquetFiles(self._layout, self.ledger), csv]
        for other in others:
            sinks.insert(other.before if isinstance(other, Crash) else len(sinks), other)
        return Runner(self._layout, sinks, stop), accounts

    def drain(self, *others: Sink, compress: bool = False) -> SegmentAccounts:
        """Carry what is synced to new sinks, which then close, or are dropped where a Crash is among them.

        `compress`: as an earlier version did with CSV files that were complete.
        """
        stop = threading.Event()
        stop.set()
        before = set(self._layout.csv.rglob("*.csv"))
        runner, accounts = self.make_runner(stop, *others)
        with contextlib.suppress(Crashed):
            runner.run()
        drop_descriptors(self._layout.csv)
        if compress:
            for path in set(self._layout.csv.rglob("*.csv")) - before:
                path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
                path.unlink()
        return accounts

    def stop(self, *, compress: bool = False) -> SegmentAccounts:
        """End in order: the journal closed, everything in every sink."""
        self.writer.journal.close()
        accounts = self.drain(compress=compress)
        assert self.ledger.close()
        return accounts

    def kill(self) -> None:
        """What `kill -9` leaves: the files as they are, and not one call more."""
        drop_descriptors(self._layout.root)
        drop_descriptors(Path("/dev/full"))


def drop_descriptors(place: Path) -> None:
    """Close what this process has open for writing there, behind the owner's back."""
    for fd, path in writing_descriptors():
        if path.is_relative_to(place):
            os.close(fd)


class Crashed(Exception):
    """The process ends here, without another call."""


class Crash:
    """Among some sinks, the one that ends the process: after so many events, before the sink at that place."""

    name = "crash"

    def __init__(self, after: int, before: int) -> None:
        self.before = before
        self._left = after
        self._place = Cursor(0, 0)

    def _take(self, event: Event) -> None:
        if not self._left:
            raise Crashed
        self._left -= 1
        self._place = event.at

    def write(self, rows: Rows) -> None:
        self._take(rows)

    def set_aside(self, damage: Damage) -> None:
        self._take(damage)

    def end_segment(self, end: SegmentEnd) -> None:
        self._take(end)

    def tick(self, now_s: float) -> None: ...

    def committed(self) -> Cursor:
        return self._place

    def close(self) -> None: ...


def read_events(layout: Layout, start: Cursor | None = None, *, synced_only: bool = False) -> list[Event]:
    """All that a new follower reads now."""
    follower = Follower(layout, start, synced_only=synced_only)
    try:
        return list(follower.read())
    finally:
        follower.close()


def sequences(events: Sequence[Event]) -> list[int]:
    """The sequence numbers of the rows, in the order read."""
    return [number for event in events if isinstance(event, Rows) for number in event.batch["sequence"].to_pylist()]


def ends(events: Sequence[Event]) -> list[int]:
    """The numbers of the segments that are over."""
    return [event.segment.number for event in events if isinstance(event, SegmentEnd)]


def damages(events: Sequence[Event]) -> list[Damage]:
    return [event for event in events if isinstance(event, Damage)]


def journal_sequences(layout: Layout, *, synced_only: bool = False) -> list[int]:
    return sequences(read_events(layout, synced_only=synced_only))


class Holder:
    """A sink that passes nothing: what it has not passed stays in the journal."""

    name = "holder"

    def __init__(self) -> None:
        self.events: list[Event] = []

    def write(self, rows: Rows) -> None:
        self.events.append(rows)

    def set_aside(self, damage: Damage) -> None:
        self.events.append(damage)

    def end_segment(self, end: SegmentEnd) -> None:
        self.events.append(end)

    def tick(self, now_s: float) -> None: ...

    def committed(self) -> Cursor:
        return Cursor(0, 0)

    def close(self) -> None: ...


def drain(layout: Layout, sinks: Sequence[Sink]) -> Runner:
    """Carry all that is synced to these sinks, as at a stop."""
    stop = threading.Event()
    stop.set()
    runner = Runner(layout, sinks, stop)
    runner.run()
    return runner


def parquet_rows(layout: Layout) -> pa.Table:
    """The dataset's rows in the order of arrival."""
    files = sorted(layout.trades.rglob("*"))
    tables = [pq.ParquetFile(path, page_checksum_verification=True).read() for path in files if path.is_file()]
    return pa.concat_tables([TRADES.empty_table(), *tables]).sort_by("sequence")


def parquet_sequences(layout: Layout) -> list[int]:
    sequence: list[int] = parquet_rows(layout)["sequence"].to_pylist()
    return sequence


def recorded_sequences(layout: Layout) -> list[int]:
    """What a reader finds: the rows of unsealed segments in the journal, all others in the dataset."""
    growing = {file.id for file in list_segments(layout) if not file.sealed}
    found: list[int] = []
    for path in layout.trades.rglob("*.parquet"):
        if SegmentId.parse(path.name) not in growing:
            found += pq.ParquetFile(path).read(["sequence"])["sequence"].to_pylist()
    events = read_events(layout, synced_only=True)
    return sorted(found) + sequences([event for event in events if event.segment in growing])


def csv_sequences(layout: Layout) -> list[int]:
    """The rows of all CSV files, compressed or not, segment by segment; a torn last line fails the reading."""
    found: list[int] = []
    for path in sorted(layout.csv.rglob("*.csv*"), key=lambda path: path.name):
        found += pacsv.read_csv(path)["sequence"].to_pylist()
    return found


def unsealed(layout: Layout) -> list[int]:
    return [file.id.number for file in list_segments(layout) if not file.sealed]


def one_by_one(facts: Iterable[Fact]) -> Iterator[Fact]:
    """The same facts, but for `symbols.proven`: a `symbol.proven` for each of its symbols."""
    for fact in facts:
        if fact["fact"] != "symbols.proven":
            yield fact
            continue
        for symbol, since in proofs(fact):
            same = {"at": fact["at"], "connection": fact["connection"]}
            yield {**same, "fact": "symbol.proven", "symbol": symbol, "since": since}


def ledger_facts(layout: Layout, *names: str) -> list[Fact]:
    """The facts of these kinds (none: all) in all ledgers, run by run."""
    told = one_by_one(one for path in list_ledgers(layout) for one in read_facts(path))
    return [one for one in told if not names or one["fact"] in names]
