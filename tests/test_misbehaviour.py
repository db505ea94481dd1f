"""The clock of the simulator's faults."""

import asyncio
import time

from ingestor.simulator.faults import Schedule
from ingestor.simulator.misbehaviour import LOOK_S, STOOD_STILL_S, Misbehaviour


def test_the_clock_of_the_faults_stands_still_with_the_process() -> None:
    async def stand_still() -> tuple[float, float]:
        misbehaviour = Misbehaviour(Schedule([]))
        keeping = asyncio.create_task(misbehaviour.keep_time())
        await asyncio.sleep(0)
        before_s = misbehaviour.now_s
        time.sleep(LOOK_S + STOOD_STILL_S + 0.25)  # noqa: ASYNC251  the whole loop stands still
        await asyncio.sleep(LOOK_S)
        keeping.cancel()
        return before_s, misbehaviour.now_s

    before_s, after_s = asyncio.run(stand_still())
    assert 0 < after_s - before_s < STOOD_STILL_S
