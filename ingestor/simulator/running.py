"""A venue in a thread of its own, beside whatever records from it."""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from ingestor.simulator.opening import open_venue
from ingestor.simulator.settings import VenueSettings
from ingestor.simulator.venue import Venue

T = TypeVar("T")


class RunningVenue:
    """A venue that runs in a thread of its own; made by `running_venue`."""

    def __init__(self, venue: Venue, stop: asyncio.Event, truth: Path | None) -> None:
        """In the venue's own event loop."""
        self.url = venue.url
        """Without a token."""
        self.truth = truth
        self._venue = venue
        self._stop = stop
        self._loop = asyncio.get_running_loop()

    @property
    def connections(self) -> int:
        """How many clients are connected now."""
        return self._call(lambda: self._venue.connections)

    @property
    def trades_sent(self) -> int:
        """To all clients together."""
        return self._call(lambda: self._venue.trades_sent)

    def drop(self) -> None:
        """Cuts every connection now, without a close frame."""
        self._call(self._venue.drop)

    def mute(self, seconds: float) -> None:
        """Sends nothing at all to anybody for so long."""
        self._call(lambda: self._venue.mute(seconds))

    def stop(self) -> None:
        """Asks the venue to end; `running_venue` waits for it. Once it has ended, this does nothing."""
        with suppress(RuntimeError):  # its event loop is closed
            self._loop.call_soon_threadsafe(self._stop.set)

    def _call(self, function: Callable[[], T]) -> T:
        async def call() -> T:
            return function()

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result()


@contextmanager
def running_venue(settings: VenueSettings) -> Iterator[RunningVenue]:
    """A venue for the time of the block, at whose end the truth is complete. Raises what broke the venue."""
    started: Future[RunningVenue] = Future()
    with ThreadPoolExecutor(1, "venue") as executor:
        ended = executor.submit(asyncio.run, _host(settings, started))
        both: list[Future[Any]] = [started, ended]
        wait(both, return_when=FIRST_COMPLETED)
        if not started.done():
            ended.result()
        venue = started.result()
        try:
            yield venue
        finally:
            venue.stop()
            ended.result()


async def _host(settings: VenueSettings, started: Future[RunningVenue]) -> None:
    venue = await open_venue(settings)
    stop = asyncio.Event()
    started.set_result(RunningVenue(venue, stop, settings.truth))
    await venue.run(stop)
