"""`ingestor serve`: prices, history and a page for everybody on this machine, from one recording."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from pydantic import ValidationError

from ingestor.cli.options import config_option, format_json, json_option, root_from, root_option
from ingestor.config import RedisSettings, parse_size
from ingestor.errors import ConfigError
from ingestor.layout import Layout
from ingestor.logs import configure_logs

if TYPE_CHECKING:
    from ingestor.live.auth import Verifier
    from ingestor.live.source import Source

_EXTRA = ("starlette", "uvicorn", "jwt", "cryptography")
_SECRETS = ("INGESTOR_JWT_SECRET", "REDIS_PASSWORD")


class _Size(click.ParamType[int]):
    """`4MB` → 4194304."""

    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_size(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command()
@config_option
@root_option
@click.option("--redis", metavar="URL", help="Take prices from the Redis of a recorder elsewhere.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8766, show_default=True, help="0 takes a free one.")
@click.option("--allow-host", "allowed", multiple=True, metavar="NAME", help="A name it is called by; repeatable.")
@click.option("--jwt", type=click.Choice(["HS256", "RS256"]), help="Ask for tokens of this algorithm.")
@click.option("--public-key", type=click.Path(path_type=Path), metavar="FILE", help="Of RS256, in PEM format.")
@click.option("--audience", default="ingestor", show_default=True, help="Whom tokens must be for.")
@click.option("--max-clients", type=click.IntRange(1, 100_000), default=2000, show_default=True, help="WebSockets.")
@click.option("--max-symbols", type=click.IntRange(1, 5000), default=1000, show_default=True, help="A WebSocket.")
@click.option("--client-queue", type=_Size(), default="4MB", show_default=True, help="What may wait for a WebSocket.")
@json_option
def serve(config: Path | None, root: Path | None, as_json: bool, **options: Any) -> None:
    """Serve live prices, history and a page; the recorder does not notice. Until Ctrl-C.

    \b
    pip install 'finnhub-ingestor[live]'
    ingestor serve
    Open http://127.0.0.1:8766, or send {"action":"subscribe","symbol":"AAPL"}
    to ws://127.0.0.1:8766/live-price
    """  # noqa: D301  \b is click's mark for text as it stands
    if missing := [name for name in _EXTRA if find_spec(name) is None]:
        raise ConfigError(f"{missing[0]} is not installed: pip install 'finnhub-ingestor[live]'")
    from ingestor.live.gate import allowed_hosts
    from ingestor.live.server import Service, listen, run_service
    from ingestor.live.subscriptions import Limits

    configure_logs("info", "auto", [os.environ.get(name, "") for name in _SECRETS])
    host: str = options["host"]
    verifier = _make_verifier(options)
    limits = Limits(options["max_clients"], options["max_symbols"], options["client_queue"])
    with listen(host, options["port"], authenticated=verifier is not None) as listening:
        source, layout = _open_source(config, root, options["redis"])
        url = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
        line = format_json({"url": url}, indent=None) if as_json else f"listening on {url}"
        service = Service(source, layout, allowed_hosts(host, options["allowed"]), verifier, limits)
        run_service(service, listening, lambda: click.echo(line))


def _make_verifier(options: dict[str, Any]) -> "Verifier | None":
    """What checks tokens; None where nobody is asked for one. Raises ConfigError."""
    from ingestor.live.auth import load_verifier

    if options["jwt"] is None and options["public_key"] is not None:
        raise ConfigError("--public-key FILE belongs to --jwt RS256")
    if options["jwt"] is None:
        return None
    return load_verifier(options["jwt"], options["audience"], options["public_key"], os.environ)


def _open_source(config: Path | None, root: Path | None, redis: str | None) -> "tuple[Source, Layout | None]":
    """Where the prices come from, and the recording if it is here. Raises IngestorError, OSError."""
    if redis is None:
        from ingestor.live.journal_source import JournalSource

        layout = Layout(root_from(config, root))
        return JournalSource(layout), layout
    if root is not None:
        raise ConfigError("--root or --redis: the prices come from one of them")
    if find_spec("redis") is None:
        raise ConfigError("redis is not installed: pip install 'finnhub-ingestor[live,redis]'")
    from ingestor.live.redis_source import RedisSource

    try:
        settings = RedisSettings(url=redis)
    except ValidationError as error:
        raise ConfigError(f"--redis: {error.errors()[0]['msg']}") from None
    return RedisSource(settings, os.environ.get("REDIS_PASSWORD")), None
