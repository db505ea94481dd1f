"""Price source that is Redis, for machines that have no recording: the sink `redis` of a recorder publishes there."""

import contextlib
import json
import math
import threading
import time
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import structlog
from redis.exceptions import RedisError

from ingestor.config.sections import RedisSettings
from ingestor.errors import SinkUnavailable
from ingestor.live.board import Price, Quote, State, split_by_symbol
from ingestor.live.hub import RecordingState, TradeBlock
from ingestor.schema import VENUE_TRADES
from ingestor.sinks.redis_db import connect

_CHANNELS = "stock:*"
_POLL_S = 0.1
_RETRY_S = 1.0
_BLOCK_MAX = 5000
_KEYS_AT_ONCE = 500
_NO_REDIS = State("blind", "no_redis")

log = structlog.get_logger()


class RedisSource:
    """Receives every publication from now on. Redis doesn't say whether anybody records: that is unknown."""

    def __init__(self, settings: RedisSettings, password: str | None) -> None:
        """Raises SinkUnavailable."""
        self._client: Any = connect(settings, password)
        self._lost: frozenset[str] | None = None
        """The symbols known when the link was lost; None while it stands."""
        self._symbols: set[str] = set()
        try:
            self._listener = self._listen()
        except RedisError as error:
            raise SinkUnavailable(f"redis: {error}") from error

    def quotes(self) -> list[Quote]:
        """The last prices that it holds. Raises SinkUnavailable."""
        try:
            keys = sorted(self._client.scan_iter(match=_CHANNELS, count=_KEYS_AT_ONCE, _type="string"))
            some = (keys[start : start + _KEYS_AT_ONCE] for start in range(0, len(keys), _KEYS_AT_ONCE))
            prices = [found for names in some for text in self._client.mget(names) if (found := _parse(text))]
        except RedisError as error:
            raise SinkUnavailable(f"redis: {error}") from error
        self._symbols.update(symbol for symbol, _ in prices)
        return [Quote(symbol, price) for symbol, price in prices]

    def state(self) -> RecordingState:
        """Nothing is known of coverage; but without a link, everybody is blind."""
        return RecordingState({} if self._lost is None else dict.fromkeys(self._lost, _NO_REDIS), None)

    def blocks(self, stop: threading.Event) -> Iterator[TradeBlock | None]:
        """Block by block until `stop`; None when the link stands again: what came meanwhile is lost here."""
        while not stop.is_set():
            try:
                yield from self._follow(stop)
            except RedisError as error:
                log.warning("redis.lost", error=str(error))
                self._lost = frozenset(self._symbols)
                # Subscribed first, and then said to stand again: until then everybody is blind.
                while self._lost is not None and not stop.wait(_RETRY_S):
                    with contextlib.suppress(RedisError):
                        self._listener = self._listen()
                        self._lost = None
                        log.info("redis.connected")
                yield None

    def _follow(self, stop: threading.Event) -> Iterator[TradeBlock]:
        while not stop.is_set():
            # What waits, or the first that comes within a tenth of a second.
            texts: list[str] = []
            while len(texts) < _BLOCK_MAX:
                timeout_s = 0.0 if texts else _POLL_S
                message = self._listener.get_message(ignore_subscribe_messages=True, timeout=timeout_s)
                if message is None:
                    break
                texts.append(message["data"])
            if prices := [found for text in texts if (found := _parse(text))]:
                self._symbols.update(symbol for symbol, _ in prices)
                columns = {  # as VENUE_TRADES has it, without conditions: Redis isn't told them
                    "timestamp": [price.timestamp_ms for _, price in prices],
                    "symbol": [symbol for symbol, _ in prices],
                    "price": [price.price for _, price in prices],
                    "volume": [price.volume for _, price in prices],
                    "conditions": [None] * len(prices),
                }
                batch = pa.RecordBatch.from_pydict(columns, schema=VENUE_TRADES)
                yield TradeBlock(split_by_symbol(batch), time.time())

    def _listen(self) -> Any:
        """The channels, subscribed. Raises RedisError."""
        listener = self._client.pubsub()
        listener.psubscribe(_CHANNELS)
        listener.get_message(timeout=_RETRY_S)  # its answer: until then nothing is sure
        return listener


def _parse(text: str | None) -> tuple[str, Price] | None:
    """Symbol and price as the sink writes them; None for what others may publish or store under such a name."""
    try:
        told = json.loads(text or "")
        symbol, price, volume, timestamp_ms = (told[key] for key in ("symbol", "price", "volume", "timestamp"))
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if not isinstance(symbol, str) or type(timestamp_ms) is not int or not -(2**63) <= timestamp_ms < 2**63:
        return None
    if not _is_finite(price) or not (volume is None or _is_finite(volume)):
        return None
    return symbol, Price(float(price), None if volume is None else float(volume), timestamp_ms)


def _is_finite(value: object) -> bool:
    return isinstance(value, float) and math.isfinite(value)
