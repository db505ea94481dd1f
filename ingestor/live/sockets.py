"""WebSocket of one client: its messages, in two languages, and the tasks that read and send until either ends."""

import asyncio
import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response
from starlette.websockets import WebSocket, WebSocketDisconnect

from ingestor.live.access import EVERYTHING, Grant, Unauthorized, Verifier, bearer_token
from ingestor.live.board import frame, json_frame
from ingestor.live.hub import Hub
from ingestor.live.subscriptions import ClientLanguage, Subscriber, TooMany
from ingestor.texts import parse_duration

_POLICY_VIOLATION = 1008
_FAULTS_MAX = 100
"""Messages in a row that get an error: then it is no client."""
_FAULT_S, _SYMBOL_S = 0.02, 0.001
"""A client's wait after an error, and for each symbol that it names: that time belongs to the others."""
_PATIENCE_S = 10.0
"""For a token."""
_PING_S = 60.0
_NAMED_MAX = 20
"""Symbols that one error names."""
_SYMBOL_MAX = 128
_EVERY_MIN_S, _EVERY_MAX_S = 0.01, 3600.0
_EVERY_S = 0.1
_KEYS = {
    "subscribe": {"action", "symbol", "symbols", "mode", "every", "gaps"},
    "unsubscribe": {"action", "symbol", "symbols"},
    "authenticate": {"action", "token"},
}


class BadRequest(Exception):
    """The message can't be understood; the argument is a sentence for whoever wrote it."""


@dataclass(frozen=True, slots=True)
class Subscribe:
    symbols: tuple[str, ...]
    every_s: float | None = None
    """None: every trade."""
    gaps: bool = False


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    symbols: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Authenticate:
    token: str


ClientRequest = Subscribe | Unsubscribe | Authenticate


async def converse(websocket: WebSocket, hub: Hub, verifier: Verifier | None, language: ClientLanguage) -> None:
    """Serve this client until it leaves, or is given up and told why."""
    try:
        # None: nothing is granted yet. Without authentication no token is read: people leave their Finnhub key there.
        grant: Grant | None = EVERYTHING
        if verifier is not None:
            token = bearer_token(websocket.headers) or websocket.query_params.get("token")
            grant = verifier.verify(token) if token else None
        subscriber = hub.join(language)
    except (Unauthorized, TooMany) as refusal:
        status = 401 if isinstance(refusal, Unauthorized) else 503
        answer = Response(error_text(language, str(refusal)), status, media_type="application/json")
        await websocket.send_denial_response(answer)
        return
    with contextlib.suppress(WebSocketDisconnect):  # it went while it was being told something
        try:
            await websocket.accept()
            await _Conversation(websocket, hub, verifier, subscriber, grant).run()
        finally:
            hub.leave(subscriber)


class _Conversation:
    """One client's grant and subscriptions, and what it is sent."""

    def __init__(
        self, websocket: WebSocket, hub: Hub, verifier: Verifier | None, subscriber: Subscriber, grant: Grant | None
    ) -> None:
        self._websocket = websocket
        self._hub = hub
        self._verifier = verifier
        self._subscriber = subscriber
        self._grant = grant
        self._granted = asyncio.Event()
        self._faults = 0

    async def run(self) -> None:
        """Until the client goes (raises WebSocketDisconnect) or is given up; then it hears why."""
        works = (self._read(), self._send(), self._watch_grant(), self._ping(), self._subscriber.over.wait())
        tasks = [asyncio.ensure_future(work) for work in works]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if fault := self._subscriber.fault:
            last_word = frame(self._error(fault))
            await self._websocket.send(
                {"type": "websocket.close", "code": _POLICY_VIOLATION, "reason": fault, "frames": last_word}
            )
        for task in done:
            task.result()

    async def _send(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if frames := self._subscriber.next_frames(loop.time()):
                await self._websocket.send({"type": "websocket.send", "frames": frames})
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(self._subscriber.due_s()):
                    await self._subscriber.ready.wait()
            self._subscriber.ready.clear()

    async def _ping(self) -> None:
        """Finnhub's own, which clients of it may wait for; WebSocket's are uvicorn's work."""
        while True:
            await asyncio.sleep(_PING_S)
            if self._subscriber.language is ClientLanguage.FINNHUB:
                self._subscriber.enqueue(json_frame({"type": "ping"}))

    async def _watch_grant(self) -> None:
        """Give the client up where no token came in time, or the last one has expired."""
        while True:
            left_s: float | None = _PATIENCE_S
            if self._grant is not None:
                left_s = None if self._grant.expires_at is None else self._grant.expires_at - time.time()
            try:
                async with asyncio.timeout(left_s):
                    await self._granted.wait()
            except TimeoutError:
                missing = f"no token within {_PATIENCE_S:.0f} s"
                self._subscriber.give_up(missing if self._grant is None else "the token has expired")
                return
            self._granted.clear()

    async def _read(self) -> None:
        while True:
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                return
            wait_s = self._handle_message(message.get("text") or message.get("bytes") or b"")
            await asyncio.sleep(wait_s)  # messages that are here already don't make the others wait

    def _handle_message(self, text: str | bytes) -> float:
        """Handle one message. Returns how long the next one is to wait."""
        named: tuple[str, ...] = ()
        try:
            match parse_request(self._subscriber.language, text):
                case Authenticate(token):
                    if self._verifier is not None:
                        self._grant = self._verifier.verify(token)
                        self._granted.set()
                        refused = self._grant.refused(list(self._subscriber.symbols))
                        self._hub.unsubscribe(self._subscriber, refused)
                    self._subscriber.enqueue(json_frame({"authenticated": True}))
                case Subscribe(named, every_s, gaps):
                    self._subscribe(named, every_s, gaps=gaps)
                case Unsubscribe(named):
                    self._hub.unsubscribe(self._subscriber, named)
        except (BadRequest, TooMany, Unauthorized) as error:
            self._subscriber.enqueue(frame(self._error(str(error))))
            self._faults += 1
            if self._faults == _FAULTS_MAX:
                self._subscriber.give_up(f"{_FAULTS_MAX} errors in a row; the last: {error}")
            return _FAULT_S
        self._faults = 0
        return len(named) * _SYMBOL_S

    def _subscribe(self, symbols: Sequence[str], every_s: float | None, *, gaps: bool) -> None:
        if self._grant is None:
            raise Unauthorized('authenticate first: {"action":"authenticate","token":…}')
        if refused := self._grant.refused(symbols):
            raise Unauthorized(f"the token doesn't allow {_named(refused)}")
        unknown = self._hub.subscribe(self._subscriber, symbols, every_s, gaps=gaps)
        if unknown and self._subscriber.language is ClientLanguage.FINNHUB:
            for symbol in unknown:  # in Finnhub's own words
                self._subscriber.enqueue(frame(self._error(f"Invalid symbol {symbol}")))
        elif unknown:
            text = f"not recorded here, so far: {_named(unknown)}; the subscription stands"
            self._subscriber.enqueue(frame(self._error(text)))

    def _error(self, reason: str) -> bytes:
        return error_text(self._subscriber.language, reason).encode()


def _named(symbols: Sequence[str]) -> str:
    more = f" and {len(symbols) - _NAMED_MAX} more" if len(symbols) > _NAMED_MAX else ""
    return ", ".join(symbols[:_NAMED_MAX]) + more


# What a client's message asks for: pure


def parse_request(language: ClientLanguage, text: str | bytes) -> ClientRequest:
    """The client's request. Raises BadRequest."""
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        raise BadRequest("not JSON") from None
    if not isinstance(message, dict):
        raise BadRequest("not a JSON object")
    if language is ClientLanguage.FINNHUB:
        kind = message.get("type")
        if kind not in ("subscribe", "unsubscribe"):
            raise BadRequest("`type` must be subscribe or unsubscribe")
        symbols: tuple[str, ...] = (_check_symbol(_text(message, "symbol")),)
        return Subscribe(symbols) if kind == "subscribe" else Unsubscribe(symbols)
    action = message.get("action")
    if not isinstance(action, str) or action not in _KEYS:
        raise BadRequest("`action` must be subscribe, unsubscribe or authenticate")
    if unknown := sorted(message.keys() - _KEYS[action]):
        raise BadRequest(f"unknown key `{unknown[0][:_SYMBOL_MAX]}` for {action}")
    if action == "authenticate":
        return Authenticate(_text(message, "token"))
    symbols = _symbols(message)
    if action == "unsubscribe":
        return Unsubscribe(symbols)
    gaps = message.get("gaps", False)
    if not isinstance(gaps, bool):
        raise BadRequest("`gaps` must be true or false")
    return Subscribe(symbols, _every_s(message), gaps)


def error_text(language: ClientLanguage, reason: str) -> str:
    """A refusal, as the client's language has it."""
    return json.dumps({"msg": reason, "type": "error"} if language is ClientLanguage.FINNHUB else {"error": reason})


def _symbols(message: dict[str, Any]) -> tuple[str, ...]:
    if ("symbol" in message) == ("symbols" in message):
        raise BadRequest("name either `symbol` or `symbols`")
    if "symbol" in message:
        return (_check_symbol(message["symbol"]),)
    symbols = [message["symbols"]] if isinstance(message["symbols"], str) else message["symbols"]
    if not isinstance(symbols, list) or not symbols:
        raise BadRequest("`symbols` must be a list of at least one symbol")
    return tuple(dict.fromkeys(map(_check_symbol, symbols)))


def _check_symbol(symbol: Any) -> str:
    if not isinstance(symbol, str) or not 0 < len(symbol) <= _SYMBOL_MAX or not symbol.isprintable():
        raise BadRequest(f"a symbol must be text of 1 to {_SYMBOL_MAX} characters")
    return symbol


def _every_s(message: dict[str, Any]) -> float | None:
    mode = message.get("mode", "all")
    if mode not in ("all", "latest"):
        raise BadRequest("`mode` must be all or latest")
    if mode == "all":
        if "every" in message:
            raise BadRequest("`every` belongs to mode latest")
        return None
    if "every" not in message:
        return _EVERY_S
    try:
        every_s = parse_duration(message["every"])
    except ValueError as error:
        raise BadRequest(f"`every`: {str(error)[:200]}") from None
    if not _EVERY_MIN_S <= every_s <= _EVERY_MAX_S:
        raise BadRequest("`every` must be from 10ms to 1h")
    return every_s


def _text(message: dict[str, Any], key: str) -> str:
    value = message.get(key)
    if not isinstance(value, str):
        raise BadRequest(f"`{key}` must be text")
    return value
