"""`ingestor run`: record until a signal says stop."""

import signal
import threading
from pathlib import Path
from types import FrameType

import click
import structlog

from ingestor.cli.options import config_dir, config_option, root_option, settings_from, symbols_option
from ingestor.config import Flags, load_key
from ingestor.errors import ConfigError
from ingestor.logs import configure_logs

log = structlog.get_logger()


@click.command()
@config_option
@root_option
@symbols_option
@click.option("--url", metavar="URL", help="The venue; stands above feed.url of the settings.")
def run(config: Path | None, root: Path | None, symbols: tuple[str, ...] | None, url: str | None) -> None:
    r"""Record trades until SIGTERM or SIGINT; a second signal leaves the sealing to the next start.

    Prints nothing on stdout; what happens is logged on stderr. Exit 0 after a stop in order, 2 where the settings or
    the directory can't be used, 3 where the venue refuses the key, 4 where rows could not be saved.

    \b
    ingestor run --symbols AAPL,BINANCE:BTCUSDT
    """
    settings = settings_from(config, Flags(symbols=symbols, root=root, url=url))
    key = load_key(config_dir(config))
    if key is None:
        raise ConfigError("there is no API key: set FINNHUB_API_KEY, or put it into the .env beside the config")
    secret = key.value.get_secret_value()
    configure_logs(settings.logging.level, settings.logging.format, [secret])
    log.info("key.found", source=key.source)
    if key.warning:
        log.warning("key.exposed", warning=key.warning)
    stop, hurry = threading.Event(), threading.Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        (hurry if stop.is_set() else stop).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    from ingestor.daemon import record  # heavy: a mistake in the settings is told first

    record(settings, secret, stop, hurry)
