"""Binance's language: https://developers.binance.com/docs/binance-spot-api-docs/web-socket-streams.

`trade` and `aggTrade` events, bare or in a combined stream's envelope. Their single letters mean other things in
other events: what a frame is is told by `stream` and `e` alone.
"""

import json
from collections.abc import Iterator, Sequence
from decimal import Decimal
from functools import partial
from typing import Any, Literal
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.compute as pc

from ingestor.config.feeds import BINANCE_STREAMS
from ingestor.feeds import Decoded, DecodedColumns, Frames, Notice, Terms, json_frames
from ingestor.schema import TIMESTAMP, VENUE_FIELDS

BINANCE_TRADES = pa.schema(
    [
        *VENUE_FIELDS,
        pa.field("trade_id", pa.int64()),  # rising by one with each trade (or aggregate) of a symbol
        pa.field("side", pa.string()),  # "buy" or "sell": what the aggressor did
    ]
)

_TERMS = Terms(
    message_pause_s=0.25,
    max_age_s=23.75 * 3600,
    symbols_per_connection=BINANCE_STREAMS,
    never_closes=True,
    id_column="trade_id",
)
"""Five messages per second and 24 h per connection are what Binance allows; our pings and pongs count, too."""
_STREAMS_A_MESSAGE = 200
"""A connection has 1024 streams at most, and so takes six messages."""

_EVENT_FIELDS = [
    *[pa.field(key, pa.string()) for key in ("e", "s", "p", "q")],
    *[pa.field(key, pa.int64()) for key in ("E", "T", "t", "a", "b", "f", "l")],
    *[pa.field(key, pa.bool_()) for key in ("m", "M")],
]
"""All that an event has, so that the quick reader meets nothing unexpected."""
_FRAME = pa.schema([pa.field("stream", pa.string()), pa.field("data", pa.struct(_EVENT_FIELDS)), *_EVENT_FIELDS])
_FRAME_KEYS = frozenset({"stream", "data", "e", "result", "error", "code", "msg"})
_ID_KEYS = {"trade": "t", "aggTrade": "a"}
"""The events that are trades, and where each has its id."""
_TRADE_KEYS = frozenset("Tspqm")


class Binance:
    """The feed of wss://stream.binance.com:9443/ws, or …/stream for combined streams.

    Why it rejects a frame: `not_utf8`, `not_json`, `too_deep`, `not_an_object`, `repeated_key`, `no_event`,
    `no_data` (a combined stream's envelope without an event). Why it rejects a trade, the first that applies:
    `repeated_key`, `bad_time`, `bad_symbol`, `bad_price`, `bad_volume`, `bad_id`, `bad_side`. What is missing is bad,
    too, and so is a price that is no decimal number in a string.
    """

    name = "binance"
    schema = BINANCE_TRADES
    terms = _TERMS

    def __init__(self, url: str, stream: Literal["trade", "aggTrade"]) -> None:
        self._url = url
        self._stream = stream
        self._combined = urlsplit(url).path.rstrip("/").endswith("/stream")

    def __repr__(self) -> str:
        return f"Binance({self._url!r}, {self._stream!r})"

    def url(self) -> str:
        """Where to connect; there is no key."""
        return self._url

    def subscribe(self, symbols: Sequence[str], *, first: bool = False) -> list[str]:  # noqa: ARG002  as every Feed
        """One message for 200 symbols; Binance answers each by its id."""
        return list(self._requests("SUBSCRIBE", symbols))

    def unsubscribe(self, symbols: Sequence[str]) -> list[str]:
        """One message for 200 symbols."""
        return list(self._requests("UNSUBSCRIBE", symbols))

    def decode(self, frames: Frames) -> Decoded:
        """What the frames say. Never raises on bad input: what can't be read is a Reject."""
        return json_frames.decode_blocks(self, frames)

    def read_strictly(self, frames: Frames, first: int) -> Decoded:
        """Frame by frame; the first of them is number `first`."""
        reading = json_frames.Reading(BINANCE_TRADES)
        for frame, payload in enumerate(frames.payloads, first):
            _read(frame, payload, reading)
        return reading

    def read_block(self, frames: Frames, first: int) -> Decoded | None:
        """As one, or None where pyarrow can't be relied on to read them as strict `json` would."""
        table = json_frames.read_table(frames.payloads, _FRAME)
        if table is None:
            return None
        batch = table.combine_chunks().to_batches()[0]
        # A row per frame: its event's fields, null where it holds none.
        enveloped = pc.is_valid(batch["stream"])
        if not pc.any(enveloped).as_py():
            events = batch.select([field.name for field in _EVENT_FIELDS])
        else:
            if not json_frames.no_false(pc.or_(enveloped, pc.is_null(batch["e"]))):  # only some are in an envelope
                return None
            fields = batch["data"].flatten()
            kind = pc.if_else(enveloped, fields[0], pa.scalar(None, pa.string()))  # without `stream` it is no envelope
            events = pa.record_batch([kind, *fields[1:]], schema=pa.schema(_EVENT_FIELDS))
        is_trade = pc.is_in(events["e"], pa.array(_ID_KEYS))
        trades = _columns(events if json_frames.no_false(is_trade) else events.filter(is_trade))
        if trades is None:
            return None
        others = json_frames.Reading(BINANCE_TRADES)
        for row in pc.indices_nonzero(pc.invert(is_trade)).to_pylist():
            _read(first + row, frames.payloads[row], others)
        frame_of = pc.add(pc.indices_nonzero(is_trade).cast(pa.int64()), pa.scalar(first))
        return DecodedColumns(trades, frame_of, others.rejects, others.notices)

    def encode(self, trades: pa.RecordBatch) -> list[bytes]:
        """One frame per trade, in the form that this feed asks for; a trade without volume can't be said."""
        columns = (trades["timestamp"].cast(pa.int64()), *trades.columns[1:4], trades["trade_id"], trades["side"])
        rows = zip(*(column.to_pylist() for column in columns), strict=True)
        return [self._written(*row).encode() for row in rows]

    def _requests(self, method: str, symbols: Sequence[str]) -> Iterator[str]:
        starts = range(0, len(symbols), _STREAMS_A_MESSAGE)
        for number, start in enumerate(starts, 1):
            params = [self._stream_of(symbol) for symbol in symbols[start : start + _STREAMS_A_MESSAGE]]
            request = {"method": method, "params": params, "id": number}
            yield json.dumps(request, separators=(",", ":"), ensure_ascii=False)

    def _stream_of(self, symbol: str) -> str:
        return f"{symbol.lower()}@{self._stream}"

    def _written(self, time: int, symbol: str, price: float, volume: float, trade_id: int, side: str) -> str:
        event: dict[str, Any] = {"e": self._stream, "E": time, "s": symbol, _ID_KEYS[self._stream]: trade_id}
        event |= {"p": _decimal(price), "q": _decimal(volume), "T": time, "m": side == "sell", "M": True}
        message = {"stream": self._stream_of(symbol), "data": event} if self._combined else event
        return json.dumps(message, separators=(",", ":"), ensure_ascii=False)


def _decimal(number: float) -> str:
    """The shortest decimal number that reads back as this double; Binance writes no exponents."""
    return format(Decimal(repr(number)), "f")


# A block at a time


def _columns(events: pa.RecordBatch) -> pa.RecordBatch | None:
    """The trades that these events are, or None where there is one to reject."""
    trade_id = pc.if_else(pc.equal(events["e"], pa.scalar("trade")), events["t"], events["a"])
    needed = [events[key] for key in "Tspqm"]
    if trade_id.null_count or any(column.null_count for column in needed):
        return None
    time, symbol, price_text, volume_text, buyer_made = needed
    price, volume = _doubles(price_text), _doubles(volume_text)
    if price is None or volume is None:
        return None
    conditions = pa.nulls(events.num_rows, pa.string())
    side = pc.if_else(buyer_made, pa.scalar("sell"), pa.scalar("buy"))
    columns = [time.cast(TIMESTAMP), symbol, price, volume, conditions, trade_id, side]
    return pa.record_batch(columns, schema=BINANCE_TRADES)


def _doubles(decimals: pa.Array) -> pa.Array | None:
    """Each the nearest double; None where one is no decimal number, or too large."""
    if not json_frames.no_false(pc.match_substring_regex(decimals, rf"\A{json_frames.DECIMAL.pattern}\z")):
        return None
    doubles = decimals.cast(pa.float64())
    return doubles if json_frames.no_false(pc.is_finite(doubles)) else None


# A frame at a time

Row = tuple[int, str, float, float, None, int, str]
"""Of BINANCE_TRADES; the time in milliseconds."""


def _read(frame: int, payload: bytes, reading: json_frames.Reading) -> None:
    """Add what this frame says."""
    try:
        document = json_frames.take_object(json_frames.read_json(payload), _FRAME_KEYS)
        event = document
        if document.get("stream") is not None:
            json_frames.take_text(document["stream"], "no_event")
            if not isinstance(document.get("data"), json_frames.JsonObject):
                raise json_frames.RefusedError("no_data")
            event = json_frames.take_object(document["data"], {"e"})
        elif document.get("e") is None and not document.keys().isdisjoint({"result", "error", "code"}):
            reading.notices.append(_answer(frame, document))
            return
        if (kind := json_frames.take_text(event.get("e"), "no_event")) in _ID_KEYS:
            reading.add_trades(frame, [event], partial(_trade, id_key=_ID_KEYS[kind]))
        else:
            reading.notices.append(Notice(frame, "unknown", json_frames.notice_text(kind)))
    except json_frames.RefusedError as refused:
        reading.reject(frame, refused)


def _answer(frame: int, document: json_frames.JsonObject) -> Notice:
    """What became of a request: `{"result":null,"id":1}`, `{"error":{"code":2,"msg":"…"},"id":1}`; older servers
    write an error's fields without the envelope.
    """
    error = document if "code" in document else document.get("error")
    if error is None:
        return Notice(frame, "ack", "")
    said = error.get("msg") if isinstance(error, json_frames.JsonObject) else error
    return Notice(frame, "error", json_frames.notice_text(said), refuses=True)


def _trade(event: json_frames.JsonObject, id_key: str) -> Row:
    json_frames.take_object(event, _TRADE_KEYS | {id_key})
    row = (
        json_frames.take_integer(event.get("T"), "bad_time"),
        json_frames.take_text(event.get("s"), "bad_symbol"),
        json_frames.take_decimal(event.get("p"), "bad_price"),
        json_frames.take_decimal(event.get("q"), "bad_volume"),
        None,
        json_frames.take_integer(event.get(id_key), "bad_id"),
    )
    buyer_made = event.get("m")
    if not isinstance(buyer_made, bool):
        raise json_frames.RefusedError("bad_side")
    return *row, "sell" if buyer_made else "buy"  # by the aggressor: where the buyer made the price, it sold
