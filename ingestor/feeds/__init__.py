"""A feed is a venue's language: pure, no I/O, no clock. A new venue is one file here and one line in `make_feed`."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import pyarrow as pa

from ingestor.config.feeds import BinanceSettings, FeedSettings, JsonSettings


@dataclass(frozen=True, slots=True)
class Frames:
    """A block of frames of one connection in the order of arrival; the two lists have the same length."""

    payloads: list[bytes]
    """The text of each frame as it came: any bytes, valid or not."""
    received_us: list[int]
    """When each frame's bytes were read, in µs since 1970."""

    def __len__(self) -> int:
        return len(self.payloads)


@dataclass(frozen=True, slots=True)
class Reject:
    """A frame (`trade` is None) or one trade of a frame that is not recorded, and why."""

    frame: int
    """Index in the block."""
    trade: int | None
    """Index in the frame's list of trades."""
    reason: str
    """One of a small fixed set of words joined by `_`: it labels a metric."""


@dataclass(frozen=True, slots=True)
class Notice:
    """A frame by which the venue says something besides trades."""

    frame: int
    kind: str
    """`ping`, `ack` (a request was taken), `error`, `news`, or `unknown` for a type that this feed doesn't know."""
    text: str
    """What an `error` says, or the name of the `unknown` type, at most 200 characters; else empty."""
    symbol: str | None = None
    """The symbol that an `error` refuses, where it names one."""
    refuses: bool = False
    """True where an `error` says that a subscription was refused (with or without naming the symbol)."""


class FewRows(NamedTuple):
    """Trades of a few frames, row by row: of so few, Arrow's calls would take longer than their work."""

    values: list[tuple[Any, ...]]
    """In the order of the feed's columns; times in the unit of theirs."""
    frame_of: list[int]
    """Of each trade the index of its frame in the block, never falling."""


class Decoded(Protocol):
    """What a block of frames says. Each frame is counted once: decoded, rejected (a Reject without trade) or a
    notice.
    """

    @property
    def trades(self) -> pa.RecordBatch:
        """In order of arrival, with the feed's schema. Values are of the right type and present, not yet sane."""
        ...

    @property
    def frame_of(self) -> pa.Array:
        """int64, one a trade: the index of its frame in the block, never falling."""
        ...

    @property
    def few(self) -> FewRows | None:
        """The same trades as rows; None where there are only columns."""
        ...

    @property
    def rejects(self) -> list[Reject]: ...

    @property
    def notices(self) -> list[Notice]: ...


@dataclass(frozen=True, slots=True)
class DecodedColumns:
    """A Decoded that was read into columns."""

    trades: pa.RecordBatch
    frame_of: pa.Array
    rejects: list[Reject]
    notices: list[Notice]
    few: None = None


@dataclass(frozen=True, slots=True)
class Login:
    """What a venue wants to hear, and answers, before it is asked for anything."""

    message: str = field(repr=False)
    """With the key in it: never log it."""
    waits: bool
    """It is sent once `judge` says `asked`, else at once."""
    timeout_s: float
    """How long to wait for the answer."""
    judge: Callable[[bytes], tuple[Literal["asked", "accepted", "refused"], str] | None]
    """What a frame says of the login, and its words, without the key; None where it says nothing of it."""


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """What a venue wants to hear from time to time, or it hangs up."""

    message: str
    every_s: float


@dataclass(frozen=True, slots=True)
class Terms:
    """What a venue asks of its clients, and what may be expected of it."""

    message_pause_s: float = 0.0
    """Between two messages to it, at least."""
    max_age_s: float = math.inf
    """How old a connection may get: a little less than what the venue allows."""
    symbols_per_connection: int | None = None
    """So many symbols can be asked for on one connection; None: any number."""
    overlap_s: float = 5.0
    """How long it and its successor are both read: what one hears, the other hears within this time."""
    own_times: bool = True
    """A trade's time is the venue's; else it is that of its receipt."""
    never_closes: bool = False
    """All its markets trade around the clock, whatever their symbols look like."""
    may_replay: bool = False
    """After each subscription old trades may come once more, which nothing marks."""
    id_column: str | None = None
    """The column (int64) in which the venue counts the trades of each symbol without a hole; None: there is none."""
    signed_prices: bool = False
    """A price may be zero or below: whether that makes sense is the venue's affair."""
    login: Login | None = None
    heartbeat: Heartbeat | None = None


class Feed(Protocol):
    """A venue's language."""

    name: str
    terms: Terms
    schema: pa.Schema
    """What `decode` returns: VENUE_TRADES, then columns of the feed's own."""

    def url(self) -> str:
        """Where to connect, with the key in it: never log it."""
        ...

    def subscribe(self, symbols: Sequence[str], *, first: bool = False) -> list[str]:
        """The messages that ask for these symbols, in order; `first`: a connection begins with them."""
        ...

    def unsubscribe(self, symbols: Sequence[str]) -> list[str]:
        """The messages that give these symbols up."""
        ...

    def decode(self, frames: Frames) -> Decoded:
        """What the frames say. Never raises on bad input: what can't be read is a Reject."""
        ...

    def encode(self, trades: pa.RecordBatch) -> list[bytes]:
        """The same language backwards: frames that carry these trades. The simulator speaks it."""
        ...


def make_feed(settings: FeedSettings, key: str, secret: str = "") -> Feed:
    """The feed that these settings name. `key` and `secret` are empty where the venue asks for none."""
    if isinstance(settings, BinanceSettings):
        from ingestor.feeds.binance import Binance

        return Binance(settings.url, settings.stream)
    if isinstance(settings, JsonSettings):
        from ingestor.feeds.json_map import JsonMap

        return JsonMap(settings, key, secret)
    from ingestor.feeds.finnhub import Finnhub

    return Finnhub(settings.url, key)
