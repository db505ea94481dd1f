"""Retention: whole days of trades and CSV that are older than asked for go; coverage stays, and says so."""

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from operator import itemgetter
from pathlib import Path

import structlog

from ingestor.dataset.files import list_days, parse_days
from ingestor.history import read_history
from ingestor.layout import Layout, locked_date, remove_tree, sync_directory
from ingestor.ledger import Ledger

_DAY = timedelta(days=1)
_REST = timedelta(days=5)

log = structlog.get_logger()


def delete_expired(
    layout: Layout,
    ledger: Ledger,
    retention: timedelta,
    now: datetime,
    venue: datetime | None = None,
    turned: Callable[[], None] = lambda: None,
) -> list[date]:
    """Delete the UTC dates that ended longer ago than `retention`; which. `turned` is called for each file that goes.
    Raises OSError.

    What is deleted is gone, so no clock is believed alone: a date goes once the wall clock (`now`) and the venue,
    where it is known (`venue`), say that it is old enough, and neither the newest date of trades nor the newest receipt
    that the last run accounted for is older than that by more than a long weekend, in which nothing trades. Where the
    wall clock is alone, a warning says so, and nothing is deleted.

    The ledger's `day.deleted` comes first: a crash leaves a day that is deleted by the next call, never one that is
    missing without a word. A date goes in one step, under its lock, so that no reader finds a part of it.
    """
    days = _days(layout)
    if not days:
        return []
    witnesses = {"wall clock": now, "newest trade": _end(days[-1]) + _REST}
    if received_us := read_history(layout).last_received:
        witnesses["ledger"] = datetime.fromtimestamp(received_us / 1e6, UTC) + _REST
    if venue is not None:
        witnesses["venue"] = venue
    witness, agreed = min(witnesses.items(), key=itemgetter(1))
    expired = [day for day in days if _end(day) + retention <= agreed]
    waiting = [day for day in days if agreed < _end(day) + retention <= now]
    if waiting:
        log.warning(
            "retention.waiting", days=len(waiting), wall_clock=now.isoformat(timespec="seconds"), witness=witness,
            says=agreed.isoformat(timespec="seconds"), hint="nothing is deleted on one clock's word: which is right?",
        )  # fmt: skip
    for day in expired:
        ledger.record("day.deleted", date=day.isoformat(), retention_s=retention.total_seconds())
        with locked_date(layout, day):
            for kind in (layout.trades, layout.csv):
                _delete(layout, kind / f"date={day.isoformat()}", turned)
        log.info("day.deleted", date=day.isoformat())
    return expired


def _end(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC) + _DAY


def _days(layout: Layout) -> list[date]:
    csv_days = parse_days(path.name for path in layout.csv.iterdir()) if layout.csv.is_dir() else ()
    return sorted({*list_days(layout), *csv_days})


def _delete(layout: Layout, folder: Path, turned: Callable[[], None]) -> None:
    if not folder.is_dir():
        return
    aside = layout.staging / f"{folder.parent.name}.{folder.name}.deleted"
    remove_tree(aside, turned)  # left by a crash
    folder.rename(aside)
    sync_directory(folder.parent)
    remove_tree(aside, turned)
