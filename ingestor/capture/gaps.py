"""Blind times: opened with a cause, closed with the first proof; those that an earlier run left open are taken over."""

import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Literal, get_args

import pyarrow as pa
import pyarrow.compute as pc
import structlog

from ingestor.errors import DamagedFile
from ingestor.facts import Fact
from ingestor.history import History
from ingestor.journal.follower import Follower, Rows
from ingestor.journal.records import Cursor
from ingestor.layout import Layout, list_segments
from ingestor.ledger import Ledger, now_us

log = structlog.get_logger()

Cause = Literal["connection", "stall", "symbol_mute", "refused", "restart", "crash", "backpressure", "disk", "shutdown"]

_OF_CONNECTIONS = frozenset(get_args(Cause)) - {"symbol_mute", "refused"}
"""Nobody was heard: over for each symbol once its connection is. The others end with a trade of the symbol itself."""

Symbols = Callable[[], Collection[str]]
"""Those of a group, as the ledger asks for them at that moment."""

_RECORDED_MAX = 100_000
"""Symbols that a venue invents must not fill the memory."""

_RESTART_US = 60_000_000


@dataclass(frozen=True, slots=True)
class OpenGap:
    """A gap that has not ended. It begins behind `since_us`: the receive time of the last frame before it, or of the
    symbol's last trade, which is not in it.
    """

    id: str
    cause: Cause
    since_us: int
    symbol: str | None = None
    """None: blind for all symbols."""


class Gaps:
    """The open gaps: at most one for all symbols, and one a symbol. Any thread may open and close them.

    The session ends the one for all with the first frame after resubscription; the recorder ends a symbol's with its
    next trade, whenever it was opened, and the one for all with any trade that was received within it: so no recorded
    trade lies in a gap of its symbol, whichever thread was first.

    Where several groups of symbols have connections of their own (`of`), there is none for all. What befalls a group's
    connections is told of each of its symbols, at once, and ends for all of them as the gap for all would.
    """

    def __init__(self, ledger: Ledger, run: int, inherited: Iterable[OpenGap]) -> None:
        """`inherited` are the gaps that the runs before left open."""
        self._ledger = ledger
        self._run = run
        self._count = 0
        self._lock = threading.Lock()
        self._open = {gap.symbol: gap for gap in inherited}
        self._next: dict[str | None, tuple[Cause, int, int]] = {}
        """What `open` was told of a connection while a gap was open: that follows, where a trade from before it ends
        the one that is open.
        """
        self._recorded_us: dict[str | None, int] = {}
        """When the last recorded trade was received."""
        self.blind_symbols: frozenset[str] = frozenset()
        """The symbols that have a gap each."""
        self.silent_symbols: frozenset[str] = frozenset()
        """Those among them that the venue sends nothing of, though their connection is heard."""
        self.opened: Counter[str] = Counter()
        """How many began in this run, by cause."""
        self.blind_us: Counter[str] = Counter()
        """How long those lasted that ended in this run, by cause; gaps of several symbols add up."""
        self._note_symbols()

    @property
    def whole(self) -> OpenGap | None:
        """The gap for all symbols, while it is open."""
        return self._open.get(None)

    def open(
        self, cause: Cause, since_us: int, symbol: str | None = None, heard_us: int = 0, of: Symbols | None = None
    ) -> None:
        """Blindness begins behind `since_us`, for all, for one symbol, or for each symbol `of` a group. A gap that is
        open already goes on under its own cause; but one of its own takes a symbol out of its group's.

        `heard_us` is the last receipt where that was later: what came since was late, and says nothing of its time. The
        time up to it, or up to the last recorded trade, is unproven instead.
        """
        with self._lock:
            blind: Collection[str | None] = (symbol,) if of is None else of()
            heard_us = max([since_us, heard_us, *(self._recorded_us.get(one, 0) for one in blind)])
            facts: list[Fact] = []
            held = self._open.get(symbol)
            if symbol is not None and held is not None and held.cause in _OF_CONNECTIONS:
                facts += self._end([symbol], max(since_us, held.since_us) + 1)
                self._next[symbol] = held.cause, held.since_us, held.since_us
            for one in blind:
                held = self._open.get(one)
                if held is None:
                    facts.append(self._begin(cause, since_us, heard_us, one))
                elif symbol is None and one not in self._next:
                    silent = held.cause not in _OF_CONNECTIONS
                    if silent or since_us > held.since_us:
                        self._next[one] = cause, since_us, heard_us
                    if silent and since_us < held.since_us:  # it is blind for longer than by its own gap
                        facts += self._end([one], held.since_us)
                        facts.append(self._begin(held.cause, since_us, heard_us, one))
            self._tell(facts)

    def _begin(self, cause: Cause, since_us: int, heard_us: int, symbol: str | None) -> Fact:
        self._count += 1
        self.opened[cause] += 1
        gap = OpenGap(f"r{self._run:06d}-{self._count}", cause, heard_us, symbol)
        self._open[symbol] = gap
        late = {"heard": heard_us} if heard_us > since_us else {}
        told: Fact = {"gap": gap.id, "cause": cause, "since": since_us, "symbol": symbol, **late}
        return {"at": self._ledger.now_us(), "fact": "gap.opened", **told}

    def close(self, until_us: int, symbol: str | None = None, of: Symbols | None = None) -> None:
        """Blindness ends, where there was any: that of one symbol, or what all, or those `of` a group, were blind for
        as nobody was heard.
        """
        with self._lock:
            for one in [one for one in self._next if one == symbol or (symbol is None and (of is None or one in of()))]:
                del self._next[one]
            self._tell(self._end(self._unheard(of) if symbol is None else [symbol], until_us))

    def add(self, cause: Cause, since_us: int, until_us: int, heard_us: int, of: Symbols | None = None) -> None:
        """All, or those `of` a group, were blind behind `since_us` up to the receipt at `until_us`, as is known only
        now. What was received up to `heard_us` was late, see `open`.
        """
        with self._lock:
            facts: list[Fact] = []
            for symbol in (None,) if of is None else of():
                open_now = self._open.get(symbol)
                if open_now is not None:
                    facts += self._end([symbol], open_now.since_us + 1)
                facts.append(self._begin(cause, since_us, min(max(since_us, heard_us), until_us), symbol))
                facts += self._end([symbol], until_us)
                if open_now is not None:  # it goes on, and is told anew: a trade that ends it may wait to be recorded
                    facts.append(self._begin(open_now.cause, open_now.since_us, open_now.since_us, symbol))
            self._tell(facts)

    def divide(self, symbols: Iterable[str]) -> None:
        """Each of these is heard on a connection of its group: a gap for all that an earlier run left goes on as one
        for each of them.
        """
        with self._lock:
            whole = self._open.get(None)
            if whole is not None:
                now_us = max(self._ledger.now_us(), whole.since_us + 1)
                facts = self._end([None], now_us)
                blind = [symbol for symbol in symbols if symbol not in self._open]
                self._tell(facts + [self._begin(whole.cause, now_us - 1, now_us - 1, symbol) for symbol in blind])

    def find_unheard(self, of: Symbols) -> OpenGap | None:
        """A gap of the symbols `of` a group, while nobody hears them."""
        with self._lock:
            return next((self._open[symbol] for symbol in self._unheard(of)), None)

    def _unheard(self, of: Symbols | None) -> list[str | None]:
        """Whose gaps are their connection's: those of all symbols, or of a group."""
        unheard = self.blind_symbols - self.silent_symbols
        if unheard and of is not None:
            unheard = unheard.intersection(of())
        whole = [None] if of is None and None in self._open else []
        return [*whole, *sorted(unheard)]

    def hear(
        self,
        symbols: Collection[str],
        last_us: int,
        first_of: Callable[[str], int],
        first_after: Callable[[int], int | None],
        of: Symbols | None = None,
    ) -> None:
        """Trades of these symbols were recorded, the last one received at `last_us` at the latest: their gaps end.

        `first_of` tells when the first trade of a symbol was received, `first_after` when the first of all that came
        after a moment was; neither is asked where there is no gap. One step under the
        lock: a gap that another thread opens meanwhile begins behind these trades, or ends here.
        """
        with self._lock:
            self._tell(self._hear(symbols, first_of, first_after, of) if self._open else [])
            last_us = max(last_us, self._recorded_us.get(None, 0))  # two connections are read, each a block at a time
            full = len(self._recorded_us) >= _RECORDED_MAX
            known = [one for one in symbols if one in self._recorded_us] if full else symbols
            self._recorded_us.update(dict.fromkeys(known, last_us))
            self._recorded_us[None] = last_us

    def _hear(
        self,
        symbols: Collection[str],
        first_of: Callable[[str], int],
        first_after: Callable[[int], int | None],
        of: Symbols | None,
    ) -> list[Fact]:
        ended: list[tuple[str | None, int]] = [(one, first_of(one)) for one in self.silent_symbols & set(symbols)]
        unheard: dict[int, list[str | None]] = defaultdict(list)
        for one in self._unheard(of):
            unheard[self._open[one].since_us].append(one)
        for since_us, group in unheard.items():
            if (until_us := first_after(since_us)) is not None:
                ended += [(one, until_us) for one in group]
        facts: list[Fact] = []
        for one, until_us in ended:
            facts += self._end([one], until_us)
            if one in self._next:  # this trade came before the connection was lost
                cause, since_us, heard_us = self._next.pop(one)
                facts.append(self._begin(cause, since_us, heard_us, one))
                if (heard_again_us := first_after(heard_us)) is not None:
                    facts += self._end([one], heard_again_us)
        for one in [one for one in self._next if of is None or one in of()]:
            if first_after(self._next[one][2]) is not None:
                del self._next[one]
        return facts

    def step(self, by_us: int) -> None:
        """The wall clock was set by so much: receipts before it, on the clock as it is now."""
        with self._lock:
            self._recorded_us = {symbol: at_us + by_us for symbol, at_us in self._recorded_us.items()}
            self._open = {symbol: replace(gap, since_us=gap.since_us + by_us) for symbol, gap in self._open.items()}
            for symbol, (cause, since_us, heard_us) in self._next.items():
                self._next[symbol] = cause, since_us + by_us, heard_us + by_us

    def _end(self, symbols: Iterable[str | None], until_us: int) -> list[Fact]:
        facts: list[Fact] = []
        for symbol in symbols:
            gap = self._open.pop(symbol, None)
            if gap is not None:
                self.blind_us[gap.cause] += max(until_us - gap.since_us, 0)
                told = {"gap": gap.id, "cause": gap.cause, "since": gap.since_us, "until": until_us, "symbol": symbol}
                facts.append({"at": self._ledger.now_us(), "fact": "gap.closed", **told})
        return facts

    def _tell(self, facts: list[Fact]) -> None:
        """Record these together, and log what has ended: a line for all that ended alike."""
        if not facts:
            return
        self._note_symbols()
        self._ledger.record_all(facts)
        ended: dict[tuple[str, int], list[Fact]] = defaultdict(list)
        for fact in facts:
            if fact["fact"] == "gap.closed":
                ended[fact["cause"], fact["until"]].append(fact)
        for (cause, until_us), alike in ended.items():
            first = min(alike, key=itemgetter("since"))
            who = {"symbols": len(alike)} if len(alike) > 1 else {"symbol": first["symbol"]}
            seconds = round((until_us - first["since"]) / 1e6, 3)
            log.warning("gap.recorded", cause=cause, seconds=seconds, gap=first["gap"], **who)

    def drop_others(self, symbols: Collection[str], now_us: int) -> None:
        """An earlier run was blind for symbols that this one doesn't ask for: nobody waits for their next trade."""
        with self._lock:
            others = sorted(self.blind_symbols.difference(symbols))
            at_us = self._ledger.now_us()
            dropped: list[Fact] = [{"at": at_us, "fact": "symbol.dropped", "symbol": symbol} for symbol in others]
            self._tell(dropped + self._end(others, now_us))

    def _note_symbols(self) -> None:
        self.blind_symbols = frozenset(symbol for symbol in self._open if symbol is not None)
        silent = (symbol for symbol in self.blind_symbols if self._open[symbol].cause not in _OF_CONNECTIONS)
        self.silent_symbols = frozenset(silent)


class GroupGaps:
    """The gaps of one of several groups of symbols, opened and closed as Gaps has those of all."""

    def __init__(self, gaps: Gaps, symbols: Symbols) -> None:
        self._gaps = gaps
        self._symbols = symbols

    @property
    def whole(self) -> OpenGap | None:
        """One of the group's, while nobody hears it."""
        return self._gaps.find_unheard(self._symbols)

    def open(self, cause: Cause, since_us: int, symbol: str | None = None, heard_us: int = 0) -> None:
        """Of the whole group, or of one symbol."""
        self._gaps.open(cause, since_us, symbol, heard_us, self._symbols if symbol is None else None)

    def close(self, until_us: int, symbol: str | None = None) -> None:
        """Of the whole group, as its connection is heard; or of one symbol."""
        self._gaps.close(until_us, symbol, self._symbols)

    def add(self, cause: Cause, since_us: int, until_us: int, heard_us: int) -> None:
        """Of the whole group."""
        self._gaps.add(cause, since_us, until_us, heard_us, self._symbols)

    def hear(
        self,
        symbols: Collection[str],
        last_us: int,
        first_of: Callable[[str], int],
        first_after: Callable[[int], int | None],
    ) -> None:
        """Trades of these, which are of the group, were recorded."""
        self._gaps.hear(symbols, last_us, first_of, first_after, self._symbols)


def find_inherited_gaps(layout: Layout, history: History) -> list[OpenGap]:
    """The gaps that are open as this run starts: those that the last run left, or the crash that ended it."""
    gaps = [
        OpenGap(fact["gap"], fact["cause"], int(fact.get("heard") or fact["since"]), fact["symbol"])
        for fact in history.open_gaps
    ]
    whole = next((gap for gap in gaps if gap.symbol is None), None)
    if history.run and not history.stopped:
        journaled_us, of_groups = _find_last_journaled(layout, history.run, history.groups)
        since_us = journaled_us or history.last_received or history.first_at
        log.warning("crash.found", run=history.run, last_received=since_us)
        if whole is None:
            gaps.append(OpenGap(f"r{history.run + 1:06d}-0", "crash", since_us))
        else:  # what had been received before that gap, and was not journaled yet, is lost too
            gaps[gaps.index(whole)] = replace(whole, since_us=min(whole.since_us, since_us))
        # What others heard says nothing of a group's connection: behind the last frame of that its symbols are blind.
        whole_us, held = min(gap.since_us for gap in gaps if gap.symbol is None), {gap.symbol: gap for gap in gaps}
        for symbols, ended_us in zip(history.groups, of_groups, strict=True):
            for symbol in symbols if 0 < ended_us < whole_us else ():
                gap = held.get(symbol) or OpenGap(f"r{history.run + 1:06d}-0-{len(held)}", "crash", ended_us, symbol)
                if gap.cause in _OF_CONNECTIONS:
                    held[symbol] = replace(gap, since_us=min(gap.since_us, ended_us))
        gaps = list(held.values())
    else:
        soon_us = now_us() - _RESTART_US
        gaps = [
            replace(gap, cause="restart") if gap.cause == "shutdown" and gap.since_us > soon_us else gap for gap in gaps
        ]
    return gaps


def _find_last_journaled(layout: Layout, run: int, groups: Sequence[Collection[str]]) -> tuple[int, list[int]]:
    """When the last frame was received that this run journaled and no account names yet, of all and of each group; 0:
    there is none. Of a group that has no row it is the end of the first block: what came before that is not read.

    By the rules of reading: what stands behind the end of an abandoned segment was lost, if it was not journaled again.
    Of a segment that may not be read nothing is known: then it is the last frame before it.
    """
    first = next((file.id.number for file in list_segments(layout) if file.id.run == run), None)
    if first is None:
        return 0, [0] * len(groups)
    last_us, first_us, of_groups = 0, 0, [0] * len(groups)
    group_of: Mapping[str, int] = {symbol: at for at, symbols in enumerate(groups) for symbol in symbols}
    follower = Follower(layout, Cursor(first, 0), synced_only=False)
    try:
        for event in follower.read():
            if isinstance(event, Rows) and event.segment.run == run:
                last_us = event.last_received_us or last_us
                first_us = first_us or last_us
                if group_of and event.batch.num_rows and not event.counts.filled:  # all came on one connection
                    ended_us = pc.max(event.batch["received_at"].view(pa.int64())).as_py()
                    for at in {group_of.get(one, -1) for one in event.batch["symbol"].unique().to_pylist()} - {-1}:
                        of_groups[at] = max(of_groups[at], ended_us)
    except DamagedFile as error:
        log.warning("journal.unreadable", error=str(error))
    finally:
        follower.close()
    return last_us, [at_us or first_us for at_us in of_groups]
