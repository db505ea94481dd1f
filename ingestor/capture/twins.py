"""Trades that two connections have brought, told by the venue's own ids: exact, where a venue has ids."""

from collections import deque
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

_MEMORY_US = 15_000_000
"""Two connections overlap for some seconds, and one hears a trade at most seconds after the other."""


@dataclass(frozen=True, slots=True)
class _Recorded:
    """Trades of one block."""

    connection: int
    received_us: int
    symbol: pa.Array
    trade_id: pa.Array


class Twins:
    """Remembers what was recorded a moment ago, and finds it again in what another connection brings."""

    def __init__(self, schema: pa.Schema) -> None:
        """Of a feed; without a column `trade_id` nothing is a twin."""
        self._known = "trade_id" in schema.names
        self._recent: deque[_Recorded] = deque()

    def find(self, connection: int, trades: pa.RecordBatch) -> pa.Array | None:
        """True for each trade that another connection has brought already; None where there is none."""
        others = [one for one in self._recent if one.connection != connection]
        if not others or not trades.num_rows:
            return None
        seen = pa.concat_arrays([_keys(one.symbol, one.trade_id) for one in others])
        found = pc.is_in(_keys(trades["symbol"], trades["trade_id"]), seen)
        return found if pc.any(found).as_py() else None

    def remember(self, connection: int, recorded: pa.RecordBatch, received_us: int) -> None:
        """These were recorded, received at that time."""
        if not self._known:
            return
        self._recent.append(_Recorded(connection, received_us, recorded["symbol"], recorded["trade_id"]))
        while abs(received_us - self._recent[0].received_us) > _MEMORY_US:  # a clock may be set back
            self._recent.popleft()


def _keys(symbol: pa.Array, trade_id: pa.Array) -> pa.Array:
    """An id is its symbol's: `BTCUSDT 12345`. No id holds a blank, so that no two keys are one."""
    return pc.binary_join_element_wise(symbol, trade_id.cast(pa.string()), " ")
