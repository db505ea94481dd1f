"""The log: facts as lines, libraries joined in, and no secret in any of it."""

import ast
import io
import json
import logging
import re
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from string import Formatter
from typing import IO
from urllib.parse import quote

import pytest
import structlog

from ingestor.logs import SENTENCES, LineBudget, Redactor, configure_logs, redactor_in_force
from ingestor.texts import is_visible

Done = subprocess.CompletedProcess[bytes]
KEY = 'c0ffee+/="key'


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def restore_logging() -> Iterator[None]:
    """What `configure_logs` sets belongs to the process: give it back."""
    root, ours = logging.getLogger(), logging.getLogger("ingestor")
    levels_and_handlers = root.handlers[:], root.level, ours.level
    hooks = sys.excepthook, threading.excepthook
    yield
    root.handlers[:], root.level, ours.level = levels_and_handlers
    sys.excepthook, threading.excepthook = hooks
    structlog.reset_defaults()


def run_program(program: str, *arguments: str, stderr: IO[bytes] | int = subprocess.PIPE) -> Done:
    """In a process of its own: a process's last resort is tested here, and pytest has hooks of its own."""
    command = [sys.executable, "-c", textwrap.dedent(program), *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=stderr, check=False)


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


# Facts


def test_a_fact_is_a_json_line_in_utc() -> None:
    stream = io.StringIO()
    configure_logs("info", "auto", [], stream)
    structlog.get_logger().info("segment.sealed", rows=3, symbol="ΑΒΓ")
    (line,) = lines(stream)
    assert line.pop("timestamp").__str__().endswith("Z")
    assert line == {"event": "segment.sealed", "rows": 3, "symbol": "ΑΒΓ", "level": "info"}


@pytest.mark.parametrize(
    ("stream", "format_", "shape"),
    [
        (io.StringIO(), "auto", "json"),
        (Terminal(), "console", "colour"),
        (Terminal(), "json", "json"),
        (io.StringIO(), "console", "plain"),
    ],
)
def test_the_form_follows_the_stream_unless_asked(
    stream: io.StringIO, format_: str, shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    configure_logs("info", format_, [], stream)
    structlog.get_logger().info("connection.opened", attempt=1)
    text = stream.getvalue()
    assert "connection.opened" in text
    assert {"json": text.startswith("{"), "colour": "\x1b[" in text, "plain": "attempt=1" in text}[shape]
    assert ("\x1b[" in text) == (shape == "colour")


@pytest.mark.parametrize(
    ("level", "fact", "fields", "shown"),
    [
        ("info", "connection.opened", {"connection": 1}, "connected to the venue"),
        ("info", "segment.sealed", {"segment": "1", "rows": 2034, "dates": ["2026-11-26", "2026-11-27"]},
         "wrote 2,034 trades to files of 2026-11-26, 2026-11-27"),
        ("warning", "gap.recorded", {"cause": "connection", "seconds": 4.2, "gap": "r1-1", "symbol": None},
         "warning: was blind (no connection) for 4.2 s, all symbols"),
        ("warning", "connection.lost", {"reason": "bad \x1b[31m red"}, r"warning: connection lost: bad \x1b[31m red"),
        ("error", "disk.low", {"free": 1, "floor": 2, "hint": "go"}, "error: disk.low: free 1, floor 2 (go)"),
        ("info", "connection.retried", {"reason": "no wait"}, "connection.retried: reason no wait"),
    ],
)  # fmt: skip
def test_a_terminal_reads_sentences(
    level: str, fact: str, fields: dict[str, object], shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    configure_logs("info", "auto", [], stream)
    getattr(structlog.get_logger(), level)(fact, **fields)
    assert re.fullmatch(r"\d\d:\d\d:\d\d (.*)\n", stream.getvalue())[1] == shown  # type: ignore[index]


def test_sentences_break_between_words_where_the_terminal_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    stream = Terminal()
    configure_logs("info", "auto", [], stream)
    files = "/home/somebody/with-a-long-name/recordings/finnhub/data/trades"
    structlog.get_logger().info(
        "recording.begun", symbol="AAPL", files=files, watch="ingestor tail", stop="ingestor stop"
    )
    shown = stream.getvalue().splitlines()
    assert max(map(len, shown)) <= 80
    assert {line[:9].strip() for line in shown[1:]} == {""}
    assert files in " ".join(shown)


def test_a_terminal_shows_what_nobody_caught_without_secrets() -> None:
    stream = Terminal()
    configure_logs("info", "auto", [KEY], stream)
    try:
        be_refused(KEY)
    except ConnectionError:
        structlog.get_logger().exception("process.failed")
    assert "ConnectionError: refused ***" in stream.getvalue()
    assert "\nTraceback" in stream.getvalue()
    assert KEY not in stream.getvalue()


def test_each_sentence_is_of_a_fact_that_is_logged_with_these_fields() -> None:
    logged: dict[str, set[str]] = {}
    for path in (Path(__file__).parents[1] / "ingestor").rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and call.args and isinstance(call.args[0], ast.Constant):
                fields = {keyword.arg for keyword in call.keywords if keyword.arg}
                logged.setdefault(str(call.args[0].value), set()).update(fields)
    for fact, sentence in SENTENCES.items():
        wanted = {name for _, name, _, _ in Formatter().parse(sentence) if name} - {"blind", "who"}
        assert wanted <= logged[fact], fact


@pytest.mark.parametrize(
    ("level", "ours", "theirs"),
    [("debug", 4, 3), ("info", 3, 2), ("warning", 2, 2), ("error", 1, 1)],
)
def test_levels_of_ours_and_of_libraries(level: str, ours: int, theirs: int) -> None:
    stream = io.StringIO()
    configure_logs(level, "json", [], stream)
    for log in (structlog.get_logger(), logging.getLogger("websocket")):
        for name in ("debug", "info", "warning", "error"):
            getattr(log, name)("thing.done")
    found = lines(stream)
    assert len([line for line in found if "library" not in line]) == ours
    assert len([line for line in found if line.get("library") == "websocket"]) == theirs


def test_configuring_again_replaces_the_first() -> None:
    first, second = io.StringIO(), io.StringIO()
    configure_logs("info", "json", [], first)
    configure_logs("info", "json", [], second)
    structlog.get_logger().info("run.started")
    assert first.getvalue() == ""
    assert len(lines(second)) == 1


# Secrets


def be_refused(key: str) -> None:
    raise ConnectionError(f"refused {key}") from ValueError(quote(key))


@pytest.mark.parametrize("format_", ["json", "console"])
def test_no_secret_by_any_way(format_: str) -> None:
    stream = io.StringIO()
    configure_logs("debug", format_, [KEY], stream)
    log = structlog.get_logger()
    event, url = f"connection.opened {KEY}", f"wss://x?token={quote(KEY, safe='')}"
    log.info(event, url=url, nested={"a": [KEY, {KEY: 1}]})
    log.info("bytes.seen", raw=KEY.encode(), pair=(KEY, None))
    logging.getLogger("websockets").warning("GET /?token=%s and %r", KEY, KEY)
    try:
        be_refused(KEY)
    except ConnectionError:
        log.exception("connection.lost")
        logging.getLogger("websocket").exception("library lost it")
    text = stream.getvalue()
    assert "refused ***" in text
    assert "Traceback" in text
    assert "c0ffee" not in text


def test_a_library_that_logs_wrongly_shows_no_arguments() -> None:
    program = """
        import logging, sys
        from ingestor.logs import configure_logs
        configure_logs("info", "json", sys.argv[1:])
        logging.getLogger("websocket").warning("two %s %d", sys.argv[1], sys.argv[1])
    """
    done = run_program(program, KEY)
    assert done.returncode == 0
    assert done.stderr.startswith(b"log.failed at ")
    assert b"c0ffee" not in done.stderr


def test_a_field_that_cannot_be_shown_shows_no_key() -> None:
    """What it raised is told, and that may quote the key."""
    program = """
        import logging, sys
        from ingestor.logs import configure_logs

        class Address:
            def __str__(self):
                raise ValueError(f"no address: {sys.argv[1]}")

        configure_logs("info", "json", sys.argv[1:])
        logging.getLogger("websocket").warning("can't connect to %s", Address())
    """
    done = run_program(program, KEY)
    assert done.stderr.startswith(b"log.failed at ")
    assert b"no address: ***" in done.stderr
    assert b"c0ffee" not in done.stderr


@pytest.mark.parametrize("way", ["full", "closed"])
def test_a_log_that_cannot_be_written_ends_nothing(way: str) -> None:
    program = """
        import os, sys, structlog
        from ingestor.logs import configure_logs
        configure_logs("info", "json", [])
        if sys.argv[1] == "closed":
            sys.stderr.close()
        structlog.get_logger().info("run.started")
        print("alive", flush=True)
        os._exit(0)  # Python's own flush of a full stderr would fail
    """
    with Path("/dev/full").open("rb+", buffering=0) as full:
        done = run_program(program, way, stderr=full)
    assert done.stdout == b"alive\n"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("wss://x?token=abc&a=1", "wss://x?token=***&a=1"),
        ("apikey=abc API_KEY=abc secret=abc", "apikey=*** API_KEY=*** secret=***"),
        ("redis://user:pass@host:1/0", "redis://***@host:1/0"),
        ('{"url": "wss://x?token=abc"}', '{"url": "wss://x?token=***"}'),
        ("mistoken=abc wss://host/a@b", "mistoken=abc wss://host/a@b"),
    ],
)
def test_what_a_url_calls_a_token_is_none_of_the_logs_business(text: str, shown: str) -> None:
    assert Redactor()(text) == shown


def test_every_form_of_a_secret() -> None:
    secret = "a/b c%\"'\\"
    redact = Redactor([secret, ""])
    forms = [
        secret,
        quote(secret),
        quote(secret, safe=""),
        quote(secret, safe="").lower(),
        json.dumps(secret),
    ]
    assert [redact(f"<{form}>") for form in forms] == ["<***>"] * 4 + ['<"***">']


def test_a_secret_within_another_is_taken_out_with_it() -> None:
    assert Redactor(["abc", "abcdef"])("abcdef abc") == "*** ***"


def test_the_redactor_in_force_is_the_logs() -> None:
    returned = configure_logs("info", "json", [KEY], io.StringIO())
    assert redactor_in_force() is returned


def test_before_there_is_a_log_the_key_in_the_environment_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINNHUB_API_KEY", " hunter2\n")
    assert redactor_in_force()("key hunter2") == "key ***"


@pytest.mark.parametrize("where", ["main", "thread"])
def test_what_nobody_caught_is_a_redacted_line(where: str) -> None:
    program = """
        import sys, threading
        from ingestor.logs import configure_logs
        configure_logs("info", "json", [sys.argv[1]])
        def fail():
            raise RuntimeError("lost " + sys.argv[1])
        if sys.argv[2] == "main":
            fail()
        thread = threading.Thread(target=fail, name="reader")
        thread.start()
        thread.join()
    """
    done = run_program(program, KEY, where)
    line = json.loads(done.stderr)
    assert line["event"] == {"main": "process.failed", "thread": "thread.failed"}[where]
    assert line.get("thread") == {"main": None, "thread": "reader"}[where]
    assert "RuntimeError: lost ***" in line["exception"]
    assert b"c0ffee" not in done.stderr


@pytest.mark.parametrize("format_", ["json", "console"])
@pytest.mark.parametrize("hostile", ["\x1b]0;pwned\x07", "\x1b[2J", "\x9b2J", "\x7f", "\u202e", "\u200b", "a\nb"])
def test_what_a_venue_says_is_no_command(format_: str, hostile: str) -> None:
    stream = io.StringIO()
    configure_logs("info", format_, [], stream)
    structlog.get_logger().warning("venue.complained", text=hostile, more=[hostile])
    logging.getLogger("library").warning("it says %s", hostile)
    try:
        raise ValueError(hostile)
    except ValueError:
        structlog.get_logger().exception("recorder.failed")
    assert stream.getvalue().count("venue.complained") == 1
    assert all(is_visible(line) for line in stream.getvalue().splitlines())


def test_a_value_without_end_is_cut() -> None:
    stream = io.StringIO()
    configure_logs("info", "json", [], stream)
    structlog.get_logger().warning("venue.complained", text="x" * 100_000)
    assert len(stream.getvalue()) < 3000
    assert "… (100,000 characters)" in lines(stream)[0]["text"]  # type: ignore[operator]


def test_a_flood_of_one_kind_is_bounded_and_what_is_left_out_is_counted() -> None:
    budget = LineBudget()
    written: dict[str, int] = {"complaint": 0, "other": 0}
    left_out = 0
    for second in range(86_400):
        left_out += sum(count for _, count in budget.take_left_out(second))
        for _ in range(10):
            written["complaint"] += budget.admit("complaint", second)
        written["other"] += second % 60 == 0 and budget.admit("other", second)
    left_out += sum(count for _, count in budget.take_left_out(86_400))
    assert written["other"] == 1440
    assert written["complaint"] < 12_000
    assert written["complaint"] + left_out == 864_000
    assert budget.admit("complaint", 86_400)


def test_the_log_says_what_it_left_out() -> None:
    stream = io.StringIO()
    configure_logs("info", "json", [], stream)
    logger = logging.getLogger("library")
    for _ in range(1000):
        logger.warning("a flood")
    later = logger.makeRecord("library", logging.WARNING, "", 0, "later", (), None)
    later.created += 60
    logger.handle(later)
    told = [line for line in lines(stream) if line["event"] == "log.left_out"]
    assert len(lines(stream)) < 300
    assert [line["kind"] for line in told[-1:]] == ["library"]
