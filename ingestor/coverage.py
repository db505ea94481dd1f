"""Coverage: from the ledger's facts to what can be said of each symbol at each moment. Pure: no file, no clock.

A symbol is *asked for* from its first request until the run that asked for it ends and the next one does not ask, at
most up to the newest fact of the ledger (the horizon). During that time it is in one state:

    blind       a gap holds, for all symbols or for this one
    unproven    asked for, and no trade of it came on this connection yet: the venue acknowledges nothing; or the
                clock was wrong, so that nobody knows which time it was
    recorded    from its first trade on a connection to the next gap; proved by ids where the venue counts its trades
                and none is missing between the first and the last of them
    filled      it was blind or unproven, and a source's history has closed the gap since (`gap.filled`)

What a file told of a time that is neither recorded nor filled is *imported* (`file.imported`), of each gap from its
first trade of the symbol in it to its last: there are trades, and nobody says that they are all. It need not have been
asked for then.

A gap begins behind the last receipt that its fact names (`since`), in recordings of any age: the frame that was
received then, and each of its trades, is recorded and not in it.

Ids can prove more. Where they go on without a hole over a gap, or over the time until a new connection is proven, the
symbol was recorded all the while. Where some never came and no gap lies between, it was blind between the two trades
around them, of cause `lost`.

Where a clock that was set back has shown a moment twice, it is in the state that promises least, in the order above;
but it is unproven where it was recorded once and blind once: nobody knows which of both times was the right one.

What a clock skipped is a claim of its own: nobody watched. Where it is set back later, before anything showed that it
was right, only what it had skipped up to there has passed. Where it had been set back and returns, as that of a machine
without a battery does at each boot, it has skipped nothing but the time since it was set back.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, zip_longest
from operator import attrgetter, itemgetter
from typing import Literal, NamedTuple, TypeVar

from ingestor.facts import DAMAGED, FAR_US, Fact, id_proofs, proofs

State = Literal["recorded", "filled", "blind", "unproven", "imported"]
Proof = Literal["ids"]

_ENDLESS_US = 1000 * 86_400_000_000
"""What skips so much, and is not known to be right, is a clock at its factory's date: nothing was asked for."""

IRRELEVANT = '"fact":"segment.'
"""Lines of the ledger that hold this say nothing of coverage: nine tenths of its bytes need not be read."""


class Interval(NamedTuple):
    """A symbol's state from `start_us` up to but without `end_us`, in µs since 1970."""

    symbol: str
    state: State
    cause: str | None
    """Of blindness; else None."""
    start_us: int
    end_us: int
    proof: Proof | None = None
    """Of what is recorded: by what it is known that nothing is missing between its first and its last trade."""
    source: str | None = None
    """Of what is filled: whose history the trades are from; of what is imported, the file."""


class Gap(NamedTuple):
    """An interval of blindness, for one symbol or (None) for all that were asked for."""

    symbol: str | None
    cause: str
    start_us: int
    end_us: int


_BEST_FIRST: tuple[tuple[State, Proof | None], ...] = (
    ("recorded", "ids"), ("recorded", None), ("filled", None), ("imported", None), ("unproven", None),
    ("blind", None),
)  # fmt: skip

_SOURCED = ("filled", "imported")
"""States of which the source is told."""
_Piece = TypeVar("_Piece", Interval, Gap)


class Shares(NamedTuple):
    """The time that a symbol spent in each state, in µs."""

    recorded_us: int
    blind_us: int
    unproven_us: int
    filled_us: int = 0
    imported_us: int = 0


class Closed(NamedTuple):
    """The coverage of closed days, in any order; pieces may overlap, and end at midnight UTC."""

    intervals: Mapping[str, Sequence[Interval]]
    """By symbol."""
    gaps: Sequence[Gap]


@dataclass(frozen=True, slots=True)
class Coverage:
    """The coverage of a root."""

    horizon_us: int
    """The time of the newest fact: nothing is said of any moment at or beyond it."""
    gaps: list[Gap]
    """Sorted by start. Gaps of one symbol may overlap those of all."""
    _told_from_us: int
    _requests: "dict[str, list[_Request]]"
    _blind: "dict[str | None, list[_Stretch]]"
    _asked_for: "dict[str | None, list[_Stretch]]"
    _doubts: "dict[str | None, list[_Stretch]]"
    _proofs: "dict[str, list[_Stretch]]"
    _filled: "dict[str, list[_Stretch]]"
    _imported: "dict[str, list[_Stretch]]"
    _seen: "dict[str, list[_Stretch]]"
    """Where a clock was set back: what was recorded before one of its steps or after it, whatever it showed then."""
    _closed: Mapping[str, Sequence[Interval]]

    @property
    def symbols(self) -> list[str]:
        """Those that were ever requested or imported, sorted."""
        return sorted({*self._requests, *self._filled, *self._imported, *self._closed})

    def is_for_all(self, blind: Interval) -> bool:
        """Whether an interval of blindness is a part of a gap for all symbols."""
        whole = self._blind.get(None, [])
        before = bisect_right(whole, blind.start_us, key=itemgetter(0))
        return before > 0 and blind.end_us <= whole[before - 1][1] and blind.cause == whole[before - 1][2]

    def intervals(self, symbol: str) -> list[Interval]:
        """Sorted, without overlap, and without a hole while the symbol is asked for; empty where it never was.

        Made anew by each call: a year of an unsteady link has tens of thousands of them for each symbol.
        """
        requests = self._requests.get(symbol, [])
        blind = self._blind.get(None, [])
        if symbol in self._blind:
            blind = _settle(blind + self._blind[symbol])
        asked = self._asked_for.get(symbol, [])
        proofs = _clip(self._proofs.get(symbol, []), asked)
        blind = _without(_clip(blind, asked), proofs)
        doubts = _clip(_settle(self._doubts.get(None, []) + self._doubts.get(symbol, [])), asked)
        seen = self._seen.get(symbol, [])
        doubts = _settle([*doubts, *_clip(blind, seen)])
        blind = _without(blind, seen)
        spans = list(_spans(symbol, requests, self.horizon_us))
        waiting = _settle((requested, proven, "") for requested, proven, _, _ in spans)
        unproven = _settle([*_without(waiting, proofs), *doubts])
        recorded = _settle([*((proven, ended, proof) for _, proven, ended, proof in spans), *proofs])
        filled, imported = self._filled.get(symbol, []), self._imported.get(symbol, [])
        told = _stacked(symbol, blind, unproven, recorded, filled, imported)
        if self._told_from_us:  # what is before that was told by facts that are closed, but for what was found since
            found_since = clip(_stacked(symbol, blind, doubts, [], filled, imported), 0, self._told_from_us)
            told = [*found_since, *clip(told, self._told_from_us, _NEVER)]
        closed = self._closed.get(symbol)
        return join_intervals(symbol, [*closed, *told]) if closed else told


def find_coverage(
    facts: Iterable[Fact],
    symbols: Collection[str] | None = None,
    journaled_us: int = 0,
    closed: Closed = Closed({}, []),  # noqa: B008  it can't be changed
    *,
    set_back_us: int | None = None,
) -> Coverage:
    """The coverage of `symbols` (None: of all that were ever requested), from the facts of days that are not closed, in
    order, and from what was said of those that are.

    `journaled_us` is the receive time of the newest frame in the journal: in a live recording that is the last word,
    unless the frame may be from before the clock was set back. `set_back_us`: facts that are not among these say that
    the clock was set back to it, behind these.
    """
    story = _Story(symbols)
    for fact in facts:
        story.tell(fact)
    if set_back_us is not None:
        story.set_back(set_back_us)
    horizon_us = story.last_us if story.has_shown(journaled_us) else max(story.last_us, journaled_us)
    imported = {symbol: _settle(stretches) for symbol, stretches in story.imported.items()}
    if not horizon_us:  # no facts of a recorder are left
        ends = [one.end_us for pieces in closed.intervals.values() for one in pieces]
        horizon_us = max([0, *ends, *(stretches[-1][1] for stretches in imported.values() if stretches)])
    blind, id_proofs = story.end(horizon_us)
    seen = story.seen(horizon_us)
    asked: dict[str | None, list[_Stretch]] = {  # a symbol's requests, joined where one follows on another
        symbol: _union((start, end, "") for start, _, end, _ in _spans("", requests, horizon_us))
        for symbol, requests in story.requests.items()
    }
    asked[None] = _settle(span for spans in asked.values() for span in spans)
    gaps = [
        Gap(symbol, cause, start, end)
        for symbol, stretches in blind.items()
        for start, end, cause in _without(
            _clip(stretches, asked.get(symbol, [])), [] if symbol is None else id_proofs.get(symbol, [])
        )
    ]
    gaps = sorted(gaps, key=attrgetter("start_us"))
    if closed.gaps:
        gaps = _join_gaps([*closed.gaps, *gaps])
    filled = {symbol: _settle(stretches) for symbol, stretches in story.filled.items()}
    found = Coverage(
        horizon_us, gaps, story.told_from_us, story.requests, blind, asked, story.doubts, id_proofs, filled,
        imported, seen, closed.intervals,
    )  # fmt: skip
    closing = {symbol: _settle([*filled.get(symbol, []), *imported.get(symbol, [])]) for symbol in {*filled, *imported}}
    return replace(found, gaps=_still_blind(found, closing)) if closing or seen else found


def _still_blind(coverage: Coverage, filled: "Mapping[str, list[_Stretch]]") -> list[Gap]:
    """The parts of its gaps that nothing has closed; of a gap for all symbols those in which any is blind after all."""
    intervals = (one for symbol in coverage.symbols for one in coverage.intervals(symbol))
    blind = _union((one.start_us, one.end_us, "") for one in intervals if one.state == "blind")
    left: list[Gap] = []
    for gap in coverage.gaps:
        whole = [(gap.start_us, gap.end_us, gap.cause)]
        parts = _clip(whole, blind) if gap.symbol is None else _without(whole, filled.get(gap.symbol, []))
        left += [Gap(gap.symbol, cause, start, end) for start, end, cause in parts]
    return left


def join_intervals(symbol: str, pieces: Iterable[Interval]) -> list[Interval]:
    """One symbol's intervals out of several tellings of the same time: where two meet, the one that promises least
    stands; but what was filled or imported was blind before. Sorted, without overlap.
    """
    of_state: dict[tuple[State, Proof | None], list[_Stretch]] = {}
    for one in pieces:
        of_state.setdefault((one.state, one.proof), []).append(_stretch(one))
    blind, unproven, recorded, proved, filled, imported = (
        _settle(of_state.get(state, []))
        for state in (
            ("blind", None), ("unproven", None), ("recorded", None), ("recorded", "ids"), ("filled", None),
            ("imported", None),
        )
    )  # fmt: skip
    return _stacked(symbol, blind, unproven, _settle([*recorded, *_without(proved, recorded)]), filled, imported)


def _stretch(one: Interval) -> "_Stretch":
    return one.start_us, one.end_us, one.cause or one.proof or one.source or ""


def join_best(symbol: str, pieces: Iterable[Interval]) -> list[Interval]:
    """One symbol's intervals out of those of several recorders: where two meet, the one that promises most stands. Of
    two that are blind the cause of the one that began first is told. Sorted, without overlap.
    """
    of_state: dict[tuple[State, Proof | None], list[_Stretch]] = {}
    for one in pieces:
        of_state.setdefault((one.state, one.proof), []).append(_stretch(one))
    taken: list[_Stretch] = []
    layers: list[_Layer] = []
    for state, proof in _BEST_FIRST:
        free = _without(_settle(of_state.get((state, proof), [])), taken)
        taken = _settle([*taken, *free])
        layers += [
            (start, end, state, word if state == "blind" else None, proof, word if state in _SOURCED else None)
            for start, end, word in free
        ]
    return _joined(symbol, sorted(layers, key=itemgetter(0)))


def _join_gaps(gaps: Iterable[Gap]) -> list[Gap]:
    """Gaps that were told twice, or in parts, once and whole."""
    by_symbol: dict[str | None, list[_Stretch]] = {}
    for gap in gaps:
        by_symbol.setdefault(gap.symbol, []).append((gap.start_us, gap.end_us, gap.cause))
    joined: list[Gap] = []
    for symbol, stretches in by_symbol.items():
        last: Gap | None = None
        for start, end, cause in _settle(stretches):
            if last is not None and (last.end_us, last.cause) == (start, cause):
                last = joined[-1] = last._replace(end_us=end)
            else:
                last = Gap(symbol, cause, start, end)
                joined.append(last)
    return sorted(joined, key=attrgetter("start_us"))


def state_at(intervals: Sequence[Interval], at_us: int) -> Interval | None:
    """The interval of one symbol that holds this moment; None where the symbol is not asked for."""
    before = bisect_right(intervals, at_us, key=attrgetter("start_us"))
    found = intervals[before - 1] if before else None
    return found if found is not None and at_us < found.end_us else None


def clip(pieces: Iterable[_Piece], start_us: int, end_us: int) -> list[_Piece]:
    """The parts of intervals or gaps that lie in [start, end)."""
    return [
        piece._replace(start_us=max(piece.start_us, start_us), end_us=min(piece.end_us, end_us))
        for piece in pieces
        if piece.start_us < end_us and piece.end_us > start_us
    ]


def sum_shares(intervals: Iterable[Interval]) -> Shares:
    """The time spent in each state. For a span, clip first."""
    spent: Counter[State] = Counter()
    for one in intervals:
        spent[one.state] += one.end_us - one.start_us
    return Shares(spent["recorded"], spent["blind"], spent["unproven"], spent["filled"], spent["imported"])


def sum_proved(intervals: Iterable[Interval]) -> int:
    """The time (µs) that is recorded and proved by ids. For a span, clip first."""
    return sum(one.end_us - one.start_us for one in intervals if one.proof)


def blind_by_cause(gaps: Iterable[Gap]) -> dict[str, int]:
    """The time (µs) for which at least one symbol was blind, by cause. For a span, clip first."""
    by_cause: dict[str, list[_Stretch]] = {}
    for gap in gaps:
        by_cause.setdefault(gap.cause, []).append((gap.start_us, gap.end_us, gap.cause))
    return {
        cause: sum(end - start for start, end, _ in _settle(stretches)) for cause, stretches in sorted(by_cause.items())
    }


# The facts, in order

_NEVER = 1 << 62


@dataclass(slots=True)
class _Request:
    """The symbols that were asked for together on one connection. For each it lasts up to the symbol's next request."""

    requested_us: int
    proven_us: dict[str, int] | None = field(default_factory=dict)
    """By symbol; None marks an end: from then on it is not asked for."""
    proof: str = ""
    """`ids` where the venue counts the trades."""
    era: int = 0
    """How often the clock had been set back."""
    until_us: int | None = None
    """Where it ends before the next one begins."""


@dataclass(slots=True)
class _Skip:
    """What a clock has skipped: set forward, asleep, or from one run to the next."""

    era: int
    """See _Request."""
    start_us: int
    end_us: int
    cause: str
    request: _Request | None
    """By which the symbols were asked for meanwhile; None where that is not told apart, and the whole is blind."""
    from_right: bool
    """It was known to be right before."""
    sure: bool = False
    """And a connection has shown that it was afterwards."""


@dataclass(slots=True)
class _OpenGap:
    cause: str
    since_us: int
    implied: bool = False
    """No fact says so: it follows from a connection, or a run, that has ended."""


@dataclass(slots=True)
class _Story:
    """The facts so far, folded."""

    only: Collection[str] | None
    requests: dict[str, list[_Request]] = field(default_factory=dict)
    last_us: int = 0
    told_from_us: int = 0
    """These facts begin in the middle: of the time before that they tell nothing but gaps that were found later."""
    _eras: "list[dict[str | None, list[_Stretch]]]" = field(default_factory=lambda: [{}])
    """The gaps that have ended, since the start and since each time that the clock was set back."""
    _open: dict[str | None, _OpenGap] = field(default_factory=dict)
    _on: dict[tuple[str, int], _Request] = field(default_factory=dict)
    """By symbol and connection of this run: a proof may come when the connection is lost already."""
    _asked: dict[str, int] = field(default_factory=dict)
    """The connection on which each symbol was last requested in this run."""
    _requested: list[str] = field(default_factory=list)
    """The last request for all symbols; `_connection` is the one it was made on."""
    _connection: int = 0
    _run: int | None = None
    _damaged: bool = False
    _is_backfill: bool = False

    _proof: str = ""
    """Of this run's requests."""
    _lost: "dict[str | None, list[_Stretch]]" = field(default_factory=dict)
    """Between two trades, ids never came."""
    _proven: "dict[str, list[_Stretch]]" = field(default_factory=dict)
    """Between two trades, ids go on."""
    _skips: list[_Skip] = field(default_factory=list)
    """Nobody can have seen anything then, unless the clock shows that time once more."""
    _right_us: int = 0
    """The last that a clock has shown which was known to be right; 0: none was so far."""
    _is_right: bool = False

    filled: "dict[str, list[_Stretch]]" = field(default_factory=dict)
    """From whose history."""
    imported: "dict[str, list[_Stretch]]" = field(default_factory=dict)
    """From which file."""
    doubts: "dict[str | None, list[_Stretch]]" = field(default_factory=dict)
    """While the clock was wrong, or what came was late."""
    _doubted_us: int | None = None
    _lived: list[tuple[int, int]] = field(default_factory=list)
    """What the clock showed between two steps, while a run was there to see it."""
    _lived_from_us: int | None = None

    def tell(self, fact: Fact) -> None:
        """One more fact. A backfill or an import is no recorder: it tells what it brought, and nothing of what could be
        seen.
        """
        if fact["fact"] in {"run.started", "day.started"}:
            self._is_backfill = bool(fact.get("backfill"))
        if fact["fact"] == "connection.joined":
            self._trust_venue()
        if fact["fact"] == "gap.filled" and (self.only is None or fact["symbol"] in self.only):
            stretch = fact["since"] + 1, fact["until"], fact["source"]
            self.filled.setdefault(fact["symbol"], []).append(stretch)
        if fact["fact"] == "file.imported":
            for symbol, bounds in fact["spans"].items():
                if self.only is None or symbol in self.only:
                    spans = zip(bounds[::2], bounds[1::2], strict=False)
                    self.imported.setdefault(symbol, []).extend((*span, fact["source"]) for span in spans)
        if not self._is_backfill:
            self._tell(fact)

    def _tell(self, fact: Fact) -> None:  # noqa: C901, PLR0912  a case per fact
        if self._lived_from_us is None:
            self._lived_from_us = fact["at"]
        match fact["fact"]:
            case "symbols.proven" | "symbol.proven":
                for symbol, since_us in proofs(fact):
                    self._prove(symbol, fact["connection"], since_us)
            case "symbols.requested":
                self._request(fact)
            case "symbol.dropped":
                self._drop(fact["symbol"], fact["at"])
            case "gap.opened":
                # What came late before a gap is recorded, and proves nothing of its time: up to there it is unproven.
                since_us, heard_us, symbol = (
                    fact["since"] + 1,
                    int(fact.get("heard") or fact["since"]) + 1,
                    fact["symbol"],
                )
                if symbol not in self._open or self._open[symbol].implied:
                    self.doubts.setdefault(symbol, []).append((since_us, heard_us, ""))
                self._open_gap(symbol, _OpenGap(fact["cause"], heard_us))
            case "gap.closed":
                held = self._open.get(fact["symbol"])
                if "since" in fact and (held is None or held.implied):  # the line that opened it was lost
                    self._open[fact["symbol"]] = _OpenGap(fact["cause"], fact["since"] + 1)
                self._close_gap(fact["symbol"], fact["until"])
            case "connection.lost" | "connection.closed":
                self._open_gap(None, _OpenGap("connection", fact["at"], implied=True))
            case "run.stopped":
                self._stop(fact["at"])
            case "run.started":
                self._start(fact)
            case "day.started":
                self._resume(fact)
            case "ids.missed":
                self._lost.setdefault(fact["symbol"], []).append((fact["since"] + 1, fact["until"], "lost"))
            case "ids.proven":
                for symbol, since_us, until_us in id_proofs(fact):
                    self._proven.setdefault(symbol, []).append((since_us + 1, until_us, "ids"))
            case "clock.stepped":
                at_us, by_us = fact["at"], fact["by_us"]
                since_us = fact["since"] + 1 if "since" in fact else at_us - by_us  # versions before said no more
                self._step_clock(at_us, by_us, fact.get("slept_us", 0), since_us)
            case "clock.doubted":
                self._doubted_us = fact["since"]
                if self._is_right:
                    self._is_right, self._right_us = False, min(self._right_us, fact["since"])
                if self._skips:
                    self._skips[-1].sure = False
            case "clock.trusted":
                self._end_doubt(fact["at"])
            case _ if fact["fact"] == DAMAGED:
                # A line is lost, and with it perhaps the word that something was blind: all must be proven anew.
                self._damaged = True
                for symbol, connection in list(self._asked.items()):
                    self._begin([symbol], connection, _Request(fact["at"]))
        self.last_us = fact["at"] or self.last_us
        if self._is_right:
            self._right_us = self.last_us

    def has_shown(self, at_us: int) -> bool:
        """Whether the clock showed this time before it was set elsewhere."""
        return any(start_us <= at_us <= end_us for start_us, end_us in self._lived)

    def end(self, horizon_us: int) -> "tuple[dict[str | None, list[_Stretch]], dict[str, list[_Stretch]]]":
        """There are no more facts, and what goes on is known up to the horizon: all gaps, and what ids prove of each
        symbol, settled.
        """
        for symbol in list(self._open):
            self._close_gap(symbol, horizon_us)
        self._end_doubt(horizon_us)
        self._live_until(horizon_us, horizon_us)
        self._tell_skips()
        skipped = _settle((skip.start_us, skip.end_us, skip.cause) for skip in self._skips)
        proven = {symbol: _without(_settle(proofs), skipped) for symbol, proofs in self._proven.items()}
        lost, self._lost = self._lost, {}
        for symbol, stretches in lost.items():
            told = [gap for gaps in self._eras for of in (None, symbol) for gap in gaps.get(of, [])]
            for start, end, cause in stretches:
                if not any(gap_start < end and start < gap_end for gap_start, gap_end, _ in told):
                    self._lost.setdefault(symbol, []).append((start, end, cause))  # else that gap says why
        blind: dict[str | None, list[_Stretch]] = {}
        for gaps in [*self._eras, self._lost]:
            for of, stretches in gaps.items():
                blind.setdefault(of, []).extend(stretches)
        return {symbol: _join(_settle(stretches)) for symbol, stretches in blind.items()}, proven

    def _tell_skips(self) -> None:
        """What was skipped, and shown at no other time, becomes gaps."""
        lived = sorted(self._lived)
        for skip in self._skips:
            if skip.request and skip.end_us - skip.start_us >= _ENDLESS_US and not skip.sure:
                skip.end_us = skip.request.until_us = skip.start_us
            begin_us = skip.start_us
            for start_us, end_us in [*lived, (skip.end_us, skip.end_us)]:
                if begin_us < min(start_us, skip.end_us):
                    self._eras[skip.era].setdefault(None, []).append((begin_us, min(start_us, skip.end_us), skip.cause))
                begin_us = max(begin_us, end_us)

    def seen(self, horizon_us: int) -> "dict[str, list[_Stretch]]":
        """After the end: what was recorded of each symbol between two times that the clock was set back; empty where
        it never was.
        """
        if len(self._eras) == 1:
            return {}
        found: dict[str, list[_Stretch]] = {}
        for symbol, requests in self.requests.items():
            for era, of_era in groupby(requests, attrgetter("era")):
                told = self._eras[era]
                gaps = _settle([*told.get(None, []), *told.get(symbol, []), *self._lost.get(symbol, [])])
                recorded = _settle((proven, end, "") for _, proven, end, _ in _spans(symbol, list(of_era), horizon_us))
                found.setdefault(symbol, []).extend(_without(recorded, gaps))
        return {symbol: _union(stretches) for symbol, stretches in found.items()}

    def _request(self, fact: Fact) -> None:
        """`since`: another connection had brought them up to that receipt, and has ended."""
        symbols, connection, at_us = fact["symbols"], fact["connection"], fact["at"]
        if symbols is None:
            symbols = self._requested
        elif connection != self._connection:
            self._requested = symbols
        self._connection = connection
        if "since" not in fact:
            self._trust_venue()
        whole = self._open.get(None)
        if whole is not None and whole.implied:
            self._close_gap(None, at_us)
        # Asking again on the same connection takes nothing back.
        fresh = [one for one in symbols if self._asked.get(one) != connection]
        fresh = [one for one in fresh if self.only is None or one in self.only]
        since_us = min(fact.get("since", at_us - 1) + 1, at_us)
        if since_us < self.told_from_us:  # before the facts that are left
            for symbol in fresh:
                self.doubts.setdefault(symbol, []).append((since_us, self.told_from_us, ""))
        self._begin(fresh, connection, _Request(since_us))

    def _begin(self, symbols: Iterable[str], connection: int, request: _Request) -> None:
        request.proof, request.era = self._proof, len(self._eras) - 1
        for symbol in symbols:
            self.requests.setdefault(symbol, []).append(request)
            self._asked[symbol] = connection
            self._on[symbol, connection] = request

    def _prove(self, symbol: str, connection: int, since_us: int) -> None:
        """A trade that came before its symbol was asked for (dropped, then asked for again) proves nothing."""
        request = self._on.get((symbol, connection))
        if request is not None and request.proven_us is not None and since_us >= request.requested_us:
            request.proven_us.setdefault(symbol, since_us)

    def _open_gap(self, symbol: str | None, gap: _OpenGap) -> None:
        """A gap that is open already goes on, unless it was only implied."""
        held = self._open.get(symbol)
        if held is None or (held.implied and not gap.implied):
            self._open[symbol] = gap

    def _close_gap(self, symbol: str | None, until_us: int) -> None:
        gap = self._open.pop(symbol, None)
        if gap is not None:
            # Ends before the receipt that it began behind: the clock was set back, who knows how far. None is promised.
            back = until_us < gap.since_us - 1
            start_us, end_us = (until_us, gap.since_us) if back else (gap.since_us, until_us)
            self._eras[-1].setdefault(symbol, []).append((start_us, end_us, gap.cause))

    def _stop(self, at_us: int) -> None:
        whole = self._open.get(None)
        if whole is not None and whole.implied:
            whole.cause = "shutdown"
        self._open_gap(None, _OpenGap("shutdown", at_us, implied=True))

    def _resume(self, fact: Fact) -> None:
        """A day's file begins. What it says again counts where the facts before it are closed, lost or in doubt."""
        if self._run == fact["run"] and not self._damaged:
            return
        at_us = fact["at"]
        if self.requests and self._run != fact["run"]:
            self._open_gap(None, _OpenGap("crash", self.last_us, implied=True))
            for symbol in list(self._open):
                self._close_gap(symbol, at_us)
        elif not self.requests:
            self.told_from_us = at_us
        self._run, self._damaged = fact["run"], False
        self._proof = "ids" if fact.get("id_column") else ""
        self._requested = fact["requested"]
        self._on.clear()
        self._asked.clear()
        known = {symbol for request in fact["asked"] for symbol in (*request["proven"], *request["unproven"])}
        for symbol in self.requests.keys() - known:
            self._drop(symbol, at_us)
        for told in fact["asked"]:
            # As it was where this is where the telling begins; else nothing of the time before is promised by it.
            since_us = told["since"] if self.told_from_us == at_us else at_us
            request = _Request(since_us)
            request.proven_us = {symbol: max(proven_us, since_us) for symbol, proven_us in told["proven"].items()}
            symbols = (*told["proven"], *told["unproven"])
            self._begin([one for one in symbols if self.only is None or one in self.only], told["connection"], request)
            self._connection = max(self._connection, told["connection"])
        for gap in fact["open_gaps"]:
            self._open[gap["symbol"]] = _OpenGap(gap["cause"], max(gap["since"] + 1, at_us))
        self._doubted_us = max(fact["doubted"], at_us) if fact.get("doubted") else None
        self._is_right = "right" not in fact
        self._right_us = int(fact.get("right", at_us) or 0)
        if fact["unconnected"] is not None:
            self._open_gap(None, _OpenGap("connection", max(fact["unconnected"], at_us), implied=True))

    def _start(self, fact: Fact) -> None:
        """A run takes over the gaps that the last one left, under the causes by which it knows them."""
        if not self.requests and self._run is None and fact.get("asked"):
            # The facts of the run before are closed: this one says what that asked for, and up to when it is heard of.
            ended_us, whole = fact["ended"], [gap["since"] for gap in fact["open_gaps"] if gap["symbol"] is None]
            request = _Request(min([ended_us, *whole]) + 1)
            self.told_from_us, self.last_us = min(ended_us + 1, fact["at"]), ended_us
            self._begin([one for one in fact["asked"] if self.only is None or one in self.only], 0, request)
        at_us = fact["at"]
        for told in fact["open_gaps"]:
            held = self._open.get(told["symbol"])
            since_us = told["since"] + 1
            if held is not None and not held.implied:
                held.cause, held.since_us = told["cause"], min(held.since_us, since_us)
            self._open_gap(told["symbol"], _OpenGap(told["cause"], since_us))
        if self.requests:
            self._open_gap(None, _OpenGap("crash", self.last_us, implied=True))
            ended_us = max(self.last_us, self._open[None].since_us)
            for symbol in self.requests.keys() - set(fact.get("tickers", ())):  # asked for until the run before ended
                self._drop(symbol, ended_us)
            self._end_doubt(self.last_us)
            self._is_right, self._right_us = False, fact.get("right", ended_us)
            # Between two runs nobody watched the clock: what it skipped is blind.
            self._step_clock(at_us, at_us - ended_us, 0, ended_us)
        self._on.clear()
        self._asked.clear()
        self._run, self._damaged = fact.get("run"), False
        self._proof = "ids" if fact.get("id_column") else ""

    def _drop(self, symbol: str, ended_us: int) -> None:
        requests = self.requests.get(symbol)
        if requests and requests[-1].proven_us is not None:
            requests.append(_Request(ended_us, None, era=requests[-1].era))
        self._asked.pop(symbol, None)
        self._close_gap(symbol, ended_us)

    def _end_doubt(self, at_us: int) -> None:
        if self._doubted_us is not None:
            self.doubts.setdefault(None, []).append((self._doubted_us, at_us, ""))
            self._doubted_us = None

    def _step_clock(self, at_us: int, by_us: int, slept_us: int, showed_us: int) -> None:
        """A clock that is set back splits what is under way in two. What it skipped since it showed `showed_us`, set
        forward, over a sleep or between two runs, nobody saw: all symbols are blind for it, but for what it shows at
        another time, having been set back. A doubt about what it showed before ends here.
        """
        self._live_until(showed_us, at_us)
        doubted = self._doubted_us is not None
        if self._is_right:
            self._right_us = showed_us
        if by_us:
            self._end_doubt(showed_us)
        if by_us > 0:
            whole = self._open.get(None)
            cause = whole.cause if whole else "sleep" if 2 * slept_us > by_us else "clock"
            returns = showed_us < self._right_us <= at_us
            start_us = self._right_us if returns else showed_us
            from_right = self._is_right or self._right_us >= showed_us
            skip = _Skip(len(self._eras) - 1, start_us, at_us, cause, None, from_right)
            if returns or at_us - showed_us >= FAR_US:
                skip.request = _Request(start_us, era=skip.era)
                self._split(showed_us, at_us, skip.request, [None, *(self._open if returns else ())])
            self._skips.append(skip)
        elif by_us < 0:
            self.set_back(at_us)
            self.told_from_us = min(self.told_from_us, at_us)
            self._split(showed_us, at_us, None, list(self._open))
        if doubted:  # it is set right
            self._trust()
        elif abs(by_us) >= FAR_US:
            self._is_right = False

    def _trust_venue(self) -> None:
        """The venue's clock was seen, and agreed."""
        if self._doubted_us is None:
            self._trust()

    def _trust(self) -> None:
        """The clock is known to be right."""
        self._is_right = True
        for skip in self._skips:
            skip.sure = skip.from_right

    def set_back(self, at_us: int) -> None:
        """The clock was set back to this: what it had skipped beyond has not passed, if it was the clock that erred."""
        for skip in self._skips:
            if skip.request and not skip.sure and skip.end_us > at_us:
                skip.end_us = skip.request.until_us = max(skip.start_us, at_us)

    def _split(self, showed_us: int, at_us: int, meanwhile: _Request | None, gaps: Collection[str | None]) -> None:
        """What is under way, with these gaps, ends at what the clock showed, and begins anew at what it shows."""
        era, goes_on = len(self._eras) - 1, {}
        for symbol in self._open.keys() & set(gaps):
            gap = self._open[symbol]
            goes_on[symbol] = _OpenGap(gap.cause, at_us, gap.implied)
            if at_us < showed_us or gap.since_us < showed_us:
                self._close_gap(symbol, showed_us)
        self._open |= goes_on
        if at_us < showed_us:
            self._eras.append({})
        end = _Request(showed_us, None, era=era)
        for symbol, requests in self.requests.items():
            if requests[-1].proven_us is None:
                continue
            proven = {symbol: at_us} if symbol in requests[-1].proven_us else {}
            request = _Request(at_us, proven, self._proof, len(self._eras) - 1)
            requests.extend([end, request] if meanwhile is None else [end, meanwhile, request])
            if symbol in self._asked:
                self._on[symbol, self._asked[symbol]] = request

    def _live_until(self, showed_us: int, goes_on_us: int) -> None:
        """A run saw all that the clock showed until then; the clock, or the next run, goes on elsewhere."""
        if self._lived_from_us is not None and self._lived_from_us < showed_us:
            self._lived.append((self._lived_from_us, showed_us))
        self._lived_from_us = goes_on_us


# Stretches of time

_Layer = tuple[int, int, State, str | None, Proof | None, str | None]
"""Start, end, state, cause, proof, source."""

_Stretch = tuple[int, int, str]
"""Start, end, cause (of what is recorded: proof; of what is filled or imported: source). A list of them is *settled*
where it is sorted, without overlap.
"""


def _union(stretches: Iterable[_Stretch]) -> list[_Stretch]:
    """What any of these covers, joined where one follows on another; without their causes."""
    return _join((start, end, "") for start, end, _ in _settle(stretches))


def _join(stretches: Iterable[_Stretch]) -> list[_Stretch]:
    """Settled stretches; those that touch and say the same are one."""
    joined: list[_Stretch] = []
    for start, end, cause in stretches:
        if joined and joined[-1][1:] == (start, cause):
            joined[-1] = (joined[-1][0], end, cause)
        else:
            joined.append((start, end, cause))
    return joined


def _spans(symbol: str, requests: Sequence[_Request], horizon_us: int) -> Iterator[tuple[int, int, int, str]]:
    """(requested, proven, ended, proof) of each of this symbol's requests; one never proven is so at its end."""
    for request, following in zip_longest(requests, requests[1:]):
        if request.proven_us is not None:
            ended_us = horizon_us if following is None else min(following.requested_us, horizon_us)
            if request.until_us is not None:
                ended_us = min(ended_us, request.until_us)
            proven_us = min(request.proven_us.get(symbol, ended_us), ended_us)
            yield request.requested_us, proven_us, ended_us, request.proof


def _stacked(
    symbol: str,
    blind: list[_Stretch],
    unproven: list[_Stretch],
    recorded: list[_Stretch],
    filled: list[_Stretch],
    imported: list[_Stretch],
) -> list[Interval]:
    """A symbol's intervals: filled above blind, that above unproven, and that above recorded; imported above blind and
    unproven, where it is neither filled nor recorded. Each is settled.
    """
    layers: list[_Layer] = []
    layers += [(start, end, "filled", None, None, source) for start, end, source in filled]
    sure = _without(_without(_without(recorded, unproven), blind), filled)
    brought = _without(_without(imported, filled), sure) if imported else []
    layers += [(start, end, "imported", None, None, source) for start, end, source in brought]
    closed = _settle([*filled, *brought])
    layers += [(start, end, "blind", cause, None, None) for start, end, cause in _without(blind, closed)]
    doubtful = _without(_without(unproven, blind), closed)
    layers += [(start, end, "unproven", None, None, None) for start, end, _ in doubtful]
    layers += [(start, end, "recorded", None, "ids" if proof else None, None) for start, end, proof in sure]
    layers.sort(key=itemgetter(0))
    return _joined(symbol, layers)


def _joined(symbol: str, layers: Iterable[_Layer]) -> list[Interval]:
    """Sorted stretches as intervals; those that touch and say the same are one."""
    intervals: list[Interval] = []
    last: Interval | None = None
    for start, end, state, cause, proof, source in layers:
        told = state, cause, proof, source
        if last is not None and (last.end_us, last.state, last.cause, last.proof, last.source) == (start, *told):
            last = intervals[-1] = last._replace(end_us=end)
        else:
            last = Interval(symbol, state, cause, start, end, proof, source)
            intervals.append(last)
    return intervals


def _settle(stretches: Iterable[_Stretch]) -> list[_Stretch]:
    """Sorted, without the empty ones; where two overlap, the one that began first stands."""
    settled: list[_Stretch] = []
    free_from = -_NEVER
    for start, end, cause in sorted(stretches, key=itemgetter(0)):
        if end > free_from and end > start:
            settled.append((max(start, free_from), end, cause))
            free_from = end
    return settled


def _clip(stretches: Iterable[_Stretch], spans: Sequence[_Stretch]) -> list[_Stretch]:
    """The parts of settled stretches that lie in settled spans."""
    found = list(stretches)
    return [
        (max(start, span_start), min(end, span_end), cause)
        for span_start, span_end, _ in spans
        for start, end, cause in found
        if start < span_end and end > span_start
    ]


def _without(stretches: Iterable[_Stretch], taken: Sequence[_Stretch]) -> list[_Stretch]:
    """The parts of settled stretches that lie outside of `taken`, which is settled as well."""
    left: list[_Stretch] = []
    first = 0
    for start, end, cause in stretches:
        while first < len(taken) and taken[first][1] <= start:
            first += 1
        at, free_from = first, start
        while at < len(taken) and taken[at][0] < end:
            if taken[at][0] > free_from:
                left.append((free_from, taken[at][0], cause))
            free_from = taken[at][1]
            at += 1
        if free_from < end:
            left.append((free_from, end, cause))
    return left
