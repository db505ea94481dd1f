"""Fault injector: runs a schedule of faults by the venue's own clock, and does them to connections."""

import asyncio

import structlog

from ingestor.simulator import faults
from ingestor.simulator.connection import VenueConnection
from ingestor.simulator.protocols import ENDLESS_FRAME, HALF_FRAME, JUNK

log = structlog.get_logger("ingestor.simulator")

CLOSE_GRACE_S = 2.0
"""How long a client has to answer a close frame."""
CLOCK_CHECK_S = 0.25
STOOD_STILL_S = 1.0


class FaultInjector:
    """A schedule of faults that begins now."""

    def __init__(self, schedule: faults.Schedule) -> None:
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

    def at_handshake(self, number: int) -> faults.Active:
        """The lasting faults that a handshake meets which arrives now, as the connection of this number."""
        now_s = self.now_s
        return self._schedule.active(now_s, number, now_s)

    def active(self, client: VenueConnection) -> faults.Active:
        """The lasting faults that hold for this client now."""
        return self._schedule.active(self.now_s, client.number, client.opened_s)

    def mute(self, seconds: float) -> None:
        """Nothing at all is sent to anybody for so long."""
        self._schedule = self._schedule.plus(faults.Mute(at_s=self.now_s, for_s=seconds, pings=False))

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


async def _strike(client: VenueConnection, fault: faults.Sudden) -> None:
    match fault:
        case faults.Abort() | faults.Outage():
            client.abort()
        case faults.Reset():
            client.reset()
        case faults.Close():
            client.close(fault.code, fault.reason)
            await asyncio.sleep(CLOSE_GRACE_S)
            client.abort()
        case faults.HalfFrame():
            client.write(HALF_FRAME)
            client.jam()
        case faults.Trickle():
            await client.trickle(ENDLESS_FRAME, fault.pause_s)
        case faults.HugeFrame():
            client.pad_next(fault.size)
        case faults.Junk():
            client.write(JUNK[fault.kind])
