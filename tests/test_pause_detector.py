"""Time in which nobody looked is nobody's silence."""

import pytest

from ingestor.capture.monitor import PauseDetector


def regained(times_s: list[float]) -> list[bool]:
    """Of looks at these times, from a beginning at 0."""
    attention = PauseDetector(0.0)
    told = []
    for time_s in times_s:
        attention.look(time_s)
        told.append(attention.regained)
    return told


@pytest.mark.parametrize(
    ("times_s", "told"),
    [
        ([0.5, 1.5, 2.5, 3.0], [True] * 4),
        ([0.5, 9.5, 10.0, 10.5, 11.0], [True, False, False, False, True]),
        ([9.0, 9.5, 18.5, 19.0, 19.5, 20.0], [False, False, False, False, False, True]),
        # too slow a machine to look twice a second is no excuse for ever
        ([2.0, 4.0, 6.0, 8.0, 10.0], [False, False, False, True, True]),
    ],
    ids=["attentive", "away once", "away again before it knew", "always late"],
)  # fmt: skip
def test_a_silence_is_told_from_an_absence(times_s: list[float], told: list[bool]) -> None:
    assert regained(times_s) == told


def test_an_absence_is_told_by_the_look_after_it() -> None:
    attention = PauseDetector(0.0)
    away_s = []
    for time_s in (0.5, 9.5, 10.0):
        attention.look(time_s)
        away_s.append(attention.away_s)
    assert away_s == [0.0, 9.0, 0.0]
