"""The benchmark of `serve`: its ratios are those of its turns, and its clients and attackers are real."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from live import RATE, Beside, Crowd, Live, Plan, Updates, attack, describe, gather, growing_journal, serving


def crowd(p99_ms: float) -> Crowd:
    return Crowd("every trade", 100, 1e6, 10.0, p99_ms, 0.2, 200_000_000)


def beside(clients: int, cpu_us: float) -> Beside:
    return Beside(clients, cpu_us, 60.0, 110.0)


def test_ratios_are_of_the_worst_attack_and_the_median_of_the_turns() -> None:
    live = Live(
        [crowd(1)], [crowd(10), crowd(1000), crowd(20)], [crowd(11), crowd(22), crowd(15)], {"deaf": 3},
        [Updates("8 hours in sight", 20.0, 90.4)],
        [beside(0, 2.0)], [beside(100, 2.2)],
    )  # fmt: skip
    assert live.attack_ratio == pytest.approx(1.1)
    assert live.cpu_ratio == pytest.approx(1.1)
    told = describe(live)
    assert "p99 under the worst attack / without: 1.10 (deaf 3)" in told
    assert "an update of the dashboard, 8 hours in sight: 20 ms, at most 90" in told
    assert "the recorder's CPU with 100 clients / without: 1.10" in told


@pytest.mark.long
def test_clients_are_served_under_attack_and_memory_stays_bounded(tmp_path: Path) -> None:
    with growing_journal(tmp_path / "data", tmp_path) as root, serving(root, tmp_path) as server:
        before = server.rss
        calm, attacked, attacks = attack(server, tmp_path, Plan(seconds=1.0, turns=1), clients=5)
        newest = gather(server, tmp_path, "newest", 1.0, clients=5, mode="latest")
    for one in (*calm, *attacked):
        assert one.messages_s > 0
    assert 0 < newest.messages_s < 5 * RATE / 2
    assert all(attacks[name] for name in ("garbage", "huge frames", "10,000 symbols"))
    assert max(one.rss for one in attacked) - before < 50_000_000
