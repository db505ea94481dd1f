"""Accounts of segments, as data: one row per segment under `accounts/`, in a file of its own until its day is closed,
then in one file per date.

    segment                     its id; the date of its folder is that on which it began
    first_received, last_received   of its frames; null where there were none
    frames … rejected_trades    the counts of conservation (`metrics.Counts`)
    aside                       bytes that could not be read
    reasons                     rejects by reason
    dates                       rows by UTC date, as they were published; null where no Parquet was written
    symbols                     rows, repeated rows and missing ids (between its first and last one) of each symbol
    ids                         the ids that are there, as ranges; null where the venue counts none
"""

import heapq
from collections.abc import Collection, Iterable, Iterator
from dataclasses import fields
from datetime import date
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ingestor.errors import DamagedFile
from ingestor.facts import Fact
from ingestor.layout import Layout, SegmentId, publish, segment_of
from ingestor.ledger import read_all_facts
from ingestor.metrics import Counts
from ingestor.parquet import FORMAT_KEY, add_checksums, named_errors, read_whole, to_read
from ingestor.schema import FORMAT_VERSION, RECEIVED_AT
from ingestor.store import list_folder
from ingestor.trade_ids import IdRanges

_COUNTS = tuple(one.name for one in fields(Counts))
_BY_NAME = pa.map_(pa.string(), pa.int64())
ACCOUNTS = pa.schema(
    [
        ("segment", pa.string()),
        ("first_received", RECEIVED_AT),
        ("last_received", RECEIVED_AT),
        *((name, pa.int64()) for name in _COUNTS),
        ("aside", pa.int64()),
        ("reasons", _BY_NAME),
        ("dates", _BY_NAME),
        (
            "symbols",
            pa.list_(
                pa.struct(
                    [
                        ("symbol", pa.string()),
                        ("rows", pa.int64()),
                        ("repeated", pa.int64()),
                        ("missing", pa.int64()),  # ids that the venue counts and we never heard; null where it has none
                    ]
                )
            ),
        ),
        ("ids", pa.list_(pa.struct([("symbol", pa.string()), ("first", pa.int64()), ("last", pa.int64())]))),
    ],
    metadata={FORMAT_KEY: str(FORMAT_VERSION)},
)
_CLOSED = "closed-"
_LOOK_BACK_DAYS = 31
_IDS_MAX = 1 << 16
"""Ranges of a segment: a venue whose ids don't count has one for each trade."""


def write_account(layout: Layout, account: Fact) -> None:
    """Publish the account of one segment, a fact with the rows per symbol. Raises OSError."""
    segment = SegmentId.parse(account["segment"])
    staged = layout.staging / f"{segment}.account.parquet"
    _write(staged, [_to_row(account)])
    publish(staged, layout.account_file(segment))


def read_accounts(layout: Layout, damaged: list[DamagedFile] | None = None) -> Iterator[Fact]:
    """The account of every segment, by number: the fields of `segment.closed`, rows and repeated rows per symbol, and
    `dates`, where the ledger doesn't have them (yet).

    `ids` are the ranges of ids as (symbol, first, last), None where none were counted.

    `symbols` is None where the ledger says that a segment was closed, and its file is gone. Errors of files that
    can't be read are appended to `damaged`, where that is given.

    Raises NotARecording, FormatTooNew, DamagedFile, OSError.
    """
    filed = map(_to_account, _read_in_order(layout, damaged))
    told = (
        {"symbols": None, "repeated": {}, "dates": None, "ids": None, **fact}
        for fact in read_all_facts(layout, '"fact":"symbol')
        if fact["fact"] == "segment.closed"
    )
    both = heapq.merge(filed, told, key=_number)
    last = 0
    for number, same in groupby(both, key=_number):
        if number <= last:  # told again by a run that had lost the word of it
            continue
        last = number
        known = [account for account in same if account["counts"] is not None]
        if known and all(
            account["symbols"] is None for account in known
        ):  # closed since the files were listed, or lost
            path = layout.account_file(SegmentId.parse(known[0]["segment"]))
            known += [_to_account(row) for row in _read_each([path], damaged=[])]
        if known:
            yield next((account for account in known if account["symbols"] is not None), known[0])


def read_seals(layout: Layout) -> dict[str, dict[date, int]]:
    """How many rows of each segment were published, by date. Raises as `read_accounts`."""
    sealed: dict[str, dict[date, int]] = {}
    for row in _read_files(_list_folders(layout), ["segment", "dates"], damaged=[]):
        if row["dates"] is not None:
            sealed[row["segment"]] = {date.fromisoformat(day): rows for day, rows in row["dates"]}
    for fact in read_all_facts(layout, '"fact":"symbol'):
        if fact["fact"] == "segment.sealed":
            sealed[fact["segment"]] = {date.fromisoformat(day): rows for day, rows in fact["dates"].items()}
    return sealed


def read_last_ids(layout: Layout, symbols: Collection[str]) -> dict[str, tuple[int, int]]:
    """The highest id of each of these symbols in the newest accounts that tell one, and the last receipt of that
    segment: no trade of it came later. Raises NotARecording, FormatTooNew, OSError.
    """
    found: dict[str, tuple[int, int]] = {}
    for folder in _list_folders(layout)[: -_LOOK_BACK_DAYS - 1 : -1]:
        if found.keys() >= set(symbols):
            break
        of_day: dict[str, tuple[int, int]] = {}
        for row in _read_files([folder], ["segment", "last_received", "frames", "trades", "ids"], damaged=[]):
            if row["trades"] and not row["frames"]:  # filled afterwards: it says nothing of what was heard last
                continue
            for one in row.get("ids") or ():
                told = one["last"], row["last_received"] or 0
                of_day[one["symbol"]] = max(told, of_day.get(one["symbol"], told))
        found = {symbol: told for symbol, told in of_day.items() if symbol in symbols} | found
    return found


def read_ids(layout: Layout, symbols: Collection[str] | None, first: date, last: date) -> IdRanges:
    """The ids of these symbols (None: all) in the segments that began on these dates. Raises FormatTooNew, OSError."""
    dates = f"date={first.isoformat()}", f"date={last.isoformat()}"
    folders = [folder for folder in _list_folders(layout) if dates[0] <= folder.name <= dates[1]]
    ids = IdRanges()
    for row in _read_files(folders, ["segment", "ids"], damaged=[]):
        told = ((one["symbol"], one["first"], one["last"]) for one in row.get("ids") or ())
        ids.add_all(one for one in told if symbols is None or one[0] in symbols)
    return ids


def count_trades(layout: Layout, numbers: Collection[int]) -> dict[int, int]:
    """The rows of those of these segments that have an account, by number. Raises as `read_accounts`."""
    found: dict[int, int] = {}
    for row in _read_files(_list_folders(layout), ["segment", "trades"], damaged=[]):
        if _number(row) in numbers and row["trades"] is not None:
            found[_number(row)] = row["trades"]
    for fact in read_all_facts(layout, '"fact":"symbol'):
        if fact["fact"] == "segment.closed" and (number := SegmentId.parse(fact["segment"]).number) in numbers:
            found[number] = fact["counts"].get("trades", 0)
    return found


def close_accounts(layout: Layout, facts: Iterable[Fact]) -> None:
    """Gather what these facts say of segments, and the segments' own files, in one file per date. Done again, it
    changes nothing. Raises DamagedFile, OSError.
    """
    by_day: dict[date, dict[str, Fact]] = {}
    for fact in facts:
        if fact["fact"] in {"segment.closed", "segment.sealed"}:
            day = SegmentId.parse(fact["segment"]).started.date()
            known = by_day.setdefault(day, {}).setdefault(fact["segment"], {"segment": fact["segment"]})
            known.update((name, value) for name, value in fact.items() if name in _KEPT)
    for day, told in sorted(by_day.items()):
        folder = layout.accounts / f"date={day.isoformat()}"
        paths = [path for path in _list_files(folder) if path.name.startswith(_CLOSED) or path.stem in told]
        rows: dict[str, dict[str, Any]] = {}
        for path in paths:
            for row in _read(path):
                rows[row["segment"]] = _joined(rows.get(row["segment"], {}), row)
        for segment, account in told.items():
            rows[segment] = _joined(_to_row(account), rows.get(segment, {}))
        newest = max(rows, key=lambda segment: SegmentId.parse(segment).number)
        staged, final = layout.staging / f"{folder.name}.accounts.parquet", folder / f"{_CLOSED}{newest}.parquet"
        _write(staged, [rows[segment] for segment in sorted(rows)])
        if _read(staged) != [rows[segment] for segment in sorted(rows)]:
            raise DamagedFile(f"{staged}: what was written is not what can be read")
        publish(staged, final)
        for path in paths:
            if path != final:
                path.unlink()


_KEPT = frozenset(
    {"first_received", "last_received", "counts", "symbols", "repeated", "reasons", "aside", "dates", "ids"}
)


def _to_row(account: Fact) -> dict[str, Any]:
    symbols = account.get("symbols")
    repeated = account.get("repeated", {})
    row: dict[str, Any] = {"segment": account["segment"]}
    if "counts" in account:
        row |= {name: account["counts"].get(name, 0) for name in _COUNTS}
        row |= {"aside": account["aside"], "reasons": sorted(account["reasons"].items())}
        row |= {name: account[name] or None for name in ("first_received", "last_received")}
    ids = IdRanges()
    ids.add_all(account.get("ids") or ())
    if 0 < len(ids) <= _IDS_MAX:
        row["ids"] = [{"symbol": symbol, "first": first, "last": last} for symbol, first, last in ids]
    if symbols is not None:
        missing = {symbol: missing for symbol, (_, missing) in ids.counts().items()}
        row["symbols"] = [
            {"symbol": symbol, "rows": rows, "repeated": repeated.get(symbol, 0), "missing": missing.get(symbol)}
            for symbol, rows in sorted(symbols.items())
        ]
    if account.get("dates") is not None:
        row["dates"] = sorted(account["dates"].items())
    return {name: row.get(name) for name in ACCOUNTS.names}


def _to_account(row: dict[str, Any]) -> Fact:
    symbols = row["symbols"]
    return {
        "segment": row["segment"],
        "first_received": row["first_received"] or 0,
        "last_received": row["last_received"] or 0,
        "counts": None if row["frames"] is None else {name: row[name] for name in _COUNTS},
        "aside": row["aside"] or 0,
        "reasons": dict(row["reasons"] or ()),
        "dates": None if row["dates"] is None else dict(row["dates"]),
        "symbols": None if symbols is None else {one["symbol"]: one["rows"] for one in symbols},
        "repeated": {one["symbol"]: one["repeated"] for one in symbols or () if one["repeated"]},
        "ids": None if row.get("ids") is None else [(one["symbol"], one["first"], one["last"]) for one in row["ids"]],
    }


def _joined(row: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """What is known of one segment from two places."""
    return {name: row.get(name) if row.get(name) is not None else other.get(name) for name in ACCOUNTS.names}


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    table = pa.Table.from_pylist(rows, schema=ACCOUNTS)
    pq.write_table(table, path, compression="zstd", compression_level=3, write_page_checksum=True)
    add_checksums(path)


def _read(path: Path, columns: list[str] | None = None) -> list[dict[str, Any]]:
    """The rows of one file, times in µs. Raises DamagedFile naming it, OSError."""
    with named_errors(path):
        if columns is not None and "ids" in columns:  # which accounts of a version that knew of none lack
            columns = [name for name in columns if name in pq.read_schema(to_read(path)).names]
        table = read_whole(path, columns=columns)
        wanted = [ACCOUNTS.field(name) for name in table.column_names]
        plain = [pa.field(one.name, pa.int64()) if one.type == RECEIVED_AT else one for one in wanted]
        rows: list[dict[str, Any]] = table.cast(pa.schema(wanted)).cast(pa.schema(plain)).to_pylist()
        return rows


def _read_in_order(layout: Layout, damaged: list[DamagedFile] | None) -> Iterator[dict[str, Any]]:
    """The rows of all files, one per segment, by number. A date is in memory at a time, or several whose numbers cross
    since the clock was set back between them.
    """
    spans = []
    for folder in _list_folders(layout):
        numbers = [_number(row) for row in _read_files([folder], ["segment"], damaged=[])]
        if numbers:
            spans.append((min(numbers), max(numbers), folder))
        elif folder.is_dir():
            list(_read_files([folder], damaged=damaged))  # tells what is damaged there
    together: list[Path] = []
    highest = 0
    for lowest, last, folder in sorted(spans):
        if together and lowest > highest:
            yield from _read_joined(together, damaged)
            together = []
        together.append(folder)
        highest = max(highest, last)
    yield from _read_joined(together, damaged)


def _read_joined(folders: list[Path], damaged: list[DamagedFile] | None) -> list[dict[str, Any]]:
    """The rows of these dates, one per segment, by number."""
    rows: dict[str, dict[str, Any]] = {}
    for row in _read_files(folders, damaged=damaged):
        rows[row["segment"]] = _joined(rows.get(row["segment"], {}), row)
    return sorted(rows.values(), key=_number)


def _read_files(
    folders: list[Path], columns: list[str] | None = None, *, damaged: list[DamagedFile] | None
) -> Iterator[dict[str, Any]]:
    yield from _read_each([path for folder in folders for path in _list_files(folder)], columns, damaged=damaged)


def _read_each(
    paths: list[Path], columns: list[str] | None = None, *, damaged: list[DamagedFile] | None
) -> Iterator[dict[str, Any]]:
    for path in paths:
        try:
            yield from _read(path, columns)
        except FileNotFoundError:  # gathered since it was listed
            continue
        except DamagedFile as error:
            if damaged is None:
                raise
            damaged.append(error)


def _number(row: dict[str, Any]) -> int:
    return SegmentId.parse(row["segment"]).number


def _list_folders(layout: Layout) -> list[Path]:
    try:
        names = list_folder(layout.accounts)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise DamagedFile(f"{layout.accounts}: can't be read: {error.strerror}") from None
    return [layout.accounts / name for name in sorted(names) if name.startswith("date=")]


def _list_files(folder: Path) -> list[Path]:
    """Parts first: a part that is gathered while this is read is found in what it was gathered to."""
    try:
        names = sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    files = [path for path in names if path.suffix == ".parquet" and segment_of(path.stem.removeprefix(_CLOSED))]
    return [path for path in files if not path.name.startswith(_CLOSED)] + [
        path for path in files if path.name.startswith(_CLOSED)
    ]
