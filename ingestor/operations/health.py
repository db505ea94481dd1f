"""Small HTTP server for programs that watch the recorder: /metrics for Prometheus, /healthz, /readyz, /status.

It reads the recording's status on request, in threads of its own. Nothing waits for it, and whatever happens to it the
recording goes on. It runs in the recorder's process, so it bounds what its clients cost: the number of connections, the
time of each request, the requests per second, and one reading of the status per quarter of a second. Each metric has
its name once, and is filled from the status: nothing is counted here.
"""

import io
import platform
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from typing import Any, NamedTuple

import pyarrow as pa
import structlog
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, core, generate_latest
from prometheus_client.registry import Collector

from ingestor.config.addresses import Hosts, allowed_hosts, is_loopback, split_address
from ingestor.config.sections import HealthSettings
from ingestor.operations.collector import Watch
from ingestor.operations.recorder_status import BackfillState, RecorderStatus, encode_status, find_problems

log = structlog.get_logger()


class _Number(NamedTuple):
    name: str
    help: str
    read: Callable[[RecorderStatus], float]


_NO_BACKFILL = BackfillState(source="", running=False, filled=0, unfilled=0, trades=0)
_COUNTERS = (
    _Number("ingestor_frames_received", "Frames read from the venue.", lambda v: v.flow.frames_received),
    _Number("ingestor_frames_notices", "Frames that carry no trades by intent.", lambda v: v.flow.counts.notices),
    _Number(
        "ingestor_trades_received",
        "Trades in frames that could be decoded.",
        lambda v: v.flow.counts.trades + v.flow.counts.rejected_trades,
    ),
    _Number("ingestor_trades_journaled", "Trades appended to the journal.", lambda v: v.flow.counts.trades),
    _Number("ingestor_connections", "Connections that were opened.", lambda v: v.link.connections),
    _Number("ingestor_reader_pauses", "Times that a full buffer made the reader wait.", lambda v: v.flow.pauses),
    _Number("ingestor_reader_paused_seconds", "How long the reader waited for room.", lambda v: v.flow.paused_s),
    _Number(
        "ingestor_conservation_violations",
        "Accounts that do not balance: a frame, trade or row was lost or invented.",
        lambda v: v.flow.conservation_violations,
    ),
    _Number("ingestor_backfill_trades", "Trades that a history filled.", lambda v: (v.backfill or _NO_BACKFILL).trades),
)
_GAUGES = (
    _Number("ingestor_start_time_seconds", "When this run began, since 1970.", lambda v: v.started_at),
    _Number("ingestor_connected", "1 while all symbols have an open connection.", lambda v: v.link.connected),
    _Number("ingestor_connections_open", "Connections to the venue that are open.", lambda v: v.link.open),
    _Number("ingestor_connections_wanted", "Connections to the venue that are to be open.", lambda v: v.link.redundant),
    _Number("ingestor_silence_seconds", "Since anything came from the venue.", lambda v: v.link.silence_s),
    _Number("ingestor_symbols", "Symbols asked for.", lambda v: v.link.symbols),
    _Number("ingestor_symbols_ticking", "Symbols with a trade in the last minute.", lambda v: v.link.ticking),
    _Number(
        "ingestor_symbols_blind",
        "Symbols with an open gap of their own, such as those the venue refused.",
        lambda v: len(v.link.blind_symbols),
    ),
    _Number(
        "ingestor_blind",
        "1 while a gap for all symbols is open, or for all of a connection.",
        lambda v: v.link.gap is not None,
    ),
    _Number("ingestor_buffer_bytes", "Frames that wait for the recorder.", lambda v: v.flow.buffer_bytes),
    _Number("ingestor_buffer_limit_bytes", "Where the reader pauses.", lambda v: v.flow.buffer_max_bytes),
    _Number("ingestor_recorder_lag_seconds", "Age of the oldest frame that waits.", lambda v: v.flow.lag_s),
    _Number("ingestor_recorder_turned_seconds", "Since the recorder's loop came round.", lambda v: v.flow.turned_s),
    _Number("ingestor_journal_failing", "1 while the disk refuses the journal.", lambda v: v.disk.failing),
    _Number("ingestor_journal_sync_age_seconds", "Age of the oldest row not synced.", lambda v: v.disk.sync_age_s),
    _Number("ingestor_disk_free_bytes", "Free space on the disk of the recording.", lambda v: v.disk.free_bytes),
    _Number("ingestor_disk_floor_bytes", "storage.min_free.", lambda v: v.disk.floor_bytes),
    _Number(
        "ingestor_backfill_running", "1 while gaps are being filled.", lambda v: (v.backfill or _NO_BACKFILL).running
    ),
    _Number(
        "ingestor_backfill_failing",
        "1 where the last round failed as a whole.",
        lambda v: (v.backfill or _NO_BACKFILL).error is not None,
    ),
    _Number("ingestor_rejects_flood", "1 while rejects are too many.", lambda v: v.flow.rejects_flood),
)


class StatusMetrics(Collector):
    """Answers Prometheus with the status at that moment."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def collect(self) -> Iterable[core.Metric]:
        return expose(self._watch.look())


def expose(status: RecorderStatus) -> Iterator[core.Metric]:
    """The metrics of this status."""
    for number in _COUNTERS:
        yield core.CounterMetricFamily(number.name, number.help, number.read(status))
    for number in _GAUGES:
        yield core.GaugeMetricFamily(number.name, number.help, number.read(status))
    link, flow, disk = status.link, status.flow, status.disk
    last_trades: dict[str, float] = link.last_trade_at
    loss = {"kill": disk.killed_loss_s, "power_cut": disk.unpowered_loss_s}
    sink_rows = {sink.name: sink.rows for sink in disk.sinks}
    sink_seconds = {sink.name: sink.seconds for sink in disk.sinks}
    yield _counters("ingestor_rejected", "Frames and trades that were refused.", "reason", flow.reasons)
    yield _counters("ingestor_gaps", "Gaps that began.", "cause", link.gaps)
    yield _counters("ingestor_blind_seconds", "How long ended gaps lasted.", "cause", link.blind_s)
    yield _gauges("ingestor_last_trade_timestamp_seconds", "When its last trade was received.", "symbol", last_trades)
    yield _gauges("ingestor_loss_bound_seconds", "What this would lose now, at most.", "event", loss)
    yield _gauges("ingestor_sink_lag_rows", "Journaled rows that a sink lacks.", "sink", sink_rows)
    sink_skipped = {sink.name: sink.skipped_rows for sink in disk.sinks}
    yield _counters(
        "ingestor_sink_skipped_rows", "Rows that the journal no longer keeps for a sink.", "sink", sink_skipped
    )
    yield _gauges("ingestor_sink_lag_seconds", "Age of the oldest row that a sink lacks.", "sink", sink_seconds)
    backfill = status.backfill or _NO_BACKFILL
    filled = {"filled": backfill.filled, "unfilled": backfill.unfilled}
    yield _gauges("ingestor_backfill_gaps", "Gaps that a history filled in this run, or not.", "result", filled)
    delays = flow.delays
    buckets = [(str(bound), within) for bound, within in zip(delays.bounds, delays.within, strict=True)]
    yield core.HistogramMetricFamily(
        "ingestor_trade_delay_seconds",
        "From a trade to its receipt.",
        [*buckets, ("+Inf", delays.total)],
        delays.sum_s,
    )
    yield core.SummaryMetricFamily(
        "ingestor_journal_sync_seconds",
        "Forcing the journal to the disk.",
        count_value=status.disk.syncs,
        sum_value=status.disk.sync_s,
    )
    build = core.GaugeMetricFamily(
        "ingestor_build_info", "What is running: always 1.", labels=["version", "python", "pyarrow"]
    )
    build.add_metric([status.version, platform.python_version(), pa.__version__], 1)
    yield build


def _counters(name: str, text: str, label: str, values: "dict[str, int] | dict[str, float]") -> core.Metric:
    family = core.CounterMetricFamily(name, text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def _gauges(name: str, text: str, label: str, values: "dict[str, int] | dict[str, float]") -> core.Metric:
    family = core.GaugeMetricFamily(name, text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


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
