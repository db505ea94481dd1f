"""A venue that treats its one client as a test says, on a real socket, and the way to it."""

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from certificates import Certificate
from websockets.frames import Frame, Opcode
from websockets.server import ServerProtocol

from ingestor.capture.connection import Connection
from ingestor.capture.connection import connect as open_connection

KEY = "key-in-the-url"


def text(payload: bytes) -> bytes:
    return Frame(Opcode.TEXT, payload).serialize(mask=False)


def accept_handshake(peer: socket.socket) -> ServerProtocol:
    """The venue's side of a handshake that succeeds."""
    protocol = ServerProtocol()
    while not (events := protocol.events_received()):
        protocol.receive_data(peer.recv(1 << 16))
    protocol.send_response(protocol.accept(events[0]))  # type: ignore[arg-type]  # the first event is the request
    peer.sendall(b"".join(protocol.data_to_send()))
    return protocol


def say(*pieces: bytes) -> Callable[[socket.socket], None]:
    """A venue that shakes hands, sends these bytes, and waits for the client to end."""

    def behave(peer: socket.socket) -> None:
        accept_handshake(peer)
        for piece in pieces:
            peer.sendall(piece)
        while peer.recv(1 << 16):
            pass

    return behave


def answer(raw: bytes) -> Callable[[socket.socket], None]:
    """A server that answers every request with these bytes, and ends when the client does."""

    def behave(peer: socket.socket) -> None:
        peer.recv(1 << 16)
        peer.sendall(raw)
        while peer.recv(1 << 16):
            pass

    return behave


@contextmanager
def venue(behave: Callable[[socket.socket], None], certificate: Certificate | None = None) -> Iterator[str]:
    """The URL of a venue that treats its one client so."""

    def serve() -> None:
        try:
            peer, _ = server.accept()
            with peer if context is None else context.wrap_socket(peer, server_side=True) as one:
                behave(one)
        except OSError:
            return  # the client went first

    context = None if certificate is None else ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    if context is not None and certificate is not None:
        context.load_cert_chain(*certificate)
    with ThreadPoolExecutor(1) as executor, socket.create_server(("127.0.0.1", 0)) as server:
        executor.submit(serve)
        scheme = "ws" if certificate is None else "wss"
        try:
            yield f"{scheme}://127.0.0.1:{server.getsockname()[1]}/?token={KEY}"
        finally:
            server.shutdown(socket.SHUT_RDWR)


def connect(url: str, **changes: Any) -> Connection:
    options: dict[str, Any] = {"timeout_s": 10.0, "ca_file": None, "stop": threading.Event()}
    return open_connection(url, **(options | changes))
