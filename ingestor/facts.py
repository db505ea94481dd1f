"""Facts of the ledger: their lines and checksums, the fields that readers rely on, and the state of a run.

Pure: no file, no clock.
"""

import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from ingestor.layout import SegmentId

Fact = dict[str, Any]
"""`at` (µs since 1970), `fact` (its name), its fields: the list is in `ledger`."""

DAMAGED = "line.damaged"
"""Stands in a reading for a line that the disk has changed: what it said is not known. `at` is the fact before it."""

STATE = "state.kept"
"""The one line of `state.json`, which is no fact of the ledger."""

_CRC = ',"crc":"%08x"}'
_CRC_LENGTH = len(_CRC % 0)
_LIMIT = 1 << 62
_RESTATED = (
    "format",
    "version",
    "feed",
    "venue",
    "columns",
    "id_column",
    "tickers",
    "formats",
    "first_segment",
    "raw",
    "backfill",
    "imports",
    "groups",
)

_read_json = json.JSONDecoder().raw_decode


def encode_line(fact: Fact) -> str:
    """A fact as a line with its checksum."""
    text = json.dumps(fact, separators=(",", ":"))[:-1]
    return f"{text}{_CRC % zlib.crc32(text.encode())}\n"


def decode_line(line: str, *, checked: bool = True) -> Fact | None:
    """The fact in a line, or None where there is none: cut, changed, or not of the shape of a fact.

    `checked`: it must carry its checksum, as all but those of format 1 do.
    """
    text = line.rstrip("\n")
    if checked:
        told, crc = text[:-_CRC_LENGTH], text[-_CRC_LENGTH:]
        if crc != _CRC % zlib.crc32(told.encode(errors="replace")):
            return None
        text = told + "}"
    try:
        fact, _ = _read_json(text)  # a third of what `json.loads` takes
    except (ValueError, RecursionError):
        return None
    return fact if isinstance(fact, dict) and is_sound(fact) else None


def is_sound(fact: Fact) -> bool:
    """Whether a fact holds what those who read it rely on. Facts of other names say nothing to them."""
    if not _is_text(fact.get("fact")) or not _is_whole(fact.get("at")):
        return False
    required = _REQUIRED.get(fact["fact"], ())
    return all(name in fact for name in required) and all(
        check(fact[name]) for name, check in _CHECKS.items() if name in fact
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -_LIMIT < value < _LIMIT


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and {str}.issuperset(map(type, value))


def _is_numbers(value: Any) -> bool:
    if not isinstance(value, dict) or not {int}.issuperset(map(type, value.values())):
        return False
    return not value or (min(value.values()) > -_LIMIT and max(value.values()) < _LIMIT)


def _parses(parse: Callable[[str], Any], value: Any) -> bool:
    try:
        return isinstance(value, str) and parse(value) is not None
    except ValueError:
        return False


def _is_date(value: Any) -> bool:
    return _parses(date.fromisoformat, value)


def _are_gaps(value: Any) -> bool:
    needed = {"gap", "cause", "since", "symbol"}
    return isinstance(value, list) and all(
        isinstance(gap, dict) and needed <= gap.keys() and all(_CHECKS[name](gap[name]) for name in needed)
        for gap in value
    )


def _are_asked(value: Any) -> bool:
    """Symbols (of a run that has ended), or what is asked for on each connection (of one that goes on)."""
    needed = {"connection": _is_whole, "since": _is_whole, "proven": _is_numbers, "unproven": _is_texts}
    return _is_texts(value) or (
        isinstance(value, list)
        and all(isinstance(one, dict) and all(check(one.get(name)) for name, check in needed.items()) for one in value)
    )


_CHECKS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("gap", "cause", "sink", "source", "why"), _is_text),
    **dict.fromkeys(
        ("run", "format", "first_segment", "closed", "connection", "since", "until", "by_us", "base", "ended", "rows",
         "first_received", "last_received", "aside", "began", "heard", "slept_us", "first", "last", "count",
         "right"),
        _is_whole,
    ),
    **dict.fromkeys(("tickers", "formats", "columns", "requested"), _is_texts),
    **dict.fromkeys(("counts", "reasons", "repeated", "before"), _is_numbers),
    **dict.fromkeys(
        ("from", "to"), lambda place: isinstance(place, list) and len(place) == 2 and all(map(_is_whole, place))
    ),
    **dict.fromkeys(("symbol", "id_column"), lambda value: value is None or _is_text(value)),
    "symbols": lambda value: value is None or _is_texts(value) or _is_numbers(value),
    **dict.fromkeys(("unconnected", "doubted"), lambda value: value is None or _is_whole(value)),
    "spans": lambda value: isinstance(value, dict) and all(
        isinstance(bounds, list) and all(map(_is_whole, bounds)) for bounds in value.values()
    ),
    "segment": lambda value: _is_whole(value) or _parses(SegmentId.parse, value),
    "dates": lambda value: _is_numbers(value) and all(map(_is_date, value)),
    "date": _is_date,
    "open_gaps": _are_gaps,
    "asked": _are_asked,
}  # fmt: skip
"""The type of a field, in whichever fact it stands."""

_REQUIRED: dict[str, tuple[str, ...]] = {
    "run.started": ("open_gaps",),
    "day.started": ("run", "open_gaps", "asked", "requested", "unconnected", "segment", "closed", "last_received"),
    "symbols.requested": ("connection", "symbols"),
    "symbols.proven": ("connection", "base", "symbols"),
    "symbol.proven": ("connection", "symbol", "since"),
    "symbol.dropped": ("symbol",),
    "gap.opened": ("gap", "cause", "since", "symbol"),
    "gap.closed": ("gap", "until", "symbol"),
    "gap.filled": ("symbol", "since", "until", "source", "rows"),
    "file.imported": ("source", "spans", "rows"),
    "gap.unfilled": ("symbol", "since", "until", "source", "why"),
    "ids.missed": ("symbol", "first", "last", "count", "since", "until"),
    "ids.proven": ("base", "before", "symbols"),
    "clock.stepped": ("by_us",),
    "clock.doubted": ("since",),
    "segment.closed": ("segment", "first_received", "last_received", "counts", "reasons", "aside"),
    "segment.sealed": ("segment", "dates"),
    "day.deleted": ("date",),
    "raw.deleted": ("date",),
    "sink.skipped": ("sink", "rows", "from", "to"),
}
"""The fields that a fact must have, of those that are read."""


# The state of a run


@dataclass(slots=True)
class _Asked:
    """One symbol: asked for on this connection since then, and proven since."""

    connection: int
    since_us: int
    proven_us: int | None = None


FAR_US = 600_000_000
"""A clock that goes this far, forward or back, may have gone wrong."""


@dataclass(slots=True)
class RunState:
    """The facts of a run, folded. The next day's file, and the next run, begin with it.

    Bounded by the number of symbols, however long the run.
    """

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
    """The receive time of the last frame that it accounted for."""
    stopped: bool = False
    """Whether `run.stopped` is among the facts."""
    error: str | None = None
    """The error that ended it."""
    damaged: bool = False
    """Whether lines of it were changed by the disk: it may have said more than is known."""
    gaps: dict[str, Fact] = field(default_factory=dict)
    """The open ones."""
    requested: list[str] = field(default_factory=list)
    """The last request for all symbols."""
    unconnected_us: int | None = None
    """Since when no connection is open; None while one is."""
    doubted_us: int | None = None
    """Since when the wall clock is known to be wrong; None while it isn't."""
    right_us: int = 0
    """The last that a clock has shown which was known to be right; 0: none was so far."""
    is_right: bool = False
    """Whether this run's is known to be right now: the venue's was seen since it was set, and agreed."""
    asked: dict[str, _Asked] = field(default_factory=dict)
    _connection: int = 0
    _recorder_ended_us: int = 0
    """Of a backfill, which sees nothing: the end of what the recorder before it has seen."""

    @property
    def ended_us(self) -> int:
        """The end of what it has seen, at most."""
        whole = [int(gap["since"]) for gap in self.gaps.values() if gap["symbol"] is None]
        return max([self._recorder_ended_us or self.last_us, *whole])

    def tell(self, fact: Fact) -> None:  # noqa: C901, PLR0912  a case per fact
        """One more fact."""
        match fact["fact"]:
            case "symbols.proven" | "symbol.proven":
                for symbol, since_us in proofs(fact):
                    one = self.asked.get(symbol)
                    known = one is None or one.connection != fact["connection"] or one.proven_us is not None
                    if one is not None and not known and since_us >= one.since_us:
                        one.proven_us = since_us
            case "segment.closed":
                number = SegmentId.parse(fact["segment"]).number
                self.segment, self.closed = max(self.segment, number), max(self.closed, number)
                self.last_received_us = max(self.last_received_us, fact["last_received"])
            case "symbols.requested":
                self._request(fact)
            case "connection.joined":
                self.is_right = self.is_right or self.doubted_us is None
            case "symbol.dropped":
                self.asked.pop(fact["symbol"], None)
                self.gaps = {gap: told for gap, told in self.gaps.items() if told["symbol"] != fact["symbol"]}
            case "gap.opened":
                names = ("gap", "cause", "since", "symbol", "heard")
                self.gaps[fact["gap"]] = {name: fact[name] for name in names if name in fact}
            case "gap.closed":
                self.gaps.pop(fact["gap"], None)
            case "connection.lost" | "connection.closed":
                self.unconnected_us = fact["at"] if self.unconnected_us is None else self.unconnected_us
            case "clock.stepped":
                self._step_clock(fact)
            case "clock.doubted":
                self.doubted_us = fact["since"]
                if self.is_right:
                    self.is_right, self.right_us = False, min(self.right_us, fact["since"])
            case "clock.trusted":
                self.doubted_us = None
            case "run.started":
                self._start(fact)
            case "day.started":
                self._resume(fact)
            case "run.stopped":
                self.stopped, self.error = True, fact.get("error")
            case _ if fact["fact"] == DAMAGED:
                self.damaged = True
        self.last_us = fact["at"] or self.last_us
        if self.is_right:
            self.right_us = self.last_us

    def restate(self, at_us: int) -> Fact:
        """The `day.started` with which a file of this run can be understood without those before it."""
        requests: dict[tuple[int, int], Fact] = {}
        for symbol, one in self.asked.items():
            request = requests.setdefault(
                (one.connection, one.since_us),
                {"connection": one.connection, "since": one.since_us, "proven": {}, "unproven": []},
            )
            if one.proven_us is None:
                request["unproven"].append(symbol)
            else:
                request["proven"][symbol] = one.proven_us
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
            "asked": list(requests.values()),
            **({"ended": self._recorder_ended_us} if self._recorder_ended_us else {}),
            **({} if self.is_right else {"right": self.right_us}),
        }

    def _start(self, fact: Fact) -> None:
        ended_us = fact.get("ended", 0)
        tickers = set(fact.get("tickers", ()))
        self.run, self.began_us = int(fact.get("run", 0)), int(fact["at"])
        self._recorder_ended_us = ended_us if fact.get("backfill") else 0
        self.started = {name: fact[name] for name in _RESTATED if name in fact}
        self.segment = max(self.segment, fact.get("first_segment", 1) - 1)
        self.closed = max(self.closed, fact.get("closed", 0))
        self.last_received_us, self.stopped, self.error = 0, False, None
        self.gaps = {gap["gap"]: gap for gap in fact["open_gaps"]}
        self._move_gaps(fact["at"])
        self.asked = {symbol: _Asked(0, ended_us) for symbol in fact.get("asked", ()) if symbol in tickers}
        self.requested, self._connection, self.doubted_us = [], 0, None
        whole = [gap["since"] + 1 for gap in fact["open_gaps"] if gap["symbol"] is None]
        self.is_right, self.right_us = False, fact.get("right", max([ended_us, *whole]))

    def _resume(self, fact: Fact) -> None:
        self.run, self.began_us = fact["run"], int(fact.get("began") or fact["at"])
        self._recorder_ended_us = fact.get("ended", 0) if fact.get("backfill") else 0
        self.started = {name: fact[name] for name in _RESTATED if name in fact}
        self.segment, self.closed = fact["segment"], fact["closed"]
        self.last_received_us, self.stopped, self.error = fact["last_received"], False, None
        self.gaps = {gap["gap"]: gap for gap in fact["open_gaps"]}
        self.requested, self.unconnected_us = fact["requested"], fact["unconnected"]
        self.doubted_us = fact.get("doubted")
        self.is_right, self.right_us = "right" not in fact, int(fact.get("right", fact["at"]) or 0)
        self.asked = {}
        for request in fact["asked"]:
            since: dict[str, int | None] = {**request["proven"], **dict.fromkeys(request["unproven"])}
            for symbol, since_us in since.items():
                self.asked[symbol] = _Asked(request["connection"], request["since"], since_us)
        self._connection = max((request["connection"] for request in fact["asked"]), default=0)

    def _request(self, fact: Fact) -> None:
        connection, symbols = fact["connection"], fact["symbols"]
        if symbols is None:
            symbols = self.requested
        elif connection != self._connection:
            self.requested = list(symbols)
        self._connection = connection
        self.unconnected_us = None
        seen_us = fact.get("since")  # up to then another connection had brought them
        self.is_right = self.is_right or (self.doubted_us is None and seen_us is None)
        since_us = fact["at"] if seen_us is None else min(seen_us + 1, fact["at"])
        for symbol in symbols:
            if symbol not in self.asked or self.asked[symbol].connection != connection:
                self.asked[symbol] = _Asked(connection, since_us)

    def _step_clock(self, fact: Fact) -> None:
        """Set back, the clock begins everything anew: what was proven is so from what it shows now."""
        at_us, by_us = fact["at"], fact["by_us"]
        if self.is_right:
            self.right_us = fact["since"] + 1 if "since" in fact else at_us - by_us
        if by_us:
            self.is_right = self.doubted_us is not None or (self.is_right and abs(by_us) < FAR_US)
            self.doubted_us = None
        if by_us < 0:
            self._move_gaps(at_us)
            for one in self.asked.values():
                one.since_us = at_us
                one.proven_us = None if one.proven_us is None else at_us

    def _move_gaps(self, at_us: int) -> None:
        """Where the clock was set back, a gap begins anew at what it shows."""
        self.gaps = {
            gap: told if told["since"] <= at_us else {**told, "since": at_us} for gap, told in self.gaps.items()
        }


def id_proofs(fact: Fact) -> Iterator[tuple[str, int, int]]:
    """Of `ids.proven`: the symbols, each with the receipts (µs) between which no trade of it was missed."""
    for symbol, offset_us in fact["symbols"].items():
        if symbol in fact["before"]:
            yield symbol, fact["base"] + fact["before"][symbol], fact["base"] + offset_us


def proofs(fact: Fact) -> Iterator[tuple[str, int]]:
    """The symbols that a fact proves, each with the time (µs) since which it is proven."""
    if fact["fact"] == "symbol.proven":
        yield fact["symbol"], fact["since"]
    else:
        for symbol, offset_us in fact["symbols"].items():
            yield symbol, fact["base"] + offset_us
