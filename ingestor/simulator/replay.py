"""Replay of a recording: Parquet, CSV, JSON lines (a truth file) or frames as they came; at its own pace or another."""

import csv
import gzip
import json
import math
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from ingestor.dataset.raw import read_frame_file
from ingestor.dataset.times import EVER
from ingestor.errors import ConfigError, DamagedFile, FormatTooNew
from ingestor.schema import PACKED_FRAMES
from ingestor.simulator.market import BATCH_MAX, Batch, Trade, is_crypto

SAME_MESSAGE_US = 1000
"""Trades that arrived so close together are sent in one message."""

_ARRIVAL_FIELDS: "tuple[pa.Field[Any], ...]" = (
    pa.field("at_us", pa.int64(), nullable=False),
    pa.field("symbol", pa.string(), nullable=False),
    pa.field("price", pa.float64(), nullable=False),
    pa.field("volume", pa.float64(), nullable=False),
    pa.field("time_ms", pa.int64(), nullable=False),
    pa.field("conditions", pa.string()),
)
_ARRIVALS = pa.schema(_ARRIVAL_FIELDS)


class Arrival(NamedTuple):
    """A recorded trade and when it came, by the recorder's clock where that was kept, else by the venue's."""

    at_us: int
    trade: Trade


class Replay:
    """A source of recorded trades, in the order of arrival, with their own times. It sends them once."""

    def __init__(self, path: Path, speed: float) -> None:
        """`speed` 2 is twice the recorded pace, `math.inf` no pause at all.

        Raises ConfigError for a path that holds no recording; for a CSV or JSON line when its turn comes.
        """
        self._arrivals = recorded_trades(path)
        self._speed = speed
        self._next = next(self._arrivals, None)

    def batch(self, symbols: Sequence[str], now_ms: int) -> Batch | None:  # noqa: ARG002  as every Source
        """The next trades that arrived together; None after the last. Times and symbols are those of the recording."""
        if self._next is None:
            return None
        first_us = latest_us = self._next.at_us
        trades: list[Trade] = []
        while self._next and self._next.at_us <= first_us + SAME_MESSAGE_US and len(trades) < BATCH_MAX:
            trades.append(self._next.trade)
            latest_us = max(latest_us, self._next.at_us)
            self._next = next(self._arrivals, None)
        pause_us = 0 if self._next is None else max(0, self._next.at_us - latest_us)
        return Batch(trades, pause_us / 1e6 / self._speed)


class FrameReplay:
    """A source of frames as they came (`raw/`), in the order of receipt, each a message. It sends them once."""

    def __init__(self, path: Path, speed: float) -> None:
        """As of `Replay`. Raises ConfigError for a file that can't be read when its turn comes."""
        self._frames = _recorded_frames(path)
        self._speed = speed
        self._next = next(self._frames, None)

    def batch(self, symbols: Sequence[str], now_ms: int) -> Batch | None:  # noqa: ARG002  as every Source
        """The next frame; None after the last."""
        if self._next is None:
            return None
        (at_us, payload), self._next = self._next, next(self._frames, None)
        pause_us = 0 if self._next is None else max(0, self._next[0] - at_us)
        return Batch([], pause_us / 1e6 / self._speed, payload)


def holds_frames(path: Path) -> bool:
    """Whether this is a file or a directory of frames as they came."""
    files = _list_parquet(path)
    try:
        return bool(files) and pq.read_schema(files[0]).names == PACKED_FRAMES.names
    except (OSError, pa.ArrowException):
        return False


def _list_parquet(path: Path) -> list[Path]:
    """Segment by segment, and date by date."""
    if path.is_dir():
        return sorted(path.rglob("*.parquet"), key=lambda file: (file.name, file.parent))
    return [path] if path.suffix == ".parquet" else []


def _recorded_frames(path: Path) -> Iterator[tuple[int, bytes]]:
    for file in _list_parquet(path):
        try:
            for table in read_frame_file(file, EVER):
                times_us = table["received_at"].cast(pa.int64()).to_pylist()
                yield from zip(times_us, table["payload"].to_pylist(), strict=True)
        except (DamagedFile, FormatTooNew, OSError) as error:
            raise ConfigError(f"no frames to replay: {error}") from error


def recorded_trades(path: Path) -> Iterator[Arrival]:
    """The trades of a file or of a directory of Parquet (else CSV) files, in the order of arrival.

    Parquet is held in memory, about 60 bytes per trade. A null volume is sent as 0.
    Raises ConfigError where nothing there can be read.
    """
    if path.is_dir():
        if any(path.rglob("*.parquet")):
            return _parquet_trades(path)
        files = sorted([*path.rglob("*.csv"), *path.rglob("*.csv.gz")])
        if not files:
            raise ConfigError(f"{path}: no Parquet or CSV file in this directory to replay")
        return chain.from_iterable(map(_csv_trades, files))
    if not path.is_file():
        raise ConfigError(f"{path}: no such file or directory to replay")
    if path.suffix == ".parquet":
        return _parquet_trades(path)
    if path.name.endswith((".csv", ".csv.gz")):
        return _csv_trades(path)
    if path.suffix in {".jsonl", ".json"}:
        return _truth_trades(path)
    raise ConfigError(f"{path}: can replay .parquet, .csv, .csv.gz and .jsonl (as --truth writes it)")


def _parquet_trades(path: Path) -> Iterator[Arrival]:
    try:
        table = ds.dataset(path, format="parquet").to_table()
        if "sequence" in table.column_names:
            table = table.sort_by("sequence")
        names = table.column_names
        time, received = table["timestamp"], table["received_at" if "received_at" in names else "timestamp"]
        columns: dict[str, Any] = {
            "at_us": received.cast(pa.timestamp("us", "UTC"), safe=False),
            "symbol": table["symbol"],
            "price": table["price"],
            "volume": pc.coalesce(table["volume"], pa.scalar(0.0)),
            "time_ms": time.cast(pa.timestamp("us", "UTC"), safe=False).cast(pa.timestamp("ms", "UTC"), safe=False),
            "conditions": table["conditions"] if "conditions" in names else pa.nulls(table.num_rows),
        }
        arrivals = pa.table(list(columns.values()), _ARRIVALS.names).cast(_ARRIVALS)
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise ConfigError(f"{path}: no Parquet recording of trades: {error}") from error
    # A generator of its own, so that a path without a recording is refused here and not at the first trade.
    return (
        Arrival(at_us, Trade(symbol, price, volume, time_ms, _conditions_json(codes, symbol)))
        for batch in arrivals.to_batches(max_chunksize=8192)
        for at_us, symbol, price, volume, time_ms, codes in zip(
            *(column.to_pylist() for column in batch.columns), strict=True
        )
    )


def _csv_trades(path: Path) -> Iterator[Arrival]:
    read = gzip.open if path.suffix == ".gz" else open
    with read(path, "rt", encoding="utf-8", newline="") as lines:
        rows = csv.DictReader(lines)
        for row in rows:
            try:
                time_us = _time_us(row["timestamp"])
                received = row.get("received_at")
                symbol, price, volume = row["symbol"], _finite(row["price"]), _finite(row["volume"] or "0")
                conditions = _conditions_json(row.get("conditions") or None, symbol)
                trade = Trade(symbol, price, volume, time_us // 1000, conditions)
                arrival = Arrival(_time_us(received) if received else time_us, trade)
            except (KeyError, TypeError, ValueError) as error:
                raise ConfigError(f"{path}:{rows.line_num}: not a trade to replay: {error!r}") from error
            yield arrival


def _time_us(text: str) -> int:
    """µs since 1970 of an ISO time; one without a zone is UTC."""
    time = datetime.fromisoformat(text)
    if time.tzinfo is None:
        time = time.replace(tzinfo=UTC)
    since = time - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86400 + since.seconds) * 1_000_000 + since.microseconds


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value} is not finite")
    return number


def _truth_trades(path: Path) -> Iterator[Arrival]:
    with path.open(encoding="utf-8") as lines:
        for index, line in enumerate(lines, 1):
            try:
                fields = json.loads(line)
                time_ms = int(fields["t"])
                conditions = json.dumps(fields["c"], separators=(",", ":")) if "c" in fields else None
                trade = Trade(str(fields["s"]), _finite(fields["p"]), _finite(fields["v"]), time_ms, conditions)
                arrival = Arrival(int(fields.get("sent_us", time_ms * 1000)), trade)
            except (KeyError, TypeError, ValueError) as error:
                raise ConfigError(f"{path}:{index}: not a trade to replay: {error!r}") from error
            yield arrival


def _conditions_json(codes: str | None, symbol: str) -> str | None:
    """The field `c` as a venue would have sent it for the recorded codes."""
    if codes is None:
        return "null" if is_crypto(symbol) else None
    return json.dumps(codes.split(",") if codes else [], separators=(",", ":"))
