"""Sections of the settings for destinations besides files."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator

from ingestor.config.types import PathText, RedisUrl, Section, StoreUri, Switch, null_as_none


class SqliteSettings(Section):
    """Rows in a SQLite database."""

    path: PathText = Field(default=Path("data/trades.sqlite"), description="relative to the working directory")


class RedisSettings(Section):
    """A stream, the last price and publications a symbol. The password is REDIS_PASSWORD."""

    url: RedisUrl = Field(
        default="redis://127.0.0.1:6379",
        description="rediss:// for TLS; user@ and /database are allowed, a password not",
    )
    ca_file: Annotated[PathText | None, BeforeValidator(null_as_none)] = Field(
        default=None, description="PEM file of a private certificate authority; null trusts the system's"
    )
    stream_max: Annotated[int, Field(ge=1, le=1 << 40)] = Field(
        default=100_000, description="about how many trades a stream keeps"
    )


class KafkaSettings(Section):
    """Messages in a topic. The password of SASL is KAFKA_PASSWORD."""

    brokers: str = Field(default="127.0.0.1:9092", description="host:port, several with commas between")
    topic: Annotated[str | None, BeforeValidator(null_as_none)] = Field(
        default=None, description="null is trades.<feed>, such as trades.finnhub"
    )
    values: Literal["json", "arrow"] = Field(
        default="json", description="a trade as JSON, or the trades of a symbol as an Arrow IPC stream"
    )
    options: dict[str, str] = Field(default_factory=dict, description="any option of librdkafka")

    @field_validator("options")
    @classmethod
    def _no_password(cls, options: dict[str, str]) -> dict[str, str]:
        if secret := next((name for name in options if name.endswith((".password", ".pem", "client.secret"))), None):
            raise ValueError(f"{secret} is a secret: the password of SASL belongs into KAFKA_PASSWORD")
        return options


class ObjectStoreSettings(Section):
    """A mirror of the dataset. Credentials are found as usual: AWS_ACCESS_KEY_ID and so on, or the machine's role."""

    uri: StoreUri = Field(default="mirror", description="s3://bucket/path, gs://bucket/path, or a directory")
    shared: Switch = Field(
        default=False, description="several recorders mirror there as one dataset, each in a folder root=<its name>"
    )


def _null_section(value: object) -> object:
    """An empty section is one whose every line is a comment: it is all defaults, and not null."""
    return None if value in ("~", "null") else value


class SinkSettings(Section):
    """Where trades go besides files; null is nowhere."""

    sqlite: Annotated[SqliteSettings | None, BeforeValidator(_null_section)] = Field(
        default=None, description="a SQLite database; null is nowhere"
    )
    redis: Annotated[RedisSettings | None, BeforeValidator(_null_section)] = Field(
        default=None, description="Redis: a stream, the last price and publications a symbol; null is nowhere"
    )
    kafka: Annotated[KafkaSettings | None, BeforeValidator(_null_section)] = Field(
        default=None, description="a Kafka topic; null is nowhere"
    )
    object_store: Annotated[ObjectStoreSettings | None, BeforeValidator(_null_section)] = Field(
        default=None, description="a mirror of the dataset in an object store or a directory; null is nowhere"
    )
