"""Compares a whole day of a recording with a source's history, gap or none: completeness as a measured number.

Trades are alike where time, price and volume are, and the id where the venue counts its trades. Where it doesn't, those
that are alike are counted on both sides: identical trades are genuine.
"""

from collections.abc import Iterator, Sequence
from datetime import date
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from ingestor.backfill.sources import HISTORY, Ask, Source, SourceRefused
from ingestor.coverage import Coverage, Interval, clip
from ingestor.dataset.arguments import Span, day_start_ms
from ingestor.dataset.coverage import load_coverage
from ingestor.dataset.inventory import read_id_column
from ingestor.dataset.rows import Selection, concat_rows, plain_texts, read_dates
from ingestor.dataset.snapshot import read_consistently
from ingestor.layout import Layout
from ingestor.ledger import read_all_facts
from ingestor.operations.preflight import VenueUnreachable
from ingestor.schema import ORIGIN

NAMED = 1000
"""Of a symbol so many trades are named that only one side has."""
_DAY_MS = 86_400_000
_NEIGHBOURS = 1000
"""Ids of a call that looks for where the day begins or ends."""
_LATEST_MS = 60_000
"""A trade that came later than this is not expected."""
_PAD_MS = 500
_BLIND = frozenset({"blind", "unproven"})


class Unmatched(NamedTuple):
    """A trade that one side alone has, or that they tell differently."""

    kind: str
    """`missing`: the source has it; `extra`: the recording has it; `differs`: what is recorded under an id of both."""
    time_ms: int
    price: float
    volume: float | None
    id: int | None
    in_gap: bool
    """It is missing, and could have been received while the symbol was blind or unproven."""


class SymbolAudit(NamedTuple):
    """What a day's comparison of one symbol found."""

    symbol: str
    recorded: int
    """Trades of the time that is compared: for which the symbol was asked for."""
    filled: int
    """Of these, those that a source has filled."""
    source: int
    """Trades of the source in that time."""
    alike: int
    missing: int
    """The source has them, and the recording hasn't."""
    in_gaps: int
    """Of the missing, those that coverage tells of."""
    extra: int
    """The recording has them, and the source hasn't."""
    differ: int
    """Of those that both have by id, those of another time, price or volume."""
    unmatched: list[Unmatched]
    """The first of them by kind and time."""
    why: str | None = None
    """Why nothing was compared."""

    @property
    def complete(self) -> float | None:
        """The share of the source's trades that are recorded."""
        return (self.source - self.missing) / self.source if self.source else None

    @property
    def clean(self) -> bool:
        """It was compared, and nothing differs that coverage doesn't tell of."""
        return self.why is None and not (self.missing - self.in_gaps or self.extra or self.differ)


class Audit:
    """A day of a recording against a source. It only reads; one symbol of the day at a time is in memory."""

    def __init__(self, layout: Layout, source: Source, day: date, symbols: Sequence[str] | None = None) -> None:
        """Those symbols (None: all). Raises NotARecording, FormatTooNew, DamagedFile, OSError."""
        self._layout = layout
        self._source = source
        self._day_ms = day_start_ms(day)
        self._id_column = read_id_column(layout)
        span = Span(self._day_ms, self._day_ms + _DAY_MS)
        self._coverage: Coverage = load_coverage(layout, symbols, span=span)
        bounds_us = self._day_ms * 1000, (self._day_ms + _DAY_MS) * 1000
        claims = {one: clip(self._coverage.intervals(one), *bounds_us) for one in self._coverage.symbols}
        self._missed: dict[str, list[tuple[int, int]]] = {}
        """Of each symbol the first and the last of ids that never came."""
        for fact in read_all_facts(layout, '"fact":"segment.'):
            if fact["fact"] == "ids.missed":
                self._missed.setdefault(fact["symbol"], []).append((fact["first"], fact["last"]))
        self._claims: dict[str, list[Interval]] = {symbol: own for symbol, own in claims.items() if own}
        self.symbols = sorted(self._claims)
        """Those that were asked for on that day."""

    def run(self) -> Iterator[SymbolAudit]:
        """Symbol by symbol. Raises FormatTooNew, DamagedFile, OSError."""
        final: str | None = None
        for symbol in self.symbols:
            why = final
            if why is None:
                try:
                    yield self._compare(symbol)
                    continue
                except (SourceRefused, VenueUnreachable) as error:
                    why = str(error)
                    if isinstance(error, SourceRefused) and error.final:
                        final = why
            yield SymbolAudit(symbol, 0, 0, 0, 0, 0, 0, 0, 0, [], why)

    def _compare(self, symbol: str) -> SymbolAudit:
        ours = self._read_ours(symbol)
        early_ms, late_ms = _delays(ours)
        claims = self._claims[symbol]
        start_ms, end_ms = self._day_ms, self._day_ms + _DAY_MS
        if claims[0].start_us > start_ms * 1000:  # what happened at the very ends of a recording may be on either side
            start_ms = claims[0].start_us // 1000 + 1 - min(early_ms, 0)
        if claims[-1].end_us < end_ms * 1000:
            end_ms = min(claims[-1].end_us // 1000 - late_ms, _times_between(ours, 0, claims[-1].end_us)[1] or end_ms)
        ours = _within(ours, start_ms, end_ms)
        theirs = _within(self._read_theirs(symbol, ours, start_ms, end_ms), start_ms, end_ms)
        by_id = self._id_column is not None and not theirs.column("trade_id").null_count
        found = _match(ours, theirs, by_id=by_id)
        kinds, counts = found.column("kind"), found.column("count")
        blind = [(one.start_us, one.end_us) for one in claims if one.state in _BLIND]
        times = found.column("timestamp").cast(pa.int64())
        in_gap = _lie_in(times, [_may_miss(ours, span_us, early_ms, late_ms) for span_us in blind])
        if by_id:
            in_gap = pc.coalesce(_find_around(found.column("trade_id"), ours, blind), in_gap)
            for first, last in self._missed.get(symbol, ()):
                in_gap = pc.or_(in_gap, _lie_in(found.column("trade_id"), [(first, last + 1)]))

        in_gap = pc.and_(in_gap, pc.equal(kinds, "missing"))

        def count(kind: str, mask: Any = None) -> int:
            own = pc.equal(kinds, kind)
            return pc.sum(counts.filter(own if mask is None else pc.and_(own, mask))).as_py() or 0

        missing, extra, differ = count("missing"), count("extra"), count("differs")
        first = found.append_column("in_gap", in_gap).sort_by([("kind", "ascending"), ("timestamp", "ascending")])
        filled = ours.column(ORIGIN.name)
        return SymbolAudit(
            symbol,
            ours.num_rows,
            ours.num_rows - filled.null_count,
            theirs.num_rows,
            theirs.num_rows - missing - differ,
            missing,
            count("missing", in_gap),
            extra,
            differ,
            [
                Unmatched(
                    row["kind"],
                    int(row["timestamp"].timestamp() * 1000 + 0.5),
                    row["price"],
                    row["volume"],
                    row["trade_id"],
                    row["in_gap"],
                )
                for row in first.slice(0, NAMED).to_pylist()
            ],
        )

    def _read_ours(self, symbol: str) -> pa.Table:
        """The recorded trades of the day."""
        names = ("timestamp", "price", "volume", "received_at", ORIGIN.name)
        columns = (*names, *([self._id_column] if self._id_column else []))
        selection = Selection(Span(self._day_ms, self._day_ms + _DAY_MS), columns, (symbol,))

        def read(snapshot: Any) -> pa.Table | None:
            return concat_rows([plain_texts(rows) for _, rows in read_dates(snapshot, selection)])

        found = read_consistently(self._layout, selection.span, read)
        schema = pa.schema([*(HISTORY.field(name) for name in ("timestamp", "price", "volume", "trade_id")), ORIGIN])
        schema = schema.append(pa.field("received_us", pa.int64()))
        if found is None:
            return schema.empty_table()
        known = {name: found.column(name) for name in found.column_names}
        known["trade_id"] = known.get(self._id_column or "", pa.nulls(found.num_rows))
        known["received_us"] = found.column("received_at").cast(pa.int64())
        return pa.table([known.get(one.name, pa.nulls(found.num_rows)).cast(one.type) for one in schema], schema=schema)

    def _read_theirs(self, symbol: str, ours: pa.Table, start_ms: int, end_ms: int) -> pa.Table:
        """The source's trades of this time, and perhaps some around. Raises SourceRefused, VenueUnreachable."""
        bounds = pc.min_max(ours.column("trade_id")).as_py()
        first, last = bounds["min"], bounds["max"]
        if not self._source.by_id or first is None:
            if self._source.by_id:
                raise SourceRefused(f"{self._source.name} is asked by ids, and none of that day is recorded")
            return _each_once(list(self._source.read(Ask(symbol, start_ms, end_ms, None, None))))
        pages = list(self._source.read(Ask(symbol, start_ms, end_ms, first, last)))
        while first > 0:
            before = max(first - _NEIGHBOURS, 0)
            found = list(self._source.read(Ask(symbol, start_ms, end_ms, before, first - 1)))
            pages += found
            if _reaches(found, "min", start_ms):
                break
            first = before
        while True:
            found = list(self._source.read(Ask(symbol, start_ms, end_ms, last + 1, last + _NEIGHBOURS)))
            pages += found
            if _reaches(found, "max", end_ms):
                break
            last += _NEIGHBOURS
        return _each_once(pages)


def _each_once(pages: Sequence[pa.Table]) -> pa.Table:
    """What these pages hold together; where there are ids, what one has of the next is there once."""
    rows = pa.concat_tables([HISTORY.empty_table(), *pages])
    if rows.column("trade_id").null_count:
        return rows
    numbered = rows.append_column("at", pa.arange(0, rows.num_rows))
    return rows.take(numbered.group_by("trade_id").aggregate([("at", "min")]).column("at_min"))


def _reaches(pages: Sequence[pa.Table], end: str, edge_ms: int) -> bool:
    """Whether these pages hold nothing, or a trade before the edge (`end` is min) or behind it (max)."""
    times = [pc.min_max(page.column("timestamp").cast(pa.int64())).as_py()[end] for page in pages if page.num_rows]
    return not times or (min(times) < edge_ms if end == "min" else max(times) >= edge_ms)


def _delays(ours: pa.Table) -> tuple[int, int]:
    """How long after they happened trades are received at least and at most, in ms, and a little more on both sides."""
    heard = ours.filter(pc.is_null(ours.column(ORIGIN.name)))
    if not heard.num_rows:
        return -_PAD_MS, _PAD_MS
    delays = pc.subtract(
        pc.divide(heard.column("received_us"), 1000), heard.column("timestamp").cast(pa.int64())
    ).combine_chunks()
    least, middle, most = (
        pc.min(delays).as_py(), pc.quantile(delays, 0.5, interpolation="lower")[0].as_py(), pc.max(delays).as_py(),
    )  # fmt: skip
    return least - _PAD_MS, min(most, middle + _LATEST_MS) + _PAD_MS


def _may_miss(ours: pa.Table, span_us: tuple[int, int], early_ms: int, late_ms: int) -> tuple[int, int]:
    """The time of trades that could have been received in a span. A venue sends in order: whatever was on its way when
    the connection broke lies between the last trade that was heard and the next.
    """
    start_us, end_us = span_us
    start_ms, end_ms = start_us // 1000 - late_ms, end_us // 1000 + 1 - early_ms
    before = _times_between(ours, start_us - _LATEST_MS * 1000, start_us)[1]
    behind = _times_between(ours, end_us, end_us + _LATEST_MS * 1000)[0]
    return min(start_ms, before or start_ms), max(end_ms, behind or end_ms)


def _times_between(ours: pa.Table, start_us: int, end_us: int) -> tuple[int | None, int | None]:
    """The first and the last time of the trades that were heard in [start, end)."""
    received, heard = ours.column("received_us"), pc.is_null(ours.column(ORIGIN.name))
    inside = pc.and_(pc.and_(pc.greater_equal(received, start_us), pc.less(received, end_us)), heard)
    bounds = pc.min_max(ours.column("timestamp").cast(pa.int64()).filter(inside)).as_py()
    return bounds["min"], bounds["max"]


def _within(rows: pa.Table, start_ms: int, end_ms: int) -> pa.Table:
    times = rows.column("timestamp").cast(pa.int64())
    return rows.filter(pc.and_(pc.greater_equal(times, start_ms), pc.less(times, end_ms)))


def _match(ours: pa.Table, theirs: pa.Table, *, by_id: bool) -> pa.Table:
    """The trades that one side has more often than the other: kind, count, and the columns that tell them apart."""
    names = ["timestamp", "price", "volume", "trade_id"]
    sides = [rows.select(names if by_id else names[:3]) for rows in (ours, theirs)]
    key = names if by_id else names[:3]
    if by_id:  # an id is one trade, however often it was heard
        sides = [side.group_by(names).aggregate([]).select(names) for side in sides]
    counted = pa.concat_tables(
        [side.append_column("more", pa.repeat(sign, side.num_rows)) for sign, side in zip((1, -1), sides, strict=True)]
    )
    sums = counted.group_by(key).aggregate([("more", "sum")])
    sums = sums.filter(pc.not_equal(sums.column("more_sum"), 0))
    kinds: Any = pc.if_else(pc.greater(sums.column("more_sum"), 0), "extra", "missing")
    sums = sums.append_column("kind", kinds).append_column("count", pc.abs(sums.column("more_sum")))
    if not by_id:
        return sums.append_column("trade_id", pa.nulls(sums.num_rows, pa.int64()))
    ids = sums.column("trade_id")
    extra = pc.equal(kinds, "extra")
    both = pc.and_(pc.is_in(ids, ids.filter(extra)), pc.is_in(ids, ids.filter(pc.invert(extra))))
    both = pc.and_(both, pc.is_valid(ids))
    differs = sums.filter(pc.and_(both, extra))
    differs = differs.set_column(differs.column_names.index("kind"), "kind", pa.repeat("differs", differs.num_rows))
    return pa.concat_tables([sums.filter(pc.invert(both)), differs])


def _lie_in(times: Any, spans: Sequence[tuple[int, int]]) -> Any:
    found: Any = pa.chunked_array([pa.repeat(False, len(times))])
    for start_ms, end_ms in spans:
        found = pc.or_(found, pc.and_(pc.greater_equal(times, start_ms), pc.less(times, end_ms)))
    return found


def _find_around(ids: Any, ours: pa.Table, spans_us: Sequence[tuple[int, int]]) -> Any:
    """Whether a span lies between the receipts of the two trades that were heard around each id; null: not of two."""
    heard = ours.filter(pc.and_(pc.is_null(ours.column(ORIGIN.name)), pc.is_valid(ours.column("trade_id"))))
    size = len(ids)
    rows = pa.table(
        {
            "id": pa.concat_arrays([ids.combine_chunks(), heard.column("trade_id").combine_chunks()]),
            "at": pa.concat_arrays([pa.nulls(size, pa.int64()), heard.column("received_us").combine_chunks()]),
            "row": pa.concat_arrays([pa.arange(0, size), pa.nulls(heard.num_rows, pa.int64())]),
        }
    ).sort_by("id")
    at = rows.column("at").combine_chunks()
    rows = rows.append_column("before", pc.fill_null_forward(at)).append_column("behind", pc.fill_null_backward(at))
    rows = rows.filter(pc.is_valid(rows.column("row"))).sort_by("row")
    found: Any = pc.and_(pc.less(rows.column("behind"), rows.column("before")), False)
    for start_us, end_us in spans_us:
        reaches = pc.and_(
            pc.less_equal(start_us, rows.column("behind")), pc.greater_equal(end_us, rows.column("before"))
        )
        found = pc.or_(found, reaches)
    return found
