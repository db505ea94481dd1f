"""The venue of the benchmarks: sends frames that were encoded beforehand, to one client, as fast as that takes them.

    python benchmarks/load_server.py FOLDER --frame-size 1 --parts 20 [--tls CERT KEY] [--close]
    python benchmarks/load_server.py FOLDER --rate 57 --seconds 30 [--batches]

It must never be the bottleneck, so it does as little as a server can: a handshake, then large pieces of ready bytes
into the socket, and the time it waits for the client is measured. It begins at the client's first frame (its first
subscription). Behind the last trade it sends a ping: the pong says that the client has read everything before it.

Without `--rate` it sends `--parts` parts of the load (trade_load.py), however long that takes. With `--rate` it sends
so many trades a second, each stamped with the moment it is sent: its price is that moment in µs since 1970 (exact in a
double; `t` has only ms). With `--batches`, a frame holds one to ten of them, as Finnhub's do. Both then wait until the
client is gone, or, with `--close`, say goodbye.

It tells what happens on stdout, a JSON object a line: `listening` (port), `subscribed` (at), `read` (when the client
had read it all, and what the server itself used) or `left` (the client went before that), with moments in seconds
since 1970.
"""

import argparse
import base64
import hashlib
import json
import select
import socket
import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random

from trade_load import PART_TRADES, SYMBOLS, encode_frame, part_path

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_PIECE = 1 << 20
_PING, _PONG, _CLOSE = 9, 10, 8
_SINGLE_RATE = 1000
_TICK_S = 0.001
_BATCH = (1, 10)


@dataclass(slots=True)
class Client:
    """The one client. `waited_s` counts the time in which it could have been sent more, and did not take it."""

    socket: socket.socket
    received: bytes = b""
    waited_s: float = 0.0

    def send(self, content: bytes) -> None:
        """Send all of it. The socket doesn't block."""
        left = memoryview(content)
        while left:
            try:
                left = left[self.socket.send(left) :]
            except (BlockingIOError, ssl.SSLWantWriteError):
                began = time.monotonic()
                select.select([], [self.socket], [])
                self.waited_s += time.monotonic() - began

    def receive(self) -> bool:
        """Take what comes next; False where the client is gone."""
        while True:
            try:
                data = self.socket.recv(1 << 16)
            except (BlockingIOError, ssl.SSLWantReadError):
                select.select([self.socket], [], [])
            except OSError:
                return False
            else:
                self.received += data
                return bool(data)

    def next_opcode(self) -> int | None:
        """The opcode of the client's next frame (masked, RFC 6455, 5.1); None where the client is gone."""
        while True:
            if len(self.received) >= 2:
                length, head = self.received[1] & 0x7F, 6
                if length == 126:
                    length, head = int.from_bytes(self.received[2:4]), 8
                if len(self.received) >= head + length:
                    opcode = self.received[0] & 0x0F
                    self.received = self.received[head + length :]
                    return opcode
            if not self.receive():
                return None


def main() -> None:
    arguments = parse_arguments()
    listener = socket.create_server(("127.0.0.1", 0))
    tell("listening", port=listener.getsockname()[1])
    client = accept(listener, arguments.tls)
    client.next_opcode()
    tell("subscribed", at=time.time())
    try:
        send_load(client, arguments)
    except ConnectionError:
        tell("left", at=time.time())
        return
    if arguments.close:
        client.send(encode_frame((1000).to_bytes(2), _CLOSE))
    while client.next_opcode() not in (
        None,
        _CLOSE,
    ):  # until the client is gone, or says goodbye: then it is for us to go
        pass


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where trade_load.py wrote the load")
    parser.add_argument("--frame-size", type=int, default=1, help="trades a frame")
    parser.add_argument("--parts", type=int, default=0, help=f"how many parts of {PART_TRADES} trades to send")
    parser.add_argument("--rate", type=float, help="instead: stamped trades, so many a second, one a frame")
    parser.add_argument("--batches", action="store_true", help="with --rate: one to ten trades a frame")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long, with --rate")
    parser.add_argument("--tls", nargs=2, metavar=("CERT", "KEY"), help="serve wss")
    parser.add_argument("--close", action="store_true", help="close the connection when all is read")
    return parser.parse_args()


def accept(listener: socket.socket, tls: tuple[str, str] | None) -> Client:
    """The client, its handshake done."""
    tcp, _ = listener.accept()
    tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*tls)
        tcp = context.wrap_socket(tcp, server_side=True)
    tcp.setblocking(False)
    client = Client(tcp)
    while b"\r\n\r\n" not in client.received:
        if not client.receive():
            raise ConnectionError("the client left before its handshake")
    request, client.received = client.received.split(b"\r\n\r\n", 1)
    client.send(answer(request))
    return client


def answer(request: bytes) -> bytes:
    """Switch to WebSocket (RFC 6455, 4.2.2)."""
    fields = dict(line.split(b":", 1) for line in request.lower().split(b"\r\n")[1:])
    at = list(fields).index(b"sec-websocket-key")
    key = request.split(b"\r\n")[1 + at].split(b":", 1)[1].strip()
    accepted = base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accepted + b"\r\n\r\n"
    )


def send_load(client: Client, arguments: argparse.Namespace) -> None:
    """Send it, wait until the client has read it, and tell what that took."""
    pieces = read_parts(arguments.folder, arguments.frame_size, arguments.parts)
    began_s, cpu_s, client.waited_s = time.time(), time.process_time(), 0.0
    if arguments.rate:
        trades = send_stamped(client, arguments.rate, arguments.seconds, batches=arguments.batches)
    else:
        trades = arguments.parts * PART_TRADES
        for number in range(arguments.parts):
            client.send(pieces[number % len(pieces)])
    sent_s = time.time()
    client.send(encode_frame(b"", _PING))
    while (opcode := client.next_opcode()) != _PONG:
        if opcode is None:
            raise ConnectionError("the client left before it had read everything")
    tell(
        "read", began=began_s, sent=sent_s, at=time.time(), trades=trades,
        waited_s=client.waited_s, cpu_s=time.process_time() - cpu_s,
    )  # fmt: skip


def read_parts(folder: Path, frame_size: int, wanted: int) -> list[bytes]:
    """The parts of the load there are, and no more than are wanted: they are sent over and over."""
    paths = (part_path(folder, frame_size, number) for number in range(wanted))
    return [path.read_bytes() for path in paths if path.exists()]


def send_stamped(client: Client, rate: float, seconds: float, *, batches: bool) -> int:
    """Send so many trades a second, each stamped; returns how many.

    At low rates, and in batches, each frame by itself, at random moments; at high rates those of a millisecond
    together.
    """
    random, alone = Random(1), batches or rate <= _SINGLE_RATE
    trades, due_s = 0, time.monotonic()
    end_s = due_s + seconds
    while due_s < end_s:
        time.sleep(max(0.0, due_s - time.monotonic()))
        frames, size = (1 if alone else round(rate * _TICK_S)), (random.randint(*_BATCH) if batches else 1)
        client.send(stamped_frame(time.time_ns() // 1000, trades % 50, size) * frames)
        trades += frames * size
        due_s += random.expovariate(rate / size) if alone else _TICK_S
    return trades


def stamped_frame(now_us: int, symbol: int, size: int) -> bytes:
    """So many trades whose price says when they were sent."""
    trade = f'{{"c":["1","12"],"p":{now_us},"s":"{SYMBOLS[symbol]}","t":{now_us // 1000},"v":100}}'
    return encode_frame(f'{{"data":[{",".join([trade] * size)}],"type":"trade"}}'.encode())


def tell(event: str, **facts: float) -> None:
    """One line on stdout."""
    print(json.dumps({"event": event, **facts}), flush=True)


if __name__ == "__main__":
    main()
