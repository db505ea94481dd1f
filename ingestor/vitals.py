"""How a recording is: plain values, looked up in its live parts when somebody asks; and what of them is an ailment."""

import math
import os
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from pydantic import TypeAdapter

from ingestor import __version__
from ingestor.capture.delays import BOUNDS_S
from ingestor.metrics import Counts
from ingestor.recording import Recording
from ingestor.sinks.destinations import configured_sinks
from ingestor.sinks.places import Lag, Lags

_SYMBOLS_MAX = 1000
_STILL_S = 10.0
_LATE_S = 10.0
_RATE_S = 10.0
_FLOOD_S = 60.0
_FLOOD_MIN = 100
_FLOOD_SHARE = 0.1
_SINK_GRACE_S = 300.0
_SAMPLES_MAX = 100_000
_EXTERNAL_S = 10.0


@dataclass(frozen=True, slots=True)
class Histogram:
    """`within[i]` values were at most `bounds[i]`."""

    bounds: tuple[float, ...]
    within: tuple[int, ...]
    total: int
    sum_s: float


@dataclass(frozen=True, slots=True)
class SinkLag:
    """What of this run a sink has not got yet. For Parquet that is what the open segment holds."""

    name: str
    rows: int
    seconds: float
    """Age of the oldest of these rows, to a second; for a sink in the other process as it was up to 10 s ago."""
    skipped_rows: int = 0
    """What the journal no longer keeps for it: these are in the dataset only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """The link to the venue."""

    connected: bool
    answered: bool
    """Something came on this connection since the symbols were asked for."""
    connections: int
    silence_s: float
    """Since anything came from the venue, on whichever connection."""
    silence_max_s: float
    symbols: int
    ticking: int
    """Symbols with a trade in the last minute."""
    last_trade_at: dict[str, float]
    """By symbol, up to 1000."""
    gap: str | None
    """The cause of the gap for all symbols that is open."""
    blind_symbols: tuple[str, ...]
    """Those with an open gap of their own, up to 1000."""
    gaps: dict[str, int]
    """How many began in this run, by cause."""
    blind_s: dict[str, float]
    """How long those lasted that have ended, by cause."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """From the socket to the journal."""

    frames_received: int
    counts: Counts
    reasons: dict[str, int]
    trades_per_s: float
    """Over the last 10 s."""
    rejects_flood: bool
    """Texts of rejects are no longer kept today, or a tenth of what came in the last minute was rejected."""
    delays: Histogram
    buffer_bytes: int
    buffer_max_bytes: int
    pauses: int
    paused_s: float
    lag_s: float
    """How long the oldest frame has been waiting for the recorder."""
    turned_s: float
    """Since the recorder's loop last came round."""
    conservation_violations: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """The journal, its sinks, and the room there is."""

    failing: bool
    syncs: int
    sync_s: float
    """How long those took together."""
    sync_age_s: float
    """How long the oldest row that is not synced has been waiting."""
    killed_loss_s: float
    """What `kill -9` would lose now, at most."""
    unpowered_loss_s: float
    """What a power cut would lose now, at most, but for one sync."""
    sinks: tuple[SinkLag, ...]
    sink_patience_s: float
    free_bytes: int
    floor_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Vitals:
    """A recording at one moment. Durations are in seconds, times in seconds since 1970."""

    at: float
    version: str
    pid: int
    root: str
    run: int
    started_at: float
    link: Link
    flow: Flow
    disk: Disk


_AS_JSON = TypeAdapter(Vitals)


def encode_vitals(vitals: Vitals) -> bytes:
    """As JSON."""
    return _AS_JSON.dump_json(vitals)


def decode_vitals(text: bytes) -> Vitals:
    """What `encode_vitals` made, of this or a later version. Raises ValueError on anything else."""
    return _AS_JSON.validate_json(text)


def find_ailments(vitals: Vitals) -> list[str]:
    """What is wrong, the worst first, as sentences; none where trades are being recorded as they come."""
    return [*_link_ailments(vitals.link), *_flow_ailments(vitals.flow), *_disk_ailments(vitals.disk)]


def _link_ailments(link: Link) -> Iterable[str]:
    if not link.connected:
        yield "not connected to the venue"
    elif not link.answered:
        yield "subscribed, and nothing has come yet"
    elif link.silence_s > link.silence_max_s / 2:
        yield f"mute: nothing has come for {link.silence_s:.0f} s"
    elif link.gap is not None:
        yield f"blind: frames come, but no trades (a gap of cause {link.gap})"


def _flow_ailments(flow: Flow) -> Iterable[str]:
    if flow.turned_s > _STILL_S:
        yield f"not writing: the recorder has stood still for {flow.turned_s:.0f} s"
    elif flow.lag_s > _LATE_S:
        yield f"the recorder is {flow.lag_s:.0f} s late"
    if flow.rejects_flood:
        yield "rejects are flooding: see rejects/ for what can't be read"
    if flow.conservation_violations:
        yield f"conservation was violated {flow.conservation_violations} times: see the log"


def _disk_ailments(disk: Disk) -> Iterable[str]:
    if disk.failing:
        yield "not writing: the disk refuses the journal"
    if disk.free_bytes < disk.floor_bytes:
        yield f"disk low: {disk.free_bytes >> 20} MB free, storage.min_free is {disk.floor_bytes >> 20} MB"
    for sink in disk.sinks:
        if sink.seconds > disk.sink_patience_s:
            yield f"{sink.name} is far behind: {sink.rows} rows, {sink.seconds:.0f} s"


class _Sample(NamedTuple):
    at_s: float
    trades: int
    rejected: int


class Watch:
    """Looks at a recording: a little once a second (`tick`), at all of it when somebody asks (`look`)."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._started_at = time.time()
        self._recent: deque[_Sample] = deque([_Sample(time.monotonic(), 0, 0)], maxlen=int(_FLOOD_S) + 1)
        self._uncommitted: deque[_Sample] = deque(maxlen=_SAMPLES_MAX)
        """Since the oldest row that some file lacks; a sample where the count had grown."""
        self._external = Lags(recording.layout, configured_sinks(recording.settings.sinks))
        self._external_lags: dict[str, Lag] = {}
        self._external_due_s = float("-inf")

    def tick(self, now_s: float) -> None:
        """Remember how much there is, once a second."""
        if now_s - self._recent[-1].at_s < 1.0:
            return
        counts = self._recording.recorder.counts
        sample = _Sample(now_s, counts.trades, counts.rejected_frames + counts.rejected_trades)
        if sample.trades > self._recent[-1].trades:
            self._uncommitted.append(sample)
        self._recent.append(sample)
        committed = min((sink.rows[self._recording.run] for sink in self._recording.files), default=sample.trades)
        while self._uncommitted and self._uncommitted[0].trades <= committed:
            self._uncommitted.popleft()

    def look(self) -> Vitals:
        """How it is now. Raises OSError where the disk can't be asked."""
        recording, now, now_s = self._recording, time.time(), time.monotonic()
        return Vitals(
            at=now,
            version=__version__,
            pid=os.getpid(),
            root=str(recording.layout.root),
            run=recording.run,
            started_at=self._started_at,
            link=self._look_at_link(now, now_s),
            flow=self._look_at_flow(now_s),
            disk=self._look_at_disk(now_s),
        )

    def _look_at_link(self, now: float, now_s: float) -> Link:
        session, observed, gaps = self._recording.session, self._recording.observed, self._recording.gaps
        last_frame_us, whole = session.last_frame_us, gaps.whole
        last_trades_us = observed.last_trade_us.copy()  # in one step: the recorder adds to it
        return Link(
            connected=session.connected,
            answered=session.answered,
            connections=session.connections,
            silence_s=max(now - (last_frame_us / 1e6 if last_frame_us else self._started_at), 0.0),
            silence_max_s=self._recording.settings.connection.silence,
            symbols=len(session.symbols),
            ticking=sum(observed.last_trade_s.get(symbol, -math.inf) >= now_s - 60.0 for symbol in session.symbols),
            last_trade_at={symbol: at_us / 1e6 for symbol, at_us in islice(last_trades_us.items(), _SYMBOLS_MAX)},
            gap=None if whole is None else whole.cause,
            blind_symbols=tuple(sorted(gaps.blind_symbols)[:_SYMBOLS_MAX]),
            gaps=dict(gaps.opened),
            blind_s={cause: blind_us / 1e6 for cause, blind_us in gaps.blind_us.copy().items()},
        )

    def _look_at_flow(self, now_s: float) -> Flow:
        buffer, recorder = self._recording.buffer, self._recording.recorder
        flooded_today = self._recording.rejects.truncated_on == datetime.now(UTC).date()
        return Flow(
            frames_received=buffer.frames_put,
            counts=recorder.counts,
            reasons=dict(recorder.reasons),
            trades_per_s=self._trades_per_s(now_s),
            rejects_flood=flooded_today or self._rejects_flood(),
            delays=Histogram(BOUNDS_S, tuple(recorder.delays.within), recorder.delays.count, recorder.delays.sum_s),
            buffer_bytes=buffer.bytes,
            buffer_max_bytes=self._recording.settings.connection.buffer,
            pauses=buffer.pauses,
            paused_s=buffer.paused_s,
            lag_s=buffer.lag_s(),
            turned_s=now_s - recorder.turned_at_s,
            conservation_violations=self._recording.accounts.violations,
        )

    def _look_at_disk(self, now_s: float) -> Disk:
        settings, journal = self._recording.settings, self._recording.journal
        killed_loss_s = settings.journal.linger + self._recording.buffer.lag_s()
        sync_age_s = journal.sync_age_s
        sinks = [self._lag(sink.name, sink.rows[self._recording.run], now_s) for sink in self._recording.files]
        sinks += self._look_at_external(now_s)
        return Disk(
            failing=self._recording.observed.disk_failing,
            syncs=journal.syncs,
            sync_s=journal.sync_s,
            sync_age_s=sync_age_s,
            killed_loss_s=killed_loss_s,
            unpowered_loss_s=killed_loss_s + max(settings.journal.sync_interval, sync_age_s),
            sinks=tuple(sinks),
            sink_patience_s=2 * settings.storage.rotate.age + _SINK_GRACE_S,
            free_bytes=free_bytes(self._recording.layout.root),
            floor_bytes=settings.storage.min_free,
        )

    def _look_at_external(self, now_s: float) -> Iterable[SinkLag]:
        """The sinks of the other process, from their cursors: reading the journal's headers takes a moment where one
        is far behind, and is not done for everybody who asks. Raises OSError.
        """
        if now_s >= self._external_due_s:
            self._external_due_s = now_s + _EXTERNAL_S
            self._external_lags = self._external.look()
        skipped = self._recording.claims.skipped
        return [SinkLag(name, lag.rows, lag.seconds, skipped[name]) for name, lag in self._external_lags.items()]

    def _trades_per_s(self, now_s: float) -> float:
        before = next((one for one in list(self._recent) if one.at_s >= now_s - _RATE_S - 1.0), self._recent[-1])
        took_s = now_s - before.at_s
        return (self._recording.recorder.counts.trades - before.trades) / took_s if took_s > 0 else 0.0

    def _rejects_flood(self) -> bool:
        first, last = self._recent[0], self._recent[-1]
        rejected, trades = last.rejected - first.rejected, last.trades - first.trades
        return rejected >= _FLOOD_MIN and rejected >= _FLOOD_SHARE * (rejected + trades)

    def _lag(self, name: str, rows: int, now_s: float) -> SinkLag:
        """Of the sink of this name that has got this many rows."""
        behind = self._recording.recorder.counts.trades - rows
        since_s = next((one.at_s for one in list(self._uncommitted) if one.trades > rows), now_s)
        return SinkLag(name, max(behind, 0), now_s - since_s if behind > 0 else 0.0)


def free_bytes(path: Path) -> int:
    """What an ordinary user may still write to this path's disk. Raises OSError."""
    disk = os.statvfs(path)
    return disk.f_bavail * disk.f_frsize
