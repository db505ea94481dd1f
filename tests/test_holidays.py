"""The US market's holidays, from a REST server of our own over real sockets."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from ingestor.capture.market_calendar import Holidays, find_rest_base, parse_answer
from ingestor.layout import Layout
from ingestor.us_market import Calendar, hours_closing_at

KEY = "the-rest-key"
CHRISTMAS = date(2026, 12, 25)
TOLD = Calendar({CHRISTMAS: None, date(2026, 11, 27): hours_closing_at(13 * 60)})
ANSWER = json.dumps(
    {
        "data": [
            {"eventName": "Christmas", "atDate": "2026-12-25", "tradingHour": ""},
            {"eventName": "Day after Thanksgiving", "atDate": "2026-11-27", "tradingHour": "09:30-13:00"},
        ],
        "exchange": "US",
        "timezone": "America/New_York",
    }
).encode()


class Server:
    """Answers every GET alike, and keeps what it was asked."""

    def __init__(self, status: int, body: bytes, location: str | None = None) -> None:
        asked: list[tuple[str, str | None]] = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append((self.path, self.headers["X-Finnhub-Token"]))
                self.send_response(status)
                if location is not None:
                    self.send_header("Location", location)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Nothing on stderr."""

        self.asked = asked
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.base = f"http://127.0.0.1:{self.http.server_port}/api/v1"


@contextmanager
def serving(status: int = 200, body: bytes = ANSWER, location: str | None = None) -> Iterator[Server]:
    server = Server(status, body, location)
    thread = threading.Thread(target=server.http.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        thread.join()
        server.http.server_close()


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path)
    layout.create()
    return layout


def ask(holidays: Holidays, now_s: float = 0.0) -> None:
    thread = holidays.refresh(now_s)
    assert thread is not None
    thread.join()


def test_the_venue_is_asked_with_the_key_in_a_header(layout: Layout) -> None:
    with serving() as server:
        holidays = Holidays(layout, server.base, KEY)
        assert holidays.calendar == Calendar()
        ask(holidays)
    assert server.asked == [("/api/v1/stock/market-holiday?exchange=US", KEY)]
    assert holidays.calendar == TOLD


def test_the_next_run_knows_them_from_the_root(layout: Layout) -> None:
    with serving() as server:
        ask(Holidays(layout, server.base, KEY))
    assert Holidays(layout, None, KEY).calendar == TOLD


def test_it_asks_once_a_day_whatever_the_answer(layout: Layout) -> None:
    with serving(403, b"{}") as server:
        holidays = Holidays(layout, server.base, KEY)
        ask(holidays, 0.0)
        assert holidays.refresh(86_399.0) is None
        ask(holidays, 86_400.0)
    assert len(server.asked) == 2


@pytest.mark.parametrize(
    ("status", "body"),
    [(401, b"{}"), (403, b"{}"), (500, b""), (200, b"<html>"), (200, b"[]"), (200, b'{"data":[{"atDate":7}]}')],
)
def test_whatever_goes_wrong_what_was_known_stays(layout: Layout, status: int, body: bytes) -> None:
    layout.holidays.write_text('["2026-12-25"]')
    with capture_logs() as logs, serving(status, body) as server:
        holidays = Holidays(layout, server.base, KEY)
        ask(holidays)
    assert holidays.calendar == Calendar({CHRISTMAS: None})
    assert [one["event"] for one in logs] == ["holidays.unknown"]
    assert KEY not in str(logs)


def test_nobody_there_is_no_error(layout: Layout) -> None:
    with serving() as server:
        base = server.base
    with capture_logs() as logs:
        ask(Holidays(layout, base, KEY))
    assert [one["instead"] for one in logs] == ["as known before, or by rule"]


def test_a_redirect_is_not_followed_and_the_key_goes_nowhere_else(layout: Layout) -> None:
    with serving() as elsewhere, serving(302, b"", f"{elsewhere.base}/x") as server:
        holidays = Holidays(layout, server.base, KEY)
        ask(holidays)
    assert elsewhere.asked == []
    assert holidays.calendar == Calendar()


def test_a_memory_that_is_none_is_asked_for_again(layout: Layout) -> None:
    layout.holidays.write_text("{")
    assert Holidays(layout, None, KEY).calendar == Calendar()


@pytest.mark.parametrize(
    ("feed_url", "base"),
    [
        ("wss://ws.finnhub.io", "https://finnhub.io/api/v1"),
        ("wss://ws.finnhub.io/?x=1", "https://finnhub.io/api/v1"),
        ("ws://ws.finnhub.io", None),
        ("ws://127.0.0.1:8765", None),
        ("wss://ws.finnhub.io.example.com", None),
    ],
)
def test_only_finnhub_itself_is_asked(feed_url: str, base: str | None, layout: Layout) -> None:
    assert find_rest_base(feed_url) == base
    assert Holidays(layout, None, KEY).refresh(0.0) is None


def test_a_short_day_is_no_holiday() -> None:
    assert parse_answer(ANSWER) == {"2026-11-27": "09:30-13:00", "2026-12-25": ""}
