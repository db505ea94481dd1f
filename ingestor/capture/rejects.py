"""Rejects: refused frames and trades, with their reason, as lines per date, bounded."""

import hashlib
import json
import os
import re
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, date, datetime

import structlog

from ingestor import system
from ingestor.feeds import Decoded, Frames
from ingestor.layout import Layout, open_own, sync_directory
from ingestor.logs import redactor_in_force
from ingestor.texts import escape

log = structlog.get_logger()

_LOOKED_AT = 4096
_SAMPLE_CHARACTERS = 200

_TEXT_MAX = 64 << 10
_SUMMARY_BYTES = 255


@dataclass(frozen=True, slots=True)
class Refused:
    """A frame, or a trade of it, that is not recorded. `frame` counts this run's frames: with `trade` it is the key."""

    frame: int
    trade: int | None
    reason: str
    received_us: int
    payload: bytes


def make_sample(payload: bytes) -> str:
    r"""What a log and `status` may show of a message: its beginning, on one line, without secrets, however they are
    written (`\u0073ecret`).
    """
    text = payload[:_LOOKED_AT].decode(errors="replace")
    text = re.sub(r"\\u([0-9a-fA-F]{4})", lambda match: chr(int(match[1], 16)), text)
    shown = escape(redactor_in_force()(text))
    if len(payload) <= _LOOKED_AT and len(shown) <= _SAMPLE_CHARACTERS:
        return shown
    return f"{shown[:_SAMPLE_CHARACTERS]}… ({len(payload):,} bytes)"


def find_refused(frames: Frames, decoded: Decoded, rejected: list[tuple[int, str]], first_frame: int) -> list[Refused]:
    """All that is refused of these frames, which the run counts from `first_frame` on.

    `rejected`: row and reason of the decoded trades that were found not sane.
    """
    found = [(one.frame, one.trade, one.reason) for one in decoded.rejects]
    if rejected:
        # Where each decoded trade stands: its frame in the block, and its place among all trades of that frame.
        taken = {(one.frame, one.trade) for one in decoded.rejects}
        places: list[tuple[int, int]] = []
        for frame in decoded.frame_of.to_pylist():
            trade = places[-1][1] + 1 if places and places[-1][0] == frame else 0
            while (frame, trade) in taken:
                trade += 1
            places.append((frame, trade))
        found += [(*places[row], reason) for row, reason in rejected]
    return [
        Refused(first_frame + at, trade, reason, frames.received_us[at], frames.payloads[at])
        for at, trade, reason in found
    ]


@dataclass(frozen=True, slots=True)
class _LeftOut:
    """What of one reason was only counted, since a file was opened."""

    count: int
    last: int
    """Of these, how many came with the last call: a crash may have come before their record."""
    newest: Refused

    def format(self, run: int) -> bytes:
        """A line that is as long whatever it counts, so that the next one can take its place."""
        line = {
            "run": run,
            "frame": self.newest.frame,
            "trade": None,
            "reason": self.newest.reason,
            "received_at": self.newest.received_us,
            "left_out": self.count,
            "left_out_last": self.last,
        }
        return json.dumps(line, separators=(",", ":")).encode().ljust(_SUMMARY_BYTES) + b"\n"


class Rejects:
    """Appends to `rejects/date=….jsonl`, a line each. Beyond `max_bytes_per_day` they are only counted, in a line per
    reason at the end of the file, which is written over.
    """

    def __init__(self, layout: Layout, run: int, max_bytes_per_day: int) -> None:
        self._layout = layout
        self._run = run
        self._max_bytes = max_bytes_per_day
        self._day: date | None = None
        self._fd = -1
        self._dirty = False
        self._size = 0
        """Of the lines in the open file that stay as they are: behind them is what was only counted."""
        self._left_out: dict[str, _LeftOut] = {}
        """By reason."""
        self.truncated_on: date | None = None
        """The day on which rejects are only counted."""

    def write(self, refused: list[Refused]) -> None:
        """Append these lines, all or none. Raises OSError."""
        day = datetime.fromtimestamp(refused[0].received_us / 1e6, UTC).date()
        if day != self._day:
            self._open(day)
        if self._size < self._max_bytes:
            lines = "".join(map(self._format, refused)).encode()
            self._put(lines)
            self._size += len(lines)
            return
        if self.truncated_on != day:
            self.truncated_on = day
            log.error("rejects.flooded", date=day.isoformat(), limit=self._max_bytes)
        newest = {one.reason: one for one in refused}
        left_out = dict(self._left_out)  # ours once it is written
        for reason, count in Counter(one.reason for one in refused).items():
            before = left_out[reason].count if reason in left_out else 0
            left_out[reason] = _LeftOut(before + count, count, newest[reason])
        self._put(b"".join(one.format(self._run) for one in left_out.values()))
        self._left_out = left_out

    def _put(self, lines: bytes) -> None:
        """Behind the lines that stay."""
        try:
            if os.pwrite(self._fd, lines, self._size) < len(lines):
                raise OSError("the disk took only a part")
        except OSError:
            # A part of a line must not swallow the next one: where it can't be cut off, the next open ends it. A line
            # of what is left out stands there, or will when the disk takes it again.
            if not self._left_out:
                try:
                    os.ftruncate(self._fd, self._size)
                except OSError:
                    self._day = None
                    raise
            raise
        self._dirty = True

    def sync(self) -> None:
        """Make the lines survive a power cut. Raises OSError."""
        if self._dirty:
            system.sync_data(self._fd)
            self._dirty = False

    def close(self) -> None:
        """Raises OSError where the disk refuses the last lines; the file is closed even so."""
        if self._fd < 0:
            return
        fd, self._fd, self._day = self._fd, -1, None
        try:
            if self._dirty:
                system.sync_data(fd)
        finally:
            self._dirty = False
            os.close(fd)

    def _open(self, day: date) -> None:
        self.close()
        path = self._layout.rejects_file(day)
        self._fd = open_own(path, os.O_RDWR)
        sync_directory(path.parent)
        self._size = os.fstat(self._fd).st_size
        # A line that a crash cut must not swallow the next one.
        if self._size and system.pread(self._fd, 1, self._size - 1) != b"\n":
            self._size += os.pwrite(self._fd, b"\n", self._size)
        self._left_out = {}
        self._day = day

    def _format(self, refused: Refused) -> str:
        line = {
            "run": self._run,
            "frame": refused.frame,
            "trade": refused.trade,
            "reason": refused.reason,
            "received_at": refused.received_us,
            "length": len(refused.payload),
            "sha256": hashlib.sha256(refused.payload).hexdigest(),
        }
        # Latin-1 gives every byte a character, so that the text can be turned back into the very bytes that came.
        line["text"] = refused.payload[:_TEXT_MAX].decode("latin-1")
        return json.dumps(line, separators=(",", ":")) + "\n"
