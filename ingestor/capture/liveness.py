"""Is the connection alive? Pure decisions over counters and a monotonic clock.

An application ping shows that the transport lives, not that data flows (that is `trade_watch`); a protocol ping may go
unanswered by a venue that is well. So silence is judged by what came at all, and an unanswered ping counts only
where nothing else came either, and only on a connection that has answered one before.
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
        self._note(counters, now_s)
        if now_s - self._frame_at_s >= self._silence_s:
            trickles = self._bytes_at_s > self._frame_at_s
            what = "bytes came, but never a whole frame" if trickles else "nothing came"
            return Verdict(lost=f"{what} for {self._silence_s:g} s")
        patience_s = 2 * self._ping_interval_s
        if self._pinged_at_s is not None and counters.pongs and now_s - self._pinged_at_s >= patience_s:
            return Verdict(lost=f"no answer to a ping, and nothing else, for {patience_s:g} s")
        return Verdict(ping=self._ping_is_due(now_s))

    def suspend(self, now_s: float) -> None:
        """The reader was paused, and what waits in the socket says nothing of when it came: start anew."""
        self._frame_at_s = self._bytes_at_s = now_s
        self._pinged_at_s = None
        self._next_ping_s = now_s + self._ping_interval_s

    def _note(self, counters: Counters, now_s: float) -> None:
        if counters.frames != self._seen.frames:  # pongs don't count: a proxy may answer for a venue that stalls
            self._frame_at_s = now_s
        if counters.bytes != self._seen.bytes:
            self._bytes_at_s = now_s
            self._pinged_at_s = None
        self._seen = counters

    def _ping_is_due(self, now_s: float) -> bool:
        if now_s < self._next_ping_s:
            return False
        self._next_ping_s = now_s + self._ping_interval_s
        if self._pinged_at_s is None:
            self._pinged_at_s = now_s
        return True
