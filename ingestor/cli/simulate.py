"""`ingestor simulate`: a simulated venue to record from."""

import asyncio
import math
import secrets
import signal
from pathlib import Path
from typing import Any, get_args

import click

from ingestor.cli.options import DurationType, example, json_option, listen_options, symbols_option
from ingestor.cli.printing import format_address, format_json
from ingestor.config import load_settings
from ingestor.config.feeds import FeedSettings, JsonSettings
from ingestor.errors import ConfigError
from ingestor.logs import configure_logs
from ingestor.simulator.faults import Schedule, load_faults
from ingestor.simulator.history import HistoryFault, HistorySettings
from ingestor.simulator.market import START_PRICES, MarketSettings
from ingestor.simulator.protocols import PLAIN_JSON
from ingestor.simulator.venue import VenueSettings, open_venue


class PaceType(click.ParamType[float]):
    """A number above zero, or `max` → infinity."""

    name = "number|max"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if value == "max":
            return math.inf
        try:
            pace = float(str(value))
        except ValueError:
            pace = math.nan
        if not 0 < pace < math.inf:
            self.fail(f"{value!r} is neither a number above 0 nor `max`", param, ctx)
        return pace


POSITIVE = click.FloatRange(min=0, min_open=True)
FILE = click.Path(path_type=Path, dir_okay=False)


@click.command(
    epilog=example(
        "ingestor simulate --seed 7 --rate 2000 --truth truth.jsonl",
        "# in a second terminal:",
        "FINNHUB_API_KEY=demo ingestor run --url ws://127.0.0.1:8765 --symbols AAPL",
    )
)
@listen_options(8765)
@click.option(
    "--protocol",
    type=click.Choice(["finnhub", "flat", "bars", "binance", "json"]),
    default="finnhub",
    show_default=True,
    help="`flat` and `bars` stream plain JSON without a subscription: prices, and OHLCV bars. `binance` and `json` "
    "need no key.",
)
@click.option(
    "--config", type=FILE, metavar="FILE", help="With `--protocol json`: speak the language of these settings' feed."
)
@symbols_option
@click.option("--rate", type=PaceType(), help="Trades per second over all symbols; `max`: as fast as they are read.")
@click.option(
    "--interval", type=DurationType(), default="50ms", show_default=True, help="Time between batches, or bars."
)
@click.option("--seed", type=int, metavar="N", help="Makes the run repeatable.")
@click.option("--start-price", type=POSITIVE, metavar="PRICE", help="Of every symbol; else about what is usual.")
@click.option(
    "--volatility", type=click.FloatRange(min=0), metavar="X", default=0.3, show_default=True, help="Per year."
)
@click.option("--drift", type=float, metavar="X", default=0.05, show_default=True, help="Per year.")
@click.option("--tick-size", type=POSITIVE, metavar="PRICE", help="Smallest step of a price.")
@click.option("--truth", type=FILE, metavar="FILE", help="Write every trade sent, and when, to this file (JSON lines).")
@click.option(
    "--replay",
    type=click.Path(path_type=Path, exists=True),
    help="Send recorded trades: Parquet, CSV, JSON lines (a truth file), or a directory such as data/trades; of "
    "data/raw every frame as it came.",
)
@click.option(
    "--speed", type=PaceType(), default="1", show_default=True, help="Of a replay, times its own pace, or `max`."
)
@click.option(
    "--key", "keys", metavar="KEY", multiple=True, default=("demo",), show_default=True, help="A valid one; repeatable."
)
@click.option("--any-key", is_flag=True, help="Accept every key.")
@click.option(
    "--limit", type=click.IntRange(0), metavar="N", default=50, show_default=True, help="Symbols per connection."
)
@click.option("--ping-interval", type=DurationType(), default="60s", show_default=True, help="From ping to ping.")
@click.option("--faults", metavar="FILE|NAME[,NAME]", help="Misbehave: a fault script, or presets by name.")
@click.option(
    "--history",
    is_flag=True,
    help="Serve what happened over HTTP, too, under the paths of Binance, Coinbase, Kraken, Finnhub and Alpaca.",
)
@click.option(
    "--history-fault",
    "history_faults",
    multiple=True,
    type=click.Choice(get_args(HistoryFault)),
    help="Be wrong in it; repeatable.",
)
@click.option("--history-delay", type=DurationType(), help="A trade is in it so long after it happened.")
@click.option("--tls-cert", type=FILE, metavar="FILE", help="Serve wss:// with this certificate (PEM).")
@click.option("--tls-key", type=FILE, metavar="FILE", help="Its key (PEM).")
@click.option("--for", "run_s", type=DurationType(), help="Stop after this time.")
@json_option
def simulate(**options: Any) -> None:
    """Serve made-up trades over a real WebSocket, in Finnhub's protocol or another.

    Prints one line, `listening on ws://127.0.0.1:8765`, when clients can connect; what happens then is logged
    on stderr. Stops on Ctrl-C.
    """
    configure_logs("info", "auto", options["keys"])
    settings = _venue_settings(options)

    async def serve() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        venue = await open_venue(settings)
        if options["run_s"] is not None:
            loop.call_later(options["run_s"], stop.set)
        line = format_address(venue.url, as_json=False)
        if options["as_json"]:
            facts = {"url": venue.url, "protocol": settings.protocol, "seed": settings.market.seed}
            line = format_json(facts, indent=None)
        click.echo(line)
        await venue.run(stop)

    asyncio.run(serve())


def _venue_settings(options: dict[str, Any]) -> VenueSettings:
    """The settings that these flags describe. Raises ConfigError for what can't be used together, or at all."""
    certificate = (options["tls_cert"], options["tls_key"])
    if (certificate[0] is None) != (certificate[1] is None):
        raise ConfigError("TLS needs both --tls-cert and --tls-key")
    json_feed: FeedSettings = PLAIN_JSON if options["config"] is None else load_settings(options["config"]).feed
    if not isinstance(json_feed, JsonSettings):
        text = f"{options['config']}: its feed is `{json_feed.type}`: --config is for `--protocol json`"
        raise ConfigError(text)
    market = MarketSettings(
        seed=secrets.randbits(32) if options["seed"] is None else options["seed"],
        rate=options["rate"],
        interval_s=options["interval"],
        drift=options["drift"],
        volatility=options["volatility"],
        tick_size=options["tick_size"],
        start_price=options["start_price"],
        start_prices=START_PRICES if options["start_price"] is None else {},
    )
    faults = Schedule() if options["faults"] is None else load_faults(options["faults"])
    history = None
    if options["history"]:
        history = HistorySettings(settle_s=options["history_delay"] or 0.0, faults=frozenset(options["history_faults"]))
    elif options["history_faults"] or options["history_delay"]:
        raise ConfigError("--history-fault and --history-delay need --history")
    return VenueSettings(
        host=options["host"],
        port=options["port"],
        protocol=options["protocol"],
        json_feed=json_feed,
        symbols=options["symbols"] or (),
        keys=None if options["any_key"] else frozenset(options["keys"]),
        limit=options["limit"],
        ping_interval_s=options["ping_interval"],
        market=market,
        replay=options["replay"],
        speed=options["speed"],
        faults=faults,
        truth=options["truth"],
        history=history,
        certificate=None if certificate[0] is None else certificate,
    )
