"""Trades, as a caller asks for them: those of a time, and those that are being recorded."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import date, datetime
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import pyarrow as pa
import pyarrow.compute as pc

from ingestor.dataset import arguments
from ingestor.dataset.arguments import Engine, Names, Roots, Span, Time
from ingestor.dataset.coverage import CoverageWatch, SymbolState, read_states, warn_of_unknown
from ingestor.dataset.inventory import has_fills
from ingestor.dataset.market_rules import are_abroad, in_session, judge_rows
from ingestor.dataset.merged import check_one_venue, find_id_column, read_merged, read_merged_dates
from ingestor.dataset.rows import (
    Selection,
    as_frame,
    concat_rows,
    known_schema,
    per_text,
    plain_texts,
    read_dates,
    sort_rows,
    stream_rows,
    with_columns,
)
from ingestor.dataset.snapshot import open_recording, read_consistently, take_snapshot
from ingestor.errors import NotARecording
from ingestor.journal.follower import Follower, Rows, find_journal_end
from ingestor.layout import Layout, read_holder
from ingestor.schema import IMPORTED, ORIGIN, TRADES
from ingestor.us_market import read_calendar

if TYPE_CHECKING:
    from pandas import DataFrame

_POLL_S = 0.005
_REST_POLL_S = 0.04
"""The interval where nothing has come for a second: most of the cost of a poll is then the waking up."""
_REST_S = 1.0
_STATES_S = 0.25


@overload
def read_trades(root: Roots, symbols: Names | None = ..., start: Time | None = ..., end: Time | None = ...,
                tz: str = ..., *, columns: Names | None = ..., conditions: Literal["all", "sip"] = ...,
                repeats: Literal["keep", "drop"] = ..., coverage: bool = ..., origin: str = ...,
                engine: Literal["pandas"] = ...) -> "DataFrame": ...  # fmt: skip
@overload
def read_trades(root: Roots, symbols: Names | None = ..., start: Time | None = ..., end: Time | None = ...,
                tz: str = ..., *, columns: Names | None = ..., conditions: Literal["all", "sip"] = ...,
                repeats: Literal["keep", "drop"] = ..., coverage: bool = ..., origin: str = ...,
                engine: Literal["arrow"]) -> pa.Table: ...  # fmt: skip
def read_trades(
    root: Roots,
    symbols: Names | None = None,
    start: Time | None = None,
    end: Time | None = None,
    tz: str = "UTC",
    *,
    columns: Names | None = None,
    conditions: Literal["all", "sip"] = "all",
    repeats: Literal["keep", "drop"] = "keep",
    origin: str = "all",
    coverage: bool = False,
    engine: Engine = "pandas",
) -> Any:
    """The trades in [start, end), sorted by (symbol, timestamp, sequence): all that is recorded up to now, each once.

    >>> import ingestor
    >>> trades = ingestor.read_trades("data", symbols=["AAPL"], start="2026-11-20", end="2026-11-21")
    >>> trades[["price", "volume"]].dtypes.to_dict()
    {'price': dtype('float64'), 'volume': dtype('float64')}

    `root` may be a list of recordings that several recorders of one venue made: each trade that any of them has is
    there once, as `ingestor merge` has it; `sequence` is then unique in each of them only.

    `symbols` and `columns` are one name or several. A time is text, a date, a datetime, a Timestamp or a datetime64;
    one without a zone is in `tz`, in which times are also given
    back. `columns` are those wanted, in that order. `conditions="sip"` keeps the prints that move a price by the US
    rules (symbols with a prefix, as `BINANCE:BTCUSDT`, have none); `repeats="drop"` leaves out frames that the venue
    sent twice. `origin="heard"` keeps the trades that the recorder heard, `"filled"` those that `ingestor backfill` has
    got from a source's history, `"imported"` those that `ingestor import` has taken from files, and the name of a
    source those of it. Where such are among all columns of the result, there is one more: `origin`, null for what was
    heard, else the source. By its name it is always there. `coverage=True` adds a column of this name: the state
    (recorded, blind, unproven) of the row's symbol at the moment when it came, null where nothing is known of it; of
    what was not heard, filled or imported.

    pandas: `symbol` is a category. `engine="arrow"` gives a pyarrow.Table, which polars and DuckDB take as it is. An
    unknown symbol, and a span without trades, give no rows, with every column.

    Warns of a symbol that is not recorded, and where newer trades are in CSV alone.
    Raises NotARecording, FormatTooNew, ValueError for an argument that can't
    be used, ConfigError where pandas is missing.
    """
    arguments.check_engine(engine)
    arguments.check_word("conditions", conditions, ("all", "sip"))
    arguments.check_word("repeats", repeats, ("keep", "drop"))
    span = arguments.find_span(start, end, tz)
    chosen, picked = arguments.find_names(symbols), arguments.find_names(columns, "column")
    layouts = [open_recording(one) for one in arguments.find_roots(root)]
    calendar = read_calendar(layouts[0].holidays)

    def pick(schema: pa.Schema, read_dates: _ReadDates) -> pa.Table:
        usual = tuple(name for name in schema.names if name != ORIGIN.name)
        wanted = usual if picked is None else _check_columns(picked, schema)
        wanted += tuple(name for name in ("symbol", "received_at") if coverage and name not in wanted)
        looked_at = (*wanted, "conditions") if conditions == "sip" else wanted
        looked_at = (*looked_at, ORIGIN.name) if picked is None or origin != "all" else looked_at
        selection = Selection(span, looked_at, chosen, repeats == "drop")
        dates = [rows for _, rows in read_dates(selection)]
        asked = pa.schema([ORIGIN if name == ORIGIN.name else schema.field(name) for name in wanted])
        rows = concat_rows(dates)
        if rows is None:
            return asked.empty_table()
        rows = _of_origin(rows, origin)
        if picked is None and ORIGIN.name in rows.column_names and rows.column(ORIGIN.name).null_count < rows.num_rows:
            asked = asked.append(ORIGIN)
        rows = sort_rows(rows) if len(dates) > 1 else rows
        if conditions == "sip" and rows.num_rows:
            rows = rows.combine_chunks()
            times_ms = rows.column("timestamp").chunk(0).cast(pa.int64())
            moves = judge_rows(rows.column("conditions").chunk(0), in_session(times_ms, "regular", calendar))
            abroad = per_text(rows.column("symbol"), are_abroad).chunk(0)  # the US rules don't hold for these
            rows = rows.filter(pc.or_(abroad, moves.high_low))
        return with_columns(rows, asked)

    rows = _pick_rows(layouts, span, pick)
    if "symbol" in rows.column_names:
        warn_of_unknown(layouts, chosen, rows.column("symbol"))
    elif not rows.num_rows:
        warn_of_unknown(layouts, chosen)
    if coverage:
        states = read_states(layouts, rows)
        if ORIGIN.name in rows.column_names:  # what was filled or imported did not come then
            source = rows.column(ORIGIN.name)
            brought = pc.if_else(pc.starts_with(source, IMPORTED), "imported", "filled")
            states = pc.if_else(pc.is_valid(source), brought, states)
        rows = (rows if picked is None else rows.select(picked)).append_column("coverage", states)
    return as_frame(rows, engine, tz)


def scan_trades(
    root: Roots,
    symbols: Names | None = None,
    start: Time | None = None,
    end: Time | None = None,
    tz: str = "UTC",
    *,
    columns: Names | None = None,
) -> pa.RecordBatchReader:
    """The trades in [start, end) in batches, for more than fits into memory: years take as much as a busy day's piece.

    >>> import ingestor
    >>> reader = ingestor.scan_trades("data", symbols=["AAPL"], start="2026-11-20", columns=["timestamp", "price"])
    >>> reader.schema.names
    ['timestamp', 'price']
    >>> highest = max(batch["price"].to_numpy().max() for batch in reader)

    UTC date by date, within a date by (symbol, timestamp, sequence); the arguments are those of `read_trades`, and
    `root` may be a list, too. DuckDB queries the reader by its name; it can be read once. Each date is read as it is
    when it is reached, so that a recorder and a compaction may go on; whoever stops reading has read no further.

    Warns of a symbol that is not recorded. Raises NotARecording, FormatTooNew, ValueError for an argument that can't be
    used; the reader raises DamagedFile, OSError.
    """
    layouts = [open_recording(one) for one in arguments.find_roots(root)]
    chosen, picked = arguments.find_names(symbols), arguments.find_names(columns, "column")
    warn_of_unknown(layouts, chosen)
    schema, pieces = stream_trades(layouts, arguments.find_span(start, end, tz), chosen, picked)

    def batches() -> Iterator[pa.RecordBatch]:
        for _, rows in pieces:
            yield from as_frame(rows, "arrow", tz).to_batches()

    return pa.RecordBatchReader.from_batches(as_frame(schema.empty_table(), "arrow", tz).schema, batches())


def stream_trades(
    layouts: Sequence[Layout],
    span: Span,
    symbols: tuple[str, ...] | None,
    columns: tuple[str, ...] | None = None,
) -> tuple[pa.Schema, Iterator[tuple[date, pa.Table]]]:
    """The columns, and the trades of a span in pieces with these columns, each with its UTC date, in bounded memory.

    Date by date, within a date by (symbol, timestamp, sequence); of several recorders' roots each trade is there once,
    within a date by (symbol, timestamp, received_at). Raises ValueError for an unknown column, ConfigError for roots of
    several venues, FormatTooNew, OSError.
    """
    schema = pa.unify_schemas([known_schema(take_snapshot(layout, span)) for layout in layouts])
    if ORIGIN.name not in schema.names and ((columns and ORIGIN.name in columns) or any(map(has_fills, layouts))):
        schema = schema.append(ORIGIN)
    if columns is not None:
        schema = pa.schema([schema.field(name) for name in _check_columns(columns, schema)])
    selection = Selection(span, tuple(schema.names), symbols)
    pieces: Iterator[tuple[date, pa.Table]]
    if len(layouts) == 1:
        pieces = stream_rows(layouts[0], selection)
    else:
        check_one_venue(layouts)
        pieces = ((one.day, one.rows) for one in read_merged(layouts, selection, find_id_column(layouts)))
    return schema, ((day, with_columns(rows, schema)) for day, rows in pieces)


def _check_columns(picked: tuple[str, ...], schema: pa.Schema) -> tuple[str, ...]:
    usual = [name for name in schema.names if name != ORIGIN.name]
    for name in picked:
        if name not in (*usual, ORIGIN.name):
            raise ValueError(f"no column {name!r}: there are {', '.join(usual)}")
    return picked


_ReadDates = Callable[[Selection], Iterator[tuple[date, pa.Table]]]


def _pick_rows(layouts: Sequence[Layout], span: Span, pick: Callable[[pa.Schema, _ReadDates], pa.Table]) -> pa.Table:
    """What `pick` takes of the dates of one recording, or of several recorders' as one."""
    if len(layouts) == 1:
        return read_consistently(
            layouts[0], span, lambda snapshot: pick(known_schema(snapshot), partial(read_dates, snapshot))
        )
    check_one_venue(layouts)
    schema = pa.unify_schemas([read_consistently(layout, span, known_schema) for layout in layouts])
    return pick(schema, partial(read_merged_dates, layouts))


def _of_origin(rows: pa.Table, origin: str) -> pa.Table:
    """The rows that came in this way: `all`, `heard`, `filled`, `imported`, or the name of a source."""
    if origin == "all":
        return rows
    if ORIGIN.name not in rows.column_names:
        return rows if origin == "heard" else rows.slice(0, 0)
    column = rows.column(ORIGIN.name)
    if origin == "heard":
        return rows.filter(pc.is_null(column))
    if origin in {"filled", "imported"}:  # null, which is not kept, of what was heard
        from_file = pc.starts_with(column, IMPORTED)
        return rows.filter(from_file if origin == "imported" else pc.invert(from_file))
    return rows.filter(pc.fill_null(pc.equal(column, origin), False))


def first_trades(root: Roots, span: Span, symbols: tuple[str, ...] | None, count: int) -> pa.Table:
    """The first trades of a span in order of (timestamp, sequence), from no more dates than are needed.

    Raises NotARecording, FormatTooNew, ConfigError for roots of two venues, OSError.
    """
    layouts = [open_recording(one) for one in arguments.find_roots(root)]

    def pick(schema: pa.Schema, read_dates: _ReadDates) -> pa.Table:
        schema = schema if ORIGIN.name in schema.names else schema.append(ORIGIN)
        found = schema.empty_table()
        for _, rows in read_dates(Selection(span, tuple(schema.names), symbols)):
            by_time = [("timestamp", "ascending"), ("sequence", "ascending")]
            rest = with_columns(plain_texts(rows), schema).sort_by(by_time)
            found = pa.concat_tables([found, rest.slice(0, count - found.num_rows)])
            if found.num_rows == count:
                break
        filled = found.column(ORIGIN.name).null_count < found.num_rows
        return found if filled else found.drop_columns([ORIGIN.name])

    rows = _pick_rows(layouts, span, pick)
    if not rows.num_rows:
        warn_of_unknown(layouts, symbols)
    return rows


@overload
def follow(root: str | Path, symbols: Names | None = ..., from_: Literal["now", "start"] | Time = ...,
           idle_s: float | None = ..., *, events: Literal[False] = ...) -> Iterator[pa.RecordBatch]: ...  # fmt: skip
@overload
def follow(root: str | Path, symbols: Names | None = ..., from_: Literal["now", "start"] | Time = ...,
           idle_s: float | None = ..., *,
           events: Literal[True]) -> Iterator[pa.RecordBatch | SymbolState]: ...  # fmt: skip
def follow(
    root: str | Path,
    symbols: Names | None = None,
    from_: Literal["now", "start"] | Time = "now",
    idle_s: float | None = None,
    *,
    events: bool = False,
) -> Iterator[Any]:
    """Batches of trades (schema.TRADES) in order of arrival, across rotations and restarts of the recorder, without
    end.

    >>> import ingestor
    >>> batch = next(ingestor.follow("data", symbols=["AAPL"], from_="start"))
    >>> batch.column("symbol").unique().to_pylist()
    ['AAPL']

    `from_`: `now`, `start` (what the journal still holds), or a time of receipt, in UTC where it names no zone.

    With `events` a SymbolState (symbol, state, cause) comes between the batches: at first one per symbol, then one
    within a second of each change. So the caller knows whether silence is the market's or ours, and when that is over.

    With `idle_s` an empty batch comes whenever nothing came for that long, so that the caller gets a turn. Raises
    NotARecording where `root` has no journal, Lagged where the caller fell behind what the journal keeps, FormatTooNew.
    """
    chosen = arguments.find_names(symbols)
    since = None
    if not (isinstance(from_, str) and from_ in ("now", "start")):
        since = from_ if isinstance(from_, datetime) and from_.tzinfo else arguments.find_time(from_)
    layout = Layout(arguments.find_root(root))
    if not layout.journal.is_dir():
        hint = "a copy can't be followed" if layout.trades.is_dir() else "name the root that the recorder writes to"
        raise NotARecording(
            f"{layout.root} holds no recording: there is no `journal` in {layout.root.absolute()}; {hint}"
        )
    follower = Follower(
        layout, find_journal_end(layout) if since is None and from_ == "now" else None, synced_only=False
    )
    warn_of_unknown([layout], chosen)
    states = _changes_of_state(layout, chosen) if events else repeat([])
    nothing = pa.RecordBatch.from_pylist([], schema=TRADES)
    heard_at_s = last_row_s = time.monotonic()
    with contextlib.closing(follower):
        while True:
            for event in follower.read():
                if not isinstance(event, Rows):
                    continue
                batch = event.batch
                if chosen is not None:
                    batch = batch.filter(pc.is_in(batch.column("symbol"), pa.array(chosen, pa.string())))
                if since is not None:
                    batch = batch.filter(pc.greater_equal(batch.column("received_at"), since))
                if batch.num_rows:
                    yield batch
                    heard_at_s = last_row_s = time.monotonic()
            yield from next(states)
            if idle_s is not None and time.monotonic() - heard_at_s >= idle_s:
                yield nothing
                heard_at_s = time.monotonic()
            time.sleep(_POLL_S if time.monotonic() - last_row_s < _REST_S else _REST_POLL_S)


def _changes_of_state(layout: Layout, symbols: Sequence[str] | None) -> Iterator[list[SymbolState]]:
    """Some times a second the symbols that stand otherwise than at the last look. Raises NotARecording, FormatTooNew,
    OSError.
    """
    watch = CoverageWatch(layout)
    told: dict[str, SymbolState] = {}
    due_s = 0.0
    while True:
        if time.monotonic() < due_s:
            yield []
            continue
        states = {symbol: one for symbol, one in watch.states().items() if symbols is None or symbol in symbols}
        if read_holder(layout) is None:
            states = {symbol: SymbolState(symbol, "blind", "no_recorder") for symbol in states}
        due_s = time.monotonic() + _STATES_S
        yield [one for symbol, one in states.items() if told.get(symbol) != one]
        told = states
