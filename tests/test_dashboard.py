"""`ingestor dashboard` in a real browser: it moves, joins history and the present, stops and resumes, shades gaps."""

import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
import pytest
import websocket
from browser import Browser, running_browser
from click.testing import CliRunner
from dashboards import BARS, CAUSES, MODELS, PANES, RANGE, array, running_dashboard
from recordings import Print, Recording, to_us

from ingestor.charts.bokeh_app import INTERVALS
from ingestor.charts.series import DARK, LIGHT
from ingestor.cli.charts import dashboard
from ingestor.cli.main import cli

SYMBOLS = ("AAPL", "MSFT")
TOLD = (
    "(function told(node) { return [...node.childNodes, node.shadowRoot].map(one => one?.nodeType == 3 ? one.data"
    " : one && one.tagName != 'STYLE' ? told(one) : '').join(' ') })(document.body)"
)
"""All text that the page has now, what the pointer is told included."""


class Story:
    """A recording whose trades are of now, one each time it is told to go on."""

    def __init__(self, root: Path) -> None:
        began = datetime.now(UTC) - timedelta(seconds=100)
        self.recording = Recording(root, SYMBOLS, started=began.replace(tzinfo=None).isoformat())
        self.recording.prove(SYMBOLS, began.isoformat())
        blind = began + timedelta(seconds=50), began + timedelta(seconds=60)
        for at in range(90):
            time = began + timedelta(seconds=at)
            if not blind[0] <= time < blind[1]:
                self.recording.write(*(Print(time, symbol, 100 + at % 9, 5.0, "1") for symbol in SYMBOLS))
        since, until = (to_us(one) for one in blind)
        gap = {"gap": "r000001-1", "cause": "stall", "symbol": None}
        self.recording.fact("gap.opened", blind[0].isoformat(), since=since, **gap)
        self.recording.fact("gap.closed", blind[1].isoformat(), until=until, **gap)

    def trade(self, price: float) -> None:
        self.recording.write(*(Print(datetime.now(UTC), symbol, price, 5.0, "1") for symbol in SYMBOLS))


@pytest.fixture
def story(tmp_path: Path) -> Story:
    return Story(tmp_path / "data")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_browser() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, story: Story) -> Iterator[Browser]:
    """The dashboard of both symbols, open, and without a console error at the end."""
    browser.errors.clear()
    with running_dashboard(story.recording.layout.root, "--symbols", ",".join(SYMBOLS)) as url:
        browser.open(url, width=1400, height=860)
        browser.wait(f"{BARS}.length == 2 && {array('close')}.length >= 79")
        browser.wait("document.readyState == 'complete'")
        yield browser
        errors = list(browser.errors)
        browser.call("Page.navigate", url="about:blank")  # before its server goes
    assert errors == []


def wheel(page: Browser) -> None:
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=400, y=250)
    page.call("Input.dispatchMouseEvent", type="mouseWheel", x=400, y=250, deltaX=0, deltaY=-300)


@pytest.mark.needs("chromium")
def test_history_goes_on_in_the_present(page: Browser, story: Story) -> None:
    before = page.evaluate(array("time"))
    for price in (123.5, 124.5):
        story.trade(price)
        for at in range(2):
            page.wait(f"{array('close', at)}.at(-1) == {price}")
    after = page.evaluate(array("time"))
    assert after[: len(before)] == before
    assert sorted(set(after)) == after


@pytest.mark.needs("chromium")
def test_indicators_reach_the_newest_bar(page: Browser, story: Story) -> None:
    story.trade(150)
    page.wait(f"{array('close')}.at(-1) == 150")
    for name in ("sma", "ema", "upper", "lower", "rsi"):
        assert page.evaluate(f"Number.isFinite({array(name)}.at(-1))"), name


@pytest.mark.needs("chromium")
def test_it_follows_stops_and_resumes(page: Browser) -> None:
    end = page.evaluate(f"{RANGE}.end")
    page.wait(f"{RANGE}.end > {end} + 600")
    width = page.evaluate(f"{RANGE}.end - {RANGE}.start")
    wheel(page)
    page.wait(f"{MODELS}.find(one => one.type == 'Checkbox').active == false")
    page.wait(f"{RANGE}.end - {RANGE}.start < {width}")
    held = page.evaluate(f"{RANGE}.end")
    newest = f"{MODELS}.filter(one => one.type == 'Range1d').map(one => one.end).sort().at(-1)"
    now = page.evaluate(newest)
    page.wait(f"{newest} > {now} + 600")  # the server has gone on
    assert page.evaluate(f"{RANGE}.end") == held
    page.evaluate(f"{MODELS}.find(one => one.type == 'Checkbox').active = true")
    page.wait(f"{RANGE}.end - {RANGE}.start == {width} && {RANGE}.end > {held}")


@pytest.mark.needs("chromium")
def test_blind_time_is_shaded_with_its_cause(page: Browser) -> None:
    page.wait(f"{CAUSES}.join(';') == 'stall;stall'")
    seconds = f"{MODELS}.find(one => one.type == 'ColumnDataSource' && one.data.cause).data.seconds"
    assert page.evaluate(f"Array.from({seconds})") == [pytest.approx(10, abs=0.002)]


@pytest.mark.needs("chromium")
def test_the_pointer_on_a_gap_tells_its_cause(page: Browser) -> None:
    gap = f"{MODELS}.find(one => one.type == 'ColumnDataSource' && one.data.cause?.length)"
    page.wait(f"!!{gap}")
    assert "stall" not in page.evaluate(TOLD)
    for pane in range(4):
        page.evaluate(f"window.view = Bokeh.index.find_one({PANES}[{pane}]); true")
        middle = f"({gap}.data.start[0] + {gap}.data.end[0]) / 2"
        x = page.evaluate(f"view.el.getBoundingClientRect().left + view.frame.x_scale.compute({middle})")
        y = page.evaluate("view.el.getBoundingClientRect().top + view.frame.bbox.y_center")
        page.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        page.wait(f"/state: *blind .connection stalled.*for: *10.0 s/s.test({TOLD})")
        page.call("Input.dispatchMouseEvent", type="mouseMoved", x=5, y=5)
        page.wait(f"!/stall/.test({TOLD})")


@pytest.mark.needs("chromium")
@pytest.mark.parametrize(
    ("pane", "names"),
    [
        (0, ["open", "high", "low", "close", "sma", "ema", "volume"]),
        (1, ["volume"]),
        (2, ["rsi"]),
        (3, ["macd", "signal", "histogram"]),
    ],
)
def test_the_pointer_on_a_bar_tells_its_values_once(page: Browser, pane: int, names: list[str]) -> None:
    """Whether it is right on the bar, or beside it."""
    page.evaluate(f"window.view = Bokeh.index.find_one({PANES}[{pane}]); true")
    y = page.evaluate("view.el.getBoundingClientRect().top + view.frame.bbox.y_center")
    counts = f"(text => {json.dumps(names)}.map(name => text.split(`${{name}}: `).length - 1))({TOLD})"
    for bar in range(36, 50):  # all indicators have begun; then comes the blind time
        x = page.evaluate(
            f"view.el.getBoundingClientRect().left + view.frame.x_scale.compute({array('time')}.at({bar}))"
        )
        page.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        page.wait(f"/{names[0]}: /.test({TOLD})")
        assert page.evaluate(counts) == [1] * len(names), bar


@pytest.mark.needs("chromium")
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_a_phone(browser: Browser, story: Story, tmp_path: Path, dark: bool) -> None:
    """Charts one below the other, nothing to scroll sideways; a finger on one scrolls the page, and it follows on."""
    browser.errors.clear()
    with running_dashboard(story.recording.layout.root, "--symbols", ",".join(SYMBOLS), *["--dark"] * dark) as url:
        browser.open(url, width=390, height=844)
        browser.wait(f"{PANES}.length == 8 && {PANES}.every(pane => pane.inner_width > 200)")
        assert browser.evaluate("document.documentElement.scrollWidth") == 390
        assert browser.evaluate("document.documentElement.scrollHeight") > 1400
        browser.picture(tmp_path / "phone.png")
        swipe(browser, 700, 300)
        browser.wait("window.scrollY > 100")
        assert browser.evaluate(f"{MODELS}.find(one => one.type == 'Checkbox').active")
        browser.call("Page.navigate", url="about:blank")
    assert browser.errors == []


def swipe(page: Browser, from_y: int, to_y: int) -> None:
    page.call("Emulation.setTouchEmulationEnabled", enabled=True)
    page.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": 150, "y": from_y}])
    for y in range(from_y, to_y, -20):
        page.call("Input.dispatchTouchEvent", type="touchMove", touchPoints=[{"x": 150, "y": y}])
    page.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
    page.call("Emulation.setTouchEmulationEnabled", enabled=False)


@pytest.mark.needs("chromium")
def test_a_symbol_that_has_no_trade_yet_has_panes_and_a_time_axis(browser: Browser, tmp_path: Path) -> None:
    browser.errors.clear()
    recording = Recording(tmp_path / "data", ["AAPL"])
    with running_dashboard(recording.layout.root, "--symbols", "AAPL") as url:
        browser.open(url, width=1400, height=860)
        browser.wait(f"{PANES}.length == 4 && {PANES}.every(pane => pane.inner_width > 200)")
        lowest = f"{PANES}.find(pane => pane.below.some(axis => axis.visible))"
        browser.wait(f"Number.isFinite({lowest}.y_range.start)")  # else Bokeh draws no axis
        browser.picture(tmp_path / "empty.png")
        browser.call("Page.navigate", url="about:blank")
    assert browser.errors == []


@pytest.mark.long
@pytest.mark.needs("chromium")
@pytest.mark.parametrize("dark", [False, True])
def test_it_is_in_the_systems_colours_and_hides_nothing_from_a_screen_reader(
    browser: Browser, story: Story, dark: bool
) -> None:
    ground = {False: "rgb(255, 255, 255)", True: "rgb(20, 24, 29)"}
    colour = "getComputedStyle(document.documentElement).backgroundColor"
    with running_dashboard(story.recording.layout.root, "--symbols", ",".join(SYMBOLS)) as url:
        browser.open(url, width=1400, height=860, dark=dark)
        browser.wait(f"{PANES}.length == 8 && {PANES}.every(pane => pane.inner_width > 200)")
        assert browser.evaluate(colour) == ground[dark]
        assert browser.evaluate(f"{PANES}[0].background_fill_color") == (DARK if dark else LIGHT).ground
        assert browser.find_barriers() == []
        # The system's theme changes while the page is open.
        scheme = {"name": "prefers-color-scheme", "value": "light" if dark else "dark"}
        browser.call("Emulation.setEmulatedMedia", features=[scheme])
        browser.wait(f"document.documentElement && {colour} == '{ground[not dark]}'")
        browser.wait(f"{PANES}.length == 8 && {PANES}.every(pane => pane.inner_width > 200)")
        browser.call("Page.navigate", url="about:blank")
    assert browser.errors == []


@pytest.mark.long
@pytest.mark.needs("chromium")
def test_its_address_holds_what_is_chosen(page: Browser) -> None:
    page.evaluate(f"{MODELS}.find(one => one.type == 'Select').value = '5m'")
    page.evaluate(f"{MODELS}.find(one => one.type == 'MultiChoice').value = ['MSFT']")
    page.wait("new URL(location).searchParams.get('symbols') == 'MSFT'")
    page.call("Page.reload")
    page.wait(f"{PANES}.length == 4 && {PANES}[0].title.text == 'MSFT' && {PANES}[0].inner_width > 200")
    assert page.evaluate(f"{MODELS}.find(one => one.type == 'Select').value") == "5m"


@pytest.mark.long
@pytest.mark.needs("chromium")
def test_the_last_price_stands_at_the_axis_and_an_empty_pane_says_why(page: Browser, story: Story) -> None:
    story.trade(123.5)
    page.wait(f"Object.values(Object.fromEntries({PANES}[0].right.at(-1).major_label_overrides)).includes('123.5')")
    texts = f"{MODELS}.filter(one => one.type == 'Label').map(one => one.text).sort().join('; ')"
    page.evaluate(f"{MODELS}.find(one => one.type == 'Select').value = '1h'")
    page.wait(f"/needs 15 bars, has \\d; needs 15 bars, has \\d; needs 34 bars, has \\d/.test({texts})")


@pytest.mark.needs("chromium")
def test_no_script_runs_but_the_pages_own(page: Browser) -> None:
    """Wherever text of a venue became markup by mistake."""
    page.evaluate("document.addEventListener('securitypolicyviolation', () => window.refused = true)")
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=data:, onerror=\"window.ran = true\">')")
    page.wait("window.refused")
    assert not page.evaluate("window.ran === true")
    page.errors.clear()  # the browser tells of it, too


@pytest.mark.needs("chromium")
def test_another_interval_and_another_symbol(page: Browser, story: Story) -> None:
    select = f"{MODELS}.find(one => one.type == 'Select')"
    page.evaluate(f"{select}.value = '5s'")
    page.wait(f"{array('width', -1)}.at(-1) == 3500")
    page.evaluate(f"{MODELS}.find(one => one.type == 'MultiChoice').value = ['MSFT']")
    page.wait("Bokeh.documents[0].roots()[0].children[1].children.length == 1")
    story.trade(177)
    page.wait(f"{array('close', -1)}.at(-1) == 177")


@pytest.mark.needs("chromium")
def test_it_looks_like_a_chart(page: Browser, tmp_path: Path) -> None:
    """Something is drawn in each pane: looked at by a person now and then, by this test always."""
    canvases = page.wait("Bokeh.documents[0].roots().length && document.body.getBoundingClientRect().height > 600")
    assert canvases
    page.picture(tmp_path / "dashboard.png")
    assert (tmp_path / "dashboard.png").stat().st_size > 20_000


def test_only_its_own_pages_may_open_its_websocket(story: Story) -> None:
    with running_dashboard_that_warns(story.recording.layout.root) as url:
        with urllib.request.urlopen(f"{url}/?scheme=light", timeout=20) as answer:  # noqa: S310  our own server
            text, policy = answer.read().decode(), answer.headers["Content-Security-Policy"]
        nonce = re.search(r"script-src 'self' 'nonce-([^']+)' 'unsafe-eval';", policy)
        assert nonce is not None
        assert text.count("<script") == text.count(f'<script nonce="{nonce[1]}"') > 0
        assert "default-src 'self'; " in policy
        token = re.search(r'"token":"([^"]+)"', text)
        assert token is not None
        address = f"{url.replace('http', 'ws', 1)}/ws"
        for origin, allowed in ((url, True), ("http://evil.example", False)):
            opened = open_socket(address, origin, token[1])
            assert opened is allowed, origin


def open_socket(address: str, origin: str, token: str) -> bool:
    try:
        with closing(websocket.create_connection(address, origin=origin, subprotocols=["bokeh", token], timeout=20)):
            return True
    except websocket.WebSocketBadStatusException:
        return False


@contextmanager
def running_dashboard_that_warns(root: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "ingestor", "dashboard", "--root", str(root), "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())["url"]
        finally:
            process.terminate()


def test_the_intervals_of_the_flag_are_those_of_the_chooser() -> None:
    option = next(one for one in dashboard.params if one.name == "interval")
    assert isinstance(option.type, click.Choice)
    assert tuple(option.type.choices) == INTERVALS


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--host", "0.0.0.0"], "can be reached from other machines"),
        (["--host", "192.0.2.1"], "can be reached from other machines"),
        (["--symbols", "A,B,C,D,E"], "up to 4 symbols"),
        (["--root", "none"], "holds no recording"),
    ],
)
def test_what_it_refuses(story: Story, options: list[str], said: str) -> None:
    result = CliRunner().invoke(cli, ["dashboard", "--root", str(story.recording.layout.root), *options])
    assert said in f"{result.output}{result.exception}"
    assert getattr(result.exception, "exit_code", result.exit_code) == 2
