"""Makes recordings to read, without a recorder: what a US tape looks like, in the recorder's own files.

    python benchmarks/tape.py FOLDER --year-days 252 --year-trades 20000000 --day-trades 2000000 --large-trades 8000000

`FOLDER/year`: one compacted file a day, the same session of 500 symbols on every weekday, with times and sequence
numbers of its own. `FOLDER/days`: two days as the recorder seals them, in a part each quarter of an hour; the second
is so large that its rows alone would exceed what reading may take. Prints what is in them: `{"year": {"rows": …,
"volume": …}, "days": …, "day": …}`, the last of them of the first of the two days alone.

The tape: 500 symbols whose activity falls off as 1/rank; sessions that are busiest at both ends; orders that are filled
in one to four prints, so that a fifth of all prints repeat an earlier one in symbol, time, price and volume (a quarter
does on the real tape); prices that walk by cents, a tenth of them off by half a cent; two thirds odd lots; frames that
hold the prints of two orders, where these come together, a tenth of a second after them.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ingestor.dataset.rows import plain_texts, sort_rows
from ingestor.dataset.snapshot import Compacted
from ingestor.layout import Layout, SegmentId, make_folder
from ingestor.ledger import Ledger
from ingestor.parquet import write_parquet
from ingestor.schema import FORMAT_VERSION, RECEIVED_AT, RUN_SHIFT, TIMESTAMP, TRADES

Integers = npt.NDArray[np.int64]

SYMBOLS = [f"S{number:03}" for number in range(500)]
YEAR_START = date(2025, 1, 1)
DAY, LARGE_DAY = date(2025, 11, 20), date(2025, 11, 21)
_OPENS = timedelta(hours=14, minutes=30)
_SESSION_US = 23_400_000_000
_PARTS = 26
_LARGE_PARTS = 96
"""A part each quarter of an hour: of a session, of a whole day."""
_FILLS = (0.66, 0.19, 0.09, 0.06)
"""How often an order is filled in one, two, three, four prints."""
_LATENCY_US = 90_000
_FRAME_US = 50_000
"""What comes later than this after the one before is told in a frame of its own."""
_CODES = ("1", "1,8", "1,12", "1,8,12", "1,4,12")
_DAY_MS = 86_400_000


def main() -> None:
    parser = argparse.ArgumentParser(description="Make recordings to read.")
    parser.add_argument("folder", type=Path)
    for name in ("year-days", "year-trades", "day-trades", "large-trades"):
        parser.add_argument(f"--{name}", type=int, required=True)
    options = parser.parse_args()
    random = np.random.default_rng(20_261_120)
    year = write_year(options.folder / "year", random, options.year_days, options.year_trades // options.year_days)
    days = Layout(options.folder / "days")
    first = write_parts(days, make_day(random, options.day_trades, DAY), 1, _PARTS)
    large = write_parts(days, make_day(random, options.large_trades, LARGE_DAY, first.rows), _PARTS + 1, _LARGE_PARTS)
    both = Truth(first.rows + large.rows, first.volume + large.volume)
    write_ledger(days, DAY, 2)
    print(json.dumps({"year": year._asdict(), "days": both._asdict(), "day": first._asdict()}))


class Truth(NamedTuple):
    """What must be found in what is made of a recording."""

    rows: int
    volume: float


# The tape


def make_day(random: np.random.Generator, trades: int, day: date, after: int = 0) -> pa.Table:
    """So many trades of one session, in the order of their arrival, numbered behind `after` others; texts as
    dictionaries.
    """
    fills = random.choice(len(_FILLS), size=trades, p=_FILLS) + 1
    orders = int(np.searchsorted(np.cumsum(fills), trades)) + 1
    order = np.repeat(np.arange(orders), fills[:orders])[:trades]
    symbol = draw_symbols(random, orders)
    traded_us, received_us = draw_times(random, orders, day)
    price = walk_cents(random, symbol)[order] / 100 + np.where(random.random(orders) < 0.1, 0.005, 0)[order]
    volume = draw_volumes(random, order)
    codes = np.where(
        volume < 100, random.choice((2, 2, 2, 3, 4), size=trades), random.choice((0, 0, 0, 1), size=trades)
    )
    columns = {
        "timestamp": pa.array(traded_us[order] // 1000).cast(TIMESTAMP),
        "symbol": texts(SYMBOLS, symbol[order]),
        "price": price.round(4),
        "volume": volume.astype(np.float64),
        "conditions": texts(_CODES, codes),
        "received_at": pa.array(received_us[order]).cast(RECEIVED_AT),
        "sequence": (1 << RUN_SHIFT) + after + np.arange(trades),
        "repeated": np.zeros(trades, bool),
    }
    return pa.table(columns)


def draw_symbols(random: np.random.Generator, orders: int) -> Integers:
    """The symbol of each order; how busy one is has nothing to do with its name."""
    weights = random.permutation(1 / np.arange(1, len(SYMBOLS) + 1))
    return random.choice(len(SYMBOLS), size=orders, p=weights / weights.sum())


def draw_times(random: np.random.Generator, orders: int, day: date) -> tuple[Integers, Integers]:
    """When each order was filled, and when the frame that told it was received (µs since 1970), in order of arrival."""
    opens = datetime(day.year, day.month, day.day, tzinfo=UTC) + _OPENS
    traded_us = round(opens.timestamp() * 1e6) + (random.beta(0.7, 0.7, size=orders) * _SESSION_US).astype(np.int64)
    arrived_us = traded_us + (random.lognormal(0, 0.25, size=orders) * _LATENCY_US).astype(np.int64)
    arrival = np.argsort(arrived_us)
    arrived_us = arrived_us[arrival]
    frame = np.cumsum((random.random(orders) < 0.5) | (np.diff(arrived_us, prepend=0) > _FRAME_US))
    last_of_frame = np.searchsorted(frame, frame, side="right") - 1
    return traded_us[arrival], arrived_us[last_of_frame]


def walk_cents(random: np.random.Generator, symbol: Integers) -> Integers:
    """A price in cents for each order: a walk of its symbol."""
    steps = random.choice((-2, -1, 0, 1, 2), size=len(symbol), p=(0.05, 0.2, 0.5, 0.2, 0.05))
    by_symbol = np.argsort(symbol, kind="stable")
    walked = np.cumsum(steps[by_symbol])
    begins = np.flatnonzero(np.diff(symbol[by_symbol], prepend=-1))
    cents = np.empty_like(walked)
    cents[by_symbol] = walked - np.repeat(walked[begins], np.diff(begins, append=len(symbol)))
    return np.maximum(cents + random.integers(2_000, 60_000, len(SYMBOLS))[symbol], 100)


def draw_volumes(random: np.random.Generator, order: Integers) -> Integers:
    """The volume of each print: mostly that of its order's other prints, mostly an odd lot."""
    prints = len(order)
    odd, lots, kind = random.geometric(0.03, prints), random.geometric(0.4, prints), random.random(prints)[order]
    volume = np.where(kind < 0.35, 100, np.where(kind < 0.45, 100 * lots[order], np.minimum(odd[order], 99)))
    return np.where(random.random(prints) < 0.3, np.minimum(odd, 99), volume)


def texts(words: Sequence[str], which: Integers) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(which.astype(np.int32), pa.array(words))


# The files


def write_year(root: Path, random: np.random.Generator, days: int, trades_a_day: int) -> Truth:
    """The same session on so many weekdays, a compacted file each."""
    layout = Layout(root)
    layout.create()
    write_ledger(layout, YEAR_START, 365)
    session = sort_rows(make_day(random, trades_a_day, YEAR_START))
    for number, day in enumerate(weekdays(days)):
        later_ms = (day - YEAR_START).days * _DAY_MS
        rows = shifted(
            session, {"timestamp": later_ms, "received_at": later_ms * 1000, "sequence": number * trades_a_day}
        )
        folder = layout.trades / f"date={day}"
        make_folder(folder)
        write_file(folder / str(Compacted(number + 1, 1, 1)), rows, segment_id(number + 1, day))
    return Truth(days * trades_a_day, days * pc.sum(session["volume"]).as_py())


def weekdays(count: int) -> Iterator[date]:
    day = YEAR_START
    while count:
        if day.weekday() < 5:
            yield day
            count -= 1
        day += timedelta(days=1)


def shifted(rows: pa.Table, by: dict[str, int]) -> pa.Table:
    """The rows with something added to some columns, in the column's own unit."""
    for name, amount in by.items():
        at = rows.schema.get_field_index(name)
        moved = pc.add(rows.column(at).cast(pa.int64()), amount).cast(rows.schema.field(at).type)
        rows = rows.set_column(at, rows.schema.field(at), moved)
    return rows


def write_parts(layout: Layout, rows: pa.Table, first_segment: int, parts: int) -> Truth:
    """One day's rows in so many parts, as many rows in each, under the names that segments have."""
    layout.create()
    day = rows["timestamp"][0].as_py().date()
    folder = layout.trades / f"date={day}"
    make_folder(folder)
    size = -(-rows.num_rows // parts)
    for number, at in enumerate(range(0, rows.num_rows, size), first_segment):
        segment = segment_id(number, day)
        write_file(folder / f"{segment}.parquet", sort_rows(rows.slice(at, size)), segment)
    return Truth(rows.num_rows, pc.sum(rows["volume"]).as_py())


def write_file(path: Path, rows: pa.Table, origin: SegmentId) -> None:
    """Sorted rows, as every file of the dataset is written."""
    write_parquet(path, plain_texts(rows).cast(TRADES), str(origin))


def write_ledger(layout: Layout, since: date, days: int) -> None:
    """What a run of so many days asked for, and heard at once."""
    started = datetime(since.year, since.month, since.day, tzinfo=UTC)
    at = round(started.timestamp() * 1e6)
    facts = [
        {"fact": "run.started", "format": FORMAT_VERSION, "run": 1, "feed": "finnhub", "columns": TRADES.names,
         "tickers": SYMBOLS, "formats": ["parquet"], "first_segment": 1, "open_gaps": []},
        {"fact": "connection.opened", "connection": 1},
        {"fact": "symbols.requested", "connection": 1, "symbols": SYMBOLS},
        {"fact": "symbols.proven", "connection": 1, "base": at, "symbols": dict.fromkeys(SYMBOLS, 0)},
    ]  # fmt: skip
    ledger = Ledger(layout, 1, started.date())
    ledger.record_all([{"at": at, **fact} for fact in facts])
    ledger.record("run.stopped", at=at + days * _DAY_MS * 1000, error=None)
    ledger.close()


def segment_id(number: int, day: date) -> SegmentId:
    return SegmentId(number, datetime(day.year, day.month, day.day, tzinfo=UTC), 1)


if __name__ == "__main__":
    main()
