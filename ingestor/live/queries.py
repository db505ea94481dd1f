"""Queries of the dataset over HTTP: the parameters, and pages of the answer.

Rows are in order of (symbol, time). A page ends with a cursor, which names its last row: the next page begins behind
that row, whatever was recorded meanwhile.
"""

import base64
import json
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from ingestor.dataset.bar_grid import parse_interval
from ingestor.dataset.bars import read_bars
from ingestor.dataset.coverage import no_warnings, read_coverage
from ingestor.dataset.rows import Selection
from ingestor.dataset.stream import stream_runs
from ingestor.dataset.times import Span, find_span
from ingestor.layout import Layout
from ingestor.schema import TRADES

_PAGE = 1000
_PAGE_MAX = 100_000
_BARS_MAX = 2_000_000
_DAY_MS = 86_400_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TRADE_COLUMNS = tuple(TRADES.names)

_AnyQuery = TypeVar("_AnyQuery", bound="Query")


class BadQuery(ValueError):
    """The parameters can't be used; the argument is a sentence."""


class Page(NamedTuple):
    """Some rows, and where the next ones begin; None where these are the last."""

    rows: pa.Table
    cursor: str | None


def _split_symbols(value: object) -> object:
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


_Symbols = Annotated[
    tuple[Annotated[str, Field(min_length=1, max_length=128)], ...],
    Field(max_length=1000),
    BeforeValidator(_split_symbols, json_schema_input_type=str),
]


class Query(BaseModel):
    """Parameters that every question has."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    symbols: _Symbols | None = Field(default=None, description="separated by commas, at most 1000; else all")
    start: str | None = Field(
        default=None, description="ISO 8601, in UTC where it names no zone; else a day before `end`"
    )
    end: str | None = Field(default=None, description="up to but without this time; else all there is")
    limit: int = Field(default=_PAGE, ge=1, le=_PAGE_MAX, description="rows per page")
    cursor: str | None = Field(default=None, max_length=1000, description="`next` of the page before")
    format: Literal["json", "arrow"] | None = Field(
        default=None, description="else as `Accept` has it: `application/vnd.apache.arrow.stream`, or JSON"
    )

    def span(self, now: float) -> Span:
        """The time asked for, always with a start. Raises BadQuery."""
        try:
            span = find_span(self.start, self.end, "UTC")
        except ValueError as error:
            raise BadQuery(str(error)) from None
        end_ms = int(now * 1000) if span.end_ms is None else span.end_ms
        start_ms = end_ms - _DAY_MS if span.start_ms is None else span.start_ms
        if span.end_ms is not None and start_ms >= span.end_ms:
            raise BadQuery("start must be before end")
        return Span(start_ms, span.end_ms)


class HistoryQuery(Query):
    """Trades."""


class CoverageQuery(Query):
    """Intervals of coverage."""


class BarsQuery(Query):
    """Bars."""

    interval: str = Field(default="1m", description="`1s`, `5m`, `1h`, `1d`: whatever divides a day")
    tz: str = Field(default="UTC", max_length=64, description="zone whose midnight bars are aligned to")
    session: Literal["all", "regular", "extended", "overnight"] = Field(
        default="all", description="hours of the US market"
    )
    conditions: Literal["sip", "all"] = Field(default="sip", description="US rules on what a print moves, or none")
    fill: bool = Field(default=False, description="add bars that were recorded whole and had no trade")


def parse_query(kind: type[_AnyQuery], parameters: Sequence[tuple[str, str]]) -> _AnyQuery:
    """The parameters of a URL, each at most once. Raises BadQuery."""
    values = dict(parameters)
    if len(values) < len(parameters):
        raise BadQuery("a parameter is given twice")
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = str(first["loc"][0])[:64]
        reason = "is unknown here" if first["type"] == "extra_forbidden" else first["msg"]
        raise BadQuery(f"`{place}`: {reason}") from None


def find_trades(layout: Layout, query: HistoryQuery, symbols: Sequence[str], now: float) -> Page:
    """A page of the trades (schema.TRADES) of these symbols; no more than about a page is read. Raises BadQuery."""
    span = query.span(now)
    after = _read_cursor(query.cursor, (str, int, int))
    wanted = sorted(set(symbols)) if after is None else [one for one in sorted(set(symbols)) if one >= after[0]]
    found: list[pa.Table] = [TRADES.empty_table()]
    missing = query.limit + 1
    for symbol in wanted:
        behind = after if after is not None and after[0] == symbol else None
        rest = span if behind is None else Span(max(span.start_ms or 0, behind[1]), span.end_ms)
        for _, runs in stream_runs(layout, Selection(rest, _TRADE_COLUMNS, (symbol,))):
            found.append(_first_rows(runs, behind, missing))
            missing -= found[-1].num_rows
            if not missing:
                break
        if not missing:
            break
    return _cut(pa.concat_tables(found), query.limit, ("symbol", "timestamp", "sequence"))


def find_bars(layout: Layout, query: BarsQuery, symbols: Sequence[str], now: float) -> Page:
    """A page of the bars of these symbols. Raises BadQuery."""
    span = query.span(now)
    end_ms = int(now * 1000) if span.end_ms is None else span.end_ms
    try:
        bars = max(end_ms - (span.start_ms or 0), 0) // parse_interval(query.interval) * len(symbols)
        if bars > _BARS_MAX:
            raise BadQuery(f"that could be {bars:,} bars: ask for at most {_BARS_MAX:,} by a shorter time")

        def read(wanted: Sequence[str]) -> pa.Table:
            with no_warnings():
                return read_bars(
                    layout.root, query.interval, wanted, _time(span.start_ms), _time(span.end_ms), query.tz,
                    session=query.session, conditions=query.conditions, fill=query.fill, engine="arrow",
                )  # fmt: skip

        return _page_of_table(query, symbols, read)
    except ValueError as error:
        raise BadQuery(str(error)) from None


def find_coverage_intervals(layout: Layout, query: CoverageQuery, symbols: Sequence[str], now: float) -> Page:
    """A page of the intervals of coverage of these symbols. Raises BadQuery."""
    span = query.span(now)

    def read(wanted: Sequence[str]) -> pa.Table:
        with no_warnings():
            return read_coverage(layout.root, wanted, _time(span.start_ms), _time(span.end_ms), engine="arrow")

    return _page_of_table(query, symbols, read)


def as_json_rows(rows: pa.Table) -> list[dict[str, Any]]:
    """Rows for JSON: times as integers since 1970 in the unit of their column, ms or µs; dates as text."""
    for index, field in enumerate(rows.schema):
        if pa.types.is_timestamp(field.type):
            rows = rows.set_column(index, field.name, rows.column(index).cast(pa.int64()))
        elif pa.types.is_date(field.type):
            rows = rows.set_column(index, field.name, rows.column(index).cast(pa.string()))
    found: list[dict[str, Any]] = rows.to_pylist()
    return found


def as_arrow_stream(rows: pa.Table) -> bytes:
    """The rows as an Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    return bytes(sink.getvalue())


def _first_rows(runs: Iterator[Iterator[pa.Table]], after: tuple[Any, ...] | None, count: int) -> pa.Table:
    """The first rows of all runs together behind `after`, up to so many. Of each run no more can be among them."""
    firsts = [TRADES.empty_table()]
    for run in runs:
        missing = count
        for rows in run:
            wanted = rows
            if after is not None:
                later = pc.greater(rows["timestamp"].cast(pa.int64()), after[1])
                wanted = rows.filter(pc.or_(later, pc.greater(rows["sequence"], after[2])))
            firsts.append(wanted.slice(0, missing).cast(TRADES))
            missing -= firsts[-1].num_rows
            if not missing:
                break
    return pa.concat_tables(firsts).sort_by([("timestamp", "ascending"), ("sequence", "ascending")]).slice(0, count)


def _page_of_table(query: Query, symbols: Sequence[str], read: Callable[[Sequence[str]], pa.Table]) -> Page:
    """A page of what `read` gives in order of (symbol, start)."""
    after = _read_cursor(query.cursor, (str, int))
    wanted = sorted(set(symbols))
    if after is None:
        return _cut(read(wanted), query.limit, ("symbol", "start"))
    rows = read([symbol for symbol in wanted if symbol >= after[0]])
    later = pc.greater(rows["start"].cast(pa.int64()), after[1])
    rest = rows.filter(pc.or_(pc.greater(rows["symbol"], after[0]), later))
    return _cut(rest, query.limit, ("symbol", "start"))


def _cut(rows: pa.Table, limit: int, key: tuple[str, ...]) -> Page:
    if rows.num_rows <= limit:
        return Page(rows, None)
    last = as_json_rows(rows.select(key).slice(limit - 1, 1))[0]
    return Page(rows.slice(0, limit), base64.urlsafe_b64encode(json.dumps(list(last.values())).encode()).decode())


def _read_cursor(cursor: str | None, types: tuple[type, ...]) -> tuple[Any, ...] | None:
    if cursor is None:
        return None
    try:
        key = json.loads(base64.urlsafe_b64decode(cursor))
    except ValueError:
        key = None
    if not isinstance(key, list) or tuple(map(type, key)) != types:
        raise BadQuery("`cursor` must be the `next` of a page of the same question")
    return tuple(key)


def _time(ms: int | None) -> datetime | None:
    return None if ms is None else _EPOCH + timedelta(milliseconds=ms)
