"""Real servers for the tests of sinks: started on free ports, killed as a crash would, started again on what they left.

Kafka is librdkafka's own mock cluster: it speaks the protocol, and its brokers can be taken down. What it never does is
to know a message again; for that there is tansu, a broker that somebody else wrote.
"""

import ctypes
import os
import random
import shutil
import socket
import socketserver
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from itertools import cycle
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

import adbc_driver_manager
import confluent_kafka
import pyarrow as pa
import redis
from adbc_driver_postgresql import dbapi
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from pyarrow import fs as pafs
from requirements import find_postgres, find_tansu, require

PATIENCE_S = 60.0
"""Longer than any server takes to start."""
PASSWORD = "a password of a test"
BUCKET = "trades"
_PARTITIONS = 4
_PRODUCE = 0  # the request's number in Kafka's protocol
_RECORDER = b"finnhub-ingestor"  # what its producers call themselves there
_WEED_SOCKETS = Path("/tmp")  # noqa: S108  it knows no other place for them
_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_PORTS = range(10_000 + _WORKER, 30_000, _WORKERS)
"""Others that look for a free port at the same time have others."""


def free_ports(count: int) -> list[int]:
    """Ports that nobody has now, and that no outgoing connection gets while a killed server is away."""
    found: list[int] = []
    for port in random.sample(_PORTS, 1000):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            break
    return found


def wait_until(answers: Callable[[], object], what: str) -> None:
    """Until this neither raises nor gives something false."""
    deadline_s = time.monotonic() + PATIENCE_S
    fault: object = "it says no"
    while time.monotonic() < deadline_s:
        try:
            if answers():
                return
        except (OSError, redis.RedisError, adbc_driver_manager.Error) as error:
            fault = error
        time.sleep(0.02)
    raise AssertionError(f"{what} never came about: {fault}")


class RedisServer:
    """redis-server, keeping what it acknowledges (AOF, synced always)."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.port, *_ = free_ports(1)
        self.url = f"redis://127.0.0.1:{self.port}"
        self._command = [
            *(require("redis-server"), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder)),
            *("--appendonly", "yes", "--appendfsync", "always", "--save", "", "--logfile", str(folder / "redis.log")),
            *options,
        ]
        self.client = redis.Redis.from_url(self.url, decode_responses=True)
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        try:
            wait_until(self._answers, "redis-server")
        except BaseException:  # also what ends a test from outside: its time, Ctrl-C
            self.kill()
            raise

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self.client.close()

    def close(self) -> None:
        self.kill()

    def _answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except redis.AuthenticationError:
            return True


class PostgresServer:
    """Debian's PostgreSQL with a cluster of its own; as root it runs as the user `postgres`, since it refuses root."""

    password = "p%s/w@rd"

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = Path(tempfile.mkdtemp(prefix="postgres-", dir="/tmp"))
        self.port, *_ = free_ports(1)
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        self._programs = Path(find_postgres()).parent
        self._user = "postgres" if os.geteuid() == 0 else None
        password = self._folder / "password"
        password.write_text(self.password)
        try:
            if self._user:
                for path in (self._folder, password):
                    shutil.chown(path, self._user, self._user)
            subprocess.run(
                [self._programs / "initdb", "-D", self._folder / "data", "-U", "postgres", "-A", "scram-sha-256",
                 "--pwfile", password, "-N", "--no-instructions", "--locale=C.UTF-8"],
                check=True, stdout=subprocess.DEVNULL, user=self._user, group=self._user, cwd=self._folder,
            )  # fmt: skip
            self.start()
        except BaseException:
            shutil.rmtree(self._folder)
            raise

    def start(self) -> None:
        try:
            wait_until(self._answers, "PostgreSQL")
        except BaseException:
            self.kill()
            raise

    def _answers(self) -> bool:
        """It refuses to start as long as a process of its predecessor, which was killed, has not noticed that."""
        if self._process is None or self._process.poll() is not None:
            options = {"port": self.port, "listen_addresses": "127.0.0.1", "unix_socket_directories": self._folder}
            settings = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
            with (self._folder / "log").open("ab") as log:
                self._process = subprocess.Popen(
                    [self._programs / "postgres", "-D", self._folder / "data", *settings],
                    stderr=log, user=self._user, group=self._user, cwd=self._folder,
                )  # fmt: skip
        return bool(self.select("SELECT 1").num_rows)

    def select(self, sql: str, schema: str = "public") -> pa.Table:
        address = self.url.replace("@", f":{quote(self.password, safe='')}@")
        with closing(dbapi.connect(address)) as link, link.cursor() as cursor:
            cursor.execute(f'SET search_path = "{schema}"')
            cursor.execute("SET TIME ZONE 'UTC'")
            cursor.execute(sql)
            return cursor.fetch_arrow_table()

    @property
    def backends(self) -> list[int]:
        """The processes that serve the sinks' links."""
        sql = "SELECT pid FROM pg_stat_activity WHERE application_name = 'finnhub-ingestor'"
        return self.select(sql)["pid"].to_pylist()  # type: ignore[no-any-return]

    def kill(self) -> None:
        """The server alone: the processes that serve its clients notice, and end."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        self.kill()
        wait_until(lambda: not self._left(), "the end of PostgreSQL's processes")
        shutil.rmtree(self._folder)

    def _left(self) -> list[str]:
        """The processes that still work in its folder."""
        found = []
        for cwd in Path("/proc").glob("[0-9]*/cwd"):
            with suppress(OSError):  # ended, or somebody else's
                if cwd.readlink().is_relative_to(self._folder):
                    found.append(cwd.parent.name)
        return found


class KafkaCluster:
    """A mock cluster in this process, for clients in any."""

    def __init__(self, brokers: int = 1) -> None:
        library = next((Path(confluent_kafka.__file__).parents[1] / "confluent_kafka.libs").glob("librdkafka*"))
        self._librdkafka = ctypes.CDLL(str(library))
        for name in ("rd_kafka_conf_new", "rd_kafka_new", "rd_kafka_mock_cluster_new"):
            getattr(self._librdkafka, name).restype = ctypes.c_void_p
        self._librdkafka.rd_kafka_mock_cluster_bootstraps.restype = ctypes.c_char_p
        configuration = ctypes.c_void_p(self._librdkafka.rd_kafka_conf_new())
        fault = ctypes.create_string_buffer(512)
        producer = 0
        self._client = ctypes.c_void_p(self._librdkafka.rd_kafka_new(producer, configuration, fault, 512))
        assert self._client, fault.value
        self._cluster = ctypes.c_void_p(self._librdkafka.rd_kafka_mock_cluster_new(self._client, brokers))
        self.brokers = self._librdkafka.rd_kafka_mock_cluster_bootstraps(self._cluster).decode()
        self._numbers = range(1, brokers + 1)

    def create(self, topic: str) -> None:
        """Before anybody writes to it, for a reader that is there from the beginning."""
        create = self._librdkafka.rd_kafka_mock_topic_create
        assert create(self._cluster, topic.encode(), _PARTITIONS, len(self._numbers)) == 0

    def refuse(self, code: int) -> None:
        """The next request to keep messages is refused with this error."""
        push = self._librdkafka.rd_kafka_mock_push_request_errors_array
        push(self._cluster, ctypes.c_int16(_PRODUCE), ctypes.c_size_t(1), (ctypes.c_int * 1)(code))

    def kill(self) -> None:
        """All brokers hang up, and take no connection."""
        for number in self._numbers:
            assert self._librdkafka.rd_kafka_mock_broker_set_down(self._cluster, number) == 0

    def start(self) -> None:
        for number in self._numbers:
            assert self._librdkafka.rd_kafka_mock_broker_set_up(self._cluster, number) == 0

    def lose_leader(self, topic: str) -> int:
        """The broker that leads a topic's first partition goes down; those left take over all that it led, as they
        would by an election. Its number.
        """
        partitions = AdminClient({"bootstrap.servers": self.brokers}).list_topics(topic, PATIENCE_S).topics[topic]
        lost = partitions.partitions[0].leader
        assert self._librdkafka.rd_kafka_mock_broker_set_down(self._cluster, lost) == 0
        heirs = cycle(number for number in self._numbers if number != lost)
        for number, partition in partitions.partitions.items():
            if partition.leader == lost:
                set_leader = self._librdkafka.rd_kafka_mock_partition_set_leader
                assert set_leader(self._cluster, topic.encode(), number, next(heirs)) == 0
        return lost

    def close(self) -> None:
        self._librdkafka.rd_kafka_mock_cluster_destroy(self._cluster)
        self._librdkafka.rd_kafka_destroy(self._client)


class LossyKafka:
    """tansu, a Kafka broker in memory, behind a proxy that loses what it says: a share of its answers to a recorder's
    requests to keep messages never arrives, and both sides are hung up on. The broker has kept those, and the client
    can't know. What other clients write, as a reader its marks, they are always told of.
    """

    def __init__(self, loss: float = 0.0) -> None:
        self.lost = 0
        """Answers."""
        self._loss, self._chance, self._counting = loss, random.Random(16), threading.Lock()
        self._away = False
        self._connected: set[socket.socket] = set()
        self._port, advertised = free_ports(2)
        self.brokers = f"127.0.0.1:{advertised}"
        urls = ("--listener-url", f"tcp://127.0.0.1:{self._port}", "--advertised-listener-url", f"tcp://{self.brokers}")
        with ExitStack() as started:
            self._process = started.enter_context(
                subprocess.Popen([find_tansu(), "broker", "--silent", *urls], stdout=subprocess.DEVNULL)
            )
            started.callback(self._process.kill)
            proxy = started.enter_context(socketserver.ThreadingTCPServer(("127.0.0.1", advertised), self._carrier()))
            thread = threading.Thread(target=proxy.serve_forever, args=(0.02,), name="lossy proxy")
            thread.start()
            started.callback(thread.join)
            started.callback(proxy.shutdown)
            started.callback(self.kill)
            wait_until(self._answers, "tansu")
            self._running = started.pop_all()

    def create(self, topic: str) -> None:
        client = AdminClient({"bootstrap.servers": self.brokers})
        client.create_topics([NewTopic(topic, _PARTITIONS, 1)])[topic].result(PATIENCE_S)

    def kill(self) -> None:
        """Nobody gets through to it, until `start`: it would lose all with its own end."""
        self._away = True
        for side in list(self._connected):
            _hang_up(side)

    def start(self) -> None:
        self._away = False

    def close(self) -> None:
        self._running.close()

    def _answers(self) -> bool:
        with socket.create_connection(("127.0.0.1", self._port)):
            return True

    def _carrier(self) -> type[socketserver.BaseRequestHandler]:
        cluster = self

        class Carrier(socketserver.BaseRequestHandler):
            """A connection of a client."""

            def handle(self) -> None:
                with socket.create_connection(("127.0.0.1", cluster._port)) as broker:
                    sides = {self.request, broker}
                    cluster._connected |= sides
                    keeping: set[bytes] = set()
                    asking = threading.Thread(target=self._ask, args=(broker, keeping))
                    asking.start()
                    with suppress(OSError), broker.makefile("rb") as answers:
                        while not cluster._away and (answer := _read_kafka_frame(answers)):
                            if answer[4:8] in keeping and cluster._loses():
                                break
                            self.request.sendall(answer)
                    for side in sides:
                        _hang_up(side)
                    asking.join()
                    cluster._connected -= sides

            def _ask(self, broker: socket.socket, keeping: set[bytes]) -> None:
                with suppress(OSError), self.request.makefile("rb") as requests:
                    while request := _read_kafka_frame(requests):
                        if int.from_bytes(request[4:6]) == _PRODUCE and request[14:].startswith(_RECORDER):
                            keeping.add(request[8:12])
                        broker.sendall(request)
                _hang_up(broker)

        return Carrier

    def _loses(self) -> bool:
        with self._counting:
            loses = self._chance.random() < self._loss
            self.lost += loses
            return loses


def _hang_up(side: socket.socket) -> None:
    with suppress(OSError):  # the other has done so
        side.shutdown(socket.SHUT_RDWR)


def _read_kafka_frame(stream: BinaryIO) -> bytes:
    """A request (length, kind, version, number, length of the client's name, name, …) or an answer (length, number, …);
    nothing at the end.
    """
    length = stream.read(4)
    return length + stream.read(int.from_bytes(length)) if len(length) == 4 else b""


def _weed_sockets(ports: list[int]) -> list[Path]:
    """Those that SeaweedFS makes for these ports, where they are there."""
    return [path for port in ports for path in _WEED_SOCKETS.glob(f"seaweedfs-*-{port}.sock")]


class S3Server:
    """SeaweedFS with one bucket."""

    def __init__(self, folder: Path) -> None:
        # weed makes sockets of these names, and can't where another user's, who was killed, lie there still.
        while _weed_sockets(ports := free_ports(10)):
            pass
        self._ports = ports
        names = ("s3.port", "s3.port.grpc", "master.port", "master.port.grpc", "volume.port", "volume.port.grpc",
                 "filer.port", "filer.port.grpc", "admin.port", "admin.port.grpc")  # fmt: skip
        off = ("webdav", "admin.ui", "master.telemetry")
        self.environment = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
        self.uri = f"s3://{BUCKET}/mirror?scheme=http&endpoint_override=127.0.0.1:{ports[0]}&region=us-east-1"
        self._log = folder / "weed.log"
        self._command = [
            *(require("weed"), f"-logdir={folder}", "mini", f"-dir={folder}"),
            *("-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-bucket={BUCKET}", "-s3.port.iceberg=0", "-s3.port.lance=0"),
            *(f"-{name}={port}" for name, port in zip(names, ports, strict=True)),
            *(f"-{name}=false" for name in off),
        ]
        self.start()

    def start(self) -> None:
        with self._log.open("ab") as log:
            environment = {**os.environ, **self.environment}
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, env=environment)
        try:
            wait_until(self._answers, f"weed mini (see {self._log})")
        except BaseException:  # also what ends a test from outside: its time, Ctrl-C
            self.kill()
            raise

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        for left in _weed_sockets(self._ports):
            left.unlink()

    def close(self) -> None:
        self.kill()

    def _answers(self) -> bool:
        assert self._process.poll() is None, self._log.read_text()
        files, path = pafs.FileSystem.from_uri(self.uri)
        probe = f"{path}/.probe"
        with files.open_output_stream(probe) as stream:
            stream.write(b"x")
        files.delete_file(probe)
        return True
