"""Writes trades to CSV, Parquet, JSON Lines or SQLite."""

import contextlib
import json
import sqlite3
from collections.abc import Callable, Generator
from datetime import date
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from ingestor.dataset.arguments import Roots, Span, find_roots
from ingestor.dataset.snapshot import open_recording
from ingestor.dataset.trades import stream_trades
from ingestor.errors import ConfigError, IngestorError
from ingestor.layout import FILE_MODE, set_mode
from ingestor.parquet import ROW_GROUP, writer_options

_SLICE = 1 << 14
"""Rows that are Python objects at a time."""

Kind = Literal["csv", "parquet", "jsonl", "sqlite"]


class ExportFile(Protocol):
    """A file that takes rows until it is closed."""

    def write(self, table: pa.Table) -> None:
        """Append these rows. Raises OSError."""
        ...

    def close(self) -> None:
        """Finish the file. Raises OSError."""
        ...


class CsvFile:
    """A heading, then one line per trade: ISO times in UTC; null and empty conditions read alike."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._sink = pa.OSFile(str(path), "wb")
        self._sink.write(",".join(schema.names).encode() + b"\n")

    def write(self, table: pa.Table) -> None:
        pacsv.write_csv(with_iso_times(table), self._sink, pacsv.WriteOptions(include_header=False))

    def close(self) -> None:
        self._sink.close()


class ParquetFile:
    """One Parquet file with the encodings of the dataset."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._writer = pq.ParquetWriter(str(path), schema, **writer_options(schema))

    def write(self, table: pa.Table) -> None:
        self._writer.write_table(table, row_group_size=ROW_GROUP)

    def close(self) -> None:
        self._writer.close()


class JsonLinesFile:
    """One object per line; times as ISO text in UTC."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:  # noqa: ARG002  each line names its columns
        self._file = path.open("w", encoding="utf-8")

    def write(self, table: pa.Table) -> None:
        for batch in with_iso_times(table).to_batches(_SLICE):
            lines = (json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in batch.to_pylist())
            self._file.write("".join(f"{line}\n" for line in lines))

    def close(self) -> None:
        self._file.close()


class SqliteFile:
    """A database with one table, `trades`, indexed by (symbol, timestamp); times as ISO text in UTC."""

    def __init__(self, path: Path, schema: pa.Schema, *, numbered: bool = True) -> None:
        """`numbered`: no two rows have one `sequence`."""
        whole = {field.name for field in schema if pa.types.is_integer(field.type) or pa.types.is_boolean(field.type)}
        real = {field.name for field in schema if pa.types.is_floating(field.type)}
        types = {name: "REAL" if name in real else "INTEGER" if name in whole else "TEXT" for name in schema.names}
        if numbered and "sequence" in types:
            types["sequence"] = "INTEGER PRIMARY KEY"
        columns = ", ".join(f'"{name}" {type_}' for name, type_ in types.items())
        self._database = sqlite3.connect(path, isolation_level=None)
        try:
            self._database.execute("PRAGMA journal_mode = OFF")  # a file that isn't whole is thrown away
            self._database.execute("PRAGMA synchronous = OFF")
            self._database.execute(f"CREATE TABLE trades ({columns})")
            self._database.execute("BEGIN")
        except sqlite3.Error:
            self._database.close()
            raise
        self._insert = f"INSERT INTO trades VALUES ({', '.join('?' * len(schema.names))})"  # noqa: S608  places only

    def write(self, table: pa.Table) -> None:
        for batch in with_iso_times(table).to_batches(_SLICE):
            columns = [column.to_pylist() for column in batch.columns]
            self._database.executemany(self._insert, zip(*columns, strict=True))

    def close(self) -> None:
        with contextlib.closing(self._database):
            self._database.execute("COMMIT")
            self._database.execute("CREATE INDEX trades_by_time ON trades (symbol, timestamp)")


def with_iso_times(table: pa.Table) -> pa.Table:
    """The rows with `2026-11-20T14:30:00.123Z` for each time."""
    for index, field in enumerate(table.schema):
        if pa.types.is_timestamp(field.type):
            text = pc.binary_replace_slice(table.column(index).cast(pa.string()), 10, 11, "T")
            table = table.set_column(index, field.name, text)
    return table


_FILES: dict[Kind, Callable[..., ExportFile]] = {
    "csv": CsvFile,
    "parquet": ParquetFile,
    "jsonl": JsonLinesFile,
    "sqlite": SqliteFile,
}


class Progress(NamedTuple):
    """The progress of an export."""

    rows: int
    day: date
    """The UTC date that is being written."""


def export_trades(
    root: Roots, path: Path, kind: Kind, span: Span, symbols: tuple[str, ...] | None = None
) -> Generator[Progress, None, None]:
    """Write the trades of a span to a file that doesn't exist yet; yields its progress after each piece.

    Date by date, within a date by (symbol, timestamp, sequence). Under its name the file is whole. `root` may be a list
    of recordings that several recorders of one venue made: each trade that any of them has is there once, within a date
    by (symbol, timestamp, received_at); a `sequence` is that of its recorder, and may be there twice.

    Raises NotARecording, FormatTooNew, ConfigError where there is such a file already or the recordings are of several
    venues, IngestorError where it can't be written.
    """
    layouts = [open_recording(one) for one in find_roots(root)]
    if path.exists():
        raise ConfigError(f"{path} exists already: remove it, or choose another name")
    schema, pieces = stream_trades(layouts, span, symbols)
    part = path.with_name(f"{path.name}.part")
    part.unlink(missing_ok=True)
    try:
        options = {"numbered": len(layouts) == 1} if kind == "sqlite" else {}
        with contextlib.closing(_FILES[kind](part, schema, **options)) as file:
            rows = 0
            for day, table in pieces:
                file.write(table)
                rows += table.num_rows
                yield Progress(rows, day)
        set_mode(part, FILE_MODE)
        part.replace(path)
    except (OSError, sqlite3.Error) as error:
        raise IngestorError(f"can't export to {path}: {error}") from None
    finally:
        part.unlink(missing_ok=True)
