"""When US stocks trade, in New York's time. Vectorised: a year of trades is judged at once."""

from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from ingestor.dataset.bar_grid import Zone, find_pieces
from ingestor.dataset.times import find_zone

Session = Literal["all", "regular", "extended"]
NEW_YORK = "America/New_York"

_MINUTE_MS = 60_000
_DAY_MS = 86_400_000
_HOURS_MS = {
    "regular": ((9 * 60 + 30) * _MINUTE_MS, 16 * 60 * _MINUTE_MS),
    "extended": (4 * 60 * _MINUTE_MS, 20 * 60 * _MINUTE_MS),
}


def in_session(times_ms: pa.Array, session: Literal["regular", "extended"]) -> pa.Array:
    """Whether each moment lies in this session: regular 09:30 to 16:00, extended 04:00 to 20:00, weekdays. Half-open"""
    local_ms = _new_york(times_ms).local(times_ms)
    days = pc.divide(local_ms, _DAY_MS)
    clock_ms = pc.subtract(local_ms, pc.multiply(days, _DAY_MS))
    opens_ms, closes_ms = _HOURS_MS[session]
    open_hours = pc.and_(pc.greater_equal(clock_ms, opens_ms), pc.less(clock_ms, closes_ms))
    weekday = pc.subtract(pc.add(days, 3), pc.multiply(pc.divide(pc.add(days, 3), 7), 7))  # 1970 began on a Thursday
    return pc.and_(open_hours, pc.less(weekday, 5))


def _new_york(times_ms: pa.Array) -> Zone:
    span = pc.min_max(times_ms)
    first_ms, last_ms = span["min"].as_py() or 0, span["max"].as_py() or 0
    return Zone(find_pieces(find_zone(NEW_YORK), first_ms, last_ms))
