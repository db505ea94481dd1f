"""The venue: a WebSocket server that keeps a venue's rules, and breaks them by a schedule of faults.

One task trades for all clients, so the slowest reader sets the pace: the venue waits and throws nothing away.
While nobody has subscribed, the market rests.
"""

import asyncio
import math
import ssl

import structlog
from websockets.frames import CloseCode

from ingestor.simulator.connection import READ_BYTES, VenueConnection
from ingestor.simulator.desk import Desk
from ingestor.simulator.door import Door
from ingestor.simulator.languages import make_language
from ingestor.simulator.market import Source, Trade
from ingestor.simulator.misbehaviour import Misbehaviour
from ingestor.simulator.settings import UNASKED, VenueSettings
from ingestor.simulator.tape import Tape
from ingestor.simulator.truth import TruthFile
from ingestor.simulator.wire import PING

log = structlog.get_logger("ingestor.simulator")

Accepted = tuple[asyncio.StreamReader, asyncio.StreamWriter]

TICK_S = 0.002
FLUSH_S = 0.2
HANG_UP_S = 0.5


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
        self._truth = truth
        self._language = make_language(settings.protocol, settings.json_feed)
        self._misbehaviour = Misbehaviour(settings.faults)
        self._door = Door(settings, self._misbehaviour, truth)
        self._desk = Desk(settings, self._language, self._misbehaviour)
        self._tape = Tape(source, asyncio.get_running_loop().time())
        self._clients: dict[int, VenueConnection] = {}
        self._universe = settings.symbols
        self._wanted = asyncio.Event()
        self._trades_sent = 0

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
                work = (self._accept(), self._trade(), self._flush_truth(), self._misbehaviour.keep_time())
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
            client = await self._door.greet(reader, writer)
            if client is not None:
                await self._attend(client, reader)
        except (ConnectionError, TimeoutError, ssl.SSLError) as error:
            log.debug("connection.broken", reason=type(error).__name__)
        finally:
            await _hang_up(writer)

    async def _attend(self, client: VenueConnection, reader: asyncio.StreamReader) -> None:
        """An open connection until it ends: its subscriptions, its pings, its faults."""
        if self._settings.protocol in UNASKED:
            client.subscribed_s.update(dict.fromkeys(self._settings.symbols, client.opened_s))
        self._clients[client.number] = client
        self._survey()
        try:
            async with asyncio.TaskGroup() as tasks:
                chores = [tasks.create_task(self._ping(client)), tasks.create_task(self._misbehaviour.befall(client))]
                await self._listen(client, reader)
                for chore in chores:
                    chore.cancel()
        finally:
            del self._clients[client.number]
            self._door.see_off(client)
            self._trades_sent += client.trades_sent
            self._survey()
            log.info("connection.ended", connection=client.number, trades=client.trades_sent)

    async def _listen(self, client: VenueConnection, reader: asyncio.StreamReader) -> None:
        try:
            while data := await reader.read(READ_BYTES):
                for text in client.hear(data, answering=not self._misbehaviour.of(client).silent()):
                    self._desk.obey(client, text)
                    self._survey()
                if self._settings.protocol == "binance" and client.hurried:
                    log.warning("client.hurried", connection=client.number)
                    client.close(CloseCode.POLICY_VIOLATION, "Too many requests")
        except (ConnectionError, ssl.SSLError) as error:
            log.debug("connection.broken", connection=client.number, reason=type(error).__name__)

    async def _ping(self, client: VenueConnection) -> None:
        """Finnhub's pings are messages, Binance's are the protocol's own; the others have none."""
        while self._settings.protocol in {"finnhub", "binance"}:
            await asyncio.sleep(self._settings.ping_interval_s)
            if self._misbehaviour.of(client).silent():
                continue
            if self._settings.protocol == "binance":
                client.write(PING)
            else:
                client.say(type="ping")

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
        while self._tape.due_s < math.inf:
            while not self._wanted.is_set():
                await self._wanted.wait()
                self._tape.rest(clock())
            batches = self._tape.take_due(self._universe, clock())
            for client in self._clients.values():
                self._deliver(client, batches)
            for client in list(self._clients.values()):
                await client.drain()
            pause_s = self._tape.due_s - clock()
            if pause_s < math.inf:
                await asyncio.sleep(max(pause_s, TICK_S) if pause_s > 0 else 0)
        log.info("replay.finished", trades=self.trades_sent)

    def _deliver(self, client: VenueConnection, batches: list[list[Trade]]) -> None:
        """To one client what it asked for, as its faults let it through."""
        active = self._misbehaviour.of(client)
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

    def drop(self) -> None:
        """Cuts every connection now, without a close frame."""
        for client in self._clients.values():
            client.abort()

    def mute(self, seconds: float) -> None:
        """Sends nothing at all to anybody for so long."""
        self._misbehaviour.mute(seconds)


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
