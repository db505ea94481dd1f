"""The recorder: frames out of the Buffer, decoded and validated as one block, into the journal. No Python object a
trade.
"""

import operator
import time
from collections import Counter
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import structlog

from ingestor.capture.buffer import Block as FrameBlock
from ingestor.capture.buffer import Buffer
from ingestor.capture.delays import Delays
from ingestor.capture.gaps import Gaps
from ingestor.capture.observed import Observed, Refusal
from ingestor.capture.rejects import Refused, Rejects
from ingestor.capture.twins import Twins
from ingestor.capture.validate import validate
from ingestor.config import JournalSettings
from ingestor.errors import RowsUnsaved
from ingestor.feeds import Decoded, Feed, Frames, Notice
from ingestor.journal.segment import Header, Kind
from ingestor.journal.writer import Block, Journal
from ingestor.ledger import Ledger, now_us
from ingestor.metrics import Counts
from ingestor.schema import RECEIVED_AT, RUN_SHIFT, recorded

_DISK_RETRY_S = 1.0
_IDLE_S = 0.25
_UNKNOWN_MAX = 100
_PROVEN_MAX = 10_000
"""Symbols that a venue invents must not fill the memory, nor the ledger."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Last:
    """The frame before a block: on which connection it came, and what it was."""

    connection: int
    payload: bytes


class Recorder:
    """Owns the way from the Buffer to the journal. `run` is the recorder's thread."""

    def __init__(
        self,
        feed: Feed,
        run: int,
        settings: JournalSettings,
        buffer: Buffer,
        journal: Journal,
        rejects: Rejects,
        ledger: Ledger,
        gaps: Gaps,
        observed: Observed,
    ) -> None:
        self._feed = feed
        self._schema = recorded(feed.schema)
        self._settings = settings
        self._buffer = buffer
        self._journal = journal
        self._rejects = rejects
        self._ledger = ledger
        self._gaps = gaps
        self._observed = observed
        self._last = _Last(0, b"")
        self._twins = Twins(feed.schema)
        self._proven_on = 0
        self._proven: set[str] = set()
        self._unknown_seen: set[str] = set()
        self._linger_s = settings.linger
        self._synced_at_s = time.monotonic()
        self._next_sequence = run << RUN_SHIFT
        self.counts = Counts()
        self.reasons: Counter[str] = Counter()
        """Why frames and trades were rejected."""
        self.delays = Delays()
        self.turned_at_s = time.monotonic()
        """When the loop last came round: progress, even where the disk makes it wait."""

    def run(self) -> None:
        """Until the Buffer is closed and drained; then the journal is closed. Raises RowsUnsaved where no disk takes
        the rest.
        """
        while not self._buffer.drained:
            self.turned_at_s = time.monotonic()
            if self._journal.failed:
                self._wait_for_disk()
                continue
            block = self._buffer.take(self._linger_s, _IDLE_S)
            if block is not None:
                began_s = time.monotonic()
                self._record(block)
                # Journaled within `linger` of its receipt: what this block took is time that the next can't wait.
                self._linger_s = max(self._settings.linger - (time.monotonic() - began_s), 0.0)
            self._sync_if_due()
            self._journal.rotate_if_due()
        self._close_rejects()
        self._journal.close()

    def _record(self, block: FrameBlock) -> None:
        frames = block.frames
        decoded = self._feed.decode(frames)
        validated = validate(decoded.trades, frames.received_us[-1])
        twins = self._twins.find(block.connection, decoded.trades)
        if twins is not None:
            validated = validated.without(twins, "repeated_id")
        rows, frame_of = decoded.trades, decoded.frame_of
        if validated.kept is not None:
            rows, frame_of = rows.filter(validated.kept), frame_of.filter(validated.kept)
        refused = self._refused(decoded, validated.rejected, frames)
        counts = _count(len(frames), decoded, rows.num_rows, len(validated.rejected))
        batch = self._with_recorder_columns(rows, frame_of, block)
        header = Header(
            Kind.BLOCK,
            counts,
            self.counts.frames,
            self._next_sequence,
            frames.received_us[0],
            frames.received_us[-1],
        )
        if refused:
            self._keep_rejects(refused)
        self._journal.append(Block(header, batch, _by_reason(refused)))
        self._next_sequence += rows.num_rows
        self._twins.remember(block.connection, rows, frames.received_us[-1])
        self.counts += counts
        self.reasons.update(one.reason for one in refused)
        self.delays.add(batch)
        self._last = _Last(block.connection, frames.payloads[-1])
        self._observe(block, decoded, batch)

    def _with_recorder_columns(self, rows: pa.RecordBatch, frame_of: pa.Array, block: FrameBlock) -> pa.RecordBatch:
        """The venue's columns and ours, in the order of the root's schema."""
        frames = block.frames
        received_at = pa.array(frames.received_us, pa.int64()).take(frame_of).cast(RECEIVED_AT)
        sequence = pa.arange(self._next_sequence, self._next_sequence + rows.num_rows)
        before = self._last.payload if self._last.connection == block.connection else None
        repeats = list(map(operator.eq, frames.payloads, [before, *frames.payloads[:-1]]))
        repeated = pa.array(repeats).take(frame_of) if True in repeats else pa.repeat(False, rows.num_rows)
        columns = dict(zip(rows.schema.names, rows.columns, strict=True))
        columns |= {"received_at": received_at, "sequence": sequence, "repeated": repeated}
        return pa.RecordBatch.from_arrays([columns[name] for name in self._schema.names], schema=self._schema)

    def _observe(self, block: FrameBlock, decoded: Decoded, batch: pa.RecordBatch) -> None:
        """Tell the session and the ledger what this block shows."""
        if block.connection > self._proven_on:
            self._proven_on, self._proven = block.connection, set()
        self._proven -= self._observed.take_unproven()
        ticking = {entry["values"]: entry["counts"] for entry in batch.column("symbol").value_counts().to_pylist()}
        self._observed.saw_trades(ticking, block.frames.received_us[-1])
        fresh = ticking.keys() - self._proven if block.connection == self._proven_on else set()
        if fresh and len(self._proven) < _PROVEN_MAX:
            self._prove(block.connection, batch, fresh)
        for symbol in ticking.keys() & self._gaps.blind_symbols:
            self._gaps.close(_first_received_us(batch, symbol), symbol)
        for notice in decoded.notices:
            self._heed(notice, block.frames.received_us[notice.frame])

    def _prove(self, connection: int, batch: pa.RecordBatch, symbols: set[str]) -> None:
        """The first trade of a symbol on this connection proves its subscription."""
        self._proven |= symbols
        told_us = now_us()
        facts = [
            {
                "at": told_us,
                "fact": "symbol.proven",
                "symbol": symbol,
                "connection": connection,
                "since": _first_received_us(batch, symbol),
            }
            for symbol in sorted(symbols)
        ]
        self._ledger.record_all(facts)

    def _heed(self, notice: Notice, received_us: int) -> None:
        """What the venue says besides trades."""
        if notice.refuses:
            self._observed.saw_refusal(Refusal(notice.symbol, notice.text, received_us))
        elif notice.kind == "error":
            log.warning("venue.complained", text=notice.text)
        elif notice.kind == "unknown" and notice.text not in self._unknown_seen:
            if len(self._unknown_seen) < _UNKNOWN_MAX:
                self._unknown_seen.add(notice.text)
            log.warning("notice.unknown", type=notice.text)

    def _refused(self, decoded: Decoded, rejected: list[tuple[int, str]], frames: Frames) -> list[Refused]:
        """What of this block is not recorded: frames and trades that can't be decoded, trades that make no sense."""
        base = self.counts.frames
        refused = [
            Refused(
                base + one.frame,
                one.trade,
                one.reason,
                frames.received_us[one.frame],
                frames.payloads[one.frame],
            )
            for one in decoded.rejects
        ]
        if rejected:
            places = _places(decoded)
            for row, reason in rejected:
                frame, trade = places[row]
                payload = frames.payloads[frame]
                refused.append(Refused(base + frame, trade, reason, frames.received_us[frame], payload))
        return refused

    def _keep_rejects(self, refused: list[Refused]) -> None:
        """Before the record that counts them; waits for the disk, and gives their texts up only at a stop."""
        while True:
            self.turned_at_s = time.monotonic()
            try:
                self._rejects.write(refused)
            except OSError as error:
                log.error("rejects.failed", error=error.strerror)
                self._observed.saw_disk(failing=True)
                if self._buffer.wait_closed(_DISK_RETRY_S):
                    return
            else:
                self._observed.saw_disk(failing=False)
                return

    def _sync_if_due(self) -> None:
        now_s = time.monotonic()
        if now_s - self._synced_at_s < self._settings.sync_interval and not self._journal.full:
            return
        try:
            self._rejects.sync()
        except OSError as error:
            log.error("rejects.failed", error=error.strerror)
        self._journal.sync()
        self._synced_at_s = time.monotonic()

    def _close_rejects(self) -> None:
        try:
            self._rejects.close()
        except OSError as error:  # the journal counts them, and its rows come first
            log.error("rejects.failed", error=error.strerror)

    def _wait_for_disk(self) -> None:
        """Rows stay in memory and the Buffer fills until the journal works again.

        Raises RowsUnsaved where the process must end and even the ballast's room is not enough.
        """
        self._observed.saw_disk(failing=True)
        stopping = self._buffer.wait_closed(_DISK_RETRY_S)
        if stopping:
            self._journal.release_ballast()
        if self._journal.recover():
            self._observed.saw_disk(failing=False)
        elif stopping and (error := self._journal.failed):
            waiting = self._buffer.frames_waiting
            raise RowsUnsaved(
                f"{self._journal.unsynced_rows} trades and {waiting} frames could not be saved: {error.strerror}"
            )


def _first_received_us(batch: pa.RecordBatch, symbol: str) -> int:
    """When the first trade of this symbol, which the batch holds, was received."""
    first = pc.index(batch.column("symbol"), symbol).as_py()
    return int(batch.column("received_at")[first].value)


def _count(frames: int, decoded: Decoded, trades: int, rejected_rows: int) -> Counts:
    rejected_frames = sum(one.trade is None for one in decoded.rejects)
    notices = len(decoded.notices)
    return Counts(
        frames=frames,
        decoded=frames - rejected_frames - notices,
        rejected_frames=rejected_frames,
        notices=notices,
        trades=trades,
        rejected_trades=len(decoded.rejects) - rejected_frames + rejected_rows,
    )


def _places(decoded: Decoded) -> list[tuple[int, int]]:
    """Where each decoded trade stands: its frame in the block, and its place among all trades of that frame."""
    taken = {(one.frame, one.trade) for one in decoded.rejects}
    places: list[tuple[int, int]] = []
    for frame in decoded.frame_of.to_pylist():
        trade = places[-1][1] + 1 if places and places[-1][0] == frame else 0
        while (frame, trade) in taken:
            trade += 1
        places.append((frame, trade))
    return places


def _by_reason(refused: list[Refused]) -> dict[str, int]:
    return dict(Counter(one.reason for one in refused))
