"""Reads the recorder's live parts into one frozen status when somebody asks."""

import math
import os
import time
from collections import deque
from collections.abc import Iterable
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from ingestor import __version__
from ingestor.capture.stream_state import BOUNDS_S
from ingestor.operations.recorder_status import (
    ClockState,
    Disk,
    Flow,
    Histogram,
    Link,
    RecorderStatus,
    SinkLag,
    Strange,
)
from ingestor.recording import Recording
from ingestor.sinks.cursors import Lag, Lags
from ingestor.sinks.destinations import configured_sinks

_SYMBOLS_MAX = 1000
_RATE_S = 10.0
_FLOOD_S = 60.0
_FLOOD_MIN = 100
_FLOOD_SHARE = 0.1
_PATIENCE_S = 30.0
"""Where markets are open a trade should have come by then."""
_SINK_GRACE_S = 300.0
_SAMPLES_MAX = 100_000
_EXTERNAL_S = 10.0


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

    def look(self) -> RecorderStatus:
        """How it is now. Raises OSError where the disk can't be asked."""
        recording, now, now_s = self._recording, time.time(), time.monotonic()
        return RecorderStatus(
            at=now,
            version=__version__,
            pid=os.getpid(),
            root=str(recording.layout.root),
            run=recording.run,
            started_at=self._started_at,
            link=self._look_at_link(now, now_s),
            flow=self._look_at_flow(now_s),
            disk=self._look_at_disk(now_s),
            clock=self._look_at_clock(),
        )

    def _look_at_clock(self) -> ClockState:
        venue = self._recording.clock.venue
        trades_us = venue.trades_us
        return ClockState(wrong_s=venue.wrong_us / 1e6, trades_s=None if trades_us is None else trades_us / 1e6)

    def _look_at_link(self, now: float, now_s: float) -> Link:
        session, observed, gaps = self._recording.session, self._recording.observed, self._recording.gaps
        symbols = self._recording.subscriptions.symbols
        last_frame_us, whole = session.last_frame_us, gaps.whole
        last_trades_us = observed.last_trade_us.copy()  # in one step: the recorder adds to it
        return Link(
            connected=session.connected,
            answered=session.answered,
            connections=session.connections,
            silence_s=max(now - (last_frame_us / 1e6 if last_frame_us else self._started_at), 0.0),
            silence_max_s=self._recording.settings.connection.silence,
            symbols=len(symbols),
            ticking=0
            if whole is not None  # nobody is heard: trades of the minute before the gap say nothing of now
            else sum(observed.last_trade_s.get(symbol, -math.inf) >= now_s - 60.0 for symbol in symbols),
            last_trade_at={symbol: at_us / 1e6 for symbol, at_us in islice(last_trades_us.items(), _SYMBOLS_MAX)},
            gap=None if whole is None else whole.cause,
            blind_symbols=tuple(sorted(gaps.blind_symbols)[:_SYMBOLS_MAX]),
            gaps=dict(gaps.opened),
            blind_s={cause: blind_us / 1e6 for cause, blind_us in gaps.blind_us.copy().items()},
            gap_s=0.0 if whole is None else max(now - whole.since_us / 1e6, 0.0),
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
            reader_turned_s=self._reader_turned_s(now_s),
            files_turned_s=now_s - self._recording.runner.turned_at_s,
            strange=self._look_at_strange(),
        )

    def _look_at_strange(self) -> Strange | None:
        unread, recording = self._recording.observed.unread, self._recording
        if unread is None:
            return None
        silent = not recording.recorder.counts.trades
        awaited = time.time() - self._started_at >= _PATIENCE_S and recording.markets.any_open(
            recording.subscriptions.symbols, datetime.now(UTC)
        )
        puzzling = silent and (unread.rejected or awaited)
        return Strange(messages=unread.messages, reason=unread.reason, sample=unread.sample, puzzling=puzzling)

    def turns(self, now_s: float) -> tuple[float, float]:
        """When the reader's loop and that of the files last came round (monotonic); now, where the reader waits."""
        return now_s - self._reader_turned_s(now_s), self._recording.runner.turned_at_s

    def _reader_turned_s(self, now_s: float) -> float:
        session, buffer = self._recording.session, self._recording.buffer
        waits = buffer.bytes >= self._recording.settings.connection.buffer // 2  # for room: the recorder's affair
        return now_s - session.turned_at_s if session.connected and not waits else 0.0

    def _look_at_disk(self, now_s: float) -> Disk:
        settings, journal = self._recording.settings, self._recording.journal
        killed_loss_s = settings.journal.linger + self._recording.buffer.lag_s()
        sync_age_s = journal.unsynced.age_s
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
            free_bytes=_free_bytes(self._recording.layout.root),
            floor_bytes=settings.storage.min_free,
        )

    def _look_at_external(self, now_s: float) -> Iterable[SinkLag]:
        """The sinks of the other process, from their cursors: reading the journal's headers takes a moment where one
        is far behind, and is not done for everybody who asks. Raises OSError.
        """
        if now_s >= self._external_due_s:
            self._external_due_s = now_s + _EXTERNAL_S
            self._external_lags = self._external.look()
        skipped = self._recording.slots.skipped
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


def _free_bytes(path: Path) -> int:
    """What an ordinary user may still write to this path's disk. Raises OSError."""
    disk = os.statvfs(path)
    return disk.f_bavail * disk.f_frsize
