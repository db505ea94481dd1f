"""The truth: every trade a venue sent, when and to whom. Captures are compared with it: it is exact."""

import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from ingestor.schema import VENUE_TRADES

BLOCK_LINES = 4096

_LINE_FIELDS: "tuple[pa.Field[Any], ...]" = (
    pa.field("sent_us", pa.int64()),
    pa.field("connection", pa.int64()),
    pa.field("frame", pa.int64()),
    pa.field("s", pa.string()),
    pa.field("p", pa.float64()),
    pa.field("t", pa.int64()),
    pa.field("v", pa.float64()),
    pa.field("c", pa.list_(pa.string())),
)
_LINE = pa.schema(_LINE_FIELDS)


class TruthFile:
    """JSON lines `{"sent_us", "connection", "frame", …}`: each ends with a trade's fields exactly as sent.

    An existing file is replaced. Lines are written in blocks: `flush` says when, and `close` does.
    """

    def __init__(self, path: Path) -> None:
        """Raises OSError where the file can't be made."""
        self._file = os.fdopen(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o640), "wb")
        self._lines: list[str] = []

    def add(self, sent_us: int, connection: int, frame: int, trades: Iterable[str]) -> None:
        """The trades (JSON objects) of one frame that was just handed to the connection's socket."""
        head = f'{{"sent_us":{sent_us},"connection":{connection},"frame":{frame},'
        self._lines += [f"{head}{trade[1:]}\n" for trade in trades]
        if len(self._lines) >= BLOCK_LINES:
            self.flush()

    def flush(self) -> None:
        """Raises OSError; the file is then no longer the truth."""
        self._file.write("".join(self._lines).encode())
        self._file.flush()
        self._lines.clear()

    def close(self) -> None:
        try:
            self.flush()
        finally:
            self._file.close()


def read_truth(path: Path) -> pa.Table:
    """The truth file as columns: VENUE_TRADES, then `sent_us`, `connection`, `frame` (int64), as sent.

    `conditions` is null where `c` was null or absent, a time where the protocol sends none. A last line that
    a killed venue left unfinished is not read.
    """
    text = path.read_bytes()
    text = text[: text.rfind(b"\n") + 1]
    lines = _LINE.empty_table()
    if text:
        options = pj.ParseOptions(explicit_schema=_LINE, unexpected_field_behavior="error")
        lines = pj.read_json(io.BytesIO(text), parse_options=options)
    conditions: Any = pc.binary_join(lines["c"], ",")
    timestamp = lines["t"].cast(VENUE_TRADES.field("timestamp").type)
    sent = ("sent_us", "connection", "frame")
    columns = [timestamp, lines["s"], lines["p"], lines["v"], conditions, *(lines[name] for name in sent)]
    return pa.table(columns, [*VENUE_TRADES.names, *sent])
