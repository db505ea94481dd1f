"""Finnhub's language, forwards and backwards; every decode here is held to the reference decoder, too."""

import json
from random import Random
from urllib.parse import parse_qs, urlsplit

import pyarrow as pa
import pytest
from frame_mutations import block, good_frame, lone_block
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_decoder import Said, Trade, read, said
from requirements import of_tier

from ingestor.config.feeds import FinnhubSettings
from ingestor.feeds import Frames, Notice, Reject, make_feed
from ingestor.feeds.finnhub import Finnhub, read_usual
from ingestor.schema import VENUE_TRADES

FEED = Finnhub("wss://ws.finnhub.io", "c0ffee")
PING = b'{"type":"ping"}'
TRADE = b'{"data":[{"c":["1"],"p":1.5,"s":"A","t":1680286537580,"v":5}],"type":"trade"}'
BLOCK = 100
"""Frames enough for the columnar way."""


def decode(payloads: list[bytes]) -> Said:
    return said(FEED.decode(Frames(payloads, [0] * len(payloads))))


def decode_both_ways(payload: bytes) -> Said:
    """What one frame says by itself, having checked that it says the same amid a block."""
    alone = decode([payload])
    amid = decode([*[PING] * BLOCK, payload, *[TRADE] * BLOCK])
    assert alone == read([payload])
    assert amid == read([*[PING] * BLOCK, payload, *[TRADE] * BLOCK])
    return alone


def with_field(value: bytes) -> bytes:
    """A good trade frame, but for the value of a field that nobody knows."""
    return b'{"x":%s,%s' % (value, TRADE[1:])


def trade_frame(**values: str) -> bytes:
    """One trade with some of its values, given as JSON, other than usual."""
    usual = {"c": '["1"]', "p": "1.5", "s": '"A"', "t": "1680286537580", "v": "5"}
    items = ",".join(f'"{key}":{value}' for key, value in (usual | values).items())
    return f'{{"data":[{{{items}}}],"type":"trade"}}'.encode()


def batch(*rows: tuple[int, str, float, float | None, str | None]) -> pa.RecordBatch:
    columns = zip(*rows, strict=True) if rows else [()] * len(VENUE_TRADES)
    arrays = [pa.array(list(column), kind) for column, kind in zip(columns, VENUE_TRADES.types, strict=True)]
    return pa.record_batch(arrays, schema=VENUE_TRADES)


# Connecting and asking


@pytest.mark.parametrize(
    ("base", "path"),
    [
        ("wss://ws.finnhub.io", ""),
        ("ws://127.0.0.1:80/", "/"),
        ("wss://proxy/finnhub?region=eu&x=1", "/finnhub"),
    ],
)
def test_url_keeps_what_was_there_and_adds_the_key(base: str, path: str) -> None:
    parts = urlsplit(Finnhub(base, "a b&c=d/é").url())
    before = urlsplit(base)
    assert (parts.scheme, parts.netloc, parts.path) == (before.scheme, before.netloc, path)
    assert parse_qs(parts.query) == parse_qs(before.query) | {"token": ["a b&c=d/é"]}


def test_url_is_written_as_finnhub_documents_it() -> None:
    assert FEED.url() == "wss://ws.finnhub.io?token=c0ffee"


@pytest.mark.parametrize("base", ["wss://ws.finnhub.io", "wss://ws.finnhub.io?token=c0ffee"])
def test_repr_hides_the_key(base: str) -> None:
    assert repr(Finnhub(base, "c0ffee")) == "Finnhub('wss://ws.finnhub.io')"


def test_requests_name_one_symbol_a_message() -> None:
    assert FEED.subscribe(["AAPL", "IC MARKETS:1"]) == [
        '{"type":"subscribe","symbol":"AAPL"}',
        '{"type":"subscribe","symbol":"IC MARKETS:1"}',
    ]
    assert FEED.unsubscribe(["BRK.B"]) == ['{"type":"unsubscribe","symbol":"BRK.B"}']


def test_make_feed_knows_it() -> None:
    feed = make_feed(FinnhubSettings(), "c0ffee")
    assert feed.url() == FEED.url()
    assert (feed.name, feed.schema) == ("finnhub", VENUE_TRADES)


# Frames as Finnhub sends them

SAMPLES: list[tuple[bytes, list[Trade], list[Notice]]] = [
    (
        (
            b'{"data":[{"c":["1","12"],"p":164.0601,"s":"AAPL","t":1680286537580,"v":5},'
            b'{"c":["1","8"],"p":164.06,"s":"AAPL","t":1680286538064,"v":142}],"type":"trade"}'
        ),
        [
            (0, 1680286537580, "AAPL", "164.0601", "5.0", "1,12"),
            (0, 1680286538064, "AAPL", "164.06", "142.0", "1,8"),
        ],
        [],
    ),
    (
        (
            b'{"data":[{"c":["1","24","12"],"p":171.465,"s":"AAPL","t":1696250801554,"v":1},'
            b'{"c":null,"p":1731.1,"s":"BINANCE:ETHUSDT","t":1696250801782,"v":0.014}],"type":"trade"}'
        ),
        [
            (0, 1696250801554, "AAPL", "171.465", "1.0", "1,24,12"),
            (0, 1696250801782, "BINANCE:ETHUSDT", "1731.1", "0.014", None),
        ],
        [],
    ),
    (
        b'{"data":[{"p":284.45,"s":"AAPL","t":1586876152227,"v":300}],"type":"trade"}',
        [(0, 1586876152227, "AAPL", "284.45", "300.0", None)],
        [],
    ),
    (b'{"data":[],"type":"trade"}', [], []),
    (b'{"type":"ping"}', [], [Notice(0, "ping", "")]),
    (
        b'{"msg":"Subscribing to too many symbols","type":"error"}',
        [],
        [Notice(0, "error", "Subscribing to too many symbols", refuses=True)],
    ),
    (
        b'{"msg":"Invalid symbol OANDA:EUR_USD","type":"error"}',
        [],
        [Notice(0, "error", "Invalid symbol OANDA:EUR_USD", "OANDA:EUR_USD", refuses=True)],
    ),
    (
        b'{"msg":"Invalid symbol IC MARKETS:1","type":"error"}',
        [],
        [Notice(0, "error", "Invalid symbol IC MARKETS:1", "IC MARKETS:1", refuses=True)],
    ),
    (b'{"msg":"Invalid symbol","type":"error"}', [], [Notice(0, "error", "Invalid symbol", refuses=True)]),
    (b'{"msg":"Please slow down","type":"error"}', [], [Notice(0, "error", "Please slow down")]),
    (b'{"type":"error"}', [], [Notice(0, "error", "")]),
    (b'{"msg":"a \\ud800","type":"error"}', [], [Notice(0, "error", "a ?")]),
    (
        '{"data":[{"category":"company","datetime":1679920200,"headline":"…","id":119440189,"image":"…",'
        '"related":"CVVUF","source":"…","summary":"Inf","url":"…"}],"type":"news"}'.encode(),
        [],
        [Notice(0, "news", "")],
    ),
    (b'{"data":5,"type":"quote"}', [], [Notice(0, "unknown", "quote")]),
]


@pytest.mark.parametrize(("payload", "trades", "notices"), SAMPLES)
def test_decode_sample(payload: bytes, trades: list[Trade], notices: list[Notice]) -> None:
    assert decode_both_ways(payload) == Said(trades, [], notices)


def test_decode_cuts_what_a_notice_repeats() -> None:
    payload = b'{"type":"error","msg":"%s"}' % (b"x" * 1000)
    assert decode_both_ways(payload).notices == [Notice(0, "error", "x" * 200)]


@pytest.mark.parametrize(
    ("key", "written", "read_as"),
    [
        ("p", "26626", "26626.0"),
        ("p", "1e-7", "1e-07"),
        ("p", "1E+2", "100.0"),
        ("p", "123456789012345678901", "1.2345678901234568e+20"),
        ("p", "-0", "-0.0"),
        ("p", "5e-324", "5e-324"),
        ("p", "1e-999", "0.0"),
        ("v", "0", "0.0"),
        ("v", "null", None),
        ("t", "1680286537580.0", 1680286537580),
        ("t", "1e12", 10**12),
        ("t", "-0", 0),
        ("t", "9223372036854775807", 2**63 - 1),
        ("t", "-9223372036854775808", -(2**63)),
        ("s", r'"\u0041\/\ud83d\ude00"', "A/😀"),
        ("s", r'"A\u0000"', "A\x00"),
        ("s", '""', ""),
        ("c", "null", None),
        ("c", "[]", ""),
        ("c", '["1","12"]', "1,12"),
    ],
)
def test_decode_value(key: str, written: str, read_as: object) -> None:
    (trade,) = decode_both_ways(trade_frame(**{key: written})).trades
    assert trade["tspvc".index(key) + 1] == read_as


# Frames and trades to reject


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "not_json"),
        (b" ", "not_json"),
        (b'{"type":"ping"', "not_json"),
        (b'{"type":"ping"}{"type":"ping"}', "not_json"),
        (b'{"type":"ping"}\n{"type":"ping"}', "not_json"),
        (b'\xef\xbb\xbf{"type":"ping"}', "not_json"),
        (b'{"type":"ping","x":NaN}', "not_json"),
        (with_field(b"NaN"), "not_json"),
        (with_field(b"-Infinity"), "not_json"),
        (with_field(b"Inf"), "not_json"),
        (with_field(b'"\t"'), "not_json"),
        (with_field(b"01"), "not_json"),
        (b'{"type":"p\xffing"}', "not_utf8"),
        (with_field(b'"\xff"'), "not_utf8"),
        (with_field(b'"\xed\xa0\x80"'), "not_utf8"),
        (with_field(b"[" * 100_000 + b"]" * 100_000), "too_deep"),
        (b"null", "not_an_object"),
        (b"5", "not_an_object"),
        (b'"trade"', "not_an_object"),
        (b"[" + TRADE + b"]", "not_an_object"),
        (b"{}", "no_type"),
        (b'{"type":null}', "no_type"),
        (b'{"type":1}', "no_type"),
        (b'{"type":"\\ud800"}', "no_type"),
        (b'{"type":"ping","type":"trade"}', "repeated_key"),
        (b'{"type":null,"t\\u0079pe":"ping"}', "repeated_key"),
        (b'{"data":[],"type":"trade","data":[]}', "repeated_key"),
        (b'{"msg":"a","msg":"b","type":"error"}', "repeated_key"),
        (b'{"type":"trade"}', "no_data"),
        (b'{"type":"trade","data":null}', "no_data"),
        (b'{"type":"trade","data":{}}', "no_data"),
    ],
)
def test_decode_rejects_frame(payload: bytes, reason: str) -> None:
    assert decode_both_ways(payload) == Said([], [Reject(0, None, reason)], [])


@pytest.mark.parametrize(
    ("key", "written", "reason"),
    [
        *[("t", text, "bad_time") for text in ("null", "true", '"1"', "1.5", "1e99", "1e999", "9223372036854775808")],
        *[("s", text, "bad_symbol") for text in ("null", "5", "true", '["A"]', r'"\ud800"', r'"\ud83d\u0041"')],
        *[("p", text, "bad_price") for text in ("null", "true", '"1"', "{}", "1e999", "-1e999", "1" * 400, "7" * 5000)],
        *[("v", text, "bad_volume") for text in ("false", '"1"', "[]", "1e999", "1" * 400)],
        *[("c", text, "bad_conditions") for text in ('"1"', "{}", "[1]", "[null]", '[""]', '["1,2"]', r'["\udc00"]')],
    ],
)
def test_decode_rejects_trade_for_its_value(key: str, written: str, reason: str) -> None:
    assert decode_both_ways(trade_frame(**{key: written})) == Said([], [Reject(0, 0, reason)], [])


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"null", "not_an_object"),
        (b"[]", "not_an_object"),
        (b'{"p":1,"s":"A"}', "bad_time"),
        (b'{"p":1,"t":1}', "bad_symbol"),
        (b'{"s":"A","t":1}', "bad_price"),
        *[(b'{"c":null,"p":1,"s":"A","t":1,"v":1,"%c":null}' % key, "repeated_key") for key in b"cpstv"],
        (b'{"p":1,"s":"A","t":1,"c":null,"\\u0063":null}', "repeated_key"),
    ],
)
def test_decode_keeps_the_other_trades_of_a_frame(bad: bytes, reason: str) -> None:
    good = b'{"p":1.5,"s":"A","t":7}'
    trade: Trade = (0, 7, "A", "1.5", None, None)
    payload = b'{"type":"trade","data":[' + good + b"," + bad + b"," + good + b"]}"
    assert decode_both_ways(payload) == Said([trade, trade], [Reject(0, 1, reason)], [])


@pytest.mark.parametrize("extra", [b'"x":1,"x":2', b'"x":{"p":1,"p":2}', b'"S":null', b'"x":"\\ud800"', b'"x":1e999'])
def test_decode_ignores_fields_it_does_not_know(extra: bytes) -> None:
    payload = b'{"data":[{"p":1.5,"s":"A","t":7,%s}],%s,"type":"trade"}' % (extra, extra)
    assert decode_both_ways(payload) == Said([(0, 7, "A", "1.5", None, None)], [], [])


def test_decode_ignores_a_field_that_holds_a_long_number() -> None:
    assert decode_both_ways(b'{"type":"ping","x":%s}' % (b"7" * 5000)).notices == [Notice(0, "ping", "")]


def test_decode_takes_blanks_around_a_frame() -> None:
    assert decode_both_ways(b" \r\n" + PING + b"\t\n").notices == [Notice(0, "ping", "")]


# Blocks


def test_decode_nothing() -> None:
    decoded = FEED.decode(Frames([], []))
    assert (decoded.trades.schema, decoded.trades.num_rows) == (VENUE_TRADES, 0)
    assert (decoded.frame_of.type, len(decoded.frame_of)) == (pa.int64(), 0)
    assert (decoded.rejects, decoded.notices) == ([], [])


@pytest.mark.parametrize("frames", [1, 63, 64, 65, 511, of_tier(20_000, 3000)])
def test_decode_counts_frames_from_the_start_of_the_block(frames: int) -> None:
    random = Random(frames)
    payloads = [good_frame(random) for _ in range(frames)]
    decoded = FEED.decode(Frames(payloads, [0] * frames))
    assert decoded.trades.schema == VENUE_TRADES
    assert decoded.frame_of.type == pa.int64()
    assert said(decoded) == read(payloads)


@pytest.mark.parametrize("where", [0, 1, 499, 999])
@pytest.mark.parametrize(
    "bad",
    [
        [b"null"],
        [b'{"data":[{"p":1,"s":"A","t":1}]', b',"type":"trade"}', TRADE + TRADE],
        [b'{"data":[{"p":1,"s":"A","t":1}],"x":{}', b',"type":"trade"}', TRADE + TRADE],
        [b'{"data":[{"p":1,"s":"A","t":1}],"type":"trade","x":', PING + b"}", TRADE + TRADE],
        [b'{"data":[{"p":1,"s":"A","t":1}],"x":{}', b",", b'"type":"trade"}', TRADE + TRADE + b" null"],
        [TRADE + b"\n" + TRADE, b'{"data":[],"type":"trade","x":[{}', b"]}"],
        [TRADE + b"\r" + TRADE, b'{"data":[],"type":"trade","x":[', b"{}]}"],
        [TRADE + b" null " + TRADE],
        [b'{"data":[],"type":"trade","x":"\xc3', b'\xa4"}'],
    ],
)
def test_decode_never_joins_frames(bad: list[bytes], where: int) -> None:
    payloads = [TRADE] * 1000
    payloads[where:where] = bad
    heard = decode(payloads)
    assert heard == read(payloads)
    assert len(heard.trades) == 1000
    assert [reject.frame for reject in heard.rejects] == list(range(where, where + len(bad)))


def test_decode_survives_more_bad_frames_than_good() -> None:
    payloads = [TRADE if index % 3 else trade_frame(c="[1]") for index in range(5000)]
    assert decode(payloads) == read(payloads)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("cpstvx"), inner, max_size=6),
    max_leaves=12,
)
"""NaN and Infinity among them: Python writes them as no JSON allows."""
MESSAGES = st.fixed_dictionaries(
    {"type": st.sampled_from(["trade", "trade", "ping", "error", "news"]) | JSON},
    optional={"data": st.lists(JSON, max_size=3) | JSON, "msg": JSON, "x": JSON},
)


@given(
    st.lists(MESSAGES.map(lambda message: json.dumps(message).encode()) | st.binary(max_size=20), max_size=4),
    st.integers(0, BLOCK),
)
@settings(max_examples=of_tier(60, 15), deadline=None)
def test_decode_says_what_the_reference_says(odd: list[bytes], where: int) -> None:
    payloads = [TRADE] * BLOCK
    payloads[where:where] = odd
    assert decode(payloads) == read(payloads)
    assert decode(odd) == read(odd)


@pytest.mark.parametrize(("hostile", "frames"), [(0.01, 20_000), (0.5, 60_000), (1.0, 70_000)])
def test_decode_says_what_the_reference_says_of_mutated_frames(hostile: float, frames: int) -> None:
    """100,000 mutations in all (in the quick tier a fiftieth), amid good frames."""
    random = Random(hostile)
    frames = of_tier(frames, frames // 50)
    while frames > 0:
        payloads = block(random, random.choice((1, 30, 64, 200, 700)), hostile)
        frames -= len(payloads)
        assert decode(payloads) == read(payloads)


def test_decode_says_what_the_reference_says_of_a_lone_mutated_frame() -> None:
    random = Random(1)
    for _ in range(of_tier(500, 100)):
        payloads = lone_block(random)
        assert decode(payloads) == read(payloads)


# The usual frame, which is read with fewer calls


USUAL = (
    b'{"data":[{"c":["1","12"],"p":164,"s":"BINANCE:X","t":1680286537580,"v":0.5},'
    b'{"c":[],"p":1,"s":"","t":2,"v":0}],"type":"trade"}'
)


@pytest.mark.parametrize(
    "payload", [USUAL, TRADE, SAMPLES[0][0], b'{"data":[],"type":"trade"}', b'{"type": "trade", "data": []}']
)
def test_a_usual_frame_is_read_as_such(payload: bytes) -> None:
    rows = read_usual(payload)
    assert rows is not None
    assert [(0, at, symbol, repr(price), repr(volume), codes) for at, symbol, price, volume, codes in rows] == decode(
        [payload]
    ).trades


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"p":164', b'"p":164,"p":164'),
        (b'"p":164', b'"p":[[]],"p":164'),
        (b'"type":"trade"', b'"type":"trade","type":"trade"'),
        (b'"p":164', b'"p":164,"x":1'),
        (b'"p":164', b'"p":-0'),
        (b'"p":164', b'"p":NaN'),
        (b'"p":164', b'"p":1e999'),
        (b'"p":164', b'"p":true'),
        (b'"p":164', b'"p":' + b"1" * 400),
        (b'"p":164', b'"p":' + b"1" * 5000),
        (b',"v":0.5', b""),
        (b"0.5", b"null"),
        (b"1680286537580", b"1.0"),
        (b"1680286537580", b"9223372036854775808"),
        (b'"BINANCE:X"', b'"BINANCE\\u003aX"'),
        (b'"BINANCE:X"', '"É"'.encode()),
        (b'"BINANCE:X"', b"5"),
        (b'["1","12"]', b"null"),
        (b'["1","12"]', b'"12"'),
        (b'["1","12"]', b'{"1":2}'),
        (b'["1","12"]', b'["1,12"]'),
        (b'["1","12"]', b'["1",""]'),
        (b'["1","12"]', b'["1",2]'),
        (b"trade", b"ping"),
        (USUAL, b" " + USUAL),
        (USUAL, USUAL + b" "),
        (USUAL, USUAL[:-1]),
        (USUAL, b"[%s]" % USUAL),
        (USUAL, b"[" * 100_000),
        (USUAL, b""),
        (USUAL, b"5"),
    ],
)
def test_what_is_unusual_about_a_frame_is_left_to_the_strict_reader(old: bytes, new: bytes) -> None:
    assert USUAL.count(old) == 1
    assert read_usual(USUAL.replace(old, new)) is None


# Backwards


def test_encode_writes_as_finnhub_does() -> None:
    trades = batch(
        (1680286537580, "AAPL", 164.0601, 5.0, "1,12"),
        (1696250801782, "BINANCE:ETHUSDT", 1731.0, 0.014, None),
        (1696250801783, "OANDA:EUR_USD", 1.05, 0.0, ""),
        (1696250801784, "A", 2.0, None, "1"),
    )
    assert FEED.encode(trades) == [
        (
            b'{"data":[{"c":["1","12"],"p":164.0601,"s":"AAPL","t":1680286537580,"v":5},'
            b'{"c":null,"p":1731,"s":"BINANCE:ETHUSDT","t":1696250801782,"v":0.014},'
            b'{"c":[],"p":1.05,"s":"OANDA:EUR_USD","t":1696250801783,"v":0},'
            b'{"c":["1"],"p":2,"s":"A","t":1696250801784}],"type":"trade"}'
        )
    ]


def test_encode_nothing() -> None:
    assert FEED.encode(batch()) == []


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
ROWS = st.tuples(
    st.integers(-(2**63), 2**63 - 1),
    TEXT,
    st.floats(allow_nan=False, allow_infinity=False),
    st.none() | st.floats(allow_nan=False, allow_infinity=False),
    st.none() | st.lists(TEXT.filter(lambda code: code != "" and "," not in code), max_size=3).map(",".join),
)


@given(st.lists(ROWS, min_size=1, max_size=5))
@settings(deadline=None)
def test_encode_reads_back_both_ways(rows: list[tuple[int, str, float, float | None, str | None]]) -> None:
    trades = batch(*rows)
    (payload,) = FEED.encode(trades)
    assert FEED.decode(Frames([payload], [0])).trades == trades
    many = FEED.decode(Frames([payload] * BLOCK, [0] * BLOCK))
    assert many.trades == pa.record_batch(
        [pa.concat_arrays([column] * BLOCK) for column in trades.columns], schema=VENUE_TRADES
    )
    assert many.frame_of.to_pylist() == [frame for frame in range(BLOCK) for _ in rows]
