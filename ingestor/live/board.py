"""Board of quotes: each symbol's last price, change, rate, course, and whether it is being recorded; and the updates
for clients, a block of trades as WebSocket frames, made once and shared by all of them. Pure.

A WebSocket server sends its frames unmasked and, without compression, alike to everybody. So a frame is made once per
trade, not once per client: a client gets finished pieces, joined.
"""

import json
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from ingestor.feeds.finnhub import Finnhub

_COLUMNS = ["timestamp", "symbol", "price", "volume", "conditions"]
_FINNHUB = Finnhub("", "")
_FINNHUB_TRADES = 100
"""In one message: a client's library may refuse messages above 1 MB."""


class Price(NamedTuple):
    """A trade as the price API tells it."""

    price: float
    volume: float | None
    timestamp_ms: int


class SymbolTrades:
    """The trades of one symbol in one block, in order of arrival, and what each language makes of them."""

    def __init__(self, symbol: str, rows: pa.RecordBatch) -> None:
        """`rows` (at least one) have the columns of `split_by_symbol`."""
        self.symbol = symbol
        self._rows = rows

    def __len__(self) -> int:
        return int(self._rows.num_rows)

    @cached_property
    def prices(self) -> list[Price]:
        """In order of arrival."""
        columns = (self._rows["price"], self._rows["volume"], self._rows["timestamp"].cast(pa.int64()))
        return [Price(*row) for row in zip(*(column.to_pylist() for column in columns), strict=True)]

    @cached_property
    def newest(self) -> Price:
        """By the venue's clock, of equals the last to arrive: a late trade is not the last price."""
        return max(reversed(self.prices), key=lambda price: price.timestamp_ms)

    @cached_property
    def price_frames(self) -> bytes:
        """Frames of the price API, one per trade."""
        symbol = json.dumps(self.symbol)
        return b"".join(frame(_encode_price(symbol, price)) for price in self.prices)

    @cached_property
    def newest_frame(self) -> bytes:
        """One frame of the price API: of `newest`."""
        return price_frame(self.symbol, self.newest)

    @cached_property
    def finnhub_frames(self) -> bytes:
        """Finnhub's own messages."""
        starts = range(0, len(self), _FINNHUB_TRADES)
        slices = (self._rows.slice(start, _FINNHUB_TRADES) for start in starts)
        return b"".join(frame(message) for rows in slices for message in _FINNHUB.encode(rows))


def split_by_symbol(batch: pa.RecordBatch) -> list[SymbolTrades]:
    """The trades (schema.TRADES) of each symbol."""
    if not batch.num_rows:
        return []
    symbols = batch["symbol"].dictionary_encode()
    order = pc.sort_indices(symbols.indices)  # stable: the order of arrival stays
    rows = batch.select(_COLUMNS).take(order)
    runs = pc.run_end_encode(symbols.indices.take(order))
    ends = runs.run_ends.to_pylist()
    names = symbols.dictionary.take(runs.values).to_pylist()
    starts = [0, *ends[:-1]]
    return [
        SymbolTrades(name, rows.slice(start, end - start)) for name, start, end in zip(names, starts, ends, strict=True)
    ]


def price_frame(symbol: str, price: Price) -> bytes:
    """One frame of the price API."""
    return frame(_encode_price(json.dumps(symbol), price))


def json_frame(message: object) -> bytes:
    """A message that is not a price."""
    return frame(json.dumps(message, separators=(",", ":")).encode())


def frame(text: bytes) -> bytes:
    """One unmasked, final text frame (RFC 6455, 5.2)."""
    size = len(text)
    if size < 126:
        return bytes((0x81, size)) + text
    if size < 1 << 16:
        return b"\x81\x7e" + size.to_bytes(2, "big") + text
    return b"\x81\x7f" + size.to_bytes(8, "big") + text


def _encode_price(symbol: str, price: Price) -> bytes:
    volume = "null" if price.volume is None else _number(price.volume)
    return (
        f'{{"symbol":{symbol},"price":{_number(price.price)},"volume":{volume},"timestamp":{price.timestamp_ms}}}'
    ).encode()


def _number(value: float) -> str:
    """The shortest text that reads back as this double; `100`, not `100.0`."""
    return repr(value).removesuffix(".0")


DAY_MS = 86_400_000
POINT_S = 10
"""From point to point of a course."""
POINTS = 90
UNASKED_MAX = 10_000
"""Symbols of which nothing is claimed."""
_RATE_S = 10


class State(NamedTuple):
    """`recorded`, `blind` or `unproven`, as of coverage; `cause` of blindness."""

    state: str
    cause: str | None = None


UNKNOWN = State("unknown")
"""Asked for by nobody, as far as the ledger says."""
NOBODY = State("blind", "no_recorder")
"""No recorder holds the root."""


@dataclass(slots=True)
class Quote:
    """One symbol."""

    symbol: str
    last: Price | None = None
    first_price: float | None = None
    """Of the UTC date of `last`."""
    day: int | None = None
    """That date, in days since 1970; None: as `last` says."""
    state: State = UNKNOWN
    counts: "deque[int]" = field(default_factory=lambda: deque([0], maxlen=_RATE_S + 1))
    """Trades in each of the last seconds; the present one is last, and not over."""
    course: "deque[float | None]" = field(default_factory=lambda: deque(maxlen=POINTS))
    """The last price at each point that had one; None where it was blind."""

    @property
    def change(self) -> float | None:
        """Since the day's first price: 0.01 is one percent."""
        if self.last is None or not self.first_price:
            return None
        return self.last.price / self.first_price - 1

    @property
    def rate(self) -> float:
        """Trades per second over the last 10 whole seconds."""
        return (sum(self.counts) - self.counts[-1]) / _RATE_S

    def move(self, price: Price, now: float | None = None) -> bool:
        """Take a price over, unless it is older than the last one; whether it was.

        A trade from the future holds up nothing: the next one counts, whatever its time, and no day begins before the
        clock says so.
        """
        now_ms = price.timestamp_ms if now is None else int(now * 1000)
        if (
            self.last is not None
            and price.timestamp_ms < self.last.timestamp_ms
            and (now is None or self.last.timestamp_ms <= now_ms)
        ):
            return False
        day = min(price.timestamp_ms, now_ms) // DAY_MS
        before = self.last.timestamp_ms // DAY_MS if self.day is None and self.last is not None else self.day
        if before is None or day > before:
            self.first_price = price.price
        self.day = day if before is None else max(day, before)
        self.last = price
        return True

    def as_json(self) -> dict[str, Any]:
        """As `/symbols` tells it; `timestamp` in ms since 1970."""
        price, volume, timestamp_ms = self.last or (None, None, None)
        return {
            "symbol": self.symbol,
            "price": price,
            "volume": volume,
            "timestamp": timestamp_ms,
            "change": self.change,
            "rate": self.rate,
            "course": list(self.course),
            "state": self.state.state,
            "cause": self.state.cause,
        }


class Board:
    """The quotes. Times are seconds since 1970."""

    def __init__(self, quotes: Iterable[Quote] = ()) -> None:
        self.quotes = {quote.symbol: quote for quote in quotes}
        self.recording: bool | None = None
        """Whether anybody records; None: unknown."""
        self._second = 0
        self._unasked = {quote.symbol: None for quote in self.quotes.values() if quote.state == UNKNOWN}
        """Of these nothing is claimed: the venue may invent as many as it likes. The one that traded last is last."""

    def add_trades(self, trades: SymbolTrades, now: float) -> bool:
        """Count these; whether there is a new last price among them."""
        self.turn(now)
        quote = self.quotes.setdefault(trades.symbol, Quote(trades.symbol))
        if quote.state == UNKNOWN:
            self._unasked.pop(trades.symbol, None)
            self._unasked[trades.symbol] = None
            self._bound()
        quote.counts[-1] += len(trades)
        return quote.move(trades.newest, now)

    def set_state(self, states: Mapping[str, State], recording: bool | None) -> None:
        """Take over what coverage says. What nobody records is blind, whatever it was before."""
        self.recording = recording
        for symbol in states:
            self.quotes.setdefault(symbol, Quote(symbol))
        for quote in self.quotes.values():
            claimed = states.get(quote.symbol, UNKNOWN)
            quote.state = NOBODY if recording is False and claimed != UNKNOWN else claimed
            if claimed != UNKNOWN:
                self._unasked.pop(quote.symbol, None)
            else:
                self._unasked.setdefault(quote.symbol)
        self._bound()

    def _bound(self) -> None:
        """Forget what nobody asked for, the longest silent first, where there is too much of it."""
        for symbol in list(islice(self._unasked, max(len(self._unasked) - UNASKED_MAX, 0))):
            del self._unasked[symbol], self.quotes[symbol]

    def turn(self, now: float) -> None:
        """Let time pass up to `now`: seconds begin new counts, every tenth a new point."""
        if int(now) < self._second - _RATE_S:  # the clock was set back
            self._second = 0
        before, self._second = self._second, max(self._second, int(now))
        if not before or before == self._second:
            return
        points = min(self._second // POINT_S - before // POINT_S, POINTS)
        for quote in self.quotes.values():
            quote.counts.extend([0] * min(self._second - before, _RATE_S + 1))
            if quote.last is not None:
                quote.course.extend([None if quote.state.state == "blind" else quote.last.price] * points)
