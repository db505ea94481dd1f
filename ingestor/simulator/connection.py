"""One client's socket at the venue, and the truth file: every trade that was sent on it, and when.

The rules come from websockets' Sans-I/O core; the bytes are in our own hands.

A venue that misbehaves on command must be able to send half a frame, nothing, or a reset: no WebSocket server
offers that.
"""

import asyncio
import json
import logging
import os
import socket
import struct
import time
from collections import deque
from collections.abc import Iterable, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import structlog
from websockets.datastructures import Headers
from websockets.frames import Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import State
from websockets.server import ServerProtocol

from ingestor.simulator.market import Trade
from ingestor.simulator.protocols import Message, fragmented, padded, text_frame, whole

log = structlog.get_logger("ingestor.simulator")

REQUEST_TIMEOUT_S = 10.0
READ_BYTES = 1 << 16
MESSAGES_A_SECOND = 5
"""Binance's limit for a client."""
BLOCK_LINES = 4096


async def read_handshake(protocol: ServerProtocol, reader: asyncio.StreamReader) -> Request | None:
    """The client's handshake; None where what came is none. Raises TimeoutError after REQUEST_TIMEOUT_S."""
    async with asyncio.timeout(REQUEST_TIMEOUT_S):
        while data := await reader.read(READ_BYTES):
            protocol.receive_data(data)
            for event in protocol.events_received():
                if isinstance(event, Request):
                    return event
            if protocol.handshake_exc is not None:
                return None
    return None


def key_of(request: Request) -> str:
    """The `token` in the URL, which is where Finnhub's clients put their key; empty where there is none."""
    return parse_qs(urlsplit(request.path).query).get("token", [""])[0]


def is_combined(request: Request) -> bool:
    """Whether the client asks for Binance's combined streams: by the path."""
    return urlsplit(request.path).path.rstrip("/").endswith("/stream")


def http_answer(status: int, location: str | None = None) -> Response:
    """A whole HTTP answer without an upgrade; statuses that HTTP doesn't define (524) included."""
    defined = {member.value: member.phrase for member in HTTPStatus}
    body = f"{defined.get(status, 'A Timeout Occurred')}\n".encode()
    headers = Headers({"Content-Type": "text/plain", "Content-Length": str(len(body)), "Connection": "close"})
    if location is not None:
        headers["Location"] = location
    return Response(status, body.decode().strip(), headers, body)


def make_protocol() -> ServerProtocol:
    """A server's side of one WebSocket, before the handshake. No compression, as at Finnhub."""
    # At debug level the library prints requests, and with them the key: its log ends here.
    silent = logging.getLogger("ingestor.simulator.websockets")
    silent.setLevel(logging.CRITICAL + 1)
    return ServerProtocol(logger=silent)


class TruthFile:
    """Every trade that a venue sent, when and to whom, for captures to be compared with.

    JSON lines `{"sent_us", "connection", "frame", …}`: each ends with a trade's fields exactly as sent.

    An existing file is replaced. Lines are written in blocks: `flush` says when, and `close` does.
    """

    def __init__(self, path: Path) -> None:
        """Raises OSError where the file can't be made."""
        self._file = os.fdopen(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o640), "wb")
        self._lines: list[str] = []

    def add(self, sent_us: int, connection: int, frame: int, trades: Iterable[str]) -> None:
        """The trades (JSON objects) of one frame that was just handed to the connection's socket."""
        head = f'{{"sent_us":{sent_us},"connection":{connection},"frame":{frame},'
        self._lines += [f"{head}{trade[1:]}\n" for trade in trades]
        if len(self._lines) >= BLOCK_LINES:
            self.flush()

    def flush(self) -> None:
        """Raises OSError; the file is then no longer the truth."""
        self._file.write("".join(self._lines).encode())
        self._file.flush()
        self._lines.clear()

    def close(self) -> None:
        """Write the rest. Raises OSError."""
        try:
            self.flush()
        finally:
            self._file.close()


class VenueConnection:
    """One client, from its accepted handshake to the end of its socket.

    What is sent after the end, or after `jam`, goes nowhere, and neither into the truth.
    """

    def __init__(
        self,
        number: int,
        opened_s: float,
        protocol: ServerProtocol,
        writer: asyncio.StreamWriter,
        truth: TruthFile | None,
        *,
        combined: bool = False,
    ) -> None:
        self.number = number
        self.opened_s = opened_s
        """Seconds since the venue's start."""
        self.subscribed_s: dict[str, float] = {}
        """Each symbol asked for, and when (last) it was; the first one first."""
        self.trades_sent = 0
        self.logged_in = False
        self.told_s = opened_s
        """Seconds since the venue's start: when it last said anything."""
        self._texts_s: deque[float] = deque()
        self.combined = combined
        """It wants Binance's events in the envelope of combined streams."""
        self._heard_s: deque[float] = deque(maxlen=MESSAGES_A_SECOND + 1)
        self._protocol = protocol
        self._writer = writer
        self._truth = truth
        self._frames = 0
        self._padding = 0
        self._drop_count = 0
        self._drop_symbols: frozenset[str] = frozenset()
        self._jammed = False

    @property
    def open(self) -> bool:
        """Whether what is sent reaches the socket."""
        return not self._jammed and not self.leaving

    @property
    def leaving(self) -> bool:
        """A side has said goodbye, or the socket is being closed."""
        return self._protocol.state is not State.OPEN or self._writer.transport.is_closing()

    def hear(self, data: bytes, *, answering: bool) -> list[str]:
        """The text messages in what the client sent. Answers pings and a close frame, if `answering`."""
        self._protocol.receive_data(data)
        events = self._protocol.events_received()
        self._flush(answering=answering)
        self._heard_s.extend(time.monotonic() for event in events if isinstance(event, Frame))
        return [
            bytes(event.data).decode("utf-8", "replace")
            for event in events
            if isinstance(event, Frame) and event.opcode is Opcode.TEXT
        ]

    def tell(self, now_s: float, most: float | None) -> None:
        """It has sent a text message. One with more than `most` in a second is hung up on."""
        self.told_s = now_s
        self._texts_s.append(now_s)
        while self._texts_s[0] <= now_s - 1.0:
            self._texts_s.popleft()
        if most is not None and len(self._texts_s) > most:
            self.close(1008, "Too many requests")

    @property
    def hurried(self) -> bool:
        """It has sent more than MESSAGES_A_SECOND, pings and pongs among them."""
        return len(self._heard_s) > MESSAGES_A_SECOND and self._heard_s[-1] - self._heard_s[0] < 1.0

    def say(self, **message: Any) -> None:
        """A message without trades."""
        self.write(text_frame(json.dumps(message, separators=(",", ":")).encode()))

    def send(self, messages: Sequence[Message], *, copies: int = 1, in_fragments: bool = False) -> None:
        """Messages with trades, each `copies` times in a row; in the truth if they reached the socket."""
        if not self.open or not messages:
            return
        if self._padding:
            messages = [padded(messages[0], self._padding), *messages[1:]]
            self._padding = 0
        frame = fragmented if in_fragments else whole
        messages = [message for message in messages for _ in range(copies)]
        wire = b"".join([frame(message) for message in messages])
        sent_us = time.time_ns() // 1000
        self._writer.write(wire)
        for message in messages:
            self._frames += 1
            self.trades_sent += len(message.trades)
            if self._truth is not None:
                self._truth.add(sent_us, self.number, self._frames, message.trades)

    def write(self, wire: bytes) -> None:
        """Raw bytes without trades."""
        if self.open:
            self._writer.write(wire)

    def pad_next(self, size: int) -> None:
        """The next message with trades will be `size` bytes long."""
        self._padding = size

    def drop_next(self, count: int, symbols: Iterable[str] = ()) -> None:
        """The next `count` trades of these symbols (none: of any) are not sent."""
        self._drop_count, self._drop_symbols = count, frozenset(symbols)

    def without_dropped(self, batches: list[list[Trade]]) -> list[list[Trade]]:
        """The trades of some messages that are sent; those that are dropped are told in the log alone."""
        if not self._drop_count:
            return batches
        dropped: dict[str, list[int]] = {}
        kept: list[list[Trade]] = []
        for batch in batches:
            kept.append([])
            for trade in batch:
                if self._drop_count and (not self._drop_symbols or trade.symbol in self._drop_symbols):
                    self._drop_count -= 1
                    dropped.setdefault(trade.symbol, []).append(trade.number)
                else:
                    kept[-1].append(trade)
        if dropped:
            log.info("trades.dropped", connection=self.number, ids=dropped)
        return kept

    async def trickle(self, header: bytes, pause_s: float) -> None:
        """The header of a frame, then a blank every `pause_s` and nothing else, until the socket ends."""
        self.write(header)
        self.jam()
        while not self._writer.transport.is_closing():
            self._writer.write(b" ")
            await asyncio.sleep(pause_s)

    def jam(self) -> None:
        """Send nothing more on this connection, which stays open."""
        self._jammed = True

    async def drain(self) -> None:
        """Wait while the client reads more slowly than the venue sends."""
        try:
            await self._writer.drain()
        except ConnectionError:
            self.abort()

    def close(self, code: int, reason: str) -> None:
        """A close frame; whatever the protocol says then ends the connection, once the client answers."""
        if self.open:
            self._protocol.send_close(code, reason)
            self._flush(answering=True)

    def abort(self) -> None:
        """Close the TCP connection at once, without a close frame, unless it is being closed anyway."""
        if not self._writer.transport.is_closing():  # asyncio fails on aborting a transport that has closed
            self._writer.transport.abort()

    def reset(self) -> None:
        """Close the TCP connection at once, with a RST, unless it is being closed anyway."""
        if self._writer.transport.is_closing():  # its socket may be gone
            return
        sock: socket.socket = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.abort()

    def _flush(self, *, answering: bool) -> None:
        """Send what the protocol has queued: pongs, close frames, the end of the stream (an empty piece)."""
        for piece in self._protocol.data_to_send():
            if self._jammed or not answering or self._writer.transport.is_closing():
                continue
            if piece:
                self._writer.write(piece)
            else:
                self._writer.close()
