"""What makes two sets of rows the same whatever their order: their number, and a checksum of every column.

A row's value counts multiplied by a number made of its sequence, so that a value which changed its row is found too.
"""

import hashlib
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

_MIX = -7046029254386353131  # 2^64 over the golden ratio, odd, as a signed number
_NULL = 0x5BD1E995


@dataclass(slots=True)
class Tally:
    """Grows with every table added. Equal for equal rows."""

    rows: int = 0
    columns: dict[str, int] = field(default_factory=dict)

    def add(self, table: pa.Table) -> None:
        """Count these rows."""
        self.rows += table.num_rows
        if not table.num_rows:
            return
        weight = pc.bit_wise_or(_mixed(table.column("sequence")), 1)
        for name in table.column_names:
            product = pc.multiply(_mixed(_bits(table.column(name))), weight)  # wraps around, as is meant
            self.columns[name] = (self.columns.get(name, 0) + pc.sum(product).as_py()) % (1 << 64)


def _bits(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """An integer for each value; the same for the same value, and null has one too."""
    return pa.chunked_array([_chunk_bits(chunk).fill_null(_NULL) for chunk in column.chunks], pa.int64())


def _chunk_bits(chunk: pa.Array) -> pa.Array:
    if pa.types.is_floating(chunk.type):
        return chunk.cast(pa.float64()).view(pa.int64())
    if pa.types.is_dictionary(chunk.type):
        return _text_bits(chunk.dictionary).take(chunk.indices)
    if pa.types.is_string(chunk.type):
        return _chunk_bits(chunk.dictionary_encode())
    return chunk.cast(pa.int64())


def _text_bits(texts: pa.Array) -> pa.Array:
    digests = [hashlib.blake2b(str(text).encode(), digest_size=8).digest() for text in texts.to_pylist()]
    return pa.array([int.from_bytes(digest, "little", signed=True) for digest in digests], pa.int64())


def _mixed(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Bits spread over the whole number, so that sums of neighbours differ."""
    once = pc.multiply(values, _MIX)
    return pc.multiply(pc.bit_wise_xor(once, pc.shift_right(once, 29)), _MIX)
