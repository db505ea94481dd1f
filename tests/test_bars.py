"""Bars: each rule by a table of prints, and all of them together against SQL that knows nothing of this code."""

import random
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import duckdb
import pyarrow as pa
import pytest
from recordings import Print, Recording
from requirements import of_tier

import ingestor
from ingestor.schema import TRADES

DAY = "2026-11-20"
OPEN = f"{DAY}T14:30"
"""09:30 in New York."""


def at(clock: str) -> str:
    return f"{DAY}T{clock}"


@pytest.fixture
def recording(tmp_path: Path) -> Recording:
    return Recording(tmp_path, ["AAPL", "BINANCE:BTCUSDT"], started="2026-11-19")


def bars(recording: Recording, interval: str = "1m", **options: Any) -> list[dict[str, Any]]:
    table = ingestor.read_bars(recording.layout.root, interval, engine="arrow", **options)
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def one_bar(recording: Recording, *prints: tuple[float, float | None, str | None], **options: Any) -> dict[str, Any]:
    """The one bar of these (price, volume, conditions), a second apart from 09:31 New York on."""
    start = datetime.fromisoformat(at("14:31")).replace(tzinfo=UTC)
    recording.write(*(Print(start + timedelta(seconds=n), "AAPL", *one) for n, one in enumerate(prints)))
    (bar,) = bars(recording, **options)
    return bar


def prices(bar: dict[str, Any]) -> tuple[float | None, ...]:
    return tuple(bar[name] for name in ("open", "high", "low", "close"))


# What a bar is


def test_a_bar(recording: Recording) -> None:
    bar = one_bar(recording, (10.0, 100.0, "1"), (12.0, 50.0, None), (9.0, 50.0, ""), (11.0, 200.0, "1,8"))
    assert prices(bar) == (10.0, 12.0, 9.0, 11.0)
    assert (bar["volume"], bar["trades"]) == (400.0, 4)
    assert bar["vwap"] == (1000 + 600 + 450 + 2200) / 400
    assert bar["start"] == datetime(2026, 11, 20, 14, 31, tzinfo=UTC)
    assert list(bar) == [
        "symbol", "start", "open", "high", "low", "close", "volume", "trades", "vwap", "coverage",
    ]  # fmt: skip


def test_a_bar_has_its_start_and_not_its_end(recording: Recording) -> None:
    recording.write(
        Print(at("14:31:00.000"), "AAPL", 1, 100),
        Print(at("14:31:59.999"), "AAPL", 2, 100),
        Print(at("14:32:00.000"), "AAPL", 3, 100),
    )
    assert [(bar["open"], bar["close"]) for bar in bars(recording)] == [(1, 2), (3, 3)]


def test_open_and_close_are_by_time_then_arrival(recording: Recording) -> None:
    recording.write(
        Print(at("14:31:02"), "AAPL", 3, 100),
        Print(at("14:31:01"), "AAPL", 1, 100),
        Print(at("14:31:01"), "AAPL", 2, 100),
    )
    recording.seal()
    recording.write(Print(at("14:31:02"), "AAPL", 4, 100))
    assert [(bar["open"], bar["close"]) for bar in bars(recording)] == [(1, 4)]


def test_bars_that_begin_in_the_span_come_whole(recording: Recording) -> None:
    recording.write(*(Print(at(f"14:{minute}:30"), "AAPL", minute, 100) for minute in range(30, 40)))
    found = bars(recording, "5m", start=at("14:31"), end=at("14:36"))
    assert [(bar["start"].minute, bar["trades"]) for bar in found] == [(35, 5)]


def test_a_day_in_new_york_goes_over_midnight_in_utc(recording: Recording) -> None:
    recording.write(Print(at("23:59"), "AAPL", 1, 100, "1"), Print("2026-11-21T00:30", "AAPL", 2, 100, "1"))
    recording.seal()
    recording.write(Print("2026-11-21T05:30", "AAPL", 3, 100, "1"))
    found = bars(recording, "1d", tz="America/New_York")
    assert [(str(bar["session_date"]), bar["open"], bar["close"]) for bar in found] == [
        ("2026-11-20", 1, 2),
        ("2026-11-21", 3, 3),
    ]
    assert [bar["start"].hour for bar in found] == [0, 0]


@pytest.mark.parametrize(("session", "seen"), [("all", [1, 2, 3, 4]), ("extended", [2, 3]), ("regular", [3])])
def test_sessions(recording: Recording, session: str, seen: list[float]) -> None:
    recording.write(
        Print(at("08:59"), "AAPL", 1, 100), Print(at("09:01"), "AAPL", 2, 100), Print(at("15:00"), "AAPL", 3, 100),
        Print("2026-11-21T15:00", "AAPL", 4, 100),
    )  # fmt: skip
    assert [bar["open"] for bar in bars(recording, session=session)] == seen


@pytest.mark.filterwarnings("ignore:.*is not recorded")
def test_without_trades_there_is_no_bar(recording: Recording) -> None:
    assert bars(recording) == []
    recording.write(Print(at("14:31"), "AAPL", 1, 100))
    assert bars(recording, symbols=["NOPE"]) == []
    empty = ingestor.read_bars(recording.layout.root, "1m", ["NOPE"], tz="America/New_York")
    assert list(empty.columns) == list(ingestor.read_bars(recording.layout.root, "1m", tz="America/New_York").columns)
    assert empty["symbol"].dtype == "category"


# Which prints move what


def test_odd_lots_alone_have_a_volume_and_no_price(recording: Recording) -> None:
    bar = one_bar(recording, (10.0, 5.0, "1,12"), (11.0, 7.0, "12"))
    assert prices(bar) == (None, None, None, None)
    assert (bar["volume"], bar["trades"], bar["vwap"]) == (12.0, 2, (50 + 77) / 12)


def test_every_print_moves_everything_where_asked_for(recording: Recording) -> None:
    bar = one_bar(recording, (10.0, 5.0, "1,12"), (11.0, 7.0, "16"), conditions="all")
    assert prices(bar) == (10, 11, 10, 11)
    assert (bar["volume"], bar["trades"]) == (12.0, 2)


def test_sold_last_is_the_last_resort_of_open_and_close(recording: Recording) -> None:
    assert prices(one_bar(recording, (9.0, 100.0, "15"), (10.0, 100.0, "1"), (11.0, 100.0, "15"))) == (10, 11, 9, 10)


def test_a_bar_of_sold_last_alone_has_their_prices(recording: Recording) -> None:
    assert prices(one_bar(recording, (9.0, 100.0, "15"), (11.0, 100.0, "30"), (50.0, 100.0, "12"))) == (9, 11, 9, 11)


def test_the_official_close_moves_neither_price_nor_volume(recording: Recording) -> None:
    bar = one_bar(recording, (10.0, 100.0, "1"), (99.0, 1e6, "16"))
    assert prices(bar) == (10, 10, 10, 10)
    assert (bar["volume"], bar["trades"], bar["vwap"]) == (100.0, 1, 10.0)


def test_a_price_update_moves_the_price_alone(recording: Recording) -> None:
    bar = one_bar(recording, (10.0, 100.0, "1"), (12.0, 0.0, "1"))
    assert prices(bar) == (10, 12, 10, 12)
    assert (bar["volume"], bar["trades"], bar["vwap"]) == (100.0, 1, 10.0)


def test_price_updates_alone_as_in_currencies(recording: Recording) -> None:
    recording.write(Print(at("14:31"), "OANDA:EUR_USD", 1.1, 0), Print(at("14:31:01"), "OANDA:EUR_USD", 1.2, 0))
    (bar,) = bars(recording)
    assert prices(bar) == (1.1, 1.2, 1.1, 1.2)
    assert (bar["volume"], bar["trades"], bar["vwap"]) == (0.0, 0, None)


def test_an_unknown_volume_is_a_trade_of_unknown_volume(recording: Recording) -> None:
    bar = one_bar(recording, (10.0, None, None), (12.0, None, None))
    assert (bar["volume"], bar["trades"], bar["vwap"]) == (None, 2, None)


def test_form_t_moves_bars_outside_regular_hours_but_not_of_days(recording: Recording) -> None:
    recording.write(Print(at("12:00"), "AAPL", 5, 100, "1,24"), Print(at("15:00"), "AAPL", 6, 100, "1,24"))
    assert [bar["open"] for bar in bars(recording)] == [5, None]
    (day,) = bars(recording, "1d")
    assert (day["open"], day["volume"]) == (None, 200.0)


def test_the_corrected_close_moves_days_alone(recording: Recording) -> None:
    recording.write(Print(at("15:00"), "AAPL", 6, 100, "39"))
    assert [(bar["open"], bar["volume"]) for bar in bars(recording)] == [(None, 0.0)]
    assert [(bar["open"], bar["volume"]) for bar in bars(recording, "1d")] == [(6, 0.0)]


def test_the_rules_are_for_us_stocks(recording: Recording) -> None:
    recording.write(Print(at("14:31"), "BINANCE:BTCUSDT", 5, 1, "12"), Print(at("14:31"), "AAPL", 5, 1, "12"))
    assert [(bar["symbol"], bar["open"]) for bar in bars(recording)] == [("AAPL", None), ("BINANCE:BTCUSDT", 5)]


def test_repeated_frames_count_unless_they_are_dropped(recording: Recording) -> None:
    recording.write(Print(at("14:31"), "AAPL", 5, 1), Print(at("14:31"), "AAPL", 5, 1, repeated=True))
    assert [bar["volume"] for bar in bars(recording)] == [2]
    assert [bar["volume"] for bar in bars(recording, repeats="drop")] == [1]


# Coverage


def test_coverage_is_the_share_that_was_proven(recording: Recording) -> None:
    recording.prove(["AAPL"], at("14:30:30"))
    recording.fact("gap.opened", at("14:32:15"), gap="g", cause="connection", since=us(at("14:32:15")), symbol=None)
    recording.fact("gap.closed", at("14:32:45"), gap="g", cause="connection", until=us(at("14:32:45")), symbol=None)
    recording.fact("gap.opened", at("14:35:00"), gap="h", cause="shutdown", since=us(at("14:35:00")), symbol=None)
    recording.write(*(Print(at(f"14:{minute}:01"), "AAPL", 1, 100) for minute in range(29, 37)))
    assert [bar["coverage"] for bar in bars(recording)] == pytest.approx([0, 0.5, 1, 0.5, 1, 1, 0, 0], abs=1e-6)


def test_a_delayed_feed_is_judged_by_the_time_of_its_trades(recording: Recording) -> None:
    """It is 15 minutes late, and blind from 14:45 to 14:50 by receipt: what happened from 14:30 to 14:35 was lost."""
    recording.prove(["AAPL"], at("14:30"))
    heard = [minute for minute in range(15, 50) if not 29 < minute < 35]
    recording.write(*(Print(at(f"14:{minute}:10"), "AAPL", 7, 100, delay_s=900) for minute in heard))
    recording.fact("gap.opened", at("14:50"), gap="g", cause="connection", since=us(at("14:45")), symbol=None)
    recording.fact("gap.closed", at("14:50"), gap="g", cause="connection", until=us(at("14:50")), symbol=None)
    recording.fact("connection.closed", at("15:05"), connection=1, frames=1)
    found = {bar["start"].minute: bar for bar in bars(recording, fill=True)}
    assert not found.keys() & set(range(30, 35)), "lost, and neither whole nor quiet"
    assert all(found[minute]["coverage"] == pytest.approx(1, abs=1e-6) for minute in heard if minute < 49)
    quiet = bars(recording, fill=True, start=at("14:31"), end=at("14:34"))
    assert quiet == [], "also where nothing else is looked at"


def test_a_clock_that_is_behind_claims_nothing_of_the_time_that_it_shows(recording: Recording) -> None:
    """By ten minutes: what happened at 14:40 was stamped 14:30, and of 14:30 nothing is known."""
    recording.prove(["AAPL"], at("14:30"))
    recording.write(*(Print(at(f"14:{minute}:10"), "AAPL", 7, 100, delay_s=-600) for minute in range(40, 46)))
    recording.fact("connection.closed", at("14:36"), connection=1, frames=1)
    found = bars(recording, fill=True)
    assert [bar["start"].minute for bar in found] == list(range(40, 46))
    assert [bar["coverage"] for bar in found[:5]] == [1] * 5


@pytest.mark.parametrize(
    ("conditions", "when", "close"),
    [
        ("36", "16:00:04", 167.42),
        ("35", "16:00:04", 167.42),
        ("36", "16:20:00", 167.4),  # long after the close
        ("24", "16:00:04", 167.4),
        ("36,24", "16:00:04", 167.4),  # form T never sets a daily price
        ("16", "16:00:04", 167.4),  # the official close repeats a price
        (None, "16:00:04", 167.4),
    ],
)
def test_the_closing_auction_belongs_to_the_regular_day(
    recording: Recording, conditions: str | None, when: str, close: float
) -> None:
    """SPY on 7 October 2013 closed at 167.42."""
    day = datetime(2013, 10, 7, tzinfo=ZoneInfo("America/New_York"))
    last, auction = (day.combine(day, time.fromisoformat(text), day.tzinfo) for text in ("15:59:59", when))
    recording.write(Print(last, "SPY", 167.4, 100), Print(auction, "SPY", 167.42, 1000, conditions))
    (bar,) = bars(recording, "1d", tz="America/New_York", session="regular")
    assert bar["close"] == close
    (minute,) = bars(recording, "1m", tz="America/New_York", session="regular")
    assert minute["close"] == 167.4


def test_sessions_heed_holidays_early_closes_and_other_exchanges(recording: Recording) -> None:
    """Thanksgiving 2025, and the Friday after it, which closed at 13:00."""
    times = [f"2025-11-{day}T{hour}:30" for day in (27, 28) for hour in (17, 19, 23)]
    recording.write(*(Print(one, symbol, 1, 100) for one in times for symbol in ("AAPL", "BINANCE:X", "7203.T")))
    found = [(bar["symbol"], bar["trades"]) for bar in bars(recording, "1d", session="regular")]
    assert found == [("7203.T", 3), ("7203.T", 3), ("AAPL", 1), ("BINANCE:X", 3), ("BINANCE:X", 3)]
    extended = [bar["trades"] for bar in bars(recording, "1d", symbols=["AAPL"], session="extended")]
    assert extended == [2]
    recording.prove(["AAPL"], "2025-11-27T00:00")
    recording.fact("connection.closed", "2025-11-29T00:00", connection=1, frames=1)
    filled = bars(recording, "1h", symbols=["AAPL"], session="regular", fill=True)
    assert {bar["start"].day for bar in filled} == {28}, "a holiday has no bars, though it was recorded"


def test_a_symbol_that_was_not_asked_for_is_covered_by_nothing(recording: Recording) -> None:
    recording.prove(["AAPL"], at("14:30"))
    recording.write(Print(at("14:31"), "MSFT", 1, 100))
    assert [bar["coverage"] for bar in bars(recording)] == [0]


def test_filled_are_quiet_bars_and_never_blind_ones(recording: Recording) -> None:
    recording.prove(["AAPL"], at("14:30:30"))
    recording.write(Print(at("14:31:10"), "AAPL", 7, 100), Print(at("14:35:10"), "AAPL", 8, 5, "12"))
    recording.fact("gap.opened", at("14:33:15"), gap="g", cause="connection", since=us(at("14:33:15")), symbol=None)
    recording.fact("gap.closed", at("14:33:45"), gap="g", cause="connection", until=us(at("14:33:45")), symbol=None)
    recording.fact("connection.closed", at("14:38:00"), connection=1, frames=1)
    found = bars(recording, fill=True)
    assert [(bar["start"].minute, bar["close"], bar["volume"], bar["trades"]) for bar in found] == [
        (31, 7, 100, 1),
        (32, 7, 0, 0),
        (34, 7, 0, 0),
        (35, None, 5, 1),
        (36, 7, 0, 0),
        (37, 7, 0, 0),
    ]
    assert [bar["coverage"] for bar in found] == [1] * 6


def test_filled_within_session_and_span(recording: Recording) -> None:
    recording.prove(["AAPL"], at("14:00"))
    recording.write(Print(at("14:20"), "AAPL", 7, 100), Print(at("14:45"), "AAPL", 8, 100))
    recording.fact("connection.closed", at("15:00"), connection=1, frames=1)
    found = bars(recording, "5m", fill=True, session="regular", end=at("14:50"))
    assert [(bar["start"].minute, bar["close"]) for bar in found] == [(30, None), (35, None), (40, None), (45, 8)]


def us(text: str) -> int:
    return round(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1e6)


# Arguments


@pytest.mark.parametrize(
    "options",
    [
        {"interval": "7m"},
        {"session": "night"},
        {"conditions": "some"},
        {"repeats": "few"},
        {"engine": "polars"},
        {"tz": "New York"},
        {"start": "tomorrow"},
    ],
)
def test_an_argument_that_cannot_be_used(recording: Recording, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options.values()))):
        ingestor.read_bars(recording.layout.root, **options)


# Against SQL

SQL = """
WITH prints AS (
  SELECT *, string_split(coalesce(conditions, ''), ',') AS codes,
    "timestamp" AT TIME ZONE 'America/New_York' AS local,
    contains(symbol, ':') AS abroad
  FROM read_parquet('{files}')
), judged AS (
  SELECT *, local::TIME >= TIME '09:30' AND local::TIME < TIME '16:00' AND isodow(local) <= 5 AS regular
  FROM prints
), eligible AS (
  SELECT *,
    abroad OR (NOT list_has_any(codes, {never_price})
      AND NOT ((regular OR {daily}) AND list_contains(codes, '24'))
      AND ({daily} OR NOT list_contains(codes, '39'))) AS high_low,
    abroad OR NOT list_has_any(codes, {if_nothing_else}) AS unconditional,
    abroad OR NOT list_has_any(codes, {never_volume}) AS counts,
    {bucket} AS bar
  FROM judged
)
SELECT symbol, bar,
  coalesce(arg_min(price, (epoch_ms("timestamp"), sequence)) FILTER (high_low AND unconditional),
           arg_min(price, (epoch_ms("timestamp"), sequence)) FILTER (high_low)) AS open,
  max(price) FILTER (high_low) AS high,
  min(price) FILTER (high_low) AS low,
  coalesce(arg_max(price, (epoch_ms("timestamp"), sequence)) FILTER (high_low AND unconditional),
           arg_max(price, (epoch_ms("timestamp"), sequence)) FILTER (high_low)) AS close,
  coalesce(fsum(volume) FILTER (counts), 0) AS volume,
  count(*) FILTER (counts AND volume <> 0) AS trades,
  fsum(price * volume) FILTER (counts) / nullif(fsum(volume) FILTER (counts), 0) AS vwap
FROM eligible GROUP BY symbol, bar ORDER BY symbol, bar
"""


def write_every_condition(recording: Recording, first: datetime, hours: int) -> None:
    """Prints of two stocks and a coin, around the clock, with every code alone and in pairs."""
    chance = random.Random(7)
    codes = [None, "", *map(str, range(1, 42)), *(f"{a},{b}" for a in (1, 12, 24, 39, 15) for b in range(2, 42))]
    for _ in range(hours):
        count = 1500
        times = [first + timedelta(milliseconds=chance.randrange(3_600_000)) for _ in range(count)]
        symbols = [chance.choice(["AAPL", "BRK.B", "BINANCE:BTCUSDT"]) for _ in range(count)]
        received = first + timedelta(hours=2)
        columns = {
            "timestamp": times,
            "symbol": symbols,
            "price": [round(chance.uniform(90, 110), 4) for _ in range(count)],
            "volume": [float(chance.choice([0, 1, 7, 100, 300])) for _ in range(count)],
            "conditions": [None if ":" in symbol else chance.choice(codes) for symbol in symbols],
            "received_at": [received] * count,
            "sequence": list(range(recording.sequence, recording.sequence + count)),
            "repeated": [False] * count,
        }
        recording.append(pa.RecordBatch.from_pydict(columns, schema=TRADES))
        recording.end_segment()
        first += timedelta(hours=1)
    recording.seal()


@pytest.fixture(scope="module", params=of_tier(["2026-03-07T20:00", "2026-10-31T20:00"], ["2026-10-31T20:00"]))
def around_the_change(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """Two days around the night on which New York sets its clocks."""
    recording = Recording(tmp_path_factory.mktemp("bars"), started="2026-01-01")
    write_every_condition(recording, datetime.fromisoformat(request.param).replace(tzinfo=UTC), 48)
    return recording


BUCKETS = {
    "1m": 'time_bucket(INTERVAL 1 minute, "timestamp")',
    "1h": 'time_bucket(INTERVAL 1 hour, "timestamp")',
    "1d": "(date_trunc('day', local) AT TIME ZONE 'America/New_York')",
}


@pytest.mark.parametrize("interval", of_tier(list(BUCKETS), ["1h"]))
def test_bars_are_what_sql_makes_of_the_same_files(around_the_change: Recording, interval: str) -> None:
    root = around_the_change.layout.root
    query = SQL.format(
        files=root / "trades/*/*.parquet",
        bucket=BUCKETS[interval],
        daily="true" if interval == "1d" else "false",
        never_price="['3','5','10','11','12','16','17','20','22','25','26','37']",
        never_volume="['16','20','39']",
        if_nothing_else="['9','15','18','21','30','32']",
    )
    with duckdb.connect() as database:
        database.execute("SET TimeZone = 'UTC'")
        expected = database.sql(query).to_arrow_table()
    found = ingestor.read_bars(root, interval, tz="America/New_York", engine="arrow")
    assert found.num_rows == expected.num_rows > 5
    for mine, theirs in [("symbol", "symbol"), ("open", "open"), ("high", "high"), ("low", "low"), ("close", "close"),
                         ("volume", "volume"), ("trades", "trades")]:  # fmt: skip
        assert found[mine].to_pylist() == expected[theirs].to_pylist(), mine
    assert [time.timestamp() for time in found["start"].to_pylist()] == [
        time.timestamp() for time in expected["bar"].to_pylist()
    ]
    for mine, theirs in zip(found["vwap"].to_pylist(), expected["vwap"].to_pylist(), strict=True):
        assert mine == (None if theirs is None else pytest.approx(theirs, rel=1e-12))
    assert interval != "1m" or found["open"].null_count > 0
