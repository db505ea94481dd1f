"""What callers give to the analysis API, made into what its readers take; and what they are told of a name that is not
recorded.
"""

import difflib
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, date, datetime, tzinfo
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from ingestor.closed_days import list_closed_days, list_closed_symbols, read_closed_coverage
from ingestor.coverage import Interval
from ingestor.dataset.coverage import read_known_coverage
from ingestor.dataset.rows import Selection, plain_texts, read_dates
from ingestor.dataset.snapshot import read_consistently
from ingestor.dataset.times import EVER, Span, day_start_ms
from ingestor.errors import NotARecording
from ingestor.layout import Layout
from ingestor.ledger import list_ledgers

Names = str | Sequence[str]
"""One name, or several in whatever holds text: a list, a set, a Series, an array."""
_STORE = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)
_NAMED = 5
_KNOWN_DAYS = 31
_QUIET = ContextVar("quiet", default=False)


@contextmanager
def no_warnings() -> Iterator[None]:
    """Within this nobody is warned of unknown symbols: a program asks, which says it in its own way."""
    token = _QUIET.set(True)
    try:
        yield
    finally:
        _QUIET.reset(token)


def find_root(root: str | Path) -> Path:
    """The directory of a recording. Raises NotARecording for an address, ValueError for what is neither."""
    if not isinstance(root, str | os.PathLike):
        raise ValueError(f"{root!r} is no root: give the directory of one recording")  # noqa: TRY004  see find_names
    if _STORE.match(str(root)) and not Path(root).exists():
        raise NotARecording(
            f"{root} is not on this machine: only local directories are read so far; copy it, or mount it"
        )
    return Path(root)


def find_names(names: Names | None, what: str = "symbol") -> tuple[str, ...] | None:
    """The names that a caller gives; text is one name. None is all. Raises ValueError with a sentence."""
    if names is None:
        return None
    if isinstance(names, str):
        return (str(names),)
    if isinstance(names, bytes) or not isinstance(names, Iterable):
        raise ValueError(f"{names!r} is no {what}: write it as text, or a list of texts")  # noqa: TRY004  as below
    found = tuple(names)
    for name in found:
        if not isinstance(name, str):
            raise ValueError(f"{name!r} is no {what}: each must be text")  # noqa: TRY004  one error for all arguments
    return tuple(map(str, found))


def warn_of_unknown(
    layout: Layout, symbols: tuple[str, ...] | None, found: pa.ChunkedArray | Iterable[str] = ()
) -> None:
    """Name those that nobody asked for and nobody sent. What is in `found` needs no look.

    Raises FormatTooNew, OSError.
    """
    if not symbols or _QUIET.get():
        return
    there = set(pc.unique(found).to_pylist() if isinstance(found, pa.ChunkedArray) else found)
    absent = [symbol for symbol in symbols if symbol not in there]
    if not absent:
        return
    known = known_symbols(layout)
    unknown = [symbol for symbol in dict.fromkeys(absent) if symbol not in known]
    if unknown:  # perhaps long ago
        long_ago = read_known_coverage(layout, unknown).symbols
        unknown = [symbol for symbol in unknown if symbol not in long_ago]
    for symbol in unknown[:_NAMED]:
        warnings.warn(describe_unknown(symbol, known), stacklevel=3)  # who called read_trades, read_bars, …
    if len(unknown) > _NAMED:
        warnings.warn(f"{len(unknown) - _NAMED} more of these symbols are not recorded", stacklevel=3)


def describe_unknown(symbol: str, known: Iterable[str]) -> str:
    """`aapl is not recorded; AAPL is`, where a name like it is known."""
    names = sorted(known)
    lower = symbol.lower()
    like = [name for name in names if name.lower() == lower]
    like = like or [name for name in names if name.lower().rpartition(":")[2] == lower.rpartition(":")[2]]
    like = like or [name for name in names if name in re.split(r"[,;\s]+", symbol)]
    like = like or difflib.get_close_matches(symbol.upper(), names, n=1, cutoff=0.7)
    hint = f"; {' and '.join(like[:_NAMED])} {'is' if len(like) == 1 else 'are'}" if like else ""
    return f"{symbol!r} is not recorded here{hint}"


def known_symbols(layout: Layout) -> set[str]:
    """All that were asked for or sent trades of late: as the ledger says, or the rows where a root has none."""
    recent = list_closed_days(layout)[-_KNOWN_DAYS:]
    if recent or list_ledgers(layout):
        today = Span(day_start_ms(recent[-1]) if recent else None, None)
        return list_closed_symbols(layout, recent) | set(read_known_coverage(layout, span=today).symbols)
    return read_consistently(
        layout,
        EVER,
        lambda snapshot: {
            symbol
            for _, rows in read_dates(snapshot, Selection(EVER, ("symbol",), None))
            for symbol in pc.unique(plain_texts(rows).column("symbol")).to_pylist()
        },
    )


def explain_nothing(root: Path, symbols: Sequence[str] | None, tz: tzinfo) -> str | None:
    """`recorded: 22:51 to 22:58`: why an answer is empty, as far as the ledger knows.

    Raises FormatTooNew, OSError.
    """
    layout, chosen = Layout(root), None if symbols is None else tuple(symbols)
    days = list_closed_days(layout)
    first_days, last_days = days[:_KNOWN_DAYS], days[-_KNOWN_DAYS:]
    coverage = read_known_coverage(layout, chosen, span=Span(day_start_ms(days[-1]) if days else None, None))
    pieces = [piece for symbol in coverage.symbols for piece in coverage.intervals(symbol)]
    pieces += _first_said(layout, chosen, [*first_days, *last_days])
    pieces += _first_said(layout, chosen, last_days[::-1])
    if not pieces:
        return None
    start, end = (
        datetime.fromtimestamp(at_us / 1e6, UTC).astimezone(tz)
        for at_us in (min(piece.start_us for piece in pieces), max(piece.end_us for piece in pieces))
    )
    return f"no trades in that time; recorded: {start:%Y-%m-%d %H:%M:%S} to {end:%Y-%m-%d %H:%M:%S} {end.tzname()}"


def _first_said(layout: Layout, symbols: tuple[str, ...] | None, days: Iterable[date]) -> list[Interval]:
    """What the first of these closed days says that says anything of these symbols."""
    told = (read_closed_coverage(layout, symbols, day, day) for day in days)
    return next(([piece for own in one.intervals.values() for piece in own] for one in told if one.intervals), [])
