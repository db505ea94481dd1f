"""How commands print: a table, JSON, and each kind of value in one way."""

from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from click.testing import CliRunner
from recordings import Print, Recording, make_sample
from requirements import of_tier

import ingestor.cli
from ingestor.cli.main import cli
from ingestor.cli.printing import (
    fit_table,
    format_address,
    format_bytes,
    format_json,
    format_number,
    format_seconds,
    format_table,
    format_time,
    format_trade,
    percent,
    to_milliseconds,
)

NOON = datetime(2026, 11, 20, 12, 0, 0, 123456, tzinfo=UTC)
NEW_YORK = ZoneInfo("America/New_York")


def test_a_table_is_aligned() -> None:
    rows = [("AAPL", 12345, None), ("BINANCE:BTCUSDT", 7, "x")]
    assert format_table(("symbol", "trades", "note"), rows).splitlines() == [
        "symbol           trades  note",
        "AAPL             12,345",
        "BINANCE:BTCUSDT       7  x",
    ]
    assert format_table(("symbol", "trades"), []) == "symbol  trades"


def test_numbers_of_every_kind_stand_on_the_right() -> None:
    rows = [(1.5, Decimal("100.00"), True), (None, Decimal("7.25"), False)]
    assert format_table(("price", "blind %", "x"), rows).splitlines() == [
        "price  blind %  x",
        "  1.5   100.00  True",
        "          7.25  False",
    ]


def test_json_says_times_and_paths_as_text() -> None:
    value = {"at": datetime(2026, 11, 20, tzinfo=UTC), "root": Path("data"), "symbol": "ΑΒΓ"}
    expected = '{"at": "2026-11-20T00:00:00Z", "root": "data", "symbol": "ΑΒΓ"}'
    assert format_json(value, indent=None) == expected


def test_a_time_names_its_zone() -> None:
    assert format_time(NOON) == "2026-11-20T12:00:00.123Z"
    assert format_time(NOON, NEW_YORK, "seconds") == "2026-11-20T07:00:00-05:00"
    assert format_time(NOON.astimezone(NEW_YORK)) == "2026-11-20T07:00:00.123-05:00"


def test_the_times_of_a_trade_have_the_digits_of_their_columns() -> None:
    trade = {"timestamp": NOON.replace(microsecond=0), "received_at": NOON.replace(microsecond=0), "price": 1.5}
    assert format_trade(trade, UTC) == {
        "timestamp": "2026-11-20T12:00:00.000Z",
        "received_at": "2026-11-20T12:00:00.000000Z",
        "price": 1.5,
    }


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (97000.18, "97,000.18"),
        (1.23e-06, "0.00000123"),
        (3987.0, "3,987"),
        (0.0, "0"),
        (1e22, "10,000,000,000,000,000,000,000"),
        (float("inf"), "inf"),
    ],
)
def test_a_number_has_all_of_its_digits_and_no_exponent(value: float, text: str) -> None:
    assert format_number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ms"),
        (0.25, "250 ms"),
        (0.9996, "1.0 s"),
        (9.94, "9.9 s"),
        (45, "45 s"),
        (119, "119 s"),
        (120, "2.0 min"),
        (7199, "120 min"),
        (9000, "2.5 h"),
        (15 * 86_400, "15 d"),
    ],
)
def test_what_lasts_has_one_unit(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KB"), (3 << 20, "3.0 MB"), (3e10, "27.9 GB")]
)
def test_a_size_has_one_unit(size: float, text: str) -> None:
    assert format_bytes(size) == text


def test_a_share_is_cut_so_that_a_hundred_means_all() -> None:
    assert [str(percent(share)) for share in (1.0, 0.99999, 0.46832, 0.0, None)] == [
        "100.00", "99.99", "46.83", "0.00", "None",
    ]  # fmt: skip


def test_seconds_of_a_table_are_told_to_the_millisecond() -> None:
    assert [str(to_milliseconds(seconds)) for seconds in (4.24851, 0.0, 86_400.0)] == ["4.249", "0.000", "86400.000"]


def test_the_line_of_a_command_that_listens() -> None:
    assert format_address("http://127.0.0.1:1", as_json=False) == "listening on http://127.0.0.1:1"
    assert format_address("http://127.0.0.1:1", as_json=True) == '{"url": "http://127.0.0.1:1"}'


# What fits


def test_columns_are_left_out_until_a_table_fits_the_least_missed_first() -> None:
    columns, rows = ("symbol", "open", "high", "n"), [("AAPL", "x" * 30, "y" * 30, 1), ("MSFT", "x", "y", 2)]
    whole = format_table(columns, rows)
    assert fit_table(columns, rows, ("open", "high"), None) == (whole, [])
    assert fit_table(columns, rows, ("open", "high"), len(whole.splitlines()[1])) == (whole, [])
    text, left_out = fit_table(columns, rows, ("open", "high", "n"), 60)
    assert left_out == ["open"]
    assert max(map(len, text.splitlines())) <= 60
    assert fit_table(columns, rows, ("open", "high", "n"), 5)[1] == ["open", "high", "n"]


def test_texts_that_are_too_long_are_cut_and_neither_numbers_nor_times() -> None:
    columns = ("symbol", "at", "price")
    rows = [("0x" + "ab" * 40 + "cd", "2026-11-20T14:30:00.123Z", 97_000.18), ("A", "2026-11-20T14:30:00.124Z", 1)]
    text, left_out = fit_table(columns, rows, (), 60)
    assert left_out == ["symbol in full"]
    assert max(map(len, text.splitlines())) == 60
    assert {"2026-11-20T14:30:00.123Z", "97,000.18"} <= set(text.split())


def test_commands_print_tables_in_no_other_way() -> None:
    folder = Path(ingestor.cli.__file__).parent
    assert [path.name for path in folder.glob("*.py") if "format_table" in path.read_text()] == ["printing.py"]


def test_symbols_of_any_length_fit(tmp_path: Path) -> None:
    recording = Recording(tmp_path, [long := "POLYMARKET:" + "7" * 100])
    recording.prove([long], "2026-01-01T00:00")
    recording.write(Print("2026-01-01T10:00", long, 0.5, 123_456_789.25, "1,12"))
    for command in ("head", "bars 1h", "describe", "coverage"):
        done = CliRunner().invoke(cli, [*command.split(), "--root", str(tmp_path)])
        assert done.exit_code == 0, done.output
        assert max(map(len, done.stdout.splitlines())) <= 80
        assert "symbol in full" in done.stderr


@pytest.mark.parametrize("command", of_tier(["head", "bars 1h", "describe", "coverage"], ["describe"]))
def test_every_table_fits_eighty_columns_and_more_with_wide(command: str, tmp_path: Path) -> None:
    make_sample(tmp_path)
    narrow, wide = (
        CliRunner().invoke(cli, [*command.split(), "--root", str(tmp_path), *more]) for more in ([], ["--wide"])
    )
    assert (narrow.exit_code, wide.exit_code, wide.stderr) == (0, 0, "")
    assert max(map(len, narrow.stdout.splitlines())) <= 80
    assert max(map(len, narrow.stderr.splitlines()), default=0) <= 80
    heading = wide.stdout.splitlines()[0]
    assert set(narrow.stdout.splitlines()[0].split()) <= set(heading.split())
    assert narrow.stderr.startswith("more with --wide: ") is (len(heading) > 80 or command != "head")
