"""Output of commands: one table, one JSON, and each kind of value in one way.

What is measured is written for people, `4.2 s`, `73.3 GB`; what is set is written as the settings read it, `15m`,
`1GB`. Times are ISO 8601 with their zone, `Z` where that is UTC. Shares are percentages in tables, 0 to 1 in JSON.
"""

import json
import math
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from datetime import datetime, tzinfo
from decimal import Decimal
from typing import Any

from ingestor.texts import escape, escape_json

_LONG = 24
"""No column is left out for the sake of texts that are longer."""
_SHORTEST = 12
"""Of a column whose texts are cut."""
_TIME = re.compile(r"\d{4}-\d\d-\d\d")
_UNITS = (("TB", 40), ("GB", 30), ("MB", 20), ("KB", 10))


def format_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Aligned plain text: columns of numbers to the right, all else to the left; None is an empty cell."""

    def is_number(value: object) -> bool:
        return isinstance(value, int | float | Decimal) and not isinstance(value, bool)

    def cell_text(value: object) -> str:
        if value is None:
            return ""
        if isinstance(value, float):
            return format_number(value)
        return f"{value:,}" if is_number(value) else escape(str(value))

    cells = [list(row) for row in rows]
    columnwise = [[row[at] for row in cells if row[at] is not None] for at in range(len(columns))]
    numeric = [all(map(is_number, values)) and bool(cells) for values in columnwise]
    lines = [list(columns), *([cell_text(value) for value in row] for row in cells)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(columns))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in lines
    )


def fit_table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], spare: Sequence[str], width: int | None
) -> tuple[str, list[str]]:
    """The table within this width (None: any), and the columns that were left out for it: of `spare`, from the one that
    is missed least. Where that is not enough, the longest texts are cut; such a column is `NAME in full`.
    """
    body = [list(row) for row in rows]
    if width is None:
        return format_table(columns, body), []
    wide = {
        name: max(map(len, format_table([name], ([row[at]] for row in body)).splitlines()))
        for at, name in enumerate(columns)
    }
    texts = {
        name
        for at, name in enumerate(columns)
        if any(isinstance(cell := row[at], str) and not _TIME.match(cell) for row in body)
    }
    least = {name: min(size, _LONG) if name in texts else size for name, size in wide.items()}
    kept = {name for name in columns if name not in spare}
    for name in reversed([one for one in spare if one in wide]):
        if sum(least[one] + 2 for one in {*kept, name}) - 2 <= width:
            kept.add(name)
    # How wide each column may be so that all of them fit: the widest of texts give way. Numbers and times don't.
    caps = {name: wide[name] for name in columns if name in kept}
    excess = sum(caps.values()) + 2 * (len(caps) - 1) - width
    yielding = sorted(texts & kept)
    while excess > 0 and yielding and caps[widest := max(yielding, key=lambda name: caps[name])] > _SHORTEST:
        caps[widest] -= 1
        excess -= 1
    places = [at for at, name in enumerate(columns) if name in kept]
    shown = ([_cut(row[at], caps[columns[at]]) for at in places] for row in body)
    text = format_table([columns[at] for at in places], shown)
    cut = [f"{name} in full" for name in caps if caps[name] < wide[name]]
    return text, cut + [name for name in columns if name not in kept]


def _cut(cell: object, cap: int) -> object:
    """`BINANCE:BTCUSDT` as `BINAN…CUSDT`, where it may be only so long."""
    if not isinstance(cell, str) or len(cell) <= cap:
        return cell
    return f"{cell[: cap // 2]}…{cell[-((cap - 1) // 2) :]}"


def wrap_text(head: str, text: str) -> str:
    """A line, or in a terminal as many as it takes, the others below where the text begins."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    return textwrap.fill(
        text, width, initial_indent=head, subsequent_indent=" " * len(head), break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip


def format_json(value: object, indent: int | None = 2) -> str:
    """JSON as UTF-8 text, in which what doesn't show is escaped; a time as `format_time` writes it, whatever else JSON
    doesn't know as its text.
    """
    return escape_json(json.dumps(value, indent=indent, ensure_ascii=False, default=_as_json))


def format_address(url: str, *, as_json: bool) -> str:
    """The one line of a command that listens."""
    return format_json({"url": url}, indent=None) if as_json else f"listening on {url}"


def format_time(at: datetime, zone: tzinfo | None = None, timespec: str = "milliseconds") -> str:
    """`2026-11-20T14:30:00.123Z`, in `zone`, or in its own."""
    return at.astimezone(zone or at.tzinfo).isoformat(timespec=timespec).replace("+00:00", "Z")


def format_trade(trade: dict[str, Any], zone: tzinfo) -> dict[str, Any]:
    """A trade for JSON: its times to the digit that is recorded, in this zone."""
    times = {"timestamp": "milliseconds", "received_at": "microseconds"}
    return trade | {name: format_time(trade[name], zone, timespec) for name, timespec in times.items()}


def format_number(value: float) -> str:
    """`97,000.18`, `0.00000123`, `3,987`: all of its digits, and no exponent."""
    if not math.isfinite(value):
        return str(value)
    text = f"{Decimal(repr(value)):,f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def format_seconds(seconds: float) -> str:
    """`250 ms`, `4.2 s`, `45 s`, `12 min`, `3.4 h`, `12 d`."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    for unit, size, below in (("s", 1, 120), ("min", 60, 7200), ("h", 3600, 172_800)):
        if seconds < below:
            value = seconds / size
            return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"


def format_bytes(size: float) -> str:
    """`612 B`, `1.5 KB`, `73.3 GB`; 1 KB is 1024 bytes, as in the settings."""
    for unit, bits in _UNITS:
        if size >= 1 << bits:
            return f"{size / (1 << bits):,.1f} {unit}"
    return f"{size:.0f} B"


def percent(share: float | None) -> Decimal | None:
    """For a table: 0.46832 is 46.83; cut and not rounded, so that 100.00 means all of it."""
    return None if share is None else (Decimal(math.floor(share * 1e4)) / 100).quantize(Decimal("0.01"))


def to_milliseconds(seconds: float) -> Decimal:
    """For a table: 4.2485 is 4.249."""
    return Decimal(seconds).quantize(Decimal("0.001"))


def _as_json(value: object) -> str:
    return format_time(value, timespec="auto") if isinstance(value, datetime) else str(value)
