"""Frames of Finnhub that go straight into a recorder, and what its journal then holds."""

import json
from typing import Any

import pyarrow as pa
from recorders import Rig

from ingestor.journal.follower import Follower, Rows

AT_US = 1_795_000_000_000_000
"""When they were received, and when their trades happened."""
PING = b'{"type":"ping"}'
_AT_MS = AT_US // 1000


def frame(*trades: dict[str, Any]) -> bytes:
    items = [{"c": ["1"], "p": 10.0, "s": "AAPL", "t": _AT_MS, "v": 1} | trade for trade in trades]
    return json.dumps({"data": items, "type": "trade"}).encode()


def record_all(rig: Rig, *puts: tuple[int, list[bytes], int]) -> pa.Table:
    """Each put as a block of its own, then what the journal holds."""
    for put in puts:
        rig.buffer.put(*put)
        block = rig.buffer.take(0.0, 0.0)
        assert block is not None
        rig.recorder._record(block)
    rig.buffer.close()
    rig.recorder.run()
    return journaled(rig)


def journaled(rig: Rig) -> pa.Table:
    follower = Follower(rig.layout, None, synced_only=True)
    try:
        return pa.concat_tables([pa.table(event.batch) for event in follower.read() if isinstance(event, Rows)])
    finally:
        follower.close()
