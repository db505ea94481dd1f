"""A seeded source of frames: as Finnhub sends them, and as nobody should."""

import json
from collections.abc import Callable
from random import Random
from typing import Any

_SYMBOLS = ("AAPL", "BRK.B", "BINANCE:BTCUSDT", "OANDA:EUR_USD", "IC MARKETS:1", "BINANCE:NANOUSDT", "Ünï")
_OTHERS = (
    b'{"type":"ping"}',
    b'{"msg":"Subscribing to too many symbols","type":"error"}',
    b'{"msg":"Invalid symbol OANDA:EUR_USD","type":"error"}',
    b'{"msg":"Invalid symbol","type":"error"}',
    b'{"data":[{"category":"company","datetime":1679920200,"headline":"[A] {B","id":1}],"type":"news"}',
)

_NUMBERS = """
    0 -0 -0.0 5 1.0 -3 1.5 0.1e1 1e12 1E5 1e+5 1e-7 5e-324 1e-999 1e999 -1e999 1e99999999999999999999
    1680286537580.5 123456789012345678901 9223372036854775807 9223372036854775808 9223372036854775807.0
    -9223372036854775808 -9223372036854775809
    NaN Infinity -Infinity Inf -Inf nan inf 01 1. .5 +1 - 1e 0x1F 1_0
    """.split()  # noqa: SIM905 - as a list the formatter makes it a page
_STRINGS = r"""
    "" "A" "5" "trade" "ping" "error" "1,2" "," 'A' "é" "NaN" "Inf"
    "\u0000" "\ud800" "\udc00x" "\ud83d\ude00" "\ud83d\u0041" "\u0041" "\/\b\f\n\r\t" "\x41" "\u12" "\'"
    """.split()  # noqa: SIM905 - as a list the formatter makes it a page
_OTHER_VALUES = """
    null true false undefined [] [null] [1] [true] ["1"] ["1",null] ["1","12"] ["1",] [""] ["1,2"] [["1"]]
    {} {"a":1} {"s":"A","s":"B"} {"type":"trade","data":[]} [{}] [[]] [{},null,1] /**/1
    """.split()  # noqa: SIM905 - as a list the formatter makes it a page
_VALUES = (
    *_NUMBERS,
    *_STRINGS,
    *_OTHER_VALUES,
    *("1" * 310, "-" + "1" * 400, "7" * 5000, "0." + "3" * 2000),
    *("\n1", "\r1", "1 ", "\xa01", '"\t"', '"\x7f"', '"\x85"', '"Invalid symbol A"', '"' + "x" * 300 + '"'),
    *("[" * 60 + "]" * 60, '{"s":' * 60 + "1" + "}" * 60, "[" * 200 + "]" * 200),
)
_KEYS = ("c", "p", "s", "t", "v", "x", "type", "data", "msg", r"\u0073", r"s\u0000", r"\ud800", "", "S")
_DOCUMENTS = (
    *b"null true 5 -0 NaN [] {} { } [ {}{} }{ {}null{} null{} [{}] {type:1} {null:1}".split(),
    *(b"", b" ", b"\n", b"\x00", b"}\n{", b"{}\n{}", b"\xff", b"\xc3", b"\xed\xa0\x80", b'"', b'"trade"'),
    *b"""{"type" {"type":} {"type":"ping",} {,"type":"ping"} {"type":"ping"}} {{"type":"ping"}}""".split(),
    *b"""{"data":null,"type":"trade"} {"data":[],"type":"trade"} {"type":"trade"}""".split(),
    *b"""{"type":"trade","type":"ping"} {"type":null,"type":"ping"} {"type":"pong"} {"type":""}""".split(),
    *rb"""{"t\u0079pe":"ping"} {"type":"ping","t\u0079pe":"ping"}""".split(),
    b'{"data":[],"data":[],"type":"trade"}',
)
_JUNK = (b"\n", b"\r", b"\x00", b" ", b"\t", b"\x0b", b"\xff", b"\xc3\x28", b"\xef\xbb\xbf", b"\xe2\x80\xa8")
_MESSAGES = (
    *('"Invalid symbol IC MARKETS:1"', '"Invalid symbols"', '"Invalid symbol  "', '"invalid symbol A"'),
    *('"Subscribing to too many symbols."', '"Other"'),
)
_BLANKS = (b"", b" ", b"\n", b"\r\n", b"\t ", b"\xef\xbb\xbf", b"\x00", b"\xc2\xa0", b"\x1e")
_BETWEEN = (b"", b" ", b",", b"\r", b"\n", b"\n\n", b" null ", b" 5 ", b"\x00", b"\x1e")


def good_frame(random: Random) -> bytes:
    """A frame as Finnhub sends them: trades mostly."""
    if random.random() < 0.05:
        return random.choice(_OTHERS)
    return _trade_frame([_trade(random) for _ in range(min(10, int(random.expovariate(0.5)) + 1))])


def hostile_frames(random: Random) -> list[bytes]:
    """One frame that is wrong, or looks so; or two that belong together."""
    return random.choice(_MUTATIONS)(random)


def block(random: Random, frames: int, hostile: float) -> list[bytes]:
    """At least so many frames, of which this share is hostile."""
    payloads: list[bytes] = []
    while len(payloads) < frames:
        payloads += hostile_frames(random) if random.random() < hostile else [good_frame(random)]
    return payloads


def lone_block(random: Random) -> list[bytes]:
    """A block in which one thing is wrong, long enough to be read as one: nothing else sends it the strict way.

    Most of it are pings: they are quick to check.
    """
    before, after = ([good_frame(random) for _ in range(random.randrange(4))] for _ in range(2))
    return [*before, *hostile_frames(random), *after, *[_OTHERS[0]] * 64]


def _trade(random: Random) -> dict[str, str]:
    """The JSON of each value of a trade."""
    trade = {
        "c": random.choice(('["1","12"]', '["1"]', "null", "[]", '["1","24","12"]')),
        "p": random.choice((str(random.randrange(1, 60_000)), repr(round(random.uniform(0.01, 500), 4)), "1e2")),
        "s": json.dumps(random.choice(_SYMBOLS), ensure_ascii=False),
        "t": str(1_680_286_537_580 + random.randrange(10**9)),
        "v": random.choice(("0", "5", "0.00008", "1e-07", str(random.randrange(1000)))),
    }
    for optional in "cv":
        if random.random() < 0.05:
            del trade[optional]
    return trade


def _written(pairs: list[tuple[str, str]]) -> str:
    return "{" + ",".join(f'"{key}":{value}' for key, value in pairs) + "}"


def _trade_frame(trades: list[dict[str, str]]) -> bytes:
    items = ",".join(_written(list(trade.items())) for trade in trades)
    return f'{{"data":[{items}],"type":"trade"}}'.encode()


def _opened(random: Random) -> bytes:
    """A good frame that lacks its last brace."""
    return _trade_frame([_trade(random)])[:-1]


def _truncated(random: Random) -> list[bytes]:
    frame = good_frame(random)
    return [frame[: random.randrange(len(frame))]]


def _bytes_flipped(random: Random) -> list[bytes]:
    frame = bytearray(good_frame(random))
    for _ in range(random.randrange(1, 4)):
        frame[random.randrange(len(frame))] = random.choice((random.randrange(256), *b'{}[],:"\\\n0'))
    return [bytes(frame)]


def _bytes_moved(random: Random) -> list[bytes]:
    frame = good_frame(random)
    start, end = sorted(random.randrange(len(frame) + 1) for _ in range(2))
    return [random.choice((frame[:start] + frame[end:], frame[:end] + frame[start:end] + frame[end:]))]


def _bytes_inserted(random: Random) -> list[bytes]:
    frame = good_frame(random)
    at = random.randrange(len(frame) + 1)
    return [frame[:at] + random.choice(_JUNK) + frame[at:]]


def _surrounded(random: Random) -> list[bytes]:
    return [random.choice(_BLANKS) + good_frame(random) + random.choice(_BLANKS)]


def _values_swapped(random: Random) -> list[bytes]:
    trades = [_trade(random) for _ in range(random.randrange(1, 4))]
    for _ in range(random.randrange(1, 3)):
        random.choice(trades)[random.choice("cpstv")] = random.choice(_VALUES)
    return [_trade_frame(trades)]


def _keys_added(random: Random) -> list[bytes]:
    pairs = list(_trade(random).items())
    pairs.insert(random.randrange(len(pairs) + 1), (random.choice(_KEYS), random.choice(_VALUES)))
    random.shuffle(pairs)
    return [f'{{"type":"trade","data":[{_written(pairs)},{_written(list(_trade(random).items()))}]}}'.encode()]


def _keys_removed(random: Random) -> list[bytes]:
    trade = _trade(random)
    del trade[random.choice("pst")]
    return [_trade_frame([_trade(random), trade])]


def _frame_changed(random: Random) -> list[bytes]:
    items = random.choice((_written(list(_trade(random).items())), random.choice(_VALUES)))
    kind = random.choice(('"trade"', '"trade"', '"ping"', '"error"', '"news"', random.choice(_VALUES)))
    pairs = [("data", f"[{items}]"), ("type", kind)]
    pairs += [(random.choice(("x", *_KEYS)), random.choice(_VALUES)) for _ in range(random.randrange(3))]
    random.shuffle(pairs)
    return [_written(pairs[random.random() < 0.1 :]).encode()]


def _error_changed(random: Random) -> list[bytes]:
    message = random.choice((*_MESSAGES, *_VALUES))
    return [_written([("msg", message), ("type", '"error"')]).encode()]


def _documents(random: Random) -> list[bytes]:
    return [random.choice(_DOCUMENTS)]


def _two_documents(random: Random) -> list[bytes]:
    return [good_frame(random) + random.choice(_BETWEEN) + good_frame(random)]


def _halves(random: Random) -> list[bytes]:
    """One document in two frames, and often two in the next, so that their number is right again."""
    frame = good_frame(random)
    at = random.randrange(1, len(frame))
    return [frame[:at], frame[at:], *(_two_documents(random) if random.random() < 0.7 else [])]


def _nested_halves(random: Random) -> list[bytes]:
    """Halves that begin with `{` and end with `}` as a whole frame does."""
    trades = _opened(random)
    halves = random.choice(
        (
            (trades + b',"x":{}', b',"y":{}}'),
            (trades + b',"x":', good_frame(random) + b"}"),
            (trades + b',"x":[{}', b"]}"),
            (trades + b',"x":{', b"}}"),
            (trades, b"}"),
        )
    )
    return [*halves, *_two_documents(random)]


def _nested_deep(random: Random) -> list[bytes]:
    depth = 100_000 if random.random() < 0.01 else random.randrange(1, 200)
    opened, closed = random.choice((("[", "]"), ('{"type":', "}"), ('[{"x":', "}]")))
    nest = (opened * depth + random.choice(("", "1", "null")) + closed * depth).encode()
    before = random.choice((b"", b'{"type":"ping","x":', b'{"type":"trade","data":', _opened(random) + b',"x":'))
    return [before + nest + b"}" * bool(before)]


def _long(random: Random) -> list[bytes]:
    size = 1 << 20 if random.random() < 0.002 else random.randrange(1 << 12)
    text = json.dumps(random.choice(("A", "é", "[", '"', "\\", "😀")) * size, ensure_ascii=False)
    trade = _trade(random) | {random.choice(("s", "x")): text}
    return [random.choice((_trade_frame([trade]), _written([("msg", text), ("type", '"error"')]).encode()))]


_MUTATIONS: tuple[Callable[[Random], list[bytes]], ...] = (
    *(_truncated, _bytes_flipped, _bytes_moved, _bytes_inserted, _surrounded, _values_swapped, _keys_added),
    *(_keys_removed, _frame_changed, _error_changed, _documents, _two_documents, _halves, _nested_halves),
    *(_nested_deep, _long, _values_swapped, _keys_added, _frame_changed),
)


# Of venues that settings describe

MAPPED: dict[str, tuple[dict[str, Any], list[Any]]] = {
    "flat": ({}, [{"symbol": "A", "price": "1.5E-7", "volume": ".48", "timestamp": 1700000000123}, {"ping": 1}]),
    "in nanoseconds": ({"time_unit": "ns"}, [{"symbol": "A", "price": 1, "timestamp": "1700000000123999999"}]),
    "map": ({"prices_by_symbol": True}, [{"AAPL": 145.67, "GOOGL": 2725}, [{"A": 1}, {"symbol": "B", "price": 2}]]),
    "per item": (
        {"fields": {"symbol": "S", "price": "p", "volume": "s", "timestamp": "t"}, "match": {"T": "t"}},
        [
            [{"T": "t", "S": "A", "p": 1, "s": "+2", "t": 5}, {"T": "q", "S": "A", "p": None, "c": []}],
            {"T": "t", "S": "A", "p": 1},
            [{"T": "error"}],
        ],
    ),
    "arrays": (
        {
            "fields": {"symbol": "$.3", "price": "0", "volume": "1", "timestamp": "2"},
            "items": "1",
            "match": {"2": "trade"},
            "time_unit": "s",
        },
        [[7, [["354.1", "0.8", "1700000000.123456"], ["1", "2", "3"]], "trade", "XMR/USD"], [7, ["1"], "spread"]],
    ),
    "one array": ({"fields": {"symbol": "0", "price": "1", "volume": "2", "timestamp": "3"}}, [["A", 1, 2, 3]]),
    "beside": (
        {
            "fields": {"symbol": "$.symbol", "price": "p", "volume": "q", "timestamp": "$.d.ts"},
            "items": "d.data",
            "match": {"m": "trades", "d.n": "2"},
            "time_unit": "us",
        },
        [{"m": "trades", "symbol": "A", "d": {"n": 2, "ts": 1700000000123456, "data": [{"p": "-1", "q": 1}]}}],
    ),
    "lists in lists": (
        {
            "fields": {"symbol": "id", "price": "x.price", "volume": "x.size", "timestamp": "time"},
            "items": "events[].trades[]",
            "match": {"channel": "trades", "events[].type": "update"},
            "signed_prices": True,
            "time_unit": "iso",
            "time_zone": "Asia/Seoul",
        },
        [
            {
                "channel": "trades",
                "events": [
                    {"type": "snapshot", "trades": [{"id": "A", "x": {"price": 1}}]},
                    {
                        "type": "update",
                        "trades": [{"id": "A", "x": {"price": -0.5}, "time": "2026-11-20T14:30:00.99999Z"}],
                    },
                    {"type": "update", "trades": [{"id": "B", "x": {"price": 2}, "time": "2026-02-28T23:59:59Z"}]},
                ],
            },
            {
                "channel": "trades",
                "events": [
                    {"type": "snapshot", "trades": [{"id": "A", "x": {"price": "1"}}]},
                    {
                        "type": "update",
                        "trades": [
                            {"id": "A", "x": {"price": "-37.63", "size": 1}, "time": "2026-11-20 23:30:00.123456"},
                            {"id": "B", "x": {"price": 2}, "time": "2026-11-20T14:30:00.123999Z"},
                        ],
                    },
                ],
            },
        ],
    ),
    "columns and answers": (
        {
            "fields": {"symbol": "s", "price": "p", "volume": "q", "timestamp": "T"},
            "items": "data[]",
            "match": {"topic": "trades"},
            "columns": {
                "trade_id": {"from": "i", "type": "integer", "consecutive": "true"},
                "conditions": {"from": "c", "type": "codes"},
                "side": {"from": "m", "values": {"true": "sell", "false": "buy"}},
                "fee": {"from": "$.fee", "type": "number"},
            },
            "heartbeat": {"every": "20s", "send": "ping", "answer": "pong"},
            "login": {"send": "{}", "after": {"hi": "1"}, "accepted": {"in": "true"}, "refused": {"in": "false"}},
            "ignore": ["PONG", {"op": "*"}],
            "acknowledged": [{"event": "subscribe"}],
            "refused": [
                {"match": {"event": "error", "code": "*"}, "text": "say", "symbol": "arg.id", "symbol_in": "t[.](.+)"},
                {"match": {"error.code": "4"}, "symbol_in": '"(.+)" is'},
            ],
        },
        [
            {
                "topic": "trades",
                "fee": 0.5,
                "data": [
                    {"s": "A", "p": "1.48", "q": 1, "T": "1700000000123", "i": "17", "c": ["@", "I"], "m": True},
                    {"s": "B", "p": "5.", "q": 1.5, "T": "-7", "i": None, "c": [], "m": False},
                ],
            },
            {
                "topic": "trades",
                "fee": ".5",
                "data": [
                    {"s": "A", "p": ".48", "q": 1, "T": "1700000000123", "i": "17", "c": [1, "12"], "m": True},
                    {"s": "A", "p": 1, "q": 1, "T": 1700000000123, "i": 18.0, "c": [], "m": "x"},
                ],
            },
            {"event": "subscribe", "topic": "trades"},
            {"event": "error", "code": 60012, "say": "no", "arg": {"id": "t.BTC"}},
            [{"op": 1}, {"error": {"code": 4}, "msg": '"BTC" is unknown'}],
            {"error": {"code": 4}, "msg": '"BTC" is unknown'},
            {"op": "pong"},
            {"hi": 1},
            [{"hi": 2}, {"in": True}],
            {"in": False, "reason": "no"},
        ],
    ),
    "answers without match": (
        {"ignore": [{"type": "hello"}], "refused": [{"match": {"no": "*"}, "symbol": "symbol"}]},
        [
            {"type": "hello", "symbol": "A", "price": 1},
            {"type": "bye", "symbol": "A", "price": 1},
            [{"symbol": "A", "price": 1}, {"no": 1, "symbol": "B"}],
        ],
    ),
}
"""Settings of the json feed, and messages that fit them."""


def mapped_block(random: Random, messages: list[Any]) -> list[bytes]:
    """Such messages, most of them changed in a place or two; or enough for columns: whole ones with a changed one among
    them, or the same two or three over and over.
    """
    form = random.random()
    if form < 0.5:
        return [_mutated_message(random, random.choice(messages)) for _ in range(random.choice((1, 5, 30)))]
    count = random.choice((64, 65, 100))
    if form < 0.75:
        payloads = [json.dumps(random.choice(messages[:2])).encode()] * count
        for _ in range(random.choice((0, 1, 1, 2))):
            payloads[random.randrange(count)] = _mutated_message(random, random.choice(messages))
        return payloads
    return random.choices(
        [_mutated_message(random, random.choice(messages)) for _ in range(random.choice((1, 2, 3)))], k=count
    )


def _mutated_message(random: Random, message: Any) -> bytes:
    if random.random() < 0.03:
        return random.choice(_DOCUMENTS)
    share = random.choice((0.0, 0.03, 0.2))
    return _written_with_faults(random, message, share).encode(errors="surrogatepass")


def _written_with_faults(random: Random, value: Any, share: float) -> str:
    if random.random() < share:
        return random.choice(_ODD)(random, _written_with_faults(random, value, 0.0))
    if isinstance(value, dict):
        pairs = [f"{json.dumps(key)}:{_written_with_faults(random, at, share)}" for key, at in value.items()]
        if random.random() < share:
            pairs.append(random.choice(pairs))
        if random.random() < share:
            pairs.pop(random.randrange(len(pairs)))
        return "{" + ",".join(pairs) + "}"
    if isinstance(value, list):
        return "[" + ",".join(_written_with_faults(random, at, share) for at in value) + "]"
    return json.dumps(value)


_ODD: tuple[Callable[[Random, str], str], ...] = (
    lambda random, _: random.choice(_VALUES),
    lambda _, text: f"[{text}]",
    lambda _, text: f"[{text},{text}]",
    lambda _, text: f"[[],{text}]",
    lambda _, text: f'{{"data":{text}}}',
    lambda _, text: json.dumps(text),
    lambda random, _: json.dumps(random.choice(_NUMBERS)),
    lambda _, __: '"1700000000123.99999999999999999999999999999999"',
    lambda random, _: random.choice(('"ping"', '"error"', '"2026-11-20"', '"2026-11-20T14:30:00+09:00"', '"trade"')),
)
