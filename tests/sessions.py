"""A session and a recorder that listen to a simulated venue, for tests that look at what is made of it."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from recorders import KEY, Rig, make_rig, running
from simulated_venues import RunningVenue, running_venue

from ingestor.capture.connector import Backoff
from ingestor.simulator.faults import Lasting, Schedule, Sudden
from ingestor.simulator.market import MarketSettings
from ingestor.simulator.venue import VenueSettings

VENUE = VenueSettings(keys=frozenset({KEY}), market=MarketSettings(rate=300, seed=7), ping_interval_s=3600.0)
SOON = Backoff(again_s=0.05, refused_s=0.2, throttled_s=0.2, symbol_s=0.5)


@contextmanager
def recording(
    root: Path, *faults: Sudden | Lasting, venue: dict[str, Any] | None = None, **options: Any
) -> Iterator[tuple[RunningVenue, Rig]]:
    """A venue with these faults, and a session and a recorder that listen to it."""
    settings = replace(VENUE, faults=Schedule(faults), **(venue or {}))
    with (
        running_venue(settings) as venue_there,
        running(make_rig(root, venue_there.url, **{"waits": SOON, **options})) as rig,
    ):
        yield venue_there, rig


@contextmanager
def listening() -> Iterator[tuple[str, socket.socket]]:
    """A server that accepts TCP connections, in the kernel, and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"ws://127.0.0.1:{server.getsockname()[1]}", server
