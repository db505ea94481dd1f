"""Parquet files of trades: one order and one set of encodings for all who write them, and one way to open them, whose
errors name the file.

A page has its checksum from Arrow; the pages' headers, the page index and the footer have none, and Arrow believes what
it finds there: with one bit changed it returns other values, skips rows that are asked for, or ends the process. So a
finished file gets checksums of its own (`add_checksums`), in a record before the footer. No reader of Parquet looks
there: it finds the footer by the length at the file's end, and everything else by its distance from the beginning.
"""

import contextlib
import errno
import os
import stat
import struct
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from ingestor.errors import DamagedFile, IngestorError
from ingestor.schema import FORMAT_VERSION, TRADES
from ingestor.store import StorePath

ROW_GROUP = 1 << 15
"""Rows: small enough that one symbol of a day is read without its neighbours, large enough to compress."""

FORMAT_KEY = b"ingestor.format"
ORIGIN_KEY = b"ingestor.origin"

_MAGIC = b"PAR1"
_TAIL = struct.Struct("<I4s")
"""The last bytes of a file: the length of its footer, and the magic number."""
_CHECKS = struct.Struct("<8sIIQ8s")
_CHECKS_BEGIN, _CHECKS_END = b"\x89CHECKS\n", b"\nSKCEHC\x89"
_SEARCHED = 1 << 20
_PIECE = 1 << 20

_NEVER_NULL = tuple(name for name in TRADES.names if name not in {"volume", "conditions"})
_END_MS = 1 << 42

_DELTA = ("timestamp", "received_at", "sequence")
_NULL = -(1 << 62) - 1

Span = tuple[int, int]
"""The first and the last sequence number of some rows."""
WHOLE: Span = (0, (1 << 63) - 1)
Digest = dict[str, int]
"""A number for the values of each column, whatever the order of the rows; "rows" is their count."""


def file_schema(schema: pa.Schema, origin: str) -> pa.Schema:
    """A file's schema: what it is, and the segments it comes from (their ids, joined by `,`)."""
    return schema.with_metadata({FORMAT_KEY: str(FORMAT_VERSION), ORIGIN_KEY: origin})


def writer_options(schema: pa.Schema) -> dict[str, Any]:
    """Options for `pyarrow.parquet.write_table` and `ParquetWriter`: about 7 bytes per trade, against 21 by default.

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
    add_checksums(path)


class _Checks(NamedTuple):
    """The record of a file's checksums."""

    begin: bytes
    pages: int
    """CRC32 of everything before this record."""
    footer: int
    """CRC32 of everything after it."""
    length: int
    """Of what comes after it."""
    end: bytes


def add_checksums(path: Path) -> None:
    """Give a Parquet file that is finished, and not published yet, the record of its checksums. Raises OSError."""
    with path.open("r+b") as file:
        size = os.fstat(file.fileno()).st_size
        footer_at = _find_footer(file, size)
        if footer_at is None:
            raise OSError(f"{path}: not a finished Parquet file")
        file.seek(0)
        pages = _crc(file, footer_at)
        footer = file.read()
        file.seek(footer_at)
        file.write(_CHECKS.pack(_CHECKS_BEGIN, pages, zlib.crc32(footer), len(footer), _CHECKS_END) + footer)


def check_pages(path: Path) -> bool:
    """Whether this file has checksums. Raises FileNotFoundError where it is gone, DamagedFile where it is not as it was
    written.
    """
    with named_errors(path), _open(path) as file:
        checks = _read_checks(path, file)
        if checks is None:
            return False
        pages_end = file.seek(0, os.SEEK_END) - checks.length - _CHECKS.size
        file.seek(0)
        if _crc(file, pages_end) != checks.pages:
            raise DamagedFile(f"{path}: can't be read: the pages have another CRC than when they were written")
        return True


def _open(path: Path, opened: Path | None = None) -> BinaryIO:
    if not stat.S_ISREG((opened or path).stat().st_mode):  # a fifo would wait for a writer
        raise DamagedFile(f"{path}: not a file")
    return (opened or path).open("rb")


def _find_footer(file: BinaryIO, size: int) -> int | None:
    """The offset of the footer; None where this is not a Parquet file."""
    if size < _TAIL.size + len(_MAGIC):
        return None
    length, magic = _TAIL.unpack(_read_at(file, _TAIL.size, size - _TAIL.size))
    footer_at = size - _TAIL.size - length
    return footer_at if magic == _MAGIC and footer_at >= len(_MAGIC) else None


def _read_checks(path: Path, file: BinaryIO) -> _Checks | None:
    """A file's checksums, of which that of the footer is right; None where it has none, being of an older version or of
    somebody else, or no Parquet. Raises DamagedFile.
    """
    size = file.seek(0, os.SEEK_END)
    footer_at = _find_footer(file, size)
    if footer_at is None:
        return None
    at = max(footer_at - _CHECKS.size, 0)
    found = _read_at(file, size - at, at)
    checks = _Checks(*_CHECKS.unpack_from(found)) if footer_at - at == _CHECKS.size else None
    if checks and checks.begin == _CHECKS_BEGIN and checks.end == _CHECKS_END and checks.length == size - footer_at:
        if zlib.crc32(memoryview(found)[_CHECKS.size :]) == checks.footer:
            return checks
    else:  # none, or a bit has changed in the record, or in the length by which it was looked for
        searched = _read_at(file, _SEARCHED, max(size - _SEARCHED, 0))
        if _CHECKS_BEGIN not in searched and _CHECKS_END not in searched:
            return None
    raise DamagedFile(f"{path}: can't be read: the footer has another CRC than when it was written")


def _read_at(file: BinaryIO, length: int, at: int) -> bytes:
    file.seek(at)
    return file.read(length)


def _crc(file: BinaryIO, length: int) -> int:
    """The checksum of the next bytes of a file; of less where it ends before."""
    crc = 0
    while length > 0 and (piece := file.read(min(_PIECE, length))):
        crc = zlib.crc32(piece, crc)
        length -= len(piece)
    return crc


def open_parquet(path: Path, opened: Path | None = None, **options: Any) -> pq.ParquetFile:
    """Open a Parquet file, with the options of `pyarrow.parquet.ParquetFile`; by its path `opened`, if it has one.

    Raises FileNotFoundError where it is gone, DamagedFile where it can't be read.
    """
    with named_errors(path):
        with _open(path, opened) as file:
            _read_checks(path, file)
        return pq.ParquetFile(to_read(opened or path), **options)


def to_read(path: Path) -> Any:
    """What pyarrow opens: the path, or the open file of one in a store. Raises FileNotFoundError, OSError."""
    return path.open("rb") if isinstance(path, StorePath) else path


def read_whole(path: Path, **options: Any) -> pa.Table:
    """The rows of a small file, of which every byte is checked first; options of `pyarrow.parquet.read_table`.

    Raises FileNotFoundError where it is gone, DamagedFile where it can't be read.
    """
    check_pages(path)
    with named_errors(path):
        return pq.read_table(to_read(path), partitioning=None, page_checksum_verification=True, **options)


def check_columns(path: Path, names: Collection[str]) -> None:
    """Raises DamagedFile where these columns of a file of the dataset lack what each has."""
    missing = [name for name in TRADES.names if name not in names]
    if missing:
        raise DamagedFile(f"{path}: has no column {missing[0]}")


def check_rows(path: Path, rows: pa.Table) -> None:
    """Check that readers can take these rows of a file of the dataset: UTF-8, times of our years, nulls only where they
    may be. Without checksums, a file can hold anything where a bit has changed. Raises DamagedFile.
    """
    import pyarrow.compute as pc

    with named_errors(path):
        rows.validate(full=True)
        for name in (name for name in _NEVER_NULL if name in rows.column_names):
            column = rows.column(name)
            if column.null_count:
                raise DamagedFile(f"{path}: can't be read: {column.null_count} rows have no {name}")
            if pa.types.is_timestamp(column.type):
                values = pc.min_max(column.cast(pa.int64())).as_py()
                limit = _END_MS * (1000 if column.type.unit == "us" else 1)
                if rows.num_rows and not 0 <= values["min"] <= values["max"] < limit:
                    raise DamagedFile(f"{path}: can't be read: a {name} before 1970 or after 2109")


@contextlib.contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Raise errors of reading this file while the block runs as DamagedFile, which names it: Arrow's errors don't.

    A file that is gone stays FileNotFoundError: it may have been compacted, and the caller then looks again.
    """
    try:
        yield
    except (FileNotFoundError, IngestorError):
        raise
    except (OSError, ValueError, LookupError, OverflowError, pa.ArrowException) as error:
        if isinstance(error, OSError) and isinstance(path, StorePath) and path.store.is_gone(path.inner):
            raise FileNotFoundError(errno.ENOENT, "gone while it was read", str(path)) from None
        raise DamagedFile(f"{path}: can't be read: {first_line(error)}") from None


def count_rows(path: Path) -> int:
    """The number of rows that a file's footer promises. Raises FileNotFoundError, DamagedFile."""
    with open_parquet(path) as file:
        return int(file.metadata.num_rows)


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its kind where it has none."""
    return str(error).partition("\n")[0] or type(error).__name__


def sort_trades(rows: pa.Table) -> pa.Table:
    """Rows in order of (symbol, timestamp, sequence), given in order of sequence.

    Column by column, so that no more than one stands in memory thrice.
    """
    import pyarrow.compute as pc  # a reader of coverage or accounts needs none of it

    # By time, then by the symbol's rank: Arrow's sort of one array is stable, counts where it can, and takes a
    # quarter of the time of its sort of a table.
    symbols = _in_one(rows.column("symbol")).dictionary_encode()
    ranks = pc.sort_indices(pc.sort_indices(symbols.dictionary)).cast(pa.int32()).take(symbols.indices)
    by_time = pc.array_sort_indices(_in_one(rows.column("timestamp")).cast(pa.int64()))
    order = by_time.take(pc.array_sort_indices(ranks.take(by_time)))
    del symbols, ranks, by_time  # before all columns stand twice
    return pa.Table.from_arrays([_in_one(column).take(order) for column in rows.columns], schema=rows.schema)


def _in_one(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)


def digest_rows(rows: pa.Table | pa.RecordBatch, spans: Sequence[Span]) -> list[Digest]:
    """The digest of the rows in each of these spans.

    Each value, as a number, times an odd number of its row, summed modulo 2^64: if one value differs, so does the sum.
    """
    import pyarrow.compute as pc

    places = [(0, rows.num_rows)]
    if spans != [WHOLE]:
        rows = rows.sort_by("sequence")
        sequences = rows.column("sequence").to_pylist()
        places = [(bisect_left(sequences, first), bisect_right(sequences, last)) for first, last in spans]
    factors = pc.add(pc.multiply(rows.column("sequence"), 2), 1)
    digests: list[Digest] = [{"rows": end - begin} for begin, end in places]
    for name in rows.schema.names:
        if (numbers := _as_numbers(rows.column(name), text=name not in TRADES.names)) is not None:
            products = pc.multiply(numbers, factors)
            for digest, (begin, end) in zip(digests, places, strict=True):
                digest[name] = (pc.sum(products.slice(begin, end - begin)).as_py() or 0) % (1 << 64)
    return digests


def add_digests(one: Digest, other: Digest) -> Digest:
    """The digest of the rows of both."""
    return {name: (value + other.get(name, 0)) % (1 << 64) for name, value in one.items()}


def _as_numbers(column: Any, *, text: bool) -> Any:
    """Whole numbers that stand for these values; None where CSV may write them otherwise than Arrow casts them to text.

    `text`: a column of the feed's own, which a reader of CSV knows as text only.
    """
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if text and (pa.types.is_integer(column.type) or pa.types.is_boolean(column.type)):
        column = column.cast(pa.string())
    if pa.types.is_string(column.type):
        values = column.fill_null("").dictionary_encode()  # CSV doesn't tell null from ""
        crcs = pa.array([zlib.crc32(value.encode()) for value in values.dictionary.to_pylist()], pa.int64())
        return crcs.take(values.indices)
    if text:
        return None
    numbers = column.view(pa.int64()) if pa.types.is_floating(column.type) else column.cast(pa.int64())
    return numbers.fill_null(_NULL)
