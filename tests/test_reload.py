"""Settings that change while it records: what is taken over, what is refused, what must wait."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from prepared import prepared_recording

from ingestor.cli.main import cli
from ingestor.config import Flags, Settings, Source
from ingestor.layout import locked_root
from ingestor.ledger import list_ledgers, read_facts
from ingestor.operations.reload import LiveSettings
from ingestor.recording import Recording

NO_FLAGS = Flags()
BEGUN = "tickers: [AAPL, MSFT]\nstorage: {min_free: 0B}\n"


@pytest.fixture
def recording(tmp_path: Path) -> Iterator[Recording]:
    with prepared_recording(tmp_path) as recording:
        yield recording


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "ingestor.yaml"
    path.write_text(BEGUN)
    return path


def live(recording: Recording, path: Path, flags: Flags = NO_FLAGS, **more: Any) -> LiveSettings:
    source = Source(path, flags)
    settings = source.read().model_copy(update=more)
    return LiveSettings(source, settings, recording.division, recording.ledger)


def outcomes(recording: Recording) -> list[dict[str, Any]]:
    """What the ledger says of reloads."""
    (path,) = list_ledgers(recording.layout)
    return [fact for fact in read_facts(path) if fact["fact"].startswith("settings.")]


def wanted(recording: Recording) -> tuple[str, ...]:
    """What the session would ask for now: it takes changes over itself, in its own thread."""
    (group,) = recording.division.groups
    group.adopt(group.wanted)
    return group.symbols()


def test_tickers_are_taken_over(recording: Recording, path: Path) -> None:
    settings = live(recording, path)
    path.write_text("tickers: [AAPL, ON, BRK.B]\nstorage: {min_free: 0B}\n")
    settings.reload()
    assert wanted(recording) == ("AAPL", "ON", "BRK.B")
    (fact,) = outcomes(recording)
    assert (fact["added"], fact["dropped"], fact["waiting"]) == (["ON", "BRK.B"], ["MSFT"], [])


def test_what_was_dropped_is_in_the_ledger(recording: Recording, path: Path) -> None:
    settings = live(recording, path)
    path.write_text(BEGUN.replace("MSFT", "ON"))
    settings.reload()
    wanted(recording)
    dropped = [
        fact["symbol"] for fact in read_facts(list_ledgers(recording.layout)[0]) if fact["fact"] == "symbol.dropped"
    ]
    assert dropped == ["MSFT"]


def test_a_broken_file_is_refused_with_its_errors_and_the_old_one_stays(recording: Recording, path: Path) -> None:
    settings = live(recording, path)
    path.write_text("tickers: [AAPL]\nstorage: {rooot: x}\n")
    settings.reload()
    assert wanted(recording) == ("AAPL", "MSFT")
    (fact,) = outcomes(recording)
    assert fact["fact"] == "settings.refused"
    assert "unknown key `rooot`: did you mean `root`?" in fact["error"]


def test_a_file_that_is_gone_is_refused(recording: Recording, path: Path) -> None:
    settings = live(recording, path)
    path.unlink()
    settings.reload()
    assert wanted(recording) == ("AAPL", "MSFT")
    assert outcomes(recording)[0]["fact"] == "settings.refused"


def test_other_settings_are_named_and_wait_for_a_restart(recording: Recording, path: Path) -> None:
    settings = live(recording, path)
    path.write_text("tickers: [AAPL]\nstorage: {min_free: 2GB, rotate: {age: 1h}}\njournal: {linger: 1ms}\n")
    for _ in range(2):
        settings.reload()
    first, second = outcomes(recording)
    assert first["waiting"] == ["journal.linger", "storage.min_free", "storage.rotate.age"]
    assert second["waiting"] == first["waiting"]  # they still do
    assert (second["added"], second["dropped"]) == ([], [])


def test_symbols_of_the_command_line_stay_above_the_file(recording: Recording, path: Path) -> None:
    settings = live(recording, path, Flags(symbols=["AAPL", "MSFT"]))
    path.write_text("tickers: [TSLA]\nstorage: {min_free: 0B}\n")
    settings.reload()
    assert wanted(recording) == ("AAPL", "MSFT")


# Watching the file


def test_a_saved_file_is_noticed_once_it_rests(recording: Recording, path: Path) -> None:
    settings = live(recording, path, tickers_watch=True)
    assert not settings.file_changed(10.0)
    path.write_text(BEGUN + "# being written")
    assert not settings.file_changed(11.0)
    path.write_text(BEGUN + "# being written by a slow editor")
    assert not settings.file_changed(12.0)
    assert not settings.file_changed(12.5)  # it is looked at once a second
    assert settings.file_changed(13.0)
    settings.reload()
    assert not settings.file_changed(14.0)
    assert not settings.file_changed(15.0)


def test_a_file_of_tickers_is_taken_over_as_the_list_is(recording: Recording, path: Path) -> None:
    tickers = path.with_name("sp500.txt")
    tickers.write_text("AAPL\nMSFT\n")
    path.write_text("tickers: {files: [sp500.txt], add: [ON]}\nstorage: {min_free: 0B}\n")
    settings = live(recording, path, tickers_watch=True)
    settings.reload()
    assert wanted(recording) == ("AAPL", "MSFT", "ON")
    tickers.write_text("AAPL\nBRK.B\n")
    assert not settings.file_changed(10.0)
    assert settings.file_changed(11.0)
    settings.reload()
    assert wanted(recording) == ("AAPL", "BRK.B", "ON")
    tickers.write_text("AAPL, MSFT\n")
    settings.reload()
    assert wanted(recording) == ("AAPL", "BRK.B", "ON")
    assert "sp500.txt:1: " in outcomes(recording)[-1]["error"]
    assert not settings.file_changed(12.0)


def test_a_file_replaced_as_editors_do_is_noticed(recording: Recording, path: Path) -> None:
    settings = live(recording, path, tickers_watch=True)
    before = path.stat()
    other = path.with_suffix(".new")
    other.write_text(BEGUN.replace("MSFT", "TSLA"))
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)
    settings.file_changed(1.0)
    assert settings.file_changed(2.0)


def test_a_file_that_is_missing_for_a_moment_changes_nothing(recording: Recording, path: Path) -> None:
    settings = live(recording, path, tickers_watch=True)
    path.unlink()
    assert not any(settings.file_changed(float(now_s)) for now_s in range(1, 6))


def test_it_is_not_watched_unless_asked(recording: Recording, path: Path) -> None:
    settings = live(recording, path)
    path.write_text("tickers: [TSLA]\n")
    assert not any(settings.file_changed(float(now_s)) for now_s in range(1, 6))


def test_settings_of_flags_alone_can_be_read_again(recording: Recording) -> None:
    source = Source(None, Flags(symbols=["AAPL", "MSFT"]))
    settings = LiveSettings(source, Settings(tickers=("AAPL", "MSFT")), recording.division, recording.ledger)
    settings.reload()
    assert wanted(recording) == ("AAPL", "MSFT")


def test_the_command_hears_its_answer_among_other_facts(
    recording: Recording, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(pid: int, number: int) -> None:
        recording.ledger.record("settings.reloaded", added=["ON"], dropped=["MSFT"], waiting=[])
        recording.ledger.record("sink.behind", sink="redis")  # what else is recorded before the command looks

    monkeypatch.setattr("ingestor.cli.control.os.kill", answer)
    monkeypatch.setattr("ingestor.cli.control._PATIENCE_S", 1.0)
    command = ["reload", "--config", str(path), "--root", str(recording.layout.root), "--json"]
    with locked_root(recording.layout):
        result = CliRunner().invoke(cli, command)
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {"added": ["ON"], "dropped": ["MSFT"], "waiting": []}
