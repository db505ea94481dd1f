"""Counts of frames and trades, and conservation: the equations that they must satisfy."""

import operator
from dataclasses import dataclass, field, fields

REPEATED = "repeated_id"
"""The reason why a trade is not recorded which another connection has brought before. It is no fault of the trade's:
counted with those that are rejected, and told apart wherever people read it.
"""


@dataclass(frozen=True, slots=True)
class Counts:
    """Counts of the frames and trades of a record, a segment or a run."""

    frames: int = 0
    decoded: int = 0
    """Frames read as trade messages, with or without trades in them."""
    rejected_frames: int = 0
    notices: int = 0
    trades: int = 0
    """Journaled."""
    rejected_trades: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*map(operator.add, _values(self), _values(other)))

    @property
    def balanced(self) -> bool:
        """Every frame became exactly one thing."""
        return self.frames == self.decoded + self.rejected_frames + self.notices

    @property
    def filled(self) -> bool:
        """Of a record or segment: no frame brought its trades. They are from a source's history."""
        return self.trades > 0 and not self.frames

    @property
    def fates(self) -> str:
        """What became of the frames, as a sum."""
        return f"{self.decoded:,} decoded + {self.rejected_frames:,} rejected + {self.notices:,} notices"


_values = operator.attrgetter(*(one.name for one in fields(Counts)))


@dataclass(frozen=True, slots=True)
class Conservation:
    """A run's account, from three places that count by themselves: the reader, the journal's records, the sinks."""

    frames_received: int
    journaled: Counts
    sink_rows: dict[str, int] = field(default_factory=dict)
    """Rows in each record sink that has come to the journal's end."""
    frames_kept: int | None = None
    """Frames that are kept as they came; None: not asked for."""
    filled: int = 0
    """Of the trades journaled, those that no frame brought: they are from a source's history."""
    repeats: int = 0
    """Of the trades rejected, those that another connection had brought before."""

    def violations(self) -> list[str]:
        """The equations that don't hold, as sentences; empty where nothing was lost and nothing invented."""
        counts = self.journaled
        broken = []
        if self.frames_received != counts.frames:
            broken.append(f"{self.frames_received:,} frames received, {counts.frames:,} journaled")
        if self.frames_kept not in {None, self.frames_received}:
            broken.append(f"{self.frames_received:,} frames received, {self.frames_kept:,} kept")
        if not counts.balanced:
            broken.append(f"{counts.frames:,} frames are not {counts.fates}")
        broken += [
            f"{counts.trades:,} trades journaled, {rows:,} rows in {sink}"
            for sink, rows in self.sink_rows.items()
            if rows != counts.trades
        ]
        return broken

    def __str__(self) -> str:
        counts = self.journaled
        sinks = "".join(f" = {rows:,} rows in {sink}" for sink, rows in self.sink_rows.items())
        kept = "" if self.frames_kept is None else f" = {self.frames_kept:,} kept"
        heard = counts.trades - self.filled
        filled = f" = {heard:,} heard + {self.filled:,} filled" if self.filled else ""
        repeats = f" + {self.repeats:,} repeated" if self.repeats else ""
        return (
            f"{self.frames_received:,} frames = {counts.fates}{kept}; "
            f"{heard + counts.rejected_trades:,} trades = {heard:,} journaled{repeats}"
            f" + {counts.rejected_trades - self.repeats:,} rejected; {counts.trades:,} journaled{filled}{sinks}"
        )
