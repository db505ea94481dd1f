"""Facts of the ledger as lines of a file: their checksum, and the shape that those who read them rely on."""

import json
import zlib
from collections.abc import Callable
from datetime import date
from typing import Any

from ingestor.layout import SegmentId

Fact = dict[str, Any]
"""`at` (µs since 1970), `fact` (its name), its fields: the list is in `ledger`."""

DAMAGED = "line.damaged"
"""Stands in a reading for a line that the disk has changed: what it said is not known. `at` is the fact before it."""

STATE = "state.kept"
"""The one line of `state.json`, which is no fact of the ledger."""

_CRC = ',"crc":"%08x"}'
_CRC_LENGTH = len(_CRC % 0)
_LIMIT = 1 << 62

_read_json = json.JSONDecoder().raw_decode


def encode_line(fact: Fact) -> str:
    """A fact as a line with its checksum."""
    text = json.dumps(fact, separators=(",", ":"))[:-1]
    return f"{text}{_CRC % zlib.crc32(text.encode())}\n"


def decode_line(line: str, *, checked: bool = True) -> Fact | None:
    """The fact in a line, or None where there is none: cut, changed, or not of the shape of a fact.

    `checked`: it must carry its checksum, as all but those of format 1 do.
    """
    text = line.rstrip("\n")
    if checked:
        told, crc = text[:-_CRC_LENGTH], text[-_CRC_LENGTH:]
        if crc != _CRC % zlib.crc32(told.encode(errors="replace")):
            return None
        text = told + "}"
    try:
        fact, _ = _read_json(text)  # a third of what `json.loads` takes
    except (ValueError, RecursionError):
        return None
    return fact if isinstance(fact, dict) and is_sound(fact) else None


def is_sound(fact: Fact) -> bool:
    """Whether a fact holds what those who read it rely on. Facts of other names say nothing to them."""
    if not _is_text(fact.get("fact")) or not _is_whole(fact.get("at")):
        return False
    required = _REQUIRED.get(fact["fact"], ())
    return all(name in fact for name in required) and all(
        check(fact[name]) for name, check in _CHECKS.items() if name in fact
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -_LIMIT < value < _LIMIT


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _is_numbers(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_whole, value.values()))


def _is_place(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_whole, value))


def _parses(parse: Callable[[str], Any], value: Any) -> bool:
    try:
        return isinstance(value, str) and parse(value) is not None
    except ValueError:
        return False


def _is_date(value: Any) -> bool:
    return _parses(date.fromisoformat, value)


def _are_gaps(value: Any) -> bool:
    needed = {"gap", "cause", "since", "symbol"}
    return isinstance(value, list) and all(
        isinstance(gap, dict) and needed <= gap.keys() and all(_CHECKS[name](gap[name]) for name in needed)
        for gap in value
    )


def _are_asked(value: Any) -> bool:
    """Symbols (of a run that has ended), or what is asked for on each connection (of one that goes on)."""
    needed = {"connection": _is_whole, "since": _is_whole, "proven": _is_numbers, "unproven": _is_texts}
    return _is_texts(value) or (
        isinstance(value, list)
        and all(isinstance(one, dict) and all(check(one.get(name)) for name, check in needed.items()) for one in value)
    )


_CHECKS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("gap", "cause", "sink"), _is_text),
    **dict.fromkeys(
        ("run", "format", "first_segment", "closed", "connection", "since", "until", "by_us", "base", "ended", "rows",
         "first_received", "last_received", "aside", "began", "heard", "slept_us"),
        _is_whole,
    ),
    **dict.fromkeys(("tickers", "formats", "columns", "requested"), _is_texts),
    **dict.fromkeys(("counts", "reasons", "repeated"), _is_numbers),
    **dict.fromkeys(("from", "to"), _is_place),
    "symbol": lambda value: value is None or _is_text(value),
    "symbols": lambda value: value is None or _is_texts(value) or _is_numbers(value),
    **dict.fromkeys(("unconnected", "doubted"), lambda value: value is None or _is_whole(value)),
    "segment": lambda value: _is_whole(value) or _parses(SegmentId.parse, value),
    "dates": lambda value: _is_numbers(value) and all(map(_is_date, value)),
    "date": _is_date,
    "open_gaps": _are_gaps,
    "asked": _are_asked,
}  # fmt: skip
"""What a field must be, wherever it stands."""

_REQUIRED: dict[str, tuple[str, ...]] = {
    "run.started": ("open_gaps",),
    "day.started": ("run", "open_gaps", "asked", "requested", "unconnected", "segment", "closed", "last_received"),
    "symbols.requested": ("connection", "symbols"),
    "symbols.proven": ("connection", "base", "symbols"),
    "symbol.proven": ("connection", "symbol", "since"),
    "symbol.dropped": ("symbol",),
    "gap.opened": ("gap", "cause", "since", "symbol"),
    "gap.closed": ("gap", "until", "symbol"),
    "clock.stepped": ("by_us",),
    "clock.doubted": ("since",),
    "segment.closed": ("segment", "first_received", "last_received", "counts", "reasons", "aside"),
    "segment.sealed": ("segment", "dates"),
    "day.deleted": ("date",),
    "sink.skipped": ("sink", "rows", "from", "to"),
}
"""What a fact must hold, of the fields that somebody reads."""
