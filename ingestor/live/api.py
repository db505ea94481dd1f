"""HTTP interface: the paths and their answers, its metrics, and its description (OpenAPI 3.1).

Rows are in order of (symbol, time). A page of them ends with a cursor, which names its last row: the next page begins
behind that row, whatever was recorded meanwhile.
"""

import asyncio
import base64
import json
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import structlog
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp
from starlette.websockets import WebSocket

from ingestor import __version__
from ingestor.config.addresses import Hosts
from ingestor.dataset.arguments import Span, find_span
from ingestor.dataset.bar_grid import parse_interval
from ingestor.dataset.bars import read_bars
from ingestor.dataset.coverage import describe_unknown, no_warnings, read_coverage
from ingestor.dataset.rows import Selection, stream_runs
from ingestor.errors import IngestorError
from ingestor.layout import Layout
from ingestor.live.access import EVERYTHING, Grant, HostGuard, Unauthorized, Verifier, bearer_token
from ingestor.live.hub import Hub
from ingestor.live.sockets import converse
from ingestor.live.subscriptions import ClientLanguage
from ingestor.schema import TRADES

_PAGE = 1000
_PAGE_MAX = 100_000
_BARS_MAX = 2_000_000
_DAY_MS = 86_400_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TRADE_COLUMNS = tuple(TRADES.names)
_ARROW = "application/vnd.apache.arrow.stream"
_NAMED_MAX = 20
_QUERIES_AT_ONCE = 2
"""Those that read the dataset: the others wait, so that prices don't."""
_ASSETS = {"": "text/html", "page.css": "text/css", "page.js": "text/javascript", "icon.svg": "image/svg+xml"}

log = structlog.get_logger()

_AnyQuery = TypeVar("_AnyQuery", bound="Query")
_Answer = Callable[[Request], Awaitable[Response]]
_Find = Callable[[Layout, _AnyQuery, Sequence[str], float], "Page"]


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


class Forbidden(Exception):
    """The grant doesn't reach that far; the argument is the sentence."""


def make_app(hub: Hub, layout: Layout | None, verifier: Verifier | None, hosts: Hosts) -> ASGIApp:
    """Everything this server answers, behind the guard of its host."""
    api = _Api(hub, layout, verifier)

    async def is_alive(_request: Request) -> Response:
        return PlainTextResponse("alive\n")

    async def description(_request: Request) -> Response:
        return JSONResponse(describe_api())

    async def not_found(_request: Request, _error: Exception) -> Response:
        return JSONResponse({"error": "nothing is here: /openapi.json describes what there is"}, 404)

    def asset(name: str, kind: str) -> _Answer:
        content = files("ingestor.live.page").joinpath(name or "index.html").read_bytes()

        async def answer(_request: Request) -> Response:
            return Response(content, media_type=kind)

        return answer

    routes = [
        *(Route(f"/{name}", asset(name, kind)) for name, kind in _ASSETS.items()),
        WebSocketRoute("/", api.speak_finnhub),
        WebSocketRoute("/live-price", api.speak_prices),
        Route("/history", api.paged("trades", HistoryQuery, find_trades)),
        Route("/bars", api.paged("bars", BarsQuery, find_bars)),
        Route("/coverage", api.paged("intervals", CoverageQuery, find_coverage_intervals)),
        Route("/symbols", api.guarded(api.symbols)),
        Route("/metrics", api.guarded(api.metrics)),
        Route("/healthz", is_alive),
        Route("/openapi.json", description),
    ]
    return HostGuard(Starlette(routes=routes, exception_handlers={404: not_found}), hosts)


class _Api:
    """The answers that need the hub."""

    def __init__(self, hub: Hub, layout: Layout | None, verifier: Verifier | None) -> None:
        self._hub = hub
        self._layout = layout
        self._verifier = verifier
        self._turns = asyncio.Semaphore(_QUERIES_AT_ONCE)
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(HubCollector(hub))
        ProcessCollector(registry=self._registry)

    async def speak_prices(self, websocket: WebSocket) -> None:
        """`/live-price`: the price API."""
        await converse(websocket, self._hub, self._verifier, ClientLanguage.PRICES)

    async def speak_finnhub(self, websocket: WebSocket) -> None:
        """`/`: Finnhub's protocol."""
        await converse(websocket, self._hub, self._verifier, ClientLanguage.FINNHUB)

    def guarded(self, answer: Callable[[Request, Grant], Awaitable[Response]]) -> _Answer:
        """The answer for whoever may have it; else the reason why not."""

        async def guard(request: Request) -> Response:
            try:
                grant = EVERYTHING
                if self._verifier is not None:
                    token = bearer_token(request.headers)
                    if token is None:
                        raise Unauthorized("give a token: Authorization: Bearer …")
                    grant = self._verifier.verify(token)
                return await answer(request, grant)
            except Unauthorized as error:
                return JSONResponse({"error": str(error)}, 401, {"WWW-Authenticate": "Bearer"})
            except Forbidden as error:
                return JSONResponse({"error": str(error)}, 403)
            except BadQuery as error:
                return JSONResponse({"error": str(error)}, 400)
            except (IngestorError, OSError) as error:
                log.warning("query.failed", path=request.url.path, error=repr(error))
                return JSONResponse({"error": f"the recording can't be read: {error}"}, 503)

        return guard

    def paged(self, name: str, kind: type[_AnyQuery], find: _Find[_AnyQuery]) -> _Answer:
        """An answer of rows from the dataset, a page at a time."""

        async def answer(request: Request, grant: Grant) -> Response:
            query = parse_query(kind, request.query_params.multi_items())
            as_arrow = query.format == "arrow" or (not query.format and _ARROW in request.headers.get("accept", ""))
            if query.symbols is None:
                symbols = [symbol for symbol in self._hub.board.quotes if grant.allows(symbol)]
            elif refused := grant.refused(query.symbols):
                raise Forbidden(f"the token doesn't allow {', '.join(refused[:20])}")
            else:
                symbols = list(query.symbols)
            if self._layout is None:
                return JSONResponse({"error": "this server follows Redis: ask one that has the recording"}, 404)
            async with self._turns:
                page = await asyncio.to_thread(find, self._layout, query, symbols, time.time())
                headers = {} if page.cursor is None else {"X-Next-Cursor": page.cursor}

                def encode() -> Response:
                    if as_arrow:
                        return Response(as_arrow_stream(page.rows), headers=headers, media_type=_ARROW)
                    told = {name: as_json_rows(page.rows), "next": page.cursor}
                    notes: list[str] = []
                    if not page.rows.num_rows:  # which of the symbols is not recorded, and what may be meant
                        known = [symbol for symbol in list(self._hub.board.quotes) if grant.allows(symbol)]
                        asked = (query.symbols or ())[:_NAMED_MAX]
                        notes = [describe_unknown(symbol, known) for symbol in asked if symbol not in known]
                    return JSONResponse(told | ({"notes": notes} if notes else {}), headers=headers)

                return await asyncio.to_thread(encode)

        return self.guarded(answer)

    async def symbols(self, _request: Request, grant: Grant) -> Response:
        """`/symbols`: the quote of each symbol that is granted."""
        board, now = self._hub.board, time.time()
        board.turn(now)
        quotes = [quote.as_json() for symbol, quote in sorted(board.quotes.items()) if grant.allows(symbol)]
        return JSONResponse({"now": int(now * 1000), "recording": board.recording, "symbols": quotes})

    async def metrics(self, _request: Request, _grant: Grant) -> Response:
        """Prometheus text."""
        return Response(generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


# Metrics


class HubCollector(Collector):
    """A hub's numbers."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def collect(self) -> Iterable[Metric]:
        hub, clients = self._hub, self._hub.clients
        subscriptions = sum(len(one.symbols) for one in clients)
        skipped = hub.skipped + sum(one.skipped for one in clients)
        yield GaugeMetricFamily("ingestor_live_clients", "WebSockets that are open.", len(clients))
        yield GaugeMetricFamily("ingestor_live_subscriptions", "Of all clients.", subscriptions)
        yield GaugeMetricFamily("ingestor_live_symbols", "Symbols with a price.", len(hub.board.quotes))
        if hub.board.recording is not None:
            yield GaugeMetricFamily("ingestor_live_recording", "1 while somebody records.", hub.board.recording)
        yield GaugeMetricFamily(
            "ingestor_live_behind_seconds", "From the last block's receipt to its hand-out.", hub.behind_s
        )
        yield CounterMetricFamily("ingestor_live_trades", "Trades handed out, each once.", hub.trades)
        yield CounterMetricFamily("ingestor_live_skipped", "Updates replaced by newer ones.", skipped)
        yield CounterMetricFamily("ingestor_live_given_up", "Clients closed with 1008.", hub.given_up)


# The description

_NUMBER = {"type": ["number", "null"]}
_TEXT = {"type": ["string", "null"]}
_INTEGER = {"type": "integer"}
_TRADE = {
    "symbol": {"type": "string"},
    "timestamp": {**_INTEGER, "description": "by the venue's clock, ms since 1970"},
    "price": {"type": "number"},
    "volume": {**_NUMBER, "description": "0 is a price-only update, null is unknown"},
    "conditions": {**_TEXT, "description": "the venue's codes, separated by commas"},
    "received_at": {**_INTEGER, "description": "µs since 1970"},
    "sequence": {**_INTEGER, "description": "unique, rising with arrival"},
    "repeated": {"type": "boolean", "description": "its frame is byte-identical to the one before"},
}
_BAR = {
    "symbol": {"type": "string"},
    "start": {**_INTEGER, "description": "ms since 1970"},
    **dict.fromkeys(("open", "high", "low", "close", "volume", "vwap"), _NUMBER),
    "trades": _INTEGER,
    "coverage": {"type": "number", "description": "share of the bar (0 to 1) that was proven recorded"},
}
_INTERVAL = {
    "symbol": {"type": "string"},
    "state": {"enum": ["recorded", "blind", "unproven", "filled", "imported"]},
    "cause": {**_TEXT, "description": "of blindness"},
    "start": {**_INTEGER, "description": "µs since 1970"},
    "end": {**_INTEGER, "description": "µs since 1970"},
    "proof": {**_TEXT, "description": "ids: the venue's ids show that nothing recorded here is missing"},
    "source": {**_TEXT, "description": "of filled: whose history the trades are from; of imported: the file"},
}
_QUOTE = {
    "symbol": {"type": "string"},
    "price": _NUMBER,
    "volume": _NUMBER,
    "timestamp": {"type": ["integer", "null"], "description": "ms since 1970"},
    "change": {**_NUMBER, "description": "since the UTC day's first price; 0.01 is one percent"},
    "rate": {"type": "number", "description": "trades per second over the last 10 s"},
    "course": {
        "type": "array",
        "items": {"type": ["number", "null"]},
        "description": "a price every 10 s, oldest first; null while blind",
    },
    "state": {"enum": ["recorded", "blind", "unproven", "filled", "imported", "unknown"]},
    "cause": {**_TEXT, "description": "of blindness"},
}


def describe_api() -> dict[str, Any]:
    """The OpenAPI document, made from the models that read the parameters."""
    board = {
        "now": {**_INTEGER, "description": "ms since 1970"},
        "recording": {"type": ["boolean", "null"], "description": "whether a recorder runs; null is unknown"},
        "symbols": {"type": "array", "items": _object(_QUOTE)},
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "finnhub-ingestor",
            "version": __version__,
            "description": "Prices are pushed by the WebSocket `/live-price`; `/` as a WebSocket speaks Finnhub's"
            " protocol. With authentication on, give a token as `Authorization: Bearer`.",
        },
        "paths": {
            "/history": _paged("Trades, by (symbol, timestamp, sequence)", HistoryQuery, "trades", _TRADE),
            "/bars": _paged("Bars, by (symbol, start)", BarsQuery, "bars", _BAR),
            "/coverage": _paged("When each symbol was recorded, or not", CoverageQuery, "intervals", _INTERVAL),
            "/symbols": _simple("All symbols and how they stand", "application/json", _object(board)),
            "/healthz": _simple("Whether this server runs", "text/plain", {"type": "string"}, public=True),
            "/metrics": _simple("Prometheus metrics", "text/plain", {"type": "string"}),
        },
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}}},
        "security": [{}, {"token": []}],
    }


def _paged(summary: str, query: type[Query], name: str, row: dict[str, Any]) -> dict[str, Any]:
    notes = {
        "type": "array",
        "items": {"type": "string"},
        "description": "of an empty answer: what is not recorded here",
    }
    rows = {"type": "array", "items": _object(row)}
    page = _object({name: rows, "next": {**_TEXT, "description": "a cursor"}, "notes": notes})
    answer = {
        "description": "A page; the header `X-Next-Cursor` names the next one, as `next` does.",
        "content": {"application/json": {"schema": page}, _ARROW: {}},
    }
    responses = {"200": answer, "400": _error("A parameter can't be used"), **_refusals()}
    parameters = [
        {"name": key, "in": "query", "required": False, "description": schema.pop("description"), "schema": schema}
        for key, schema in query.model_json_schema()["properties"].items()
    ]
    return {"get": {"summary": summary, "parameters": parameters, "responses": responses}}


def _simple(summary: str, kind: str, schema: dict[str, Any], *, public: bool = False) -> dict[str, Any]:
    responses = {"200": {"description": summary, "content": {kind: {"schema": schema}}}}
    return {"get": {"summary": summary, "responses": responses if public else {**responses, **_refusals()}}}


def _refusals() -> dict[str, Any]:
    return {
        "401": _error("No token, or not a good one"),
        "403": _error("A symbol that the token doesn't allow, an unknown host, or a foreign origin"),
    }


def _error(description: str) -> dict[str, Any]:
    schema = _object({"error": {"type": "string"}})
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties}
