"""Finnhub's language: https://finnhub.io/docs/api/websocket-trades."""

import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote, urlsplit

import pyarrow as pa
import pyarrow.compute as pc

from ingestor.feeds import Decoded, Frames, Terms
from ingestor.feeds.finnhub_frames import read_frame, write_frames
from ingestor.feeds.json_blocks import decode_blocks, no_false, read_table
from ingestor.feeds.reading import Reading
from ingestor.schema import TIMESTAMP, VENUE_TRADES

_TRADE = pa.struct(
    [
        pa.field("c", pa.list_(pa.string())),
        pa.field("p", pa.float64()),
        pa.field("s", pa.string()),
        pa.field("t", pa.int64()),
        pa.field("v", pa.float64()),
    ]
)
_FRAME = pa.schema([pa.field("data", pa.list_(_TRADE)), pa.field("type", pa.string())])


class Finnhub:
    """The feed of wss://ws.finnhub.io.

    Why it rejects a frame: `not_utf8`, `not_json`, `too_deep`, `not_an_object`, `repeated_key`, `no_type`,
    `no_data`. Why it rejects a trade, the first that applies: `not_an_object`, `repeated_key`, `bad_time`,
    `bad_symbol`, `bad_price`, `bad_volume`, `bad_conditions`. What is missing is bad, too.
    """

    name = "finnhub"
    schema = VENUE_TRADES
    terms = Terms()

    def __init__(self, url: str, key: str) -> None:
        self._url = url
        self._key = key

    def __repr__(self) -> str:
        return f"Finnhub({self._url.partition('?')[0]!r})"

    def url(self) -> str:
        """Where to connect, with the key in it: never log it."""
        parts = urlsplit(self._url)
        token = f"token={quote(self._key, safe='')}"
        return parts._replace(query=f"{parts.query}&{token}" if parts.query else token).geturl()

    def subscribe(self, symbols: Sequence[str]) -> list[str]:
        """One message a symbol; Finnhub acknowledges none of them."""
        return [_request("subscribe", symbol) for symbol in symbols]

    def unsubscribe(self, symbols: Sequence[str]) -> list[str]:
        """One message a symbol."""
        return [_request("unsubscribe", symbol) for symbol in symbols]

    def decode(self, frames: Frames) -> Decoded:
        """What the frames say. Never raises on bad input: what can't be read is a Reject."""
        return decode_blocks(self, frames)

    def read_strictly(self, frames: Frames, first: int) -> Decoded:
        """Frame by frame; the first of them is number `first`."""
        reading = Reading()
        for frame, payload in enumerate(frames.payloads, first):
            read_frame(frame, payload, reading)
        return reading.decoded(VENUE_TRADES)

    def read_block(self, frames: Frames, first: int) -> Decoded | None:
        """As one, or None where pyarrow can't be relied on to read them as strict `json` would."""
        table = read_table(frames.payloads, _FRAME)
        if table is None:
            return None
        is_trade = pc.equal(table["type"], pa.scalar("trade")).fill_null(False)
        lists = (table["data"] if no_false(is_trade) else table["data"].filter(is_trade)).combine_chunks()
        trades = _columns(lists)
        if trades is None:
            return None
        others = Reading()
        for row in pc.indices_nonzero(pc.invert(is_trade)).to_pylist():
            read_frame(first + row, frames.payloads[row], others)
        numbers = pc.add(pc.indices_nonzero(is_trade).cast(pa.int64()), pa.scalar(first))
        frame_of = numbers.take(pc.list_parent_indices(lists))
        return Decoded(trades, frame_of, others.rejects, others.notices)

    def encode(self, trades: pa.RecordBatch) -> list[bytes]:
        """One frame with all of these trades (prices and volumes are finite); none for an empty batch."""
        return write_frames(trades)


def _request(kind: str, symbol: str) -> str:
    return json.dumps({"type": kind, "symbol": symbol}, separators=(",", ":"))


def _columns(lists: Any) -> pa.RecordBatch | None:
    """The trades in these lists of `_TRADE`, or None where there is one to reject, or a list is null."""
    items = lists.flatten()
    if lists.null_count or items.null_count:
        return None
    time, symbol, price, volume, codes = (items.field(key) for key in "tspvc")
    if time.null_count or symbol.null_count or price.null_count:
        return None
    if not (no_false(pc.is_finite(price)) and no_false(pc.is_finite(volume)) and _are_codes(codes.flatten())):
        return None
    conditions: Any = pc.binary_join(codes, ",")
    return pa.record_batch([time.cast(TIMESTAMP), symbol, price, volume, conditions], schema=VENUE_TRADES)


def _are_codes(codes: Any) -> bool:
    return (
        codes.null_count == 0
        and no_false(pc.greater(pc.binary_length(codes), pa.scalar(0)))
        and not pc.any(pc.match_substring(codes, ",")).as_py()
    )
