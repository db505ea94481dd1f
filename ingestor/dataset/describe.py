"""Describes a recording: one row per symbol."""

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import date
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal, overload

import pyarrow as pa
import pyarrow.compute as pc

from ingestor.coverage import Coverage, clip, sum_shares
from ingestor.dataset.arguments import Engine, Names, Roots, Span, Time, check_engine, find_names, find_roots, find_span
from ingestor.dataset.coverage import read_known_coverage, warn_of_unknown
from ingestor.dataset.merged import check_one_venue, find_id_column, merge_coverage, read_merged_dates
from ingestor.dataset.rows import Selection, as_frame, plain_texts, read_dates
from ingestor.dataset.snapshot import Snapshot, open_recording, read_consistently
from ingestor.parquet import count_rows
from ingestor.schema import ORIGIN, TIMESTAMP
from ingestor.trade_ids import IdRanges

if TYPE_CHECKING:
    from pandas import DataFrame

DESCRIPTION = pa.schema(
    [
        ("symbol", pa.string()),
        ("first", TIMESTAMP),
        ("last", TIMESTAMP),
        ("trades", pa.int64()),
        ("bytes", pa.int64()),  # of Parquet, by its share of each date's rows
        ("recorded", pa.float64()),  # share of the time for which it was asked for, 0 to 1
        ("blind", pa.float64()),
        ("unproven", pa.float64()),
        ("filled", pa.float64()),  # blind or unproven once, and filled from a source's history since
        ("imported", pa.float64()),  # neither recorded nor filled, and imported from a file
        ("gaps", pa.int64()),
        ("late", pa.float64()),  # share of the trades that came more than a minute after their time
        ("ids", pa.int64()),  # distinct ones by which the venue counts the symbol's trades; null where it doesn't
        ("missing", pa.int64()),  # ids between the first and the last of them that are not there
        *((f"delay_{name}_ms", pa.int64()) for name in ("min", "p50", "p90", "p99", "max")),
    ]
)
_LATE_MS = 60_000
_QUANTILES = (0.0, 0.5, 0.9, 0.99, 1.0)


@overload
def describe(root: Roots, symbols: Names | None = ..., tz: str = ..., *, start: Time | None = ...,
             end: Time | None = ..., engine: Literal["pandas"] = ...) -> "DataFrame": ...  # fmt: skip
@overload
def describe(root: Roots, symbols: Names | None = ..., tz: str = ..., *, start: Time | None = ...,
             end: Time | None = ..., engine: Literal["arrow"]) -> pa.Table: ...  # fmt: skip
def describe(
    root: Roots,
    symbols: Names | None = None,
    tz: str = "UTC",
    *,
    start: Time | None = None,
    end: Time | None = None,
    engine: Engine = "pandas",
) -> Any:
    """A row for each symbol that was asked for or has trades, in [start, end): when, how many, how covered, how late.

    >>> import ingestor
    >>> int(ingestor.describe("data").set_index("symbol").loc["AAPL", "gaps"])
    1

    `recorded`, `blind`, `unproven`, `filled` and `imported` are shares of the time for which the symbol was asked for
    or imported. Delays are `received_at` minus `timestamp` in whole ms, by nearest rank; negative ones (a clock is off)
    are shown, not clipped. Where the venue counts its trades, `missing` says how many of a symbol's were not heard.

    `root` may be a list of recordings that several recorders of one venue made: each trade counts once, a symbol is
    recorded where any of them recorded it, and `bytes` is null.

    Warns of a symbol that is not recorded, and where newer trades are in CSV alone.
    Raises NotARecording, FormatTooNew, ValueError for a time that is none, ConfigError where pandas is missing.
    """
    check_engine(engine)
    span = find_span(start, end, tz)
    chosen = find_names(symbols)
    layouts = [open_recording(one) for one in find_roots(root)]
    id_column = find_id_column(layouts)

    def sum_up(coverage: Coverage, facts: dict[str, dict[str, Any]]) -> pa.Table:
        described: list[dict[str, Any]] = []
        covered = {symbol: clip(coverage.intervals(symbol), *span.bounds_us) for symbol in coverage.symbols}
        for symbol in sorted({*facts, *(symbol for symbol, own in covered.items() if own)}):
            intervals = covered.get(symbol, [])
            shares = sum_shares(intervals)
            total_us = sum(shares)
            row: dict[str, Any] = {"symbol": symbol, "gaps": sum(one.state == "blind" for one in intervals)}
            for name, us in zip(("recorded", "blind", "unproven", "filled", "imported"), shares, strict=True):
                row[name] = us / total_us if total_us else None
            nothing = {"trades": 0, "bytes": 0 if len(layouts) == 1 else None}
            described.append(row | (_recorded(facts[symbol]) if symbol in facts else nothing))
        return pa.Table.from_pylist(described, schema=DESCRIPTION)

    if len(layouts) > 1:
        check_one_venue(layouts)
        coverages = [read_known_coverage(layout, chosen, span=span) for layout in layouts]
        facts = _facts(partial(read_merged_dates, layouts), None, span, chosen, id_column)
        rows = sum_up(merge_coverage(coverages), facts)
    else:

        def read(snapshot: Snapshot) -> pa.Table:
            coverage = read_known_coverage(layouts[0], chosen, snapshot.journaled_us, span)
            return sum_up(coverage, _facts(partial(read_dates, snapshot), snapshot, span, chosen, id_column))

        rows = read_consistently(layouts[0], span, read)
    warn_of_unknown(layouts, chosen, rows.column("symbol"))
    return as_frame(rows, engine, tz)


def _facts(
    read: Callable[[Selection], Iterator[tuple[date, pa.Table]]],
    snapshot: Snapshot | None,
    span: Span,
    symbols: tuple[str, ...] | None,
    id_column: str | None,
) -> dict[str, dict[str, Any]]:
    """Of each symbol: first, last, bytes (of a snapshot), and how many trades had which delay. One date is in memory at
    a time.
    """
    own = () if id_column is None else (id_column,)
    selection = Selection(span, ("symbol", "timestamp", "received_at", ORIGIN.name, *own), symbols)
    ids = IdRanges()
    facts: dict[str, dict[str, Any]] = {}
    for day, rows in read(selection):
        files = snapshot.files.get(day, ()) if snapshot else ()
        size = sum(path.stat().st_size for path in files)
        whole = sum(count_rows(path) for path in files)
        if id_column in rows.column_names:
            for batch in rows.select(["symbol", id_column]).combine_chunks().to_batches():
                ids.add_columns(batch.column(0).cast(pa.string()), batch.column(1))
        for spoken in _summed(rows):
            empty = {"first": spoken["first"], "bytes": 0.0 if snapshot else None, "delays": Counter[int | None]()}
            known = facts.setdefault(spoken["symbol"], empty)
            known["last"] = spoken["last"]
            if snapshot:
                known["bytes"] += size * spoken["trades"] / max(whole, rows.num_rows)
            known["delays"].update(spoken["delays"])
    for symbol, (seen, missing) in ids.counts().items():
        facts[symbol] |= {"ids": seen, "missing": missing}
    return facts


def _summed(rows: pa.Table) -> list[dict[str, Any]]:
    """One date's facts by symbol."""
    rows = plain_texts(rows)
    delay_us = pc.subtract(
        rows.column("received_at").cast(pa.int64()), pc.multiply(rows.column("timestamp").cast(pa.int64()), 1000)
    )
    delay_ms = pc.floor(pc.divide(delay_us.cast(pa.float64()), 1000.0)).cast(pa.int64())
    if ORIGIN.name in rows.column_names:  # what was filled came when it was asked for: it has no delay
        delay_ms = pc.if_else(pc.is_null(rows.column(ORIGIN.name)), delay_ms, pa.scalar(None, pa.int64()))
    delays = rows.append_column("delay_ms", delay_ms).group_by(["symbol", "delay_ms"]).aggregate([([], "count_all")])
    by_symbol: dict[str, Counter[int | None]] = {}
    for symbol, delay, count in zip(
        *(delays.column(name).to_pylist() for name in ("symbol", "delay_ms", "count_all")), strict=True
    ):
        by_symbol.setdefault(symbol, Counter())[delay] = count
    spans = rows.group_by("symbol").aggregate([("timestamp", "min"), ("timestamp", "max"), ([], "count_all")])
    return [
        {
            "symbol": one["symbol"],
            "first": one["timestamp_min"],
            "last": one["timestamp_max"],
            "trades": one["count_all"],
            "delays": by_symbol[one["symbol"]],
        }
        for one in spans.to_pylist()
    ]


def _recorded(facts: dict[str, Any]) -> dict[str, Any]:
    delays = Counter[int]({delay: count for delay, count in facts["delays"].items() if delay is not None})
    heard, trades = delays.total(), facts["delays"].total()
    names = [name for name in DESCRIPTION.names if name.startswith("delay_")]
    ordered = sorted(delays)
    ranks = list(accumulate(delays[delay] for delay in ordered))
    quantiles: list[int | None] = [None] * len(names)
    if heard:  # by nearest rank
        quantiles = [ordered[bisect_left(ranks, max(math.ceil(share * heard), 1))] for share in _QUANTILES]
    return {
        "first": facts["first"],
        "last": facts["last"],
        "trades": trades,
        "bytes": None if facts["bytes"] is None else round(facts["bytes"]),
        "ids": facts.get("ids"),
        "missing": facts.get("missing"),
        "late": sum(count for delay_ms, count in delays.items() if delay_ms > _LATE_MS) / max(heard, 1),
        **dict(zip(names, quantiles, strict=True)),
    }
