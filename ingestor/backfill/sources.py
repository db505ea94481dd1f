"""Sources: what venues serve of past trades over HTTP. One class per source, behind one Protocol.

What a source says is hostile data: a page of another form than is known is refused as a whole.
"""

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple, Protocol
from urllib.parse import quote, urlencode, urlsplit

import pyarrow as pa
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from ingestor.capture.market_calendar import NEW_YORK
from ingestor.config.addresses import check_http_url, is_loopback
from ingestor.config.sections import ConnectionSettings
from ingestor.errors import ConfigError, IngestorError
from ingestor.operations.preflight import Rest, VenueUnreachable
from ingestor.schema import TIMESTAMP

HISTORY = pa.schema(
    [
        ("timestamp", TIMESTAMP),
        ("price", pa.float64()),
        ("volume", pa.float64()),
        ("conditions", pa.string()),
        ("trade_id", pa.int64()),  # null where the source has no ids
        ("side", pa.string()),  # of the aggressor; null where the source doesn't say
        ("order_type", pa.string()),
    ]
)
"""The columns of a page. Of times everything finer than a millisecond is cut off, as it is of those that are heard."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)
_AGAIN = frozenset({418, 429, 500, 502, 503, 504})
_PATIENCE_S = 900.0
_LONGEST_WAIT_S = 300.0
_Row = tuple[int, float, float | None, str | None, int | None, str | None, str | None]


class Ask(NamedTuple):
    """The part of a symbol's history that is wanted."""

    symbol: str
    start_ms: int
    end_ms: int
    """Exclusive. Both as the venue tells the time of trades."""
    first_id: int | None
    last_id: int | None
    """Both inclusive; None where no id is known."""


class SourceRefused(IngestorError):
    """The source doesn't give what was asked for, and its text says why. `final`: it would give nothing else either."""

    def __init__(self, text: str, *, final: bool = False) -> None:
        super().__init__(text)
        self.final = final


class Source(Protocol):
    """Trades of the past."""

    name: str
    by_id: bool
    """It is asked by the ids of trades, which are those of the feed; else by time."""

    def read(self, ask: Ask) -> Iterator[pa.Table]:
        """Pages with the columns of HISTORY, in any order, that hold at least what is asked for.

        Raises SourceRefused, VenueUnreachable.
        """
        ...


class _TryAgain(IngestorError):
    """The source has no time for this now."""

    def __init__(self, text: str, after_s: float | None) -> None:
        super().__init__(text)
        self.after_s = after_s


@dataclass(frozen=True, slots=True)
class Client:
    """Calls of one source, within its limits: what it asks to wait is waited."""

    rest: Rest
    pause_s: float = 0.0
    """After each call."""

    def get(self, path: str, find_refusal: Callable[[Any], str | None] = lambda _: None, **query: Any) -> Any:
        """The JSON of an answer, numbers with a fraction as decimals. `find_refusal` reads what is refused with 200.

        Raises SourceRefused, VenueUnreachable.
        """
        given = urlencode({name: value for name, value in query.items() if value is not None})
        target = f"{path}?{given}" if given else path
        retrying = Retrying(
            retry=retry_if_exception_type((_TryAgain, VenueUnreachable)),
            wait=self._wait,
            stop=stop_after_delay(_PATIENCE_S),
            reraise=True,
        )
        try:
            return retrying(self._ask, target, find_refusal)
        except _TryAgain as error:
            raise SourceRefused(str(error)) from None

    def _ask(self, target: str, find_refusal: Callable[[Any], str | None]) -> Any:
        answer = self.rest.get(target)
        time.sleep(self.pause_s)
        if (answer.retry_after_s or 0) > _LONGEST_WAIT_S:
            raise SourceRefused(f"it answers {answer.status}: not before {answer.retry_after_s:.0f} s", final=True)
        if answer.status in _AGAIN:
            raise _TryAgain(f"it answers {answer.status}", answer.retry_after_s)
        if answer.status in {401, 403}:
            raise SourceRefused(f"it answers {answer.status}: this key may not read it", final=True)
        if answer.status != 200:
            raise SourceRefused(f"it answers {answer.status}")
        try:
            told = json.loads(answer.body, parse_float=Decimal)
        except (ValueError, RecursionError):
            raise SourceRefused("its answer is no JSON") from None
        refusal = find_refusal(told)
        if refusal is not None:
            raise SourceRefused(f"it answers {refusal[:200]!r}")
        return told

    def _wait(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked_s = error.after_s if isinstance(error, _TryAgain) else None
        return min(wait_random_exponential(max=60.0)(state) if asked_s is None else asked_s, _LONGEST_WAIT_S)


def _page(items: Any, read: Callable[[Any], _Row]) -> pa.Table:
    """These items as columns. Raises SourceRefused."""
    try:
        rows = [read(item) for item in items]
        if any(not math.isfinite(number) for row in rows for number in row[1:3] if number is not None):
            raise ValueError("a number that is none")
        columns = [list(column) for column in zip(*rows, strict=True)] or [[] for _ in HISTORY]
        return pa.Table.from_pydict(dict(zip(HISTORY.names, columns, strict=True)), schema=HISTORY)
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, pa.ArrowException):
        raise SourceRefused("its answer has another form than is known") from None


def _time_ms(text: str) -> int:
    """RFC 3339, with as many digits as the source likes. Raises ValueError."""
    head, point, rest = text.partition(".")
    if point:
        digits = rest.rstrip("Z").partition("+")[0].partition("-")[0]
        text = f"{head}.{digits[:6]}{rest[len(digits) :]}"
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("no zone")
    return (moment - _EPOCH) // _MS


def _last_id(page: pa.Table) -> int:
    return int(page.column("trade_id")[-1].as_py())


class Binance:
    """Binance's spot market, by id: `/api/v3/historicalTrades`, or `/api/v3/aggTrades` where that stream is recorded.

    https://developers.binance.com/docs/binance-spot-api-docs/rest-api/market-data-endpoints
    """

    by_id = True

    def __init__(self, client: Client, *, aggregates: bool) -> None:
        self.name = "binance-aggregates" if aggregates else "binance"
        self._client = client
        self._path = "/api/v3/aggTrades" if aggregates else "/api/v3/historicalTrades"
        self._names = ("T", "p", "q", "a", "m") if aggregates else ("time", "price", "qty", "id", "isBuyerMaker")

    def read(self, ask: Ask) -> Iterator[pa.Table]:
        """Ascending pages of a thousand."""
        at_, price, volume, number, maker = self._names

        def row(item: Any) -> _Row:
            side = "sell" if item[maker] else "buy"
            return int(item[at_]), float(item[price]), float(item[volume]), None, int(item[number]), side, None

        at, last = ask.first_id, ask.last_id
        while at is not None and last is not None and at <= last:
            page = _page(self._client.get(self._path, symbol=ask.symbol, fromId=at, limit=1000), row)
            if not page.num_rows:
                return
            yield page
            at = max(_last_id(page), at) + 1


class Coinbase:
    """Coinbase Exchange, by id: `/products/{id}/trades`. Its ids are those of Advanced Trade, too.

    https://docs.cdp.coinbase.com/api-reference/exchange-api/rest-api/products/get-product-trades
    """

    name = "coinbase"
    by_id = True

    def __init__(self, client: Client) -> None:
        self._client = client

    def read(self, ask: Ask) -> Iterator[pa.Table]:
        """Descending pages of a thousand. The side that it names is the maker's."""
        sides = {"buy": "sell", "sell": "buy"}

        def row(item: Any) -> _Row:
            price, size = float(item["price"]), float(item["size"])
            return _time_ms(item["time"]), price, size, None, int(item["trade_id"]), sides[item["side"]], None

        path = f"/products/{quote(ask.symbol, safe='')}/trades"
        first = ask.first_id
        after = None if ask.last_id is None else ask.last_id + 1
        while first is not None and after is not None and after > first:
            page = _page(self._client.get(path, limit=1000, after=after), row)
            if not page.num_rows:
                return
            yield page
            after = min(_last_id(page), after - 1)


class Kraken:
    """Kraken's spot market, by time: `/0/public/Trades`. Its rows have the feed's ids.

    https://docs.kraken.com/api/docs/rest-api/get-recent-trades
    """

    name = "kraken"
    by_id = True
    _BUSY = ("EGeneral:Too many requests", "EAPI:Rate limit exceeded", "EService:")

    def __init__(self, client: Client) -> None:
        self._client = client
        self._pairs: Mapping[str, Any] | None = None

    def read(self, ask: Ask) -> Iterator[pa.Table]:
        """Ascending pages of a thousand."""
        sides, types = {"b": "buy", "s": "sell"}, {"m": "market", "l": "limit"}

        def row(item: Any) -> _Row:
            price, volume, at_s, side, order_type, _, number = item
            moment_ms = int(Decimal(at_s) * 1000)
            return moment_ms, float(price), float(volume), None, int(number), sides[side], types[order_type]

        if self._pairs is None:
            told = self._get("/0/public/AssetPairs", assetVersion=1)
            self._pairs = told if isinstance(told, dict) else {}
        known = self._pairs.get(ask.symbol)
        name = known.get("altname") if isinstance(known, dict) else None
        pair = name if isinstance(name, str) else ask.symbol.replace("/", "")  # `XBTUSD` for `BTC/USD`
        since = str(ask.start_ms * 1_000_000 - 1)
        while True:
            told = self._get("/0/public/Trades", pair=pair, since=since, count=1000)
            try:
                last = str(told["last"])
                (items,) = (value for name, value in told.items() if name != "last")
            except (LookupError, TypeError, ValueError, AttributeError):
                raise SourceRefused("its answer has another form than is known") from None
            page = _page(items, row)
            if not page.num_rows:
                return
            yield page
            beyond = page.column("timestamp").cast(pa.int64())[-1].as_py() >= ask.end_ms
            if beyond or last == since or not last.isdecimal():
                return
            since = last

    def _get(self, path: str, **query: Any) -> Any:
        """The `result` of an answer; Kraken says with 200 that it is busy."""

        def judge(told: Any) -> str | None:
            errors = told.get("error") if isinstance(told, dict) else ["no object"]
            if errors and str(errors[0]).startswith(self._BUSY):
                raise _TryAgain(str(errors[0])[:100], None)
            return str(errors[0]) if errors else None

        return self._client.get(path, judge, **query).get("result")


class Finnhub:
    """Finnhub's ticks of a day, for premium keys: `/stock/tick`.

    https://finnhub.io/docs/api/stock-tick
    """

    name = "finnhub"
    by_id = False

    def __init__(self, client: Client) -> None:
        self._client = client

    def read(self, ask: Ask) -> Iterator[pa.Table]:
        """Ascending pages of 25,000, day by day. A day is New York's for a US stock, else UTC's: both are asked."""
        start, end = (_EPOCH + at_ms * _MS for at_ms in (ask.start_ms, ask.end_ms - 1))
        first, last = start.astimezone(NEW_YORK).date(), end.date()
        for number in range((last - first).days + 1):
            day, skip = first + timedelta(number), 0
            while True:
                told = self._client.get(
                    "/api/v1/stock/tick", symbol=ask.symbol, date=day.isoformat(), limit=25_000, skip=skip
                )
                page = _page(_finnhub_ticks(told), lambda row: row)
                if not page.num_rows:
                    break
                yield page
                skip += page.num_rows
                if page.column("timestamp").cast(pa.int64())[-1].as_py() >= ask.end_ms or page.num_rows < 25_000:
                    break


def _finnhub_ticks(told: Any) -> Iterator[_Row]:
    """Of an answer in columns; raises what `_page` takes for another form."""
    if not told.get("t"):
        return
    for at_ms, price, volume, codes in zip(told["t"], told["p"], told["v"], told["c"], strict=True):
        conditions = None if codes is None else ",".join(map(str, codes))
        yield int(at_ms), float(price), float(volume), conditions, None, None, None


_SIP = {
    "4": 32, "7": 37, "8": 38, "9": 39, "C": 5, "F": 8, "H": 10, "I": 12, "L": 15, "M": 16, "N": 17, "P": 21, "Q": 20,
    "R": 22, "T": 24, "U": 25, "V": 26, "X": 28, "Z": 30, "@": 1, " ": 1, "": 1,
}  # fmt: skip
_CTA = {**_SIP, "5": 33, "6": 35, "B": 3, "E": 7, "K": 13, "O": 18}
_UTP = {
    **_SIP, "1": 31, "5": 34, "6": 36, "A": 2, "B": 4, "D": 6, "G": 9, "K": 14, "O": 19, "S": 23, "W": 3, "Y": 29,
}  # fmt: skip
SIP_CONDITIONS: Mapping[str, Mapping[str, int]] = {"A": _CTA, "B": _CTA, "C": _UTP}
"""By tape and letter the number of the same condition in Finnhub's sheet of trade conditions, paired by name. Letters
and names: Alpaca's `/v2/stocks/meta/conditions/trade?tape=…`, which are those of CTA (tapes A and B) and UTP (C).
"""


class Alpaca:
    """US stocks by Alpaca: `/v2/stocks/{symbol}/trades` of the SIP; what is 15 minutes old is for free keys, too.

    https://docs.alpaca.markets/reference/stocktradesingle
    """

    name = "alpaca"
    by_id = False

    def __init__(self, client: Client) -> None:
        self._client = client

    def read(self, ask: Ask) -> Iterator[pa.Table]:
        """Ascending pages of 10,000. What was taken back afterwards is left out."""
        path, token = f"/v2/stocks/{quote(ask.symbol, safe='')}/trades", None
        start, end = ((_EPOCH + at_ms * _MS).isoformat(timespec="milliseconds") for at_ms in (ask.start_ms, ask.end_ms))
        while True:
            told = self._client.get(
                path, start=start.replace("+00:00", "Z"), end=end.replace("+00:00", "Z"), feed="sip", limit=10_000,
                page_token=token,
            )  # fmt: skip
            try:
                items: Iterable[Any] = [item for item in told.get("trades") or () if "u" not in item]
                token = told.get("next_page_token")
            except (TypeError, AttributeError):
                raise SourceRefused("its answer has another form than is known") from None
            yield _page(items, _read_sip)
            if not token:
                return


def _read_sip(item: Any) -> _Row:
    known = SIP_CONDITIONS.get(item.get("z", ""), {})
    codes = [str(known.get(letter, letter)) for letter in item.get("c") or ()]
    conditions = ",".join(codes) if item.get("c") is not None else None
    return _time_ms(item["t"]), float(item["p"]), float(item["s"]), conditions, None, None, None


_BASES = {
    "binance": ("https://api.binance.com", 0.25),
    "binance-aggregates": ("https://api.binance.com", 0.05),
    "coinbase": ("https://api.exchange.coinbase.com", 0.15),
    "kraken": ("https://api.kraken.com", 1.0),
    "finnhub": ("https://finnhub.io", 0.2),
    "alpaca": ("https://data.alpaca.markets", 0.35),
}
"""Of each source where it is, and how long to wait after a call to stay within what it allows."""
SOURCES = tuple(_BASES)


def make_source(
    name: str,
    url: str | None = None,
    key: str = "",
    secrets: Mapping[str, str] | None = None,
    connection: ConnectionSettings | None = None,
) -> Source:
    """The source of this name; `url` is another place that serves the same. `key` is Finnhub's, `secrets` are headers.

    Raises ConfigError.
    """
    usual, pause_s = _BASES[name]
    try:
        base = check_http_url(url or usual)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    local = is_loopback(urlsplit(base).hostname or "")
    client = Client(Rest(base, key, connection, headers=secrets or {}), 0.0 if local else pause_s)
    makers: dict[str, Callable[[], Source]] = {
        "binance": lambda: Binance(client, aggregates=False),
        "binance-aggregates": lambda: Binance(client, aggregates=True),
        "coinbase": lambda: Coinbase(client),
        "kraken": lambda: Kraken(client),
        "finnhub": lambda: Finnhub(client),
        "alpaca": lambda: Alpaca(client),
    }
    return makers[name]()
