"""`ingestor run`: record until a signal says stop."""

import faulthandler
from pathlib import Path

import click
import structlog

from ingestor.cli.options import config_dir, example, reading_options, source_from
from ingestor.config import Flags
from ingestor.config.addresses import choose_proxy, find_proxy_variable
from ingestor.config.key import SECRET_VARIABLE, load_key, load_secret
from ingestor.errors import ConfigError
from ingestor.logs import configure_logs
from ingestor.operations.alerts import load_receivers
from ingestor.operations.signals import catch_signals
from ingestor.system import require_recorder

log = structlog.get_logger()


@click.command(epilog=example("ingestor run --symbols AAPL,BINANCE:BTCUSDT"))
@reading_options
@click.option("--url", metavar="URL", help="The venue; stands above feed.url of the settings.")
def run(config: Path | None, root: Path | None, symbols: tuple[str, ...] | None, url: str | None) -> None:
    """Record trades until SIGTERM or SIGINT; a second signal leaves the sealing to the next start. SIGHUP takes a
    changed list of tickers over.

    Prints nothing on stdout; what happens is logged on stderr. Exit 0 after a stop in order, 2 where the settings or
    the directory can't be used, 3 where the venue refuses the key, 4 where rows could not be saved.
    """
    require_recorder()
    source = source_from(config, Flags(symbols=symbols, root=root, url=url))
    settings = source.read()
    variable = settings.feed.key_variable
    key = load_key(config_dir(config), variable=variable) if settings.feed.needs_key else None
    if key is None and settings.feed.needs_key:
        raise ConfigError(f"there is no API key: set {variable}, or put it into the .env beside the config")
    text = key.value.get_secret_value() if key else ""
    secret = load_secret(SECRET_VARIABLE, config_dir(config)) or "" if settings.feed.needs_secret else ""
    if settings.feed.needs_secret and not secret:
        raise ConfigError(f"the login needs a secret: set {SECRET_VARIABLE}, or put it into the .env beside the config")
    receivers = load_receivers(settings.alerts, config_dir(config))
    secrets = list(filter(None, [text, secret, *receivers])) or [""]
    configure_logs(settings.logging.level, settings.logging.format, secrets)
    if key:
        log.info("key.found", source=key.source)
    if key and key.warning:
        log.warning("key.exposed", warning=key.warning)
    if (proxy := choose_proxy(settings.feed.url, settings.connection.proxy)) is not None:
        log.info("proxy.used", proxy=str(proxy))
    elif (unused := find_proxy_variable(settings.feed.url)) is not None:
        log.warning("proxy.unused", variable=unused, hint="`connection.proxy: auto` uses it")
    faulthandler.enable()  # where a watchdog's SIGABRT found each thread: places in the code, no values
    signals = catch_signals()
    from ingestor.daemon import record  # heavy: a mistake in the settings is told first

    record(settings, source, text, signals, secret, receivers)
