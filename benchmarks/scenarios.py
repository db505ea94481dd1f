"""What speed alone doesn't show: latency, a quiet day, an overload, a crash, a start."""

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from processes import (
    HERE,
    BenchmarkFailed,
    Contender,
    LeftOut,
    Process,
    answer_of,
    environment,
    recorder,
    running,
    venue,
)
from throughput import Run, run_load
from trade_load import PART_TRADES, SYMBOLS

_LOOK_S = 0.05
_POLL_S = 0.005
_DAY_S = 86_400
_TORN_SEGMENT = 64 << 20
_TORN_PARTS = 45
_CUT = 1000
SERVERS = ("redis-server", "weed")
"""What a recorder with every sink needs; the others need none, or bring it."""


@dataclass(slots=True)
class Watch:
    """What was seen of a recorder from outside while it ran."""

    at_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    rss: list[int] = field(default_factory=list)
    segments: dict[str, int] = field(default_factory=dict)
    """The largest size seen of each segment of the journal."""

    def look(self, process: Process, root: Path) -> None:
        """Sees nothing of one that is ending."""
        rss = process.rss()
        if not rss:
            return
        ticks = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
        self.at_s.append(time.monotonic())
        self.cpu_s.append(sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK"))
        self.rss.append(rss)
        for path in (root / "journal").glob("*.journal"):
            with suppress(FileNotFoundError):  # sealed and freed meanwhile
                name = path.name.split(".")[0]
                self.segments[name] = max(self.segments.get(name, 0), path.stat().st_size)

    def cpu_share(self, after: float = 1 / 3) -> float:
        """Of one core, from the end of the first third, or of another part, to the end."""
        at = int(len(self.rss) * after)
        return (self.cpu_s[-1] - self.cpu_s[at]) / (self.at_s[-1] - self.at_s[at])


@dataclass(frozen=True, slots=True)
class Paced:
    """A recorder at a steady rate, followed by another process."""

    rate: float
    lasted_s: float
    trades: int
    followed: int
    sent_ms: list[float]
    """p50, p99, p99.9 from the venue's send to `follow()`."""
    received_ms: list[float]
    """The same from the recorder's read."""
    cpu_share: float
    """Of one core, from the end of the first third to the end."""
    peak_rss: int
    rss: int
    """At the end."""
    rss_growth: int
    """Bytes, over the same time."""
    own: int
    """Bytes that no other process shares and no file holds, at the end."""
    journal_bytes: int


def run_paced(
    load: Path, rate: float, seconds: float, folder: Path, contender: Contender, *, batches: bool = False
) -> Paced:
    """Send a recorder so many trades a second, in batches or one a frame. Raises BenchmarkFailed where one is not
    written.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    root, watch = folder / "data", Watch()
    options = ["--rate", str(rate), "--seconds", str(seconds), *["--batches"] * batches]
    with (
        venue(load, options, None, folder / "venue.log") as at,
        running(contender.command(at, folder), folder / "contender.log") as process,
    ):
        at.next("subscribed", process)
        with running([sys.executable, str(HERE / "probe.py"), str(root)], folder / "probe.log") as probe:
            end_s = time.monotonic() + seconds
            while time.monotonic() < end_s:
                watch.look(process, root)
                time.sleep(_LOOK_S)
            read = at.next("read", process)
            probe.end_input()
            followed = probe.answer()
        own = process.own_bytes()
        process.signal(signal.SIGTERM)
        used = process.wait()
    if followed["trades"] < read["trades"] / 2:
        raise BenchmarkFailed(f"{rate} trades/s: only {followed['trades']} of {read['trades']} followed")
    trades = int(read["trades"])
    written = answer_of([str(HERE / "written.py"), "parquet", str(root / "trades")], folder / "written.log")
    if written["rows"] != trades:
        raise BenchmarkFailed(f"{rate} trades/s: {trades} sent, {written['rows']} written")
    third = len(watch.rss) // 3
    return Paced(
        rate=rate,
        lasted_s=seconds,
        trades=trades,
        followed=followed["trades"],
        sent_ms=followed["sent"],
        received_ms=followed["received"],
        cpu_share=watch.cpu_share(),
        peak_rss=used.peak_rss,
        rss=watch.rss[-1],
        rss_growth=watch.rss[-1] - watch.rss[third],
        own=own,
        journal_bytes=sum(watch.segments.values()),
    )


def run_paced_script(
    load: Path, rate: float, seconds: float, folder: Path, contender: Contender, *, batches: bool = False
) -> float:
    """What another program that writes CSV takes of one core at a steady rate, from the end of the first third to the
    end. Raises BenchmarkFailed where a trade is not written.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    watch = Watch()
    options = ["--rate", str(rate), "--seconds", str(seconds), "--close", *["--batches"] * batches]
    with (
        venue(load, options, None, folder / "venue.log") as at,
        running(contender.command(at, folder), folder / "contender.log") as process,
    ):
        at.next("subscribed", process)
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s and not process.has_ended():
            watch.look(process, folder / "data")
            time.sleep(_LOOK_S)
        read = at.next("read", process)
        process.wait()
    command = [str(HERE / "written.py"), contender.written_as, str(contender.output(folder))]
    written = answer_of(command, folder / "written.log")
    if written["rows"] != read["trades"]:
        raise BenchmarkFailed(
            f"{contender.name}, {rate} trades/s: {read['trades']:.0f} sent, {written['rows']} written"
        )
    return watch.cpu_share()


def run_idle(load: Path, symbols: int, seconds: float, folder: Path) -> float:
    """What a recorder of so many symbols takes of a core, in the second half of the time, at a venue that sends next to
    nothing: a trade each five seconds.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tickers = [*SYMBOLS, *(f"IDLE{number}" for number in range(symbols - len(SYMBOLS)))]
    contender, watch = replace(recorder("idle", "parquet"), tickers=tickers), Watch()
    with (
        venue(load, ["--rate", "0.2", "--seconds", str(seconds)], None, folder / "venue.log") as at,
        running(contender.command(at, folder), folder / "contender.log") as process,
    ):
        at.next("subscribed", process)
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            watch.look(process, folder / "data")
            time.sleep(_LOOK_S)
        process.signal(signal.SIGTERM)
        process.wait()
    return watch.cpu_share(1 / 2)  # the start of 11,000 takes longer


@dataclass(frozen=True, slots=True)
class EverySink:
    """A recorder without and with every sink, in turn, at a rate that leaves both some of the machine."""

    alone: list[Paced]
    with_all: list[Paced]


def run_every_sink(load: Path, rate: float, seconds: float, folder: Path, turns: int) -> EverySink:
    """Raises LeftOut where a server is missing, BenchmarkFailed where a trade is not written."""
    here = {name: shutil.which(name) or Path(sys.executable).with_name(name).exists() for name in SERVERS}
    if missing := [name for name, found in here.items() if not found]:
        raise LeftOut(f"needs {' and '.join(missing)}")
    result = EverySink([], [])
    for turn in range(turns):
        alone = recorder("alone", "parquet")
        result.alone.append(run_paced(load, rate, seconds, folder, alone))
        servers = folder.with_name(f"servers-{turn}")
        with running(
            [sys.executable, str(HERE / "elsewhere.py"), str(servers)], servers.with_suffix(".log")
        ) as elsewhere:
            try:
                sinks = json.loads(elsewhere.stdout.readline())
                every = replace(recorder("every sink", "parquet", "csv"), sinks=sinks)
                result.with_all.append(run_paced(load, rate, seconds, folder, every))
            finally:  # in order, or its servers would outlive it
                elsewhere.end_input()
                elsewhere.wait()
    return result


def journal_per_day(paced: Paced) -> float:
    return paced.journal_bytes / paced.lasted_s * _DAY_S


@dataclass(frozen=True, slots=True)
class Overload:
    """A venue that always has more, and waits."""

    run: Run
    connections_lost: int


def run_overload(load: Path, rate: float, seconds: float, folder: Path) -> Overload:
    """For about so long at `rate`, which is what the recorder can take. Raises BenchmarkFailed on any loss."""
    parts = max(1, round(rate * seconds / PART_TRADES))
    run = run_load(recorder("overload", "parquet"), load, 1, parts, None, folder)
    ledger = "".join(path.read_text() for path in (folder / "data" / "ledger").glob("*.jsonl"))
    return Overload(run, ledger.count('"connection.lost"'))


@dataclass(frozen=True, slots=True)
class Salvage:
    """A start on the torn segment that a crash left."""

    segment_bytes: int
    rows: int
    lasted_s: float
    """From the start of the process to the sealed file."""


def run_salvage(load: Path, folder: Path) -> Salvage:
    """Kill a recorder when its segment is full, tear off the segment's end, and start anew.

    Raises BenchmarkFailed unless every row of the records that are whole is sealed.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    contender = replace(recorder("salvage", "parquet"), rotate_size="1GB")
    root = folder / "data"
    with venue(load, ["--parts", str(_TORN_PARTS)], None, folder / "venue.log") as at:
        process = Process(contender.command(at, folder), folder / "contender.log")
        at.next("subscribed", process)
        segment = wait_for(lambda: next(full_segments(root), None), process)
        process.signal(signal.SIGKILL)
        process.wait((-signal.SIGKILL,))
    os.truncate(segment, segment.stat().st_size - _CUT)
    torn = segment.stat().st_size
    # The first segments of a run are sealed soon: on a slow machine some are before the kill.
    held = answer_of([str(HERE / "written.py"), "root", str(root)], folder / "held.log")
    sealed = set((root / "trades").rglob("*.parquet"))
    with (
        venue(load, [], None, folder / "venue.log") as at,
        running(contender.command(at, folder), folder / "again.log") as again,
    ):
        wait_for(lambda: next(iter(set((root / "trades").rglob("*.parquet")) - sealed), None), again)
        sealed_s = time.time() - again.started_s
        at.next("subscribed", again)
        at.next("read", again)
        again.signal(signal.SIGTERM)
    written = answer_of([str(HERE / "written.py"), "parquet", str(root / "trades")], folder / "written.log")
    if (written["rows"], written["volume"]) != (held["rows"], held["volume"]):
        raise BenchmarkFailed(f"salvage: {held} at the kill, {written} sealed")
    return Salvage(torn, held["rows"], sealed_s)


def full_segments(root: Path) -> Iterator[Path]:
    for path in (root / "journal").glob("*.journal"):
        if path.stat().st_size >= _TORN_SEGMENT:
            yield path


def wait_for(look: Callable[[], Path | None], process: Process) -> Path:
    """What `look` finds. Raises BenchmarkFailed where the process ends before."""
    while (found := look()) is None:
        if process.has_ended():
            process.wait()
            raise BenchmarkFailed("the process ended before it was of use")
        time.sleep(_POLL_S)
    return found


def help_ratio(times: int) -> float:
    """How long `ingestor --help` takes, by how long Python takes to import what the usual script does: the median of
    the turns.
    """
    commands = (["-m", "ingestor", "--help"], ["-c", "import csv, json, queue, websocket"])
    ratios = []
    for _ in range(times):
        lasted = []
        for command in commands:
            began = time.monotonic()
            subprocess.run([sys.executable, *command], check=True, capture_output=True, env=environment())
            lasted.append(time.monotonic() - began)
        ratios.append(lasted[0] / lasted[1])
    return statistics.median(ratios)
