"""Reads rejects: the frames and trades that the recorder refused."""

import contextlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, overload

import pyarrow as pa
from pydantic import BaseModel, Field, ValidationError

from ingestor.dataset.arguments import Engine, Span, Time, check_engine, find_root, find_span
from ingestor.dataset.rows import as_frame
from ingestor.errors import NotARecording
from ingestor.layout import Layout, list_rejects, read_lines
from ingestor.schema import RECEIVED_AT

if TYPE_CHECKING:
    from pandas import DataFrame

_ROWS_AT_ONCE = 1 << 10
_Number = Annotated[int, Field(ge=0, lt=1 << 62, strict=True)]


class _Line(BaseModel):
    """A line of `rejects/`; its fields are columns of REJECTS."""

    received_at: _Number
    reason: str
    run: _Number
    frame: _Number
    trade: _Number | None = None
    length: _Number
    sha256: str
    text: str | None = None


REJECTS = pa.schema(
    [
        ("received_at", RECEIVED_AT),
        ("reason", pa.string()),
        ("run", pa.int64()),
        ("frame", pa.int64()),  # number of the frame in its run
        ("trade", pa.int64()),  # its place in the frame; null: all of the frame was refused
        ("length", pa.int64()),  # of the frame, in bytes
        ("sha256", pa.string()),
        (
            "text",
            pa.string(),
        ),  # its first 64 KB as Latin-1; null where so much was refused that texts were no longer kept
    ]
)


@overload
def read_rejects(root: str | Path, start: Time | None = ..., end: Time | None = ..., tz: str = ..., *,
                 engine: Literal["pandas"] = ...) -> "DataFrame": ...  # fmt: skip
@overload
def read_rejects(root: str | Path, start: Time | None = ..., end: Time | None = ..., tz: str = ..., *,
                 engine: Literal["arrow"]) -> pa.Table: ...  # fmt: skip
def read_rejects(
    root: str | Path,
    start: Time | None = None,
    end: Time | None = None,
    tz: str = "UTC",
    *,
    engine: Engine = "pandas",
) -> Any:
    """The frames and trades that were received in [start, end) and refused, in order of receipt. Those beyond
    `storage.rejects_per_day` were only counted, and are not among them.

    >>> import ingestor
    >>> list(ingestor.read_rejects("data").columns)
    ['received_at', 'reason', 'run', 'frame', 'trade', 'length', 'sha256', 'text']

    `text.encode("latin-1")` are the very bytes that came. Raises NotARecording, DamagedFile, ValueError for a time that
    is none, ConfigError where pandas is missing.
    """
    check_engine(engine)
    span = find_span(start, end, tz)
    layout = Layout(find_root(root))
    if not layout.rejects.is_dir():
        raise NotARecording(f"{layout.root} holds no recording: there is no `rejects` in it")
    first, last = (f"date={day}.jsonl" for day in span.days)  # the UTC dates that the span touches
    paths = [path for path in list_rejects(layout) if first <= path.name <= last]
    batches = [batch for path in paths for batch in _batches(path, span)]
    return as_frame(pa.Table.from_batches(batches, REJECTS).sort_by("received_at"), engine, tz)


def _batches(path: Path, span: Span) -> Iterator[pa.RecordBatch]:
    """The rejects of a file that were received in the span; few are Python objects at a time."""
    start_us, end_us = span.bounds_us
    lines = (line for line in _lines(path) if start_us <= line["received_at"] < end_us)
    while rows := list(islice(lines, _ROWS_AT_ONCE)):
        yield pa.RecordBatch.from_pylist(rows, schema=REJECTS)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines; the last one may be unfinished, and a start ends one that a crash cut. A count of those beyond
    `storage.rejects_per_day` is no reject.
    """
    for line in read_lines(path):
        with contextlib.suppress(ValidationError):
            if b'"left_out"' not in line:
                yield _Line.model_validate_json(line).model_dump()
