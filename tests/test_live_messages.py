"""What clients say, and what is wrong with it."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingestor.live.sockets import (
    Authenticate,
    BadRequest,
    ClientRequest,
    Subscribe,
    Unsubscribe,
    error_text,
    parse_request,
)
from ingestor.live.subscriptions import ClientLanguage

PRICES, FINNHUB = ClientLanguage.PRICES, ClientLanguage.FINNHUB


@pytest.mark.parametrize(
    ("text", "request_"),
    [
        ('{"action":"subscribe","symbol":"AAPL"}', Subscribe(("AAPL",))),
        ('{"action":"subscribe","symbols":["A","B","A"]}', Subscribe(("A", "B"))),
        ('{"action":"subscribe","symbols":"AAPL"}', Subscribe(("AAPL",))),
        ('{"action":"subscribe","symbol":"A","mode":"all"}', Subscribe(("A",))),
        ('{"action":"subscribe","symbol":"A","mode":"latest"}', Subscribe(("A",), 0.1)),
        ('{"action":"subscribe","symbol":"A","mode":"latest","every":"2s"}', Subscribe(("A",), 2.0)),
        ('{"action":"subscribe","symbol":"A","gaps":true}', Subscribe(("A",), None, gaps=True)),
        ('{"action":"unsubscribe","symbol":"IC MARKETS:1"}', Unsubscribe(("IC MARKETS:1",))),
        ('{"action":"authenticate","token":"x.y.z"}', Authenticate("x.y.z")),
    ],
)
def test_the_price_api(text: str, request_: ClientRequest) -> None:
    assert parse_request(PRICES, text) == request_


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "not a JSON object"),
        ("{}", "`action` must be"),
        ('{"action":["subscribe"]}', "`action` must be"),
        ('{"action":"subscribe"}', "either `symbol` or `symbols`"),
        ('{"action":"subscribe","symbol":"A","symbols":["B"]}', "either `symbol` or `symbols`"),
        ('{"action":"subscribe","symbols":[]}', "at least one symbol"),
        ('{"action":"subscribe","symbols":5}', "must be a list"),
        ('{"action":"subscribe","symbol":""}', "1 to 128 characters"),
        ('{"action":"subscribe","symbol":7}', "1 to 128 characters"),
        ('{"action":"subscribe","symbol":"A\\u0000"}', "1 to 128 characters"),
        (json.dumps({"action": "subscribe", "symbol": "A" * 129}), "1 to 128 characters"),
        ('{"action":"subscribe","symbol":"A","mode":"some"}', "`mode` must be"),
        ('{"action":"subscribe","symbol":"A","every":"1s"}', "belongs to mode latest"),
        ('{"action":"subscribe","symbol":"A","mode":"latest","every":"1"}', "has no unit"),
        ('{"action":"subscribe","symbol":"A","mode":"latest","every":"1ms"}', "from 10ms to 1h"),
        ('{"action":"subscribe","symbol":"A","sybmol":"B"}', "unknown key `sybmol`"),
        ('{"action":"subscribe","symbol":"A","gaps":1}', "`gaps` must be true or false"),
        ('{"action":"unsubscribe","symbol":"A","mode":"all"}', "unknown key `mode`"),
        ('{"action":"authenticate","token":null}', "`token` must be text"),
    ],
)
def test_what_the_price_api_refuses(text: str | bytes, reason: str) -> None:
    with pytest.raises(BadRequest, match=reason):
        parse_request(PRICES, text)


@pytest.mark.parametrize(
    ("text", "request_"),
    [
        ('{"type":"subscribe","symbol":"AAPL"}', Subscribe(("AAPL",))),
        ('{"type":"unsubscribe","symbol":"BINANCE:BTCUSDT"}', Unsubscribe(("BINANCE:BTCUSDT",))),
    ],
)
def test_finnhub(text: str, request_: ClientRequest) -> None:
    assert parse_request(FINNHUB, text) == request_


@pytest.mark.parametrize("text", ["{}", '{"type":"subscribe"}', '{"type":"subscribe-news","symbol":"A"}', "x"])
def test_what_finnhub_refuses(text: str) -> None:
    with pytest.raises(BadRequest):
        parse_request(FINNHUB, text)


def test_each_language_has_its_errors() -> None:
    assert json.loads(error_text(PRICES, "why")) == {"error": "why"}
    assert json.loads(error_text(FINNHUB, "why")) == {"msg": "why", "type": "error"}


_JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(
    st.sampled_from(ClientLanguage),
    st.binary()
    | st.text()
    | st.dictionaries(st.sampled_from(["action", "type", "symbol", "symbols", "mode", "every", "token"]), _JSON).map(
        json.dumps
    ),
)
def test_whatever_comes_is_a_request_or_a_reason(language: ClientLanguage, text: str | bytes) -> None:
    try:
        parse_request(language, text)
    except BadRequest as refusal:
        assert 0 < len(str(refusal)) < 400  # noqa: PT017  either outcome is right, and the reason is short
