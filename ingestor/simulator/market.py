"""What the simulated venue sends. A market: geometric Brownian motion per symbol, printed with a venue's habits, pure
and repeatable. Or a replay of a recording: Parquet, CSV, JSON lines (a truth file) or frames as they came, at its own
pace or another.
"""

import csv
import gzip
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from ingestor.dataset.arguments import EVER
from ingestor.dataset.raw import read_frame_file
from ingestor.errors import ConfigError, DamagedFile, FormatTooNew
from ingestor.schema import PACKED_FRAMES

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
        passed_s = elapsed_s - self._last_s
        self._last_s = elapsed_s
        step = self._drift * passed_s + self._volatility * math.sqrt(passed_s) * self._random.gauss(0, 1)
        # Bounded so that no volatility, however wild, ends in an infinite price.
        self._price = min(max(self._price * math.exp(min(step, 50.0)), self._tick), 1e12)
        if self._kind is _STOCK and not self._tick_given and self._random.random() < SUB_PENNY:
            price = round(self._price, 4)
        else:  # the nearest multiple of the tick, at least one, without the binary dust that multiplying leaves
            decimals = max(0, math.ceil(-math.log10(self._tick)) + 2)
            price = round(max(1, round(self._price / self._tick)) * self._tick, decimals)
        return Trade(self._symbol, price, volume, time_ms, conditions)

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


SAME_MESSAGE_US = 1000
"""Trades that arrived so close together are sent in one message."""

_ARRIVAL_FIELDS: "tuple[pa.Field[Any], ...]" = (
    pa.field("at_us", pa.int64(), nullable=False),
    pa.field("symbol", pa.string(), nullable=False),
    pa.field("price", pa.float64(), nullable=False),
    pa.field("volume", pa.float64(), nullable=False),
    pa.field("time_ms", pa.int64(), nullable=False),
    pa.field("conditions", pa.string()),
)
_ARRIVALS = pa.schema(_ARRIVAL_FIELDS)


class Arrival(NamedTuple):
    """A recorded trade and when it came, by the recorder's clock where that was kept, else by the venue's."""

    at_us: int
    trade: Trade


class Replay:
    """A source of recorded trades, in the order of arrival, with their own times. It sends them once."""

    def __init__(self, path: Path, speed: float) -> None:
        """`speed` 2 is twice the recorded pace, `math.inf` no pause at all.

        Raises ConfigError for a path that holds no recording; for a CSV or JSON line when its turn comes.
        """
        self._arrivals = recorded_trades(path)
        self._speed = speed
        self._next = next(self._arrivals, None)

    def batch(self, symbols: Sequence[str], now_ms: int) -> Batch | None:  # noqa: ARG002  as every Source
        """The next trades that arrived together; None after the last. Times and symbols are those of the recording."""
        if self._next is None:
            return None
        first_us = latest_us = self._next.at_us
        trades: list[Trade] = []
        while self._next and self._next.at_us <= first_us + SAME_MESSAGE_US and len(trades) < BATCH_MAX:
            trades.append(self._next.trade)
            latest_us = max(latest_us, self._next.at_us)
            self._next = next(self._arrivals, None)
        pause_us = 0 if self._next is None else max(0, self._next.at_us - latest_us)
        return Batch(trades, pause_us / 1e6 / self._speed)


class FrameReplay:
    """A source of frames as they came (`raw/`), in the order of receipt, each a message. It sends them once."""

    def __init__(self, path: Path, speed: float) -> None:
        """As of `Replay`. Raises ConfigError for a file that can't be read when its turn comes."""
        self._frames = _recorded_frames(path)
        self._speed = speed
        self._next = next(self._frames, None)

    def batch(self, symbols: Sequence[str], now_ms: int) -> Batch | None:  # noqa: ARG002  as every Source
        """The next frame; None after the last."""
        if self._next is None:
            return None
        (at_us, payload), self._next = self._next, next(self._frames, None)
        pause_us = 0 if self._next is None else max(0, self._next[0] - at_us)
        return Batch([], pause_us / 1e6 / self._speed, payload)


def holds_frames(path: Path) -> bool:
    """Whether this is a file or a directory of frames as they came."""
    files = _list_parquet(path)
    try:
        return bool(files) and pq.read_schema(files[0]).names == PACKED_FRAMES.names
    except (OSError, pa.ArrowException):
        return False


def _list_parquet(path: Path) -> list[Path]:
    """Segment by segment, and date by date."""
    if path.is_dir():
        return sorted(path.rglob("*.parquet"), key=lambda file: (file.name, file.parent))
    return [path] if path.suffix == ".parquet" else []


def _recorded_frames(path: Path) -> Iterator[tuple[int, bytes]]:
    for file in _list_parquet(path):
        try:
            for table in read_frame_file(file, EVER):
                times_us = table["received_at"].cast(pa.int64()).to_pylist()
                yield from zip(times_us, table["payload"].to_pylist(), strict=True)
        except (DamagedFile, FormatTooNew, OSError) as error:
            raise ConfigError(f"no frames to replay: {error}") from error


def recorded_trades(path: Path) -> Iterator[Arrival]:
    """The trades of a file or of a directory of Parquet (else CSV) files, in the order of arrival.

    Parquet is held in memory, about 60 bytes per trade. A null volume is sent as 0.
    Raises ConfigError where nothing there can be read.
    """
    if path.is_dir():
        if any(path.rglob("*.parquet")):
            return _parquet_trades(path)
        files = sorted([*path.rglob("*.csv"), *path.rglob("*.csv.gz")])
        if not files:
            raise ConfigError(f"{path}: no Parquet or CSV file in this directory to replay")
        return chain.from_iterable(map(_csv_trades, files))
    if not path.is_file():
        raise ConfigError(f"{path}: no such file or directory to replay")
    if path.suffix == ".parquet":
        return _parquet_trades(path)
    if path.name.endswith((".csv", ".csv.gz")):
        return _csv_trades(path)
    if path.suffix in {".jsonl", ".json"}:
        return _truth_trades(path)
    raise ConfigError(f"{path}: can replay .parquet, .csv, .csv.gz and .jsonl (as --truth writes it)")


def _parquet_trades(path: Path) -> Iterator[Arrival]:
    try:
        table = ds.dataset(path, format="parquet").to_table()
        if "sequence" in table.column_names:
            table = table.sort_by("sequence")
        names = table.column_names
        time, received = table["timestamp"], table["received_at" if "received_at" in names else "timestamp"]
        columns: dict[str, Any] = {
            "at_us": received.cast(pa.timestamp("us", "UTC"), safe=False),
            "symbol": table["symbol"],
            "price": table["price"],
            "volume": pc.coalesce(table["volume"], pa.scalar(0.0)),
            "time_ms": time.cast(pa.timestamp("us", "UTC"), safe=False).cast(pa.timestamp("ms", "UTC"), safe=False),
            "conditions": table["conditions"] if "conditions" in names else pa.nulls(table.num_rows),
        }
        arrivals = pa.table(list(columns.values()), _ARRIVALS.names).cast(_ARRIVALS)
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise ConfigError(f"{path}: no Parquet recording of trades: {error}") from error
    # A generator of its own, so that a path without a recording is refused here and not at the first trade.
    return (
        Arrival(at_us, Trade(symbol, price, volume, time_ms, _conditions_json(codes, symbol)))
        for batch in arrivals.to_batches(max_chunksize=8192)
        for at_us, symbol, price, volume, time_ms, codes in zip(
            *(column.to_pylist() for column in batch.columns), strict=True
        )
    )


def _csv_trades(path: Path) -> Iterator[Arrival]:
    read = gzip.open if path.suffix == ".gz" else open
    with read(path, "rt", encoding="utf-8", newline="") as lines:
        rows = csv.DictReader(lines)
        for row in rows:
            try:
                time_us = _time_us(row["timestamp"])
                received = row.get("received_at")
                symbol, price, volume = row["symbol"], _finite(row["price"]), _finite(row["volume"] or "0")
                conditions = _conditions_json(row.get("conditions") or None, symbol)
                trade = Trade(symbol, price, volume, time_us // 1000, conditions)
                arrival = Arrival(_time_us(received) if received else time_us, trade)
            except (KeyError, TypeError, ValueError) as error:
                raise ConfigError(f"{path}:{rows.line_num}: not a trade to replay: {error!r}") from error
            yield arrival


def _time_us(text: str) -> int:
    """µs since 1970 of an ISO time; one without a zone is UTC."""
    time = datetime.fromisoformat(text)
    if time.tzinfo is None:
        time = time.replace(tzinfo=UTC)
    since = time - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86400 + since.seconds) * 1_000_000 + since.microseconds


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value} is not finite")
    return number


def _truth_trades(path: Path) -> Iterator[Arrival]:
    with path.open(encoding="utf-8") as lines:
        for index, line in enumerate(lines, 1):
            try:
                fields = json.loads(line)
                time_ms = int(fields["t"])
                conditions = json.dumps(fields["c"], separators=(",", ":")) if "c" in fields else None
                trade = Trade(str(fields["s"]), _finite(fields["p"]), _finite(fields["v"]), time_ms, conditions)
                arrival = Arrival(int(fields.get("sent_us", time_ms * 1000)), trade)
            except (KeyError, TypeError, ValueError) as error:
                raise ConfigError(f"{path}:{index}: not a trade to replay: {error!r}") from error
            yield arrival


def _conditions_json(codes: str | None, symbol: str) -> str | None:
    """The field `c` as a venue would have sent it for the recorded codes."""
    if codes is None:
        return "null" if is_crypto(symbol) else None
    return json.dumps(codes.split(",") if codes else [], separators=(",", ":"))
