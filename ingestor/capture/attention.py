"""Was the reader itself there? A machine that stood still hears a silence that is its own, not the venue's."""

_AWAY_S = 1.5
"""Looks are half a second apart, and a read takes as long again at most."""
_LOOKS = 4


class Attention:
    """Counts the looks at one connection. Pure: the monotonic clock is an argument."""

    def __init__(self, now_s: float) -> None:
        self._looked_s = now_s
        self._looks = _LOOKS
        self.away_s = 0.0
        """How long nobody looked, until now: what seems silent may wait, or have been held up as well."""

    @property
    def regained(self) -> bool:
        """It has looked often enough since it was away to tell whose the silence is."""
        return self._looks >= _LOOKS

    def look(self, now_s: float) -> None:
        """Somebody looks. Where that is always late, the first time alone counts as having been away."""
        late_s = now_s - self._looked_s
        if late_s <= _AWAY_S:
            late_s = 0.0
        elif not self.away_s:
            self._looks = 0
        self.away_s = late_s
        self._looks += 1
        self._looked_s = now_s
