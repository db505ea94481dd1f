"""Checks venue and machine before a recording, without opening a stream: the key's one connection may be in use."""

import contextlib
import http.client
import json
import os
import ssl
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import MappingProxyType
from urllib.parse import quote, urlsplit

from ingestor import system
from ingestor.config.addresses import choose_proxy
from ingestor.config.sections import ConnectionSettings
from ingestor.errors import IngestorError

_TIMEOUT_S = 10.0
_ANSWER_MAX = 64 << 20
_PROBES = 20
_PROBE_BYTES = 64 << 10
_BULK_BYTES = 16 << 20


class VenueUnreachable(IngestorError):
    """No answer from the REST API."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer of the REST API."""

    status: int
    body: bytes
    clock_offset_s: float | None
    """Our clock minus the venue's, to about a second; None if the venue gave no time."""
    retry_after_s: float | None = None
    """How long it asks to be left alone, where it says so in seconds."""


class Rest:
    """A venue's REST API. The key travels in a header: it is in no URL, and so in no message."""

    def __init__(
        self,
        base: str,
        key: str,
        connection: ConnectionSettings | None = None,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """`connection`: which authority is trusted, and by which proxy it goes; `key` is Finnhub's, and `headers` are
        those by which another venue knows its client. Raises ConfigError.
        """
        self._headers = headers
        self._parts = urlsplit(base)
        self._key = key
        self._ca_file = connection.ca_file if connection else None
        self._proxy = choose_proxy(base, connection.proxy) if connection else None

    def get(self, path: str) -> Answer:
        """One call. Raises VenueUnreachable."""
        host, port = self._parts.hostname or "", self._parts.port
        if self._parts.scheme == "http":
            connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
        else:
            tls = ssl.create_default_context(cafile=self._ca_file)
            proxy = self._proxy
            at = (host, port) if proxy is None else (proxy.host, proxy.port)
            connection = http.client.HTTPSConnection(*at, timeout=_TIMEOUT_S, context=tls)
            if proxy is not None:
                connection.set_tunnel(host, port, proxy.headers)
        asked_at = time.time()
        try:
            headers = {"User-Agent": "finnhub-ingestor", **self._headers}
            if self._key:
                headers["X-Finnhub-Token"] = self._key
            connection.request("GET", f"{self._parts.path}{path}", headers=headers)
            answer = connection.getresponse()
            body = answer.read(_ANSWER_MAX)
        except (OSError, http.client.HTTPException) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise VenueUnreachable(f"{self._parts.hostname}: {reason}") from None
        finally:
            connection.close()
        answered_at = time.time()
        try:
            second = parsedate_to_datetime(answer.getheader("Date") or "").timestamp()
        except ValueError:
            offset_s = None
        else:  # 0 where the venue's second lies within the call
            offset_s = asked_at - (second + 1) if asked_at > second + 1 else min(answered_at - second, 0.0)
        after = answer.getheader("Retry-After") or ""
        return Answer(answer.status, body, offset_s, float(after) if after.isdecimal() else None)

    def list_symbols(self, exchange: str) -> frozenset[str] | None:
        """The symbols of this exchange (`US`, `BINANCE`, `OANDA`); None where the venue doesn't say.

        Raises VenueUnreachable.
        """
        kinds = ("stock",) if exchange == "US" else ("crypto", "forex")
        for kind in kinds:
            answer = self.get(f"/{kind}/symbol?exchange={quote(exchange, safe='')}")
            if answer.status != 200:
                continue
            with contextlib.suppress(ValueError, TypeError, KeyError):  # an answer of another form says nothing
                if found := frozenset(str(entry["symbol"]) for entry in json.loads(answer.body)):
                    return found
        return None


def find_unknown(symbols: Iterable[str], rest: Rest) -> Iterator[tuple[str, list[str] | None]]:
    """(exchange, those of its symbols that the venue doesn't know) for each exchange; None where it doesn't say.

    Raises VenueUnreachable.
    """
    by_exchange: dict[str, list[str]] = {}
    for symbol in symbols:
        prefix, colon, _ = symbol.partition(":")
        by_exchange.setdefault(prefix if colon else "US", []).append(symbol)
    for exchange, wanted in by_exchange.items():
        known = rest.list_symbols(exchange)
        yield exchange, None if known is None else [symbol for symbol in wanted if symbol not in known]


@dataclass(frozen=True, slots=True)
class DiskSpeed:
    """Speed of a disk: of small synced writes, as the journal makes them, and of a large one."""

    sync_s: Sequence[float]
    bytes_per_s: float

    @property
    def usual_s(self) -> float:
        """Median of a sync, in seconds."""
        return statistics.median(self.sync_s)

    @property
    def worst_s(self) -> float:
        """Slowest sync, in seconds."""
        return max(self.sync_s)


def measure_disk(directory: Path) -> DiskSpeed:
    """Write and sync 17 MB in a file without a name. Raises OSError."""
    with tempfile.TemporaryFile(dir=directory) as file:
        sync_s = [_time_write(file.fileno(), _PROBE_BYTES) for _ in range(_PROBES)]
        return DiskSpeed(sync_s, _BULK_BYTES / _time_write(file.fileno(), _BULK_BYTES))


def _time_write(fd: int, size: int) -> float:
    began_s = time.perf_counter()
    os.write(fd, os.urandom(size))
    system.sync_data(fd)
    return time.perf_counter() - began_s
