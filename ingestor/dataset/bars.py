"""Bars with the share of each that was recorded.

Coverage is known by the time of receipt, bars are made by the time of trades: the difference is the feed's delay. It is
measured on the trades themselves (`received_at` minus `timestamp`), so that both are judged by one clock. A feed that
is 15 minutes late and loses a minute has lost what happened 15 minutes earlier.
"""

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, date
from functools import cache, partial
from operator import itemgetter
from statistics import median
from typing import TYPE_CHECKING, Any, Literal, overload

import pyarrow as pa
import pyarrow.compute as pc

from ingestor.coverage import Coverage, Interval, State
from ingestor.dataset import arguments
from ingestor.dataset.arguments import EVER, Engine, Names, Roots, Span, Time
from ingestor.dataset.bar_grid import parse_interval
from ingestor.dataset.bar_maker import BARS, COLUMNS, Recipe, make_bars
from ingestor.dataset.coverage import read_known_coverage, warn_of_unknown
from ingestor.dataset.market_rules import Session, in_session
from ingestor.dataset.merged import check_one_venue, merge_coverage, read_merged_dates
from ingestor.dataset.rows import Selection, as_frame, by_symbol, read_dates, sort_rows, split_journaled
from ingestor.dataset.snapshot import Snapshot, open_recording, read_consistently
from ingestor.schema import ORIGIN, RECEIVED_AT, TIMESTAMP, TRADES
from ingestor.us_market import is_us_symbol, read_calendar

if TYPE_CHECKING:
    from pandas import DataFrame

_BUCKET_US = 10_000_000
_BUCKETS = 30
_FRESH_US = 60_000_000
_LATE_US = 2_000_000
"""Less than that is what a network takes: edges are true to two seconds."""

_EDGE_MS = 3_600_000
_NEWEST = ("received_max", "sent_max")
_COVERED = BARS.append(pa.field("coverage", pa.float64()))


class Delays:
    """The age of the newest trades of each symbol at their receipt, in steps of ten seconds."""

    def __init__(self) -> None:
        self._tables: list[pa.Table] = []
        self._runs: dict[str, tuple[Sequence[int], Sequence[int]]] = {}
        """Of each symbol the receipts, ascending, and the delays then; of all under "". Made when first asked for."""

    def measured(self, dates: Iterable[tuple[date, pa.Table]]) -> Iterator[tuple[date, pa.Table]]:
        """The same, measured as they pass."""
        for day, rows in dates:
            heard = rows
            if ORIGIN.name in rows.column_names:  # what was filled came when it was asked for
                heard = rows.filter(pc.is_null(rows.column(ORIGIN.name)))
            received_us = heard.column("received_at").cast(pa.int64())
            columns = {
                "symbol": heard.column("symbol"),
                "bucket": pc.divide(received_us, _BUCKET_US),
                "received": received_us,
                "sent": pc.multiply(heard.column("timestamp").cast(pa.int64()), 1000),
            }
            grouped = pa.table(columns).group_by(["symbol", "bucket"], use_threads=False)
            newest = grouped.aggregate([("received", "max"), ("sent", "max")])
            self._tables.append(newest.set_column(0, "symbol", newest.column("symbol").cast(pa.string())))
            yield day, rows

    def shift(self, symbol: str, spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Spans (µs) of receipt as spans of when trades happened."""
        received_us, delays_us = self._find(symbol)
        shifted = []
        for start_us, end_us in spans:
            first, last = bisect_left(received_us, start_us), bisect_right(received_us, end_us)
            if first < last:  # what the clock showed elsewhere, before a step or behind it, says nothing of this span
                begin_us = round(median(delays_us[first : min(first + _BUCKETS, last)]))
                late_us = round(median(delays_us[max(last - _BUCKETS, first) : last]))
                if received_us[first] < start_us + _FRESH_US:
                    begin_us = min(begin_us, delays_us[first])
                if received_us[last - 1] > end_us - _FRESH_US:  # what had piled up and was read at last
                    late_us = max(late_us, delays_us[last - 1])
            else:  # by what came before and after it
                around = [delays_us[max(first - _BUCKETS, 0) : first], delays_us[first : first + _BUCKETS]]
                medians = [round(median(some)) for some in around if some]
                begin_us, late_us = min(medians, default=0), max(medians, default=0)
            begin_us = begin_us if abs(begin_us) > _LATE_US else 0
            late_us = late_us if abs(late_us) > _LATE_US else 0
            shifted.append((start_us - begin_us, end_us - late_us))
        return [(start_us, end_us) for start_us, end_us in shifted if start_us < end_us]

    def _find(self, symbol: str) -> tuple[Sequence[int], Sequence[int]]:
        if not self._runs:
            empty = {"symbol": pa.array([], pa.string()), **dict.fromkeys(_NEWEST, pa.array([], pa.int64()))}
            newest = pa.concat_tables(self._tables or [pa.table(empty)]).select(["symbol", *_NEWEST])
            self._runs[""] = _as_delays(newest.sort_by("received_max"))
            # One sort for all symbols: to sort each by itself costs more than to find its trades.
            newest = newest.sort_by([("symbol", "ascending"), ("received_max", "ascending")])
            at, (received, delays) = 0, _as_delays(newest)
            for name, run in by_symbol(newest):
                end = at + run.num_rows
                self._runs[name], at = (received[at:end], delays[at:end]), end
        return self._runs.get(symbol, self._runs[""])  # a symbol without trades is judged by the delays of all


def _as_delays(newest: pa.Table) -> tuple[Sequence[int], Sequence[int]]:
    """Views of the receipts, and of how long before them the newest trades were made."""
    received = newest.column("received_max").combine_chunks()
    delays = pc.subtract(received, newest.column("sent_max").combine_chunks())
    received_us, delays_us = (memoryview(one.buffers()[1] or b"").cast("q") for one in (received, delays))
    return received_us[received.offset :][: len(received)], delays_us[delays.offset :][: len(delays)]


def recorded_spans(intervals: list[Interval], state: State = "recorded") -> list[tuple[int, int]]:
    """The spans (µs) in which a symbol was proven recorded, or was in another state, joined where one follows on
    another.
    """
    spans: list[tuple[int, int]] = []
    for one in intervals:
        if one.state != state:
            continue
        if spans and spans[-1][1] == one.start_us:
            spans[-1] = (spans[-1][0], one.end_us)
        else:
            spans.append((one.start_us, one.end_us))
    return spans


def recorded_shares(spans: list[tuple[int, int]], starts_ms: pa.Array, ends_ms: pa.Array) -> pa.Array:
    """For each bar of one symbol, the share of it (0 to 1) that lies in these spans. `starts_ms` ascends."""
    if not spans or not len(starts_ms):
        return pa.repeat(0.0, len(starts_ms))
    first_us, last_us = starts_ms[0].as_py() * 1000, ends_ms[-1].as_py() * 1000
    if any(start_us <= first_us and last_us <= end_us for start_us, end_us in spans):  # as it mostly is
        return pa.repeat(1.0, len(starts_ms))
    starts_us, ends_us = pc.multiply(starts_ms, 1000), pc.multiply(ends_ms, 1000)
    covered_us = pa.repeat(pa.scalar(0, pa.int64()), len(starts_ms))
    for start_us, end_us in spans:
        if start_us < last_us and end_us > first_us:
            shared_us = pc.subtract(pc.min_element_wise(ends_us, end_us), pc.max_element_wise(starts_us, start_us))
            covered_us = pc.add(covered_us, pc.max_element_wise(shared_us, 0))
    return pc.divide(covered_us.cast(pa.float64()), pc.subtract(ends_us, starts_us).cast(pa.float64()))


@overload
def read_bars(root: Roots, interval: str = ..., symbols: Names | None = ..., start: Time | None = ...,
              end: Time | None = ..., tz: str = ..., *, session: Session = ..., conditions: Literal["sip", "all"] = ...,
              repeats: Literal["keep", "drop"] = ..., fill: bool = ...,
              engine: Literal["pandas"] = ...) -> "DataFrame": ...  # fmt: skip
@overload
def read_bars(root: Roots, interval: str = ..., symbols: Names | None = ..., start: Time | None = ...,
              end: Time | None = ..., tz: str = ..., *, session: Session = ..., conditions: Literal["sip", "all"] = ...,
              repeats: Literal["keep", "drop"] = ..., fill: bool = ...,
              engine: Literal["arrow"]) -> pa.Table: ...  # fmt: skip
def read_bars(
    root: Roots,
    interval: str = "1m",
    symbols: Names | None = None,
    start: Time | None = None,
    end: Time | None = None,
    tz: str = "UTC",
    *,
    session: Session = "all",
    conditions: Literal["sip", "all"] = "sip",
    repeats: Literal["keep", "drop"] = "keep",
    fill: bool = False,
    engine: Engine = "pandas",
) -> Any:
    """The bars that begin in [start, end), each whole, sorted by (symbol, start).

    >>> import ingestor
    >>> bars = ingestor.read_bars("data", "1m", symbols=["AAPL"], tz="America/New_York")
    >>> list(bars.columns)  # doctest: +NORMALIZE_WHITESPACE
    ['symbol', 'start', 'session_date', 'open', 'high', 'low', 'close', 'volume', 'trades', 'vwap', 'coverage']

    `interval`: `1s`, `5m`, `1h`, `1d`, whatever divides a day. A bar is [start, next start), aligned to midnight in
    `tz`; `session_date` is its date there (a column where `tz` is not UTC). `session`: `regular` (09:30 to 16:00 New
    York), `extended` (04:00 to 20:00), `overnight` (20:00 to 04:00 before a trading day) or `all`; it follows holidays
    and early closes, and does not apply to symbols of other exchanges. A day's regular bar includes the closing
    auction, which is reported just after the close.

    `conditions`: `sip` applies the US rules on which prints move what to symbols without a prefix (`AAPL`, not
    `BINANCE:BTCUSDT`); `all` lets every print move everything. Price-only updates (volume 0) move prices, but neither
    `volume` nor `trades`. VWAP is over what counts in volume. A bar of odd lots alone has null prices and a volume.

    `coverage` is the share of the bar (0 to 1) in which the symbol was proven recorded, by the time of trades: what is
    known by receipt is shifted by the delay of the trades around it. Bars without trades are absent; `fill` adds those
    that were fully recorded and had no trade (last close, volume 0). A bar that is absent even then was not fully
    recorded. Where a source's history has filled a part of that time, there is a column `filled`: its share of the bar;
    where a file has told of it, there is a column `imported`.

    `root` may be a list of recordings that several recorders of one venue made: then the bars are of the trades that
    any of them has, and `coverage` of the time that any of them recorded.

    Warns of a symbol that is not recorded, and where newer trades are in CSV alone. Raises NotARecording, FormatTooNew,
    ValueError for an argument that can't be used, ConfigError where pandas is missing.
    """
    arguments.check_engine(engine)
    arguments.check_word("session", session, ("all", "regular", "extended", "overnight"))
    arguments.check_word("conditions", conditions, ("sip", "all"))
    arguments.check_word("repeats", repeats, ("keep", "drop"))
    chosen = arguments.find_names(symbols)
    layouts = [open_recording(one) for one in arguments.find_roots(root)]
    calendar = read_calendar(layouts[0].holidays)
    recipe = Recipe(parse_interval(interval), arguments.find_zone(tz), session, conditions, calendar)
    asked = arguments.find_span(start, end, tz)
    # The bars that begin in it, each whole.
    span = Span(*(None if ms is None else recipe.grid(ms, ms).edge_from(ms) for ms in (asked.start_ms, asked.end_ms)))
    selection = Selection(span, (*COLUMNS, "received_at", ORIGIN.name), chosen, repeats == "drop")

    def make(coverage: Coverage, read_dates: Callable[[Selection], Iterator[tuple[date, pa.Table]]]) -> pa.Table:
        delays = Delays()
        made = make_bars(delays.measured(read_dates(selection)), recipe)
        edges = [  # a bar without trades is judged by those around it
            *([] if span.start_ms is None else [Span(span.start_ms - _EDGE_MS, span.start_ms)]),
            *([] if span.end_ms is None else [Span(span.end_ms, span.end_ms + _EDGE_MS)]),
        ]
        for edge in edges:
            around = read_dates(
                replace(selection, span=edge, columns=("timestamp", "symbol", "received_at", ORIGIN.name))
            )
            deque(delays.measured(around), maxlen=0)

        intervals = cache(coverage.intervals)

        def spans_of(symbol: str) -> list[tuple[int, int]]:
            return delays.shift(symbol, recorded_spans(intervals(symbol)))

        bars = _with_shares(made, "coverage", spans_of).cast(_COVERED)
        bars = _filled(bars, coverage.symbols, spans_of, recipe, span) if fill else bars
        return _with_brought_shares(bars, delays, intervals)

    if len(layouts) > 1:
        check_one_venue(layouts)
        coverages = [read_known_coverage(layout, selection.symbols, span=span) for layout in layouts]
        bars = make(merge_coverage(coverages), partial(read_merged_dates, layouts))
    else:

        def read(snapshot: Snapshot) -> pa.Table:
            coverage = read_known_coverage(layouts[0], selection.symbols, snapshot.journaled_us, span)
            return make(coverage, partial(read_dates, snapshot))

        bars = read_consistently(layouts[0], span, read)
    warn_of_unknown(layouts, chosen, bars.column("symbol"))
    return as_frame(_finished(bars, recipe), engine, tz)


def bars_of(
    trades: Any,
    interval: str = "1m",
    tz: str = "UTC",
    *,
    coverage: Any = None,
    session: Session = "all",
    conditions: Literal["sip", "all"] = "sip",
) -> pa.Table:
    """The bars of trades that something else has read, such as Spark or a Delta table: what `read_bars` makes of them.

    `trades`: a table with the columns of `read_trades`, or several, such as one per UTC date, oldest first: one is in
    memory at a time. A table is whatever pyarrow takes for one (Arrow, pandas, polars). Its rows may be in any order.
    `coverage`: a table with the columns of `read_coverage`, or of the files in `coverage/`; without it the bars have no
    columns `coverage` and `filled`.

    >>> import ingestor
    >>> trades, spans = ingestor.read_trades("data", engine="arrow"), ingestor.read_coverage("data", engine="arrow")
    >>> ingestor.bars_of(trades, "1m", coverage=spans).equals(ingestor.read_bars("data", "1m", engine="arrow"))
    True

    A bar is whole where its trades are all there. Only the rules of the US market are known, not the single days off
    that a venue has told a recorder of. Raises ValueError for an argument that can't be used.
    """
    arguments.check_word("session", session, ("all", "regular", "extended"))
    arguments.check_word("conditions", conditions, ("sip", "all"))
    recipe = Recipe(parse_interval(interval), arguments.find_zone(tz), session, conditions)
    delays = Delays()
    several = [trades] if hasattr(trades, "__arrow_c_stream__") or hasattr(trades, "columns") else trades
    bars = make_bars(delays.measured(_split_dates(map(_to_table, several))), recipe)
    if coverage is not None:
        stretches: dict[str, list[Interval]] = {}
        told = _to_table(coverage)
        times_us = [told.column(name).cast(RECEIVED_AT).cast(pa.int64()).to_pylist() for name in ("start", "end")]
        names = [told.column(name).to_pylist() for name in ("symbol", "state", "cause")]
        for start_us, end_us, symbol, state, cause in sorted(zip(*times_us, *names, strict=True), key=itemgetter(0)):
            stretches.setdefault(symbol, []).append(Interval(symbol, state, cause, start_us, end_us))

        def intervals(symbol: str) -> list[Interval]:
            return stretches.get(symbol, [])

        bars = _with_shares(bars, "coverage", lambda symbol: delays.shift(symbol, recorded_spans(intervals(symbol))))
        bars = _with_brought_shares(bars.cast(_COVERED), delays, intervals)
    found: pa.Table = as_frame(_finished(bars, recipe), "arrow", tz)
    return found


def _to_table(rows: Any) -> pa.Table:
    if isinstance(rows, pa.Table):
        return rows
    return pa.table(rows) if hasattr(rows, "__arrow_c_stream__") else pa.Table.from_pandas(rows, preserve_index=False)


def _split_dates(tables: Iterable[pa.Table]) -> Iterator[tuple[date, pa.Table]]:
    """The rows by UTC date, as `read_dates` gives them."""
    selection = Selection(EVER, (*COLUMNS, "received_at", ORIGIN.name))
    known = [field for field in (*TRADES, ORIGIN) if field.name in (*selection.columns, "sequence")]
    for table in tables:
        present = [field for field in known if field is not ORIGIN or field.name in table.column_names]
        rows = pa.table({field.name: table.column(field.name).cast(field.type) for field in present})
        for day, own in sorted(split_journaled(rows.sort_by("sequence").to_batches(), selection).items()):
            yield day, sort_rows(own)


def _with_shares(bars: pa.Table, name: str, spans_of: Callable[[str], list[tuple[int, int]]]) -> pa.Table:
    """The bars with a column of how much of each lies in its symbol's spans."""
    shares = [
        recorded_shares(spans_of(symbol), own.column("start_ms"), own.column("end_ms"))
        for symbol, own in by_symbol(bars)
    ]
    return bars.append_column(name, pa.chunked_array(shares, pa.float64()))


def _with_brought_shares(bars: pa.Table, delays: Delays, intervals: Callable[[str], list[Interval]]) -> pa.Table:
    """The bars, and where anything was filled or imported how much of each."""
    symbols = pc.unique(bars.column("symbol")).to_pylist()
    filled = {symbol: recorded_spans(intervals(symbol), "filled") for symbol in symbols}
    if any(filled.values()):
        bars = _with_shares(bars, "filled", lambda symbol: delays.shift(symbol, filled[symbol]))
    imported = {symbol: recorded_spans(intervals(symbol), "imported") for symbol in symbols}
    if any(imported.values()):  # which was told by the time of the trades
        bars = _with_shares(bars, "imported", imported.__getitem__)
    return bars


def _filled(
    bars: pa.Table,
    symbols: Iterable[str],
    spans_of: Callable[[str], list[tuple[int, int]]],
    recipe: Recipe,
    span: Span,
) -> pa.Table:
    """The bars, and those between them that were recorded whole and had no trade."""
    tables = [bars]
    own = dict(by_symbol(bars))
    for symbol in symbols:
        starts_ms, ends_ms = _recorded_whole(symbol, spans_of(symbol), recipe, span)
        if symbol in own:
            absent = pc.invert(pc.is_in(starts_ms, own[symbol].column("start_ms")))
            starts_ms, ends_ms = starts_ms.filter(absent), ends_ms.filter(absent)
        size = len(starts_ms)
        unknown = pa.nulls(size, pa.float64())  # prices are those of the bar before: see below
        columns = [
            pa.repeat(symbol, size), starts_ms, ends_ms, unknown, unknown, unknown, unknown, pa.repeat(0.0, size),
            pa.repeat(pa.scalar(0, pa.int64()), size), unknown, pa.repeat(1.0, size),
        ]  # fmt: skip
        tables.append(pa.Table.from_arrays(columns, schema=_COVERED))
    filled = pa.concat_tables(tables).sort_by([("symbol", "ascending"), ("start_ms", "ascending")])
    tables = []
    for _, one in by_symbol(filled):  # a symbol's bars without a trade stand at the last close before them
        close = one.column("close")
        quiet = pc.and_(
            pc.equal(one.column("trades"), 0), pc.and_(pc.is_null(close), pc.equal(one.column("volume"), 0.0))
        )
        last_close = pc.fill_null_forward(close)
        table = pa.Table.from_batches([one])
        for name in ("open", "high", "low", "close"):
            at = table.column_names.index(name)
            table = table.set_column(at, name, pc.if_else(quiet, last_close, one.column(name)))
        tables.append(table)
    return pa.concat_tables(tables or [filled])


def _recorded_whole(symbol: str, spans: list[tuple[int, int]], recipe: Recipe, span: Span) -> tuple[pa.Array, pa.Array]:
    """Starts and ends of the bars that lie whole in one of these spans (µs), and in the session and span asked for."""
    starts = [pa.array([], pa.int64())]
    ends = [pa.array([], pa.int64())]
    for start_us, end_us in spans:
        start_ms = max(-(-start_us // 1000), span.start_ms or 0)
        end_ms = end_us // 1000 if span.end_ms is None else min(end_us // 1000, span.end_ms)
        if start_ms < end_ms:
            grid = recipe.grid(start_ms, end_ms)
            found = grid.edges(start_ms, end_ms)
            found_ends = grid.ends(found)
            whole = pc.less_equal(found_ends, end_ms)
            if recipe.session != "all" and is_us_symbol(symbol):
                whole = pc.and_(whole, in_session(found, recipe.session, recipe.calendar))
            starts.append(found.filter(whole))
            ends.append(found_ends.filter(whole))
    return pa.concat_arrays(starts), pa.concat_arrays(ends)


def _finished(bars: pa.Table, recipe: Recipe) -> pa.Table:
    """The columns that a caller sees."""
    starts = bars.column("start_ms").cast(TIMESTAMP)
    columns = {"symbol": bars.column("symbol"), "start": starts}
    if recipe.zone is not UTC:
        local = pc.local_timestamp(starts.cast(pa.timestamp("ms", str(recipe.zone))))
        columns["session_date"] = local.cast(pa.date32())
    rest = [name for name in bars.column_names if name not in ("symbol", "start_ms", "end_ms")]
    return pa.table(columns | {name: bars.column(name) for name in rest})
