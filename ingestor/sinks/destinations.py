"""The sinks that run in a process of their own: which are asked for, what they need installed, how each is opened."""

import threading
from collections.abc import Mapping
from functools import partial
from importlib.util import find_spec

from ingestor.config.sections import SinkSettings
from ingestor.errors import ConfigError
from ingestor.journal.segment import Cursor
from ingestor.layout import Layout
from ingestor.sinks import Sink
from ingestor.sinks.external_worker import ExternalWorker
from ingestor.sinks.retention_slots import name_root

SECRETS = {"postgres": "POSTGRES_PASSWORD", "redis": "REDIS_PASSWORD", "kafka": "KAFKA_PASSWORD"}
"""By sink: where its password is looked for, as the API key is."""

_PACKAGES = {"postgres": "adbc_driver_postgresql", "redis": "redis", "kafka": "confluent_kafka"}
"""By sink, and by the extra of that name: the package that it needs."""
_RECORDS = ("sqlite", "postgres", "redis", "kafka")
"""Those that take their rows from the journal, and so keep a slot for what they have not passed."""


def configured_sinks(settings: SinkSettings) -> list[str]:
    """Raises ConfigError, in one line, where a sink's package is not installed."""
    asked = [name for name in type(settings).model_fields if getattr(settings, name) is not None]
    for name in asked:
        if name in _PACKAGES and find_spec(_PACKAGES[name]) is None:
            raise ConfigError(f"sinks.{name} needs the extra `{name}`: pip install 'finnhub-ingestor[{name}]'")
    store = settings.object_store
    if store is not None and store.table == "delta" and find_spec("deltalake") is None:
        raise ConfigError(
            "sinks.object_store.table: delta needs the extra `delta`: pip install 'finnhub-ingestor[delta]'"
        )
    return asked


def check_options(settings: SinkSettings, passwords: Mapping[str, str]) -> None:
    """Raises ConfigError, in one line, for options that no waiting would mend. Whatever they need is installed."""
    if settings.kafka is not None:
        from ingestor.sinks.kafka_topic import check_kafka_options

        check_kafka_options(settings.kafka, passwords.get("kafka"))


def sinks_with_slots(settings: SinkSettings) -> list[str]:
    """Those for which the journal is kept."""
    return [name for name in _RECORDS if getattr(settings, name) is not None]


def make_external_workers(
    settings: SinkSettings, layout: Layout, feed: str, secrets: dict[str, str], stop: threading.Event
) -> list[ExternalWorker]:
    """One for each sink that is asked for; Redis has two, a record and a view. Nothing is open yet. Raises OSError."""
    root = name_root(layout)
    workers = [
        ExternalWorker(
            layout,
            name,
            partial(_open, name, settings, layout, feed, secrets.get(name), root),
            stop,
            keeps_slot=name in _RECORDS,
        )
        for name in configured_sinks(settings)
    ]
    if settings.redis is not None:
        live = partial(_open, "redis_live", settings, layout, feed, secrets.get("redis"), root)
        workers.append(ExternalWorker(layout, "redis_live", live, stop, view=True))
    return workers


def _open(
    name: str, settings: SinkSettings, layout: Layout, feed: str, password: str | None, root: str, start: Cursor
) -> Sink:
    """The sink of this name, ready. `start` is for those that can't keep their cursor at the destination.

    Raises SinkUnavailable.
    """
    if name == "sqlite" and settings.sqlite is not None:
        from ingestor.sinks.sqlite_db import SqliteDatabase

        return SqliteDatabase(settings.sqlite.path, root, layout)
    if name == "postgres" and settings.postgres is not None:
        from ingestor.sinks.postgres_db import PostgresDatabase

        return PostgresDatabase(settings.postgres, password, root, layout)
    if name == "redis" and settings.redis is not None:
        from ingestor.sinks.redis_db import RedisStreams

        return RedisStreams(settings.redis, password, root, layout)
    if name == "redis_live" and settings.redis is not None:
        from ingestor.sinks.redis_db import RedisLive

        return RedisLive(settings.redis, password)
    if name == "kafka" and settings.kafka is not None:
        from ingestor.sinks.kafka_topic import KafkaTopic

        topic = settings.kafka.topic or f"trades.{feed}"
        return KafkaTopic(settings.kafka, topic, password, root, start)
    if name == "object_store" and settings.object_store is not None:
        from ingestor.sinks.object_store import ObjectStore

        store = settings.object_store
        return ObjectStore(store.uri, layout, root, shared=store.shared, retention=store.retention, table=store.table)
    raise ValueError(f"no sink {name}")
