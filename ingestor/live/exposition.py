"""What the server counts, for Prometheus: looked up when it asks."""

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ingestor.live.hub import Hub


class HubCollector(Collector):
    """A hub's numbers."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def collect(self) -> Iterable[Metric]:
        hub, clients = self._hub, self._hub.clients
        subscriptions = sum(len(one.symbols) for one in clients)
        skipped = hub.skipped + sum(one.skipped for one in clients)
        yield GaugeMetricFamily("ingestor_live_clients", "WebSockets that are open.", len(clients))
        yield GaugeMetricFamily("ingestor_live_subscriptions", "Of all clients.", subscriptions)
        yield GaugeMetricFamily("ingestor_live_symbols", "Symbols with a price.", len(hub.board.quotes))
        if hub.board.recording is not None:
            yield GaugeMetricFamily("ingestor_live_recording", "1 while somebody records.", hub.board.recording)
        yield GaugeMetricFamily(
            "ingestor_live_behind_seconds", "From the last block's receipt to its hand-out.", hub.behind_s
        )
        yield CounterMetricFamily("ingestor_live_trades", "Trades handed out, each once.", hub.trades)
        yield CounterMetricFamily("ingestor_live_skipped", "Updates replaced by newer ones.", skipped)
        yield CounterMetricFamily("ingestor_live_given_up", "Clients closed with 1008.", hub.given_up)
