"""The description of the HTTP interface (OpenAPI 3.1), made of the models by which it reads its parameters."""

from typing import Any

from ingestor import __version__
from ingestor.live.queries import BarsQuery, CoverageQuery, HistoryQuery, Query

_ARROW = "application/vnd.apache.arrow.stream"
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
    "state": {"enum": ["recorded", "blind", "unproven"]},
    "cause": {**_TEXT, "description": "of blindness"},
    "start": {**_INTEGER, "description": "µs since 1970"},
    "end": {**_INTEGER, "description": "µs since 1970"},
}
_QUOTE = {
    "symbol": {"type": "string"},
    "price": _NUMBER,
    "volume": _NUMBER,
    "timestamp": {"type": ["integer", "null"], "description": "ms since 1970"},
    "change": {**_NUMBER, "description": "since the UTC day's first price; 0.01 is one percent"},
    "rate": {"type": "number", "description": "trades per second over the last 10 s"},
    "course": {"type": "array", "items": {"type": "number"}, "description": "a price every 10 s, oldest first"},
    "state": {"enum": ["recorded", "blind", "unproven", "unknown"]},
    "cause": {**_TEXT, "description": "of blindness"},
}


def describe_api() -> dict[str, Any]:
    """The OpenAPI document."""
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
            "/symbols": _simple("All symbols and how they stand", "application/json", _symbols_schema()),
            "/healthz": _simple("Whether this server runs", "text/plain", {"type": "string"}, public=True),
            "/metrics": _simple("Prometheus metrics", "text/plain", {"type": "string"}),
        },
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}}},
        "security": [{}, {"token": []}],
    }


def _paged(summary: str, query: type[Query], name: str, row: dict[str, Any]) -> dict[str, Any]:
    schema = _object({name: {"type": "array", "items": _object(row)}, "next": {**_TEXT, "description": "a cursor"}})
    answer = {
        "description": "A page; the header `X-Next-Cursor` names the next one, as `next` does.",
        "content": {"application/json": {"schema": schema}, _ARROW: {}},
    }
    responses = {"200": answer, "400": _error("A parameter can't be used"), **_refusals()}
    return {"get": {"summary": summary, "parameters": _parameters(query), "responses": responses}}


def _simple(summary: str, kind: str, schema: dict[str, Any], *, public: bool = False) -> dict[str, Any]:
    responses = {"200": {"description": summary, "content": {kind: {"schema": schema}}}}
    return {"get": {"summary": summary, "responses": responses if public else {**responses, **_refusals()}}}


def _parameters(query: type[Query]) -> list[dict[str, Any]]:
    properties = query.model_json_schema()["properties"]
    return [
        {"name": name, "in": "query", "required": False, "description": schema.pop("description"), "schema": schema}
        for name, schema in properties.items()
    ]


def _symbols_schema() -> dict[str, Any]:
    return _object(
        {
            "now": {**_INTEGER, "description": "ms since 1970"},
            "recording": {"type": ["boolean", "null"], "description": "whether a recorder runs; null is unknown"},
            "symbols": {"type": "array", "items": _object(_QUOTE)},
        }
    )


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
