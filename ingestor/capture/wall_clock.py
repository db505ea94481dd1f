"""Notices when the wall clock steps against the monotonic one: the ledger's times then don't follow one another."""

_STEP_US = 2_000_000


class WallClock:
    """Compares two readings of both clocks. Pure: they are arguments. A drift below 2 s between two looks is none."""

    def __init__(self, wall_us: int, monotonic_s: float) -> None:
        self._offset_us = wall_us - round(monotonic_s * 1e6)

    def find_step(self, wall_us: int, monotonic_s: float) -> int | None:
        """By how many µs the wall clock was set forward (back: negative) since the last look; None where it wasn't."""
        offset_us = wall_us - round(monotonic_s * 1e6)
        by_us = offset_us - self._offset_us
        self._offset_us = offset_us
        return by_us if abs(by_us) > _STEP_US else None
