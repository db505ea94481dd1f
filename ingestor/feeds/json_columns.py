"""Reads a block of a venue's messages as columns, as the settings describe them, without a Python object per trade.

`Layout` says where a message has the values of a trade, and what is recorded of each. What pyarrow is told to expect is
learnt from some of the block's own frames, read strictly. Wherever a value might be read otherwise than by `json_map`,
frame by frame, nothing is read, and the block is cut into parts (`json_frames`).
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from decimal import ROUND_DOWN, Context, Decimal
from typing import Any, Literal, NamedTuple
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.compute as pc

from ingestor.config.feeds import JsonSettings
from ingestor.feeds import json_frames
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
            codes = [
                json_frames.take_text(as_text(code), reason) for code in (value if isinstance(value, list) else [value])
            ]
            if any(not code or "," in code for code in codes):
                raise json_frames.RefusedError(reason)
            return ",".join(codes)
        text = json_frames.take_text(as_text(value), reason)
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
            raise json_frames.RefusedError(reason)
        return int(value)
    return json_frames.take_integer(value, reason)


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
        elif not isinstance(value, json_frames.JsonObject):
            return None
        elif key in value.repeated:
            raise json_frames.RefusedError("repeated_key")
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
    return (
        json_frames.take_decimal(value, reason, json_frames.ANY_DECIMAL)
        if isinstance(value, str)
        else json_frames.take_number(value, reason)
    )


def milliseconds(value: Any, layout: Layout) -> int:
    """Since 1970; what is finer is cut off."""
    if layout.time_unit == "iso":
        try:
            time = datetime.fromisoformat(json_frames.take_text(value, "bad_time"))
            if time.tzinfo is None and layout.zone is None:  # nobody can tell when it was
                raise json_frames.RefusedError("no_time_zone")
            return ((time if time.tzinfo else time.replace(tzinfo=layout.zone)) - EPOCH) // MS
        except (ValueError, OverflowError):
            raise json_frames.RefusedError("bad_time") from None
    number = value if type(value) is int else take_amount(value, "bad_time")
    exact = Decimal(value) if isinstance(value, str) else Decimal(repr(number))
    whole = int(_CUTTING.divide(exact, PER_MS[layout.time_unit]))
    if not -(2**63) <= whole < 2**63:
        raise json_frames.RefusedError("bad_time")
    return whole


_SAMPLES = 8
_DECIMAL = r"\A[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,4})?\z"
_WHOLE = r"\A-?[0-9]{1,19}\z"
_ISO = r"\A(19[7-9]|20[0-9])[0-9]-[0-9]{2}-[0-9]{2}T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?Z\z"
_NS_PER_MS = 1_000_000
_DIVISORS = {"ms": 1, "us": 1000, "ns": _NS_PER_MS}
_KINDS = {"text": "text", "integer": "text", "number": "amount", "codes": "codes"}
_LIST = "_"
"""The key under which a message that is a list is read: pyarrow knows rows only as objects."""

Tree = dict[str, Any]
"""What is looked for in an object, by key: another Tree, or the kind of a value.

`amount`: a number or the text of one; `text`: text, or what is written like `true` and `7`; `codes`: these, or a list
of them; `never`: nothing, or the message may be no trade.
"""


class Unreadable(Exception):
    """What can't be read as columns, or might be read otherwise than strictly."""


class Block(NamedTuple):
    """The trades of some frames."""

    trades: pa.RecordBatch
    frame_of: pa.Array
    """int64, one a trade: the index of its frame."""


class ColumnReader:
    """Reads blocks of this layout. `answers`: the keys by which a message may be an answer, although it might hold
    trades, of each pattern.
    """

    def __init__(self, layout: Layout, answers: Iterable[Sequence[Path]]) -> None:
        self._layout = layout
        self._levels: list[list[tuple[Path, str]]] = [[] for _ in range(len(layout.items) + 1)]
        self._tree: Tree | None = None
        try:
            self._tree = self._plan(answers)
        except Unreadable:
            return

    @property
    def is_of_use(self) -> bool:
        """Whether any block of this layout can be read."""
        return self._tree is not None

    def _plan(self, answers: Iterable[Sequence[Path]]) -> Tree:
        """What is looked for, and where what is asked of a message is asked: behind so many keys to the trades."""
        layout, tree = self._layout, Tree()
        items = layout.items
        if layout.arrays or layout.by_symbol:
            raise Unreadable
        for keys, text in layout.match:
            level = 0
            while level < len(items) and len(keys) > 1 and keys[0] == items[level]:
                keys, level = keys[1:], level + 1  # noqa: PLW2901  it is what is left of them
            self._levels[level].append((keys, text))
            _want(tree, (*items[:level], *keys), "text")
        kinds = [
            (layout.symbol, "text"),
            (layout.price, "amount"),
            (layout.volume, "amount"),
            (layout.timestamp, "text"),
        ]
        for place, kind in (*kinds, *((column.place, _KINDS[column.type]) for column in layout.columns)):
            if place:
                _want(tree, place.path if place.in_message else (*items, *place.path), kind)
        for paths in () if layout.match else answers:
            unused = next((path[0] for path in paths if path[0] not in tree or tree[path[0]] == "never"), None)
            if unused is None:
                raise Unreadable
            _want(tree, (unused,), "never")
        return tree

    def read(
        self, payloads: list[bytes], received_us: Sequence[int], holds_trades: Callable[[Any], bool]
    ) -> Block | None:
        """The trades of these frames, which all begin with the same byte; None where they can't be read. Frames without
        trades are left out.
        """
        samples: list[Any] = []
        for payload in payloads[:: -(-len(payloads) // _SAMPLES)]:
            try:
                document = json_frames.read_json(payload)
                if holds_trades(document):
                    samples.append(document)
            except json_frames.RefusedError:
                continue
        try:
            return self._read(payloads, received_us, samples) if samples else None
        except (Unreadable, pa.ArrowException):
            return None

    def _read(self, payloads: list[bytes], received_us: Sequence[int], samples: list[Any]) -> Block:
        layout, tree = self._layout, self._tree
        as_lists = isinstance(samples[0], list)
        expected = _type_of(samples, tree, layout.items, whole=as_lists)
        if as_lists:
            table = json_frames.read_lists(payloads, pa.schema([pa.field(_LIST, expected)]), _LIST)
        else:
            table = json_frames.read_table(payloads, pa.schema(list(expected)))
        if table is None:
            raise Unreadable
        batch = table.combine_chunks().to_batches()[0]
        document = batch[_LIST] if as_lists else batch.to_struct_array()
        # The objects at the end of the path to the trades that say what they should, and the frame of each.
        found, frame_of = document, pa.arange(0, len(document))
        for level, asked in enumerate(self._levels):
            at_end = level == len(layout.items)
            if pa.types.is_list(found.type):
                frame_of = frame_of.take(pc.list_parent_indices(found))
                found = found.flatten()
                if at_end and found.null_count:  # each of them is a reject
                    raise Unreadable
            fitting = found.is_valid()
            for keys, text in asked:
                said = _as_texts(_extract(found, keys), payloads)
                fitting = pc.and_(fitting, pc.fill_null(pc.equal(said, text), fill_value=False))
            if not json_frames.no_false(fitting):
                found, frame_of = found.filter(fitting), frame_of.filter(fitting)
            if not at_end:
                found = _extract(found, layout.items[level : level + 1])
        columns = _Columns(document, found, frame_of, payloads)
        return Block(self._convert(columns, received_us), frame_of)

    def _convert(self, columns: "_Columns", received_us: Sequence[int]) -> pa.RecordBatch:
        layout = self._layout
        count = len(columns.item)
        conditions: Any = pa.nulls(count, pa.string())
        own = [columns.of(column) for column in layout.columns]
        if layout.columns and layout.columns[0].name == "conditions":
            conditions = own.pop(0)
        symbol, price = columns.at(layout.symbol), _as_doubles(columns.at(layout.price))
        if symbol.type != pa.string() or symbol.null_count or price.null_count:
            raise Unreadable
        time = (
            _as_ms(columns.at(layout.timestamp), layout.time_unit) if layout.timestamp else pa.nulls(count, pa.int64())
        )
        if time.null_count:
            received_ms = pa.array([one // 1000 for one in received_us], pa.int64())
            time = pc.coalesce(time, received_ms.take(columns.frame_of))
        volume = _as_doubles(columns.at(layout.volume)) if layout.volume else pa.nulls(count, pa.float64())
        arrays = [time.cast(layout.schema.types[0]), symbol, price, volume, conditions, *own]
        return pa.record_batch(arrays, schema=layout.schema)


def _want(tree: Tree, path: Path, kind: str) -> None:
    """Add a value to what is looked for. Raises Unreadable where it is looked for otherwise, or is in an array."""
    *above, last = path
    if any(key.isdecimal() for key in path):
        raise Unreadable
    for key in above:
        tree = tree.setdefault(key, Tree())
        if not isinstance(tree, dict):
            raise Unreadable
    if tree.setdefault(last, kind) != kind:
        raise Unreadable


def _type_of(values: Iterable[Any], tree: Tree | str | None, path: Path | None, *, whole: bool) -> pa.DataType:
    """What pyarrow is to expect where these stand; `path` leads on to the trades. `whole`: with all that nobody looks
    for.
    """
    values = [value for value in values if value is not None]
    kinds = {type(value) for value in values}
    if not kinds or tree == "never":
        if kinds:
            raise Unreadable
        return pa.struct([]) if isinstance(tree, dict) and not tree else pa.null()
    if kinds == {list} and (path is not None or tree in ("codes", None)):
        items = (item for value in values for item in value)
        return pa.list_(_type_of(items, "text" if tree == "codes" else tree, path, whole=whole))
    if kinds == {json_frames.JsonObject} and not isinstance(tree, str):
        wanted = tree or {}
        keys = dict.fromkeys([*wanted, *(key for value in values for key in value)] if whole else wanted)
        fields = []
        for key in keys:
            below = path[1:] if path and path[0] == key else None
            inner = _type_of((value.get(key) for value in values), wanted.get(key), below, whole=whole)
            fields.append(pa.field(key, inner))
        return pa.struct(fields)
    if kinds == {str} and not isinstance(tree, dict):
        return pa.string()
    if kinds <= {int, float} and (tree in ("amount", None)):
        return pa.float64()
    if tree in ("text", "codes", None) and kinds in ({int}, {bool}):
        return pa.int64() if kinds == {int} else pa.bool_()
    raise Unreadable


def _extract(objects: pa.Array, path: Path) -> pa.Array:
    """What stands at the end of the path in each of them, null where nothing does."""
    for key in path:
        if pa.types.is_null(objects.type):
            return objects
        if not pa.types.is_struct(objects.type):
            raise Unreadable
        objects = pc.struct_field(objects, [objects.type.get_field_index(key)])
    return objects


class _Columns:
    """The values of trades, each in `item` or beside it, in the message."""

    def __init__(self, document: pa.Array, item: pa.Array, frame_of: pa.Array, payloads: list[bytes]) -> None:
        self.item = item
        self.frame_of = frame_of
        self._document = document
        self._payloads = payloads

    def at(self, place: Place) -> pa.Array:
        """What stands there."""
        return (
            _extract(self._document, place.path).take(self.frame_of)
            if place.in_message
            else _extract(self.item, place.path)
        )

    def of(self, column: Column) -> pa.Array:
        """A column of the venue's own, as `Column.read` makes it."""
        values = self.at(column.place)
        if column.type == "number":
            return _as_doubles(values)
        if column.type == "integer":
            return _as_integers(values)
        if column.type == "codes":
            return _as_codes(values, self._payloads)
        texts = _as_texts(values, self._payloads)
        if column.values:
            said, recorded = (
                pa.array(list(one), pa.string()) for one in (column.values.keys(), column.values.values())
            )
            texts = pc.coalesce(recorded.take(pc.index_in(texts, value_set=said)), texts)
        return texts


def _as_texts(values: pa.Array, payloads: list[bytes]) -> pa.Array:
    """As the settings would write them: see `as_text`."""
    if pa.types.is_string(values.type):
        return values
    if pa.types.is_boolean(values.type):
        return pc.if_else(values, pa.scalar("true"), pa.scalar("false"))
    if pa.types.is_int64(values.type):
        # A zero may be written -0, which is no text.
        if pc.any(pc.equal(values, 0)).as_py() and any(b"-0" in payload for payload in payloads):
            raise Unreadable
        return values.cast(pa.string())
    if pa.types.is_null(values.type):
        return pa.nulls(len(values), pa.string())
    raise Unreadable


def _as_doubles(values: pa.Array) -> pa.Array:
    if pa.types.is_string(values.type):
        if not json_frames.no_false(pc.match_substring_regex(values, _DECIMAL)):
            raise Unreadable
        if pc.any(pc.starts_with(values, "+")).as_py():  # Arrow knows no such sign
            values = pc.utf8_ltrim(values, "+")
        values = values.cast(pa.float64())
    if pa.types.is_null(values.type):
        return pa.nulls(len(values), pa.float64())
    if not pa.types.is_float64(values.type) or not json_frames.no_false(pc.is_finite(values)):
        raise Unreadable
    return values


def _as_integers(values: pa.Array) -> pa.Array:
    if pa.types.is_string(values.type):
        if not json_frames.no_false(pc.match_substring_regex(values, _WHOLE)):
            raise Unreadable
        return values.cast(pa.int64())
    if pa.types.is_null(values.type):
        return pa.nulls(len(values), pa.int64())
    if not pa.types.is_int64(values.type):
        raise Unreadable
    return values


def _as_codes(values: pa.Array, payloads: list[bytes]) -> pa.Array:
    is_list = pa.types.is_list(values.type)
    if is_list and pa.types.is_null(values.type.value_type):  # all are empty
        return pc.if_else(values.is_valid(), pa.scalar(""), pa.scalar(None, pa.string()))
    codes = _as_texts(values.flatten() if is_list else values, payloads)
    if (is_list and codes.null_count) or not json_frames.no_false(
        pc.invert(pc.match_substring_regex(codes, r",|\A\z"))
    ):
        raise Unreadable
    return pc.binary_join(values.cast(pa.list_(pa.string())), ",") if is_list else codes


def _as_ms(values: pa.Array, unit: str) -> pa.Array:
    """In milliseconds; what is finer is cut off."""
    if unit == "iso":
        if pa.types.is_null(values.type):
            return pa.nulls(len(values), pa.int64())
        if not pa.types.is_string(values.type) or not json_frames.no_false(pc.match_substring_regex(values, _ISO)):
            raise Unreadable
        return pc.divide(values.cast(pa.timestamp("ns", "UTC")).cast(pa.int64()), _NS_PER_MS)
    whole = _as_integers(values)
    if unit == "s":
        return pc.multiply_checked(whole, 1000)
    if unit != "ms":  # towards zero, as whoever reads strictly cuts
        whole = pc.divide(whole, _DIVISORS[unit])
    return whole
