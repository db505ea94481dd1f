"""The application: what is answered at which path."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from importlib.resources import files
from typing import TypeVar

import structlog
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp
from starlette.websockets import WebSocket

from ingestor.config.addresses import Hosts
from ingestor.errors import IngestorError
from ingestor.layout import Layout
from ingestor.live.auth import EVERYTHING, Grant, Unauthorized, Verifier, bearer_token
from ingestor.live.exposition import HubCollector
from ingestor.live.gate import Gate
from ingestor.live.hub import Hub
from ingestor.live.openapi import describe_api
from ingestor.live.queries import (
    BadQuery,
    BarsQuery,
    CoverageQuery,
    HistoryQuery,
    Page,
    Query,
    as_arrow_stream,
    as_json_rows,
    find_bars,
    find_coverage_intervals,
    find_trades,
    parse_query,
)
from ingestor.live.sockets import converse
from ingestor.live.subscriptions import Language

_ARROW = "application/vnd.apache.arrow.stream"
_QUERIES_AT_ONCE = 2
"""Those that read the dataset: the others wait, so that prices don't."""
_ASSETS = {"": "text/html", "page.css": "text/css", "page.js": "text/javascript", "icon.svg": "image/svg+xml"}

log = structlog.get_logger()

_AnyQuery = TypeVar("_AnyQuery", bound=Query)
_Answer = Callable[[Request], Awaitable[Response]]
_Find = Callable[[Layout, _AnyQuery, Sequence[str], float], Page]


class Forbidden(Exception):
    """The grant doesn't reach that far; the argument is the sentence."""


def make_app(hub: Hub, layout: Layout | None, verifier: Verifier | None, hosts: Hosts) -> ASGIApp:
    """Everything this server answers, behind its gate."""
    api = _Api(hub, layout, verifier)
    routes = [
        *(Route(f"/{name}", _asset(name, kind)) for name, kind in _ASSETS.items()),
        WebSocketRoute("/", api.speak_finnhub),
        WebSocketRoute("/live-price", api.speak_prices),
        Route("/history", api.paged("trades", HistoryQuery, find_trades)),
        Route("/bars", api.paged("bars", BarsQuery, find_bars)),
        Route("/coverage", api.paged("intervals", CoverageQuery, find_coverage_intervals)),
        Route("/symbols", api.guarded(api.symbols)),
        Route("/metrics", api.guarded(api.metrics)),
        Route("/healthz", _say_alive),
        Route("/openapi.json", _describe),
    ]
    return Gate(Starlette(routes=routes), hosts)


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
        await converse(websocket, self._hub, self._verifier, Language.PRICES)

    async def speak_finnhub(self, websocket: WebSocket) -> None:
        await converse(websocket, self._hub, self._verifier, Language.FINNHUB)

    def guarded(self, answer: Callable[[Request, Grant], Awaitable[Response]]) -> _Answer:
        """The answer for whoever may have it; else the reason why not."""

        async def guard(request: Request) -> Response:
            try:
                return await answer(request, self._find_grant(request.headers))
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
            symbols = self._choose(query.symbols, grant)
            if self._layout is None:
                return JSONResponse({"error": "this server follows Redis: ask one that has the recording"}, 404)
            async with self._turns:
                page = await asyncio.to_thread(find, self._layout, query, symbols, time.time())
                return await asyncio.to_thread(_as_response, page, name, as_arrow=_wants_arrow(request, query))

        return self.guarded(answer)

    async def symbols(self, _request: Request, grant: Grant) -> Response:
        """How every symbol stands."""
        board, now = self._hub.board, time.time()
        board.turn(now)
        quotes = [quote.as_json() for symbol, quote in sorted(board.quotes.items()) if grant.allows(symbol)]
        return JSONResponse({"now": int(now * 1000), "recording": board.recording, "symbols": quotes})

    async def metrics(self, _request: Request, _grant: Grant) -> Response:
        return Response(generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    def _find_grant(self, headers: Headers) -> Grant:
        if self._verifier is None:
            return EVERYTHING
        token = bearer_token(headers)
        if token is None:
            raise Unauthorized("give a token: Authorization: Bearer …")
        return self._verifier.verify(token)

    def _choose(self, asked: Sequence[str] | None, grant: Grant) -> list[str]:
        """The symbols asked for, else all that there are and that may be seen. Raises Forbidden."""
        if asked is None:
            return [symbol for symbol in self._hub.board.quotes if grant.allows(symbol)]
        if refused := grant.refused(asked):
            raise Forbidden(f"the token doesn't allow {', '.join(refused[:20])}")
        return list(asked)


def _asset(name: str, kind: str) -> _Answer:
    """A file of the page, read once."""
    content = files("ingestor.live.page").joinpath(name or "index.html").read_bytes()

    async def answer(_request: Request) -> Response:
        return Response(content, media_type=kind)

    return answer


def _wants_arrow(request: Request, query: Query) -> bool:
    if query.format is not None:
        return query.format == "arrow"
    return _ARROW in request.headers.get("accept", "")


def _as_response(page: Page, name: str, *, as_arrow: bool) -> Response:
    headers = {} if page.cursor is None else {"X-Next-Cursor": page.cursor}
    if as_arrow:
        return Response(as_arrow_stream(page.rows), headers=headers, media_type=_ARROW)
    return JSONResponse({name: as_json_rows(page.rows), "next": page.cursor}, headers=headers)


async def _say_alive(_request: Request) -> Response:
    return PlainTextResponse("alive\n")


async def _describe(_request: Request) -> Response:
    return JSONResponse(describe_api())
