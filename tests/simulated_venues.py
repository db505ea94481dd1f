"""Simulated venues for tests: one that runs in a thread of its own, and the truth file that it leaves."""

import asyncio
import io
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from ingestor.schema import VENUE_TRADES
from ingestor.simulator.venue import Venue, VenueSettings, open_venue

T = TypeVar("T")

_LINE_FIELDS: "tuple[pa.Field[Any], ...]" = (
    pa.field("sent_us", pa.int64()),
    pa.field("connection", pa.int64()),
    pa.field("frame", pa.int64()),
    pa.field("s", pa.string()),
    pa.field("p", pa.float64()),
    pa.field("t", pa.int64()),
    pa.field("v", pa.float64()),
    pa.field("c", pa.list_(pa.string())),
)
_LINE = pa.schema(_LINE_FIELDS)


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

    def drop(self, place: int | None = None) -> None:
        """Cuts every connection now, without a close frame; or one, by its place in the order of their opening."""
        self._call(lambda: self._venue.drop(place))

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

    async def run() -> None:
        opened = await open_venue(settings)
        stop = asyncio.Event()
        started.set_result(RunningVenue(opened, stop, settings.truth))
        await opened.run(stop)

    with ThreadPoolExecutor(1, "venue") as executor:
        ended = executor.submit(asyncio.run, run())
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


def read_truth(path: Path) -> pa.Table:
    """The truth file as columns: VENUE_TRADES, then `sent_us`, `connection`, `frame` (int64), as sent.

    `conditions` is null where `c` was null or absent, a time where the protocol sends none. A last line that
    a killed venue left unfinished is not read.
    """
    text = path.read_bytes()
    text = text[: text.rfind(b"\n") + 1]
    lines = _LINE.empty_table()
    if text:
        options = pj.ParseOptions(explicit_schema=_LINE, unexpected_field_behavior="error")
        lines = pj.read_json(io.BytesIO(text), parse_options=options)
    conditions: Any = pc.binary_join(lines["c"], ",")
    timestamp = lines["t"].cast(VENUE_TRADES.field("timestamp").type)
    sent = ("sent_us", "connection", "frame")
    columns = [timestamp, lines["s"], lines["p"], lines["v"], conditions, *(lines[name] for name in sent)]
    return pa.table(columns, [*VENUE_TRADES.names, *sent])
