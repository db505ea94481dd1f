"""Real servers for the tests of sinks: started on free ports, killed as a crash would, started again on what they left.

Kafka is librdkafka's own mock cluster: it speaks the protocol, and its brokers can be taken down.
"""

import ctypes
import os
import random
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import cycle
from pathlib import Path

import confluent_kafka
import redis
from confluent_kafka.admin import AdminClient
from pyarrow import fs as pafs
from requirements import require

PATIENCE_S = 60.0
"""Longer than any server takes to start."""
PASSWORD = "a password of a test"
BUCKET = "trades"
_PARTITIONS = 4
_PRODUCE = 0  # the request's number in Kafka's protocol
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
        except (OSError, redis.RedisError) as error:
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


class S3Server:
    """SeaweedFS with one bucket."""

    def __init__(self, folder: Path) -> None:
        self._ports = ports = free_ports(10)
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
        for port in self._ports:
            for left in _WEED_SOCKETS.glob(f"seaweedfs-*-{port}.sock"):
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
