"""What a root costs that has recorded for a day, a year, ten years: `make bench-years`.

500 symbols, 20 reconnects a day, a segment each quarter of an hour, as a recorder leaves them: closed days as data, its
last day in the ledger. Then each thing that a user does is timed as a whole process, with one root after the other in
each round, the best of five rounds, and its CPU and peak memory read from the kernel. Prints seconds, of which CPU, MB,
and bytes on disk; the targets beside them. Ages are compared by CPU: what else the machine does counts less there.
Where the machine's hour is slow, what has a target in seconds may instead cost what it does of a root without a past.
"""

import argparse
import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ingestor.accounts import write_account
from ingestor.closed_days import close_days
from ingestor.facts import Fact, encode_line
from ingestor.layout import Layout, SegmentId
from ingestor.ledger import DAY_US, Ledger
from ingestor.schema import FORMAT_VERSION, TRADES

SYMBOLS = [f"S{number:05d}" for number in range(500)]
RECONNECTS = 20
SEGMENTS = 96
TODAY = datetime.now(UTC).date()
_HOUR_US = DAY_US // 24


class Cost(NamedTuple):
    """Of one process."""

    seconds: float
    cpu_s: float
    megabytes: float


def day_us(day: date) -> int:
    return (day - date(1970, 1, 1)).days * DAY_US


def facts_of(day: date, connection: int) -> list[Fact]:
    """A day's connections and gaps; each symbol is proven within some seconds."""
    start_us, facts = day_us(day), []
    for number in range(RECONNECTS):
        at_us = start_us + number * DAY_US // RECONNECTS + 1
        gap = f"r000001-{connection + number}"
        facts += [
            {"at": at_us, "fact": "connection.lost", "connection": connection + number - 1, "code": 1006, "reason": "",
             "bytes": 1, "frames": 1},
            {"at": at_us, "fact": "gap.opened", "gap": gap, "cause": "connection", "since": at_us - 1, "symbol": None},
            {"at": at_us + 900_000, "fact": "connection.opened", "connection": connection + number},
            {"at": at_us + 1_000_000, "fact": "symbols.requested", "connection": connection + number, "symbols": None},
            {"at": at_us + 1_200_000, "fact": "gap.closed", "gap": gap, "cause": "connection", "since": at_us - 1,
             "until": at_us + 1_200_000, "symbol": None},
            {"at": at_us + 60_000_000, "fact": "symbols.proven", "connection": connection + number,
             "base": at_us + 1_200_000,
             "symbols": {symbol: (index * 7919 + number * 104_729) % 50_000_000
                         for index, symbol in enumerate(SYMBOLS)}},
        ]  # fmt: skip
    return facts


def account_of(segment: SegmentId, received_us: int) -> Fact:
    rows = len(SYMBOLS) * 30
    counts = {"frames": rows, "decoded": rows, "rejected_frames": 0, "notices": 0, "trades": rows, "rejected_trades": 0}
    return {
        "segment": str(segment), "first_received": received_us, "last_received": received_us + 1, "counts": counts,
        "reasons": {}, "aside": 0, "symbols": dict.fromkeys(SYMBOLS, 30), "repeated": {},
    }  # fmt: skip


def started(at_us: int, **more: object) -> Fact:
    return {
        "at": at_us, "fact": "run.started", "format": FORMAT_VERSION, "version": "bench", "run": 1, "feed": "finnhub",
        "columns": TRADES.names, "tickers": SYMBOLS, "formats": ["parquet"], "first_segment": 1, "closed": 0,
        "open_gaps": [], "asked": [], "ended": 0, **more,
    }  # fmt: skip


def make_root(root: Path, days: int) -> Layout:
    """One run that has gone on for so many days, and was struck down now: its last day is in the ledger.

    Two days are closed by the recorder's own code; those before have the same rows at other times.
    """
    layout = Layout(root)
    layout.create()
    written = min(days, 2)
    first = TODAY - timedelta(written)
    number = (days - written) * SEGMENTS
    at_us = day_us(first)
    ledger = Ledger(layout, 1, first)
    ledger.record_all([started(at_us), {"at": at_us, "fact": "symbols.requested", "connection": 1, "symbols": SYMBOLS}])
    for index in range(written + 1):
        day = first + timedelta(index)
        facts = facts_of(day, 2 + index * RECONNECTS)
        for quarter in range(SEGMENTS):
            number += 1
            received_us = day_us(day) + quarter * DAY_US // SEGMENTS
            segment = SegmentId(number, datetime.fromtimestamp(received_us // 1_000_000, UTC), 1)
            account = account_of(segment, received_us)
            write_account(layout, account)
            told = {name: value for name, value in account.items() if name not in {"symbols", "repeated"}}
            facts.append({"at": received_us + 2, "fact": "segment.closed", **told})
            facts.append({"at": received_us + 3, "fact": "segment.sealed", "segment": str(segment),
                          "dates": {day.isoformat(): account["counts"]["trades"]}})  # fmt: skip
        now_us = time.time_ns() // 1000
        ledger.record_all([fact for fact in sorted(facts, key=lambda fact: fact["at"]) if fact["at"] < now_us])
    ledger.record("disk.recovered", free=1, floor=1)
    list(close_days(layout, TODAY))
    ledger.close()
    for back in range(written, days):
        repeat_day(layout, TODAY - timedelta(1), back)
    for back in range(days + 1):
        (layout.trades / f"date={(TODAY - timedelta(back)).isoformat()}").mkdir(parents=True)
    return layout


def repeat_day(layout: Layout, day: date, back: int) -> None:
    """The closed day once more, so many days before."""
    earlier = day - timedelta(back)
    for path, names in ((layout.coverage_file(day), ("start", "end")),
                        (next((layout.accounts / f"date={day.isoformat()}").iterdir()),
                         ("first_received", "last_received"))):  # fmt: skip
        rows = pq.read_table(path, partitioning=None)
        for name in names:
            index = rows.schema.get_field_index(name)
            shifted = pc.subtract(rows.column(name), pa.scalar(timedelta(back), pa.duration("us")))
            rows = rows.set_column(index, rows.schema.field(index), shifted)
        if "segment" in rows.column_names:
            ids = [SegmentId.parse(name) for name in rows.column("segment").to_pylist()]
            moved = [str(SegmentId(one.number - back * SEGMENTS, one.started - timedelta(back), 1)) for one in ids]
            rows = rows.set_column(0, rows.schema.field(0), pa.array(moved))
            name = f"closed-{max(moved)}.parquet"
        else:
            name = path.name
        folder = path.parents[1] / f"date={earlier.isoformat()}"
        folder.mkdir()
        pq.write_table(rows, folder / name, compression="zstd", compression_level=3, write_page_checksum=True)


def make_format_1(root: Path, days: int, reconnects: int = 10) -> Layout:
    """The ledger that format 1 left after so many days: one file, each symbol's proof and each segment's counts."""
    layout = Layout(root)
    layout.create()
    first = TODAY - timedelta(days)
    path = layout.coverage / f"000001-{first:%Y%m%d}T000000Z.jsonl"

    def line(fact: Fact) -> str:
        return encode_line(fact)[:-18] + "}\n"

    with path.open("w") as file:
        told = started(day_us(first))
        file.write(
            line({name: told[name] for name in told if name not in {"closed", "asked", "ended"}} | {"format": 1})
        )
        number = connection = 0
        for index in range(days):
            start_us = day_us(first + timedelta(index))
            for turn in range(reconnects):
                connection += 1
                at_us = start_us + turn * DAY_US // reconnects
                same = {"gap": f"r000001-{connection}", "cause": "connection", "symbol": None}
                file.write(line({"at": at_us, "fact": "gap.opened", "since": at_us, **same}))
                file.write(line({"at": at_us + 1_000_000, "fact": "symbols.requested", "connection": connection,
                                 "symbols": SYMBOLS}))  # fmt: skip
                file.write(line({"at": at_us + 1_200_000, "fact": "gap.closed", "until": at_us + 1_200_000, **same}))
                for offset, symbol in enumerate(SYMBOLS):
                    since = at_us + 2_000_000 + offset * 1000
                    file.write(line({"at": since, "fact": "symbol.proven", "symbol": symbol, "connection": connection,
                                     "since": since}))  # fmt: skip
                for _ in range(SEGMENTS // reconnects):
                    number += 1
                    when = datetime.fromtimestamp(at_us // 1_000_000, UTC)
                    account = account_of(SegmentId(number, when, 1), at_us)
                    file.write(line({"at": at_us + _HOUR_US, "fact": "segment.closed", **account}))
    return layout


def measure(command: Sequence[str], until: str | None = None) -> Cost:
    """Of a whole process; with `until`, up to the line on stderr that holds it, and then it is stopped."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    began_s = time.monotonic()
    pipe = subprocess.PIPE if until else subprocess.DEVNULL
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=pipe, text=True, env=_environment(),
                               start_new_session=True)  # fmt: skip
    lasted_s = None
    peak_kb = 0
    if until is not None:
        for text in process.stderr or ():
            if until in text:
                lasted_s = time.monotonic() - began_s
                peak_kb = _peak_kb(process.pid)
                _kill_with_children(process)
                break
    while process.poll() is None:
        peak_kb = max(peak_kb, _peak_kb(process.pid))
        time.sleep(0.01)
    if until is None and process.returncode not in {0, 3}:
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}")
    if until is not None and lasted_s is None:
        raise SystemExit(f"{' '.join(command)}: never said {until!r}")
    if process.stderr is not None:
        process.stderr.close()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
    return Cost(lasted_s or time.monotonic() - began_s, cpu_s, peak_kb / 1024)


def _kill_with_children(process: subprocess.Popen[str]) -> None:
    """And wait until all are gone: a child that was converting the root holds its lock as long as it lives."""
    with contextlib.suppress(ProcessLookupError):
        while True:
            os.killpg(process.pid, signal.SIGKILL)
            process.poll()
            time.sleep(0.01)


def _peak_kb(pid: int) -> int:
    """Of the program that runs in this process; `ru_maxrss` would count its parent's before the exec."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("VmHWM:")), 0)


def _environment() -> dict[str, str]:
    """With compiled modules, as pip leaves them."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**inherited, "FINNHUB_API_KEY": "bench", "NO_COLOR": "1"}


def start_command(root: Path) -> list[str]:
    """A recorder of a venue that nobody is: what its start costs up to its first attempt to connect."""
    config = root.parent / f"{root.name}.yaml"
    settings = {
        "feed": {"url": "ws://127.0.0.1:9"}, "tickers": SYMBOLS, "logging": {"format": "json"},
        "storage": {"root": str(root), "min_free": "0B"}, "health": {"listen": None},
    }  # fmt: skip
    config.write_text(json.dumps(settings))
    return [sys.executable, "-m", "ingestor", "run", "--config", str(config)]


STARTED = "connection.retried"


def commands_of(layout: Layout) -> dict[str, list[str]]:
    """What a user does with a root."""
    ours = [sys.executable, "-m", "ingestor"]
    day = (TODAY - timedelta(1)).isoformat()
    end = TODAY.isoformat()
    read = (
        "import sys, ingestor; "
        "ingestor.read_coverage(sys.argv[1], ['S00007'], sys.argv[2], sys.argv[3], engine='arrow')"
    )
    return {
        "coverage": [*ours, "coverage", "--root", str(layout.root), "--symbols", "S00007", "--start", day,
                     "--end", end],
        "read_coverage": [sys.executable, "-c", read, str(layout.root), day, end],
        "status": [*ours, "status", "--root", str(layout.root)],
        "bars": [*ours, "bars", "1m", "--root", str(layout.root), "--symbols", "S00007", "--start", day,
                 "--end", end],
        "start": start_command(layout.root),
    }  # fmt: skip


def measure_roots(roots: Mapping[int, Layout], rounds: int) -> dict[int, dict[str, Cost]]:
    """Each command with each root, in turn: what else the machine does in these minutes concerns them alike. By the
    days of the root; of one without a past (0) the start alone.
    """
    commands = {days: commands_of(layout) for days, layout in roots.items()}
    commands[0] = {"start": commands[0]["start"]}
    costs: dict[int, dict[str, Cost]] = {days: {} for days in roots}
    for name in commands[max(roots)]:
        for _ in range(rounds):
            for days in (days for days in roots if name in commands[days]):
                cost = measure(commands[days][name], until=STARTED if name == "start" else None)
                costs[days][name] = min(cost, costs[days].get(name, cost), key=lambda cost: cost.cpu_s)
    return costs


def disk_mb(layout: Layout, *names: str) -> float:
    return (
        sum(path.stat().st_size for name in names for path in (layout.root / name).rglob("*") if path.is_file()) / 1e6
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--days", type=int, nargs="+", default=[1, 365, 3650])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--format-1-days", type=int, default=365)
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    folder = Path(tempfile.mkdtemp(prefix="bench-years-"))
    missed = []
    try:
        roots = {0: Layout(folder / "empty")} | {days: make_root(folder / str(days), days) for days in options.days}
        sizes = {
            days: ", ".join(f"{name} {disk_mb(layout, name):.1f} MB" for name in ("ledger", "coverage", "accounts"))
            for days, layout in roots.items()
        }
        costs = measure_roots(roots, options.rounds)
        for days in roots:
            print(f"{days} days: {sizes[days]}")
            for name, cost in costs[days].items():
                print(
                    f"  {name:<14} {cost.seconds:6.2f} s {cost.cpu_s:6.2f} s of CPU {cost.megabytes:6.0f} MB",
                    flush=True,
                )
            shutil.rmtree(roots[days].root, ignore_errors=True)
        last, first, empty = costs[options.days[-1]], costs[options.days[0]], costs[0]["start"]
        targets = [
            ("start <= 1 s, or what it is of an empty root and a tenth",
             last["start"].seconds <= max(1, 1.1 * empty.seconds)),
            ("start <= 200 MB", last["start"].megabytes <= 200),
            ("coverage of a day <= 0.5 s, or what it is after a day and a tenth",
             last["coverage"].seconds <= max(0.5, 1.1 * first["coverage"].seconds)),
            *((f"{name}: differs by less than a third", last[name].cpu_s <= first[name].cpu_s * 4 / 3)
              for name in last),
        ]  # fmt: skip
        if options.format_1_days:
            layout = make_format_1(folder / "format-1", options.format_1_days)
            size = disk_mb(layout, "coverage")
            taken = measure(start_command(layout.root), until=STARTED)
            print(
                f"format 1, {options.format_1_days} days, {size:.0f} MB of ledger: first start {taken.seconds:.2f} s,"
                f" {taken.cpu_s:.2f} s of CPU, {taken.megabytes:.0f} MB"
            )
            began_s = time.monotonic()
            measure([sys.executable, "-m", "ingestor", "compact", "--root", str(layout.root)])
            print(f"  taken over in the background in {time.monotonic() - began_s:.0f} s")
            targets.append(("format 1 starts in <= 3 s, or in three starts on an empty root",
                            taken.seconds <= max(3, 3 * empty.seconds)))  # fmt: skip
        for name, met in targets:
            print(f"{'met' if met else 'MISSED':<7} {name}")
            missed += [] if met else [name]
    finally:
        shutil.rmtree(folder)
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
