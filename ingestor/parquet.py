"""How trades look in Parquet: one set of encodings for whoever writes a file of the dataset."""

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

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
