"""The settings of the sinks: what the example shows is so, and no secret stands in a file."""

import re
from pathlib import Path

import pytest

from ingestor.config import load_settings
from ingestor.config.key import load_secret
from ingestor.config.sections import SinkSettings
from ingestor.errors import ConfigError
from ingestor.sinks import advise, kafka_topic, object_store, postgres_db, redis_db, sqlite_db

EXAMPLE = Path(__file__).parents[1] / "config/ingestor.yaml"


def load_sinks(folder: Path, text: str) -> SinkSettings:
    path = folder / "ingestor.yaml"
    path.write_text(f"tickers: [A]\nsinks:\n  {text}\n")
    return load_settings(path).sinks


def test_the_example_shows_every_option_with_its_default(tmp_path: Path) -> None:
    (block,) = re.findall(r"^#   sinks:\n((?:#     .*\n)+)", EXAMPLE.read_text(), re.MULTILINE)
    shown = re.sub(r"^#     ", "  ", block, flags=re.MULTILINE)
    sinks = load_sinks(tmp_path, shown.strip())
    assert sinks == SinkSettings.model_validate(
        {"sqlite": {}, "postgres": {}, "redis": {}, "kafka": {}, "object_store": {}}
    )
    options = {
        key for name in SinkSettings.model_fields for key in type(getattr(sinks, name)).model_fields
    }  # fmt: skip
    assert {key for key in options if not re.search(rf"^    {key}: ", shown, re.MULTILINE)} == set()


@pytest.mark.parametrize("text", ["redis: null", "redis: ~", "kafka: null"])
def test_null_is_nowhere(tmp_path: Path, text: str) -> None:
    assert load_sinks(tmp_path, text) == SinkSettings()


@pytest.mark.parametrize("text", ["redis:", "redis: {}"])
def test_an_empty_section_is_on(tmp_path: Path, text: str) -> None:
    assert load_sinks(tmp_path, text) == SinkSettings.model_validate({"redis": {}})


@pytest.mark.parametrize(
    "text",
    [
        "redis: {url: 'redis://:hunter2@host:6379'}",
        "redis: {url: 'redis://me:hunter2@host'}",
        "postgres: {url: 'postgresql://me:hunter2@host/db'}",
        "postgres: {url: 'postgresql://me@host/db?password=hunter2'}",
        "kafka: {options: {sasl.password: hunter2}}",
        "kafka: {options: {ssl.key.password: hunter2}}",
        "object_store: {uri: 's3://id:hunter2@bucket/path'}",
    ],
)
def test_a_secret_is_refused_and_not_repeated(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="belong") as caught:
        load_sinks(tmp_path, text)
    assert "hunter2" not in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path}/ingestor.yaml:3:")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("redis: {url: 'http://host'}", "redis://"),
        ("redis: {url: 'redis://host:0'}", "redis://"),
        ("redis: {stream_max: 0}", "greater than or equal to 1"),
        ("kafka: {values: avro}", "json"),
        ("kafka: {broker: a}", "did you mean `brokers`"),
        ("object_store: {uri: 'ftp://x'}", "s3://"),
        ("postgres: {url: 'mysql://host/db'}", "postgresql://"),
        ("postgres: {url: 'postgresql://host:0/db'}", "postgresql://"),
        ("postgres: {schema_name: 'a b'}", "letters, digits"),
        ("mongo: {}", "known here are sqlite, postgres, redis, kafka, object_store"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        load_sinks(tmp_path, text)


class TestPasswords:
    def test_the_environment_stands_above_credentials_and_those_above_the_file(self, tmp_path: Path) -> None:
        credentials = tmp_path / "credentials"
        credentials.mkdir()
        environ = {"CREDENTIALS_DIRECTORY": str(credentials)}
        assert load_secret("REDIS_PASSWORD", tmp_path, environ) is None
        (tmp_path / ".env").write_text("REDIS_PASSWORD=from the file\n")
        assert load_secret("REDIS_PASSWORD", tmp_path, environ) == "from the file"
        (credentials / "REDIS_PASSWORD").write_text("from systemd\n")
        assert load_secret("REDIS_PASSWORD", tmp_path, environ) == "from systemd"
        environ["REDIS_PASSWORD"] = "from the environment"
        assert load_secret("REDIS_PASSWORD", tmp_path, environ) == "from the environment"


@pytest.mark.parametrize(
    ("kind", "told", "advice"),
    [
        ("redis", "NOAUTH Authentication required.", "REDIS_PASSWORD"),
        ("redis", "WRONGPASS invalid username-password pair or user is disabled.", "REDIS_PASSWORD"),
        ("redis", "You can't write against a read only replica.", "the primary"),
        ("redis", "Redis is loading the dataset in memory", "nothing is to be done"),
        ("redis", "command not allowed when used memory > 'maxmemory'.", "maxmemory"),
        ("redis", "WRONGTYPE Operation against a key holding the wrong kind of value", "delete the key"),
        ("redis", "MISCONF Redis is configured to save RDB snapshots", "its disk"),
        ("sqlite", "database is locked", "another program"),
        ("sqlite", "attempt to write a readonly database", "let the recorder's user"),
        ("sqlite", "database or disk is full", "make room"),
        ("sqlite", "file is not a database", "move it away"),
        ("postgres", 'FATAL:  password authentication failed for user "me"', "POSTGRES_PASSWORD"),
        ("postgres", "cannot execute INSERT in a read-only transaction", "the primary"),
        ("postgres", "permission denied for schema public", "grant its user"),
        ("postgres", 'FATAL:  database "trades" does not exist', "create it"),
        ("postgres", "FATAL:  the database system is starting up", "nothing is to be done"),
        ("kafka", "Broker: Topic authorization failed", "let its user write"),
        ("kafka", "SASL authentication error: Authentication failed during authentication", "KAFKA_PASSWORD"),
        ("store", "When putting object: AWS Error ACCESS_DENIED during PutObject operation", "the credentials"),
        ("store", "AWS Error NO_SUCH_BUCKET during ListObjectsV2 operation", "make the bucket"),
    ],
)
def test_what_to_do_about_a_refusal(kind: str, told: str, advice: str) -> None:
    advices = {
        "redis": redis_db.ADVICE, "sqlite": sqlite_db.ADVICE, "postgres": postgres_db.ADVICE,
        "kafka": kafka_topic.ADVICE, "store": object_store.ADVICE,
    }  # fmt: skip
    assert re.fullmatch(f"{re.escape(told)}: .*{re.escape(advice)}.*", advise(told, advices[kind]))
    assert advise("something else", advices[kind]) == "something else"
