"""What a venue is to be."""

from dataclasses import dataclass, field
from pathlib import Path

from ingestor.config.feeds import JsonSettings
from ingestor.simulator.faults import Schedule
from ingestor.simulator.languages import PLAIN_JSON, VenueProtocol
from ingestor.simulator.market import MarketSettings

UNASKED = ("flat", "bars")
"""The protocols without subscriptions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VenueSettings:
    host: str = "127.0.0.1"
    port: int = 0
    """0 takes a free one."""
    protocol: VenueProtocol = "finnhub"
    json_feed: JsonSettings = PLAIN_JSON
    """What the protocol `json` speaks."""
    symbols: tuple[str, ...] = ()
    """What is traded here. Empty: whatever is asked for, except what begins with INVALID."""
    keys: frozenset[str] | None = field(default=frozenset({"demo"}), repr=False)
    """None accepts any."""
    limit: int = 50
    """Symbols a connection may subscribe to."""
    ping_interval_s: float = 60.0
    market: MarketSettings = field(default_factory=MarketSettings)
    replay: Path | None = None
    speed: float = 1.0
    faults: Schedule = field(default_factory=Schedule)
    truth: Path | None = None
    certificate: tuple[Path, Path] | None = None
    """Certificate and key (PEM) for TLS."""
