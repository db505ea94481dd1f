"""Prometheus metrics: each name once, filled from the recorder's status on request. Nothing is counted here."""

import platform
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import pyarrow as pa
from prometheus_client import core
from prometheus_client.registry import Collector

from ingestor.operations.collector import Watch
from ingestor.operations.recorder_status import BackfillState, RecorderStatus


class _Number(NamedTuple):
    name: str
    help: str
    read: Callable[[RecorderStatus], float]


_NO_BACKFILL = BackfillState(source="", running=False, filled=0, unfilled=0, trades=0)
_COUNTERS = (
    _Number("ingestor_frames_received", "Frames read from the venue.", lambda v: v.flow.frames_received),
    _Number("ingestor_frames_notices", "Frames that carry no trades by intent.", lambda v: v.flow.counts.notices),
    _Number(
        "ingestor_trades_received",
        "Trades in frames that could be decoded.",
        lambda v: v.flow.counts.trades + v.flow.counts.rejected_trades,
    ),
    _Number("ingestor_trades_journaled", "Trades appended to the journal.", lambda v: v.flow.counts.trades),
    _Number("ingestor_connections", "Connections that were opened.", lambda v: v.link.connections),
    _Number("ingestor_reader_pauses", "Times that a full buffer made the reader wait.", lambda v: v.flow.pauses),
    _Number("ingestor_reader_paused_seconds", "How long the reader waited for room.", lambda v: v.flow.paused_s),
    _Number(
        "ingestor_conservation_violations",
        "Accounts that do not balance: a frame, trade or row was lost or invented.",
        lambda v: v.flow.conservation_violations,
    ),
    _Number("ingestor_backfill_trades", "Trades that a history filled.", lambda v: (v.backfill or _NO_BACKFILL).trades),
)
_GAUGES = (
    _Number("ingestor_start_time_seconds", "When this run began, since 1970.", lambda v: v.started_at),
    _Number("ingestor_connected", "1 while a connection to the venue is open.", lambda v: v.link.connected),
    _Number("ingestor_silence_seconds", "Since anything came from the venue.", lambda v: v.link.silence_s),
    _Number("ingestor_symbols", "Symbols asked for.", lambda v: v.link.symbols),
    _Number("ingestor_symbols_ticking", "Symbols with a trade in the last minute.", lambda v: v.link.ticking),
    _Number(
        "ingestor_symbols_blind",
        "Symbols with an open gap of their own, such as those the venue refused.",
        lambda v: len(v.link.blind_symbols),
    ),
    _Number("ingestor_blind", "1 while a gap for all symbols is open.", lambda v: v.link.gap is not None),
    _Number("ingestor_buffer_bytes", "Frames that wait for the recorder.", lambda v: v.flow.buffer_bytes),
    _Number("ingestor_buffer_limit_bytes", "Where the reader pauses.", lambda v: v.flow.buffer_max_bytes),
    _Number("ingestor_recorder_lag_seconds", "Age of the oldest frame that waits.", lambda v: v.flow.lag_s),
    _Number("ingestor_recorder_turned_seconds", "Since the recorder's loop came round.", lambda v: v.flow.turned_s),
    _Number("ingestor_journal_failing", "1 while the disk refuses the journal.", lambda v: v.disk.failing),
    _Number("ingestor_journal_sync_age_seconds", "Age of the oldest row not synced.", lambda v: v.disk.sync_age_s),
    _Number("ingestor_disk_free_bytes", "Free space on the disk of the recording.", lambda v: v.disk.free_bytes),
    _Number("ingestor_disk_floor_bytes", "storage.min_free.", lambda v: v.disk.floor_bytes),
    _Number(
        "ingestor_backfill_running", "1 while gaps are being filled.", lambda v: (v.backfill or _NO_BACKFILL).running
    ),
    _Number(
        "ingestor_backfill_failing",
        "1 where the last round failed as a whole.",
        lambda v: (v.backfill or _NO_BACKFILL).error is not None,
    ),
    _Number("ingestor_rejects_flood", "1 while rejects are too many.", lambda v: v.flow.rejects_flood),
)


class StatusMetrics(Collector):
    """Answers Prometheus with the status at that moment."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def collect(self) -> Iterable[core.Metric]:
        return expose(self._watch.look())


def expose(status: RecorderStatus) -> Iterator[core.Metric]:
    """The metrics of this status."""
    for number in _COUNTERS:
        yield core.CounterMetricFamily(number.name, number.help, number.read(status))
    for number in _GAUGES:
        yield core.GaugeMetricFamily(number.name, number.help, number.read(status))
    link, flow, disk = status.link, status.flow, status.disk
    last_trades: dict[str, float] = link.last_trade_at
    loss = {"kill": disk.killed_loss_s, "power_cut": disk.unpowered_loss_s}
    sink_rows = {sink.name: sink.rows for sink in disk.sinks}
    sink_seconds = {sink.name: sink.seconds for sink in disk.sinks}
    yield _counters("ingestor_rejected", "Frames and trades that were refused.", "reason", flow.reasons)
    yield _counters("ingestor_gaps", "Gaps that began.", "cause", link.gaps)
    yield _counters("ingestor_blind_seconds", "How long ended gaps lasted.", "cause", link.blind_s)
    yield _gauges("ingestor_last_trade_timestamp_seconds", "When its last trade was received.", "symbol", last_trades)
    yield _gauges("ingestor_loss_bound_seconds", "What this would lose now, at most.", "event", loss)
    yield _gauges("ingestor_sink_lag_rows", "Journaled rows that a sink lacks.", "sink", sink_rows)
    sink_skipped = {sink.name: sink.skipped_rows for sink in disk.sinks}
    yield _counters(
        "ingestor_sink_skipped_rows", "Rows that the journal no longer keeps for a sink.", "sink", sink_skipped
    )
    yield _gauges("ingestor_sink_lag_seconds", "Age of the oldest row that a sink lacks.", "sink", sink_seconds)
    backfill = status.backfill or _NO_BACKFILL
    filled = {"filled": backfill.filled, "unfilled": backfill.unfilled}
    yield _gauges("ingestor_backfill_gaps", "Gaps that a history filled in this run, or not.", "result", filled)
    delays = flow.delays
    buckets = [(str(bound), within) for bound, within in zip(delays.bounds, delays.within, strict=True)]
    yield core.HistogramMetricFamily(
        "ingestor_trade_delay_seconds",
        "From a trade to its receipt.",
        [*buckets, ("+Inf", delays.total)],
        delays.sum_s,
    )
    yield core.SummaryMetricFamily(
        "ingestor_journal_sync_seconds",
        "Forcing the journal to the disk.",
        count_value=status.disk.syncs,
        sum_value=status.disk.sync_s,
    )
    build = core.GaugeMetricFamily(
        "ingestor_build_info", "What is running: always 1.", labels=["version", "python", "pyarrow"]
    )
    build.add_metric([status.version, platform.python_version(), pa.__version__], 1)
    yield build


def _counters(name: str, text: str, label: str, values: "dict[str, int] | dict[str, float]") -> core.Metric:
    family = core.CounterMetricFamily(name, text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def _gauges(name: str, text: str, label: str, values: "dict[str, int] | dict[str, float]") -> core.Metric:
    family = core.GaugeMetricFamily(name, text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family
