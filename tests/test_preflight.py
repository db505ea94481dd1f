"""What `check --online` asks: a REST API that says yes, no, or nothing; the disk; and what it makes of the answers."""

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from time import time

import pytest
from click.testing import CliRunner
from pydantic import SecretStr

from ingestor.cli.check import Finding, ask_venue, find_online
from ingestor.cli.main import cli
from ingestor.config import Settings
from ingestor.config.key import Key
from ingestor.errors import IngestorError
from ingestor.operations.preflight import Rest, VenueUnreachable, find_unknown, measure_disk

KEY = "c0ffee"
PREFIX = "/api"
LISTS = {
    "/api/stock/symbol?exchange=US": ["AAPL", "BRK.B"],
    "/api/crypto/symbol?exchange=BINANCE": ["BINANCE:BTCUSDT"],
    "/api/crypto/symbol?exchange=OANDA": [],
    "/api/forex/symbol?exchange=OANDA": ["OANDA:EUR_USD"],
}


@dataclass
class Api:
    """A venue's REST API, and how it answers."""

    base: str = ""
    statuses: dict[str, int] = field(default_factory=dict)
    clock_s: float = 0.0
    """How far its clock is ahead of ours."""
    asked: list[str] = field(default_factory=list)
    bodies: dict[str, str] = field(default_factory=dict)


@pytest.fixture
def api() -> Iterator[Api]:
    api = Api()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            api.asked.append(self.path)
            accepted = self.headers["X-Finnhub-Token"] == KEY
            accepted = accepted or self.path in api.bodies
            status = api.statuses.get(self.path, 200 if accepted else 401)
            body = json.dumps([{"symbol": symbol} for symbol in LISTS.get(self.path, [])]).encode()
            body = api.bodies[self.path].encode() if self.path in api.bodies else body
            self.send_response_only(status)
            self.send_header("Date", formatdate(time() + api.clock_s, usegmt=True))
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the library's name
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        api.base = f"http://127.0.0.1:{server.server_port}/api"
        yield api
        server.shutdown()


def ask(api: Api, *tickers: str, key: str = KEY) -> list[Finding]:
    return list(ask_venue(Rest(api.base, key), tickers))


def test_a_good_key_known_symbols_a_right_clock(api: Api) -> None:
    found = ask(api, "AAPL", "BRK.B", "BINANCE:BTCUSDT", "OANDA:EUR_USD")
    assert {finding.verdict for finding in found} == {"ok"}
    assert [finding.subject for finding in found] == ["key", "clock", "symbols", "symbols", "symbols"]
    assert not [path for path in api.asked if KEY in path]


def test_a_wrong_key_is_an_error_and_nothing_more_is_asked(api: Api) -> None:
    key, clock = ask(api, "AAPL", key="typo")
    assert (key.verdict, key.text) == ("error", "the venue refuses it (401): copy it anew from finnhub.io")
    assert clock.verdict == "ok"
    assert len(api.asked) == 1


@pytest.mark.parametrize(("status", "says"), [(429, "too many calls"), (500, "answered 500")])
def test_a_venue_with_a_bad_minute_is_a_warning(api: Api, status: int, says: str) -> None:
    api.statuses["/api/quote?symbol=AAPL"] = status
    found = ask(api, "AAPL")[0]
    assert found.verdict == "warning"
    assert says in found.text


def test_unknown_symbols_are_named(api: Api) -> None:
    wrong = ask(api, "AAPL", "APPL", "BINANCE:BTCUSD")[2:]
    assert [finding.verdict for finding in wrong] == ["error", "error"]
    assert "APPL" in wrong[0].text
    assert "AAPL" not in wrong[0].text
    assert "BINANCE:BTCUSD" in wrong[1].text


def test_an_exchange_without_a_list_is_not_judged(api: Api) -> None:
    assert list(find_unknown(["KRAKEN:XBT"], Rest(api.base, KEY))) == [("KRAKEN", None)]
    assert ask(api, "KRAKEN:XBT")[2].verdict == "warning"


@pytest.mark.parametrize(
    ("clock_s", "verdict", "says"),
    [(0.0, "ok", "within"), (1.0, "ok", "within"), (-90.0, "warning", "ahead of"), (90.0, "warning", "behind")],
)
def test_the_clock_is_compared_with_the_venues(api: Api, clock_s: float, verdict: str, says: str) -> None:
    api.clock_s = clock_s
    clock = ask(api, "AAPL")[1]
    assert clock.verdict == verdict
    assert says in clock.text


def test_a_venue_out_of_reach_is_a_warning() -> None:
    (found,) = ask(Api("http://127.0.0.1:9/api"), "AAPL")
    assert found.verdict == "warning"
    assert "not reached (127.0.0.1: " in found.text
    with pytest.raises(VenueUnreachable, match=r"^[\w.]+: [A-Z][a-z ]+$"):  # the host, and no number of an error
        Rest("http://127.0.0.1:9/api", KEY).get("/quote")


def test_a_disk_is_measured_and_left_as_it_was(tmp_path: Path) -> None:
    speed = measure_disk(tmp_path)
    assert 0 < speed.usual_s <= speed.worst_s
    assert speed.bytes_per_s > 0
    assert list(tmp_path.iterdir()) == []


def test_a_venue_without_an_api_is_never_shown_the_key(tmp_path: Path) -> None:
    settings = Settings.model_validate(
        {"tickers": ["AAPL"], "feed": {"url": "wss://127.0.0.1:9"}, "storage": {"root": tmp_path}}
    )
    found = {finding.subject: finding for finding in find_online(settings, Key(value=SecretStr(KEY), source="here"))}
    assert "has no REST API" in found["venue"].text
    assert found["disk speed"].verdict in {"ok", "warning"}
    assert found["access"].verdict == "ok"
    assert "service" in found


def test_a_root_that_everybody_may_write_is_a_warning(tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    root.chmod(0o777)
    settings = Settings.model_validate(
        {"tickers": ["AAPL"], "feed": {"url": "wss://127.0.0.1:9"}, "storage": {"root": root}}
    )
    found = {finding.subject: finding for finding in find_online(settings, None)}
    assert found["access"].verdict == "warning"
    assert f"chmod o-w {root}" in found["access"].text


# What a venue lists


def venue_of(tmp_path: Path, api: Api, **form: object) -> str:
    path = tmp_path / "venue.yaml"
    listed = {"url": f"{api.base}/products?all=1", "symbol": "id", **form}
    path.write_text(json.dumps({"tickers": ["A"], "feed": {"type": "json", "url": "wss://x", "symbol_list": listed}}))
    return str(path)


PRODUCTS = [
    {"id": "BTC-USD", "status": "online"},
    {"id": "ETH-USD", "status": "online"},
    {"id": "OLD-USD", "status": "delisted"},
    {"id": "A,B", "status": "online"},
    {"name": "none", "status": "online"},
]


@pytest.mark.parametrize(
    ("body", "form", "patterns", "printed"),
    [
        (PRODUCTS, {"match": {"status": "online"}}, [], ["BTC-USD", "ETH-USD"]),
        (PRODUCTS, {"match": {"status": "online"}}, ["ETH*", "x"], ["ETH-USD"]),
        ({"a": {"l": PRODUCTS}}, {"items": "a.l"}, ["*-USD"], ["BTC-USD", "ETH-USD", "OLD-USD"]),
        (
            {"result": {"BTC/USD": {"status": "online"}, "OLD/USD": {"status": "cancel_only"}}},
            {"items": "result", "symbol": "*", "match": {"status": "online"}},
            [],
            ["BTC/USD"],
        ),
    ],
)
def test_symbols_prints_what_the_venue_lists(
    tmp_path: Path, api: Api, body: object, form: dict[str, object], patterns: list[str], printed: list[str]
) -> None:
    api.bodies[f"{PREFIX}/products?all=1"] = json.dumps(body)
    arguments = ["symbols", "--config", venue_of(tmp_path, api, **form), *patterns]
    done = CliRunner().invoke(cli, arguments)
    assert (done.exit_code, done.output.splitlines()) == (0, printed)
    written = tmp_path / "list.txt"
    done = CliRunner().invoke(cli, [*arguments, "--output", str(written)])
    assert (done.exit_code, written.read_text().splitlines()) == (0, printed)


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        ("[]", 200, "no symbol that fits"),
        ("{}", 200, "another form"),
        ("<html>", 200, "another form"),
        ("[]", 503, "answered 503"),
    ],
)
def test_symbols_says_why_there_are_none(tmp_path: Path, api: Api, body: str, status: int, sentence: str) -> None:
    path = f"{PREFIX}/products?all=1"
    api.bodies[path], api.statuses[path] = body, status
    done = CliRunner().invoke(cli, ["symbols", "--config", venue_of(tmp_path, api)])
    assert isinstance(done.exception, IngestorError)
    assert sentence in str(done.exception)
