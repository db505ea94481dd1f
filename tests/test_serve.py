"""`ingestor serve`: live prices in both languages, its limits, its refusals; real sockets, a real journal."""

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
import pyarrow as pa
import pytest
import websocket
from journals import SEGMENT, trades
from live_servers import PATIENCE_S, Server, hang_up, hear, hear_end, run_serve, running_serve, say
from recorders import eventually
from recordings import Print, Recording
from requirements import require
from servers import RedisServer

from ingestor import system
from ingestor.config.sections import RedisSettings
from ingestor.feeds import Frames
from ingestor.feeds.finnhub import Finnhub
from ingestor.journal.follower import Rows
from ingestor.journal.records import Cursor
from ingestor.metrics import Counts
from ingestor.sinks.redis_db import RedisLive

SECRET = "a secret of a test, 32 bytes long"
KEY = "a-real-key-that-somebody-left"
START = datetime.now(UTC) - timedelta(minutes=5)


class Market:
    """A recording that goes on: each trade a second after the one before."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.recording = Recording(root, ["AAPL", "MSFT"], started=START.replace(tzinfo=None).isoformat())
        self.recording.prove(["AAPL", "MSFT"], START.isoformat())
        self.now = START
        self.price = 0.0
        """Of the last trade."""
        self.trade("MSFT", 400)
        self.trade("AAPL", 100)

    def trade(self, symbol: str, *prices: float, late_s: float = 0.0) -> None:
        """Trades in one block."""
        prints = []
        for price in prices:
            self.now += timedelta(milliseconds=10)
            prints.append(Print(self.now - timedelta(seconds=late_s), symbol, price, 10, "1"))
            self.price = price
        self.recording.write(*prints)


@pytest.fixture
def market(tmp_path: Path) -> Market:
    return Market(tmp_path / "data")


@pytest.fixture
def server(market: Market) -> Iterator[Server]:
    with running_serve(market.root) as server:
        yield server


def prices(client: websocket.WebSocket, count: int) -> list[float]:
    """The next so many. Who has heard the first is subscribed: a trade before that may be its last known price."""
    return [hear(client)["price"] for _ in range(count)]


def settled(server: Server, subscriptions: int) -> None:
    """Until it holds so many."""
    eventually(lambda: server.metric("ingestor_live_subscriptions") == subscriptions, f"{subscriptions} subscriptions")


# Prices


def test_the_last_known_price_comes_at_once_and_then_every_trade(market: Market, server: Server) -> None:
    client = server.connect()
    client.send('{"action":"subscribe","symbol":"AAPL"}')
    first = hear(client)
    at_ms = int(market.now.timestamp() * 1000)
    assert first == {"symbol": "AAPL", "price": 100, "volume": 10, "timestamp": at_ms}
    market.trade("MSFT", 401)
    market.trade("AAPL", 101, 102)
    market.trade("AAPL", 103)
    assert prices(client, 3) == [101, 102, 103]


@pytest.mark.long
def test_many_symbols_in_one_message_and_one_less(market: Market, server: Server) -> None:
    client = server.subscriber("AAPL", "MSFT")
    assert {hear(client)["symbol"] for _ in range(2)} == {"AAPL", "MSFT"}
    say(client, action="unsubscribe", symbol="MSFT")
    settled(server, 1)
    market.trade("MSFT", 500)
    market.trade("AAPL", 101)
    assert hear(client)["symbol"] == "AAPL"


@pytest.mark.long
def test_latest_skips_to_the_newest(market: Market, server: Server) -> None:
    client = server.subscriber("AAPL", mode="latest", every="300ms")
    assert prices(client, 1) == [100]
    market.trade("AAPL", 1)
    assert prices(client, 1) == [1]
    market.trade("AAPL", 2, 3)
    market.trade("AAPL", 4, 5)
    assert prices(client, 1) == [5]


@pytest.mark.long
def test_a_late_trade_is_news_to_all_and_not_to_latest(market: Market, server: Server) -> None:
    everything, latest = server.subscriber("AAPL"), server.subscriber("AAPL", mode="latest", every="10ms")
    assert prices(everything, 1) == prices(latest, 1) == [100]
    market.trade("AAPL", 50, late_s=60)
    assert prices(everything, 1) == [50]
    market.trade("AAPL", 102)
    assert prices(latest, 1) == [102]


@pytest.mark.long
def test_a_symbol_that_nobody_records_is_said_to_be_so_and_comes_if_it_does(market: Market, server: Server) -> None:
    client = server.subscriber("NEWCO")
    assert "not recorded here, so far: NEWCO" in hear(client)["error"]
    market.trade("NEWCO", 7)
    assert hear(client)["price"] == 7


@pytest.mark.long
def test_prices_from_before_it_was_started_are_known(tmp_path: Path) -> None:
    recording = Recording(tmp_path / "data", ["OLD", "NEW"])
    recording.prove(["OLD", "NEW"], "2026-01-01")
    recording.write(Print("2026-01-02T10:00", "OLD", 1, 1))
    recording.seal()
    recording.write(Print("2026-01-03T10:00", "NEW", 2, 1))
    recording.seal()
    recording.write(Print("2026-01-03T11:00", "NEW", 3, 1))
    with running_serve(tmp_path / "data") as server:
        client = server.subscriber("OLD", "NEW")
        assert {(told["symbol"], told["price"]) for told in (hear(client), hear(client))} == {("OLD", 1), ("NEW", 3)}


@pytest.mark.long
def test_a_rotation_of_the_journal_is_not_noticed(market: Market, server: Server) -> None:
    client = server.subscriber("AAPL")
    assert prices(client, 1) == [100]
    for number in range(5):
        market.recording.seal()
        market.trade("AAPL", number)
        assert prices(client, 1) == [number]


# Finnhub's protocol


def test_an_ordinary_finnhub_script_works_unchanged(market: Market, server: Server) -> None:
    """As Finnhub's documentation has it."""
    heard: list[Any] = []
    answered = threading.Event()

    def on_message(ws: websocket.WebSocketApp, message: str) -> None:
        heard.append(json.loads(message))
        answered.set()
        ws.close()

    def on_open(ws: websocket.WebSocketApp) -> None:
        ws.send('{"type":"subscribe","symbol":"AAPL"}')

    url = server.url.replace("http", "ws")
    app = websocket.WebSocketApp(f"{url}?token={KEY}", on_message=on_message, on_open=on_open)
    thread = threading.Thread(target=app.run_forever)
    thread.start()
    settled(server, 1)
    market.trade("AAPL", 101)
    assert answered.wait(PATIENCE_S)
    thread.join(PATIENCE_S)
    assert [(one["type"], one["data"][0]["p"]) for one in heard] == [("trade", 101)]


@pytest.mark.long
def test_finnhubs_trades_are_told_in_finnhubs_words(market: Market, server: Server) -> None:
    client = server.connect("/")
    say(client, type="subscribe", symbol="AAPL")
    settled(server, 1)
    market.trade("AAPL", 101.5, 102)
    at_ms = int(market.now.timestamp() * 1000)
    assert hear(client) == {
        "type": "trade",
        "data": [
            {"c": ["1"], "p": 101.5, "s": "AAPL", "t": at_ms - 10, "v": 10},
            {"c": ["1"], "p": 102, "s": "AAPL", "t": at_ms, "v": 10},
        ],
    }
    say(client, type="unsubscribe", symbol="AAPL")
    settled(server, 0)


@pytest.mark.long
def test_our_own_feed_can_listen_to_it(market: Market, server: Server) -> None:
    """What it says, a recorder reads: `serve` can stand in for the venue."""
    feed = Finnhub(server.url.replace("http", "ws"), KEY)
    client = server.connect(feed.url().removeprefix(server.url.replace("http", "ws")))
    for message in feed.subscribe(["AAPL"]):
        client.send(message)
    settled(server, 1)
    market.trade("AAPL", *range(1, 251))
    payloads: list[bytes] = []
    while (decoded := feed.decode(Frames(payloads, [1] * len(payloads)))).trades.num_rows < 250:
        payloads.append(client.recv_data()[1])
    assert decoded.trades["price"].to_pylist() == list(range(1, 251))
    assert decoded.rejects == []


_SNIPPET = """
const socket = new WebSocket(process.argv[2]);
socket.addEventListener("open", () => socket.send(JSON.stringify({action: "subscribe", symbol: "AAPL"})));
socket.addEventListener("message", (event) => { console.log(event.data); socket.close(); });
socket.addEventListener("error", (event) => { console.log(event.message ?? event); });
"""


@pytest.mark.needs("node")
def test_the_usual_snippet_in_node(server: Server, tmp_path: Path) -> None:
    node = require("node")
    told = subprocess.run([node, "--version"], check=True, capture_output=True, text=True).stdout
    version = int(told.removeprefix("v").partition(".")[0])
    flags = [] if version >= 22 else ["--experimental-websocket", "--no-warnings"]
    script = tmp_path / "prices.js"
    script.write_text(_SNIPPET)
    url = server.url.replace("http", "ws") + "/live-price"
    done = subprocess.run([node, *flags, script, url], check=False, capture_output=True, text=True, timeout=PATIENCE_S)
    assert json.loads(done.stdout)["price"] == 100, done


# Secrets


@pytest.mark.long
def test_no_query_string_is_logged(market: Market, tmp_path: Path) -> None:
    log = tmp_path / "serve.log"
    with running_serve(market.root, log=log) as server:
        server.connect(f"/?token={KEY}").close()
        server.connect(f"/live-price?apikey={KEY}").close()
        for path in (f"/?token={KEY}", f"/history?token={KEY}", f"/nowhere?x={KEY}"):
            assert KEY.encode() not in server.get(path).body
        with pytest.raises(websocket.WebSocketBadStatusException):
            server.connect(f"/live-price?t={KEY}", host="evil.example")
        assert server.end() == 0
    assert KEY not in log.read_text()


# Authentication


def token(**more: Any) -> str:
    return jwt.encode({"exp": time.time() + 3600, "aud": "ingestor", **more}, SECRET, "HS256")


@pytest.fixture
def guarded(market: Market) -> Iterator[Server]:
    with running_serve(market.root, "--jwt", "HS256", INGESTOR_JWT_SECRET=SECRET) as server:
        yield server


def test_with_authentication_nothing_is_told_without_a_token(guarded: Server) -> None:
    for path in ("/symbols", "/history", "/bars", "/coverage", "/metrics"):
        answer = guarded.get(path)
        assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert guarded.get(path, Authorization=f"Bearer {token()}").status == 200, path
    assert [guarded.get(path).status for path in ("/", "/healthz", "/openapi.json")] == [200] * 3
    client = guarded.subscriber("AAPL")
    assert "authenticate first" in hear(client)["error"]


@pytest.mark.long
def test_a_token_may_come_by_message_by_header_or_by_query(market: Market, guarded: Server) -> None:
    by_message = guarded.connect()
    say(by_message, action="authenticate", token=token())
    assert hear(by_message) == {"authenticated": True}
    for client in (
        by_message,
        guarded.connect(header={"Authorization": f"Bearer {token()}"}),
        guarded.connect(f"/live-price?token={token()}"),
    ):
        say(client, action="subscribe", symbol="AAPL")
        assert hear(client)["price"] == 100
    finnhub = guarded.connect(f"/?token={token()}")
    say(finnhub, type="subscribe", symbol="AAPL")
    bearer = {"Authorization": f"Bearer {token()}"}
    eventually(lambda: b"\ningestor_live_subscriptions 4" in guarded.get("/metrics", **bearer).body, "the fourth")
    market.trade("AAPL", 101)
    assert hear(finnhub)["type"] == "trade"


@pytest.mark.long
@pytest.mark.parametrize("path", ["/", "/live-price"])
def test_a_forged_token_is_refused_in_the_handshake(guarded: Server, path: str) -> None:
    for bad, reason in ((jwt.encode({"a": 1}, "", "none"), "algorithm"), (token(exp=1), "expired"), ("x", "token")):
        with pytest.raises(websocket.WebSocketBadStatusException) as refusal:
            guarded.connect(f"{path}?token={bad}")
        assert refusal.value.status_code == 401
        assert reason in str(refusal.value.resp_body)


@pytest.mark.long
def test_a_forged_token_is_refused_by_message(guarded: Server) -> None:
    client = guarded.connect()
    say(client, action="authenticate", token=token(aud="another"))
    assert hear(client) == {"error": "the token is for another audience"}


@pytest.mark.long
def test_a_token_reaches_as_far_as_it_says(guarded: Server) -> None:
    client = guarded.connect(f"/live-price?token={token(symbols=['AAPL'])}")
    say(client, action="subscribe", symbols=["AAPL", "MSFT"])
    assert hear(client) == {"error": "the token doesn't allow MSFT"}
    bearer = {"Authorization": f"Bearer {token(symbols=['AAPL'])}"}
    assert [quote["symbol"] for quote in guarded.get("/symbols", **bearer).json["symbols"]] == ["AAPL"]
    assert {row["symbol"] for row in guarded.get("/history", **bearer).json["trades"]} == {"AAPL"}
    refused = guarded.get("/history?symbols=AAPL,MSFT", **bearer)
    assert (refused.status, refused.json) == (403, {"error": "the token doesn't allow MSFT"})


@pytest.mark.long
def test_a_connection_ends_with_its_token_unless_there_is_a_new_one(guarded: Server) -> None:
    short = token(exp=int(time.time()) + 2)
    ends, stays = guarded.connect(f"/live-price?token={short}"), guarded.connect(f"/live-price?token={short}")
    say(stays, action="authenticate", token=token())
    assert hear(stays) == {"authenticated": True}
    assert hear(ends) == {"error": "the token has expired"}
    assert hear_end(ends) == (1008, "the token has expired")
    say(stays, action="subscribe", symbol="AAPL")
    assert hear(stays)["price"] == 100


# Refusals to begin


@pytest.mark.long
@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_it_listens_to_other_machines_only_with_authentication(market: Market, host: str) -> None:
    code, errors = run_serve(market.root, "--host", host, "--port", "0")
    assert code == 2
    assert errors.startswith(f"error: {host} can be reached from other machines")


@pytest.mark.long
def test_with_authentication_it_may(market: Market) -> None:
    options = ("--host", "0.0.0.0", "--jwt", "HS256", "--allow-host", "prices.example")
    with running_serve(market.root, *options, INGESTOR_JWT_SECRET=SECRET) as server:
        statuses = [server.get("/healthz", Host=host).status for host in ("prices.example", "10.0.0.1", "evil.example")]
    assert statuses == [200, 200, 403]


@pytest.mark.long
@pytest.mark.parametrize(
    ("options", "environ", "sentence"),
    [
        (("--jwt", "HS256"), {}, "INGESTOR_JWT_SECRET is not set"),
        (("--jwt", "HS256"), {"INGESTOR_JWT_SECRET": "x" * 31}, "INGESTOR_JWT_SECRET is too short"),
        (("--jwt", "RS256"), {}, "--public-key FILE"),
        (("--public-key", "x"), {}, "--public-key FILE belongs to --jwt RS256"),
        (("--redis", "redis://127.0.0.1:1"), {}, "--root or --redis"),
    ],
)
def test_what_cannot_be_used_is_said(
    market: Market, options: tuple[str, ...], environ: dict[str, str], sentence: str
) -> None:
    code, errors = run_serve(market.root, "--port", "0", *options, **environ)
    assert (code, errors.startswith("error: ")) == (2, True)
    assert sentence in errors


def test_no_recording_is_said(tmp_path: Path) -> None:
    code, errors = run_serve(tmp_path, "--port", "0")
    assert code == 2
    assert "holds no recording" in errors


@pytest.mark.long
def test_a_port_that_is_taken_is_said(market: Market) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, errors = run_serve(market.root, "--port", str(port))
    assert code == 2
    assert f"can't listen on 127.0.0.1:{port}" in errors


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)])
def test_it_stops_when_asked_and_tells_its_clients(server: Server, number: int) -> None:
    client = server.subscriber("AAPL")
    assert prices(client, 1) == [100]
    assert server.end(number) == 0
    assert hear_end(client)[0] == 1012, "service restart: come again"


# Limits, and clients that mean no good


def test_garbage_is_answered_and_then_ends(market: Market, server: Server) -> None:
    good, bad = server.subscriber("AAPL"), server.connect()
    for number in range(100):
        bad.send("garbage") if number % 2 else bad.send_binary(os.urandom(100))
    assert [hear(bad)["error"] for _ in range(99)] == ["not JSON"] * 99
    code, reason = hear_end(bad)
    assert (code, reason) == (1008, "100 errors in a row; the last: not JSON")
    assert prices(good, 1) == [100]
    market.trade("AAPL", 101)
    assert prices(good, 1) == [101]


def client_frame(opcode: int, payload: bytes = b"", *, final: bool = True) -> bytes:
    """From a client (RFC 6455, 5.2). Its mask is 0, under which the payload stays as it is."""
    size = bytes((0x80 | len(payload),)) if len(payload) < 126 else b"\xfe" + len(payload).to_bytes(2)
    return bytes((0x80 * final | opcode,)) + size + bytes(4) + payload


CONTINUATION, TEXT, PING, PONG = 0, 1, 9, 10
MANY = 4000
"""Of any of these frames: in the time that a client's share of the server gives it for them the others are served."""
BEGUN = client_frame(TEXT, final=False)
NAMES = json.dumps([f"S{number}" for number in range(1000)])
FLOODS = {
    "empty pongs": client_frame(PONG) * MANY,
    "pings whose answers nobody reads": client_frame(PING, bytes(125)) * MANY,
    "empty continuations": BEGUN + client_frame(CONTINUATION, final=False) * MANY,
    "tiny fragments": (BEGUN + client_frame(CONTINUATION, b"x", final=False) * 900 + client_frame(CONTINUATION)) * 10,
    "empty messages": client_frame(TEXT) * MANY,
    "not JSON": client_frame(TEXT, b"{") * MANY,
    "unsubscribe": client_frame(TEXT, b'{"action":"unsubscribe","symbol":"AAPL"}') * MANY,
    "subscribe": client_frame(TEXT, b'{"action":"subscribe","symbol":"AAPL"}') * MANY,
    "subscribe to many": client_frame(TEXT, b'{"action":"subscribe","symbols":%b}' % NAMES.encode()) * 100,
    "forged tokens": client_frame(TEXT, b'{"action":"authenticate","token":"x.y.z"}') * MANY,
}
LAST = b"the last"


@pytest.mark.parametrize("authenticated", [pytest.param(False, marks=pytest.mark.long), True])
def test_a_flood_of_frames_takes_a_clients_share_and_no_more(market: Market, *, authenticated: bool) -> None:
    """Twenty of each: they wait for their turn, and what they ask for is not even answered while others are served."""
    options = ("--jwt", "HS256") if authenticated else ()
    with running_serve(market.root, *options, INGESTOR_JWT_SECRET=SECRET) as server:
        good = server.connect(f"/live-price?token={token()}")
        say(good, action="subscribe", symbol="AAPL")
        assert hear(good)["price"] == market.price
        before = server.memory_bytes
        for flood in FLOODS.values():
            clients = [server.connect() for _ in range(20)]
            for client in clients:
                wire(client).setblocking(False)
                wire(client).send(flood + client_frame(PING, LAST))
            for price in range(10):
                market.trade("AAPL", price)
                assert hear(good)["price"] == price
            assert not any(LAST in read_all(wire(client)) for client in clients)
            assert server.memory_bytes - before < 50_000_000
            for client in clients:
                hang_up(client)


def wire(client: websocket.WebSocket) -> socket.socket:
    """Its socket."""
    assert isinstance(client.sock, socket.socket)
    return client.sock


def read_all(client: socket.socket) -> bytes:
    """What has come, of a socket that doesn't wait."""
    heard = b""
    with suppress(BlockingIOError, ConnectionError):
        while more := client.recv(1 << 20):
            heard += more
    return heard


@pytest.mark.long
def test_pings_in_measure_are_answered(server: Server) -> None:
    """And more than that in time: who sends many is slowed down, not refused."""
    client = server.connect()
    for number in range(300):
        client.ping(str(number))
    answers = [client.recv_data_frame(control_frame=True)[1].data for _ in range(300)]
    assert answers == [str(number).encode() for number in range(300)]


@pytest.mark.long
def test_who_sends_more_than_is_read_for_long_is_refused(server: Server) -> None:
    client = server.connect()
    client.settimeout(30)
    began_s = time.monotonic()
    wire(client).sendall(client_frame(PONG) * 10_000)
    assert hear_end(client) == (1008, "for 15 s more frames than are read")
    assert 14 < time.monotonic() - began_s < 25


@pytest.mark.long
def test_as_many_symbols_as_are_allowed_are_subscribed_one_by_one(server: Server) -> None:
    """Finnhub's clients name one in a message: a thousand take ten seconds, and are no flood."""
    client = server.connect()
    for number in range(1000):
        say(client, action="subscribe", symbol=f"S{number}")
    say(client, action="subscribe", symbol="one too many")
    client.settimeout(30)
    while "at most 1000" not in (heard := hear(client)).get("error", ""):
        assert "not recorded here" in heard["error"]


@pytest.mark.long
def test_a_message_in_too_many_fragments_is_refused(server: Server) -> None:
    client = server.connect()
    wire(client).sendall(BEGUN + client_frame(CONTINUATION, b"x", final=False) * 1001)
    assert hear_end(client) == (1008, "more than 1000 fragments of one message")


@pytest.mark.long
def test_text_that_is_no_text_is_refused_in_a_line_of_the_log(market: Market, tmp_path: Path) -> None:
    log = tmp_path / "serve.log"
    with running_serve(market.root, log=log) as server:
        client = server.connect()
        wire(client).sendall(client_frame(TEXT, b"\xff"))
        assert hear_end(client) == (1007, "text that is not UTF-8")
        with pytest.raises(websocket.WebSocketBadStatusException):
            server.connect(host="evil.example")
        assert server.end() == 0
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["event"] for line in lines if line["level"] != "info"] == ["client.refused", "request.refused"]


def write_until_cut_off(client: websocket.WebSocket, text: str) -> None:
    while True:
        client.send(text)


@pytest.mark.long
def test_huge_frames_are_refused_before_they_are_read(server: Server) -> None:
    client = server.connect()
    before = server.memory_bytes
    with pytest.raises((OSError, websocket.WebSocketException)):  # it hangs up while we still write
        write_until_cut_off(client, "x" * 10_000_000)
    assert server.memory_bytes - before < 5_000_000


@pytest.mark.long
def test_a_huge_frame_gets_its_reason(server: Server) -> None:
    client = server.connect()
    client.send("x" * 10_000_000)
    code, reason = hear_end(client)
    assert code == 1009
    assert "exceeds limit" in reason


@pytest.mark.long
def test_ten_thousand_subscriptions_are_refused(server: Server) -> None:
    at_once = server.subscriber(*(f"S{number}" for number in range(10_000)))
    assert hear(at_once) == {"error": "at most 1000 symbols per connection: this would make 10000"}
    one_by_one = server.connect("/")
    for number in range(10_000):
        say(one_by_one, type="subscribe", symbol=f"S{number}")
    code, reason = hear_end(one_by_one)
    assert (code, reason[:53]) == (1008, "100 errors in a row; the last: at most 1000 symbols p")
    eventually(lambda: server.metric("ingestor_live_subscriptions") == 0, "no subscription is left")


@pytest.mark.long
def test_more_connections_than_allowed_are_refused(market: Market) -> None:
    with running_serve(market.root, "--max-clients", "2") as server:
        clients = [server.connect(), server.connect()]
        with pytest.raises(websocket.WebSocketBadStatusException) as refusal:
            server.connect()
        assert refusal.value.status_code == 503
        assert "at most 2 connections" in str(refusal.value.resp_body)
        clients.pop().close()
        eventually(lambda: server.metric("ingestor_live_clients") == 1, "a free place")
        assert prices(server.subscriber("AAPL"), 1) == [100]


@pytest.mark.long
@pytest.mark.alone
def test_who_stops_reading_all_is_closed_with_the_reason_and_nobody_else_notices(market: Market) -> None:
    with running_serve(market.root) as server:
        deaf, good = server.connect(sockopt=[(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)]), server.subscriber("AAPL")
        say(deaf, action="subscribe", symbol="MSFT")
        settled(server, 2)
        before = server.memory_bytes
        numbers = iter(range(10_000))

        def flood() -> bool:
            market.trade("MSFT", *range(2000))
            market.trade("AAPL", next(numbers))
            return server.metric("ingestor_live_given_up_total") == 1

        eventually(flood, "the deaf is given up")
        code, reason = hear_end(deaf)
        assert (code, reason) == (1008, "too slow: 4096 KB waited; ask for mode latest, or less")
        sent = next(numbers)
        assert prices(good, 1 + sent) == [100, *range(sent)]
        assert server.memory_bytes - before < 60_000_000


@pytest.mark.long
def test_who_reads_latest_slowly_skips(market: Market) -> None:
    with running_serve(market.root) as server:
        client = server.subscriber("AAPL", "MSFT", mode="latest", every="10ms")
        settled(server, 2)
        for number in range(50):
            market.trade("AAPL", *range(1000))
            market.trade("MSFT", number)
        market.trade("AAPL", -1)
        told = hear(client)
        while told["price"] != -1:
            told = hear(client)
        assert server.metric("ingestor_live_skipped_total") > 40_000
        assert server.metric("ingestor_live_given_up_total") == 0


@pytest.mark.long
def test_requests_without_an_end_are_given_up(market: Market, server: Server) -> None:
    parts = {
        b"": b"HTTP/1.1 408 ",
        b"GET /history HTTP/1.1\r\nHost:": b"HTTP/1.1 408 ",
        b"GET /live-price HTTP/1.1\r\nUpgrade: websocket\r\n": b"HTTP/1.1 408 ",
        b"POST /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nx": b"HTTP/1.1 405 ",
    }
    good = server.subscriber("AAPL")
    with ExitStack() as stack:
        half_open = [stack.enter_context(socket.create_connection(server.address, PATIENCE_S)) for _ in parts]
        for one, part in zip(half_open, parts, strict=True):
            one.sendall(part)
        assert prices(good, 1) == [100]
        market.trade("AAPL", 101)
        assert prices(good, 1) == [101]
        answers = [stack.enter_context(one.makefile("rb")).read() for one in half_open]  # until it is cut off
    assert [answer[:13] for answer in answers] == list(parts.values())


PAGE_ROWS = 100_000
STANDSTILL_S = 6.0


@pytest.fixture
def paging(market: Market) -> Iterator[Server]:
    """A server that has a page of many megabytes to give."""
    for _ in range(10):
        market.trade("AAPL", *range(PAGE_ROWS // 10))
    market.recording.seal()
    with running_serve(market.root) as server:
        yield server


def ask_for_a_page(server: Server) -> socket.socket:
    """A client with little room of its own: what it doesn't read waits in the server."""
    client = socket.socket()
    client.settimeout(PATIENCE_S)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    client.connect(server.address)
    client.sendall(b"GET /history?symbols=AAPL&limit=%d HTTP/1.1\r\n" % PAGE_ROWS)
    client.sendall(b"Host: localhost\r\nConnection: close\r\n\r\n")
    return client


def read_rows(client: socket.socket, pause_s: float = 0.0) -> int:
    """How many rows come until the connection's end."""
    rows = 0
    with suppress(ConnectionResetError):
        while piece := client.recv(1 << 16):
            rows += piece.count(b'"sequence"')
            time.sleep(pause_s)
    return rows


@pytest.mark.long
def test_an_answer_that_nobody_reads_is_given_up(paging: Server) -> None:
    good = paging.subscriber("AAPL")
    assert prices(good, 1) == [PAGE_ROWS // 10 - 1]
    before = paging.sockets
    with ask_for_a_page(paging) as deaf:
        eventually(lambda: paging.sockets == before + 1, "its connection")
        eventually(lambda: paging.sockets == before, "the end of its connection")
        assert 0 < read_rows(deaf) < PAGE_ROWS


@pytest.mark.long
def test_a_slow_reader_gets_the_whole_answer(paging: Server) -> None:
    with ask_for_a_page(paging) as slow:
        assert read_rows(slow, pause_s=0.025) > PAGE_ROWS - 100  # a name may be cut in two


@pytest.mark.long
def test_an_answer_outlives_a_standstill(paging: Server) -> None:
    """While the machine, or the server alone, stood still for longer than a reader may, nobody failed to read."""
    with ask_for_a_page(paging) as slow:
        eventually(lambda: len(slow.recv(1 << 14, socket.MSG_PEEK)) == 1 << 14, "rows for it")
        assert paging.get("/healthz").status == 200  # the others wait in the server now
        paging.process.send_signal(signal.SIGSTOP)
        time.sleep(STANDSTILL_S)
        paging.process.send_signal(signal.SIGCONT)
        assert read_rows(slow, pause_s=0.025) > PAGE_ROWS - 100


@pytest.mark.long
@pytest.mark.alone
def test_many_slow_readers_cannot_fill_the_memory(paging: Server) -> None:
    """Each reads as much as it must, and what waits for them would be a quarter of a GB."""
    before = paging.sockets
    with ExitStack() as stack:
        slow = [stack.enter_context(ask_for_a_page(paging)) for _ in range(16)]
        eventually(lambda: paging.sockets == before + len(slow), "their connections")

        def one_is_cut_off() -> bool:
            time.sleep(0.1)
            for client in slow:
                client.settimeout(0.01)
                with suppress(TimeoutError, ConnectionResetError):
                    client.recv(1 << 16)
            return paging.sockets < before + len(slow)

        eventually(one_is_cut_off, "the first that is cut off")


@pytest.mark.long
def test_a_request_that_comes_byte_by_byte_is_given_up(server: Server) -> None:
    with socket.create_connection(server.address, timeout=0.05) as slow:
        slow.sendall(b"GET /healthz HTTP/1.1\r\nX: ")

        def is_answered() -> bytes:
            slow.send(b"x")
            try:
                return slow.recv(100)
            except TimeoutError:
                return b""

        assert eventually(is_answered, "its end").startswith(b"HTTP/1.1 408 ")


@pytest.mark.long
def test_far_too_many_connections_are_cut_off_and_prices_go_on(market: Market) -> None:
    system.allow_open_files(4096)  # 500 here, beside what the tests before have left open
    with running_serve(market.root, "--max-clients", "1") as server, ExitStack() as stack:
        good, before = server.subscriber("AAPL"), server.memory_bytes
        crowd = [stack.enter_context(socket.create_connection(server.address, PATIENCE_S)) for _ in range(500)]
        assert prices(good, 1) == [100]
        market.trade("AAPL", 101)
        assert prices(good, 1) == [101]
        answers = []
        for one in crowd:
            try:
                answers.append(one.recv(100)[:13])
            except ConnectionResetError:
                answers.append(b"")
        assert answers.count(b"") > 100
        assert answers.count(b"HTTP/1.1 408 ") > 100
        assert server.get("/healthz").status == 200
        assert server.memory_bytes - before < 20_000_000


def test_a_foreign_page_cannot_connect(server: Server) -> None:
    for options in ({"origin": "https://evil.example"}, {"host": "evil.example"}):
        with pytest.raises(websocket.WebSocketBadStatusException) as refusal:
            server.connect("/", **options)
        assert refusal.value.status_code == 403


@pytest.mark.long
def test_a_client_that_is_cut_off_leaves_nothing(server: Server) -> None:
    clients = [server.subscriber("AAPL", "MSFT") for _ in range(20)]
    settled(server, 40)
    for client in clients:
        hang_up(client)
    settled(server, 0)
    assert server.metric("ingestor_live_clients") == 0


# Redis


def publish(url: str, rows: pa.RecordBatch) -> None:
    """What the recorder's sink does with these rows."""
    sink = RedisLive(RedisSettings(url=url), None)
    sink.write(Rows(SEGMENT, rows, Counts(), {}, 0, 0, Cursor(1, 0)))
    sink.close()


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path)
    yield server
    server.close()


@pytest.mark.needs("redis-server")
def test_with_redis_clients_cannot_tell_the_difference(redis: RedisServer, tmp_path: Path) -> None:
    rows = trades(0, 30)
    publish(redis.url, rows.slice(0, 20))
    last = {row["symbol"]: row for row in rows.slice(0, 20).to_pylist()}["AAPL"]
    with running_serve(None, "--redis", redis.url, log=tmp_path / "serve.log") as server:
        client, finnhub = server.subscriber("AAPL"), server.connect("/")
        say(finnhub, type="subscribe", symbol="AAPL")
        settled(server, 2)
        assert hear(client)["price"] == last["price"]
        publish(redis.url, rows.slice(20))
        expected = [row for row in rows.slice(20).to_pylist() if row["symbol"] == "AAPL"]
        told = [hear(client) for _ in expected]
        assert [(one["price"], one["volume"]) for one in told] == [(row["price"], row["volume"]) for row in expected]
        assert [one["p"] for one in hear(finnhub)["data"]] == [row["price"] for row in expected]
        assert {quote["state"] for quote in server.get("/symbols").json["symbols"]} == {"unknown"}
        assert "follows Redis" in server.get("/history").json["error"]


@pytest.mark.needs("redis-server")
def test_what_others_publish_is_passed_over(redis: RedisServer, tmp_path: Path) -> None:
    redis.client.set("stock:JUNK", "no price")
    redis.client.rpush("stock:LIST", "x")
    with running_serve(None, "--redis", redis.url, log=tmp_path / "serve.log") as server:
        client = server.subscriber("AAPL")
        assert "not recorded" in hear(client)["error"]
        for junk in ("x", "[]", '{"symbol":1}', '{"symbol":"AAPL","price":NaN,"volume":1.0,"timestamp":1}'):
            redis.client.publish("stock:AAPL", junk)
        publish(redis.url, trades(7, 1, symbols=("AAPL",)))
        assert hear(client)["price"] == trades(7, 1)["price"][0].as_py()


@pytest.mark.needs("redis-server")
def test_a_redis_that_goes_away_is_shown_as_blindness_and_found_again(redis: RedisServer, tmp_path: Path) -> None:
    publish(redis.url, trades(0, 1, symbols=("AAPL",)))
    with running_serve(None, "--redis", redis.url, log=tmp_path / "serve.log") as server:
        client = server.subscriber("AAPL")
        hear(client)

        def states() -> set[tuple[str, str | None]]:
            return {(quote["state"], quote["cause"]) for quote in server.get("/symbols").json["symbols"]}

        redis.kill()
        eventually(lambda: states() == {("blind", "no_redis")}, "blindness")
        redis.start()
        assert "trades were missed" in hear(client)["error"]
        eventually(lambda: states() == {("unknown", None)}, "sight")
        publish(redis.url, trades(9, 1, symbols=("AAPL",)))
        assert hear(client)["price"] == trades(9, 1)["price"][0].as_py()


def test_without_its_redis_it_does_not_begin() -> None:
    code, errors = run_serve(None, "--redis", "redis://127.0.0.1:1", "--port", "0")
    assert code == 1
    assert errors.startswith("error: redis: ")
