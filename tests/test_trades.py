"""Reading trades: the right rows, each once, wherever they are kept; the right types, even of nothing."""

from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from recordings import Print, Recording, to_us

import ingestor
from ingestor.cli.main import cli
from ingestor.dataset.arguments import Span
from ingestor.dataset.compact import compact_days
from ingestor.dataset.trades import first_trades
from ingestor.errors import DamagedFile, FormatTooNew, NotARecording
from ingestor.facts import decode_line, encode_line
from ingestor.layout import locked_root
from ingestor.ledger import Ledger, list_ledgers
from ingestor.schema import FORMAT_VERSION, TRADES


@pytest.fixture
def recording(tmp_path: Path) -> Recording:
    """Trades of three UTC dates: in compacted files, in parts, in an ended segment, and in the open one."""
    recording = Recording(tmp_path / "data", ["AAPL", "MSFT"], started="2026-11-18")
    recording.write(
        Print("2026-11-18T23:59:59.999", "MSFT", 1, 10), Print("2026-11-19T00:00:00", "AAPL", 2, 10, "1,12")
    )
    recording.seal()
    recording.write(Print("2026-11-18T10:00", "AAPL", 3, 0, ""), Print("2026-11-19T10:00", "MSFT", 4, None))
    recording.seal()
    assert len(list(compact_days(recording.layout, date(2026, 11, 19)))) == 1
    recording.write(
        Print("2026-11-20T10:00", "AAPL", 5, 10), Print("2026-11-20T10:00", "AAPL", 5, 10, repeated=True),
        Print("2026-11-19T00:00:00", "AAPL", 6, 10),
    )  # fmt: skip
    recording.seal()
    recording.write(Print("2026-11-20T11:00", "AAPL", 7, 10))
    recording.end_segment()
    recording.write(Print("2026-11-20T12:00", "BRK.B", 8, 10), Print("2026-11-18T12:00", "AAPL", 9, 10))
    return recording


def prices(recording: Recording, **options: Any) -> list[float]:
    table = ingestor.read_trades(recording.layout.root, engine="arrow", **options)
    found: list[float] = table["price"].to_pylist()
    return found


# Which rows


def test_all_rows_each_once_by_symbol_time_and_arrival(recording: Recording) -> None:
    assert prices(recording) == [3, 9, 2, 6, 5, 5, 7, 8, 1, 4]


def test_what_is_sealed_is_not_read_from_the_journal_too(recording: Recording) -> None:
    before = prices(recording)
    recording.seal()
    assert prices(recording) == before
    list(compact_days(recording.layout, date(2026, 12, 1)))
    assert prices(recording) == before


def test_a_file_that_is_published_and_not_committed_is_not_read(recording: Recording) -> None:
    """As it is between publishing and commit: the journal still speaks for the segment."""
    before = ingestor.read_trades(recording.layout.root, engine="arrow")
    copies = {path: path.read_bytes() for path in recording.layout.journal.glob("*.journal")}
    recording.seal()
    for path, content in copies.items():
        path.write_bytes(content)
        path.with_name(path.name.replace(".journal", ".sealed.journal")).unlink(missing_ok=True)
    assert ingestor.read_trades(recording.layout.root, engine="arrow") == before


@pytest.mark.parametrize(
    ("start", "end", "tz", "expected"),
    [
        ("2026-11-19", "2026-11-20", "UTC", [2, 6, 4]),
        (date(2026, 11, 19), date(2026, 11, 20), "UTC", [2, 6, 4]),
        (datetime(2026, 11, 19, tzinfo=UTC), pd.Timestamp("2026-11-20", tz="UTC"), "UTC", [2, 6, 4]),
        ("2026-11-18T23:59:59.999", "2026-11-19T00:00:00.001", "UTC", [2, 6, 1]),
        ("2026-11-18T23:59:59.9995", None, "UTC", [2, 6, 5, 5, 7, 8, 4]),
        (None, "2026-11-18T10:00:00.000001", "UTC", [3]),
        ("0001-01-01", "9999-12-31T23:59:59.999999", "UTC", [3, 9, 2, 6, 5, 5, 7, 8, 1, 4]),
        ("2026-11-20", "9999-12-31", "UTC", [5, 5, 7, 8]),
        (None, "0001-01-01", "UTC", []),
        ("9999-12-31T23:59:59.999999", None, "UTC", []),
        (None, "2026-11-18T10:00", "UTC", []),
        ("2026-11-18", "2026-11-19", "America/New_York", [3, 9, 2, 6, 1]),
        ("2026-11-20T05:00", "2026-11-20T06:30", "America/New_York", [5, 5, 7]),
        ("2026-11-20T05:00-05:00", "2026-11-20T11:30Z", "Asia/Tokyo", [5, 5, 7]),
    ],
)
def test_a_span(recording: Recording, start: Any, end: Any, tz: str, expected: list[float]) -> None:
    assert prices(recording, start=start, end=end, tz=tz) == expected


def test_symbols(recording: Recording) -> None:
    assert prices(recording, symbols=["BRK.B", "MSFT"]) == [8, 1, 4]
    with pytest.warns(UserWarning, match="'NOPE' is not recorded here"):
        assert prices(recording, symbols=["NOPE"]) == []
    assert prices(recording, symbols=[]) == []


def test_repeats_may_be_dropped(recording: Recording) -> None:
    assert prices(recording, repeats="drop") == [3, 9, 2, 6, 5, 7, 8, 1, 4]


def test_prints_that_move_a_price(tmp_path: Path) -> None:
    recording = Recording(tmp_path)
    recording.write(
        Print("2026-11-20T15:00", "AAPL", 1, 10, "1"), Print("2026-11-20T15:00", "AAPL", 2, 10, "12"),
        Print("2026-11-20T15:00", "AAPL", 3, 10, "1,24"), Print("2026-11-20T12:00", "AAPL", 4, 10, "1,24"),
        Print("2026-11-20T15:00", "AAPL", 5, 10, "15"), Print("2026-11-20T15:00", "BINANCE:X", 6, 10, "12"),
    )  # fmt: skip
    assert prices(recording, conditions="sip") == [4, 1, 5, 6]
    assert prices(recording, conditions="sip", columns=["price"]) == [4, 1, 5, 6]


# What they look like


def test_types_in_pandas(recording: Recording) -> None:
    frame = ingestor.read_trades(recording.layout.root, tz="America/New_York")
    assert list(frame.columns) == TRADES.names
    assert {name: str(dtype) for name, dtype in frame.dtypes.items() if name != "conditions"} == {
        "timestamp": "datetime64[ms, America/New_York]",
        "symbol": "category",
        "price": "float64",
        "volume": "float64",
        "received_at": "datetime64[us, America/New_York]",
        "sequence": "int64",
        "repeated": "bool",
    }
    assert list(frame["symbol"].cat.categories) == ["AAPL", "BRK.B", "MSFT"]
    assert frame["conditions"].isna().sum() == 8


@pytest.mark.filterwarnings("ignore:.*is not recorded")
@pytest.mark.parametrize("options", [{"symbols": ["NOPE"]}, {"end": "2000-01-01"}, {"symbols": []}])
def test_types_of_nothing(recording: Recording, options: dict[str, Any]) -> None:
    root = recording.layout.root
    nothing = ingestor.read_trades(root, **options)
    assert len(nothing) == 0
    assert nothing.drop(columns="symbol").dtypes.equals(ingestor.read_trades(root).drop(columns="symbol").dtypes)
    assert nothing["symbol"].dtype == "category"
    assert ingestor.read_trades(root, **options, engine="arrow").schema == TRADES


def test_types_in_arrow(recording: Recording) -> None:
    assert ingestor.read_trades(recording.layout.root, engine="arrow").schema == TRADES


def test_columns_in_the_order_asked_for(recording: Recording) -> None:
    table = ingestor.read_trades(recording.layout.root, columns=["price", "symbol"], symbols=["MSFT"], engine="arrow")
    assert table.to_pydict() == {"price": [1.0, 4.0], "symbol": ["MSFT", "MSFT"]}
    assert list(ingestor.read_trades(recording.layout.root, columns=["volume"]).columns) == ["volume"]


def test_only_what_is_asked_for_is_opened(recording: Recording) -> None:
    """Dates outside the span are not even looked at: a file there may be anything."""
    (folder,) = recording.layout.trades.glob("date=2026-11-18")
    for path in folder.iterdir():
        path.write_bytes(b"junk")
    assert prices(recording, start="2026-11-19T00:00") == [2, 6, 5, 5, 7, 8, 4]
    with pytest.raises(DamagedFile, match=r"date=2026-11-18/.*parquet: can't be read"):
        prices(recording)


def test_a_column_that_a_feed_appended(recording: Recording) -> None:
    """Newer files have a column that older ones lack: null there."""
    (path,) = recording.layout.trades.glob("date=2026-11-20/*.parquet")
    table = pq.read_table(path, partitioning=None)
    pq.write_table(table.append_column("side", pa.array(["buy"] * table.num_rows)), path)
    recording.seal()
    recording.journal.close()
    for left in recording.layout.journal.glob("*.journal"):
        left.unlink()
    last = max(recording.layout.trades.glob("date=2026-11-20/*.parquet"))
    later = pq.read_table(last, partitioning=None)
    pq.write_table(later.append_column("side", pa.array(["sell"] * later.num_rows)), last)
    found = ingestor.read_trades(recording.layout.root, engine="arrow")
    assert found.column_names == [*TRADES.names, "side"]
    assert found["side"].null_count == found.num_rows - table.num_rows - later.num_rows


def test_what_is_known_of_a_root_is_read_anew_where_it_has_changed(recording: Recording) -> None:
    """Under the same names: a column in the newest file, and what the newest run began with."""
    recording.seal()
    recording.journal.close()
    for left in recording.layout.journal.glob("*.journal"):
        left.unlink()
    assert ingestor.read_trades(recording.layout.root).columns.tolist() == TRADES.names
    newest = max(recording.layout.trades.glob("date=*/*.parquet"))
    table = pq.read_table(newest, partitioning=None)
    pq.write_table(table.append_column("side", pa.array(["buy"] * table.num_rows)), newest)
    assert ingestor.read_trades(recording.layout.root).columns.tolist() == [*TRADES.names, "side"]
    ledger = list_ledgers(recording.layout)[-1]
    first, *others = ledger.read_text().splitlines(keepends=True)
    started = decode_line(first)
    assert started is not None
    ledger.write_text("".join([encode_line(started | {"format": FORMAT_VERSION + 1}), *others]))
    with pytest.raises(FormatTooNew):
        ingestor.read_trades(recording.layout.root)


def test_the_first_trades_by_time(recording: Recording) -> None:
    def found(count: int, symbols: tuple[str, ...] | None = None) -> list[float]:
        table = first_trades(recording.layout.root, Span(None, None), symbols, count)
        prices: list[float] = table["price"].to_pylist()
        return prices

    assert found(3) == [3, 9, 1]
    assert found(5) == [3, 9, 1, 2, 6]
    assert found(99) == [3, 9, 1, 2, 6, 4, 5, 5, 7, 8]
    assert found(1, ("BRK.B",)) == [8]


# What can't be read


def test_no_recording(tmp_path: Path, recording: Recording) -> None:
    with pytest.raises(NotARecording, match=f"holds no recording: .* in {tmp_path / 'nowhere'}$"):
        ingestor.read_trades(tmp_path / "nowhere")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(NotARecording, match=r"notes\.txt is a file; a recording is a directory"):
        ingestor.read_trades(tmp_path / "notes.txt")
    with pytest.raises(NotARecording, match=f"the root is {recording.layout.root}"):
        ingestor.read_trades(recording.layout.root / "staging")


def test_a_recording_of_csv_only(tmp_path: Path) -> None:
    recording = Recording(tmp_path)
    recording.ledger.close()
    for path in recording.layout.ledger.iterdir():
        path.unlink()
    ledger = Ledger(recording.layout, 1, date(2026, 11, 18))
    ledger.record("run.started", format=2, run=1, formats=["csv"], open_gaps=[])
    with pytest.raises(NotARecording, match="records CSV only"):
        ingestor.read_trades(tmp_path)


def test_a_root_that_records_csv_only_since_then(recording: Recording) -> None:
    """What is in the dataset can be read; that it is not all there is, is told."""
    before = prices(recording)
    ledger = Ledger(recording.layout, 2, date(2026, 11, 21))
    ledger.record("run.started", at=to_us("2026-11-21T09:30:00"), format=2, run=2, formats=["csv"], open_gaps=[])
    with pytest.warns(UserWarning, match="records CSV only since 2026-11-21 09:30:00 UTC: trades after that are in"):
        assert prices(recording) == before


def test_a_root_of_a_later_version(recording: Recording) -> None:
    """Also where the span holds no file that could tell."""
    ledger = Ledger(recording.layout, 2, date(2026, 11, 21))
    ledger.record("run.started", format=3, run=2, formats=["parquet"], open_gaps=[])
    with pytest.raises(FormatTooNew, match="is of format 3; this version reads up to 2"):
        prices(recording, start="2027-01-01")


def test_a_file_of_a_later_version(recording: Recording) -> None:
    (path,) = recording.layout.trades.glob("date=2026-11-20/*.parquet")
    table = pq.read_table(path, partitioning=None)
    pq.write_table(table.replace_schema_metadata({"ingestor.format": "3"}), path)
    with pytest.raises(FormatTooNew, match="is of format 3"):
        ingestor.read_trades(recording.layout.root)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"columns": ["prise"]}, "no column 'prise': there are timestamp, symbol, price"),
        ({"start": "noon"}, "'noon' is no time"),
        ({"tz": "Mars"}, "no time zone 'Mars'"),
        ({"tz": ZoneInfo("Asia/Seoul")}, "no time zone .* write it like"),
        ({"tz": None}, "no time zone None"),
        ({"engine": "polars"}, "engine must be 'pandas' or 'arrow', not 'polars': polars.DataFrame takes"),
        ({"conditions": "some"}, "conditions must be 'all' or 'sip'"),
        ({"repeats": "no"}, "repeats must be 'keep' or 'drop'"),
    ],
)
def test_an_argument_that_cannot_be_used(recording: Recording, options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        ingestor.read_trades(recording.layout.root, **options)


# What can't be read: a file of an older version has no checksums, and any value where a bit has changed

READERS: dict[str, Callable[[Recording], Any]] = {
    "read_trades": lambda recording: ingestor.read_trades(recording.layout.root),
    "read_trades filtered": lambda recording: prices(recording, symbols=["AAPL"], start="2026-11-20T00:00"),
    "read_trades of two columns": lambda recording: prices(
        recording, columns=["price", "received_at"], end="2026-11-21"
    ),
    "read_bars": lambda recording: ingestor.read_bars(recording.layout.root, "1m", symbols=["AAPL"]),
    "describe": lambda recording: ingestor.describe(recording.layout.root),
    "compact": lambda recording: list(compact_days(recording.layout, date(2026, 11, 21))),
    "export": lambda recording: CliRunner().invoke(
        cli,
        ["export", str(recording.layout.root.parent / "out.csv"), "--root", str(recording.layout.root)],
        catch_exceptions=False,
    ),
}

SPOILED: dict[str, Callable[[pa.Table], pa.Table]] = {
    "a time of the year 10000": lambda rows: _with(rows, "timestamp", pa.array([253402300800000] * 3)),
    "a time before 1970": lambda rows: _with(rows, "timestamp", pa.array([-(1 << 62)] * 3)),
    "a receipt in no year": lambda rows: _with(rows, "received_at", pa.array([1 << 62] * 3)),
    "a row without a symbol": lambda rows: _with(rows, "symbol", pa.array(["AAPL", None, "AAPL"])),
    "a row without a time": lambda rows: _with(rows, "timestamp", pa.array([None, 1, 2], pa.int64())),
    "letters that are none": lambda rows: _with(rows, "symbol", pa.array([b"AAPL", b"AA\xff", b"AAPL"])),
    "a column of another name": lambda rows: rows.rename_columns(
        ["receivfd_at" if name == "received_at" else name for name in rows.column_names]
    ),
}


def _with(rows: pa.Table, name: str, values: pa.Array) -> pa.Table:
    """These values, also such as the column's type forbids."""
    field = rows.schema.field(name)
    if pa.types.is_binary(values.type):
        values = pa.StringArray.from_buffers(len(values), *values.buffers()[1:])
    return rows.set_column(rows.column_names.index(name), field, values.cast(field.type))


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED.keys())
def test_every_reader_names_a_file_that_holds_what_none_can(
    tmp_path: Path, spoil: Callable[[pa.Table], pa.Table]
) -> None:
    recording = Recording(tmp_path / "data", ["AAPL"])
    recording.write(*(Print(f"2026-11-20T10:0{minute}", "AAPL", 5, 10) for minute in range(3)))
    recording.seal()
    [path] = recording.layout.trades.glob("date=*/*.parquet")
    recording.write(Print("2026-11-20T10:09", "AAPL", 5, 10))
    recording.seal()
    rows = spoil(pq.read_table(path, partitioning=None))
    pq.write_table(rows.replace_schema_metadata(pq.read_schema(path).metadata), path, write_statistics=False)
    for name, read in READERS.items():
        with pytest.raises(DamagedFile, match=path.name):
            pytest.fail(f"{name} said {read(recording)}")


def test_whoever_follows_is_told_when_silence_is_ours(tmp_path: Path) -> None:
    recording = Recording(tmp_path / "data", ["A", "B"], started="2026-01-05T00:00")
    recording.prove(["A", "B"], "2026-01-05T00:00")
    recording.write(Print("2026-01-05T10:00", "A", 1, 1))
    events = ingestor.follow(recording.layout.root, "A", "start", idle_s=0.1, events=True)

    def told() -> list[object]:
        """Up to the next turn without one."""
        found: list[object] = []
        while not (isinstance(event := next(events), pa.RecordBatch) and not event.num_rows):
            found.append(event.num_rows if isinstance(event, pa.RecordBatch) else tuple(event))
        return found

    with locked_root(recording.layout):
        assert told() == [1, ("A", "recorded", None)]
        since = to_us("2026-01-05T11:00")
        recording.fact("gap.opened", "2026-01-05T11:00", gap="1", cause="stall", since=since, symbol=None)
        while not (found := told()):
            pass
        assert found == [("A", "blind", "stall")]
        recording.fact("gap.closed", "2026-01-05T12:00", gap="1", cause="stall", until=since + 1, symbol=None)
        while not (found := told()):
            pass
        assert found == [("A", "recorded", None)]
    while not (found := told()):
        pass
    assert found == [("A", "blind", "no_recorder")]
