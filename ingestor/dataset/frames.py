"""From Arrow columns to what the caller works with."""

from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from ingestor.dataset.rows import plain_texts
from ingestor.errors import ConfigError

Engine = Literal["pandas", "arrow"]


def check_engine(engine: str) -> None:
    """Before anything is read. Raises ValueError for another name, ConfigError where pandas is missing."""
    check_word("engine", engine, ("pandas", "arrow"))
    if engine == "pandas":
        try:
            import pandas  # noqa: F401, ICN001  is it there?
        except ImportError:
            raise ConfigError(
                "pandas is not installed: pip install 'finnhub-ingestor[analysis]', or ask for engine='arrow'"
            ) from None


def check_word(argument: str, word: str, known: tuple[str, ...]) -> None:
    """Raises ValueError where an argument that takes one of some words is given another."""
    if word not in known:
        raise ValueError(f"{argument} must be {' or '.join(map(repr, known))}, not {word!r}")


def as_frame(table: pa.Table, engine: Engine, tz: str) -> Any:
    """The table with its times in `tz`: a pandas DataFrame, `symbol` as a category; or Arrow, plain."""
    table = _in_zone(table, tz)
    if engine == "arrow":
        return plain_texts(table)
    frame = plain_texts(table)
    if "symbol" in table.column_names:
        at = table.column_names.index("symbol")
        frame = frame.set_column(at, "symbol", _sorted_categories(table.column(at)))
    return frame.to_pandas()


def _in_zone(table: pa.Table, tz: str) -> pa.Table:
    for index, field in enumerate(table.schema):
        if pa.types.is_timestamp(field.type) and field.type.tz is not None and field.type.tz != tz:
            table = table.set_column(index, field.name, table.column(index).cast(pa.timestamp(field.type.unit, tz)))
    return table


def _sorted_categories(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A category for each symbol that occurs, in alphabetical order."""
    plain = column.cast(pa.string())
    symbols = pc.unique(plain)
    categories = symbols.take(pc.sort_indices(symbols))
    codes = pc.index_in(plain, categories)
    chunks = [pa.DictionaryArray.from_arrays(chunk, categories) for chunk in codes.chunks]
    return pa.chunked_array(chunks, pa.dictionary(pa.int32(), pa.string()))
