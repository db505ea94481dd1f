"""Is the connection alive? A table of what came when, and what follows."""

import pytest

from ingestor.capture.monitor import Counters, Liveness

SILENCE_S, PING_S = 150.0, 20.0
TRICKLE = "bytes came, but never a whole frame for 150 s"
Step = tuple[float, Counters]


def first_loss(steps: list[Step]) -> tuple[float, str] | None:
    """When, and why, a connection that was opened at 0 and showed these counters is given up."""
    liveness = Liveness(SILENCE_S, PING_S, 0.0)
    for now_s, counters in steps:
        lost = liveness.judge(counters, now_s).lost
        if lost is not None:
            return now_s, lost
    return None


def every_half_second(seconds: float, frames_each: float = 0, bytes_each: float = 0, pongs: int = 0) -> list[Step]:
    """Counters that grow so much a second, looked at as the session does."""
    looks = [at / 2 for at in range(int(2 * seconds))]
    return [(at_s, Counters(int(at_s * frames_each), int(at_s * bytes_each), pongs)) for at_s in looks]


@pytest.mark.parametrize(
    ("steps", "loss"),
    [
        (every_half_second(1000, frames_each=1, bytes_each=100), None),
        (every_half_second(1000), (150.0, "nothing came for 150 s")),
        (every_half_second(1000, bytes_each=10), (150.0, TRICKLE)),
        # an application ping a minute, market closed, protocol pings never answered: alive
        (every_half_second(1000, frames_each=1 / 60, bytes_each=1 / 6), None),
        # pongs, and never a frame: somebody answers for a venue that stalls
        ([(at / 2, Counters(0, at * 2, at)) for at in range(2000)], (150.0, TRICKLE)),
    ],
    ids=["flows", "says nothing from birth", "trickles", "only application pings", "only pongs"],
)  # fmt: skip
def test_what_comes_decides(steps: list[Step], loss: tuple[float, str] | None) -> None:
    assert first_loss(steps) == loss


def test_a_ping_is_sent_each_interval() -> None:
    liveness = Liveness(SILENCE_S, PING_S, 0.0)
    pinged = [at_s for at_s, _ in every_half_second(100) if liveness.judge(Counters(int(at_s), 1, 0), at_s).ping]
    assert pinged == [20.0, 40.0, 60.0, 80.0]


def silent_after_60_s(pongs: int) -> list[Step]:
    """A frame a second for a minute, then nothing, not even an answer to pings; `pongs` came before."""
    return [(at_s, Counters(min(int(at_s), 60), min(int(at_s), 60), pongs)) for at_s, _ in every_half_second(300)]


def test_an_unanswered_ping_counts_where_nothing_else_came_and_pings_were_answered_before() -> None:
    lost = first_loss(silent_after_60_s(pongs=3))
    assert lost == (100.0, "no answer to a ping, and nothing else, for 40 s")


def test_an_unanswered_ping_says_nothing_of_a_venue_that_never_answered_one() -> None:
    assert first_loss(silent_after_60_s(pongs=0)) == (210.0, "nothing came for 150 s")


def test_after_a_pause_everything_starts_anew() -> None:
    liveness = Liveness(SILENCE_S, PING_S, 0.0)
    liveness.judge(Counters(1, 10, 1), 1.0)
    liveness.judge(Counters(1, 10, 1), 21.0)
    liveness.suspend(149.0)
    assert liveness.judge(Counters(1, 10, 1), 160.0).lost is None
    assert liveness.judge(Counters(1, 10, 1), 169.0).ping
    assert liveness.judge(Counters(1, 10, 1), 299.0).lost is not None
