"""`ingestor plot`: the picture, the window on a real display, and what it refuses."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from matplotlib import image
from PIL import ImageGrab
from recorders import eventually
from recordings import Print, Recording, make_sample
from requirements import require

from ingestor.cli.main import cli
from ingestor.cli.printing import format_bytes
from ingestor.errors import ConfigError


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    return make_sample(tmp_path_factory.mktemp("plot") / "data")


def call(recording: Recording, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["plot", "--root", str(recording.layout.root), *arguments])


def test_a_picture_of_a_range(sample: Recording, tmp_path: Path) -> None:
    path = tmp_path / "aapl.png"
    arguments = ["--symbols", "AAPL,MSFT", "--png", str(path), "--tz", "America/New_York", "--interval", "5m"]
    result = call(sample, *arguments, "--start", "2026-11-20T09:00", "--end", "2026-11-20T10:00")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{path}: 24 bars, {format_bytes(path.stat().st_size)}\n"
    assert image.imread(path).std() > 0.01


def test_a_picture_told_to_a_program(sample: Recording, tmp_path: Path) -> None:
    path = tmp_path / "aapl.png"
    result = call(sample, "--symbols", "AAPL", "--png", str(path), "--interval", "1h", "--json")
    told = json.loads(result.stdout)
    assert (told["file"], told["bytes"]) == (str(path), path.stat().st_size)
    assert told["bars"] > 1


def test_a_picture_of_all_that_is_recorded(sample: Recording, tmp_path: Path) -> None:
    path = tmp_path / "all.png"
    result = call(sample, "--symbols", "BINANCE:BTCUSDT", "--png", str(path), "--dark")
    assert result.exit_code == 0, result.output
    assert image.imread(path)[0, 0, :3].max() < 0.2


def test_a_file_that_exists_is_replaced_only_if_asked(sample: Recording, tmp_path: Path) -> None:
    path = tmp_path / "aapl.png"
    path.write_text("a thesis")
    arguments = ["--symbols", "AAPL", "--png", str(path), "--interval", "1h"]
    refused = call(sample, *arguments)
    assert (refused.exit_code, path.read_text()) == (1, "a thesis")
    assert str(refused.exception) == f"{path} exists already: choose another name, or add --overwrite"
    assert isinstance(refused.exception, ConfigError)
    assert call(sample, *arguments, "--overwrite").exit_code == 0
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--png", "x.png"], 2, "name the symbols"),
        (["--png", "x.png", "--symbols", "A,B,C,D,E,F,G"], 2, "up to 6"),
        (["--png", "x.png", "--symbols", "AAPL", "--interval", "7m"], 2, "doesn't divide a day"),
        (["--symbols", "AAPL", "--start", "2026-11-20"], 2, "add --png FILE"),
        (["--symbols", "AAPL", "--json"], 2, "add --png FILE"),
        (["--symbols", "AAPL", "--overwrite"], 2, "add --png FILE"),
        (["--symbols", "AAPL", "--interval", "1m"], 2, "add --png FILE"),
        (["--png", "x.png", "--symbols", "NONE"], 1, "no trade of 'NONE' is recorded in that time"),
        (["--png", "none/x.png", "--symbols", "AAPL"], 1, "none/x.png: can't be written: No such file"),
    ],
)
def test_what_it_refuses(
    sample: Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = call(sample, *arguments)
    text = f"{result.output}{result.exception}"
    assert said in text
    assert getattr(result.exception, "exit_code", result.exit_code) == code
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_no_display(sample: Recording) -> None:
    """In a process of its own: which display there is, is decided once."""
    environment = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    command = [sys.executable, "-m", "ingestor", "plot", "--root", str(sample.layout.root), "--symbols", "AAPL"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: there is no display for a window here: write a picture with --png FILE\n"


# The window


@pytest.fixture
def display() -> Iterator[str]:
    """A display of its own."""
    reading, writing = os.pipe()
    with subprocess.Popen(
        [require("Xvfb"), "-displayfd", str(writing), "-screen", "0", "1000x500x24", "-nolisten", "tcp", "-noreset"],
        pass_fds=[writing],
        stderr=subprocess.DEVNULL,
    ) as server:
        os.close(writing)
        try:
            with os.fdopen(reading) as told:
                yield f":{told.readline().strip()}"
        finally:
            server.terminate()


@pytest.mark.needs("display")
def test_a_window_that_moves(tmp_path: Path, display: str) -> None:
    recording = Recording(tmp_path, ["AAPL"])
    recording.prove(["AAPL"], "2026-01-01T00:00")
    seen = {ImageGrab.grab(xdisplay=display).tobytes()}

    def shows_something_new() -> bool:
        now = ImageGrab.grab(xdisplay=display).tobytes()
        is_new = now not in seen
        seen.add(now)
        return is_new

    command = [sys.executable, "-m", "ingestor", "plot", "--root", str(tmp_path), "--symbols", "AAPL"]
    with subprocess.Popen(command, env=os.environ | {"DISPLAY": display}, stderr=subprocess.PIPE) as window:
        try:
            for price in (10.0, 11.0, 9.0):
                recording.write(Print(datetime.now(UTC), "AAPL", price, 1))
                eventually(shows_something_new, f"a window that shows {price}")
            window.send_signal(signal.SIGINT)
            _, told = window.communicate()
        finally:
            window.kill()
    assert (window.returncode, told) == (130, b"")
