"""Turns what was measured into targets met or missed, a table, JSON and a plot. Pure but for `write_…`."""

import json
import platform
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from scenarios import EverySink, Overload, Paced, Salvage, journal_per_day
from throughput import Run

RECORDER, SCRIPT, CRYPTOFEED, BOTH = "ingestor, Parquet", "usual script", "cryptofeed", "ingestor, Parquet and CSV"
KEEPING = "ingestor, Parquet, raw"
_LINGER_MS = 100
_QUIET_RATIO, _BATCH_RATIO, _START_RATIO, _HELP_RATIO = 1.0, 0.8, 8, 1.5
"""What the hour of a shared machine decides is held against another program of the same minute."""
_NEVER_WAITED = 0.05
_FRAMES_RATIO = 1.15


@dataclass(frozen=True, slots=True)
class Limit:
    """CPU µs a trade of what no recorder can do without (limit.py)."""

    frame_size: int
    receive: float
    decode: float
    write: float

    @property
    def total(self) -> float:
        return self.receive + self.decode + self.write


@dataclass(slots=True)
class Round:
    """Everything at full speed, once: contenders in turn, so that a slow minute of the machine hits all of them."""

    idle: dict[str, Run] = field(default_factory=dict)
    """By contender, a run without trades: what starting and stopping costs."""
    runs: list[Run] = field(default_factory=list)
    limits: dict[int, Limit] = field(default_factory=dict)

    def run(self, contender: str, frame_size: int, *, tls: bool = False) -> Run | None:
        wanted = (contender, frame_size, tls)
        return next((run for run in self.runs if (run.contender, run.frame_size, run.tls) == wanted), None)

    def cpu_us(self, run: Run) -> float:
        """CPU µs a trade, start and stop subtracted."""
        return (run.cpu_s - self.idle[run.contender].cpu_s) / run.trades * 1e6

    def rate(self, run: Run) -> float:
        """Trades a second until all are written, the stop itself subtracted."""
        return run.trades / (run.lasted_s - self.idle[run.contender].lasted_s)


@dataclass(slots=True)
class Measured:
    """All of it, as far as it has come."""

    rounds: list[Round] = field(default_factory=list)
    paced: list[Paced] = field(default_factory=list)
    quiet_ratios: list[float] = field(default_factory=list)
    """CPU at 57 trades a second by that of the usual script right after it, of each turn."""
    batch_ratios: list[float] = field(default_factory=list)
    """The same with one to ten trades a frame."""
    steady: Paced | None = None
    """At 57 trades a second for so long that segments were sealed meanwhile."""
    idle_ratios: list[float] = field(default_factory=list)
    """What 11,000 symbols that send nothing take, by what 50 take."""
    every_sink: EverySink | None = None
    overload: Overload | None = None
    salvage: Salvage | None = None
    help_ratio: float | None = None
    others: dict[str, Any] = field(default_factory=dict)
    """Of the parts around the recorder, by part."""
    other_targets: list["Target"] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    """Why, by part."""
    failed: dict[str, str] = field(default_factory=dict)
    """The same of those that prove nothing."""


@dataclass(frozen=True, slots=True)
class Target:
    """What is to be reached. `measured` is None where it could not be measured, and `why` then says so."""

    name: str
    at_most: bool
    bound: float
    measured: float | None
    unit: str = ""
    why: str = ""

    @property
    def verdict(self) -> str:
        if self.measured is None:
            return "not measured"
        met = self.measured <= self.bound if self.at_most else self.measured >= self.bound
        return "met" if met else "MISSED"


def targets(measured: Measured) -> list[Target]:
    """Every target of what has been measured: of the speed itself first, ratios first."""
    lines = rounds_targets(measured.rounds) if measured.rounds else []
    if measured.every_sink:
        lines += every_sink_targets(measured.every_sink)
    if measured.quiet_ratios:
        quiet = statistics.median(measured.quiet_ratios)
        lines.append(Target("CPU at 57 trades/s / usual script", True, _QUIET_RATIO, quiet))
    if measured.batch_ratios:
        batches = statistics.median(measured.batch_ratios)
        lines.append(Target("CPU at 57 trades/s, 1 to 10 a frame / usual script", True, _BATCH_RATIO, batches))
    if measured.idle_ratios:
        idle = statistics.median(measured.idle_ratios)
        lines.append(Target("CPU of 11,000 idle symbols / 50", True, 2, idle))
    if measured.steady:
        lines += memory_targets(measured.steady)
    if measured.paced:
        lines += [latency_target(one) for one in measured.paced]
    if measured.help_ratio is not None:
        lines.append(Target("ingestor --help / the usual script's imports", True, _HELP_RATIO, measured.help_ratio))
    if measured.salvage:
        lines.append(Target("torn 64 MB segment salvaged and sealed", True, 3, measured.salvage.lasted_s, "s"))
    if measured.overload:
        run = measured.overload.run
        lines += [
            Target("overload: what the venue could send / what was taken", False, 2, overload_ratio(run)),
            Target("overload: peak RSS", True, 400, run.peak_rss / 1e6, "MB"),
            Target("overload: pauses of the reader, in its metrics", False, 1, run.pauses),
            Target("overload: connections lost", True, 0, measured.overload.connections_lost, ""),
        ]
    return [*lines, *measured.other_targets]


def rounds_targets(rounds: list[Round]) -> list[Target]:
    """Of the contenders at full speed."""
    lines = []
    for size, script, limit, rate in ((1, 1 / 8, 1.2, 10), (5, 1 / 4, 1.0, 12)):
        a_frame = f"{size} trade{'s' * (size > 1)} a frame"
        lines += [
            Target(f"CPU a trade / usual script, {a_frame}", True, script, cpu_ratio(rounds, RECORDER, SCRIPT, size)),
            Target(f"CPU a trade / limit, {a_frame}", True, limit, limit_ratio(rounds, size)),
            Target(f"trades/s / usual script, {a_frame}", False, rate, rate_ratio(rounds, RECORDER, SCRIPT, size)),
            Target(f"peak RSS at that load, {a_frame}", True, 250, peak_mb(rounds, size), "MB"),
        ]
        with_frames = f"with frames as they came / without, {a_frame}"
        lines += [
            Target(f"CPU a trade {with_frames}", True, _FRAMES_RATIO, cpu_ratio(rounds, KEEPING, RECORDER, size)),
            Target(f"bytes a trade more, {a_frame}", True, 20, bytes_more(rounds, size), "B"),
        ]
    started = [one.idle[RECORDER].started_up_s / one.idle[SCRIPT].started_up_s for one in rounds]
    return [
        *lines,
        Target(
            "CPU a trade / cryptofeed, 1 trade a frame, TLS", True, 1 / 5,
            cpu_ratio(rounds, RECORDER, CRYPTOFEED, 1, tls=True), why="left out",
        ),
        Target("trades/s, Parquet and CSV / Parquet alone", False, 0.9, rate_ratio(rounds, BOTH, RECORDER, 1)),
        Target("start to first subscription / usual script", True, _START_RATIO, statistics.median(started)),
    ]  # fmt: skip


def memory_targets(steady: Paced) -> list[Target]:
    """Of what the recorder takes at 57 trades a second, but for the CPU: that is held against the usual script's."""
    after = f"after {steady.lasted_s:g} s at 57 trades/s"
    return [
        Target(f"RSS {after}", True, 100, steady.rss / 1e6, "MB"),
        Target(f"memory of its own {after}", True, 45, steady.own / 1e6, "MB"),
        Target("growth of RSS in the last two thirds of that time", True, 5, steady.rss_growth / 1e6, "MB"),
        Target("journal a day at 57 trades/s", True, 1000, journal_per_day(steady) / 1e6, "MB"),
    ]


def latency_target(paced: Paced) -> Target:
    return Target(f"latency p99, {paced.rate:,.0f} trades/s", True, _LINGER_MS + 10, paced.sent_ms[1], "ms")


def every_sink_targets(every_sink: EverySink) -> list[Target]:
    """The recorder's own figures at 100,000 trades a second with every sink on, against those without."""
    both = list(zip(every_sink.with_all, every_sink.alone, strict=True))
    ratios = [statistics.median(one.received_ms[at] / other.received_ms[at] for one, other in both) for at in (0, 1)]
    return [
        Target(f"latency {name} at 100,000 trades/s, every sink on / off", True, 1.1, ratio)
        for name, ratio in zip(("p50", "p99"), ratios, strict=True)
    ]


def median_ratio(rounds: Iterable[Round], ours: Sequence[float | None], theirs: Sequence[float | None]) -> float | None:
    """Of each round's ratio the median; None where one side was not run."""
    pairs = [(one, other) for _, one, other in zip(rounds, ours, theirs, strict=True)]
    ratios = [one / other for one, other in pairs if one is not None and other is not None]
    return statistics.median(ratios) if ratios else None


def cpu_ratio(rounds: list[Round], ours: str, theirs: str, size: int, *, tls: bool = False) -> float | None:
    def cpu(name: str) -> list[float | None]:
        runs = [(one, one.run(name, size, tls=tls)) for one in rounds]
        return [None if run is None else one.cpu_us(run) for one, run in runs]

    return median_ratio(rounds, cpu(ours), cpu(theirs))


def rate_ratio(rounds: list[Round], ours: str, theirs: str, size: int) -> float | None:
    def rate(name: str) -> list[float | None]:
        return [None if (run := one.run(name, size)) is None else one.rate(run) for one in rounds]

    return median_ratio(rounds, rate(ours), rate(theirs))


def limit_ratio(rounds: list[Round], size: int) -> float | None:
    ours = [None if (run := one.run(RECORDER, size)) is None else one.cpu_us(run) for one in rounds]
    return median_ratio(rounds, ours, [one.limits[size].total for one in rounds])


def bytes_more(rounds: list[Round], size: int) -> float | None:
    """What frames as they came take on the disk, per trade; None where they were not kept at this frame size."""
    runs = [(one.run(KEEPING, size), one.run(RECORDER, size)) for one in rounds]
    found = [kept.bytes_written / kept.trades - run.bytes_written / run.trades for kept, run in runs if kept and run]
    return statistics.median(found) if found else None


def peak_mb(rounds: list[Round], size: int) -> float:
    return max(run.peak_rss for one in rounds if (run := one.run(RECORDER, size))) / 1e6


def overload_ratio(run: Run) -> float:
    """The venue waited for the rest of the time: in it, it could have sent as much again."""
    return 1 / max(1 - run.venue_waited, 1e-3)


# As text


def machine() -> dict[str, str]:
    """What this was measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": f"{len(models)} of {models[0]}" if models else platform.machine(),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "pyarrow": version("pyarrow"),
        "websocket-client": version("websocket-client"),
    }


def table(measured: Measured) -> str:
    """The report on the recorder, under all targets."""
    blocks = [", ".join(f"{name} {value}" for name, value in machine().items()), *target_block(targets(measured))]
    for size, tls in sorted({(run.frame_size, run.tls) for one in measured.rounds for run in one.runs}):
        blocks += _contender_block(measured.rounds, size, tls=tls)
    if measured.paced:
        blocks += ["", "latency to follow() in another process, ms:            p50     p99   p99.9"]
    for one in measured.paced:
        blocks.append(_latency_line(f"{one.rate:>9,.0f} trades/s, since sent by the venue", one.sent_ms))
        blocks.append(_latency_line(f"{one.rate:>9,.0f} trades/s, since read by the recorder", one.received_ms))
    blocks += ["", *bottlenecks(measured.rounds)]
    if measured.rounds:
        blocks.append("Rows written = rows sent, and their volumes the same, in every run above.")
    return "\n".join(blocks)


def missing_lines(measured: Measured) -> list[str]:
    """What of it all there is no figure of, and why."""
    return [
        *(f"Left out: {part}: {why}" for part, why in measured.left_out.items()),
        *(f"Failed: {part}: {why}" for part, why in measured.failed.items()),
    ]


def target_block(goals: Sequence[Target]) -> list[str]:
    """Lines of text, the first of them empty."""
    lines = ["", f"{'target':54}{'wanted':>12}{'measured':>13}"]
    for one in goals:
        wanted = f"{'≤' if one.at_most else '≥'} {one.bound:.4g} {one.unit}"
        found = one.why if one.measured is None else f"{one.measured:.3g} {one.unit}"
        lines.append(f"{one.name:54}{wanted:>12}{found:>13}  {one.verdict}")
    return lines


def _contender_block(rounds: list[Round], size: int, *, tls: bool) -> list[str]:
    title = f"{size} trade{'s' * (size > 1)} a frame{', TLS' * tls}"
    head = (
        f"{title:26}{'ratio':>8}{'CPU µs':>9}{'with start':>12}{'trades/s':>12}{'ratio':>7}{'RSS MB':>8}{'B/trade':>9}"
    )
    lines = ["", head]
    names = dict.fromkeys(run.contender for run in rounds[0].runs if (run.frame_size, run.tls) == (size, tls))
    for name in names:
        runs = [(one, run) for one in rounds if (run := one.run(name, size, tls=tls))]
        cpu = statistics.median(one.cpu_us(run) for one, run in runs)
        whole = statistics.median(run.cpu_s / run.trades * 1e6 for _, run in runs)
        rate = statistics.median(one.rate(run) for one, run in runs)
        rss = max(run.peak_rss for _, run in runs) / 1e6
        size_b = statistics.median(run.bytes_written / run.trades for _, run in runs)
        slower = _versus(cpu_ratio(rounds, name, SCRIPT, size, tls=tls))
        faster = _versus(None if tls else rate_ratio(rounds, name, SCRIPT, size))
        lines.append(f"{name:26}{slower:>8}{cpu:9.2f}{whole:12.2f}{rate:12,.0f}{faster:>7}{rss:8.0f}{size_b:9.1f}")
    if not tls:
        lines += _limit_lines([one.limits[size] for one in rounds])
    return lines


def _limit_lines(limits: list[Limit]) -> list[str]:
    parts = {name: statistics.median(getattr(one, name) for one in limits) for name in ("receive", "decode", "write")}
    text = " + ".join(f"{name} {value:.2f}" for name, value in parts.items())
    return [f"{'the limit':26}{'':8}{sum(parts.values()):9.2f}  = {text}"]


def _versus(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.3g}"


def _latency_line(name: str, ms: Sequence[float]) -> str:
    return f"{name:50}{ms[0]:8.1f}{ms[1]:8.1f}{ms[2]:8.1f}"


def sink_lines(rates: Sequence[dict[str, Any]]) -> list[str]:
    """How fast each sink carries (sinks.py); as text."""
    lines = [f"{'sink, with its real server':26}{'rows/s':>12}{'CPU µs a row':>14}{'/ by hand':>11}"]
    for rate in rates:
        rows_a_second, cpu_us = rate["rows"] / rate["lasted_s"], rate["cpu_s"] / rate["rows"] * 1e6
        ratio = f"{rate['by_hand_s'] / rate['lasted_s']:11.2f}" if rate["by_hand_s"] else ""
        lines.append(f"{rate['kind']:26}{rows_a_second:12,.0f}{cpu_us:14.2f}{ratio}")
    return lines


def sink_targets(rates: Sequence[dict[str, Any]]) -> list[Target]:
    """Of the sinks that stand beside what one would write by hand."""
    return [
        Target(f"{rate['kind']}: rows/s / by hand", False, 0.8, rate["by_hand_s"] / rate["lasted_s"])
        for rate in rates
        if rate["by_hand_s"]
    ]


def backlog_targets(shares: dict[str, float]) -> list[Target]:
    """Of one `follow()` at rest (backlog.py)."""
    return [
        Target("follow() at rest behind 300 segments, of a core", True, 1, shares["many"] * 100, "%"),
        Target("follow() at rest behind 300 segments / none", True, 1.1, shares["ratio"]),
    ]


def bottlenecks(rounds: list[Round]) -> list[str]:
    """A sentence for each kind of run in which the load server hardly ever waited: it may have set the pace."""
    found = {
        f"The load server was the bottleneck: {run.contender}, {run.frame_size} trades a frame{', TLS' * run.tls}."
        for one in rounds
        for run in one.runs
        if run.venue_waited < _NEVER_WAITED
    }
    return sorted(found)


# As files


def write_results(measured: Measured, folder: Path) -> Path:
    """All that there is so far, as JSON; in one step, in place of what was written before."""
    folder.mkdir(exist_ok=True)
    parts = asdict(measured)
    others, left_out, failed = (parts.pop(name) for name in ("others", "left_out", "failed"))
    del parts["other_targets"]
    facts: dict[str, Any] = {
        "machine": machine(),
        "targets": [asdict(one) | {"verdict": one.verdict} for one in targets(measured)],
        "left_out": left_out,
        "failed": failed,
        "measured": parts | others,
    }
    results, partial = folder / "results.json", folder / "results.json.partial"
    partial.write_text(json.dumps(facts, indent=1))
    return partial.replace(results)


def write_plot(measured: Measured, folder: Path) -> Path | None:
    """Where matplotlib is installed, and there is something to show."""
    if find_spec("matplotlib") is None or not measured.rounds:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.6), layout="constrained")
    draw(figure, find_bars(measured.rounds))
    plot = folder / "results.png"
    figure.savefig(plot, dpi=150)
    return plot


class Bar(NamedTuple):
    """A contender's medians, of one trade per frame."""

    name: str
    cpu_us: float
    rate: float | None


def find_bars(rounds: list[Round]) -> list[Bar]:
    """Those in the clear as they were measured, then those over TLS: cryptofeed has no other."""
    found = []
    for tls in (False, True):
        for name in dict.fromkeys(run.contender for run in rounds[0].runs if run.frame_size == 1 and run.tls is tls):
            runs = [(one, run) for one in rounds if (run := one.run(name, 1, tls=tls))]
            cpu_us = statistics.median(one.cpu_us(run) for one, run in runs)
            rate = statistics.median(one.rate(run) for one, run in runs)
            found.append(Bar(f"{name}, TLS" if tls else name, cpu_us, rate))
    return found


def draw(figure: Any, bars: Sequence[Bar]) -> None:
    """A panel for CPU, one for the rate; a row per contender, ours in colour, each with its number."""
    from matplotlib.ticker import NullLocator

    from ingestor.charts.series import LIGHT

    figure.set_facecolor(LIGHT.ground)
    cpu = {one.name: one.cpu_us for one in bars}
    ratio = f"{cpu[SCRIPT] / cpu[RECORDER]:.3g} times less CPU per trade than the usual script"
    if f"{CRYPTOFEED}, TLS" in cpu:
        ratio += f", {cpu[f'{CRYPTOFEED}, TLS'] / cpu[f'{RECORDER}, TLS']:.2g} times less than cryptofeed"
    figure.suptitle(ratio, x=0.01, ha="left", fontsize=13, fontweight="bold", color=LIGHT.ink)
    panels = figure.subplots(1, 2, sharey=True)
    numbers: tuple[tuple[str, list[float | None], str], ...] = (
        ("CPU per trade, in µs (less is better)", [one.cpu_us for one in bars], "{:.3g}"),
        ("trades/s until all are written (more is better)", [one.rate for one in bars], "{:,.0f}"),
    )
    colours = [LIGHT.up if one.name.startswith("ingestor") else LIGHT.bands for one in bars]
    for axes, (title, values, text) in zip(panels, numbers, strict=True):
        axes.set_facecolor(LIGHT.ground)
        axes.barh(range(len(bars)), [value or 0 for value in values], 0.66, color=colours)
        for place, value in enumerate(values):
            if value is not None:
                axes.annotate(
                    text.format(value), (value, place), (4, 0), textcoords="offset points", va="center", fontsize=9,
                    color=LIGHT.ink,
                )  # fmt: skip
        axes.set_title(title, loc="left", fontsize=9.5, color=LIGHT.quiet)
        axes.set_xlim(0, 1.18 * max(value or 0 for value in values))
        axes.xaxis.set_major_locator(NullLocator())
        axes.tick_params(length=0, labelsize=9.5, colors=LIGHT.ink)
        axes.spines[:].set_visible(False)
    panels[0].set_yticks(range(len(bars)), [one.name for one in bars])
    panels[0].invert_yaxis()
