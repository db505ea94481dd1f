"""Times what a user asks of a recording, beside the best that can be written by hand for the same files.

    python benchmarks/queries.py symbol-day ROOT --rounds 5
    python benchmarks/queries.py symbol-year ROOT --rounds 5
    python benchmarks/queries.py bars ROOT --rounds 5
    python benchmarks/queries.py bars-year ROOT --rounds 1
    python benchmarks/queries.py sort ROOT --rounds 1

`symbol-day`: one symbol's trades of one day, out of all days of the root, for many symbols and days in turn; everything
has been read once before. By hand, the file's name is known, and nobody looks whether it is all there is: so the ratio
is what it costs to be told of every row once. `symbol-year`: all days of one symbol into pandas, and all symbols of one
day; by hand the same row groups, and the whole file. `bars`: one-minute bars of all symbols of the root's first day;
by hand with `groupby` of pandas, which knows neither of conditions nor of coverage. `bars-year`: those of all days, by
`read_bars` in this process, and by `examples/cluster.py` with one and with two more. `sort`: what compaction takes at
least: each day's files read, sorted and written as one, all in memory, unchecked.

Prints the medians as JSON. What is found is held to what the other way finds, or to the rows: another answer is an
error.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sized
from datetime import date, timedelta
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from processes import HERE, BenchmarkFailed
from tape import SYMBOLS

import ingestor
from ingestor.dataset.snapshot import list_days
from ingestor.layout import Layout
from ingestor.schema import TRADES

_PAIRS = 40
"""Symbols and days that are asked for."""

Query = Callable[[Path, str, date], pa.Table]


def main() -> None:
    parser = argparse.ArgumentParser(description="Time queries.")
    parser.add_argument("query", choices=list(QUESTIONS))
    parser.add_argument("root", type=Path)
    parser.add_argument("--rounds", type=int, required=True)
    options = parser.parse_args()
    print(json.dumps(QUESTIONS[options.query](options.root, options.rounds)))


def time_symbol_day(root: Path, rounds: int) -> dict[str, float | str]:
    """In ms. The ratio is the median of the ratios of two readings that came one after the other."""
    random = Random(7)
    days = list_days(Layout(root))
    pairs = [(random.choice(SYMBOLS), random.choice(days)) for _ in range(_PAIRS)]
    if not sum(check_equal(root, symbol, day) for symbol, day in pairs):
        raise BenchmarkFailed("nothing was asked for that is there")
    ways: dict[str, Callable[[Path, str, date], object]] = {"pandas": through_pandas, "arrow": through_arrow, **BY_HAND}
    lasted_ms: dict[str, list[float]] = {name: [] for name in ways}
    for symbol, day in pairs * rounds:
        for name, query in ways.items():
            lasted_ms[name].append(1000 * seconds(query, root, symbol, day))
    medians = {name: statistics.median(one) for name, one in lasted_ms.items()}
    best = min(BY_HAND, key=medians.__getitem__)
    ratio = statistics.median(ours / theirs for ours, theirs in zip(lasted_ms["arrow"], lasted_ms[best], strict=True))
    return {**medians, "best": best, "ratio": ratio}


def check_equal(root: Path, symbol: str, day: date) -> int:
    """How many rows there are. Raises BenchmarkFailed where two ways give different ones."""
    ours = through_arrow(root, symbol, day)
    for name, query in BY_HAND.items():
        if not query(root, symbol, day).equals(ours):
            raise BenchmarkFailed(f"{symbol} on {day}: read_trades found {ours.num_rows} rows, {name} others")
    return int(ours.num_rows)


def through_pandas(root: Path, symbol: str, day: date) -> object:
    return ingestor.read_trades(root, [symbol], day, day + timedelta(days=1))


def through_arrow(root: Path, symbol: str, day: date) -> pa.Table:
    return ingestor.read_trades(root, [symbol], day, day + timedelta(days=1), engine="arrow")


def by_filter(root: Path, symbol: str, day: date) -> pa.Table:
    """As the manual says it."""
    (path,) = (root / "trades" / f"date={day}").iterdir()
    return pq.read_table(path, filters=[("symbol", "==", symbol)], partitioning=None)


def by_row_group(root: Path, symbol: str, day: date) -> pa.Table:
    """As one who knows the format does: the row groups that may hold it, texts as dictionaries."""
    (path,) = (root / "trades" / f"date={day}").iterdir()
    with pq.ParquetFile(path, read_dictionary=["symbol", "conditions"], pre_buffer=False) as file:
        at = file.schema_arrow.get_field_index("symbol")
        held = [file.metadata.row_group(group).column(at).statistics for group in range(file.num_row_groups)]
        groups = [group for group, symbols in enumerate(held) if symbols.min <= symbol <= symbols.max]
        rows = file.read_row_groups(groups)
        return rows.filter(pc.equal(rows["symbol"], symbol)).combine_chunks().cast(TRADES)


BY_HAND: dict[str, Query] = {"pq.read_table": by_filter, "by row group": by_row_group}


def time_symbol_year(root: Path, rounds: int) -> dict[str, float]:
    """In s, and the ratios: the medians of those of two readings that came one after the other."""
    days = list_days(Layout(root))

    def by_hand(symbol: str) -> Any:
        return pa.concat_tables(by_row_group(root, symbol, day) for day in days).to_pandas()

    def whole_day_by_hand() -> Any:
        (path,) = (root / "trades" / f"date={days[0]}").iterdir()
        return pq.read_table(path, partitioning=None).to_pandas()

    lasted_s: dict[str, list[float]] = {}
    for symbol in Random(7).sample(SYMBOLS, 3) * rounds:
        found = {
            "year": time_one(partial(ingestor.read_trades, root, [symbol])),
            "year by hand": time_one(partial(by_hand, symbol)),
            "day": time_one(partial(ingestor.read_trades, root, None, days[0], days[0] + timedelta(days=1))),
            "day by hand": time_one(whole_day_by_hand),
        }
        for ours, theirs in (("year", "year by hand"), ("day", "day by hand")):
            if found[ours][1] != found[theirs][1]:
                raise BenchmarkFailed(f"{ours}: read_trades found {found[ours][1]} rows, by hand {found[theirs][1]}")
        for name, (took_s, _) in found.items():
            lasted_s.setdefault(name, []).append(took_s)
    ratios = {
        f"{name}_ratio": statistics.median(
            ours / theirs for ours, theirs in zip(lasted_s[name], lasted_s[f"{name} by hand"], strict=True)
        )
        for name in ("year", "day")
    }
    return {f"{name}_s": statistics.median(lasted_s[name]) for name in ("year", "day")} | ratios


def time_one(query: Callable[[], Sized]) -> tuple[float, int]:
    """How long it takes, and how many rows it finds."""
    began_s = time.perf_counter()
    rows = len(query())
    return time.perf_counter() - began_s, rows


def time_bars(root: Path, rounds: int) -> dict[str, float]:
    """In s; the median ratio of two that came one after the other; and what the bars hold, all added up."""
    day = list_days(Layout(root))[0]
    read_bars = partial(ingestor.read_bars, root, "1m", start=day, end=day + timedelta(days=1))
    bars = read_bars()  # the first imports what it needs
    ours_s, theirs_s = [], []
    for _ in range(rounds):
        ours_s.append(time_one(read_bars)[0])
        theirs_s.append(time_one(partial(bars_by_hand, root, day))[0])
    ratio = statistics.median(ours / theirs for ours, theirs in zip(ours_s, theirs_s, strict=True))
    found = {"rows": int(bars["trades"].sum()), "volume": float(bars["volume"].sum())}
    return {"bars_s": statistics.median(ours_s), "ratio": ratio, **found}


def bars_by_hand(root: Path, day: date) -> Any:
    rows = pq.read_table(root / "trades" / f"date={day}", partitioning=None).to_pandas()
    minutes = rows.groupby(["symbol", rows["timestamp"].dt.floor("1min")], observed=True)
    return minutes.agg(
        open=("price", "first"), high=("price", "max"), low=("price", "min"), close=("price", "last"),
        volume=("volume", "sum"), trades=("volume", "size"),
    )  # fmt: skip


def time_bars_year(root: Path, rounds: int) -> dict[str, float]:
    """In s: in this process, and in one and two processes that are there already. Raises BenchmarkFailed where their
    bars are others.
    """
    sys.path.insert(0, str(HERE.parent / "examples"))
    from cluster import make_bars
    from dask.distributed import Client, LocalCluster

    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        began_s = time.perf_counter()
        bars = ingestor.read_bars(root, "1m", engine="arrow")
        found.setdefault("in_process_s", []).append(time.perf_counter() - began_s)
        for name, processes in (("by_one_s", 1), ("by_two_s", 2)):
            with LocalCluster(processes, threads_per_worker=1, dashboard_address=None) as dask, Client(dask) as client:
                client.run(ingestor.describe, str(root))  # each has imported what it needs
                began_s = time.perf_counter()
                by_dask = make_bars(client, [str(root)], "1m")
                found.setdefault(name, []).append(time.perf_counter() - began_s)
            if not by_dask.equals(bars):
                raise BenchmarkFailed(f"{processes} processes made {by_dask.num_rows} bars, this one {bars.num_rows}")
    return {name: statistics.median(lasted_s) for name, lasted_s in found.items()}


def time_sort(root: Path, rounds: int) -> dict[str, float]:
    """In s."""
    lasted_s = []
    for _ in range(rounds):
        began_s = time.perf_counter()
        for day in list_days(Layout(root)):
            rows = pq.read_table(root / "trades" / f"date={day}", partitioning=None)
            rows = rows.sort_by([("symbol", "ascending"), ("timestamp", "ascending"), ("sequence", "ascending")])
            with tempfile.TemporaryFile(dir=root) as file:
                pq.write_table(rows, file, compression="zstd", row_group_size=32_768)
        lasted_s.append(time.perf_counter() - began_s)
    return {"sort_s": statistics.median(lasted_s)}


def seconds(query: Callable[[Path, str, date], object], root: Path, symbol: str, day: date) -> float:
    began_s = time.perf_counter()
    query(root, symbol, day)
    return time.perf_counter() - began_s


QUESTIONS: dict[str, Callable[[Path, int], Mapping[str, float | str]]] = {
    "symbol-day": time_symbol_day,
    "symbol-year": time_symbol_year,
    "bars": time_bars,
    "bars-year": time_bars_year,
    "sort": time_sort,
}

if __name__ == "__main__":
    main()
