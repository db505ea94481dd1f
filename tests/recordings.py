"""A recording made to order: rows that a test states go through the real journal and the real Parquet sink."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from journals import Clock, block, drain, make_journal, make_root

from ingestor.journal.writer import Rotation
from ingestor.ledger import Ledger
from ingestor.schema import FORMAT_VERSION, RUN_SHIFT, TRADES
from ingestor.sinks.parquet_files import ParquetFiles
from ingestor.sinks.segment_accounts import SegmentAccounts

_EMPTY_SEGMENT: dict[str, Any] = {
    "segment": "000000000001-20260101T000000Z-r000001",
    "first_received": 0,
    "last_received": 0,
    "counts": {},
    "reasons": {},
    "aside": 0,
}

ALWAYS = Rotation(age_s=0.0, size=1 << 40)


class Print(NamedTuple):
    """A trade as a test states it: received 100 ms after its time, unless it says otherwise."""

    at: str | datetime
    symbol: str
    price: float
    volume: float | None
    conditions: str | None = None
    delay_s: float = 0.1
    repeated: bool = False


def to_us(at: str | datetime) -> int:
    """µs since 1970; UTC where no zone is named."""
    time = datetime.fromisoformat(at) if isinstance(at, str) else at
    return round((time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp() * 1e6)


class Recording:
    """One run on a root. `write` appends to the journal; `end_segment` and `seal` bring it into the dataset."""

    def __init__(self, root: Path, symbols: Sequence[str] = (), *, started: str = "2026-01-01", run: int = 1) -> None:
        self.layout = make_root(root)
        self.ledger = Ledger(self.layout, run, datetime.fromisoformat(started).date())
        self.ledger.record(
            "run.started",
            at=to_us(started),
            format=FORMAT_VERSION,
            run=run,
            feed="finnhub",
            tickers=list(symbols),
            formats=["parquet"],
            first_segment=1,
            open_gaps=[],
        )
        self.sequence = run << RUN_SHIFT
        self.clock = Clock(datetime.fromisoformat(started).replace(tzinfo=UTC))
        self.journal = make_journal(self.layout, run, 1, rotation=ALWAYS, clock=self.clock)
        self._sinks = (SegmentAccounts(self.layout, self.ledger, 0), ParquetFiles(self.layout, self.ledger))

    def write(self, *prints: Print) -> pa.RecordBatch:
        """Append these trades in this order; the rows as they are journaled."""
        times_us = [to_us(one.at) for one in prints]
        columns = {
            "timestamp": [us // 1000 for us in times_us],
            "symbol": [one.symbol for one in prints],
            "price": [one.price for one in prints],
            "volume": [one.volume for one in prints],
            "conditions": [one.conditions for one in prints],
            "received_at": [us + round(one.delay_s * 1e6) for us, one in zip(times_us, prints, strict=True)],
            "sequence": list(range(self.sequence, self.sequence + len(prints))),
            "repeated": [one.repeated for one in prints],
        }
        rows = pa.RecordBatch.from_pydict(columns, schema=TRADES)
        self.append(rows)
        return rows

    def append(self, rows: pa.RecordBatch) -> None:
        """Append rows whose sequence numbers go on from `sequence`."""
        self.journal.append(block(rows))
        self.journal.sync()
        self.sequence += rows.num_rows

    def end_segment(self) -> None:
        """Close the open segment, if it has rows; it is then complete, and not sealed."""
        self.journal.rotate_if_due()

    def seal(self) -> None:
        """Bring what is written into the dataset."""
        self.end_segment()
        drain(self.layout, self._sinks)

    def fact(self, fact: str, at: str, **fields: object) -> None:
        """A fact of the ledger at a time."""
        self.ledger.record(fact, at=to_us(at), **(_EMPTY_SEGMENT if fact == "segment.closed" else {}), **fields)

    def prove(self, symbols: Sequence[str], since: str, connection: int = 1) -> None:
        """The symbols are asked for and proven at once."""
        self.fact("connection.opened", since, connection=connection)
        self.fact("symbols.requested", since, connection=connection, symbols=list(symbols))
        self.fact("symbols.proven", since, connection=connection, base=to_us(since), symbols=dict.fromkeys(symbols, 0))

    def stop(self, at: str) -> None:
        """End the run, sealed."""
        self.journal.close()
        drain(self.layout, self._sinks)
        self.fact("run.stopped", at, error=None)
        self.ledger.close()


def add_trade_ids(path: Path) -> None:
    """Make a file one of a feed that has come to tell them: 0, 1, …"""
    rows = pq.read_table(path, partitioning=None)
    told = rows.append_column("trade_id", pa.array(range(rows.num_rows), pa.int64()))
    pq.write_table(told.replace_schema_metadata(rows.schema.metadata), path)


def make_recent(root: Path) -> Recording:
    """A recording of A: from the midnight before last, with a trade in the morning of the day after."""
    day = datetime.now(UTC).date() - timedelta(2)
    recording = Recording(root, ["A"], started=f"{day}T00:00")
    recording.prove(["A"], f"{day}T00:00")
    recording.write(Print(f"{day + timedelta(1)}T10:00", "A", 1, 1))
    return recording


def make_sample(root: Path) -> Recording:
    """A recording as a new user has one: two US dates of two stocks, a coin and a currency, with one gap at 15:00 UTC.

    Its last rows are in the journal still.
    """
    symbols = ["AAPL", "MSFT", "BINANCE:BTCUSDT", "OANDA:EUR_USD"]
    recording = Recording(root, symbols, started="2026-11-19")
    recording.prove(symbols, "2026-11-19T14:00:00")
    prices = {"AAPL": 230.0, "MSFT": 430.0, "BINANCE:BTCUSDT": 97_000.0, "OANDA:EUR_USD": 1.05}
    codes = ("1", "1,12", "1,8", None, "", "2")
    for day in (19, 20):
        for hour in (14, 15, 16, 23):
            for number in range(240):
                symbol = symbols[number % 4]
                second = number * 15
                at = f"2026-11-{day}T{hour}:{second // 60:02d}:{second % 60:02d}"
                us = ":" not in symbol
                volume = 0.0 if symbol.startswith("OANDA") else 100.0 if us else 0.25
                price = prices[symbol] * (1 + (number * 7 % 11) / 10_000)
                recording.write(Print(at, symbol, round(price, 5), volume, codes[number // 4 % 6] if us else None))
            recording.end_segment()
        if day == 19:
            recording.seal()
    start, end = "2026-11-20T15:00:00", "2026-11-20T15:02:00"
    recording.fact("gap.opened", start, gap="r000001-1", cause="connection", since=to_us(start), symbol=None)
    recording.fact("gap.closed", end, gap="r000001-1", cause="connection", until=to_us(end), symbol=None)
    recording.fact("connection.closed", "2026-11-21T00:00:00", connection=1, frames=1)
    return recording
