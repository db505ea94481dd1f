"""An operator's hands on a recorder that runs: reload, look, ask, start it twice."""

import json
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest
from harness import Recorder, Site, Tally, compare, environ, read_gaps, read_parquet, running_venue
from journals import ledger_facts

from ingestor.layout import read_holder
from ingestor.ledger import list_ledgers

pytestmark = pytest.mark.alone

STAYING = [f"STAY{number}" for number in range(10)]
LEAVING = [f"GONE{number}" for number in range(20)]
COMING = [f"COME{number}" for number in range(20)]


def call(site: Site, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "ingestor", *arguments, "--config", str(site.folder / "ingestor.yaml")]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environ(FINNHUB_API_KEY=site.key))


def write_settings(site: Site, **more: Any) -> None:
    path = site.folder / "ingestor.yaml"
    path.write_text(json.dumps({**json.loads(path.read_text()), **more}))


def facts(site: Site, name: str) -> list[dict[str, Any]]:
    return ledger_facts(site.layout, name)


def wait_until_healthy(recorder: Recorder) -> None:
    recorder.wait_for(lambda: call(recorder.site, "status").returncode == 0, "health")


def site_of(folder: Path, url: str, tickers: list[str], **more: Any) -> Site:
    folder.mkdir(exist_ok=True)
    return Site(
        folder, folder / "data", url, settings={"tickers": tickers, "health": {"listen": "127.0.0.1:0"}, **more}
    )


@pytest.mark.long
def test_reload_under_load_touches_nobody_elses_stream(tmp_path: Path, tally: Tally) -> None:
    """20 symbols added and 20 removed at 10,000 trades a second: no trade is lost, and no connection."""
    with running_venue(tmp_path, "--rate", "10000") as venue:
        site = site_of(tmp_path, venue.url, STAYING + LEAVING)
        with site.running() as recorder:
            wait_until_healthy(recorder)
            write_settings(site, tickers=STAYING + COMING)
            done = call(site, "reload")
            assert done.returncode == 0, done.stderr
            assert done.stdout == f"added: {', '.join(COMING)}; dropped: {', '.join(LEAVING)}\n"
            again = json.loads(call(site, "reload", "--json").stdout)
            assert again == {"added": [], "dropped": [], "waiting": []}
            recorder.wait_for(
                lambda: {*STAYING, *COMING} <= {fact["symbol"] for fact in facts(site, "symbol.proven")},
                "a trade of each new symbol",
            )
            assert recorder.end() == 0
        truth = venue.stop()
    recorded = read_parquet(site.layout)
    tally.rounds, tally.rows = 1, recorded.num_rows
    tally.unexplained = compare(truth, recorded).unexplained(read_gaps(site.layout))
    tally.assert_clean()
    assert [fact["connection"] for fact in facts(site, "connection.opened")] == [1]
    assert [gap.cause for gap in read_gaps(site.layout)] == ["shutdown"]
    assert {*STAYING, *LEAVING, *COMING} == set(pc.unique(recorded["symbol"]).to_pylist())


@pytest.mark.long
def test_a_broken_file_is_refused_by_command_and_by_signal(tmp_path: Path) -> None:
    with running_venue(tmp_path) as venue:
        site = site_of(tmp_path, venue.url, ["AAPL"])
        with site.running() as recorder:
            wait_until_healthy(recorder)
            write_settings(site, tikkers=["MSFT"])
            refused = call(site, "reload")
            assert refused.returncode == 2
            assert "unknown key `tikkers`: did you mean `tickers`?" in refused.stderr
            recorder.process.send_signal(signal.SIGHUP)
            recorder.wait_for(lambda: facts(site, "settings.refused"), "the refusal")
            assert recorder.end() == 0
    assert facts(site, "settings.reloaded") == []


@pytest.mark.long
def test_there_is_nobody_to_reload(tmp_path: Path) -> None:
    site = site_of(tmp_path, "ws://127.0.0.1:9", ["AAPL"])
    with site.running() as recorder:
        recorder.kill()
    done = call(site, "reload")
    assert done.returncode == 1
    assert "there is nobody to reload" in done.stderr


@pytest.mark.long
def test_ready_means_recording(tmp_path: Path) -> None:
    with running_venue(tmp_path) as venue:
        site = site_of(tmp_path, venue.url, ["AAPL"])
        with site.running() as recorder:
            wait_until_healthy(recorder)
            holder = read_holder(site.layout)
            assert holder is not None
            with urllib.request.urlopen(f"http://{holder.health}/readyz") as answer:
                assert (answer.status, answer.read()) == (200, b"recording\n")
            assert recorder.end() == 0
    assert call(site, "status").returncode == 3


@pytest.mark.long
def test_a_second_recorder_of_the_same_key_exits_2_and_names_the_first(tmp_path: Path) -> None:
    with running_venue(tmp_path) as venue:
        first = site_of(tmp_path / "first", venue.url, ["AAPL"])
        second = site_of(tmp_path / "second", venue.url, ["MSFT"])
        with first.running() as recorder:
            wait_until_healthy(recorder)
            with second.running() as other:
                assert other.process.wait(60) == 2
            assert f"process {recorder.process.pid} of user " in second.log.read_text()
            assert recorder.end() == 0
    assert list_ledgers(second.layout) == []


@pytest.mark.long
def test_top_is_a_reader_like_any_other(tmp_path: Path) -> None:
    with running_venue(tmp_path) as venue:
        site = site_of(tmp_path, venue.url, ["AAPL", "MSFT"])
        with site.running() as recorder:
            wait_until_healthy(recorder)
            command = [sys.executable, "-m", "ingestor", "top", "--plain", "--root", str(site.root)]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ()) as top:
                try:
                    assert top.stdout is not None
                    shown: list[str] = []
                    # The first screen may come before both have traded.
                    while not all(any(word in line for line in shown) for word in ("2/2 ticking", "MSFT ")):
                        shown.append(top.stdout.readline())
                        assert shown[-1], shown
                    top.send_signal(signal.SIGINT)
                    top.stdout.read()
                    assert top.wait(10) == 0
                finally:
                    top.kill()
            assert recorder.end() == 0
    assert shown[1].split()[:2] == ["symbol", "price"]
