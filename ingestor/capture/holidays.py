"""The US market's holidays and early closes, from Finnhub's free REST endpoint, kept in the root; else by rule.

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

from ingestor.layout import Layout, write_whole
from ingestor.us_market import Calendar, parse_hours, read_calendar

_TIMEOUT_S = 10.0
_AGAIN_S = 86_400.0
_ANSWER_MAX = 1 << 20

log = structlog.get_logger()


def find_rest_base(feed_url: str) -> str | None:
    """Where REST calls go for this feed; None for a venue that is not Finnhub itself, which must not see the key."""
    parts = urlsplit(feed_url)
    return "https://finnhub.io/api/v1" if (parts.scheme, parts.hostname) == ("wss", "ws.finnhub.io") else None


class Holidays:
    """When US stocks trade: the rules, and above them what the venue tells of single days."""

    def __init__(self, layout: Layout, rest_base: str | None, key: str, ca_file: Path | None = None) -> None:
        """Begins with what an earlier run was told; asks nothing yet."""
        self._layout = layout
        self._rest_base = rest_base
        self._key = key
        self._ca_file = ca_file
        self._ask_at_s = float("-inf")
        self.calendar = read_calendar(layout.holidays)

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
            told = _fetch_hours(f"{rest_base}/stock/market-holiday?exchange=US", self._key, self._ca_file)
            self.calendar = Calendar({date.fromisoformat(day): parse_hours(hours) for day, hours in told.items()})
            write_whole(self._layout.holidays, json.dumps(told), self._layout.staging)
        except (OSError, ValueError) as error:
            reason = error.reason if isinstance(error, URLError) else error
            log.info("holidays.unknown", reason=str(reason), instead="as known before, or by rule")


class _NoRedirect(HTTPRedirectHandler):
    """urllib would carry the key's header to whatever host the answer names."""

    def redirect_request(self, *_: object) -> None:
        return None


def _fetch_hours(url: str, key: str, ca_file: Path | None) -> dict[str, str]:
    """Raises OSError, ValueError."""
    tls = HTTPSHandler(context=ssl.create_default_context(cafile=ca_file))
    opener = build_opener(_NoRedirect, ProxyHandler({}), tls)
    headers = {"X-Finnhub-Token": key, "User-Agent": "finnhub-ingestor"}  # urllib's own name is turned away by some
    answer: IO[bytes]
    with opener.open(Request(url, headers=headers), timeout=_TIMEOUT_S) as answer:  # noqa: S310  https
        return parse_answer(answer.read(_ANSWER_MAX))


def parse_answer(answer: bytes) -> dict[str, str]:
    """Days and their hours in `{"data":[{"atDate":"2026-11-27","eventName":"…","tradingHour":"09:30-13:00"}, …]}`.

    A day without hours is a whole one off. Raises ValueError.
    """
    try:
        events = json.loads(answer)["data"]
        told = {str(date.fromisoformat(event["atDate"])): event.get("tradingHour") or "" for event in events}
        for hours in told.values():
            parse_hours(hours)
        return dict(sorted(told.items()))
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"not a list of holidays: {type(error).__name__}") from None
