"""Counts what a contender has written, from its files alone.

    python benchmarks/written.py parquet|csv|sqlite|root PATH

Prints `{"rows": …, "volume": …, "bytes": …}`: how many trades, their volumes added up, and the size of the files.
Of a recorder's root, `root` counts what its segments and its Parquet files hold together, each row once.
"""

import contextlib
import json
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from ingestor.journal.follower import Follower, Rows
from ingestor.layout import Layout, list_segments


def main(kind: str, path: str) -> None:
    count = {"parquet": count_parquet, "csv": count_csv, "sqlite": count_sqlite, "root": count_root}[kind]
    rows, volume, size = count(Path(path))
    print(json.dumps({"rows": rows, "volume": volume, "bytes": size}))


def count_parquet(path: Path) -> tuple[int, float, int]:
    files = files_of(path, "*.parquet")
    volumes = (pq.ParquetFile(file).read(["volume"]).column("volume") for file in files)
    return *totals(volumes), size_of(files)


def count_csv(path: Path) -> tuple[int, float, int]:
    files = files_of(path, "*.csv")
    return *totals(batch.column("volume") for file in files for batch in read_csv(file)), size_of(files)


def count_sqlite(path: Path) -> tuple[int, float, int]:
    database = sqlite3.connect(path)
    rows, volume = database.execute("SELECT count(*), total(volume) FROM trades").fetchone()
    database.close()
    return rows, volume, path.stat().st_size


def count_root(root: Path) -> tuple[int, float, int]:
    layout = Layout(root)
    sealed = files_of(layout.trades, "*.parquet")
    columns = ["sequence", "volume"]
    held = [pq.ParquetFile(file).read(columns) for file in sealed]
    with contextlib.closing(Follower(layout, None, synced_only=False)) as follower:
        held += [pa.table(event.batch).select(columns) for event in follower.read() if isinstance(event, Rows)]
    # A segment that is sealed may still be in the journal.
    rows = pa.concat_tables(held).group_by("sequence").aggregate([("volume", "max")])
    return *totals(iter(rows.column("volume_max").chunks)), size_of(
        [*sealed, *(file.path for file in list_segments(layout))]
    )


def files_of(path: Path, pattern: str) -> list[Path]:
    """The file itself, or those below a folder."""
    return [path] if path.is_file() else sorted(path.rglob(pattern))


def size_of(files: list[Path]) -> int:
    return sum(file.stat().st_size for file in files)


def read_csv(file: Path) -> Iterator[pa.RecordBatch]:
    convert = pacsv.ConvertOptions(include_columns=["volume"], column_types={"volume": pa.float64()})
    yield from pacsv.open_csv(file, convert_options=convert)


def totals(volumes: Iterator[pa.Array]) -> tuple[int, float]:
    rows, volume = 0, 0.0
    for column in volumes:
        rows += len(column)
        volume += pc.sum(column, min_count=0).as_py()
    return rows, volume


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
