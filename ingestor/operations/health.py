"""One small HTTP server for programs that watch the recorder: /metrics, /healthz, /readyz, /status.

It looks at the recording when it is asked, in a thread of its own, one request at a time; nothing waits for it, and
whatever happens to it the recording goes on.
"""

import sys
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from socket import AF_INET, AF_INET6
from typing import Any

import structlog
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest

from ingestor.config.addresses import is_loopback, split_address
from ingestor.operations.exposition import VitalsCollector
from ingestor.operations.vitals import encode_vitals, find_ailments
from ingestor.operations.watch import Watch

_ANYWHERE = "127.0.0.1:0"
_PATIENCE_S = 2.0
_POLL_S = 0.2

log = structlog.get_logger()


class HealthServer:
    """Answers at an address until it is closed."""

    def __init__(self, address: str, watch: Watch) -> None:
        """Listen. Raises OSError where the address can't be had."""
        host, port = split_address(address)
        self._server = _Server((host, port), watch)
        bound = self._server.server_address
        self.address = f"[{host}]:{bound[1]}" if ":" in host else f"{host}:{bound[1]}"
        """Where it answers, with the port that it got."""
        if not is_loopback(host):
            log.warning("health.exposed", address=self.address, hint="it asks nobody who they are")
        self._thread = threading.Thread(target=self._server.serve_forever, args=(_POLL_S,), name="health", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def open_health(address: str | None, watch: Watch) -> HealthServer | None:
    """The server, unless it is turned off. Where the address is taken it answers at a free port of this machine, which
    the root's lock names, so that `ingestor status` finds it. Whatever fails here is logged, and ends nothing.
    """
    if address is None:
        return None
    for each in (address, _ANYWHERE):
        try:
            server = HealthServer(each, watch)
        except OSError as error:
            log.error("health.refused", address=each, error=error.strerror or str(error), hint="set health.listen")
        else:
            log.info("health.opened", address=server.address)
            return server
    return None


class _Server(HTTPServer):
    """Hands every request the watch and the metrics."""

    def __init__(self, address: tuple[str, int], watch: Watch) -> None:
        self.address_family = AF_INET6 if ":" in address[0] else AF_INET
        self.watch = watch
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(VitalsCollector(watch))
        ProcessCollector(registry=self.registry)
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Without the reverse look-up of the host's name that HTTPServer does: a name server may be slow."""
        super(HTTPServer, self).server_bind()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002  the library's signature
        """A client that went away, or a disk that can't be asked: a line, where the library prints a traceback."""
        log.warning("health.failed", error=repr(sys.exception()))


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version = "ingestor"
    sys_version = ""
    timeout = _PATIENCE_S

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/metrics":
            self._answer(HTTPStatus.OK, CONTENT_TYPE_LATEST, generate_latest(self.server.registry))
        elif path == "/healthz":
            self._answer_text(HTTPStatus.OK, "alive\n")
        elif path == "/readyz":
            ailments = find_ailments(self.server.watch.look())
            status = HTTPStatus.SERVICE_UNAVAILABLE if ailments else HTTPStatus.OK
            self._answer_text(status, "".join(f"{line}\n" for line in ailments or ["recording"]))
        elif path == "/status":
            self._answer(HTTPStatus.OK, "application/json", encode_vitals(self.server.watch.look()))
        else:
            self._answer_text(HTTPStatus.NOT_FOUND, "there are /metrics, /healthz, /readyz and /status\n")

    def _answer_text(self, status: HTTPStatus, text: str) -> None:
        self._answer(status, "text/plain; charset=utf-8", text.encode())

    def _answer(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the library's name
        """Nothing: who asked is no fact of a recording."""
