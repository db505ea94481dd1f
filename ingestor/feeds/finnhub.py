"""Finnhub's language: https://finnhub.io/docs/api/websocket-trades.

A block of frames is decoded as one: pyarrow's JSON reader turns it into columns, no Python object a trade.
That reader is looser than JSON in ways that matter to a record, so it is fenced (`_fenced`), and what it
returns is taken only where strict `json` would say the same. Else the block is cut into parts, and the
smallest of them are read frame by frame. The tests hold both ways to one independent reference.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlsplit

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow.json import ParseOptions, ReadOptions, read_json

from ingestor.feeds import Decoded, Frames, Notice, Reject
from ingestor.schema import TIMESTAMP, VENUE_TRADES

_BLOCK_FRAMES = 16_384
"""pyarrow's reader takes at most 100,000 rows a block; past 8,000 a larger block is no faster."""
_BLOCK_BYTES = 1 << 28
_STRICT_FRAMES = 64
"""Below this many frames the fixed cost of pyarrow's reader, some 100 µs, exceeds that of strict reading."""
_PARTS = 8
_PART_FRAMES = 32
"""A block that can't be read as one is cut into so many parts of at least so many frames. Cut in halves, a bad
frame would have its neighbours read twice as often."""
_LONG_BYTES = 1000
_DEEP_BRACKETS = 500
"""`json` gives up where nesting meets the interpreter's recursion limit (1000, less what is on the stack): in no
frame shorter than this, since every bracket is closed again, and in none with fewer opening brackets."""

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
_FRAME_KEYS = frozenset(_FRAME.names)
_TRADE_KEYS = frozenset("cpstv")

_TOO_MANY_SYMBOLS = "Subscribing to too many symbols"
_INVALID_SYMBOL = "Invalid symbol"
_NOTICE_CHARACTERS = 200


class Finnhub:
    """The feed of wss://ws.finnhub.io.

    Why it rejects a frame: `not_utf8`, `not_json`, `too_deep`, `not_an_object`, `repeated_key`, `no_type`,
    `no_data`. Why it rejects a trade, the first that applies: `not_an_object`, `repeated_key`, `bad_time`,
    `bad_symbol`, `bad_price`, `bad_volume`, `bad_conditions`. What is missing is bad, too.
    """

    name = "finnhub"
    schema = VENUE_TRADES

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
        payloads = frames.payloads
        starts = range(0, max(1, len(payloads)), _BLOCK_FRAMES)
        return _joined(part for start in starts for part in _decode(payloads[start : start + _BLOCK_FRAMES], start))

    def encode(self, trades: pa.RecordBatch) -> list[bytes]:
        """One frame with all of these trades (prices and volumes are finite); none for an empty batch."""
        if not trades.num_rows:
            return []
        columns = (
            _written_conditions(trades["conditions"]),
            map(_written_number, trades["price"].to_pylist()),
            _written_symbols(trades["symbol"]),
            trades["timestamp"].cast(pa.int64()).to_pylist(),
            map(_written_volume, trades["volume"].to_pylist()),
        )
        items = (f'{{"c":{c},"p":{p},"s":{s},"t":{t}{v}}}' for c, p, s, t, v in zip(*columns, strict=True))
        return [f'{{"data":[{",".join(items)}],"type":"trade"}}'.encode()]


def _request(kind: str, symbol: str) -> str:
    return json.dumps({"type": kind, "symbol": symbol}, separators=(",", ":"))


def _decode(payloads: list[bytes], first: int) -> list[Decoded]:
    """What these frames say, in parts; the first of them is number `first` of the whole block."""
    if len(payloads) < _STRICT_FRAMES:
        return [_decode_strictly(payloads, first)]
    if decoded := _decode_block(payloads, first):
        return [decoded]
    step = -(-len(payloads) // min(_PARTS, len(payloads) // _PART_FRAMES))
    return [
        part
        for start in range(0, len(payloads), step)
        for part in _decode(payloads[start : start + step], first + start)
    ]


def _joined(parts: Iterable[Decoded]) -> Decoded:
    decoded = list(parts)
    if len(decoded) == 1:
        return decoded[0]
    columns = zip(*(part.trades.columns for part in decoded), strict=True)
    return Decoded(
        trades=pa.record_batch([pa.concat_arrays(column) for column in columns], schema=VENUE_TRADES),
        frame_of=pa.concat_arrays([part.frame_of for part in decoded]),
        rejects=[reject for part in decoded for reject in part.rejects],
        notices=[notice for part in decoded for notice in part.notices],
    )


# A block at a time


def _decode_block(payloads: list[bytes], first: int) -> Decoded | None:
    """What these frames say, or None where pyarrow can't be relied on to read them as strict `json` would."""
    table = _read_block(payloads)
    if table is None:
        return None
    is_trade: Any = pc.equal(table["type"], pa.scalar("trade")).fill_null(False)
    lists = (table["data"] if _all(is_trade) else table["data"].filter(is_trade)).combine_chunks()
    trades = _columns(lists)
    if trades is None:
        return None
    others = _Reading()
    rows: Any = pc.indices_nonzero(pc.invert(is_trade))
    for row in rows.to_pylist():
        others.read(first + row, payloads[row])
    frames = pc.add(pc.indices_nonzero(is_trade).cast(pa.int64()), pa.scalar(first))
    frame_of = frames.take(pc.list_parent_indices(lists))
    return Decoded(trades, frame_of, others.rejects, others.notices)


def _read_block(payloads: list[bytes]) -> pa.Table | None:
    """A row a frame with the columns of `_FRAME`."""
    if not _fenced(payloads):
        return None
    text = b"\n".join(payloads)
    source: Any = pa.BufferReader(text)
    read = ReadOptions(use_threads=False, block_size=len(text) + 1)
    parse = ParseOptions(explicit_schema=_FRAME, unexpected_field_behavior="ignore")
    try:
        table = read_json(source, read, parse)
    except pa.ArrowException:
        return None
    return table if table.num_rows == len(payloads) else None


def _fenced(payloads: list[bytes]) -> bool:
    """Whether pyarrow, if it reads these frames and as this many rows, reads each by itself and as JSON.

    The frames will be joined by newlines, and the reader is told that values hold none. Inside a JSON document
    no newline stands between `}` and `{`, so where there are as many rows as frames, no row is made of two broken
    frames. And the first document is no `null`, on which the reader ends the process (apache/arrow#47409). The
    reader lets invalid UTF-8 pass and, in fields that it ignores, NaN, Inf and nesting of any depth.
    """
    text = b"".join(payloads)
    return (
        len(text) < _BLOCK_BYTES
        and b"\n" not in text
        and b"\r" not in text
        and {payload[:1] for payload in payloads} == {b"{"}
        and {payload[-1:] for payload in payloads} == {b"}"}
        and not (b"n" in text and b"Inf" in text)  # a lone letter is found, or not, 80 times faster
        and b"NaN" not in text
        and _is_utf8(text)
        and not any(map(_is_deep, [payload for payload in payloads if len(payload) >= _LONG_BYTES]))
    )


def _is_utf8(text: bytes) -> bool:
    if text.isascii():
        return True
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _is_deep(payload: bytes) -> bool:
    return payload.count(b"[") + payload.count(b"{") >= _DEEP_BRACKETS


def _columns(lists: Any) -> pa.RecordBatch | None:
    """The trades in these lists of `_TRADE`, or None where there is one to reject, or a list is null."""
    items = lists.flatten()
    if lists.null_count or items.null_count:
        return None
    time, symbol, price, volume, codes = (items.field(key) for key in "tspvc")
    if time.null_count or symbol.null_count or price.null_count:
        return None
    if not (_all(pc.is_finite(price)) and _all(pc.is_finite(volume)) and _are_codes(codes.flatten())):
        return None
    conditions: Any = pc.binary_join(codes, ",")
    return pa.record_batch([time.cast(TIMESTAMP), symbol, price, volume, conditions], schema=VENUE_TRADES)


def _are_codes(codes: Any) -> bool:
    return (
        codes.null_count == 0
        and _all(pc.greater(pc.binary_length(codes), pa.scalar(0)))
        and not pc.any(pc.match_substring(codes, ",")).as_py()
    )


def _all(mask: Any) -> bool:
    """Whether no value is false."""
    return bool(pc.all(mask, min_count=0).as_py())


# A frame and a trade at a time


class _RefusedError(Exception):
    """The frame, or the trade, is to be rejected; the argument is the reason."""


class _Object(dict[str, Any]):
    """A JSON object that knows which keys it was given more than once."""

    __slots__ = ("repeated",)

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.repeated: frozenset[str] = frozenset()
        if len(self) < len(pairs):
            counts = Counter(key for key, _ in pairs)
            self.repeated = frozenset(key for key, count in counts.items() if count > 1)


@dataclass(slots=True)
class _Reading:
    """What the frames read so far say."""

    rows: list[tuple[int, str, float, float | None, str | None]] = field(default_factory=list)
    frame_of: list[int] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)

    def read(self, frame: int, payload: bytes) -> None:
        """Add what this frame says."""
        try:
            document = _document(payload)
            kind = _kind(document)
            if kind == "trade":
                self._read_trades(frame, _items(document))
            else:
                self.notices.append(_notice(frame, kind, document))
        except _RefusedError as refused:
            self.rejects.append(Reject(frame, None, str(refused)))

    def _read_trades(self, frame: int, items: list[Any]) -> None:
        for index, item in enumerate(items):
            try:
                self.rows.append(_trade(item))
                self.frame_of.append(frame)
            except _RefusedError as refused:
                self.rejects.append(Reject(frame, index, str(refused)))


def _decode_strictly(payloads: list[bytes], first: int) -> Decoded:
    reading = _Reading()
    for frame, payload in enumerate(payloads, first):
        reading.read(frame, payload)
    columns = zip(*reading.rows, strict=True) if reading.rows else [()] * len(VENUE_TRADES)
    arrays = [pa.array(column, type_) for column, type_ in zip(columns, VENUE_TRADES.types, strict=True)]
    return Decoded(
        trades=pa.record_batch(arrays, schema=VENUE_TRADES),
        frame_of=pa.array(reading.frame_of, pa.int64()),
        rejects=reading.rejects,
        notices=reading.notices,
    )


def _integer(text: str) -> float:
    """An int where int64 might hold it (and -0 is none), else the nearest double, as pyarrow reads it."""
    return int(text) if len(text) <= 20 and text != "-0" else float(text)


def _no_constant(text: str) -> float:
    raise ValueError(text)


_JSON = json.JSONDecoder(object_pairs_hook=_Object, parse_int=_integer, parse_constant=_no_constant)


def _document(payload: bytes) -> _Object:
    try:
        document = _JSON.decode(payload.decode())
    except UnicodeDecodeError:
        raise _RefusedError("not_utf8") from None
    except ValueError:
        raise _RefusedError("not_json") from None
    except RecursionError:
        raise _RefusedError("too_deep") from None
    if not isinstance(document, _Object):
        raise _RefusedError("not_an_object")
    if document.repeated & _FRAME_KEYS:
        raise _RefusedError("repeated_key")
    return document


def _kind(document: _Object) -> str:
    return _text(document.get("type"), "no_type")


def _items(document: _Object) -> list[Any]:
    items = document.get("data")
    if not isinstance(items, list):
        raise _RefusedError("no_data")
    return items


def _notice(frame: int, kind: str, document: _Object) -> Notice:
    if kind in ("ping", "news"):
        return Notice(frame, kind, "")
    if kind != "error":
        return Notice(frame, "unknown", kind[:_NOTICE_CHARACTERS])
    if "msg" in document.repeated:
        raise _RefusedError("repeated_key")
    message = document.get("msg")
    text = message.encode(errors="replace").decode()[:_NOTICE_CHARACTERS] if isinstance(message, str) else ""
    if f"{text} ".startswith(f"{_INVALID_SYMBOL} "):
        symbol = text.removeprefix(_INVALID_SYMBOL).strip()
        return Notice(frame, kind, text, symbol=symbol or None, refuses=True)
    return Notice(frame, kind, text, refuses=text.startswith(_TOO_MANY_SYMBOLS))


def _trade(item: Any) -> tuple[int, str, float, float | None, str | None]:
    """One row of VENUE_TRADES; the time in milliseconds."""
    if not isinstance(item, _Object):
        raise _RefusedError("not_an_object")
    if item.repeated & _TRADE_KEYS:
        raise _RefusedError("repeated_key")
    volume = item.get("v")
    return (
        _milliseconds(item.get("t")),
        _text(item.get("s"), "bad_symbol"),
        _number(item.get("p"), "bad_price"),
        None if volume is None else _number(volume, "bad_volume"),
        _conditions(item.get("c")),
    )


def _milliseconds(value: Any) -> int:
    number = _number(value, "bad_time")
    if number.is_integer() and -(2**63) <= (whole := int(value)) < 2**63:
        return whole
    raise _RefusedError("bad_time")


def _number(value: Any, reason: str) -> float:
    """The double nearest to a JSON number; infinity, by too large a number, is none."""
    if type(value) in (int, float) and math.isfinite(number := float(value)):
        return number
    raise _RefusedError(reason)


def _text(value: Any, reason: str) -> str:
    r"""A string that UTF-8 can hold: an escape such as `\ud800` may stand for half a character."""
    if not isinstance(value, str) or not _is_whole(value):
        raise _RefusedError(reason)
    return value


def _is_whole(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _conditions(codes: Any) -> str | None:
    if codes is None:
        return None
    if not isinstance(codes, list) or any(_text(code, "bad_conditions") == "" or "," in code for code in codes):
        raise _RefusedError("bad_conditions")
    return ",".join(codes)


# Backwards


def _written_number(number: Any) -> str:
    """The shortest text that reads back as this double; Finnhub writes whole numbers without a point."""
    return repr(number).removesuffix(".0")


def _written_volume(volume: float | None) -> str:
    return "" if volume is None else f',"v":{_written_number(volume)}'


def _written_symbols(symbols: Any) -> list[str]:
    written = {symbol: json.dumps(symbol) for symbol in symbols.unique().to_pylist()}
    return [written[symbol] for symbol in symbols.to_pylist()]


def _written_conditions(conditions: Any) -> list[str]:
    written = {joined: _written_codes(joined) for joined in conditions.unique().to_pylist()}
    return [written[joined] for joined in conditions.to_pylist()]


def _written_codes(joined: str | None) -> str:
    if joined is None:
        return "null"
    return json.dumps(joined.split(",") if joined else [], separators=(",", ":"))
