"""What every feed owes the recorder, whatever its venue says. A new feed is one more line in FEEDS."""

import json
import re
from random import Random
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from requirements import of_tier

from ingestor.config.feeds import BinanceSettings, FeedSettings, FinnhubSettings, JsonSettings
from ingestor.feeds import Decoded, Feed, Frames, make_feed
from ingestor.schema import VENUE_TRADES

NESTED: dict[str, Any] = {
    "fields": {"symbol": "instrument.name", "price": "trade.p", "volume": "trade.q", "timestamp": "trade.at"},
    "items": "payload.trades",
    "match": {"payload.kind": "trades"},
    "time_unit": "iso",
}
ARRAYS: dict[str, Any] = {
    "fields": {"symbol": "$.3", "price": "0", "volume": "1", "timestamp": "2"},
    "items": "1",
    "match": {"2": "trade"},
    "time_unit": "us",
}
EVENTS: dict[str, Any] = {"items": "events[].trades[]", "match": {"channel": "t", "events[].type": "update"}}
BESIDE: dict[str, Any] = {"fields": {"symbol": "$.arg.id"}, "items": "data", "match": {"arg.channel": "trades"}}
COLUMNS: dict[str, Any] = {
    "columns": {
        "trade_id": {"from": "id", "type": "integer", "consecutive": True},
        "side": {"from": "m", "values": {"true": "buy"}},
    },
    "items": "data[]",
    "ignore": ["pong", {"channel": "heartbeat"}],
    "acknowledged": [{"event": "*"}],
}
FEEDS: dict[str, FeedSettings] = {
    "finnhub": FinnhubSettings(),
    "binance": BinanceSettings(type="binance"),
    "binance aggregates": BinanceSettings(type="binance", stream="aggTrade"),
    "binance combined": BinanceSettings(type="binance", url="wss://x/stream"),
    "json": JsonSettings(type="json", url="wss://x"),
    "json in seconds": JsonSettings(type="json", url="wss://x", time_unit="s"),
    "json in nanoseconds": JsonSettings(type="json", url="wss://x", time_unit="ns"),
    "json nested": JsonSettings.model_validate({"type": "json", "url": "wss://x", **NESTED}),
    "json of arrays": JsonSettings.model_validate({"type": "json", "url": "wss://x", **ARRAYS}),
    "json of events": JsonSettings.model_validate({"type": "json", "url": "wss://x", **EVENTS}),
    "json beside": JsonSettings.model_validate({"type": "json", "url": "wss://x", **BESIDE}),
    "json per item": JsonSettings.model_validate({"type": "json", "url": "wss://x", "match": {"ev": "T"}}),
    "json with columns": JsonSettings.model_validate({"type": "json", "url": "wss://x", **COLUMNS}),
    "json with a key": JsonSettings(type="json", url="wss://x/?token={key}", subscribe='["{key}","{symbol}"]'),
}
BLOCK = 100
"""Frames enough for a columnar way, where a feed has one."""
RECEIVED_US = 1_700_000_000_123_456

pytestmark = pytest.mark.parametrize("feed", [make_feed(one, "c0ffee") for one in FEEDS.values()], ids=list(FEEDS))
anything = settings(
    max_examples=of_tier(10, 3), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def decode(feed: Feed, payloads: list[bytes]) -> Decoded:
    return feed.decode(Frames(payloads, [RECEIVED_US + frame for frame in range(len(payloads))]))


def account(decoded: Decoded, frames: int) -> None:
    """Each frame once, each trade in its place, in words that label a metric."""
    rejected = [reject.frame for reject in decoded.rejects if reject.trade is None]
    noticed = [notice.frame for notice in decoded.notices]
    with_trades = set(decoded.frame_of.to_pylist()) | {one.frame for one in decoded.rejects if one.trade is not None}
    apart = [*rejected, *noticed, *with_trades]
    assert len(apart) == len(set(apart))
    assert set(apart) <= set(range(frames))
    assert decoded.frame_of.to_pylist() == sorted(decoded.frame_of.to_pylist())
    assert len(decoded.frame_of) == decoded.trades.num_rows
    assert all(re.fullmatch("[a-z]+(_[a-z0-9]+)*", reject.reason) for reject in decoded.rejects)
    assert {notice.kind for notice in decoded.notices} <= {"ping", "ack", "error", "news", "unknown"}
    assert all(len(notice.text) <= 200 for notice in decoded.notices)
    decoded.trades.validate(full=True)
    for name in ("timestamp", "symbol", "price"):
        assert decoded.trades[name].null_count == 0


def one_by_one(feed: Feed, payloads: list[bytes]) -> list[tuple[Any, ...]]:
    """What each frame says by itself: rows, rejects and notices, each with the number of its frame."""
    said: list[tuple[Any, ...]] = []
    for frame, payload in enumerate(payloads):
        alone = feed.decode(Frames([payload], [RECEIVED_US + frame]))
        said += [(frame, *row.values()) for row in alone.trades.to_pylist()]
        said += [(frame, one.trade, one.reason) for one in alone.rejects]
        said += [(frame, one.kind, one.text, one.symbol, one.refuses) for one in alone.notices]
    return sorted(said, key=repr)


def together(feed: Feed, payloads: list[bytes]) -> list[tuple[Any, ...]]:
    decoded = decode(feed, payloads)
    said: list[tuple[Any, ...]] = [
        (frame, *row.values())
        for frame, row in zip(decoded.frame_of.to_pylist(), decoded.trades.to_pylist(), strict=True)
    ]
    said += [(one.frame, one.trade, one.reason) for one in decoded.rejects]
    said += [(one.frame, one.kind, one.text, one.symbol, one.refuses) for one in decoded.notices]
    return sorted(said, key=repr)


NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
AMOUNTS = st.floats(min_value=0, max_value=1e300)
ROWS = st.tuples(st.integers(0, 4_102_444_800_000), NAMES, AMOUNTS, AMOUNTS, st.integers(0, 2**62), st.booleans())


def batch(feed: Feed, rows: list[tuple[int, str, float, float, int, bool]]) -> pa.RecordBatch:
    """Trades with whatever columns the feed has."""
    time, symbol, price, volume, number, bought = zip(*rows, strict=True) if rows else [()] * 6
    side = ["buy" if one else "sell" for one in bought]
    values = {"timestamp": time, "symbol": symbol, "price": price, "volume": volume, "trade_id": number, "side": side}
    columns = [pa.array(values.get(field.name, [None] * len(rows)), field.type) for field in feed.schema]
    return pa.record_batch(columns, schema=feed.schema)


def good_frames(feed: Feed, count: int) -> list[bytes]:
    random = Random(count)
    rows = [
        (
            1_700_000_000_000 + index,
            f"S{index % 7}",
            round(random.uniform(1, 500), 4),
            float(index),
            index,
            index % 2 > 0,
        )
        for index in range(count)
    ]
    return [payload for row in rows for payload in feed.encode(batch(feed, [row]))]


def mutated(random: Random, payload: bytes) -> bytes:
    """A frame in which one thing is another."""
    swaps = (b'""', b"null", b"true", b"1e999", b"NaN", b"-1", b'"-1.5"', b'"1e5"', b"{}", b"[]", b'"\\ud800"', b"1.5")
    values = list(re.finditer(rb'"[^"]*"|-?[0-9.]+(?:e[-+]?\d+)?|true|false', payload))
    at = random.choice(values)
    kind = random.randrange(5)
    if kind == 0:
        return payload[: random.randrange(len(payload))]
    if kind == 1:
        flipped = bytearray(payload)
        flipped[random.randrange(len(flipped))] = random.choice((random.randrange(256), *b'{}[],:"\\\n0'))
        return bytes(flipped)
    if kind == 2:
        return payload[:-1] + b"," + payload[1:]  # each key twice
    if kind == 3:
        return payload + random.choice((b" ", b"\n", b"null", payload))
    return payload[: at.start()] + random.choice(swaps) + payload[at.end() :]


# The contract


def test_it_has_a_name_a_schema_and_terms(feed: Feed) -> None:
    assert feed.name.isidentifier()
    assert feed.schema.names[: len(VENUE_TRADES)] == VENUE_TRADES.names
    assert len(set(feed.schema.names)) == len(feed.schema)
    assert feed.terms.message_pause_s >= 0
    assert feed.terms.max_age_s > 0


def test_it_asks_in_json(feed: Feed) -> None:
    symbols = ["AAPL", 'a"b\\', "IC MARKETS:1"]
    for message in (*feed.subscribe(symbols), *feed.unsubscribe(symbols)):
        assert json.loads(message)
    assert feed.subscribe([]) == feed.unsubscribe([]) == []


def test_its_text_hides_the_key(feed: Feed) -> None:
    assert "c0ffee" not in repr(feed)


def test_nothing_decodes_to_nothing(feed: Feed) -> None:
    decoded = decode(feed, [])
    assert (decoded.trades.schema, decoded.trades.num_rows) == (feed.schema, 0)
    assert (decoded.frame_of.type, len(decoded.frame_of)) == (pa.int64(), 0)
    assert feed.encode(batch(feed, [])) == []


@anything
@given(rows=st.lists(ROWS, min_size=1, max_size=6))
def test_what_it_writes_it_reads_alone_and_in_a_block(
    feed: Feed, rows: list[tuple[int, str, float, float, int, bool]]
) -> None:
    trades = batch(feed, rows)
    payloads = feed.encode(trades)
    decoded = decode(feed, payloads)
    assert decoded.trades == trades
    assert (decoded.rejects, decoded.notices) == ([], [])
    many = decode(feed, payloads * BLOCK)
    assert many.trades == pa.record_batch([pa.concat_arrays([one] * BLOCK) for one in trades.columns], feed.schema)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["e", "s", "p", "stream", "data", "type", "symbol", "price"]), inner, max_size=5
        )
    ),
    max_leaves=10,
)


@anything
@given(odd=st.lists(JSON.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=20), max_size=6))
def test_no_bytes_are_too_hostile(feed: Feed, odd: list[bytes]) -> None:
    account(decode(feed, odd), len(odd))
    amid = [*good_frames(feed, BLOCK), *odd, *good_frames(feed, 10)]
    account(decode(feed, amid), len(amid))
    assert together(feed, amid) == one_by_one(feed, amid)


@pytest.mark.parametrize("hostile", of_tier([0.0, 0.01, 0.5], [0.01]))
def test_a_block_says_what_its_frames_say_one_by_one(feed: Feed, hostile: float) -> None:
    random = Random(hostile)
    for _ in range(of_tier(6, 2)):
        payloads = good_frames(feed, random.choice((64, 65, 200)))
        payloads = [mutated(random, one) if random.random() < hostile else one for one in payloads]
        account(decode(feed, payloads), len(payloads))
        assert together(feed, payloads) == one_by_one(feed, payloads)


@pytest.mark.parametrize("where", of_tier([0, 50, 99], [50]))
def test_a_lone_mutated_frame_is_found_in_its_block(feed: Feed, where: int) -> None:
    random = Random(where)
    good = good_frames(feed, BLOCK)
    for _ in range(of_tier(20, 2)):
        payloads = [*good[:where], mutated(random, good[where]), *good[where + 1 :]]
        assert together(feed, payloads) == one_by_one(feed, payloads)


@pytest.mark.parametrize("payload", [b"", b"null", b"5", b'"x"', b"\xff", b"{", b"[" * 100_000])
def test_what_is_no_message_is_one_reject(feed: Feed, payload: bytes) -> None:
    (reject,) = decode(feed, [payload]).rejects
    assert reject.trade is None
