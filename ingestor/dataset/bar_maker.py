"""Makes bars from sorted rows, column by column. Pure."""

from collections.abc import Iterable
from datetime import date, tzinfo
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from ingestor.dataset.arguments import day_start_ms
from ingestor.dataset.bar_grid import DAY_MS, BarGrid, find_pieces
from ingestor.dataset.market_rules import AUCTION_MS, CLOSING, MovesColumns, Session, are_abroad, in_session, judge_rows
from ingestor.dataset.rows import concat_rows, sort_rows
from ingestor.schema import TIMESTAMP
from ingestor.us_market import Calendar

COLUMNS = ("timestamp", "symbol", "price", "volume", "conditions")
"""The columns that bars are made from."""

BARS = pa.schema(
    [
        ("symbol", pa.string()),
        ("start_ms", pa.int64()),
        ("end_ms", pa.int64()),
        *((name, pa.float64()) for name in ("open", "high", "low", "close", "volume")),
        ("trades", pa.int64()),
        ("vwap", pa.float64()),
    ]
)


class Recipe(NamedTuple):
    """Everything but the trades that decides what a bar is."""

    interval_ms: int
    zone: tzinfo
    session: Session
    conditions: Literal["sip", "all"]
    calendar: Calendar = Calendar()

    def grid(self, first_ms: int, last_ms: int) -> BarGrid:
        """The edges for moments from `first_ms` to `last_ms`, and a day around them."""
        return BarGrid(find_pieces(self.zone, first_ms, last_ms), self.interval_ms)


def make_bars(dates: Iterable[tuple[date, pa.Table]], recipe: Recipe) -> pa.Table:
    """The bars (schema BARS) of the rows of some UTC dates, each sorted, oldest first; sorted by (symbol, start).

    One date is in memory at a time: rows of a bar that the next date may continue are carried over to it.
    """
    made = [BARS.empty_table()]
    carried: pa.Table | None = None
    for day, rows in dates:
        end_ms = day_start_ms(day) + DAY_MS
        known = rows
        if carried is not None and (joined := concat_rows([carried, rows])) is not None:
            known = sort_rows(joined)
        first_ms = pc.min(known.column("timestamp")).value
        grid = recipe.grid(first_ms, end_ms)
        cut_ms = grid.start_of(end_ms)
        carried = None
        if cut_ms < end_ms:
            unfinished = pc.greater_equal(known.column("timestamp"), pa.scalar(cut_ms, TIMESTAMP))
            carried, known = known.filter(unfinished), known.filter(pc.invert(unfinished))
        made.append(bars_of(known, grid, recipe))
    if carried is not None and carried.num_rows:
        span = pc.min_max(carried.column("timestamp"))
        made.append(bars_of(carried, recipe.grid(span["min"].value, span["max"].value), recipe))
    return pa.concat_tables(made).sort_by([("symbol", "ascending"), ("start_ms", "ascending")])


def bars_of(rows: pa.Table, grid: BarGrid, recipe: Recipe) -> pa.Table:
    """The bars of these rows, which are sorted and hold every trade of each bar."""
    rows = _session_rows(rows.combine_chunks(), recipe)
    if not rows.num_rows:
        return BARS.empty_table()
    symbols, times, price, volume, conditions = (
        rows.column(name).chunk(0) for name in ("symbol", "timestamp", "price", "volume", "conditions")
    )
    times_ms = times.cast(pa.int64())
    starts_ms = grid.starts(times_ms)
    firsts = _run_starts(symbols.indices, starts_ms)
    run_ends = pa.concat_arrays([firsts.slice(1), pa.array([rows.num_rows], pa.int64())])
    bar = pc.run_end_decode(
        pa.RunEndEncodedArray.from_arrays(run_ends, pa.arange(0, len(firsts)))
    )  # each row's, from 0
    moves = _moves(symbols, times_ms, conditions, recipe)
    sums = _sums(bar, price, volume, moves)
    first, last = _ends(bar, price, moves.last, len(firsts))
    if not pc.all(moves.last).as_py():
        lesser = _ends(bar, price, moves.high_low, len(firsts))
        first, last = pc.coalesce(first, lesser[0]), pc.coalesce(last, lesser[1])
    bar_starts_ms = starts_ms.take(firsts)
    has_volume = pc.greater(sums["volume_sum"], 0.0)
    vwap = pc.if_else(has_volume, pc.divide(sums["turnover_sum"], sums["volume_sum"]), None)
    columns = [
        symbols.take(firsts).cast(pa.string()), bar_starts_ms, grid.ends(bar_starts_ms), first, sums["price_max"],
        sums["price_min"], last, sums["volume_sum"], sums["trade_sum"].cast(pa.int64()), vwap,
    ]  # fmt: skip
    return pa.Table.from_arrays(columns, schema=BARS)


def _session_rows(rows: pa.Table, recipe: Recipe) -> pa.Table:
    """The rows of the session; symbols of other exchanges have none. A regular day includes its closing auction."""
    if recipe.session == "all" or not rows.num_rows:
        return rows
    times_ms = rows.column("timestamp").combine_chunks().cast(pa.int64())
    inside: Any = in_session(times_ms, recipe.session, recipe.calendar)
    if recipe.session == "regular" and recipe.interval_ms == DAY_MS:
        conditions = rows.column("conditions").chunk(0)
        closing = [bool(CLOSING & set((text or "").split(","))) for text in conditions.dictionary.to_pylist()]
        if any(closing):
            late = in_session(times_ms, "regular", recipe.calendar, AUCTION_MS)
            at_close = pa.array(closing, pa.bool_()).take(conditions.indices).fill_null(False)
            inside = pc.or_(inside, pc.and_(late, at_close))
    symbols = rows.column("symbol").chunk(0)
    inside = pc.or_(inside, are_abroad(symbols.dictionary).take(symbols.indices))
    return rows.filter(inside).combine_chunks()


def _run_starts(*keys: pa.Array) -> pa.Array:
    """The rows at which one of these columns is not as in the row before."""
    size = len(keys[0]) - 1
    changed = pa.repeat(False, size)
    for key in keys:
        changed = pc.or_(changed, pc.not_equal(key.slice(1), key.slice(0, size)))
    later = pc.add(pc.indices_nonzero(changed).cast(pa.int64()), 1)
    return pa.concat_arrays([pa.array([0], pa.int64()), later])


def _moves(
    symbols: pa.DictionaryArray, times_ms: pa.Array, conditions: pa.DictionaryArray, recipe: Recipe
) -> MovesColumns:
    """The fields that each print moves: by the US rules where they hold, else all."""
    abroad = are_abroad(symbols.dictionary)
    everything = pa.repeat(True, len(times_ms))
    if recipe.conditions == "all" or pc.all(abroad).as_py() or not len(conditions.dictionary):
        return MovesColumns(everything, everything, everything)
    regular = None if recipe.interval_ms == DAY_MS else in_session(times_ms, "regular", recipe.calendar)
    moves = judge_rows(conditions, regular)
    if not pc.any(abroad).as_py():
        return moves
    exempt = abroad.take(symbols.indices)
    return MovesColumns(*(pc.or_(exempt, column) for column in moves))


def _sums(bar: pa.Array, price: pa.Array, volume: pa.Array, moves: MovesColumns) -> pa.Table:
    """Highest and lowest price, volume, turnover and count: one row per bar, in order."""
    counted = pc.if_else(moves.volume, volume, 0.0)
    is_trade = pc.and_(moves.volume, pc.not_equal(volume, 0.0).fill_null(True))  # of unknown volume is a trade too
    table = pa.table(
        {
            "bar": bar,
            "price": pc.if_else(moves.high_low, price, None),
            "volume": counted,
            "turnover": pc.multiply(price, counted),
            "trade": is_trade,
        }
    )
    known = pc.ScalarAggregateOptions(min_count=1)
    sums = table.group_by("bar", use_threads=False).aggregate(
        [("price", "max"), ("price", "min"), ("volume", "sum", known), ("turnover", "sum", known), ("trade", "sum")]
    )
    return sums.combine_chunks()


def _ends(bar: pa.Array, price: pa.Array, eligible: pa.Array, bars: int) -> tuple[pa.Array, pa.Array]:
    """The first and the last eligible price of each bar; null where none is."""
    if not pc.all(eligible).as_py():
        bar, price = bar.filter(eligible), price.filter(eligible)
    if not len(bar):
        nothing = pa.nulls(bars, pa.float64())
        return nothing, nothing
    firsts = _run_starts(bar)
    lasts = pc.subtract(pa.concat_arrays([firsts.slice(1), pa.array([len(bar)], pa.int64())]), 1)
    present = bar.take(firsts)
    if len(present) == bars:
        return price.take(firsts), price.take(lasts)
    place = pc.index_in(pa.arange(0, bars), present)
    return price.take(firsts).take(place), price.take(lasts).take(place)
