"""Truth file: every trade a venue sent, when and to whom, exactly, for captures to be compared with."""

import os
from collections.abc import Iterable
from pathlib import Path

BLOCK_LINES = 4096


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
