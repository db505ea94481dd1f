"""HTTP interface: the paths and their answers, its metrics, and its description (OpenAPI 3.1)."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from importlib.resources import files
from typing import Any, TypeVar

import structlog
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp
from starlette.websockets import WebSocket

from ingestor import __version__
from ingestor.config.addresses import Hosts
from ingestor.dataset.coverage import describe_unknown
from ingestor.errors import IngestorError
from ingestor.layout import Layout
from ingestor.live import queries
from ingestor.live.access import EVERYTHING, Grant, HostGuard, Unauthorized, Verifier, bearer_token
from ingestor.live.hub import Hub
from ingestor.live.sockets import converse
from ingestor.live.subscriptions import ClientLanguage

_ARROW = "application/vnd.apache.arrow.stream"
_NAMED_MAX = 20
_QUERIES_AT_ONCE = 2
"""Those that read the dataset: the others wait, so that prices don't."""
_ASSETS = {"": "text/html", "page.css": "text/css", "page.js": "text/javascript", "icon.svg": "image/svg+xml"}

log = structlog.get_logger()

_AnyQuery = TypeVar("_AnyQuery", bound=queries.Query)
_Answer = Callable[[Request], Awaitable[Response]]
_Find = Callable[[Layout, _AnyQuery, Sequence[str], float], queries.Page]


class Forbidden(Exception):
    """The grant doesn't reach that far; the argument is the sentence."""


def make_app(hub: Hub, layout: Layout | None, verifier: Verifier | None, hosts: Hosts) -> ASGIApp:
    """Everything this server answers, behind the guard of its host."""
    api = _Api(hub, layout, verifier)

    async def is_alive(_request: Request) -> Response:
        return PlainTextResponse("alive\n")

    async def description(_request: Request) -> Response:
        return JSONResponse(describe_api())

    def asset(name: str, kind: str) -> _Answer:
        content = files("ingestor.live.page").joinpath(name or "index.html").read_bytes()

        async def answer(_request: Request) -> Response:
            return Response(content, media_type=kind)

        return answer

    routes = [
        *(Route(f"/{name}", asset(name, kind)) for name, kind in _ASSETS.items()),
        WebSocketRoute("/", api.speak_finnhub),
        WebSocketRoute("/live-price", api.speak_prices),
        Route("/history", api.paged("trades", queries.HistoryQuery, queries.find_trades)),
        Route("/bars", api.paged("bars", queries.BarsQuery, queries.find_bars)),
        Route("/coverage", api.paged("intervals", queries.CoverageQuery, queries.find_coverage_intervals)),
        Route("/symbols", api.guarded(api.symbols)),
        Route("/metrics", api.guarded(api.metrics)),
        Route("/healthz", is_alive),
        Route("/openapi.json", description),
    ]
    return HostGuard(Starlette(routes=routes), hosts)


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
            except queries.BadQuery as error:
                return JSONResponse({"error": str(error)}, 400)
            except (IngestorError, OSError) as error:
                log.warning("query.failed", path=request.url.path, error=repr(error))
                return JSONResponse({"error": f"the recording can't be read: {error}"}, 503)

        return guard

    def paged(self, name: str, kind: type[_AnyQuery], find: _Find[_AnyQuery]) -> _Answer:
        """An answer of rows from the dataset, a page at a time."""

        async def answer(request: Request, grant: Grant) -> Response:
            query = queries.parse_query(kind, request.query_params.multi_items())
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
                        return Response(queries.as_arrow_stream(page.rows), headers=headers, media_type=_ARROW)
                    told = {name: queries.as_json_rows(page.rows), "next": page.cursor}
                    notes = [] if page.rows.num_rows else self._unknown(query.symbols or (), grant)
                    return JSONResponse(told | ({"notes": notes} if notes else {}), headers=headers)

                return await asyncio.to_thread(encode)

        return self.guarded(answer)

    def _unknown(self, symbols: Sequence[str], grant: Grant) -> list[str]:
        """A sentence for each of these symbols that is not recorded, with the one that may be meant."""
        known = [symbol for symbol in list(self._hub.board.quotes) if grant.allows(symbol)]
        return [describe_unknown(symbol, known) for symbol in symbols[:_NAMED_MAX] if symbol not in known]

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
    "state": {"enum": ["recorded", "blind", "unproven", "filled"]},
    "cause": {**_TEXT, "description": "of blindness"},
    "start": {**_INTEGER, "description": "µs since 1970"},
    "end": {**_INTEGER, "description": "µs since 1970"},
    "proof": {**_TEXT, "description": "ids: the venue's ids show that nothing recorded here is missing"},
    "source": {**_TEXT, "description": "of filled: whose history the trades are from"},
}
_QUOTE = {
    "symbol": {"type": "string"},
    "price": _NUMBER,
    "volume": _NUMBER,
    "timestamp": {"type": ["integer", "null"], "description": "ms since 1970"},
    "change": {**_NUMBER, "description": "since the UTC day's first price; 0.01 is one percent"},
    "rate": {"type": "number", "description": "trades per second over the last 10 s"},
    "course": {"type": "array", "items": {"type": "number"}, "description": "a price every 10 s, oldest first"},
    "state": {"enum": ["recorded", "blind", "unproven", "filled", "unknown"]},
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
            "/history": _paged("Trades, by (symbol, timestamp, sequence)", queries.HistoryQuery, "trades", _TRADE),
            "/bars": _paged("Bars, by (symbol, start)", queries.BarsQuery, "bars", _BAR),
            "/coverage": _paged("When each symbol was recorded, or not", queries.CoverageQuery, "intervals", _INTERVAL),
            "/symbols": _simple("All symbols and how they stand", "application/json", _object(board)),
            "/healthz": _simple("Whether this server runs", "text/plain", {"type": "string"}, public=True),
            "/metrics": _simple("Prometheus metrics", "text/plain", {"type": "string"}),
        },
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}}},
        "security": [{}, {"token": []}],
    }


def _paged(summary: str, query: type[queries.Query], name: str, row: dict[str, Any]) -> dict[str, Any]:
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
