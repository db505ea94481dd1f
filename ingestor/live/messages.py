"""Messages of clients, in the two languages that the server understands. Pure."""

import json
from dataclasses import dataclass
from typing import Any

from ingestor.live.subscriptions import ClientLanguage
from ingestor.texts import parse_duration

_SYMBOL_MAX = 64
_EVERY_MIN_S, _EVERY_MAX_S = 0.01, 3600.0
_EVERY_S = 0.1
_KEYS = {
    "subscribe": {"action", "symbol", "symbols", "mode", "every"},
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


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    symbols: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Authenticate:
    token: str


ClientRequest = Subscribe | Unsubscribe | Authenticate


def parse_request(language: ClientLanguage, text: str | bytes) -> ClientRequest:
    """What the client asks for. Raises BadRequest."""
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
    return Subscribe(symbols, _every_s(message)) if action == "subscribe" else Unsubscribe(symbols)


def error_text(language: ClientLanguage, reason: str) -> str:
    """A refusal, as the client's language has it."""
    return json.dumps({"msg": reason, "type": "error"} if language is ClientLanguage.FINNHUB else {"error": reason})


def _symbols(message: dict[str, Any]) -> tuple[str, ...]:
    if ("symbol" in message) == ("symbols" in message):
        raise BadRequest("name either `symbol` or `symbols`")
    if "symbol" in message:
        return (_check_symbol(message["symbol"]),)
    symbols = message["symbols"]
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
