"""Measures the recorder against what a user would otherwise run, and against the limit, in one run on one machine.

    python benchmarks/run.py [--quick] [--cryptofeed-python VENV/bin/python]

The load server (load_server.py) runs in a process of its own and is never the bottleneck, or the report says so. The
contenders run one after the other, in rounds; the ratios are the medians of each round's ratio, since a shared machine
is slower in one minute than in the next. CPU is the kernel's account of the contender's process (wait4); from it the
account of a run without trades is subtracted, and the figure without that subtraction stands beside it. Trades a second
is from the first byte sent to the end of the process (what was buffered and the last sealing count, too), less what a
run without trades takes to stop.
Every run's rows and their total volume are held to what was sent; a run that lost or doubled one ends the benchmark.

Without --quick it then measures what stands around the recorder: reading (reading.py), the live API and the dashboard
(live.py), the sinks (sinks.py).

Prints one table and writes it as JSON, and as a plot where matplotlib is installed, to benchmarks/results/.
"""

import argparse
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from live import describe, live_targets, measure_live
from processes import HERE, BenchmarkFailed, Contender, Tls, answer_of, make_tls, recorder
from reading import FULL as READING
from reading import measure_reading, reading_notes, reading_targets
from report import (
    BOTH,
    CRYPTOFEED,
    RECORDER,
    SCRIPT,
    Limit,
    Measured,
    Round,
    Target,
    sink_lines,
    table,
    targets,
    write_results,
)
from scenarios import help_seconds, run_every_sink, run_overload, run_paced, run_salvage
from throughput import limit_part, receive_and_discard, run_load


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured. Parts are of 50,000 trades."""

    rounds: int
    sizes: tuple[int, ...]
    compared_sizes: tuple[int, ...]
    """With all contenders; with the others only the recorder and the usual script."""
    tls_sizes: tuple[int, ...]
    load_parts: int
    recorder_parts: int
    script_parts: int
    quiet_s: float
    latency_s: float
    overload_s: float
    every_sink_s: float
    every_sink_turns: int


FULL = Plan(3, (1, 5, 10), (1, 5, 10), (1, 5), 20, 50, 4, 60, 15, 60, 8, 3)
QUICK = Plan(1, (1, 5), (1,), (1,), 10, 12, 2, 3, 2, 1.5, 2, 1)

SCRIPTS = (
    Contender(SCRIPT, script="script.py"),
    Contender("asyncio, websockets, csv", script="asyncio_csv.py"),
    Contender("asyncio, aiosqlite", script="asyncio_sqlite.py", written_as="sqlite"),
)
RECORDERS = (
    recorder(RECORDER, "parquet"),
    recorder("ingestor, CSV", "csv"),
    recorder(BOTH, "parquet", "csv"),
)


def main() -> int:
    arguments = parse_arguments()
    plan = QUICK if arguments.quick else FULL
    with tempfile.TemporaryDirectory(prefix="ingestor-benchmark-", dir=arguments.work) as directory:
        work = Path(directory)
        try:
            measured = measure(plan, work, arguments.cryptofeed_python)
            others = None if arguments.quick else measure_others(work)
        except BenchmarkFailed as error:
            print(f"The benchmark failed: {error}", file=sys.stderr)
            return 1
    goals = [*targets(measured), *(others.targets if others else [])]
    print("\n".join([table(measured, goals), *(others.notes if others else [])]))
    for path in write_results(measured, others.measured if others else {}, goals, HERE / "results"):
        print(path)
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round, less of everything, under a minute")
    parser.add_argument("--cryptofeed-python", metavar="PYTHON", help="of a venv with cryptofeed, to run it as well")
    parser.add_argument("--work", type=Path, help="where to record meanwhile; the disk counts (default: TMPDIR)")
    return parser.parse_args()


def measure(plan: Plan, work: Path, cryptofeed_python: str | None) -> Measured:
    """Everything, in about the time that the plan allows. Raises BenchmarkFailed."""
    began_s = time.monotonic()
    load, folder = work / "load", work / "run"
    load.mkdir()
    answer_of([str(HERE / "trade_load.py"), str(load), "--trades", str(plan.load_parts * 50_000)], work / "load.log")
    bench = Bench(plan, load, folder, make_tls(work), began_s)
    rounds = [bench.round(number, cryptofeed_python) for number in range(plan.rounds)]
    bench.say("at 57, 10,000 and 200,000 trades/s")
    seconds = {57: plan.quiet_s, 10_000: plan.latency_s, 200_000: plan.latency_s}
    paced = [run_paced(load, rate, lasting_s, folder, RECORDERS[0]) for rate, lasting_s in seconds.items()]
    bench.say("every sink")
    every_sink = run_every_sink(load, 100_000, plan.every_sink_s, folder, plan.every_sink_turns)
    bench.say("overload")
    rate = max(rounds[-1].rate(run) for run in rounds[-1].runs if run.contender == RECORDER and run.frame_size == 1)
    overload = run_overload(load, rate, plan.overload_s, folder)
    bench.say("salvage")
    return Measured(rounds, paced, every_sink, overload, run_salvage(load, folder), help_seconds(5))


@dataclass(frozen=True, slots=True)
class Others:
    """What is measured of the parts around the recorder."""

    targets: list[Target]
    notes: list[str]
    measured: dict[str, Any]


def measure_others(work: Path) -> Others:
    """Reading, the live API, the sinks. Raises BenchmarkFailed."""
    for name in ("reading", "sinks"):
        (work / name).mkdir()
    reading = measure_reading(READING, work / "reading")
    live = measure_live(work / "load", work / "live", quick=False)
    sinks = answer_of([str(HERE / "sinks.py"), "--json"], work / "sinks" / "log")["sinks"]
    return Others(
        [*reading_targets(reading), *live_targets(live)],
        ["", *reading_notes(reading), "", describe(live), "", *sink_lines(sinks)],
        {"reading": asdict(reading), "live": asdict(live), "sinks": sinks},
    )


@dataclass(frozen=True, slots=True)
class Bench:
    """The place of work."""

    plan: Plan
    load: Path
    folder: Path
    tls: Tls
    began_s: float

    def say(self, what: str) -> None:
        print(f"{time.monotonic() - self.began_s:4.0f} s  {what}", file=sys.stderr)

    def round(self, number: int, cryptofeed_python: str | None) -> Round:
        """Each contender once with each load."""
        result = Round()
        cryptofeed = [cryptofeed_from(cryptofeed_python)] if cryptofeed_python else []
        for contender in (*RECORDERS, *SCRIPTS):
            result.idle[contender.name] = run_load(contender, self.load, 1, 0, None, self.folder)
        for contender in cryptofeed:
            result.idle[contender.name] = run_load(contender, self.load, 1, 0, self.tls, self.folder)
        for size in self.plan.sizes:
            self.say(f"round {number + 1} of {self.plan.rounds}, {size} a frame")
            result.limits[size] = self.limit(size)
            for contender in self.contenders(size):
                result.runs.append(run_load(contender, self.load, size, self.parts(contender), None, self.folder))
        for size in self.plan.tls_sizes:
            self.say(f"round {number + 1} of {self.plan.rounds}, {size} a frame, TLS")
            for contender in (RECORDERS[0], SCRIPTS[0], *cryptofeed):
                result.runs.append(run_load(contender, self.load, size, self.parts(contender), self.tls, self.folder))
        return result

    def contenders(self, size: int) -> tuple[Contender, ...]:
        """Who runs at this frame size; all of them at one trade a frame."""
        if size not in self.plan.compared_sizes:
            return RECORDERS[0], SCRIPTS[0]
        return (*RECORDERS, *SCRIPTS) if size == 1 else (*RECORDERS[:2], *SCRIPTS)

    def parts(self, contender: Contender) -> int:
        if not contender.formats:
            return self.plan.script_parts
        return self.plan.recorder_parts if contender.formats == ("parquet",) else self.plan.recorder_parts // 2

    def limit(self, size: int) -> Limit:
        receive = receive_and_discard(self.load, size, self.plan.recorder_parts, self.folder.parent)
        decode = limit_part(self.folder.parent, "decode", str(self.load), str(size))
        write = limit_part(self.folder.parent, "write", str(self.load))
        return Limit(size, receive * 1e6, decode * 1e6, write * 1e6)


def cryptofeed_from(python: str) -> Contender:
    """It connects by TLS only."""
    base = Contender(CRYPTOFEED, script="cryptofeed_csv.py", ends_by_itself=False)
    return replace(base, python=python)


if __name__ == "__main__":
    sys.exit(main())
