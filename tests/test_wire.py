"""The bytes: numbers and trades as JSON, and WebSocket frames that a client takes apart again."""

import json

import pytest
from websockets.frames import Frame, Opcode
from websockets.streams import StreamReader

from ingestor.simulator.market import Trade
from ingestor.simulator.wire import (
    HALF_FRAME,
    JUNK,
    bar_messages,
    finnhub_messages,
    flat_messages,
    fragmented,
    number_text,
    padded,
    text_frame,
)

TRADES = [
    Trade("AAPL", 164.0601, 5.0, 1680286537580, '["1","12"]'),
    Trade("BINANCE:ETHUSDT", 1731.0, 1e-07, 1680286537582, "null"),
    Trade('IC "MARKETS":1', 284.45, 0.0, 1680286537581, None),
    Trade("AAPL", 164.06, 100.0, 1680286537583, "[]"),
]


def frames(wire: bytes) -> list[Frame]:
    """What a client's parser makes of the bytes; all of them must be used up."""
    reader = StreamReader()
    reader.feed_data(wire)
    reader.feed_eof()
    found = []
    while not finished(reader):
        parser = Frame.parse(reader.read_exact, mask=False, max_size=None)
        with pytest.raises(StopIteration) as parsed:
            next(parser)
        found.append(parsed.value.value)
    return found


def finished(reader: StreamReader) -> bool:
    with pytest.raises(StopIteration) as at_end:
        next(reader.at_eof())
    return bool(at_end.value.value)


@pytest.mark.parametrize(
    ("value", "text"),
    [(26626.0, "26626"), (164.0601, "164.0601"), (1e-07, "1e-07"), (0.0, "0"), (0.00008, "8e-05"), (1e22, "1e+22")],
)
def test_numbers_are_written_as_the_venue_writes_them(value: float, text: str) -> None:
    assert number_text(value) == text
    assert json.loads(text) == value


def test_a_finnhub_message_has_every_form_of_conditions() -> None:
    (message,) = finnhub_messages(TRADES)
    document = json.loads(message.payload)
    assert document["type"] == "trade"
    assert document["data"] == [
        {"c": ["1", "12"], "p": 164.0601, "s": "AAPL", "t": 1680286537580, "v": 5},
        {"c": None, "p": 1731, "s": "BINANCE:ETHUSDT", "t": 1680286537582, "v": 1e-07},
        {"p": 284.45, "s": 'IC "MARKETS":1', "t": 1680286537581, "v": 0},
        {"c": [], "p": 164.06, "s": "AAPL", "t": 1680286537583, "v": 100},
    ]
    assert [json.loads(text) for text in message.trades] == document["data"]


def test_flat_messages_are_one_a_trade() -> None:
    messages = flat_messages(TRADES[:2])
    assert json.loads(messages[0].payload) == {"symbol": "AAPL", "price": 164.0601, "volume": 5}
    assert [json.loads(text) for text in messages[1].trades] == [{"p": 1731, "s": "BINANCE:ETHUSDT", "v": 1e-07}]


def test_bar_messages_hold_no_trades() -> None:
    messages = bar_messages(TRADES)
    assert json.loads(messages[0].payload) == {
        "symbol": "AAPL", "timestamp": 1680286537583, "open": 164.0601, "high": 164.0601, "low": 164.06,
        "close": 164.06, "volume": 105.0,
    }  # fmt: skip
    assert [message.trades for message in messages] == [(), (), ()]


@pytest.mark.parametrize("size", [1, 125, 126, 65535, 65536])
def test_a_text_frame_carries_its_payload(size: int) -> None:
    (frame,) = frames(text_frame(b"x" * size))
    assert (frame.opcode, bytes(frame.data), frame.fin) == (Opcode.TEXT, b"x" * size, True)


@pytest.mark.parametrize("payload", [b"", b"ab", b"abcdefgh" * 100])
def test_fragments_make_the_message_with_control_frames_between(payload: bytes) -> None:
    parts = frames(fragmented(payload))
    data = [part for part in parts if part.opcode in {Opcode.TEXT, Opcode.CONT}]
    assert b"".join(bytes(part.data) for part in data) == payload
    assert [part.fin for part in data] == [False, False, True]
    assert {Opcode.PING, Opcode.PONG} <= {part.opcode for part in parts[1:-1]}


def test_padding_changes_the_size_and_nothing_else() -> None:
    (message,) = finnhub_messages(TRADES)
    big = padded(message, 100_000)
    assert len(big.payload) == 100_000
    assert json.loads(big.payload) == json.loads(message.payload)
    assert big.trades == message.trades


def test_junk_is_whole_frames_without_a_trade_that_counts() -> None:
    for kind, wire in JUNK.items():
        for frame in frames(wire):
            assert not is_trade_message(bytes(frame.data)), kind


def is_trade_message(payload: bytes) -> bool:
    def refuse(constant: str) -> None:
        raise ValueError(constant)

    try:
        document = json.loads(payload.decode(), parse_constant=refuse)
    except ValueError:
        return False
    trades = document.get("data") if isinstance(document, dict) and document.get("type") == "trade" else None
    return isinstance(trades, list) and any(isinstance(trade.get("p"), float) for trade in trades)


def test_half_a_frame_is_less_than_one() -> None:
    reader = StreamReader()
    reader.feed_data(HALF_FRAME)
    assert next(Frame.parse(reader.read_exact, mask=False, max_size=None)) is None
