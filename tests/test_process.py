"""The process of the sinks: what it is told and how, that it comes back when it dies, and that it ends with its
recorder, however that ended.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from journals import Writer, make_root
from recorders import eventually
from servers import PASSWORD, RedisServer
from sink_contract import Sqlite

import ingestor
from ingestor.config import Settings
from ingestor.config.sections import LoggingSettings, RedisSettings, SinkSettings, SqliteSettings
from ingestor.errors import ConfigError
from ingestor.layout import Layout
from ingestor.recording import make_sink_process
from ingestor.sinks.destinations import configured_sinks, sinks_with_slots
from ingestor.sinks.process import SinkProcess, SinkSetup

PACKAGE = str(Path(ingestor.__file__).parents[1])


def handover_of(layout: Layout, folder: Path, **more: object) -> SinkSetup:
    sqlite = SqliteSettings(path=folder / "trades.sqlite")
    told = {
        "root": layout.root, "feed": "finnhub", "sinks": SinkSettings(sqlite=sqlite),
        "secrets": {}, "logging": LoggingSettings(format="json"), "stop_timeout": 20.0, **more,
    }  # fmt: skip
    return SinkSetup.model_validate(told)


@contextmanager
def keeping(handover: SinkSetup) -> Iterator[SinkProcess]:
    """A process for the time of the block, which is then stopped in order."""
    sinks = SinkProcess(handover)
    thread = threading.Thread(target=sinks.run)
    thread.start()
    try:
        yield sinks
    finally:
        sinks.stop.set()
        thread.join()


def children() -> list[int]:
    """The processes of sinks that this one has started, and that live."""
    found = []
    for path in Path("/proc/self/task").glob("*/children"):
        found += [int(pid) for pid in path.read_text().split() if "ingestor.sinks" in arguments(int(pid))]
    return found


def arguments(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except FileNotFoundError:
        return ""


def holds(destination: Sqlite, rows: int) -> bool:
    try:
        return bool(destination.rows().num_rows == rows)
    except Exception:  # noqa: BLE001  no table yet
        return False


@pytest.fixture(autouse=True)
def package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", PACKAGE)


class TestBasic:
    def test_it_carries_and_at_a_stop_comes_to_the_end(self, tmp_path: Path) -> None:
        layout, destination = make_root(tmp_path / "root"), Sqlite(tmp_path)
        writer = Writer(layout)
        with keeping(handover_of(layout, tmp_path)):
            writer.append(5)
            writer.journal.sync()
            eventually(lambda: holds(destination, 5), "what is synced in the database")
            writer.append(4)
            writer.journal.close()
        assert destination.rows().num_rows == 9
        assert children() == []

    def test_it_comes_back_when_it_dies(self, tmp_path: Path) -> None:
        layout, destination = make_root(tmp_path / "root"), Sqlite(tmp_path)
        writer = Writer(layout)
        with keeping(handover_of(layout, tmp_path)) as sinks:
            (first,) = eventually(children, "a process")
            os.kill(first, signal.SIGKILL)
            eventually(lambda: sinks.starts == 2, "another one")
            writer.append(5)
            writer.journal.sync()
            eventually(lambda: holds(destination, 5), "what is synced in the database")

    def test_signals_for_the_recorder_do_not_end_it(self, tmp_path: Path) -> None:
        layout, destination = make_root(tmp_path / "root"), Sqlite(tmp_path)
        writer = Writer(layout)
        writer.append(5)
        writer.journal.sync()
        with keeping(handover_of(layout, tmp_path)) as sinks:
            eventually(lambda: holds(destination, 5), "what is synced in the database")
            for number in (signal.SIGINT, signal.SIGTERM):
                os.kill(children()[0], number)
            writer.append(4)
            writer.journal.sync()
            eventually(lambda: holds(destination, 9), "what came after the signals")
            assert sinks.starts == 1

    def test_in_a_hurry_it_is_left(self, tmp_path: Path) -> None:
        layout, destination = make_root(tmp_path / "root"), Sqlite(tmp_path)
        destination.kill()  # it waits for a lock that does not come
        sinks = SinkProcess(handover_of(layout, tmp_path, stop_timeout=3600.0))
        thread = threading.Thread(target=sinks.run)
        thread.start()
        eventually(children, "a process")
        sinks.stop.set()
        sinks.hurried.set()
        thread.join(20)
        assert not thread.is_alive()
        assert children() == []
        destination.start()


class TestSecrets:
    @pytest.mark.needs("redis-server")
    def test_a_password_is_handed_over_by_the_pipe_alone(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FINNHUB_API_KEY", "the key of a test")
        monkeypatch.setenv("REDIS_PASSWORD", PASSWORD)
        server = RedisServer(tmp_path, "--requirepass", PASSWORD)
        layout = make_root(tmp_path / "root")
        writer = Writer(layout)
        writer.append(5)
        writer.journal.sync()
        settings = SinkSettings(redis=RedisSettings(url=server.url))
        try:
            with keeping(handover_of(layout, tmp_path, sinks=settings, secrets={"redis": PASSWORD})):
                (pid,) = eventually(children, "a process")
                eventually(lambda: layout.cursor_file("redis").exists(), "what is synced in Redis")
                environment = Path(f"/proc/{pid}/environ").read_bytes().decode()
                assert PASSWORD not in environment + arguments(pid)
                assert "the key of a test" not in environment
        finally:
            server.close()

    def test_the_handover_does_not_show_them(self, tmp_path: Path) -> None:
        handover = handover_of(make_root(tmp_path / "root"), tmp_path, secrets={"redis": PASSWORD})
        assert PASSWORD not in repr(handover)
        assert PASSWORD in handover.model_dump_json()

    def test_passwords_are_found_where_the_key_is(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("REDIS_PASSWORD", raising=False)
        (tmp_path / ".env").write_text(f"REDIS_PASSWORD='{PASSWORD}'\nKAFKA_PASSWORD=not asked for\n")
        settings = Settings.model_validate({"tickers": ["A"], "sinks": {"redis": {}}})
        sinks = make_sink_process(settings, make_root(tmp_path / "root"), tmp_path)
        assert sinks is not None
        assert sinks.handover.secrets == {"redis": PASSWORD}


class TestOrphan:
    def test_where_its_recorder_was_killed_it_comes_to_the_end_and_ends(self, tmp_path: Path) -> None:
        layout, destination = make_root(tmp_path / "root"), Sqlite(tmp_path)
        writer = Writer(layout)
        writer.append(5)
        writer.journal.sync()
        told = handover_of(layout, tmp_path).model_dump_json().encode() + b"\n"
        with subprocess.Popen([sys.executable, "-m", "ingestor.sinks"], stdin=subprocess.PIPE) as process:
            assert process.stdin is not None
            process.stdin.write(told)
            process.stdin.close()  # what the kernel does for a recorder that is gone
            assert process.wait(30) == 0
        assert destination.rows().num_rows == 5

    def test_one_that_was_told_nothing_ends(self) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "ingestor.sinks"], stdin=subprocess.DEVNULL, check=False, timeout=30
        )
        assert done.returncode == 0


class TestExtras:
    @pytest.mark.parametrize(
        ("sink", "package_name"),
        [
            pytest.param("postgres", "adbc_driver_postgresql", marks=pytest.mark.long),
            pytest.param("redis", "redis", marks=pytest.mark.long),
            ("kafka", "confluent_kafka"),
            pytest.param("delta", "deltalake", marks=pytest.mark.long),
        ],
    )
    def test_one_that_is_missing_is_named(self, tmp_path: Path, sink: str, package_name: str) -> None:
        """As where it was never installed: no finder finds it."""
        config = tmp_path / "ingestor.yaml"
        section = "object_store: {table: delta}" if sink == "delta" else f"{sink}: {{}}"
        config.write_text(f"tickers: [A]\nstorage: {{root: {tmp_path}/data}}\nsinks: {{{section}}}\n")
        program = (
            "import sys, importlib.machinery as m\n"
            f"find, missing = m.PathFinder.find_spec, {package_name!r}\n"
            "m.PathFinder.find_spec = lambda name, *a, **k: None if name == missing else find(name, *a, **k)\n"
            "from ingestor.cli.main import main\n"
            f"main(['run', '--config', {str(config)!r}])\n"
        )
        environment = {**os.environ, "FINNHUB_API_KEY": "key-of-this-test"}
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
        )
        errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
        told = section.split(": {", maxsplit=1)[0] + (".table: delta" if sink == "delta" else "")
        assert errors == [f"error: sinks.{told} needs the extra `{sink}`: pip install 'finnhub-ingestor[{sink}]'"]
        assert done.returncode == 2
        assert not (tmp_path / "data").exists()

    def test_what_is_asked_for(self) -> None:
        settings = SinkSettings.model_validate({"sqlite": {}, "kafka": {}, "object_store": {"uri": "there"}})
        assert configured_sinks(settings) == ["sqlite", "kafka", "object_store"]
        assert sinks_with_slots(settings) == ["sqlite", "kafka"]
        assert configured_sinks(SinkSettings()) == []

    def test_a_mirror_needs_files_to_mirror(self, tmp_path: Path) -> None:
        sinks = {"object_store": {"uri": "there"}}
        settings = Settings.model_validate({"tickers": ["A"], "storage": {"formats": ["csv"]}, "sinks": sinks})
        with pytest.raises(ConfigError, match="parquet"):
            make_sink_process(settings, make_root(tmp_path), tmp_path)

    def test_options_that_kafka_refuses(self, tmp_path: Path) -> None:
        sinks = {"kafka": {"options": {"nope": "1"}}}
        settings = Settings.model_validate({"tickers": ["A"], "sinks": sinks})
        with pytest.raises(ConfigError, match=r'sinks\.kafka\.options: .*"nope"'):
            make_sink_process(settings, make_root(tmp_path), tmp_path)

    def test_the_password_counts_among_the_options(self, tmp_path: Path) -> None:
        options = {"security.protocol": "sasl_ssl", "sasl.mechanism": "PLAIN", "sasl.username": "me"}
        settings = Settings.model_validate({"tickers": ["A"], "sinks": {"kafka": {"options": options}}})
        with pytest.raises(ConfigError, match=r"sasl\.password must be set"):
            make_sink_process(settings, make_root(tmp_path), tmp_path)
        (tmp_path / ".env").write_text("KAFKA_PASSWORD=of this test\n")
        made = make_sink_process(settings, make_root(tmp_path), tmp_path)
        assert made is not None
        assert made.handover.secrets == {"kafka": "of this test"}

    def test_without_sinks_there_is_no_process(self, tmp_path: Path) -> None:
        settings = Settings.model_validate({"tickers": ["A"]})
        assert make_sink_process(settings, make_root(tmp_path), tmp_path) is None


def test_the_thread_turns_while_its_process_lives_and_while_it_waits_to_start_the_next(tmp_path: Path) -> None:
    with keeping(handover_of(make_root(tmp_path / "root"), tmp_path)) as sinks:
        for _ in range(2):
            turned_at_s = sinks.turned_at_s
            eventually(lambda: sinks.turned_at_s > turned_at_s, "a turn")  # noqa: B023  asked at once
            for pid in children():
                os.kill(pid, signal.SIGKILL)
