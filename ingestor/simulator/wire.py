"""The venue's bytes: trades to JSON text to WebSocket frames, and frames that nobody should send. Pure."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType
from typing import NamedTuple

from websockets.frames import Frame, Opcode

from ingestor.simulator.market import Trade, bars


class Message(NamedTuple):
    """What one WebSocket message says, and the trades in it, each as the JSON text that the message holds."""

    payload: bytes
    trades: tuple[str, ...]


def number_text(value: float) -> str:
    """JSON of a finite number as Go and JavaScript write it: a whole number has no fraction (`26626`)."""
    text = repr(value)
    return text.removesuffix(".0")


def trade_text(trade: Trade) -> str:
    """One element of Finnhub's `data`. The keys are sorted, as Finnhub's are."""
    conditions = "" if trade.conditions is None else f'"c":{trade.conditions},'
    return (
        f'{{{conditions}"p":{number_text(trade.price)},"s":{json.dumps(trade.symbol)},'
        f'"t":{trade.time_ms},"v":{number_text(trade.volume)}}}'
    )


def finnhub_messages(trades: Sequence[Trade]) -> list[Message]:
    """All trades in one message."""
    texts = tuple(map(trade_text, trades))
    return [Message(f'{{"data":[{",".join(texts)}],"type":"trade"}}'.encode(), texts)]


def flat_messages(trades: Sequence[Trade]) -> list[Message]:
    """`{"symbol","price","volume"}`, one message a trade; the truth has `s`, `p`, `v`, all that is sent."""
    messages = []
    for trade in trades:
        symbol, price, volume = json.dumps(trade.symbol), number_text(trade.price), number_text(trade.volume)
        payload = f'{{"symbol":{symbol},"price":{price},"volume":{volume}}}'.encode()
        messages.append(Message(payload, (f'{{"p":{price},"s":{symbol},"v":{volume}}}',)))
    return messages


def bar_messages(trades: Sequence[Trade]) -> list[Message]:
    """One bar a message and symbol; `timestamp` is the newest trade's, ms since 1970. Bars are no trades."""
    timestamp = max(trade.time_ms for trade in trades)
    facts = ({"symbol": bar.symbol, "timestamp": timestamp, **asdict(bar)} for bar in bars(trades))
    return [Message(json.dumps(bar, separators=(",", ":")).encode(), ()) for bar in facts]


def text_frame(payload: bytes) -> bytes:
    return Frame(Opcode.TEXT, payload).serialize(mask=False)


def fragmented(payload: bytes) -> bytes:
    """The message in three fragments with a ping and a pong between them, as RFC 6455 (5.4) allows."""
    third = max(1, len(payload) // 3)
    parts = (
        Frame(Opcode.TEXT, payload[:third], fin=False),
        Frame(Opcode.PING, b"between fragments"),
        Frame(Opcode.CONT, payload[third : 2 * third], fin=False),
        Frame(Opcode.PONG, b"unasked"),
        Frame(Opcode.CONT, payload[2 * third :], fin=True),
    )
    return b"".join(part.serialize(mask=False) for part in parts)


def padded(message: Message, size: int) -> Message:
    """The same message, `size` bytes long: blanks before its last brace, which JSON allows."""
    blanks = b" " * (size - len(message.payload))
    return Message(message.payload[:-1] + blanks + message.payload[-1:], message.trades)


PING = Frame(Opcode.PING, b"").serialize(mask=False)

HALF_FRAME = text_frame(b'{"data":[{"c":null,"p":1.5,"s":"BINANCE:HALF","t":1700000000000,"v":1}],"type":"trade"}')[:40]
"""The first bytes of a frame whose rest never comes."""

ENDLESS_FRAME = Frame(Opcode.TEXT, b" " * (1 << 20)).serialize(mask=False)[:10]
"""The header of a frame of 1 MB."""

JUNK: Mapping[str, bytes] = MappingProxyType(
    {
        "garbage": b"".join(
            text_frame(payload)
            for payload in (
                b"",
                b"null",
                b"not JSON",
                b"[1,2",
                b'{"data":[{"c":null,"p":1.5,"s":"BINANCE:HALF"',
                b'{"data":[{"c":null,"p":NaN,"s":"BINANCE:NAN","t":1700000000000,"v":1}],"type":"trade"}',
                b'{"data":[{"c":null,"p":"1","s":7,"t":null,"v":[]}],"type":"trade"}',
                b'{"data":{},"type":"trade"}',
                b"<html>502 Bad Gateway</html>",
            )
        ),
        "binary": Frame(Opcode.BINARY, bytes(range(256))).serialize(mask=False),
        "invalid_utf8": text_frame(
            b'{"data":[{"c":null,"p":1.5,"s":"\xff\xfe\xc3","t":1700000000000,"v":1}],"type":"trade"}'
        ),
        "unknown_types": b"".join(
            text_frame(payload)
            for payload in (
                b'{"type":"heartbeat","sequence":7}',
                b'{"type":17}',
                b'{"hello":"world"}',
                (
                    b'{"data":[{"category":"company","datetime":1679920200,"headline":"A headline",'
                    b'"id":119440189,"image":"","related":"AAPL","source":"A source","summary":"",'
                    b'"url":"https://example.com/"}],"type":"news"}'
                ),
            )
        ),
    }
)
"""Frames that hold no trade, by kind, ready to be written."""
