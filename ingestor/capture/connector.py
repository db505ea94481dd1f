"""Opens connections and retries with back-off; decides which refusals are final, and which keys were once accepted.

A 401 for such a key is a venue's bad minute (a bot filter after a reboot), not a typing mistake, and must not end a
recording.
"""

import contextlib
import hashlib
import json
import secrets
import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import structlog
import tenacity
from pydantic import BaseModel, Field
from tenacity.nap import sleep_using_event

from ingestor.capture.connection import Connection, connect
from ingestor.config.addresses import choose_proxy
from ingestor.config.sections import ConnectionSettings
from ingestor.errors import ConnectionLost, DamagedFile, FeedRefused, HandshakeRefused, Stalled
from ingestor.feeds import Feed
from ingestor.layout import Layout, read_small, write_whole

log = structlog.get_logger()


class _Stored(BaseModel):
    """`.accepted-keys.json`: hexadecimal."""

    salt: Annotated[str, Field(pattern=r"^([0-9a-fA-F]{2}){1,64}$")]
    hashes: list[str]


class KnownKey:
    """One key, and whether this root has seen it accepted. For any thread."""

    def __init__(self, layout: Layout, key: str) -> None:
        """Where there is a memory that can't be read, that is told, and a new one begun."""
        self._layout = layout
        self._key = key
        stored = _Stored(salt=secrets.token_hex(16), hashes=[])
        try:
            stored = read_small(layout.accepted_keys, _Stored.model_validate_json)
        except FileNotFoundError:
            pass
        except DamagedFile as error:
            log.warning("keys.forgotten", error=str(error))
        self._salt = bytes.fromhex(stored.salt)
        self._hashes = set(stored.hashes)
        self._accepted = self._written = not key  # no venue can refuse a key that the feed doesn't have
        self._writes = threading.Lock()
        self._writer: threading.Thread | None = None

    @cached_property
    def _hash(self) -> str:
        return hashlib.scrypt(self._key.encode(), salt=self._salt, n=1 << 14, r=8, p=1).hex()

    @property
    def accepted(self) -> bool:
        """Whether the venue has accepted it before; also where the feed has none."""
        return self._accepted or self._hash in self._hashes

    def remember(self) -> None:
        """The venue has accepted this key. It is written in the background: the first trades wait neither for the hash,
        which takes 40 ms, nor for the disk. What the disk refuses is written the next time.
        """
        self._accepted = True
        if not self._written and (self._writer is None or not self._writer.is_alive()):
            self._writer = threading.Thread(target=self._write, name="accepted key", daemon=True)
            self._writer.start()

    def settle(self) -> None:
        """Wait until it is written, or can't be."""
        if self._writer is not None:
            self._writer.join()

    def _write(self) -> None:
        with self._writes:  # several connections may bring the news
            hashes = self._hashes | {self._hash}
            if hashes != self._hashes:
                stored = {"salt": self._salt.hex(), "hashes": sorted(hashes)}
                try:
                    write_whole(self._layout.accepted_keys, json.dumps(stored), self._layout.staging)
                except OSError as error:
                    log.error("key.unremembered", error=error.strerror)
                    return
                self._hashes = hashes
            self._written = True


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to leave a venue alone that said no, in seconds."""

    again_s: float = 0.5
    """After a connection that was of no use, with as much jitter; it doubles from there."""
    refused_s: float = 300.0
    """After a 401 or 403."""
    throttled_s: float = 30.0
    """After a 429, at least."""
    symbol_s: float = 600.0
    """Until a refused symbol is asked for again."""


class Connector:
    """Opens the connections of a session."""

    def __init__(
        self, feed: Feed, settings: ConnectionSettings, known_key: KnownKey, waits: Backoff, stop: threading.Event
    ) -> None:
        self._feed = feed
        self._settings = settings
        self._known_key = known_key
        self._proxy = choose_proxy(feed.url(), settings.proxy)
        self._waits = waits
        self._stop = stop
        self._backoff = tenacity.wait_exponential(waits.again_s, settings.backoff_max) + tenacity.wait_random(
            0, waits.again_s
        )

    def connect(self, avoid: Collection[str] = ()) -> Connection:
        """To another address than those to `avoid`, where the venue has more.

        Raises FeedRefused where the key is wrong for good, ConnectionLost where it may work later.
        """
        try:
            connection = connect(
                self._feed.url(),
                timeout_s=self._settings.connect_timeout,
                ca_file=self._settings.ca_file,
                stop=self._stop,
                proxy=self._proxy,
                avoid=avoid,
            )
        except HandshakeRefused as error:
            if error.status == 401 and not self._known_key.accepted:
                raise FeedRefused(
                    "the venue refused the API key (401), and has never accepted it for this root: "
                    "check FINNHUB_API_KEY"
                ) from None
            raise
        if self._feed.terms.login is None:
            self._known_key.remember()
        return connection

    def log_in(self, connection: Connection, take: Callable[[list[bytes]], None]) -> None:
        """Say who we are, where the venue asks that in a message, and wait for its answer; `take` gets all that comes.

        Raises FeedRefused where the key is wrong for good, ConnectionLost where it may work later.
        """
        login = self._feed.terms.login
        if login is None:
            return
        deadline_s = time.monotonic() + login.timeout_s
        if not login.waits:
            connection.send(login.message)
        while not self._stop.is_set():
            payloads = connection.receive()
            take(payloads)
            for verdict, words in filter(None, map(login.judge, payloads)):
                if verdict == "accepted":
                    self._known_key.remember()
                    return
                if verdict == "refused":
                    said = f" ({words})" if words else ""
                    if self._known_key.accepted:
                        raise HandshakeRefused(401, f"the venue refused the login{said}")
                    raise FeedRefused(
                        f"the venue refused the login{said}, and has never accepted this key for this root: "
                        "check FEED_API_KEY and what is sent with it"
                    )
                if login.waits:
                    connection.send(login.message)
            if time.monotonic() >= deadline_s:
                raise Stalled(f"no answer to the login for {login.timeout_s:g} s")

    def until_stop(self) -> Iterator[tenacity.AttemptManager]:
        """One attempt after the other. One that ends in ConnectionLost is waited out, longer and longer; after one
        that ends well the next comes at once. Any other error ends them, and is raised.
        """
        while not self._stop.is_set():
            with contextlib.suppress(ConnectionLost):  # of the attempt that the stop found
                yield from tenacity.Retrying(
                    retry=tenacity.retry_if_exception_type(ConnectionLost),
                    wait=self._pause,
                    sleep=sleep_using_event(self._stop),
                    stop=tenacity.stop_when_event_set(self._stop),
                    reraise=True,
                )

    def close(self) -> None:
        """No more connections: wait until the disk has what is to be known of the key."""
        self._known_key.settle()

    def pause(self) -> None:
        """After we hung up: until the venue has noticed, a second connection would end both."""
        self._stop.wait(self._waits.again_s)

    def _pause(self, state: tenacity.RetryCallState) -> float:
        """How long to wait before the next attempt, by what ended the last one."""
        seconds = self._backoff(state)
        error = state.outcome.exception() if state.outcome else None
        told_no = isinstance(error, HandshakeRefused) and error.status in (401, 403)
        if told_no:
            seconds = self._waits.refused_s
        elif isinstance(error, HandshakeRefused) and error.status == 429:
            seconds = max(seconds, self._waits.throttled_s)
        if not self._stop.is_set():
            level = log.error if told_no else log.warning
            level("connection.retried", reason=str(error), attempt=state.attempt_number, wait_s=round(seconds, 1))
        return seconds
