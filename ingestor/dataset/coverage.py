"""Reads a recording's coverage, once or kept up to date, and says which symbols it knows.

`ingestor coverage` prints intervals and is started often, so what needs pyarrow's compute module is imported only where
it is used.
"""

import contextlib
import difflib
import re
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextvars import ContextVar
from datetime import UTC, date, datetime, tzinfo
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

import pyarrow as pa

from ingestor.closed_days import list_closed_symbols, oldest_and_newest_closed_days, read_closed_coverage
from ingestor.coverage import IRRELEVANT, Coverage, Interval, clip, find_coverage, state_at
from ingestor.dataset import arguments
from ingestor.dataset.arguments import EVER, FOREVER_US, Engine, Names, Roots, Span, Time
from ingestor.errors import NotARecording
from ingestor.journal.scan import last_received_us
from ingestor.layout import Layout, list_segments
from ingestor.ledger import list_ledgers, read_new_facts, read_open_facts
from ingestor.schema import RECEIVED_AT
from ingestor.store import locate_root

if TYPE_CHECKING:
    from pandas import DataFrame

    from ingestor.facts import Fact

COVERAGE = pa.schema(
    [
        ("symbol", pa.string()),
        ("state", pa.string()),  # recorded, filled, imported, blind or unproven
        ("cause", pa.string()),  # of blindness; else null
        ("start", RECEIVED_AT),
        ("end", RECEIVED_AT),
        ("proof", pa.string()),  # of recorded: `ids` where the venue's ids show that nothing is missing; else null
        ("source", pa.string()),  # of filled: whose history the trades are from; of imported: the file; else null
    ]
)
_NAMED = 5
_UNCLAIMED = ""
_KNOWN_DAYS = 31
_QUIET = ContextVar("quiet", default=False)


@overload
def read_coverage(root: Roots, symbols: Names | None = ..., start: Time | None = ...,
                  end: Time | None = ..., tz: str = ..., *,
                  engine: Literal["pandas"] = ...) -> "DataFrame": ...  # fmt: skip
@overload
def read_coverage(root: Roots, symbols: Names | None = ..., start: Time | None = ...,
                  end: Time | None = ..., tz: str = ..., *,
                  engine: Literal["arrow"]) -> pa.Table: ...  # fmt: skip
def read_coverage(
    root: Roots,
    symbols: Names | None = None,
    start: Time | None = None,
    end: Time | None = None,
    tz: str = "UTC",
    *,
    engine: Engine = "pandas",
) -> Any:
    """When each symbol was *recorded*, *blind* (and why), *unproven*, *filled* or *imported*, in [start, end).

    By symbol and start.

    >>> import ingestor
    >>> coverage = ingestor.read_coverage("data", symbols=["AAPL"])
    >>> set(coverage["state"]) <= {"recorded", "filled", "imported", "blind", "unproven"}
    True

    Unproven: asked for, and no trade came on this connection yet, so that silence may be the market or a subscription
    that doesn't work. A symbol's intervals don't overlap; where there is none, it was not asked for. `proof` is `ids`
    where the venue counts the symbol's trades and none is missing between the first and the last in the interval.
    Filled: it was blind or unproven, and `ingestor backfill` has got its trades from the history of `source`.
    Imported: `ingestor import` has taken trades of that time from a file, and nobody says that they are all.

    `root` may be a list of recordings that several recorders of one venue made: a symbol is recorded where any of them
    recorded it, and blind only where all were.

    Warns of a symbol that is not recorded.

    Raises NotARecording, ValueError for a time that is none, ConfigError where pandas is missing.
    """
    from ingestor.dataset.rows import as_frame

    arguments.check_engine(engine)
    span = arguments.find_span(start, end, tz)
    chosen = arguments.find_names(symbols)
    layouts = [Layout(one) for one in arguments.find_roots(root)]
    coverage = load_merged_coverage(layouts, chosen, span)
    warn_of_unknown(layouts, chosen, coverage.symbols)
    intervals = [one for symbol in coverage.symbols for one in clip(coverage.intervals(symbol), *span.bounds_us)]
    columns = [list(column) for column in zip(*intervals, strict=True)] or [[] for _ in COVERAGE]
    return as_frame(pa.Table.from_pydict(dict(zip(COVERAGE.names, columns, strict=True)), schema=COVERAGE), engine, tz)


def read_states(layouts: Sequence[Layout], rows: pa.Table) -> pa.Array:
    """As `find_states`, by what the ledgers say after the rows were read. Raises FormatTooNew, DamagedFile, OSError."""
    import pyarrow.compute as pc

    if not rows.num_rows:
        return pa.array([], pa.string())
    bounds = pc.min_max(rows.column("received_at").cast(pa.int64()))
    span = Span(bounds["min"].as_py() // 1000, bounds["max"].as_py() // 1000 + 1)
    symbols = pc.unique(rows.column("symbol").cast(pa.string())).to_pylist()
    return find_states(rows, load_merged_coverage(layouts, symbols, span, read_known_coverage))


def find_states(rows: pa.Table, coverage: Coverage, *, open_end: bool = True) -> pa.Array:
    """For each of these rows (`symbol`, `received_at`) the state of its symbol at the moment it came; null where
    nothing was claimed of it then. `open_end`: what holds at the horizon holds for later rows as well.
    """
    import pyarrow.compute as pc

    if not rows.num_rows:
        return pa.array([], pa.string())
    at_us = rows.column("received_at").cast(pa.int64()).combine_chunks()
    texts = rows.column("symbol").cast(pa.string()).combine_chunks()
    symbols = pc.unique(texts)
    # Changes of state and rows in one order: each row then has the state of the last change before it.
    changes: list[tuple[int, int, int, str]] = []
    for code, symbol in enumerate(symbols.to_pylist()):
        changes.append((code, -1, 0, _UNCLAIMED))
        for one in coverage.intervals(symbol) if symbol in coverage.symbols else ():
            changes.append((code, one.start_us, 1, one.state))
            if not open_end or one.end_us < coverage.horizon_us:  # at the horizon there is the newest row
                changes.append((code, one.end_us, 0, _UNCLAIMED))
    codes, times_us, kinds, states = (list(column) for column in zip(*changes, strict=True))
    whole = pa.table(
        {
            "code": pa.concat_arrays([pa.array(codes, pa.int32()), pc.index_in(texts, symbols)]),
            "at": pa.concat_arrays([pa.array(times_us, pa.int64()), at_us]),
            "kind": pa.concat_arrays([pa.array(kinds, pa.int8()), pa.repeat(pa.scalar(2, pa.int8()), len(at_us))]),
            "state": pa.concat_arrays([pa.array(states, pa.string()), pa.nulls(len(at_us), pa.string())]),
        }
    )
    order = pc.sort_indices(whole, sort_keys=[(name, "ascending") for name in ("code", "at", "kind")])
    filled = pc.fill_null_forward(whole.column("state").combine_chunks().take(order))
    found = filled.take(pc.sort_indices(order).slice(len(changes)))
    return pc.if_else(pc.equal(found, _UNCLAIMED), pa.scalar(None, pa.string()), found)


def load_coverage(
    layout: Layout,
    symbols: Collection[str] | None = None,
    journaled_us: int | None = None,
    span: Span = EVER,
) -> Coverage:
    """The coverage of these symbols (None: all); while a recorder runs, up to its newest frame.

    `journaled_us` is the receive time of that frame, where the caller has read the journal. `span` bounds what must be
    read: of other times the answer may say less. Raises NotARecording, FormatTooNew, DamagedFile, OSError.
    """
    if journaled_us is None:
        # The newest frame in the journal; before the ledger: what that says later holds for these frames too.
        journaled_us = 0
        for file in reversed(list_segments(layout)):
            with contextlib.suppress(OSError):  # freed since it was listed, or damaged: the ledger's last word stands
                journaled_us = last_received_us(file.path)
            if journaled_us:
                break
    while True:
        ledgers = list_ledgers(layout)
        try:
            facts = list(read_open_facts(layout, IRRELEVANT))
        except NotARecording:
            if not any(oldest_and_newest_closed_days(layout, 1)):  # a copy of a dataset need not have a ledger
                raise
            facts = []
        except FileNotFoundError:
            if list_ledgers(layout) == ledgers:  # not a day that was closed meanwhile
                raise
            continue
        # After the ledger: a day is data before its facts go.
        return find_coverage(facts, symbols, journaled_us, read_closed_coverage(layout, symbols, *span.days))


def read_known_coverage(
    layout: Layout,
    symbols: Collection[str] | None = None,
    journaled_us: int | None = None,
    span: Span = EVER,
) -> Coverage:
    """Like `load_coverage`, but empty where a root has neither ledger nor coverage, such as a copy of the trades alone.

    Raises FormatTooNew, DamagedFile, OSError.
    """
    try:
        return load_coverage(layout, symbols, journaled_us, span)
    except NotARecording:
        return find_coverage([])


def load_merged_coverage(
    layouts: Sequence[Layout],
    symbols: Collection[str] | None = None,
    span: Span = EVER,
    load: Callable[..., Coverage] = load_coverage,
) -> Coverage:
    """That of one root, or of those that several recorders of one venue made. Raises as `load` does."""
    found = [load(layout, symbols, span=span) for layout in layouts]
    if len(found) == 1:
        return found[0]
    from ingestor.dataset.merged import check_one_venue, merge_coverage

    check_one_venue(layouts)
    return merge_coverage(found)


class SymbolState(NamedTuple):
    """What the silence of a symbol means from now on."""

    symbol: str
    state: str
    """`recorded`, `blind` or `unproven`."""
    cause: str | None
    """Of blindness, as `read_coverage` has it; `no_recorder` where nobody records."""


class CoverageWatch:
    """Coverage of days that are not closed, kept up to date. It assumes that what holds now holds for ever: clip it.

    All facts are read when a file of the ledger begins; then, of that file, those since the last call.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._ledgers: list[Path] = []
        self._facts: list[Fact] = []
        self._offset = 0
        """Up to where the newest ledger is read."""
        self._coverage = find_coverage([])
        self._judged: Coverage | None = None
        self._states: dict[str, SymbolState] = {}

    def look(self) -> Coverage:
        """The same object as long as nothing has changed. Raises NotARecording, FormatTooNew, OSError."""
        ledgers = list_ledgers(self._layout)
        if not ledgers:
            raise NotARecording(f"{self._layout.root} holds no recording: there is no ledger in its folder `ledger`")
        begun = ledgers != self._ledgers or ledgers[-1].stat().st_size < self._offset
        if begun:
            self._facts = [fact for path in ledgers[:-1] for fact in read_new_facts(path, 0, IRRELEVANT)[0]]
            self._offset = 0
        news, self._offset = read_new_facts(ledgers[-1], self._offset, IRRELEVANT)
        self._facts += news
        self._ledgers = ledgers
        if begun or any(not fact["fact"].startswith("segment.") for fact in news):
            self._coverage = find_coverage(self._facts, None, FOREVER_US)
        return self._coverage

    def states(self) -> dict[str, SymbolState]:
        """How each symbol stands, as the ledger says: as of the horizon, which holds until a fact says otherwise.

        Raises NotARecording, FormatTooNew, OSError.
        """
        coverage = self.look()
        if coverage is not self._judged:
            held = {
                symbol: state_at(coverage.intervals(symbol), coverage.horizon_us - 1) for symbol in coverage.symbols
            }
            self._states = {
                symbol: SymbolState(symbol, one.state, one.cause) for symbol, one in held.items() if one is not None
            }
            self._judged = coverage
        return self._states


# Symbols that are not recorded


@contextlib.contextmanager
def no_warnings() -> Iterator[None]:
    """Suppress warnings of unknown symbols within this block, for a program that reports them in its own way."""
    token = _QUIET.set(True)
    try:
        yield
    finally:
        _QUIET.reset(token)


def warn_of_unknown(
    layouts: Sequence[Layout], symbols: tuple[str, ...] | None, found: pa.ChunkedArray | Iterable[str] = ()
) -> None:
    """Warn of the symbols that were never asked for and never sent. Those in `found` are known to be recorded.

    Raises FormatTooNew, OSError.
    """
    if not symbols or _QUIET.get():
        return
    there = set(found.unique().to_pylist() if isinstance(found, pa.ChunkedArray) else found)
    absent = [symbol for symbol in symbols if symbol not in there]
    if not absent:
        return
    unknown, known = absent, set[str]()
    for days in (1, _KNOWN_DAYS):  # most are known by the newest, which costs the same whatever the recording's age
        if unknown:
            known = {symbol for layout in layouts for symbol in known_symbols(layout, days)}
            unknown = [symbol for symbol in dict.fromkeys(absent) if symbol not in known]
    if unknown:  # perhaps long ago
        long_ago = {symbol for layout in layouts for symbol in read_known_coverage(layout, unknown).symbols}
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


def known_symbols(layout: Layout, days: int = _KNOWN_DAYS) -> set[str]:
    """All symbols that were asked for or sent trades in the ledger and the newest closed days, so many of them; or by
    the rows where a root has neither.
    """
    _, recent = oldest_and_newest_closed_days(layout, days)
    if recent or list_ledgers(layout):
        today = Span(arguments.day_start_ms(recent[-1]) if recent else None, None)
        return list_closed_symbols(layout, recent) | set(read_known_coverage(layout, span=today).symbols)
    import pyarrow.compute as pc

    from ingestor.dataset.rows import Selection, plain_texts, read_dates
    from ingestor.dataset.snapshot import read_consistently

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
    layout, chosen = Layout(locate_root(root)), None if symbols is None else tuple(symbols)
    first_days, last_days = oldest_and_newest_closed_days(layout, _KNOWN_DAYS)
    coverage = read_known_coverage(
        layout, chosen, span=Span(arguments.day_start_ms(last_days[-1]) if last_days else None, None)
    )
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
    """The intervals of the first of these closed days that has any of these symbols."""
    told = (read_closed_coverage(layout, symbols, day, day) for day in days)
    return next(([piece for own in one.intervals.values() for piece in own] for one in told if one.intervals), [])
