"""The state of the stream: symbols proven, refusals, delays, and messages that fit nothing."""

import math
import threading
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import structlog

from ingestor.capture.buffer import FrameBlock
from ingestor.capture.gaps import Gaps
from ingestor.capture.rejects import Refused, make_sample
from ingestor.capture.validate import FEW
from ingestor.feeds import Frames, Notice
from ingestor.ledger import Ledger

log = structlog.get_logger()

BOUNDS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_BOUNDS_US = tuple(round(bound * 1e6) for bound in BOUNDS_S)
_ZERO = pa.scalar(0)
_US_PER_MS = pa.scalar(1000)

_INVENTED_MAX = 10_000
_REFUSALS_MAX = 1000
_EARLY_US = 10_000_000
_REPLAYED_US = 60_000_000
_SAMPLE_S = 60.0
_UNKNOWN_MAX = 100
"""Of what a venue invents, so many kinds are told apart."""


class Delays:
    """Of `received_at` less `timestamp`. Written by the recorder's thread, read by any."""

    def __init__(self) -> None:
        self.within = [0] * len(BOUNDS_S)
        """How many trades took at most BOUNDS_S[i]."""
        self.count = 0
        self.sum_s = 0.0

    def add(self, trades: pa.RecordBatch) -> int | None:
        """Count these trades, and tell the least delay (µs), negative where a trade is ahead of our clock; None without
        trades. What is ahead counts as a delay of zero.
        """
        if not trades.num_rows:
            return None
        sent_ms: Any = trades.column("timestamp").view(pa.int64())
        received_us: Any = trades.column("received_at").view(pa.int64())
        if trades.num_rows <= FEW:
            few = sorted(us - 1000 * ms for us, ms in zip(received_us.to_pylist(), sent_ms.to_pylist(), strict=True))
            least_us, most_us, sum_us = few[0], few[-1], sum(delay for delay in few if delay > 0)
            count_within: Callable[[int], int] = partial(bisect_right, few)
        else:
            delays_us: Any = pc.subtract(received_us, pc.multiply(sent_ms, _US_PER_MS))
            least_us, most_us = pc.min_max(delays_us).as_py().values()
            sum_us = pc.sum(pc.max_element_wise(delays_us, _ZERO) if least_us < 0 else delays_us).as_py()
            count_within = partial(_count_up_to, delays_us)
        for at, bound_us in enumerate(_BOUNDS_US):  # most bounds have all of a block on one side
            if least_us <= bound_us:
                self.within[at] += trades.num_rows if most_us <= bound_us else count_within(bound_us)
        self.sum_s += sum_us / 1e6
        self.count += trades.num_rows
        return int(least_us)


def _count_up_to(delays_us: Any, bound_us: int) -> int:
    return pc.less_equal(delays_us, pa.scalar(bound_us)).true_count  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class Refusal:
    """The venue refused a subscription; `symbol` is None where it doesn't say which."""

    symbol: str | None
    text: str
    received_us: int


@dataclass(frozen=True, slots=True)
class Unread:
    """Messages that were read as no trade, and as nothing else that this feed knows."""

    messages: int
    """So many in this run."""
    reason: str
    """Of the last one that there is a sample of."""
    sample: str
    rejected: bool
    """It should have been a trade; else it was passed over as something else."""


class Observed:
    """Written by the recorder's thread, read by any. What a venue invents is bounded: symbols and refusals."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._refusals: dict[str | None, Refusal] = {}
        self._unproven: set[str] = set()
        self._invented: set[str] = set()
        self.asked: frozenset[str] = frozenset()
        """The symbols that are asked for: all others are the venue's invention, and bounded."""
        self.last_trade_s: dict[str, float] = {}
        """By symbol, on the monotonic clock: when its last trade was decoded."""
        self.last_trade_us: dict[str, int] = {}
        """By symbol: when its last trade was received, in µs since 1970."""
        self.last_received_us = 0
        """When the last trade of any symbol was received."""
        self.trades = 0
        self.unread: Unread | None = None
        self.disk_failing = False
        """The disk refuses what is to be recorded just now."""
        self.disk_failed_s = float("-inf")
        """Up to when it last did, on the monotonic clock."""

    def saw_trades(self, symbols: dict[str, int], received_us: int) -> None:
        """Trades were decoded: how many, by symbol; the last of them was received then."""
        now_s = time.monotonic()
        known = symbols.keys() & self.asked
        others = symbols.keys() - known
        if others:
            self._invented.update(islice(others - self._invented, _INVENTED_MAX - len(self._invented)))
            known |= others & self._invented
        self.last_trade_us.update(dict.fromkeys(known, received_us))
        self.last_trade_s.update(dict.fromkeys(known, now_s))
        if symbols:
            self.last_received_us = received_us
        self.trades += sum(symbols.values())

    def step(self, by_us: int) -> None:
        """The wall clock was set by so much: receipts before it, on the clock as it is now."""
        self.last_trade_us = {symbol: at_us + by_us for symbol, at_us in self.last_trade_us.copy().items()}
        self.last_received_us += by_us if self.last_received_us else 0

    def asked_anew(self, symbols: Iterable[str]) -> None:
        """These are added on a connection that is open: what was proven on it before counts no more."""
        with self._lock:
            self._unproven.update(symbols)

    def take_unproven(self) -> set[str]:
        """Those symbols since the last call."""
        if not self._unproven:
            return set()
        with self._lock:
            taken, self._unproven = self._unproven, set()
        return taken

    def saw_disk(self, *, failing: bool) -> None:
        """The disk refused, or works again."""
        if failing or self.disk_failing:
            self.disk_failed_s = time.monotonic()
        self.disk_failing = failing

    def saw_refusal(self, refusal: Refusal) -> None:
        with self._lock:
            if len(self._refusals) < _REFUSALS_MAX:
                self._refusals[refusal.symbol] = refusal

    def take_refusals(self) -> Iterable[Refusal]:
        """The refusals since the last call, the last one of each symbol."""
        with self._lock:
            taken, self._refusals = self._refusals, {}
        return taken.values()


_NEVER = Unread(0, "", "", rejected=False)


class Observer:
    """For the recorder's thread."""

    def __init__(self, ledger: Ledger, gaps: Gaps, observed: Observed, *, may_replay: bool = False) -> None:
        """`may_replay`: of the feed's terms."""
        self._ledger = ledger
        self._gaps = gaps
        self._observed = observed
        self._proven_on = 0
        self._proven: set[str] = set()
        self._unknown_seen: set[str] = set()
        self._refused_seen: set[str] = set()
        self._sampled_s = float("-inf")
        self._replay = _Replay() if may_replay else None

    def observe(
        self, block: FrameBlock, notices: list[Notice], rows: pa.RecordBatch, refused: Sequence[Refused] = ()
    ) -> None:
        """Of the frames of a block, these were notices, these rows were recorded, and these were refused."""
        if block.connection > self._proven_on:
            self._proven_on, self._proven = block.connection, set()
        self._proven -= self._observed.take_unproven()
        symbols: Any = rows.column("symbol")
        if len(symbols) <= FEW:
            ticking: dict[str, int] = Counter(symbols.to_pylist())
        else:
            ticking = {entry["values"]: entry["counts"] for entry in symbols.value_counts().to_pylist()}
        self._observed.saw_trades(ticking, block.frames.received_us[-1])
        fresh = ticking.keys() - self._proven if block.connection == self._proven_on else set()
        if proven := fresh & self._observed.asked:  # what nobody asked for is not claimed, and fills no ledger
            # The first trade of a symbol on this connection proves its subscription.
            self._proven |= proven
            base_us = rows.column("received_at")[0].value
            since_us = {symbol: _first_received_us(rows, symbol) - base_us for symbol in sorted(proven)}
            self._ledger.record("symbols.proven", connection=block.connection, base=base_us, symbols=since_us)
        if ticking:
            self._hear(rows, ticking, block.frames.received_us[-1])
            if self._replay and self._replay.finds(block, rows):
                self._replay = None
        for notice in notices:
            self._observe_notice(notice, block.frames)
        strange = [notice for notice in notices if notice.kind == "unknown"]
        unread = [one for one in refused if one.reason != "repeated_id"]  # those were read, and are recorded already
        if strange or unread:
            self._look_at_unread(block, strange, unread)

    def _hear(self, rows: pa.RecordBatch, symbols: Collection[str], last_us: int) -> None:
        """These trades are recorded: no gap of their symbols holds any of them."""

        def first_after(since_us: int) -> int | None:
            received_us: Any = rows.column("received_at").cast(pa.int64())
            later = received_us.filter(pc.greater(received_us, since_us))
            return None if not len(later) else int(later[0].as_py())

        self._gaps.hear(symbols, last_us, partial(_first_received_us, rows), first_after)

    def _observe_notice(self, notice: Notice, frames: Frames) -> None:
        if notice.refuses:
            self._observed.saw_refusal(Refusal(notice.symbol, notice.text, frames.received_us[notice.frame]))
        elif notice.kind == "error":
            log.warning("venue.complained", text=notice.text)
        elif notice.kind == "unknown" and notice.text not in self._unknown_seen:
            if len(self._unknown_seen) < _UNKNOWN_MAX:
                self._unknown_seen.add(notice.text)
            log.warning("notice.unknown", type=notice.text, sample=make_sample(frames.payloads[notice.frame]))

    def _look_at_unread(self, block: FrameBlock, strange: list[Notice], unread: list[Refused]) -> None:
        """Count them, and show one: the first that is refused for its reason, or passed over, and one per minute."""
        last = self._observed.unread or _NEVER
        fresh = next((one for one in unread if one.reason not in self._refused_seen), None)
        now_s = time.monotonic()
        reason, sample, rejected = last.reason, last.sample, last.rejected
        if fresh or last is _NEVER or now_s - self._sampled_s >= _SAMPLE_S:
            self._sampled_s = now_s
            shown = fresh or (unread[0] if unread else None)
            if shown:
                reason, sample, rejected = shown.reason, make_sample(shown.payload), True
            else:
                reason, sample, rejected = "unknown", make_sample(block.frames.payloads[strange[0].frame]), False
        if fresh:
            self._refused_seen.add(fresh.reason)
            log.warning("message.refused", reason=reason, sample=sample, hint="see `ingestor status`, rejects/")
        self._observed.unread = Unread(last.messages + len(strange) + len(unread), reason, sample, rejected)


class _Replay:
    """Looks for old trades at the beginning of a connection: a snapshot, which comes again with each connection."""

    def __init__(self) -> None:
        self._connection = self._began_us = 0
        self._oldest_us = math.inf
        """Of the connection's first seconds."""

    def finds(self, block: FrameBlock, rows: pa.RecordBatch) -> bool:
        """Whether it is told: trades came that were older than others by far more than the time between them."""
        received_us = block.frames.received_us[-1]
        if block.connection != self._connection:
            self._connection, self._began_us, self._oldest_us = block.connection, block.frames.received_us[0], math.inf
        times: Any = pc.min_max(rows.column("timestamp").cast(pa.int64())).as_py()
        if received_us - self._began_us <= _EARLY_US:
            self._oldest_us = min(self._oldest_us, times["min"] * 1000)
        if times["max"] * 1000 - self._oldest_us <= received_us - self._began_us + _REPLAYED_US:
            return False
        log.warning(
            "trades.replayed",
            oldest=datetime.fromtimestamp(self._oldest_us / 1e6, UTC).isoformat(timespec="milliseconds"),
            hint="old trades came after subscribing: they are recorded, and again with each connection; where the "
            "venue marks them, leave them out with feed.match",
        )
        return True


def _first_received_us(rows: pa.RecordBatch, symbol: str) -> int:
    """When the first trade of this symbol, which these rows hold, was received."""
    first = pc.index(rows.column("symbol"), symbol).as_py()
    return int(rows.column("received_at")[first].value)
