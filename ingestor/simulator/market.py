"""Market: geometric Brownian motion per symbol, printed with a venue's habits. Pure and repeatable."""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple, Protocol

TRADING_YEAR_S = 252 * 6.5 * 3600
"""Drift and volatility are per year of regular trading hours, as for US stocks."""
BATCH_MAX = 10
"""Trades in one message: 1 to 10 have been seen at Finnhub."""
LATENCY_MS = 90
"""From a trade to its message; Finnhub's is about 0.1 s."""
STEP_BACK_MS = (24, 156)
"""How far a trade that is out of order lies before its predecessor: as seen at Finnhub."""
OUT_OF_ORDER = 0.1
SWEEP = 0.1
"""Chance that an order is filled in several prints which are equal in every field."""
PRICE_UPDATE = 0.01
"""Chance that a stock's print is a price-only update (v = 0)."""
SUB_PENNY = 0.1

START_PRICES: Mapping[str, float] = MappingProxyType(
    {
        "AAPL": 230.0,
        "AMZN": 220.0,
        "BRK.B": 480.0,
        "GOOGL": 180.0,
        "META": 600.0,
        "MSFT": 430.0,
        "NVDA": 140.0,
        "SPY": 600.0,
        "TSLA": 340.0,
        "BINANCE:BTCUSDT": 97_000.0,
        "BINANCE:ETHUSDT": 3_300.0,
        "BINANCE:SOLUSDT": 240.0,
        "OANDA:EUR_USD": 1.055,
        "OANDA:GBP_USD": 1.265,
        "OANDA:USD_JPY": 154.5,
    }
)
FOREX_PREFIXES = ("OANDA:", "FXCM:", "FOREX.COM:", "FX:", "IC MARKETS:", "PEPPERSTONE:")


class Trade(NamedTuple):
    symbol: str
    price: float
    volume: float
    time_ms: int
    conditions: str | None
    """JSON of the field `c` as it is sent: `["1","12"]`, `[]` or `null`; None where the field is absent."""
    number: int = 0
    """Of the trades of its symbol, from 1; 0 until the venue numbers them."""


class Batch(NamedTuple):
    """Trades of one message, and how long it is from this message to the next."""

    trades: list[Trade]
    lasts_s: float
    frame: bytes | None = None
    """The message itself, where it is one that was recorded: then nothing is said of its trades."""


class Source(Protocol):
    """Source of a venue's trades."""

    def batch(self, symbols: Sequence[str], now_ms: int) -> Batch | None:
        """The next message's trades, or None when there are no more. A recording ignores both arguments."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class MarketSettings:
    seed: int = 0
    rate: float | None = None
    """Trades per second over all symbols, `math.inf` for no pause at all; None for a batch an interval."""
    interval_s: float = 0.05
    drift: float = 0.05
    """Expected relative change a year."""
    volatility: float = 0.3
    """Standard deviation of the relative change, a year."""
    tick_size: float | None = None
    """Smallest step of a price; None for what is usual of the symbol's kind."""
    start_price: float | None = None
    """For symbols not in `start_prices`; None for about what is usual."""
    start_prices: Mapping[str, float] = field(default_factory=lambda: START_PRICES)


class _Kind(NamedTuple):
    """Habits of the trades of one kind of symbol."""

    tick_size: float
    conditions: tuple[str | None, ...]
    """Forms of `c` for a round lot, each as likely as the others."""
    odd_lot_conditions: tuple[str | None, ...]


_REGULAR, _SWEEP = '["1"]', '["1","8"]'
_STOCK = _Kind(
    0.01,
    (_REGULAR, _REGULAR, _REGULAR, _SWEEP, "[]", None),
    ('["1","12"]', '["1","12"]', '["1","8","12"]', '["1","24","12"]', "[]", None),
)
_CRYPTO = _Kind(0.01, ("null",), ("null",))
_FOREX = _Kind(0.00001, (None,), (None,))


def is_forex(symbol: str) -> bool:
    """By its prefix: `OANDA:EUR_USD`."""
    return symbol.startswith(FOREX_PREFIXES)


def is_crypto(symbol: str) -> bool:
    """A venue's prefix that is not a forex broker's, like `BINANCE:`."""
    return ":" in symbol and not is_forex(symbol)


class _Instrument:
    """One symbol's price path and prints; with the same seed always the same, whatever else is traded."""

    __slots__ = (
        "_drift",
        "_kind",
        "_last_s",
        "_price",
        "_random",
        "_symbol",
        "_tick",
        "_tick_given",
        "_volatility",
    )

    def __init__(self, symbol: str, settings: MarketSettings) -> None:
        self._random = random.Random(f"{settings.seed}/{symbol}")  # noqa: S311  repeatable, no secret
        self._symbol = symbol
        self._kind = _FOREX if is_forex(symbol) else _CRYPTO if is_crypto(symbol) else _STOCK
        self._tick = settings.tick_size or self._kind.tick_size
        self._tick_given = settings.tick_size is not None
        usual = settings.start_price or (1.1 if self._kind is _FOREX else round(self._random.uniform(20, 400), 2))
        self._price = settings.start_prices.get(symbol, usual)
        self._drift = (settings.drift - settings.volatility**2 / 2) / TRADING_YEAR_S
        self._volatility = settings.volatility / math.sqrt(TRADING_YEAR_S)
        self._last_s = 0.0

    def trade(self, now_ms: int, elapsed_s: float) -> Trade:
        """The next trade; `elapsed_s` is the market's own time since it opened, which moves the price."""
        volume = self._volume()
        forms = self._kind.odd_lot_conditions if 0 < volume < 100 else self._kind.conditions
        time_ms = now_ms - LATENCY_MS
        if self._random.random() < OUT_OF_ORDER:
            time_ms -= self._random.randint(*STEP_BACK_MS)
        conditions = forms[int(self._random.random() * len(forms))]
        return Trade(self._symbol, self._next_price(elapsed_s), volume, time_ms, conditions)

    def _next_price(self, elapsed_s: float) -> float:
        passed_s = elapsed_s - self._last_s
        self._last_s = elapsed_s
        step = self._drift * passed_s + self._volatility * math.sqrt(passed_s) * self._random.gauss(0, 1)
        # Bounded so that no volatility, however wild, ends in an infinite price.
        self._price = min(max(self._price * math.exp(min(step, 50.0)), self._tick), 1e12)
        if self._kind is _STOCK and not self._tick_given and self._random.random() < SUB_PENNY:
            return round(self._price, 4)
        # The nearest multiple of the tick, at least one, without the binary dust that multiplying leaves.
        decimals = max(0, math.ceil(-math.log10(self._tick)) + 2)
        return round(max(1, round(self._price / self._tick)) * self._tick, decimals)

    def _volume(self) -> float:
        if self._kind is _FOREX:
            return 0.0
        if self._kind is _CRYPTO:
            return round(self._random.expovariate(20), 5) or 1e-05
        draw = self._random.random()
        if draw < PRICE_UPDATE:
            return 0.0
        if draw < 0.6:
            return float(1 + int(self._random.random() * 99))
        return 100.0 * (1 + int(self._random.expovariate(1)))


class Market:
    """Trades of any symbols, in batches.

    With the same seed, a symbol's prices, volumes, conditions and steps back repeat; as long as the same
    symbols are asked for, so does their order. Times follow the caller's clock.
    """

    def __init__(self, settings: MarketSettings) -> None:
        self._settings = settings
        self._random = random.Random(settings.seed)  # noqa: S311  repeatable, no secret
        self._instruments: dict[str, _Instrument] = {}
        self._elapsed_s = 0.0

    def batch(self, symbols: Sequence[str], now_ms: int) -> Batch:
        """1 to 10 trades of `symbols` (not empty), mixed. Fills of one sweep are equal in every field."""
        size = 1 + int(self._random.random() * BATCH_MAX)
        trades: list[Trade] = []
        while len(trades) < size:
            symbol = symbols[int(self._random.random() * len(symbols))]
            fills = self._random.randint(2, 4) if self._random.random() < SWEEP else 1
            trades += [self.trade(symbol, now_ms)] * fills
        rate, interval_s = self._settings.rate, self._settings.interval_s
        self._elapsed_s += size / rate if rate and math.isfinite(rate) else interval_s
        return Batch(trades[:size], size / rate if rate else interval_s)

    def interval(self, symbols: Sequence[str], now_ms: int) -> Iterator[Trade]:
        """All trades of one interval that ends in bars: ten of each symbol, spread over its time."""
        for _ in range(10):
            self._elapsed_s += self._settings.interval_s / 10
            for symbol in symbols:
                yield self.trade(symbol, now_ms)

    def trade(self, symbol: str, now_ms: int) -> Trade:
        """One trade of this symbol, LATENCY_MS old at `now_ms`."""
        instrument = self._instruments.get(symbol)
        if instrument is None:
            instrument = self._instruments[symbol] = _Instrument(symbol, self._settings)
        return instrument.trade(now_ms, self._elapsed_s)


class Intervals:
    """A market for bars: each batch holds all trades of one interval, so that every symbol has its bar."""

    def __init__(self, settings: MarketSettings) -> None:
        self._market = Market(settings)
        self._interval_s = settings.interval_s

    def batch(self, symbols: Sequence[str], now_ms: int) -> Batch:
        """The trades of the next interval, whose bars they make."""
        return Batch(list(self._market.interval(symbols, now_ms)), self._interval_s)


@dataclass(frozen=True, slots=True)
class IntervalBar:
    symbol: str
    open: float
    high: float
    low: float
    close: float
    volume: float


def bars(trades: Sequence[Trade]) -> list[IntervalBar]:
    """One bar for each symbol in `trades`, in the order of its first trade there; every print counts."""
    by_symbol: dict[str, list[Trade]] = {}
    for trade in trades:
        by_symbol.setdefault(trade.symbol, []).append(trade)
    made = []
    for symbol, prints in by_symbol.items():
        prices = [trade.price for trade in prints]
        volume = round(sum(trade.volume for trade in prints), 8)
        made.append(IntervalBar(symbol, prices[0], max(prices), min(prices), prices[-1], volume))
    return made
