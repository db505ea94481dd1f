"""Is the connection alive? Pure decisions over counters and a monotonic clock.

An application ping shows that the transport lives, not that data flows; a protocol ping may go unanswered by a venue
that is well. So silence is judged by what came at all, and an unanswered ping only counts where nothing else came
either.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Counters:
    """What a connection has shown so far."""

    frames: int
    bytes: int
    pongs: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do now: `ping` the venue, or give the connection up because of `lost`."""

    ping: bool = False
    lost: str | None = None


class Liveness:
    """Watches one connection, from its first second."""

    def __init__(self, silence_s: float, ping_interval_s: float, now_s: float) -> None:
        self._silence_s = silence_s
        self._ping_interval_s = ping_interval_s
        self._seen = Counters(0, 0, 0)
        self._frame_at_s = now_s
        self._bytes_at_s = now_s
        self._pinged_at_s: float | None = None
        self._next_ping_s = now_s + ping_interval_s

    def judge(self, counters: Counters, now_s: float) -> Verdict:
        """What these counters mean at this moment."""
        if counters.frames != self._seen.frames:
            self._frame_at_s = now_s
        if counters.bytes != self._seen.bytes:
            self._bytes_at_s = now_s
            self._pinged_at_s = None
        self._seen = counters
        if now_s - self._frame_at_s >= self._silence_s:
            trickles = self._bytes_at_s > self._frame_at_s
            what = "bytes came, but never a whole frame" if trickles else "nothing came"
            return Verdict(lost=f"{what} for {self._silence_s:g} s")
        if self._pinged_at_s is not None and now_s - self._pinged_at_s >= 2 * self._ping_interval_s:
            return Verdict(lost=f"no answer to a ping, and nothing else, for {2 * self._ping_interval_s:g} s")
        if now_s >= self._next_ping_s:
            self._next_ping_s = now_s + self._ping_interval_s
            if self._pinged_at_s is None:
                self._pinged_at_s = now_s
            return Verdict(ping=True)
        return Verdict()

    def suspend(self, now_s: float) -> None:
        """The reader was paused, and what waits in the socket says nothing of when it came: start anew."""
        self._frame_at_s = self._bytes_at_s = now_s
        self._pinged_at_s = None
        self._next_ping_s = now_s + self._ping_interval_s
