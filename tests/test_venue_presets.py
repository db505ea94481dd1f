"""The settings for each venue (config/venues): they read what the venue writes, and record its simulator.

The samples are the venues' own, from their documentation or captured; where a text was long it is shortened.
"""

import json
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from recorders import KEY, Rig, eventually, make_rig, recorded_rows, running
from sessions import SOON
from simulated_venues import read_truth, running_venue

from ingestor.config import Settings, load_settings
from ingestor.config.feeds import BINANCE_SYMBOLS, BinanceSettings, JsonFields, JsonSettings
from ingestor.feeds import Frames, Notice, make_feed
from ingestor.feeds.json_map import JsonMap, read_symbols
from ingestor.simulator.market import MarketSettings
from ingestor.simulator.venue import VenueSettings

FOLDER = Path(__file__).parents[1] / "config/venues"
VENUES = sorted(path.stem for path in FOLDER.glob("*.yaml"))


def settings_of(venue: str) -> Settings:
    return load_settings(FOLDER / f"{venue}.yaml")


def feed_of(venue: str, url: str | None = None, **changes: Any) -> JsonMap:
    feed = settings_of(venue).feed
    assert isinstance(feed, JsonSettings)
    return JsonMap(feed.model_copy(update=changes | ({"url": url} if url else {})), KEY, "s3cret")


def decode(venue: str, text: str) -> tuple[list[dict[str, Any]], list[Notice]]:
    decoded = feed_of(venue).decode(Frames([text.encode()], [1_700_000_000_000_000]))
    assert decoded.rejects == []
    rows = decoded.trades.to_pylist()
    times = decoded.trades["timestamp"].cast(pa.int64()).to_pylist()
    return [{**row, "timestamp": time} for row, time in zip(rows, times, strict=True)], decoded.notices


def row(time_ms: int, symbol: str, price: float, volume: float, **own: Any) -> dict[str, Any]:
    return {"timestamp": time_ms, "symbol": symbol, "price": price, "volume": volume, "conditions": None, **own}


ID_1, ID_2 = (
    "114122071509644379678018727908709560226618148003371446110114509806601493071694",
    "50004092451487013519117521377876897159157506656261391593572775546589316505011",
)
HASH_1 = "0xdde3d6b67214c97cb88704156eee8e016e010eb52dcf2a855bdaea517a5b45a9"
HASH_2 = "0x40d169aa50ad8a32b44a04156eee0201d8002e5c6456b7c1ae175e381f73f9dd"
SAMPLES: list[tuple[str, str, list[dict[str, Any]]]] = [
    (
        "binance-futures",
        (
            '{"e":"aggTrade","E":123456789,"s":"BTCUSDT","a":5933014,"p":"0.001","q":"100","nq":"100","f":100,"l":105,'
            '"T":123456785,"m":true}'
        ),
        [row(123456785, "BTCUSDT", 0.001, 100.0, trade_id=5933014, side="sell", first_id=100, last_id=105)],
    ),
    (
        "binance-futures",
        (
            '{"e":"aggTrade","E":1626992744262,"a":87353230,"s":"SUSHIUSDT","p":"7.6120","q":"297","f":126902924,'
            '"l":126902927,"T":1626992744108,"m":false,"st":1}'
        ),
        [
            row(
                1626992744108,
                "SUSHIUSDT",
                7.612,
                297.0,
                trade_id=87353230,
                side="buy",
                first_id=126902924,
                last_id=126902927,
            )
        ],
    ),
    (
        "coinbase",
        (
            '{"channel":"market_trades","client_id":"","timestamp":"2025-12-31T06:00:12.516946132Z","sequence_num":1851,'
            '"events":[{"type":"update","trades":[{"product_id":"BTC-USD","trade_id":"929248657","price":"88355.59",'
            '"size":"0.00136573","time":"2025-12-31T06:00:12.44524Z","side":"SELL"}]}]}'
        ),
        [row(1767160812445, "BTC-USD", 88355.59, 0.00136573, trade_id=929248657, side="buy")],
    ),
    (
        "coinbase",
        (
            '{"channel":"market_trades","client_id":"","timestamp":"2026-04-07T14:30:02.789012Z","sequence_num":5,"events":['
            '{"type":"update","trades":[{"trade_id":"995098700","product_id":"BTC-USD","price":"68900.50","size":"0.00150000",'
            '"side":"BUY","time":"2026-04-07T14:30:02.789012Z"},{"trade_id":"995098701","product_id":"BTC-USD",'
            '"price":"68900.00","size":"0.05000000","side":"SELL","time":"2026-04-07T14:30:02.800000Z"}]}]}'
        ),
        [
            row(1775572202789, "BTC-USD", 68900.5, 0.0015, trade_id=995098700, side="sell"),
            row(1775572202800, "BTC-USD", 68900.0, 0.05, trade_id=995098701, side="buy"),
        ],
    ),
    (
        "kraken",
        (
            '{"channel":"trade","type":"update","data":[{"symbol":"BTC/USD","side":"buy","price":105944.20,"qty":0.00027625,'
            '"ord_type":"limit","trade_id":10218208,"timestamp":"2023-10-06T17:35:55.440295Z"},{"symbol":"BTC/USD",'
            '"side":"sell","price":105910.50,"qty":0.00012460,"ord_type":"market","trade_id":10218209,'
            '"timestamp":"2023-10-06T17:35:56.123456Z"}]}'
        ),
        [
            row(1696613755440, "BTC/USD", 105944.2, 0.00027625, trade_id=10218208, side="buy", order_type="limit"),
            row(1696613756123, "BTC/USD", 105910.5, 0.0001246, trade_id=10218209, side="sell", order_type="market"),
        ],
    ),
    (
        "bybit",
        (
            '{"topic":"publicTrade.BTCUSDT","type":"snapshot","ts":1672304486868,"data":[{"T":1672304486865,"s":"BTCUSDT",'
            '"S":"Buy","v":"0.001","p":"16578.50","L":"PlusTick","i":"20f43950-d8dd-5b31-9112-a178eb6023af","BT":false,'
            '"seq":1783284617}]}'
        ),
        [row(1672304486865, "BTCUSDT", 16578.5, 0.001, trade_id="20f43950-d8dd-5b31-9112-a178eb6023af", side="buy")],
    ),
    (
        "bybit",
        (
            '{"topic":"publicTrade.BTCUSDT","ts":1680652847526,"type":"snapshot","data":[{"i":"2290000000050703789",'
            '"T":1680652847524,"p":"28165.38","v":"0.041732","S":"Sell","s":"BTCUSDT","BT":false},'
            '{"i":"2290000000050703790","T":1680652847524,"p":"28165.38","v":"0.008513","S":"Sell","s":"BTCUSDT"}]}'
        ),
        [
            row(1680652847524, "BTCUSDT", 28165.38, 0.041732, trade_id="2290000000050703789", side="sell"),
            row(1680652847524, "BTCUSDT", 28165.38, 0.008513, trade_id="2290000000050703790", side="sell"),
        ],
    ),
    (
        "okx",
        (
            '{"arg":{"channel":"trades-all","instId":"BTC-USDT"},"data":[{"instId":"BTC-USDT","tradeId":"130639474",'
            '"px":"42219.9","sz":"0.12060306","side":"buy","source":"0","ts":"1630048897897"}]}'
        ),
        [row(1630048897897, "BTC-USDT", 42219.9, 0.12060306, trade_id=130639474, side="buy")],
    ),
    (
        "hyperliquid",
        (
            '{"channel":"trades","data":[{"coin":"FXS","side":"A","px":"1.9008","sz":"10.5","time":1730160015113,'
            f'"hash":"{HASH_1}","tid":611279506717453}}]}}'
        ),
        [row(1730160015113, "FXS", 1.9008, 10.5, trade_id=611279506717453, side="sell", hash=HASH_1)],
    ),
    (
        "hyperliquid",
        (
            '{"channel":"trades","data":[{"coin":"BTC","side":"B","px":"69997.0","sz":"0.38111","time":1730160006192,'
            f'"hash":"{HASH_2}","tid":1016375172059570,"users":["0xa","0xb"]}},{{"coin":"BTC","side":"B","px":"69997.0",'
            f'"sz":"0.33458","time":1730160006192,"hash":"{HASH_2}","tid":479312521152049}}]}}'
        ),
        [
            row(1730160006192, "BTC", 69997.0, 0.38111, trade_id=1016375172059570, side="buy", hash=HASH_2),
            row(1730160006192, "BTC", 69997.0, 0.33458, trade_id=479312521152049, side="buy", hash=HASH_2),
        ],
    ),
    (
        "massive",
        (
            '[{"ev":"status","status":"success","message":"subscribed"},{"ev":"T","sym":"MSFT","x":4,"i":"12345",'
            '"z":3,"p":114.125,"s":100,"c":[0,12],"t":1536036818784,"q":3681328}]'
        ),
        [
            row(1536036818784, "MSFT", 114.125, 100.0, id="12345", exchange=4, tape=3, number=3681328)
            | {"conditions": "0,12"}
        ],
    ),
    (
        "alpaca",
        (
            '[{"T":"q","S":"FAKEPACA","bx":"O","bp":133.85,"bs":4,"ax":"R","ap":135.77,"as":5,"c":["R"],"z":"A",'
            '"t":"2024-07-24T07:56:53.639713735Z"},{"T":"t","i":96921,"S":"AAPL","x":"D","p":126.55,"s":1,'
            '"t":"2021-02-22T15:51:44.208Z","c":["@","I"],"z":"C"}]'
        ),
        [row(1614009104208, "AAPL", 126.55, 1.0, id=96921, exchange="D", tape="C") | {"conditions": "@,I"}],
    ),
    (
        "polymarket",
        (
            f'{{"event_type":"last_trade_price","asset_id":"{ID_1}","market":"0x6a67","price":"0.456","size":"219.217767",'
            '"fee_rate_bps":"0","side":"BUY","timestamp":"1750428146322"}'
        ),
        [row(1750428146322, ID_1, 0.456, 219.217767, side="buy", market="0x6a67", transaction=None)],
    ),
    (
        "polymarket",
        (
            f'[{{"event_type":"last_trade_price","asset_id":"{ID_2}","fee_rate_bps":"0","market":"0x7d32","price":".48",'
            '"size":"100","side":"SELL","timestamp":"1778480999940","transaction_hash":"0xab"}]'
        ),
        [row(1778480999940, ID_2, 0.48, 100.0, side="sell", market="0x7d32", transaction="0xab")],
    ),
]


@pytest.mark.parametrize(("venue", "text", "rows"), SAMPLES)
def test_a_sample_is_read_trade_by_trade(venue: str, text: str, rows: list[dict[str, Any]]) -> None:
    assert decode(venue, text) == (rows, [])


VARIANTS: list[tuple[str, dict[str, Any], str, list[dict[str, Any]]]] = [
    (
        "binance-futures",
        {"items": "data", "match": {"data.e": "aggTrade"}},
        (
            '{"stream":"ctkusdt@aggTrade","data":{"e":"aggTrade","E":1626992741575,"a":16599292,"s":"CTKUSDT","p":"1.01100",'
            '"q":"10","f":23961322,"l":23961322,"T":1626992741421,"m":false}}'
        ),
        [
            row(1626992741421, "CTKUSDT", 1.011, 10.0, trade_id=16599292, side="buy")
            | {"first_id": 23961322, "last_id": 23961322}
        ],
    ),
    (
        "okx",
        {"match": {"arg.channel": "trades"}},
        (
            '{"arg":{"channel":"trades","instId":"BTC-USDT"},"data":[{"instId":"BTC-USDT","tradeId":"130639474",'
            '"px":"42219.9","sz":"0.12060306","side":"buy","ts":"1630048897897","count":"3","source":"0","seqId":1234}]}'
        ),
        [row(1630048897897, "BTC-USDT", 42219.9, 0.12060306, trade_id=130639474, side="buy")],
    ),
    (
        "okx",
        {"match": {"arg.channel": "trades"}},
        (
            '{"arg":{"channel":"trades","instId":"BTC-USD-220527"},"data":[{"instId":"BTC-USD-220527","tradeId":"7849",'
            '"px":"30218.8","sz":"1","side":"buy","ts":"1652459199958"}]}'
        ),
        [row(1652459199958, "BTC-USD-220527", 30218.8, 1.0, trade_id=7849, side="buy")],
    ),
    (
        "massive",
        {"fields": JsonFields(symbol="pair", price="p", volume="s", timestamp="t"), "match": {"ev": "XT"}},
        (
            '[{"ev":"XT","pair":"BTC-USD","p":33021.9,"t":1610462007425,"s":0.01616617,"c":[2],"i":14272084,"x":3,'
            '"r":1610462007576}]'
        ),
        [
            row(1610462007425, "BTC-USD", 33021.9, 0.01616617, id="14272084", exchange=3, tape=None, number=None)
            | {"conditions": "2"}
        ],
    ),
    (
        "coinbase",
        {},
        (
            '{"channel":"market_trades","client_id":"","timestamp":"2025-12-31T06:00:12.71649013Z","sequence_num":1852,'
            '"events":[{"type":"update","trades":[{"product_id":"BTC-USD","trade_id":"929248658","price":"88355.59",'
            '"size":"0.00022409","time":"2025-12-31T06:00:12.605867Z","side":"SELL"}]}]}'
        ),
        [row(1767160812605, "BTC-USD", 88355.59, 0.00022409, trade_id=929248658, side="buy")],
    ),
    (
        "kraken",
        {},
        (
            '{"channel":"trade","type":"update","data":[{"symbol":"MATIC/USD","side":"sell","price":0.5117,"qty":40.0,'
            '"ord_type":"market","trade_id":4665906,"timestamp":"2023-09-25T07:49:37.708706Z"}]}'
        ),
        [row(1695628177708, "MATIC/USD", 0.5117, 40.0, trade_id=4665906, side="sell", order_type="market")],
    ),
    (
        "kraken",
        {"match": {"channel": "trade"}},
        (
            '{"channel":"trade","type":"snapshot","data":[{"symbol":"MATIC/USD","side":"buy","price":0.5147,"qty":6423.46326,'
            '"ord_type":"limit","trade_id":4665846,"timestamp":"2023-09-25T07:48:36.925533Z"},{"symbol":"MATIC/USD","side":'
            '"buy","price":0.5147,"qty":1136.19677815,"ord_type":"limit","trade_id":4665847,"timestamp":'
            '"2023-09-25T07:49:36.925603Z"}]}'
        ),
        [
            row(1695628116925, "MATIC/USD", 0.5147, 6423.46326, trade_id=4665846, side="buy", order_type="limit"),
            row(1695628176925, "MATIC/USD", 0.5147, 1136.19677815, trade_id=4665847, side="buy", order_type="limit"),
        ],
    ),
]
"""What the settings' comments, or the documentation, offer beside: other channels, envelopes, snapshots."""


@pytest.mark.parametrize(("venue", "changes", "text", "rows"), VARIANTS)
def test_a_variant_is_read_trade_by_trade(
    venue: str, changes: dict[str, Any], text: str, rows: list[dict[str, Any]]
) -> None:
    decoded = feed_of(venue, **changes).decode(Frames([text.encode()], [0]))
    times = decoded.trades["timestamp"].cast(pa.int64()).to_pylist()
    assert [{**one, "timestamp": at} for one, at in zip(decoded.trades.to_pylist(), times, strict=True)] == rows
    assert (decoded.rejects, decoded.notices) == ([], [])


@pytest.mark.parametrize(("venue", "text"), [(venue, text) for venue, text, _ in SAMPLES])
def test_a_block_of_samples_is_read_as_columns(venue: str, text: str) -> None:
    feed = feed_of(venue)
    frames = Frames([text.encode()] * 64, [0] * 64)
    block = feed.read_block(frames, 0)
    assert block
    assert block.trades == feed.read_strictly(frames, 0).trades


def ack(text: str = "") -> Notice:
    return Notice(0, "ack", text)


def news() -> Notice:
    return Notice(0, "news", "")


def no(text: str, symbol: str | None = None) -> Notice:
    return Notice(0, "error", text, symbol, refuses=True)


AUTH_FAILED = Notice(0, "error", "authentication failed")
OKX_60012 = 'Invalid request: {"op": "subscribe", "argss":[{ "channel" : "trades", "instId" : "BTC-USD-191227"}]}'


@pytest.mark.parametrize(
    ("venue", "text", "notice"),
    [
        ("binance-futures", '{"result":null,"id":1}', ack()),
        (
            "binance-futures",
            '{"error":{"code":4,"msg":"Too many subscriptions"},"id":19}',
            no("Too many subscriptions"),
        ),
        ("binance-futures", '{"code":3,"msg":"Invalid JSON"}', no("Invalid JSON")),
        ("binance-futures", '{"e":"serverShutdown","E":1770123456789}', Notice(0, "unknown", "serverShutdown")),
        (
            "coinbase",
            (
                '{"channel":"subscriptions","client_id":"","timestamp":"2026-04-07T14:30:00.000000Z","sequence_num":0,'
                '"events":[{"subscriptions":{"market_trades":["BTC-USD","ETH-USD"]}}]}'
            ),
            ack(),
        ),
        (
            "coinbase",
            '{"channel":"heartbeats","sequence_num":0,"events":[{"current_time":"2023-06-23","heartbeat_counter":"3049"}]}',
            news(),
        ),
        (
            "coinbase",
            (
                '{"channel":"market_trades","sequence_num":0,"events":[{"type":"snapshot","trades":[{"trade_id":"0",'
                '"product_id":"ETH-USD","price":"1260.01","size":"0.3","side":"BUY","time":"2019-08-14T20:42:27.265Z"}]}]}'
            ),
            news(),
        ),
        ("coinbase", '{"type":"error","message":"no such product"}', no("no such product")),
        (
            "kraken",
            '{"method":"subscribe","result":{"channel":"trade","snapshot":true,"symbol":"MATIC/USD"},"success":true}',
            ack(),
        ),
        (
            "kraken",
            '{"error":"Currency pair not supported XBT/USDT","method":"subscribe","success":false,"symbol":"XBT/USDT"}',
            no("Currency pair not supported XBT/USDT", "XBT/USDT"),
        ),
        ("kraken", '{"channel":"status","type":"update","data":[{"api_version":"v2","system":"online"}]}', news()),
        ("kraken", '{"channel":"heartbeat"}', news()),
        ("kraken", '{"method":"pong","req_id":42}', news()),
        (
            "kraken",
            (
                '{"channel":"trade","type":"snapshot","data":[{"symbol":"MATIC/USD","side":"buy","price":0.5147,'
                '"qty":6423.46326,"ord_type":"limit","trade_id":4665846,"timestamp":"2023-09-25T07:48:36.925533Z"}]}'
            ),
            news(),
        ),
        ("bybit", '{"success":true,"ret_msg":"subscribe","conn_id":"2324","req_id":"10001","op":"subscribe"}', ack()),
        ("bybit", '{"success":true,"ret_msg":"pong","conn_id":"0970","op":"ping"}', news()),
        ("bybit", '{"args":["1672916271846"],"op":"pong"}', news()),
        (
            "bybit",
            '{"success":false,"ret_msg":"Invalid topic: publicTrade.BTCUSDX","conn_id":"cej","op":"subscribe"}',
            no("Invalid topic: publicTrade.BTCUSDX", "BTCUSDX"),
        ),
        ("bybit", '{"success":false,"ret_msg":"args size >10","op":"subscribe"}', no("args size >10")),
        (
            "okx",
            '{"id":"1","event":"subscribe","arg":{"channel":"trades-all","instId":"BTC-USDT"},"connId":"a4"}',
            ack(),
        ),
        (
            "okx",
            json.dumps({"id": "1512", "event": "error", "code": "60012", "msg": OKX_60012, "connId": "a4d3ae55"}),
            no(OKX_60012),
        ),
        (
            "okx",
            '{"event":"error","code":"60018","msg":"channel:trades-all,instId:XX-YY doesn\'t exist"}',
            no("channel:trades-all,instId:XX-YY doesn't exist", "XX-YY"),
        ),
        ("okx", "pong", news()),
        (
            "hyperliquid",
            '{"channel":"subscriptionResponse","data":{"method":"subscribe","subscription":{"type":"trades","coin":"SOL"}}}',
            ack(),
        ),
        (
            "hyperliquid",
            json.dumps({"channel": "error", "data": 'Already subscribed: {"type":"trades","coin":"UNI"}'}),
            no('Already subscribed: {"type":"trades","coin":"UNI"}', "UNI"),
        ),
        ("hyperliquid", '{"channel":"pong"}', news()),
        ("hyperliquid", "Websocket connection established.", news()),
        ("massive", '[{"ev":"status","status":"connected","message":"Connected Successfully"}]', ack()),
        ("massive", '[{"ev":"status","status":"auth_failed","message":"authentication failed"}]', AUTH_FAILED),
        ("massive", '[{"ev":"status","status":"success","message":"subscribed to: T.AAPL"}]', ack()),
        (
            "massive",
            '[{"ev":"status","status":"max_connections","message":"Maximum number of connections exceeded."}]',
            no("Maximum number of connections exceeded."),
        ),
        ("alpaca", '[{"T":"success","msg":"authenticated"}]', ack()),
        ("alpaca", '[{"T":"subscription","trades":["AAPL"],"corrections":["AAPL"]}]', ack()),
        ("alpaca", '[{"T":"error","code":406,"msg":"connection limit exceeded"}]', no("connection limit exceeded")),
        ("polymarket", "PONG", news()),
        ("polymarket", '[{"event_type":"book","asset_id":"1","bids":[],"asks":[]}]', news()),
        ("polymarket", '{"market":"0xa8ad","price_changes":[],"event_type":"price_change"}', news()),
    ],
)
def test_what_else_a_venue_says_is_known(venue: str, text: str, notice: Notice) -> None:
    assert decode(venue, text) == ([], [notice])


@pytest.mark.parametrize(
    ("venue", "answer", "symbols"),
    [
        (
            "binance-futures",
            (
                '{"symbols":[{"symbol":"BTCUSDT","status":"TRADING","contractType":"PERPETUAL"},'
                '{"symbol":"OLDUSDT","status":"SETTLING"}]}'
            ),
            ["BTCUSDT"],
        ),
        (
            "coinbase",
            (
                '{"products":[{"product_id":"BTC-USD","price":"68925.98","status":"online","is_disabled":false},'
                '{"product_id":"OLD-USD","status":"delisted"}],"num_products":2}'
            ),
            ["BTC-USD"],
        ),
        (
            "kraken",
            (
                '{"error":[],"result":{"BTC/USD":{"altname":"XBTUSD","wsname":"XBT/USD","status":"online"},'
                '"OLD/USD":{"status":"delisted"}}}'
            ),
            ["BTC/USD"],
        ),
        (
            "bybit",
            '{"retCode":0,"result":{"category":"spot","list":[{"symbol":"BTCUSDT","baseCoin":"BTC","status":"Trading"}]}}',
            ["BTCUSDT"],
        ),
        (
            "okx",
            '{"code":"0","data":[{"instId":"BTC-USD","instType":"SPOT","state":"live"},{"instId":"X-Y","state":"suspend"}]}',
            ["BTC-USD"],
        ),
    ],
)
def test_its_list_of_symbols_is_read(venue: str, answer: str, symbols: list[str]) -> None:
    feed = settings_of(venue).feed
    assert isinstance(feed, JsonSettings)
    assert feed.symbol_list is not None
    assert read_symbols(answer.encode(), feed.symbol_list) == symbols


def test_the_list_of_binance_is_read() -> None:
    answer = '{"symbols":[{"symbol":"ETHBTC","status":"TRADING"},{"symbol":"OLDBTC","status":"BREAK"}]}'
    assert read_symbols(answer.encode(), BINANCE_SYMBOLS) == ["ETHBTC"]


def test_each_venue_is_tested() -> None:
    assert {venue for venue, *_ in SAMPLES} == set(VENUES)


@pytest.mark.parametrize("venue", VENUES)
def test_its_settings_are_commented_and_short(venue: str) -> None:
    text = (FOLDER / f"{venue}.yaml").read_text()
    assert re.match(r"# .+\.\n#\n", text)
    assert all(len(line) <= 130 for line in text.splitlines())


# Each records its simulator

REFUSED = "INVALID1"
SECONDS = float(os.environ.get("VENUE_SECONDS", "0"))
"""How long each venue is recorded, at least; from a minute on the venue also falls silent on the way."""
OWN_LANGUAGE = {"finnhub": ("ingestor", ""), "binance": ("binance", "/ws")}
"""Venues with a feed of their own: their settings in config/, and where their simulator is reached."""


@pytest.mark.long
@pytest.mark.timeout(SECONDS * 2 + 300)
@pytest.mark.parametrize("venue", [*OWN_LANGUAGE, *VENUES])
def test_it_records_its_simulator(tmp_path: Path, venue: str) -> None:
    """`VENUE_SECONDS=600` is the ten minutes of each that a release has behind it."""
    example, path = OWN_LANGUAGE.get(venue, (f"venues/{venue}", ""))
    record_simulator(tmp_path, load_settings(FOLDER.parent / f"{example}.yaml"), path)


@pytest.mark.long
@pytest.mark.parametrize("compression", ["gzip", "deflate"])
def test_a_venue_that_compresses_each_message_is_recorded(tmp_path: Path, compression: str) -> None:
    venue = settings_of("okx")
    feed = venue.feed.model_copy(update={"compression": compression})
    record_simulator(tmp_path, venue.model_copy(update={"feed": feed}))


def test_the_venue_that_the_docs_invent_is_recorded(tmp_path: Path) -> None:
    """It has a login, a heartbeat, lists in lists, ids and refusals, in at most 25 lines."""
    text = (FOLDER.parents[1] / "docs/configure.md").read_text()
    block = text.partition("<!-- a venue of its own -->\n```yaml\n")[2].partition("```")[0]
    assert 0 < len(block.splitlines()) <= 25
    path = tmp_path / "tulip.yaml"
    path.write_text(block)
    record_simulator(tmp_path, load_settings(path))


def record_simulator(tmp_path: Path, venue: Settings, path: str = "") -> None:
    """With a login where there is one, a cut, a symbol that is refused, and heartbeats (in a short time more often):
    nothing is rejected, the rows are the truth's, and what is missing lies in a gap.
    """
    settings = venue.feed
    symbols = venue.symbols[:20]
    truth = tmp_path / "truth.jsonl"
    there = VenueSettings(
        protocol=settings.type,
        keys=frozenset({KEY}) if settings.needs_key else None,
        market=MarketSettings(rate=50 if SECONDS else 200, seed=7),
        truth=truth,
    )
    heartbeat = None
    if isinstance(settings, JsonSettings):
        there, heartbeat = replace(there, json_feed=settings), settings.heartbeat
    if heartbeat and not SECONDS:  # the venue is more patient, so that a busy machine passes, too
        often, patient = (heartbeat.model_copy(update={"every": every}) for every in (1.0, 5.0))
        there = replace(there, json_feed=there.json_feed.model_copy(update={"heartbeat": patient}))
        settings = settings.model_copy(update={"heartbeat": often})
    silence_s = venue.connection.silence
    waits = replace(SOON, symbol_s=30.0) if SECONDS else SOON
    with running_venue(there) as playing:
        feed = make_feed(settings.model_copy(update={"url": playing.url + path}), KEY, "s3cret")
        made = make_rig(tmp_path / "data", playing.url, (*symbols, REFUSED), feed=feed, waits=waits, silence=silence_s)
        with running(made) as rig:
            wait_proven(rig, symbols)
            if not isinstance(settings, BinanceSettings):  # as at Binance, its refusal names no symbol
                rig.wait_fact("symbol.refused")
            notices = rig.recorder.counts.notices
            rig.wait_trades(200)
            time.sleep(SECONDS / 3)
            if heartbeat and heartbeat.answer:
                eventually(lambda: rig.recorder.counts.notices >= notices + 3 or None, "heartbeats and their answers")
            assert rig.facts("connection.lost") == []
            playing.drop()
            rig.wait_fact("gap.closed", cause="connection")
            wait_proven(rig, symbols, connection=2)
            rig.wait_trades(100)
            if SECONDS >= 60:
                time.sleep(SECONDS / 3)
                playing.mute(silence_s + 10)
                time.sleep(silence_s + 10)
                eventually(lambda: len(rig.facts("gap.closed")) > 1 or None, "the end of the silence")
                rig.wait_trades(100)
                time.sleep(max(0, SECONDS / 3 - silence_s))
        rows = recorded_rows(rig)
    counts = rig.recorder.counts
    assert (counts.rejected_frames, counts.rejected_trades, rig.errors) == (0, 0, [])
    sent = read_truth(truth)
    lost = compare_with_truth(rows, sent)
    gaps = [fact for fact in rig.facts("gap.closed") if fact["symbol"] is None]
    assert len(gaps) >= 1 + (SECONDS >= 60)
    assert all(any(gap["since"] <= sent_us <= gap["until"] for gap in gaps) for sent_us in lost)
    sys.stdout.write(
        f"{settings.url}: {sent.num_rows:,} sent, {rows.num_rows:,} recorded, {len(lost)} lost in {len(gaps)} gaps, "
        f"{counts.notices:,} notices, 0 rejects\n"
    )
    if isinstance(settings, JsonSettings):
        check_own_columns(rows, settings, len(gaps))


def wait_proven(rig: Rig, symbols: Sequence[str], **connection: int) -> None:
    for symbol in symbols:
        rig.wait_fact("symbol.proven", symbol=symbol, **connection)


def compare_with_truth(rows: pa.Table, truth: pa.Table) -> list[int]:
    """When each trade was sent that isn't among the rows; every row is the truth's, as it was sent."""
    names = ["timestamp", "symbol", "price", "volume"]
    sent = list(zip(*(truth[name].to_pylist() for name in names), strict=True))
    found = Counter(zip(*(rows[name].to_pylist() for name in names), strict=True))
    assert not found - Counter(sent)
    lost = []
    for trade, sent_us in zip(sent, truth["sent_us"].to_pylist(), strict=True):
        found[trade] -= 1
        if found[trade] < 0:
            lost.append(sent_us)
    return lost


def check_own_columns(rows: pa.Table, settings: JsonSettings, gaps: int) -> None:
    """Ids rise by one where they are said to, and sides are what the aggressor did."""
    for name, column in settings.columns.items():
        if column.consecutive:
            for symbol in set(rows["symbol"].to_pylist()):
                ids = rows.filter(pc.equal(rows["symbol"], symbol))[name].to_pylist()
                assert [later - earlier for earlier, later in pairwise(ids)].count(1) >= len(ids) - 1 - 2 * gaps
        if name == "side":
            assert set(rows[name].to_pylist()) == {"buy", "sell"}
