"""The desk of a venue: what its clients ask for, and what they are told."""

import structlog

from ingestor.simulator.connection import VenueConnection
from ingestor.simulator.languages import BINANCE_STREAMS, Language, Refusal, Request
from ingestor.simulator.misbehaviour import Misbehaviour
from ingestor.simulator.settings import VenueSettings

log = structlog.get_logger("ingestor.simulator")


class Desk:
    """Keeps the venue's rules on subscriptions."""

    def __init__(self, settings: VenueSettings, language: Language, misbehaviour: Misbehaviour) -> None:
        self._language = language
        self._misbehaviour = misbehaviour
        self._symbols = settings.symbols
        self._limit = BINANCE_STREAMS if settings.protocol == "binance" else settings.limit

    def obey(self, client: VenueConnection, text: str) -> None:
        """A message of the client. What can't be understood gets no answer, as at Finnhub."""
        request = self._language.read(text)
        if request is None:
            log.warning("message.ignored", connection=client.number, text=text[:200])
            return
        for answer in self._language.answer(request, self._fulfil(client, request)):
            client.say(**answer)

    def _fulfil(self, client: VenueConnection, request: Request) -> list[Refusal]:
        """Begin, or end, to send these symbols. What can't be."""
        if not request.wanted:
            for symbol in request.symbols:
                client.subscribed_s.pop(symbol, None)
            return []
        refusals = []
        for symbol in request.symbols:
            if refusal := self._refusal(client, symbol):
                refusals.append(refusal)
            else:
                client.subscribed_s[symbol] = self._misbehaviour.now_s
        return refusals

    def _refusal(self, client: VenueConnection, symbol: str) -> Refusal | None:
        fault = self._misbehaviour.of(client).refusal(symbol)
        if fault is not None or not self._trades(symbol):
            return Refusal("invalid", symbol, named=fault is None or fault.named)
        if len(client.subscribed_s) >= self._limit and symbol not in client.subscribed_s:
            return Refusal("too many", symbol)
        return None

    def _trades(self, symbol: str) -> bool:
        return symbol in self._symbols if self._symbols else not symbol.startswith("INVALID")
