"""Updates for clients: a block of trades as WebSocket frames, made once and shared by all of them. Pure.

A WebSocket server sends its frames unmasked and, without compression, alike to everybody. So a frame is made once
per trade, not once per client: a client gets finished pieces, joined.
"""

import json
from functools import cached_property
from typing import NamedTuple

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
