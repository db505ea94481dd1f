"""What the simulated venue serves of its past over HTTP, under the paths of the venues that it stands for. It can be
wrong on command. Pure, but for the clock.
"""

import json
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from ingestor.simulator.market import Trade
from ingestor.simulator.protocols import number_text

HistoryFault = Literal["throttled", "forbidden", "holes", "shifted", "rounded", "other_symbol"]
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_THROTTLED_EVERY = 3
_HOLE_EVERY = 5
_SHIFT_MS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class HistorySettings:
    """How the history is served."""

    settle_s: float = 0.0
    """A trade is in it so long after it happened."""
    page: int = 1000
    """Rows of an answer, at most."""
    faults: frozenset[HistoryFault] = frozenset()


class History:
    """All trades that happened at the venue, whoever heard them."""

    def __init__(self, settings: HistorySettings) -> None:
        self.settings = settings
        self.trades: dict[str, list[Trade]] = {}
        """Each symbol's, by number."""
        self.count = 0
        self._happened_s: dict[str, list[float]] = {}
        self._calls = 0

    def add(self, trades: list[Trade]) -> None:
        """These have happened now."""
        now_s = time.monotonic()
        self.count += len(trades)
        for trade in trades:
            self.trades.setdefault(trade.symbol, []).append(trade)
            self._happened_s.setdefault(trade.symbol, []).append(now_s)

    def answer(self, request: Request, *, allowed: bool) -> Response | None:
        """What is served under this path; None where it is none of history. `allowed`: the key is one that may read."""
        parts = urlsplit(request.path)
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        for pattern, serve in _PATHS.items():
            head, _, tail = pattern.partition("{symbol}")
            if not parts.path.startswith(head) or not parts.path.endswith(tail):
                continue
            if tail == "" and parts.path != head:
                continue
            self._calls += 1
            if "throttled" in self.settings.faults and self._calls % _THROTTLED_EVERY == 0:
                return _response(429, {"error": "limit"}, {"Retry-After": "0"})
            if "forbidden" in self.settings.faults or not allowed:
                return _response(403, {"error": "You don't have access to this resource."})
            symbol = unquote(parts.path[len(head) : len(parts.path) - len(tail)]) if tail else query.get("symbol", "")
            return serve(self, symbol, query)
        return None

    def settled(self, symbol: str) -> list[Trade]:
        """The trades of a symbol that are in the history, by number, wrong where that is asked for."""
        faults, trades = self.settings.faults, self.trades.get(symbol, [])
        if "other_symbol" in faults:
            trades = next((own for name, own in sorted(self.trades.items()) if name != symbol), [])
        trades = trades[: bisect_left(self._happened_s.get(symbol, []), time.monotonic() - self.settings.settle_s)]
        if "holes" in faults:
            trades = [trade for trade in trades if trade.number % _HOLE_EVERY]
        if "shifted" in faults:
            trades = [trade._replace(time_ms=trade.time_ms + _SHIFT_MS) for trade in trades]
        if "rounded" in faults:
            trades = [trade._replace(price=float(round(trade.price))) for trade in trades]
        return trades


def _response(status: int, told: Any, headers: Mapping[str, str] | None = None) -> Response:
    body = (told if isinstance(told, str) else json.dumps(told, separators=(",", ":"))).encode()
    usual = {"Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close"}
    return Response(status, "Answer", Headers({**usual, **(headers or {})}), body)


def _serve_binance(names: Mapping[str, str]) -> "Callable[[History, str, Mapping[str, str]], Response]":
    def serve(history: History, symbol: str, query: Mapping[str, str]) -> Response:
        limit = min(int(query.get("limit", 500)), history.settings.page)
        trades = history.settled(symbol)
        first = bisect_left(trades, int(query.get("fromId", 0)), key=attrgetter("number"))
        return _response(
            200,
            [
                {
                    names["id"]: trade.number,
                    names["price"]: number_text(trade.price),
                    names["qty"]: number_text(trade.volume),
                    names["time"]: trade.time_ms,
                    names["maker"]: trade.number % 2 == 0,
                }
                for trade in trades[first:][:limit]
            ],
        )

    return serve


def _serve_coinbase(history: History, symbol: str, query: Mapping[str, str]) -> Response:
    limit = min(int(query.get("limit", 1000)), history.settings.page)
    rows = history.settled(symbol)
    before = int(query["after"]) if "after" in query else (rows[-1].number + 1 if rows else 0)
    rows = [trade for trade in rows if trade.number < before][-limit:][::-1]
    told = [
        {
            "time": _iso(trade.time_ms),
            "trade_id": trade.number,
            "price": number_text(trade.price),
            "size": number_text(trade.volume),
            "side": "sell" if trade.number % 2 else "buy",  # the maker's
        }
        for trade in rows
    ]
    return _response(200, told)


def _serve_kraken(history: History, _: str, query: Mapping[str, str]) -> Response:
    pair = query.get("pair", "")
    names = {_altname(symbol): symbol for symbol in history.trades}
    limit, since_ns = min(int(query.get("count", 1000)), history.settings.page), int(query.get("since", 0))
    rows = sorted(history.settled(names.get(pair, pair)), key=_nanoseconds)
    rows = [trade for trade in rows if _nanoseconds(trade) > since_ns][:limit]
    told = ",".join(
        f'["{number_text(one.price)}","{number_text(one.volume)}",{_nanoseconds(one) / 1e9:.9f},'
        f'"{"b" if one.number % 2 else "s"}","l","",{one.number}]'
        for one in rows
    )
    last = _nanoseconds(rows[-1]) if rows else since_ns
    return _response(200, f'{{"error":[],"result":{{"{pair}":[{told}],"last":"{last}"}}}}')


def _nanoseconds(trade: Trade) -> int:
    """Trades of one millisecond one after the other, so that pages can be told apart."""
    return trade.time_ms * 1_000_000 + 250_000 + trade.number % 500 * 1000


def _altname(symbol: str) -> str:
    return symbol.replace("/", "").replace("BTC", "XBT")


def _serve_pairs(history: History, _: str, query: Mapping[str, str]) -> Response:  # noqa: ARG001  as all of them
    pairs = {symbol: {"altname": _altname(symbol)} for symbol in history.trades}
    return _response(200, {"error": [], "result": pairs})


def _serve_finnhub(history: History, symbol: str, query: Mapping[str, str]) -> Response:
    day = query.get("date", "")
    limit, skip = min(int(query.get("limit", 25_000)), 25_000), int(query.get("skip", 0))
    rows = sorted(
        (trade for trade in history.settled(symbol) if _iso(trade.time_ms).startswith(day)),
        key=lambda one: (one.time_ms, one.number),
    )
    page = rows[skip : skip + limit]
    return _response(
        200,
        {
            "s": symbol,
            "skip": skip,
            "count": len(page),
            "total": len(rows),
            "t": [trade.time_ms for trade in page],
            "p": [trade.price for trade in page],
            "v": [trade.volume for trade in page],
            "x": ["P"] * len(page),
            "c": [json.loads(trade.conditions or "null") for trade in page],
        },
    )


def _serve_alpaca(history: History, symbol: str, query: Mapping[str, str]) -> Response:
    start, end = query.get("start", ""), query.get("end", "~")
    rows = sorted(history.settled(symbol), key=lambda one: (one.time_ms, one.number))
    rows = [trade for trade in rows if start <= _iso(trade.time_ms) <= end]
    skip, limit = int(query.get("page_token", 0)), min(int(query.get("limit", 1000)), history.settings.page)
    page, more = rows[skip : skip + limit], skip + limit < len(rows)
    told = [
        {
            "t": _iso(one.time_ms),
            "x": "D",
            "p": one.price,
            "s": one.volume,
            "c": ["@", "I"],
            "i": one.number,
            "z": "C",
        }
        for one in page
    ]
    return _response(200, {"symbol": symbol, "trades": told, "next_page_token": str(skip + limit) if more else None})


def _iso(time_ms: int) -> str:
    return (_EPOCH + timedelta(milliseconds=time_ms)).isoformat(timespec="milliseconds").replace("+00:00", "Z")


_PATHS: "Mapping[str, Callable[[History, str, Mapping[str, str]], Response]]" = {
    "/api/v3/historicalTrades": _serve_binance(
        {"id": "id", "price": "price", "qty": "qty", "time": "time", "maker": "isBuyerMaker"}
    ),
    "/api/v3/aggTrades": _serve_binance({"id": "a", "price": "p", "qty": "q", "time": "T", "maker": "m"}),
    "/products/{symbol}/trades": _serve_coinbase,
    "/0/public/Trades": _serve_kraken,
    "/0/public/AssetPairs": _serve_pairs,
    "/api/v1/stock/tick": _serve_finnhub,
    "/v2/stocks/{symbol}/trades": _serve_alpaca,
}
