"""Durations and sizes, as a person writes them: `15m`, `64MB`."""

import re
from collections.abc import Callable
from decimal import Decimal
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BeforeValidator, PlainSerializer, WithJsonSchema

_SECONDS = {
    "ms": Decimal("0.001"),
    "s": Decimal(1),
    "m": Decimal(60),
    "h": Decimal(3600),
    "d": Decimal(86400),
}
_BYTES = {"B": 1, "KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30, "TB": 1 << 40}
_DURATION = re.compile(r"(\d{1,12}(?:\.\d{1,6})?) ?(ms|s|m|h|d)", re.ASCII)
_SIZE = re.compile(r"(\d{1,12}(?:\.\d{1,6})?) ?(B|KB|MB|GB|TB)", re.ASCII)

_Number = TypeVar("_Number", int, float)


def parse_duration(value: object) -> float:
    """Seconds from `250ms`, `20s`, `15m`, `2h` or `365d`. Raises ValueError with a sentence."""
    text = str(value).strip()
    if match := _DURATION.fullmatch(text):
        return float(Decimal(match[1]) * _SECONDS[match[2]])
    if re.fullmatch(r"\d+(\.\d+)?", text, re.ASCII):
        raise ValueError(f"`{text}` has no unit: write {text}s or {text}ms")
    raise ValueError(f"`{text}` is no duration: write it like 250ms, 20s, 15m, 2h or 365d")


def parse_size(value: object) -> int:
    """Bytes from `512KB`, `64MB` or `2GB` (powers of 1024 as operators expect of buffers: 1 MB = 1,048,576).
    Raises ValueError with a sentence.
    """
    text = str(value).strip()
    if match := _SIZE.fullmatch(text):
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


def _seconds(value: object) -> object:
    """YAML gives text and is parsed; a Python caller's number is seconds already."""
    return parse_duration(value) if isinstance(value, str) else value


def _bytes(value: object) -> object:
    return parse_size(value) if isinstance(value, str) else value


Duration = Annotated[
    float,
    BeforeValidator(_seconds),
    PlainSerializer(format_duration, return_type=str),
    WithJsonSchema({"type": "string", "pattern": f"^{_DURATION.pattern}$", "examples": ["250ms", "20s", "15m"]}),
]
Size = Annotated[
    int,
    BeforeValidator(_bytes),
    PlainSerializer(format_size, return_type=str),
    WithJsonSchema({"type": "string", "pattern": f"^{_SIZE.pattern}$", "examples": ["512KB", "64MB", "2GB"]}),
]


def lasting(low: str, high: str) -> AfterValidator:
    """A duration from `low` to `high`, both included."""
    return AfterValidator(_between(low, high, parse_duration))


def holding(low: str, high: str) -> AfterValidator:
    """A size from `low` to `high`, both included."""
    return AfterValidator(_between(low, high, parse_size))


def _between(low: str, high: str, parse: Callable[[object], float]) -> Callable[[_Number], _Number]:
    def check(value: _Number) -> _Number:
        if not parse(low) <= value <= parse(high):
            raise ValueError(f"must be from {low} to {high}")
        return value

    return check
