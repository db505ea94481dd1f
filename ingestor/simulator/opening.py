"""How a venue opens: its address, its TLS, its source of trades, its truth."""

import asyncio
import ssl
from dataclasses import replace
from pathlib import Path

from ingestor.errors import ConfigError
from ingestor.simulator.market import Intervals, Market, Source
from ingestor.simulator.replay import Replay
from ingestor.simulator.settings import UNASKED, VenueSettings
from ingestor.simulator.truth import TruthFile
from ingestor.simulator.venue import Accepted, Venue

STREAMED_SYMBOLS = ("AAPL", "MSFT", "BINANCE:BTCUSDT")
"""What the protocols without subscriptions stream, unless symbols are given."""


async def open_venue(settings: VenueSettings) -> Venue:
    """A venue that listens already; `Venue.run` attends to its clients. Raises ConfigError."""
    if settings.truth is not None and settings.protocol == "bars":
        raise ConfigError("the truth is about trades, and the protocol `bars` sends none")
    if settings.protocol in UNASKED and not settings.symbols:
        settings = replace(settings, symbols=STREAMED_SYMBOLS)
    source = _source(settings)
    accepted: asyncio.Queue[Accepted] = asyncio.Queue()
    context = None if settings.certificate is None else _tls(*settings.certificate)
    try:
        server = await asyncio.start_server(
            lambda reader, writer: accepted.put_nowait((reader, writer)),
            settings.host,
            settings.port,
            ssl=context,
        )
    except OSError as error:
        raise ConfigError(f"can't listen on {settings.host}:{settings.port}: {error.strerror or error}") from error
    try:
        truth = None if settings.truth is None else TruthFile(settings.truth)
    except OSError as error:
        server.close()
        raise ConfigError(f"{settings.truth}: the truth can't be written there: {error.strerror}") from error
    return Venue(settings, server, accepted, source, truth)


def _source(settings: VenueSettings) -> Source:
    if settings.replay is not None:
        return Replay(settings.replay, settings.speed)
    return Intervals(settings.market) if settings.protocol == "bars" else Market(settings.market)


def _tls(certificate: Path, key: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key)
    except OSError as error:  # ssl.SSLError is one
        raise ConfigError(f"{certificate}, {key}: no certificate and key (PEM) for TLS: {error}") from error
    return context
