"""Venue, recorder, `serve`, and who looks at it: a real browser, and a good client among some that mean no good."""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jwt
import pyarrow as pa
import pytest
import websocket
from browser import Browser, running_browser
from dashboards import BARS, CAUSES, MODELS, array, running_dashboard
from documents import blocks, read
from harness import SYMBOLS, Site, running_venue
from live_servers import PATIENCE_S, Server, hear, hear_end, running_serve, say
from requirements import of_tier

import ingestor

pytestmark = pytest.mark.alone

LIVE = "document.getElementById('link').dataset.state === 'live'"
PRICES = "[...document.querySelectorAll('td.price')].map((cell) => cell.textContent).join(' ')"
STATES = "[...document.querySelectorAll('tbody tr')].map((row) => row.dataset.state).join(' ')"
HEARD = of_tier(1000, 200)
REFUSED = ("ERR_CONNECTION_REFUSED", "ERR_CONNECTION_RESET", "ERR_EMPTY_RESPONSE")
"""What a browser notes by itself while a server is away."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A recording under way."""
    folder = tmp_path_factory.mktemp("live")
    with running_venue(folder, "--rate", "300") as venue:
        yield Site(folder, folder / "data", venue.url, settings={"storage": {"rotate": {"age": "5s"}}})


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_browser() as browser:
        yield browser


@contextmanager
def served(site: Site, *options: str, **environ: Any) -> Iterator[Server]:
    """A recorder that has rows, and `serve` beside it."""
    with site.running() as recorder:
        recorder.wait_for_rows()
        with running_serve(site.root, *options, **environ) as server:
            yield server


def moved(browser: Browser) -> None:
    """Until each price has another value than now."""
    before = browser.evaluate(PRICES).split()
    assert len(before) == len(SYMBOLS)
    for index, price in enumerate(before):
        browser.wait(f"{PRICES}.split(' ')[{index}] !== '{price}'")


@pytest.mark.long
@pytest.mark.needs("chromium")
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize(("width", "height"), [(1280, 720), (390, 844)])
def test_the_page_shows_moving_prices(
    site: Site, browser: Browser, tmp_path: Path, width: int, height: int, dark: bool
) -> None:
    with served(site) as server:
        browser.open(server.url, width=width, height=height, dark=dark)
        browser.wait(LIVE)
        browser.wait(f"{STATES} === 'recorded recorded recorded'")
        moved(browser)
        browser.wait("[...document.querySelectorAll('td.age')].every((cell) => cell.textContent.endsWith('s'))")
        browser.wait("[...document.querySelectorAll('path')].every((line) => line.getAttribute('d'))")
        assert browser.evaluate("document.documentElement.scrollWidth") == width, "nothing to scroll sideways"
        ground = browser.evaluate("getComputedStyle(document.body).backgroundColor")
        assert ground == ("rgb(15, 18, 22)" if dark else "rgb(255, 255, 255)")
        browser.picture(tmp_path / "page.png")
        assert browser.find_barriers() == []
        assert browser.errors == []


@pytest.mark.needs("chromium")
def test_the_search_hides_what_is_not_meant(site: Site, browser: Browser) -> None:
    with served(site) as server:
        browser.open(server.url)
        browser.wait(LIVE)
        shown = "[...document.querySelectorAll('tbody tr:not([hidden]) th')].map((cell) => cell.textContent).join(' ')"
        assert browser.wait(shown) == "AAPL BINANCE:BTCUSDT MSFT"
        search = "const search = document.getElementById('search'); search.value = '{}';"
        browser.evaluate(f"{{{search.format('btc')} search.dispatchEvent(new Event('input'))}}")
        assert browser.evaluate(shown) == "BINANCE:BTCUSDT"


@pytest.mark.needs("chromium")
def test_the_page_sorts_by_each_column_and_leads_to_the_bars(site: Site, browser: Browser) -> None:
    shown = "[...document.querySelectorAll('tbody th')].map((cell) => cell.textContent).join(' ')"
    sorted_by = "[...document.querySelectorAll('th[aria-sort]')].map((head) => head.innerText + head.ariaSort).join()"
    with served(site) as server:
        browser.open(server.url)
        browser.wait(f"{STATES} === 'recorded recorded recorded'")
        assert browser.evaluate(sorted_by) == "Symbolascending"
        browser.evaluate("document.querySelector('[data-by=price]').click()")
        assert browser.evaluate(shown) == "BINANCE:BTCUSDT MSFT AAPL"
        assert browser.evaluate(sorted_by) == "Lastdescending"
        browser.evaluate("document.querySelector('[data-by=price]').click()")
        assert browser.evaluate(shown) == "AAPL MSFT BINANCE:BTCUSDT"
        for name in ("change", "rate", "age", "state", "symbol"):
            browser.evaluate(f"document.querySelector('[data-by={name}]').click()")
        assert (browser.evaluate(shown), browser.evaluate(sorted_by)) == (
            "AAPL BINANCE:BTCUSDT MSFT",
            "Symbolascending",
        )
        line = "coursePath([1, 2, null, null, 2, 3])"
        assert browser.evaluate(line) == "M0.0,22.0L18.0,12.0M72.0,12.0L90.0,2.0"
        assert browser.find_barriers() == []
        bars = browser.evaluate("document.querySelector('tbody th a').href")
        assert server.get(bars.removeprefix(server.url)).json["bars"]
    assert browser.errors == []


@pytest.mark.long
@pytest.mark.needs("chromium")
def test_the_page_survives_restarts_and_shows_blindness(site: Site, browser: Browser) -> None:
    with site.running() as recorder:
        recorder.wait_for_rows()
        with running_serve(site.root) as server:
            browser.open(server.url)
            browser.wait(LIVE)
            browser.wait(f"{STATES} === 'recorded recorded recorded'")
        browser.wait("document.getElementById('link').dataset.state === 'lost'")
        assert browser.evaluate(STATES) == "blind blind blind"
        with running_serve(site.root, "--port", server.url.rpartition(":")[2]):
            browser.wait(LIVE)
            browser.wait(f"{STATES} === 'recorded recorded recorded'")
            moved(browser)
            recorder.kill()
            browser.wait(f"{STATES} === 'blind blind blind'")
            # An event tells the rows at once; the page then asks why.
            browser.wait("document.getElementById('trouble').innerText.includes('No recorder runs here')")
            with site.running() as again:
                again.wait_for_rows()
                browser.wait(f"{STATES} === 'recorded recorded recorded'")
                browser.wait("document.getElementById('trouble').hidden")
                moved(browser)
    assert [error for error in browser.errors if not any(refusal in error for refusal in REFUSED)] == []


@pytest.mark.long
@pytest.mark.needs("chromium")
def test_the_javascript_of_the_docs_runs_in_a_page_from_a_file(site: Site, browser: Browser, tmp_path: Path) -> None:
    (snippet,) = blocks(read("docs/watch.md"), "js")
    with served(site, "--allow-origin", "null") as server:
        page = tmp_path / "mine.html"
        told = "<!doctype html><title>none</title><script>console.log = (text) => { document.title = text; };"
        script = snippet.replace("ws://127.0.0.1:8766", server.url.replace("http", "ws")).replace("AAPL", SYMBOLS[0])
        page.write_text(f"{told}{script}</script>")
        browser.open(page.as_uri())
        assert SYMBOLS[0] in browser.wait("document.title.startsWith('{') && document.title")


@pytest.mark.long
@pytest.mark.needs("chromium")
def test_the_dashboard_survives_a_restart_of_the_recorder(site: Site, browser: Browser, tmp_path: Path) -> None:
    """No reload, no console error: what was blind is shaded with its cause, and the prices move again."""
    browser.errors.clear()
    with site.running() as recorder:
        recorder.wait_for_rows()
        with running_dashboard(site.root, "--symbols", "AAPL,MSFT") as url:
            browser.open(url, width=1400, height=860)
            browser.wait(f"{BARS}.length == 2")
            charts_move(browser)
            recorder.kill()
            browser.wait(f"{MODELS}.some(one => one.text == 'no recorder runs')")
            before = browser.evaluate(f"{CAUSES}.map(causes => causes.length)")
            with site.running() as again:
                again.wait_for_rows()
                browser.wait(
                    f"{CAUSES}.every((causes, at) => causes.length > {before}[at] && causes.at(-1) == 'crash')"
                )
                charts_move(browser)
                browser.wait(f"{MODELS}.find(one => one.type == 'Div').text === ''")  # looked at once a second
                browser.picture(tmp_path / "dashboard.png")
            browser.call("Page.navigate", url="about:blank")  # before its server goes
    assert browser.errors == []


def charts_move(browser: Browser) -> None:
    """Until each chart has a newer bar than now."""
    for at in range(2):
        newest = browser.wait(f"{array('time', at)}.at(-1)")
        browser.wait(f"{array('time', at)}.at(-1) > {newest}")


@pytest.mark.long
@pytest.mark.needs("chromium")
def test_the_page_asks_for_a_token(site: Site, browser: Browser) -> None:
    secret = "a secret of a test, 32 bytes long"
    token = jwt.encode({"exp": time.time() + 3600, "aud": "ingestor", "symbols": ["AAPL"]}, secret, "HS256")
    with served(site, "--jwt", "HS256", INGESTOR_JWT_SECRET=secret) as server:
        browser.open(server.url)
        browser.wait("!document.getElementById('entry').hidden")
        browser.evaluate(f"document.getElementById('token').value = '{token}'")
        browser.evaluate("document.querySelector('#entry button').click()")
        browser.wait(LIVE)
        browser.wait(f"{STATES} === 'recorded'")
        before = browser.evaluate(PRICES)
        browser.wait(f"{PRICES} !== '{before}'")


class Crowd:
    """Clients that mean no good, each in a thread of its own until `stop`."""

    def __init__(self, server: Server) -> None:
        self.stop = threading.Event()
        self.rounds = 0
        self._server = server
        self._threads = [
            threading.Thread(target=self._repeat, args=(misdeed,))
            for misdeed in (self._garbage, self._huge, self._greedy, self._half_open, self._foreign)
        ]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        self.stop.set()
        for thread in self._threads:
            thread.join()

    def _repeat(self, misdeed: Any) -> None:
        while not self.stop.wait(0.02):
            with contextlib.suppress(OSError, websocket.WebSocketException):
                misdeed()
            self.rounds += 1

    def _garbage(self) -> None:
        with contextlib.closing(self._server.connect()) as client:
            for _ in range(100):
                client.send_binary(os.urandom(200))
            hear_end(client)

    def _huge(self) -> None:
        with contextlib.closing(self._server.connect("/")) as client:
            client.send("x" * 10_000_000)
            hear_end(client)

    def _greedy(self) -> None:
        with contextlib.closing(self._server.subscriber(*(f"S{number}" for number in range(10_000)))) as client:
            hear(client)

    def _half_open(self) -> None:
        """They stay until the server has had enough of them."""
        with contextlib.ExitStack() as stack:
            for _ in range(50):
                half_open = stack.enter_context(socket.create_connection(self._server.address, PATIENCE_S))
                half_open.send(b"GET /live-price HTTP/1.1\r\nUpgrade: websocket\r\n")
            half_open.recv(100)

    def _foreign(self) -> None:
        self._server.connect("/", origin="https://evil.example")


def test_a_good_client_misses_nothing_among_bad_ones(site: Site) -> None:
    with served(site) as server:
        good = server.subscriber("AAPL")
        deaf = server.connect(sockopt=[(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)])
        say(deaf, action="subscribe", symbols=list(SYMBOLS))
        first = hear(good)
        before = server.memory_bytes
        crowd = Crowd(server)
        try:
            told = [hear(good) for _ in range(HEARD)]
        finally:
            crowd.end()
        assert crowd.rounds > of_tier(20, 5)
        assert server.memory_bytes - before < 50_000_000
        assert server.process.poll() is None
        recorded = as_told(read_apple(site))
    place = recorded.index((told[0]["price"], told[0]["volume"], told[0]["timestamp"]))
    assert [(one["price"], one["volume"], one["timestamp"]) for one in told] == recorded[place : place + HEARD]
    assert first["symbol"] == "AAPL"


def read_apple(site: Site) -> pa.Table:
    """AAPL's rows in order of arrival."""
    rows = ingestor.read_trades(site.root, ["AAPL"], engine="arrow")
    return rows.sort_by("sequence")


def as_told(rows: pa.Table) -> list[tuple[float, float, int]]:
    columns = (rows["price"], rows["volume"], rows["timestamp"].cast(pa.int64()))
    return list(zip(*(column.to_pylist() for column in columns), strict=True))
