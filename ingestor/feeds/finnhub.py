"""Finnhub's language: https://finnhub.io/docs/api/websocket-trades."""

import json
import operator
from collections.abc import Sequence
from itertools import repeat
from math import isfinite
from typing import Any
from urllib.parse import quote, urlsplit

import pyarrow as pa
import pyarrow.compute as pc

from ingestor.feeds import Decoded, DecodedColumns, Frames, Notice, Terms, json_frames
from ingestor.schema import TIMESTAMP, VENUE_TRADES

_FRAME_KEYS = frozenset(("data", "type"))
_TRADE_KEYS = frozenset("cpstv")
_NUMBERS = frozenset((int, float))

_TOO_MANY_SYMBOLS = "Subscribing to too many symbols"
_INVALID_SYMBOL = "Invalid symbol"

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

_Row = tuple[int, str, float, float | None, str | None]
"""Of VENUE_TRADES; the time in milliseconds."""
_read_plainly = json.JSONDecoder().raw_decode
"""Without a call of ours for every object and integer in it."""
_values_of = operator.itemgetter(*"cpstv")


def read_usual(payload: bytes) -> list[_Row] | None:
    """The trades of a frame that holds nothing but trades, each with its five fields and nothing unusual about them;
    None where `read_frame` has to tell what it says.

    No key is there twice: then there are more colons than keys and strings of what was read account for, since without
    a backslash each colon stands as itself.
    """
    try:
        text = payload.decode("ascii")
        document, end = _read_plainly(text)
        if end != len(text) or "\\" in text or "-0" in text or document["type"] != "trade" or len(document) != 2:
            return None
        items = document["data"]
        rows: list[_Row] = []
        colons = 2 + 5 * len(items)
        for item in items:
            codes, price, symbol, time, volume = _values_of(item)
            joined = ",".join(codes)
            if (
                type(time) is not int
                or not -(2**63) <= time < 2**63
                or type(symbol) is not str
                or type(price) not in _NUMBERS
                or type(volume) not in _NUMBERS
                or type(codes) is not list
                or joined.count(",") >= (len(codes) or 1)
                or "" in codes
                or len(item) != 5
            ):
                return None
            price, volume = float(price), float(volume)
            if not isfinite(price) or not isfinite(volume):
                return None
            colons += symbol.count(":") + joined.count(":")
            rows.append((time, symbol, price, volume, joined))
    except (ValueError, LookupError, TypeError, OverflowError, RecursionError):
        return None
    return rows if type(items) is list and text.count(":") == colons else None


def read_frame(frame: int, payload: bytes, reading: json_frames.Reading) -> None:
    """Add to `reading` what the frame of this number says."""
    try:
        document = json_frames.take_object(json_frames.read_json(payload), _FRAME_KEYS)
        kind = json_frames.take_text(document.get("type"), "no_type")
        if kind == "trade":
            items = document.get("data")
            if not isinstance(items, list):
                raise json_frames.RefusedError("no_data")
            reading.add_trades(frame, items, _trade)
        elif kind in ("ping", "news"):
            reading.notices.append(Notice(frame, kind, ""))
        elif kind != "error":
            reading.notices.append(Notice(frame, "unknown", json_frames.notice_text(kind)))
        elif "msg" in document.repeated:
            raise json_frames.RefusedError("repeated_key")
        else:
            text = json_frames.notice_text(document.get("msg"))
            symbol = None
            if invalid := f"{text} ".startswith(f"{_INVALID_SYMBOL} "):
                symbol = text.removeprefix(_INVALID_SYMBOL).strip() or None
            refuses = invalid or text.startswith(_TOO_MANY_SYMBOLS)
            reading.notices.append(Notice(frame, kind, text, symbol=symbol, refuses=refuses))
    except json_frames.RefusedError as refused:
        reading.reject(frame, refused)


def _trade(item: Any) -> _Row:
    item = json_frames.take_object(item, _TRADE_KEYS)
    volume, codes = item.get("v"), item.get("c")
    row = (
        json_frames.take_integer(item.get("t"), "bad_time"),
        json_frames.take_text(item.get("s"), "bad_symbol"),
        json_frames.take_number(item.get("p"), "bad_price"),
        None if volume is None else json_frames.take_number(volume, "bad_volume"),
    )
    if codes is None:
        return *row, None
    if not isinstance(codes, list) or any(
        json_frames.take_text(code, "bad_conditions") == "" or "," in code for code in codes
    ):
        raise json_frames.RefusedError("bad_conditions")
    return *row, ",".join(codes)


def write_frames(trades: pa.RecordBatch) -> list[bytes]:
    """One frame with all of these trades (prices and volumes are finite); none for an empty batch."""
    if not trades.num_rows:
        return []
    symbols: dict[str, str] = {symbol: json.dumps(symbol) for symbol in trades["symbol"].unique().to_pylist()}
    conditions: dict[str | None, str] = {
        joined: json.dumps(joined.split(",") if joined else [], separators=(",", ":"))
        for joined in trades["conditions"].unique().drop_null().to_pylist()
    }
    conditions[None] = "null"
    columns = (
        map(conditions.__getitem__, trades["conditions"].to_pylist()),
        map(_written_number, trades["price"].to_pylist()),
        map(symbols.__getitem__, trades["symbol"].to_pylist()),
        trades["timestamp"].cast(pa.int64()).to_pylist(),
        ("" if volume is None else f',"v":{_written_number(volume)}' for volume in trades["volume"].to_pylist()),
    )
    items = (f'{{"c":{c},"p":{p},"s":{s},"t":{t}{v}}}' for c, p, s, t, v in zip(*columns, strict=True))
    return [f'{{"data":[{",".join(items)}],"type":"trade"}}'.encode()]


def _written_number(number: Any) -> str:
    """The shortest text that reads back as this double; Finnhub writes whole numbers without a point."""
    return repr(number).removesuffix(".0")


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

    def subscribe(self, symbols: Sequence[str], *, first: bool = False) -> list[str]:  # noqa: ARG002  as every Feed
        """One message per symbol; Finnhub acknowledges none of them."""
        return [_request("subscribe", symbol) for symbol in symbols]

    def unsubscribe(self, symbols: Sequence[str]) -> list[str]:
        """One message per symbol."""
        return [_request("unsubscribe", symbol) for symbol in symbols]

    def decode(self, frames: Frames) -> Decoded:
        """What the frames say. Never raises on bad input: what can't be read is a Reject."""
        return json_frames.decode_blocks(self, frames)

    def read_strictly(self, frames: Frames, first: int) -> Decoded:
        """Frame by frame; the first of them is number `first`."""
        reading = json_frames.Reading(VENUE_TRADES)
        few = reading.few
        for frame, payload in enumerate(frames.payloads, first):
            rows = read_usual(payload)
            if rows is None:
                read_frame(frame, payload, reading)
            else:
                few.values.extend(rows)
                few.frame_of.extend(repeat(frame, len(rows)))
        return reading

    def read_block(self, frames: Frames, first: int) -> Decoded | None:
        """As one, or None where pyarrow can't be relied on to read them as strict `json` would."""
        table = json_frames.read_table(frames.payloads, _FRAME)
        if table is None:
            return None
        is_trade = pc.equal(table["type"], pa.scalar("trade")).fill_null(False)
        lists = (table["data"] if json_frames.no_false(is_trade) else table["data"].filter(is_trade)).combine_chunks()
        trades = _columns(lists)
        if trades is None:
            return None
        others = json_frames.Reading(VENUE_TRADES)
        for row in pc.indices_nonzero(pc.invert(is_trade)).to_pylist():
            read_frame(first + row, frames.payloads[row], others)
        numbers = pc.add(pc.indices_nonzero(is_trade).cast(pa.int64()), pa.scalar(first))
        frame_of = numbers.take(pc.list_parent_indices(lists))
        return DecodedColumns(trades, frame_of, others.rejects, others.notices)

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
    if not (json_frames.no_false(pc.is_finite(price)) and json_frames.no_false(pc.is_finite(volume))):
        return None
    each = codes.flatten()
    if each.null_count or not json_frames.no_false(pc.greater(pc.binary_length(each), pa.scalar(0))):
        return None
    if pc.any(pc.match_substring(each, ",")).as_py():
        return None
    conditions: Any = pc.binary_join(codes, ",")
    return pa.record_batch([time.cast(TIMESTAMP), symbol, price, volume, conditions], schema=VENUE_TRADES)
