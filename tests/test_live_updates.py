"""What listeners are sent: one frame a trade, in order, and as Finnhub writes it."""

import json

import pyarrow as pa
import pytest
from journals import trades
from websockets.frames import Frame, Opcode

from ingestor.feeds import Frames
from ingestor.feeds.finnhub import Finnhub
from ingestor.live.board import Price, SymbolTrades, frame, price_frame, split_by_symbol
from ingestor.schema import TRADES


def unframed(frames: bytes) -> list[str]:
    """The texts of unmasked frames, as RFC 6455 has them."""
    texts = []
    while frames:
        assert frames[0] == 0x81
        size, start = frames[1], 2
        if size > 125:
            start += 2 if size == 126 else 8
            size = int.from_bytes(frames[2:start], "big")
        texts.append(frames[start : start + size].decode())
        frames = frames[start + size :]
    return texts


def only(*rows: tuple[float, float | None, int]) -> SymbolTrades:
    """Trades of A: price, volume, time."""
    columns = dict(zip(("price", "volume", "timestamp"), zip(*rows, strict=True), strict=True))
    empty = {name: [None] * len(rows) for name in TRADES.names}
    batch = pa.RecordBatch.from_pydict({**empty, **columns, "symbol": ["A"] * len(rows)}, schema=TRADES)
    (found,) = split_by_symbol(batch)
    return found


def test_a_block_is_split_by_symbol_and_keeps_the_order_of_arrival() -> None:
    batch = trades(0, 1000)
    found = {one.symbol: one.prices for one in split_by_symbol(batch)}
    expected: dict[str, list[Price]] = {}
    for row in batch.to_pylist():
        at_ms = round(row["timestamp"].timestamp() * 1000)
        expected.setdefault(row["symbol"], []).append(Price(row["price"], row["volume"], at_ms))
    assert found == expected


def test_a_block_without_trades_is_nothing() -> None:
    assert split_by_symbol(trades(0, 0)) == []


def test_a_trade_is_told_as_documented() -> None:
    assert unframed(only((189.45, 100.0, 1712331900000)).price_frames) == [
        '{"symbol":"A","price":189.45,"volume":100,"timestamp":1712331900000}'
    ]


def test_an_unknown_volume_is_null_and_a_small_one_is_exact() -> None:
    told = [json.loads(text) for text in unframed(only((1e-07, None, 1), (26626.0, 8e-05, 2)).price_frames)]
    assert [(one["price"], one["volume"]) for one in told] == [(1e-07, None), (26626, 8e-05)]


def test_a_symbol_may_be_any_text() -> None:
    (text,) = unframed(price_frame('IC "MARKETS":1 é', Price(1.0, 1.0, 1)))
    assert json.loads(text)["symbol"] == 'IC "MARKETS":1 é'


def test_the_newest_is_so_by_the_clock_of_the_venue() -> None:
    assert only((1.0, 1.0, 5), (2.0, 1.0, 9), (3.0, 1.0, 9), (4.0, 1.0, 7)).newest == Price(3.0, 1.0, 9)


def test_finnhub_frames_are_read_by_the_feed_as_what_they_were_made_of() -> None:
    batch = trades(0, 250, symbols=("A",))
    (one,) = split_by_symbol(batch)
    messages = [text.encode() for text in unframed(one.finnhub_frames)]
    assert len(messages) == 3, "a hundred trades a message"
    decoded = Finnhub("", "").decode(Frames(messages, [1] * 3))
    assert decoded.rejects == []
    assert decoded.trades.equals(batch.select(decoded.trades.schema.names))


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 70000])
def test_frames_are_those_of_the_protocol(size: int) -> None:
    assert frame(b"x" * size) == Frame(Opcode.TEXT, b"x" * size).serialize(mask=False)
