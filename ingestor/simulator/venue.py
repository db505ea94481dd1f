"""The venue: a WebSocket server that keeps a venue's rules, and breaks them by a schedule of faults.

One task trades for all clients, so the slowest reader sets the pace: the venue waits and throws nothing away.
While nobody has subscribed, the market rests.
"""

import asyncio
import math
import ssl
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import structlog
from websockets.frames import CloseCode
from websockets.http11 import Request as Handshake
from websockets.http11 import Response
from websockets.server import ServerProtocol

from ingestor.config import JsonSettings
from ingestor.errors import ConfigError
from ingestor.simulator.connection import (
    READ_BYTES,
    VenueConnection,
    http_answer,
    is_combined,
    key_of,
    make_protocol,
    read_handshake,
)
from ingestor.simulator.faults import (
    Abort,
    Active,
    Close,
    HalfFrame,
    HugeFrame,
    Junk,
    Mute,
    Outage,
    Reset,
    Schedule,
    Sudden,
    Trickle,
)
from ingestor.simulator.languages import (
    BINANCE_STREAMS,
    PLAIN_JSON,
    Refusal,
    Request,
    VenueProtocol,
    make_language,
)
from ingestor.simulator.market import Intervals, Market, MarketSettings, Source, Trade
from ingestor.simulator.replay import Replay
from ingestor.simulator.truth import TruthFile
from ingestor.simulator.wire import (
    ENDLESS_FRAME,
    HALF_FRAME,
    JUNK,
    PING,
)

log = structlog.get_logger("ingestor.simulator")

T = TypeVar("T")
Accepted = tuple[asyncio.StreamReader, asyncio.StreamWriter]
UNASKED = ("flat", "bars")
"""The protocols without subscriptions."""
STREAMED_SYMBOLS = ("AAPL", "MSFT", "BINANCE:BTCUSDT")
"""What these stream, unless symbols are given."""

BURST_MESSAGES = 100
"""Messages written between two looks at whether the clients keep up."""
TICK_S = 0.002
ARREARS_S = 1.0
"""A venue that was held up by more than this doesn't catch up: its market has moved on."""
FLUSH_S = 0.2
HANG_UP_S = 0.5
CLOSE_GRACE_S = 2.0
"""How long a client has to answer a close frame."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VenueSettings:
    host: str = "127.0.0.1"
    port: int = 0
    """0 takes a free one."""
    protocol: VenueProtocol = "finnhub"
    json_feed: JsonSettings = PLAIN_JSON
    """What the protocol `json` speaks."""
    symbols: tuple[str, ...] = ()
    """What is traded here. Empty: whatever is asked for, except what begins with INVALID."""
    keys: frozenset[str] | None = field(default=frozenset({"demo"}), repr=False)
    """None accepts any."""
    limit: int = 50
    """Symbols a connection may subscribe to."""
    ping_interval_s: float = 60.0
    market: MarketSettings = field(default_factory=MarketSettings)
    replay: Path | None = None
    speed: float = 1.0
    faults: Schedule = field(default_factory=Schedule)
    truth: Path | None = None
    certificate: tuple[Path, Path] | None = None
    """Certificate and key (PEM) for TLS."""


class Venue:
    """A venue that listens; `open_venue` makes one."""

    def __init__(
        self,
        settings: VenueSettings,
        server: asyncio.Server,
        accepted: asyncio.Queue[Accepted],
        source: Source,
        truth: TruthFile | None,
    ) -> None:
        """Needs a running event loop, lives by its clock. `server` puts what it accepts into `accepted`."""
        self._settings = settings
        self._server = server
        self._accepted = accepted
        self._source = source
        self._truth = truth
        self._faults = settings.faults
        self._language = make_language(settings.protocol, settings.json_feed)
        self._numbers: Counter[str] = Counter()
        self._clients: dict[int, VenueConnection] = {}
        self._by_key: dict[str, VenueConnection] = {}
        self._universe = settings.symbols
        self._wanted = asyncio.Event()
        self._handshakes = 0
        self._trades_sent = 0
        self._started_s = asyncio.get_running_loop().time()

    @property
    def now_s(self) -> float:
        """Seconds since the venue's start: the clock of the faults."""
        return asyncio.get_running_loop().time() - self._started_s

    @property
    def trades_sent(self) -> int:
        """To all clients together, those long gone included."""
        return self._trades_sent + sum(client.trades_sent for client in self._clients.values())

    @property
    def connections(self) -> int:
        return len(self._clients)

    @property
    def url(self) -> str:
        """Where to connect, without a token."""
        host, port = self._server.sockets[0].getsockname()[:2]
        scheme = "ws" if self._settings.certificate is None else "wss"
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"

    async def run(self, stop: asyncio.Event) -> None:
        """Attends to clients until `stop` is set, and then ends within a second, the truth complete.

        Raises what made going on impossible, such as a truth file that can't be written.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                work = (self._accept(), self._trade(), self._flush_truth())
                chores = [tasks.create_task(chore) for chore in work]
                await stop.wait()
                for client in self._clients.values():
                    client.close(CloseCode.GOING_AWAY, "")
                for chore in chores:
                    chore.cancel()
        except BaseExceptionGroup as group:
            raise _cause(group) from group
        finally:
            self._server.close()
            while not self._accepted.empty():
                self._accepted.get_nowait()[1].transport.abort()
            if self._truth is not None:
                self._truth.close()

    # Connections

    async def _accept(self) -> None:
        async with asyncio.TaskGroup() as attended:
            while True:
                attended.create_task(self._serve(*await self._accepted.get()))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One TCP connection, from accept to end."""
        try:
            client = await self._greet(reader, writer)
            if client is not None:
                await self._attend(client, reader)
        except (ConnectionError, TimeoutError, ssl.SSLError) as error:
            log.debug("connection.broken", reason=type(error).__name__)
        finally:
            await _hang_up(writer)

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> VenueConnection | None:
        """The handshake. None where there is nobody to attend to: the answer, if any, has been written."""
        if self._faults.outage(self.now_s):
            writer.transport.abort()
            return None
        protocol = make_protocol()
        request = await read_handshake(protocol, reader)
        if request is None:
            return None
        self._handshakes += 1
        number = self._handshakes
        asked_s = self.now_s
        active = self._faults.active(asked_s, number, asked_s)
        await asyncio.sleep(active.handshake_delay_s())
        if reader.at_eof() or writer.transport.is_closing():
            return None
        response = self._response(protocol, request, active)
        protocol.send_response(response)
        writer.write(b"".join(protocol.data_to_send()))
        if response.status_code != 101:
            log.info("connection.refused", connection=number, status=response.status_code)
            return None
        combined = is_combined(request)
        client = VenueConnection(number, self.now_s, protocol, writer, self._truth, combined=combined)
        log.info("connection.opened", connection=number)
        return client if self._admit(client, key_of(request)) else None

    def _response(self, protocol: ServerProtocol, request: Handshake, active: Active) -> Response:
        if fault := active.answer():
            return http_answer(fault.status, fault.location)
        keys = self._settings.keys
        if self._settings.protocol == "finnhub" and keys is not None and key_of(request) not in keys:
            return http_answer(401)
        return protocol.accept(request)

    def _admit(self, client: VenueConnection, key: str) -> bool:
        """One connection a key: a second one ends both."""
        if self._settings.protocol == "finnhub":
            if other := self._by_key.get(key):
                log.warning("key.used_twice", connections=[other.number, client.number])
                other.abort()
                client.abort()
                return False
            self._by_key[key] = client
        elif self._settings.protocol in UNASKED:
            client.subscribed_s.update(dict.fromkeys(self._settings.symbols, client.opened_s))
        self._clients[client.number] = client
        self._survey()
        return True

    async def _attend(self, client: VenueConnection, reader: asyncio.StreamReader) -> None:
        """An open connection until it ends: its subscriptions, its pings, its faults."""
        try:
            async with asyncio.TaskGroup() as tasks:
                chores = [tasks.create_task(self._ping(client)), tasks.create_task(self._afflict(client))]
                await self._listen(client, reader)
                for chore in chores:
                    chore.cancel()
        finally:
            del self._clients[client.number]
            self._by_key = {key: other for key, other in self._by_key.items() if other is not client}
            self._trades_sent += client.trades_sent
            self._survey()
            log.info("connection.ended", connection=client.number, trades=client.trades_sent)

    async def _listen(self, client: VenueConnection, reader: asyncio.StreamReader) -> None:
        try:
            while data := await reader.read(READ_BYTES):
                for text in client.hear(data, answering=not self._active(client).silent()):
                    self._obey(client, text)
                if self._settings.protocol == "binance" and client.hurried:
                    log.warning("client.hurried", connection=client.number)
                    client.close(CloseCode.POLICY_VIOLATION, "Too many requests")
        except (ConnectionError, ssl.SSLError) as error:
            log.debug("connection.broken", connection=client.number, reason=type(error).__name__)

    async def _ping(self, client: VenueConnection) -> None:
        """Finnhub's pings are messages, Binance's are the protocol's own; the others have none."""
        while self._settings.protocol in {"finnhub", "binance"}:
            await asyncio.sleep(self._settings.ping_interval_s)
            if self._active(client).silent():
                continue
            if self._settings.protocol == "binance":
                client.write(PING)
            else:
                client.say(type="ping")

    # Subscriptions

    def _obey(self, client: VenueConnection, text: str) -> None:
        """A message of the client. What can't be understood gets no answer, as at Finnhub."""
        request = self._language.read(text)
        if request is None:
            log.warning("message.ignored", connection=client.number, text=text[:200])
            return
        for answer in self._language.answer(request, self._fulfil(client, request)):
            client.say(**answer)
        self._survey()

    def _fulfil(self, client: VenueConnection, request: Request) -> list[Refusal]:
        """Begin, or end, to send these symbols. What can't be."""
        if not request.wanted:
            for symbol in request.symbols:
                client.subscribed_s.pop(symbol, None)
            return []
        refusals = []
        for symbol in request.symbols:
            if refusal := self._refusal(client, symbol):
                refusals.append(refusal)
            else:
                client.subscribed_s[symbol] = self.now_s
        return refusals

    def _refusal(self, client: VenueConnection, symbol: str) -> Refusal | None:
        fault = self._active(client).refusal(symbol)
        if fault is not None or not self._trades(symbol):
            return Refusal("invalid", symbol, named=fault is None or fault.named)
        limit = BINANCE_STREAMS if self._settings.protocol == "binance" else self._settings.limit
        if len(client.subscribed_s) >= limit and symbol not in client.subscribed_s:
            return Refusal("too many", symbol)
        return None

    def _trades(self, symbol: str) -> bool:
        known = self._settings.symbols
        return symbol in known if known else not symbol.startswith("INVALID")

    def _survey(self) -> None:
        """What the market trades, and whether anybody wants it, after something there changed."""
        wanted = {symbol for client in self._clients.values() for symbol in client.subscribed_s}
        self._universe = self._settings.symbols or tuple(sorted(wanted))
        if wanted:
            self._wanted.set()
        else:
            self._wanted.clear()

    # Trades

    async def _trade(self) -> None:
        """Sends the source's trades, each batch when it is due, until there are no more."""
        clock = asyncio.get_running_loop().time
        due_s = clock()
        while due_s < math.inf:
            while not self._wanted.is_set():
                await self._wanted.wait()
                due_s = max(due_s, clock())
            batches, due_s = self._take_due(max(due_s, clock() - ARREARS_S), clock())
            for client in self._clients.values():
                self._deliver(client, batches)
            for client in list(self._clients.values()):
                await client.drain()
            pause_s = due_s - clock()
            if pause_s < math.inf:
                await asyncio.sleep(max(pause_s, TICK_S) if pause_s > 0 else 0)
        log.info("replay.finished", trades=self.trades_sent)

    def _take_due(self, due_s: float, now_s: float) -> tuple[list[list[Trade]], float]:
        """The batches that are due, at most BURST_MESSAGES, and when the next is: never after the last."""
        batches: list[list[Trade]] = []
        while due_s <= now_s and len(batches) < BURST_MESSAGES:
            batch = self._source.batch(self._universe, time.time_ns() // 1_000_000)
            if batch is None:
                return batches, math.inf
            batches.append(self._numbered(batch.trades))
            due_s += batch.lasts_s
        return batches, due_s

    def _numbered(self, trades: list[Trade]) -> list[Trade]:
        """Each with its place among all trades of its symbol here: Binance sends it as the trade's id."""
        numbered = []
        for trade in trades:
            self._numbers[trade.symbol] += 1
            numbered.append(trade._replace(number=self._numbers[trade.symbol]))
        return numbered

    def _deliver(self, client: VenueConnection, batches: list[list[Trade]]) -> None:
        """To one client what it asked for, as its faults let it through."""
        active = self._active(client)
        if active.silent():
            return
        wanted = client.subscribed_s.keys() - active.muted(client.subscribed_s)
        asked = [[trade for trade in trades if trade.symbol in wanted] for trades in batches]
        sent = active.distorted([trades for trades in asked if trades])
        messages = [message for trades in sent for message in self._language.say(trades, combined=client.combined)]
        client.send(messages, copies=active.copies(), in_fragments=active.fragments())

    async def _flush_truth(self) -> None:
        while self._truth is not None:
            await asyncio.sleep(FLUSH_S)
            self._truth.flush()

    # Faults

    def _active(self, client: VenueConnection) -> Active:
        return self._faults.active(self.now_s, client.number, client.opened_s)

    async def _afflict(self, client: VenueConnection) -> None:
        """The sudden faults of one connection, each at its time."""
        for time_s, fault in self._faults.strikes(client.number, client.opened_s):
            await asyncio.sleep(time_s - self.now_s)
            log.info("fault.struck", connection=client.number, fault=fault.do)
            await _strike(client, fault)

    def drop(self) -> None:
        """Cuts every connection now, without a close frame."""
        for client in self._clients.values():
            client.abort()

    def mute(self, seconds: float) -> None:
        """Sends nothing at all to anybody for so long."""
        self._faults = self._faults.plus(Mute(at_s=self.now_s, for_s=seconds, pings=False))


async def _strike(client: VenueConnection, fault: Sudden) -> None:
    match fault:
        case Abort() | Outage():
            client.abort()
        case Reset():
            client.reset()
        case Close():
            client.close(fault.code, fault.reason)
            await asyncio.sleep(CLOSE_GRACE_S)
            client.abort()
        case HalfFrame():
            client.write(HALF_FRAME)
            client.jam()
        case Trickle():
            await client.trickle(ENDLESS_FRAME, fault.pause_s)
        case HugeFrame():
            client.pad_next(fault.size)
        case Junk():
            client.write(JUNK[fault.kind])


def _cause(error: BaseException) -> BaseException:
    """The first of the errors in a group of groups: what broke the venue; the others followed from it."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _hang_up(writer: asyncio.StreamWriter) -> None:
    """Ends the socket after what was written has left; a client that doesn't take it has HANG_UP_S."""
    writer.close()
    try:
        async with asyncio.timeout(HANG_UP_S):
            await writer.wait_closed()
    except (TimeoutError, asyncio.CancelledError):
        writer.transport.abort()
    except (ConnectionError, ssl.SSLError) as error:
        log.debug("connection.broken", reason=type(error).__name__)


# Opening


async def open_venue(settings: VenueSettings) -> Venue:
    """A venue that listens already; `Venue.run` attends to its clients. Raises ConfigError."""
    if settings.truth is not None and settings.protocol == "bars":
        raise ConfigError("The truth is about trades, and the protocol `bars` sends none.")
    if settings.protocol in UNASKED and not settings.symbols:
        settings = replace(settings, symbols=STREAMED_SYMBOLS)
    source = _source(settings)
    accepted: asyncio.Queue[Accepted] = asyncio.Queue()
    context = None if settings.certificate is None else _tls(*settings.certificate)
    try:
        server = await asyncio.start_server(
            lambda reader, writer: accepted.put_nowait((reader, writer)),
            settings.host,
            settings.port,
            ssl=context,
        )
    except OSError as error:
        place = f"{settings.host}:{settings.port}"
        raise ConfigError(f"Can't listen on {place}: {error.strerror or error}.") from error
    try:
        truth = None if settings.truth is None else TruthFile(settings.truth)
    except OSError as error:
        server.close()
        raise ConfigError(f"{settings.truth}: the truth can't be written there: {error.strerror}.") from error
    return Venue(settings, server, accepted, source, truth)


def _source(settings: VenueSettings) -> Source:
    if settings.replay is not None:
        return Replay(settings.replay, settings.speed)
    return Intervals(settings.market) if settings.protocol == "bars" else Market(settings.market)


def _tls(certificate: Path, key: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key)
    except OSError as error:  # ssl.SSLError is one
        raise ConfigError(f"{certificate}, {key}: no certificate and key (PEM) for TLS: {error}.") from error
    return context


# In another thread


class RunningVenue:
    """A venue that runs in a thread of its own; made by `running_venue`."""

    def __init__(self, venue: Venue, stop: asyncio.Event, truth: Path | None) -> None:
        """In the venue's own event loop."""
        self.url = venue.url
        """Without a token."""
        self.truth = truth
        self._venue = venue
        self._stop = stop
        self._loop = asyncio.get_running_loop()

    @property
    def connections(self) -> int:
        """How many clients are connected now."""
        return self._call(lambda: self._venue.connections)

    @property
    def trades_sent(self) -> int:
        """To all clients together."""
        return self._call(lambda: self._venue.trades_sent)

    def drop(self) -> None:
        """Cuts every connection now, without a close frame."""
        self._call(self._venue.drop)

    def mute(self, seconds: float) -> None:
        """Sends nothing at all to anybody for so long."""
        self._call(lambda: self._venue.mute(seconds))

    def stop(self) -> None:
        """Asks the venue to end; `running_venue` waits for it. Once it has ended, this does nothing."""
        with suppress(RuntimeError):  # its event loop is closed
            self._loop.call_soon_threadsafe(self._stop.set)

    def _call(self, function: Callable[[], T]) -> T:
        async def call() -> T:
            return function()

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result()


@contextmanager
def running_venue(settings: VenueSettings) -> Iterator[RunningVenue]:
    """A venue for the time of the block, at whose end the truth is complete. Raises what broke the venue."""
    started: Future[RunningVenue] = Future()
    with ThreadPoolExecutor(1, "venue") as executor:
        ended = executor.submit(asyncio.run, _host(settings, started))
        both: list[Future[Any]] = [started, ended]
        wait(both, return_when=FIRST_COMPLETED)
        if not started.done():
            ended.result()
        venue = started.result()
        try:
            yield venue
        finally:
            venue.stop()
            ended.result()


async def _host(settings: VenueSettings, started: Future[RunningVenue]) -> None:
    venue = await open_venue(settings)
    stop = asyncio.Event()
    started.set_result(RunningVenue(venue, stop, settings.truth))
    await venue.run(stop)
