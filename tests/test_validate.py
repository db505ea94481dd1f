"""Which trades are sane: a table of borders, and any batch held to a reference that judges row by row."""

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_decoder import insane
from requirements import of_tier

from ingestor.capture.validate import FEW, Validated, are_few_good, validate
from ingestor.schema import VENUE_TRADES

NOW_US = 1_700_000_000_000_999
EARLIEST_MS = 631_152_000_000
LATEST_MS = 1_700_086_400_000

Row = tuple[int | None, str | None, float | None, float | None, str | None]
GOOD: Row = (1_699_999_999_999, "AAPL", 164.06, 5.0, "1,12")


def batch(rows: list[Row]) -> pa.RecordBatch:
    columns = zip(*rows, strict=True) if rows else [()] * len(VENUE_TRADES)
    arrays = [pa.array(list(column), kind) for column, kind in zip(columns, VENUE_TRADES.types, strict=True)]
    return pa.record_batch(arrays, schema=VENUE_TRADES)


def reason(**values: object) -> str | None:
    """Why a trade is rejected that is good but for these values, having checked its good neighbours stay."""
    odd = tuple((dict(zip(VENUE_TRADES.names, GOOD, strict=True)) | values).values())
    verdict = validate(batch([GOOD, odd, GOOD]), NOW_US)
    many = validate(batch([GOOD, odd, *[GOOD] * FEW]), NOW_US)
    assert many.rejected == verdict.rejected
    if verdict == Validated(None, []):
        return None
    assert verdict.kept is not None
    assert many.kept is not None
    assert many.kept.to_pylist()[:3] == verdict.kept.to_pylist() == [True, False, True]
    ((row, why),) = verdict.rejected
    assert row == 1
    return why


@pytest.mark.parametrize("time_ms", [EARLIEST_MS, LATEST_MS, 1_699_999_000_000, 1_650_000_000_000])
def test_late_and_early_times_are_kept(time_ms: int) -> None:
    assert reason(timestamp=time_ms) is None


@pytest.mark.parametrize("time_ms", [EARLIEST_MS - 1, LATEST_MS + 1, 0, 1_700_000_000, -1, 2**63 - 1, -(2**63), None])
def test_impossible_times_are_rejected(time_ms: int | None) -> None:
    assert reason(timestamp=time_ms) == "bad_time"


@pytest.mark.parametrize("symbol", ["A", "IC MARKETS:1", "BINANCE:BTCUSDT", "../../etc", "é" * 128, "😀" * 128])
def test_any_printable_symbol_is_kept(symbol: str) -> None:
    assert reason(symbol=symbol) is None


@pytest.mark.parametrize(
    "symbol",
    [
        "",
        "A" * 129,
        "é" * 129,
        "\x00",
        "A\n",
        "A\x1fB",
        "\x7f",
        "\x80A",
        "A\x9f",
        "a\xa0b",
        "a\u2028b",
        "AA\u200bPL",
        "\u202eAAPL",
        None,
    ],
)
def test_other_symbols_are_rejected(symbol: str | None) -> None:
    assert reason(symbol=symbol) == "bad_symbol"


@pytest.mark.parametrize("price", [5e-324, 0.0001, 1e308])
def test_any_price_above_zero_is_kept(price: float) -> None:
    assert reason(price=price) is None


@pytest.mark.parametrize("price", [0.0, -0.0, -1.0, float("nan"), float("inf"), float("-inf"), None])
def test_other_prices_are_rejected(price: float | None) -> None:
    assert reason(price=price) == "bad_price"


def test_signed_prices_may_be_zero_or_below() -> None:
    rows: list[Row] = [(*GOOD[:2], price, *GOOD[3:]) for price in (-37.63, 0.0, -0.0, float("nan"), float("-inf"))]
    assert validate(batch(rows), NOW_US, signed_prices=True).rejected == [(3, "bad_price"), (4, "bad_price")]


@pytest.mark.parametrize("volume", [0.0, -0.0, 1e-07, 1e308, None])
def test_zero_and_unknown_volumes_are_kept(volume: float | None) -> None:
    assert reason(volume=volume) is None


@pytest.mark.parametrize("volume", [-1e-9, float("nan"), float("inf"), float("-inf")])
def test_other_volumes_are_rejected(volume: float) -> None:
    assert reason(volume=volume) == "bad_volume"


def test_the_first_reason_counts() -> None:
    assert reason(timestamp=0, symbol="", price=0.0, volume=-1.0) == "bad_time"
    assert reason(symbol="", price=0.0, volume=-1.0) == "bad_symbol"
    assert reason(price=0.0, volume=-1.0) == "bad_price"


@pytest.mark.parametrize("rows", [[], [GOOD], [GOOD] * 1000])
def test_all_good_needs_no_mask(rows: list[Row]) -> None:
    assert validate(batch(rows), NOW_US) == Validated(None, [])


def test_times_out_of_order_are_kept() -> None:
    times_ms = (1_699_999_999_999, 1_699_999_999_843, 1_699_999_999_867, 1_699_997_599_999)
    assert validate(batch([(time_ms, *GOOD[1:]) for time_ms in times_ms]), NOW_US) == Validated(None, [])


def test_a_slice_is_judged_by_its_own_rows() -> None:
    bad: Row = (GOOD[0], "\x00", *GOOD[2:])
    trades = batch([bad, GOOD, bad, GOOD])
    assert validate(trades.slice(1, 1), NOW_US) == Validated(None, [])
    assert validate(trades.slice(1, 2), NOW_US).rejected == [(1, "bad_symbol")]


NEAR_BORDERS = st.sampled_from([EARLIEST_MS, LATEST_MS]).flatmap(lambda ms: st.integers(ms - 2, ms + 2))
ROWS = st.tuples(
    st.none() | NEAR_BORDERS | st.integers(-(2**63), 2**63 - 1),
    st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=70) | st.just("AAPL"),
    st.none() | st.floats(),
    st.none() | st.floats(),
    st.none() | st.just("1"),
)


@given(
    st.lists(st.just(GOOD) | ROWS, max_size=20).flatmap(lambda rows: st.sampled_from([rows, [GOOD] * FEW + rows])),
    st.sampled_from([NOW_US, 0, 2**62]),
)
@settings(max_examples=of_tier(300, 50), deadline=None)
def test_validate_says_what_the_reference_says(rows: list[Row], now_us: int) -> None:
    trades = batch(rows)
    verdict = validate(trades, now_us)
    assert verdict.rejected == insane(trades, now_us)
    bad = {row for row, _ in verdict.rejected}
    if not bad:
        assert verdict.kept is None
    else:
        assert verdict.kept is not None
        assert verdict.kept.to_pylist() == [row not in bad for row in range(len(rows))]
    if not any(None in row[:3] for row in rows):
        assert are_few_good(rows, now_us) == (not bad)
