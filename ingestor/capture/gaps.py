"""Blind times: opened with a cause, closed with the first proof; those that an earlier run left open are taken over."""

import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from typing import Literal

import structlog

from ingestor.errors import DamagedFile
from ingestor.history import History
from ingestor.journal.follower import Follower, Rows
from ingestor.journal.records import Cursor
from ingestor.layout import Layout, list_segments
from ingestor.ledger import Ledger, now_us

log = structlog.get_logger()

Cause = Literal["connection", "stall", "symbol_mute", "refused", "restart", "crash", "backpressure", "disk", "shutdown"]

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
    """

    def __init__(self, ledger: Ledger, run: int, inherited: Iterable[OpenGap]) -> None:
        """`inherited` are the gaps that the runs before left open."""
        self._ledger = ledger
        self._run = run
        self._count = 0
        self._lock = threading.Lock()
        self._open = {gap.symbol: gap for gap in inherited}
        self._recorded_us: dict[str | None, int] = {}
        """When the last recorded trade was received."""
        self.blind_symbols: frozenset[str] = frozenset()
        """The symbols with a gap of their own."""
        self.opened: Counter[str] = Counter()
        """How many began in this run, by cause."""
        self.blind_us: Counter[str] = Counter()
        """How long those lasted that ended in this run, by cause; gaps of several symbols add up."""
        self._note_symbols()

    @property
    def whole(self) -> OpenGap | None:
        """The gap for all symbols, while it is open."""
        return self._open.get(None)

    def open(self, cause: Cause, since_us: int, symbol: str | None = None, heard_us: int = 0) -> None:
        """Blindness begins behind `since_us`. A gap that is open already goes on under its own cause.

        `heard_us` is the last receipt where that was later: what came since was late, and says nothing of its time. The
        time up to it, or up to the last recorded trade, is unproven instead.
        """
        with self._lock:
            if symbol in self._open:
                return
            self._begin(cause, since_us, max(since_us, heard_us, self._recorded_us.get(symbol, 0)), symbol)

    def _begin(self, cause: Cause, since_us: int, heard_us: int, symbol: str | None) -> None:
        self._count += 1
        self.opened[cause] += 1
        gap = OpenGap(f"r{self._run:06d}-{self._count}", cause, heard_us, symbol)
        self._open[symbol] = gap
        self._note_symbols()
        late = {"heard": heard_us} if heard_us > since_us else {}
        self._ledger.record("gap.opened", gap=gap.id, cause=cause, since=since_us, symbol=symbol, **late)

    def close(self, until_us: int, symbol: str | None = None) -> None:
        """Blindness ends, where there was any."""
        with self._lock:
            self._close(until_us, symbol)

    def add(self, cause: Cause, since_us: int, until_us: int, heard_us: int) -> None:
        """All were blind behind `since_us` up to the receipt at `until_us`, as is known only now. What was received up
        to `heard_us` was late, see `open`.
        """
        with self._lock:
            open_now = self._open.get(None)
            if open_now is not None:
                now_us = max(self._ledger.now_us(), open_now.since_us)
                self._close(now_us, None)
            self._begin(cause, since_us, min(max(since_us, heard_us), until_us), None)
            self._close(until_us, None)
            if open_now is not None:  # it goes on, where it was left
                self._begin(open_now.cause, now_us - 1, now_us - 1, None)

    def hear(
        self,
        symbols: Collection[str],
        last_us: int,
        first_of: Callable[[str], int],
        first_after: Callable[[int], int | None],
    ) -> None:
        """Trades of these symbols were recorded, the last one received at `last_us` at the latest: their gaps end.

        `first_of` tells when the first trade of a symbol was received, `first_after` when the first of all that came
        after a moment was; neither is asked where there is no gap. One step under the
        lock: a gap that another thread opens meanwhile begins behind these trades, or ends here.
        """
        with self._lock:
            for symbol in self.blind_symbols.intersection(symbols):
                self._close(first_of(symbol), symbol)
            whole = self._open.get(None)
            until_us = None if whole is None else first_after(whole.since_us)
            if until_us is not None:
                self._close(until_us, None)
            last_us = max(last_us, self._recorded_us.get(None, 0))  # two connections are read, each a block at a time
            full = len(self._recorded_us) >= _RECORDED_MAX
            known = [one for one in symbols if one in self._recorded_us] if full else symbols
            self._recorded_us.update(dict.fromkeys(known, last_us))
            self._recorded_us[None] = last_us

    def step(self, by_us: int) -> None:
        """The wall clock was set by so much: receipts before it, on the clock as it is now."""
        with self._lock:
            self._recorded_us = {symbol: at_us + by_us for symbol, at_us in self._recorded_us.items()}
            self._open = {symbol: replace(gap, since_us=gap.since_us + by_us) for symbol, gap in self._open.items()}

    def _close(self, until_us: int, symbol: str | None) -> None:
        gap = self._open.pop(symbol, None)
        if gap is None:
            return
        self._note_symbols()
        self.blind_us[gap.cause] += max(until_us - gap.since_us, 0)
        self._ledger.record(
            "gap.closed", gap=gap.id, cause=gap.cause, since=gap.since_us, until=until_us, symbol=symbol
        )
        seconds = round((until_us - gap.since_us) / 1e6, 3)
        log.warning("gap.recorded", cause=gap.cause, seconds=seconds, gap=gap.id, symbol=symbol)

    def drop_others(self, symbols: Collection[str], now_us: int) -> None:
        """An earlier run was blind for symbols that this one doesn't ask for: nobody waits for their next trade."""
        for symbol in sorted(self.blind_symbols.difference(symbols)):
            self._ledger.record("symbol.dropped", symbol=symbol)
            self.close(now_us, symbol)

    def _note_symbols(self) -> None:
        self.blind_symbols = frozenset(symbol for symbol in self._open if symbol is not None)


def find_inherited_gaps(layout: Layout, history: History) -> list[OpenGap]:
    """The gaps that are open as this run starts: those that the last run left, or the crash that ended it."""
    gaps = [
        OpenGap(fact["gap"], fact["cause"], int(fact.get("heard") or fact["since"]), fact["symbol"])
        for fact in history.open_gaps
    ]
    whole = next((gap for gap in gaps if gap.symbol is None), None)
    if history.run and not history.stopped:
        since_us = _last_journaled_us(layout, history.run) or history.last_received or history.first_at
        log.warning("crash.found", run=history.run, last_received=since_us)
        if whole is None:
            gaps.append(OpenGap(f"r{history.run + 1:06d}-0", "crash", since_us))
        else:  # what had been received before that gap, and was not journaled yet, is lost too
            gaps[gaps.index(whole)] = replace(whole, since_us=min(whole.since_us, since_us))
    elif whole is not None and whole.cause == "shutdown" and now_us() - whole.since_us < _RESTART_US:
        gaps[gaps.index(whole)] = replace(whole, cause="restart")
    return gaps


def _last_journaled_us(layout: Layout, run: int) -> int:
    """When the last frame was received that this run journaled and no account names yet; 0: there is none.

    By the rules of reading: what stands behind the end of an abandoned segment was lost, if it was not journaled again.
    Of a segment that may not be read nothing is known: then it is the last frame before it.
    """
    first = next((file.id.number for file in list_segments(layout) if file.id.run == run), None)
    if first is None:
        return 0
    last_us = 0
    follower = Follower(layout, Cursor(first, 0), synced_only=False)
    try:
        for event in follower.read():
            if isinstance(event, Rows) and event.segment.run == run:
                last_us = event.last_received_us or last_us
    except DamagedFile as error:
        log.warning("journal.unreadable", error=str(error))
    finally:
        follower.close()
    return last_us
