"""The description: figures that can be worked out by hand."""

from pathlib import Path

import pytest
from recordings import Print, Recording, to_us

import ingestor


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """AAPL: 100 trades over two dates, 1 to 100 ms late, but for one a minute late and one early. MSFT: silent."""
    recording = Recording(tmp_path, ["AAPL", "MSFT"], started="2026-11-18")
    recording.prove(["AAPL"], "2026-11-18T00:00:00")
    recording.fact("symbols.requested", "2026-11-18T00:00:00", connection=1, symbols=["MSFT"])
    delays = [number / 1000 for number in range(1, 101)]
    delays[98], delays[0] = 60.001, -0.0005
    prints = [Print(f"2026-11-{18 + n % 2}T12:00:{n % 60:02d}", "AAPL", 1, 1, delay_s=delays[n]) for n in range(100)]
    recording.write(*prints[:60])
    recording.seal()
    recording.write(*prints[60:])
    start, end = "2026-11-18T12:00:00", "2026-11-19T00:00:00"
    recording.fact("gap.opened", start, gap="g", cause="connection", since=to_us(start), symbol=None)
    recording.fact("gap.closed", end, gap="g", cause="connection", until=to_us(end), symbol=None)
    recording.fact("connection.closed", "2026-11-20T00:00:00", connection=1, frames=1)
    return tmp_path


def test_a_symbol(root: Path) -> None:
    apple = ingestor.describe(root).set_index("symbol").loc["AAPL"]
    assert (str(apple["first"]), str(apple["last"])) == ("2026-11-18 12:00:00+00:00", "2026-11-19 12:00:59+00:00")
    assert (apple["trades"], apple["gaps"]) == (100, 1)
    assert (apple["recorded"], apple["blind"], apple["unproven"]) == pytest.approx((0.75, 0.25, 0.0))
    assert apple["late"] == 0.01
    delays = [apple[f"delay_{name}_ms"] for name in ("min", "p50", "p90", "p99", "max")]
    assert delays == [-1, 50, 90, 100, 60_001]
    assert apple["bytes"] > 0


def test_a_symbol_that_never_traded(root: Path) -> None:
    microsoft = ingestor.describe(root).set_index("symbol").loc["MSFT"]
    assert (microsoft["trades"], microsoft["bytes"]) == (0, 0)
    assert (microsoft["unproven"], microsoft["blind"]) == pytest.approx((0.75, 0.25))
    assert microsoft[["first", "late", "delay_p50_ms"]].isna().all()


def test_some_symbols_in_a_zone(root: Path) -> None:
    frame = ingestor.describe(root, ["AAPL"], tz="America/New_York")
    assert frame["symbol"].to_list() == ["AAPL"]
    assert str(frame["first"].dtype) == "datetime64[ms, America/New_York]"


def test_a_span(root: Path) -> None:
    """From an hour before the gap to its middle, at noon to the trade."""
    start, end = "2026-11-18T11:00:00", "2026-11-18T18:00:00"
    described = ingestor.describe(root, start=start, end=end).set_index("symbol")
    apple = described.loc["AAPL"]
    rows = ingestor.read_trades(root, "AAPL", start, end)
    assert (apple["trades"], apple["first"], apple["last"]) == (len(rows), rows.timestamp.min(), rows.timestamp.max())
    assert (apple["recorded"], apple["blind"]) == pytest.approx((1 / 7, 6 / 7))
    microsoft = described.loc["MSFT"]
    assert (microsoft["trades"], microsoft["unproven"]) == pytest.approx((0, 1 / 7))
    assert ingestor.describe(root, start="2026-11-25").empty
    whole = ingestor.describe(root, start="2026-11-01", end="2026-12-01")
    assert whole.equals(ingestor.describe(root))
    with pytest.raises(ValueError, match="start must be before end"):
        ingestor.describe(root, start=end, end=start)


def test_bytes_add_up_to_the_files(tmp_path: Path) -> None:
    recording = Recording(tmp_path)
    recording.write(*(Print("2026-11-18T12:00", f"S{n % 3}", n, 1) for n in range(300)))
    recording.seal()
    total = sum(path.stat().st_size for path in recording.layout.trades.rglob("*.parquet"))
    assert ingestor.describe(tmp_path)["bytes"].sum() == pytest.approx(total, abs=3)


def test_an_empty_recording(tmp_path: Path) -> None:
    Recording(tmp_path)
    assert len(ingestor.describe(tmp_path)) == 0
