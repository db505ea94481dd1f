"""The edges of bars, at the wall clock's multiples of an interval, in any time zone. Pure.

The edges of bars are the moments at which a clock on the wall shows a multiple of the interval since its midnight.
Where the clock is set forward over one, the edge is that moment; where it is set back, the repeated hour has its own
edges. A bar goes from one edge to the next: so bars never overlap, and a bar across such a night is an hour shorter
or longer.
"""

import re
from bisect import bisect_right
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo

import pyarrow as pa
import pyarrow.compute as pc

from ingestor.texts import parse_duration

DAY_MS = 86_400_000
_MARGIN_MS = 2 * DAY_MS


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch over which a zone's offset from UTC is constant."""

    start_ms: int
    offset_ms: int


def parse_interval(text: str) -> int:
    """Milliseconds from `15s`, `5m`, `1h` or `1d`, or as pandas writes them: `5min`, `1D`. Raises ValueError unless it
    divides a day.
    """
    by_pandas = re.fullmatch(r"(\d+)(min|[HD])", text, re.ASCII)
    plain = f"{by_pandas[1]}{by_pandas[2][0].lower()}" if by_pandas else text
    interval_ms = round(parse_duration(plain) * 1000)
    if interval_ms < 1 or DAY_MS % interval_ms:
        raise ValueError(f"interval {text!r} doesn't divide a day: write it like 1s, 15s, 1m, 5m, 1h, 4h or 1d")
    return interval_ms


def find_pieces(zone: tzinfo, first_ms: int, last_ms: int) -> list[Piece]:
    """The zone's pieces from two days before `first_ms` to two days after `last_ms`."""
    at_ms, end_ms = first_ms - _MARGIN_MS, last_ms + _MARGIN_MS
    pieces = [Piece(at_ms, _offset_ms(zone, at_ms))]
    while at_ms < end_ms:
        next_ms = min(at_ms + DAY_MS, end_ms)
        if _offset_ms(zone, next_ms) != pieces[-1].offset_ms:
            change_ms = _find_change(zone, at_ms, next_ms)
            pieces.append(Piece(change_ms, _offset_ms(zone, change_ms)))
        at_ms = next_ms
    return pieces


class Zone:
    """Local time over some pieces."""

    def __init__(self, pieces: list[Piece]) -> None:
        self.pieces = pieces

    def local(self, times_ms: pa.Array) -> pa.Array:
        """The wall clock's reading at each moment, in ms since 1970 by that clock."""
        return pc.add(times_ms, self.choose(times_ms, [piece.offset_ms for piece in self.pieces]))

    def choose(self, times_ms: pa.Array, values: list[int]) -> pa.Array | pa.Scalar:
        """For each moment the value that belongs to its piece."""
        chosen: pa.Array | pa.Scalar = pa.scalar(values[0], pa.int64())
        for piece, value in zip(self.pieces[1:], values[1:], strict=True):
            chosen = pc.if_else(pc.greater_equal(times_ms, piece.start_ms), pa.scalar(value, pa.int64()), chosen)
        return chosen


class BarGrid:
    """The edges of bars of one interval, for moments within the pieces."""

    def __init__(self, pieces: list[Piece], interval_ms: int) -> None:
        self.interval_ms = interval_ms
        self.zone = Zone(pieces)
        self._pieces = pieces
        self._starts = [piece.start_ms for piece in pieces]
        self._first_edge: list[int] = []
        """Of each piece: the first edge at or after its start."""
        self._carry: list[int] = []
        for index, piece in enumerate(pieces):
            local_ms = piece.start_ms + piece.offset_ms
            first_ms = -_floor(-local_ms, interval_ms) - piece.offset_ms
            if index and _floor(local_ms, interval_ms) >= piece.start_ms + pieces[index - 1].offset_ms:
                first_ms = piece.start_ms  # the clock was set forward over an edge
            self._first_edge.append(first_ms)
            # What comes after a change and before the first edge belongs to the bar that was under way.
            under_way = index == 0 or first_ms == piece.start_ms
            self._carry.append(piece.start_ms if under_way else self.start_of(piece.start_ms - 1))

    def start_of(self, time_ms: int) -> int:
        """The edge at or before this moment."""
        index = max(bisect_right(self._starts, time_ms) - 1, 0)
        offset_ms = self._pieces[index].offset_ms
        edge_ms = _floor(time_ms + offset_ms, self.interval_ms) - offset_ms
        return edge_ms if index == 0 or edge_ms >= self._starts[index] else self._carry[index]

    def edge_from(self, time_ms: int) -> int:
        """The edge at or after this moment."""
        start_ms = self.start_of(time_ms)
        return start_ms if start_ms == time_ms else int(self.ends(pa.array([start_ms], pa.int64()))[0].as_py())

    def starts(self, times_ms: pa.Array) -> pa.Array:
        """The edge at or before each moment."""
        offsets_ms = self.zone.choose(times_ms, [piece.offset_ms for piece in self._pieces])
        local_ms = pc.add(times_ms, offsets_ms)
        edges_ms = pc.subtract(self._floor_all(local_ms), offsets_ms)
        if len(self._pieces) == 1:
            return edges_ms
        pieces_ms = self.zone.choose(times_ms, [min(self._starts[0], 0), *self._starts[1:]])
        return pc.if_else(pc.less(edges_ms, pieces_ms), self.zone.choose(times_ms, self._carry), edges_ms)

    def ends(self, starts_ms: pa.Array) -> pa.Array:
        """The next edge after each of these edges."""
        offsets_ms = self.zone.choose(starts_ms, [piece.offset_ms for piece in self._pieces])
        local_ms = pc.add(self._floor_all(pc.add(starts_ms, offsets_ms)), self.interval_ms)
        edges_ms = pc.subtract(local_ms, offsets_ms)
        if len(self._pieces) == 1:
            return edges_ms
        never = 1 << 62
        change_ms = self.zone.choose(starts_ms, [*self._starts[1:], never])
        after_change_ms = self.zone.choose(starts_ms, [*self._first_edge[1:], never])
        return pc.if_else(pc.greater_equal(edges_ms, change_ms), after_change_ms, edges_ms)

    def edges(self, start_ms: int, end_ms: int) -> pa.Array:
        """All edges in [start, end)."""
        runs = []
        for index, piece in enumerate(self._pieces):
            until_ms = min(end_ms, self._starts[index + 1]) if index + 1 < len(self._pieces) else end_ms
            at_ms = self.edge_from(start_ms) if index == 0 else max(self._first_edge[index], self.edge_from(start_ms))
            regular_ms = -_floor(-(at_ms + piece.offset_ms), self.interval_ms) - piece.offset_ms
            if at_ms != regular_ms and at_ms < until_ms:  # the clock was set forward over an edge
                runs.append(pa.array([at_ms], pa.int64()))
            if regular_ms < until_ms:
                runs.append(pa.arange(regular_ms, until_ms, self.interval_ms))
        return pa.concat_arrays(runs) if runs else pa.array([], pa.int64())

    def _floor_all(self, local_ms: pa.Array) -> pa.Array:
        return pc.multiply(pc.divide(local_ms, self.interval_ms), self.interval_ms)


def _floor(value: int, step: int) -> int:
    return value // step * step


def _offset_ms(zone: tzinfo, at_ms: int) -> int:
    offset = zone.utcoffset(datetime.fromtimestamp(at_ms / 1000, UTC).astimezone(zone))
    return 0 if offset is None else round(offset.total_seconds() * 1000)


def _find_change(zone: tzinfo, before_ms: int, after_ms: int) -> int:
    """The second at which the offset becomes what it is at `after_ms`."""
    before_s, after_s = before_ms // 1000, -(-after_ms // 1000)
    changed = _offset_ms(zone, after_ms)
    while after_s - before_s > 1:
        middle_s = (before_s + after_s) // 2
        if _offset_ms(zone, middle_s * 1000) == changed:
            after_s = middle_s
        else:
            before_s = middle_s
    return after_s * 1000
