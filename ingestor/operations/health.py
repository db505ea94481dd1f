"""Small HTTP server for programs that watch the recorder: /metrics, /healthz, /readyz, /status.

It reads the recording's status on request, in threads of its own. Nothing waits for it, and whatever happens to it the
recording goes on. It runs in the recorder's process, so it bounds what its clients cost: the number of connections, the
time of each request, the requests per second, and one reading of the status per quarter of a second.
"""

import io
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from typing import Any, NamedTuple

import structlog
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest

from ingestor.config.addresses import Hosts, allowed_hosts, is_loopback, split_address
from ingestor.config.sections import HealthSettings
from ingestor.operations.collector import Watch
from ingestor.operations.prometheus import StatusMetrics
from ingestor.operations.recorder_status import encode_status, find_problems

_ANYWHERE = "127.0.0.1:0"
_REQUEST_S = 3.0
"""For one connection: its request, our look at the recording, and its reading of the answer."""
_POLL_S = 0.2
_CONNECTIONS_MAX = 64
"""At once; one more, and the oldest is cut off: an honest one is done in milliseconds."""
_BURST, _BURST_S = 50, 0.5
"""So many connections are taken in so long: a client that asks in a loop waits in the queue of the system."""
_FRESH_S = 0.25
_REQUEST_BYTES = 32 << 10

log = structlog.get_logger()


class HealthServer:
    """Answers at an address until it is closed."""

    def __init__(self, address: str, watch: Watch, allow_hosts: tuple[str, ...] = ()) -> None:
        """Listen; `allow_hosts` are names under which it is called beside its own. Raises OSError where the address
        can't be had.
        """
        host, port = split_address(address)
        hosts = allowed_hosts(host, (socket.gethostname(), *allow_hosts), private_names=True)
        self._server = _Server((host, port), watch, hosts)
        bound = self._server.server_address
        self.address = f"[{host}]:{bound[1]}" if ":" in host else f"{host}:{bound[1]}"
        """Its address, with the port that it got."""
        if not is_loopback(host):
            log.warning("health.exposed", address=self.address, hint="it asks nobody who they are")
        self._thread = threading.Thread(target=self._server.serve_forever, args=(_POLL_S,), name="health", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Hang up on whoever is there: no client can hold this up, nor a disk that one of them asks about."""
        self._server.shutdown()
        self._server.server_close()
        self._server.hang_up()


def open_health(settings: HealthSettings, watch: Watch) -> HealthServer | None:
    """The server, unless it is turned off. Where the address is taken it answers at a free port of this machine, which
    the root's lock names, so that `ingestor status` finds it. Whatever fails here is logged, and ends nothing.
    """
    if settings.listen is None:
        return None
    for each in (settings.listen, _ANYWHERE):
        try:
            server = HealthServer(each, watch, settings.allow_hosts)
        except OSError as error:
            log.error("health.refused", address=each, error=error.strerror or str(error), hint="set health.listen")
        else:
            log.info("health.opened", address=server.address)
            return server
    return None


class _Answer(NamedTuple):
    """Answer to a request."""

    status: HTTPStatus
    kind: str
    body: bytes


class _Fresh:
    """An answer that is made at most four times per second, however many ask, and by one of them at a time."""

    def __init__(self, make: Callable[[], _Answer]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._answer: _Answer | None = None
        self._until_s = float("-inf")

    def __call__(self) -> _Answer:
        """Raises OSError where the disk can't be asked; TimeoutError where it doesn't answer."""
        if not self._lock.acquire(timeout=_REQUEST_S):
            raise TimeoutError("the recording can't be looked at: does its disk answer?")
        try:
            if self._answer is None or time.monotonic() >= self._until_s:
                self._answer = self._make()
                self._until_s = time.monotonic() + _FRESH_S
            return self._answer
        finally:
            self._lock.release()


class _Server(ThreadingHTTPServer):
    """Gives every connection a thread and a deadline."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], watch: Watch, hosts: Hosts) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.hosts = hosts
        registry = CollectorRegistry(auto_describe=False)
        registry.register(StatusMetrics(watch))
        ProcessCollector(registry=registry)

        def tell_metrics() -> _Answer:
            return _Answer(HTTPStatus.OK, CONTENT_TYPE_LATEST, generate_latest(registry))

        def tell_readiness() -> _Answer:
            problems = find_problems(watch.look())
            status = HTTPStatus.SERVICE_UNAVAILABLE if problems else HTTPStatus.OK
            return _text(status, "".join(f"{line}\n" for line in problems or ["recording"]))

        def tell_status() -> _Answer:
            return _Answer(HTTPStatus.OK, "application/json", encode_status(watch.look()))

        self.answers: dict[str, Callable[[], _Answer]] = {
            "/metrics": _Fresh(tell_metrics),
            "/healthz": lambda: _text(HTTPStatus.OK, "alive\n"),
            "/readyz": _Fresh(tell_readiness),
            "/status": _Fresh(tell_status),
        }
        self._open: dict[socket.socket, float] = {}
        """Connections and when they are over, the oldest first."""
        self._lock = threading.Lock()
        """Over a connection's being open: a number of a file that was closed may be somebody else's by now."""
        self._taken_s: deque[float] = deque([float("-inf")] * _BURST, maxlen=_BURST)
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Without the reverse look-up of the host's name that HTTPServer does: a name server may be slow."""
        super(HTTPServer, self).server_bind()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def get_request(self) -> tuple[socket.socket, Any]:
        wait_s = self._taken_s[0] + _BURST_S - time.monotonic()
        if wait_s > 0:
            time.sleep(wait_s)
        self._taken_s.append(time.monotonic())
        return super().get_request()

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            if len(self._open) >= _CONNECTIONS_MAX:
                _cut_off(next(iter(self._open)))
            self._open[request] = time.monotonic() + _REQUEST_S
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.pop(request, None)
            super().shutdown_request(request)

    def service_actions(self) -> None:
        """After each connection, and five times per second."""
        self.hang_up(time.monotonic())

    def hang_up(self, now_s: float = float("inf")) -> None:
        """On those whose time is over by then. Their threads notice, and close them."""
        with self._lock:
            for request in [request for request, until_s in self._open.items() if until_s <= now_s]:
                _cut_off(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002  the library's signature
        """A disk that can't be asked is a line, where the library prints a traceback; a client that went away is none:
        anybody could fill the log with those.
        """
        if not isinstance(error := sys.exception(), ConnectionError):
            log.warning("health.failed", error=repr(error))


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version = "ingestor"
    sys_version = ""
    timeout = _REQUEST_S

    def setup(self) -> None:
        super().setup()
        self.rfile = io.BufferedReader(_Head(self.connection, "r"))

    def do_GET(self) -> None:
        named = self.headers.get_all("Host", [])
        tell = self.server.answers.get(self.path.partition("?")[0])
        if len(named) > 1 or (not named and self.request_version != "HTTP/1.0"):
            self._say(_text(HTTPStatus.BAD_REQUEST, "a request names one host\n"))
        elif named and not self.server.hosts.hold(named[0]):
            sentence = "unknown host: call this recorder by its address, or by a name of health.allow_hosts\n"
            self._say(_text(HTTPStatus.FORBIDDEN, sentence))
        elif tell is None:
            self._say(_text(HTTPStatus.NOT_FOUND, "there are /metrics, /healthz, /readyz and /status\n"))
        else:
            self._say(tell())

    def _say(self, answer: _Answer) -> None:
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.kind)
        self.send_header("Content-Length", str(len(answer.body)))
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(answer.body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the library's name
        """Nothing: who asked is no fact of a recording."""


class _Head(socket.SocketIO):
    """A client's request, up to a bound: there it ends."""

    _left = _REQUEST_BYTES

    def readinto(self, buffer: Any) -> int | None:
        taken = super().readinto(memoryview(buffer)[: self._left]) if self._left else 0
        self._left -= taken or 0
        return taken


def _text(status: HTTPStatus, text: str) -> _Answer:
    return _Answer(status, "text/plain; charset=utf-8", text.encode())


def _cut_off(connection: socket.socket) -> None:
    """Wake whoever waits for it; an OSError says that the client has done so."""
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return
