"""Which shard has which symbol: evenly, for good, and with little to move."""

from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from click.testing import CliRunner
from prepared import prepared_recording
from requirements import of_tier

from ingestor.cli.main import cli
from ingestor.config import Settings, Source
from ingestor.config.feeds import BINANCE_STREAMS
from ingestor.config.sections import shard_of, symbols_of_shard
from ingestor.operations.reload import LiveSettings

SYMBOLS = tuple(f"{kind}{number}" for kind in ("S", "BINANCE:C", "OANDA:F") for number in range(1000))


@pytest.mark.parametrize("count", of_tier([1, 2, 3, 4, 16], [3]))
def test_every_symbol_has_one_shard(count: int) -> None:
    shards = [symbols_of_shard(SYMBOLS, index, count) for index in range(1, count + 1)]
    assert sorted(symbol for shard in shards for symbol in shard) == sorted(SYMBOLS)


@pytest.mark.parametrize("count", [2, 4, 16])
def test_shards_are_about_as_large(count: int) -> None:
    sizes = Counter(shard_of(symbol, count) for symbol in SYMBOLS)
    fair = len(SYMBOLS) / count
    assert all(abs(sizes[index] - fair) < 5 * fair**0.5 for index in range(1, count + 1))


@pytest.mark.parametrize("count", [1, 3, 4, 15])
def test_one_more_shard_takes_its_part_and_moves_nothing_else(count: int) -> None:
    moved = [symbol for symbol in SYMBOLS if shard_of(symbol, count) != shard_of(symbol, count + 1)]
    assert {shard_of(symbol, count + 1) for symbol in moved} == {count + 1}
    assert abs(len(moved) - len(SYMBOLS) / (count + 1)) < 5 * (len(SYMBOLS) / (count + 1)) ** 0.5


def test_other_symbols_change_nothing_and_order_stays() -> None:
    few = symbols_of_shard(SYMBOLS[::7], 2, 3)
    assert set(few) <= set(symbols_of_shard(SYMBOLS, 2, 3))
    assert all(SYMBOLS.index(one) < SYMBOLS.index(other) for one, other in pairwise(few))


def test_the_draw_is_for_good() -> None:
    """A recorder of another version, or on another machine, must not divide otherwise: these never change."""
    drawn = {symbol: shard_of(symbol, 4) for symbol in ("AAPL", "MSFT", "BINANCE:BTCUSDT", "OANDA:EUR_USD", "Ünï")}
    assert drawn == {"AAPL": 4, "MSFT": 3, "BINANCE:BTCUSDT": 2, "OANDA:EUR_USD": 3, "Ünï": 3}


# In the settings


def test_a_recorder_asks_for_its_shard() -> None:
    parts = [Settings.model_validate({"tickers": list(SYMBOLS), "shard": {"index": n, "count": 3}}) for n in (1, 2, 3)]
    assert sorted(symbol for part in parts for symbol in part.symbols) == sorted(SYMBOLS)
    assert parts[0].tickers == SYMBOLS
    assert Settings.model_validate({"tickers": list(SYMBOLS)}).symbols == SYMBOLS


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"shard": {"index": 0, "count": 2}}, "greater than or equal to 1"),
        ({"shard": {"index": 3, "count": 2}}, "at least `index`"),
        ({"shard": {"index": 2, "count": 2}, "tickers": ["S1"]}, "this shard gets none of the tickers"),
        ({"shard": {"index": 1, "count": 2}, "feed": {"type": "json", "url": "wss://x"}}, "needs `feed.subscribe`"),
    ],
)
def test_a_shard_that_makes_no_sense_is_refused(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Settings.model_validate({"tickers": list(SYMBOLS[:50]), **settings})


def test_shards_divide_what_one_connection_can_not_take() -> None:
    many = {"feed": {"type": "binance"}, "tickers": [f"S{number}USDT" for number in range(BINANCE_STREAMS + 100)]}
    assert Settings.model_validate(many).groups == 2
    assert Settings.model_validate({**many, "shard": {"index": 1, "count": 2}}).groups == 1


SHARDED = "feed: {type: binance}\ntickers: [%s]\nshard: {index: 1, count: 2}\nstorage: {min_free: 0B}\n"
FOUR = ("BTCUSDT", "ETHUSDT", "SOLUSDT", "BNBUSDT")


def test_check_prints_the_shard_and_wants_no_key_where_none_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FINNHUB_API_KEY", "CREDENTIALS_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "ingestor.yaml"
    path.write_text(SHARDED % ", ".join(FOUR))
    done = CliRunner().invoke(cli, ["check", "--config", str(path), "--root", str(tmp_path)])
    assert done.exit_code == 0, done.output
    ours = ", ".join(symbols_of_shard(FOUR, 1, 2))
    assert f"1 of 2 records {ours.count(',') + 1} of 4 tickers: {ours}" in done.output


def test_a_reload_takes_this_shard_of_the_new_tickers(tmp_path: Path) -> None:
    """Which shard it is needs a restart, whatever the file says by now."""
    path = tmp_path / "ingestor.yaml"
    path.write_text(SHARDED % ", ".join(FOUR))
    tickers = tuple(f"S{number}" for number in range(12))
    with prepared_recording(tmp_path / "data") as recording:
        source = Source(path)
        live = LiveSettings(source, source.read(), recording.division, recording.ledger)
        path.write_text((SHARDED % ", ".join(tickers)).replace("index: 1", "index: 2"))
        live.reload()
        assert recording.division.symbols == symbols_of_shard(tickers, 1, 2)
