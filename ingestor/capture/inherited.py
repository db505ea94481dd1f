"""The gaps that a run finds open as it starts: those that the last run left, or the crash that ended it."""

from dataclasses import replace

import structlog

from ingestor.capture.gaps import OpenGap
from ingestor.history import History
from ingestor.journal.cursor import Cursor
from ingestor.journal.follower import Follower, Rows
from ingestor.layout import Layout, list_segments
from ingestor.ledger import now_us

_RESTART_US = 60_000_000

log = structlog.get_logger()


def find_inherited_gaps(layout: Layout, history: History) -> list[OpenGap]:
    """The gaps that are open as this run starts: those that the last run left, or the crash that ended it."""
    gaps = [
        OpenGap(fact["gap"], fact["cause"], int(fact.get("heard") or fact["since"]), fact["symbol"])
        for fact in history.open_gaps
    ]
    whole = next((gap for gap in gaps if gap.symbol is None), None)
    if history.run and not history.stopped:
        since_us = _last_journaled_us(layout, history.run) or history.last_received or history.first_at
        log.warning("crash.found", run=history.run, last_received=since_us)
        if whole is None:
            gaps.append(OpenGap(f"r{history.run + 1:06d}-0", "crash", since_us))
        else:  # what had been received before that gap, and was not journaled yet, is lost too
            gaps[gaps.index(whole)] = replace(whole, since_us=min(whole.since_us, since_us))
    elif whole is not None and whole.cause == "shutdown" and now_us() - whole.since_us < _RESTART_US:
        gaps[gaps.index(whole)] = replace(whole, cause="restart")
    return gaps


def _last_journaled_us(layout: Layout, run: int) -> int:
    """When the last frame was received that this run journaled and no account names yet; 0: there is none.

    By the rules of reading: what stands behind the end of an abandoned segment was lost, if it was not journaled again.
    """
    first = next((file.id.number for file in list_segments(layout) if file.id.run == run), None)
    if first is None:
        return 0
    last_us = 0
    follower = Follower(layout, Cursor(first, 0), synced_only=False)
    for event in follower.read():
        if isinstance(event, Rows) and event.segment.run == run:
            last_us = event.last_received_us or last_us
    follower.close()
    return last_us
