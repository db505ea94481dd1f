"""From a recording to answers: run it beside a directory of trades.

    python examples/analysis.py data AAPL

Prints what is recorded, bars, days, how large trades were, the busiest minutes, and when silence was not the market.
With matplotlib it also draws the price, with those times shaded (`analysis.png`).
"""

import sys
from importlib.util import find_spec
from pathlib import Path

import duckdb
import pandas as pd
import polars as pl

import ingestor

NEW_YORK = "America/New_York"


def main(root: str, symbol: str) -> None:
    """Each part stands for itself: take what you need."""
    print(f"What is recorded\n{describe(root)}\n")
    bars = regular_bars(root, symbol)
    print(f"Five-minute bars of {symbol}, regular hours\n{bars.tail(10)}\n")
    print(f"By day\n{by_day(root, symbol)}\n")
    print(f"Sizes of trades, in polars\n{sizes(root)}\n")
    print(f"The busiest minutes, in SQL\n{busiest(root)}\n")
    print(f"When silence was not the market\n{doubtful(root, symbol)}\n")
    if find_spec("matplotlib"):
        draw(root, symbol, Path("analysis.png"))


def describe(root: str) -> pd.DataFrame:
    """Of each symbol: how much, how well covered, how late."""
    columns = ["trades", "first", "last", "recorded", "gaps", "late", "delay_p50_ms", "delay_p99_ms"]
    found: pd.DataFrame = ingestor.describe(root)
    return found.set_index("symbol")[columns]


def regular_bars(root: str, symbol: str) -> pd.DataFrame:
    """Quiet bars are filled, blind ones are not: what is absent was not recorded whole."""
    bars: pd.DataFrame = ingestor.read_bars(root, "5m", [symbol], tz=NEW_YORK, session="regular", fill=True)
    return bars.set_index("start")[["open", "high", "low", "close", "volume", "trades", "vwap", "coverage"]]


def by_day(root: str, symbol: str) -> pd.DataFrame:
    """Realised volatility from one-minute closes, by New York's date, of bars that were recorded whole."""
    bars = ingestor.read_bars(root, "1m", symbols=[symbol], tz=NEW_YORK, session="regular", fill=True)
    whole = bars[bars["coverage"] == 1.0]
    returns = whole.groupby("session_date")["close"].pct_change()
    return pd.DataFrame(
        {
            "minutes": whole.groupby("session_date").size(),
            "volume": whole.groupby("session_date")["volume"].sum(),
            "volatility": returns.groupby(whole["session_date"]).std(),
        }
    )


def sizes(root: str) -> pl.DataFrame:
    """An Arrow table is what polars takes."""
    trades = pl.DataFrame(ingestor.read_trades(root, columns=["symbol", "price", "volume"], engine="arrow"))
    return (
        trades.filter(pl.col("volume") > 0)
        .group_by("symbol")
        .agg(
            trades=pl.len(),
            median=pl.col("volume").median(),
            largest=pl.col("volume").max(),
            turnover=(pl.col("price") * pl.col("volume")).sum(),
        )
        .sort("symbol")
    )


def busiest(root: str) -> pd.DataFrame:
    """And DuckDB."""
    trades = ingestor.read_trades(root, engine="arrow")
    with duckdb.connect() as database:
        database.register("trades", trades)
        found: pd.DataFrame = database.sql(
            """
            SELECT symbol, time_bucket(INTERVAL 1 minute, "timestamp") AS minute, count(*) AS trades
            FROM trades GROUP BY ALL ORDER BY trades DESC, minute, symbol LIMIT 5
            """
        ).df()
        return found


def doubtful(root: str, symbol: str) -> pd.DataFrame:
    """The intervals in which no trade proves nothing."""
    coverage: pd.DataFrame = ingestor.read_coverage(root, symbols=[symbol], tz=NEW_YORK)
    return coverage[coverage["state"] != "recorded"][["state", "cause", "start", "end"]]


def draw(root: str, symbol: str, path: Path) -> None:
    """The price, and grey where the recorder was blind or its subscription unproven."""
    import matplotlib.pyplot as plt

    bars = ingestor.read_bars(root, "1m", symbols=[symbol], tz=NEW_YORK)
    figure, axes = plt.subplots(figsize=(12, 5))
    axes.plot(bars["start"], bars["close"], linewidth=1)
    gaps = doubtful(root, symbol)
    for start, end in zip(gaps["start"], gaps["end"], strict=True):
        axes.axvspan(start, end, color="0.85")
    axes.set_title(f"{symbol}, New York time; grey: not recorded")
    figure.savefig(path)
    plt.close(figure)


if __name__ == "__main__":
    main(*[*sys.argv[1:], *["data", "AAPL"][len(sys.argv) - 1 :]])
