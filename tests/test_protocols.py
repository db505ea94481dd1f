"""The venue's protocols: numbers and trades as JSON, frames that a client takes apart again, and other languages."""

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from simulated_venues import read_truth, running_venue
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode
from websockets.streams import StreamReader
from websockets.sync.client import ClientConnection, connect

from ingestor.config.feeds import JsonSettings
from ingestor.simulator.faults import RefuseSymbols, Schedule
from ingestor.simulator.market import MarketSettings, Trade
from ingestor.simulator.protocols import (
    HALF_FRAME,
    JUNK,
    PLAIN_JSON,
    Message,
    SymbolRequest,
    bar_messages,
    finnhub_messages,
    flat_messages,
    fragmented,
    make_language,
    number_text,
    padded,
    text_frame,
)
from ingestor.simulator.venue import VenueSettings

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
    parts = frames(fragmented(Message(payload, ())))
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


WAIT_S = 20.0
QUIET = MarketSettings(rate=20, seed=7)


@contextmanager
def client(path: str = "/ws", **settings: Any) -> Iterator[ClientConnection]:
    """A client of a venue that speaks `protocol`."""
    with (
        running_venue(VenueSettings(market=QUIET, **{"protocol": "binance", **settings})) as venue,
        connect(f"{venue.url}{path}") as opened,
    ):
        yield opened


def binance(method: str, *streams: str, number: int = 1) -> str:
    return json.dumps({"method": method, "params": streams, "id": number})


def answer(opened: ClientConnection, number: int) -> Any:
    """What the venue says to this request; trades that come before it are left out."""
    return next(message for message in map(json.loads, opened) if message.get("id") == number)


def drain(opened: ClientConnection) -> None:
    """Read until the connection ends; raises ConnectionClosed."""
    while True:
        opened.recv(WAIT_S)


# Binance


def test_binance_answers_each_request_and_sends_what_was_asked_for() -> None:
    with client() as opened:
        opened.send(binance("SUBSCRIBE", "btcusdt@trade", "ethusdt@trade", number=7))
        assert answer(opened, 7) == {"result": None, "id": 7}
        events = [json.loads(opened.recv()) for _ in range(20)]
    assert {event["e"] for event in events} == {"trade"}
    assert {event["s"] for event in events} == {"BTCUSDT", "ETHUSDT"}
    for symbol in ("BTCUSDT", "ETHUSDT"):
        ids = [event["t"] for event in events if event["s"] == symbol]
        assert ids == list(range(1, len(ids) + 1))


def test_binance_wraps_combined_streams() -> None:
    with client("/stream") as opened:
        opened.send(binance("SUBSCRIBE", "btcusdt@trade"))
        assert answer(opened, 1) == {"result": None, "id": 1}
        message = json.loads(opened.recv())
    assert (message["stream"], message["data"]["s"]) == ("btcusdt@trade", "BTCUSDT")


def test_binance_stops_what_is_given_up() -> None:
    with client() as opened:
        opened.send(binance("SUBSCRIBE", "btcusdt@trade", "ethusdt@trade"))
        opened.send(binance("UNSUBSCRIBE", "btcusdt@trade", number=2))
        answer(opened, 2)
        assert {json.loads(opened.recv())["s"] for _ in range(12)} == {"ETHUSDT"}


def test_binance_refuses_by_the_id() -> None:
    refusing = Schedule((RefuseSymbols(symbols=("BTCUSDT",)),))
    with client(faults=refusing) as opened:
        opened.send(binance("SUBSCRIBE", "btcusdt@trade", number=3))
        assert answer(opened, 3) == {"error": {"code": 2, "msg": "Invalid request: invalid"}, "id": 3}
        opened.send(binance("SUBSCRIBE", *(f"s{number}@trade" for number in range(1025)), number=4))
        assert answer(opened, 4) == {"error": {"code": 2, "msg": "Invalid request: too many"}, "id": 4}


def test_binance_ends_a_client_that_hurries() -> None:
    with client() as opened:
        for number in range(6):
            opened.send(binance("SUBSCRIBE", f"s{number}@trade", number=number))
        with pytest.raises(ConnectionClosed, match="1008"):
            drain(opened)


@pytest.mark.parametrize("text", ["", "5", "{}", '{"method":"LIST"}', '{"method":"SUBSCRIBE","params":5,"id":1}'])
def test_binance_leaves_what_it_does_not_understand_unanswered(text: str) -> None:
    assert make_language("binance", PLAIN_JSON).read(text) is None


# JSON

LIKE = JsonSettings.model_validate(
    {
        "type": "json",
        "url": "wss://x",
        "fields": {"symbol": "id", "price": "p", "volume": "null", "timestamp": "at"},
        "items": "trades",
        "match": {"kind": "trades"},
        "subscribe": '{"ask":["{symbol}"],"again":"{symbol}"}',
        "unsubscribe": '{"leave":"{symbol}"}',
    }
)


def test_json_speaks_as_its_settings_say(tmp_path: Path) -> None:
    truth = tmp_path / "truth.jsonl"
    with client("", protocol="json", json_feed=LIKE, truth=truth) as opened:
        opened.send('{"ask":["A"],"again":"A"}')
        message = json.loads(opened.recv())
    first = read_truth(truth).slice(0, 1).to_pylist()[0]
    time_ms = round(first["timestamp"].timestamp() * 1000)
    assert message == {"trades": [{"id": "A", "p": first["price"], "at": time_ms}], "kind": "trades"}


@pytest.mark.parametrize(
    ("text", "request_"),
    [
        ('{"ask":["IC MARKETS:1"],"again":"IC MARKETS:1"}', SymbolRequest(True, ("IC MARKETS:1",))),
        ('{"leave":"A"}', SymbolRequest(False, ("A",))),
        ('{"ask":["A"],"again":"B"}', None),
        ('{"leave": "A"} ', SymbolRequest(False, ("A",))),
        ("nonsense", None),
    ],
)
def test_json_understands_its_templates(text: str, request_: SymbolRequest | None) -> None:
    assert make_language("json", LIKE).read(text) == request_


def test_json_without_settings_is_plain() -> None:
    with client("", protocol="json") as opened:
        opened.send('{"type":"subscribe","symbol":"AAPL"}')
        assert json.loads(opened.recv()).keys() == {"symbol", "price", "volume", "timestamp"}


RULES = JsonSettings.model_validate(
    {
        "type": "json",
        "url": "wss://x",
        "login": {"send": '["{key}"]', "accepted": {"is": "in"}, "refused": {"is": "out"}},
        "subscribe": '{"ask":["{symbol}"]}',
        "symbols_per_message": 2,
        "heartbeat": {"every": "1s", "send": "ping", "answer": "pong"},
        "acknowledged": {"event": "subscribe"},
        "refused": [{"match": {"event": "error"}, "text": "msg", "symbol_in": "no symbol (.+)[.]"}],
        "limits": {"messages_per_second": 4},
        "columns": {"id": {"from": "n", "type": "integer"}},
    }
)


def strict(**settings: Any) -> AbstractContextManager[ClientConnection]:
    return client("", protocol="json", json_feed=RULES, keys=frozenset({"k"}), **settings)


def test_a_venue_of_settings_plays_its_rules() -> None:
    with strict() as opened:
        opened.send('["k"]')
        assert json.loads(opened.recv()) == {"is": "in"}
        opened.send('{"ask":["A","INVALID"]}')
        assert json.loads(opened.recv()) == {"event": "error", "msg": "no symbol INVALID."}
        assert json.loads(opened.recv()) == {"event": "subscribe"}
        first, second = json.loads(opened.recv()), json.loads(opened.recv())
        assert (first["symbol"], first["n"], second["n"]) == ("A", 1, 2)


def test_a_venue_of_settings_answers_a_text_with_a_text() -> None:
    with strict() as opened:
        opened.send('["k"]')
        opened.recv()
        opened.send("ping")
        assert opened.recv() == "pong"
        opened.send('{"ask":["A","B","C"]}')  # more than a message may hold: all of it is refused
        assert json.loads(opened.recv())["event"] == "error"


@pytest.mark.parametrize(
    "messages",
    [['["another"]'], ['{"ask":["A"]}'], ['["k"]', *["ping"] * 4], ['["k"]']],
    ids=["wrong key", "no login", "too fast", "no heartbeat"],
)
def test_a_venue_of_settings_hangs_up_on_who_breaks_its_rules(messages: list[str]) -> None:
    with strict() as opened:
        for message in messages:
            opened.send(message)
        with pytest.raises(ConnectionClosed):
            drain(opened)
