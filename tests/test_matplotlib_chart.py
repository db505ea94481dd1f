"""The picture: what it shows is what was recorded, and it needs no display."""

from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from matplotlib import image
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.patches import Rectangle
from matplotlib.text import Annotation
from numpy.testing import assert_allclose, assert_array_equal

from ingestor.charts.indicators import bollinger, ema, macd, rsi, sma
from ingestor.charts.matplotlib_chart import DAY_MS, draw_picture, format_length, save_picture
from ingestor.charts.series import DARK, LIGHT, Blind, Series

NEW_YORK = ZoneInfo("America/New_York")
MINUTE_MS = 60_000
OPENS_MS = int(datetime(2026, 11, 20, 14, 30, tzinfo=UTC).timestamp() * 1000)


def make_series(symbol: str = "AAPL", bars: int = 120, *, blind: tuple[tuple[int, int, str], ...] = ()) -> Series:
    """Bars of a walk; `blind` in minutes from the first bar, whose bars are absent."""
    minutes = np.array([at for at in range(bars) if not any(start <= at < end for start, end, _ in blind)])
    walk = 100 * np.exp(np.cumsum(np.random.default_rng(1).normal(0, 0.001, bars + 1)))
    opened, close = walk[: len(minutes)], walk[1 : len(minutes) + 1]
    stretches = [Blind(OPENS_MS + a * MINUTE_MS, OPENS_MS + b * MINUTE_MS, cause) for a, b, cause in blind]
    return Series(
        symbol, "1m", (OPENS_MS + minutes * MINUTE_MS).astype(np.int64), opened, np.maximum(opened, close) + 0.1,
        np.minimum(opened, close) - 0.1, close, 10.0 * np.arange(len(minutes), dtype=np.float64), stretches,
    )  # fmt: skip


def make_flat(symbol: str, price: float) -> Series:
    """One bar at one price."""
    prices = np.array([price])
    return Series(symbol, "1m", np.array([OPENS_MS]), prices, prices, prices, prices, prices, [])


def draw(*columns: Series) -> Figure:
    return draw_picture(columns, NEW_YORK, LIGHT)


def texts_of(axes: Axes) -> set[str]:
    legends = [artist for artist in axes.get_children() if isinstance(artist, Legend)]
    return {text.get_text() for text in (*axes.texts, *(text for one in legends for text in one.get_texts()))}


def shades_of(axes: Axes) -> list[tuple[float, float]]:
    """The shaded stretches, in minutes from the first bar."""
    shades = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    return [(round((one.get_x() - OPENS_MS / DAY_MS) * 1440, 3), round(one.get_width() * 1440, 3)) for one in shades]


def test_lines_are_the_indicators() -> None:
    series = make_series(blind=((40, 60, "stall"),))
    price, _, strength, difference = draw(series).axes
    closes = series.closes
    expected = {"SMA 20": sma(closes), "EMA 20": ema(closes), "Bollinger 20, 2": bollinger(closes).lower}
    for line in price.lines:
        if line.get_label() in expected:
            assert_array_equal(line.get_ydata(), expected.pop(str(line.get_label())))
    assert expected == {}
    assert_array_equal(strength.lines[0].get_ydata(), rsi(closes))
    assert_array_equal(difference.lines[0].get_ydata(), macd(closes).line)
    assert_array_equal(difference.lines[1].get_ydata(), macd(closes).signal)
    assert np.isnan(sma(closes)[40:59]).all()


def test_bars_stand_at_their_times_and_prices() -> None:
    series = make_series(bars=3)
    price, volume, *_ = draw(series).axes
    wicks = np.array(price.collections[0].get_segments())  # type: ignore[attr-defined]  # a LineCollection
    assert_allclose(wicks[:, :, 1], np.column_stack([series.low, series.high]))
    middle_ms = wicks[:, 0, 0] * DAY_MS - OPENS_MS
    assert_allclose(middle_ms, (np.arange(3) + 0.5) * MINUTE_MS, atol=1)
    heights = [np.asarray(path.vertices)[:, 1].max() for path in volume.collections[0].get_paths()]
    assert_array_equal(heights, series.volume)


def test_blind_time_is_shaded_in_every_pane_and_named() -> None:
    figure = draw(make_series(blind=((40, 60, "stall"), (80, 81, "connection"), (90, 92, "connection"))))
    for axes in figure.axes:
        assert shades_of(axes) == [(40, 20), (80, 1), (90, 2)]
    price = figure.axes[0]
    assert {"blind (connection stalled), 20 min", "blind (no connection), 3 min", "connection stalled"} <= texts_of(
        price
    )
    assert "connection" not in texts_of(price), "too narrow to bear its cause"
    stall, connection, again = (patch.get_facecolor() for patch in price.patches)
    assert stall != connection == again


def test_times_are_of_the_zone() -> None:
    figure = draw(make_series())
    bottom = figure.axes[-1]
    figure.canvas.draw()
    labels = [label.get_text() for label in bottom.get_xticklabels()]
    assert "09:30" in labels or "10:00" in labels
    assert bottom.get_xlabel() == "America/New_York"
    assert "1m bars, Friday, 20 November 2026" in texts_of(figure.axes[0])


@pytest.mark.parametrize(
    ("symbols", "grid"),
    [
        (2, (2, 1)),
        *(pytest.param(*each, marks=pytest.mark.long) for each in [(1, (1, 1)), (3, (3, 1)), (4, (2, 2)), (6, (3, 2))]),
    ],
)
def test_several_symbols_stand_in_a_grid(symbols: int, grid: tuple[int, int]) -> None:
    """Three side by side at most, so that no picture is a strip."""
    names = [f"S{number}" for number in range(symbols)]
    figure = draw(*(make_series(name, 40) for name in names))
    figure.canvas.draw()
    tops = [axes for axes in figure.axes if axes.get_title("left")]
    assert [axes.get_title("left") for axes in tops] == names
    places = [axes.transAxes.transform((0, 0)).round().tolist() for axes in tops]
    assert (len({x for x, _ in places}), len({y for _, y in places})) == grid
    width, height = figure.get_size_inches()
    assert width / height < 3.5


def test_the_last_price_stands_at_the_axis() -> None:
    series = make_series()
    price = draw(series).axes[0]
    (label,) = [text for text in price.texts if text.get_text() == f"{series.close[-1]:,.8g}"]
    assert isinstance(label, Annotation)
    assert label.xy == (1, series.close[-1])


@pytest.mark.parametrize(
    ("series", "said"),
    [
        (make_series(bars=6), ["needs 15 bars, has 6", "needs 34 bars, has 6"]),
        (make_series(bars=40, blind=((20, 22, "stall"),)), ["", "needs 34 bars without a gap, has 20"]),
        (make_series(bars=34), ["", ""]),
        (make_series(bars=10, blind=((0, 10, "stall"),)), ["needs 15 bars, has 0", "needs 34 bars, has 0"]),
    ],
)
def test_an_empty_pane_says_what_it_needs(series: Series, said: list[str]) -> None:
    strength, difference = draw(series).axes[2:]
    assert [" ".join(sorted(texts_of(axes) - {"RSI 14", "MACD 12, 26, 9"})) for axes in (strength, difference)] == said


@pytest.mark.parametrize(
    "series",
    [
        make_series("$x_{$", 30),
        *(
            pytest.param(series, marks=pytest.mark.long, id=name)
            for name, series in {
                "one bar": make_series(bars=1),
                "blind": make_series(bars=10, blind=((0, 10, "shutdown"),)),
                "flat": make_flat("FLAT", 5.0),
                "no number": make_flat("ODD", np.nan),
            }.items()
        ),
    ],
    ids=lambda series: series.symbol,
)
def test_what_is_hard_to_draw(series: Series, tmp_path: Path) -> None:
    """Mathematics in a name, one bar, no bar, no movement, no price."""
    save_picture(draw(series), tmp_path / "x.png")
    assert image.imread(tmp_path / "x.png").std() > 0


def test_the_file_is_whole_or_not_there(tmp_path: Path) -> None:
    figure = draw(make_series())
    path = tmp_path / "x.png"
    save_picture(figure, path)
    pixels = image.imread(path)
    assert pixels.shape[:2] == (1008, 1440)
    assert path.stat().st_mode & 0o777 == 0o640
    with pytest.raises(FileNotFoundError):
        save_picture(figure, tmp_path / "none" / "x.png")
    assert [one.name for one in tmp_path.iterdir()] == ["x.png"]


@pytest.mark.long
def test_dark_is_dark(tmp_path: Path) -> None:
    means = []
    for theme in (LIGHT, DARK):
        save_picture(draw_picture([make_series()], UTC, theme), tmp_path / "x.png")
        means.append(image.imread(tmp_path / "x.png")[:, :, :3].mean())
    assert means[0] > 0.85
    assert means[1] < 0.25


@pytest.mark.parametrize(("seconds", "said"), [(0.25, "0.25 s"), (45, "45 s"), (450, "7.5 min"), (9000, "2.5 h")])
def test_lengths(seconds: float, said: str) -> None:
    assert format_length(seconds) == said
