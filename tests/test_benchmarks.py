"""The benchmarks count honestly: what was not written, or written twice, is no result."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from documents import REPOSITORY
from matplotlib.figure import Figure
from recorders import eventually

from ingestor.capture.connection import scan_text_frames

sys.path.insert(0, str(REPOSITORY / "benchmarks"))

import backlog
import fuzz
import sinks
from load_server import Client, send_stamped
from processes import BenchmarkFailed, Contender, LeftOut, Tls, answer_of, forget_libraries, recorder, running
from reading import ReadingPlan, check_rows, make_recordings, measure_reading, reading_notes, reading_targets
from report import (
    CRYPTOFEED,
    RECORDER,
    SCRIPT,
    Round,
    Target,
    backlog_targets,
    bottlenecks,
    cpu_ratio,
    draw,
    find_bars,
    missing_lines,
    rate_ratio,
    table,
)
from run import QUICK, Bench
from scenarios import Watch
from sinks import measure_sinks
from throughput import Run, run_load, volume_of
from trade_load import FRAME_SIZES, PART_TRADES, part_path, write_load

START_MS = 1_795_156_760_284
LITTLE = ReadingPlan(year_days=3, year_trades=30_000, large_trades=20_000, rounds=1, day_trades=10_000)


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("load")
    write_load(folder, PART_TRADES, START_MS)
    return folder


@pytest.fixture
def lossy(tmp_path: Path) -> Callable[[str], Contender]:
    """A contender that is the usual script, but for one line."""
    honest = (REPOSITORY / "benchmarks/contenders/script.py").read_text()
    before = "while (trades := waiting.get()) is not None:\n"
    assert before in honest

    def make(line: str) -> Contender:
        script = tmp_path / "lossy.py"
        script.write_text(honest.replace(before, f"{before}            {line}\n"))
        return Contender("lossy", script=str(script))

    return make


def made_run(contender: str, **facts: float) -> Run:
    measured = dict.fromkeys(("started_up_s", "read_s", "system_s", "peak_rss", "bytes_written", "venue_waited"), 1.0)
    return Run(contender, 1, tls=False, trades=1_000_000, **(measured | facts))  # type: ignore[arg-type]  # by name


def test_the_plot_shows_each_contender_with_its_number() -> None:
    names = [RECORDER, SCRIPT, f"{RECORDER}, TLS", f"{CRYPTOFEED}, TLS"]
    runs = [made_run(RECORDER, cpu_s=2.5, lasted_s=2.0), made_run(SCRIPT, cpu_s=20.5, lasted_s=11.0)]
    runs += [replace(runs[0], tls=True), replace(runs[0], tls=True, contender=CRYPTOFEED, cpu_s=6.5)]
    idle = {run.contender: made_run(run.contender, cpu_s=0.5, lasted_s=1.0) for run in runs}
    bars = find_bars([Round(idle, runs)] * 3)
    assert bars == [*zip(names, (2.0, 20.0, 2.0, 6.0), (1e6, 1e5, 1e6, 1e6), strict=True)]
    figure = Figure()
    draw(figure, bars)
    assert figure.get_suptitle() == ("10 times less CPU per trade than the usual script, 3 times less than cryptofeed")
    shown = [[text.get_text() for text in axes.texts] for axes in figure.axes]
    assert shown == [["2", "20", "2", "6"], ["1,000,000", "100,000", "1,000,000", "1,000,000"]]


def test_the_same_trades_are_in_every_frame_size(load: Path) -> None:
    heard = []
    for size in FRAME_SIZES:
        content = part_path(load, size, 0).read_bytes()
        payloads, taken = scan_text_frames(content)
        assert taken == len(content)
        assert len(payloads) == PART_TRADES // size
        heard.append([trade for payload in payloads for trade in json.loads(payload)["data"]])
    assert heard[0] == heard[1] == heard[2]
    assert len(heard[0]) == PART_TRADES
    assert sum(trade["v"] for trade in heard[0]) == volume_of(load, 1) == volume_of(load, 3) / 3


@pytest.mark.parametrize(("batches", "sizes"), [(False, range(1, 2)), (True, range(1, 11))])
def test_a_frame_of_a_steady_rate_holds_one_trade_or_a_batch(*, batches: bool, sizes: range) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sent = send_stamped(Client(ours), 1000, 0.2, batches=batches)
        ours.shutdown(socket.SHUT_WR)
        payloads, _ = scan_text_frames(theirs.makefile("rb").read())
    frames = [json.loads(payload)["data"] for payload in payloads]
    assert sum(map(len, frames)) == sent
    assert set(map(len, frames)) <= set(sizes)
    assert batches == any(len(frame) > 1 for frame in frames)


@pytest.mark.parametrize(
    "contender",
    [
        pytest.param(recorder("ingestor", "parquet"), marks=pytest.mark.long, id="ingestor"),
        pytest.param(Contender("script", script="script.py"), id="script"),
    ],
)
def test_a_contender_that_writes_all_is_measured(contender: Contender, load: Path, tmp_path: Path) -> None:
    run = run_load(contender, load, 10, 1, None, tmp_path / "run")
    assert run.trades == PART_TRADES
    assert run.bytes_written > 0
    assert run.lasted_s >= run.read_s > 0
    assert 0 < run.system_s < run.cpu_s


def test_without_trades_only_start_and_stop_are_measured(load: Path, tmp_path: Path) -> None:
    run = run_load(Contender("script", script="script.py"), load, 1, 0, None, tmp_path / "run")
    assert run.trades == 0
    assert run.started_up_s > 0


@pytest.mark.long
@pytest.mark.parametrize(
    "line",
    [
        "trades = trades[1:]",
        "trades = trades * 2",
        'trades = [one | {"v": 0.0} for one in trades]',
    ],
    ids=["a lost trade", "a doubled trade", "a wrong volume"],
)
def test_a_contender_that_is_wrong_ends_the_benchmark(
    line: str, lossy: Callable[[str], Contender], load: Path, tmp_path: Path
) -> None:
    with pytest.raises(BenchmarkFailed, match="lossy: sent"):
        run_load(lossy(line), load, 10, 1, None, tmp_path / "run")


def test_a_contender_that_dies_ends_the_benchmark(load: Path, tmp_path: Path) -> None:
    script = tmp_path / "dead.py"
    script.write_text("raise SystemExit('no disk')")
    with pytest.raises(BenchmarkFailed, match="no disk"):
        run_load(Contender("dead", script=str(script)), load, 1, 1, None, tmp_path / "run")


def test_a_contender_that_is_ending_is_no_longer_looked_at(tmp_path: Path) -> None:
    """Its end is seen between two looks, or in one."""
    watch = Watch()
    with running([sys.executable, "-c", "import sys; sys.stdin.read()"], tmp_path / "log") as process:
        watch.look(process, tmp_path)
        process.end_input()  # it ends by that
        eventually(process.has_ended, "its end")
        watch.look(process, tmp_path)
    assert len(watch.rss) == len(watch.cpu_s) == len(watch.at_s) == 1
    assert watch.rss[0] > 0


def test_a_contender_that_ends_before_its_memory_is_read_fails_the_part(tmp_path: Path) -> None:
    script = "import sys; sys.stdin.read(); sys.stderr.write('no disk')"
    with running([sys.executable, "-c", script], tmp_path / "log") as process:
        assert process.own_bytes() > 0
        process.end_input()
        eventually(process.has_ended, "its end")
        with pytest.raises(BenchmarkFailed, match="no disk"):
            process.own_bytes()


def test_a_contender_keeps_what_it_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an installed package is compiled, whatever this process was told."""
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    script = "import json, sys; print(json.dumps({'keeps': not sys.dont_write_bytecode}))"
    assert answer_of(["-c", script], tmp_path / "log") == {"keeps": True}


def test_libraries_are_read_from_the_disk_again(tmp_path: Path) -> None:
    """Asked by a read that may not wait for the disk."""
    library = tmp_path / "pyarrow" / "libarrow.so.2600"
    library.parent.mkdir()
    library.write_bytes(bytes(1 << 20))
    with library.open("rb", buffering=0) as file:

        def is_in_memory() -> bool:
            try:
                return os.preadv(file.fileno(), [bytearray(1)], 0, os.RWF_NOWAIT) == 1
            except BlockingIOError:
                return False
            except OSError as error:
                pytest.skip(f"this file system doesn't tell what it holds in memory: {error.strerror}")

        assert is_in_memory()
        forget_libraries(tmp_path)
        assert not is_in_memory()


def test_start_and_stop_are_subtracted() -> None:
    one = Round(idle={name: made_run(name, cpu_s=1.0, lasted_s=1.0) for name in ("ours", "theirs")})
    one.runs = [made_run("ours", cpu_s=2.0, lasted_s=2.0), made_run("theirs", cpu_s=9.0, lasted_s=5.0)]
    assert cpu_ratio([one], "ours", "theirs", 1) == pytest.approx(1 / 8)
    assert rate_ratio([one], "ours", "theirs", 1) == pytest.approx(4)
    assert cpu_ratio([one], "ours", "absent", 1) is None


@pytest.mark.parametrize(
    ("target", "verdict"),
    [
        (Target("at most", True, 1.6, 1.6), "met"),
        (Target("at most", True, 1.6, 1.61), "MISSED"),
        (Target("at least", False, 10, 10.0), "met"),
        (Target("at least", False, 10, 9.9), "MISSED"),
        (Target("no figure", True, 1, None, why="it was not run"), "not measured"),
    ],
)
def test_a_target_is_met_or_missed(target: Target, verdict: str) -> None:
    assert target.verdict == verdict


def test_what_was_measured_stays_whatever_becomes_of_another_part(tmp_path: Path) -> None:
    bench = Bench(QUICK, tmp_path, tmp_path, None, 0.0, tmp_path / "results")

    def measure() -> None:
        bench.measured.help_ratio = 0.5

    def leave_out() -> None:
        raise LeftOut("needs redis-server")

    def fail() -> None:
        raise BenchmarkFailed("a row is lost")

    for name, part in (("help", measure), ("sinks", leave_out), ("rounds", fail)):
        bench.part(name, part)
        written = json.loads((tmp_path / "results/results.json").read_text())
        assert written["measured"]["help_ratio"] == 0.5
    assert written["left_out"] == {"sinks": "needs redis-server"}
    assert written["failed"] == {"rounds": "a row is lost"}
    assert [one["verdict"] for one in written["targets"]] == ["met"]
    assert missing_lines(bench.measured) == ["Left out: sinks: needs redis-server", "Failed: rounds: a row is lost"]
    assert table(bench.measured)


def test_what_starts_the_contenders_holds_no_library() -> None:
    """A child's peak RSS begins with its parent's."""
    program = "import sys; import run; print(*sorted({'matplotlib', 'numpy', 'pyarrow'} & set(sys.modules)))"
    paths = {"PYTHONPATH": f"{REPOSITORY / 'benchmarks'}:{REPOSITORY}"}
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, env=os.environ | paths
    )
    assert done.stdout.split() == []


OURS = f"{sys.version_info.major}.{sys.version_info.minor}"


@pytest.fixture
def bench_with(tmp_path: Path) -> Callable[[str, str], Bench]:
    """A benchmark with a Python that tells of this release of cryptofeed, and that it is of this version itself."""
    python = tmp_path / "python"

    def make(release: str, version: str) -> Bench:
        about = {"release": release, "python": version, "packages": str(tmp_path / "packages")}
        python.write_text(f"#!/bin/sh\necho '{json.dumps(about)}'\n")
        python.chmod(0o700)
        tls = Tls(tmp_path / "certificate.pem", tmp_path / "key.pem")
        return Bench(QUICK, tmp_path / "load", tmp_path, str(python), 0.0, tmp_path / "results", [tls])

    return make


def test_cryptofeed_runs_on_the_python_of_the_recorder(bench_with: Callable[[str, str], Bench]) -> None:
    bench = bench_with("3.0.1", OURS)
    bench.part("cryptofeed", bench.prepare_cryptofeed)
    assert [(one.name, one.python) for one in bench.cryptofeed] == [(CRYPTOFEED, bench.cryptofeed_python)]
    assert bench.measured.others["cryptofeed"] == {"release": "3.0.1", "python": OURS}
    assert bench.notes[-1] == f"cryptofeed 3.0.1 on Python {OURS}, as the recorder."
    assert not bench.measured.left_out


@pytest.mark.parametrize(
    ("release", "python", "why"),
    [
        ("3.0.1", "3.7", f"it runs on Python 3.7, the recorder on {OURS}"),
        ("2.4.1", OURS, "needs release 3, and 2.4.1 is installed"),
        ("30.0", OURS, "needs release 3, and 30.0 is installed"),
    ],
)
def test_another_cryptofeed_is_left_out(
    release: str, python: str, why: str, bench_with: Callable[[str, str], Bench]
) -> None:
    bench = bench_with(release, python)
    bench.part("cryptofeed", bench.prepare_cryptofeed)
    assert bench.measured.left_out["cryptofeed"].startswith(why)
    assert not bench.cryptofeed


def test_cryptofeed_is_left_out_where_it_is_not_named_or_cannot_connect(
    bench_with: Callable[[str, str], Bench],
) -> None:
    named = bench_with("3.0.1", OURS)
    for bench, why in (
        (replace(named, cryptofeed_python=None), "its virtual environment was not named"),
        (replace(named, tls=[]), "it connects by TLS only"),
    ):
        bench.part("cryptofeed", bench.prepare_cryptofeed)
        assert bench.measured.left_out["cryptofeed"].startswith(why)
        assert not bench.cryptofeed


def test_a_load_server_that_never_waited_is_named() -> None:
    runs = [
        made_run("slow", cpu_s=1.0, lasted_s=1.0, venue_waited=0.9),
        made_run("fast", cpu_s=1.0, lasted_s=1.0, venue_waited=0.01),
    ]
    assert bottlenecks([Round(runs=runs)]) == ["The load server was the bottleneck: fast, 1 trades a frame."]


@pytest.mark.long
def test_reading_is_measured_with_every_row_found(tmp_path: Path) -> None:
    reading = measure_reading(LITTLE, tmp_path)
    assert (reading.year_trades, reading.day_trades, reading.days_trades) == (30_000, 10_000, 30_000)
    assert 0 < reading.bytes_a_trade < 40
    assert [one.measured is not None and one.measured > 0 for one in reading_targets(reading)] == [True] * 9
    assert "30,000 trades of 500 symbols in 3 days" in reading_notes(reading)[0]


@pytest.mark.long
def test_a_row_that_is_lost_or_doubled_while_reading_ends_the_benchmark(tmp_path: Path) -> None:
    made = make_recordings(LITTLE, tmp_path)
    trades = tmp_path / "days" / "trades"
    check_rows("as made", "parquet", trades, made["days"], tmp_path)
    part = min(trades.rglob("*.parquet"))
    twice = part.with_name(f"again-{part.name}")
    twice.write_bytes(part.read_bytes())
    with pytest.raises(BenchmarkFailed, match="doubled: made"):
        check_rows("doubled", "parquet", trades, made["days"], tmp_path)
    twice.unlink()
    part.unlink()
    with pytest.raises(BenchmarkFailed, match="lost: made"):
        check_rows("lost", "parquet", trades, made["days"], tmp_path)


def test_a_sink_is_measured_on_what_it_holds_in_the_end(tmp_path: Path) -> None:
    told: list[str] = []
    (rate,), left_out = measure_sinks(100_000, tmp_path, ["directory"], told.append)
    assert left_out == {}
    assert (rate.kind, rate.rows) == ("directory", 100_000)
    assert rate.rows_a_second == pytest.approx(100_000 / rate.lasted_s)
    mirrored = (tmp_path / "directory 0/place/mirror").glob("date=*/*.parquet")
    assert sum(pq.read_metadata(path).num_rows for path in mirrored) == rate.rows
    assert told[1].split()[:2] == ["directory", f"{rate.rows_a_second:,.0f}"]


def test_what_is_compared_is_the_middle_of_three_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lasted_s = iter([1.0, 4.0, 2.0])
    monkeypatch.setattr(sinks, "_measure", lambda kind, *_: sinks.SinkRate(kind, 100_000, next(lasted_s), 1.0, 2.0))
    (rate,), _ = measure_sinks(100_000, tmp_path, ["sqlite"])
    assert (rate.lasted_s, rate.ratio) == (2.0, 1.0)


def test_a_view_at_rest_is_measured_without_and_behind_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, less in (("_MANY", 3), ("_SETTLE_S", 0.1), ("_REST_S", 0.3)):
        monkeypatch.setattr(backlog, name, less)
    told = backlog.measure_turns(1)
    assert told["ratio"] == told["many"] / told["none"] > 0
    assert [one.measured for one in backlog_targets(told)] == [told["many"] * 100, told["ratio"]]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_hundred_thousand_mutated_frames_are_read_as_the_reference_reads_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The ten millions of `make fuzz` begin with other seeds."""
    assert fuzz.main(["--frames", "100000", "--seed", "1000000000"]) == 0
    assert "no difference" in capsys.readouterr().out
