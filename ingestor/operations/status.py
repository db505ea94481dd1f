"""Asks a recorder for its status from another process: its lock names it, it answers, its files show their growth."""

import http.client
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from ingestor.layout import Holder, Layout, read_holder
from ingestor.ledger import list_closed_facts, list_ledgers, read_facts
from ingestor.operations.recorder_status import RecorderStatus, decode_status, find_problems
from ingestor.texts import escape

_PATIENCE_S = 5.0
_DAY_S = 86_400.0
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
    vitals, unanswered = _ask(holder.health)
    ailments = [unanswered] if unanswered else []
    rate, days_left = measure_growth(layout, time.time()), None
    if vitals is not None:
        ailments = find_problems(vitals)
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


def _ask(address: str | None) -> tuple[RecorderStatus | None, str | None]:
    """(status, None) or (None, why not)."""
    if address is None:
        return None, "nobody can say how it is: health.listen is off, or its port was taken"
    try:
        return ask_status(address), None
    except (OSError, ValueError) as error:
        return None, f"it does not answer at {address}: {error}"


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
