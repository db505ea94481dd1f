"""The benchmark of `serve`: its ratios are those of its turns, and its clients and attackers are real."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from live import RATE, Attack, Beside, Crowd, Live, Plan, Updates, attack, describe, gather, growing_journal, serving
from live_attack import MISDEEDS


def crowd(p99_ms: float, rss: int = 200_000_000) -> Crowd:
    return Crowd("every trade", 100, 1e6, 10.0, p99_ms, 0.2, rss)


def beside(clients: int, cpu_us: float) -> Beside:
    return Beside(clients, cpu_us, 60.0, 110.0)


def test_ratios_are_of_the_worst_attack_and_the_median_of_the_turns() -> None:
    deaf = Attack("deaf", 3, [(crowd(10), crowd(11)), (crowd(10), crowd(1000)), (crowd(20), crowd(10))])
    garbage = Attack(
        "garbage", 40, [(crowd(1000), crowd(10)), (crowd(10), crowd(12, 230_000_000)), (crowd(10), crowd(14))]
    )
    live = Live(
        [crowd(1)], [deaf, garbage], [Updates("8 hours in sight", 20.0, 90.4)],
        [beside(0, 2.0)], [beside(100, 2.2)],
    )  # fmt: skip
    assert (deaf.ratio, garbage.ratio, live.attack_ratio) == pytest.approx((1.1, 1.2, 1.2))
    assert (deaf.growth, garbage.growth) == (0, 30_000_000)
    assert live.cpu_ratio == pytest.approx(1.1)
    told = describe(live)
    assert "p99 under the worst attack / without: 1.20" in told
    assert "1000/10/10" in told
    assert "an update of the dashboard, 8 hours in sight: 20 ms, at most 90" in told
    assert "the recorder's CPU with 100 clients / without: 1.10" in told


@pytest.mark.long
@pytest.mark.parametrize("misdeed", MISDEEDS)
def test_clients_are_served_under_attack_and_memory_stays_bounded(tmp_path: Path, misdeed: str) -> None:
    told = attack(misdeed, tmp_path / "attack", Plan(seconds=1.0, turns=1), clients=5)
    [(calm, attacked)] = told.turns
    assert min(calm.messages_s, attacked.messages_s) > 0
    assert told.done
    assert told.growth < 50_000_000


@pytest.mark.long
def test_the_newest_alone_is_fewer_messages(tmp_path: Path) -> None:
    with growing_journal(tmp_path / "data", tmp_path) as root, serving(root, tmp_path) as server:
        newest = gather(server, tmp_path, "newest", 1.0, clients=5, mode="latest")
    assert 0 < newest.messages_s < 5 * RATE / 2
