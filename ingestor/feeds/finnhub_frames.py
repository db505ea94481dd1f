"""Finnhub's frames by the letter: read one at a time, trade by trade, and written as Finnhub writes them."""

import json
from typing import Any

import pyarrow as pa

from ingestor.feeds import Notice
from ingestor.feeds.reading import Reading
from ingestor.feeds.strict_json import (
    JsonObject,
    RefusedError,
    notice_text,
    read_json,
    take_integer,
    take_number,
    take_object,
    take_text,
)

_FRAME_KEYS = frozenset(("data", "type"))
_TRADE_KEYS = frozenset("cpstv")

_TOO_MANY_SYMBOLS = "Subscribing to too many symbols"
_INVALID_SYMBOL = "Invalid symbol"


def read_frame(frame: int, payload: bytes, reading: Reading) -> None:
    """Add to `reading` what the frame of this number says."""
    try:
        document = take_object(read_json(payload), _FRAME_KEYS)
        kind = take_text(document.get("type"), "no_type")
        if kind == "trade":
            reading.add_trades(frame, _items(document), _trade)
        else:
            reading.notices.append(_notice(frame, kind, document))
    except RefusedError as refused:
        reading.reject(frame, refused)


def _items(document: JsonObject) -> list[Any]:
    items = document.get("data")
    if not isinstance(items, list):
        raise RefusedError("no_data")
    return items


def _notice(frame: int, kind: str, document: JsonObject) -> Notice:
    if kind in ("ping", "news"):
        return Notice(frame, kind, "")
    if kind != "error":
        return Notice(frame, "unknown", notice_text(kind))
    if "msg" in document.repeated:
        raise RefusedError("repeated_key")
    text = notice_text(document.get("msg"))
    if f"{text} ".startswith(f"{_INVALID_SYMBOL} "):
        symbol = text.removeprefix(_INVALID_SYMBOL).strip()
        return Notice(frame, kind, text, symbol=symbol or None, refuses=True)
    return Notice(frame, kind, text, refuses=text.startswith(_TOO_MANY_SYMBOLS))


def _trade(item: Any) -> tuple[int, str, float, float | None, str | None]:
    """One row of VENUE_TRADES; the time in milliseconds."""
    item = take_object(item, _TRADE_KEYS)
    volume = item.get("v")
    return (
        take_integer(item.get("t"), "bad_time"),
        take_text(item.get("s"), "bad_symbol"),
        take_number(item.get("p"), "bad_price"),
        None if volume is None else take_number(volume, "bad_volume"),
        _conditions(item.get("c")),
    )


def _conditions(codes: Any) -> str | None:
    if codes is None:
        return None
    if not isinstance(codes, list) or any(take_text(code, "bad_conditions") == "" or "," in code for code in codes):
        raise RefusedError("bad_conditions")
    return ",".join(codes)


def write_frames(trades: pa.RecordBatch) -> list[bytes]:
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
