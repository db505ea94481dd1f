"""Writes trades for backtesters: events of hftbacktest, or a catalog of nautilus_trader. Neither bridges blind time.

A *stretch* is a time of one symbol in which nothing was missed. hftbacktest gets a file per stretch of recorded time
and UTC date, nautilus_trader one per stretch of recorded or filled time and date, whose name says from when to when: so
its catalog itself tells what is missing. Beside them `stretches.csv` has a line for each stretch, one without trades
included, with what ended it.
"""

import csv
import hashlib
import re
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from ingestor.coverage import Interval, State, clip
from ingestor.dataset.arguments import Roots, Span, find_roots, utc_date
from ingestor.dataset.coverage import load_merged_coverage
from ingestor.dataset.export import Progress
from ingestor.dataset.inventory import count_values
from ingestor.dataset.merged import check_one_venue, find_id_column, group_symbols, read_merged
from ingestor.dataset.rows import Selection, by_symbol, with_columns
from ingestor.dataset.snapshot import open_recording
from ingestor.errors import ConfigError, IngestorError
from ingestor.history import read_history
from ingestor.layout import Layout
from ingestor.schema import IMPORTED, ORIGIN

Backtester = Literal["hftbacktest", "nautilus"]
STATES: dict[Backtester, tuple[State, ...]] = {"hftbacktest": ("recorded",), "nautilus": ("recorded", "filled")}
"""Whose trades are written. What was not heard has no time of receipt, which hftbacktest can't do without."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DAY_US = 86_400_000_000
_OPEN_FILES, _MOST_DATES = 64, 1 << 17
_LONGEST_NAME = 100
_MOST_DECIMALS = 17
_ROWS = pa.schema(
    [
        ("symbol", pa.string()),
        ("timestamp", pa.int64()),  # ms
        ("moment", pa.int64()),  # µs: of receipt, and of what was filled the trade's own
        ("price", pa.float64()),
        ("volume", pa.float64()),
        ("side", pa.string()),  # buy or sell, as far as the venue says
        ("id", pa.int64()),  # the venue's, or the sequence
        ("day", pa.int32()),  # UTC date of the moment, in days since 1970
    ]
)
_HEADING = ("file", "symbol", "start", "end", "trades", "price_decimals", "volume_decimals", "continues", "ended_by")


class Stretch(NamedTuple):
    """A time of one symbol on one UTC date in which nothing was missed (µs, the end exclusive)."""

    symbol: str
    start_us: int
    end_us: int
    continues: bool
    """It goes on at midnight."""
    ended_by: str
    """What came then: a state, and the cause of blindness; empty at the end of all that is known, or asked for."""


Write = Callable[[Stretch, pa.Table], str]
"""Writes the trades of a stretch, in order of their moments; the name of the file."""


def export_stretches(
    root: Roots,
    folder: Path,
    kind: Backtester,
    span: Span,
    symbols: tuple[str, ...] | None = None,
    venue: str | None = None,
) -> Generator[Progress, None, None]:
    """Write the trades of a span for a backtester into a folder that doesn't exist yet; yields its progress.

    Under its name the folder is whole. Trades without a volume, and of times in which something may have been missed,
    are left out. `venue`: in the ids of nautilus's instruments, `AAPL.XNAS`; None: the recording's.

    Raises NotARecording, FormatTooNew, ConfigError where there is such a folder already, the recordings are of several
    venues, or the backtester's package is missing, IngestorError where it can't be written.
    """
    layouts = [open_recording(one) for one in find_roots(root)]
    if len(layouts) > 1:
        check_one_venue(layouts)
    if folder.exists():
        raise ConfigError(f"{folder} exists already: remove it, or choose another name")
    coverage = load_merged_coverage(layouts, symbols, span)
    part = folder.with_name(f"{folder.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        with tempfile.TemporaryDirectory(prefix="ingestor-export-") as place:
            decimals: dict[str, tuple[int, int]] = {}
            pads.write_dataset(
                _read_rows(layouts, Selection(span, (), symbols), STATES[kind], decimals), Path(place), schema=_ROWS,
                format="parquet", partitioning=pads.partitioning(pa.schema([_ROWS.field("day")])),
                max_open_files=_OPEN_FILES, max_partitions=_MOST_DATES, use_threads=False,
            )  # fmt: skip
            write = _write_events(part) if kind == "hftbacktest" else _write_catalog(part, decimals, venue, layouts)
            intervals = {one: clip(coverage.intervals(one), *span.bounds_us) for one in coverage.symbols}
            stretches = [
                one
                for symbol in sorted(intervals)
                for one in find_stretches(intervals[symbol], STATES[kind], coverage.horizon_us)
            ]
            with (part / "stretches.csv").open("w", encoding="utf-8", newline="") as file:
                lines = csv.writer(file, lineterminator="\n")
                lines.writerow(_HEADING)
                yield from _write_stretches(Path(place), stretches, write, decimals, lines.writerow)
        part.replace(folder)
    except OSError as error:
        raise IngestorError(f"can't export to {folder}: {error}") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def find_stretches(intervals: Sequence[Interval], states: Sequence[State], horizon_us: int) -> Iterator[Stretch]:
    """The stretches of one symbol in these states, cut at midnight UTC; the newest row is received at the horizon."""
    runs: list[list[Interval]] = []
    for one in intervals:
        if one.state not in states:
            continue
        if runs and runs[-1][-1].end_us == one.start_us:
            runs[-1].append(one)
        else:
            runs.append([one])
    for run in runs:
        start_us, end_us = run[0].start_us, run[-1].end_us
        following = next((one for one in intervals if one.start_us == end_us), None)
        ended_by = "" if following is None else following.state + (f" ({following.cause})" if following.cause else "")
        end_us += end_us == horizon_us
        while start_us < end_us:
            midnight_us = (start_us // _DAY_US + 1) * _DAY_US
            goes_on = midnight_us < end_us
            yield Stretch(run[0].symbol, start_us, min(midnight_us, end_us), goes_on, "" if goes_on else ended_by)
            start_us = midnight_us


def _read_rows(
    layouts: Sequence[Layout], selection: Selection, states: Sequence[State], decimals: dict[str, tuple[int, int]]
) -> Iterator[pa.RecordBatch]:
    """The trades that may be written, each with the date of its moment; notes how many decimals each symbol takes."""
    id_column = find_id_column(layouts)
    own = [name for name in ("side", id_column) if name]
    columns = ("symbol", "timestamp", "received_at", "price", "volume", "sequence", ORIGIN.name, *own)
    for piece in read_merged(layouts, Selection(selection.span, columns, selection.symbols), id_column):
        rows = piece.rows
        if ORIGIN.name not in rows.column_names:
            rows = with_columns(rows, pa.schema([*rows.schema, ORIGIN]))
        heard = pc.is_null(rows.column(ORIGIN.name))
        filled = pc.and_(
            pc.invert(heard), pc.fill_null(pc.invert(pc.starts_with(rows.column(ORIGIN.name), IMPORTED)), False)
        )
        rows = rows.filter(pc.and_(heard if "filled" not in states else pc.or_(heard, filled),
                                   pc.greater(pc.fill_null(rows.column("volume"), 0.0), 0.0)))  # fmt: skip
        if not rows.num_rows:
            continue
        at_ms = rows.column("timestamp").cast(pa.int64())
        received_us = rows.column("received_at").cast(pa.int64())
        moment = pc.if_else(pc.is_null(rows.column(ORIGIN.name)), received_us, pc.multiply(at_ms, 1000))
        ids = rows.column(id_column).cast(pa.int64()) if id_column in rows.column_names else None
        made = {
            **{name: rows.column(name) for name in ("symbol", "price", "volume")},
            "timestamp": at_ms,
            "moment": moment,
            "side": rows.column("side") if "side" in rows.column_names else pa.nulls(rows.num_rows, pa.string()),
            "id": rows.column("sequence") if ids is None else pc.coalesce(ids, rows.column("sequence")),
            "day": pc.divide(moment, _DAY_US).cast(pa.int32()),
        }
        found = pa.table([made[name] for name in _ROWS.names], schema=_ROWS)
        _note_decimals(found, decimals)
        yield from found.combine_chunks().to_batches()


def _note_decimals(rows: pa.Table, decimals: dict[str, tuple[int, int]]) -> None:
    """How many decimals the prices and the volumes of each symbol take."""
    table = rows.select(["symbol"])
    for name in ("price", "volume"):
        values = rows.column(name)
        needed = pa.chunked_array([pa.repeat(0, rows.num_rows)])
        for places in range(_MOST_DECIMALS):
            more = pc.not_equal(pc.round(values, places), values)
            if not pc.any(more).as_py():
                break
            needed = pc.if_else(more, places + 1, needed)
        table = table.append_column(name, needed)
    found = table.group_by("symbol", use_threads=False).aggregate([("price", "max"), ("volume", "max")])
    for one in found.to_pylist():
        price, volume = decimals.get(one["symbol"], (0, 0))
        decimals[one["symbol"]] = max(price, one["price_max"]), max(volume, one["volume_max"])


def _write_stretches(
    place: Path,
    stretches: Sequence[Stretch],
    write: Write,
    decimals: dict[str, tuple[int, int]],
    note: Callable[[Sequence[object]], object],
) -> Iterator[Progress]:
    """Write the trades of each stretch, a UTC date after the other, and note each stretch."""
    by_day: dict[int, dict[str, list[Stretch]]] = {}
    for one in stretches:
        by_day.setdefault(one.start_us // _DAY_US, {}).setdefault(one.symbol, []).append(one)
    written = 0
    for day, of_day in sorted(by_day.items()):
        rows = pads.dataset(place / str(day)) if (place / str(day)).is_dir() else None
        counts = dict.fromkeys(of_day, 0)
        if rows is not None:
            found = count_values(rows.to_table(["symbol"]).column(0).combine_chunks())
            counts |= {symbol: found.get(symbol, 0) for symbol in of_day}
        for symbols in group_symbols(counts):
            some = _ROWS.empty_table() if rows is None else rows.to_table(filter=pc.field("symbol").isin(symbols))
            some = some.sort_by([(name, "ascending") for name in ("symbol", "moment", "timestamp", "id")])
            traded = dict(by_symbol(some))
            for symbol in symbols:
                own = pa.Table.from_batches([traded[symbol]]) if symbol in traded else _ROWS.empty_table()
                for one in of_day[symbol]:
                    moments = own.column("moment")
                    inside = pc.and_(pc.greater_equal(moments, one.start_us), pc.less(moments, one.end_us))
                    trades = own.filter(inside)
                    name = write(one, trades) if trades.num_rows else ""
                    times = (_iso(one.start_us), _iso(one.end_us))
                    places = decimals.get(symbol, ("", ""))
                    note((name, symbol, *times, trades.num_rows, *places, str(one.continues).lower(), one.ended_by))
                    written += trades.num_rows
        yield Progress(written, utc_date(day * 86_400_000))


def _iso(at_us: int) -> str:
    return (_EPOCH + timedelta(microseconds=at_us)).isoformat(timespec="microseconds").replace("+00:00", "Z")


# hftbacktest

_TRADE, _SELL, _BUY, _LOCAL, _EXCHANGE = 2, 1 << 28, 1 << 29, 1 << 30, 1 << 31
_EVENT = ("ev", "exch_ts", "local_ts", "px", "qty", "order_id", "ival", "fval")


def _write_events(folder: Path) -> Write:
    """A file of hftbacktest's events per stretch, named after its symbol and start."""
    try:
        import numpy as np
    except ImportError:
        raise ConfigError("numpy is not installed: pip install 'finnhub-ingestor[analysis]'") from None

    kinds = dict(zip(_EVENT, ("u8", "i8", "i8", "f8", "f8", "u8", "i8", "f8"), strict=True))
    dtype = np.dtype([*kinds.items()], align=True)

    def write(stretch: Stretch, trades: pa.Table) -> str:
        events = np.zeros(trades.num_rows, dtype)
        sides = trades.column("side")
        side = pc.if_else(pc.fill_null(pc.equal(sides, "buy"), False), _BUY,
                          pc.if_else(pc.fill_null(pc.equal(sides, "sell"), False), _SELL, 0))  # fmt: skip
        events["ev"] = side.to_numpy() + _TRADE + _LOCAL + _EXCHANGE
        events["exch_ts"] = trades.column("timestamp").to_numpy() * 1_000_000
        events["local_ts"] = np.maximum(trades.column("moment").to_numpy() * 1000, events["exch_ts"])
        events["px"], events["qty"] = trades.column("price").to_numpy(), trades.column("volume").to_numpy()
        events = events[np.argsort(events["local_ts"], kind="stable")]
        if (np.diff(events["exch_ts"]) < 0).any():
            # Not heard in the order in which they happened: each trade is an event there, and another one here.
            there, here = events.copy(), events
            there["ev"] &= ~np.uint64(_LOCAL)
            here["ev"] &= ~np.uint64(_EXCHANGE)
            order = np.argsort(np.concatenate([there["exch_ts"], here["local_ts"]]), kind="stable")
            events = np.concatenate([there, here])[order]
        name = f"{name_of(stretch.symbol)}.{_EPOCH + timedelta(microseconds=stretch.start_us):%Y%m%dT%H%M%S.%fZ}.npz"
        np.savez_compressed(folder / name, data=events)
        return name

    return write


def name_of(symbol: str) -> str:
    """What a file can be named after a symbol: letters, digits, `%`, `_`, `.`, `-` and `~`."""
    name = quote(symbol, safe="")
    return name if len(name) <= _LONGEST_NAME else hashlib.sha256(symbol.encode()).hexdigest()[:32]


# nautilus_trader

_OF_CATALOGS = re.compile(r"[A-Za-z0-9._/^-]+")
"""Symbols that its catalogs can be asked for: it takes a folder's name into SQL."""


def _write_catalog(
    folder: Path, decimals: dict[str, tuple[int, int]], venue: str | None, layouts: Sequence[Layout]
) -> Write:
    """Files of a catalog, by nautilus_trader's own writer."""
    try:
        from nautilus_trader.model.data import TradeTick
        from nautilus_trader.model.enums import AggressorSide
        from nautilus_trader.model.identifiers import InstrumentId, Symbol, TradeId, Venue
        from nautilus_trader.model.objects import FIXED_PRECISION, Price, Quantity
        from nautilus_trader.persistence.catalog import ParquetDataCatalog
    except ImportError:
        raise ConfigError("nautilus_trader is not installed: pip install nautilus_trader") from None

    histories = [read_history(layout) for layout in layouts]
    known = next((name for one in histories if (name := one.venue or one.feed)), "")
    usual = (venue or known or "INGESTOR").upper()
    named: dict[str, str] = {}
    catalog = ParquetDataCatalog(str(folder.absolute()))
    sides = {"buy": AggressorSide.BUYER, "sell": AggressorSide.SELLER}

    def write(stretch: Stretch, trades: pa.Table) -> str:
        places = decimals[stretch.symbol]
        if max(places) > FIXED_PRECISION:
            raise IngestorError(f"nautilus_trader has {FIXED_PRECISION} decimals, and {stretch.symbol!r} more")
        # Of BINANCE:BTCUSDT the instrument is BTCUSDT, and the venue BINANCE.
        exchange, _, code = stretch.symbol.rpartition(":")
        if not _OF_CATALOGS.fullmatch(f"{code}{exchange}"):
            raise IngestorError(
                f"nautilus_trader can't read a catalog with {stretch.symbol!r}: choose others by --symbols"
            )
        place = exchange or usual
        other = named.setdefault(f"{code.replace('/', '')}.{place}", stretch.symbol)
        if other != stretch.symbol:
            raise IngestorError(f"{stretch.symbol!r} and {other!r} are one in a catalog: choose one by --symbols")
        columns = ("price", "volume", "side", "id", "timestamp", "moment")
        values = zip(*(trades.column(name).to_pylist() for name in columns), strict=True)
        try:
            instrument = InstrumentId(Symbol(code), Venue(place))
            ticks = [
                TradeTick(
                    instrument, Price(price, places[0]), Quantity(volume, places[1]),
                    sides.get(side, AggressorSide.NO_AGGRESSOR), TradeId(str(number)), at_ms * 1_000_000, moment * 1000,
                )
                for price, volume, side, number, at_ms, moment in values
            ]  # fmt: skip
            catalog.write_data(ticks, start=stretch.start_us * 1000, end=stretch.end_us * 1000 - 1)
        except ValueError as error:
            raise IngestorError(f"nautilus_trader refuses trades of {stretch.symbol!r}: {error}") from None
        return str(instrument)

    return write
