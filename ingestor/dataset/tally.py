"""What makes two sets of rows the same whatever their order: their number, and a checksum of every column.

A row's value counts multiplied by a number made of its sequence, so that a value which changed its row is found too. A
null doesn't count, so that a column which older rows lack is as one of nulls.
"""

import hashlib
from dataclasses import dataclass, field
from functools import lru_cache

import pyarrow as pa
import pyarrow.compute as pc

from ingestor.dataset.rows import concat_rows

_MIX = -7046029254386353131  # 2^64 over the golden ratio, odd, as a signed number
_SALT = 0x5BD1E995  # so that nothing but a null counts nothing
_AT_ONCE = 1 << 15


@dataclass(slots=True)
class Tally:
    """Grows with every table added. Its total is equal for equal rows."""

    rows: int = 0
    _sums: dict[str, int] = field(default_factory=dict)
    """Of what is counted, by column."""
    _held: list[pa.Table] = field(default_factory=list)
    """Yet to be counted: to count many rows at once takes half the time."""
    _held_rows: int = 0

    def add(self, table: pa.Table) -> None:
        """Count these rows."""
        self.rows += table.num_rows
        self._held_rows += table.num_rows
        self._held.append(table)
        if self._held_rows >= _AT_ONCE:
            self._count_held()

    def total(self) -> tuple[int, dict[str, int]]:
        """How many rows, and a checksum of each column."""
        self._count_held()
        return self.rows, self._sums

    def _count_held(self) -> None:
        table = concat_rows([table for table in self._held if table.num_rows])
        self._held, self._held_rows = [], 0
        if table is not None:
            weight = pc.bit_wise_or(_mixed(table.column("sequence")), 1)
            for name in table.column_names:
                product = pc.multiply(_mixed(_bits(table.column(name))), weight)  # wraps around, as is meant
                if (counted := pc.sum(product).as_py()) is not None:
                    self._sums[name] = (self._sums.get(name, 0) + counted) % (1 << 64)


def _bits(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """An integer for each value; the same for the same value."""
    return pa.chunked_array([_chunk_bits(chunk) for chunk in column.chunks], pa.int64())


def _chunk_bits(chunk: pa.Array) -> pa.Array:
    if pa.types.is_floating(chunk.type):
        return chunk.cast(pa.float64()).view(pa.int64())
    if pa.types.is_dictionary(chunk.type):
        return pa.array([_text_bits(text) for text in chunk.dictionary.to_pylist()], pa.int64()).take(chunk.indices)
    if pa.types.is_string(chunk.type):
        return _chunk_bits(chunk.dictionary_encode())
    return chunk.cast(pa.int64())


@lru_cache(1 << 14)
def _text_bits(text: str | None) -> int:
    """A few texts are in every chunk again."""
    return int.from_bytes(hashlib.blake2b(str(text).encode(), digest_size=8).digest(), "little", signed=True)


def _mixed(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Bits spread over the whole number, so that sums of neighbours differ."""
    once = pc.multiply(pc.bit_wise_xor(values, _SALT), _MIX)
    return pc.multiply(pc.bit_wise_xor(once, pc.shift_right(once, 29)), _MIX)
