"""`ingestor serve` as a process, and clients of it."""

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import websocket

import ingestor

PATIENCE_S = 20.0


@dataclass(frozen=True)
class Answer:
    """What came back over HTTP."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Server:
    """One that runs. `url` without a slash at its end."""

    url: str
    log: Path
    process: "subprocess.Popen[str]"
    clients: list[websocket.WebSocket] = field(default_factory=list)
    """Whatever becomes of them, they are closed at the end."""

    def get(self, path: str, method: str = "GET", **headers: str) -> Answer:
        """One call; header names are written with underscores."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self.url + path, headers=named, method=method)  # noqa: S310  our own http://
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:  # noqa: S310  the same
                return Answer(answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, {k.lower(): v for k, v in error.headers.items()}, error.read())

    def connect(self, path: str = "/live-price", **options: Any) -> websocket.WebSocket:
        """A WebSocket of the ordinary client library, which sends an Origin as browsers do."""
        address = self.url.replace("http", "ws", 1) + path
        self.clients.append(websocket.create_connection(address, timeout=PATIENCE_S, **options))
        return self.clients[-1]

    def subscriber(self, *symbols: str, path: str = "/live-price", **more: Any) -> websocket.WebSocket:
        client = self.connect(path)
        say(client, action="subscribe", symbols=list(symbols), **more)
        return client

    def metric(self, name: str) -> float:
        """A value of /metrics."""
        lines = self.get("/metrics").body.decode().splitlines()
        return float(next(line.split()[1] for line in lines if line.startswith(f"{name} ")))

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        host, _, port = self.url.removeprefix("http://").rpartition(":")
        return host, int(port)

    @property
    def memory_bytes(self) -> int:
        """What it holds in memory now."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    @property
    def sockets(self) -> int:
        """How many it holds open."""
        found = 0
        for link in Path(f"/proc/{self.process.pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # it is closed meanwhile
                found += str(link.readlink()).startswith("socket:")
        return found

    def end(self, number: int = signal.SIGTERM) -> int:
        """Ask it to stop; its exit code."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)


def say(client: websocket.WebSocket, **message: Any) -> None:
    client.send(json.dumps(message))


def hear(client: websocket.WebSocket) -> Any:
    """The next message."""
    return json.loads(client.recv())


def hear_end(client: websocket.WebSocket) -> tuple[int, str]:
    """The close frame's code and reason, whatever comes before it."""
    while True:
        opcode, data = client.recv_data()
        if opcode == websocket.ABNF.OPCODE_CLOSE:
            return int.from_bytes(data[:2], "big"), data[2:].decode()


def hang_up(client: websocket.WebSocket) -> None:
    """Close its socket without a word."""
    if client.sock is not None:
        client.sock.close()


def serve_command(root: Path | None, *options: str) -> list[str]:
    """`root`: None leaves the flag out."""
    place = [] if root is None else ["--root", str(root)]
    return [sys.executable, "-m", "ingestor", "serve", "--json", *place, *options]


def serve_environ(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(ingestor.__file__).parents[1]), **more}


def run_serve(root: Path | None, *options: str, **environ: str) -> tuple[int, str]:
    """Exit code and errors of one that doesn't come to serve."""
    done = subprocess.run(
        serve_command(root, *options), check=False, capture_output=True, text=True, timeout=PATIENCE_S,
        env=serve_environ(**environ),
    )  # fmt: skip
    return done.returncode, done.stderr


@contextmanager
def running_serve(root: Path | None, *options: str, log: Path | None = None, **environ: str) -> Iterator[Server]:
    """One for the time of the block, at a free port unless `options` name one; its log is beside the root."""
    log = log or Path(root or ".").parent / "serve.log"
    port = [] if "--port" in options else ["--port", "0"]
    with log.open("ab") as stderr:
        process = subprocess.Popen(
            serve_command(root, *port, *options), stdout=subprocess.PIPE, stderr=stderr, text=True,
            env=serve_environ(**environ),
        )  # fmt: skip
    with process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, log.read_text()
            server = Server(json.loads(line)["url"], log, process)
            try:
                yield server
            finally:
                for client in server.clients:
                    hang_up(client)
        finally:
            process.kill()
