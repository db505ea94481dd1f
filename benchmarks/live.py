"""What `ingestor serve` costs and how far behind the journal its clients are, also among some that mean no good.

    python benchmarks/live.py [--quick]

- **The fan-out**: a journal grows by 10,000 trades a second over 50 symbols; a client's delay is from a block's being
  appended to its bytes being read. One client, 100, 100 that want the newest each 100 ms, one beside 1,000 idle ones.
- **The attack**: 20 clients that take every trade, in turn without and with attackers (live_attack.py) at the same
  server, each of their misdeeds by itself and several times over: a misdeed costs what its median turn does, the 99th
  percentile under attack by that of the calm just before, since one turn in ten meets a stall of the machine.
- **The dashboard**: what one update takes (live_dashboard.py).
- **The recorder**: `ingestor run` at 10,000 trades a second, in turn without and with 100 clients of a server beside
  it: its own CPU, and how late `follow()` in another process is.

The load, the server and all clients share the machine; who does what in a process of its own.
"""

import argparse
import json
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from live_attack import MISDEEDS
from processes import HERE, BenchmarkFailed, Process, answer_of, recorder, running, venue
from report import Target

RATE = 10_000
CLIENTS = 100
ATTACKED = 20
"""Clients that others attack: fewer, so that the load alone doesn't take what the machine has."""
_START_UP_S = 4.0
"""What it takes to start a server, a probe and a crowd, at most."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured: seconds of one measurement, and how often calm and trouble (of each kind) take turns."""

    seconds: float
    turns: int


FULL, QUICK = Plan(2.0, 5), Plan(1.0, 1)


@dataclass(frozen=True, slots=True)
class Crowd:
    """Clients and what came to them."""

    name: str
    clients: int
    messages_s: float
    """Of all of them together."""
    p50_ms: float
    p99_ms: float
    cpu_share: float
    """The server's, of one core."""
    rss: int
    """The server's, in bytes."""


@dataclass(frozen=True, slots=True)
class Updates:
    """Of the dashboard."""

    name: str
    p50_ms: float
    max_ms: float


@dataclass(frozen=True, slots=True)
class Beside:
    """A recorder with so many clients of a server beside it."""

    clients: int
    cpu_us: float
    """Its own, a trade."""
    p50_ms: float
    p99_ms: float
    """From its read to `follow()` in another process."""


@dataclass(frozen=True, slots=True)
class Attack:
    """A misdeed beside well-behaved clients, in turn with calm: each turn calm first."""

    misdeed: str
    done: int
    """How often, in all turns."""
    turns: list[tuple[Crowd, Crowd]]

    @property
    def ratio(self) -> float:
        """The well-behaved clients' p99, by that of the calm before: the median of the turns."""
        return statistics.median(attacked.p99_ms / calm.p99_ms for calm, attacked in self.turns)

    @property
    def growth(self) -> int:
        """Bytes by which the server's memory grew from the first calm to the worst moment after an attack."""
        return max(attacked.rss for _, attacked in self.turns) - self.turns[0][0].rss


@dataclass(frozen=True, slots=True)
class Live:
    """All of it. Calm and trouble took turns: each has as many as the other."""

    crowds: list[Crowd]
    attacks: list[Attack]
    updates: list[Updates]
    alone: list[Beside]
    watched: list[Beside]

    @property
    def attack_ratio(self) -> float:
        """The well-behaved clients' p99 under the worst misdeed, by that without."""
        return max(attack.ratio for attack in self.attacks)

    @property
    def cpu_ratio(self) -> float:
        """The recorder's CPU a trade with clients, by that without: the median of the turns."""
        pairs = zip(self.watched, self.alone, strict=True)
        return statistics.median(beside.cpu_us / alone.cpu_us for beside, alone in pairs)


def measure_live(load: Path, folder: Path, *, quick: bool) -> Live:
    """In `folder`, which is made anew; `load` is that of trade_load.py. Twelve minutes, two if quick.

    Raises BenchmarkFailed where a process fails, or a client can't be kept up with.
    """
    plan = QUICK if quick else FULL
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with growing_journal(folder / "journal", folder) as root, serving(root, folder) as server:
        crowds = [
            gather(server, folder, "every trade", plan.seconds, clients=1),
            gather(server, folder, "every trade", plan.seconds, clients=CLIENTS),
            gather(server, folder, "newest each 100 ms", plan.seconds, clients=CLIENTS, mode="latest"),
            gather(server, folder, "beside 1,000 idle", plan.seconds, clients=1, idle=1000),
        ]
    attacks = [attack(misdeed, folder / f"attack-{number}", plan, ATTACKED) for number, misdeed in enumerate(MISDEEDS)]
    updates = update_dashboard(folder, plan)
    alone, watched = measure_recorder(load, folder, plan)
    return Live(crowds, attacks, updates, alone, watched)


def live_targets(live: Live) -> list[Target]:
    """Its targets."""
    _, every, _, idle = live.crowds
    return [
        Target(f"{CLIENTS} live clients, p99 behind the journal", True, 100, every.p99_ms, "ms"),
        Target(f"{CLIENTS} live clients, of a core", True, 100, every.cpu_share * 100, "%"),
        Target("one live client beside 1,000 idle, p99", True, 100, idle.p99_ms, "ms"),
        Target("live clients' p99, under attack / not", True, 1.5, live.attack_ratio),
        Target("serve's memory under attack, more", True, 50, max(one.growth for one in live.attacks) / 1e6, "MB"),
        Target(f"recorder's CPU, {CLIENTS} live clients / none", True, 1.1, live.cpu_ratio),
        Target("an update of the dashboard, at most", True, 500, max(one.max_ms for one in live.updates), "ms"),
    ]


def describe(live: Live) -> str:
    """As tables."""
    rows = [("", "clients", "messages/s", "p50 ms", "p99 ms", "CPU", "RSS MB")]
    for one in live.crowds:
        delays = f"{one.p50_ms:.0f}", f"{one.p99_ms:.0f}"
        rate, memory = f"{one.messages_s:,.0f}", f"{one.rss / 1e6:.0f}"
        rows.append((one.name, f"{one.clients:,}", rate, *delays, f"{one.cpu_share:.0%}", memory))
    rows.append((f"beside {ATTACKED} clients", "done", "p99 ms calm", "under attack", "median ratio", "", "more MB"))
    for attack in live.attacks:
        calm, attacked = ("/".join(f"{one.p99_ms:.0f}" for one in side) for side in zip(*attack.turns, strict=True))
        ratio, growth = f"{attack.ratio:.2f}", f"{attack.growth / 1e6:.0f}"
        rows.append((attack.misdeed, f"{attack.done:,}", calm, attacked, ratio, "", growth))
    rows.append(("", "clients", "CPU µs a trade", "p50 ms", "p99 ms", "", ""))
    for beside in (*live.alone, *live.watched):
        delays = f"{beside.p50_ms:.0f}", f"{beside.p99_ms:.0f}"
        rows.append(("the recorder", f"{beside.clients:,}", f"{beside.cpu_us:.2f}", *delays, "", ""))
    lines = [f"{row[0]:<20}" + "".join(f"{cell:>19}" for cell in row[1:]) for row in rows]
    return "\n".join(
        [
            *(line.rstrip() for line in lines),
            f"p99 under the worst attack / without: {live.attack_ratio:.2f}",
            *(
                f"an update of the dashboard, {one.name}: {one.p50_ms:.0f} ms, at most {one.max_ms:.0f}"
                for one in live.updates
            ),
            f"the recorder's CPU with {CLIENTS} clients / without: {live.cpu_ratio:.2f}",
        ]
    )


@dataclass(frozen=True, slots=True)
class Server:
    """`ingestor serve`, running."""

    process: Process
    url: str
    """ws://"""

    @property
    def place(self) -> list[str]:
        """Host and port."""
        return self.url.removeprefix("ws://").split(":")


@contextmanager
def growing_journal(root: Path, folder: Path) -> Iterator[Path]:
    """A recording at the steady rate for the time of the block."""
    command = [sys.executable, str(HERE / "live_journal.py"), str(root), "--rate", str(RATE)]
    with running(command, folder / "journal.log") as process:
        if not process.stdout.readline():
            raise BenchmarkFailed(f"no journal: {process.complaint()}")
        yield root
        process.end_input()


@contextmanager
def serving(root: Path, folder: Path) -> Iterator[Server]:
    command = [sys.executable, "-m", "ingestor", "serve", "--root", str(root), "--port", "0", "--json"]
    with running(command, folder / "serve.log") as process:
        line = process.stdout.readline()
        if not line:
            raise BenchmarkFailed(f"no server: {process.complaint()}")
        yield Server(process, json.loads(line)["url"].replace("http", "ws", 1))
        process.signal(signal.SIGTERM)


def crowd_command(server: Server, seconds: float, *, clients: int, mode: str = "all", idle: int = 0) -> list[str]:
    counts = ["--clients", str(clients), "--idle", str(idle), "--seconds", str(seconds)]
    return [str(HERE / "live_crowd.py"), server.url, "--mode", mode, *counts]


def gather(server: Server, folder: Path, name: str, seconds: float, **more: Any) -> Crowd:
    """Clients for so long."""
    began_s, spent_s = time.monotonic(), cpu_s(server.process)
    told = answer_of(crowd_command(server, seconds, **more), folder / "crowd.log")
    share = (cpu_s(server.process) - spent_s) / (time.monotonic() - began_s)
    clients = more["clients"] + more.get("idle", 0)
    return Crowd(name, clients, told["messages_s"], told["p50_ms"], told["p99_ms"], share, server.process.rss())


def attack(misdeed: str, folder: Path, plan: Plan, clients: int) -> Attack:
    """Without and with attackers, in turn, at a server of their own."""
    done, turns = 0, []
    folder.mkdir()
    with growing_journal(folder / "journal", folder) as root, serving(root, folder) as server:
        for _ in range(plan.turns):
            calm = gather(server, folder, "calm", plan.seconds, clients=clients)
            command = [sys.executable, str(HERE / "live_attack.py"), *server.place, misdeed]
            with running(command, folder / "attack.log") as attackers:
                attacked = gather(server, folder, misdeed, plan.seconds, clients=clients)
                attackers.end_input()
                done += int(attackers.answer()["done"])
            turns.append((calm, attacked))
    return Attack(misdeed, done, turns)


def update_dashboard(folder: Path, plan: Plan) -> list[Updates]:
    command = [str(HERE / "live_dashboard.py"), str(folder / "dashboard"), "--seconds", str(plan.seconds)]
    told = answer_of(command, folder / "dashboard.log")
    return [Updates(name, **took) for name, took in told.items()]


def measure_recorder(load: Path, folder: Path, plan: Plan) -> tuple[list[Beside], list[Beside]]:
    """A recorder without and with clients of a server beside it, in turn."""
    contender = recorder("watched", "parquet")
    place = folder / "run"
    place.mkdir()
    seconds = 2 * plan.turns * (plan.seconds + _START_UP_S)
    with (
        venue(load, ["--rate", str(RATE), "--seconds", str(seconds)], None, folder / "venue.log") as at,
        running(contender.command(at, place), folder / "contender.log") as process,
    ):
        at.next("subscribed", process)
        with serving(place / "data", folder) as server:
            turns = [
                look_beside(process, server, folder, plan.seconds, clients) for clients in (0, CLIENTS) * plan.turns
            ]
        process.signal(signal.SIGTERM)
        at.next("left", process)
    return turns[::2], turns[1::2]


def look_beside(process: Process, server: Server, folder: Path, seconds: float, clients: int) -> Beside:
    """The recorder for so long, with so many clients of the server."""
    root = folder / "run" / "data"
    with ExitStack() as stack:
        if clients:
            command = [sys.executable, *crowd_command(server, seconds + 2.0, clients=clients)]
            stack.enter_context(running(command, folder / "crowd.log"))
            time.sleep(1.0)  # they connect
        probe = [sys.executable, str(HERE / "probe.py"), str(root), str(seconds)]
        probing = stack.enter_context(running(probe, folder / "probe.log"))
        spent_s, began_s = cpu_s(process), time.monotonic()
        p50_ms, p99_ms, _ = probing.answer()["received"]
        spent_s, lasted_s = cpu_s(process) - spent_s, time.monotonic() - began_s
    return Beside(clients, spent_s / (RATE * lasted_s) * 1e6, p50_ms, p99_ms)


def cpu_s(process: Process) -> float:
    """What all its threads have used so far, to the nanosecond."""
    tasks = Path(f"/proc/{process.pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two minutes, less exact")
    quick = parser.parse_args(arguments).quick
    with tempfile.TemporaryDirectory(prefix="ingestor-benchmark-") as directory:
        load = Path(directory) / "load"
        load.mkdir()
        try:
            answer_of([str(HERE / "trade_load.py"), str(load), "--trades", "50000"], load / "load.log")
            print(describe(measure_live(load, Path(directory) / "live", quick=quick)))
        except BenchmarkFailed as error:
            print(f"The benchmark failed: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
