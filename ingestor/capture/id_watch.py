"""Watches the ids that a venue counts each symbol's trades by: names those that never came, and proves that none is
missing where they go on without a hole.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from typing import Any

import pyarrow as pa
import structlog

from ingestor.accounts import read_last_ids
from ingestor.capture.gaps import Gaps
from ingestor.capture.stream_state import Observed
from ingestor.errors import DamagedFile
from ingestor.facts import Fact
from ingestor.journal.follower import Follower, Rows
from ingestor.journal.records import Cursor
from ingestor.layout import Layout, list_segments
from ingestor.ledger import Ledger, now_us
from ingestor.trade_ids import find_seen

log = structlog.get_logger()

_ROWS = 1 << 15
_TOGETHER_S = 1.0
"""Blocks are checked together, so that a check costs little per trade."""
_SETTLE_S = 5.0
"""For so long a hole may still be filled: by another connection, or by a trade that comes late."""
_FACTS_MAX = 100
"""Of one symbol at a time: a venue that invents its ids fills no ledger."""
_ANEW = 1 << 16
"""Ids so far below the last one are of another count, not late."""


@dataclass(slots=True)
class LastId:
    """Where the ids of a symbol stand."""

    id: int
    """The highest that was recorded."""
    received_us: int
    """When the newest of its trades was received."""
    connection: int = 0
    """On which it was recorded; 0: in an earlier run."""


@dataclass(frozen=True, slots=True)
class _Hole:
    """Ids that did not come between two receipts of a symbol's trades."""

    first: int
    last: int
    since_us: int
    until_us: int
    found_s: float

    def without(self, first: int, last: int) -> "list[_Hole]":
        """What is left of it once these have come."""
        if last < self.first or self.last < first:
            return [self]
        pieces = ((self.first, first - 1), (last + 1, self.last))
        return [replace(self, first=low, last=high) for low, high in pieces if low <= high]


class IdWatch:
    """For the recorder's thread."""

    def __init__(
        self, column: str, ledger: Ledger, gaps: Gaps, observed: Observed, known: Mapping[str, LastId]
    ) -> None:
        """`column` is the feed's `id_column`; `known` is where the runs before left off, by symbol."""
        self._column = column
        self._ledger = ledger
        self._gaps = gaps
        self._observed = observed
        self._known = dict(known)
        self._asked: frozenset[str] = frozenset()
        self._holes: dict[str, list[_Hole]] = {}
        self._waiting: list[tuple[int, frozenset[str], pa.RecordBatch]] = []
        """Connection, the symbols that it sent nothing of, and the rows that are still to be checked."""
        self._waiting_rows = 0
        self._waiting_s = 0.0

    def see(self, connection: int, rows: pa.RecordBatch, now_s: float) -> None:
        """These rows are recorded, in this order; the gaps that they end are still open. `now_s` is of the monotonic
        clock.
        """
        if not rows.num_rows:
            return
        if not self._waiting:
            self._waiting_s = now_s
        self._waiting.append((connection, self._gaps.silent_symbols, rows))
        self._waiting_rows += rows.num_rows

    def turn(self, now_s: float) -> None:
        """Check what has waited long enough, and name what is missing for good."""
        if self._waiting and (self._waiting_rows >= _ROWS or now_s - self._waiting_s >= _TOGETHER_S):
            self._check(now_s)
        if self._holes:
            self._name(now_s - _SETTLE_S)

    def close(self, now_s: float) -> None:
        """Nothing comes any more."""
        self._check(now_s)
        self._name(now_s)

    def _check(self, now_s: float) -> None:
        """What waits, in order; rows between which nothing changed at once."""
        waiting, self._waiting, self._waiting_rows = self._waiting, [], 0
        proven: list[tuple[str, int, int]] = []
        for (connection, blind), blocks in groupby(waiting, key=itemgetter(0, 1)):
            self._look(connection, blind, [rows for _, _, rows in blocks], now_s, proven)
        told: list[dict[str, tuple[int, int]]] = []  # a fact each: a symbol is in it once
        for symbol, since_us, until_us in proven:
            fact = next((one for one in told if symbol not in one), None)
            if fact is None:
                told.append(fact := {})
            fact[symbol] = since_us, until_us
        for fact in told:
            base_us = min(since_us for since_us, _ in fact.values())
            before = {symbol: since_us - base_us for symbol, (since_us, _) in sorted(fact.items())}
            symbols = {symbol: until_us - base_us for symbol, (_, until_us) in sorted(fact.items())}
            self._ledger.record("ids.proven", base=base_us, before=before, symbols=symbols)
            log.info("ids.proven", symbols=len(symbols), hint="nothing of these was missed: their ids go on")

    def _look(
        self,
        connection: int,
        blind: frozenset[str],
        batches: list[pa.RecordBatch],
        now_s: float,
        proven: list[tuple[str, int, int]],
    ) -> None:
        symbols, ids, received = (
            pa.concat_arrays([rows.column(name) for rows in batches])
            for name in ("symbol", self._column, "received_at")
        )
        asked = self._observed.asked  # the ids of what nobody asked for are not promised, and fill no memory
        if asked is not self._asked:
            self._asked = asked
            self._known = {symbol: known for symbol, known in self._known.items() if symbol in asked}
        all_seen = [seen for seen in find_seen(symbols, ids) if seen.symbol in asked]
        received_us: Any = received.view(pa.int64())
        first_us, last_us = (
            received_us.take(pa.array(rows, pa.int64())).to_pylist()
            for rows in ([seen.first_row for seen in all_seen], [seen.last_row for seen in all_seen])
        )
        for seen, began_us, ended_us in zip(all_seen, first_us, last_us, strict=True):
            symbol, known = seen.symbol, self._known.get(seen.symbol)
            if known is None or seen.last < known.id - _ANEW:
                self._known[symbol] = LastId(seen.last, ended_us, connection)
                continue
            if symbol in self._holes:
                pieces = [piece for hole in self._holes[symbol] for piece in hole.without(seen.first, seen.last)]
                self._holes[symbol] = pieces
            if seen.last > known.id:
                if seen.first > known.id + 1:
                    hole = _Hole(known.id + 1, seen.first - 1, known.received_us, began_us, now_s)
                    self._holes.setdefault(symbol, []).append(hole)
                elif (connection > known.connection or symbol in blind) and began_us > known.received_us:
                    proven.append((symbol, known.received_us, began_us))
                known.id, known.connection = seen.last, max(known.connection, connection)
            known.received_us = max(known.received_us, ended_us)

    def _name(self, found_before_s: float) -> None:
        """The holes that were found up to then are facts."""
        facts: list[Fact] = []
        for symbol in list(self._holes):
            due = [hole for hole in self._holes[symbol] if hole.found_s <= found_before_s]
            left = [hole for hole in self._holes[symbol] if hole.found_s > found_before_s]
            if left:
                self._holes[symbol] = left
            else:
                del self._holes[symbol]
            facts += self._facts(symbol, due)
        if facts:
            self._ledger.record_all(facts)

    def _facts(self, symbol: str, due: list[_Hole]) -> Iterable[Fact]:
        """One for each hole; where there are too many, several in one."""
        size = -(-len(due) // _FACTS_MAX)
        for start in range(0, len(due), size or 1):
            some = due[start : start + size]
            told: dict[str, Any] = {
                "symbol": symbol,
                "first": min(hole.first for hole in some),
                "last": max(hole.last for hole in some),
                "count": sum(hole.last - hole.first + 1 for hole in some),
                "since": min(hole.since_us for hole in some),
                "until": max(hole.until_us for hole in some),
            }
            log.warning("ids.missed", **{name: told[name] for name in ("symbol", "first", "last", "count")})
            yield {"at": now_us(), "fact": "ids.missed", **told}


def find_last_ids(layout: Layout, column: str, symbols: Iterable[str], closed: int) -> dict[str, LastId]:
    """Where the runs before left off, by symbol: what accounts say, and the journal of what has none.

    `closed` is the last segment that has an account. What can't be read says nothing.
    """
    found = {
        symbol: LastId(last, received_us)
        for symbol, (last, received_us) in read_last_ids(layout, frozenset(symbols)).items()
    }
    first = next((file.id.number for file in list_segments(layout) if file.id.number > closed), None)
    if first is None:
        return found
    follower = Follower(layout, Cursor(first, 0), synced_only=False)
    try:
        for event in follower.read():
            if not isinstance(event, Rows) or column not in event.batch.schema.names or event.counts.filled:
                continue  # what was filled says nothing of what was heard last
            for seen in find_seen(event.batch.column("symbol"), event.batch.column(column)):
                known = found.get(seen.symbol)
                if known is None or seen.last >= known.id:
                    found[seen.symbol] = LastId(seen.last, event.last_received_us)
    except DamagedFile as error:
        log.warning("journal.unreadable", error=str(error))
    finally:
        follower.close()
    return found
