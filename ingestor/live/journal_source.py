"""Price source from a recording on this machine: its trades as they come, and whether somebody records."""

import threading
import time
from collections import deque
from collections.abc import Collection, Iterator

import pyarrow as pa
import pyarrow.compute as pc
import structlog

from ingestor.dataset.arguments import Span, day_start_ms
from ingestor.dataset.coverage import CoverageWatch, SymbolState
from ingestor.dataset.rows import Selection, stream_rows
from ingestor.dataset.snapshot import list_days, take_snapshot
from ingestor.dataset.trades import follow
from ingestor.errors import Lagged
from ingestor.layout import Layout, read_holder
from ingestor.live.board import DAY_MS, POINT_S, POINTS, Price, Quote, State, split_by_symbol
from ingestor.live.hub import RecordingState, TradeBlock
from ingestor.schema import ORIGIN

_DAYS_MAX = 7
_IDLE_S = 0.1
_COLUMNS = ("symbol", "timestamp", "price", "volume")

log = structlog.get_logger()


class JournalSource:
    """Follows the journal from now on. The recorder does not notice."""

    def __init__(self, layout: Layout) -> None:
        """Raises NotARecording, FormatTooNew, OSError."""
        self._layout = layout
        self._batches = _follow_from_now(layout)
        self._watch = CoverageWatch(layout)
        self._judged: dict[str, SymbolState] | None = None
        self._states: dict[str, State] = {}

    def quotes(self) -> list[Quote]:
        """As recorded up to now. Raises FormatTooNew, OSError."""
        now = time.time()
        return read_quotes(self._layout, self.state().states.keys(), now)

    def state(self) -> RecordingState:
        """Coverage as the recorder states it now, or stated at its end. Raises FormatTooNew, OSError."""
        states, recording = self._watch.states(), read_holder(self._layout) is not None
        if states is not self._judged:
            self._states = {symbol: State(one.state, one.cause) for symbol, one in states.items()}
            self._judged = states
        return RecordingState(self._states, recording)

    def blocks(self, stop: threading.Event) -> Iterator[TradeBlock | None]:
        """Block by block until `stop`; None where some were missed. Raises FormatTooNew, OSError."""
        while not stop.is_set():
            try:
                yield from self._follow(stop)
                continue
            except Lagged:
                log.warning("live.lagged", hint="this process stood still for longer than the journal keeps segments")
            self._batches = _follow_from_now(self._layout)  # here, where no exception holds on to the old one
            yield None

    def _follow(self, stop: threading.Event) -> Iterator[TradeBlock]:
        for batch in self._batches:
            if batch.num_rows and ORIGIN.name not in batch.schema.names:  # what is filled is no news
                yield TradeBlock(split_by_symbol(batch), pc.max(batch["received_at"]).value / 1e6)
            if stop.is_set():
                return


def _follow_from_now(layout: Layout) -> Iterator[pa.RecordBatch]:
    """Stands at the journal's end already: what comes from now on is not missed. Raises NotARecording, FormatTooNew."""
    batches = follow(layout.root, idle_s=_IDLE_S)
    next(batches)
    return batches


def read_quotes(layout: Layout, symbols: Collection[str], now: float) -> list[Quote]:
    """The quotes as recorded up to now: from the newest dates, up to seven, until each of `symbols` has a price.

    Raises FormatTooNew, OSError.
    """
    recent = list_days(layout)[-_DAYS_MAX:]
    snapshot = take_snapshot(layout, Span(day_start_ms(recent[0]) if recent else None, None))
    days = set(snapshot.files)
    for batch in snapshot.journaled:
        days.update(pc.unique(batch["timestamp"].cast(pa.date32())).to_pylist())
    quotes: dict[str, Quote] = {}
    for start_ms in [day_start_ms(day) for day in sorted(days, reverse=True)][:_DAYS_MAX]:
        prices: dict[str, tuple[Price, Price]] = {}
        points: dict[str, dict[int, Price]] = {}
        selection = Selection(Span(start_ms, start_ms + DAY_MS), _COLUMNS)
        for _, rows in stream_rows(layout, selection):
            _merge_prices(prices, rows)
            _merge_points(points, rows, now)
        for symbol, (first, last) in prices.items():
            if symbol not in quotes:
                points_of = sorted(points.get(symbol, {}).items())
                course: deque[float | None] = deque((price.price for _, price in points_of), maxlen=POINTS)
                quotes[symbol] = Quote(symbol, last, first.price, course=course)
        if quotes.keys() >= set(symbols):
            break
    return list(quotes.values())


def _merge_prices(prices: dict[str, tuple[Price, Price]], rows: pa.Table) -> None:
    """First and last of each symbol by the venue's clock. Each table is in order of (symbol, timestamp); a late trade
    may come in a later table than its neighbours.
    """
    table = rows.set_column(rows.column_names.index("timestamp"), "ms", rows["timestamp"].cast(pa.int64()))
    whole = pc.ScalarAggregateOptions(skip_nulls=False)
    found = table.group_by("symbol", use_threads=False).aggregate(
        [(name, which, whole) for which in ("first", "last") for name in ("price", "volume", "ms")]
    )
    for row in found.to_pylist():
        first, last = (
            Price(*(row[f"{name}_{which}"] for name in ("price", "volume", "ms"))) for which in ("first", "last")
        )
        earlier, later = prices.get(row["symbol"], (first, last))
        prices[row["symbol"]] = (min(earlier, first, key=_at), max(last, later, key=_at))


def _merge_points(points: dict[str, dict[int, Price]], rows: pa.Table, now: float) -> None:
    """The last price of each stretch of ten seconds, as far back as a course goes."""
    since_ms = (int(now) - POINTS * POINT_S) * 1000
    recent = rows.filter(pc.greater_equal(rows["timestamp"], pa.scalar(since_ms, rows.schema.field("timestamp").type)))
    at = recent["timestamp"].cast(pa.int64())
    columns = {"symbol": recent["symbol"], "point": pc.divide(at, POINT_S * 1000), "price": recent["price"], "ms": at}
    found = pa.table(columns).group_by(["symbol", "point"], use_threads=False)
    for row in found.aggregate([("price", "last"), ("ms", "last")]).to_pylist():
        stretches = points.setdefault(row["symbol"], {})
        price = Price(row["price_last"], None, row["ms_last"])
        stretches[row["point"]] = max(price, stretches.get(row["point"], price), key=_at)


def _at(price: Price) -> int:
    return price.timestamp_ms
