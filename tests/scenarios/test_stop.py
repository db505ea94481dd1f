"""A stop, in any state: within five seconds, with the right exit code, and with everything sealed that can be."""

import contextlib
import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pyarrow as pa
import pytest
from harness import (
    EXIT_S,
    Recorder,
    Site,
    Tally,
    compare,
    count_differences,
    count_repeats,
    environ,
    read_csv,
    read_facts,
    read_gaps,
    read_journal,
    read_parquet,
    running_venue,
)
from requirements import small_disk

from ingestor.layout import list_segments

pytestmark = pytest.mark.alone

SIGNALS = pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)], ids=["SIGTERM", "SIGINT"]
)


def _settle(tally: Tally, site: Site, truth: pa.Table) -> None:
    """After a stop in order nothing waits in the journal, and what is missing lies in the gap of the stop."""
    parquet, csv = read_parquet(site.layout), read_csv(site.layout)
    tally.rows = parquet.num_rows
    tally.lost = read_journal(site.layout).num_rows
    tally.duplicated = count_repeats(parquet) + count_repeats(csv)
    tally.unexplained = compare(truth, parquet).unexplained(read_gaps(site.layout)) + count_differences(parquet, csv)
    tally.assert_clean()


def _assert_nothing_missing(site: Site, truth: pa.Table) -> None:
    """What the venue had sent before it heard our goodbye was taken: the recording is the truth, to the last row."""
    assert compare(truth, read_parquet(site.layout)).missing == []


def _assert_stopped_in_order(site: Site) -> None:
    """The run said so, and left no segment that holds anything."""
    assert read_facts(site.layout)[-1]["fact"] == "run.stopped"
    assert read_facts(site.layout)[-1]["error"] is None
    assert not list_segments(site.layout)


# A venue that does not answer


@contextmanager
def black_hole() -> Iterator[str]:
    """An address at which connecting neither succeeds nor fails: its queue of connections is full."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting = [socket.socket() for _ in range(2)]
        for sock in waiting:
            sock.setblocking(False)
            sock.connect_ex(listener.getsockname())
        try:
            yield f"ws://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            for sock in waiting:
                sock.close()


@pytest.mark.long
@SIGNALS
def test_stop_while_connecting(tmp_path: Path, number: signal.Signals) -> None:
    with black_hole() as url:
        site = Site(tmp_path, tmp_path / "data", url)
        with site.running() as recorder:
            recorder.wait_for(lambda: _is_connecting(recorder), "a connection attempt")
            assert recorder.end(number) == 0
        _assert_stopped_in_order(site)


def _is_connecting(recorder: Recorder) -> bool:
    """Whether it has sent a SYN (state 02) and waits for the answer."""
    process = Path(f"/proc/{recorder.process.pid}")
    waiting = [
        line.split()[9] for line in (process / "net/tcp").read_text().splitlines()[1:] if line.split()[3] == "02"
    ]
    return any(f"socket:[{inode}]" in _open_files(process) for inode in waiting)


def _open_files(process: Path) -> set[str]:
    found = set()
    for fd in (process / "fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since it was listed
            found.add(str(fd.readlink()))
    return found


@pytest.mark.long
@SIGNALS
def test_stop_while_the_handshake_hangs(tmp_path: Path, number: signal.Signals) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(EXIT_S)
        site = Site(tmp_path, tmp_path / "data", f"ws://127.0.0.1:{listener.getsockname()[1]}")
        with site.running() as recorder:
            client, _ = listener.accept()
            with closing(client):
                assert client.recv(4) == b"GET "
                assert recorder.end(number) == 0
        _assert_stopped_in_order(site)


@pytest.mark.long
@SIGNALS
def test_stop_while_waiting_to_reconnect(tmp_path: Path, number: signal.Signals) -> None:
    with running_venue(tmp_path, "--faults", "answer_403") as venue:
        site = Site(tmp_path, tmp_path / "data", venue.url)
        with site.running() as recorder:
            recorder.wait_for_event("connection.retried")
            assert recorder.end(number) == 0
        _assert_stopped_in_order(site)


@pytest.mark.long
@SIGNALS
def test_stop_while_idle(tmp_path: Path, number: signal.Signals) -> None:
    with running_venue(tmp_path, "--faults", "mute_from_birth") as venue:
        site = Site(tmp_path, tmp_path / "data", venue.url)
        with site.running() as recorder:
            recorder.wait_for_event("connection.opened")
            assert recorder.end(number) == 0
        _assert_stopped_in_order(site)


# Under load


@SIGNALS
def test_stop_under_full_load(tmp_path: Path, tally: Tally, number: signal.Signals) -> None:
    with running_venue(tmp_path, "--rate", "max") as venue:
        site = Site(tmp_path, tmp_path / "data", venue.url, settings={"storage": {"rotate": {"age": "15m"}}})
        with site.running() as recorder:
            recorder.wait_for(
                lambda: any(file.path.stat().st_size > 4 << 20 for file in list_segments(site.layout)), "4 MB"
            )
            assert recorder.end(number) == 0
        tally.rounds = 1
        truth = venue.stop()
    _settle(tally, site, truth)
    _assert_nothing_missing(site, truth)
    _assert_stopped_in_order(site)


@pytest.mark.long
@SIGNALS
def test_stop_while_sealing(tmp_path: Path, tally: Tally, number: signal.Signals) -> None:
    with running_venue(tmp_path, "--rate", "5000") as venue:
        site = Site(tmp_path, tmp_path / "data", venue.url)
        with site.running() as recorder:
            recorder.wait_for(lambda: any(site.layout.staging.glob("*.parquet")), "a file in the making")
            assert recorder.end(number) == 0
        tally.rounds = 1
        truth = venue.stop()
    _settle(tally, site, truth)
    _assert_nothing_missing(site, truth)
    _assert_stopped_in_order(site)


# Where something stands in the way


@pytest.mark.long
def test_a_second_signal_leaves_the_sealing_to_the_next_start(tmp_path: Path, tally: Tally) -> None:
    """Sealing waits for the lock of the date, which somebody else holds for ever."""
    with running_venue(tmp_path, "--rate", "5000") as venue:
        site = Site(tmp_path, tmp_path / "data", venue.url, settings={"storage": {"rotate": {"age": "1d"}}})
        with site.running() as recorder:
            recorder.wait_for_rows()
            with _every_date_locked(site):
                recorder.process.send_signal(signal.SIGTERM)
                recorder.wait_for_event("stop.requested")
                recorder.wait_for(lambda: any(site.layout.staging.glob("*.parquet")), "a file in the making")
                assert recorder.end() == 0
        assert "stop.hurried" in recorder.log
        assert not any(site.layout.trades.glob("date=*/*"))
        truth = venue.stop()
        with site.running() as recorder:
            recorder.wait_for_event("segment.sealed")
            assert recorder.end() == 0
    tally.rounds = 1
    _settle(tally, site, truth)


@contextmanager
def _every_date_locked(site: Site) -> Iterator[None]:
    """The dates that trades of now can have."""
    held = []
    for day in {segment.id.started.date() for segment in list_segments(site.layout)}:
        held.append(os.open(site.layout.staging / f"date={day}.lock", os.O_RDWR | os.O_CREAT))
        fcntl.flock(held[-1], fcntl.LOCK_EX)
    try:
        yield
    finally:
        for fd in held:
            os.close(fd)


@pytest.mark.needs("mounts")
def test_stop_on_a_full_disk_uses_the_ballast(tmp_path: Path, tally: Tally) -> None:
    """The rows that the disk refused fit into the space that was set aside: nothing is lost."""
    with running_venue(tmp_path, "--rate", "5000") as venue, small_disk(tmp_path / "disk", "24m") as disk:
        site = _site_on(disk, tmp_path, venue.url)
        with site.running() as recorder:
            recorder.wait_for_rows()
            filler = _fill(disk)
            recorder.wait_for_event("journal.failed")
            assert recorder.end() == 0, recorder.log
            assert not site.layout.ballast.exists()
        truth = venue.stop()
        filler.unlink()
        with site.running() as recorder:
            recorder.wait_for_event("connection.retried")
            assert recorder.end() == 0
        tally.rounds = 1
        _settle(tally, site, truth)


@pytest.mark.long
@pytest.mark.needs("mounts")
def test_stop_on_a_full_disk_says_how_many_rows_it_lost(tmp_path: Path, tally: Tally) -> None:
    """There is no room for the ballast either: exit 4, and the count of the rows that could not be saved."""
    with running_venue(tmp_path, "--rate", "5000") as venue, small_disk(tmp_path / "disk", "4m") as disk:
        site = _site_on(disk, tmp_path, venue.url)
        with site.running() as recorder:
            recorder.wait_for_rows()
            filler = _fill(disk)
            recorder.wait_for_event("journal.failed")
            assert recorder.end() == 4
        truth = venue.stop()
        said = re.search(r"error: (\d+) trades and (\d+) frames could not be saved: .*No space left", recorder.log)
        assert said, recorder.log
        filler.unlink()
        with site.running() as recorder:
            recorder.wait_for_event("connection.retried")
            assert recorder.end() == 0
        parquet, csv = read_parquet(site.layout), read_csv(site.layout)
        comparison = compare(truth, parquet)
        tally.rounds, tally.rows = 1, parquet.num_rows
        tally.duplicated = count_repeats(parquet) + count_repeats(csv)
        tally.unexplained = comparison.unexplained(read_gaps(site.layout)) + count_differences(parquet, csv)
        tally.note = f"{said[1]} trades and {said[2]} frames given up, {len(comparison.missing)} trades missing"
    tally.assert_clean()
    assert int(said[1]) > 0
    assert comparison.missing, "what was called unsaved was saved"


def _site_on(disk: Path, folder: Path, url: str) -> Site:
    return Site(folder, disk / "data", url, settings={"stop_timeout": "1s", "storage": {"rotate": {"age": "1d"}}})


def _fill(disk: Path) -> Path:
    """Take every byte that is left there."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)) == 4096:
                pass
        except OSError:
            return filler
    return filler


# What ends it before it begins


@pytest.mark.long
def test_a_second_recorder_on_a_root_names_the_first(tmp_path: Path) -> None:
    with running_venue(tmp_path) as venue:
        site = Site(tmp_path, tmp_path / "data", venue.url)
        (tmp_path / "second").mkdir()
        second_site = Site(tmp_path / "second", site.root, venue.url)
        with site.running() as first:
            first.wait_for_rows()
            with second_site.running() as second:
                assert second.process.wait(EXIT_S) == 2
            assert f"recorded by process {first.process.pid};" in second.log
            assert first.end() == 0


@pytest.mark.long
def test_a_wrong_key_is_one_clear_line(tmp_path: Path) -> None:
    with running_venue(tmp_path) as venue:
        site = Site(tmp_path, tmp_path / "data", venue.url, key="not-a-key")
        with site.running() as recorder:
            assert recorder.process.wait(EXIT_S) == 3
    errors = [line for line in recorder.log.splitlines() if not line.startswith("{")]
    assert len(errors) == 1
    assert errors[0].startswith("error: the venue refused the API key (401)")
    assert "FINNHUB_API_KEY" in errors[0]


def test_bad_settings_are_told_before_anything_starts(tmp_path: Path) -> None:
    path = tmp_path / "ingestor.yaml"
    path.write_text(f"tickers: [AAPL]\nstorage: {{root: {tmp_path}/data, rotat: 1}}\n")
    done = subprocess.run(
        [sys.executable, "-m", "ingestor", "run", "--config", str(path)],
        capture_output=True, text=True, check=False, env=environ(FINNHUB_API_KEY="demo"), timeout=EXIT_S,
    )  # fmt: skip
    assert done.returncode == 2
    assert f"{path}:2:" in done.stderr
    assert "did you mean `rotate`?" in done.stderr
    assert not (tmp_path / "data").exists()
