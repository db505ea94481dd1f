"""Trades of files that somebody has: all of them come in, once, and coverage says that nobody heard them."""

import gzip
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import test_id_watch as id_runs
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from recordings import Print, Recording, to_us
from requirements import of_tier
from structlog.testing import capture_logs

import ingestor
from ingestor.backfill.fill import find_holes
from ingestor.cli.main import cli
from ingestor.closed_days import close_days
from ingestor.coverage import Interval, join_best, join_intervals, state_at
from ingestor.dataset.compact import compact_days
from ingestor.dataset.coverage import load_coverage
from ingestor.dataset.merged import find_missing
from ingestor.dataset.verify import Verification
from ingestor.errors import ConfigError, DamagedFile, IngestorError
from ingestor.layout import Layout, locked_root
from ingestor.ledger import read_all_facts

ROWS = "timestamp,symbol,price,volume\n"
AT = datetime(2024, 3, 4, 14, 30, 0, 123_000, UTC)


def call(*arguments: object) -> Result:
    done = CliRunner().invoke(cli, ["import", *map(str, arguments)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def take(root: Path, *arguments: object) -> list[dict[str, Any]]:
    """Of each file how many rows became what."""
    done = call(*arguments, "--root", root, "--json")
    assert done.exit_code == 0, done.output
    files: list[dict[str, Any]] = json.loads(done.stdout)["files"]
    for one in files:
        assert one["rows"] == one["imported"] + one["there"] + one["recorded"] + one["bad"]
    return files


def verify(root: Path) -> Verification:
    verification = Verification(Layout(root))
    assert [str(one) for step in verification.run() for one in step] == []
    return verification


def states(root: Path, symbol: str = "A") -> list[tuple[str, str | None]]:
    return [(one.state, one.source or one.cause) for one in load_coverage(Layout(root)).intervals(symbol)]


def files_of(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


# What files say


TIMES: dict[str, tuple[list[Any] | pa.Array, tuple[str, ...]]] = {
    "text with a zone": (["2024-03-04T14:30:00.123Z"], ()),
    "text with an offset": (["2024-03-04 09:30:00.123-05:00"], ()),
    "text without a zone": (["2024-03-04 09:30:00.123456789"], ("--time-zone", "America/New_York")),
    "text with blanks": ([" 2024-03-04T14:30:00.123Z "], ()),
    "numbers as text": (["1709562600123"], ("--time-unit", "ms")),
    "seconds with a fraction": (["1709562600.123"], ("--time-unit", "s")),
    "ms": ([1709562600123], ("--time-unit", "ms")),
    "µs": ([1709562600123999], ("--time-unit", "us")),
    "ns": ([1709562600123999999], ("--time-unit", "ns")),
    "float": ([1709562600.123], ("--time-unit", "s")),
    "timestamps in UTC": (pa.array([1709562600123456789], pa.timestamp("ns", "UTC")), ()),
    "timestamps without a zone": (
        pa.array([1709562600123 - 5 * 3_600_000], pa.timestamp("ms")),
        ("--time-zone", "America/New_York"),
    ),
}


@pytest.mark.parametrize("kind", TIMES)
def test_each_kind_of_time_is_read(kind: str, tmp_path: Path) -> None:
    times, options = TIMES[kind]
    table = pa.table({"timestamp": times, "symbol": ["A"], "price": [1.5], "volume": [2.0]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert take(tmp_path / "data", tmp_path / "a.parquet", *options)[0]["imported"] == 1
    assert ingestor.read_trades(tmp_path / "data", engine="arrow")["timestamp"].to_pylist() == [AT]
    if "stamps" not in kind:
        (tmp_path / "b.csv").write_text(f"{ROWS}{times[0]},A,1.5,2\n")
        assert take(tmp_path / "data", tmp_path / "b.csv", *options)[0]["there"] == 1


def test_columns_are_named_and_kinds_converted(tmp_path: Path) -> None:
    table = pa.table(
        {
            "px": pa.array(["1.25", "2.5"]),
            "ts": [1, 2],
            "sym": pa.array([b"A", b"\xc3\x84"]).dictionary_encode(),
            "size": pa.array([None, 7], pa.int32()),
            "other": [None, None],
        }
    )
    table = table.set_column(1, "ts", pa.array([1709562600123, 1709562600124], pa.uint64()))
    pq.write_table(table, tmp_path / "a.parquet")
    named = "price=px,timestamp=ts,symbol=sym,volume=size"
    take(tmp_path / "data", tmp_path / "a.parquet", "--columns", named, "--time-unit", "ms")
    rows = ingestor.read_trades(tmp_path / "data", engine="arrow").to_pylist()
    assert [(one["symbol"], one["price"], one["volume"]) for one in rows] == [("A", 1.25, None), ("Ä", 2.5, 7.0)]
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(b"1709562600123;3.5\n"))
    options = ("--no-header", "--delimiter", ";", "--columns", "timestamp=f0,price=f1", "--symbol", "B")
    take(tmp_path / "data", tmp_path / "b.csv.gz", *options, "--time-unit", "ms")
    assert ingestor.read_trades(tmp_path / "data", "B", engine="arrow")["price"].to_pylist() == [3.5]
    verify(tmp_path / "data")


REFUSED: dict[str, tuple[str, bytes, tuple[str, ...], type[Exception], str]] = {
    "a column that is not there": (
        "a.csv",
        b"timestamp,symbol,px\n",
        (),
        ConfigError,
        "no column 'price'.*it has times",
    ),
    "no symbol": ("a.csv", b"timestamp,price\n", (), ConfigError, "or --symbol the symbol"),
    "two columns of a name": ("a.csv", b"timestamp,price,symbol,price\n", (), ConfigError, "2 columns 'price'"),
    "numbers without a unit": ("a.csv", b"timestamp,symbol,price\n1709562600,A,1\n", (), ConfigError, "--time-unit"),
    "times without a zone": (
        "a.csv",
        b"timestamp,symbol,price\n2024-03-04 09:30,A,1\n",
        (),
        ConfigError,
        "--time-zone",
    ),
    "another kind of file": ("a.xlsx", b"PK", (), ConfigError, "neither .csv"),
    "no Parquet": ("a.parquet", b"PAR1" * 9, (), DamagedFile, "a.parquet: can't be read"),
    "no gzip": ("a.csv.gz", b"timestamp,symbol,price\n", (), DamagedFile, "a.csv.gz: can't be read"),
    "nothing": ("a.csv", b"", (), DamagedFile, "a.csv: can't be read"),
    "UTF-16": ("a.csv", "timestamp,symbol,price\n".encode("utf-16"), (), IngestorError, "a.csv"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_refused_with_a_sentence(case: str, tmp_path: Path) -> None:
    name, content, options, kind, sentence = REFUSED[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(kind, match=sentence):
        call(tmp_path / name, "--root", tmp_path / "data", *options)
    assert not (tmp_path / "data" / "trades").exists()


def test_options_that_cannot_be_meant_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(ROWS)
    for options, sentence in (
        (("--columns", "cost=px"), "NAME is one of timestamp, symbol, price"),
        (("--columns", "symbol=s", "--symbol", "A"), "give one of them"),
        (("--time-zone", "Mars/Olympus"), "no time zone"),
        (("--delimiter", "ab"), "one ASCII character"),
    ):
        done = call(tmp_path / "a.csv", "--root", tmp_path / "data", *options)
        assert (done.exit_code, sentence in done.stderr) == (2, True), done.stderr
    with pytest.raises(ConfigError, match="only read"):
        call(tmp_path / "a.csv", "--root", f"file://{tmp_path}")
    with pytest.raises(ConfigError, match=r"b\.csv: no such file"):
        call(tmp_path / "a.csv", tmp_path / "b.csv", "--root", tmp_path / "data")
    assert not (tmp_path / "data").exists()
    call(tmp_path / "a.csv", "--root", tmp_path / "data")
    with locked_root(Layout(tmp_path / "data")), pytest.raises(ConfigError, match=r"stop that one.*--dry-run"):
        call(tmp_path / "a.csv", "--root", tmp_path / "data")


BAD = (
    ROWS
    + """2024-03-04T14:30:00Z,A,1,1
2024-13-04T14:30:00Z,A,1,1

2024-03-04T14:30:02Z,A,-1,1
2024-03-04T14:30:03Z,A,1
2024-03-04T14:30:04Z,,1,1
2024-03-04T14:30:05Z,A,nan,1
2024-03-04T14:30:06Z,A,1,many
1970-01-01T00:00:00Z,A,1,1
2024-03-04T14:30:07Z,A,2,
"""
)


def test_bad_rows_are_named_and_nothing_of_their_file_is_imported(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(BAD)
    with pytest.raises(IngestorError, match="7 of 9 rows can't be imported") as refused:
        call(tmp_path / "a.csv", "--root", tmp_path / "data")
    told = str(refused.value).splitlines()[1:]
    assert [one.partition("a.csv, ")[2] for one in told] == [
        "row 2: bad_time (2024-13-04T14:30:00Z)",
        "row 3: bad_price (-1)",
        "row 4: bad_row (3 values, not 4)",
        "row 5: bad_symbol (nothing)",
        "row 6: bad_price (nan)",
        "row 7: bad_volume (many)",
        "row 8: bad_time (1970-01-01T00:00:00Z)",
    ]
    assert not (tmp_path / "data" / "trades").exists()
    [told_of] = take(tmp_path / "data", tmp_path / "a.csv", "--skip-bad")
    assert (told_of["rows"], told_of["imported"], told_of["bad"], len(told_of["faults"])) == (9, 2, 7, 7)
    assert verify(tmp_path / "data").account.imported == 2


def test_what_was_imported_before_a_file_that_is_refused_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"{ROWS}2024-03-04T14:30:00Z,A,1,1\n")
    (tmp_path / "b.csv").write_text(BAD)
    for more in ((), ("--json",)):
        files = str(tmp_path / "a.csv"), str(tmp_path / "b.csv")
        named = ["import", *files, "--root", str(tmp_path / "data"), "--wide", *more]
        done = CliRunner().invoke(cli, named)
        assert isinstance(done.exception, IngestorError)
        assert done.stderr == ""  # the error says which rows
    told = json.loads(done.stdout)["files"]
    assert [(one["imported"], one["there"], one["bad"], len(one["faults"])) for one in told] == [
        (0, 1, 0, 0),
        (0, 0, 7, 7),
    ]


def test_an_hour_that_a_zone_has_twice_is_bad(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"{ROWS}2024-11-03 01:30:00,A,1,1\n2024-11-03 02:30:00,A,1,1\n")
    [told] = take(tmp_path / "data", tmp_path / "a.csv", "--time-zone", "America/New_York", "--skip-bad")
    assert [(one["row"], one["reason"]) for one in told["faults"]] == [(1, "bad_time")]


def test_what_a_file_says_is_shown_escaped(tmp_path: Path) -> None:
    hostile = tmp_path / "a\x1b[31m.csv"
    hostile.write_text(f"{ROWS}\x1b[2J,A,1,1\n2024-03-04T14:30:00Z,A,1,1\n")
    done = call(hostile, "--root", tmp_path / "data", "--skip-bad")
    assert "\x1b" not in done.output
    assert "bad_time" in done.stderr
    assert "\x1b" not in CliRunner().invoke(cli, ["head", "--root", str(tmp_path / "data"), "--wide"]).output


def test_the_commands_of_the_docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guide = (Path(__file__).parents[1] / "docs" / "repair.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    Path("aapl-2025.csv").write_text("ts,px,size\n1709562600123,1.5,2\n")
    table = pa.table({"timestamp": ["2025-03-04 09:30"], "symbol": ["MSFT"], "price": [1.5]})
    pq.write_table(table, "2025-03-04.parquet")
    shown = re.findall(r"^ingestor import (.*?)(?:  #.*)?$", guide, re.MULTILINE)
    assert len(shown) == 2
    for line in shown:
        arguments = [part.replace("*", "03-04") for part in line.split()]
        [told] = json.loads(call(*arguments, "--json").stdout)["files"]
        assert (told["rows"], told["imported"]) == (1, 1)
    assert ingestor.read_trades("data", engine="arrow")["symbol"].to_pylist() == ["AAPL"]  # the other was a dry run


# What the recording says of it


def write_csv(path: Path, prints: list[Print]) -> Path:
    lines = [f"{to_us(one.at) // 1000},{one.symbol},{one.price},{'' if one.volume is None else one.volume}\n"
             for one in prints]  # fmt: skip
    path.write_text(ROWS + "".join(lines))
    return path


PRINTS = [Print(f"2026-11-18T12:{n // 30:02d}:{n % 30 * 2:02d}", "A", 100 + n % 3, 5) for n in range(300)]
GAP = ("12:04:00", "12:06:00")


def record(root: Path) -> Path:
    """A recorder of A from 12:00 to 12:10, blind from 12:04 to 12:06."""
    recording = Recording(root, ["A"], started="2026-11-18T12:00:00")
    recording.prove(["A"], "2026-11-18T12:00:00")
    start, end = (f"2026-11-18T{at}" for at in GAP)
    recording.fact("gap.opened", start, gap="g", cause="connection", since=to_us(start), symbol=None)
    recording.fact("gap.closed", end, gap="g", cause="connection", until=to_us(end), symbol=None)
    recording.write(*(one for one in PRINTS if not GAP[0] <= str(one.at)[11:19] < GAP[1]))
    recording.stop("2026-11-18T12:10:00")
    return root


def test_in_a_recording_only_what_nobody_heard_is_imported(tmp_path: Path) -> None:
    root = record(tmp_path / "data")
    earlier = [one._replace(at=str(one.at).replace("T12", "T10")) for one in PRINTS]
    coarse = [
        one._replace(price=7.0) for one in PRINTS if "12:02" <= str(one.at)[11:16] < "12:03"
    ]  # not the same trades
    file = write_csv(tmp_path / "a.csv", [*earlier, *PRINTS, *coarse])
    [told] = take(root, file, "--time-unit", "ms")
    assert (told["imported"], told["bad"]) == (360, 0)
    assert told["recorded"] + told["there"] == 270
    rows = ingestor.read_trades(root, engine="arrow")
    assert Counter(rows["price"].to_pylist())[7.0] == 0
    assert rows.num_rows == 600
    assert ingestor.read_trades(root, origin="imported", engine="arrow").num_rows == 360
    assert ingestor.read_trades(root, origin="heard", engine="arrow").num_rows == 240
    assert ingestor.read_trades(root, origin="filled", engine="arrow").num_rows == 0
    assert ingestor.read_trades(root, origin="import:a.csv", coverage=True, engine="arrow")[
        "coverage"
    ].unique().to_pylist() == ["imported"]
    assert states(root) == [
        ("imported", "import:a.csv"),
        ("recorded", None),
        ("blind", "connection"),
        ("imported", "import:a.csv"),
        ("blind", "connection"),
        ("recorded", None),
    ]
    account = verify(root).account
    assert (account.imported, account.filled, account.of_them) == (360, 0, " (240 heard + 360 imported)")
    coverage = load_coverage(Layout(root))
    left = [(one.start_us, one.end_us) for one in coverage.gaps]  # before the gap's first trade, and after its last
    assert left == [
        (to_us("2026-11-18T12:04:00") + 1, to_us("2026-11-18T12:04:02")),
        (to_us("2026-11-18T12:05:58.001"), to_us("2026-11-18T12:06:00")),
    ]
    assert [(hole.start_us, hole.end_us) for hole in find_holes(coverage, [], None)] == left
    [described] = ingestor.describe(root, engine="arrow").to_pylist()
    assert described["imported"] > 0.5
    assert described["delay_max_ms"] == 100  # what was imported has no delay
    bars = ingestor.read_bars(root, "1m", engine="arrow").to_pylist()
    assert {one["imported"] for one in bars[:9]} == {1.0}
    assert {one["coverage"] for one in bars[11:13] + bars[17:19]} == {1.0}
    assert all(one["coverage"] + one["imported"] > 0.95 for one in bars[13:17])


def test_a_file_with_the_same_gap_closes_nothing(tmp_path: Path) -> None:
    root = record(tmp_path / "data")
    outside = [one for one in PRINTS if not GAP[0] <= str(one.at)[11:19] < GAP[1]]
    earlier = [one._replace(at=str(one.at).replace("T12", "T10")) for one in outside]
    [told] = take(root, write_csv(tmp_path / "a.csv", [*earlier, *outside]), "--time-unit", "ms")
    assert told["imported"] == 240
    assert [state for state, _ in states(root)] == ["imported", "recorded", "blind", "recorded"]
    some = [one for one in PRINTS if "12:04:30" <= str(one.at)[11:19] < "12:05"]
    take(root, write_csv(tmp_path / "b.csv", [*outside, *some]), "--time-unit", "ms")
    told_of_gap = load_coverage(Layout(root)).intervals("A")[2:5]
    assert [one.state for one in told_of_gap] == ["blind", "imported", "blind"]
    assert (told_of_gap[1].start_us, told_of_gap[1].end_us) == (to_us(some[0].at), to_us(some[-1].at) + 1000)
    before = files_of(root)
    take(root, tmp_path / "b.csv", tmp_path / "a.csv", "--time-unit", "ms")
    assert files_of(root) == before


def test_a_second_import_changes_nothing(tmp_path: Path) -> None:
    root = record(tmp_path / "data")
    file = write_csv(tmp_path / "a.csv", [*PRINTS, *PRINTS[150:152]])
    before = files_of(root)
    [told] = take(root, file, "--time-unit", "ms", "--dry-run")
    assert (told["imported"], files_of(root)) == (62, before)
    assert take(root, file, "--time-unit", "ms")[0]["imported"] == 62
    before = files_of(root)
    [told] = take(root, file, "--time-unit", "ms")
    assert (told["imported"], files_of(root)) == (0, before)
    twice = write_csv(tmp_path / "b.csv", [one for one in PRINTS[125:175] for _ in (0, 1)])
    assert take(root, twice, "--time-unit", "ms")[0]["imported"] == 48  # of each that is there once, the second
    verify(root)


def test_files_are_compared_with_one_another(tmp_path: Path) -> None:
    one, other = (write_csv(tmp_path / f"{name}.csv", PRINTS[n : n + 200]) for n, name in enumerate("ab"))
    told = take(tmp_path / "data", one, other, "--time-unit", "ms")
    assert [(each["imported"], each["there"]) for each in told] == [(200, 0), (1, 199)]
    assert {source for _, source in states(tmp_path / "data")} == {"import:a.csv", "import:b.csv"}
    facts = [fact for fact in read_all_facts(Layout(tmp_path / "data")) if fact["fact"] == "file.imported"]
    assert [fact["rows"] for fact in facts] == [200, 1]


def test_a_recorder_goes_on_in_an_imported_root(tmp_path: Path) -> None:
    symbol = id_runs.SYMBOLS[0]
    write_csv(
        tmp_path / "a.csv",
        [one._replace(symbol=symbol, at=str(one.at).replace("2026-11", "2025-11")) for one in PRINTS],
    )
    take(tmp_path / "data", tmp_path / "a.csv", "--time-unit", "ms")
    with id_runs.running(tmp_path / "data") as run:
        run.connect()
        run.hear(symbol, 1, 2, 3)
    with id_runs.running(tmp_path / "fresh") as run:
        run.connect()
        run.hear(symbol, 1, 2, 3)
    told = [("imported", "import:a.csv"), *states(tmp_path / "fresh", symbol)]
    assert states(tmp_path / "data", symbol) == told  # an import is no recorder, after which anybody could be blind
    account = verify(tmp_path / "data").account
    assert (account.imported, account.counts.trades, account.missing_ids) == (300, 303, 0)


def imported(root: Path) -> list[Interval]:
    return [one for one in load_coverage(Layout(root)).intervals("A") if one.state == "imported"]


def test_what_was_imported_stays_so_when_days_are_compacted_and_closed(tmp_path: Path) -> None:
    root = record(tmp_path / "data")
    other = [one._replace(at=str(one.at).replace("-18", f"-{day}")) for day in (16, 17) for one in PRINTS]
    take(root, write_csv(tmp_path / "a.csv", [*other, *PRINTS]), "--time-unit", "ms")
    before, told = ingestor.read_trades(root, engine="arrow"), imported(root)
    with capture_logs():
        list(compact_days(Layout(root), date.max))
        list(close_days(Layout(root), date.max))
    assert ingestor.read_trades(root, engine="arrow").equals(before)
    assert imported(root) == told != []
    assert verify(root).account.imported == 660
    assert take(root, tmp_path / "a.csv", "--time-unit", "ms")[0]["imported"] == 0


STATES = ("recorded", "filled", "imported", "blind", "unproven")
PIECES = st.lists(st.tuples(st.integers(0, 20), st.integers(1, 8), st.sampled_from(STATES)), max_size=6)


@given(PIECES)
def test_imported_stands_above_blind_alone_and_below_what_somebody_vouches_for(
    pieces: list[tuple[int, int, Any]],
) -> None:
    told = [
        Interval("A", state, "stall" if state == "blind" else None, start, start + length,
                 source="s" if state in {"filled", "imported"} else None)
        for start, length, state in pieces
    ]  # fmt: skip
    for joined, order in (
        (join_intervals("A", told), ("filled", "blind", "unproven", "recorded")),
        (join_best("A", told), ("recorded", "filled", "imported", "unproven", "blind")),
    ):
        for at in range(30):
            held = {one.state for one in told if one.start_us <= at < one.end_us}
            expected = next((state for state in order if state in held), None)
            if "imported" in held and expected not in {"filled", "recorded"}:
                expected = "imported"
            found = state_at(joined, at)
            assert (found and found.state) == expected
            assert found is None or (found.source == "s") == (found.state in {"filled", "imported"})


TRADES = st.lists(
    st.tuples(
        st.sampled_from("AB"), st.sampled_from([0, 1]), st.sampled_from([1.0, 2.0]), st.sampled_from([None, 0.0])
    ),
    max_size=20,
)


@given(TRADES, TRADES)
def test_what_is_missing_is_the_difference_of_multisets(incoming: list[Any], there: list[Any]) -> None:
    def table(trades: list[Any]) -> pa.Table:
        kinds = (pa.string(), pa.timestamp("ms", "UTC"), pa.float64(), pa.float64())
        names = ("symbol", "timestamp", "price", "volume")
        return pa.table({name: pa.array([one[at] for one in trades], kind)
                         for at, (name, kind) in enumerate(zip(names, kinds, strict=True))})  # fmt: skip

    found = find_missing(table(incoming), table(there)).to_pylist()
    missing = [
        (one["symbol"], round(one["timestamp"].timestamp() * 1000), one["price"], one["volume"]) for one in found
    ]
    assert Counter(missing) == Counter(incoming) - Counter(there)


@pytest.mark.long
def test_an_import_that_is_killed_is_completed_by_the_next(tmp_path: Path) -> None:
    """SIGKILL at any moment: nothing is there twice then, and all of it once after the next call."""
    made = record(tmp_path / "made")
    pick = random.Random(7)
    prints = [
        Print(f"2026-11-{pick.randrange(1, 17):02d}T{pick.randrange(24):02d}:00:{pick.randrange(60):02d}",
              pick.choice("AB"), float(pick.randrange(1, 9)), None)
        for _ in range(60_000)
    ]  # fmt: skip
    file = write_csv(tmp_path / "a.csv", [*prints, *PRINTS])
    truth = Counter((to_us(one.at) // 1000, one.symbol, one.price, one.volume) for one in [*prints, *PRINTS])

    def found(root: Path) -> Counter[Any]:
        rows = ingestor.read_trades(root, engine="arrow")
        columns = [rows["timestamp"].cast(pa.int64()), rows["symbol"], rows["price"], rows["volume"]]
        return Counter(zip(*(column.to_pylist() for column in columns), strict=True))

    command = [sys.executable, "-m", "ingestor", "import", str(file), "--time-unit", "ms", "--root"]
    for number in range(int(os.environ.get("CHAOS_ROUNDS", of_tier(8, 2)))):
        root = tmp_path / str(number)
        subprocess.run(["cp", "-r", str(made), str(root)], check=True)
        with subprocess.Popen([*command, str(root)], stdout=subprocess.DEVNULL) as process:
            begun = len(list((root / "ledger").iterdir()))
            while number % 4 and process.poll() is None and len(list((root / "ledger").iterdir())) == begun:
                time.sleep(0.01)  # until it writes
            time.sleep(pick.random() * 0.6)
            process.send_signal(signal.SIGKILL)
        assert not found(root) - truth
        take(root, file, "--time-unit", "ms")
        assert found(root) == truth
        assert verify(root).account.imported == len(prints) + 60
        assert states(root, "B") == [("imported", "import:a.csv")]
