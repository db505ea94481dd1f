"""Escapes hostile text, and reads and writes durations and sizes as a person does: `15m`, `64MB`.

A venue's text is data: no command for a terminal, no change of direction, no invisible character passes.
"""

import json
import re
from decimal import Decimal

_FILLERS = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U0001d159\U000e0100-\U000e01ef]"
)
"""Letters and marks to Unicode, and invisible: fillers, a blank of Braille, selectors of variants."""


def is_visible(text: str) -> bool:
    """Whether each of its characters, but for the blank, shows: none of Unicode's categories C and Z (controls, formats
    such as zero width and directions, line ends, other blanks, what is no character), and no filler.
    """
    return text.isprintable() and (text.isascii() or not _FILLERS.search(text))


def escape(text: str, *, keep: str = "") -> str:
    r"""The text with each character that doesn't show, but for those in `keep`, as its escape: `\x1b`, `\u202e`."""
    if is_visible(text):
        return text
    return "".join(one if one in keep or is_visible(one) else one.encode("unicode_escape").decode() for one in text)


def escape_json(text: str) -> str:
    r"""JSON whose strings say the same, with JSON's own escapes (`\u202e`) for what doesn't show."""
    if is_visible(text):
        return text
    return "".join(
        one if one == "\n" or is_visible(one) else json.dumps(one)[1:-1].replace("\x7f", "\\u007f") for one in text
    )


# States

CAUSES = {
    "connection": "no connection",
    "stall": "connection stalled",
    "symbol_mute": "symbol silent",
    "refused": "refused by the venue",
    "restart": "restarting",
    "crash": "recorder crashed",
    "backpressure": "recorder too slow",
    "disk": "disk refused",
    "shutdown": "recorder stopped",
    "lost": "trades never came",
    "sleep": "computer slept",
    "clock": "clock set",
    "no_recorder": "no recorder runs",
    "no_redis": "no Redis",
}
"""Causes of blindness, in the words in which every command, page and message shows them."""


def describe_blindness(cause: str | None) -> str:
    """`blind (no connection)`."""
    return f"blind ({CAUSES.get(cause, cause)})" if cause else "blind"


# Durations and sizes

_SECONDS = {
    "ms": Decimal("0.001"),
    "s": Decimal(1),
    "m": Decimal(60),
    "h": Decimal(3600),
    "d": Decimal(86400),
}
_BYTES = {"B": 1, "KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30, "TB": 1 << 40}
DURATION = re.compile(r"(\d{1,12}(?:\.\d{1,6})?) ?(ms|s|m|h|d)", re.ASCII)
SIZE = re.compile(r"(\d{1,12}(?:\.\d{1,6})?) ?(B|KB|MB|GB|TB)", re.ASCII)


def parse_duration(value: object) -> float:
    """Seconds from `250ms`, `20s`, `15m`, `2h` or `365d`. Raises ValueError with a sentence."""
    text = str(value).strip()
    if match := DURATION.fullmatch(text):
        return float(Decimal(match[1]) * _SECONDS[match[2]])
    if re.fullmatch(r"\d+(\.\d+)?", text, re.ASCII):
        raise ValueError(f"`{text}` has no unit: write {text}s, {text}m or {text}ms")
    raise ValueError(f"`{text}` is no duration: write it like 250ms, 20s, 15m, 2h or 365d")


def parse_size(value: object) -> int:
    """Bytes from `512KB`, `64MB` or `2GB` (powers of 1024 as operators expect of buffers: 1 MB = 1,048,576).
    Raises ValueError with a sentence.
    """
    text = str(value).strip()
    if match := SIZE.fullmatch(text):
        return int(Decimal(match[1]) * _BYTES[match[2]])
    if re.fullmatch(r"\d+(\.\d+)?", text, re.ASCII):
        raise ValueError(f"`{text}` has no unit: write {text}MB or {text}B")
    raise ValueError(f"`{text}` is no size: write it like 512KB, 64MB or 2GB")


def format_duration(seconds: float) -> str:
    """As `parse_duration` reads it, in the largest unit that needs no fraction: 900.0 is `15m`."""
    exact = Decimal(repr(round(seconds, 6)))
    unit = next((unit for unit in ("d", "h", "m", "s") if exact and exact % _SECONDS[unit] == 0), "ms")
    return f"{(exact / _SECONDS[unit]).normalize():f}{unit}" if exact else "0s"


def format_size(size: int) -> str:
    """As `parse_size` reads it, in the largest unit that needs no fraction: 67,108,864 is `64MB`."""
    unit = next((unit for unit in ("TB", "GB", "MB", "KB") if size and size % _BYTES[unit] == 0), "B")
    return f"{size // _BYTES[unit]}{unit}"
