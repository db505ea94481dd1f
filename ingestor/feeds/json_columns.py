"""Reads a block of a venue's messages as columns, as the settings describe them, without a Python object per trade.

What pyarrow is told to expect is learnt from some of the block's own frames, read strictly. Wherever a value might be
read otherwise than by `json_map`, frame by frame, nothing is read, and the block is cut into parts (`json_frames`).
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from ingestor.feeds.json_frames import JsonObject, RefusedError, no_false, read_json, read_lists, read_table
from ingestor.feeds.json_layout import Column, Layout, Path, Place

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
        try:
            samples = self._take_samples(payloads, holds_trades)
            return self._read(payloads, received_us, samples) if samples else None
        except (Unreadable, pa.ArrowException):
            return None

    def _take_samples(self, payloads: list[bytes], holds_trades: Callable[[Any], bool]) -> list[Any]:
        samples = []
        for payload in payloads[:: -(-len(payloads) // _SAMPLES)]:
            try:
                document = read_json(payload)
                if holds_trades(document):
                    samples.append(document)
            except RefusedError:
                continue
        return samples

    def _read(self, payloads: list[bytes], received_us: Sequence[int], samples: list[Any]) -> Block:
        layout, tree = self._layout, self._tree
        as_lists = isinstance(samples[0], list)
        expected = _type_of(samples, tree, layout.items, whole=as_lists)
        if as_lists:
            table = read_lists(payloads, pa.schema([pa.field(_LIST, expected)]), _LIST)
        else:
            table = read_table(payloads, pa.schema(list(expected)))
        if table is None:
            raise Unreadable
        batch = table.combine_chunks().to_batches()[0]
        document = batch[_LIST] if as_lists else batch.to_struct_array()
        item, frame_of = self._find_trades(document, payloads)
        columns = _Columns(document, item, frame_of, payloads)
        return Block(self._convert(columns, received_us), frame_of)

    def _find_trades(self, document: pa.Array, payloads: list[bytes]) -> tuple[pa.Array, pa.Array]:
        """The objects at the end of the path to the trades that say what they should, and the frame of each."""
        found, frame_of = document, pa.arange(0, len(document))
        for level, asked in enumerate(self._levels):
            at_end = level == len(self._layout.items)
            if pa.types.is_list(found.type):
                frame_of = frame_of.take(pc.list_parent_indices(found))
                found = found.flatten()
                if at_end and found.null_count:  # each of them is a reject
                    raise Unreadable
            fitting = found.is_valid()
            for keys, text in asked:
                said = _as_texts(_extract(found, keys), payloads)
                fitting = pc.and_(fitting, pc.fill_null(pc.equal(said, text), fill_value=False))
            if not no_false(fitting):
                found, frame_of = found.filter(fitting), frame_of.filter(fitting)
            if not at_end:
                found = _extract(found, self._layout.items[level : level + 1])
        return found, frame_of

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
    if kinds == {JsonObject} and not isinstance(tree, str):
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
        if not no_false(pc.match_substring_regex(values, _DECIMAL)):
            raise Unreadable
        if pc.any(pc.starts_with(values, "+")).as_py():  # Arrow knows no such sign
            values = pc.utf8_ltrim(values, "+")
        values = values.cast(pa.float64())
    if pa.types.is_null(values.type):
        return pa.nulls(len(values), pa.float64())
    if not pa.types.is_float64(values.type) or not no_false(pc.is_finite(values)):
        raise Unreadable
    return values


def _as_integers(values: pa.Array) -> pa.Array:
    if pa.types.is_string(values.type):
        if not no_false(pc.match_substring_regex(values, _WHOLE)):
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
    if (is_list and codes.null_count) or not no_false(pc.invert(pc.match_substring_regex(codes, r",|\A\z"))):
        raise Unreadable
    return pc.binary_join(values.cast(pa.list_(pa.string())), ",") if is_list else codes


def _as_ms(values: pa.Array, unit: str) -> pa.Array:
    """In milliseconds; what is finer is cut off."""
    if unit == "iso":
        if pa.types.is_null(values.type):
            return pa.nulls(len(values), pa.int64())
        if not pa.types.is_string(values.type) or not no_false(pc.match_substring_regex(values, _ISO)):
            raise Unreadable
        return pc.divide(values.cast(pa.timestamp("ns", "UTC")).cast(pa.int64()), _NS_PER_MS)
    whole = _as_integers(values)
    if unit == "s":
        return pc.multiply_checked(whole, 1000)
    if unit != "ms":  # towards zero, as whoever reads strictly cuts
        whole = pc.divide(whole, _DIVISORS[unit])
    return whole
