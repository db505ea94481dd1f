"""Where a venue's messages have the values of a trade, as the settings say it, and what is recorded of each value."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from decimal import ROUND_DOWN, Context, Decimal
from typing import Any, Literal, NamedTuple
from zoneinfo import ZoneInfo

import pyarrow as pa

from ingestor.config.feeds import JsonSettings
from ingestor.feeds.json_frames import (
    ANY_DECIMAL,
    JsonObject,
    RefusedError,
    take_decimal,
    take_integer,
    take_number,
    take_text,
)
from ingestor.schema import VENUE_TRADES

Path = tuple[str, ...]
"""The keys to a value, from the outside to the inside; in an array a key is a number."""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MS = timedelta(milliseconds=1)
PER_MS = {"s": Decimal("0.001"), "ms": Decimal(1), "us": Decimal(1000), "ns": Decimal(1_000_000)}
_CUTTING = Context(prec=40, rounding=ROUND_DOWN)
"""What is finer than a millisecond is cut off, however finely it is written."""
_DIGITS = re.compile(r"-?[0-9]{1,19}", re.ASCII)
TimeUnit = Literal["s", "ms", "us", "ns", "iso"]
_WORDS = frozenset(
    """
    amount channel code count data error event high id last low message msg offset open op p price q qty quantity s seq
    sequence sequence_number server_time size status symbol t time timestamp ts type v version volume
    """.split()  # noqa: SIM905  as a list the formatter makes it a page
)
"""No key of a map is one of these: `{"seq": 17}` says nothing of a symbol."""


class Place(NamedTuple):
    """Where a value stands: in the trade, or in the message beside it. Nowhere, with an empty path."""

    path: Path
    in_message: bool

    def __bool__(self) -> bool:
        return bool(self.path)


_TYPES = {"text": pa.string(), "integer": pa.int64(), "number": pa.float64(), "codes": pa.string()}


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the venue's own."""

    name: str
    place: Place
    type: Literal["text", "integer", "number", "codes"]
    values: Mapping[str, str]

    def read(self, value: Any) -> Any:
        """What is recorded of it. Raises RefusedError."""
        reason = f"bad_{self.name}"
        if value is None:
            return None
        if self.type == "number":
            return take_amount(value, reason)
        if self.type == "integer":
            return _whole(value, reason)
        if self.type == "codes":
            return _codes(value, reason)
        text = take_text(as_text(value), reason)
        return self.values.get(text, text)

    def write(self, value: Any) -> Any:
        """The same backwards."""
        if self.type == "codes" and value is not None:
            return value.split(",") if value else []
        if self.type == "text":
            return {recorded: said for said, recorded in self.values.items()}.get(value, value)
        return value


def _whole(value: Any, reason: str) -> int:
    """A whole number that int64 holds, or the digits of one."""
    if isinstance(value, str):
        if not _DIGITS.fullmatch(value) or not -(2**63) <= int(value) < 2**63:
            raise RefusedError(reason)
        return int(value)
    return take_integer(value, reason)


def _codes(value: Any, reason: str) -> str:
    """The codes of a list, joined by commas."""
    codes = [take_text(as_text(code), reason) for code in (value if isinstance(value, list) else [value])]
    if any(not code or "," in code for code in codes):
        raise RefusedError(reason)
    return ",".join(codes)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where things stand."""

    symbol: Place
    price: Place
    volume: Place
    timestamp: Place
    items: Path
    listed: frozenset[Path]
    """The paths that the settings call lists, by `[]`; it matters to who writes a message alone."""
    match: tuple[tuple[Path, str], ...]
    arrays: bool
    """A trade is an array."""
    by_symbol: bool
    reserved: frozenset[str]
    """No key of a map."""
    time_unit: TimeUnit
    zone: tzinfo | None
    """Of times that name none."""
    columns: tuple["Column", ...]
    """In the order of the schema."""
    schema: pa.Schema

    @classmethod
    def of(cls, settings: JsonSettings) -> "Layout":
        fields = settings.fields
        symbol, price, volume, timestamp = places = [
            to_place(one) for one in (fields.symbol, fields.price, fields.volume, fields.timestamp)
        ]
        paths = [settings.items or "", *settings.match]
        items, *matched = map(to_path, paths)
        columns = [Column(name, to_place(one.source), one.type, one.values) for name, one in settings.columns.items()]
        columns.sort(key=lambda column: column.name != "conditions")  # that one every recording has
        return cls(
            symbol=symbol,
            price=price,
            volume=volume,
            timestamp=timestamp,
            items=items,
            listed=frozenset(
                to_path(".".join(keys[: at + 1]))
                for keys in (text.split(".") for text in paths)
                for at, key in enumerate(keys)
                if key.endswith("[]")
            ),
            match=tuple(zip(matched, settings.match.values(), strict=True)),
            arrays=any(place.path[0].isdecimal() for place in places if place and not place.in_message),
            columns=tuple(columns),
            schema=pa.schema(
                [
                    *VENUE_TRADES,
                    *(pa.field(one.name, _TYPES[one.type]) for one in columns if one.name != "conditions"),
                ]
            ),
            by_symbol=settings.prices_by_symbol,
            reserved=_WORDS.union(items, *matched, *(one.path for one in places), *(one.place.path for one in columns)),
            time_unit=settings.time_unit,
            zone=ZoneInfo(settings.time_zone) if settings.time_zone else None,
        )


def to_place(text: str | None) -> Place:
    return Place(to_path(text.removeprefix("$.")), text.startswith("$.")) if text else Place((), in_message=False)


def to_path(text: str) -> Path:
    return tuple(key.removesuffix("[]") for key in text.split(".")) if text else ()


def find(value: Any, path: Path) -> Any:
    """What stands at the end of the path, None where nothing does. Raises RefusedError: `repeated_key`."""
    for key in path:
        if isinstance(value, list):
            value = value[int(key)] if key.isdecimal() and len(key) < 10 and int(key) < len(value) else None
        elif not isinstance(value, JsonObject):
            return None
        elif key in value.repeated:
            raise RefusedError("repeated_key")
        else:
            value = value.get(key)
    return value


def as_text(value: Any) -> str | None:
    """A value as the settings would write it."""
    if isinstance(value, str):
        return value
    return json.dumps(value) if isinstance(value, bool | int) else None


def take_amount(value: Any, reason: str) -> float:
    """A number, or the text of one."""
    return take_decimal(value, reason, ANY_DECIMAL) if isinstance(value, str) else take_number(value, reason)


def milliseconds(value: Any, layout: Layout) -> int:
    """Since 1970; what is finer is cut off."""
    if layout.time_unit == "iso":
        try:
            time = datetime.fromisoformat(take_text(value, "bad_time"))
            if time.tzinfo is None and layout.zone is None:  # nobody can tell when it was
                raise RefusedError("no_time_zone")
            return ((time if time.tzinfo else time.replace(tzinfo=layout.zone)) - EPOCH) // MS
        except (ValueError, OverflowError):
            raise RefusedError("bad_time") from None
    number = value if type(value) is int else take_amount(value, "bad_time")
    exact = Decimal(value) if isinstance(value, str) else Decimal(repr(number))
    whole = int(_CUTTING.divide(exact, PER_MS[layout.time_unit]))
    if not -(2**63) <= whole < 2**63:
        raise RefusedError("bad_time")
    return whole
