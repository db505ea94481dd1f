"""Trades, as a caller asks for them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import pyarrow as pa
import pyarrow.compute as pc

from ingestor.dataset.arguments import Names, find_names, find_root, warn_of_unknown
from ingestor.dataset.market_rules import are_abroad, in_session, judge_rows
from ingestor.dataset.rows import (
    Engine,
    Selection,
    as_frame,
    check_engine,
    check_word,
    concat_rows,
    known_schema,
    per_text,
    plain_texts,
    read_dates,
    sort_rows,
    with_columns,
)
from ingestor.dataset.snapshot import Snapshot, open_recording, read_consistently
from ingestor.dataset.times import Span, Time, find_span
from ingestor.us_market import Calendar, read_calendar

if TYPE_CHECKING:
    from pandas import DataFrame


@overload
def read_trades(root: str | Path, symbols: Names | None = ..., start: Time | None = ..., end: Time | None = ...,
                tz: str = ..., *, columns: Names | None = ..., conditions: Literal["all", "sip"] = ...,
                repeats: Literal["keep", "drop"] = ...,
                engine: Literal["pandas"] = ...) -> "DataFrame": ...  # fmt: skip
@overload
def read_trades(root: str | Path, symbols: Names | None = ..., start: Time | None = ..., end: Time | None = ...,
                tz: str = ..., *, columns: Names | None = ..., conditions: Literal["all", "sip"] = ...,
                repeats: Literal["keep", "drop"] = ...,
                engine: Literal["arrow"]) -> pa.Table: ...  # fmt: skip
def read_trades(
    root: str | Path,
    symbols: Names | None = None,
    start: Time | None = None,
    end: Time | None = None,
    tz: str = "UTC",
    *,
    columns: Names | None = None,
    conditions: Literal["all", "sip"] = "all",
    repeats: Literal["keep", "drop"] = "keep",
    engine: Engine = "pandas",
) -> Any:
    """The trades in [start, end), sorted by (symbol, timestamp, sequence): all that is recorded up to now, each once.

    >>> import ingestor
    >>> trades = ingestor.read_trades("data", symbols=["AAPL"], start="2026-11-20", end="2026-11-21")
    >>> trades[["price", "volume"]].dtypes.to_dict()
    {'price': dtype('float64'), 'volume': dtype('float64')}

    `symbols` and `columns` are one name or several. A time is text, a date, a datetime, a Timestamp or a datetime64;
    one without a zone is in `tz`, in which times are also given
    back. `columns` are those wanted, in that order. `conditions="sip"` keeps the prints that move a price by the US
    rules (symbols with a prefix, as `BINANCE:BTCUSDT`, have none); `repeats="drop"` leaves out frames that the venue
    sent twice.

    pandas: `symbol` is a category. `engine="arrow"` gives a pyarrow.Table, which polars and DuckDB take as it is. An
    unknown symbol, and a span without trades, give no rows, with every column.

    Warns of a symbol that is not recorded, and where newer trades are in CSV alone.
    Raises NotARecording, FormatTooNew, ValueError for an argument that can't
    be used, ConfigError where pandas is missing.
    """
    check_engine(engine)
    check_word("conditions", conditions, ("all", "sip"))
    check_word("repeats", repeats, ("keep", "drop"))
    span = find_span(start, end, tz)
    chosen, picked = find_names(symbols), find_names(columns, "column")
    layout = open_recording(find_root(root))

    calendar = read_calendar(layout.holidays)

    def read(snapshot: Snapshot) -> pa.Table:
        schema = known_schema(snapshot)
        wanted = _check_columns(picked, schema)
        looked_at = (*wanted, "conditions") if conditions == "sip" else wanted
        selection = Selection(span, looked_at, chosen, repeats == "drop")
        dates = [rows for _, rows in read_dates(snapshot, selection)]
        asked = pa.schema([schema.field(name) for name in wanted])
        rows = concat_rows(dates)
        if rows is None:
            return asked.empty_table()
        rows = sort_rows(rows) if len(dates) > 1 else rows
        return with_columns(_eligible(rows, calendar) if conditions == "sip" else rows, asked)

    rows = read_consistently(layout, span, read)
    if "symbol" in rows.column_names:
        warn_of_unknown(layout, chosen, rows.column("symbol"))
    elif not rows.num_rows:
        warn_of_unknown(layout, chosen)
    return as_frame(rows, engine, tz)


def first_trades(root: Path, span: Span, symbols: tuple[str, ...] | None, count: int) -> pa.Table:
    """The first trades of a span in order of (timestamp, sequence), from no more dates than are needed.

    Raises NotARecording, FormatTooNew, OSError.
    """
    layout = open_recording(find_root(root))

    def read(snapshot: Snapshot) -> pa.Table:
        schema = known_schema(snapshot)
        found = schema.empty_table()
        for _, rows in read_dates(snapshot, Selection(span, tuple(schema.names), symbols)):
            by_time = [("timestamp", "ascending"), ("sequence", "ascending")]
            rest = with_columns(plain_texts(rows), schema).sort_by(by_time)
            found = pa.concat_tables([found, rest.slice(0, count - found.num_rows)])
            if found.num_rows == count:
                break
        return found

    rows = read_consistently(layout, span, read)
    if not rows.num_rows:
        warn_of_unknown(layout, symbols)
    return rows


def _check_columns(columns: Sequence[str] | None, schema: pa.Schema) -> tuple[str, ...]:
    unknown = [name for name in columns or () if name not in schema.names]
    if unknown:
        raise ValueError(f"no column {unknown[0]!r}: there are {', '.join(schema.names)}")
    return tuple(schema.names if columns is None else columns)


def _eligible(rows: pa.Table, calendar: Calendar) -> pa.Table:
    """The prints that may set a price; those of symbols for which the US rules don't hold stay."""
    rows = rows.combine_chunks()
    if not rows.num_rows:
        return rows
    times_ms = rows.column("timestamp").chunk(0).cast(pa.int64())
    moves = judge_rows(rows.column("conditions").chunk(0), in_session(times_ms, "regular", calendar))
    abroad = per_text(rows.column("symbol"), are_abroad).chunk(0)
    return rows.filter(pc.or_(abroad, moves.high_low))
