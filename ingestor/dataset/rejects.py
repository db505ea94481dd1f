"""What the venue sent and the recorder refused, as a caller asks for it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import pyarrow as pa

from ingestor.dataset.arguments import find_root
from ingestor.dataset.frames import Engine, as_frame, check_engine
from ingestor.dataset.times import Span, Time, find_span
from ingestor.errors import NotARecording
from ingestor.layout import Layout
from ingestor.schema import RECEIVED_AT

if TYPE_CHECKING:
    from pandas import DataFrame

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
    """The frames and trades that were received in [start, end) and refused, in order of receipt.

    >>> import ingestor
    >>> list(ingestor.read_rejects("data").columns)
    ['received_at', 'reason', 'run', 'frame', 'trade', 'length', 'sha256', 'text']

    `text.encode("latin-1")` are the very bytes that came. Raises NotARecording, ValueError for a time that is none,
    ConfigError where pandas is missing.
    """
    check_engine(engine)
    span = find_span(start, end, tz)
    layout = Layout(find_root(root))
    if not layout.rejects.is_dir():
        raise NotARecording(f"{layout.root} holds no recording: there is no `rejects` in it")
    rows = [line for path in _files(layout, span) for line in _lines(path) if _holds(span, line["received_at"])]
    columns = {name: [row.get(name) for row in rows] for name in REJECTS.names}
    return as_frame(pa.Table.from_pydict(columns, schema=REJECTS).sort_by("received_at"), engine, tz)


def _files(layout: Layout, span: Span) -> list[Path]:
    """The files of the UTC dates that the span touches, oldest first."""
    first, last = (f"date={day}.jsonl" for day in span.days)
    return sorted(path for path in layout.rejects.glob("date=*.jsonl") if first <= path.name <= last)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """What is whole; the last line may be under way."""
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                try:
                    yield json.loads(line)
                except ValueError:  # cut by a crash, and ended by the next start
                    continue


def _holds(span: Span, received_us: int) -> bool:
    after_start = span.start_ms is None or received_us >= span.start_ms * 1000
    return after_start and (span.end_ms is None or received_us < span.end_ms * 1000)
