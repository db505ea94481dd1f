"""Where a run stands, folded from the facts of its ledger: what the next day's file and the next run begin with.

Bounded by the number of symbols, however long the run. Pure: no file, no clock.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from ingestor.facts import DAMAGED, Fact
from ingestor.layout import SegmentId

_RESTATED = ("format", "version", "feed", "venue", "columns", "tickers", "formats", "first_segment")


@dataclass(slots=True)
class _Asked:
    """One symbol: asked for on this connection since then, and proven since."""

    connection: int
    since_us: int
    proven_us: int | None = None


@dataclass(slots=True)
class RunState:
    """What the facts of a run amount to: what the next day's file, and the next run, begin with."""

    run: int = 0
    started: Fact = field(default_factory=dict)
    """Of its `run.started`: format, version, feed, columns, tickers, formats, first_segment."""
    began_us: int = 0
    """The run's first word."""
    last_us: int = 0
    """Its last."""
    segment: int = 0
    """The highest number of a segment that is named."""
    closed: int = 0
    """The highest of one that has an account."""
    last_received_us: int = 0
    """When the last frame that it accounted for was received."""
    stopped: bool = False
    """Whether `run.stopped` was said."""
    error: str | None = None
    """What ended it then."""
    damaged: bool = False
    """Whether lines of it were changed by the disk: it may have said more than is known."""
    gaps: dict[str, Fact] = field(default_factory=dict)
    """The open ones."""
    requested: list[str] = field(default_factory=list)
    """What was last asked for as a whole."""
    unconnected_us: int | None = None
    """Since when no connection is open; None while one is."""
    doubted_us: int | None = None
    """Since when the wall clock is known to be wrong; None while it isn't."""
    asked: dict[str, _Asked] = field(default_factory=dict)
    _connection: int = 0

    @property
    def ended_us(self) -> int:
        """Up to when it claims to have seen, at most."""
        whole = [int(gap["since"]) for gap in self.gaps.values() if gap["symbol"] is None]
        return max([self.last_us, *whole])

    def tell(self, fact: Fact) -> None:
        """One more fact."""
        handle = self._HANDLERS.get(fact["fact"])
        if handle is not None:
            handle(self, fact)
        self.last_us = fact["at"] or self.last_us

    def restate(self, at_us: int) -> Fact:
        """The `day.started` with which a file of this run can be understood without those before it."""
        lives: dict[tuple[int, int], Fact] = {}
        for symbol, one in self.asked.items():
            life = lives.setdefault(
                (one.connection, one.since_us),
                {"connection": one.connection, "since": one.since_us, "proven": {}, "unproven": []},
            )
            if one.proven_us is None:
                life["unproven"].append(symbol)
            else:
                life["proven"][symbol] = one.proven_us
        return {
            "at": at_us,
            "fact": "day.started",
            **self.started,
            "run": self.run,
            "began": self.began_us,
            "segment": self.segment,
            "closed": self.closed,
            "last_received": self.last_received_us,
            "open_gaps": list(self.gaps.values()),
            "requested": self.requested,
            "unconnected": self.unconnected_us,
            "doubted": self.doubted_us,
            "asked": list(lives.values()),
        }

    def _start(self, fact: Fact) -> None:
        ended_us = fact.get("ended", 0)
        tickers = set(fact.get("tickers", ()))
        self.run, self.began_us = int(fact.get("run", 0)), int(fact["at"])
        self.started = {name: fact[name] for name in _RESTATED if name in fact}
        self.segment = max(self.segment, fact.get("first_segment", 1) - 1)
        self.closed = max(self.closed, fact.get("closed", 0))
        self.last_received_us, self.stopped, self.error = 0, False, None
        self.gaps = {gap["gap"]: gap for gap in fact["open_gaps"]}
        self.asked = {symbol: _Asked(0, ended_us) for symbol in fact.get("asked", ()) if symbol in tickers}
        self.requested, self._connection, self.doubted_us = [], 0, None
        self.unconnected_us = ended_us if self.asked else None

    def _resume(self, fact: Fact) -> None:
        self.run, self.began_us = fact["run"], int(fact.get("began") or fact["at"])
        self.started = {name: fact[name] for name in _RESTATED if name in fact}
        self.segment, self.closed = fact["segment"], fact["closed"]
        self.last_received_us, self.stopped, self.error = fact["last_received"], False, None
        self.gaps = {gap["gap"]: gap for gap in fact["open_gaps"]}
        self.requested, self.unconnected_us = fact["requested"], fact["unconnected"]
        self.doubted_us = fact.get("doubted")
        self.asked = {}
        for life in fact["asked"]:
            since: dict[str, int | None] = {**life["proven"], **dict.fromkeys(life["unproven"])}
            for symbol, since_us in since.items():
                self.asked[symbol] = _Asked(life["connection"], life["since"], since_us)
        self._connection = max((life["connection"] for life in fact["asked"]), default=0)

    def _request(self, fact: Fact) -> None:
        connection, symbols = fact["connection"], fact["symbols"]
        if symbols is None:
            symbols = self.requested
        elif connection != self._connection:
            self.requested = list(symbols)
        self._connection = connection
        self.unconnected_us = None
        for symbol in symbols:
            if symbol not in self.asked or self.asked[symbol].connection != connection:
                self.asked[symbol] = _Asked(connection, fact["at"])

    def _prove(self, fact: Fact) -> None:
        for symbol, since_us in proofs(fact):
            one = self.asked.get(symbol)
            known = one is None or one.connection != fact["connection"] or one.proven_us is not None
            if one is not None and not known and since_us >= one.since_us:
                one.proven_us = since_us

    def _drop(self, fact: Fact) -> None:
        self.asked.pop(fact["symbol"], None)
        self.gaps = {gap: told for gap, told in self.gaps.items() if told["symbol"] != fact["symbol"]}

    def _open_gap(self, fact: Fact) -> None:
        names = ("gap", "cause", "since", "symbol", "heard")
        self.gaps[fact["gap"]] = {name: fact[name] for name in names if name in fact}

    def _close_gap(self, fact: Fact) -> None:
        self.gaps.pop(fact["gap"], None)

    def _disconnect(self, fact: Fact) -> None:
        self.unconnected_us = fact["at"] if self.unconnected_us is None else self.unconnected_us

    def _doubt_clock(self, fact: Fact) -> None:
        self.doubted_us = fact["since"]

    def _trust_clock(self, _: Fact) -> None:
        self.doubted_us = None

    def _step_clock(self, fact: Fact) -> None:
        """Set back, the clock begins everything anew: what was proven is so from what it shows now."""
        if fact["by_us"]:
            self.doubted_us = None
        if fact["by_us"] < 0:
            for one in self.asked.values():
                one.since_us = fact["at"]
                one.proven_us = None if one.proven_us is None else fact["at"]

    def _close_segment(self, fact: Fact) -> None:
        number = SegmentId.parse(fact["segment"]).number
        self.segment, self.closed = max(self.segment, number), max(self.closed, number)
        self.last_received_us = max(self.last_received_us, fact["last_received"])

    def _stop(self, fact: Fact) -> None:
        self.stopped, self.error = True, fact.get("error")

    def _note_damage(self, _: Fact) -> None:
        self.damaged = True

    _HANDLERS: ClassVar[dict[str, Callable[["RunState", Fact], None]]] = {
        "run.started": _start,
        "day.started": _resume,
        "symbols.requested": _request,
        "symbols.proven": _prove,
        "symbol.proven": _prove,
        "symbol.dropped": _drop,
        "gap.opened": _open_gap,
        "gap.closed": _close_gap,
        "connection.lost": _disconnect,
        "connection.closed": _disconnect,
        "clock.stepped": _step_clock,
        "clock.doubted": _doubt_clock,
        "clock.trusted": _trust_clock,
        "segment.closed": _close_segment,
        "run.stopped": _stop,
        DAMAGED: _note_damage,
    }


def proofs(fact: Fact) -> Iterator[tuple[str, int]]:
    """Which symbols a fact proves, and since when (µs)."""
    if fact["fact"] == "symbol.proven":
        yield fact["symbol"], fact["since"]
    else:
        for symbol, offset_us in fact["symbols"].items():
            yield symbol, fact["base"] + offset_us
