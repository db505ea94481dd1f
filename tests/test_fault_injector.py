"""The clock of the simulator's faults, and who else has his turn."""

import asyncio
import time
from types import SimpleNamespace
from typing import Any

from ingestor.simulator.faults import CLOCK_CHECK_S, STOOD_STILL_S, FaultInjector, HugeFrame, Schedule


def test_the_clock_of_the_faults_stands_still_with_the_process() -> None:
    async def stand_still() -> tuple[float, float]:
        injector = FaultInjector(Schedule([]))
        keeping = asyncio.create_task(injector.keep_time())
        await asyncio.sleep(0)
        before_s = injector.now_s
        time.sleep(CLOCK_CHECK_S + STOOD_STILL_S + 0.25)  # noqa: ASYNC251  the whole loop stands still
        await asyncio.sleep(CLOCK_CHECK_S)
        keeping.cancel()
        return before_s, injector.now_s

    before_s, after_s = asyncio.run(stand_still())
    assert 0 < after_s - before_s < STOOD_STILL_S


def test_faults_that_are_due_faster_than_they_strike_leave_the_others_their_turn() -> None:
    async def strike() -> tuple[int, int]:
        sizes: list[int] = []
        client: Any = SimpleNamespace(number=1, opened_s=0.0, pad_next=sizes.append)
        injector = FaultInjector(Schedule([HugeFrame(after_s=0, every_s=1e-6, for_s=1e-3, size=1)]))
        striking = asyncio.create_task(injector.inject(client))
        turns = 0
        while not striking.done():
            turns += 1
            await asyncio.sleep(0)
        return turns, len(sizes)

    turns, strikes = asyncio.run(strike())
    assert turns >= strikes > 900
