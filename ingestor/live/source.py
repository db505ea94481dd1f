"""Where a server takes what it tells: a recording on this machine, or Redis."""

import threading
from collections.abc import Iterator, Mapping
from typing import NamedTuple, Protocol

from ingestor.live.board import Quote, State
from ingestor.live.updates import SymbolTrades


class Block(NamedTuple):
    """Trades that came together."""

    trades: list[SymbolTrades]
    received_at: float
    """When the newest was received, in seconds since 1970."""


class Look(NamedTuple):
    """How the recording stands."""

    states: Mapping[str, State]
    """Of each symbol that is claimed now."""
    recording: bool | None
    """Whether anybody records; None: unknown."""


class Source(Protocol):
    """One of them, open: what comes from then on is not missed."""

    def quotes(self) -> list[Quote]: ...

    def look(self) -> Look: ...

    def blocks(self, stop: threading.Event) -> Iterator[Block | None]:
        """For a thread of its own: block by block until `stop`; None where some were missed."""
        ...
