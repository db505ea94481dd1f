"""Refused frames and trades, kept with their reason and their text, so that nothing the venue sent goes unexplained."""

import hashlib
import json
import os
from datetime import UTC, date, datetime

import structlog

from ingestor.capture.refused import Refused
from ingestor.layout import Layout, open_own, sync_directory

_TEXT_MAX = 64 << 10

log = structlog.get_logger()


class Rejects:
    """Appends to `rejects/date=….jsonl`, a line each. Beyond `max_bytes_per_day` the text is no longer kept."""

    def __init__(self, layout: Layout, run: int, max_bytes_per_day: int) -> None:
        self._layout = layout
        self._run = run
        self._max_bytes = max_bytes_per_day
        self._day: date | None = None
        self._fd = -1
        self._dirty = False
        self.truncated_on: date | None = None
        """The day on which texts are no longer kept."""

    def write(self, refused: list[Refused]) -> None:
        """Append these lines, all or none. Raises OSError."""
        day = datetime.fromtimestamp(refused[0].received_us / 1e6, UTC).date()
        if day != self._day:
            self._open(day)
        size = os.fstat(self._fd).st_size
        keep_text = size < self._max_bytes
        if not keep_text and self.truncated_on != day:
            self.truncated_on = day
            log.error("rejects.flooded", date=day.isoformat(), limit=self._max_bytes)
        lines = "".join(self._format(one, keep_text=keep_text) for one in refused).encode()
        try:
            if os.write(self._fd, lines) < len(lines):
                raise OSError("the disk took only a part")
        except OSError:
            self._cut_back(size)
            raise
        self._dirty = True

    def _cut_back(self, size: int) -> None:
        """A part of a line must not swallow the next one: where it can't be cut off, the next open ends it."""
        try:
            os.ftruncate(self._fd, size)
        except OSError:
            self._day = None
            raise

    def sync(self) -> None:
        """Make the lines survive a power cut. Raises OSError."""
        if self._dirty:
            os.fdatasync(self._fd)
            self._dirty = False

    def close(self) -> None:
        """Raises OSError where the disk refuses the last lines; the file is closed even so."""
        if self._fd < 0:
            return
        fd, self._fd, self._day = self._fd, -1, None
        try:
            if self._dirty:
                os.fdatasync(fd)
        finally:
            self._dirty = False
            os.close(fd)

    def _open(self, day: date) -> None:
        self.close()
        path = self._layout.rejects_file(day)
        self._fd = open_own(path, os.O_RDWR | os.O_APPEND)
        sync_directory(path.parent)
        _end_last_line(self._fd)
        self._day = day

    def _format(self, refused: Refused, *, keep_text: bool) -> str:
        line = {
            "run": self._run,
            "frame": refused.frame,
            "trade": refused.trade,
            "reason": refused.reason,
            "received_at": refused.received_us,
            "length": len(refused.payload),
            "sha256": hashlib.sha256(refused.payload).hexdigest(),
        }
        if keep_text:
            # Latin-1 gives every byte a character, so that the text can be turned back into the very bytes that came.
            line["text"] = refused.payload[:_TEXT_MAX].decode("latin-1")
        return json.dumps(line, separators=(",", ":")) + "\n"


def _end_last_line(fd: int) -> None:
    """A line that a crash cut must not swallow the next one."""
    size = os.fstat(fd).st_size
    if size and os.pread(fd, 1, size - 1) != b"\n":
        os.write(fd, b"\n")
