"""The door of a venue: who is let in, by its handshake and by its key."""

import asyncio

import structlog
from websockets.http11 import Request, Response
from websockets.server import ServerProtocol

from ingestor.simulator.connection import (
    VenueConnection,
    http_answer,
    is_combined,
    key_of,
    make_protocol,
    read_handshake,
)
from ingestor.simulator.faults import Active
from ingestor.simulator.misbehaviour import Misbehaviour
from ingestor.simulator.settings import VenueSettings
from ingestor.simulator.truth import TruthFile

log = structlog.get_logger("ingestor.simulator")


class Door:
    """Numbers those who knock, and remembers which key is inside."""

    def __init__(self, settings: VenueSettings, misbehaviour: Misbehaviour, truth: TruthFile | None) -> None:
        self._misbehaviour = misbehaviour
        self._truth = truth
        self._asks_for_keys = settings.protocol == "finnhub"
        self._keys = settings.keys
        self._by_key: dict[str, VenueConnection] = {}
        self._handshakes = 0

    async def greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> VenueConnection | None:
        """The handshake. None where there is nobody to attend to: the answer, if any, has been written."""
        if self._misbehaviour.outage:
            writer.transport.abort()
            return None
        protocol = make_protocol()
        request = await read_handshake(protocol, reader)
        if request is None:
            return None
        self._handshakes += 1
        number = self._handshakes
        active = self._misbehaviour.at_handshake(number)
        await asyncio.sleep(active.handshake_delay_s())
        if reader.at_eof() or writer.transport.is_closing():
            return None
        response = self._answer(protocol, request, active)
        protocol.send_response(response)
        writer.write(b"".join(protocol.data_to_send()))
        if response.status_code != 101:
            log.info("connection.refused", connection=number, status=response.status_code)
            return None
        opened_s, combined = self._misbehaviour.now_s, is_combined(request)
        client = VenueConnection(number, opened_s, protocol, writer, self._truth, combined=combined)
        log.info("connection.opened", connection=number)
        return client if self._admit(client, key_of(request)) else None

    def see_off(self, client: VenueConnection) -> None:
        """It has left, and its key may come again."""
        self._by_key = {key: other for key, other in self._by_key.items() if other is not client}

    def _answer(self, protocol: ServerProtocol, request: Request, active: Active) -> Response:
        if fault := active.answer():
            return http_answer(fault.status, fault.location)
        if self._asks_for_keys and self._keys is not None and key_of(request) not in self._keys:
            return http_answer(401)
        return protocol.accept(request)

    def _admit(self, client: VenueConnection, key: str) -> bool:
        """One connection a key: a second one ends both. The key of one that was closed is free at once."""
        if not self._asks_for_keys:
            return True
        other = self._by_key.get(key)
        if other is not None and not other.leaving:
            log.warning("key.used_twice", connections=[other.number, client.number])
            other.abort()
            client.abort()
            return False
        self._by_key[key] = client
        return True
