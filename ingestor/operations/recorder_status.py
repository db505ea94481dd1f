"""The state of a recording as plain values, and the problems in it; and how another process asks for it: the root's
lock names the recorder, it answers, its files show their growth.
"""

import functools
import http.client
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from ingestor.layout import Holder, Layout, read_holder
from ingestor.ledger import list_closed_facts, list_ledgers, read_facts
from ingestor.metrics import Counts
from ingestor.texts import describe_blindness, escape, format_size

if TYPE_CHECKING:
    from pydantic import TypeAdapter

_STILL_S = 10.0
_FILES_STILL_S = 60.0  # sealing a large segment is one long step
_LATE_S = 10.0
_DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Histogram:
    """`within[i]` values were at most `bounds[i]`."""

    bounds: tuple[float, ...]
    within: tuple[int, ...]
    total: int
    sum_s: float


@dataclass(frozen=True, slots=True)
class SinkLag:
    """Rows of this run that a sink has not got yet; for Parquet those of the open segment."""

    name: str
    rows: int
    seconds: float
    """Age of the oldest of these rows, to a second; for a sink in the other process as it was up to 10 s ago."""
    skipped_rows: int = 0
    """Rows that the journal no longer keeps for it: these are in the dataset only."""
    fault: str = ""
    """Why it takes nothing now, in the destination's words and with what to do; empty where it takes rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """The link to the venue."""

    connected: bool
    """Each symbol is asked for on a connection that is open."""
    answered: bool
    """Something came on it since the symbols were asked for."""
    connections: int
    silence_s: float
    """Since anything came from the venue, on whichever connection; of several groups, of the one that is silent."""
    silence_max_s: float
    symbols: int
    ticking: int
    """Symbols with a trade in the last minute."""
    last_trade_at: dict[str, float]
    """By symbol, up to 1000."""
    gap: str | None
    """The cause of the gap that is open for all symbols, or for all of a group."""
    blind_symbols: tuple[str, ...]
    """Those with an open gap of their own, up to 1000."""
    gaps: dict[str, int]
    """Number of gaps that began in this run, by cause."""
    blind_s: dict[str, float]
    """Total length of those that have ended, by cause."""
    gap_s: float = 0.0
    """Its age."""
    groups: int = 1
    """Into so many the symbols are divided, as a connection does not take all."""
    redundant: int = 1
    """So many connections are to be read at once: for each group one, or several."""
    open: int = 0
    """So many of them are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Strange:
    """Messages that fit nothing: read as no trade, and as nothing else that is known."""

    messages: int
    """So many in this run."""
    reason: str
    sample: str
    """The beginning of one of them, without secrets."""
    puzzling: bool
    """No trade has been read in this run, though this should have been one, or some are to be expected by now."""


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
    """Age of the oldest frame that waits for the recorder."""
    turned_s: float
    """Since the recorder's loop last came round."""
    conservation_violations: int
    reader_turned_s: float = 0.0
    """Since the loop that reads the connection last came round; 0 where there is none, or the Buffer is full."""
    files_turned_s: float = 0.0
    """Since the loop that carries the journal to its files last came round."""
    strange: Strange | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """The journal, its sinks, and the room there is."""

    failing: bool
    syncs: int
    sync_s: float
    """Total duration of these syncs."""
    sync_age_s: float
    """Age of the oldest row that is not synced."""
    killed_loss_s: float
    """Data that `kill -9` would lose now, at most."""
    unpowered_loss_s: float
    """Data that a power cut would lose now, at most, but for one sync."""
    sinks: tuple[SinkLag, ...]
    sink_patience_s: float
    free_bytes: int
    floor_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockState:
    """The wall clock, by which receipts are stamped, against the venue's."""

    wrong_s: float = 0.0
    """By how much it is wrong, as far as can be told; negative where it is behind."""
    trades_s: float | None = None
    """Age of the venue's newest trades on receipt; negative if they are ahead. None before the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackfillState:
    """What is filled while the recorder runs."""

    source: str
    running: bool
    """A round is under way."""
    filled: int
    """Gaps of single symbols, in this run."""
    unfilled: int
    """Those that the last round asked for in vain."""
    trades: int
    """Filled in this run."""
    last_round_at: float | None = None
    """When one ended."""
    error: str | None = None
    """Why the last round failed as a whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecorderStatus:
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
    clock: ClockState = ClockState()
    backfill: BackfillState | None = None
    """None: not asked for."""


@functools.cache
def _as_json() -> "TypeAdapter[RecorderStatus]":
    from pydantic import TypeAdapter  # heavy: not where nobody records

    return TypeAdapter(RecorderStatus)


def encode_status(status: RecorderStatus) -> bytes:
    """As JSON."""
    return _as_json().dump_json(status)


def decode_status(text: bytes) -> RecorderStatus:
    """The status that `encode_status` of this or a later version made. Raises ValueError on anything else."""
    return _as_json().validate_json(text)


def find_problems(status: RecorderStatus) -> list[str]:
    """Problems as sentences, the worst first; none while trades are recorded as they come."""
    link, clock, disk = status.link, status.clock, status.disk
    problems = []
    part = " (of a part of the symbols)" if link.groups > 1 and link.open else ""
    if part and not link.connected:
        problems.append(f"{link.redundant} connections, {link.open} open: a part of the symbols is not recorded")
    elif not link.connected:
        problems.append("not connected to the venue")
    elif not link.answered:
        problems.append(f"subscribed, and nothing has come yet{part}")
    elif link.silence_s > link.silence_max_s / 2:
        problems.append(f"mute: nothing has come for {link.silence_s:.0f} s{part}")
    elif link.gap is not None:
        problems.append(f"{describe_blindness(link.gap)}: frames come, but no trades{part}")
    if clock.wrong_s:
        where = "behind" if clock.wrong_s < 0 else "ahead of"
        problems.append(
            f"this computer's clock is {timedelta(seconds=round(abs(clock.wrong_s)))} h {where} the venue's: set it; "
            "trades are kept, and until then all symbols count as unproven"
        )
    elif clock.trades_s is not None and abs(clock.trades_s) > _DAY_S:
        where, late = "ahead of" if clock.trades_s < 0 else "behind", timedelta(seconds=round(abs(clock.trades_s)))
        problems.append(f"the venue's trades are {late} h {where} this computer's clock")
    problems += _flow_problems(status.flow)
    if disk.failing:
        problems.append("not writing: the disk refuses the journal")
    if disk.free_bytes < disk.floor_bytes:
        floor = format_size(disk.floor_bytes)
        problems.append(f"disk low: {disk.free_bytes >> 20} MB free, storage.min_free is {floor}")
    problems += [
        f"{sink.name} is far behind: {sink.rows} rows, {sink.seconds:.0f} s"
        for sink in disk.sinks
        if sink.seconds > disk.sink_patience_s
    ]
    return problems


def _flow_problems(flow: Flow) -> Iterable[str]:
    if flow.turned_s > _STILL_S:
        yield f"not writing: the recorder has stood still for {flow.turned_s:.0f} s"
    elif flow.lag_s > _LATE_S:
        yield f"the recorder is {flow.lag_s:.0f} s late"
    if flow.reader_turned_s > _STILL_S:
        yield f"not reading: the reader has stood still for {flow.reader_turned_s:.0f} s"
    if flow.files_turned_s > _FILES_STILL_S:
        yield f"not sealing: the files' thread has stood still for {flow.files_turned_s:.0f} s"
    if flow.rejects_flood:
        yield "rejects are flooding: see rejects/ for what can't be read"
    if flow.strange and flow.strange.puzzling:
        yield f"no message could be read as a trade, such as ({flow.strange.reason}): {flow.strange.sample}"
    if flow.conservation_violations:
        yield f"conservation was violated {flow.conservation_violations} times: see the log"


_PATIENCE_S = 5.0
_TOO_SOON_S = 600.0


@dataclass(frozen=True, slots=True)
class Status:
    """A root, and the recorder that may hold it."""

    root: str
    holder: Holder | None
    """None: nothing records here."""
    # The names of these fields are keys of `ingestor status --json`.
    vitals: RecorderStatus | None
    """None where it doesn't answer: `unanswered` says why."""
    unanswered: str | None
    ailments: list[str]
    bytes_per_day: float | None
    """Growth of the recording in the last 24 hours; None in its first ten minutes."""
    days_left: float | None
    """Until the disk is at its floor, at that rate."""

    @property
    def exit_code(self) -> int:
        """0 healthy, 1 degraded, 3 not running."""
        if self.holder is None:
            return 3
        return 1 if self.ailments else 0


def read_status(layout: Layout) -> Status:
    """Ask now. Raises OSError where the root can't be looked at."""
    holder = read_holder(layout)
    if holder is None:
        return Status(str(layout.root), None, None, None, [], None, None)
    vitals = unanswered = None
    if holder.health is None:
        unanswered = "nobody can say how it is: health.listen is off, or its port was taken"
    else:
        try:
            vitals = ask_status(holder.health)
        except (OSError, ValueError) as error:
            unanswered = f"it does not answer at {holder.health}: {error}"
    ailments = [unanswered] if unanswered else []
    rate, days_left = measure_growth(layout, time.time()), None
    if vitals is not None:
        ailments = find_problems(vitals)
        if vitals.link.connected and vitals.link.open < vitals.link.redundant:  # recorded all the same
            ailments.append(f"{vitals.link.redundant} connections, {vitals.link.open} open")
        if vitals.link.blind_symbols:
            ailments.append(f"blind for {', '.join(vitals.link.blind_symbols[:5])}: see `ingestor coverage`")
        ailments += [f"{sink.name} takes nothing: {escape(sink.fault)}" for sink in vitals.disk.sinks if sink.fault]
        if rate:
            days_left = max(vitals.disk.free_bytes - vitals.disk.floor_bytes, 0) / rate
    return Status(str(layout.root), holder, vitals, unanswered, ailments, rate, days_left)


def ask_status(address: str) -> RecorderStatus:
    """The status of the recorder at this address. Raises OSError, and ValueError if the answer is none."""
    from ingestor.config.addresses import split_address  # heavy: not where nobody records

    host, port = split_address(address)
    connection = http.client.HTTPConnection(host, port, timeout=_PATIENCE_S)
    try:
        connection.request("GET", "/status")
        return decode_status(connection.getresponse().read())
    except http.client.HTTPException as error:
        raise ValueError(f"no answer that can be read: {error!r}") from None
    finally:
        connection.close()


def measure_growth(layout: Layout, now: float) -> float | None:
    """Bytes per day by which the recording grows: what was written in the last 24 hours, scaled up in its first day."""
    # When this root was first recorded; with closed days that is more than a day ago, and then it doesn't matter when.
    began_us: int | None = 0
    if not list_closed_facts(layout):
        first = (next(read_facts(path), None) for path in list_ledgers(layout))
        began_us = next((fact.get("began", fact["at"]) for fact in first if fact is not None), None)
    if began_us is None:
        return None
    age_s = min(now - began_us / 1e6, _DAY_S)
    if age_s < _TOO_SOON_S:
        return None
    # The files of today and yesterday; among them late trades of the days before, by their own dates.
    today = datetime.fromtimestamp(now, UTC).date()
    places = [(layout.ledger, "*")]
    for name in (f"date={day.isoformat()}" for day in (today, today - timedelta(days=1))):
        places += [(base / name, "*") for base in (layout.trades, layout.csv, layout.accounts, layout.coverage)]
        places.append((layout.rejects, f"{name}.jsonl"))
    written = 0
    for path in (path for folder, pattern in places for path in folder.glob(pattern)):
        with suppress(FileNotFoundError):  # compacted since it was listed
            found = path.stat()
            written += found.st_size if found.st_mtime >= now - _DAY_S else 0
    return written * _DAY_S / age_s
