"""Clients of `ingestor serve` that mean no good, until stdin is closed.

    python benchmarks/live_attack.py 127.0.0.1 8766

Each kind in a thread of its own, over and over: one that subscribes to everything and reads nothing, garbage, frames of
10 MB, 10,000 subscriptions, half a request; and floods of small frames that are legal: pongs, pings whose answers
nobody reads, fragments, requests. What they send is made beforehand: the attack is to cost the server, not
the machine. Prints how often each was done.
"""

import json
import os
import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

from trade_load import SYMBOLS

_PAUSE_S = 0.05
_PATIENCE_S = 5.0
_DEAF, _HALF_OPEN, _FLOODING = 10, 50, 20
_CLOSE = 0x88
_UPGRADE = (
    "GET /live-price HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def frame(payload: bytes, opcode: int = 1) -> bytes:
    """One whole frame from a client (RFC 6455, 5.2). Its mask is 0, under which the payload stays as it is."""
    return bytes((0x80 | opcode, 0x80 | 127)) + len(payload).to_bytes(8) + bytes(4) + payload


def small_frame(opcode: int, payload: bytes = b"", *, final: bool = True) -> bytes:
    """The same as short as can be: up to 125 bytes."""
    return bytes((0x80 * final | opcode, 0x80 | len(payload))) + bytes(4) + payload


_GARBAGE = b"".join(frame(os.urandom(200), opcode=2) for _ in range(100))
_HUGE = frame(b"x" * 10_000_000)
_GREED = frame(json.dumps({"action": "subscribe", "symbols": [f"S{number}" for number in range(10_000)]}).encode())
_SYMBOL = json.dumps(SYMBOLS[0]).encode()
_FLOODS = [
    small_frame(10) * 10_000,
    small_frame(9, bytes(125)) * 2000,
    small_frame(1, final=False) + small_frame(0, final=False) * 10_000,
    (small_frame(1, final=False) + small_frame(0, b"x", final=False) * 500 + small_frame(0)) * 20,
    small_frame(1, b'{"action":"unsubscribe","symbol":%b}' % _SYMBOL) * 2000,
    small_frame(1, b'{"action":"subscribe","symbol":%b}' % _SYMBOL) * 2000,
    small_frame(1, b"{") * 10_000,
]
_ALL = frame(json.dumps({"action": "subscribe", "symbols": SYMBOLS}).encode())


def main(host: str, port: str) -> None:
    place, stop, done = (host, int(port)), threading.Event(), Counter[str]()

    def repeat(misdeed: Callable[[tuple[str, int]], None]) -> None:
        while not stop.wait(_PAUSE_S):
            with suppress(OSError):  # it is hung up on: that is the idea
                misdeed(place)
            done[misdeed.__name__] += 1

    misdeeds = (be_deaf, send_garbage, send_huge_frames, be_greedy, ask_by_halves, flood)
    threads = [threading.Thread(target=repeat, args=(misdeed,)) for misdeed in misdeeds]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    stop.set()
    for thread in threads:
        thread.join()
    print(json.dumps(done))


def be_deaf(place: tuple[str, int]) -> None:
    """Some that read nothing, until the server has given them up or they have tried its patience."""
    clients = [connect(place) for _ in range(_DEAF)]
    for client in clients:
        client.sendall(_ALL)
    hang_on(clients[0])
    for client in clients:
        client.close()


def send_garbage(place: tuple[str, int]) -> None:
    with connect(place) as client:
        client.sendall(_GARBAGE)
        hear_end(client)


def send_huge_frames(place: tuple[str, int]) -> None:
    with connect(place) as client:
        client.sendall(_HUGE)
        hear_end(client)


def be_greedy(place: tuple[str, int]) -> None:
    with connect(place) as client:
        client.sendall(_GREED)
        client.recv(1 << 16)


def ask_by_halves(place: tuple[str, int]) -> None:
    clients = [socket.create_connection(place, _PATIENCE_S) for _ in range(_HALF_OPEN)]
    for client in clients:
        client.sendall(b"GET /live-price HTTP/1.1\r\nUpgrade: websocket\r\n")
    clients[0].recv(100)
    for client in clients:
        client.close()


def flood(place: tuple[str, int]) -> None:
    """Twenty of each kind that send as much as the server takes, and read nothing, for as long as it bears them."""
    clients = [(connect(place), frames) for frames in _FLOODS for _ in range(_FLOODING)]
    stop = threading.Event()
    for client, _ in clients:
        client.setblocking(False)
    for _ in range(round(_PATIENCE_S / _PAUSE_S)):
        stop.wait(_PAUSE_S)
        for client, frames in clients:
            with suppress(OSError):  # its buffer is full, or it is hung up on
                client.send(frames)
    for client, _ in clients:
        client.close()


def connect(place: tuple[str, int]) -> socket.socket:
    """A WebSocket, its handshake done."""
    client = socket.create_connection(place, _PATIENCE_S)
    client.sendall(_UPGRADE.format(host=":".join(map(str, place))).encode())
    answer = client.recv(4096)
    if not answer.startswith(b"HTTP/1.1 101 "):
        raise ConnectionRefusedError(answer[:100])
    return client


def hang_on(client: socket.socket) -> None:
    """Read nothing until there is an error, or no patience any more."""
    stop = threading.Event()
    for _ in range(round(_PATIENCE_S)):
        stop.wait(1.0)
        client.sendall(frame(b"", opcode=9))


def hear_end(client: socket.socket) -> None:
    """Until the server says goodbye, or is gone."""
    while (heard := client.recv(1 << 16)) and _CLOSE not in heard:
        pass


if __name__ == "__main__":
    main(*sys.argv[1:])
