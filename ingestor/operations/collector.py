"""Reads the recorder's live parts into one frozen status, on request."""

import math
import os
import time
from collections import deque
from datetime import UTC, datetime
from itertools import islice
from typing import NamedTuple

from ingestor import __version__
from ingestor.capture.stream_state import BOUNDS_S
from ingestor.capture.wall_clock import VenueTime
from ingestor.metrics import REPEATED
from ingestor.operations import recorder_status
from ingestor.operations.backfill_process import BackfillProcess
from ingestor.recording import Recording
from ingestor.sinks.destinations import configured_sinks
from ingestor.sinks.retention_slots import Lag, Lags

_SYMBOLS_MAX = 1000
_RATE_S = 10.0
_FLOOD_S = 60.0
_FLOOD_MIN = 100
_FLOOD_SHARE = 0.1
_PATIENCE_S = 30.0
"""While markets are open, a trade should have come by then."""
_SINK_GRACE_S = 300.0
_SAMPLES_MAX = 100_000
_EXTERNAL_S = 10.0


class _Sample(NamedTuple):
    at_s: float
    trades: int
    rejected: int


def read_clock(venue: VenueTime) -> recorder_status.ClockState:
    """What the venue shows of our clock."""
    trades_us = venue.trades_us
    return recorder_status.ClockState(
        wrong_s=venue.wrong_us / 1e6, trades_s=None if trades_us is None else trades_us / 1e6
    )


class Watch:
    """Samples a recording's counts once per second (`tick`), and reads all of its state on request (`look`)."""

    def __init__(self, recording: Recording, backfill: BackfillProcess | None = None) -> None:
        self._recording = recording
        self._backfill = backfill
        self._started_at = time.time()
        self._recent: deque[_Sample] = deque([_Sample(time.monotonic(), 0, 0)], maxlen=int(_FLOOD_S) + 1)
        self._uncommitted: deque[_Sample] = deque(maxlen=_SAMPLES_MAX)
        """Since the oldest row that some file lacks; a sample where the count had grown."""
        self._external = Lags(recording.layout, configured_sinks(recording.settings.sinks))
        self._external_lags: dict[str, Lag] = {}
        self._external_due_s = float("-inf")

    def tick(self, now_s: float) -> None:
        """Sample the counts, once per second."""
        if now_s - self._recent[-1].at_s < 1.0:
            return
        counts, repeats = self._recording.recorder.counts, self._recording.recorder.reasons[REPEATED]
        sample = _Sample(now_s, counts.trades, counts.rejected_frames + counts.rejected_trades - repeats)
        if sample.trades > self._recent[-1].trades:
            self._uncommitted.append(sample)
        self._recent.append(sample)
        filled = self._recording.recorder.fills.rows  # which no sample counts
        rows = (sink.rows[self._recording.run] - filled for sink in self._recording.files)
        committed = min(rows, default=sample.trades)
        while self._uncommitted and self._uncommitted[0].trades <= committed:
            self._uncommitted.popleft()

    def look(self) -> recorder_status.RecorderStatus:
        """The status now. Raises OSError if the disk can't be asked."""
        recording, now, now_s = self._recording, time.time(), time.monotonic()
        return recorder_status.RecorderStatus(
            at=now,
            version=__version__,
            pid=os.getpid(),
            root=str(recording.layout.root),
            run=recording.run,
            started_at=self._started_at,
            link=self._read_link(now, now_s),
            flow=self._read_flow(now_s),
            disk=self._read_disk(now_s),
            clock=read_clock(recording.clock.venue),
            backfill=self._backfill.state if self._backfill else None,
        )

    def _read_link(self, now: float, now_s: float) -> recorder_status.Link:
        groups, observed, gaps = self._recording.groups, self._recording.observed, self._recording.gaps
        symbols, blind = self._recording.division.symbols, gaps.blind_symbols
        last_frame_us = min(group.last_frame_us for group in groups)
        whole = next((gap for group in groups if (gap := group.gaps.whole) is not None), None)
        last_trades_us = observed.last_trade_us.copy()  # in one step: the recorder adds to it
        return recorder_status.Link(
            connected=all(group.connected for group in groups),
            answered=all(group.answered for group in groups),
            connections=self._recording.connections.opened,
            groups=len(groups),
            redundant=sum(len(group.sessions) for group in groups),
            open=sum(session.connected for group in groups for session in group.sessions),
            silence_s=max(now - (last_frame_us / 1e6 if last_frame_us else self._started_at), 0.0),
            silence_max_s=self._recording.settings.connection.silence,
            symbols=len(symbols),
            ticking=0
            if gaps.whole is not None  # nobody is heard: trades of the minute before the gap say nothing of now
            else sum(observed.last_trade_s.get(one, -math.inf) >= now_s - 60.0 and one not in blind for one in symbols),
            last_trade_at={symbol: at_us / 1e6 for symbol, at_us in islice(last_trades_us.items(), _SYMBOLS_MAX)},
            gap=None if whole is None else whole.cause,
            blind_symbols=tuple(sorted(blind)[:_SYMBOLS_MAX]),
            gaps=dict(gaps.opened),
            blind_s={cause: blind_us / 1e6 for cause, blind_us in gaps.blind_us.copy().items()},
            gap_s=0.0 if whole is None else max(now - whole.since_us / 1e6, 0.0),
        )

    def _read_flow(self, now_s: float) -> recorder_status.Flow:
        buffer, recorder = self._recording.buffer, self._recording.recorder
        recent = list(self._recent)
        first, last = recent[0], recent[-1]
        before = next((one for one in recent if one.at_s >= now_s - _RATE_S - 1.0), last)
        took_s = now_s - before.at_s
        rejected, trades = last.rejected - first.rejected, last.trades - first.trades
        strange, unread = None, self._recording.observed.unread
        if unread is not None:
            awaited = time.time() - self._started_at >= _PATIENCE_S and self._recording.markets.any_open(
                self._recording.division.symbols, datetime.now(UTC)
            )
            puzzling = not recorder.counts.trades and (unread.rejected or awaited)
            strange = recorder_status.Strange(
                messages=unread.messages, reason=unread.reason, sample=unread.sample, puzzling=puzzling
            )
        flooded = rejected >= _FLOOD_MIN and rejected >= _FLOOD_SHARE * (rejected + trades)
        return recorder_status.Flow(
            frames_received=buffer.frames_put,
            counts=recorder.counts,
            reasons=dict(recorder.reasons),
            trades_per_s=(recorder.counts.trades - before.trades) / took_s if took_s > 0 else 0.0,
            rejects_flood=flooded or self._recording.rejects.truncated_on == datetime.now(UTC).date(),
            delays=recorder_status.Histogram(
                BOUNDS_S, tuple(recorder.delays.within), recorder.delays.count, recorder.delays.sum_s
            ),
            buffer_bytes=buffer.bytes,
            buffer_max_bytes=self._recording.settings.connection.buffer,
            pauses=buffer.pauses,
            paused_s=buffer.paused_s,
            lag_s=buffer.lag_s(),
            turned_s=now_s - recorder.turned_at_s,
            conservation_violations=self._recording.accounts.violations,
            reader_turned_s=self._reader_turned_s(now_s),
            files_turned_s=now_s - self._recording.runner.turned_at_s,
            strange=strange,
        )

    def turns(self, now_s: float) -> tuple[float, float]:
        """When the reader's loop and that of the files last came round (monotonic); now, where the reader waits."""
        return now_s - self._reader_turned_s(now_s), self._recording.runner.turned_at_s

    def _reader_turned_s(self, now_s: float) -> float:
        """Of the session that is furthest behind."""
        groups, buffer = self._recording.groups, self._recording.buffer
        waits = buffer.bytes >= self._recording.settings.connection.buffer // 2  # for room: the recorder's affair
        sessions = () if waits else (session for group in groups for session in group.sessions)
        reading = (session for session in sessions if session.connected)
        return max((now_s - session.turned_at_s for session in reading), default=0.0)

    def _read_disk(self, now_s: float) -> recorder_status.Disk:
        settings, journal = self._recording.settings, self._recording.journal
        volume = os.statvfs(self._recording.layout.root)
        killed_loss_s = settings.journal.linger + self._recording.buffer.lag_s()
        sync_age_s = journal.unsynced.age_s
        sinks = []
        for file_sink in self._recording.files:
            rows = file_sink.rows[self._recording.run] - self._recording.recorder.fills.rows
            behind = self._recording.recorder.counts.trades - rows
            since_s = next((one.at_s for one in list(self._uncommitted) if one.trades > rows), now_s)
            sinks.append(
                recorder_status.SinkLag(file_sink.name, max(behind, 0), now_s - since_s if behind > 0 else 0.0)
            )
        # The sinks of the other process are read from their cursors. Where one is far behind, reading the journal's
        # headers takes a moment, so that is not done for everybody who asks.
        if now_s >= self._external_due_s:
            self._external_due_s = now_s + _EXTERNAL_S
            self._external_lags = self._external.look()
        skipped = self._recording.slots.skipped
        lags = self._external_lags.items()
        sinks += [recorder_status.SinkLag(name, lag.rows, lag.seconds, skipped[name], lag.fault) for name, lag in lags]
        return recorder_status.Disk(
            failing=self._recording.observed.disk_failing,
            syncs=journal.syncs,
            sync_s=journal.sync_s,
            sync_age_s=sync_age_s,
            killed_loss_s=killed_loss_s,
            unpowered_loss_s=killed_loss_s + max(settings.journal.sync_interval, sync_age_s),
            sinks=tuple(sinks),
            sink_patience_s=2 * settings.storage.rotate.age + _SINK_GRACE_S,
            free_bytes=volume.f_bavail * volume.f_frsize,  # what an ordinary user may still write
            floor_bytes=settings.storage.min_free,
        )
