"""The US market's holidays, from Finnhub's free REST endpoint, kept in the root; without them weekdays are the rule.

Asked in a short-lived thread of its own: nothing of this can hold up, or end, a recording.
"""

import json
import ssl
import threading
from datetime import date
from pathlib import Path
from typing import IO
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, HTTPSHandler, ProxyHandler, Request, build_opener

import structlog
from pydantic import TypeAdapter

from ingestor.errors import DamagedFile
from ingestor.layout import Layout, read_small, write_whole

_TIMEOUT_S = 10.0
_AGAIN_S = 86_400.0
_ANSWER_MAX = 1 << 20

log = structlog.get_logger()


def find_rest_base(feed_url: str) -> str | None:
    """Where REST calls go for this feed; None for a venue that is not Finnhub itself, which must not see the key."""
    parts = urlsplit(feed_url)
    return "https://finnhub.io/api/v1" if (parts.scheme, parts.hostname) == ("wss", "ws.finnhub.io") else None


class Holidays:
    """The days on which US stocks don't trade, as far as they are known."""

    def __init__(self, layout: Layout, rest_base: str | None, key: str, ca_file: Path | None = None) -> None:
        """Begins with what an earlier run was told; asks nothing yet."""
        self._layout = layout
        self._rest_base = rest_base
        self._key = key
        self._ca_file = ca_file
        self._ask_at_s = float("-inf")
        self.days = _read_days(layout)

    def refresh(self, now_s: float) -> threading.Thread | None:
        """Ask the venue if it is time to, once a day whatever it says; the thread that does is returned at once."""
        if self._rest_base is None or now_s < self._ask_at_s:
            return None
        self._ask_at_s = now_s + _AGAIN_S
        thread = threading.Thread(target=self._ask, args=(self._rest_base,), name="holidays", daemon=True)
        thread.start()
        return thread

    def _ask(self, rest_base: str) -> None:
        try:
            self.days = _fetch_days(f"{rest_base}/stock/market-holiday?exchange=US", self._key, self._ca_file)
            stored = json.dumps(sorted(day.isoformat() for day in self.days))
            write_whole(self._layout.holidays, stored, self._layout.staging)
        except (OSError, ValueError) as error:
            reason = error.reason if isinstance(error, URLError) else error
            log.info("holidays.unknown", reason=str(reason), instead="weekdays" if not self.days else "as known before")


class _NoRedirect(HTTPRedirectHandler):
    """urllib would carry the key's header to whatever host the answer names."""

    def redirect_request(self, *_: object) -> None:
        return None


def _fetch_days(url: str, key: str, ca_file: Path | None) -> frozenset[date]:
    """Raises OSError, ValueError."""
    tls = HTTPSHandler(context=ssl.create_default_context(cafile=ca_file))
    opener = build_opener(_NoRedirect, ProxyHandler({}), tls)
    headers = {"X-Finnhub-Token": key, "User-Agent": "finnhub-ingestor"}  # urllib's own name is turned away by some
    answer: IO[bytes]
    with opener.open(Request(url, headers=headers), timeout=_TIMEOUT_S) as answer:  # noqa: S310  https
        return parse_days(answer.read(_ANSWER_MAX))


def parse_days(answer: bytes) -> frozenset[date]:
    """The whole days off in `{"data":[{"atDate":"2026-12-25","eventName":"Christmas","tradingHour":""}, …]}`.

    A day with trading hours of its own is a short one: trades are to be expected. Raises ValueError.
    """
    try:
        events = json.loads(answer)["data"]
        return frozenset(date.fromisoformat(event["atDate"]) for event in events if not event.get("tradingHour"))
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"not a list of holidays: {type(error).__name__}") from None


def _read_days(layout: Layout) -> frozenset[date]:
    try:
        return frozenset(read_small(layout.holidays, TypeAdapter(list[date]).validate_json))
    except FileNotFoundError:
        return frozenset()
    except DamagedFile as error:  # they are asked for again
        log.warning("holidays.unreadable", error=str(error))
        return frozenset()
