"""Faults of the simulated venue, the schedule that says when each of them strikes or holds, and its injector.

A script is a YAML list of faults: `{at: 5s, do: outage, for: 3s}` or `{connection: 2, after: 3s, do: abort}`.
`at` counts from the venue's start, `after` from the opening of each connection, or of the one that
`connection` numbers (handshakes count, from 1). Lasting faults hold until `for` has passed. Sudden ones strike
once, or `every` so often; with `at` and `for` also whatever connection is opened in that time. Time in which the
venue's machine stood still doesn't count. All but the injector is pure.
"""

import asyncio
import heapq
import math
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from importlib.resources import files
from itertools import chain, repeat
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

import structlog
import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from ingestor.config.types import Duration, Size
from ingestor.errors import ConfigError
from ingestor.simulator.connection import VenueConnection
from ingestor.simulator.market import Trade
from ingestor.simulator.protocols import ENDLESS_FRAME, HALF_FRAME, JUNK

log = structlog.get_logger("ingestor.simulator")

CLOSE_GRACE_S = 2.0
"""A client's time to answer a close frame."""
CLOCK_CHECK_S = 0.25
STOOD_STILL_S = 1.0

Seconds = Annotated[Duration, Field(ge=0, allow_inf_nan=False)]


class _When(BaseModel):
    """The part of a fault that says when it holds or strikes."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    at_s: Seconds | None = Field(default=None, validation_alias="at")
    connection: int | None = Field(default=None, ge=1)
    after_s: Seconds = Field(default=0.0, validation_alias="after")
    for_s: Seconds | None = Field(default=None, validation_alias="for")

    @model_validator(mode="after")
    def _one_clock(self) -> Self:
        if self.at_s is not None and (self.connection is not None or self.after_s):
            raise ValueError(
                "`at` counts from the venue's start, `after` and `connection` don't: give one or the others"
            )
        return self

    def window(self, number: int, opened_s: float) -> tuple[float, float] | None:
        """From when until when, in seconds since the venue's start, on that connection; None where never."""
        if self.connection not in {None, number}:
            return None
        start_s = opened_s + self.after_s if self.at_s is None else self.at_s
        return start_s, math.inf if self.for_s is None else start_s + self.for_s


class _Sudden(_When):
    every_s: Annotated[Seconds, Field(gt=0)] | None = Field(default=None, validation_alias="every")

    def strikes(self, number: int, opened_s: float) -> Iterator[float]:
        """When it strikes that connection, in seconds since the venue's start; endless with `every` alone."""
        window = self.window(number, opened_s)
        if window is None:
            return
        start_s, end_s = window
        if self.every_s is not None:
            missed = max(0, math.ceil((opened_s - start_s) / self.every_s))
            time_s = start_s + missed * self.every_s
            while time_s < end_s:
                yield time_s
                time_s += self.every_s
        elif start_s >= opened_s:
            yield start_s
        elif self.for_s is not None and opened_s < end_s:
            yield opened_s


class Answer(_When):
    """The handshake is answered with this HTTP status instead of an upgrade."""

    do: Literal["answer"] = "answer"
    status: int = Field(ge=200, le=599)
    location: str | None = None
    """Target of a redirect."""


class DelayHandshake(_When):
    do: Literal["delay_handshake"] = "delay_handshake"
    by_s: Seconds = Field(validation_alias="by")


class Outage(_Sudden):
    """Every open connection is aborted; new ones are closed before they can say a word."""

    do: Literal["outage"] = "outage"

    @model_validator(mode="after")
    def _for_a_time(self) -> Self:
        if self.at_s is None or self.for_s is None or self.every_s is not None:
            raise ValueError("an outage needs `at` and `for`, and nothing else: it concerns all connections")
        return self


class Close(_Sudden):
    """A close frame, as the protocol wants it."""

    do: Literal["close"] = "close"
    code: int = Field(default=1000, ge=1000, le=4999)
    reason: str = Field(default="", max_length=100)


class Abort(_Sudden):
    """The TCP connection is closed, without a close frame."""

    do: Literal["abort"] = "abort"


class Reset(_Sudden):
    """The TCP connection is reset (RST)."""

    do: Literal["reset"] = "reset"


class HalfFrame(_Sudden):
    """Half a frame, and then nothing more on this connection."""

    do: Literal["half_frame"] = "half_frame"


class Trickle(_Sudden):
    """A byte of a 1 MB frame now and then, which never becomes complete, and nothing else."""

    do: Literal["trickle"] = "trickle"
    pause_s: Annotated[Seconds, Field(gt=0)] = Field(default=0.1, validation_alias="pause")


class HugeFrame(_Sudden):
    """The next message with trades is padded with blanks to this size."""

    do: Literal["huge_frame"] = "huge_frame"
    size: Size = 8 << 20


class Junk(_Sudden):
    """Frames between the good ones that hold no trade."""

    do: Literal["junk"] = "junk"
    kind: Literal["garbage", "binary", "invalid_utf8", "unknown_types"]


class DropIds(_Sudden):
    """The next trades of these symbols are never sent, so many in all, and nothing says so."""

    do: Literal["drop_ids"] = "drop_ids"
    count: int = Field(default=1, ge=1, le=1_000_000)
    symbols: tuple[str, ...] = ()
    """Empty means all."""


class Mute(_When):
    """No trades of these symbols; without `pings` nothing at all, not even answers to protocol pings."""

    do: Literal["mute"] = "mute"
    symbols: tuple[str, ...] | Literal["first"] = ()
    """Empty means all, `first` the one that the client asked for first."""
    pings: bool = True
    until_resubscribed: bool = False
    """A symbol that is asked for again after the fault began flows again."""


class RefuseSymbols(_When):
    """`Invalid symbol` for symbols that are valid."""

    do: Literal["refuse_symbols"] = "refuse_symbols"
    symbols: tuple[str, ...] = ()
    """Empty means all."""
    named: bool = True
    """Whether the refusal names the symbol."""


class Repeat(_When):
    """Every message so many times in a row."""

    do: Literal["repeat"] = "repeat"
    times: int = Field(default=3, ge=1, le=1000)


class Reorder(_When):
    """Every trade in a message of its own, the latest first."""

    do: Literal["reorder"] = "reorder"


class ShiftTime(_When):
    """Trades carry a time that is off: back makes them late, ahead is a venue's wrong clock."""

    do: Literal["shift_time"] = "shift_time"
    back_s: Seconds = Field(default=0.0, validation_alias="back")
    ahead_s: Seconds = Field(default=0.0, validation_alias="ahead")


class Fragment(_When):
    """Every message in fragments with control frames between them."""

    do: Literal["fragment"] = "fragment"


Sudden = Outage | Close | Abort | Reset | HalfFrame | Trickle | HugeFrame | Junk | DropIds
Lasting = Answer | DelayHandshake | Mute | RefuseSymbols | Repeat | Reorder | ShiftTime | Fragment
Fault = Annotated[Sudden | Lasting, Field(discriminator="do")]
_SCRIPT = TypeAdapter(list[Fault])


class Active(NamedTuple):
    """The lasting faults that hold for one connection at one moment, each with since when it does."""

    faults: tuple[tuple[Lasting, float], ...] = ()

    def answer(self) -> Answer | None:
        """The fault that answers the handshake; None if it may succeed."""
        return next((fault for fault, _ in self.faults if isinstance(fault, Answer)), None)

    def handshake_delay_s(self) -> float:
        """Seconds by which the handshake is delayed."""
        return sum(fault.by_s for fault, _ in self.faults if isinstance(fault, DelayHandshake))

    def silent(self) -> bool:
        """Whether nothing at all is sent: no trades, no pings, no answers to pings."""
        return any(isinstance(fault, Mute) and not fault.pings for fault, _ in self.faults)

    def refusal(self, symbol: str) -> RefuseSymbols | None:
        """The fault that refuses a subscription to the symbol."""
        refusals = (fault for fault, _ in self.faults if isinstance(fault, RefuseSymbols))
        return next((fault for fault in refusals if not fault.symbols or symbol in fault.symbols), None)

    def muted(self, subscribed_s: Mapping[str, float]) -> frozenset[str]:
        """Which of a client's symbols are withheld; `subscribed_s` says when each was asked for, in order."""
        return frozenset(
            symbol
            for fault, since_s in self.faults
            if isinstance(fault, Mute)
            for symbol in _named(fault, subscribed_s)
            if not (fault.until_resubscribed and subscribed_s[symbol] > since_s)
        )

    def distorted(self, batches: list[list[Trade]]) -> list[list[Trade]]:
        """The trades of some messages as they will be sent: shifted in time, taken apart, out of order."""
        for fault, _ in self.faults:
            if isinstance(fault, ShiftTime):
                by_ms = round((fault.ahead_s - fault.back_s) * 1000)
                batches = [[trade._replace(time_ms=trade.time_ms + by_ms) for trade in batch] for batch in batches]
            elif isinstance(fault, Reorder):
                latest_first = sorted(chain.from_iterable(batches), key=lambda trade: -trade.time_ms)
                batches = [[trade] for trade in latest_first]
        return batches

    def copies(self) -> int:
        """The number of times that each message is sent."""
        return math.prod(fault.times for fault, _ in self.faults if isinstance(fault, Repeat))

    def fragments(self) -> bool:
        """Whether messages are sent in fragments."""
        return any(isinstance(fault, Fragment) for fault, _ in self.faults)


def _named(fault: Mute, subscribed_s: Mapping[str, float]) -> Sequence[str]:
    if fault.symbols == "first":
        return list(subscribed_s)[:1]
    return [symbol for symbol in subscribed_s if not fault.symbols or symbol in fault.symbols]


class Schedule:
    """Faults in time: in seconds since the venue's start. A connection has a number and an opening time."""

    def __init__(self, faults: Sequence[Sudden | Lasting] = ()) -> None:
        self._sudden = tuple(fault for fault in faults if isinstance(fault, _Sudden))
        self._lasting = tuple(fault for fault in faults if not isinstance(fault, _Sudden))

    def plus(self, fault: Sudden | Lasting) -> "Schedule":
        """The same schedule with one more fault."""
        return Schedule((*self._sudden, *self._lasting, fault))

    def active(self, now_s: float, number: int, opened_s: float) -> Active:
        """The lasting faults that hold for a connection now."""
        windows = ((fault, fault.window(number, opened_s)) for fault in self._lasting)
        return Active(tuple((fault, w[0]) for fault, w in windows if w is not None and w[0] <= now_s < w[1]))

    def outage(self, now_s: float) -> bool:
        """Whether new connections are turned away now."""
        windows = (fault.window(0, 0.0) for fault in self._sudden if isinstance(fault, Outage))
        return any(w is not None and w[0] <= now_s < w[1] for w in windows)

    def strikes(self, number: int, opened_s: float) -> Iterator[tuple[float, Sudden]]:
        """(time, fault) of each sudden fault of a connection, in order; maybe endless."""
        each = [zip(fault.strikes(number, opened_s), repeat(fault), strict=False) for fault in self._sudden]
        return heapq.merge(*each, key=lambda strike: strike[0])


def load_faults(source: str) -> Schedule:
    """The schedule of a script file, or of preset names joined by `,`. Raises ConfigError."""
    path = Path(source)
    if path.suffix in {".yaml", ".yml"} or path.is_file():
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: the fault script can't be read: {error}") from error
        return parse_faults(text, str(path))
    presets = read_presets()
    faults: list[Sudden | Lasting] = []
    for name in map(str.strip, source.split(",")):
        if name not in presets:
            near = get_close_matches(name, presets, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(presets)}"
            raise ConfigError(f"no fault preset or script file is named {name!r}: {hint}")
        faults += _validated(presets[name], name)
    return Schedule(faults)


def parse_faults(text: str, name: str) -> Schedule:
    """The schedule of a script; `name` begins each line of the ConfigError that it raises."""
    try:
        # Every scalar stays text: a symbol `ON` is no boolean.
        script = yaml.load(text, Loader=yaml.BaseLoader)  # noqa: S506  makes no objects
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: not YAML: {error}") from error
    return Schedule(_validated(script, name))


def _validated(script: Any, name: str) -> list[Any]:
    if not isinstance(script, list):
        raise ConfigError(f"{name}: a fault script is a list such as `- {{at: 5s, do: outage, for: 3s}}`")
    try:
        return _SCRIPT.validate_python(script)
    except ValidationError as error:
        mistakes = []
        for details in error.errors():
            index, *rest = details["loc"]
            what = ": ".join([*map(str, rest), details["msg"].removeprefix("Value error, ")])
            mistakes.append(f"{name}: fault {int(index) + 1}: {what}")
        raise ConfigError("\n".join(mistakes)) from error


def read_presets() -> dict[str, Any]:
    """The named faults that come with the simulator, not yet validated."""
    text = files("ingestor.simulator").joinpath("presets.yaml").read_text(encoding="utf-8")
    presets = yaml.load(text, Loader=yaml.BaseLoader)  # noqa: S506  makes no objects
    return dict(presets)


class FaultInjector:
    """A schedule of faults that begins now."""

    def __init__(self, schedule: Schedule) -> None:
        """Needs a running event loop, whose clock it uses."""
        self._schedule = schedule
        self._started_s = asyncio.get_running_loop().time()

    @property
    def now_s(self) -> float:
        """Seconds since the venue's start in which it ran: the clock of the faults."""
        return asyncio.get_running_loop().time() - self._started_s

    @property
    def outage(self) -> bool:
        """Nobody is let in now."""
        return self._schedule.outage(self.now_s)

    def at_handshake(self, number: int) -> Active:
        """The lasting faults that a handshake meets which arrives now, as the connection of this number."""
        now_s = self.now_s
        return self._schedule.active(now_s, number, now_s)

    def active(self, client: VenueConnection) -> Active:
        """The lasting faults that hold for this client now."""
        return self._schedule.active(self.now_s, client.number, client.opened_s)

    def mute(self, seconds: float) -> None:
        """Nothing at all is sent to anybody for so long."""
        self._schedule = self._schedule.plus(Mute(at_s=self.now_s, for_s=seconds, pings=False))

    async def keep_time(self) -> None:
        """The clock stands still while the process or its machine does: no fault is over before anybody met it."""
        clock = asyncio.get_running_loop().time
        while True:
            before_s = clock()
            await asyncio.sleep(CLOCK_CHECK_S)
            late_s = clock() - before_s - CLOCK_CHECK_S
            if late_s > STOOD_STILL_S:
                self._started_s += late_s

    async def inject(self, client: VenueConnection) -> None:
        """The sudden faults of one connection, each at its time."""
        for time_s, fault in self._schedule.strikes(client.number, client.opened_s):
            while True:
                await asyncio.sleep(time_s - self.now_s)  # at least once per fault: the other tasks have their turn
                if self.now_s >= time_s:  # the clock may have stood still
                    break
            log.info("fault.struck", connection=client.number, fault=fault.do)
            await _strike(client, fault)


async def _strike(client: VenueConnection, fault: Sudden) -> None:
    match fault:
        case Abort() | Outage():
            client.abort()
        case Reset():
            client.reset()
        case Close():
            client.close(fault.code, fault.reason)
            await asyncio.sleep(CLOSE_GRACE_S)
            client.abort()
        case HalfFrame():
            client.write(HALF_FRAME)
            client.jam()
        case Trickle():
            await client.trickle(ENDLESS_FRAME, fault.pause_s)
        case HugeFrame():
            client.pad_next(fault.size)
        case Junk():
            client.write(JUNK[fault.kind])
        case DropIds():
            client.drop_next(fault.count, fault.symbols)
