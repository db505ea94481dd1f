"""Clients of `ingestor serve` that mean no good, until stdin is closed.

    python benchmarks/live_attack.py 127.0.0.1 8766 MISDEED

Twenty at once do the same, over and over: subscribe to everything and read nothing, send garbage, frames of 10 MB,
10,000 subscriptions, half a request; or floods of small frames that are legal: pongs, pings whose answers nobody reads,
fragments, requests. What they send is made beforehand: the attack is to cost the server, not the machine. Prints how
often it was done.
"""

import json
import os
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from trade_load import SYMBOLS

_PAUSE_S = 0.05
_PATIENCE_S = 5.0
_ATTACKERS = 20
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
_FLOODS = {
    "pongs": small_frame(10) * 10_000,
    "pings": small_frame(9, bytes(125)) * 2000,
    "empty fragments": small_frame(1, final=False) + small_frame(0, final=False) * 10_000,
    "fragments": (
        small_frame(1, final=False) + small_frame(0, b"x", final=False) * 500 + small_frame(0)
    ) * 20,
    "unsubscribe": small_frame(1, b'{"action":"unsubscribe","symbol":%b}' % _SYMBOL) * 2000,
    "subscribe": small_frame(1, b'{"action":"subscribe","symbol":%b}' % _SYMBOL) * 2000,
    "no JSON": small_frame(1, b"{") * 10_000,
}  # fmt: skip
_ALL = frame(json.dumps({"action": "subscribe", "symbols": SYMBOLS}).encode())


def main(host: str, port: str, misdeed: str) -> None:
    place, stop, done = (host, int(port)), threading.Event(), [0]

    def repeat() -> None:
        while not stop.wait(_PAUSE_S):
            with suppress(OSError):  # it is hung up on: that is the idea
                MISDEEDS[misdeed](place)
            done[0] += 1

    threads = [threading.Thread(target=repeat) for _ in range(1 if misdeed == "one pongs" else _ATTACKERS)]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    stop.set()
    for thread in threads:
        thread.join()
    print(json.dumps({"done": done[0]}))


def be_deaf(place: tuple[str, int]) -> None:
    """Read nothing, until the server has given it up or has tried its patience."""
    with connect(place) as client:
        client.sendall(_ALL)
        hang_on(client)


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
    with socket.create_connection(place, _PATIENCE_S) as client:
        client.sendall(b"GET /live-price HTTP/1.1\r\nUpgrade: websocket\r\n")
        client.recv(100)


def flood(frames: bytes, place: tuple[str, int]) -> None:
    """Send as much as the server takes, and read nothing, for as long as it bears that."""
    stop = threading.Event()
    with connect(place) as client:
        client.setblocking(False)
        for _ in range(round(_PATIENCE_S / _PAUSE_S)):
            with suppress(BlockingIOError):  # its buffer is full
                client.send(frames)
            stop.wait(_PAUSE_S)


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


MISDEEDS: dict[str, Callable[[tuple[str, int]], None]] = {
    "one pongs": partial(flood, _FLOODS["pongs"]),
    **{name: partial(flood, frames) for name, frames in _FLOODS.items()},
    "deaf": be_deaf,
    "garbage": send_garbage,
    "huge frames": send_huge_frames,
    "10,000 symbols": be_greedy,
    "half a request": ask_by_halves,
}

if __name__ == "__main__":
    main(*sys.argv[1:])
