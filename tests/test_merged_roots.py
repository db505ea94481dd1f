"""Several recorders, one truth: what any of them has is there once, and coverage is what any of them can vouch for."""

import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from recordings import Print, Recording, to_us
from test_id_watch import SYMBOLS, running

import ingestor
from ingestor.cli.main import cli
from ingestor.coverage import Interval, join_best, state_at
from ingestor.dataset.coverage import load_coverage
from ingestor.dataset.merged import Lack, merge_rows_of
from ingestor.dataset.verify import Verification
from ingestor.errors import ConfigError
from ingestor.layout import Layout

Trade = tuple[str, int, float, float | None]

TRADES_OF_A_ROOT = st.lists(
    st.tuples(
        st.sampled_from("AB"),
        st.sampled_from([0, 1, 60_000]),
        st.sampled_from([1.0, 2.0]),
        st.sampled_from([None, 0.0, 5.0]),
    ),
    max_size=20,
)


def table(trades: Sequence[Trade], ids: Sequence[int | None] | None = None) -> pa.Table:
    columns: dict[str, Any] = {
        "symbol": pa.array([one[0] for one in trades], pa.string()),
        "timestamp": pa.array([one[1] for one in trades], pa.timestamp("ms", "UTC")),
        "price": pa.array([one[2] for one in trades], pa.float64()),
        "volume": pa.array([one[3] for one in trades], pa.float64()),
        "received_at": pa.array([one[1] * 1000 for one in trades], pa.timestamp("us", "UTC")),
        "sequence": pa.array(range(len(trades)), pa.int64()),
    }
    return pa.table(columns | ({} if ids is None else {"trade_id": pa.array(ids, pa.int64())}))


def recorded(trades: Sequence[Trade], ids: Sequence[int | None] | None = None) -> pa.Table:
    """The same in the order in which a root gives it: by symbol and time."""
    order = sorted(range(len(trades)), key=lambda at: trades[at][:2])
    return table([trades[at] for at in order], None if ids is None else [ids[at] for at in order])


def trades_of(rows: pa.Table) -> Counter[Trade]:
    names = ("symbol", "timestamp", "price", "volume")
    columns = [rows.column(name).cast(pa.int64()) if name == "timestamp" else rows.column(name) for name in names]
    return Counter(zip(*(column.to_pylist() for column in columns), strict=True))


ROOTS = st.one_of(
    st.lists(TRADES_OF_A_ROOT, min_size=1, max_size=4),
    # Recorders that agree about most moments.
    st.builds(
        lambda own, lost: [[one for at, one in enumerate(own) if at not in gone] for gone in lost],
        TRADES_OF_A_ROOT, st.lists(st.sets(st.integers(0, 19), max_size=3), min_size=1, max_size=4),
    ),
)  # fmt: skip


@given(ROOTS, st.sampled_from([table, recorded]))
def test_each_trade_is_there_as_often_as_the_root_has_it_that_has_most(
    roots: list[list[Trade]], make: Callable[[Sequence[Trade]], pa.Table]
) -> None:
    merged, lacks = merge_rows_of([make(own) for own in roots], None)
    expected: Counter[Trade] = Counter()
    for own in roots:
        expected |= Counter(own)
    assert trades_of(merged) == expected
    lacking = Counter[tuple[int, str, int]]()
    for number, own in enumerate(roots):
        for trade, count in (expected - Counter(own)).items():
            lacking[number, trade[0], trade[1] // 60_000 * 60_000] += count
    assert sorted(lacks) == sorted(Lack(*key, count) for key, count in lacking.items())
    order = list(zip(merged["symbol"].to_pylist(), merged["timestamp"].to_pylist(), strict=True))
    assert order == sorted(order)


IDS_OF_A_ROOT = st.lists(st.tuples(st.sampled_from("AB"), st.integers(-1, 9), st.integers(0, 1)), max_size=15)


@given(st.lists(IDS_OF_A_ROOT, min_size=1, max_size=3), st.sampled_from([table, recorded]))
def test_by_id_each_is_there_once(
    told: list[list[tuple[str, int, int]]], make: Callable[[Sequence[Trade], Sequence[int]], pa.Table]
) -> None:
    """Also where a recorder has one twice, or two of them at two moments."""
    roots = [[(symbol, number) for symbol, number, _ in own] for own in told]
    tables = [
        make([(symbol, number + late, 1.0, 1.0) for symbol, number, late in own], [one[1] for one in own])
        for own in told
    ]
    merged, lacks = merge_rows_of(tables, "trade_id")
    found = list(zip(merged["symbol"].to_pylist(), merged["trade_id"].to_pylist(), strict=True))
    everything = {one for own in roots for one in own}
    assert sorted(found) == sorted(everything)
    assert sum(lack.trades for lack in lacks) == sum(len(everything - set(own)) for own in roots)


def test_what_has_no_id_is_there_as_often_as_the_root_has_it_that_has_most() -> None:
    trade = ("A", 1, 1.0, 1.0)
    merged, lacks = merge_rows_of([table([trade] * 3, [7, None, None]), table([trade] * 2, [7, None])], "trade_id")
    assert sorted(merged["trade_id"].to_pylist(), key=str) == [7, None, None]
    assert lacks == [Lack(1, "A", 0, 1)]


def test_where_all_agree_the_first_root_is_taken_as_it_is() -> None:
    """But a trade whose volume one of them doesn't know is another."""
    one = recorded([("A", 1, 1.0, 5.0), ("A", 1, 2.0, 5.0), ("B", 7, 1.0, None)], [3, 4, None])
    other = one.set_column(5, "sequence", pa.array([70, 80, 90]))
    assert merge_rows_of([one, other, other], "trade_id") == (one, [])
    unknown = other.set_column(3, "volume", pa.array([5.0, None, None]))
    merged, lacks = merge_rows_of([one.drop_columns("trade_id"), unknown.drop_columns("trade_id")], None)
    assert merged["volume"].to_pylist() == [5.0, 5.0, None, None]
    assert lacks == [Lack(0, "A", 0, 1), Lack(1, "A", 0, 1)]


INTERVALS = st.lists(
    st.tuples(st.integers(0, 20), st.integers(1, 8), st.sampled_from(["ids", "recorded", "unproven", "blind"])),
    max_size=6,
)


@given(INTERVALS)
def test_of_what_several_say_the_best_stands(stretches: list[tuple[int, int, str]]) -> None:
    def piece(start: int, length: int, kind: str) -> Interval:
        if kind == "ids":
            return Interval("A", "recorded", None, start, start + length, "ids")
        return Interval("A", kind, "stall" if kind == "blind" else None, start, start + length)  # type: ignore[arg-type]

    pieces = [piece(*one) for one in stretches]
    joined = join_best("A", pieces)
    for at in range(30):
        held = [one.proof or one.state for one in pieces if one.start_us <= at < one.end_us]
        best = next((kind for kind in ("ids", "recorded", "unproven", "blind") if kind in held), None)
        found = state_at(joined, at)
        assert (found and (found.proof or found.state)) == best
    assert all((one.state == "blind") == (one.cause == "stall") for one in joined)


def recorder(root: Path, prints: Sequence[Print], gap: tuple[str, str] | None = None) -> Path:
    """A recorder of A from 12:00 to 12:10, blind over the gap, in which it has nothing."""
    recording = Recording(root, ["A"], started="2026-11-18T12:00:00")
    recording.prove(["A"], "2026-11-18T12:00:00")
    if gap:
        start, end = (f"2026-11-18T{at}" for at in gap)
        recording.fact("gap.opened", start, gap="g", cause="connection", since=to_us(start), symbol=None)
        recording.fact("gap.closed", end, gap="g", cause="connection", until=to_us(end), symbol=None)
    outside = [one for one in prints if gap is None or not gap[0] <= str(one.at)[11:19] < gap[1]]
    for at in range(0, len(outside), 25):
        recording.write(*outside[at : at + 25])
    recording.stop("2026-11-18T12:10:00")
    return root


PRINTS = [
    Print(f"2026-11-18T12:{n // 30:02d}:{n % 30 * 2:02d}", "A", 100 + n % 3, 5) for n in range(270) for _ in (0, 1)
]


def merge(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["merge", *map(str, arguments)])


def test_two_recorders_with_different_faults_are_the_truth_together(tmp_path: Path) -> None:
    one = recorder(tmp_path / "a", PRINTS, ("12:02:00", "12:04:00"))
    other = recorder(tmp_path / "b", PRINTS, ("12:06:00", "12:07:30"))
    done = merge(one, other, "--into", tmp_path / "all", "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert [root["trades"] for root in told["roots"]] == [420, 450]
    assert (told["trades"], told["differences"]) == (540, [])
    rows = ingestor.read_trades(tmp_path / "all", engine="arrow")
    whole = recorder(tmp_path / "truth", PRINTS)
    assert trades_of(rows) == trades_of(ingestor.read_trades(whole, engine="arrow"))
    assert len(set(rows["sequence"].to_pylist())) == 540
    layout = Layout(tmp_path / "all")
    assert [str(one) for step in Verification(layout).run() for one in step] == []
    assert [(one.state, one.end_us - one.start_us) for one in load_coverage(layout).intervals("A")] == [
        ("recorded", 600_000_000)
    ]


def test_where_both_were_blind_so_is_the_result(tmp_path: Path) -> None:
    one = recorder(tmp_path / "a", PRINTS, ("12:02:00", "12:04:00"))
    other = recorder(tmp_path / "b", PRINTS, ("12:03:00", "12:05:00"))
    assert merge(one, other, "--into", tmp_path / "all").exit_code == 0
    told = load_coverage(Layout(tmp_path / "all")).intervals("A")
    assert [(one.state, one.cause) for one in told] == [("recorded", None), ("blind", "connection"), ("recorded", None)]
    assert abs(told[1].end_us - told[1].start_us - 60_000_000) <= 1
    assert ingestor.read_trades(tmp_path / "all", engine="arrow").num_rows == 480


def test_minutes_that_both_recorded_and_that_differ_are_named(tmp_path: Path) -> None:
    one = recorder(tmp_path / "a", PRINTS)
    other = recorder(tmp_path / "b", [trade for at, trade in enumerate(PRINTS) if at not in (130, 131, 140)])
    shown = merge(one, other, "--into", tmp_path / "all")
    assert shown.exit_code == 0
    assert "Both recorded, and one lacks trades:" in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) <= 80
    told = json.loads(merge(one, other, "--into", tmp_path / "again", "--json").stdout)
    assert told["differences"] == [
        {"root": str(other), "symbol": "A", "minute": "2026-11-18T12:02Z", "lacks": 3},
    ]


def test_by_ids_two_recorders_prove_each_other_whole(tmp_path: Path) -> None:
    for name, numbers in (("a", (1, 2, 5, 6)), ("b", (2, 3, 4, 6))):
        with running(tmp_path / name) as run:
            run.connect()
            run.hear(SYMBOLS[0], *numbers)
    done = merge(tmp_path / "a", tmp_path / "b", "--into", tmp_path / "all", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["trades"] == 6
    verification = Verification(Layout(tmp_path / "all"))
    assert [str(one) for step in verification.run() for one in step] == []
    assert (verification.account.ids, verification.account.missing_ids) == (6, 0)


def test_what_cannot_be_merged_is_refused(tmp_path: Path) -> None:
    one = recorder(tmp_path / "a", PRINTS[:10])
    with running(tmp_path / "b") as run:
        run.connect()
        run.hear(SYMBOLS[0], 1)
    refused = merge(one, tmp_path / "b", "--into", tmp_path / "all")
    assert refused.exit_code == 1
    assert "several venues (binance, finnhub)" in str(refused.exception)
    assert not (tmp_path / "all").exists()
    full = merge(one, one, "--into", tmp_path / "b")
    assert "is not empty" in str(full.exception)
    nowhere = merge(one, tmp_path / "no", "--into", tmp_path / "all")
    assert "holds no recording" in str(nowhere.exception)


def test_readers_take_several_roots_as_one(tmp_path: Path) -> None:
    one = recorder(tmp_path / "a", PRINTS, ("12:02:00", "12:04:00"))
    other = recorder(tmp_path / "b", PRINTS, ("12:03:00", "12:05:00"))
    assert merge(one, other, "--into", tmp_path / "all").exit_code == 0
    several, merged = [one, other], tmp_path / "all"
    for read in (ingestor.read_bars, ingestor.read_coverage):
        assert read(several, engine="arrow").equals(read(merged, engine="arrow"))
    start, end = "2026-11-18T12:01:30", "2026-11-18T12:05:30"
    assert ingestor.read_bars(several, "30s", ["A"], start, end, fill=True, engine="arrow").equals(
        ingestor.read_bars(merged, "30s", ["A"], start, end, fill=True, engine="arrow")
    )
    rows = ingestor.read_trades(several, ["A"], start, end, engine="arrow")
    assert rows.drop_columns("sequence").equals(
        ingestor.read_trades(merged, ["A"], start, end, engine="arrow").drop_columns("sequence")
    )
    assert ingestor.read_trades(several, columns=["price"], engine="arrow").column_names == ["price"]
    assert ingestor.read_trades(several, start="2026-12-01", engine="arrow").num_rows == 0
    described = ingestor.describe(several, engine="arrow").to_pylist()
    assert described == [ingestor.describe(merged, engine="arrow").to_pylist()[0] | {"bytes": None}]
    assert ingestor.read_trades([one]).equals(ingestor.read_trades(one))
    with pytest.raises(ValueError, match="no root"):
        ingestor.read_trades([])


@pytest.mark.parametrize("command", ["head -n 500", "bars 30s", "bars 1m --fill", "describe", "coverage"])
def test_commands_take_several_roots_as_one(tmp_path: Path, command: str) -> None:
    one = recorder(tmp_path / "a", PRINTS, ("12:02:00", "12:04:00"))
    other = recorder(tmp_path / "b", PRINTS, ("12:03:00", "12:05:00"))
    assert merge(one, other, "--into", tmp_path / "all").exit_code == 0
    told = []
    for roots in ([one, other], [tmp_path / "all"]):
        named = [part for root in roots for part in ("--root", str(root))]
        done = CliRunner().invoke(cli, [*command.split(), *named, "--json"])
        assert done.exit_code == 0, done.output
        told.append(json.loads(done.stdout))
    for own in told:  # a merged recording has numbers, files and an end of its own
        for row in own if isinstance(own, list) else [own]:
            for name in ("sequence", "bytes", "horizon"):
                row.pop(name, None)
    assert told[0] == told[1]


@pytest.mark.parametrize("ending", ["csv", "parquet", "jsonl", "sqlite"])
def test_several_roots_are_exported_as_one(tmp_path: Path, ending: str) -> None:
    one = recorder(tmp_path / "a", PRINTS, ("12:02:00", "12:04:00"))
    other = recorder(tmp_path / "b", PRINTS, ("12:03:00", "12:05:00"))
    assert merge(one, other, "--into", tmp_path / "all").exit_code == 0
    found = []
    for number, roots in enumerate([[one, other], [tmp_path / "all"]]):
        file, named = tmp_path / f"{number}.{ending}", [part for root in roots for part in ("--root", str(root))]
        done = CliRunner().invoke(cli, ["export", str(file), *named])
        assert done.exit_code == 0, done.output
        if ending == "sqlite":
            with closing(sqlite3.connect(file)) as database:
                rows = pd.read_sql("SELECT * FROM trades ORDER BY symbol, timestamp, received_at", database)
        else:
            read: dict[str, Any] = {
                "csv": pd.read_csv,
                "parquet": pd.read_parquet,
                "jsonl": partial(pd.read_json, lines=True),
            }
            rows = read[ending](file)
        found.append(rows.drop(columns="sequence"))
    pd.testing.assert_frame_equal(found[0], found[1])
    assert len(found[0]) == ingestor.read_trades([one, other], engine="arrow").num_rows


def test_commands_refuse_recorders_of_two_venues(tmp_path: Path) -> None:
    one = recorder(tmp_path / "a", PRINTS[:10])
    with running(tmp_path / "b") as run:
        run.connect()
        run.hear(SYMBOLS[0], 1)
    for command in ("head", "bars 1m", "describe", "coverage", f"export {tmp_path / 'x.csv'}"):
        refused = CliRunner().invoke(cli, [*command.split(), "--root", str(one), "--root", str(tmp_path / "b")])
        assert "several venues (binance, finnhub)" in str(refused.exception)


def verify(*roots: Path, json_too: bool = True) -> tuple[int, Any, str]:
    """The exit code, what is on stdout, and what is on stderr."""
    named = [part for root in roots for part in ("--root", str(root))]
    done = CliRunner().invoke(cli, ["verify", *named, *(["--json"] if json_too else [])])
    return done.exit_code, json.loads(done.stdout) if json_too else done.stdout, done.stderr


def test_several_roots_are_verified_each_and_together(tmp_path: Path) -> None:
    for name, numbers in (("a", (1, 2, 6)), ("b", (2, 3, 6)), ("c", (6, 7, 8))):
        with running(tmp_path / name) as run:
            run.connect()
            run.hear(SYMBOLS[0], *numbers)
    roots = [tmp_path / name for name in "abc"]
    code, told, _ = verify(*roots)
    assert (code, [one["root"] for one in told["roots"]]) == (0, [str(root) for root in roots])
    assert [(one["differences"], one["account"]["missing_ids"]) for one in told["roots"]] == [([], 3), ([], 2), ([], 0)]
    assert told["together"] == {
        "recordings": 3, "refused": None, "ids": 6, "missing_ids": 2,
        "holes": [{"symbol": SYMBOLS[0], "first": 4, "last": 5}],
    }  # fmt: skip
    code, shown, _ = verify(*roots, json_too=False)
    assert shown.splitlines()[-2:] == [
        f"ids of {SYMBOLS[0]}: 4 to 5 missing (2)",
        "Together: 3 recordings of one venue; 2 of 8 ids missing in all of them.",
    ]


def test_the_worst_of_several_roots_is_the_exit_code(tmp_path: Path) -> None:
    good, damaged = (recorder(tmp_path / name, PRINTS[:60]) for name in "ab")
    next((damaged / "trades").rglob("*.parquet")).unlink()
    code, told, _ = verify(damaged, good)
    assert (code, [len(one["differences"]) for one in told["roots"]]) == (1, [1, 0])
    code, told, said = verify(tmp_path / "nowhere", damaged, good)
    assert code == 2
    assert "holds no recording" in told["roots"][0]["error"]
    assert f"error: {tmp_path / 'nowhere'} was not verified: " in said
    assert [len(one["differences"]) for one in told["roots"][1:]] == [1, 0]
    done = CliRunner().invoke(cli, ["verify", "--root", str(good), "--root", str(damaged), "--against", str(good)])
    assert (done.exit_code, "give --root once" in done.stderr) == (2, True)


def test_a_root_that_is_named_twice_is_verified_once(tmp_path: Path) -> None:
    one = recorder(tmp_path / "a", PRINTS[:60])
    (tmp_path / "link").symlink_to(one)
    code, told, said = verify(one, tmp_path / "link")
    assert (code, told["together"]["recordings"]) == (0, 1)
    assert told["roots"][1] == {"root": str(tmp_path / "link"), "same_as": str(one)}
    assert "verified once" in said


def test_recordings_of_two_venues_are_verified_and_told_apart(tmp_path: Path) -> None:
    one = recorder(tmp_path / "a", PRINTS[:10])
    with running(tmp_path / "b") as run:
        run.connect()
        run.hear(SYMBOLS[0], 1)
    code, shown, _ = verify(one, tmp_path / "b", json_too=False)
    assert code == 0
    assert shown.count("Everything is there, once.") == 2
    assert shown.splitlines()[-1].startswith("Together: these roots are of several venues (binance, finnhub)")
    _, told, _ = verify(one, tmp_path / "b")
    assert told["together"]["ids"] is None


def test_recorders_of_two_venues_are_not_read_as_one(tmp_path: Path) -> None:
    one = recorder(tmp_path / "a", PRINTS[:10])
    with running(tmp_path / "b") as run:
        run.connect()
        run.hear(SYMBOLS[0], 1)
    for read in (ingestor.read_trades, ingestor.read_bars, ingestor.read_coverage, ingestor.describe):
        with pytest.raises(ConfigError, match="several venues"):
            read([one, tmp_path / "b"])


@pytest.mark.parametrize("twice", [2, 3])
def test_a_root_merged_with_itself_is_itself(tmp_path: Path, twice: int) -> None:
    one = recorder(tmp_path / "a", PRINTS[:60])
    assert merge(*[one] * twice, "--into", tmp_path / "all").exit_code == 0
    before, after = (ingestor.read_trades(root, engine="arrow") for root in (one, tmp_path / "all"))
    assert trades_of(before) == trades_of(after)
