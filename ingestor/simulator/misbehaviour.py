"""What goes wrong at a venue, by its own clock, and what that does to a connection."""

import asyncio

import structlog

from ingestor.simulator.connection import VenueConnection
from ingestor.simulator.faults import (
    Abort,
    Active,
    Close,
    HalfFrame,
    HugeFrame,
    Junk,
    Mute,
    Outage,
    Reset,
    Schedule,
    Sudden,
    Trickle,
)
from ingestor.simulator.wire import ENDLESS_FRAME, HALF_FRAME, JUNK

log = structlog.get_logger("ingestor.simulator")

CLOSE_GRACE_S = 2.0
"""How long a client has to answer a close frame."""
LOOK_S = 0.25
STOOD_STILL_S = 1.0


class Misbehaviour:
    """A schedule of faults that runs from now on."""

    def __init__(self, schedule: Schedule) -> None:
        """Needs a running event loop, lives by its clock."""
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
        """What the connection of this number meets that asks now to be let in."""
        now_s = self.now_s
        return self._schedule.active(now_s, number, now_s)

    def of(self, client: VenueConnection) -> Active:
        """What lasts for this client now."""
        return self._schedule.active(self.now_s, client.number, client.opened_s)

    def mute(self, seconds: float) -> None:
        """Nothing at all is sent to anybody for so long."""
        self._schedule = self._schedule.plus(Mute(at_s=self.now_s, for_s=seconds, pings=False))

    async def keep_time(self) -> None:
        """The clock stands still while the process or its machine does: no fault is over before anybody met it."""
        clock = asyncio.get_running_loop().time
        while True:
            before_s = clock()
            await asyncio.sleep(LOOK_S)
            late_s = clock() - before_s - LOOK_S
            if late_s > STOOD_STILL_S:
                self._started_s += late_s

    async def befall(self, client: VenueConnection) -> None:
        """The sudden faults of one connection, each at its time."""
        for time_s, fault in self._schedule.strikes(client.number, client.opened_s):
            await self._reach(time_s)
            log.info("fault.struck", connection=client.number, fault=fault.do)
            await _strike(client, fault)

    async def _reach(self, time_s: float) -> None:
        """Until that time; for a moment in any case, so that the others have their turn."""
        while True:
            await asyncio.sleep(time_s - self.now_s)
            if self.now_s >= time_s:  # the clock may have stood still
                return


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
