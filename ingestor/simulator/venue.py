"""Venue: a WebSocket server that keeps a venue's rules, and breaks them by a schedule of faults.

One task trades for all clients, so the slowest reader sets the pace: the venue waits and throws nothing away.
While nobody has subscribed, the market rests.
"""

import asyncio
import math
import ssl
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import structlog
from websockets.frames import CloseCode
from websockets.http11 import Request

from ingestor.config.addresses import describe_refusal
from ingestor.config.feeds import JsonSettings
from ingestor.errors import ConfigError
from ingestor.simulator import connection, market, protocols
from ingestor.simulator.faults import FaultInjector, Schedule
from ingestor.simulator.history import History, HistorySettings
from ingestor.simulator.market import MarketSettings

log = structlog.get_logger("ingestor.simulator")

Accepted = tuple[asyncio.StreamReader, asyncio.StreamWriter]

TICK_S = 0.002
FLUSH_S = 0.2
HANG_UP_S = 0.5
BURST_MESSAGES = 100
"""Messages written between two checks of whether the clients keep up."""
ARREARS_S = 1.0
"""A venue that was held up by more than this doesn't catch up: its market has moved on."""
UNASKED = ("flat", "bars")
"""The protocols without subscriptions."""
STREAMED_SYMBOLS = ("AAPL", "MSFT", "BINANCE:BTCUSDT")
"""Symbols that the protocols without subscriptions stream, unless others are given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VenueSettings:
    """Settings of one simulated venue."""

    host: str = "127.0.0.1"
    port: int = 0
    """0 takes a free one."""
    protocol: protocols.VenueProtocol = "finnhub"
    json_feed: JsonSettings = protocols.PLAIN_JSON
    """Language of the protocol `json`."""
    symbols: tuple[str, ...] = ()
    """Traded here. Empty: whatever is asked for, except what begins with INVALID."""
    keys: frozenset[str] | None = field(default=frozenset({"demo"}), repr=False)
    """None accepts any."""
    limit: int = 50
    """Subscriptions per connection."""
    ping_interval_s: float = 60.0
    market: MarketSettings = field(default_factory=MarketSettings)
    replay: Path | None = None
    speed: float = 1.0
    faults: Schedule = field(default_factory=Schedule)
    truth: Path | None = None
    history: HistorySettings | None = None
    """How the past is served over HTTP; None: not at all. With it the market never rests once it was asked for, and the
    truth has every trade, sent or not, as of connection 0.
    """
    certificate: tuple[Path, Path] | None = None
    """Certificate and key (PEM) for TLS."""


class TradePacer:
    """Takes batches of trades from a source when they are due. All times are of one clock, whichever that is."""

    def __init__(self, source: market.Source, now_s: float) -> None:
        self._source = source
        self._numbers: Counter[str] = Counter()
        self._due_s = now_s

    @property
    def due_s(self) -> float:
        """When the next batch is: infinity after the last."""
        return self._due_s

    def rest(self, now_s: float) -> None:
        """Nothing was wanted until now."""
        self._due_s = max(self._due_s, now_s)

    def due_batches(self, universe: Sequence[str], now_s: float) -> list[market.Batch]:
        """The batches of these symbols that are due, at most BURST_MESSAGES."""
        self._due_s = max(self._due_s, now_s - ARREARS_S)
        batches: list[market.Batch] = []
        while self._due_s <= now_s and len(batches) < BURST_MESSAGES:
            batch = self._source.batch(universe, time.time_ns() // 1_000_000)
            if batch is None:
                self._due_s = math.inf
                break
            batches.append(batch._replace(trades=[]))
            for trade in batch.trades:
                # Its place among all trades of its symbol here: Binance sends it as the trade's id.
                self._numbers[trade.symbol] += 1
                batches[-1].trades.append(trade._replace(number=self._numbers[trade.symbol]))
            self._due_s += batch.lasts_s
        return batches


class Venue:
    """A venue that listens; `open_venue` makes one."""

    def __init__(
        self,
        settings: VenueSettings,
        server: asyncio.Server,
        accepted: asyncio.Queue[Accepted],
        source: market.Source,
        truth: connection.TruthFile | None,
    ) -> None:
        """Needs a running event loop, whose clock it uses. `server` puts what it accepts into `accepted`."""
        self._settings = settings
        self._server = server
        self._accepted = accepted
        self._truth = truth
        self._language = protocols.make_language(settings.protocol, settings.json_feed)
        self._injector = FaultInjector(settings.faults)
        self._pacer = TradePacer(source, asyncio.get_running_loop().time())
        self._history = None if settings.history is None else History(settings.history)
        self._handshakes = 0
        self._by_key: dict[str, connection.VenueConnection] = {}
        self._clients: dict[int, connection.VenueConnection] = {}
        self._universe = settings.symbols
        self._wanted = asyncio.Event()
        self._trades_sent = 0

    @property
    def trades_sent(self) -> int:
        """To all clients together, those long gone included."""
        return self._trades_sent + sum(client.trades_sent for client in self._clients.values())

    @property
    def history(self) -> History:
        """Its past. Raises LookupError where it serves none."""
        if self._history is None:
            raise LookupError("this venue has no history")
        return self._history

    @property
    def connections(self) -> int:
        """Those that are open."""
        return len(self._clients)

    @property
    def url(self) -> str:
        """Address for clients, without a token."""
        host, port = self._server.sockets[0].getsockname()[:2]
        scheme = "ws" if self._settings.certificate is None else "wss"
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"

    async def run(self, stop: asyncio.Event) -> None:
        """Serve clients until `stop` is set, and then end within a second, the truth complete.

        Raises what made going on impossible, such as a truth file that can't be written.
        """

        async def accept_clients() -> None:
            async with asyncio.TaskGroup() as attended:
                while True:
                    attended.create_task(self._serve(*await self._accepted.get()))

        try:
            async with asyncio.TaskGroup() as tasks:
                work = (accept_clients(), self._trade(), self._flush_truth(), self._injector.keep_time())
                chores = [tasks.create_task(chore) for chore in work]
                await stop.wait()
                # The close frames go out first: a cancelled task can't send them any more.
                for client in self._clients.values():
                    client.close(CloseCode.GOING_AWAY, "")
                for chore in chores:
                    chore.cancel()
        except BaseExceptionGroup as group:
            # The first of the errors in a group of groups is what broke the venue; the others followed from it.
            cause: BaseException = group
            while isinstance(cause, BaseExceptionGroup):
                cause = cause.exceptions[0]
            raise cause from group
        finally:
            self._server.close()
            while not self._accepted.empty():
                self._accepted.get_nowait()[1].transport.abort()
            if self._truth is not None:
                self._truth.close()

    # Connections

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One TCP connection, from accept to end."""
        try:
            client = await self._open_connection(reader, writer)
            if client is not None:
                await self._serve_client(client, reader)
        except (ConnectionError, TimeoutError, ssl.SSLError) as error:
            log.debug("connection.broken", reason=type(error).__name__)
        finally:
            # What was written leaves first; a client that doesn't read it has HANG_UP_S.
            writer.close()
            try:
                async with asyncio.timeout(HANG_UP_S):
                    await writer.wait_closed()
            except (TimeoutError, asyncio.CancelledError):
                writer.transport.abort()
            except (ConnectionError, ssl.SSLError) as error:
                log.debug("connection.broken", reason=type(error).__name__)

    async def _open_connection(  # noqa: C901, PLR0911  a return for each way in which it ends
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> connection.VenueConnection | None:
        """The handshake. None where it ends in no connection: the answer, if any, has been written."""
        if self._injector.outage:
            writer.transport.abort()
            return None
        protocol = connection.make_protocol()
        request = await connection.read_handshake(protocol, reader)
        if request is None:
            return None
        if self._history is not None:
            told = self._history.answer(request, allowed=self._may_read(request))
            if told is not None:
                protocol.send_response(told)
                writer.write(b"".join(protocol.data_to_send()))
                return None
        self._handshakes += 1
        number = self._handshakes
        active = self._injector.at_handshake(number)
        await asyncio.sleep(active.handshake_delay_s())
        if reader.at_eof() or writer.transport.is_closing():
            return None
        needs_key, key = self._settings.protocol == "finnhub", connection.key_of(request)
        if fault := active.answer():
            response = connection.http_answer(fault.status, fault.location)
        elif needs_key and self._settings.keys is not None and key not in self._settings.keys:
            response = connection.http_answer(401)
        else:
            response = protocol.accept(request)
        protocol.send_response(response)
        writer.write(b"".join(protocol.data_to_send()))
        if response.status_code != 101:
            log.info("client.refused", connection=number, status=response.status_code)
            return None
        opened_s, combined = self._injector.now_s, connection.is_combined(request)
        client = connection.VenueConnection(number, opened_s, protocol, writer, self._truth, combined=combined)
        log.info("client.connected", connection=number)
        if needs_key:
            # One connection per key: a second one ends both. The key of one that was closed is free at once.
            other = self._by_key.get(key)
            if other is not None and not other.leaving:
                log.warning("key.used_twice", connections=[other.number, client.number])
                other.abort()
                client.abort()
                return None
            self._by_key[key] = client
        return client

    def _may_read(self, request: Request) -> bool:
        """Whether the key of a call is one of those that may; only Finnhub asks for one."""
        keys = self._settings.keys
        return self._settings.protocol != "finnhub" or keys is None or request.headers.get("X-Finnhub-Token") in keys

    async def _serve_client(self, client: connection.VenueConnection, reader: asyncio.StreamReader) -> None:
        """An open connection until it ends: its subscriptions, its pings, its faults."""
        if self._settings.protocol in UNASKED:
            client.subscribed_s.update(dict.fromkeys(self._settings.symbols, client.opened_s))
        self._clients[client.number] = client
        self._find_wanted_symbols()
        if isinstance(self._language, protocols.JsonVenue) and (greeting := self._language.greeting()):
            client.write(protocols.text_frame(greeting))
        try:
            async with asyncio.TaskGroup() as tasks:
                chores = [tasks.create_task(self._ping(client)), tasks.create_task(self._injector.inject(client))]
                await self._listen(client, reader)
                for chore in chores:
                    chore.cancel()
        finally:
            del self._clients[client.number]
            self._by_key = {key: other for key, other in self._by_key.items() if other is not client}
            self._trades_sent += client.trades_sent
            self._find_wanted_symbols()
            log.info("client.left", connection=client.number, trades=client.trades_sent)

    async def _listen(self, client: connection.VenueConnection, reader: asyncio.StreamReader) -> None:
        try:
            while data := await reader.read(connection.READ_BYTES):
                for text in client.hear(data, answering=not self._injector.active(client).silent()):
                    client.tell(self._injector.now_s, self._settings.json_feed.limits.messages_per_second)
                    request = self._language.read(text)
                    if isinstance(self._language, protocols.JsonVenue):
                        request = self._judge_client(client, self._language, request)
                    if request is None:  # as at Finnhub, what can't be understood gets no answer
                        log.warning("message.ignored", connection=client.number, text=text[:200])
                        continue
                    if not isinstance(request, protocols.SymbolRequest):
                        continue
                    for answer in self._language.answer(request, self._change_subscriptions(client, request)):
                        if not self._injector.active(client).silent():
                            client.say(**answer)
                    self._find_wanted_symbols()
                if self._settings.protocol == "binance" and client.hurried:
                    log.warning("client.hurried", connection=client.number)
                    client.close(CloseCode.POLICY_VIOLATION, "Too many requests")
        except (ConnectionError, ssl.SSLError) as error:
            log.debug("connection.broken", connection=client.number, reason=type(error).__name__)

    def _judge_client(
        self,
        client: connection.VenueConnection,
        venue: protocols.JsonVenue,
        request: protocols.SymbolRequest | protocols.LoginRequest | protocols.Heartbeat | None,
    ) -> protocols.SymbolRequest | protocols.LoginRequest | protocols.Heartbeat | None:
        """Answer logins and heartbeats, and hang up on who breaks the rules that the settings state."""
        settings, answer = venue.settings, None
        if isinstance(request, protocols.LoginRequest):
            client.logged_in = self._settings.keys is None or request.key in self._settings.keys
            answer = venue.answer_login(accepted=client.logged_in)
        elif settings.login and not client.logged_in:
            client.close(CloseCode.POLICY_VIOLATION, "Log in first")
            return request and protocols.Heartbeat()
        elif isinstance(request, protocols.Heartbeat):
            answer = venue.answer_heartbeat()
        elif request and len(request.symbols) > settings.symbols_per_message:
            log.warning("client.greedy", connection=client.number, symbols=len(request.symbols))
            for refusal in venue.answer(request, [protocols.SymbolRefusal("too many", "?", named=False)]):
                client.say(**refusal)
            return protocols.Heartbeat()
        if answer is not None and not self._injector.active(client).silent():
            client.write(protocols.text_frame(answer))
        if isinstance(request, protocols.LoginRequest) and not client.logged_in:
            client.close(CloseCode.POLICY_VIOLATION, "")
        return request

    async def _ping(self, client: connection.VenueConnection) -> None:
        """Finnhub's pings are messages, Binance's are the protocol's own; the others have none, but may want some."""
        if isinstance(self._language, protocols.JsonVenue) and (heartbeat := self._language.settings.heartbeat):
            while client.open:  # hang up on who is silent for half as long again as it may be
                await asyncio.sleep(heartbeat.every / 4)
                if self._injector.now_s - client.told_s > 1.5 * heartbeat.every:
                    log.warning("client.silent", connection=client.number)
                    client.close(CloseCode.NORMAL_CLOSURE, "No heartbeat")
        while self._settings.protocol in {"finnhub", "binance"}:
            await asyncio.sleep(self._settings.ping_interval_s)
            if self._injector.active(client).silent():
                continue
            if self._settings.protocol == "binance":
                client.write(protocols.PING)
            else:
                client.say(type="ping")

    def _change_subscriptions(
        self, client: connection.VenueConnection, request: protocols.SymbolRequest
    ) -> list[protocols.SymbolRefusal]:
        """Start or stop sending these symbols; returns those that are refused."""
        if not request.wanted:
            for symbol in request.symbols:
                client.subscribed_s.pop(symbol, None)
            return []
        limit = protocols.BINANCE_STREAMS if self._settings.protocol == "binance" else self._settings.limit
        if self._settings.protocol == "json":
            limit = self._settings.json_feed.limits.symbols or limit
        traded = self._settings.symbols
        refusals = []
        for symbol in request.symbols:
            fault = self._injector.active(client).refusal(symbol)
            is_traded = symbol in traded if traded else not symbol.startswith("INVALID")
            if fault is not None or not is_traded:
                refusals.append(protocols.SymbolRefusal("invalid", symbol, named=fault is None or fault.named))
            elif len(client.subscribed_s) >= limit and symbol not in client.subscribed_s:
                refusals.append(protocols.SymbolRefusal("too many", symbol))
            else:
                client.subscribed_s[symbol] = self._injector.now_s
        return refusals

    def _find_wanted_symbols(self) -> None:
        """Update the symbols to trade, and whether anybody wants them, after a change of subscriptions."""
        wanted = {symbol for client in self._clients.values() for symbol in client.subscribed_s}
        if self._history is not None:  # what was asked for once goes on, whoever hears it
            wanted |= set(self._universe) if self._wanted.is_set() else set()
        self._universe = self._settings.symbols or tuple(sorted(wanted))
        if wanted:
            self._wanted.set()
        else:
            self._wanted.clear()

    # Trades

    async def _trade(self) -> None:
        """Send the source's trades, each batch when it is due, until there are no more."""
        clock = asyncio.get_running_loop().time
        while self._pacer.due_s < math.inf:
            while not self._wanted.is_set():
                await self._wanted.wait()
                self._pacer.rest(clock())
            batches = self._pacer.due_batches(self._universe, clock())
            if self._history is not None:  # these trades have happened, whoever hears of them
                for trades in (batch.trades for batch in batches):
                    self._history.add(trades)
                    if self._truth is not None:
                        messages = self._language.say(trades, combined=False)
                        said = [text for message in messages for text in message.trades]
                        self._truth.add(time.time_ns() // 1000, 0, 0, said)
            for client in self._clients.values():
                self._deliver(client, batches)
            for client in list(self._clients.values()):
                await client.drain()
            pause_s = self._pacer.due_s - clock()
            if pause_s < math.inf:
                await asyncio.sleep(max(pause_s, TICK_S) if pause_s > 0 else 0)
        log.info("replay.finished", trades=self.trades_sent)

    def _deliver(self, client: connection.VenueConnection, batches: list[market.Batch]) -> None:
        """To one client what it asked for, as its faults let it through; frames as they came, whatever they hold."""
        active = self._injector.active(client)
        if active.silent():
            return
        frames = [protocols.Message(batch.frame, ()) for batch in batches if batch.frame is not None]
        if frames:
            client.send(frames, copies=active.copies(), in_fragments=active.fragments())
            return
        wanted = client.subscribed_s.keys() - active.muted(client.subscribed_s)
        asked = [[trade for trade in batch.trades if trade.symbol in wanted] for batch in batches]
        sent = active.distorted([trades for trades in client.without_dropped(asked) if trades])
        messages = [message for trades in sent for message in self._language.say(trades, combined=client.combined)]
        client.send(messages, copies=active.copies(), in_fragments=active.fragments())

    async def _flush_truth(self) -> None:
        while self._truth is not None:
            await asyncio.sleep(FLUSH_S)
            self._truth.flush()

    def drop(self, place: int | None = None) -> None:
        """Abort every connection now, without a close frame; or one, by its place in the order of their opening."""
        clients = list(self._clients.values())
        for client in clients if place is None else clients[place : place + 1]:
            client.abort()

    def mute(self, seconds: float) -> None:
        """Send nothing at all to anybody for so long."""
        self._injector.mute(seconds)


async def open_venue(settings: VenueSettings) -> Venue:
    """A venue that listens already; `Venue.run` serves its clients. Raises ConfigError."""
    if settings.truth is not None and settings.protocol == "bars":
        raise ConfigError("the truth is about trades, and the protocol `bars` sends none")
    if settings.protocol in UNASKED and not settings.symbols:
        settings = replace(settings, symbols=STREAMED_SYMBOLS)
    source: market.Source
    if settings.replay is not None and market.holds_frames(settings.replay):
        if settings.truth is not None:
            raise ConfigError(f"the truth is about trades, and the frames in {settings.replay} are sent as they came")
        source = market.FrameReplay(settings.replay, settings.speed)
    elif settings.replay is not None:
        source = market.Replay(settings.replay, settings.speed)
    else:
        source = market.Intervals(settings.market) if settings.protocol == "bars" else market.Market(settings.market)
    accepted: asyncio.Queue[Accepted] = asyncio.Queue()
    context = None
    if settings.certificate is not None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            context.load_cert_chain(*settings.certificate)
        except OSError as error:  # ssl.SSLError is one
            certificate, key = settings.certificate
            raise ConfigError(f"{certificate}, {key}: no certificate and key (PEM) for TLS: {error}") from error
    try:
        server = await asyncio.start_server(
            lambda reader, writer: accepted.put_nowait((reader, writer)), settings.host, settings.port, ssl=context
        )
    except OSError as error:
        raise ConfigError(describe_refusal(settings.host, settings.port, error)) from error
    try:
        truth = None if settings.truth is None else connection.TruthFile(settings.truth)
    except OSError as error:
        server.close()
        raise ConfigError(f"{settings.truth}: the truth can't be written there: {error.strerror}") from error
    return Venue(settings, server, accepted, source, truth)
