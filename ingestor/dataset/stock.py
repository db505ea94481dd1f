"""What there is of a recording: files, segments in the journal, seals in the ledger. Nothing here judges."""

import contextlib
from collections import Counter
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

from ingestor.dataset.files import date_folder, list_days, list_names, read_origin, split_names, whole_compactions
from ingestor.dataset.recount import Recount
from ingestor.errors import DamagedFile, Lagged
from ingestor.journal.cursor import Cursor
from ingestor.journal.follower import Damage, Event, Follower, Rows, SegmentEnd
from ingestor.layout import Layout, SegmentId, list_segments
from ingestor.ledger import read_all_facts
from ingestor.metrics import Counts


@dataclass(slots=True)
class Journaled:
    """A segment for which the journal speaks."""

    recount: Recount = field(default_factory=Recount)
    counts: Counts = field(default_factory=Counts)
    reasons: Counter[str] = field(default_factory=Counter)
    ended: bool = False
    damaged: bool = False


@dataclass(frozen=True, slots=True)
class CompactedDay:
    """A day's files that hold the rows of many segments."""

    day: date
    paths: list[Path]
    origin: frozenset[str]


def list_parts(layout: Layout) -> dict[str, set[date]]:
    """The dates of each segment's files."""
    found: dict[str, set[date]] = {}
    for day in list_days(layout):
        _, parts = split_names(list_names(date_folder(layout, day)))
        for name in parts:
            found.setdefault(name.removesuffix(".parquet"), set()).add(day)
    return found


def list_compactions(layout: Layout) -> list[CompactedDay]:
    """The whole compactions of all days. Others are leftovers that no reader reads."""
    return [compaction for day in list_days(layout) for compaction in list_compactions_of(layout, day)]


def list_compactions_of(layout: Layout, day: date) -> list[CompactedDay]:
    """The whole compactions of one day."""
    folder = date_folder(layout, day)
    compacted, _ = split_names(list_names(folder))
    found = []
    for names in whole_compactions(compacted):
        paths = [folder / str(name) for name in names]
        with contextlib.suppress(FileNotFoundError):  # compacted anew since it was listed
            found.append(CompactedDay(day, paths, _find_origin(paths[0])))
    return found


def _find_origin(path: Path) -> frozenset[str]:
    """The segments that a file names; none where it can't be read, which whoever recounts it will tell."""
    try:
        return read_origin(path)
    except DamagedFile:
        return frozenset()


def list_csv(layout: Layout) -> dict[str, list[Path]]:
    """The CSV files of each segment."""
    found: dict[str, list[Path]] = {}
    for path in layout.csv.glob("date=*/*.csv*"):
        found.setdefault(path.name.partition(".")[0], []).append(path)
    return found


def read_journal(layout: Layout) -> dict[str, Journaled]:
    """The segments for which the dataset doesn't speak yet, as they are now. Raises FormatTooNew, OSError."""
    unsealed = [file.id for file in list_segments(layout) if not file.sealed]
    while True:
        try:
            return _follow(layout, unsealed)
        except FileNotFoundError as error:  # sealed and freed between the listing and the opening, or never there
            before, unsealed = unsealed, [file.id for file in list_segments(layout) if not file.sealed]
            if unsealed == before:
                place = error.filename or layout.journal
                raise DamagedFile(f"{place}: is listed, and leads to no file") from None


def _follow(layout: Layout, unsealed: list[SegmentId]) -> dict[str, Journaled]:
    """These segments, stepping over numbers that the journal lacks."""
    found: dict[str, Journaled] = {}
    left = unsealed
    while left:
        with contextlib.closing(Follower(layout, Cursor(left[0].number, 0), synced_only=False)) as follower:
            try:
                for event in follower.read():
                    if event.segment in unsealed:
                        _add(found.setdefault(str(event.segment), Journaled()), event)
            except Lagged:  # a segment between them was freed, or lost
                left = [segment for segment in left if segment.number > follower.cursor.segment]
            else:
                break
    return found


def _add(segment: Journaled, event: Event) -> None:
    if isinstance(event, Rows):
        segment.counts += event.counts
        segment.reasons.update(event.reasons)
        segment.recount.add(event.batch)
    else:
        segment.ended = isinstance(event, SegmentEnd)
        segment.damaged |= isinstance(event, Damage)


def read_deleted(layout: Layout) -> set[date]:
    """The dates that retention has deleted, or is about to."""
    facts = read_all_facts(layout, '"fact":"s')  # segments and symbols: most of a ledger
    return {date.fromisoformat(fact["date"]) for fact in facts if fact["fact"] == "day.deleted"}
