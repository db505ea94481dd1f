"""`ingestor serve`: live prices, history and a page from one recording, for this machine."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from pydantic import ValidationError

from ingestor.cli import options
from ingestor.cli.printing import format_address
from ingestor.config.addresses import allowed_hosts, find_host
from ingestor.config.sections import RedisSettings
from ingestor.errors import ConfigError
from ingestor.layout import Layout
from ingestor.logs import configure_logs

if TYPE_CHECKING:
    from ingestor.live.hub import PriceSource

_SECRETS = ("INGESTOR_JWT_SECRET", "REDIS_PASSWORD")


def _check_origins(_ctx: click.Context, _param: click.Parameter, origins: tuple[str, ...]) -> tuple[str, ...]:
    for origin in origins:
        scheme, _, authority = origin.partition("://")
        if origin != "null" and (scheme not in ("http", "https") or find_host(authority.rstrip("/")) is None):
            raise click.BadParameter(f"{origin!r} is no origin: write http://host:port, https://host, or null")
    return origins


@click.command(
    epilog=options.example(
        "pip install 'finnhub-ingestor[live]'",
        "ingestor serve",
    )
)
@options.recording_options
@click.option("--redis", metavar="URL", help="Take prices from the Redis of a recorder elsewhere.")
@options.listen_options(8766)
@click.option("--allow-host", "allowed", multiple=True, metavar="NAME", help="A name it is called by; repeatable.")
@click.option(
    "--allow-origin",
    "origins",
    multiple=True,
    metavar="ORIGIN",
    callback=_check_origins,
    help="Pages of http://host:port may call it; null: pages from files; repeatable.",
)
@click.option("--jwt", type=click.Choice(["HS256", "RS256"]), help="Ask for tokens of this algorithm.")
@click.option("--public-key", type=click.Path(path_type=Path), metavar="FILE", help="Public key for RS256 (PEM).")
@click.option(
    "--audience", metavar="NAME", default="ingestor", show_default=True, help="The aud claim that tokens must have."
)
@click.option(
    "--max-clients",
    type=click.IntRange(1, 100_000),
    metavar="N",
    default=2000,
    show_default=True,
    help="WebSockets at a time.",
)
@click.option(
    "--max-symbols",
    type=click.IntRange(1, 5000),
    metavar="N",
    default=1000,
    show_default=True,
    help="Symbols a WebSocket may ask for.",
)
@options.json_option
def serve(config: Path | None, root: Path | None, as_json: bool, **given: Any) -> None:
    """Serve live prices, history and a page, until Ctrl-C. Does not slow down the recorder.

    Prints the address when clients can connect: open it, or send {"action":"subscribe","symbol":"AAPL"} to its
    /live-price over a WebSocket. What happens then is logged on stderr.
    """
    options.require_extra("live", "starlette", "uvicorn", "jwt", "cryptography")
    from ingestor.live.access import load_verifier
    from ingestor.live.server import PriceService, listen, run_service
    from ingestor.live.subscriptions import Limits

    configure_logs("info", "auto", [os.environ.get(name, "") for name in _SECRETS])
    host: str = given["host"]
    if given["jwt"] is None and given["public_key"] is not None:
        raise ConfigError("--public-key FILE belongs to --jwt RS256")
    verifier = None  # nobody is asked for a token
    if given["jwt"] is not None:
        verifier = load_verifier(given["jwt"], given["audience"], given["public_key"], os.environ)
    limits = Limits(given["max_clients"], given["max_symbols"])
    with listen(host, given["port"], authenticated=verifier is not None) as listening:
        source, layout = _open_source(config, root, given["redis"])
        url = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
        line = format_address(url, as_json=as_json)
        hosts = allowed_hosts(host, given["allowed"], origins=given["origins"])
        service = PriceService(source, layout, hosts, verifier, limits)
        run_service(service, listening, lambda: click.echo(line))


def _open_source(config: Path | None, root: Path | None, redis: str | None) -> "tuple[PriceSource, Layout | None]":
    """The source of prices, and the recording if it is on this machine. Raises IngestorError, OSError."""
    if redis is None:
        from ingestor.live.journal_source import JournalSource

        layout = Layout(options.root_from(config, root))
        return JournalSource(layout), layout
    if root is not None:
        raise ConfigError("--root or --redis: the prices come from one of them")
    options.require_extra("live,redis", "redis")
    from ingestor.live.redis_source import RedisSource

    try:
        settings = RedisSettings(url=redis)
    except ValidationError as error:
        raise ConfigError(f"--redis: {error.errors()[0]['msg']}") from None
    return RedisSource(settings, os.environ.get("REDIS_PASSWORD")), None
