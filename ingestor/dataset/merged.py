"""Several recorders of one venue as one: each trade that any of them has, and coverage that any of them can vouch for.

Trades with ids (`id_column` of the feed) are told apart by them. Of others, alike in symbol, timestamp, price and
volume, there are as many as the recorder has that has most: genuine repeats stay. That is exact unless a group of such
trades was split between recorders.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, date, datetime
from functools import partial
from itertools import chain, groupby
from operator import attrgetter
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from ingestor.coverage import Closed, Coverage, Gap, Interval, State, find_coverage, join_best, state_at
from ingestor.dataset.arguments import EVER, Span, day_start_ms, utc_date
from ingestor.dataset.inventory import count_values, read_id_column
from ingestor.dataset.rows import (
    TEXTS,
    TIME_BITS,
    Selection,
    concat_rows,
    plain_texts,
    read_dates,
    read_rows,
    split_journaled,
    with_columns,
)
from ingestor.dataset.snapshot import Snapshot, list_days, read_consistently, take_snapshot
from ingestor.errors import ConfigError, NotARecording
from ingestor.history import read_history
from ingestor.layout import Layout

GROUP_ROWS = 1 << 19
"""So many rows are merged at a time, over all roots, while the next are read; those of one symbol and date together,
however many.
"""
_DAY_MS = 86_400_000
_LOOKED_AT = ("symbol", "timestamp", "price", "volume", "received_at", "sequence")
_MINUTE_MS = 60_000
_MINUTE_US = 60_000_000
_ROOT = "_root"
_LENGTH_BITS = 32
_LONGEST = (1 << _LENGTH_BITS) - 1
_RANK, _PLACE = "_rank", "_place"
"""Of its symbol among the symbols; of the row by symbol and time. Whole numbers, which are quickly sorted."""
_KEY = (_PLACE, "price", "volume")
_TRADE = ("symbol", "timestamp", "price", "volume")
"""By these two trades without ids are alike."""


class Lack(NamedTuple):
    """A minute of which one recorder has fewer trades of a symbol than all together."""

    root: int
    """Its place among the roots, from 0."""
    symbol: str
    minute_ms: int
    trades: int
    """So many it lacks."""

    @property
    def minute(self) -> datetime:
        """Its beginning."""
        return datetime.fromtimestamp(self.minute_ms / 1000, UTC)


class Merged(NamedTuple):
    """Rows of some symbols on one UTC date."""

    day: date
    rows: pa.Table
    """In order of symbol, timestamp and receipt; texts plain; with the columns of their roots."""
    lacks: list[Lack]


def merge_rows_of(tables: Sequence[pa.Table], id_column: str | None) -> tuple[pa.Table, list[Lack]]:
    """The rows of all tables, which have the same columns, one of each root: each trade once, as said above."""
    rows = concat_rows([one.append_column(_ROOT, pa.repeat(number, one.num_rows)) for number, one in enumerate(tables)])
    if rows is None or not rows.num_rows:
        return tables[0].slice(0, 0), []
    symbols = rows.column("symbol").combine_chunks()
    encoded = (symbols.chunk(0) if isinstance(symbols, pa.ChunkedArray) else symbols).dictionary_encode()
    ranks = pc.sort_indices(pc.sort_indices(encoded.dictionary)).cast(pa.int64()).take(encoded.indices)
    times = rows.column("timestamp").combine_chunks().cast(pa.int64())
    rows = rows.append_column(_RANK, ranks).append_column(_PLACE, pc.add(pc.shift_left(ranks, TIME_BITS), times))
    rows = rows.combine_chunks()
    id_column = id_column if id_column in rows.column_names else None
    alike, apart = _split_alike(rows, [one.num_rows for one in tables], id_column)
    chosen, heard = _choose_rows(apart, id_column)
    if id_column and not _are_unique(pa.concat_tables([alike, chosen]), id_column):
        alike, (chosen, heard) = rows.slice(0, 0), _choose_rows(rows, id_column)
    lacks = _find_lacks(chosen, heard, len(tables))  # of what is alike nobody lacks any
    merged = pa.concat_tables([_in_order(alike), _in_order(chosen)])
    if alike.num_rows and chosen.num_rows:  # no moment has rows of both
        merged = merged.take(pc.array_sort_indices(merged.column(_PLACE).combine_chunks()))  # stable
    return merged.drop_columns([_ROOT, _RANK, _PLACE]), lacks


def _split_alike(rows: pa.Table, sizes: Sequence[int], id_column: str | None) -> tuple[pa.Table, pa.Table]:
    """The first root's rows of each moment of a symbol of which all roots have the same trades in the same order; and
    all rows of all other moments. Two recorders agree about most moments: these need no sorting. `sizes`: how many
    rows each root has, one after the other.
    """
    names = ("price", "volume", *([id_column] if id_column else []))
    looked_at = rows.select([_PLACE, _ROOT, *names])
    of_roots = [looked_at.slice(sum(sizes[:number]), size) for number, size in enumerate(sizes)]
    moments = [moment for one in of_roots if (moment := _count_runs(one)) is not None]
    if len(sizes) < 2 or len(moments) < len(sizes):
        return rows.slice(0, 0), rows
    first, *others = moments
    alike: Any = pa.repeat(True, first.num_rows)
    for own in others:
        counts = own.column("rows").take(pc.index_in(first.column("place"), own.column("place")))
        alike = pc.and_(alike, pc.fill_null(pc.equal(first.column("rows"), counts), False))
    common = first.column("place").filter(alike)
    sides = [one.filter(pc.is_in(one.column(_PLACE), common)) for one in of_roots]
    differs: Any = pa.repeat(False, sides[0].num_rows)
    for name in names:
        mine, *theirs = (side.column(name) for side in sides)
        for column in theirs:
            one_is_null = pc.xor(pc.is_null(mine), pc.is_null(column))
            differs = pc.or_(differs, pc.or_(one_is_null, pc.fill_null(pc.not_equal(mine, column), False)))
    common = common.filter(pc.invert(pc.is_in(common, sides[0].column(_PLACE).filter(differs))))
    in_common = pc.is_in(rows.column(_PLACE), common)
    return rows.slice(0, sizes[0]).filter(in_common.slice(0, sizes[0])), rows.filter(pc.invert(in_common))


def _count_runs(rows: pa.Table) -> pa.Table | None:
    """The places of one root's rows, and how many rows stand at each; None without rows, or if not in order."""
    places = rows.column(_PLACE).combine_chunks()
    size = len(places)
    if not size or not pc.all(pc.less_equal(places.slice(0, size - 1), places.slice(1)), min_count=0).as_py():
        return None
    starts = pc.indices_nonzero(_changes(rows, [_PLACE])).cast(pa.int64())
    ends = pa.concat_arrays([starts.slice(1), pa.array([size], pa.int64())])
    return pa.table({"place": places.take(starts), "rows": pc.subtract(ends, starts)})


def _are_unique(rows: pa.Table, id_column: str) -> bool:
    """Whether no id is there twice; not so either where that can't be told at once."""
    ids = rows.column(id_column)
    bounds = pc.min_max(ids).as_py()
    if bounds["min"] is None:
        return True
    if bounds["min"] < 0 or bounds["max"] >= 1 << TIME_BITS:
        return False
    keys = pc.add(pc.shift_left(rows.column(_RANK), TIME_BITS), ids)
    return bool(pc.count_distinct(keys, mode="only_valid").as_py() == len(ids) - ids.null_count)


def _in_order(rows: pa.Table) -> pa.Table:
    """By symbol, timestamp and receipt."""
    if rows.num_rows < 2:
        return rows
    names = (_PLACE, "received_at", "sequence")
    in_place: Any = pa.repeat(True, rows.num_rows - 1)  # so far as the later columns tell
    for name in reversed(names):
        column = rows.column(name).combine_chunks()
        before, after = column.slice(0, rows.num_rows - 1), column.slice(1)
        in_place = pc.or_(pc.less(before, after), pc.and_(pc.equal(before, after), in_place))
    if pc.all(in_place).as_py():
        return rows
    return rows.take(pc.sort_indices(rows, [(name, "ascending") for name in names]))


def _choose_rows(rows: pa.Table, id_column: str | None) -> tuple[pa.Table, pa.Table]:
    """The rows to keep: of each id one, of each other trade those of the root that has most of it; and what each root
    heard, counted the same way.
    """
    parts: list[tuple[pa.Table, Sequence[str], bool]] = [(rows, _KEY, False)]
    if id_column:
        counted = pc.is_valid(rows.column(id_column))
        parts = [
            (rows.filter(counted), (_RANK, id_column), True),
            (rows.filter(pc.invert(counted)), _KEY, False),
        ]
    chosen = [_choose(part, key, once=once) for part, key, once in parts if part.num_rows]
    kept, heard = zip(*chosen, strict=True) if chosen else ([rows], [rows])
    return pa.concat_tables(kept), pa.concat_tables(heard)


def find_missing(incoming: pa.Table, there: pa.Table) -> pa.Table:
    """The rows of `incoming` that `there` lacks, in their order. Rows alike in symbol, timestamp, price and volume are
    one trade; of one that is three times in `incoming` and twice there, one is missing. Both have plain texts.
    """
    if not incoming.num_rows or not there.num_rows:
        return incoming
    missing = _number(incoming).join(_number(there).drop_columns([_PLACE]), [*_TRADE, _RANK], join_type="left anti")
    places = missing.column(_PLACE)
    return incoming.take(places.take(pc.sort_indices(places)))


def _number(rows: pa.Table) -> pa.Table:
    """What tells each trade, its place, and its number among those that are alike."""
    some = _without_nulls(rows, _TRADE).append_column(_PLACE, pa.arange(0, rows.num_rows))
    some = some.take(pc.sort_indices(some, [(name, "ascending") for name in _TRADE])).combine_chunks()
    starts = pc.indices_nonzero(_changes(some, _TRADE)).cast(pa.int64())
    groups = pc.subtract(pc.cumulative_sum(_changes(some, _TRADE).cast(pa.int64())), 1)
    return some.append_column(_RANK, pc.subtract(pa.arange(0, some.num_rows), starts.take(groups)))


def _choose(rows: pa.Table, key: Sequence[str], *, once: bool) -> tuple[pa.Table, pa.Table]:
    """Of the rows of each key those of the root that has most (`once`: the first row of all); and what each root heard:
    its rows, a key no more often than it has the key (`once`: one).
    """
    rows = rows.take(pc.sort_indices(_without_nulls(rows, key), [(name, "ascending") for name in (*key, _ROOT)]))
    rows = rows.combine_chunks()
    size = rows.num_rows
    new_key = _changes(rows, key)
    new_run = pc.or_(new_key, _changes(rows, [_ROOT]))
    if once:
        return rows.filter(new_key), rows.filter(new_run)
    starts = pc.indices_nonzero(new_run).cast(pa.int64())
    lengths = pc.subtract(pa.concat_arrays([starts.slice(1), pa.array([size], pa.int64())]), starts)
    keys = pc.cumulative_sum(new_key.cast(pa.int64())).take(starts)
    # The longest run of each key; of those that are as long the first root's.
    rank = pc.bit_wise_or(pc.shift_left(keys, _LENGTH_BITS), pc.subtract(pa.scalar(_LONGEST), lengths))
    order = pc.array_sort_indices(rank)  # stable
    ordered = keys.take(order)
    first = pa.concat_arrays([pa.array([True]), pc.not_equal(ordered.slice(1), ordered.slice(0, len(ordered) - 1))])
    chosen = pc.is_in(pa.arange(0, len(starts)), order.filter(first).cast(pa.int64()))
    run_of_row = pc.subtract(pc.cumulative_sum(new_run.cast(pa.int64())), pa.scalar(1))
    return rows.filter(chosen.take(run_of_row)), rows


def _without_nulls(rows: pa.Table, key: Sequence[str]) -> pa.Table:
    """The columns to sort by; an unknown volume is one value of its own."""
    some = rows.select([*key, _ROOT] if _ROOT in rows.column_names else [*key])
    if "volume" in key:
        at = some.column_names.index("volume")
        some = some.set_column(at, "volume", pc.fill_null(some.column(at), -1.0))
    return some


def _changes(rows: pa.Table, names: Sequence[str]) -> Any:
    """Whether each row differs in these columns from the one before it; the first does."""
    size, some = rows.num_rows, _without_nulls(rows, [name for name in names if name != _ROOT])
    changed: Any = pa.repeat(False, size - 1)
    for name in names:
        column = some.column(name).combine_chunks()
        column = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
        changed = pc.or_(changed, pc.not_equal(column.slice(1), column.slice(0, size - 1)))
    return pa.concat_arrays([pa.array([True]), changed])


def _find_lacks(merged: pa.Table, heard: pa.Table, roots: int) -> list[Lack]:
    def count(rows: pa.Table) -> dict[tuple[int, str, int], int]:
        minutes = pc.multiply(pc.divide(rows.column("timestamp").cast(pa.int64()), _MINUTE_MS), _MINUTE_MS)
        table = pa.table({"symbol": rows.column("symbol"), "minute": minutes, "root": rows.column(_ROOT)})
        counts = table.group_by(["root", "symbol", "minute"], use_threads=False).aggregate([([], "count_all")])
        columns = (counts.column(name).to_pylist() for name in ("root", "symbol", "minute", "count_all"))
        return {(root, symbol, minute): trades for root, symbol, minute, trades in zip(*columns, strict=True)}

    have, whole = count(heard), Counter[tuple[str, int]]()
    for (_, symbol, minute), trades in count(merged).items():
        whole[symbol, minute] += trades
    return [
        Lack(root, symbol, minute, trades - have.get((root, symbol, minute), 0))
        for (symbol, minute), trades in sorted(whole.items())
        for root in range(roots)
        if trades > have.get((root, symbol, minute), 0)
    ]


def read_merged(layouts: Sequence[Layout], selection: Selection, id_column: str | None) -> Iterator[Merged]:
    """The rows of all roots that are asked for, date by date, some symbols at a time, with at least the columns of
    `schema.TRADES` by which they are told apart. Raises FormatTooNew, DamagedFile, OSError.
    """
    columns = tuple(dict.fromkeys([*selection.columns, *_LOOKED_AT, *([id_column] if id_column else [])]))
    pieces = _read_pieces(layouts, replace(selection, columns=columns))
    with ThreadPoolExecutor(1, "reading") as pool:  # the next piece is read while this one is merged
        following = pool.submit(next, pieces, None)
        while (piece := following.result()) is not None:
            following = pool.submit(next, pieces, None)
            day, tables = piece
            rows, lacks = merge_rows_of(tables, id_column)
            del piece, tables
            pa.default_memory_pool().release_unused()  # merging takes some times what its rows take
            yield Merged(day, rows, lacks)


def _read_pieces(layouts: Sequence[Layout], selection: Selection) -> Iterator[tuple[date, list[pa.Table]]]:
    """Date by date, some symbols at a time, the rows of each root, with the same columns."""
    days: set[date] = set()
    for layout in layouts:
        days.update(list_days(layout, selection.span))
        journaled = (batch.column("timestamp").cast(pa.int64()) for batch in take_snapshot(layout, EVER).journaled)
        numbers = (number for times in journaled for number in pc.unique(pc.divide(times, _DAY_MS)).to_pylist())
        days.update(utc_date(number * _DAY_MS) for number in numbers)
    for day in sorted(days):
        day_ms, asked = day_start_ms(day), selection.span
        start_ms = day_ms if asked.start_ms is None else max(day_ms, asked.start_ms)
        end_ms = day_ms + _DAY_MS if asked.end_ms is None else min(day_ms + _DAY_MS, asked.end_ms)
        if start_ms >= end_ms:
            continue
        whole = replace(selection, span=Span(start_ms, end_ms))
        for some in _group(layouts, whole):
            found = [read_selected(layout, replace(whole, symbols=some)) for layout in layouts]
            schema = pa.unify_schemas([one.schema for one in found if one is not None])
            yield day, [schema.empty_table() if one is None else with_columns(one, schema) for one in found]


def read_merged_dates(layouts: Sequence[Layout], selection: Selection) -> Iterator[tuple[date, pa.Table]]:
    """What `rows.read_dates` gives of one recording, of several: the rows of each UTC date, sorted. Raises the same."""
    id_column = find_id_column(layouts)
    for day, pieces in groupby(read_merged(layouts, selection, id_column), key=attrgetter("day")):
        rows = pa.concat_tables([one.rows for one in pieces])
        if rows.num_rows:
            for name in TEXTS:
                if name in rows.column_names:
                    at = rows.column_names.index(name)
                    rows = rows.set_column(at, name, rows.column(name).combine_chunks().dictionary_encode())
            yield day, rows.combine_chunks()


def find_id_column(layouts: Sequence[Layout]) -> str | None:
    """The column by which their venue counts its trades, as far as one says so. Raises FormatTooNew, OSError."""
    for layout in layouts:
        with suppress(NotARecording):  # a copy of the trades alone
            if column := read_id_column(layout):
                return column
    return None


def check_one_venue(layouts: Sequence[Layout]) -> None:
    """Raises ConfigError where these are not recordings of one venue."""
    histories = [read_history(layout) for layout in layouts]
    for names in ({history.feed for history in histories}, {history.venue for history in histories}):
        known = sorted(filter(None, names))  # what an earlier version did not tell may be any
        if len(known) > 1:
            raise ConfigError(f"these roots are of several venues ({', '.join(known)}), not of recorders of one")


def read_selected(layout: Layout, selection: Selection) -> pa.Table | None:
    """The rows that are asked for, with plain texts; None where there are none. Raises FormatTooNew, DamagedFile."""
    return read_consistently(
        layout,
        selection.span,
        lambda snapshot: concat_rows([plain_texts(rows) for _, rows in read_dates(snapshot, selection)]),
    )


def _group(layouts: Sequence[Layout], selection: Selection) -> Iterator[tuple[str, ...]]:
    """The symbols of a date, so many at a time that their rows fit into memory."""
    names = replace(selection, columns=("symbol",))

    def count(snapshot: Snapshot) -> Counter[str]:
        counts: Counter[str] = Counter()
        journaled = split_journaled(snapshot.journaled, names).values()
        for rows in chain(
            *(map(partial(read_rows, selection=names), own) for own in snapshot.files.values()), journaled
        ):
            counts.update(count_values(rows.column("symbol")))
        return counts

    counts: Counter[str] = Counter()
    for layout in layouts:
        counts.update(read_consistently(layout, selection.span, count))
    yield from group_symbols(counts)


def group_symbols(counts: Mapping[str, int]) -> Iterator[tuple[str, ...]]:
    """The symbols, by how many rows each has, in order: as many together as have GROUP_ROWS rows, at least one."""
    some: list[str] = []
    held = 0
    for symbol in sorted(counts):
        if some and held + counts[symbol] > GROUP_ROWS:
            yield tuple(some)
            some, held = [], 0
        some.append(symbol)
        held += counts[symbol]
    if some:
        yield tuple(some)


def merge_coverage(coverages: Sequence[Coverage]) -> Coverage:
    """Of each symbol: recorded where any recorded it, else unproven where any asked for it in vain, else blind."""
    symbols = sorted({symbol for coverage in coverages for symbol in coverage.symbols})
    intervals = {
        symbol: join_best(symbol, [piece for coverage in coverages for piece in coverage.intervals(symbol)])
        for symbol in symbols
    }
    gaps = [
        Gap(symbol, piece.cause or "", piece.start_us, piece.end_us)
        for symbol, pieces in intervals.items()
        for piece in pieces
        if piece.state == "blind"
    ]
    return find_coverage([], closed=Closed(intervals, gaps))


def disagreements(lacks: Iterable[Lack], coverages: Sequence[Coverage]) -> Iterator[Lack]:
    """Those lacks that no gap explains: the recorder says that it recorded the symbol for all of that minute, and so
    does another.
    """
    intervals: dict[tuple[int, str], list[Interval]] = {}

    def recorded(root: int, symbol: str, minute_ms: int) -> bool:
        if (root, symbol) not in intervals:
            told = coverages[root].intervals(symbol)
            intervals[root, symbol] = join_best(symbol, (one._replace(proof=None) for one in told))
        found = state_at(intervals[root, symbol], minute_ms * 1000)
        state: State | None = found.state if found else None
        return state == "recorded" and found is not None and found.end_us >= minute_ms * 1000 + _MINUTE_US

    for lack in lacks:
        if recorded(lack.root, lack.symbol, lack.minute_ms) and any(
            recorded(other, lack.symbol, lack.minute_ms) for other in range(len(coverages)) if other != lack.root
        ):
            yield lack
