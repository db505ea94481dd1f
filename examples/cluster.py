"""Bars of years on several processes or machines: a task per date, by Dask (`pip install distributed`).

    python examples/cluster.py 1m bars.parquet s3://bucket/trades
    python examples/cluster.py 1m bars.parquet s3://bucket/trades/root=a s3://bucket/trades/root=b --workers 8

Each task reads its date where the data are: a recording, its mirror, or the mirrors of several recorders of one venue,
which are read as one. Only bars travel. The scheduler and its workers are yours: by SSH, Kubernetes, Slurm. Each worker
needs this package, and to reach the data under the same name.
"""

import argparse
from datetime import date, timedelta

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from dask.distributed import Client, LocalCluster

import ingestor

DAY = timedelta(days=1)


def bars_of_date(roots: list[str], interval: str, day: date) -> pa.Table:
    """What a task does."""
    return ingestor.read_bars(roots, interval, start=day, end=day + DAY, engine="arrow")


def find_dates(roots: list[str]) -> set[date]:
    """The UTC dates that trades may be of. `describe` would tell them, too, but read every trade, in this process."""
    told = ingestor.read_coverage(roots, engine="arrow")
    if not told.num_rows:
        return set()
    first, last = pc.min(told["start"]).as_py().date(), pc.max(told["end"]).as_py().date()
    # Coverage is by receipt: what a venue sent again, or a clock put elsewhere, is of other dates.
    before = ingestor.read_trades(roots, columns="timestamp", end=first, engine="arrow")
    after = ingestor.read_trades(roots, columns="timestamp", start=last + DAY, engine="arrow")
    others = pc.unique(pa.concat_tables([before, after])["timestamp"].cast(pa.date32())).to_pylist()
    return {*others, *(first + number * DAY for number in range((last - first).days + 1))}


def make_bars(client: Client, roots: list[str], interval: str) -> pa.Table:
    """The bars of all dates, with the coverage of each: what `read_bars` gives, sorted by (symbol, start)."""
    days = sorted(find_dates(roots))
    if not days:
        raise SystemExit(f"nothing was recorded in {', '.join(roots)}")
    tables = client.gather([client.submit(bars_of_date, roots, interval, day) for day in days])
    joined = pa.concat_tables(tables, promote_options="default")  # `filled` is where anything was filled
    return joined.sort_by([("symbol", "ascending"), ("start", "ascending")])


def main() -> None:
    """Make them, and write them to a file."""
    parser = argparse.ArgumentParser(description="Bars of many dates, a task per date.")
    parser.add_argument("interval", help="1s, 5m, 1h, 1d: whatever divides a day (UTC)")
    parser.add_argument("file", help="the Parquet file to write")
    parser.add_argument("roots", nargs="+", help="a recording, its mirror, or those of several recorders")
    parser.add_argument("--scheduler", help="the address of a Dask scheduler; none: processes on this machine")
    parser.add_argument("--workers", type=int, help="how many processes on this machine; none: one per core")
    asked = parser.parse_args()
    cluster = asked.scheduler or LocalCluster(n_workers=asked.workers, threads_per_worker=1, dashboard_address=None)
    with Client(cluster) as client:
        bars = make_bars(client, asked.roots, asked.interval)
    pq.write_table(bars, asked.file)
    print(f"{bars.num_rows:,} bars in {asked.file}")


if __name__ == "__main__":
    main()
