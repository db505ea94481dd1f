"""Takes blocks of frames from the buffer: decode, validate, refuse, keep, observe; and waits where the disk refuses."""

import operator
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import compress
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import structlog

from ingestor.capture.buffer import Buffer, FrameBlock
from ingestor.capture.id_watch import IdWatch
from ingestor.capture.rejects import Refused, Rejects, find_refused
from ingestor.capture.stream_state import Delays, Observed, Observer
from ingestor.capture.validate import AHEAD_US, FEW, Deduplicator, KnownTexts, Validated, are_few_good, validate
from ingestor.capture.wall_clock import STEP_US, VenueTime
from ingestor.config.sections import JournalSettings
from ingestor.errors import RowsUnsaved
from ingestor.feeds import Decoded, DecodedColumns, Feed, FewRows, Frames, Notice
from ingestor.journal.records import Header, Kind, Pieces, encode_raw
from ingestor.journal.writer import Block, Journal
from ingestor.metrics import REPEATED, Counts
from ingestor.schema import RECEIVED_AT, RUN_SHIFT, recorded

log = structlog.get_logger()

_RETRY_S = 1.0

_IDLE_S = 0.25
_CALM_S = 0.5
_FILL_ROWS = 1 << 13
_CONNECTIONS_KEPT = 64
"""The text of the last frame is kept of so many."""


class Keeper:
    """For the recorder's thread. A Buffer that is closed says that the process is to end. Nothing raises OSError."""

    def __init__(self, journal: Journal, rejects: Rejects, buffer: Buffer, observed: Observed) -> None:
        self._journal = journal
        self._rejects = rejects
        self._buffer = buffer
        self._observed = observed

    def keep(self, refused: list[Refused]) -> bool:
        """Whether these are done with: written, or given up at a stop. Waits a second where the disk refuses."""
        try:
            self._rejects.write(refused)
        except OSError as error:
            log.error("rejects.failed", error=error.strerror)
            self._observed.saw_disk(failing=True)
            return self._buffer.wait_closed(_RETRY_S)
        self._observed.saw_disk(failing=False)
        return True

    def sync(self) -> None:
        """Make rejects and rows survive a power cut."""
        try:
            self._rejects.sync()
        except OSError as error:
            log.error("rejects.failed", error=error.strerror)
        self._journal.sync()

    def recover(self) -> None:
        """The journal failed: wait a second, then try to go on. Rows stay in memory, and the Buffer fills.

        Raises RowsUnsaved where the process must end and even the ballast's room is not enough.
        """
        self._observed.saw_disk(failing=True)
        stopping = self._buffer.wait_closed(_RETRY_S)
        if self._journal.recover(last_chance=stopping):
            self._observed.saw_disk(failing=False)
        elif stopping and (error := self._journal.failed):
            rows, frames = self._journal.unsynced.rows, self._buffer.frames_waiting
            raise RowsUnsaved(f"{rows} trades and {frames} frames could not be saved: {error.strerror}")

    def close(self) -> None:
        """Raises RowsUnsaved where no disk takes the rest."""
        try:
            self._rejects.close()
        except OSError as error:  # the journal counts them, and its rows come first
            log.error("rejects.failed", error=error.strerror)
        self._journal.close()


@dataclass(frozen=True, slots=True)
class DecodedBlock:
    """What a block of frames became."""

    header: Header
    batch: pa.RecordBatch
    """The trades to record, in the root's schema."""
    refused: list[Refused]
    notices: list[Notice]
    repeated: pa.RecordBatch | None = None
    """Symbol and time of the trades that another connection had brought before; None: there are none."""
    few: FewRows | None = None
    """The venue's part of the trades as rows; None where there are only columns."""

    @property
    def reasons(self) -> dict[str, int]:
        """How many frames and trades are not recorded, by reason."""
        reasons = Counter(one.reason for one in self.refused)
        if self.repeated is not None:
            reasons[REPEATED] = self.repeated.num_rows
        return dict(reasons)


class BlockDecoder:
    """Decodes a run's frames, block by block: which trades to record, and what to refuse. It writes nothing."""

    def __init__(
        self, feed: Feed, run: int, venue: VenueTime, group_of: Mapping[int, int] = MappingProxyType({})
    ) -> None:
        """`group_of`: by connection, of which group of symbols it is; 0 where it has none. Two groups bring nothing
        alike.
        """
        self._feed = feed
        self._group_of = group_of
        self._schema = recorded(feed.schema)
        self._row = pa.struct(list(self._schema))
        self._names = [*feed.schema.names, "received_at", "sequence", "repeated"]
        """Of the values of a row in `_of_few`."""
        self._venue = venue
        self._deduplicators: defaultdict[int, Deduplicator] = defaultdict(
            partial(Deduplicator, feed.schema, own_times=feed.terms.own_times)
        )
        """By group."""
        self._has_ids = "trade_id" in feed.schema.names
        self._texts: defaultdict[int, KnownTexts] = defaultdict(KnownTexts)
        """By group."""
        self._last_us = 0
        """The last receipt so far, unless the clock was set back."""
        self._last: dict[int, bytes] = {}
        """By connection: the text of the frame before its next block; the one that was read last is the last."""
        self.next_frame = 0
        """How many frames of the run came before the next block."""
        self.next_sequence = run << RUN_SHIFT

    def decode(self, block: FrameBlock) -> DecodedBlock:
        """The next block of the run."""
        frames, known, repeated = block.frames, None, None
        first_us, last_us = frames.received_us[0], frames.received_us[-1]
        group = self._group_of.get(block.connection, 0)
        texts, deduplicator = self._texts[group], self._deduplicators[group]
        beside_others = self._has_ids and texts.hear(block.connection, last_us)
        if beside_others and (found := texts.find(block.connection, frames.payloads, last_us)):
            known, repeated = found
        decoded = self._feed.decode(frames) if known is None else self._decode_others(frames, known)
        few = self._find_few(decoded, last_us)
        if few is not None and not beside_others and not deduplicator.knows_others(block.connection):
            batch = self._of_few(few, block)
            refused = find_refused(frames, decoded, [], self.next_frame) if decoded.rejects else []
        else:
            validated = self._validate(block, decoded.trades) if few is None else Validated(None, [])
            few = None
            if (same := deduplicator.find(block.connection, decoded.trades)) is not None:
                validated = validated.without(same)
            rows, frame_of = decoded.trades, decoded.frame_of
            if validated.kept is not None:
                rows, frame_of = rows.filter(validated.kept), frame_of.filter(validated.kept)
            refused = find_refused(frames, decoded, validated.rejected, self.next_frame)
            if validated.repeated is not None:
                more = decoded.trades.select(["symbol", "timestamp"]).filter(validated.repeated)
                repeated = more if repeated is None else pa.concat_batches([repeated, more])
            if (
                beside_others
                and rows.num_rows
                and not refused
                and len(decoded.frame_of.unique()) == len(decoded.frame_of)
            ):
                # Nothing was refused, and no frame holds several trades.
                payloads = [frames.payloads[one] for one in frame_of.to_pylist()]
                texts.remember(block.connection, payloads, rows, last_us)
            batch = self._with_recorder_columns(rows, frame_of, block)
        counts = _count(len(frames), decoded, batch.num_rows, refused, 0 if repeated is None else repeated.num_rows)
        # Of two connections one block may reach a moment further than the next: what counts is the last so far.
        self._last_us = max(last_us, self._last_us) if self._last_us - last_us < STEP_US else last_us
        header = Header(Kind.BLOCK, counts, self.next_frame, self.next_sequence, first_us, self._last_us)
        deduplicator.remember(block.connection, batch, last_us)
        self.next_frame += len(frames)
        self.next_sequence += batch.num_rows
        if self._last.pop(block.connection, None) is None and len(self._last) == _CONNECTIONS_KEPT:
            del self._last[next(iter(self._last))]
        self._last[block.connection] = frames.payloads[-1]
        return DecodedBlock(header, batch, refused, decoded.notices, repeated, few)

    def _decode_others(self, frames: Frames, known: list[bool]) -> Decoded:
        """What those frames say that are not known."""
        places = list(compress(range(len(frames)), map(operator.not_, known)))
        part = Frames([frames.payloads[one] for one in places], [frames.received_us[one] for one in places])
        decoded = self._feed.decode(part)
        return DecodedColumns(
            decoded.trades,
            pa.array(places, pa.int64()).take(decoded.frame_of),
            [replace(one, frame=places[one.frame]) for one in decoded.rejects],
            [replace(one, frame=places[one.frame]) for one in decoded.notices],
        )

    def _find_few(self, decoded: Decoded, now_us: int) -> FewRows | None:
        """The trades as rows, where they are few and all of them are sane."""
        few = decoded.few
        if few is None or len(few.values) > FEW:
            return None
        return few if are_few_good(few.values, now_us, signed_prices=self._feed.terms.signed_prices) else None

    def _validate(self, block: FrameBlock, trades: pa.RecordBatch) -> Validated:
        """The verdict on these trades: are they sane?"""
        now_us = block.frames.received_us[-1]
        validated = validate(trades, now_us, signed_prices=self._feed.terms.signed_prices)
        if any(reason == "bad_time" for _, reason in validated.rejected):
            times_ms: Any = trades["timestamp"].view(pa.int64()).drop_null()
            if len(times_ms) and pc.min(times_ms).as_py() * 1000 > now_us + AHEAD_US:
                # Every trade is ahead of our clock. Perhaps that is behind, as far as the venue's times tell.
                ahead_us = [now_us - at_ms * 1000 for at_ms in times_ms.slice(0, 3).to_pylist()]
                behind_us = self._venue.saw_ahead(ahead_us, now_us)
                if behind_us:
                    validated = validate(trades, now_us + behind_us, signed_prices=self._feed.terms.signed_prices)
        return validated

    def _of_few(self, few: FewRows, block: FrameBlock) -> pa.RecordBatch:
        """As `_with_recorder_columns`, of rows."""
        received_us, repeats, names = block.frames.received_us, self._find_repeats(block), self._names
        rows = [
            dict(zip(names, (*values, received_us[frame], sequence, repeats[frame]), strict=True))
            for sequence, (values, frame) in enumerate(zip(*few, strict=True), self.next_sequence)
        ]
        return pa.RecordBatch.from_struct_array(pa.array(rows, self._row))  # one call instead of one per column

    def _find_repeats(self, block: FrameBlock) -> list[bool]:
        """Of each frame whether it is the same as the one before on its connection."""
        payloads = block.frames.payloads
        return list(map(operator.eq, payloads, [self._last.get(block.connection), *payloads[:-1]]))

    def _with_recorder_columns(self, rows: pa.RecordBatch, frame_of: pa.Array, block: FrameBlock) -> pa.RecordBatch:
        """The venue's columns and ours, in the order of the root's schema."""
        received_us = pa.array(block.frames.received_us, pa.int64()).take(frame_of)
        sequence = pa.arange(self.next_sequence, self.next_sequence + rows.num_rows)
        repeats = self._find_repeats(block)
        repeated = pa.array(repeats).take(frame_of) if True in repeats else pa.repeat(False, rows.num_rows)
        columns = dict(zip(rows.schema.names, rows.columns, strict=True))
        columns |= {"received_at": received_us.view(RECEIVED_AT), "sequence": sequence, "repeated": repeated}
        return pa.RecordBatch.from_arrays([columns[name] for name in self._schema.names], schema=self._schema)


class Fills:
    """Rows of a source's history on their way into the journal: another thread offers them, the recorder's takes them
    when no frame waits for it.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._offered: pa.Table | None = None
        self._closed = False
        self.rows = 0
        """So many are in the journal, and synced."""

    def offer(self, rows: pa.Table) -> bool:
        """Wait until these are in the journal and synced; False where the recorder has ended before."""
        with self._changed:
            self._offered = rows
            self._changed.wait_for(lambda: self._offered is None or self._closed)
            taken, self._offered = self._offered is None, None
            return taken

    @property
    def offered(self) -> pa.Table | None:
        """What waits to be taken; it does so until `settle`."""
        return self._offered

    def settle(self) -> None:
        """What was offered is in the journal, and synced."""
        with self._changed:
            self.rows += self._offered.num_rows if self._offered is not None else 0
            self._offered = None
            self._changed.notify_all()

    def close(self) -> None:
        """Nothing is taken any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class Recorder:
    """Owns the way from the Buffer to the journal. `run` is the recorder's thread."""

    def __init__(
        self,
        decoder: BlockDecoder,
        settings: JournalSettings,
        buffer: Buffer,
        journal: Journal,
        keeper: Keeper,
        observer: Observer,
        venue: VenueTime,
        ids: IdWatch | None = None,
        *,
        keeps_frames: bool = False,
    ) -> None:
        """`ids` where the venue counts its trades; `keeps_frames`: the journal takes them as they came, too."""
        self._decoder = decoder
        self._settings = settings
        self._buffer = buffer
        self._journal = journal
        self._keeper = keeper
        self._observer = observer
        self._venue = venue
        self._ids = ids
        self._keeps_frames = keeps_frames
        self._schema = journal.schema
        self.fills = Fills()
        """Rows of a history, for a segment of their own."""
        self._fill: deque[Block] = deque()
        """What of them is not written yet."""
        self._filling = False
        self._linger_s = settings.linger
        self._synced_at_s = time.monotonic()
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
                self._keeper.recover()
                continue
            if self._filling:  # before anything that is heard: that has a segment of other columns
                self._go_on_filling()
                continue
            block = self._buffer.take(self._linger_s, _IDLE_S)
            if block is not None:
                began_s = time.monotonic()
                self._record(block)
                # Journaled within `linger` of its receipt: what this block took is time that the next can't wait.
                self._linger_s = max(self._settings.linger - (time.monotonic() - began_s), 0.0)
            age_s = time.monotonic() - self._synced_at_s
            if age_s >= self._settings.sync_interval or self._journal.unsynced.full:
                self._keeper.sync()
                self._synced_at_s = time.monotonic()
            self._journal.rotate_if_due()
            if self._ids:
                self._ids.turn(time.monotonic())
            if self.fills.offered is not None and self._buffer.lag_s() < _CALM_S:
                self._begin_fill(self.fills.offered)
        if self._ids:
            self._ids.close(time.monotonic())
        self._keeper.close()

    def _begin_fill(self, rows: pa.Table) -> None:
        for batch in rows.combine_chunks().to_batches(max_chunksize=_FILL_ROWS):
            size, first = batch.num_rows, self._decoder.next_sequence
            columns = [
                pa.arange(first, first + size) if name == "sequence" else batch.column(name)
                for name in batch.schema.names
            ]
            numbered = pa.RecordBatch.from_arrays(columns, schema=rows.schema)
            bounds = pc.min_max(numbered.column("received_at").cast(pa.int64())).as_py().values()
            header = Header(Kind.BLOCK, Counts(trades=size), self._decoder.next_frame, first, *bounds)
            self._fill.append(Block(header, numbered))
            self._decoder.next_sequence += size
        self._filling = True
        self._go_on_filling()

    def _go_on_filling(self) -> None:
        """Write the rows of a fill into a segment of their own, and begin the next one for what is heard. Where the
        disk refuses, this goes on once it takes rows again.
        """
        journal = self._journal
        if self._fill and not journal.schema.equals(self._fill[0].rows.schema):
            journal.turn_to(self._fill[0].rows.schema)
        while self._fill and not journal.failed:
            journal.append(self._fill.popleft())
        if not journal.failed and not journal.schema.equals(self._schema):
            journal.turn_to(self._schema)
        if not journal.failed:
            self._filling = False
            self.fills.settle()

    def _record(self, block: FrameBlock) -> None:
        decoded = self._decoder.decode(block)
        batch, refused, reasons = decoded.batch, decoded.refused, decoded.reasons
        while refused and not self._keeper.keep(refused):  # before the record that counts them
            self.turned_at_s = time.monotonic()
        raw: Pieces = []
        if self._keeps_frames:
            raw = encode_raw(decoded.header, block.connection, block.frames.received_us, block.frames.payloads)
        self._journal.append(Block(decoded.header, batch, reasons, raw))
        self.counts += decoded.header.counts
        self.reasons.update(reasons)
        symbols = delays_us = None
        if decoded.few is not None:
            received_us, frame_of = block.frames.received_us, decoded.few.frame_of
            times_ms, symbols = [row[0] for row in decoded.few.values], [row[1] for row in decoded.few.values]
            delays_us = [received_us[frame] - 1000 * ms for frame, ms in zip(frame_of, times_ms, strict=True)]
        newest_us = self.delays.add(batch, delays_us)
        if newest_us is not None:
            self._venue.saw_trades(newest_us)
        if self._ids:
            self._ids.see(block.connection, batch, time.monotonic())  # before the gaps that these rows end are closed
        self._observer.observe(block, decoded.notices, batch, refused, decoded.repeated, symbols)


def _count(frames: int, decoded: Decoded, trades: int, refused: list[Refused], repeats: int) -> Counts:
    rejected_frames = sum(one.trade is None for one in refused)
    notices = len(decoded.notices)
    return Counts(
        frames=frames,
        decoded=frames - rejected_frames - notices,
        rejected_frames=rejected_frames,
        notices=notices,
        trades=trades,
        rejected_trades=len(refused) - rejected_frames + repeats,
    )
