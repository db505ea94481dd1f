"""A long recording under load and faults: memory, threads and descriptors stay flat, and the truth is complete."""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness import (
    Recorder,
    Site,
    Tally,
    compare,
    count_differences,
    count_repeats,
    read_csv,
    read_gaps,
    read_parquet,
    running_venue,
)

pytestmark = pytest.mark.alone

SOAK_S = float(os.environ.get("SOAK_SECONDS", "20"))
USUAL_RATE = 57
"""Trades a second that Finnhub sends for about as many symbols as a free key may have."""
LOAD = 100
SAMPLE_S = 0.25
GROWTH_KB = 24 << 10
"""How much more memory at rest may be held in the last third than in the second: Arrow's pools breathe."""
FAULTS = """
- {at: 2s, every: 9s, do: close, code: 1001}
- {at: 5s, every: 9s, do: abort}
- {at: 8s, every: 9s, do: reset}
"""


@dataclass(frozen=True)
class Usage:
    """What a process holds at one moment."""

    memory_kb: int
    threads: int
    descriptors: int
    """But for the connection, which a fault may have ended at that moment, and may not."""


@pytest.mark.long
def test_soak(tmp_path: Path, tally: Tally) -> None:
    """The least that is held in a while is what is kept: it must not grow from one third of the run to the next."""
    faults = tmp_path / "faults.yaml"
    faults.write_text(FAULTS)
    with running_venue(tmp_path, "--rate", str(USUAL_RATE * LOAD), "--faults", str(faults)) as venue:
        site = Site(tmp_path, tmp_path / "data", venue.url)
        with site.running() as recorder:
            recorder.wait_for_rows()
            samples = _watch(recorder)
            truth = venue.stop()
            recorder.wait_for_end_of_stream()
            assert recorder.end() == 0
    parquet, csv, gaps = read_parquet(site.layout), read_csv(site.layout), read_gaps(site.layout)
    comparison = compare(truth, parquet)
    middle, last = (_least(samples[third * len(samples) // 3 :][: len(samples) // 3]) for third in (1, 2))
    tally.rounds, tally.rows = len(gaps) - 1, parquet.num_rows  # the last gap is the stop
    tally.duplicated = count_repeats(parquet) + count_repeats(csv)
    tally.unexplained = comparison.unexplained(gaps) + count_differences(parquet, csv)
    tally.note = (
        f"memory {middle.memory_kb >> 10} → {last.memory_kb >> 10} MB, threads {middle.threads} → {last.threads}, "
        f"descriptors {middle.descriptors} → {last.descriptors}, {len(comparison.missing)} rows in gaps"
    )
    tally.assert_clean()
    assert tally.rounds >= SOAK_S // 9, "the faults did not strike"
    assert last.memory_kb <= middle.memory_kb + GROWTH_KB
    assert last.threads <= middle.threads
    assert last.descriptors <= middle.descriptors


def _watch(recorder: Recorder) -> list[Usage]:
    samples = []
    end_s = time.monotonic() + SOAK_S
    while time.monotonic() < end_s:
        samples.append(_usage(recorder.process.pid))
        with pytest.raises(subprocess.TimeoutExpired):
            recorder.process.wait(SAMPLE_S)
    return samples


def _usage(pid: int) -> Usage:
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    memory_kb, threads = int(status["VmRSS"].split()[0]), int(status["Threads"])
    established = _established()
    held = [one for one in _descriptors(pid) if one not in established]
    return Usage(memory_kb, threads, len(held))


def _descriptors(pid: int) -> Iterator[str]:
    """What each is open on."""
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed since it was listed
            yield str(descriptor.readlink())


def _established() -> set[str]:
    """The sockets of all connections that are up: one that was ended and not closed is none of them."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {f"socket:[{row[9]}]" for row in rows if row[3] == "01"}


def _least(samples: list[Usage]) -> Usage:
    return Usage(
        min(sample.memory_kb for sample in samples),
        min(sample.threads for sample in samples),
        min(sample.descriptors for sample in samples),
    )
