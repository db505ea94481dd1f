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
(live.py), the sinks (sinks.py), and what a view costs at rest (backlog.py).

cryptofeed runs where it is named, on the recorder's version of Python: docs/performance.md says how.

A part that this machine can't measure (a server, openssl or cryptofeed is missing) is left out, and the report says so.
A part that fails is named, the others are still measured, and the exit code is 1. What there is so far is written as
JSON to benchmarks/results/ after each part; in the end it is printed as one table, and drawn where matplotlib is
installed.
"""

import argparse
import shutil
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from live import describe, live_targets, measure_live
from processes import HERE, BenchmarkFailed, Contender, LeftOut, Tls, answer_of, forget_libraries, make_tls, recorder
from reading import FULL as READING
from reading import measure_reading, reading_notes, reading_targets
from report import (
    BOTH,
    CRYPTOFEED,
    KEEPING,
    RECORDER,
    SCRIPT,
    Limit,
    Measured,
    Round,
    Target,
    backlog_targets,
    missing_lines,
    sink_lines,
    sink_targets,
    table,
    write_plot,
    write_results,
)
from scenarios import (
    Paced,
    help_ratio,
    run_every_sink,
    run_idle,
    run_overload,
    run_paced,
    run_paced_script,
    run_salvage,
)
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
    quiet_turns: int
    memory_s: float
    """How long a recorder at a free key's rate has run when its memory is looked at."""
    latency_s: float
    overload_s: float
    every_sink_s: float
    every_sink_turns: int
    id_trades: int


FULL = Plan(3, (1, 5, 10), (1, 5, 10), (1, 5), 20, 50, 4, 40, 3, 600, 15, 60, 8, 3, 2_000_000)
QUICK = Plan(1, (1, 5), (1,), (1,), 10, 12, 2, 8, 1, 8, 6, 1.5, 2, 1, 400_000)
QUIET_RATE = 57
CRYPTOFEED_RELEASE = "3"
ABOUT_CRYPTOFEED = """
import importlib.metadata, json, sys, sysconfig
about = {"release": importlib.metadata.version("cryptofeed"), "python": "%d.%d" % sys.version_info[:2]}
about["packages"] = sysconfig.get_path("platlib")
print(json.dumps(about))
"""
RESULTS = HERE / "results"

SCRIPTS = (
    Contender(SCRIPT, script="script.py"),
    Contender("asyncio, websockets, csv", script="asyncio_csv.py"),
    Contender("asyncio, aiosqlite", script="asyncio_sqlite.py", written_as="sqlite"),
)
RECORDERS = (
    recorder(RECORDER, "parquet"),
    recorder("ingestor, CSV", "csv"),
    recorder(BOTH, "parquet", "csv"),
    recorder(KEEPING, "parquet", keeps_frames=True),
)


def main() -> int:
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory(prefix="ingestor-benchmark-", dir=arguments.work) as directory:
        work = Path(directory)
        load = work / "load"
        load.mkdir()
        plan = QUICK if arguments.quick else FULL
        bench = Bench(plan, load, work / "run", arguments.cryptofeed_python, time.monotonic(), RESULTS)
        forget_libraries(Path(sysconfig.get_path("platlib")))
        try:
            make_load = [str(HERE / "trade_load.py"), str(load), "--trades", str(plan.load_parts * 50_000)]
            answer_of(make_load, work / "load.log")
        except BenchmarkFailed as error:
            print(f"The benchmark failed: {error}", file=sys.stderr)
            return 1
        bench.measure(with_others=not arguments.quick)
    measured = bench.measured
    print("\n".join([table(measured), *bench.notes, "", *missing_lines(measured)]))
    print(write_results(measured, RESULTS))
    if plot := write_plot(measured, RESULTS):
        print(plot)
    return 1 if measured.failed else 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round, less of everything, under a minute")
    parser.add_argument("--cryptofeed-python", metavar="PYTHON", help="of a venv with cryptofeed 3, to run it as well")
    parser.add_argument("--work", type=Path, help="where to record meanwhile; the disk counts (default: TMPDIR)")
    arguments = parser.parse_args()
    if arguments.cryptofeed_python and shutil.which(arguments.cryptofeed_python) is None:
        parser.error(f"--cryptofeed-python: {arguments.cryptofeed_python} is no program")
    return arguments


@dataclass(frozen=True, slots=True)
class Bench:
    """The place of work, and what has come of it so far."""

    plan: Plan
    load: Path
    folder: Path
    cryptofeed_python: str | None
    began_s: float
    results: Path
    tls: list[Tls] = field(default_factory=list)
    """One, where this machine can make it."""
    cryptofeed: list[Contender] = field(default_factory=list)
    """One, where it can be held against the recorder."""
    measured: Measured = field(default_factory=Measured)
    notes: list[str] = field(default_factory=list)

    def measure(self, *, with_others: bool) -> None:
        """Everything, in about the time that the plan allows."""
        self.part("TLS", self.prepare_tls)
        self.part("cryptofeed", self.prepare_cryptofeed)
        for number in range(self.plan.rounds):
            self.part(f"round {number + 1} of {self.plan.rounds}", partial(self.measure_round, number))
        for rate in (57, 10_000, 200_000):
            self.part(f"{rate:,} trades/s", partial(self.measure_paced, rate))
        self.part(f"{QUIET_RATE} trades/s, in batches", self.measure_batches)
        self.part(f"memory after {self.plan.memory_s:g} s", self.measure_memory)
        self.part("idle symbols", self.measure_idle)
        self.part("every sink", self.measure_every_sink)
        self.part("overload", self.measure_overload)
        self.part("salvage", self.measure_salvage)
        self.part("ingestor --help", self.measure_help)
        self.part("ids", self.measure_ids)
        if with_others:
            self.part("reading", self.measure_reading)
            self.part("live", self.measure_live)
            self.part("sinks", self.measure_sinks)
            self.part("follow() at rest", self.measure_rest)

    def part(self, name: str, measure: Callable[[], None]) -> None:
        """One after the other: where one can't be measured, or proves nothing, the others still are. What there is by
        then is written.
        """
        self.say(name)
        try:
            measure()
        except LeftOut as reason:
            self.measured.left_out[name] = str(reason)
        except BenchmarkFailed as error:
            self.measured.failed[name] = str(error)
        write_results(self.measured, self.results)

    def prepare_tls(self) -> None:
        self.tls.append(make_tls(self.load.parent))

    def prepare_cryptofeed(self) -> None:
        """CPU is compared on one version of Python, since a newer one may take less for the same."""
        if self.cryptofeed_python is None:
            raise LeftOut("its virtual environment was not named: --cryptofeed-python")
        if not self.tls:
            raise LeftOut("it connects by TLS only")
        about = answer_of(["-c", ABOUT_CRYPTOFEED], self.load.parent / "cryptofeed.log", self.cryptofeed_python)
        release, python, ours = about["release"], about["python"], f"{sys.version_info.major}.{sys.version_info.minor}"
        if release.partition(".")[0] != CRYPTOFEED_RELEASE:
            raise LeftOut(f"needs release {CRYPTOFEED_RELEASE}, and {release} is installed")
        if python != ours:
            both = "docs/performance.md says how to run both on one"
            raise LeftOut(f"it runs on Python {python}, the recorder on {ours}: {both}")
        forget_libraries(Path(about.pop("packages")))
        base = Contender(CRYPTOFEED, script="cryptofeed_csv.py", ends_by_itself=False)
        self.cryptofeed.append(replace(base, python=self.cryptofeed_python))
        self.add("cryptofeed", about, [], [f"cryptofeed {release} on Python {python}, as the recorder."])

    def measure_round(self, number: int) -> None:
        self.measured.rounds.append(self.round(number))

    def measure_paced(self, rate: int) -> None:
        """At 57 trades a second in turn with the usual script."""
        if rate != QUIET_RATE:
            self.measured.paced.append(run_paced(self.load, rate, self.plan.latency_s, self.folder, RECORDERS[0]))
            return
        for turn in range(self.plan.quiet_turns):
            paced, ratio = self.quiet_turn(batches=False)
            self.measured.quiet_ratios.append(ratio)
            if turn == 0:
                self.measured.paced.append(paced)

    def measure_batches(self) -> None:
        """The same in frames as Finnhub sends them."""
        for _ in range(self.plan.quiet_turns):
            self.measured.batch_ratios.append(self.quiet_turn(batches=True)[1])

    def measure_memory(self) -> None:
        """At a free key's rate, seals included: those of a run's first segments come after 10, 70 and 370 s."""
        steady = run_paced(self.load, QUIET_RATE, self.plan.memory_s, self.folder, RECORDERS[0])
        self.measured.steady = steady

    def quiet_turn(self, *, batches: bool) -> tuple[Paced, float]:
        """The recorder at a free key's rate, and its CPU by that of the usual script right after it."""
        seconds = self.plan.quiet_s
        paced = run_paced(self.load, QUIET_RATE, seconds, self.folder, RECORDERS[0], batches=batches)
        flushing = replace(SCRIPTS[0], options=("--flush",))
        script = run_paced_script(self.load, QUIET_RATE, seconds, self.folder, flushing, batches=batches)
        return paced, paced.cpu_share / script

    def measure_idle(self) -> None:
        for _ in range(self.plan.quiet_turns // 2):
            many, few = (run_idle(self.load, count, self.plan.quiet_s, self.folder) for count in (11_000, 50))
            self.measured.idle_ratios.append(many / few)

    def measure_every_sink(self) -> None:
        plan = self.plan
        every_sink = run_every_sink(self.load, 100_000, plan.every_sink_s, self.folder, plan.every_sink_turns)
        self.measured.every_sink = every_sink

    def measure_overload(self) -> None:
        """At what the recorder has taken in the last round."""
        if not self.measured.rounds:
            raise LeftOut("needs a round")
        last = self.measured.rounds[-1]
        rate = max(last.rate(run) for run in last.runs if run.contender == RECORDER and run.frame_size == 1)
        self.measured.overload = run_overload(self.load, rate, self.plan.overload_s, self.folder)

    def measure_salvage(self) -> None:
        self.measured.salvage = run_salvage(self.load, self.folder)

    def measure_help(self) -> None:
        self.measured.help_ratio = help_ratio(5)

    def measure_ids(self) -> None:
        told = answer_of([str(HERE / "ids.py"), "--trades", str(self.plan.id_trades)], self.load.parent / "ids.log")
        ratio = 1 + told["ids_us"] / told["cpu_us"]
        self.add("ids", told, [Target("CPU a trade without its socket, ids checked / not", True, 1.03, ratio)], [])

    def measure_reading(self) -> None:
        folder = self.load.parent / "reading"
        folder.mkdir()
        reading = measure_reading(READING, folder)
        self.add("reading", asdict(reading), reading_targets(reading), reading_notes(reading))

    def measure_live(self) -> None:
        live = measure_live(self.load, self.load.parent / "live", quick=False)
        self.add("live", asdict(live), live_targets(live), [describe(live)])

    def measure_sinks(self) -> None:
        told = answer_of([str(HERE / "sinks.py"), "--json"], self.load.parent / "sinks.log")
        self.measured.left_out |= {f"sink {kind}": reason for kind, reason in told["left_out"].items()}
        self.add("sinks", told["sinks"], sink_targets(told["sinks"]), sink_lines(told["sinks"]))

    def measure_rest(self) -> None:
        told = answer_of([str(HERE / "backlog.py")], self.load.parent / "backlog.log")
        self.add("follow() at rest", told, backlog_targets(told), [])

    def add(self, name: str, facts: Any, targets: list[Target], notes: list[str]) -> None:
        """A part around the recorder."""
        self.measured.others[name] = facts
        self.measured.other_targets.extend(targets)
        self.notes.extend(["", *notes])

    def say(self, what: str) -> None:
        print(f"{time.monotonic() - self.began_s:4.0f} s  {what}", file=sys.stderr)

    def round(self, number: int) -> Round:
        """Each contender once with each load."""
        result = Round()
        for contender in (*RECORDERS, *SCRIPTS):
            result.idle[contender.name] = run_load(contender, self.load, 1, 0, None, self.folder)
        for contender in self.cryptofeed:
            result.idle[contender.name] = run_load(contender, self.load, 1, 0, self.tls[0], self.folder)
        for size in self.plan.sizes:
            self.say(f"round {number + 1} of {self.plan.rounds}, {size} a frame")
            result.limits[size] = self.limit(size)
            for contender in self.contenders(size):
                result.runs.append(run_load(contender, self.load, size, self.parts(contender), None, self.folder))
        for size in self.plan.tls_sizes if self.tls else ():
            self.say(f"round {number + 1} of {self.plan.rounds}, {size} a frame, TLS")
            for contender in (RECORDERS[0], SCRIPTS[0], *self.cryptofeed):
                result.runs.append(
                    run_load(contender, self.load, size, self.parts(contender), self.tls[0], self.folder)
                )
        return result

    def contenders(self, size: int) -> tuple[Contender, ...]:
        """Who runs at this frame size; all of them at one trade a frame."""
        if size not in self.plan.compared_sizes:
            return RECORDERS[0], SCRIPTS[0]
        return (*RECORDERS, *SCRIPTS) if size == 1 else (*RECORDERS[:2], RECORDERS[-1], *SCRIPTS)

    def parts(self, contender: Contender) -> int:
        if not contender.formats:
            return self.plan.script_parts
        return self.plan.recorder_parts if contender.formats == ("parquet",) else self.plan.recorder_parts // 2

    def limit(self, size: int) -> Limit:
        receive = receive_and_discard(self.load, size, self.plan.recorder_parts, self.folder.parent)
        decode = limit_part(self.folder.parent, "decode", str(self.load), str(size))
        write = limit_part(self.folder.parent, "write", str(self.load))
        return Limit(size, receive * 1e6, decode * 1e6, write * 1e6)


if __name__ == "__main__":
    sys.exit(main())
