"""The key is in no log, no file, no command line, whatever happens."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
from harness import EXIT_S, Recorder, Site, Tally, environ, read_parquet, running_venue, wait_for

KEY = f"kq7/Zm+1%x&=#distinctive~{os.getpid()}"
"""Nobody else's, not even of another run of these tests beside this one; and every way of escaping shows in it."""
FAULTS = """
- {{connection: 1, after: 300ms, do: junk, kind: garbage}}
- {{connection: 1, after: 500ms, do: close, code: 1000}}
- {{connection: 2, do: answer, status: 302, location: "ws://127.0.0.1:{trap}/elsewhere"}}
- {{connection: 3, after: 300ms, do: abort}}
- {{connection: 4, after: 300ms, do: reset}}
- {{connection: 5, do: answer, status: 200}}
- {{connection: 6, do: answer, status: 524}}
- {{connection: 7, do: answer, status: 401}}
"""
PAGES = ("/metrics", "/healthz", "/readyz", "/status")
REASONS = ("closed it: 1000", "(302)", "answered 200", "answered 524", "answered 401")


def forms_of(key: str) -> list[bytes]:
    """The key as it is, and as URLs, JSON and Python write it."""
    encoded = {quote(key), quote(key, safe=""), quote_plus(key)}
    lower = {re.sub("%..", lambda escape: escape[0].lower(), form) for form in encoded}
    return [form.encode() for form in {key, *encoded, *lower, json.dumps(key)[1:-1], repr(key)[1:-1]}]


def files_with(key: str, folder: Path) -> list[Path]:
    """The files below this folder that hold the key in any form; and those whose name does."""
    forms = forms_of(key)
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return [path for path in paths if any(form in path.read_bytes() or form in bytes(path) for form in forms)]


def processes_with(key: str) -> list[str]:
    """The command lines and names, of all processes, that hold the key: what `ps` shows."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            shown = (process / "cmdline").read_bytes() + (process / "comm").read_bytes()
        except OSError:  # it has ended
            continue
        if any(form in shown for form in forms_of(key)):
            found.append(str(process))
    return found


def pages_with(key: str, recorder: Recorder) -> list[str]:
    """What the recorder tells programs that watch it and holds the key."""
    [address] = {fact["address"] for fact in recorder.logged if fact["event"] == "health.opened"}
    found = []
    for page in PAGES:
        with closing(HTTPConnection(address, timeout=EXIT_S)) as connection:
            connection.request("GET", page)
            answer = connection.getresponse()
            assert answer.status in {200, 503}, page
            text = answer.read()
        assert text, page
        if any(form in text for form in forms_of(key)):
            found.append(page)
    return found


def test_the_search_finds_every_form(tmp_path: Path) -> None:
    """A search that can't fail proves nothing."""
    for number, form in enumerate(forms_of(KEY)):
        (tmp_path / f"{number}.log").write_bytes(b"before" + form + b"after")
    assert len(files_with(KEY, tmp_path)) == len(forms_of(KEY)) > 3
    with subprocess.Popen([sys.executable, "-c", "input()", KEY], stdin=subprocess.PIPE) as shown:
        wait_for(lambda: f"/proc/{shown.pid}" in processes_with(KEY), "its command line", shown)  # empty as it begins


def test_the_key_shows_nowhere(tmp_path: Path, tally: Tally) -> None:
    """Neither here nor at the host that a redirect names."""
    faults = tmp_path / "faults.yaml"
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.setblocking(False)
        faults.write_text(FAULTS.format(trap=trap.getsockname()[1]))
        with running_venue(tmp_path, "--any-key", "--rate", "500", "--faults", str(faults)) as venue:
            settings = {"logging": {"level": "debug", "format": "json"}, "connection": {"backoff_max": "300ms"}}
            site = Site(tmp_path, tmp_path / "data", venue.url, key=KEY, settings=settings)
            with site.running() as recorder:
                for reason in REASONS:
                    _wait_for_reason(recorder, reason)
                shown = processes_with(KEY) + pages_with(KEY, recorder)
                assert recorder.end() == 0
            venue.stop()
        try:
            elsewhere, _ = trap.accept()
        except BlockingIOError:
            pass
        else:
            with closing(elsewhere):
                raise AssertionError("the key's holder followed a redirect")
    tally.rounds, tally.rows = len(REASONS), read_parquet(site.layout).num_rows
    tally.note = f"the key is in none of {sum(path.is_file() for path in tmp_path.rglob('*'))} files"
    tally.assert_clean()
    assert shown == []
    assert files_with(KEY, tmp_path) == []


def _wait_for_reason(recorder: Recorder, reason: str) -> None:
    recorder.wait_for(lambda: any(reason in fact.get("reason", "") for fact in recorder.logged), reason)


@pytest.mark.long
def test_a_key_that_is_refused_is_not_repeated(tmp_path: Path) -> None:
    with running_venue(tmp_path) as venue:
        site = Site(tmp_path, tmp_path / "data", venue.url, key=KEY)
        with site.running() as recorder:
            assert recorder.process.wait(EXIT_S) == 3
    assert "(401)" in site.log.read_text()
    assert files_with(KEY, tmp_path) == []


@pytest.mark.long
def test_a_key_in_the_wrong_place_is_not_repeated(tmp_path: Path) -> None:
    """In the URL, or as a setting: the complaint names the place and not the key."""
    path = tmp_path / "ingestor.yaml"
    url = f"wss://ws.example.invalid/?token={quote(KEY)}"
    path.write_text(json.dumps({"tickers": ["AAPL"], "feed": {"url": url, "api_key": KEY}}))
    for arguments in (["--config", str(path)], ["--symbols", "AAPL", "--url", url]):
        done = subprocess.run(
            [sys.executable, "-m", "ingestor", "run", *arguments],
            capture_output=True, check=False, timeout=EXIT_S, env=environ(FINNHUB_API_KEY=KEY), cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 2
        assert not any(form in done.stdout + done.stderr for form in forms_of(KEY))


@pytest.mark.long
def test_an_abort_dumps_no_key(tmp_path: Path) -> None:
    """Not even where the process is made to say where it stands."""
    with running_venue(tmp_path, "--any-key") as venue:
        site = Site(tmp_path, tmp_path / "data", venue.url, key=KEY)
        with site.running(PYTHONFAULTHANDLER="1") as recorder:
            recorder.wait_for_rows()
            recorder.process.send_signal(signal.SIGABRT)
            assert recorder.process.wait(EXIT_S) == -signal.SIGABRT
    assert "Current thread" in site.log.read_text()
    assert files_with(KEY, tmp_path) == []
