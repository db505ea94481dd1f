"""The window's content: the newest trades, their mean, and blind time."""

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.testing import assert_allclose, assert_array_equal

from ingestor.charts.live_chart import LiveChart, Rolling
from ingestor.charts.series import LIGHT, Blind
from ingestor.schema import TRADES

BEGAN_MS = int(datetime(2026, 11, 20, 14, 30, tzinfo=UTC).timestamp() * 1000)


def make_batch(*trades: tuple[str, float, int]) -> pa.RecordBatch:
    """Trades of (symbol, price, ms of receipt since the beginning)."""
    rows = [
        {
            "timestamp": datetime(2026, 11, 20, tzinfo=UTC), "symbol": symbol, "price": price, "volume": 1.0,
            "conditions": None, "received_at": (BEGAN_MS + after_ms) * 1000, "sequence": 0, "repeated": False,
        }
        for symbol, price, after_ms in trades
    ]  # fmt: skip
    return pa.RecordBatch.from_pylist(rows, schema=TRADES)


def make_chart(*symbols: str, points: int = 50, average_over: int = 15) -> tuple[LiveChart, Figure]:
    figure = Figure()
    FigureCanvasAgg(figure)
    return LiveChart(figure, symbols, points, average_over, UTC, LIGHT), figure


def test_the_newest_points_and_their_mean() -> None:
    rolling = Rolling("A", points=4, average_over=3)
    prices = np.arange(10.0) ** 2
    for at, price in enumerate(prices):
        rolling.add_trades(make_batch(("A", price, at), ("B", 0, at)))
    found = rolling.points([])
    assert_array_equal(found.prices, prices[-4:])
    assert_array_equal(found.times_ms, BEGAN_MS + np.arange(6, 10))
    assert_allclose(found.average, [prices[at - 2 : at + 1].mean() for at in range(6, 10)])


def test_few_points_have_no_mean_yet() -> None:
    rolling = Rolling("A", points=4, average_over=3)
    rolling.add_trades(make_batch(("A", 1, 0), ("A", 2, 1)))
    assert np.isnan(rolling.points([]).average).all()
    assert len(Rolling("A", 4, 3).points([]).prices) == 0


def test_neither_a_line_nor_a_mean_goes_across_blindness() -> None:
    chart, figure = make_chart("A", points=10, average_over=2)
    chart.add_trades(make_batch(*(("A", 10 + at, at * 1000) for at in (0, 1, 2, 8, 9))))
    blind = [Blind(BEGAN_MS + 2000, BEGAN_MS + 8000, "stall")]  # from the last trade to the next
    chart.draw({"A": blind}, BEGAN_MS + 9000)
    prices, average = figure.axes[0].lines
    assert_array_equal(prices.get_ydata(), [10, 11, 12, np.nan, 18, 19])
    assert_array_equal(average.get_ydata(), [np.nan, 10.5, 11.5, np.nan, np.nan, 18.5])
    assert len(figure.axes[0].patches) == 1
    chart.draw({}, BEGAN_MS + 9000)
    assert len(figure.axes[0].patches) == 0


def test_a_pane_a_symbol_says_its_newest_price() -> None:
    chart, figure = make_chart("A", "$B$")
    chart.add_trades(make_batch(("A", 1234.5, 0)))
    chart.draw({}, BEGAN_MS)
    assert [axes.get_title("left") for axes in figure.axes] == ["A", "$B$"]
    assert [axes.get_title("right") for axes in figure.axes] == ["1,234.5", "no trade yet"]


def test_blindness_that_lasts_is_said() -> None:
    chart, figure = make_chart("A")
    chart.add_trades(make_batch(("A", 5, 0), ("A", 6, 1000)))
    blind = [Blind(BEGAN_MS + 1000, BEGAN_MS + 6000, "connection")]
    chart.draw({"A": blind}, BEGAN_MS + 6000)
    (axes,) = figure.axes
    assert axes.get_title("right") == "blind (no connection)"
    assert axes.get_xlim()[1] * 86_400_000 >= BEGAN_MS + 6000
    chart.draw({"A": blind}, BEGAN_MS + 6001)
    assert axes.get_title("right") == "6"
