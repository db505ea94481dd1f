"""Runs at full speed: a finite load, sent as fast as the contender takes it."""

import json
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

from processes import HERE, BenchmarkFailed, Contender, Tls, answer_of, running, venue
from trade_load import PART_TRADES


@dataclass(frozen=True, slots=True)
class Run:
    """What one contender did with one load. Everything that was sent is written: that is checked before."""

    contender: str
    frame_size: int
    tls: bool
    trades: int
    started_up_s: float
    """From the start of the process to its first subscription."""
    lasted_s: float
    """From the first byte sent to the end of the process, everything written."""
    read_s: float
    """From the first byte sent to the last one read."""
    cpu_s: float
    system_s: float
    peak_rss: int
    bytes_written: int
    venue_waited: float
    """The share of the time until the last byte was sent in which the load server waited for the contender."""
    pauses: int | None = None
    """How often the reader waited for room, by the recorder's own metrics; None of another program."""


def run_load(contender: Contender, load: Path, frame_size: int, parts: int, tls: Tls | None, folder: Path) -> Run:
    """Send so many parts of the load. Raises BenchmarkFailed where a trade is missing, or there is one too many."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    options = ["--frame-size", str(frame_size), "--parts", str(parts), *["--close"] * contender.ends_by_itself]
    with (
        venue(load, options, tls, folder / "venue.log") as at,
        running(contender.command(at, folder), folder / "contender.log") as process,
    ):
        subscribed = at.next("subscribed", process)
        read = at.next("read", process)
        pauses = read_pauses(folder / "data" / ".lock") if contender.formats and parts else None
        if not contender.ends_by_itself:
            process.signal(signal.SIGTERM)
        used = process.wait()
    return Run(
        contender=contender.name,
        frame_size=frame_size,
        tls=tls is not None,
        trades=parts * PART_TRADES,
        started_up_s=subscribed["at"] - process.started_s,
        lasted_s=used.ended_s - read["began"],
        read_s=read["at"] - read["began"],
        cpu_s=used.cpu_s,
        system_s=used.system_s,
        peak_rss=used.peak_rss,
        bytes_written=check_written(contender, load, parts, folder),
        venue_waited=read["waited_s"] / max(read["sent"] - read["began"], 1e-9),
        pauses=pauses,
    )


def read_pauses(lock: Path) -> int:
    """By the metrics of the recorder that holds this lock."""
    with urlopen(f"http://{json.loads(lock.read_text())['health']}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return round(sum(float(line.split()[1]) for line in lines if line.startswith("ingestor_reader_pauses_total ")))


def check_written(contender: Contender, load: Path, parts: int, folder: Path) -> int:
    """The size of what was written. Raises BenchmarkFailed unless that is every trade sent, once."""
    command = [str(HERE / "written.py"), contender.written_as, str(contender.output(folder))]
    written = answer_of(command, folder / "written.log")
    expected = {"rows": parts * PART_TRADES, "volume": volume_of(load, parts)}
    if {name: written[name] for name in expected} != expected:
        raise BenchmarkFailed(f"{contender.name}: sent {expected}, written {written}")
    kept = (folder / "data" / "raw").rglob("*.parquet")  # frames as they came, beside the trades
    return int(written["bytes"]) + sum(path.stat().st_size for path in kept)


def volume_of(load: Path, parts: int) -> float:
    """The total volume of so many parts, sent one after the other, over and over."""
    volumes: list[int] = json.loads((load / "load.json").read_text())["volumes"]
    return float(sum(volumes[number % len(volumes)] for number in range(parts)))


def receive_and_discard(load: Path, frame_size: int, parts: int, folder: Path) -> float:
    """CPU seconds a trade of the least that a client can do with the load."""
    options = ["--frame-size", str(frame_size), "--parts", str(parts), "--close"]
    with venue(load, options, None, folder / "venue.log") as at:
        facts = answer_of([str(HERE / "limit.py"), "receive", at.url], folder / "limit.log")
    return float(facts["cpu_s"] / (parts * PART_TRADES))


def limit_part(folder: Path, *arguments: str) -> float:
    """CPU seconds a trade of a part of the limit (limit.py)."""
    facts = answer_of([str(HERE / "limit.py"), *arguments], folder / "limit.log")
    return float(facts["cpu_s"] / facts["trades"])
