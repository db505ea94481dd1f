"""A venue's JSON read by its settings: shapes, units, what is a notice, what is refused."""

import json
import re
import zlib
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pytest
from frame_mutations import MAPPED, mapped_block
from reference_decoder import own_of, read_mapped, said
from requirements import of_tier

from ingestor.config import load_settings
from ingestor.config.feeds import RECORDED_COLUMNS, JsonSettings
from ingestor.feeds import Frames, Notice, Reject, make_feed
from ingestor.feeds.json_frames import INFLATED_MAX, deflate
from ingestor.feeds.json_map import JsonMap
from ingestor.schema import TRADES, VENUE_TRADES

RECEIVED_US = 1_700_000_000_123_999
RECEIVED_MS = 1_700_000_000_123
Row = tuple[int, int, str, float, float | None]
"""Frame, time in ms, symbol, price, volume."""


def feed(**settings: Any) -> JsonMap:
    return JsonMap(JsonSettings.model_validate({"type": "json", "url": "wss://venue", **settings}))


def decode(payload: object, **settings: Any) -> tuple[list[Row], list[Reject], list[Notice]]:
    """What one frame says: bytes as they are, anything else as JSON."""
    text = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    decoded = feed(**settings).decode(Frames([text], [RECEIVED_US]))
    assert decoded.trades.schema == VENUE_TRADES
    assert decoded.trades["conditions"].null_count == decoded.trades.num_rows
    columns = [decoded.trades["timestamp"].cast(pa.int64()), *decoded.trades.columns[1:4]]
    rows = zip(decoded.frame_of.to_pylist(), *(column.to_pylist() for column in columns), strict=True)
    return list(rows), decoded.rejects, decoded.notices


# Compressed messages

TRADE = b'{"symbol":"A","price":1.5,"volume":2,"timestamp":5}'
GZIP, RAW_DEFLATE = (deflate(TRADE, compression) for compression in ("gzip", "deflate"))


@pytest.mark.parametrize(
    ("compression", "payload", "reason"),
    [
        ("gzip", GZIP, None),
        ("gzip", TRADE, None),
        ("deflate", RAW_DEFLATE, None),
        ("deflate", zlib.compress(TRADE), None),
        ("deflate", TRADE, None),
        ("gzip", GZIP[:-1], "bad_compression"),
        ("gzip", GZIP + b"x", "bad_compression"),
        ("gzip", b"\x1f\x8b", "bad_compression"),
        ("gzip", zlib.compress(TRADE), "not_utf8"),
        ("deflate", RAW_DEFLATE + b"\xff", "bad_compression"),
        ("deflate", zlib.compress(TRADE)[:-1] + b"\xff", "bad_compression"),
        ("gzip", deflate(b"[" * (INFLATED_MAX + 1), "gzip"), "too_large"),
        ("deflate", deflate(b" " * (INFLATED_MAX + 1), "deflate"), "too_large"),
    ],
)
def test_a_compressed_message_is_read_and_a_bomb_is_not(compression: str, payload: bytes, reason: str | None) -> None:
    rows, rejects, notices = decode(payload, compression=compression)
    assert (rows, notices) == ([] if reason else [(0, 5, "A", 1.5, 2.0)], [])
    assert rejects == ([Reject(0, None, reason)] if reason else [])


def test_compressed_messages_are_read_in_blocks_and_words_between_them(monkeypatch: pytest.MonkeyPatch) -> None:
    reading = feed(compression="gzip", ignore=["pong"])
    payloads = [GZIP] * 99 + [b"pong"]
    decoded = reading.decode(Frames(payloads, [0] * 100))
    assert decoded.trades.num_rows == 99
    assert decoded.notices == [Notice(99, "news", "")]
    assert reading.read_block(Frames(payloads, [0] * 100), 0) is not None
    monkeypatch.setattr("ingestor.feeds.json_map._TEXTS_MAX", 99 * len(TRADE) + 3)
    assert reading.read_block(Frames(payloads, [0] * 100), 0) is None
    assert reading.decode(Frames(payloads, [0] * 100)).trades == decoded.trades


def test_a_login_is_judged_by_what_is_compressed() -> None:
    login = feed(compression="gzip", login={"send": "{}", "accepted": {"in": "true"}}).terms.login
    assert login
    assert login.judge(deflate(b'{"in":true}', "gzip")) == ("accepted", "")
    assert login.judge(b"\x1f\x8b") is None


# In columns

WHOLE: dict[str, tuple[dict[str, Any], object, int]] = {
    "one trade": ({}, {"symbol": "A", "price": ".48", "volume": "+1E2", "timestamp": "17", "new": {"x": [1]}}, 1),
    "no time": ({"fields": {"timestamp": None, "volume": None}}, {"symbol": "A", "price": 1}, 1),
    "a list": ({"match": {"ev": "T"}}, [{"ev": "T", "symbol": "A", "price": 1}, {"ev": "Q", "bid": 1}], 1),
    "a list beside a symbol": (
        {"fields": {"symbol": "$.arg.id"}, "items": "data", "time_unit": "us"},
        {"arg": {"id": "A"}, "data": [{"price": 1, "timestamp": 1700000000123456}] * 3},
        3,
    ),
    "lists in lists": (
        {"items": "events[].trades[]", "match": {"c": "t", "events[].type": "update"}, "time_unit": "iso"},
        {
            "c": "t",
            "events": [
                {"type": "snapshot", "trades": [{"symbol": "A", "price": 7}]},
                {
                    "type": "update",
                    "trades": [{"symbol": "A", "price": 1, "timestamp": "2026-11-20T14:30:00.1239Z"}] * 2,
                },
                {"type": "update"},
            ],
        },
        2,
    ),
    "columns": (
        {
            "columns": {
                "trade_id": {"from": "i", "type": "integer"},
                "side": {"from": "m", "values": {"true": "sell", "false": "buy"}},
                "conditions": {"from": "c", "type": "codes"},
                "fee": {"from": "$.fee", "type": "number"},
            },
            "items": "data",
            "acknowledged": {"event": "subscribe"},
        },
        {"fee": "0.1", "data": [{"symbol": "A", "price": 1, "i": "17", "m": True, "c": ["@", "I"]}]},
        1,
    ),
}


@pytest.mark.parametrize("form", WHOLE)
def test_a_block_is_read_as_columns(form: str) -> None:
    settings, message, trades = WHOLE[form]
    reading = feed(**settings)
    frames = Frames([json.dumps(message).encode()] * 64, list(range(1_000_000, 1_064_000, 1000)))
    block = reading.read_block(frames, 5)
    assert block
    assert block.trades.num_rows == 64 * trades
    assert (block.trades, block.frame_of) == (
        reading.read_strictly(frames, 5).trades,
        reading.read_strictly(frames, 5).frame_of,
    )


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({}, '{"symbol":"A","price":1e999}'),
        ({}, '{"symbol":"A","price":NaN}'),
        ({}, '{"symbol":"A","price":1,"x":NaN}'),
        ({}, '{"symbol":"A","price":1,"price":2}'),
        ({}, '{"symbol":"A","price":1},{"symbol":"A","price":1}'),
        ({}, '[{"symbol":"A","price":1}],"x":[{"symbol":"B","price":2}]'),
        ({}, '[{"symbol":"A","price":1}],"_":[{"symbol":"B","price":2}]'),
        ({}, '[{"symbol":"A","price":1}]}{"_":[{"symbol":"B","price":2}]'),
        ({}, '[{"symbol":"A","price":1,"x":NaN}]'),
        ({"time_unit": "iso"}, '{"symbol":"A","price":1,"timestamp":"2026-02-30T00:00:00Z"}'),
        ({"time_unit": "us"}, '{"symbol":"A","price":1,"timestamp":-1}'),
        ({"time_unit": "s"}, '{"symbol":"A","price":1,"timestamp":9223372036854775807}'),
        ({"columns": {"n": {"from": "n"}}}, '{"symbol":"A","price":1,"n":-0}'),
        ({"columns": {"conditions": {"from": "c", "type": "codes"}}}, '{"symbol":"A","price":1,"c":["a,b"]}'),
        ({"items": "data"}, '{"data":[null,{"symbol":"A","price":1}]}'),
        ({"acknowledged": {"ok": "*"}}, '{"symbol":"A","price":1,"ok":1}'),
    ],
)
def test_what_columns_would_read_otherwise_is_read_strictly(settings: dict[str, Any], text: str) -> None:
    """Among frames as they should be, and where all are so."""
    reading = feed(**settings)
    values = zip([5, "A", 1.0, *[None] * 9], reading.schema, strict=False)
    good = reading.encode(pa.record_batch([pa.array([value], field.type) for value, field in values], reading.schema))
    for frames in ([text.encode()] * 64, [*good * 64, text.encode()]):
        decoded = reading.decode(Frames(frames, [0] * len(frames)))
        strict = reading.read_strictly(Frames(frames, [0] * len(frames)), 0)
        assert (decoded.trades, decoded.rejects, decoded.notices) == (strict.trades, strict.rejects, strict.notices)


# Asking


def test_it_asks_by_its_templates() -> None:
    asking = feed(subscribe='{"op":"sub","args":["{symbol}"]}', unsubscribe='{"op":"unsub","args":["{symbol}"]}')
    assert asking.subscribe(["BTC-USD", 'a"b']) == [
        '{"op":"sub","args":["BTC-USD"]}',
        '{"op":"sub","args":["a\\"b"]}',
    ]
    assert asking.unsubscribe(["A"]) == ['{"op":"unsub","args":["A"]}']


def test_a_template_without_a_symbol_is_sent_once_and_never_given_up() -> None:
    asking = feed(subscribe='{"op":"all"}', unsubscribe='{"op":"none"}')
    assert asking.subscribe(["A", "B"]) == ['{"op":"all"}']
    assert asking.unsubscribe(["A"]) == []


def test_a_venue_that_sends_unasked_is_not_asked() -> None:
    assert feed().subscribe(["A"]) == feed().unsubscribe(["A"]) == []


STREAMS = '{"method":"SUBSCRIBE","params":["{symbol_lower}@trade"],"id":1}'


def test_several_symbols_in_one_message_are_items_of_its_list() -> None:
    asking = feed(subscribe=STREAMS, unsubscribe=STREAMS.replace("SUB", "UNSUB"), symbols_per_message=2)
    assert asking.subscribe(["BTC", 'E"', "X"]) == [
        '{"method":"SUBSCRIBE","params":["btc@trade","e\\"@trade"],"id":1}',
        '{"method":"SUBSCRIBE","params":["x@trade"],"id":1}',
    ]
    assert asking.unsubscribe(["X"]) == ['{"method":"UNSUBSCRIBE","params":["x@trade"],"id":1}']
    objects = feed(subscribe='{"args":[{"channel":"trades","instId":"{symbol}"}]}', symbols_per_message=9)
    (message,) = objects.subscribe(["A", "B"])
    assert json.loads(message)["args"] == [{"channel": "trades", "instId": one} for one in ("A", "B")]


def test_a_connection_begins_as_the_venue_wants_it() -> None:
    asking = feed(
        on_open=['{"channel":"heartbeats"}'],
        subscribe='{"operation":"subscribe","ids":["{symbol}"]}',
        subscribe_first='{"ids":["{symbol}"],"type":"market"}',
        symbols_per_message=2,
    )
    later = ['{"operation":"subscribe","ids":["C"]}']
    first = ['{"channel":"heartbeats"}', '{"ids":["A","B"],"type":"market"}']
    assert asking.subscribe(["A", "B", "C"], first=True) == first + later
    assert asking.subscribe(["C"]) == later


LOGIN = {
    "send": '{"auth":"{key}","secret":"{secret}"}',
    "after": {"ev": "status", "status": "connected"},
    "accepted": {"status": "auth_success"},
    "refused": [{"status": "auth_failed"}, {"status": "auth_timeout"}],
}


def test_a_login_has_the_secrets_and_knows_its_answers() -> None:
    settings = JsonSettings.model_validate({"type": "json", "url": "wss://venue", "login": LOGIN})
    assert (settings.needs_key, settings.needs_secret) == (True, True)
    login = JsonMap(settings, "k3y", "s3cret").terms.login
    assert login is not None
    assert json.loads(login.message) == {"auth": "k3y", "secret": "s3cret"}
    assert "k3y" not in repr(login)
    assert login.judge(b'[{"ev":"status","status":"connected"}]') == ("asked", "")
    assert login.judge(b'[{"ev":"T"},{"status":"auth_success"}]') == ("accepted", "")
    assert login.judge(b'{"status":"auth_failed","message":"k3y, s3cret"}') == ("refused", "***, ***")
    assert login.judge(b'{"status":"else"}') is login.judge(b"Hello") is login.judge(b"[1,null]") is None


def test_terms_are_those_of_the_settings() -> None:
    terms = feed(limits={"messages_per_second": 10, "max_age": "23h"}, heartbeat={"every": "20s", "send": "ping"}).terms
    assert (terms.message_pause_s, terms.max_age_s, terms.overlap_s) == (0.15, 82800.0, 0.0)
    assert terms.heartbeat is not None
    assert (terms.heartbeat.message, terms.heartbeat.every_s) == ("ping", 20.0)
    with_ids = feed(columns={"trade_id": {"from": "i"}}).terms
    assert with_ids.overlap_s > 0


def test_make_feed_makes_it() -> None:
    made = make_feed(JsonSettings(type="json", url="wss://venue", never_closes=True), "")
    assert (made.name, made.schema, made.url()) == ("json", VENUE_TRADES, "wss://venue")
    assert made.terms.never_closes
    assert not feed().terms.never_closes


# Shapes

COINBASE = {
    "fields": {"symbol": "product_id", "price": "price", "volume": "size", "timestamp": "time"},
    "time_unit": "iso",
    "match": {"type": "match"},
}
BY_SYMBOL = {"prices_by_symbol": True}
LISTED = {"fields": {"symbol": "s", "price": "d.p", "volume": "d.v", "timestamp": "t"}, "items": "data.trades"}


@pytest.mark.parametrize(
    ("payload", "settings", "rows"),
    [
        (
            {"symbol": "AAPL", "price": 145.67, "volume": 1500},
            {},
            [(0, RECEIVED_MS, "AAPL", 145.67, 1500.0)],
        ),
        (
            {"symbol": "AAPL", "price": "145.67", "volume": "1500", "timestamp": 5},
            {},
            [(0, 5, "AAPL", 145.67, 1500.0)],
        ),
        ({"symbol": "AAPL", "price": 1, "volume": None, "timestamp": None}, {}, [(0, RECEIVED_MS, "AAPL", 1.0, None)]),
        ({"symbol": "AAPL", "price": 1, "volume": 0, "x": {"y": [1]}}, {}, [(0, RECEIVED_MS, "AAPL", 1.0, 0.0)]),
        (
            [{"symbol": "A", "price": 1, "timestamp": 1}, {"symbol": "B", "price": 2, "timestamp": 2}],
            {},
            [(0, 1, "A", 1.0, None), (0, 2, "B", 2.0, None)],
        ),
        ([], {}, []),
        (
            {"AAPL": 145.67, "GOOGL": 2725.67, "T": 20, "IC MARKETS:1": 1},
            BY_SYMBOL,
            [
                (0, RECEIVED_MS, "AAPL", 145.67, None),
                (0, RECEIVED_MS, "GOOGL", 2725.67, None),
                (0, RECEIVED_MS, "T", 20.0, None),
                (0, RECEIVED_MS, "IC MARKETS:1", 1.0, None),
            ],
        ),
        (
            [{"AAPL": 1}, {"symbol": "B", "price": 2}],
            BY_SYMBOL,
            [(0, RECEIVED_MS, "AAPL", 1.0, None), (0, RECEIVED_MS, "B", 2.0, None)],
        ),
        (
            {"data": {"trades": [{"s": "A", "t": 7, "d": {"p": 1.5, "v": 2}}], "n": 1}},
            LISTED,
            [(0, 7, "A", 1.5, 2.0)],
        ),
        ({"data": {"trades": {"s": "A", "t": 7, "d": {"p": 1.5}}}}, LISTED, [(0, 7, "A", 1.5, None)]),
        ({"data": {"trades": {"AAPL": 1.5}}}, LISTED | BY_SYMBOL, [(0, RECEIVED_MS, "AAPL", 1.5, None)]),
        (
            {
                "type": "match",
                "product_id": "BTC-USD",
                "price": "97012.5",
                "size": "0.01",
                "time": "2026-11-20T14:30:00Z",
            },
            COINBASE,
            [(0, 1795185000000, "BTC-USD", 97012.5, 0.01)],
        ),
        (
            {"symbol": "A", "price": 1, "volume": 5},
            {"fields": {"volume": "null"}},
            [(0, RECEIVED_MS, "A", 1.0, None)],
        ),
        (
            {"symbol": "A", "price": 1, "timestamp": 5},
            {"fields": {"timestamp": "null"}},
            [(0, RECEIVED_MS, "A", 1.0, None)],
        ),
        (b'{"x":1,"x":2,"symbol":"A","price":1}', {}, [(0, RECEIVED_MS, "A", 1.0, None)]),
    ],
)
def test_decode_shape(payload: object, settings: dict[str, Any], rows: list[Row]) -> None:
    assert decode(payload, **settings) == (rows, [], [])


@pytest.mark.parametrize(
    ("unit", "written", "read_as"),
    [
        ("ms", 1700000000123, 1700000000123),
        ("ms", "1700000000123", 1700000000123),
        ("ms", 1700000000123.9, 1700000000123),
        ("s", 1700000000, 1700000000000),
        ("s", 1700000000.123, 1700000000123),
        ("s", "1700000000.1239", 1700000000123),
        ("us", 1700000000123456, 1700000000123),
        ("ns", 1700000000123456789, 1700000000123),
        ("ns", "1700000000123999999", 1700000000123),
        ("iso", "2026-11-20T14:30:00.123999Z", 1795185000123),
        ("iso", "2026-11-20T09:30:00.123456789-05:00", 1795185000123),
        ("ms", "1.700000000123E12", 1700000000123),
        ("ms", "+1700000000123.", 1700000000123),
        ("ms", "1700000000123.99999999999999999999999999999999", 1700000000123),
    ],
)
def test_decode_time(unit: str, written: object, read_as: int) -> None:
    ((_, time, *_),), _, _ = decode({"symbol": "A", "price": 1, "timestamp": written}, time_unit=unit)
    assert time == read_as


# What is no trade


@pytest.mark.parametrize(
    ("payload", "notice"),
    [
        ({"type": "subscriptions", "channels": []}, Notice(0, "unknown", "subscriptions")),
        ({"type": "ping"}, Notice(0, "ping", "")),
        ({"type": "error", "message": "no such product"}, Notice(0, "error", "no such product")),
        ({"type": "error"}, Notice(0, "error", "")),
        ({"type": "x" * 300}, Notice(0, "unknown", "x" * 200)),
        ({"type": 5}, Notice(0, "unknown", "5")),
        ({"product_id": "BTC-USD", "price": "1"}, Notice(0, "unknown", "")),
        ([{"type": "subscriptions"}], Notice(0, "unknown", "subscriptions")),
        ([{"type": "error", "msg": "no such product"}], Notice(0, "error", "no such product")),
    ],
)
def test_what_does_not_match_is_a_notice(payload: object, notice: Notice) -> None:
    assert decode(payload, **COINBASE) == ([], [], [notice])


def test_numbers_and_switches_match_as_they_are_written() -> None:
    settings = {"match": {"channel": "3", "snapshot": "false"}}
    frame = {"channel": 3, "snapshot": False, "symbol": "A", "price": 1}
    assert decode(frame, **settings) == ([(0, RECEIVED_MS, "A", 1.0, None)], [], [])
    assert decode({**frame, "snapshot": True}, **settings) == ([], [], [Notice(0, "unknown", "true")])


@pytest.mark.parametrize(
    ("payload", "settings", "reject"),
    [
        (b"", {}, Reject(0, None, "not_json")),
        (b"\xff", {}, Reject(0, None, "not_utf8")),
        (b'{"symbol":"A","price":NaN}', {}, Reject(0, None, "not_json")),
        (b"[" * 100_000, {}, Reject(0, None, "too_deep")),
        (5, {}, Reject(0, None, "not_an_object")),
        (None, COINBASE, Reject(0, None, "not_an_object")),
        ({"data": {}}, LISTED, Reject(0, None, "no_data")),
        ({"data": {"trades": 5}}, LISTED, Reject(0, None, "no_data")),
        (b'{"type":"match","type":"match"}', COINBASE, Reject(0, None, "repeated_key")),
        (b'{"data":{},"data":{"trades":[]}}', LISTED, Reject(0, None, "repeated_key")),
        ({}, {}, Reject(0, 0, "bad_symbol")),
        ([5], {}, Reject(0, 0, "not_an_object")),
        ({"symbol": 5, "price": 1}, {}, Reject(0, 0, "bad_symbol")),
        (b'{"symbol":"\\ud800","price":1}', {}, Reject(0, 0, "bad_symbol")),
        ({"symbol": "A"}, {}, Reject(0, 0, "bad_price")),
        ({"symbol": "A", "price": True}, {}, Reject(0, 0, "bad_price")),
        *(
            ({"symbol": "A", "price": text}, {}, Reject(0, 0, "bad_price"))
            for text in (
                "",
                ".",
                "1e",
                "e5",
                "0x1",
                "1_000",
                "1,5",
                "\u0661",
                " 1",
                "inf",
                "NaN",
                "1e999",
                "--1",
                "1e99999",
            )
        ),
        (b'{"symbol":"A","price":1e999}', {}, Reject(0, 0, "bad_price")),
        ({"symbol": "A", "price": 1, "volume": []}, {}, Reject(0, 0, "bad_volume")),
        ({"symbol": "A", "price": 1, "timestamp": "soon"}, {}, Reject(0, 0, "bad_time")),
        ({"symbol": "A", "price": 1, "timestamp": True}, {}, Reject(0, 0, "bad_time")),
        ({"symbol": "A", "price": 1, "timestamp": 1e308}, {"time_unit": "s"}, Reject(0, 0, "bad_time")),
        ({"symbol": "A", "price": 1, "timestamp": 2**63}, {}, Reject(0, 0, "bad_time")),
        ({"symbol": "A", "price": 1, "timestamp": "2026-13-01"}, {"time_unit": "iso"}, Reject(0, 0, "bad_time")),
        ({"symbol": "A", "price": 1, "timestamp": 5}, {"time_unit": "iso"}, Reject(0, 0, "bad_time")),
        (
            {"symbol": "A", "price": 1, "timestamp": "2026-11-20 14:30:00"},
            {"time_unit": "iso"},
            Reject(0, 0, "no_time_zone"),
        ),
        (b'{"symbol":"A","price":1,"price":2}', {}, Reject(0, 0, "repeated_key")),
    ],
)
def test_decode_rejects(payload: object, settings: dict[str, Any], reject: Reject) -> None:
    assert decode(payload, **settings) == ([], [reject], [])


@pytest.mark.parametrize(
    "payload",
    [
        {"seq": 17},
        {"AAPL": 1, "price": 2},
        {"AAPL": True},
        {"AAPL": 1, "GOOGL": None},
        {"AAPL": "145.67"},
        {"heart": 5},
    ],
)
def test_what_is_no_map(payload: object) -> None:
    """A word of the protocol, or of this venue's fields, is no symbol; and a price is a number."""
    rows, rejects, _ = decode(payload, fields={"symbol": "heart.beat"}, prices_by_symbol=True)
    assert (rows, rejects) == ([], [Reject(0, 0, "bad_symbol")])


def test_a_symbol_twice_in_a_map_is_refused() -> None:
    assert decode(b'{"AAPL":1,"AAPL":2}', **BY_SYMBOL) == ([], [Reject(0, 0, "bad_symbol")], [])


def test_the_other_trades_of_a_frame_are_kept() -> None:
    good = {"symbol": "A", "price": 1}
    rows, rejects, _ = decode([good, {"AAPL": 1, "MSFT": 2}, {"symbol": "B"}, good], **BY_SYMBOL)
    assert [row[2] for row in rows] == ["A", "AAPL", "MSFT", "A"]
    assert rejects == [Reject(0, 3, "bad_price")]


# As venues write: each shape once, with what its other messages look like

KRAKEN = {
    "fields": {"symbol": "$.3", "price": "0", "volume": "1", "timestamp": "2"},
    "items": "1",
    "match": {"2": "trade"},
    "time_unit": "s",
}
ASCENDEX = {
    "fields": {"symbol": "$.symbol", "price": "p", "volume": "q", "timestamp": "ts"},
    "items": "data",
    "match": {"m": "trades"},
}
ALPACA = {
    "fields": {"symbol": "S", "price": "p", "volume": "s", "timestamp": "t"},
    "match": {"T": "t"},
    "time_unit": "iso",
}
COINBASE_ADVANCED = {
    "fields": {"symbol": "product_id", "price": "price", "volume": "size", "timestamp": "time"},
    "items": "events[].trades[]",
    "match": {"channel": "market_trades", "events[].type": "update"},
    "time_unit": "iso",
}
BITHUMB = {
    "fields": {"symbol": "symbol", "price": "contPrice", "volume": "contQty", "timestamp": "contDtm"},
    "items": "content.list",
    "match": {"type": "transaction"},
    "time_unit": "iso",
    "time_zone": "Asia/Seoul",
}
BITFINEX = {
    "fields": {"symbol": "$.0", "price": "3", "volume": "2", "timestamp": "1"},
    "items": "2",
    "match": {"1": "te"},
}
AT = "2026-11-20T14:30:00.123Z"
AT_MS = 1795185000123


def advanced(kind: str, price: str) -> dict[str, Any]:
    return {"type": kind, "trades": [{"product_id": "ETH-USD", "price": price, "size": "0.5", "time": AT}]}


@pytest.mark.parametrize(
    ("payload", "settings", "rows", "notices"),
    [
        (
            [7, [["354.1", "0.8", "1700000000.123456", "s"], ["354.2", "1", "1700000001", "b"]], "trade", "XMR/USD"],
            KRAKEN,
            [(0, 1700000000123, "XMR/USD", 354.1, 0.8), (0, 1700000001000, "XMR/USD", 354.2, 1.0)],
            [],
        ),
        ([7, [], "trade", "XMR/USD"], KRAKEN, [], []),
        ({"event": "heartbeat"}, KRAKEN, [], [Notice(0, "unknown", "")]),
        ([7, ["5541.3", "5541.2"], "spread", "XMR/USD"], KRAKEN, [], [Notice(0, "unknown", "spread")]),
        (["BTC", "te", [17, 5, 0.5, 97000.5]], BITFINEX, [(0, 5, "BTC", 97000.5, 0.5)], []),
        (["BTC", "hb"], BITFINEX, [], [Notice(0, "unknown", "hb")]),
        (
            {"m": "trades", "symbol": "CHZ/USDT", "data": [{"p": "0.6", "q": "10", "ts": 7}, {"p": ".48", "ts": 8}]},
            ASCENDEX,
            [(0, 7, "CHZ/USDT", 0.6, 10.0), (0, 8, "CHZ/USDT", 0.48, None)],
            [],
        ),
        ({"m": "ping", "hp": 3}, ASCENDEX, [], [Notice(0, "ping", "")]),
        (
            [
                {"T": "q", "S": "AAPL"},
                {"T": "t", "S": "AAPL", "p": 126.5, "s": 1, "t": AT},
                {"T": "t", "S": "B", "p": 2},
            ],
            ALPACA,
            [(0, AT_MS, "AAPL", 126.5, 1.0), (0, RECEIVED_MS, "B", 2.0, None)],
            [],
        ),
        ([{"T": "success", "msg": "connected"}], ALPACA, [], [Notice(0, "unknown", "success")]),
        ([{"T": "q", "S": "AAPL"}, 5], ALPACA, [], [Notice(0, "unknown", "q")]),
        ({"T": "t", "S": "AAPL", "p": 126.5, "t": AT}, ALPACA, [(0, AT_MS, "AAPL", 126.5, None)], []),
        (
            {"channel": "market_trades", "events": [advanced("update", "1260.01"), advanced("update", "1260.02")]},
            COINBASE_ADVANCED,
            [(0, AT_MS, "ETH-USD", 1260.01, 0.5), (0, AT_MS, "ETH-USD", 1260.02, 0.5)],
            [],
        ),
        (
            {"channel": "market_trades", "events": [advanced("snapshot", "1"), advanced("update", "1260.02")]},
            COINBASE_ADVANCED,
            [(0, AT_MS, "ETH-USD", 1260.02, 0.5)],
            [],
        ),
        (
            {"channel": "market_trades", "events": [advanced("snapshot", "1")]},
            COINBASE_ADVANCED,
            [],
            [Notice(0, "unknown", "snapshot")],
        ),
        (
            {"channel": "market_trades", "events": [advanced("update", "1")]},
            COINBASE_ADVANCED | {"items": "events.trades", "match": {}},
            [(0, AT_MS, "ETH-USD", 1.0, 0.5)],
            [],
        ),
        (
            {
                "type": "transaction",
                "content": {
                    "list": [
                        {"symbol": "X_KRW", "contPrice": "10", "contQty": "2", "contDtm": "2026-11-20 23:30:00.123456"}
                    ]
                },
            },
            BITHUMB,
            [(0, AT_MS, "X_KRW", 10.0, 2.0)],
            [],
        ),
        (
            {"symbol": "CL", "price": -37.63, "volume": 0},
            {"signed_prices": True},
            [(0, RECEIVED_MS, "CL", -37.63, 0.0)],
            [],
        ),
        *(
            ({"symbol": "A", "price": text, "volume": text}, {}, [(0, RECEIVED_MS, "A", number, number)], [])
            for text, number in {"1.5E-7": 1.5e-7, "2e+3": 2000.0, "+0.44": 0.44, ".48": 0.48, "5.": 5.0}.items()
        ),
    ],
)
def test_decode_as_venues_write(
    payload: object, settings: dict[str, Any], rows: list[Row], notices: list[Notice]
) -> None:
    assert decode(payload, **settings) == (rows, [], notices)


@pytest.mark.parametrize(
    "payload", [{"ping": 1492420473027}, {"pong": 1}, {"uptime": 8.5}, {"AAPL": 145.67}, {"heartbeat": 17, "BTC": 2}]
)
def test_no_object_of_numbers_is_a_trade_unless_the_settings_say_so(payload: object) -> None:
    assert decode(payload) == ([], [Reject(0, 0, "bad_symbol")], [])


@pytest.mark.parametrize("items", ["a", "a.b", "a[].b[]"])
@pytest.mark.parametrize("payload", [b"[" * 400 + b"]" * 400, b'{"a":' + b"[" * 400 + b"]" * 400 + b"}"])
def test_lists_in_lists_without_an_end_are_refused(payload: bytes, items: str) -> None:
    rows, rejects, notices = decode(payload, items=items)
    assert (rows, notices) == ([], [])
    assert [one.reason for one in rejects] in (["no_data"], ["not_an_object"])


def test_the_key_is_put_in_and_never_shown() -> None:
    settings = JsonSettings.model_validate(
        {
            "type": "json",
            "url": "wss://venue/ws?api_token={key}",
            "subscribe": '{"auth":"{key}","symbols":"{symbol}"}',
            "match": {"type": "trade"},
        }
    )
    assert settings.needs_key
    venue = JsonMap(settings, 's3"c ret')
    assert venue.url() == "wss://venue/ws?api_token=s3%22c%20ret"
    assert json.loads(venue.subscribe(["A"])[0]) == {"auth": 's3"c ret', "symbols": "A"}
    assert "s3" not in repr(venue)
    quoting = json.dumps({"type": "error", "message": 'who is s3"c ret?'}).encode()
    assert venue.decode(Frames([quoting], [RECEIVED_US])).notices == [Notice(0, "error", "who is ***?")]


# The example

EXAMPLE = Path(__file__).parents[1] / "config/json.yaml"


def test_the_example_reads_coinbase() -> None:
    """As its documentation writes a match: https://docs.cdp.coinbase.com/exchange/websocket-feed/channels."""
    match = {
        "type": "match",
        "trade_id": 10,
        "sequence": 50,
        "maker_order_id": "ac928c66-ca53-498f-9c13-a110027a60e8",
        "taker_order_id": "132fb6ae-456b-4654-b4e0-d681ac05cea1",
        "time": "2014-11-07T08:19:27.028459Z",
        "product_id": "BTC-USD",
        "size": "5.23512",
        "price": "400.23",
        "side": "sell",
    }
    settings = load_settings(EXAMPLE)
    assert isinstance(settings.feed, JsonSettings)
    coinbase = JsonMap(settings.feed)
    payloads = [json.dumps(match).encode(), b'{"type":"subscriptions","channels":[]}']
    decoded = coinbase.decode(Frames(payloads, [RECEIVED_US] * 2))
    (row,) = decoded.trades.to_pylist()
    assert (row["symbol"], row["price"], row["volume"]) == ("BTC-USD", 400.23, 5.23512)
    assert row["timestamp"] == datetime(2014, 11, 7, 8, 19, 27, 28000, tzinfo=UTC)
    assert decoded.notices == [Notice(1, "ack", "")]
    assert json.loads(coinbase.subscribe(settings.symbols)[0]) == {
        "type": "subscribe",
        "product_ids": ["BTC-USD"],
        "channels": ["matches"],
    }


def test_the_settings_know_the_columns_of_every_recording() -> None:
    assert set(TRADES.names) == RECORDED_COLUMNS


def test_the_example_names_every_setting_of_its_feed() -> None:
    named = set(re.findall(r"^  #?(\w+):", EXAMPLE.read_text(), re.MULTILINE))
    assert set(JsonSettings.model_fields) - {"allow_plaintext"} <= named


# Backwards


def test_encode_writes_as_the_venue_does() -> None:
    rows = [[1795185000123], ["BTC-USD"], [97012.5], [0.01], [None]]
    arrays = [pa.array(column, kind) for column, kind in zip(rows, VENUE_TRADES.types, strict=True)]
    trades = pa.record_batch(arrays, schema=VENUE_TRADES)
    assert feed(**COINBASE).encode(trades) == [
        b'{"product_id":"BTC-USD","price":97012.5,"size":0.01,"time":"2026-11-20T14:30:00.123Z","type":"match"}'
    ]
    assert feed(**LISTED, time_unit="us", match={"data.kind": "t"}).encode(trades) == [
        b'{"data":{"trades":[{"s":"BTC-USD","d":{"p":97012.5,"v":0.01},"t":1795185000123000}],"kind":"t"}}'
    ]


# Columns of the venue's own, and answers

OWN = {
    "trade_id": {"from": "i", "type": "integer"},
    "side": {"from": "m", "values": {"true": "sell", "false": "buy"}},
    "fee": {"from": "$.fee", "type": "number"},
    "conditions": {"from": "c", "type": "codes"},
}


@pytest.mark.parametrize(
    ("said", "read"),
    [
        ({"i": 7, "m": True, "c": ["@", "I"]}, (7, "sell", None, "@,I")),
        ({"i": "929248657", "m": "x", "c": []}, (929248657, "x", None, "")),
        ({"i": -1.0, "m": 5, "c": 12}, (-1, "5", None, "12")),
        ({"i": None, "m": None, "c": [" ", 37]}, (None, None, None, " ,37")),
        ({"i": "x"}, "bad_trade_id"),
        ({"i": 1.5}, "bad_trade_id"),
        ({"i": "9223372036854775808"}, "bad_trade_id"),
        ({"m": {}}, "bad_side"),
        ({"c": ["a,b"]}, "bad_conditions"),
        ({"c": [1.5]}, "bad_conditions"),
    ],
)
def test_columns_of_the_venue_are_read_by_their_type(said: dict[str, Any], read: object) -> None:
    venue = feed(columns=OWN)
    payload = json.dumps({"symbol": "A", "price": 1, **said}).encode()
    decoded = venue.decode(Frames([payload], [RECEIVED_US]))
    assert venue.schema.names == [*VENUE_TRADES.names, "trade_id", "side", "fee"]
    rows: list[object] = [tuple(row[name] for name in OWN) for row in decoded.trades.to_pylist()]
    assert (rows or [one.reason for one in decoded.rejects]) == [read]


def test_a_message_may_be_a_text() -> None:
    venue = {"heartbeat": {"every": "20s", "send": "ping", "answer": "pong"}, "ignore": "Hello."}
    for text in (b"pong", b"Hello."):
        assert decode(text, **venue) == ([], [], [Notice(0, "news", "")])
    assert decode(b"Pong", **venue) == ([], [Reject(0, None, "not_json")], [])


ANSWERING = {
    "items": "data",
    "match": {"arg.channel": "trades"},
    "acknowledged": {"event": "subscribe"},
    "refused": [
        {"match": {"event": "error"}, "text": "msg", "symbol_in": "instId:(.+) doesn't exist"},
        {"match": {"success": "false"}, "text": "error", "symbol": "symbol"},
        {"match": {"op": "no"}, "symbol": "topic", "symbol_in": "trades[.](.+)"},
    ],
    "ignore": [{"channel": "heartbeat"}, {"events[].type": "snapshot"}],
}


@pytest.mark.parametrize(
    ("payload", "notice"),
    [
        ({"event": "subscribe", "arg": {"channel": "trades"}}, Notice(0, "ack", "")),
        (
            {"event": "error", "msg": "channel:trades,instId:XX doesn't exist"},
            Notice(0, "error", "channel:trades,instId:XX doesn't exist", "XX", refuses=True),
        ),
        ({"event": "error", "msg": "no"}, Notice(0, "error", "no", None, refuses=True)),
        ({"success": False, "error": "no", "symbol": "X/Y"}, Notice(0, "error", "no", "X/Y", refuses=True)),
        ([{"op": "no", "topic": "trades.X", "msg": "?"}], Notice(0, "error", "?", "X", refuses=True)),
        ({"channel": "heartbeat"}, Notice(0, "news", "")),
        ({"events": [{"type": "x"}, {"type": "snapshot"}]}, Notice(0, "news", "")),
    ],
)
def test_answers_are_told_by_what_they_say(payload: object, notice: Notice) -> None:
    assert decode(payload, **ANSWERING) == ([], [], [notice])


def test_what_holds_trades_is_no_answer() -> None:
    payload = {"event": "subscribe", "arg": {"channel": "trades"}, "data": [{"symbol": "A", "price": 1}]}
    assert decode(payload, **ANSWERING) == ([(0, RECEIVED_MS, "A", 1.0, None)], [], [])


# Settings


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"fields": {"price": "a..b"}}, "must be a key, or keys joined by dots"),
        ({"subscribe": "subscribe {symbol}"}, "must be JSON"),
        ({"time_unit": "minutes"}, "Input should be"),
        ({"url": "https://venue"}, "must be an address"),
        ({"url": "wss://venue/?api_token=demo"}, "write api_token={key}"),
        ({"url": "wss://venue/{key}"}, "has its place behind the"),
        ({"url": "wss://venue/?a=1#x"}, "must end before any"),
        ({"url": "ws://venue/?token={key}"}, "sends the key"),
        ({"fields": {"price": "a[].b"}}, "must be one value"),
        ({"items": "$.data"}, "must be a key, or keys joined by dots"),
        ({"match": {"a..b": "x"}}, "must be a key, or keys joined by dots"),
        ({"time_zone": "Seoul"}, "no time zone"),
        ({"time_zone": "Asia/Seoul"}, "time_unit: iso"),
        ({"prices_by_symbol": True, "fields": {"symbol": "$.s"}}, "has no place beside"),
        ({"columns": {"price": {"from": "p"}}}, "every recording has a column"),
        ({"columns": {"Trade": {"from": "p"}}}, "lower case"),
        ({"columns": {"side": {"from": "p", "type": "number", "values": {"a": "b"}}}}, "for `type: text`"),
        ({"columns": {"side": {"from": "p", "consecutive": "true"}}}, "for `type: integer`"),
        ({"columns": {"conditions": {"from": "p", "type": "number"}}}, "a column of text"),
        ({"subscribe": '{"s":"{symbol}"}', "symbols_per_message": 2}, "needs a list"),
        ({"subscribe": '{"s":["{symbol}"],"t":"{symbol}"}', "symbols_per_message": 2}, "needs a list"),
        ({"refused": [{"match": {"a": "b"}, "symbol_in": "x"}]}, "one group"),
        ({"refused": [{"match": {"a": "b"}, "symbol_in": "("}]}, "regular expression"),
        ({"refused": [{"match": {}}]}, "at least 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        feed(**settings)


# Against a second reading of the same rules


@pytest.mark.parametrize("name", MAPPED)
def test_a_slow_and_obvious_reading_agrees(name: str) -> None:
    """`benchmarks/fuzz.py` does the same by the million."""
    settings, messages = MAPPED[name]
    read = trades = 0
    for seed in range(of_tier(40, 20)):
        payloads = mapped_block(Random(seed), messages)
        decoded = feed(**settings).decode(Frames(payloads, [RECEIVED_US] * len(payloads)))
        heard = said(decoded)
        heard.own = own_of(decoded)
        assert heard == read_mapped(feed(**settings)._settings, payloads, RECEIVED_US), payloads
        read, trades = read + len(payloads), trades + len(heard.trades)
    assert trades > read // 10
