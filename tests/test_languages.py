"""What the simulated venue hears and says in languages other than Finnhub's."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from ingestor.config.feeds import JsonSettings
from ingestor.simulator.faults import RefuseSymbols, Schedule
from ingestor.simulator.languages import PLAIN_JSON, Request, make_language
from ingestor.simulator.market import MarketSettings
from ingestor.simulator.running import running_venue
from ingestor.simulator.settings import VenueSettings
from ingestor.simulator.truth import read_truth

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
        ('{"ask":["IC MARKETS:1"],"again":"IC MARKETS:1"}', Request(True, ("IC MARKETS:1",))),
        ('{"leave":"A"}', Request(False, ("A",))),
        ('{"ask":["A"],"again":"B"}', None),
        ('{"leave":"A"} ', None),
        ("nonsense", None),
    ],
)
def test_json_understands_its_templates(text: str, request_: Request | None) -> None:
    assert make_language("json", LIKE).read(text) == request_


def test_json_without_settings_is_plain() -> None:
    with client("", protocol="json") as opened:
        opened.send('{"type":"subscribe","symbol":"AAPL"}')
        assert json.loads(opened.recv()).keys() == {"symbol", "price", "volume", "timestamp"}
