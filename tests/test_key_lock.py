"""One reader of a key at a venue on a machine."""

import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

import ingestor
from ingestor.errors import KeyInUse
from ingestor.operations.key_lock import locked_file, locked_key

URL = "wss://ws.finnhub.io"
HOLD = (
    "import sys; from ingestor.operations.key_lock import locked_key\n"
    "with locked_key(sys.argv[1], sys.argv[2]): print('held', flush=True); sys.stdin.read()"
)


def hold(key: str) -> "subprocess.Popen[str]":
    """Another process that holds this key."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, key, URL],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(ingestor.__file__).parents[1])},
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
    except BaseException:
        process.kill()
        process.wait()
        raise
    return process


@pytest.fixture
def key() -> str:
    """One that no other test uses."""
    return f"key-{os.getpid()}"


def test_the_second_is_told_who_is_the_first(key: str) -> None:
    user = pwd.getpwuid(os.geteuid()).pw_name
    with hold(key) as first:
        try:
            with pytest.raises(KeyInUse, match=rf"^process {first.pid} of user {user} on this machine") as caught:
                locked_key(key, URL).__enter__()
            assert key not in str(caught.value)
        finally:
            first.kill()


def test_it_ends_with_the_process_however_that_ends(key: str) -> None:
    first = hold(key)
    with first:
        first.kill()
    with locked_key(key, URL):
        pass


def test_it_can_be_had_again_by_the_same_process(key: str) -> None:
    for _ in range(2):
        with locked_key(key, URL), pytest.raises(KeyInUse):
            locked_key(key, URL).__enter__()


def test_another_key_or_another_venue_is_another_lock(key: str) -> None:
    with locked_key(key, URL), locked_key(f"{key}x", URL), locked_key(key, "ws://127.0.0.1:8765"):
        pass


def test_where_the_venue_asks_for_no_key_nothing_is_held() -> None:
    with locked_key("", URL), locked_key("", URL):
        pass


def test_what_everybody_can_see_is_not_the_key(key: str) -> None:
    with locked_key(key, URL):
        table = Path("/proc/net/unix").read_text()
    assert "@finnhub-ingestor-key-" in table
    assert key not in table


def test_a_file_stands_for_the_lock_where_there_are_no_abstract_sockets(tmp_path: Path) -> None:
    with locked_file(tmp_path / "key"), pytest.raises(KeyInUse, match="another process"), locked_file(tmp_path / "key"):
        pass
    with locked_file(tmp_path / "key"):
        pass
