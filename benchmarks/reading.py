"""Measures the way from files to answers: reading, bars, compaction, export.

    python benchmarks/reading.py [--quick] [--json] [--work FOLDER]

It makes its recordings itself (tape.py says what they are like): a year of 500 symbols in one compacted file a day, and
two busy days in the parts that a recorder seals. Each command runs in a process of its own, whose peak memory is the
kernel's account of it (wait4); the rate of compaction is wall time less what a compaction of nothing takes. Queries are
timed warm (queries.py). All rows and their total volume are held to what was made, after compaction, in the bars and in
each export: one lost or doubled ends the benchmark.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from processes import HERE, BenchmarkFailed, Used, answer_of, running
from report import Target, machine, target_block

_BUSY_DAY, _DAY_AFTER = "2025-11-20", "2025-11-21"
"""The first of the two days (tape.py)."""


@dataclass(frozen=True, slots=True)
class ReadingPlan:
    """How much is read. The day's size is the same in each: bytes a trade depend on it."""

    year_days: int
    year_trades: int
    large_trades: int
    rounds: int
    day_trades: int = 2_000_000


FULL = ReadingPlan(252, 20_000_000, 8_000_000, rounds=5)
QUICK = ReadingPlan(252, 2_520_000, 1_000_000, rounds=2)


@dataclass(frozen=True, slots=True)
class Reading:
    """What it takes to read what was recorded."""

    year_days: int
    year_trades: int
    day_trades: int
    days_trades: int
    bytes_a_trade: float
    """Of the busy day, compacted, with all columns."""
    year_bytes_a_trade: float
    symbol_day_ms: float
    """Through read_trades, into pandas."""
    arrow_ms: float
    best_ms: float
    best: str
    """The fastest of the queries that are written by hand."""
    ratio: float
    year_s: float
    """One symbol's year into pandas."""
    year_ratio: float
    """That, by the same by hand."""
    day_s: float
    """All symbols of a day of the year into pandas."""
    day_ratio: float
    bars_s: float
    bars_ratio: float
    """By what pandas takes by hand."""
    in_process_s: float
    """The year's one-minute bars by read_bars."""
    by_one_s: float
    """The same by examples/cluster.py and one more process."""
    by_two_s: float
    compacted_rate: float
    """Rows a second."""
    compacted_ratio: float
    """Of the time, by what it takes to read, sort and write the same by hand."""
    peak_rss: dict[str, int]
    """Bytes, by command."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller recordings")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument("--work", type=Path, help="where to make them; the disk counts (default: TMPDIR)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ingestor-benchmark-", dir=options.work) as directory:
        try:
            reading = measure_reading(QUICK if options.quick else FULL, Path(directory))
        except BenchmarkFailed as error:
            print(f"The benchmark failed: {error}", file=sys.stderr)
            return 1
    found = reading_targets(reading)
    if options.json:
        lines = [asdict(one) | {"verdict": one.verdict} for one in found]
        print(json.dumps({"machine": machine(), "targets": lines, "measured": asdict(reading)}))
    else:
        print(", ".join(f"{name} {value}" for name, value in machine().items()))
        print("\n".join([*target_block(found), "", *reading_notes(reading)]))
    return 0


def measure_reading(plan: ReadingPlan, work: Path) -> Reading:
    """All of it, in a minute or so. Raises BenchmarkFailed where a row is lost or there twice."""
    made = make_recordings(plan, work)
    year, days = work / "year", work / "days"
    by_hand_s = time_query("sort", days, replace(plan, rounds=1), work)["sort_s"]
    compaction = run_command(["compact", "--root", str(days)], work)
    idle = run_command(["compact", "--root", str(days)], work)  # nothing is left to do: what start and stop take
    compacted_s = compaction.lasted_s - idle.lasted_s
    check_rows("compaction", "parquet", days / "trades", made["days"], work)
    bars = time_query("bars", days, plan, work)
    compare("the bars", bars, made["day"])
    parquet = export(days, work / "days.parquet", made["days"], [])
    csv = export(days, work / "day.csv", made["day"], ["--start", _BUSY_DAY, "--end", _DAY_AFTER])
    symbol_day = time_query("symbol-day", year, plan, work)
    symbol_year = time_query("symbol-year", year, plan, work)
    bars_year = time_query("bars-year", year, replace(plan, rounds=1), work)
    return Reading(
        year_days=plan.year_days,
        year_trades=made["year"]["rows"],
        day_trades=made["day"]["rows"],
        days_trades=made["days"]["rows"],
        bytes_a_trade=size_of(days / "trades" / f"date={_BUSY_DAY}") / made["day"]["rows"],
        year_bytes_a_trade=size_of(year / "trades") / made["year"]["rows"],
        symbol_day_ms=symbol_day["pandas"],
        arrow_ms=symbol_day["arrow"],
        best_ms=symbol_day[symbol_day["best"]],
        best=symbol_day["best"],
        ratio=symbol_day["ratio"],
        **symbol_year,
        bars_s=bars["bars_s"],
        bars_ratio=bars["ratio"],
        **bars_year,
        compacted_rate=made["days"]["rows"] / compacted_s,
        compacted_ratio=compacted_s / by_hand_s,
        peak_rss={
            "compact": compaction.used.peak_rss,
            "export, Parquet": parquet.peak_rss,
            "export, CSV": csv.peak_rss,
        },
    )


def make_recordings(plan: ReadingPlan, work: Path) -> dict[str, dict[str, Any]]:
    """The rows and the total volume of what is made."""
    sizes = {"year-days": plan.year_days, "year-trades": plan.year_trades, "day-trades": plan.day_trades,
             "large-trades": plan.large_trades}  # fmt: skip
    options = [part for name, value in sizes.items() for part in (f"--{name}", str(value))]
    return answer_of([str(HERE / "tape.py"), str(work), *options], work / "tape.log")


@dataclass(frozen=True, slots=True)
class Ended:
    """A command that did what it should."""

    lasted_s: float
    used: Used


def run_command(arguments: Sequence[str], work: Path) -> Ended:
    """`ingestor` with these arguments. Raises BenchmarkFailed where it fails."""
    with running([sys.executable, "-m", "ingestor", *arguments], work / f"{arguments[0]}.log") as process:
        process.stdout.read()
        used = process.wait()
    return Ended(used.ended_s - process.started_s, used)


def time_query(query: str, root: Path, plan: ReadingPlan, work: Path) -> dict[str, Any]:
    """What queries.py says of it, in a process of its own."""
    arguments = [str(HERE / "queries.py"), query, str(root), "--rounds", str(plan.rounds)]
    return answer_of(arguments, work / "queries.log")


def export(root: Path, file: Path, truth: dict[str, Any], options: Sequence[str]) -> Used:
    """Export, check and remove."""
    ended = run_command(["export", str(file), "--root", str(root), *options], file.parent)
    check_rows(file.name, file.suffix[1:], file, truth, file.parent)
    file.unlink()
    return ended.used


def check_rows(what: str, kind: str, path: Path, truth: dict[str, Any], work: Path) -> None:
    """Raises BenchmarkFailed unless these files hold every trade once."""
    compare(what, answer_of([str(HERE / "written.py"), kind, str(path)], work / "written.log"), truth)


def compare(what: str, found: dict[str, Any], truth: dict[str, Any]) -> None:
    if {name: found[name] for name in truth} != truth:
        raise BenchmarkFailed(f"{what}: made {truth}, found {found}")


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.parquet"))


def reading_targets(reading: Reading) -> list[Target]:
    """Its targets."""
    a_day = f"one symbol-day of {reading.year_trades / 1e6:.3g} M trades"
    return [
        Target("compacted, all columns, bytes a trade", True, 8, reading.bytes_a_trade, "B"),
        Target(f"{a_day}, read_trades", True, 10, reading.symbol_day_ms, "ms"),
        Target(f"{a_day}, read_trades / by hand", True, 1.5, reading.ratio),
        Target("one symbol's year into pandas, read_trades / by hand", True, 1.3, reading.year_ratio),
        Target(f"one-minute bars of {reading.day_trades / 1e6:.3g} M trades / by hand", True, 2, reading.bars_ratio),
        Target("compaction / read, sort and write by hand", True, 1.5, reading.compacted_ratio),
        *(Target(f"peak RSS, {name}", True, 500, rss / 1e6, "MB") for name, rss in reading.peak_rss.items()),
    ]


def reading_notes(reading: Reading) -> list[str]:
    """How what was read is laid out."""
    year = f"The year: {reading.year_trades:,} trades of 500 symbols in {reading.year_days} days, a compacted file each"
    layout = "in row groups of 32,768, sorted by (symbol, timestamp, sequence)"
    whole = f"{reading.day_ratio:.2f} of reading its one file"
    by_dask = f"a task per date by Dask: one process {reading.by_one_s:.1f} s, two {reading.by_two_s:.1f} s"
    by_hand = f"By hand is {reading.best!r}, with the file's name known: {reading.best_ms:.2f} ms"
    return [
        f"{year},\n{layout}: {reading.year_bytes_a_trade:.1f} bytes a trade (a quiet day takes more). All read warm.",
        f"{by_hand}; read_trades into Arrow: {reading.arrow_ms:.2f} ms.",
        f"Into pandas: a symbol's year {reading.year_s:.2f} s; all of a day of it {reading.day_s:.3f} s, {whole}.",
        f"The year's bars: read_bars {reading.in_process_s:.1f} s, {by_dask}; the same bars.",
        f"Bars took {reading.bars_s:.2f} s; compaction made {reading.compacted_rate / 1e6:.2f} M rows/s.",
        f"Memory is of {reading.days_trades:,} trades in two days, for CSV of the first alone. No row lost or doubled.",
    ]


if __name__ == "__main__":
    sys.exit(main())
