"""The calendar of each market: hours by kind of symbol, holidays and early closes as the venue tells them.

Asked in a short-lived thread of its own: nothing of this can hold up, or end, a recording.
"""

import json
import ssl
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import IO, Literal, get_args
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, HTTPSHandler, ProxyHandler, Request, build_opener
from zoneinfo import ZoneInfo

import structlog

from ingestor.config.addresses import Proxy
from ingestor.layout import Layout, write_whole
from ingestor.us_market import EARLY, Calendar, is_us_symbol, parse_hours, read_calendar

log = structlog.get_logger()

Phase = Literal["closed", "overnight", "extended", "regular"]
"""Of a market's day. Trades come at another pace in each: what is usual in one says nothing of the next."""

Market = Literal["us", "forex", "always"]

NEW_YORK = ZoneInfo("America/New_York")
_FOREX = frozenset({"OANDA", "FXCM", "FX", "FOREX.COM", "IC MARKETS", "ICM", "FXPRO", "PEPPERSTONE", "SAXO", "FXPIG"})
_RULES = Calendar()

_TIMEOUT_S = 10.0
_AGAIN_S = 86_400.0
_ANSWER_MAX = 1 << 20


def find_phase(symbol: str, now: datetime, calendar: Calendar = _RULES, night: int | None = None) -> Phase:
    """The phase of this symbol's market at `now` (aware).

    A US stock (`AAPL`, `BRK.B`): New York, by the calendar; `night` is when its night session begins, in minutes since
    midnight of the evening before a trading day, None where there is none. Currencies (a broker's prefix, such as
    `OANDA:`): Sunday 17:00 to Friday 17:00 New York. A prefix that names a crypto venue, or one that is unknown here,
    and a suffix of another exchange (`7203.T`): always.
    """
    return _find_market_phase(find_market(symbol), now, calendar, night)


def find_market(symbol: str) -> Market:
    """Whose hours this symbol keeps: see find_phase."""
    if is_us_symbol(symbol):
        return "us"
    return "forex" if symbol.partition(":")[0] in _FOREX else "always"


def _find_market_phase(market: Market, now: datetime, calendar: Calendar, night: int | None) -> Phase:
    if market == "always":
        return "regular"
    local = now.astimezone(NEW_YORK)
    if market == "us":
        hours, minute = calendar.hours(local.date()), local.hour * 60 + local.minute
        if hours is not None and hours.early <= minute < hours.late:
            return "regular" if hours.opens <= minute < hours.closes else "extended"
        if night is None or EARLY <= minute < night:
            return "closed"
        coming = local.date() + timedelta(days=minute >= night)
        return "closed" if calendar.hours(coming) is None else "overnight"
    friday, saturday, sunday = 4, 5, 6
    day, evening = local.weekday(), local.time() >= time(17, 0)
    weekend = day == saturday or (day == friday and evening) or (day == sunday and not evening)
    return "closed" if weekend else "regular"


def find_rest_base(feed_url: str) -> str | None:
    """Where REST calls go for this feed; None for a venue that is not Finnhub itself, which must not see the key."""
    parts = urlsplit(feed_url)
    return "https://finnhub.io/api/v1" if (parts.scheme, parts.hostname) == ("wss", "ws.finnhub.io") else None


class Holidays:
    """When US stocks trade: the rules, and above them what the venue tells of single days."""

    def __init__(
        self, layout: Layout, rest_base: str | None, key: str, ca_file: Path | None = None, proxy: Proxy | None = None
    ) -> None:
        """Begins with what an earlier run was told; asks nothing yet."""
        self._layout = layout
        self._rest_base = rest_base
        self._key = key
        self._ca_file = ca_file
        self._proxies: dict[str, str] = {} if proxy is None else {"https": proxy.url}
        self._ask_at_s = float("-inf")
        self.calendar = read_calendar(layout.holidays)

    def refresh(self, now_s: float) -> threading.Thread | None:
        """Ask the venue if it is time to, once per day whatever it says; the thread that does is returned at once."""
        if self._rest_base is None or now_s < self._ask_at_s:
            return None
        self._ask_at_s = now_s + _AGAIN_S
        thread = threading.Thread(target=self._ask, args=(self._rest_base,), name="holidays", daemon=True)
        thread.start()
        return thread

    def _ask(self, rest_base: str) -> None:
        try:
            # By no redirect does the key get to another host; a proxy that was asked for sees TLS alone.
            tls = HTTPSHandler(context=ssl.create_default_context(cafile=self._ca_file))
            opener = build_opener(_NoRedirect, ProxyHandler(self._proxies), tls)
            headers = {
                "X-Finnhub-Token": self._key,
                "User-Agent": "finnhub-ingestor",
            }  # some turn urllib's own name away
            request = Request(f"{rest_base}/stock/market-holiday?exchange=US", headers=headers)  # noqa: S310  https
            answer: IO[bytes]
            with opener.open(request, timeout=_TIMEOUT_S) as answer:
                told = parse_answer(answer.read(_ANSWER_MAX))
            self.calendar = Calendar({date.fromisoformat(day): parse_hours(hours) for day, hours in told.items()})
            write_whole(self._layout.holidays, json.dumps(told), self._layout.staging)
        except (OSError, ValueError) as error:
            reason = error.reason if isinstance(error, URLError) else error
            log.info("holidays.unknown", reason=str(reason), instead="as known before, or by rule")


class _NoRedirect(HTTPRedirectHandler):
    """urllib would carry the key's header to whatever host the answer names."""

    def redirect_request(self, *_: object) -> None:
        return None


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


@dataclass(frozen=True, slots=True)
class _Phases:
    """What Markets last told of these symbols."""

    symbols: tuple[str, ...]
    markets: Mapping[str, Market]
    by_market: Mapping[Market, Phase]
    by_symbol: Mapping[str, Phase]


class Markets:
    """The markets of one venue."""

    def __init__(self, holidays: Holidays, *, never_close: bool, night: int | None = None) -> None:
        """`never_close`: they all trade around the clock, whatever their symbols look like. `night`: see find_phase."""
        self.holidays = holidays
        self._never_close = never_close
        self._night = night
        self._last = _Phases((), {}, {}, {})

    def phase(self, symbol: str, now: datetime) -> Phase:
        """Of this symbol's market, by the holidays that are known so far."""
        return self._market_phase(self._market(symbol), now)

    def phases(self, symbols: tuple[str, ...], now: datetime) -> Mapping[str, Phase]:
        """Of each symbol's market. Until a phase or the symbols change, it is the same object as the last time: it is
        asked for twice per second, of up to 11,000 symbols.
        """
        last = self._last
        markets = last.markets if last.symbols is symbols else {symbol: self._market(symbol) for symbol in symbols}
        by_market = {market: self._market_phase(market, now) for market in get_args(Market)}
        if markets is not last.markets or by_market != last.by_market:
            by_symbol = {symbol: by_market[market] for symbol, market in markets.items()}
            self._last = last = _Phases(symbols, markets, by_market, by_symbol)
        return last.by_symbol

    def any_open(self, symbols: Iterable[str], now: datetime) -> bool:
        """Whether trades of one of these are to be expected."""
        return any(self._market_phase(market, now) != "closed" for market in {self._market(one) for one in symbols})

    def _market(self, symbol: str) -> Market:
        return "always" if self._never_close else find_market(symbol)

    def _market_phase(self, market: Market, now: datetime) -> Phase:
        return _find_market_phase(market, now, self.holidays.calendar, self._night)

    def refresh(self, now_s: float) -> None:
        """Have the holidays fetched again where they are due."""
        self.holidays.refresh(now_s)
