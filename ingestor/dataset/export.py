"""Trades into one file of another kind, as a stream: any size in bounded memory."""

import contextlib
import sqlite3
from collections.abc import Callable, Generator
from datetime import date
from pathlib import Path
from typing import Literal, NamedTuple

import pyarrow as pa

from ingestor.dataset.export_files import CsvFile, ExportFile, JsonLinesFile, ParquetFile, SqliteFile
from ingestor.dataset.rows import Selection, known_schema, with_columns
from ingestor.dataset.snapshot import open_recording, take_snapshot
from ingestor.dataset.stream import stream_rows
from ingestor.dataset.times import Span
from ingestor.errors import ConfigError, IngestorError
from ingestor.layout import FILE_MODE, set_mode

Kind = Literal["csv", "parquet", "jsonl", "sqlite"]

_FILES: dict[Kind, Callable[[Path, pa.Schema], ExportFile]] = {
    "csv": CsvFile,
    "parquet": ParquetFile,
    "jsonl": JsonLinesFile,
    "sqlite": SqliteFile,
}


class Progress(NamedTuple):
    """How far an export has come."""

    rows: int
    day: date
    """The UTC date that is being written."""


def export_trades(
    root: Path, path: Path, kind: Kind, span: Span, symbols: tuple[str, ...] | None = None
) -> Generator[Progress, None, None]:
    """Write the trades of a span to a file that doesn't exist yet; tells how far it is after each piece.

    Date by date, within a date by (symbol, timestamp, sequence). Under its name the file is whole.

    Raises NotARecording, FormatTooNew, ConfigError where there is such a file already, IngestorError where it can't be
    written.
    """
    layout = open_recording(root)
    if path.exists():
        raise ConfigError(f"{path} exists already: remove it, or choose another name")
    schema = known_schema(take_snapshot(layout, span))
    part = path.with_name(f"{path.name}.part")
    part.unlink(missing_ok=True)
    try:
        with contextlib.closing(_FILES[kind](part, schema)) as file:
            rows = 0
            for day, table in stream_rows(layout, Selection(span, tuple(schema.names), symbols)):
                file.write(with_columns(table, schema))
                rows += table.num_rows
                yield Progress(rows, day)
        set_mode(part, FILE_MODE)
        part.replace(path)
    except (OSError, sqlite3.Error) as error:
        raise IngestorError(f"can't export to {path}: {error}") from None
    finally:
        part.unlink(missing_ok=True)
