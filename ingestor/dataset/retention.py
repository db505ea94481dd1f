"""Retention: whole days of trades and CSV that are older than asked for go; coverage stays, and says so."""

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import structlog

from ingestor.dataset.files import list_days, parse_days
from ingestor.layout import Layout, locked_date, remove_tree, sync_directory
from ingestor.ledger import Ledger

_DAY = timedelta(days=1)

log = structlog.get_logger()


def delete_expired(layout: Layout, ledger: Ledger, retention: timedelta, now: datetime) -> list[date]:
    """Delete the UTC dates that ended longer ago than `retention`; which. Raises OSError.

    The ledger's `day.deleted` comes first: a crash leaves a day that is deleted by the next call, never one that is
    missing without a word. A date goes in one step, under its lock, so that no reader finds a part of it.
    """
    expired = [
        day for day in _days(layout) if datetime(day.year, day.month, day.day, tzinfo=UTC) + _DAY + retention <= now
    ]
    for day in expired:
        ledger.record("day.deleted", date=day.isoformat(), retention_s=retention.total_seconds())
        with locked_date(layout, day):
            for kind in (layout.trades, layout.csv):
                _delete(layout, kind / f"date={day.isoformat()}")
        log.info("day.deleted", date=day.isoformat())
    return expired


def _days(layout: Layout) -> list[date]:
    csv_days = parse_days(path.name for path in layout.csv.iterdir()) if layout.csv.is_dir() else ()
    return sorted({*list_days(layout), *csv_days})


def _delete(layout: Layout, folder: Path) -> None:
    if not folder.is_dir():
        return
    aside = layout.staging / f"{folder.parent.name}.{folder.name}.deleted"
    remove_tree(aside)  # left by a crash
    folder.rename(aside)
    sync_directory(folder.parent)
    remove_tree(aside)
