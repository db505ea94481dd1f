"""When a segment closes."""

from dataclasses import dataclass
from datetime import datetime

_FIRST_AGES_S = (10.0, 60.0, 300.0)


@dataclass(frozen=True, slots=True)
class Rotation:
    """By age, by size, at midnight. Pure: the clock is an argument."""

    age_s: float
    size: int

    def due(self, now: datetime, first_row_at: datetime, size: int, index: int) -> bool:
        """Whether the run's segment number `index` (from 0), whose first row came at `first_row_at`, is to close.

        A run's first segments close early, so that a new user sees files at once; midnight parts the days.
        """
        age_s = min(self.age_s, _FIRST_AGES_S[index]) if index < len(_FIRST_AGES_S) else self.age_s
        # A wall clock that stepped back must not keep a segment open: its age counts either way.
        aged = abs((now - first_row_at).total_seconds()) >= age_s
        return aged or size >= self.size or now.date() != first_row_at.date()
