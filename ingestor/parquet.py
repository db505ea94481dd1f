"""How trades lie in Parquet: one order and one set of encodings for whoever writes a file of the dataset; and one way
to open such a file, whose errors name it.
"""

import contextlib
import stat
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ingestor.errors import DamagedFile, IngestorError
from ingestor.schema import FORMAT_VERSION

ROW_GROUP = 1 << 15
"""Rows: small enough that one symbol of a day is read without its neighbours, large enough to compress."""

FORMAT_KEY = b"ingestor.format"
ORIGIN_KEY = b"ingestor.origin"

_DELTA = ("timestamp", "received_at", "sequence")


def file_schema(schema: pa.Schema, origin: str) -> pa.Schema:
    """A file's schema: what it is, and the segments it comes from (their ids, joined by `,`)."""
    return schema.with_metadata({FORMAT_KEY: str(FORMAT_VERSION), ORIGIN_KEY: origin})


def writer_options(schema: pa.Schema) -> dict[str, Any]:
    """Options for `pyarrow.parquet.write_table` and `ParquetWriter`: about 7 bytes a trade, against 21 by default.

    The rows must be sorted by (symbol, timestamp, sequence).
    """
    return {
        "compression": "zstd",
        "compression_level": 1,
        "use_dictionary": [name for name in schema.names if name not in _DELTA],
        "column_encoding": dict.fromkeys(_DELTA, "DELTA_BINARY_PACKED"),
        "sorting_columns": pq.SortingColumn.from_ordering(
            schema, [("symbol", "ascending"), ("timestamp", "ascending"), ("sequence", "ascending")]
        ),
        "write_page_checksum": True,
        "write_page_index": True,
    }


def write_parquet(path: Path, rows: pa.Table, origin: str) -> None:
    """Write sorted rows as a file of the dataset that comes from these segments. Raises OSError."""
    schema = file_schema(rows.schema, origin)
    pq.write_table(rows.cast(schema), path, row_group_size=ROW_GROUP, **writer_options(schema))


def open_parquet(path: Path, opened: Path | None = None, **options: Any) -> pq.ParquetFile:
    """Open a Parquet file, with the options of `pyarrow.parquet.ParquetFile`; by its path `opened`, if it has one.

    Raises FileNotFoundError where it is gone, DamagedFile where it can't be read.
    """
    with named_errors(path):
        if not stat.S_ISREG((opened or path).stat().st_mode):  # a fifo would wait for a writer
            raise DamagedFile(f"{path}: not a file")
        return pq.ParquetFile(opened or path, **options)


def check_columns(path: Path, names: Collection[str]) -> None:
    """Raises DamagedFile where these columns of a file of the dataset lack what each has."""
    missing = [name for name in ("symbol", "timestamp", "sequence") if name not in names]
    if missing:
        raise DamagedFile(f"{path}: has no column {missing[0]}")


@contextlib.contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """What can't be read of this file while the block runs is DamagedFile, which names it: Arrow's errors don't.

    A file that is gone stays FileNotFoundError: it may have been compacted, and the caller then looks again.
    """
    try:
        yield
    except (FileNotFoundError, IngestorError):
        raise
    except (OSError, ValueError, LookupError, OverflowError, pa.ArrowException) as error:
        raise DamagedFile(f"{path}: can't be read: {first_line(error)}") from None


def count_rows(path: Path) -> int:
    """How many rows a file's footer promises. Raises FileNotFoundError, DamagedFile."""
    with open_parquet(path) as file:
        return int(file.metadata.num_rows)


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its kind where it has none."""
    return str(error).partition("\n")[0] or type(error).__name__


def sort_trades(rows: pa.Table) -> pa.Table:
    """Rows in order of (symbol, timestamp, sequence), given in order of sequence.

    Column by column, so that no more than one stands in memory thrice.
    """
    order = _order(_in_one(rows.column("symbol")), _in_one(rows.column("timestamp")))
    return pa.Table.from_arrays([_in_one(column).take(order) for column in rows.columns], schema=rows.schema)


def _order(symbols: pa.Array, times: pa.Array) -> pa.Array:
    """The indices of rows in order of (symbol, timestamp), equal ones as they come.

    Sorted by time, then by the symbol's rank: Arrow's sort of one array is stable, counts where it can, and takes a
    quarter of the time of its sort of a table.
    """
    encoded = symbols.dictionary_encode()
    ranks = pc.sort_indices(pc.sort_indices(encoded.dictionary)).cast(pa.int32()).take(encoded.indices)
    by_time = pc.array_sort_indices(times.cast(pa.int64()))
    return by_time.take(pc.array_sort_indices(ranks.take(by_time)))


def _in_one(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)
