"""Binance's language, forwards and backwards; every decode here is held to a slow and obvious reader, too."""

import json
import re
from fractions import Fraction
from random import Random
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_decoder import Number, Pairs, Refused, document_of, double_of, is_string, time_of
from requirements import of_tier

from ingestor.config import Settings
from ingestor.config.feeds import BinanceSettings
from ingestor.feeds import Frames, Notice, Reject, make_feed
from ingestor.feeds.binance import BINANCE_TRADES, Binance

BARE = Binance("wss://stream.binance.com:9443/ws", "trade")
COMBINED = Binance("wss://stream.binance.com:9443/stream", "aggTrade")
TRADE = (
    b'{"e":"trade","E":1672515782136,"s":"BNBBTC","t":12345,"p":"0.001","q":"100","b":88,"a":50,'
    b'"T":1672515782136,"m":true,"M":true}'
)
AGGREGATE = (
    b'{"e":"aggTrade","E":1672515782136,"s":"BNBBTC","a":12345,"p":"0.001","q":"100","f":100,"l":105,'
    b'"T":1672515782136,"m":false,"M":true}'
)
ACK = b'{"result":null,"id":1}'
BLOCK = 100

Row = tuple[int, int, str, str, str, None, int, str]
"""Frame, then a row of BINANCE_TRADES: time in ms, doubles by `repr`."""
Said = tuple[list[Row], list[Reject], list[Notice]]


def envelope(event: bytes, stream: bytes = b'"bnbbtc@trade"') -> bytes:
    return b'{"stream":%s,"data":%s}' % (stream, event)


def trade(**values: str) -> bytes:
    """A trade with some of its values, given as JSON, other than usual; an empty one is left out."""
    usual = {
        "e": '"trade"',
        "E": "1",
        "s": '"A"',
        "t": "7",
        "p": '"1.5"',
        "q": '"2"',
        "T": "1672515782136",
        "m": "true",
    }
    items = ",".join(f'"{key}":{value}' for key, value in (usual | values).items() if value)
    return f"{{{items}}}".encode()


def decode(payloads: list[bytes]) -> Said:
    decoded = BARE.decode(Frames(payloads, [0] * len(payloads)))
    assert decoded.trades.schema == BINANCE_TRADES
    columns = [decoded.trades[0].cast(pa.int64()), *decoded.trades.columns[1:]]
    columns[2:4] = [pa.array([repr(value) for value in column.to_pylist()]) for column in columns[2:4]]
    rows = zip(decoded.frame_of.to_pylist(), *(column.to_pylist() for column in columns), strict=True)
    return list(rows), decoded.rejects, decoded.notices


# The reference


def read(payloads: list[bytes]) -> Said:
    """What these frames say, one value at a time; shares nothing with the code under test."""
    said: Said = [], [], []
    for frame, payload in enumerate(payloads):
        try:
            read_frame(said, frame, document_of(payload))
        except Refused as refused:
            said[1].append(Reject(frame, None, str(refused)))
    return said


def read_frame(said: Said, frame: int, document: Pairs) -> None:
    if document.repeats("stream", "data", "e", "result", "error", "code", "msg"):
        raise Refused("repeated_key")
    event = document
    if document.get("stream") is not None:
        if not is_string(document.get("stream")):
            raise Refused("no_event")
        event = document.get("data")
        if not isinstance(event, Pairs):
            raise Refused("no_data")
        if event.repeats("e"):
            raise Refused("repeated_key")
    elif document.get("e") is None and {"result", "error", "code"} & {name for name, _ in document}:
        said[2].append(answer_of(frame, document))
        return
    if not is_string(event.get("e")):
        raise Refused("no_event")
    if event.get("e") not in ("trade", "aggTrade"):
        said[2].append(Notice(frame, "unknown", event.get("e")[:200]))
        return
    try:
        said[0].append((frame, *row_of(event, "t" if event.get("e") == "trade" else "a")))
    except Refused as refused:
        said[1].append(Reject(frame, 0, str(refused)))


def answer_of(frame: int, document: Pairs) -> Notice:
    error = document if any(name == "code" for name, _ in document) else document.get("error")
    if error is None:
        return Notice(frame, "ack", "")
    text = error.get("msg") if isinstance(error, Pairs) else error
    text = re.sub("[\ud800-\udfff]", "?", text)[:200] if type(text) is str else ""
    return Notice(frame, "error", text, None, refuses=True)


def row_of(event: Pairs, id_key: str) -> tuple[int, str, str, str, None, int, str]:
    if event.repeats("T", "s", "p", "q", "m", id_key):
        raise Refused("repeated_key")
    time = time_of(event.get("T"))
    if not is_string(event.get("s")):
        raise Refused("bad_symbol")
    price, volume = decimal_of(event.get("p"), "bad_price"), decimal_of(event.get("q"), "bad_volume")
    try:
        number = time_of(event.get(id_key))
    except Refused:
        raise Refused("bad_id") from None
    side = {True: "sell", False: "buy"}.get(event.get("m")) if isinstance(event.get("m"), bool) else None
    if side is None:
        raise Refused("bad_side")
    return time, event.get("s"), price, volume, None, number, side


def decimal_of(value: Any, reason: str) -> str:
    """The double nearest to it, found by whole numbers, as `repr`."""
    if type(value) is not str or not re.fullmatch("[0-9]+|[0-9]+[.][0-9]+", value):
        raise Refused(reason)
    whole, _, digits = value.partition(".")
    if double_of(Number(value)) is None or len(whole) + len(digits) > 4000:
        raise Refused(reason)
    return repr(float(Fraction(int(whole + digits), 10 ** len(digits))))


def decode_both_ways(payload: bytes) -> Said:
    """What one frame says by itself, having checked that it says the same amid blocks of either form."""
    alone = decode([payload])
    assert alone == read([payload])
    for neighbour in of_tier([TRADE, AGGREGATE, envelope(AGGREGATE)], [envelope(AGGREGATE)]):
        amid = [*[neighbour] * BLOCK, payload, ACK, *[neighbour] * BLOCK]
        assert decode(amid) == read(amid)
    return alone


# Asking


def test_subscribing_is_in_batches_with_ids() -> None:
    first, second = BARE.subscribe([f"S{number}USDT" for number in range(201)])
    assert json.loads(first)["params"] == [f"s{number}usdt@trade" for number in range(200)]
    assert second == '{"method":"SUBSCRIBE","params":["s200usdt@trade"],"id":2}'
    assert COMBINED.unsubscribe(["BTCUSDT"]) == ['{"method":"UNSUBSCRIBE","params":["btcusdt@aggTrade"],"id":1}']


def test_a_full_connection_is_asked_for_within_what_binance_allows() -> None:
    messages = BARE.subscribe([f"S{number}" for number in range(1024)])
    assert sum(len(json.loads(message)["params"]) for message in messages) == 1024
    assert len(messages) <= 6
    assert 1 / BARE.terms.message_pause_s < 5
    assert 23 * 3600 < BARE.terms.max_age_s < 24 * 3600
    assert BARE.terms.never_closes


def test_make_feed_needs_no_key() -> None:
    feed = make_feed(BinanceSettings(type="binance"), "")
    assert (feed.name, feed.schema) == ("binance", BINANCE_TRADES)
    assert feed.url() == "wss://stream.binance.com:9443/ws"
    assert feed.schema.names[-2:] == ["trade_id", "side"]


@pytest.mark.parametrize("ticker", ["btcusdt", "BINANCE:BTCUSDT", "BTCUSDT@trade"])
def test_a_ticker_that_binance_does_not_know_is_refused(ticker: str) -> None:
    with pytest.raises(ValueError, match="is no symbol of Binance: write BTCUSDT"):
        Settings.model_validate({"feed": {"type": "binance"}, "tickers": [ticker]})


# Frames as Binance sends them

ROW = (0, 1672515782136, "BNBBTC", "0.001", "100.0", None, 12345)


@pytest.mark.parametrize(
    ("payload", "row"),
    [
        (TRADE, (*ROW, "sell")),
        (AGGREGATE, (*ROW, "buy")),
        (envelope(TRADE), (*ROW, "sell")),
        (envelope(AGGREGATE, b'"nknusdt@aggTrade"'), (*ROW, "buy")),
        (b'{"data":%s,"stream":""}' % TRADE, (*ROW, "sell")),
        (TRADE[:-1] + b',"X":"MARKET","nq":"1"}', (*ROW, "sell")),
        (TRADE[:-1] + b',"stream":null,"data":{"e":"kline"}}', (*ROW, "sell")),
        (b'{"result":null,' + TRADE[1:], (*ROW, "sell")),
    ],
)
def test_decode_sample(payload: bytes, row: Row) -> None:
    assert decode_both_ways(payload) == ([row], [], [])


@pytest.mark.parametrize(
    ("payload", "notice"),
    [
        (ACK, Notice(0, "ack", "")),
        (b'{"result":["btcusdt@trade"],"id":3}', Notice(0, "ack", "")),
        (
            b'{"error":{"code":2,"msg":"Invalid request: unknown variant"},"id":1}',
            Notice(0, "error", "Invalid request: unknown variant", refuses=True),
        ),
        (b'{"error":"no","id":1}', Notice(0, "error", "no", refuses=True)),
        (b'{"code":3,"msg":"Invalid JSON \\ud800","id":1}', Notice(0, "error", "Invalid JSON ?", refuses=True)),
        (b'{"error":{"code":2},"id":1}', Notice(0, "error", "", refuses=True)),
        (b'{"e":"serverShutdown","E":1770123456789}', Notice(0, "unknown", "serverShutdown")),
        (b'{"e":"kline","s":"A","t":1,"p":"1"}', Notice(0, "unknown", "kline")),
        (envelope(b'{"e":"24hrTicker","p":"1","m":true}'), Notice(0, "unknown", "24hrTicker")),
    ],
)
def test_decode_notice(payload: bytes, notice: Notice) -> None:
    assert decode_both_ways(payload) == ([], [], [notice])


@pytest.mark.parametrize(
    ("key", "written", "read_as"),
    [
        ("p", '"0.00000001"', "1e-08"),
        ("p", '"97012.50000000"', "97012.5"),
        ("p", '"0.1"', "0.1"),
        ("p", '"9007199254740993"', "9007199254740992.0"),
        ("p", '"9007199254740993.00000000000000000000000000001"', "9007199254740994.0"),
        ("p", '"2.2250738585072011"', "2.225073858507201"),
        ("q", '"0"', "0.0"),
        ("q", '"00.10"', "0.1"),
        ("T", "1672515782136.0", 1672515782136),
        ("s", r'"\u0041"', "A"),
        ("s", '"币安人生USDT"', "币安人生USDT"),
        ("t", "9223372036854775807", 2**63 - 1),
        ("m", "false", "buy"),
    ],
)
def test_decode_value(key: str, written: str, read_as: object) -> None:
    (row,), _, _ = decode_both_ways(trade(**{key: written}))
    assert row[1 + "Tspqctm".index(key)] == read_as


# What is refused


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "not_json"),
        (b"null", "not_an_object"),
        (b"[" + TRADE + b"]", "not_an_object"),
        (TRADE.replace(b"BNB", b"\xff"), "not_utf8"),
        (b"[" * 100_000, "too_deep"),
        (b"{}", "no_event"),
        (b'{"id":1}', "no_event"),
        (b'{"T":1,"s":"A","p":"1","q":"1","t":1,"m":true}', "no_event"),
        (b'{"e":5}', "no_event"),
        (envelope(TRADE, b"5"), "no_event"),
        (envelope(b"[]"), "no_data"),
        (b'{"stream":"x"}', "no_data"),
        (b'{"e":"trade",' + TRADE[1:], "repeated_key"),
        (envelope(b'{"e":"kline",' + TRADE[1:]), "repeated_key"),
        (b'{"stream":"x",' + envelope(TRADE)[1:], "repeated_key"),
    ],
)
def test_decode_rejects_frame(payload: bytes, reason: str) -> None:
    assert decode_both_ways(payload) == ([], [Reject(0, None, reason)], [])


@pytest.mark.parametrize("wrap", [lambda event: event, envelope])
@pytest.mark.parametrize(
    ("key", "values", "reason"),
    [
        ("T", ("", "null", '"1672515782136"', "1.5", "1e99"), "bad_time"),
        ("s", ("", "null", "5", r'"\ud800"'), "bad_symbol"),
        ("p", ("", "1.5", '""', '"-1"', '"+1"', '"1e5"', '"nan"', '"1."', '".5"', '" 1"', '"1\\n"'), "bad_price"),
        ("q", ("", "null", '"inf"', '"٣"', '"0x1"', '"' + "9" * 400 + '"'), "bad_volume"),
        ("t", ("", "null", '"7"', "7.5", "9223372036854775808"), "bad_id"),
        ("m", ("", "null", "1", '"true"'), "bad_side"),
        ("x", ('1,"p":"1"', '1,"\\u0054":1'), "repeated_key"),
    ],
)
def test_decode_rejects_trade(wrap: Any, key: str, values: tuple[str, ...], reason: str) -> None:
    for written in values:
        assert decode_both_ways(wrap(trade(**{key: written}))) == ([], [Reject(0, 0, reason)], [])


def test_an_aggregate_has_its_own_id() -> None:
    assert decode_both_ways(trade(e='"aggTrade"')) == ([], [Reject(0, 0, "bad_id")], [])
    assert decode_both_ways(trade(e='"aggTrade"', t="5", a="9"))[0][0][6] == 9


def test_both_forms_on_one_connection() -> None:
    payloads = [TRADE, envelope(TRADE), ACK, b'{"stream":null,"data":%s}' % TRADE, AGGREGATE] * 60
    assert decode(payloads) == read(payloads)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["trade", "aggTrade", "1.5", "-1", "A"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("eEspqtaTmM"), inner, max_size=9),
    max_leaves=12,
)
FRAMES = st.dictionaries(st.sampled_from(["stream", "data", "e", "s", "T", "result", "error", "code", "msg"]), JSON)


@given(st.lists(FRAMES.map(lambda frame: json.dumps(frame).encode()) | st.binary(max_size=20), max_size=4))
@settings(max_examples=of_tier(40, 10), deadline=None)
def test_decode_says_what_the_reference_says(odd: list[bytes]) -> None:
    for neighbour in (TRADE, envelope(AGGREGATE)):
        payloads = [neighbour] * BLOCK
        payloads[50:50] = odd
        assert decode(payloads) == read(payloads)


def test_decode_says_what_the_reference_says_of_swapped_values() -> None:
    random = Random(7)
    values = (
        "null",
        "true",
        "1",
        "1.5",
        '"1.5"',
        '"x"',
        '"1e5"',
        "1e999",
        "NaN",
        "{}",
        "[]",
        '"\\udc00"',
        "-0",
        "7" * 25,
    )
    for _ in range(of_tier(80, 20)):
        events = [trade(**{random.choice("eEspqtaTmMx"): random.choice(values)}) for _ in range(random.choice((1, 3)))]
        wrap = random.random() < 0.5
        payloads = [envelope(TRADE) if wrap else TRADE] * BLOCK
        payloads[7:7] = [envelope(event) if wrap else event for event in events]
        assert decode(payloads) == read(payloads)


# Backwards


def test_encode_writes_as_binance_does() -> None:
    rows = [(1672515782136, "BNBBTC", 1e-08, 100.0, None, 12345, "sell"), (1, "A", 97012.5, 0.1, None, 1, "buy")]
    columns = zip(*rows, strict=True)
    arrays = [pa.array(list(column), kind) for column, kind in zip(columns, BINANCE_TRADES.types, strict=True)]
    trades = pa.record_batch(arrays, schema=BINANCE_TRADES)
    assert BARE.encode(trades)[0] == (
        b'{"e":"trade","E":1672515782136,"s":"BNBBTC","t":12345,"p":"0.00000001","q":"100.0",'
        b'"T":1672515782136,"m":true,"M":true}'
    )
    assert COMBINED.encode(trades)[1] == (
        b'{"stream":"a@aggTrade","data":{"e":"aggTrade","E":1,"s":"A","a":1,"p":"97012.5","q":"0.1",'
        b'"T":1,"m":false,"M":true}}'
    )
