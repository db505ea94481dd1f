"""The state of the stream: symbols proven, refusals, delays, and messages that fit nothing."""

import math
import threading
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import structlog

from ingestor.capture.buffer import FrameBlock
from ingestor.capture.gaps import Gaps, GroupGaps
from ingestor.capture.rejects import Refused, make_sample
from ingestor.facts import Fact
from ingestor.feeds import Notice
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
_ENDED_KEPT = 4
"""Of so many connections that have ended frames may still wait."""
_NOTHING: Mapping[str, int] = MappingProxyType({})
_UNKNOWN_MAX = 100
"""Of what a venue invents, so many kinds are told apart."""


class Delays:
    """Of `received_at` less `timestamp`. Written by the recorder's thread, read by any."""

    def __init__(self) -> None:
        self.within = [0] * len(BOUNDS_S)
        """How many trades took at most BOUNDS_S[i]."""
        self.count = 0
        self.sum_s = 0.0

    def add(self, trades: pa.RecordBatch, few: list[int] | None = None) -> int | None:
        """Count these trades, and tell the least delay (µs), negative where a trade is ahead of our clock; None without
        trades. What is ahead counts as a delay of zero. `few`: their delays (µs), where they are known.
        """
        if not trades.num_rows:
            return None
        if few:
            few.sort()
            least_us, most_us, sum_us = few[0], few[-1], sum(delay for delay in few if delay > 0)
        else:
            sent_ms: Any = trades.column("timestamp").view(pa.int64())
            received_us: Any = trades.column("received_at").view(pa.int64())
            delays_us = pc.subtract(received_us, pc.multiply(sent_ms, _US_PER_MS))
            least_us, most_us = pc.min_max(delays_us).as_py().values()
            sum_us = pc.sum(pc.max_element_wise(delays_us, _ZERO) if least_us < 0 else delays_us).as_py()
        for at, bound_us in enumerate(_BOUNDS_US):  # most bounds have all of a block on one side
            if most_us <= bound_us:
                self.within[at] += trades.num_rows
            elif few:
                self.within[at] += bisect_right(few, bound_us)
            elif least_us <= bound_us:
                self.within[at] += pc.less_equal(delays_us, pa.scalar(bound_us)).true_count
        self.sum_s += sum_us / 1e6
        self.count += trades.num_rows
        return int(least_us)


@dataclass(frozen=True, slots=True)
class Refusal:
    """The venue refused a subscription; `symbol` is None where it doesn't say which."""

    symbol: str | None
    text: str
    received_us: int
    connection: int = 0
    """On which it was said."""


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


class Refusals:
    """What the venue refused of a group, until it is asked for again. Bounded, whatever a venue invents."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[tuple[int, str | None], Refusal] = {}

    def add(self, refusal: Refusal) -> None:
        """One more; it replaces an earlier one of its symbol on its connection."""
        with self._lock:
            if len(self._waiting) < _REFUSALS_MAX:
                self._waiting[refusal.connection, refusal.symbol] = refusal

    def take(self, but: Collection[int] = ()) -> list[Refusal]:
        """The refusals since the last call, the last one of each symbol; those of the connections `but` are left."""
        with self._lock:
            taken = [refusal for refusal in self._waiting.values() if refusal.connection not in but]
            self._waiting = {key: refusal for key, refusal in self._waiting.items() if refusal.connection in but}
        return taken


class Observed:
    """Of the whole run. Written by the recorder's thread, read by any. What symbols a venue invents is bounded."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._invented: set[str] = set()
        self.asked: frozenset[str] = frozenset()
        """The symbols that are asked for: all others are the venue's invention, and bounded."""
        self.last_trade_s: dict[str, float] = {}
        """By symbol, on the monotonic clock: when its last trade was decoded."""
        self.last_trade_us: dict[str, int] = {}
        """By symbol: when its last trade was received, in µs since 1970."""
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
        self.trades += sum(symbols.values())

    def step(self, by_us: int) -> None:
        """The wall clock was set by so much: receipts before it, on the clock as it is now."""
        self.last_trade_us = {symbol: at_us + by_us for symbol, at_us in self.last_trade_us.copy().items()}

    def ask(self, wanted: Iterable[str], dropped: Iterable[str] = ()) -> None:
        """These are asked for from now on, and those not any more."""
        with self._lock:
            self.asked = self.asked.difference(dropped).union(wanted)

    def saw_disk(self, *, failing: bool) -> None:
        """The disk refused, or works again."""
        if failing or self.disk_failing:
            self.disk_failed_s = time.monotonic()
        self.disk_failing = failing


class Requests:
    """On which connection the ledger asks for each symbol of a group, and what each has brought. For any thread.

    The ledger asks for a symbol on one connection at a time. Where another one is opened beside it, that is told as
    `connection.joined`, and nothing changes: a symbol is proven by whichever brings it. When a connection ends, what it
    was asked for goes on with one that is left. Symbols that this one had brought by then stay as they are; all others
    are asked for anew on it, and unproven until it brings them.
    """

    def __init__(self, ledger: Ledger, observed: Observed, symbols: Sequence[str], *, of_all: bool = True) -> None:
        """`symbols` are those that are to be asked for; `of_all`: there is no other group."""
        self._ledger = ledger
        self._observed = observed
        self._lock = threading.Lock()
        self.of_all = of_all
        self.wanted = tuple(symbols)
        """What is to be asked for from now on, as of the last change."""
        self._adopted = self.wanted
        observed.ask(symbols)
        self.refusals = Refusals()
        self.last_received_us = 0
        """When the last trade of any of these, on any connection, was received."""
        self._listed: tuple[str, ...] | None = None
        """What the ledger says was last asked for as a whole: said once, it need not be said at each reconnect."""
        self._open: frozenset[int] = frozenset()
        """The connections on which symbols were asked for, and which are still read."""
        self._newest = 0
        """The last one on which they were."""
        self._ended_us: dict[int, int] = {}
        """Of connections that ended while another one was read: up to then they missed nothing."""
        self._asked_on: dict[str, int] = {}
        self._since_us: dict[int, dict[str, int]] = {}
        """By connection, of what it was asked for instead of one that has ended: up to then that had brought it."""
        self._added_us: dict[str, int] = {}
        """Of what was added on an open connection: a trade before that proves nothing."""
        self._proven: dict[int, set[str]] = {}
        """By connection: what is asked for on it, and proven."""
        self.newest_ms: dict[int, int] = {}
        """By connection, where there are others: the venue's time of the newest trade that it brought."""
        self._brought: dict[int, dict[str, int]] = {}
        """By connection: when it brought a symbol's first trade."""

    def symbols(self) -> tuple[str, ...]:
        """What is asked for until a session comes to the last change."""
        return self._adopted

    def others(self, connection: int) -> frozenset[int]:
        """The other connections that are read, and on which symbols were asked for."""
        return self._open - {connection}

    def ask(self, connection: int, symbols: tuple[str, ...]) -> None:
        """These, which are all, have been asked for on a new connection."""
        with self._lock:
            kept = {*self._open, connection, *sorted(self._brought)[-_ENDED_KEPT:]}
            self._brought = {one: brought for one, brought in self._brought.items() if one in kept}
            self.newest_ms = {one: newest_ms for one, newest_ms in self.newest_ms.copy().items() if one in kept}
            self._proven = {one: proven for one, proven in self._proven.items() if one in kept}
            self._since_us = {one: since for one, since in self._since_us.items() if one in kept}
            self._ended_us = {one: until_us for one, until_us in self._ended_us.items() if one in kept}
            joins, self._open = bool(self._open), self._open | {connection}
            self._newest = max(self._newest, connection)
            if joins:
                self._ledger.record("connection.joined", connection=connection)
                self._ask_more(connection, symbols)
                return
            self._ended_us.clear()
            self._asked_on = dict.fromkeys(symbols, connection)
            self._added_us.clear()
            known, self._listed = self.of_all and self._listed == symbols, symbols
            self._ledger.record("symbols.requested", connection=connection, symbols=None if known else list(symbols))

    def adopt(self, wanted: tuple[str, ...]) -> list[str]:
        """These are wanted from now on. The symbols that nobody has dropped yet, and which are not among them."""
        with self._lock:
            if wanted == self._adopted:
                return []
            keep = set(wanted)
            dropped = [symbol for symbol in self._adopted if symbol not in keep]
            self._adopted = wanted
            self._observed.ask(wanted, dropped)
            told_us = self._ledger.now_us()
            self._ledger.record_all([{"at": told_us, "fact": "symbol.dropped", "symbol": one} for one in dropped])
            for symbol in dropped:
                self._asked_on.pop(symbol, None)
            return dropped

    def ask_more(self, connection: int, symbols: Sequence[str]) -> None:
        """These have been asked for, too, on a connection that is open."""
        with self._lock:
            self._ask_more(connection, symbols)

    def _ask_more(self, connection: int, symbols: Sequence[str]) -> None:
        added = [symbol for symbol in symbols if symbol not in self._asked_on]
        if not added:
            return
        self._asked_on |= dict.fromkeys(added, connection)
        for brought in self._brought.values():  # on an open connection: what was proven on it before counts no more
            for symbol in added:
                brought.pop(symbol, None)
        for proven in self._proven.values():
            proven.difference_update(added)
        at_us = self._ledger.now_us()
        self._added_us |= dict.fromkeys(added, at_us)
        self._ledger.record("symbols.requested", at=at_us, connection=connection, symbols=added)

    def end(self, connection: int, seen_until_us: int, told: Sequence[Fact] = ()) -> None:
        """A connection is read no more, and missed nothing up to then; `told` are the facts that say so."""
        with self._lock:
            self._open -= {connection}
            facts = list(told)
            at_us = facts[0]["at"] if facts else self._ledger.now_us()
            later_us = {until_us: one for one, until_us in self._ended_us.items() if until_us > seen_until_us}
            if self._open:
                facts += self._go_on(connection, seen_until_us, at_us, self._open, say=bool(facts))
                self._ended_us[connection] = seen_until_us
            elif later_us:
                # It fell silent before another one ended, which was then the only one that was read, and may not have
                # brought what this one had. Told first: behind the end of this one it would say that somebody is read.
                last = {later_us[max(later_us)]}
                facts = [*self._go_on(connection, seen_until_us, at_us, last, say=False), *facts]
            if told and not self._open and not self.of_all:
                # Other groups are heard: only these symbols are blind, as their gaps tell.
                facts.append(self._request(connection, [], seen_until_us, at_us))
            if facts:
                self._ledger.record_all(facts)

    def _go_on(
        self, ended: int, seen_until_us: int, at_us: int, heirs: Collection[int], *, say: bool
    ) -> Iterable[Fact]:
        """What was asked for on the connection that has ended goes on with those that are left. `say`: also where there
        is nothing to ask for anew; who reads that a connection was lost would take all for blind until the next
        request, so it comes at the same moment.
        """
        heir = max(heirs)
        left = {one: self._brought.get(one, {}) for one in sorted(heirs)}
        anew: dict[int, dict[str, int | None]] = {heir: {}} if say else {}
        """By connection: what is asked for on it, and when it brought that first, if it did since."""
        for symbol in [symbol for symbol, on in self._asked_on.items() if on == ended]:
            had_us = {one: brought[symbol] for one, brought in left.items() if symbol in brought}
            on = min(had_us, key=had_us.__getitem__, default=heir)
            self._asked_on[symbol] = on
            if symbol not in self._proven.get(ended, ()) or had_us.get(on, math.inf) > seen_until_us:
                self._since_us.setdefault(on, {})[symbol] = seen_until_us
                anew.setdefault(on, {})[symbol] = max(had_us[on], seen_until_us + 1) if on in had_us else None
            if on in had_us:
                self._proven.setdefault(on, set()).add(symbol)
        for on, symbols in sorted(anew.items()):
            yield self._request(on, list(symbols), seen_until_us, at_us)
            if known := {symbol: first_us for symbol, first_us in symbols.items() if first_us is not None}:
                yield _proof(on, known, at_us)

    def _request(self, connection: int, symbols: list[str], since_us: int, at_us: int) -> Fact:
        self._listed = None  # the ledger's last request is not of all
        fact = {"at": at_us, "fact": "symbols.requested", "connection": connection}
        return {**fact, "symbols": symbols, "since": since_us}

    def brought(self, connection: int) -> Mapping[str, int]:
        """The symbols of which this connection has brought trades, among those that are asked for."""
        return self._brought.get(connection, _NOTHING)

    def prove(self, connection: int, first_us: Mapping[str, int]) -> None:
        """A connection has brought these symbols, which it had not brought before: each is proven by it, if nothing has
        proven it yet. The times are those of their first trades' receipt.
        """
        with self._lock:
            if self._added_us:
                first_us = {one: at_us for one, at_us in first_us.items() if at_us >= self._added_us.get(one, 0)}
            self._brought.setdefault(connection, {}).update(first_us)
            ended = connection <= self._newest and connection not in self._open
            moved, fresh = [], {}
            for symbol, at_us in first_us.items():
                on = connection if ended else self._asked_on.get(symbol, connection)
                if symbol in self._proven.setdefault(on, set()):
                    continue
                if on != connection and on in self._open:
                    moved.append(symbol)
                self._proven.setdefault(connection, set()).add(symbol)
                # It may have brought it before the other one ended, and was not believed yet.
                fresh[symbol] = max(at_us, self._since_us.get(connection, _NOTHING).get(symbol, 0) + 1)
                if symbol in self._asked_on and not ended:
                    self._asked_on[symbol] = connection
            if not fresh:
                return
            told_us = self._ledger.now_us()
            facts = [_proof(connection, fresh, told_us)]
            if moved:  # the ledger asks for it on the one that was first
                since_us = min(fresh[symbol] for symbol in moved) - 1
                facts.insert(0, self._request(connection, moved, since_us, told_us))
            self._ledger.record_all(facts)

    def saw(self, connection: int, trades: Sequence[pa.RecordBatch]) -> None:
        """A connection has brought these, and others are read at the same time."""
        times: list[Any] = [pc.max(one["timestamp"].view(pa.int64())).as_py() or 0 for one in trades]
        self.newest_ms[connection] = max(self.newest_ms.get(connection, 0), *times)

    def step(self, by_us: int) -> None:
        """The wall clock was set by so much: receipts before it, on the clock as it is now."""
        with self._lock:
            for told in (self._brought, self._since_us):
                for one, times in told.items():
                    told[one] = {symbol: at_us + by_us for symbol, at_us in times.items()}
            self._added_us = {symbol: at_us + by_us for symbol, at_us in self._added_us.items()}
            self._ended_us = {one: at_us + by_us for one, at_us in self._ended_us.items()}
            self.last_received_us += by_us if self.last_received_us else 0


def _proof(connection: int, first_us: Mapping[str, int], at_us: int) -> Fact:
    base_us = min(first_us.values())
    since_us = {symbol: first_us[symbol] - base_us for symbol in sorted(first_us)}
    return {"at": at_us, "fact": "symbols.proven", "connection": connection, "base": base_us, "symbols": since_us}


_NEVER = Unread(0, "", "", rejected=False)


class Observer:
    """For the recorder's thread."""

    def __init__(
        self,
        observed: Observed,
        groups: Sequence[tuple[Gaps | GroupGaps, Requests]],
        group_of: Mapping[int, int],
        *,
        may_replay: bool = False,
    ) -> None:
        """`groups` of symbols; `group_of` has the place in it by connection, and 0 where it has none. `may_replay`: of
        the feed's terms.
        """
        self._observed = observed
        self._groups = groups
        self._group_of = group_of
        self._unknown_seen: set[str] = set()
        self._refused_seen: set[str] = set()
        self._sampled_s = float("-inf")
        self._replay = _Replay() if may_replay else None

    def observe(
        self,
        block: FrameBlock,
        notices: list[Notice],
        rows: pa.RecordBatch,
        refused: Sequence[Refused] = (),
        repeated: pa.RecordBatch | None = None,
        symbols: Iterable[str] | None = None,
    ) -> None:
        """Of the frames of a block, these were notices, these rows were recorded, and these were refused; `repeated`
        are the symbols and times of trades that another connection had brought before. `symbols`: those of the rows,
        one by one, where they are few.
        """
        if symbols is not None:
            ticking: dict[str, int] = Counter(symbols)
        else:
            counts: Any = rows.column("symbol").value_counts()
            ticking = {entry["values"]: entry["counts"] for entry in counts.to_pylist()}
        gaps, requests = self._groups[self._group_of.get(block.connection, 0)]
        self._observed.saw_trades(ticking, block.frames.received_us[-1])
        brought = requests.brought(block.connection).keys()
        fresh = ticking.keys() - brought
        if repeated is not None:
            fresh |= set(repeated["symbol"].unique().to_pylist()) - brought
        if requests.others(block.connection):
            requests.saw(block.connection, [rows, *([] if repeated is None else [repeated])])
        if proven := fresh & self._observed.asked:  # what nobody asked for is not claimed, and fills no ledger
            # The first trade of a symbol on this connection proves its subscription.
            last_us = block.frames.received_us[-1]  # of one that is not recorded: it came by then
            first_us = {one: _first_received_us(rows, one) if one in ticking else last_us for one in proven}
            requests.prove(block.connection, first_us)
        if ticking:
            requests.last_received_us = block.frames.received_us[-1]
            _hear(gaps, rows, ticking, requests.last_received_us)
            if self._replay and self._replay.finds(block, rows):
                self._replay = None
        for notice in notices:
            self._observe_notice(notice, block, requests)
        strange = [notice for notice in notices if notice.kind == "unknown"]
        if strange or refused:
            self._look_at_unread(block, strange, refused)

    def _observe_notice(self, notice: Notice, block: FrameBlock, requests: Requests) -> None:
        frames = block.frames
        if notice.refuses:
            refusal = Refusal(notice.symbol, notice.text, frames.received_us[notice.frame], block.connection)
            requests.refusals.add(refusal)
        elif notice.kind == "error":
            log.warning("venue.complained", text=notice.text)
        elif notice.kind == "unknown" and notice.text not in self._unknown_seen:
            if len(self._unknown_seen) < _UNKNOWN_MAX:
                self._unknown_seen.add(notice.text)
            log.warning("notice.unknown", type=notice.text, sample=make_sample(frames.payloads[notice.frame]))

    def _look_at_unread(self, block: FrameBlock, strange: list[Notice], unread: Sequence[Refused]) -> None:
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
        if block.connection < self._connection:  # of two that are read, the newer one is looked at
            return False
        if block.connection > self._connection:
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


def _hear(gaps: Gaps | GroupGaps, rows: pa.RecordBatch, symbols: Collection[str], last_us: int) -> None:
    """These trades are recorded: no gap of their symbols holds any of them."""

    def first_after(since_us: int) -> int | None:
        received_us: Any = rows.column("received_at").cast(pa.int64())
        later = received_us.filter(pc.greater(received_us, since_us))
        return None if not len(later) else int(later[0].as_py())

    gaps.hear(symbols, last_us, partial(_first_received_us, rows), first_after)


def _first_received_us(rows: pa.RecordBatch, symbol: str) -> int:
    """When the first trade of this symbol, which these rows hold, was received."""
    first = pc.index(rows.column("symbol"), symbol).as_py()
    return int(rows.column("received_at")[first].value)
