"""Which files of a date's folder speak for its rows.

A *part* is one segment's rows of a date, `<segment id>.parquet`. A *compacted* file holds the rows of many segments
and names them in its metadata; a compaction may be split into several files, which count only together. Where a
compaction is whole, what it names is superseded: a part that is still there (the file system could not exchange
folders, or a crash came between) is not read beside it.
"""

import os
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

from ingestor.dataset.times import EVER, Span
from ingestor.errors import DamagedFile, FormatTooNew
from ingestor.layout import Layout, SegmentId
from ingestor.parquet import FORMAT_KEY, ORIGIN_KEY, named_errors, open_parquet
from ingestor.schema import FORMAT_VERSION

_FEW_DAYS = 32
"""Up to here it is cheaper to look for each day than to list what may be years."""
_DATE = re.compile(r"date=(\d{4}-\d\d-\d\d)")
_COMPACTED = re.compile(r"compacted-(\d{12})-(\d{4})of(\d{4})\.parquet")


@dataclass(frozen=True, slots=True, order=True)
class Compacted:
    """The name of one file of a compaction."""

    newest: int
    """The number of the newest segment in it."""
    index: int
    """From 1."""
    count: int

    def __str__(self) -> str:
        return f"compacted-{self.newest:012d}-{self.index:04d}of{self.count:04d}.parquet"

    @classmethod
    def parse(cls, name: str) -> "Compacted | None":
        found = _COMPACTED.fullmatch(name)
        return None if found is None else cls(*map(int, found.groups()))


def list_days(layout: Layout, span: Span = EVER) -> list[date]:
    """The UTC dates of the dataset that may hold a moment of the span, oldest first. Raises DamagedFile."""
    if layout.trades.exists() and not (layout.trades.is_dir() and os.access(layout.trades, os.R_OK | os.X_OK)):
        raise DamagedFile(f"{layout.trades}: not a folder that can be read")
    first, last = span.days
    if (last - first).days < _FEW_DAYS:
        days = (first + timedelta(days) for days in range((last - first).days + 1))
        return [day for day in days if date_folder(layout, day).is_dir()]
    try:
        names = os.listdir(layout.trades)  # noqa: PTH208  twice a reading of a year: ten times as fast
    except FileNotFoundError:
        return []
    return sorted(day for day in parse_days(names) if first <= day <= last)


def date_folder(layout: Layout, day: date) -> Path:
    return layout.trades / f"date={day.isoformat()}"


def list_names(folder: Path) -> tuple[str, ...]:
    """The Parquet files in a date's folder; none where it is gone. Raises DamagedFile where it can't be listed."""
    try:
        return tuple(sorted(path.name for path in folder.iterdir() if path.suffix == ".parquet"))
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise DamagedFile(f"{folder}: can't be read: {error.strerror}") from None


def current_files(folder: Path, names: Iterable[str]) -> list[Path]:
    """The files to read of these, in order of sequence: every row of them once. Raises FormatTooNew, DamagedFile."""
    compacted, parts = split_names(names)
    whole = whole_compactions(compacted)
    if len(whole) + len(parts) <= 1:
        return [folder / str(name) for names in whole for name in names] + [folder / name for name in parts]
    origins = [read_origin(folder / str(names[0])) for names in whole]
    newest = [
        names for names, origin in zip(whole, origins, strict=True) if not any(origin < other for other in origins)
    ]
    superseded = frozenset().union(*origins)
    return [folder / str(name) for names in newest for name in names] + [
        folder / name for name in parts if name.removesuffix(".parquet") not in superseded
    ]


def split_names(names: Iterable[str]) -> tuple[list[Compacted], list[str]]:
    """Compacted files and parts, each in order."""
    parts, compacted = [], []
    for name in names:
        found = Compacted.parse(name)
        if found is None:
            parts.append(name)
        else:
            compacted.append(found)
    return sorted(compacted), sorted(parts)


def whole_compactions(compacted: Iterable[Compacted]) -> list[list[Compacted]]:
    """Those compactions of which every file is there, oldest first."""
    sets: dict[tuple[int, int], list[Compacted]] = {}
    for name in compacted:
        sets.setdefault((name.newest, name.count), []).append(name)
    return [names for (_, count), names in sorted(sets.items()) if len(names) == count]


def without_unsealed(names: Iterable[str], unsealed: Collection[str]) -> tuple[str, ...]:
    """The names without the parts of segments for which the journal still speaks."""
    return tuple(name for name in names if name.removesuffix(".parquet") not in unsealed)


def read_origin(path: Path) -> frozenset[str]:
    """The ids of the segments whose rows this file holds. Raises FormatTooNew, FileNotFoundError, DamagedFile."""
    with open_parquet(path) as file, named_errors(path):
        metadata = file.metadata.metadata or {}
        check_format(path, metadata)
        return frozenset(metadata.get(ORIGIN_KEY, b"").decode().split(","))


def check_format(path: Path, metadata: dict[bytes, bytes] | None) -> None:
    """Raises FormatTooNew where a later version wrote this file, ValueError where its format is no number."""
    found = int((metadata or {}).get(FORMAT_KEY, b"0"))
    if found > FORMAT_VERSION:
        raise FormatTooNew(f"{path} is of format {found}; this version reads up to {FORMAT_VERSION}")


def newest_number(origin: Iterable[str]) -> int:
    """The highest segment number among these segment ids."""
    return max(SegmentId.parse(segment).number for segment in origin)


def parse_days(names: Iterable[str]) -> Iterator[date]:
    """The dates of those that are the name of a date's folder."""
    for name in names:
        if found := _DATE.fullmatch(name):
            yield date.fromisoformat(found[1])
