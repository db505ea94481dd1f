"""The venue over real sockets: its rules, its truth, and each way in which it misbehaves."""

import asyncio
import json
import math
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import websocket
from journals import make_root
from simulated_venues import RunningVenue, read_truth, running_venue
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, InvalidMessage, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from ingestor.errors import ConfigError
from ingestor.journal.records import Header, Kind, encode_raw
from ingestor.layout import SegmentId
from ingestor.metrics import Counts
from ingestor.simulator.connection import VenueConnection, make_protocol
from ingestor.simulator.faults import (
    Abort,
    Answer,
    Close,
    DelayHandshake,
    Fragment,
    HalfFrame,
    HugeFrame,
    Junk,
    Lasting,
    Mute,
    Outage,
    RefuseSymbols,
    Reorder,
    Repeat,
    Reset,
    Schedule,
    ShiftTime,
    Sudden,
    Trickle,
)
from ingestor.simulator.market import MarketSettings
from ingestor.simulator.venue import VenueSettings, open_venue
from ingestor.sinks.parquet_files import publish_frames

FAST = VenueSettings(market=MarketSettings(rate=10_000, seed=7))
WAIT_S = 10.0
"""Longer than anything here takes."""
QUIET: dict[str, Any] = {
    "compression": None, "ping_interval": None, "max_size": None, "max_queue": None, "close_timeout": 0.1,
}  # fmt: skip
"""A client that reads whatever comes and sends no pings of its own."""


def afflicted(*faults: Sudden | Lasting, **changes: Any) -> VenueSettings:
    return replace(FAST, faults=Schedule(faults), **changes)


@contextmanager
def client(venue: RunningVenue, *symbols: str, key: str = "demo", **changes: Any) -> Iterator[ClientConnection]:
    with connect(f"{venue.url}/?token={key}", **(QUIET | changes)) as opened:
        ask(opened, "subscribe", *symbols)
        yield opened


def ask(opened: ClientConnection, command: str, *symbols: str) -> None:
    for symbol in symbols:
        opened.send(json.dumps({"type": command, "symbol": symbol}))


def messages(opened: ClientConnection) -> Iterator[Any]:
    """The decoded messages until the connection ends."""
    try:
        while True:
            yield json.loads(opened.recv(WAIT_S))
    except ConnectionClosed:
        return


def trades_in(received: list[Any]) -> list[dict[str, Any]]:
    return [trade for message in received if message["type"] == "trade" for trade in message["data"]]


def take(opened: ClientConnection, count: int) -> list[dict[str, Any]]:
    """The trades of the next messages, at least so many."""
    trades: list[dict[str, Any]] = []
    while len(trades) < count:
        trades += trades_in([json.loads(opened.recv(WAIT_S))])
    return trades


def take_rest(opened: ClientConnection, *symbols: str) -> list[dict[str, Any]]:
    """Gives the symbols up; all trades sent until then. The pong is behind the last of them."""
    ask(opened, "unsubscribe", *symbols)
    assert opened.ping().wait(WAIT_S)
    received = []
    with suppress(TimeoutError):
        while True:
            received.append(json.loads(opened.recv(0)))
    return trades_in(received)


def counted(trades: list[dict[str, Any]]) -> Counter[str]:
    return Counter(json.dumps(trade, sort_keys=True) for trade in trades)


def truth_of(path: Path | None, connection: int | None = None) -> Counter[str]:
    """The truth's trades as the wire had them, counted."""
    assert path is not None
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    head = {"sent_us", "connection", "frame"}
    return counted(
        [
            {name: value for name, value in line.items() if name not in head}
            for line in lines
            if connection in {None, line["connection"]}
        ]
    )


def read_out(opened: ClientConnection, patience_s: float = WAIT_S) -> None:
    """Reads until it can't: raises ConnectionClosed, or TimeoutError where nothing comes any more."""
    while True:
        opened.recv(patience_s)


def eventually(fact: Callable[[], bool]) -> None:
    """Waits for a fact about another thread, which says nothing when it comes true."""
    deadline = time.monotonic() + WAIT_S
    while not fact():
        assert time.monotonic() < deadline
        threading.Event().wait(0.005)


# basic


def test_it_sends_trades_of_the_symbols_asked_for_and_of_no_other() -> None:
    settings = replace(FAST, symbols=("AAPL", "MSFT", "BINANCE:BTCUSDT"))
    with running_venue(settings) as venue, client(venue, "AAPL", "BINANCE:BTCUSDT") as opened:
        trades = take(opened, 200)
    assert {trade["s"] for trade in trades} == {"AAPL", "BINANCE:BTCUSDT"}
    assert all(abs(trade["t"] / 1000 - time.time()) < 60 for trade in trades)


def test_unsubscribing_ends_a_symbol() -> None:
    with running_venue(FAST) as venue, client(venue, "AAPL", "MSFT") as opened:
        take(opened, 50)
        ask(opened, "unsubscribe", "AAPL")
        while "AAPL" in {trade["s"] for trade in take(opened, 50)}:
            pass
        assert {trade["s"] for trade in take(opened, 100)} == {"MSFT"}


def test_what_a_client_got_is_the_truth(tmp_path: Path) -> None:
    symbols = ("AAPL", "BINANCE:BTCUSDT", "OANDA:EUR_USD")
    with running_venue(replace(FAST, truth=tmp_path / "t.jsonl")) as venue, client(venue, *symbols) as opened:
        received = take(opened, 1000) + take_rest(opened, *symbols)
        assert venue.trades_sent == len(received)
    assert counted(received) == truth_of(venue.truth)
    forms = {json.dumps(trade.get("c", "absent")) for trade in received}
    assert {"null", "[]", '"absent"', '["1"]'} <= forms
    table = read_truth(tmp_path / "t.jsonl")
    assert table.num_rows == len(received)
    assert table["frame"].to_pylist() == sorted(table["frame"].to_pylist())


def test_each_of_many_clients_gets_what_its_truth_says(tmp_path: Path) -> None:
    settings = replace(FAST, truth=tmp_path / "t.jsonl", keys=frozenset({"one", "two"}))
    with (
        running_venue(settings) as venue,
        client(venue, "AAPL", key="one") as one,
        client(venue, "AAPL", "MSFT", key="two") as two,
    ):
        received = [take(opened, 300) + take_rest(opened, "AAPL", "MSFT") for opened in (one, two)]
    assert [counted(trades) for trades in received] == [truth_of(venue.truth, number) for number in (1, 2)]
    assert {trade["s"] for trade in received[0]} == {"AAPL"}


def test_a_seed_repeats_what_is_sent() -> None:
    def run() -> list[tuple[Any, ...]]:
        with running_venue(FAST) as venue, client(venue, "MSFT") as opened:
            return [(trade["p"], trade["v"], trade.get("c", "absent")) for trade in take(opened, 400)[:400]]

    assert run() == run()


def test_the_application_ping_comes_whether_or_not_there_are_trades() -> None:
    with running_venue(replace(FAST, ping_interval_s=0.05)) as venue, client(venue) as opened:
        assert [json.loads(opened.recv(WAIT_S)) for _ in range(3)] == [{"type": "ping"}] * 3


def test_protocol_pings_are_answered() -> None:
    with running_venue(FAST) as venue, client(venue, "AAPL") as opened:
        assert opened.ping().wait(WAIT_S)


def test_messages_that_make_no_sense_do_no_harm() -> None:
    with running_venue(FAST) as venue, client(venue) as opened:
        for text in ("", "null", "[]", "{}", '{"type":"subscribe"}', '{"type":"dance","symbol":"AAPL"}', "\ud7ff"):
            opened.send(text)
        opened.send(b"\xff\x00")
        ask(opened, "subscribe", "AAPL")
        assert take(opened, 1)[0]["s"] == "AAPL"


def test_as_fast_as_the_client_reads_is_faster_than_any_market() -> None:
    with running_venue(VenueSettings(market=MarketSettings(rate=math.inf))) as venue, client(venue, "AAPL") as opened:
        assert len(take(opened, 10_000)) >= 10_000


@pytest.mark.long
def test_a_client_that_does_not_read_makes_the_venue_wait_and_loses_nothing(tmp_path: Path) -> None:
    settings = VenueSettings(market=MarketSettings(rate=math.inf), truth=tmp_path / "t.jsonl")
    with running_venue(settings) as venue, socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.connect(address(venue))
        with client(venue, "AAPL", sock=raw, max_queue=1) as opened:
            seen, before = 1, 0
            while seen != before:
                threading.Event().wait(0.2)
                seen, before = venue.trades_sent, seen
            assert len(take(opened, seen)) >= seen, "all that was sent before the venue waited"
            assert take(opened, 1), "and it goes on"


# rules


@pytest.mark.parametrize("path", ["/?token=wrong", "/", "/?token=", "/?key=demo"])
def test_a_wrong_key_is_answered_401(path: str) -> None:
    with running_venue(FAST) as venue, pytest.raises(InvalidStatus) as refused, connect(venue.url + path):
        pass
    assert refused.value.response.status_code == 401


def test_any_key_will_do_where_that_was_asked_for() -> None:
    with (
        running_venue(replace(FAST, keys=None)) as venue,
        client(venue, "AAPL", key="x") as one,
        client(venue, "AAPL", key="y") as two,
    ):
        assert take(one, 1)
        assert take(two, 1)


def test_a_second_connection_with_the_key_ends_both() -> None:
    with running_venue(FAST) as venue, client(venue, "AAPL") as first, client(venue) as second:
        for opened in (first, second):
            with pytest.raises(ConnectionClosedError):
                read_out(opened)
        eventually(lambda: venue.connections == 0)
        with client(venue, "AAPL") as third:
            assert take(third, 1)


def test_the_key_of_a_connection_that_the_venue_closed_is_free_before_the_client_has_answered() -> None:
    with (
        running_venue(afflicted(Close(connection=1, after_s=0, code=1001))) as venue,
        socket.create_connection(address(venue)) as raw,
    ):
        raw.settimeout(WAIT_S)
        raw.sendall(handshake(venue))
        goodbye = b"\x88\x02" + (1001).to_bytes(2, "big")
        received = b""
        while goodbye not in received:
            received += raw.recv(65536)
        with client(venue, "AAPL") as second:
            assert take(second, 1)


def test_more_symbols_than_the_limit_are_refused_until_one_is_given_up() -> None:
    with running_venue(replace(FAST, limit=2)) as venue, client(venue) as opened:
        refusal = {"msg": "Subscribing to too many symbols", "type": "error"}
        ask(opened, "subscribe", "INVALID1", "A", "B", "A", "C")
        received = iter(messages(opened))
        assert next(received) == {"msg": "Invalid symbol INVALID1", "type": "error"}
        assert next(message for message in received if message["type"] != "trade") == refusal
        ask(opened, "unsubscribe", "A")
        ask(opened, "subscribe", "C")
        while "C" not in {trade["s"] for trade in take(opened, 1)}:
            pass


def test_the_limit_is_fifty_on_the_free_plan() -> None:
    with running_venue(FAST) as venue, client(venue, *[f"S{number}" for number in range(51)]) as opened:
        assert next(message for message in messages(opened) if message["type"] == "error")
        assert len({trade["s"] for trade in take(opened, 1500)}) == 50


def test_symbols_that_are_not_traded_here_are_invalid() -> None:
    with running_venue(replace(FAST, symbols=("AAPL",))) as venue, client(venue, "MSFT") as opened:
        assert next(messages(opened)) == {"msg": "Invalid symbol MSFT", "type": "error"}


def test_stopping_says_going_away() -> None:
    with running_venue(FAST) as venue, client(venue, "AAPL") as opened:
        take(opened, 1)
        venue.stop()
        with pytest.raises(ConnectionClosed) as closed:
            read_out(opened)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1001


# other protocols


def test_flat_streams_prices_without_a_subscription_or_a_key(tmp_path: Path) -> None:
    settings = replace(FAST, protocol="flat", truth=tmp_path / "t.jsonl", symbols=("AAPL", "MSFT"))
    with running_venue(settings) as venue, connect(venue.url, **QUIET) as opened:
        received = [json.loads(opened.recv(WAIT_S)) for _ in range(200)]
    assert {tuple(message) for message in received} == {("symbol", "price", "volume")}
    assert {message["symbol"] for message in received} == {"AAPL", "MSFT"}
    as_sent = [{"p": message["price"], "s": message["symbol"], "v": message["volume"]} for message in received]
    assert counted(as_sent) <= truth_of(venue.truth)


def test_bars_come_one_a_symbol_and_an_interval() -> None:
    settings = VenueSettings(protocol="bars", market=MarketSettings(interval_s=0.02))
    with running_venue(settings) as venue, connect(venue.url, **QUIET) as opened:
        received = [json.loads(opened.recv(WAIT_S)) for _ in range(30)]
    assert [bar["symbol"] for bar in received] == ["AAPL", "MSFT", "BINANCE:BTCUSDT"] * 10
    for bar in received:
        assert bar["low"] <= min(bar["open"], bar["close"]) <= max(bar["open"], bar["close"]) <= bar["high"]
        assert bar["volume"] > 0


def test_a_replay_sends_the_recording_and_then_is_silent(tmp_path: Path) -> None:
    with running_venue(replace(FAST, truth=tmp_path / "first.jsonl")) as venue, client(venue, "AAPL") as opened:
        take(opened, 300)
    settings = replace(
        FAST,
        replay=tmp_path / "first.jsonl",
        speed=math.inf,
        truth=tmp_path / "second.jsonl",
        ping_interval_s=0.2,
    )
    with running_venue(settings) as venue, client(venue, "AAPL") as opened:
        kinds = [""]
        received: list[Any] = []
        while kinds[-2:] != ["ping", "ping"]:
            received.append(json.loads(opened.recv(WAIT_S)))
            kinds.append(received[-1]["type"])
    assert counted(trades_in(received)) == truth_of(tmp_path / "first.jsonl") == truth_of(tmp_path / "second.jsonl")


def test_a_replay_of_frames_sends_them_as_they_came(tmp_path: Path) -> None:
    frames = [b'{"type":"trade","data":[]}', b"junk", b"", '{"news":"é"}'.encode(), b'{"last":true}']
    layout, segment = make_root(tmp_path), SegmentId(1, datetime(2026, 11, 20, 23, 59, tzinfo=UTC), 1)
    midnight_us = round(datetime(2026, 11, 21, tzinfo=UTC).timestamp() * 1e6)
    blocks = [
        whole_raw(number, midnight_us + number * 1000 - 1500, frames[2 * number : 2 * number + 2])
        for number in range(3)
    ]
    publish_frames(layout, segment, blocks)
    assert len(list(layout.raw.glob("date=*/*.parquet"))) == 2
    settings = replace(FAST, replay=layout.raw, speed=0.5)
    with running_venue(settings) as venue, client(venue, "AAPL") as opened:
        assert [opened.recv(WAIT_S) for _ in frames] == [frame.decode() for frame in frames]
    with pytest.raises(ConfigError, match="the truth is about trades"):
        asyncio.run(open_venue(replace(settings, truth=tmp_path / "truth.jsonl")))


def whole_raw(first: int, at_us: int, payloads: list[bytes]) -> bytes:
    """The body of a record of these frames."""
    block = Header(Kind.BLOCK, Counts(frames=len(payloads)), first * 2)
    return bytes(encode_raw(block, 1, [at_us] * len(payloads), payloads)[1])


# TLS


@pytest.mark.needs("openssl")
def test_it_serves_tls(tmp_path: Path) -> None:
    pem, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", pem],
        check=True, capture_output=True,
    )  # fmt: skip
    with running_venue(replace(FAST, certificate=(pem, key))) as venue:
        assert venue.url.startswith("wss://")
        # Not `client`: it reads and writes one TLS object from two threads, which Python before 3.13 doesn't guard.
        opened = websocket.create_connection(f"{venue.url}/?token=demo", timeout=WAIT_S, sslopt={"ca_certs": str(pem)})
        opened.send(json.dumps({"type": "subscribe", "symbol": "AAPL"}))
        kinds = {json.loads(opened.recv())["type"] for _ in range(100)}
        opened.close()
    assert kinds == {"trade"}


# misbehaving: the handshake


@pytest.mark.parametrize("status", [200, 401, 403, 429, 524])
def test_the_handshake_is_answered_as_scripted_and_the_next_one_well(status: int) -> None:
    with running_venue(afflicted(Answer(connection=1, status=status))) as venue:
        with pytest.raises(InvalidStatus) as refused, client(venue):
            pass
        assert refused.value.response.status_code == status
        with client(venue, "AAPL") as opened:
            assert take(opened, 1)


def test_a_redirect_names_another_host() -> None:
    fault = Answer(status=302, location="ws://127.0.0.2:9/")
    with running_venue(afflicted(fault)) as venue, socket.create_connection(address(venue)) as raw:
        raw.sendall(handshake(venue))
        answer = read_to_end(raw).decode()
    assert answer.startswith("HTTP/1.1 302 ")
    assert "Location: ws://127.0.0.2:9/\r\n" in answer


def test_a_slow_handshake_comes_in_the_end() -> None:
    with running_venue(afflicted(DelayHandshake(by_s=0.3))) as venue:
        with pytest.raises(TimeoutError), client(venue, open_timeout=0.05):
            pass
        with client(venue, "AAPL") as opened:
            assert take(opened, 1)
            assert venue.connections == 1, "the client that gave up holds no key"


def test_what_is_no_handshake_is_hung_up_on() -> None:
    with running_venue(FAST) as venue:
        with socket.create_connection(address(venue)) as raw:
            raw.sendall(b"HELO venue\r\n\r\n")
            assert b"101" not in read_to_end(raw)
        with client(venue, "AAPL") as opened:
            assert take(opened, 1)


# misbehaving: the end of a connection


@pytest.mark.parametrize("code", [1000, 1001])
def test_a_clean_close_carries_its_code_and_all_that_was_sent(tmp_path: Path, code: int) -> None:
    settings = afflicted(Close(connection=1, after_s=0.2, code=code), truth=tmp_path / "t.jsonl")
    with running_venue(settings) as venue:
        with client(venue, "AAPL") as opened:
            received = trades_in(list(messages(opened)))
            assert opened.close_code == code
        with client(venue, "AAPL") as again:
            assert take(again, 1)
    assert received
    assert counted(received) == truth_of(venue.truth, 1)


@pytest.mark.parametrize("fault", [Abort(connection=1, after_s=0.2), Reset(connection=1, after_s=0.2)])
def test_an_abort_comes_without_a_close_frame(tmp_path: Path, fault: Sudden) -> None:
    with running_venue(afflicted(fault, truth=tmp_path / "t.jsonl")) as venue:
        with client(venue, "AAPL") as opened:
            received = trades_in(list(messages(opened)))
            assert opened.close_code == 1006
        with client(venue, "AAPL") as again:
            assert take(again, 1)
    assert received
    assert counted(received) <= truth_of(venue.truth, 1)


def test_a_reset_is_one() -> None:
    with running_venue(afflicted(Reset(after_s=0.05))) as venue, socket.create_connection(address(venue)) as raw:
        raw.sendall(handshake(venue))
        with pytest.raises(ConnectionResetError):
            read_to_end(raw)


@pytest.mark.parametrize("end", [VenueConnection.abort, VenueConnection.reset])
def test_a_connection_that_has_just_ended_can_not_be_ended_again(end: Callable[[VenueConnection], None]) -> None:
    """A fault may strike in the very moment that the client leaves."""

    async def run() -> None:
        async with await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0) as server:
            _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            connection = VenueConnection(1, 0.0, make_protocol(), writer, None)
            connection.abort()
            await asyncio.sleep(0)  # the loop closes the socket
            assert writer.get_extra_info("socket").fileno() == -1
            end(connection)

    asyncio.run(run())


def test_an_outage_cuts_all_and_answers_nobody() -> None:
    with running_venue(afflicted(Outage(at_s=0.5, for_s=600))) as venue:
        with client(venue, "AAPL") as opened:
            list(messages(opened))
            assert opened.close_code == 1006
        with socket.create_connection(address(venue)) as raw:
            assert read_to_end(raw) == b"", "hung up on without a word"


def test_after_an_outage_the_venue_is_there_again() -> None:
    with running_venue(afflicted(Outage(at_s=0, for_s=0.2))) as venue:
        eventually(lambda: reachable(venue))


def test_drop_cuts_every_connection_now() -> None:
    with running_venue(replace(FAST, keys=None)) as venue:
        with client(venue, "AAPL", key="a") as one, client(venue, "AAPL", key="b") as two:
            take(one, 1)
            take(two, 1)
            venue.drop()
            list(messages(one))
            list(messages(two))
            assert (one.close_code, two.close_code) == (1006, 1006)
        with client(venue, "AAPL", key="a") as again:
            assert take(again, 1)


# misbehaving by silence


@pytest.mark.parametrize("fault", [Mute(connection=1, pings=False), HalfFrame(connection=1), Trickle(connection=1)])
def test_silence_is_complete_and_the_next_connection_lives(tmp_path: Path, fault: Lasting | Sudden) -> None:
    settings = afflicted(fault, truth=tmp_path / "t.jsonl", ping_interval_s=0.02, keys=None)
    with running_venue(settings) as venue, client(venue, key="a") as muted, client(venue, "AAPL", key="b") as live:
        eventually(lambda: venue.connections == 2)
        ask(muted, "subscribe", "AAPL")
        answered = muted.ping()
        take(live, 400)  # as many would have come to the muted one
        with pytest.raises(TimeoutError):
            muted.recv(0.01)
        assert not answered.is_set()
    assert truth_of(venue.truth, 1).total() == 0
    assert truth_of(venue.truth, 2).total() >= 400


def test_pings_may_go_on_without_trades() -> None:
    with running_venue(afflicted(Mute(), ping_interval_s=0.02)) as venue, client(venue, "AAPL") as opened:
        assert [json.loads(opened.recv(WAIT_S)) for _ in range(10)] == [{"type": "ping"}] * 10


def test_one_symbol_is_mute_until_it_is_asked_for_again() -> None:
    fault = Mute(at_s=0.2, symbols="first", until_resubscribed=True)
    with running_venue(afflicted(fault)) as venue, client(venue, "AAPL", "MSFT") as opened:
        while "AAPL" in {trade["s"] for trade in take(opened, 100)}:
            pass
        ask(opened, "subscribe", "AAPL")
        while "AAPL" not in {trade["s"] for trade in take(opened, 100)}:
            pass


def test_mute_lasts_as_long_as_it_was_asked_for() -> None:
    with running_venue(replace(FAST, ping_interval_s=0.02)) as venue, client(venue, "AAPL") as opened:
        take(opened, 1)
        venue.mute(0.3)
        with pytest.raises(TimeoutError):
            read_out(opened, 0.2)
        assert take(opened, 1)


def test_false_refusals_name_the_symbol_or_not() -> None:
    faults = (RefuseSymbols(symbols=("AAPL",)), RefuseSymbols(symbols=("MSFT",), named=False))
    with running_venue(afflicted(*faults)) as venue, client(venue, "AAPL", "MSFT", "TSLA") as opened:
        received = iter(messages(opened))
        assert next(received)["msg"] == "Invalid symbol AAPL"
        assert next(received)["msg"] == "Invalid symbol"
        assert {trade["s"] for trade in take(opened, 50)} == {"TSLA"}


# misbehaving: odd frames


@pytest.mark.parametrize(
    "fault",
    [
        Fragment(),
        Repeat(times=3),
        Reorder(),
        ShiftTime(back_s=2400),
        ShiftTime(ahead_s=90_000),
        HugeFrame(after_s=0.05, size=1 << 20),
    ],
)
def test_the_truth_is_exact_under_odd_frames(tmp_path: Path, fault: Lasting | Sudden) -> None:
    with running_venue(afflicted(fault, truth=tmp_path / "t.jsonl")) as venue, client(venue, "AAPL", "MSFT") as opened:
        received = take(opened, 600) + take_rest(opened, "AAPL", "MSFT")
    assert counted(received) == truth_of(venue.truth)


@pytest.mark.parametrize("kind", ["garbage", "binary", "invalid_utf8", "unknown_types"])
def test_junk_comes_between_good_frames_and_not_into_the_truth(tmp_path: Path, kind: Any) -> None:
    settings = afflicted(Junk(every_s=0.01, kind=kind), truth=tmp_path / "t.jsonl")
    good: list[dict[str, Any]] = []
    junk = 0
    with running_venue(settings) as venue, client(venue, "AAPL") as opened:
        while len(good) < 300 or not junk:
            payload = opened.recv(WAIT_S, decode=False)
            if payload.startswith(b'{"data":[{"') and b'"AAPL"' in payload and payload.endswith(b',"type":"trade"}'):
                good += trades_in([json.loads(payload)])
            else:
                junk += 1
    assert counted(good) <= truth_of(venue.truth)
    assert {json.loads(line)["s"] for line in truth_of(venue.truth)} == {"AAPL"}


def test_three_times_is_three_times_in_a_row() -> None:
    with running_venue(afflicted(Repeat(times=3))) as venue, client(venue, "AAPL") as opened:
        received = [opened.recv(WAIT_S) for _ in range(30)]
    assert received[0::3] == received[1::3] == received[2::3]
    assert len(set(received)) == 10


def test_late_trades_are_late() -> None:
    with running_venue(afflicted(ShiftTime(back_s=2400))) as venue, client(venue, "AAPL") as opened:
        late_s = [time.time() - trade["t"] / 1000 for trade in take(opened, 50)]
    assert min(late_s) > 2400


def test_a_huge_frame_is_huge() -> None:
    with running_venue(afflicted(HugeFrame(after_s=0, size=8 << 20))) as venue, client(venue, "AAPL") as opened:
        while len(payload := opened.recv(WAIT_S)) != 8 << 20:
            pass
        assert trades_in([json.loads(payload)])


# known errors


def test_a_port_in_use_is_a_clear_error() -> None:
    with (
        running_venue(FAST) as venue,
        pytest.raises(ConfigError, match=r"can't listen on 127\.0\.0\.1"),
        running_venue(replace(FAST, port=address(venue)[1])),
    ):
        pass


def test_a_truth_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    settings = replace(FAST, truth=tmp_path / "missing" / "t.jsonl")
    with pytest.raises(ConfigError, match="truth can't be written"), running_venue(settings):
        pass


def test_bars_have_no_truth(tmp_path: Path) -> None:
    settings = VenueSettings(protocol="bars", truth=tmp_path / "t.jsonl")
    with pytest.raises(ConfigError, match="bars"), running_venue(settings):
        pass


def test_what_breaks_the_venue_is_raised(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"s":"AAPL","p":1,"t":1,"v":1}\njunk\n')
    settings = replace(FAST, replay=tmp_path / "a.jsonl")
    with (
        pytest.raises(ConfigError, match=r"a\.jsonl:2"),
        running_venue(settings) as venue,
        client(venue, "AAPL") as opened,
    ):
        list(messages(opened))


def test_a_missing_certificate_is_a_clear_error(tmp_path: Path) -> None:
    settings = replace(FAST, certificate=(tmp_path / "c.pem", tmp_path / "k.pem"))
    with pytest.raises(ConfigError, match="no certificate"), running_venue(settings):
        pass


# raw sockets


def address(venue: RunningVenue) -> tuple[str, int]:
    host, _, port = venue.url.removeprefix("ws://").partition(":")
    return host, int(port)


def handshake(venue: RunningVenue) -> bytes:
    return (
        f"GET /?token=demo HTTP/1.1\r\nHost: {':'.join(map(str, address(venue)))}\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ).encode()


def read_to_end(raw: socket.socket) -> bytes:
    raw.settimeout(WAIT_S)
    return b"".join(iter(lambda: raw.recv(65536), b""))


def reachable(venue: RunningVenue) -> bool:
    try:
        with client(venue, "AAPL") as opened:
            return bool(take(opened, 1))
    except (OSError, InvalidMessage, ConnectionClosed):
        return False
