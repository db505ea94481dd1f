"""`ingestor simulate` as a user runs it: a process, its one line, its files, its end."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow.compute as pc
import pytest
from simulated_venues import read_truth
from websocket import WebSocket, WebSocketException, create_connection

READY = "listening on "


@contextmanager
def simulate(*arguments: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The line it printed and the process, which is ended if the test doesn't."""
    command = [sys.executable, "-m", "ingestor", "simulate", "--port", "0", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip(), process
        finally:
            process.kill()


def refused(*arguments: str) -> str:
    """What it says on stderr before it exits with 2."""
    command = [sys.executable, "-m", "ingestor", "simulate", "--port", "0", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    return done.stderr


@contextmanager
def subscribed(line: str, symbols: Sequence[str], key: str = "demo") -> Iterator[WebSocket]:
    """A recorder's own library, connected to where the line says."""
    opened = create_connection(f"{line.removeprefix(READY)}/?token={key}", timeout=20)
    try:
        for symbol in symbols:
            opened.send(json.dumps({"type": "subscribe", "symbol": symbol}))
        yield opened
    finally:
        # `close` leaves the socket open where the venue has already said goodbye.
        opened.shutdown()  # type: ignore[no-untyped-call]  # the library types only part of itself


def received(opened: WebSocket) -> int:
    """How many trades come until the connection ends."""
    count = 0
    try:
        while text := opened.recv():
            count += len(json.loads(text).get("data", ()))
    except (WebSocketException, OSError):
        return count
    return count


def test_it_serves_until_a_signal_and_leaves_the_whole_truth(tmp_path: Path) -> None:
    truth = tmp_path / "t.jsonl"
    with simulate("--seed", "7", "--rate", "5000", "--truth", str(truth), "--key", "hush-hush") as (line, process):
        assert line.startswith(READY + "ws://127.0.0.1:")
        with subscribed(line, ["AAPL", "MSFT"], "hush-hush") as opened:
            assert "trade" in opened.recv()
            process.send_signal(signal.SIGTERM)
            count = received(opened)
        _, log = process.communicate(timeout=20)
        assert process.returncode == 0
    table = read_truth(truth)
    assert count <= table.num_rows <= count + 10, "all but the first message, which was read before"
    assert set(table["symbol"].to_pylist()) <= {"AAPL", "MSFT"}
    assert "client.connected" in log
    assert "hush-hush" not in log


@pytest.mark.long
def test_the_rate_is_kept(tmp_path: Path) -> None:
    """By the truth's own times, so that a slow machine only takes longer to start."""
    truth = tmp_path / "t.jsonl"
    with simulate("--rate", "4000", "--truth", str(truth)) as (line, process):
        with subscribed(line, ["AAPL"]) as opened:
            count = 0
            while count < 4000:
                count += len(json.loads(opened.recv())["data"])
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
    sent_us = read_truth(truth)["sent_us"]
    first, last = pc.min(sent_us).as_py(), pc.max(sent_us).as_py()
    assert len(sent_us) <= 4000 * (last - first) / 1e6 + 100, "never faster"


def test_json_tells_programs_where_and_with_which_seed() -> None:
    with simulate("--json", "--seed", "11", "--protocol", "bars") as (line, _):
        facts = json.loads(line)
    assert (facts["seed"], facts["protocol"]) == (11, "bars")
    assert facts["url"].startswith("ws://127.0.0.1:")


@pytest.mark.long
def test_it_ends_by_itself_after_the_time_given() -> None:
    with simulate("--for", "200ms") as (line, process):
        assert line.startswith(READY)
        assert process.wait(20) == 0


@pytest.mark.long
def test_a_replay_and_its_faults_are_read_from_files(tmp_path: Path) -> None:
    recording, script = tmp_path / "r.csv", tmp_path / "f.yaml"
    recording.write_text("timestamp,symbol,price,volume\n2026-11-20T14:30:00Z,AAPL,164.06,5\n")
    script.write_text("- {do: repeat, times: 2}\n")
    with (
        simulate("--replay", str(recording), "--speed", "max", "--faults", str(script)) as (line, _),
        subscribed(line, ["AAPL"]) as opened,
    ):
        expected = {"data": [{"p": 164.06, "s": "AAPL", "t": 1795185000000, "v": 5}], "type": "trade"}
        assert [json.loads(opened.recv()) for _ in range(2)] == [expected] * 2


@pytest.mark.long
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--rate", "0"], "neither a number above 0 nor `max`"),
        (["--interval", "50"], "no unit"),
        (["--ping-interval", "0s"], "must be above 0"),
        (["--faults", "abrot"], "did you mean abort?"),
        (["--tls-cert", "c.pem"], "both --tls-cert and --tls-key"),
        (["--replay", "missing.parquet"], "missing.parquet"),
        (["--truth", "/missing/t.jsonl"], "truth can't be written"),
        (["--host", "203.0.113.1"], "can't listen on 203.0.113.1:0: Cannot assign requested address"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(arguments: list[str], says: str) -> None:
    message = " ".join(refused(*arguments).split())
    assert says in message
    assert "Traceback" not in message


def test_prices_obey_the_flags() -> None:
    flags = ("--start-price", "50", "--tick-size", "5", "--volatility", "0", "--drift", "0")
    with simulate(*flags) as (line, _), subscribed(line, ["AAPL", "MSFT"]) as opened:
        prices = {trade["p"] for _ in range(5) for trade in json.loads(opened.recv())["data"]}
    assert prices == {50}
