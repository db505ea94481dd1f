"""What is answered over HTTP: the dataset in pages, the board, the page; and what is refused."""

import random
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pyarrow as pa
import pytest
from live_servers import Answer, Server, running_serve
from prometheus_client.parser import text_string_to_metric_families
from recordings import Print, Recording
from requirements import of_tier

import ingestor
from ingestor.dataset.rows import AT_ONCE
from ingestor.live.api import HistoryQuery, find_trades
from ingestor.live.journal_source import read_quotes

ARROW = "application/vnd.apache.arrow.stream"
SPAN = {"start": "2026-01-05", "end": "2026-01-08"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two dates: one in the dataset, one in the journal; times alike, a late trade, and nulls."""
    folder = tmp_path_factory.mktemp("live") / "data"
    recording = Recording(folder, ["AAPL", "BINANCE:BTCUSDT"], started="2026-01-05T14:00")
    recording.prove(["AAPL", "BINANCE:BTCUSDT"], "2026-01-05T14:29")
    recording.write(
        *(Print(f"2026-01-05T14:30:{second:02}", "AAPL", 100 + second, 10, "1") for second in range(30)),
        *(Print("2026-01-05T14:30:10", "AAPL", 5, 10, None) for _ in range(5)),
        *(Print(f"2026-01-05T14:31:{second:02}", "BINANCE:BTCUSDT", 9e4, None) for second in range(10)),
    )
    recording.seal()
    recording.write(
        Print("2026-01-06T00:00:01", "AAPL", 200, 1), Print("2026-01-05T23:59:59", "AAPL", 199, 1, delay_s=3)
    )
    return folder


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[Server]:
    with running_serve(root) as server:
        yield server


def pages(server: Server, path: str, **parameters: Any) -> list[dict[str, Any]]:
    """The rows of all pages, by their cursors."""
    rows: list[dict[str, Any]] = []
    while True:
        page = server.get(f"{path}?{urlencode(parameters)}").json
        name = next(key for key in page if key != "next")
        assert len(page[name]) <= parameters["limit"]
        rows += page[name]
        if page["next"] is None:
            return rows
        parameters["cursor"] = page["next"]


def as_told(table: pa.Table) -> list[dict[str, Any]]:
    """Rows with times as integers."""
    for index, field in enumerate(table.schema):
        if pa.types.is_timestamp(field.type):
            table = table.set_column(index, field.name, table.column(index).cast(pa.int64()))
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


@pytest.mark.parametrize("limit", [1, 7, 1000])
def test_history_in_pages_is_every_trade_once(server: Server, root: Path, limit: int) -> None:
    expected = as_told(ingestor.read_trades(root, engine="arrow"))
    assert len(expected) == 47
    assert pages(server, "/history", limit=limit, **SPAN) == expected


@pytest.mark.parametrize("limit", [1, 4, 1000])
@pytest.mark.parametrize("more", [{"interval": "1s"}, {"interval": "1m", "fill": "true"}, {"conditions": "all"}])
def test_bars_in_pages_are_those_of_the_dataset(server: Server, root: Path, limit: int, more: dict[str, str]) -> None:
    wanted: dict[str, Any] = {**more, "fill": "fill" in more}
    table = ingestor.read_bars(root, start=SPAN["start"], end="2026-01-05T14:35", engine="arrow", **wanted)
    span = {"start": SPAN["start"], "end": "2026-01-05T14:35"}
    assert pages(server, "/bars", limit=limit, **more, **span) == as_told(table)


@pytest.mark.parametrize("limit", [1, 1000])
def test_coverage_in_pages_is_that_of_the_ledger(server: Server, root: Path, limit: int) -> None:
    table = ingestor.read_coverage(root, start=SPAN["start"], end=SPAN["end"], engine="arrow")
    expected = as_told(table)
    assert {row["state"] for row in expected} == {"recorded"}
    assert pages(server, "/coverage", limit=limit, **SPAN) == expected


def test_a_symbol_and_a_span_are_chosen(server: Server) -> None:
    query = urlencode({"symbols": "AAPL, NOPE", "start": "2026-01-05T14:30:20", "end": "2026-01-05T14:30:22Z"})
    trades = server.get(f"/history?{query}").json["trades"]
    assert [(row["symbol"], row["price"]) for row in trades] == [("AAPL", 120), ("AAPL", 121)]


@pytest.mark.parametrize("path", ["/history", "/bars", "/coverage"])
def test_an_empty_answer_names_what_is_not_recorded(server: Server, path: str) -> None:
    nothing = server.get(
        f"{path}?{urlencode({'symbols': 'aapl,NOPE,AAPL', 'start': '2026-01-01', 'end': '2026-01-02'})}"
    )
    assert nothing.json["notes"] == ["'aapl' is not recorded here; AAPL is", "'NOPE' is not recorded here"]
    quiet = server.get(f"{path}?{urlencode({'symbols': 'AAPL', 'start': '2026-01-01', 'end': '2026-01-02'})}")
    assert "notes" not in quiet.json


def test_a_page_goes_on_behind_its_last_row_whatever_came_meanwhile(tmp_path: Path) -> None:
    recording = Recording(tmp_path / "data", ["A"])
    recording.prove(["A"], "2026-01-05T10:00")
    recording.write(*(Print(f"2026-01-05T10:00:{second:02}", "A", second, 1) for second in (1, 2, 4, 5)))
    with running_serve(tmp_path / "data") as server:
        query = f"/history?{urlencode({**SPAN, 'limit': 2})}"
        first = server.get(query).json
        recording.write(Print("2026-01-05T10:00:03", "A", 3, 1), Print("2026-01-05T10:00:01.5", "A", 1.5, 1))
        recording.seal()
        second = server.get(f"{query}&cursor={quote(first['next'])}").json
    assert [row["price"] for row in first["trades"] + second["trades"]] == [1, 2, 3, 4]


@pytest.mark.parametrize("seed", range(of_tier(2, 1)))
def test_pages_of_any_size_are_the_whole_over_any_number_of_files(tmp_path: Path, seed: int) -> None:
    """A date of more files than are merged at once comes in several runs, and late trades stand in the wrong one."""
    rng = random.Random(seed)
    recording = Recording(tmp_path / "data", ["A", "B"])
    began = datetime(2026, 11, 20, 12, tzinfo=UTC)
    for number in range(AT_ONCE + rng.randrange(2, 5)):
        late_s = rng.choice([0, 0, 0, 40, 4000])
        at = began + timedelta(seconds=10 * number)
        prints = [Print(at - timedelta(seconds=late_s), rng.choice("AAB"), number, 1, delay_s=late_s + 0.1)]
        recording.write(*prints * rng.randrange(1, 3))
        recording.seal()
    whole = as_told(ingestor.read_trades(recording.layout.root, engine="arrow"))
    for limit in of_tier((1000, 100, 37), (100,)):
        query = HistoryQuery(limit=limit, start="2026-11-20T10:00", end="2026-11-20T14:00")
        rows: list[dict[str, Any]] = []
        cursor: str | None = None
        while cursor is not None or not rows:
            page = find_trades(recording.layout, query.model_copy(update={"cursor": cursor}), ["A", "B"], 0.0)
            rows += as_told(page.rows)
            cursor = page.cursor
        assert rows == whole, limit
    for found in read_quotes(recording.layout, ["A", "B"], began.timestamp() + 2000):
        ours = [row["price"] for row in whole if row["symbol"] == found.symbol]
        assert found.last is not None
        assert (found.first_price, found.last.price) == (ours[0], ours[-1])


def read_stream(answer: Answer) -> pa.Table:
    assert answer.headers["content-type"] == ARROW
    return pa.ipc.open_stream(answer.body).read_all()


def test_arrow_by_accept_or_by_format(server: Server, root: Path) -> None:
    query = urlencode({**SPAN, "limit": 40})
    by_accept = server.get(f"/history?{query}", Accept=ARROW)
    table = read_stream(by_accept)
    assert table.equals(read_stream(server.get(f"/history?{query}&format=arrow")))
    rest = read_stream(server.get(f"/history?{query}&format=arrow&cursor={by_accept.headers['x-next-cursor']}"))
    assert pa.concat_tables([table, rest]).equals(ingestor.read_trades(root, engine="arrow"))
    assert server.get(f"/history?{query}&format=json", Accept=ARROW).headers["content-type"] == "application/json"


def test_without_a_span_it_is_the_last_day(server: Server) -> None:
    assert server.get("/history").json == {"trades": [], "next": None}
    until_noon = server.get(f"/history?{urlencode({'end': '2026-01-06T12:00', 'symbols': 'BINANCE:BTCUSDT'})}").json
    assert len(until_noon["trades"]) == 10


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("/history?limit=0", "`limit`"),
        ("/history?limit=1000000", "`limit`"),
        ("/history?limit=x", "`limit`"),
        ("/history?symbols=", "`symbols`"),
        ("/history?symbols=A,,B", "`symbols`"),
        (f"/history?symbols={','.join(str(number) for number in range(1001))}", "`symbols`"),
        ("/history?start=tomorrow", "is no time"),
        ("/history?start=2026-01-02&end=2026-01-01", "start must be before end"),
        ("/history?limit=1&limit=2", "given twice"),
        ("/history?sybmols=A", "`sybmols`: is unknown here"),
        ("/history?cursor=x", "`cursor` must be"),
        ("/history?cursor=WyJBIiwgMV0=", "`cursor` must be"),
        ("/bars?interval=7s", "doesn't divide a day"),
        ("/bars?tz=Nowhere", "no time zone"),
        ("/bars?interval=1s&start=2020-01-01", "shorter time"),
        ("/bars?session=late", "`session`"),
        ("/coverage?format=xml", "`format`"),
    ],
)
def test_what_cannot_be_asked_is_refused_with_a_reason(server: Server, query: str, reason: str) -> None:
    answer = server.get(query)
    assert answer.status == 400
    assert reason in answer.json["error"]


def test_symbols_say_how_each_stands(server: Server) -> None:
    board = server.get("/symbols").json
    assert board["recording"] is False
    apple, bitcoin = board["symbols"]
    assert (apple["symbol"], apple["price"], apple["volume"]) == ("AAPL", 200, 1)
    assert apple["timestamp"] == round(datetime.fromisoformat("2026-01-06T00:00:01+00:00").timestamp() * 1000)
    assert (apple["change"], apple["state"], apple["cause"]) == (0, "blind", "no_recorder")
    assert (bitcoin["symbol"], bitcoin["price"], bitcoin["volume"]) == ("BINANCE:BTCUSDT", 90_000, None)


def test_metrics_are_read_by_prometheus(server: Server) -> None:
    text = server.get("/metrics").body.decode()
    families = {family.name for family in text_string_to_metric_families(text)}
    assert {"ingestor_live_clients", "ingestor_live_trades", "process_resident_memory_bytes"} <= families


def test_it_lives(server: Server) -> None:
    assert server.get("/healthz").body == b"alive\n"


# The description


def test_every_path_that_is_described_answers(server: Server) -> None:
    described = server.get("/openapi.json").json
    assert described["openapi"].startswith("3.1")
    for path in described["paths"]:
        assert server.get(path).status == 200, path


def test_rows_have_the_columns_that_are_described(server: Server) -> None:
    paths = server.get("/openapi.json").json["paths"]
    for path, name in (("/history", "trades"), ("/bars", "bars"), ("/coverage", "intervals"), ("/symbols", "symbols")):
        content = paths[path]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
        row = server.get(path if path == "/symbols" else f"{path}?{urlencode(SPAN)}").json[name][0]
        assert set(row) == set(content["properties"][name]["items"]["properties"]), path


def test_every_parameter_that_is_described_is_known(server: Server) -> None:
    values = {"symbols": "AAPL", "start": "2026-01-05", "end": "2026-01-06", "limit": "1", "format": "json"}
    values |= {"interval": "1h", "tz": "America/New_York", "session": "all", "conditions": "sip", "fill": "false"}
    for path, described in server.get("/openapi.json").json["paths"].items():
        names = {parameter["name"] for parameter in described["get"].get("parameters", ())}
        assert names <= {*values, "cursor"}
        query = {name: values[name] for name in names - {"cursor"}}
        assert server.get(f"{path}?{urlencode(query)}").status == 200, path


# The door and the page


@pytest.mark.parametrize("path", ["/", "/symbols", "/healthz", "/page.js"])
def test_strangers_are_refused(server: Server, path: str) -> None:
    rebound = server.get(path, Host="evil.example")
    foreign = server.get(path, Origin="https://evil.example")
    assert (rebound.status, foreign.status) == (403, 403)
    assert "unknown host" in rebound.json["error"]
    assert "foreign origin" in foreign.json["error"]
    assert server.get(path, Origin=server.url).status == 200


def test_no_answer_invites_other_pages(server: Server) -> None:
    for path in ("/", "/symbols", "/nowhere", "/history?x=1"):
        headers = server.get(path).headers
        assert not [name for name in headers if name.startswith("access-control")]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self';")
        assert "unsafe" not in headers["content-security-policy"]
        assert "server" not in headers


def test_only_reading_is_possible(server: Server) -> None:
    assert [server.get("/symbols", method).status for method in ("POST", "PUT", "DELETE", "PATCH")] == [405] * 4
    nothing = {"error": "nothing is here: /openapi.json describes what there is"}
    for path in ("/docs", "/nowhere", "/../pyproject.toml"):
        answer = server.get(path)
        assert (answer.status, answer.json) == (404, nothing)


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.inline: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name in {"src", "href"}:
                self.found.append(value or "")
            elif name == "style" or name.startswith("on"):
                self.inline.append(f"{tag} {name}")


def test_the_page_needs_nothing_but_this_server(server: Server) -> None:
    page = server.get("/")
    assert page.headers["content-type"].startswith("text/html")
    links = _Links()
    links.feed(page.body.decode())
    assert links.found == ["/icon.svg", "/page.css", "/page.js", "/openapi.json"]
    assert links.inline == []
    for link in links.found:
        asset = server.get(link)
        assert asset.status == 200, link
        addresses = set(re.findall(rb"\w+://[^\s\"'`]+", asset.body))
        assert addresses <= {b"http://www.w3.org/2000/svg", b"://${location.host}/live-price"}, link
